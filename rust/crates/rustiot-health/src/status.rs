//! `/run/rustiot/health.json`: what was checked, where the gate stands, what is still to come.
//!
//! Never decides. Read by people, the command line, `rustiot-watchdog` (`committed`) and `rustiot-update`. Contract:
//! `docs/contracts/health.md`.

use std::io;
use std::path::Path;

use rustiot_boot::BootKind;
use serde::{Deserialize, Serialize};

use crate::check::CheckResult;
use crate::gate::State;

/// Where the status is.
pub const PATH: &str = "/run/rustiot/health.json";

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Kernel boot id.
    pub boot_id: String,
    /// What the boot is for.
    pub kind: BootKind,
    /// Where the gate stands.
    pub gate: State,
    /// Every deciding check passes at the moment.
    pub healthy: bool,
    /// What is in the way, if anything.
    pub obstacle: Option<String>,
    /// The gate is open.
    pub open: bool,
    /// The boot is stable: it outlived its soak.
    pub stable: bool,
    /// The running release is the committed one.
    pub committed: bool,
    /// Age of the boot when this was written, in seconds; as all times here.
    pub at_s: u64,
    /// When the gate opened.
    pub opened_at_s: Option<u64>,
    /// When the boot became stable.
    pub stable_at_s: Option<u64>,
    /// When the gate must be open.
    pub deadline_s: u64,
    /// How long the gate must have been open to be stable.
    pub soak_s: u64,
    /// How much of that is left, if the soak runs.
    pub soak_left_s: Option<u64>,
    /// Why the trial failed, or the last thing that could not be done.
    pub failure: Option<String>,
    /// Every check.
    pub checks: Vec<CheckResult>,
}

impl Status {
    /// Reads the status at `path` ([`PATH`]).
    ///
    /// # Errors
    /// There is none, or it is of another format.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        serde_json::from_str(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}
