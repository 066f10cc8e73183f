//! RustIoT machines in QEMU, and the guarantees that are tested on them: images and bundles of every
//! kind (good, bad in a chosen way), a machine of a board in a chosen state, what it says of itself,
//! and the registry of tests with the scheduler that runs them side by side.
//!
//! It builds nothing itself (`rustiot-image` does) and drives QEMU through `testbed` only. Used by
//! `rustiot-cli`. How to write a test: `docs/contracts/testbed.md`.

#![expect(clippy::disallowed_methods, reason = "files of tests, where a lost one is made again")]

mod battery;
pub mod bench;
pub mod containers;
mod ctx;
pub mod cuts;
mod device;
mod fixtures;
mod lab;
mod runner;
pub mod tests;

pub use ctx::{Ctx, Figures, Skip};
pub use device::{BootInfo, COMMAND, Device, HEALTHY, boot_of};
pub use fixtures::{A, B, File, Fixtures, Release};
pub use lab::{Lab, SETTLE_S};
pub use runner::{LabTest, Outcome, Report, Tag, id, list, run};
