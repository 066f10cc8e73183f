//! The one call that needs `unsafe`: telling the kernel that a partition in use has another length.

#![expect(unsafe_code, reason = "BLKPG takes a pointer in a structure, which no safe wrapper knows")]

use crate::gpt::Partition;
use nix::libc;
use std::os::fd::AsRawFd;
use std::{fs, io};

/// include/uapi/linux/blkpg.h
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;

#[repr(C)]
struct BlkpgIoctlArg {
    op: libc::c_int,
    flags: libc::c_int,
    datalen: libc::c_int,
    data: *mut BlkpgPartition,
}

#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    pno: libc::c_int,
    devname: [libc::c_char; 64],
    volname: [libc::c_char; 64],
}

// include/uapi/linux/blkpg.h: BLKPG is _IO(0x12, 105).
nix::ioctl_write_ptr_bad!(blkpg, nix::request_code_none!(0x12, 105), BlkpgIoctlArg);

/// Sets the length of a partition in the running kernel. Its start must be what the kernel has.
///
/// # Errors
/// The kernel's: among others when the new length reaches into another partition or past the end.
pub(crate) fn resize_partition(disk: &fs::File, partition: Partition) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut data = BlkpgPartition {
        start: partition.start.try_into().map_err(out_of_range)?,
        length: partition.length.try_into().map_err(out_of_range)?,
        pno: partition.number.try_into().map_err(out_of_range)?,
        devname: [0; 64],
        volname: [0; 64],
    };
    let datalen = size_of::<BlkpgPartition>().try_into().map_err(out_of_range)?;
    let argument = BlkpgIoctlArg { op: BLKPG_RESIZE_PARTITION, flags: 0, datalen, data: &raw mut data };
    // SAFETY: the descriptor is open for the length of the call; `argument` has the layout of the kernel's
    // structure and points to `data`, which lives until the call returns.
    unsafe { blkpg(disk.as_raw_fd(), &raw const argument) }?;
    Ok(())
}
