//! A container's root: the image's layers, each mounted once for all containers, below a writable directory of its own;
//! and volumes.
//!
//! Never writes into a layer. Mounts are of this boot and below `run`; what is left of an earlier engine is used again.
//! Called at start and removal.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use rustiot_images::Rootfs;

use crate::beneath::{self, Root};
use crate::layout::Layout;
use crate::record::Record;

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { action, path: path.to_owned(), source }
}

/// What is mounted now, by mount point.
fn mounted() -> BTreeSet<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// Mounts the root; does nothing when it is there.
///
/// # Errors
/// The mount that failed.
pub fn mount_root(layout: &Layout, record: &Record, image: &Rootfs) -> Result<PathBuf, Error> {
    let id = &record.id;
    let target = layout.root_of(id);
    let there = mounted();
    if there.contains(&target) {
        return Ok(target);
    }
    let mut lower = Vec::new();
    for layer in &image.layers {
        let place = layout.layers().join(layer.diff_id.hex());
        if !there.contains(&place) {
            std::fs::create_dir_all(&place).map_err(at("make", &place))?;
            rustiot_images::mount::layer(&layer.file, &place).map_err(at("mount", &layer.file))?;
        }
        lower.push(place);
    }
    let (upper, work) = (layout.upper(id), layout.work(id));
    for directory in [&target, &upper, &work] {
        std::fs::create_dir_all(directory).map_err(at("make", directory))?;
    }
    overlay(&target, &lower, &upper, &work, record.is_transient()).map_err(at("mount", &target))?;
    Ok(target)
}

/// By the newer system calls: the old one's options have a page, which fifty layers fill.
/// `volatile`: what is written is never waited for on the medium, neither by an `fsync` inside nor when it is unmounted.
fn overlay(target: &Path, lower: &[PathBuf], upper: &Path, work: &Path, volatile: bool) -> io::Result<()> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount,
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "overlay")?;
    if lower.is_empty() {
        // An image without layers still has a root.
        let empty = work.with_file_name("empty");
        std::fs::create_dir_all(&empty)?;
        fsconfig_set_string(context.as_fd(), "lowerdir+", &empty)?;
    }
    // The kernel wants the topmost first.
    for layer in lower.iter().rev() {
        fsconfig_set_string(context.as_fd(), "lowerdir+", layer)?;
    }
    fsconfig_set_string(context.as_fd(), "upperdir", upper)?;
    fsconfig_set_string(context.as_fd(), "workdir", work)?;
    if volatile {
        // The kernel's mark of an earlier such mount, which may have lost something in a power cut. This one was not in
        // any: its record would have gone, too.
        let _ = std::fs::remove_dir_all(work.join("work/incompat/volatile"));
        fsconfig_set_flag(context.as_fd(), "volatile")?;
    }
    fsconfig_create(context.as_fd())?;
    let made = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(made.as_fd(), "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Takes the root away, however often it is mounted.
pub fn unmount_root(layout: &Layout, id: &str) {
    let target = layout.root_of(id);
    while umount2(&target, MntFlags::MNT_DETACH).is_ok() {}
}

/// Takes layers away that no container mounts any more.
pub fn unmount_layers(layout: &Layout, keep: &BTreeSet<String>) {
    for entry in std::fs::read_dir(layout.layers()).into_iter().flatten().flatten() {
        if !keep.contains(&*entry.file_name().to_string_lossy()) {
            // Busy below a container that runs: then it stays.
            let _ = umount2(&entry.path(), MntFlags::empty());
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// Fills an empty volume with what the image has at its place, owners and modes included. A power cut in between leaves
/// the mark undone, and it is begun again.
///
/// # Errors
/// The system's.
pub fn copy_up(root: &Root, target: &Path, volume: &Path) -> io::Result<()> {
    let Ok(from) = root.directory(target) else { return Ok(()) };
    let to = nix::fcntl::open(
        volume,
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    if !beneath::names(&to)?.is_empty() {
        return Ok(());
    }
    let stat = nix::sys::stat::fstat(&from)?;
    nix::unistd::fchown(&to, Some(stat.st_uid.into()), Some(stat.st_gid.into()))?;
    nix::sys::stat::fchmod(&to, nix::sys::stat::Mode::from_bits_truncate(stat.st_mode))?;
    if beneath::names(&from)?.is_empty() {
        return Ok(());
    }
    // Through the archive code, which keeps everything and follows nothing.
    let (reader, writer) = io::pipe()?;
    let copier = std::thread::spawn(move || crate::archive::pack(&from, std::ffi::OsStr::new(""), writer));
    let result = crate::archive::unpack(&Root::open(volume)?, Path::new("/"), reader, true);
    let packed = copier.join().map_err(|_| io::Error::other("the copy of a volume ended"))?;
    result.and(packed)?;
    nix::unistd::syncfs(&to)?;
    Ok(())
}
