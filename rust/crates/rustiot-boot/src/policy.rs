//! The policy itself: one total function over states and events.

use crate::record::{BootKind, Record, Release, ResetReason, Slot};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `rustiot-init` runs in `slot`.
    Booted {
        /// The slot that booted.
        slot: Slot,
        /// Kernel boot id.
        boot_id: String,
        /// Why the machine was reset before.
        reset: ResetReason,
        /// Last kernel lines of the boot before.
        pstore_tail: Vec<String>,
    },
    /// The root of the booted slot cannot be opened (verity, missing partition, not a file system).
    RootUnusable {
        /// Why.
        reason: String,
    },
    /// RAUC is about to overwrite `slot`.
    WriteStarted {
        /// The inactive slot.
        slot: Slot,
    },
    /// The update service announces what will be written next.
    Announce {
        /// Transaction id.
        id: String,
        /// The release.
        release: Release,
        /// The owner insists: a rejected release may be tried again.
        force: bool,
    },
    /// RAUC reported the end of the write.
    WriteFinished {
        /// It is complete and verified.
        ok: bool,
    },
    /// Make the next boot a trial of `slot`.
    Activate {
        /// The written slot.
        slot: Slot,
    },
    /// Forget the armed trial; the release stays installed.
    Disarm,
    /// Give up the transaction; the slot becomes invalid.
    Cancel,
    /// All required checks passed in this boot.
    GatePassed {
        /// This boot.
        boot_id: String,
    },
    /// A required check failed in this boot, or the deadline passed.
    GateFailed {
        /// This boot.
        boot_id: String,
        /// What failed.
        reason: String,
        /// Tail of the log.
        log: Vec<String>,
    },
    /// The soak passed in this boot.
    Soaked {
        /// This boot.
        boot_id: String,
        /// Floor that the running release carries.
        floor: Option<String>,
    },
    /// Make the running slot the default.
    Commit {
        /// This boot.
        boot_id: String,
    },
    /// Userspace shuts down in order.
    ShuttingDown {
        /// This boot.
        boot_id: String,
    },
}

/// What the shell must do, in order, after it has persisted the new record. Each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Loader: boot `slot` at the next boot only.
    SetNext(Slot),
    /// Loader: forget the one-shot.
    ClearNext,
    /// Loader: boot `slot` by default.
    SetDefault(Slot),
    /// Go on booting this slot as `kind`.
    Continue(BootKind),
    /// Reboot now.
    Reboot {
        /// Why, for the console and the log.
        reason: String,
    },
    /// Stay reachable; neither slot is good.
    Rescue {
        /// Why.
        reason: String,
    },
    /// Tell the owner: the transaction ended by commit (`Ok`) or fallback (`Err(reason)`).
    Outcome {
        /// Transaction id.
        id: String,
        /// The release.
        release: Release,
        /// Committed, or why not.
        result: Result<(), String>,
    },
}

/// An event that the present phase does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused: {0}")]
pub struct Refused(
    /// What was asked, and why not now.
    pub String,
);

/// One step of the policy.
///
/// # Errors
/// [`Refused`] when the event is not allowed in this phase; the record is unchanged then.
pub fn step(record: &Record, event: Event) -> Result<(Record, Vec<Effect>), Refused> {
    let _ = (record, event);
    Err(Refused("not yet".into()))
}
