//! What is remembered of the slots between boots. Written by `rustiot-slots` only.
//!
//! The record outlives every release on the device, in both directions: a slot that falls back reads what a newer
//! one wrote. So the format only grows by fields that have a default, and never gains a variant without a raised
//! floor.

use serde::{Deserialize, Serialize};

/// Trial boots without a verdict after which a release is rejected.
pub const ATTEMPTS_MAX: u32 = 3;
/// The same when the last one ended by a power cut, which says nothing against the release: a device that is switched
/// off every evening must not reject a good one, and a board that takes a hang for a cut must not try for ever.
pub const CUT_ATTEMPTS_MAX: u32 = 6;
/// Failed boots of the committed slot in a row after which the other slot is tried.
pub const LATE_MAX: u32 = 3;
/// Boots cut off before they were healthy (by power, as far as anyone can tell) after which the other slot is tried.
/// Much higher than [`LATE_MAX`]: a cut says nothing against the slot, but a board that cannot tell a hang from a
/// cut must not loop for ever.
pub const INTERRUPTED_MAX: u32 = 12;
/// Known bad releases that are remembered.
pub const REJECTED_MAX: usize = 16;
/// Boots that the history keeps.
pub const BOOTS_MAX: usize = 32;
/// Boots in the history that keep their `pstore_tail`.
pub const TAILS_MAX: usize = 4;
/// Lines of a log tail that are kept: the last ones.
pub const LOG_LINES_MAX: usize = 40;
/// Bytes of one line, reason, id or version that are kept.
pub const LINE_MAX: usize = 240;

/// One of the two slot groups (`boot-a` + `root-a`, or `boot-b` + `root-b`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// `boot-a` and `root-a`.
    A,
    /// `boot-b` and `root-b`.
    B,
}

impl Slot {
    /// Both slots, in order.
    pub const ALL: [Slot; 2] = [Slot::A, Slot::B];

    /// `a` or `b`, as partition labels and the U-Boot environment spell it.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Slot::A => "a",
            Slot::B => "b",
        }
    }

    /// RAUC's bootname: `A` or `B`.
    #[must_use]
    pub fn bootname(self) -> &'static str {
        match self {
            Slot::A => "A",
            Slot::B => "B",
        }
    }
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

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.letter())
    }
}

/// Not `a`, `b`, `A` or `B`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a slot: expected `a` or `b`")]
pub struct NotASlot(
    /// What was given.
    pub String,
);

impl std::str::FromStr for Slot {
    type Err = NotASlot;

    fn from_str(text: &str) -> Result<Slot, NotASlot> {
        match text {
            "a" | "A" => Ok(Slot::A),
            "b" | "B" => Ok(Slot::B),
            _ => Err(NotASlot(text.to_owned())),
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
    Soaked {
        /// Floor that the running release carries; it takes effect with the commit.
        floor: Option<String>,
    },
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
    /// The update service said what comes next; nothing is written yet.
    Announced(Transaction),
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
    /// The committed slot stopped booting and the other one is tried.
    LateFallback {
        /// The committed slot that failed.
        from: Slot,
        /// Why.
        reason: String,
        /// Boots of the other slot that were cut off by power before they said anything.
        #[serde(default)]
        attempts: u32,
    },
}

impl Phase {
    /// The transaction under way.
    #[must_use]
    pub fn transaction(&self) -> Option<&Transaction> {
        match self {
            Phase::Announced(tx) | Phase::Writing(tx) | Phase::Ready(tx) | Phase::Armed(tx) => Some(tx),
            Phase::Trial { transaction, .. } => Some(transaction),
            Phase::Idle | Phase::LateFallback { .. } => None,
        }
    }

    /// The phase's name, as `--json` output and the state diagram spell it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Announced(_) => "announced",
            Phase::Writing(_) => "writing",
            Phase::Ready(_) => "ready",
            Phase::Armed(_) => "armed",
            Phase::Trial { .. } => "trial",
            Phase::LateFallback { .. } => "late-fallback",
        }
    }
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

impl SlotState {
    /// May be booted without a person asking for it.
    #[must_use]
    pub fn bootable(&self) -> bool {
        matches!(self, SlotState::Unknown | SlotState::Valid { .. })
    }
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
    /// Got no further than `rustiot-init`, which rebooted into the other slot.
    Redirect,
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
    /// Last kernel lines of the boot before, where pstore kept them; only the newest boots keep theirs.
    pub pstore_tail: Vec<String>,
    /// The health gate passed in this boot.
    #[serde(default)]
    pub healthy: bool,
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
    /// Boots of the committed slot that failed since one was stable.
    pub late: u32,
    /// Boots of the committed slot that were cut off before they were healthy, since one was healthy.
    #[serde(default)]
    pub interrupted: u32,
    /// The selector was already put right; not again before a stable boot.
    pub selector_repaired: bool,
    /// Neither slot is good: stay reachable, and this is why.
    #[serde(default)]
    pub rescue: Option<String>,
    /// Times that rescue was entered since a boot was stable; sets the pause before the next retry.
    #[serde(default)]
    pub rescues: u32,
    /// The root of slot A, B could not be opened.
    #[serde(default)]
    pub unusable: [bool; 2],
    /// Lowest version that may be installed.
    pub floor: Option<String>,
    /// Known bad releases, newest last, at most [`REJECTED_MAX`].
    pub rejected: Vec<Rejected>,
    /// Last boots, newest last, at most [`BOOTS_MAX`].
    pub boots: Vec<BootEntry>,
}

impl Record {
    /// What is known when nothing is remembered: `committed` is the loader's default.
    #[must_use]
    pub fn fresh(committed: Slot) -> Record {
        Record {
            committed,
            slots: [SlotState::Unknown, SlotState::Unknown],
            phase: Phase::Idle,
            late: 0,
            interrupted: 0,
            selector_repaired: false,
            rescue: None,
            rescues: 0,
            unusable: [false, false],
            floor: None,
            rejected: Vec::new(),
            boots: Vec::new(),
        }
    }

