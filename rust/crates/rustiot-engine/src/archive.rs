//! `cp`: a part of a container as a tar stream, and a tar stream into a container.
//!
//! Each step works on open directories of the container and never follows a link of its last component, so nothing
//! that a container does meanwhile leads out of it. Called by the engine, in a thread of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::{Builder, EntryType, Header};

use crate::beneath::{Root, names, stat_at, subdirectory};

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Writes the directory `from` as a tar stream whose members begin with `prefix`.
///
/// # Errors
/// The system's.
pub fn pack(from: &OwnedFd, prefix: &OsStr, to: impl Write) -> io::Result<()> {
    let mut tar = Builder::new(to);
    if !prefix.is_empty() {
        let stat = nix::sys::stat::fstat(from)?;
        member(&mut tar, Path::new(prefix), &stat, None)?;
    }
    contents(&mut tar, from, Path::new(prefix), 0)?;
    tar.finish()
}

/// Writes one entry of a directory, with what is in it.
///
/// # Errors
/// The system's.
pub fn pack_entry(parent: BorrowedFd<'_>, name: &OsStr, to: impl Write) -> io::Result<()> {
    let mut tar = Builder::new(to);
    entry(&mut tar, parent, name, Path::new(name), 0)?;
    tar.finish()
}

/// Deeper trees than this are somebody's trick.
const DEPTH: u32 = 512;

fn contents<W: Write>(tar: &mut Builder<W>, directory: &OwnedFd, at: &Path, depth: u32) -> io::Result<()> {
    if depth > DEPTH {
        return Err(io::Error::other(format!("{} is nested too deeply", at.display())));
    }
    for name in names(directory)? {
        match entry(tar, directory.as_fd(), &name, &at.join(&name), depth) {
            // It went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

fn entry<W: Write>(
    tar: &mut Builder<W>,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    at: &Path,
    depth: u32,
) -> io::Result<()> {
    let stat = stat_at(parent, name)?;
    match kind(&stat) {
        SFlag::S_IFREG => {
            // Not waiting, should it have become a pipe meanwhile.
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let file = File::from(openat(parent, name, flags, Mode::empty())?);
            let stat = nix::sys::stat::fstat(&file)?;
            if kind(&stat) != SFlag::S_IFREG {
                return Ok(());
            }
            member(tar, at, &stat, Some(&mut Padded { file, left: u64::try_from(stat.st_size).unwrap_or(0) }))
        }
        SFlag::S_IFLNK => {
            let target = readlinkat(parent, name)?;
            let mut header = header(&stat, EntryType::Symlink);
            header.set_size(0);
            if is_literal(at.as_os_str()) {
                if header.set_link_name_literal(target.as_bytes()).is_err() {
                    long(tar, EntryType::GNULongLink, target.as_bytes())?;
                }
                return append(tar, &mut header, at.as_os_str(), io::empty());
            }
            tar.append_link(&mut header, at, Path::new(&target))
        }
        SFlag::S_IFDIR => {
            let directory = subdirectory(parent, name)?;
            member(tar, at, &stat, None)?;
            contents(tar, &directory, at, depth + 1)
        }
        SFlag::S_IFSOCK => Ok(()),
        _ => member(tar, at, &stat, None),
    }
}

/// Exactly as many bytes as the header says, whatever happens to the file.
struct Padded {
    file: File,
    left: u64,
}

impl Read for Padded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..room).filter(|b| !b.is_empty()) else { return Ok(0) };
        let mut n = self.file.read(buffer)?;
        if n == 0 {
            buffer.fill(0);
            n = buffer.len();
        }
        self.left = self.left.saturating_sub(u64::try_from(n).unwrap_or(0));
        Ok(n)
    }
}

