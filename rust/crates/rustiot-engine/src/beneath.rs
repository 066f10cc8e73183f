//! Files of a container, opened so that no link in it, however it changes meanwhile, leads out of its root.
//!
//! The kernel resolves (`openat2` with `RESOLVE_IN_ROOT`); nothing here joins strings into host paths. Called for users,
//! volumes, `cp`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

/// The root of a container, or of a volume.
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Root { directory })
    }

    /// Opens a path as a process in the container would, with these flags.
    ///
    /// # Errors
    /// The system's.
    pub fn open_at(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // A rename that races with the look-up makes the kernel ask to try again.
        for _ in 0..64 {
            match openat2(self.directory.as_fd(), relative, how) {
                Err(nix::errno::Errno::EAGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// A directory.
    ///
    /// # Errors
    /// The system's.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// The start of a regular file.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        // Not waiting: it may be a pipe.
        let fd = self.open_at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
        let file = File::from(fd);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The directory that holds a path's last component, and about that component itself, a link not followed.
    ///
    /// # Errors
    /// The system's.
    pub fn entry(&self, path: &Path) -> io::Result<(OwnedFd, FileStat)> {
        let Some(name) = path.file_name() else {
            let root = self.directory(Path::new("."))?;
            let stat = fstat(&root)?;
            return Ok((root, stat));
        };
        let parent = self.directory(path.parent().unwrap_or(Path::new(".")))?;
        let stat = stat_at(parent.as_fd(), name)?;
        Ok((parent, stat))
    }
}

/// About an entry of a directory, a link not followed.
///
/// # Errors
/// The system's.
pub fn stat_at(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<FileStat> {
    Ok(fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// A directory in a directory, never through a link.
///
/// # Errors
/// The system's.
pub fn subdirectory(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

/// The names in a directory.
///
/// # Errors
/// The system's.
pub fn names(directory: &OwnedFd) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let copy =
        openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut all = Vec::new();
    for entry in Dir::from_fd(copy)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            all.push(name);
        }
    }
    all.sort_unstable();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "of the host").unwrap();
        let root_path = dir.path().join("root");
        std::fs::create_dir_all(root_path.join("etc")).unwrap();
        std::fs::write(root_path.join("etc/passwd"), "of the container").unwrap();
        symlink("/etc", root_path.join("absolute")).unwrap();
        symlink("../../secret", root_path.join("up")).unwrap();
        symlink("/proc/self/root", root_path.join("magic")).unwrap();
        let root = Root::open(&root_path).unwrap();
        let read = |path: &str| root.read(Path::new(path), 100).map(|b| String::from_utf8(b).unwrap());
        assert_eq!(read("absolute/passwd").unwrap(), "of the container");
        assert!(read("up").is_err());
        assert!(read("../secret").is_err());
        assert!(read("/../../etc/passwd").is_ok_and(|t| t == "of the container"));
        assert!(read("magic/etc/passwd").is_err());
        assert!(read("etc").is_err());
    }
}
