//! The checks themselves, one file each: what they look at is theirs, what follows from it is the gate's.
//!
//! None changes anything but its own probe files. Called by [`crate::service`].

pub mod clock;
pub mod disk;
pub mod memory;
pub mod network;
pub mod scripts;
pub mod units;