fn header(stat: &FileStat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

fn member<W: Write>(
    tar: &mut Builder<W>,
    at: &Path,
    stat: &FileStat,
    data: Option<&mut Padded>,
) -> io::Result<()> {
    let entry_kind = match kind(stat) {
        SFlag::S_IFREG => EntryType::Regular,
        SFlag::S_IFDIR => EntryType::Directory,
        SFlag::S_IFIFO => EntryType::Fifo,
        SFlag::S_IFCHR => EntryType::Char,
        SFlag::S_IFBLK => EntryType::Block,
        _ => return Ok(()),
    };
    let mut header = header(stat, entry_kind);
    header.set_size(data.as_ref().map_or(0, |d| d.left));
    if matches!(entry_kind, EntryType::Char | EntryType::Block) {
        let number = |n: u64| u32::try_from(n).unwrap_or(0);
        header.set_device_major(number(nix::sys::stat::major(stat.st_rdev)))?;
        header.set_device_minor(number(nix::sys::stat::minor(stat.st_rdev)))?;
    }
    // A directory's name ends with a slash.
    let mut path = at.as_os_str().to_owned();
    if entry_kind == EntryType::Directory && path != "/" {
        path.push("/");
    }
    if is_literal(&path) {
        return match data {
            Some(data) => append(tar, &mut header, &path, data),
            None => append(tar, &mut header, &path, io::empty()),
        };
    }
    match data {
        Some(data) => tar.append_data(&mut header, path, data),
        None => tar.append_data(&mut header, path, io::empty()),
    }
}

/// Names that the client replaces the beginning of, which `tar` would make clean: of the root and of `DIR/.`.
fn is_literal(path: &OsStr) -> bool {
    path.as_bytes().starts_with(b"/") || path.as_bytes().starts_with(b"./")
}

/// A member with its name as it is.
fn append<W: Write>(
    tar: &mut Builder<W>,
    header: &mut Header,
    path: &OsStr,
    data: impl Read,
) -> io::Result<()> {
    let bytes = path.as_bytes();
    let room = header.as_old().name.len();
    if bytes.len() > room {
        long(tar, EntryType::GNULongName, bytes)?;
    }
    for (to, from) in header.as_old_mut().name.iter_mut().zip(bytes) {
        *to = *from;
    }
    header.set_cksum();
    tar.append(header, data)
}

/// A name that is longer than the next header has room for.
fn long<W: Write>(tar: &mut Builder<W>, kind: EntryType, name: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    for (to, from) in header.as_old_mut().name.iter_mut().zip(b"././@LongLink") {
        *to = *from;
    }
    header.set_mode(0o644);
    header.set_size(u64::try_from(name.len()).unwrap_or(0).saturating_add(1));
    header.set_cksum();
    tar.append(&header, name.chain(&b"\0"[..]))
}

/// The components of a member's name, if it stays below where it is unpacked.
fn components(path: &Path) -> io::Result<Vec<OsString>> {
    let mut out = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name.to_owned()),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("the archive's member {} leads out of it", path.display()),
                ));
            }
        }
    }
    Ok(out)
}

