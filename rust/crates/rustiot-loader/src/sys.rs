//! The one thing that neither `std` nor nix offers: a file's immutable flag.
//!
//! Called by [`crate::uefi`] only: the kernel marks UEFI variables that it does not know immutable
//! (Documentation/filesystems/efivarfs.rst).

use std::{fs::File, os::fd::AsRawFd};

use nix::libc::c_long;

/// `FS_IMMUTABLE_FL` (include/uapi/linux/fs.h).
const IMMUTABLE: c_long = 0x10;

mod ioctl {
    use nix::libc::c_long;

    nix::ioctl_read!(
        /// `FS_IOC_GETFLAGS`: the type in the number is `long`, what the kernel writes is an `int`.
        get_flags, b'f', 1, c_long
    );
    nix::ioctl_write_ptr!(
        /// `FS_IOC_SETFLAGS`: as above.
        set_flags, b'f', 2, c_long
    );
}

/// Clears the immutable flag. A file system without such flags is no error: then something else was in the way.
pub fn clear_immutable(file: &File) {
    let mut flags: c_long = 0;
    // SAFETY: the descriptor is open, and `flags` is at least as large as what the kernel writes (an `int`).
    let read = unsafe { ioctl::get_flags(file.as_raw_fd(), &raw mut flags) };
    if read.is_err() || flags & IMMUTABLE == 0 {
        return;
    }
    flags &= !IMMUTABLE;
    // SAFETY: the descriptor is open, and `flags` is at least as large as what the kernel reads (an `int`).
    // If it fails, so does what the caller does next, and that is reported.
    let _ = unsafe { ioctl::set_flags(file.as_raw_fd(), &raw const flags) };
}
