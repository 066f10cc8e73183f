//! `/run/rustiot/boot.json`: what this boot is, for everybody after init.
//!
//! Only writes below `/run`. Called by [`crate::boot`]. Contract: `docs/contracts/init.md`.

use std::path::Path;

use rustiot_boot::{BootKind, ResetReason, Slot};
use serde::Serialize;

/// Whether a partition with a file system is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MountState {
    /// Mounted read-write.
    Mounted,
    /// No such partition.
    Absent,
    /// The partition is there and cannot be mounted: not formatted yet, or broken.
    Unmountable,
}

/// Why the machine was reset before this boot.
#[derive(Clone, Debug, Serialize)]
pub struct Reset {
    /// The verdict.
    pub reason: ResetReason,
    /// Last kernel lines of the boot before, where pstore kept them.
    pub pstore_tail: Vec<String>,
}

/// When each part of the boot was done, by `CLOCK_BOOTTIME` in milliseconds; 0: not reached.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Timings {
    /// Init began.
    pub exec: u64,
    /// The kernel's modules are loaded.
    pub modules: u64,
    /// The disk and the slot are known.
    pub disk: u64,
    /// `state` and `data` are mounted, as far as they can be.
    pub mounts: u64,
    /// The policy has decided; what it remembers is durable.
    pub policy: u64,
    /// The root is mounted; the real init comes next.
    pub switch_root: u64,
}

/// The file.
#[derive(Clone, Debug, Serialize)]
pub struct BootReport {
    /// The slot that runs.
    pub slot: Slot,
    /// Kernel boot id.
    pub boot_id: String,
    /// Boots since the ledger began, or 0 when there is none.
    pub boot_number: u64,
    /// What the boot is for.
    pub kind: BootKind,
    /// In a trial: trial boots that ended without a verdict before this one.
    pub attempt: Option<u32>,
    /// Why the machine was reset before.
    pub reset: Reset,
    /// Root hash of the mounted root.
    pub root_hash: String,
    /// The `state` partition.
    pub state: MountState,
    /// The `data` partition.
    pub data: MountState,
    /// When what happened.
    pub timings_ms: Timings,
    /// Why the device is in rescue.
    pub rescue: Option<String>,
    /// What went wrong and did not stop the boot.
    pub messages: Vec<String>,
    /// The boot loader's selection had been lost and was put right.
    pub loader_repaired: bool,
}

impl BootReport {
    /// Writes the file. `/run` is memory, so nothing needs to be durable.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, root: &Path) -> Result<(), rustiot_durable::Error> {
        let text = serde_json::to_string(self).unwrap_or_default() + "\n";
        rustiot_durable::atomic_write_volatile(&root.join("run/rustiot/boot.json"), text.as_bytes())
    }
}
