//! What neither `std` nor nix offers: a file's immutable flag, and the Raspberry Pi firmware's mailbox.
//!
//! Called by [`crate::uefi`], because the kernel marks UEFI variables that it does not know immutable
//! (Documentation/filesystems/efivarfs.rst), and by [`crate::tryboot`].

use std::{fs::File, io, os::fd::AsRawFd};

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
    nix::ioctl_readwrite_bad!(
        /// `IOCTL_MBOX_PROPERTY` (drivers/char/broadcom/vcio.c of the Raspberry Pi's kernel): the number is made with
        /// the size of a pointer, what is passed is the message.
        mailbox, nix::request_code_readwrite!(100, 0, size_of::<*mut u8>()), super::Message
    );
}

/// A message to the firmware with one property of one word; the first word says that it has 28 bytes.
pub type Message = [u32; 7];

/// Sends `message`, which becomes the answer.
pub fn mailbox(file: &File, message: &mut Message) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the driver reads and writes as many bytes as the first word of the message
    // says: 28, which is all of it. A file that is no mailbox refuses the number.
    unsafe { ioctl::mailbox(file.as_raw_fd(), message) }?;
    Ok(())
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
