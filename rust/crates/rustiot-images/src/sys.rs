//! Loop devices: the one place of this crate that needs unsafe code.
//!
//! Never mounts. Called by `mount`, on kernels that cannot mount erofs from a file.
#![expect(unsafe_code, reason = "ioctl of loop devices")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A loop device that is freed when its last user closes it.
#[derive(Debug)]
pub(crate) struct Loop {
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// Keeps it until it is mounted.
    _device: File,
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

mod ioctl {
    nix::ioctl_none_bad!(get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(configure, 0x4c0a, super::Config);
}

/// Attaches a file read-only, with blocks of 512 bytes.
pub(crate) fn loop_device(file: &Path) -> io::Result<Loop> {
    let backing = File::open(file)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..16 {
        // SAFETY: takes no argument; the descriptor is open for the whole call.
        let number = unsafe { ioctl::get_free(control.as_raw_fd()) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).open(&path)?;
        let config = Config {
            fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 512,
            info: Info {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: `config` has the layout of `struct loop_config` (repr(C), checked below) and outlives the call, which
        // only reads it; both descriptors are open.
        match unsafe { ioctl::configure(device.as_raw_fd(), &raw const config) } {
            Ok(_) => return Ok(Loop { path, _device: device }),
            // Somebody else was faster.
            Err(nix::errno::Errno::EBUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("no free loop device"))
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);
