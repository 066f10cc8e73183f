//! Mounts a layer: by file where the kernel can (Linux 6.12), by a loop device that goes away with the mount otherwise.
//!
//! Never mounts a whole root: overlay, upper directory and options are the caller's. Called by whoever starts
//! containers.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts the layer `file` read-only at `at`, an existing directory. Set-user-ID programs keep their bit: the overlay on
/// top decides; device nodes never work.
///
/// # Errors
/// Those of the kernel; `ENODEV` when it knows no erofs.
pub fn layer(file: &Path, at: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    match mount(Some(file), at, Some("erofs"), flags, None::<&str>) {
        Err(Errno::ENOTBLK) => {
            let device = crate::sys::loop_device(file)?;
            // The loop device lives as long as the mount holds it.
            mount(Some(&*device.path), at, Some("erofs"), flags, None::<&str>)?;
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Unmounts a layer.
///
/// # Errors
/// Those of the kernel; `EBUSY` while something uses it.
pub fn unmount(at: &Path) -> io::Result<()> {
    Ok(umount2(at, MntFlags::UMOUNT_NOFOLLOW)?)
}
