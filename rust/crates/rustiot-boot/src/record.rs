//! What is remembered of the slots between boots. Written by `rustiot-slots` only.

use serde::{Deserialize, Serialize};

/// One of the two slot groups (`boot-a` + `root-a`, or `boot-b` + `root-b`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// `boot-a` and `root-a`.
    A,
    /// `boot-b` and `root-b`.
    B,
}

impl std::ops::Not for Slot {
    type Output = Slot;

    /// The other slot.
    fn not(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

/// A release of the host OS, as its bundle names itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Version of the bundle's manifest (semver).
    pub version: String,
    /// SHA-256 of the bundle's manifest in hex: the identity under which a bad release is remembered.
    pub manifest_hash: String,
}

/// One attempt to bring a release onto the device, from the first byte written to commit or fallback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Random id (UUID) chosen by the update service; it stands in every report.
    pub id: String,
    /// The release being installed.
    pub release: Release,
    /// The slot that is being written or tried.
    pub slot: Slot,
    /// Trial boots that ended without a verdict so far.
    pub attempts: u32,
}

/// The verdict of the health gate in the running trial boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "gate")]
pub enum Gate {
    /// No verdict yet.
    Pending,
    /// All required checks passed; the soak is running.
    Passed,
    /// The soak is over and the checks still pass: may be committed.
    Soaked,
    /// A required check failed, or the deadline passed.
    Failed {
        /// What failed, for people.
        reason: String,
        /// Tail of the failed boot's log, oldest line first.
        log: Vec<String>,
    },
}

/// Where the device stands between two releases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum Phase {
    /// Nothing is under way.
    Idle,
    /// RAUC is writing the inactive slot, which is invalid meanwhile.
    Writing(Transaction),
    /// Written and verified; the next boot is not yet a trial.
    Ready(Transaction),
    /// The loader's one-shot points to the new slot.
    Armed(Transaction),
    /// The new slot has reached its init.
    Trial {
        /// What is on trial.
        transaction: Transaction,
        /// Kernel boot id of the trial boot (`/proc/sys/kernel/random/boot_id`).
        boot_id: String,
        /// The verdict so far.
        gate: Gate,
    },
    /// The committed slot stopped booting and the other one is tried once.
    LateFallback {
        /// The committed slot that failed.
        from: Slot,
        /// Why.
        reason: String,
    },
}

/// Whether a slot may be booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum SlotState {
    /// Nothing is known (factory image, or the ledger was lost): may be booted.
    Unknown,
    /// Holds a complete release that was committed once, or waits for its trial.
    Valid {
        /// What it holds.
        release: Release,
    },
    /// Being written, or a write was cut off: must not be booted.
    Invalid,
    /// Holds a release that failed here: must not be booted by itself.
    Bad {
        /// Why.
        reason: String,
    },
}

/// Why the machine was reset before this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetReason {
    /// First boot, or nothing is known.
    Unknown,
    /// Power was cut (no other trace was found).
    Power,
    /// Userspace shut down in order.
    Clean,
    /// The hardware watchdog fired (`WDIOF_CARDRESET`).
    Watchdog,
    /// The kernel panicked (pstore holds a record).
    Panic,
    /// The kernel panicked over a dm-verity mismatch in the running slot.
    Verity,
}

/// What a boot was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootKind {
    /// The committed slot.
    Normal,
    /// First boots of a new release.
    Trial,
    /// The other slot after the committed one stopped booting.
    LateFallback,
    /// Neither slot is good; reachable, nothing is decided.
    Rescue,
}

/// One boot, as the history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootEntry {
    /// Count of boots since the ledger began.
    pub number: u64,
    /// Kernel boot id.
    pub boot_id: String,
    /// The slot that booted.
    pub slot: Slot,
    /// What the boot was for.
    pub kind: BootKind,
    /// Why the machine was reset before it.
    pub reset: ResetReason,
    /// Last kernel lines of the boot before, where pstore kept them.
    pub pstore_tail: Vec<String>,
    /// The boot passed its soak.
    pub stable: bool,
    /// The boot ended by an orderly shutdown.
    pub clean: bool,
}

/// A release that is not tried again by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The release.
    pub release: Release,
    /// Why, for people.
    pub reason: String,
    /// Log tail of the failed boot.
    pub log: Vec<String>,
    /// The boot number at which the verdict fell.
    pub at_boot: u64,
}

/// All that is remembered of the slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The slot that the loader's default must name.
    pub committed: Slot,
    /// State of slots A and B.
    pub slots: [SlotState; 2],
    /// Where the device stands.
    pub phase: Phase,
    /// Boots of the committed slot since one was stable.
    pub late: u32,
    /// The selector was already put right at the last boot; not again before a stable boot.
    pub selector_repaired: bool,
    /// Lowest version that may be installed.
    pub floor: Option<String>,
    /// Known bad releases, newest last, bounded.
    pub rejected: Vec<Rejected>,
    /// Last boots, newest last, bounded.
    pub boots: Vec<BootEntry>,
}
