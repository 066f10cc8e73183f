//! Where does the transaction stand? Compares what the service remembers with the boot ledger, which is the truth.
//!
//! Pure: no clock, no disk, no bus. Called by the engine at start and whenever it looks at the ledger again.

use std::time::Duration;

use rustiot_boot::{Phase as BootPhase, Record, Rejected, Release, Slot, SlotState};

use crate::failure::{Failure, Kind};
use crate::status::{Outcome, Request, Transaction};

/// The boot this process runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// The booted slot.
    pub slot: Slot,
    /// Kernel boot id.
    pub boot_id: String,
}

/// What the ledger says about the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Situation {
    /// Nothing is under way.
    Nothing,
    /// The check or the write was cut off, or is still running in RAUC.
    Writing,
    /// Complete in the other slot, never tried.
    Ready,
    /// Tried `attempts` times without a verdict; `stable` says whether this boot may arm it again.
    Interrupted {
        /// Trials that ended without a verdict.
        attempts: u32,
        /// This boot has passed its soak.
        stable: bool,
    },
    /// The next boot is the trial.
    Armed,
    /// This boot is the trial.
    OnTrial,
    /// It is over.
    Ended {
        /// How.
        outcome: Outcome,
        /// Why, unless committed.
        why: Option<Failure>,
        /// Tail of the failed boot's log.
        log: Vec<String>,
    },
    /// The committed slot stopped booting; this boot runs the other one.
    LateFallback {
        /// The slot that failed.
        from: Slot,
        /// Why.
        reason: String,
    },
}

/// Compares the ledger with what the service remembers.
#[must_use]
pub fn situation(record: &Record, here: &Here, remembered: Option<&Transaction>) -> Situation {
    match &record.phase {
        BootPhase::LateFallback { from, reason, .. } => {
            Situation::LateFallback { from: *from, reason: reason.clone() }
        }
        BootPhase::Announced(_) | BootPhase::Writing(_) => Situation::Writing,
        BootPhase::Ready(tx) if tx.attempts == 0 => Situation::Ready,
        // A rescue boot never becomes stable, and has nothing to lose.
        BootPhase::Ready(tx) => Situation::Interrupted {
            attempts: tx.attempts,
            stable: is_stable(record, here) || record.rescue.is_some(),
        },
        BootPhase::Armed(_) => Situation::Armed,
        BootPhase::Trial { transaction, .. } if transaction.slot == here.slot => Situation::OnTrial,
        // The old slot runs and the policy has not moved on yet: its next step is rustiot-init's.
        BootPhase::Trial { transaction, .. } => {
            Situation::Interrupted { attempts: transaction.attempts, stable: false }
        }
        BootPhase::Idle => match remembered {
            None => Situation::Nothing,
            Some(tx) => ended(record, tx),
        },
    }
}

fn ended(record: &Record, tx: &Transaction) -> Situation {
    let (Some(release), Some(slot)) = (&tx.release, tx.slot) else {
        // Nothing was announced: the check was cut off before anything was written.
        return Situation::Writing;
    };
    if record.committed == slot && holds(record, slot, release) {
        return Situation::Ended { outcome: Outcome::Committed, why: None, log: Vec::new() };
    }
    // A verdict from before the request (the owner insisted on another try) is not this transaction's.
    if let Some(Rejected { reason, log, at_boot, .. }) = record.rejection(&release.manifest_hash)
        && record.boots.iter().all(|boot| boot.boot_id != tx.started_boot || boot.number < *at_boot)
    {
        let why = Failure::new(Kind::FellBack, format!("{} failed its trial: {reason}", release.version))
            .hint("it is not tried again by itself; install a newer release, or the same with `--force`");
        return Situation::Ended { outcome: Outcome::FellBack, why: Some(why), log: log.clone() };
    }
    // Announced, and neither committed nor rejected: the ledger gave it up (a cut-off write, or it was lost).
    Situation::Writing
}

fn holds(record: &Record, slot: Slot, release: &Release) -> bool {
    matches!(record.slot(slot), SlotState::Valid { release: there } if there.manifest_hash == release.manifest_hash)
}

/// Whether this very boot has passed its soak.
#[must_use]
pub fn is_stable(record: &Record, here: &Here) -> bool {
    record.boots.iter().any(|boot| boot.boot_id == here.boot_id && boot.stable)
}

