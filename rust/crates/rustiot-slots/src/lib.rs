//! Runs the boot policy on a device: loads the ledger, steps, persists, moves the loader; and RAUC's custom boot
//! backend on top of it.
//!
//! The only writer of the boot ledger and of the loader's selector. Decides nothing: `rustiot-boot` does. Called by
//! `rustiot-init`, the health and update services, provisioning, RAUC (through [`rauc_backend`]) and the device's
//! command line. Contract: `docs/contracts/boot.md`.

mod core;
#[cfg(test)]
mod crash;
mod machine;
pub mod rauc_backend;
mod shell;
mod status;
#[cfg(test)]
mod testing;

pub use core::{Applied, Memory};
pub use machine::{BootReport, Paths, parse_boot_report};
pub use rustiot_boot::{
    BootKind, Effect, Event, Gate, Phase, Record, Refused, Release, ResetReason, Slot, SlotState,
};
pub use rustiot_loader::{LoaderConfig, LoaderKind, MAILBOX};
pub use shell::SlotShell;
pub use status::{
    FirmwareStatus, LoaderStatus, ReadRecord, SlotStatus, Status, parse_record, read_record, status,
};

/// An event could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy does not allow it now. Nothing changed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Another process holds the ledger for longer than it should.
    #[error("the boot ledger is busy ({path})")]
    Busy {
        /// The lock.
        path: String,
    },
    /// The state partition is not there or provisioning has not made the ledger yet: nothing can be remembered.
    #[error("there is no boot ledger; is the state partition mounted?")]
    NoLedger,
    /// The ledger could not be written. Nothing changed.
    #[error("cannot remember it in the boot ledger")]
    Ledger(#[from] rustiot_durable::LedgerError),
    /// The ledger could not be encoded. Nothing changed.
    #[error("cannot encode the boot ledger")]
    Encode(#[source] serde_json::Error),
    /// The record is durable, but the loader could not be moved. The next start tries again by itself.
    #[error("remembered, but the boot loader could not be told")]
    Loader(#[from] rustiot_loader::Error),
    /// A file that says what this boot is could not be used.
    #[error("cannot use {path}")]
    Machine {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// The exit code of a command that failed so: 3 refused, 4 busy, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Refused(_) | Error::NoLedger => 3,
            Error::Busy { .. } => 4,
            _ => 1,
        }
    }
}
