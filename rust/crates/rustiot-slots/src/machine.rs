//! Where things are on a device, and what `rustiot-init` reported about the running boot.
//!
//! Never writes. Called by [`crate::shell`] and [`crate::status`].

use std::{fs, io, path::PathBuf};

use rustiot_boot::{Event, ResetReason, Slot};
use serde::Deserialize;

use crate::Error;

/// Longest report that is read, in bytes.
const REPORT_MAX: u64 = 1 << 20;

/// Files that this crate uses.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Directory of the ledger, on the state partition.
    pub ledger: PathBuf,
    /// Lock around the ledger and the loader.
    pub lock: PathBuf,
    /// What `rustiot-init` reported about this boot.
    pub report: PathBuf,
    /// The kernel's id of this boot.
    pub boot_id: PathBuf,
}

impl Default for Paths {
    fn default() -> Paths {
        Paths {
            ledger: "/state/boot".into(),
            lock: "/run/rustiot/ledger.lock".into(),
            report: "/run/rustiot/boot.json".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
        }
    }
}

impl Paths {
    /// The same files below `root`: the initramfs before it moves its mounts, or a test's directory.
    #[must_use]
    pub fn below(root: &std::path::Path) -> Paths {
        let below = |path: PathBuf| root.join(path.strip_prefix("/").unwrap_or(&path));
        let Paths { ledger, lock, report, boot_id } = Paths::default();
        Paths { ledger: below(ledger), lock: below(lock), report: below(report), boot_id: below(boot_id) }
    }

    pub(crate) fn read_boot_id(&self) -> Result<String, Error> {
        let id = fs::read_to_string(&self.boot_id).map_err(|source| self.unusable(&self.boot_id, source))?;
        Ok(id.trim().to_owned())
    }

    /// The report of this boot; none if there is no such file (yet), or if it is of another boot.
    pub(crate) fn read_report(&self) -> Result<Option<BootReport>, Error> {
        use io::Read;
        let mut bytes = Vec::new();
        match fs::File::open(&self.report).and_then(|file| file.take(REPORT_MAX).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.unusable(&self.report, error)),
        }
        let report = parse_boot_report(&bytes).map_err(|error| {
            self.unusable(&self.report, io::Error::new(io::ErrorKind::InvalidData, error))
        })?;
        Ok((report.boot_id == self.read_boot_id()?).then_some(report))
    }

    fn unusable(&self, path: &std::path::Path, source: io::Error) -> Error {
        Error::Machine { path: path.display().to_string(), source }
    }
}

/// What this crate needs of `boot.json`; the rest is for others.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BootReport {
    /// The slot that runs.
    pub slot: Slot,
    /// Kernel boot id.
    pub boot_id: String,
    /// Why the machine was reset before.
    #[serde(default)]
    pub reset: Reset,
}

/// `reset` of `boot.json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reset {
    /// Why.
    pub reason: ResetReason,
    /// Last kernel lines of the boot before.
    #[serde(default)]
    pub pstore_tail: Vec<String>,
}

impl Default for Reset {
    fn default() -> Reset {
        Reset { reason: ResetReason::Unknown, pstore_tail: Vec::new() }
    }
}

impl BootReport {
    /// The event that `rustiot-init` told the policy.
    #[must_use]
    pub fn event(self) -> Event {
        Event::Booted {
            slot: self.slot,
            boot_id: self.boot_id,
            reset: self.reset.reason,
            pstore_tail: self.reset.pstore_tail,
        }
    }
}

/// Reads `boot.json`. Total: any bytes may come.
///
/// # Errors
/// Where and why it is not such a report.
pub fn parse_boot_report(bytes: &[u8]) -> Result<BootReport, serde_json::Error> {
    serde_json::from_slice(bytes)
}
