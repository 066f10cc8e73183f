//! One small process for each container: it holds the streams, pumps the log into bounded files, reaps, records the exit
//! status durably, and serves the engine over a socket. The engine may die or be replaced meanwhile.
//!
//! Never decides what a container may do, never touches images or networks. Started by `rustiot-engine`, one for each
//! container that runs; it starts `rustiot-runtime`. The library is what both sides speak ([`protocol`]).
//! Contract: `docs/contracts/engine.md`.

pub mod clock;
pub mod init;
pub mod log;
pub mod protocol;
pub mod shim;
mod sys;
