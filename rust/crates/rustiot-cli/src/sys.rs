//! Stops a file system as a power cut does: the one place of this crate that needs unsafe code.
//!
//! Never touches a file. Called by `bench resume`, on a file system of its own.
#![expect(unsafe_code, reason = "FS_IOC_SHUTDOWN has no wrapper")]

use std::fs::File;
use std::os::fd::AsRawFd;

/// `EXT4_GOING_FLAGS_NOLOGFLUSH` (fs/ext4/ext4.h): nothing is written any more, not even the file system's own log.
const NO_LOG_FLUSH: u32 = 2;

mod ioctl {
    // EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h), the same as XFS_IOC_GOINGDOWN. The kernel reads the number, in spite of its name.
    nix::ioctl_read!(shutdown, b'X', 125, u32);
}

/// From now on nothing reaches the medium of the file system that `dir` is on: what was not written yet is lost when it
/// is unmounted.
pub fn stop_file_system(dir: &File) -> nix::Result<()> {
    let mut flags = NO_LOG_FLUSH;
    // SAFETY: the descriptor is open as long as `dir` lives, and the kernel reads four bytes at a place of ours.
    unsafe { ioctl::shutdown(dir.as_raw_fd(), &raw mut flags) }.map(drop)
}
