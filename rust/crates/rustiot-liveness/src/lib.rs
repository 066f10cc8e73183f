//! How a service tells the watchdog that it lives: the datagrams of `/run/rustiot/watchdog.sock`, and a client.
//!
//! Knows neither the tree nor the hardware. Called by every service that is watched, and by `rustiot-watchdog`, which
//! reads what they send. Contract: `docs/contracts/watchdog.md`.

mod client;
pub mod protocol;

pub use client::{Client, SOCKET, stopping};
pub use protocol::{Malformed, Message, Name, UnitName};
