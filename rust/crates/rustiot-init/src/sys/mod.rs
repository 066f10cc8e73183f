//! The narrow port between init's decisions and the kernel: every system call that is not a plain file access.
//!
//! Decides nothing. [`linux`] is the real one and holds all `unsafe` code of this crate; the tests use a recording
//! fake that can be told to fail. Plain files are reached through a root directory that is an argument.

use std::{fs::File, path::Path};

use nix::{errno::Errno, mount::MsFlags};

use crate::dm::Command;

pub mod linux;

#[cfg(test)]
pub(crate) mod fake;

/// One `mount(2)`.
#[derive(Clone, Copy, Debug)]
pub struct Mount<'a> {
    /// Device, or a name for file systems without one, or the directory to bind or move.
    pub source: &'a Path,
    /// Where.
    pub target: &'a Path,
    /// File system type; empty for bind and move.
    pub fstype: &'a str,
    /// Flags.
    pub flags: MsFlags,
    /// Options of the file system; may be empty.
    pub data: &'a str,
}

/// An open watchdog.
#[derive(Debug)]
pub struct OpenWatchdog {
    /// Any byte but `V` written here feeds it; closing without `V` leaves it running.
    pub file: File,
    /// What the driver made of the requested timeout, in seconds.
    pub timeout_s: u32,
    /// `WDIOF_CARDRESET`: the last reset was the watchdog's.
    pub card_reset: bool,
}

/// What init asks of the kernel.
pub trait Sys {
    /// `CLOCK_BOOTTIME` in milliseconds.
    fn now_ms(&mut self) -> u64;

    /// One line for the console and the kernel log.
    fn say(&mut self, line: &str);

    /// `mount(2)`.
    ///
    /// # Errors
    /// The kernel's.
    fn mount(&mut self, mount: &Mount) -> Result<(), Errno>;

    /// `finit_module(2)`; a module that is already there is success.
    ///
    /// # Errors
    /// The kernel's, or that of opening the file.
    fn load_module(&mut self, path: &Path, params: &str) -> Result<(), Errno>;

    /// Opens the watchdog, which starts it, sets its timeout in seconds and asks what reset the machine.
    ///
    /// # Errors
    /// That of opening it; a driver without the other calls is fine.
    fn open_watchdog(&mut self, path: &Path, timeout_s: u32) -> Result<OpenWatchdog, Errno>;

    /// One device-mapper ioctl; the reply replaces `message`.
    ///
    /// # Errors
    /// The kernel's.
    fn device_mapper(&mut self, command: Command, message: &mut [u8]) -> Result<(), Errno>;

    /// Runs `tick` with the present time every `interval_s` seconds, on a thread that ends with `exec`.
    ///
    /// # Errors
    /// No thread can be made.
    fn every(&mut self, interval_s: u32, tick: Box<dyn FnMut(u64) + Send>) -> Result<(), Errno>;

    /// Lets `ms` milliseconds pass while a device appears.
    fn pause(&mut self, ms: u64);
}
