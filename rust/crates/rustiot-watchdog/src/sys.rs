//! System calls that have no safe wrapper: the watchdog's ioctls and the scheduling class.
//!
//! The only `unsafe` of this crate. Called by [`crate::hardware`] and [`crate::service`].
#![expect(unsafe_code, reason = "ioctl and sched_setscheduler have no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::time::{ClockId, clock_gettime};

/// `struct watchdog_info` of linux/watchdog.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Info {
    /// `WDIOF_*`.
    pub options: u32,
    /// Board firmware.
    pub firmware_version: u32,
    /// Name, padded with zeros.
    pub identity: [u8; 32],
}

mod ioctl {
    use super::Info;
    nix::ioctl_read!(get_support, b'W', 0, Info);
    nix::ioctl_read!(get_boot_status, b'W', 2, i32);
    nix::ioctl_read!(keep_alive, b'W', 5, i32);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, i32);
    nix::ioctl_read!(get_timeout, b'W', 7, i32);
}

/// The device stops only after a magic character (linux/watchdog.h); without this flag a plain close disarms it.
pub const WDIOF_MAGICCLOSE: u32 = 0x0100;
/// The watchdog reset the machine before this boot.
pub const WDIOF_CARDRESET: i32 = 0x0020;

/// What the device is.
pub fn support(device: &File) -> io::Result<Info> {
    let mut info = Info::default();
    // SAFETY: `device` is open for the call; the kernel writes one `struct watchdog_info`, which `Info` mirrors.
    unsafe { ioctl::get_support(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// Why the device says that the machine was reset (`WDIOF_*`).
pub fn boot_status(device: &File) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: `device` is open for the call; the kernel writes one int.
    unsafe { ioctl::get_boot_status(device.as_raw_fd(), &raw mut status) }?;
    Ok(status)
}

/// Feeds the device.
pub fn keep_alive(device: &File) -> io::Result<()> {
    let mut unused = 0;
    // SAFETY: `device` is open for the call; the kernel ignores the argument, which is a valid int all the same.
    unsafe { ioctl::keep_alive(device.as_raw_fd(), &raw mut unused) }?;
    Ok(())
}

/// Asks for a timeout in seconds; returns the one in force.
pub fn set_timeout(device: &File, seconds: i32) -> io::Result<i32> {
    let mut value = seconds;
    // SAFETY: `device` is open for the call; the kernel reads and writes one int.
    unsafe { ioctl::set_timeout(device.as_raw_fd(), &raw mut value) }?;
    Ok(value)
}

/// The timeout in force, in seconds.
pub fn timeout(device: &File) -> io::Result<i32> {
    let mut value = 0;
    // SAFETY: `device` is open for the call; the kernel writes one int.
    unsafe { ioctl::get_timeout(device.as_raw_fd(), &raw mut value) }?;
    Ok(value)
}

/// Puts the calling thread into the lowest real-time class; threads and programs that it starts are ordinary again.
pub fn become_realtime() -> io::Result<()> {
    // SAFETY: an all-zero sched_param is valid; only the priority is set.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 1;
    // SAFETY: 0 is the calling thread and `param` lives for the call.
    let result = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const param)
    };
    Errno::result(result).map(|_| ()).map_err(io::Error::from)
}

/// Keeps every page in memory that has been used once, so that a stalled disk cannot stop the feeding. The pages of
/// the large shared binary that were never used are not loaded for it (`MCL_ONFAULT`).
pub fn lock_memory() -> io::Result<()> {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault).map_err(io::Error::from)
}

/// Time since boot, suspend included.
#[must_use]
pub fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}