    /// State of `slot`.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> &SlotState {
        let [a, b] = &self.slots;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }

    /// State of `slot`, to change it.
    pub(crate) fn slot_mut(&mut self, slot: Slot) -> &mut SlotState {
        let [a, b] = &mut self.slots;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }

    /// The root of `slot` could not be opened when last tried.
    #[must_use]
    pub fn is_unusable(&self, slot: Slot) -> bool {
        let [a, b] = self.unusable;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }

    pub(crate) fn set_unusable(&mut self, slot: Slot, value: bool) {
        let [a, b] = &mut self.unusable;
        match slot {
            Slot::A => *a = value,
            Slot::B => *b = value,
        }
    }

    /// The newest boot: the running one once `Event::Booted` was applied.
    #[must_use]
    pub fn last_boot(&self) -> Option<&BootEntry> {
        self.boots.last()
    }

    /// The boot before this one ended by an orderly shutdown, or by our own redirection: what `rustiot-init` asks
    /// before it calls a reset without any other trace a power cut.
    #[must_use]
    pub fn ended_cleanly(&self) -> bool {
        self.last_boot().is_some_and(|boot| boot.clean)
    }

    /// Why `manifest_hash` is not to be installed by itself.
    #[must_use]
    pub fn rejection(&self, manifest_hash: &str) -> Option<&Rejected> {
        self.rejected.iter().find(|rejected| rejected.release.manifest_hash == manifest_hash)
    }

    /// What the loader must hold while this record is in force.
    #[must_use]
    pub fn selection(&self) -> Selection {
        let next = match (self.last_boot(), &self.phase) {
            (Some(boot), _) if boot.kind == BootKind::Redirect => Some(!boot.slot),
            (_, Phase::Armed(tx)) => Some(tx.slot),
            _ => None,
        };
        Selection { default: self.committed, next }
    }

    /// Seconds to stay in rescue before [`crate::Event::Retry`]: one hour, doubling to a day.
    #[must_use]
    pub fn rescue_pause_s(&self) -> u64 {
        const HOUR: u64 = 3600;
        HOUR.checked_shl(self.rescues.saturating_sub(1).min(8)).unwrap_or(u64::MAX).min(24 * HOUR)
    }
}

/// What the loader must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The slot that boots by default.
    pub default: Slot,
    /// The slot that boots next, once.
    pub next: Option<Slot>,
}

/// `text` cut to [`LINE_MAX`] bytes at a character boundary.
pub(crate) fn clip(text: &str) -> String {
    text.get(..text.floor_char_boundary(LINE_MAX)).unwrap_or_default().to_owned()
}

/// The last [`LOG_LINES_MAX`] lines, each clipped.
pub(crate) fn clip_log(log: &[String]) -> Vec<String> {
    log.iter().skip(log.len().saturating_sub(LOG_LINES_MAX)).map(|line| clip(line)).collect()
}
