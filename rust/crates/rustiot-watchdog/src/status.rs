//! `/run/rustiot/watchdog.json`: what the watchdog sees, for people, the command line and `rustiot-health`.
//!
//! Never decides. Contract: `docs/contracts/watchdog.md`.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::hardware::About;
use crate::tree::ChildStatus;

/// Where the status is.
pub const PATH: &str = "/run/rustiot/watchdog.json";

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The hardware, or none: then nothing resets a device whose kernel hangs.
    pub hardware: Option<About>,
    /// The hardware's timeout in force, in seconds.
    pub timeout_s: u64,
    /// Times that the hardware was fed since the service started.
    pub fed: u64,
    /// Whether it is still fed; the reason if it is not.
    pub starving: Option<String>,
    /// Age of this boot at the last feeding, in seconds.
    pub fed_at_s: u64,
    /// Who is watched.
    pub children: Vec<ChildStatus>,
    /// What the last probe of the disk found.
    pub disk: String,
    /// A reboot that is wanted and held back by the budget.
    pub wanted: Option<String>,
    /// What is left of earlier reboots.
    pub budget: Budget,
    /// How old this boot must be before it may be called stable, in seconds.
    pub stable_after_s: u64,
    /// Age of the boot at which an uncommitted trial ends, in seconds.
    pub trial_deadline_s: Option<u64>,
    /// What was done and said, newest last, bounded.
    pub log: Vec<Entry>,
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Age of the boot, in seconds.
    pub at_s: u64,
    /// What.
    pub text: String,
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
