//! Writes a tree as the metadata of an erofs image whose data lies in front of it, in a tar archive.
//!
//! Blocks are 512 bytes, as tar's are, so that the contents of files stay where the archive has them. Never compresses,
//! never reads. Format: `fs/erofs/erofs_fs.h` of Linux; 512-byte blocks need Linux 6.4. Called by the import.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::tree::{Id, Kind, ROOT, Tree};
use crate::digest::{Digest, Hasher};

/// What stands in front of the archive: the superblock and nothing else.
pub(crate) const HEAD: u64 = 4096;
pub(crate) const BLOCK: u64 = 512;

const SUPERBLOCK_AT: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const INODE: u64 = 64;
const SLOT: u64 = 32;
const DIRENT: usize = 12;
/// No block.
const NONE: u32 = u32::MAX;
/// `EROFS_FEATURE_COMPAT_MTIME`.
const COMPAT_MTIME: u32 = 2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`.
const INCOMPAT_CHUNKED: u32 = 4;

const PLAIN: u16 = 0;
const INLINE: u16 = 2;
const CHUNKED: u16 = 4;

/// Most chunks of a sparse file.
const CHUNKS_MAX: u64 = 1 << 20;

/// An extended attribute: `EROFS_XATTR_INDEX_*`, the rest of its name, and its value.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Xattr {
    pub index: u8,
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

/// Extended attributes by number; most inodes of a layer share few sets.
#[derive(Debug, Default)]
pub(crate) struct XattrSets {
    sets: Vec<Box<[Xattr]>>,
    numbers: BTreeMap<Box<[Xattr]>, u32>,
}

impl XattrSets {
    /// The number of a set; 0 is the empty one. `None` when a set is larger than erofs takes.
    pub fn number(&mut self, mut set: Vec<Xattr>) -> Option<u32> {
        if set.is_empty() {
            return Some(0);
        }
        set.sort();
        set.dedup_by(|one, other| one.index == other.index && one.name == other.name);
        // 16 bits of four-byte words; one attribute has at most a block in Linux's other file systems.
        let fits = |xattr: &Xattr| xattr.name.len() < 256 && xattr.value.len() <= 4096;
        if !set.iter().all(fits) || encode(&set).len() > 32 << 10 {
            return None;
        }
        let set: Box<[Xattr]> = set.into();
        if let Some(number) = self.numbers.get(&set) {
            return Some(*number);
        }
        let number = u32::try_from(self.sets.len()).ok()?.checked_add(1)?;
        self.numbers.insert(set.clone(), number);
        self.sets.push(set);
        Some(number)
    }

    fn get(&self, number: u32) -> &[Xattr] {
        number.checked_sub(1).and_then(|number| self.sets.get(number as usize)).map_or(&[], |set| set)
    }
}

/// `erofs_xattr_ibody_header` and entries, or nothing.
fn encode(set: &[Xattr]) -> Vec<u8> {
    if set.is_empty() {
        return Vec::new();
    }
    let mut bytes = vec![0; 12];
    for xattr in set {
        bytes.push(u8::try_from(xattr.name.len()).unwrap_or(u8::MAX));
        bytes.push(xattr.index);
        bytes.extend(u16::try_from(xattr.value.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend(&xattr.name);
        bytes.extend(&xattr.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The attribute that makes overlayfs hide what lies below a directory.
fn opaque() -> Xattr {
    Xattr { index: 4, name: (*b"overlay.opaque").into(), value: (*b"y").into() }
}

/// Where an inode and its data go.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// Offset of the inode from the beginning of the metadata; 0 is none.
    at: u64,
    /// Offset of a directory's or a long link's blocks from the beginning of the metadata.
    data: u64,
    /// Size of a directory.
    size: u64,
    links: u32,
    parent: Id,
    /// Block bits of a chunk, for sparse files.
    chunk: u8,
}

/// What was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Written {
    /// Where the metadata begins, in the file.
    pub at: u64,
    /// Its length.
    pub length: u64,
    /// Over the head and the metadata.
    pub digest: Digest,
}

/// A metadata error is one of the tree, not of the disk.
#[derive(Debug)]
pub(crate) enum WriteError {
    Disk(io::Error),
    Tree(&'static str),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> WriteError {
        WriteError::Disk(error)
    }
}

/// Writes the metadata to `out`, which stands at the file's offset `at` (a multiple of the block size), and gives the
/// head that belongs to the file's beginning.
pub(crate) fn write(
    tree: &Tree,
    xattrs: &XattrSets,
    at: u64,
    out: &mut impl Write,
) -> Result<(Written, Vec<u8>), WriteError> {
    let too_large = || WriteError::Tree("the layer is too large for erofs");
    let block = |offset: u64| u32::try_from(offset / BLOCK).ok().filter(|block| *block != NONE);
    let mut plans = vec![Plan::default(); tree.nodes.len()];
    let order = order(tree, &mut plans);

    // First pass: where everything goes. The first inode's place is left free: number 0 means none to some tools.
    let mut next = INODE;
    let mut sparse = false;
    for id in &order {
        let (Some(node), Some(plan)) = (tree.node(*id), plans.get_mut(*id as usize)) else { continue };
        let fixed = INODE + length(&attributes_of(node, xattrs));
        let (inline, crossing) = match &node.kind {
            Kind::Symlink(target) if fixed + length(target) <= BLOCK => (length(target), false),
            Kind::Sparse { pieces, size } => {
                sparse = true;
                plan.chunk = chunk_bits(pieces, *size);
                let chunks = size.div_ceil(BLOCK << plan.chunk);
                if chunks > CHUNKS_MAX {
                    return Err(WriteError::Tree("a sparse file has too many pieces"));
                }
                (chunks * 4, true)
            }
            _ => (0, true),
        };
        // Neither an inode nor data that follows it may cross a block.
        let room = BLOCK - next % BLOCK;
        let needed = if crossing { INODE } else { fixed + inline };
        if needed > room {
            next = next.next_multiple_of(BLOCK);
        }
        plan.at = next;
        next = (next + fixed + inline).next_multiple_of(INODE);
    }
    let mut next = next.next_multiple_of(BLOCK);
    for id in &order {
        let (Some(node), Some(plan)) = (tree.node(*id), plans.get_mut(*id as usize)) else { continue };
        let size = match &node.kind {
            Kind::Dir(children) => {
                plan.size = directory_size(children);
                plan.size
            }
            Kind::Symlink(target)
                if INODE + length(&attributes_of(node, xattrs)) + length(target) > BLOCK =>
            {
                length(target)
            }
            _ => continue,
        };
        plan.data = next;
        next = (next + size).next_multiple_of(BLOCK);
    }
    let total = next;
    block(at + total).ok_or_else(too_large)?;

    let head = superblock(at, total, order.len(), sparse, plans.first().map_or(0, |root| root.at));
    let mut out = Counted { out, hasher: Hasher::default(), written: 0 };
    out.hasher.update(&head);

    // Second pass: write it.
    let mut buffer = Vec::with_capacity(4096);
    for id in &order {
        let (Some(node), Some(plan)) = (tree.node(*id), plans.get(*id as usize)) else { continue };
        out.pad_to(plan.at)?;
        let set = attributes_of(node, xattrs);
        buffer.clear();
        let (layout, kind, size, value): (u16, u16, u64, u32) = match &node.kind {
            Kind::Dir(_) => (PLAIN, 0o040_000, plan.size, block(at + plan.data).ok_or_else(too_large)?),
            Kind::File { size: 0, .. } => (PLAIN, 0o100_000, 0, NONE),
            Kind::File { at, size } => (PLAIN, 0o100_000, *size, block(*at).ok_or_else(too_large)?),
            Kind::Sparse { size, .. } => (CHUNKED, 0o100_000, *size, u32::from(plan.chunk)),
            Kind::Symlink(target) if plan.data == 0 => (INLINE, 0o120_000, length(target), NONE),
            Kind::Symlink(target) => {
                (PLAIN, 0o120_000, length(target), block(at + plan.data).ok_or_else(too_large)?)
            }
            Kind::Char(number) => (PLAIN, 0o020_000, 0, *number),
            Kind::Fifo => (PLAIN, 0o010_000, 0, 0),
        };
        let words = if set.is_empty() { 0 } else { (set.len() - 12) / 4 + 1 };
        let of = &node.attributes;
        buffer.extend((1 | layout << 1).to_le_bytes());
        buffer.extend(u16::try_from(words).unwrap_or(0).to_le_bytes());
        buffer.extend((kind | of.mode & 0o7777).to_le_bytes());
        buffer.extend([0; 2]);
        buffer.extend(size.to_le_bytes());
        buffer.extend(value.to_le_bytes());
        buffer.extend((id + 1).to_le_bytes());
        buffer.extend(of.uid.to_le_bytes());
        buffer.extend(of.gid.to_le_bytes());
        buffer.extend(of.mtime.to_le_bytes());
        buffer.extend(of.nanoseconds.to_le_bytes());
        buffer.extend(plan.links.to_le_bytes());
        buffer.extend([0; 16]);
        buffer.extend(&set);
        match &node.kind {
            Kind::Symlink(target) if plan.data == 0 => buffer.extend(target),
            Kind::Sparse { pieces, size } => {
                let mut pieces = pieces.iter().peekable();
                for start in (0..*size).step_by(usize::try_from(BLOCK << plan.chunk).unwrap_or(usize::MAX)) {
                    while pieces.next_if(|(from, _, length)| from + length <= start).is_some() {}
                    let piece = pieces.peek().filter(|(from, ..)| *from <= start);
                    let place = piece.and_then(|(from, place, _)| block(place + (start - from)));
                    buffer.extend(place.unwrap_or(NONE).to_le_bytes());
                }
            }
            _ => {}
        }
        out.put(&buffer)?;
    }
    for id in &order {
        let (Some(node), Some(plan)) = (tree.node(*id), plans.get(*id as usize)) else { continue };
        if plan.data == 0 {
            continue;
        }
        out.pad_to(plan.data)?;
        match &node.kind {
            Kind::Dir(children) => write_directory(tree, &plans, *id, plan.parent, children, &mut out)?,
            Kind::Symlink(target) => out.put(target)?,
            _ => {}
        }
    }
    out.pad_to(total)?;
    let digest = out.hasher.finish();
    Ok((Written { at, length: total, digest }, head))
}

/// All inodes that can be reached, the root first; counts links.
fn order(tree: &Tree, plans: &mut [Plan]) -> Vec<Id> {
    let mut order = vec![ROOT];
    if let Some(root) = plans.first_mut() {
        root.links = 2;
    }
    let mut looked = 0;
    while let Some(id) = order.get(looked).copied() {
        looked += 1;
        let Some(Kind::Dir(children)) = tree.node(id).map(|node| &node.kind) else { continue };
        for child in children.values() {
            let directory = matches!(tree.node(*child).map(|node| &node.kind), Some(Kind::Dir(_)));
            let Some(plan) = plans.get_mut(*child as usize) else { continue };
            if plan.links == 0 {
                order.push(*child);
                plan.parent = id;
                plan.links = u32::from(directory);
            }
            plan.links = plan.links.saturating_add(1);
            if directory && let Some(plan) = plans.get_mut(id as usize) {
                plan.links = plan.links.saturating_add(1);
            }
        }
    }
    order
}

fn attributes_of(node: &super::tree::Node, xattrs: &XattrSets) -> Vec<u8> {
    let set = xattrs.get(node.attributes.xattrs);
    if node.attributes.opaque {
        let mut set = set.to_vec();
        set.push(opaque());
        set.sort();
        return encode(&set);
    }
    encode(set)
}

fn length(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

/// Block bits of the largest chunk that every piece fits, 2 MiB at the most.
fn chunk_bits(pieces: &[(u64, u64, u64)], size: u64) -> u8 {
    let fits = |bits: u8| {
        let chunk = BLOCK << bits;
        pieces.iter().all(|(from, _, len)| {
            from % chunk == 0 && (len % chunk == 0 || from.saturating_add(*len) == size)
        })
    };
    (0..=12).take_while(|bits| fits(*bits)).last().unwrap_or(0)
}

/// Names of a directory in the kernel's order, `.` and `..` among them.
fn names(children: &BTreeMap<Box<[u8]>, Id>) -> impl Iterator<Item = (&[u8], Option<Id>)> {
    let mut all: Vec<(&[u8], Option<Id>)> = children.iter().map(|(name, id)| (&**name, Some(*id))).collect();
    all.push((b".", None));
    all.push((b"..", None));
    all.sort();
    all.into_iter()
}

fn directory_size(children: &BTreeMap<Box<[u8]>, Id>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for (name, _) in names(children) {
        let needs = (DIRENT + name.len()) as u64;
        if used + needs > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += needs;
    }
    blocks * BLOCK + used
}

fn write_directory(
    tree: &Tree,
    plans: &[Plan],
    id: Id,
    parent: Id,
    children: &BTreeMap<Box<[u8]>, Id>,
    out: &mut Counted<'_, impl Write>,
) -> io::Result<()> {
    let mut group: Vec<(&[u8], u64, u8)> = Vec::new();
    let mut used = 0;
    let start = out.written;
    let mut blocks = 0;
    let number = |id: Id| plans.get(id as usize).map_or(0, |plan| plan.at / SLOT);
    for (name, child) in names(children) {
        let (child, kind) = match child {
            Some(child) => (child, tree.node(child).map_or(0, |node| file_type(&node.kind))),
            None if name.len() == 1 => (id, 2),
            None => (parent, 2),
        };
        let needs = DIRENT + name.len();
        if used + needs > BLOCK as usize {
            put_group(&group, out)?;
            group.clear();
            blocks += 1;
            out.pad_to(start + blocks * BLOCK)?;
            used = 0;
        }
        used += needs;
        group.push((name, number(child), kind));
    }
    put_group(&group, out)
}

fn put_group(group: &[(&[u8], u64, u8)], out: &mut Counted<'_, impl Write>) -> io::Result<()> {
    let mut offset = group.len() * DIRENT;
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    for (name, number, kind) in group {
        bytes.extend(number.to_le_bytes());
        bytes.extend(u16::try_from(offset).unwrap_or(0).to_le_bytes());
        bytes.extend([*kind, 0]);
        offset += name.len();
    }
    group.iter().for_each(|(name, ..)| bytes.extend(*name));
    out.put(&bytes)
}

/// `EROFS_FT_*`.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } | Kind::Sparse { .. } => 1,
        Kind::Dir(_) => 2,
        Kind::Char(_) => 3,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// The file's first 4096 bytes.
fn superblock(at: u64, length: u64, inodes: usize, sparse: bool, root: u64) -> Vec<u8> {
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let mut block = Vec::with_capacity(128);
    block.extend(MAGIC.to_le_bytes());
    block.extend(0_u32.to_le_bytes()); // checksum: the feature is off, the whole of it has a digest
    block.extend(COMPAT_MTIME.to_le_bytes());
    block.push(9); // blkszbits
    block.push(0); // sb_extslots
    block.extend(u16::try_from(root / SLOT).unwrap_or(0).to_le_bytes());
    block.extend((inodes as u64).to_le_bytes());
    block.extend(0_u64.to_le_bytes()); // build_time
    block.extend(0_u32.to_le_bytes()); // build_time_nsec
    block.extend(word((at + length) / BLOCK).to_le_bytes()); // blocks
    block.extend(word(at / BLOCK).to_le_bytes()); // meta_blkaddr
    block.extend(0_u32.to_le_bytes()); // xattr_blkaddr: no shared ones
    block.extend([0; 16]); // uuid
    block.extend([0; 16]); // volume_name
    block.extend((if sparse { INCOMPAT_CHUNKED } else { 0 }).to_le_bytes());
    block.resize(128, 0);
    let mut head = vec![0; SUPERBLOCK_AT];
    head.extend(block);
    head.resize(HEAD as usize, 0);
    head
}

struct Counted<'a, W> {
    out: &'a mut W,
    hasher: Hasher,
    written: u64,
}

impl<W: Write> Counted<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.written += length(bytes);
        self.out.write_all(bytes)
    }

    /// Zeros up to this offset.
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        let zeros = [0; BLOCK as usize];
        while let Some(missing @ 1..) = offset.checked_sub(self.written) {
            let piece = zeros.get(..usize::try_from(missing.min(BLOCK)).unwrap_or(0)).unwrap_or_default();
            self.put(piece)?;
        }
        Ok(())
    }
}
