//! Installs releases of the host OS through RAUC and sees them through trial, commit or fallback.
//!
//! Never writes a slot, never decides about a trial, never commits: RAUC, the boot policy and `rustiot-health` do.
//! Run as `rustiot-update` by systemd; `rustiot update` is a client of its D-Bus API
//! (`docs/contracts/update-dbus.md`).

mod bundle;
mod daemon;
mod dbus;
mod details;
mod disk;
mod engine;
mod failure;
mod fetch;
mod gate;
mod hawkbit;
mod plan;
mod ports;
mod power;
mod rauc;
mod reconcile;
mod report;
mod repository;
mod status;
mod store;
mod veto;
mod web;
mod window;

pub use daemon::{STATUS_FILE, loader, main};
pub use dbus::{Error, NAME, PATH, Update1Proxy, system_bus};
pub use details::details;
pub use failure::{Failure, Kind, classify, refine};
pub use plan::{DetailsFile, Plan, Way, WayKind};
pub use rustiot_repository::details::{Details, Difference};
pub use status::{
    By, Check, Expected, FailedWay, Hawkbit, HistoryEntry, Hold, Outcome, Phase, PolicyNow, Progress,
    Request, Spent, Stage, Status, Transaction, Transfer, Veto, Waits, Why,
};
