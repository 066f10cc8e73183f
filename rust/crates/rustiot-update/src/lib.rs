//! Installs releases of the host OS through RAUC and sees them through trial, commit or fallback.
//!
//! Never writes a slot, never decides about a trial, never commits: RAUC, the boot policy and `rustiot-health` do.
//! Run as `rustiot-update` by systemd; `rustiot update` is a client of its D-Bus API
//! (`docs/contracts/update-dbus.md`).

mod bundle;
mod daemon;
mod dbus;
mod disk;
mod engine;
mod failure;
mod ports;
mod rauc;
mod reconcile;
mod status;
mod store;

pub use daemon::{STATUS_FILE, loader, main};
pub use dbus::{Error, NAME, PATH, Update1Proxy, system_bus};
pub use failure::{Failure, Kind};
pub use status::{HistoryEntry, Hold, Outcome, Phase, Progress, Request, Status, Transaction, Why};