/// Unpacks a tar stream below the directory `into`. With `owners`, members belong to whom the archive says.
///
/// # Errors
/// The system's; what leads out of the directory.
pub fn unpack(root: &Root, into: &Path, from: impl Read, owners: bool) -> io::Result<()> {
    let top = root.directory(into)?;
    let mut archive = tar::Archive::new(from);
    let mut late = Vec::new();
    for member in archive.entries()? {
        let mut member = member?;
        let path = components(&member.path()?)?;
        let Some((name, parents)) = path.split_last() else { continue };
        let parent = descend(&top, parents)?;
        let header = member.header().clone();
        let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
        let kind = header.entry_type();
        let there = stat_at(parent.as_fd(), name).ok();
        let is_directory = there.as_ref().is_some_and(|s| self::kind(s) == SFlag::S_IFDIR);
        if kind == EntryType::Directory {
            if !is_directory {
                if there.is_some() {
                    unlinkat(&parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
                }
                mkdirat(&parent, name.as_os_str(), Mode::S_IRWXU)?;
            }
        } else {
            if is_directory {
                return Err(io::Error::new(
                    io::ErrorKind::IsADirectory,
                    format!("cannot overwrite directory with non-directory: {}", member.path()?.display()),
                ));
            }
            if there.is_some() {
                unlinkat(&parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
            }
            match kind {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let flags = OFlag::O_WRONLY
                        | OFlag::O_CREAT
                        | OFlag::O_EXCL
                        | OFlag::O_NOFOLLOW
                        | OFlag::O_CLOEXEC;
                    let mut file =
                        File::from(openat(&parent, name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
                    io::copy(&mut member, &mut file)?;
                }
                EntryType::Symlink => {
                    let target = member.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
                    symlinkat(target.as_os_str(), &parent, name.as_os_str())?;
                }
                EntryType::Link => {
                    let target = components(&member.link_name()?.ok_or(io::ErrorKind::InvalidData)?)?;
                    let Some((target_name, target_parents)) = target.split_last() else { continue };
                    let from = descend(&top, target_parents)?;
                    linkat(&from, target_name.as_os_str(), &parent, name.as_os_str(), AtFlags::empty())?;
                    continue;
                }
                EntryType::Fifo => mknodat(&parent, name.as_os_str(), SFlag::S_IFIFO, Mode::S_IRUSR, 0)?,
                EntryType::Char | EntryType::Block => {
                    let sort = if kind == EntryType::Char { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
                    let number = |n: Option<u32>| u64::from(n.unwrap_or(0));
                    let device = nix::sys::stat::makedev(
                        number(header.device_major()?),
                        number(header.device_minor()?),
                    );
                    mknodat(&parent, name.as_os_str(), sort, Mode::S_IRUSR, device)?;
                }
                _ => continue,
            }
        }
        if owners {
            let owner = |n: u64| u32::try_from(n).unwrap_or(0);
            fchownat(
                &parent,
                name.as_os_str(),
                Some(owner(header.uid()?).into()),
                Some(owner(header.gid()?).into()),
                AtFlags::AT_SYMLINK_NOFOLLOW,
            )?;
        }
        if kind != EntryType::Symlink {
            fchmodat(&parent, name.as_os_str(), mode, FchmodatFlags::FollowSymlink)?;
        }
        let time = TimeSpec::new(i64::try_from(header.mtime()?).unwrap_or(0), 0);
        if kind == EntryType::Directory {
            late.push((parent, name.clone(), time));
            if late.len() > 10_000 {
                late.clear();
            }
        } else {
            let _ = utimensat(&parent, name.as_os_str(), &time, &time, UtimensatFlags::NoFollowSymlink);
        }
    }
    // A directory's time changes with what comes into it.
    for (parent, name, time) in late.into_iter().rev() {
        let _ = utimensat(&parent, name.as_os_str(), &time, &time, UtimensatFlags::NoFollowSymlink);
    }
    Ok(())
}

/// The directory below `top`, made where it is missing, never through a link: an archive that wants to write through one
/// that it has just made is refused.
fn descend(top: &OwnedFd, parents: &[OsString]) -> io::Result<OwnedFd> {
    let mut here = top.try_clone()?;
    for name in parents {
        here = match subdirectory(here.as_fd(), name) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                mkdirat(&here, name.as_os_str(), Mode::from_bits_truncate(0o755))?;
                subdirectory(here.as_fd(), name)?
            }
            Err(error) => return Err(error),
        };
    }
    Ok(here)
}

/// The link's target as text, empty where it is none.
pub fn link_target(parent: BorrowedFd<'_>, name: &OsStr) -> String {
    readlinkat(parent, name).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The last component as a member's name; the root's is `/`, that of a directory's contents (`DIR/.`) is `.`.
pub fn base_name(path: &str) -> OsString {
    if path.ends_with("/.") {
        return ".".into();
    }
    let clean: PathBuf = path.trim_end_matches('/').into();
    clean.file_name().map_or_else(|| OsStr::from_bytes(b"/").to_owned(), OsStr::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn directory(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir_all(a.join("sub/empty")).unwrap();
        std::fs::create_dir(&b).unwrap();
        std::fs::write(a.join("sub/file"), vec![7; 100_000]).unwrap();
        std::fs::set_permissions(a.join("sub/file"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("/nowhere", a.join("link")).unwrap();
        let mut tar = Vec::new();
        pack(&directory(&a), OsStr::new("top"), &mut tar).unwrap();
        unpack(&Root::open(&b).unwrap(), Path::new("/"), &*tar, false).unwrap();
        assert_eq!(std::fs::read(b.join("top/sub/file")).unwrap(), vec![7; 100_000]);
        assert_eq!(std::fs::metadata(b.join("top/sub/file")).unwrap().permissions().mode() & 0o7777, 0o4755);
        assert_eq!(std::fs::read_link(b.join("top/link")).unwrap(), Path::new("/nowhere"));
        assert!(b.join("top/sub/empty").is_dir());
    }

    #[test]
    fn contents_keep_the_dot_in_front_and_long_names() {
        let dir = tempfile::tempdir().unwrap();
        let long = "n".repeat(120);
        std::fs::write(dir.path().join("file.txt"), "x").unwrap();
        std::fs::write(dir.path().join(&long), "long").unwrap();
        symlink("t".repeat(150), dir.path().join("link")).unwrap();
        for (prefix, first) in [(".", "./"), ("/", "/")] {
            let mut bytes = Vec::new();
            pack(&directory(dir.path()), OsStr::new(prefix), &mut bytes).unwrap();
            let mut tar = tar::Archive::new(&*bytes);
            let members: Vec<(String, Option<String>)> = tar
                .entries()
                .unwrap()
                .map(|e| {
                    let e = e.unwrap();
                    let link = e.link_name_bytes().map(|l| String::from_utf8_lossy(&l).into_owned());
                    (String::from_utf8_lossy(&e.path_bytes()).into_owned(), link)
                })
                .collect();
            assert_eq!(
                members,
                [
                    (first.to_owned(), None),
                    (format!("{first}file.txt"), None),
                    (format!("{first}link"), Some("t".repeat(150))),
                    (format!("{first}{long}"), None),
                ]
            );
        }
    }

    fn archive(build: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn raw(builder: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, link: &[u8], data: &[u8]) {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }

    #[test]
    fn an_archive_cannot_write_outside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("victim"), "untouched").unwrap();
        let into = || Root::open(&root).unwrap();
        for tar in [
            archive(|b| raw(b, b"../victim", EntryType::Regular, b"", b"x")),
            archive(|b| raw(b, b"a/../../victim", EntryType::Regular, b"", b"x")),
            archive(|b| {
                raw(b, b"out", EntryType::Symlink, b"..", b"");
                raw(b, b"out/victim", EntryType::Regular, b"", b"x");
            }),
            archive(|b| raw(b, b"hard", EntryType::Link, b"../victim", b"")),
        ] {
            assert!(unpack(&into(), Path::new("/"), &*tar, false).is_err());
        }
        // Over a link: the link is replaced, not followed.
        symlink(dir.path().join("victim"), root.join("etc/link")).unwrap();
        let tar = archive(|b| raw(b, b"link", EntryType::Regular, b"", b"x"));
        unpack(&into(), Path::new("/etc"), &*tar, false).unwrap();
        // An absolute name is taken below the directory.
        let tar = archive(|b| raw(b, b"/victim", EntryType::Regular, b"", b"x"));
        unpack(&into(), Path::new("/etc"), &*tar, false).unwrap();
        assert!(root.join("etc/victim").is_file());
        assert_eq!(std::fs::read_to_string(dir.path().join("victim")).unwrap(), "untouched");
    }
}