/// What the ledger's own transaction looks like to the service when its memory of it is gone.
#[must_use]
pub fn adopt(record: &Record, here: &Here, now: u64) -> Option<Transaction> {
    let tx = record.phase.transaction()?;
    Some(Transaction {
        request: Request { id: tx.id.clone(), ..Request::default() },
        release: Some(tx.release.clone()),
        slot: Some(tx.slot),
        started_at: now,
        started_boot: here.boot_id.clone(),
        tries: 1,
        tried_boot: None,
        install_seconds: None,
        approved: matches!(record.phase, BootPhase::Armed(_) | BootPhase::Trial { .. }),
        ..Transaction::new(Request::default(), now, "")
    })
}

/// Most starts of one install before it is given up.
pub const INSTALL_TRIES: u32 = 20;

/// Most downloads that break off in the middle, with a server that answers again right away: a file that is damaged
/// on the server looks the same to the kernel, and must not be fetched for ever.
pub const READ_TRIES: u32 = 4;

/// Most deaths of the installer in one transaction: one may be the kernel's, for want of memory, but a bundle that it
/// cannot survive would cost the same again each time.
pub const INSTALLER_DEATHS: u32 = 3;

/// Pause before start number `tries + 1` of an install: 15 s, doubling, at most an hour.
#[must_use]
pub fn install_delay(tries: u32) -> Duration {
    let seconds = 15_u64.checked_shl(tries.saturating_sub(1).min(20)).unwrap_or(3600);
    Duration::from_secs(seconds.min(3600))
}

