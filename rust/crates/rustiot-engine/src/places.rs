//! Where in a container a mount goes when there are links on the way: as a process in the container would go, so an
//! absolute link begins at the container's root, and one that leads to what is not there names what is to be made.
//!
//! libcontainer, which mounts, follows links in the root by itself but refuses one that leads nowhere. Here such a path
//! gets the name without links for it. It is no more than a name: libcontainer looks it up again inside the root
//! (`openat2` with `RESOLVE_IN_ROOT`), so a link that is put there meanwhile leads to a refusal or to another place in the
//! container, never out of it. Makes nothing. Called when a container is started.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, readlinkat};

use crate::beneath::Root;

/// How many links the kernel follows in one path (path_resolution(7)).
const LINKS: usize = 40;

/// The container's tree as it will be: its root, and what was placed so far over it.
pub struct Places {
    /// By their names without links, later ones over earlier ones. `None`: nothing in there has links of ours to follow.
    mounts: Vec<(PathBuf, Option<Root>)>,
}

/// The names in a path; `None` is one up.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = Option<OsString>> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(Some(name.to_owned())),
        Component::ParentDir => Some(None),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

impl Places {
    pub fn new(root: Root) -> Places {
        Places { mounts: vec![(PathBuf::from("/"), Some(root))] }
    }

    /// The place of a mount, without links; what comes later sees `source` there, if that is a directory.
    ///
    /// # Errors
    /// The links go round in a circle.
    pub fn mount(&mut self, target: &Path, source: Option<&Path>) -> io::Result<PathBuf> {
        let place = self.place(target)?;
        let source = source.and_then(|source| Root::open(source).ok());
        self.mounts.push((place.clone(), source));
        Ok(place)
    }

    fn place(&self, target: &Path) -> io::Result<PathBuf> {
        let mut done = PathBuf::from("/");
        let mut rest: VecDeque<Option<OsString>> = names(target).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            let Some(name) = name else {
                done.pop();
                continue;
            };
            match self.link(&done, &name) {
                None => done.push(name),
                Some(_) if links == LINKS => return Err(nix::errno::Errno::ELOOP.into()),
                Some(to) => {
                    links += 1;
                    if to.is_absolute() {
                        done = PathBuf::from("/");
                    }
                    for name in names(&to).rev() {
                        rest.push_front(name);
                    }
                }
            }
        }
        Ok(done)
    }

    /// Where the link of this name in a directory leads; `None` when it is none.
    fn link(&self, directory: &Path, name: &OsStr) -> Option<PathBuf> {
        let path = directory.join(name);
        if self.mounts.iter().any(|(place, _)| *place == path) {
            return None;
        }
        let over = self.mounts.iter().filter(|(place, _)| directory.starts_with(place));
        // The innermost; of two at one place the later.
        let (place, root) = over.max_by_key(|(place, _)| place.components().count())?;
        let inside = directory.strip_prefix(place).ok()?;
        let directory = root.as_ref()?.open_at(inside, OFlag::O_PATH | OFlag::O_DIRECTORY).ok()?;
        readlinkat(directory.as_fd(), name).ok().map(PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::create_dir_all;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_to_places_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (root, volume) = (dir.path().join("root"), dir.path().join("volume"));
        create_dir_all(root.join("srv")).unwrap();
        create_dir_all(volume.join("inner")).unwrap();
        for (name, to) in [
            ("absolute", "/srv"),
            ("dangling", "/not/there"),
            ("up", "../../../etc/x"),
            ("through", "absolute/../srv/./y"),
            ("round", "about"),
            ("about", "round"),
            ("srv/back", ".."),
        ] {
            symlink(to, root.join(name)).unwrap();
        }
        symlink("/srv", volume.join("out")).unwrap();
        symlink("inner", volume.join("in")).unwrap();
        let mut places = Places::new(Root::open(&root).unwrap());
        let place = |places: &Places, target: &str| {
            places.place(Path::new(target)).map(|p| p.to_string_lossy().into_owned())
        };
        for (target, expected) in [
            ("/plain/new", "/plain/new"),
            ("/absolute/x", "/srv/x"),
            ("/dangling/x", "/not/there/x"),
            ("/up/z", "/etc/x/z"),
            ("/through", "/srv/y"),
            ("/srv/back/back", "/back"),
            ("/../absolute", "/srv"),
        ] {
            assert_eq!(place(&places, target).unwrap(), expected, "{target}");
        }
        assert!(place(&places, "/round/x").is_err());
        // A volume covers what was there, and its own links count: they begin at the container's root.
        assert_eq!(places.mount(Path::new("/dangling"), Some(&volume)).unwrap(), Path::new("/not/there"));
        assert_eq!(place(&places, "/not/there/out/a").unwrap(), "/srv/a");
        assert_eq!(place(&places, "/dangling/in/a").unwrap(), "/not/there/inner/a");
        // What is mounted over a link is no link any more, and of two mounts the later one counts.
        assert_eq!(places.mount(Path::new("/dangling"), None).unwrap(), Path::new("/not/there"));
        assert_eq!(place(&places, "/dangling/out/a").unwrap(), "/not/there/out/a");
        assert_eq!(places.mount(Path::new("/round"), None).ok(), None);
    }
}
