//! Files that survive a power cut at any instant: whole-file replacement and the two-copy ledger.
//!
//! The only crate that may call `std::fs::write` and `std::fs::rename` (clippy forbids them elsewhere). Never decides
//! what is written. Called by everything that keeps state: `rustiot-slots`, provisioning, configuration, updates.
//! Contract: `docs/contracts/durable.md`.

mod file;
mod ledger;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod storage;

pub use file::{Error, atomic_write, atomic_write_private, atomic_write_volatile, replace};
pub use ledger::{
    CopyState, FRAME_MAX, FrameError, HEADER_LEN, Ledger, LedgerError, Loaded, RESERVE, Stored, frame, parse,
};
pub use storage::{Dir, Storage};