/// Pause in a stable boot before trial number `attempts + 1`: 30 s, then 4 times longer, at most an hour.
#[must_use]
pub fn trial_delay(attempts: u32) -> Duration {
    let seconds = 30_u64.checked_shl(attempts.saturating_sub(1).min(10).saturating_mul(2)).unwrap_or(3600);
    Duration::from_secs(seconds.min(3600))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustiot_boot::{BootEntry, BootKind, Gate, ResetReason};

    pub(crate) fn release(version: &str) -> Release {
        Release { version: version.into(), manifest_hash: version.replace('.', "0").repeat(13)[..64].into() }
    }

    pub(crate) fn ledger_tx(attempts: u32) -> rustiot_boot::Transaction {
        rustiot_boot::Transaction { id: "t".into(), release: release("2.0.0"), slot: Slot::B, attempts }
    }

    pub(crate) fn record(phase: BootPhase) -> Record {
        Record {
            slots: [SlotState::Valid { release: release("1.0.0") }, SlotState::Unknown],
            phase,
            boots: vec![BootEntry {
                number: 7,
                boot_id: "now".into(),
                slot: Slot::A,
                kind: BootKind::Normal,
                reset: ResetReason::Clean,
                pstore_tail: Vec::new(),
                healthy: false,
                stable: false,
                clean: false,
            }],
            ..Record::fresh(Slot::A)
        }
    }

    pub(crate) fn here(slot: Slot) -> Here {
        Here { slot, boot_id: "now".into() }
    }

    pub(crate) fn remembered() -> Transaction {
        let mut tx = adopt(&record(BootPhase::Armed(ledger_tx(0))), &here(Slot::A), 1).unwrap();
        tx.request.source = "http://h/2.raucb".into();
        tx
    }

    #[test]
    fn each_ledger_phase_has_one_situation() {
        let trial = |slot| BootPhase::Trial {
            transaction: rustiot_boot::Transaction { slot, ..ledger_tx(1) },
            boot_id: "now".into(),
            gate: Gate::Pending,
        };
        let table = [
            (BootPhase::Idle, Situation::Nothing),
            (BootPhase::Announced(ledger_tx(0)), Situation::Writing),
            (BootPhase::Writing(ledger_tx(0)), Situation::Writing),
            (BootPhase::Ready(ledger_tx(0)), Situation::Ready),
            (BootPhase::Ready(ledger_tx(2)), Situation::Interrupted { attempts: 2, stable: false }),
            (BootPhase::Armed(ledger_tx(0)), Situation::Armed),
            (trial(Slot::A), Situation::OnTrial),
            (trial(Slot::B), Situation::Interrupted { attempts: 1, stable: false }),
            (
                BootPhase::LateFallback { from: Slot::B, reason: "rot".into(), attempts: 1 },
                Situation::LateFallback { from: Slot::B, reason: "rot".into() },
            ),
        ];
        for (phase, expected) in table {
            assert_eq!(situation(&record(phase.clone()), &here(Slot::A), None), expected, "{phase:?}");
        }
    }

    #[test]
    fn committed_means_the_new_release_in_the_committed_slot() {
        let mut r = record(BootPhase::Idle);
        r.committed = Slot::B;
        r.slots =
            [SlotState::Valid { release: release("1.0.0") }, SlotState::Valid { release: release("2.0.0") }];
        let ended = situation(&r, &here(Slot::B), Some(&remembered()));
        assert!(
            matches!(ended, Situation::Ended { outcome: Outcome::Committed, why: None, .. }),
            "{ended:?}"
        );
        // The slot is committed but holds something else: no success may be reported.
        r.slots = [SlotState::Unknown, SlotState::Valid { release: release("1.9.0") }];
        assert_eq!(situation(&r, &here(Slot::B), Some(&remembered())), Situation::Writing);
    }

    #[test]
    fn a_fallback_carries_the_reason_and_the_log() {
        let mut r = record(BootPhase::Idle);
        r.rejected.push(Rejected {
            release: release("2.0.0"),
            reason: "sshd did not start".into(),
            log: vec!["last words".into()],
            at_boot: 8,
        });
        let Situation::Ended { outcome: Outcome::FellBack, why: Some(why), log } =
            situation(&r, &here(Slot::A), Some(&remembered()))
        else {
            panic!("not a fallback")
        };
        assert_eq!(why.kind, Kind::FellBack);
        assert!(why.message.contains("sshd did not start"));
        assert_eq!(log, ["last words"]);
    }

    #[test]
    fn an_old_verdict_is_not_that_of_a_forced_new_try() {
        let mut r = record(BootPhase::Idle);
        r.rejected.push(Rejected {
            release: release("2.0.0"),
            reason: "x".into(),
            log: Vec::new(),
            at_boot: 5,
        });
        // The request came in boot 7 ("now"), the verdict fell in boot 5.
        assert_eq!(situation(&r, &here(Slot::A), Some(&remembered())), Situation::Writing);
    }

    #[test]
    fn a_check_or_write_that_was_cut_off_starts_over() {
        let mut tx = remembered();
        assert_eq!(situation(&record(BootPhase::Idle), &here(Slot::A), Some(&tx)), Situation::Writing);
        (tx.release, tx.slot) = (None, None);
        assert_eq!(situation(&record(BootPhase::Idle), &here(Slot::A), Some(&tx)), Situation::Writing);
    }

    #[test]
    fn only_this_boots_soak_counts() {
        let mut r = record(BootPhase::Ready(ledger_tx(1)));
        let rescue = Record { rescue: Some("both bad".into()), ..r.clone() };
        assert!(matches!(
            situation(&rescue, &here(Slot::A), None),
            Situation::Interrupted { stable: true, .. }
        ));
        r.boots[0].stable = true;
        assert!(is_stable(&r, &here(Slot::A)));
        r.boots[0].boot_id = "before".into();
        assert!(!is_stable(&r, &here(Slot::A)));
    }

    #[test]
    fn a_lost_memory_is_taken_from_the_ledger() {
        let tx = adopt(&record(BootPhase::Armed(ledger_tx(1))), &here(Slot::A), 5).unwrap();
        assert_eq!((tx.request.id.as_str(), tx.slot, tx.approved), ("t", Some(Slot::B), true));
        assert!(!adopt(&record(BootPhase::Ready(ledger_tx(0))), &here(Slot::A), 5).unwrap().approved);
        assert_eq!(adopt(&record(BootPhase::Idle), &here(Slot::A), 5), None);
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let seconds =
            |f: fn(u32) -> Duration, n: &[u32]| n.iter().map(|n| f(*n).as_secs()).collect::<Vec<_>>();
        assert_eq!(seconds(install_delay, &[0, 1, 2, 3, 9, u32::MAX]), [15, 15, 30, 60, 3600, 3600]);
        assert_eq!(seconds(trial_delay, &[0, 1, 2, 3, u32::MAX]), [30, 30, 120, 480, 3600]);
    }
}
