//! The tree of a layer as its archive describes it, in memory.
//!
//! Pure: names are looked up here and nowhere else, so that no name in an archive can lead out of it. Built entry by
//! entry by the import, written out by `erofs`.

use std::collections::BTreeMap;

use super::LayerError;

/// Longest path of an entry.
const PATH_MAX: usize = 4096;
/// Longest name between two slashes.
const NAME_MAX: usize = 255;
/// Most symbolic links on the way to one entry.
const HOPS: usize = 40;

/// A place in the tree.
pub(crate) type Id = u32;
/// The root.
pub(crate) const ROOT: Id = 0;

/// What an inode is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Names and what they stand for.
    Dir(BTreeMap<Box<[u8]>, Id>),
    /// Where its bytes lie in the layer's file, and how many they are.
    File { at: u64, size: u64 },
    /// The same in pieces: `(offset in the file, place, length)`, in order and without overlap; zeros between them.
    Sparse { pieces: Box<[(u64, u64, u64)]>, size: u64 },
    /// Where it points to.
    Symlink(Box<[u8]>),
    /// A character device; number 0 is a whiteout.
    Char(u32),
    /// A pipe.
    Fifo,
}

/// Everything of an inode but its place.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Attributes {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub nanoseconds: u32,
    /// Number of a set of extended attributes; 0 is none.
    pub xattrs: u32,
    /// A directory that hides what lower layers have in it.
    pub opaque: bool,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub kind: Kind,
    pub attributes: Attributes,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub nodes: Vec<Node>,
    limit: u64,
}

fn directory(attributes: Attributes) -> Node {
    Node { kind: Kind::Dir(BTreeMap::new()), attributes }
}

/// As Docker makes directories that an archive takes for granted.
const IMPLICIT: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0, nanoseconds: 0, xattrs: 0, opaque: false };

/// An entry that is refused.
pub(crate) fn refuse(path: &[u8], why: &'static str) -> LayerError {
    let path = String::from_utf8_lossy(path).chars().take(160).collect();
    LayerError::Entry { path, why }
}

impl Tree {
    /// An empty one that takes so many inodes.
    pub fn new(limit: u64) -> Tree {
        Tree { nodes: vec![directory(IMPLICIT)], limit }
    }

    fn add(&mut self, node: Node) -> Result<Id, LayerError> {
        let full = || LayerError::TooLarge { what: "entries", limit: self.limit };
        if u64::try_from(self.nodes.len()).map_or(true, |count| count >= self.limit) {
            return Err(full());
        }
        let id = Id::try_from(self.nodes.len()).map_err(|_| full())?;
        self.nodes.push(node);
        Ok(id)
    }

    pub fn node(&self, id: Id) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    fn children(&mut self, id: Id) -> Option<&mut BTreeMap<Box<[u8]>, Id>> {
        match self.nodes.get_mut(id as usize).map(|node| &mut node.kind) {
            Some(Kind::Dir(children)) => Some(children),
            _ => None,
        }
    }

    fn child(&self, id: Id, name: &[u8]) -> Option<Id> {
        match self.node(id).map(|node| &node.kind) {
            Some(Kind::Dir(children)) => children.get(name).copied(),
            _ => None,
        }
    }

