//! A QEMU machine as a value: boot it, wait for words on its console, run a command inside, cut
//! its power, flip one of its bits, count what its watchdog did.
//!
//! It never knows what a RustIoT image is (that is `rustiot-lab`), never sleeps for a fixed time
//! and never leaves a process or a directory behind. Used by `rustiot-lab` and `rustiot-cli`.
//!
//! Nothing here needs KVM: QEMU emulates the processor unless the spec asks for something else.

#![expect(
    clippy::disallowed_methods,
    reason = "files of tests on the workstation, where a lost one is made again"
)]

mod agent;
mod console;
mod disk;
mod error;
mod files;
mod gdb;
mod host;
mod machine;
mod qmp;
pub mod relay;
mod sys;
pub mod writelog;

pub use agent::Output;
pub use console::{Console, Keys};
pub use disk::{Disk, partition_bytes, partition_start};
pub use error::Error;
pub use files::{Faults, FileServer};
pub use host::{Tools, spawn};
pub use machine::{
    Firmware, Machine, Off, Snapshot, Spec, flip_bit_in_file, power_off_detached, ssh_options,
};
pub use qmp::{Event, Qmp};
pub use rustiot_scratch::Scratch;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;