    /// The directory of an entry and the entry's name there; `None` is the root itself. Directories on the way that
    /// the archive has not named are made; symbolic links on the way are followed inside the tree, and `..` in them
    /// ends at the root, as for a process whose root it is.
    fn place<'a>(&mut self, path: &'a [u8]) -> Result<Option<(Id, &'a [u8])>, LayerError> {
        let parts = clean(path)?;
        let Some((name, way)) = parts.split_last() else { return Ok(None) };
        let mut todo: Vec<Vec<u8>> = way.iter().rev().map(|part| part.to_vec()).collect();
        let mut at = vec![ROOT];
        let mut hops = 0;
        while let Some(part) = todo.pop() {
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    if at.len() > 1 {
                        at.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let here = at.last().copied().unwrap_or(ROOT);
            let next = match self.child(here, &part) {
                Some(next) => next,
                None => {
                    check_name(path, &part)?;
                    let made = self.add(directory(IMPLICIT))?;
                    if let Some(children) = self.children(here) {
                        children.insert(part.into(), made);
                    }
                    made
                }
            };
            match self.node(next).map(|node| &node.kind) {
                Some(Kind::Dir(_)) => at.push(next),
                Some(Kind::Symlink(target)) => {
                    hops += 1;
                    if hops > HOPS {
                        return Err(refuse(path, "symbolic links on its way go in a circle"));
                    }
                    if target.first() == Some(&b'/') {
                        at.truncate(1);
                    }
                    todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    if todo.len() > PATH_MAX {
                        return Err(refuse(path, "symbolic links on its way are too long"));
                    }
                }
                // A whiteout: a directory that comes later in the archive replaces it, hiding what lies below.
                Some(Kind::Char(0)) => {
                    if let Some(node) = self.nodes.get_mut(next as usize) {
                        *node = directory(Attributes { opaque: true, ..IMPLICIT });
                    }
                    at.push(next);
                }
                _ => return Err(refuse(path, "something on its way is no directory")),
            }
        }
        Ok(Some((at.last().copied().unwrap_or(ROOT), name)))
    }

    /// Puts an entry at its path; what was there is replaced, a directory by a directory is only changed.
    pub fn insert(&mut self, path: &[u8], kind: Kind, attributes: Attributes) -> Result<(), LayerError> {
        let Some((parent, name)) = self.place(path)? else {
            let Kind::Dir(_) = kind else { return Err(refuse(path, "the root is a directory")) };
            if let Some(root) = self.nodes.first_mut() {
                root.attributes = Attributes { opaque: root.attributes.opaque, ..attributes };
            }
            return Ok(());
        };
        check_name(path, name)?;
        let mut attributes = attributes;
        if matches!(kind, Kind::Dir(_))
            && let Some(old) = self.child(parent, name)
            && let Some(node) = self.nodes.get_mut(old as usize)
        {
            match node.kind {
                Kind::Dir(_) => {
                    node.attributes = Attributes { opaque: node.attributes.opaque, ..attributes };
                    return Ok(());
                }
                // The whiteout of the same name hides what lower layers have there.
                Kind::Char(0) => attributes.opaque = true,
                _ => {}
            }
        }
        let id = self.add(Node { kind, attributes })?;
        if let Some(children) = self.children(parent) {
            children.insert(name.into(), id);
        }
        Ok(())
    }

    /// Another name for an entry that is there already.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), LayerError> {
        let missing = || refuse(path, "it is a hard link to something that this layer does not have");
        let found = match self.place(target)? {
            Some((parent, name)) => self.child(parent, name),
            None => Some(ROOT),
        };
        let id = found.ok_or_else(missing)?;
        match self.node(id).map(|node| &node.kind) {
            Some(Kind::Dir(_)) => return Err(refuse(path, "it is a hard link to a directory")),
            Some(Kind::Char(0)) | None => return Err(missing()),
            _ => {}
        }
        let Some((parent, name)) = self.place(path)? else {
            return Err(refuse(path, "the root is a directory"));
        };
        check_name(path, name)?;
        if let Some(children) = self.children(parent) {
            children.insert(name.into(), id);
        }
        Ok(())
    }

    /// A whiteout: lower layers' entry of this name is hidden. It says nothing about this layer's own.
    pub fn whiteout(&mut self, directory: &[u8], name: &[u8]) -> Result<(), LayerError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(refuse(name, "a whiteout without a name"));
        }
        let path = [directory, b"/", name].concat();
        let Some((parent, name)) = self.place(&path)? else { return Ok(()) };
        check_name(&path, name)?;
        match self.child(parent, name) {
            Some(own) => {
                if let Some(node) = self.nodes.get_mut(own as usize)
                    && let Kind::Dir(_) = node.kind
                {
                    node.attributes.opaque = true;
                }
            }
            None => {
                let id = self.add(Node { kind: Kind::Char(0), attributes: Attributes::default() })?;
                if let Some(children) = self.children(parent) {
                    children.insert(name.into(), id);
                }
            }
        }
        Ok(())
    }

    /// The directory hides everything that lower layers have in it.
    pub fn opaque(&mut self, directory: &[u8]) -> Result<(), LayerError> {
        // The name is only there to make the directory itself a part of the way.
        let path = [directory, b"/x"].concat();
        if let Some((id, _)) = self.place(&path)?
            && let Some(node) = self.nodes.get_mut(id as usize)
        {
            node.attributes.opaque = true;
        }
        Ok(())
    }
}

/// The parts of a path; `..` takes one back, and never leads out.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    if path.len() > PATH_MAX {
        return Err(refuse(path, "its path is longer than 4096 bytes"));
    }
    if path.contains(&0) {
        return Err(refuse(path, "its path has a zero byte"));
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or_else(|| refuse(path, "its path leads out of the image"))?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

fn check_name(path: &[u8], name: &[u8]) -> Result<(), LayerError> {
    if name.len() > NAME_MAX {
        return Err(refuse(path, "a name in its path is longer than 255 bytes"));
    }
    if name.contains(&0) {
        return Err(refuse(path, "its path has a zero byte"));
    }
    Ok(())
}
