//! The policy itself: one total function over states and events.

use crate::record::{
    ATTEMPTS_MAX, BOOTS_MAX, BootEntry, BootKind, CUT_ATTEMPTS_MAX, Gate, INTERRUPTED_MAX, LATE_MAX,
    LINE_MAX, Phase, REJECTED_MAX, Record, Rejected, Release, ResetReason, Slot, SlotState, TAILS_MAX,
    Transaction, clip, clip_log,
};

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
    /// Rescue has lasted long enough (or a person asks): give the slots one more chance.
    Retry,
    /// The update service announces what will be written next, into the slot that is not running.
    Announce {
        /// Transaction id.
        id: String,
        /// The release.
        release: Release,
        /// The owner insists: a rejected release may be tried again.
        force: bool,
    },
    /// RAUC is about to overwrite `slot`.
    WriteStarted {
        /// The inactive slot.
        slot: Slot,
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
    /// Give up the transaction; a slot that was written becomes invalid.
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
    /// The soak passed in this boot: it is stable.
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
    /// Tell the owner: the transaction ended by commit (`Ok`) or otherwise (`Err(reason)`).
    Outcome {
        /// Transaction id.
        id: String,
        /// The release.
        release: Release,
        /// Committed, or why not.
        result: Result<(), String>,
    },
    /// Tell the owner: the committed slot changed without an update.
    Switched {
        /// The slot that was committed and failed.
        from: Slot,
        /// Why it failed.
        reason: String,
    },
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
}

/// An event that the present phase does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused: {0}")]
pub struct Refused(
    /// What was asked, and why not now.
    pub String,
);

type Step = Result<(Record, Vec<Effect>), Refused>;

/// One step of the policy.
///
/// # Errors
/// [`Refused`] when the event is not allowed in this phase; the record is unchanged then.
pub fn step(record: &Record, event: Event) -> Step {
    let mut next = record.clone();
    let mut effects = Vec::new();
    let booted_now = matches!(event, Event::Booted { .. });
    if !booted_now {
        passing_through(record)?;
    }
    match event {
        Event::Booted { slot, boot_id, reset, pstore_tail } => {
            effects = booted(&mut next, slot, &boot_id, reset, &pstore_tail);
        }
        Event::RootUnusable { reason } => effects = root_unusable(&mut next, &clip(&reason))?,
        Event::Retry => effects.push(retry(&mut next)?),
        Event::Announce { id, release, force } => effects = announce(&mut next, id, release, force)?,
        Event::WriteStarted { slot } => write_started(&mut next, slot)?,
        Event::WriteFinished { ok } => write_finished(&mut next, ok)?,
        Event::Activate { slot } => activate(&mut next, slot)?,
        Event::Disarm => disarm(&mut next)?,
        Event::Cancel => effects.push(cancel(&mut next)?),
        Event::GatePassed { boot_id } => gate_passed(&mut next, &boot_id)?,
        Event::GateFailed { boot_id, reason, log } => {
            effects = gate_failed(&mut next, &boot_id, &reason, &log)?
        }
        Event::Soaked { boot_id, floor } => effects = soaked(&mut next, &boot_id, floor)?,
        Event::Commit { boot_id } => effects = commit(&mut next, &boot_id)?,
        Event::ShuttingDown { boot_id } => running(&mut next, &boot_id)?.clean = true,
    }
    // The loader's part of the effects follows from the two records alone, so no arm can forget it.
    let mut all = loader_effects(record, &next, booted_now);
    all.append(&mut effects);
    Ok((next, all))
}

/// What brings the loader from `old`'s selection to `new`'s; with `all`, also what ought to be there already: a boot
/// has spent the one-shot, and the firmware may have lost the rest.
fn loader_effects(old: &Record, new: &Record, all: bool) -> Vec<Effect> {
    let (old, new) = (old.selection(), new.selection());
    let mut effects = Vec::new();
    if all || old.default != new.default {
        effects.push(Effect::SetDefault(new.default));
    }
    match new.next {
        Some(slot) if all || old.next != new.next => effects.push(Effect::SetNext(slot)),
        None if all || old.next.is_some() => effects.push(Effect::ClearNext),
        _ => {}
    }
    effects
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(why.into()))
}

/// The entry of the running boot, if `boot_id` names it.
fn running<'a>(record: &'a mut Record, boot_id: &str) -> Result<&'a mut BootEntry, Refused> {
    match record.boots.last_mut() {
        Some(boot) if boot.boot_id == boot_id => Ok(boot),
        Some(boot) => refuse(format!("boot {boot_id} is not the running one ({})", boot.boot_id)),
        None => refuse("no boot was recorded yet"),
    }
}

/// A boot that only leads into the other slot does nothing else.
fn passing_through(record: &Record) -> Result<(), Refused> {
    match record.last_boot() {
        Some(boot) if boot.kind == BootKind::Redirect => {
            refuse(format!("this boot of slot {} only leads to slot {}", boot.slot, !boot.slot))
        }
        _ => Ok(()),
    }
}

/// The slot that runs.
fn running_slot(record: &Record) -> Result<Slot, Refused> {
    match record.last_boot() {
        Some(boot) => Ok(boot.slot),
        None => refuse("no boot was recorded yet"),
    }
}

// --- boot -----------------------------------------------------------------------------------------------------

fn booted(
    record: &mut Record,
    slot: Slot,
    boot_id: &str,
    reset: ResetReason,
    pstore_tail: &[String],
) -> Vec<Effect> {
    if let Some(again) = seen(record, boot_id) {
        return again;
    }
    let previous = record.boots.last().cloned();
    let mut effects = Vec::new();
    settle_count(record, previous.as_ref(), slot, reset);
    settle_phase(record, slot, reset, pstore_tail, &mut effects);
    let decision = decide(record, previous.as_ref(), slot, reset);

    record.boots.push(BootEntry {
        number: previous.as_ref().map_or(1, |boot| boot.number.saturating_add(1)),
        boot_id: clip(boot_id),
        slot,
        kind: decision.kind(),
        reset,
        pstore_tail: clip_log(pstore_tail),
        healthy: false,
        stable: false,
        clean: decision.kind() == BootKind::Redirect,
    });
    let surplus = record.boots.len().saturating_sub(BOOTS_MAX);
    record.boots.drain(..surplus);
    for old in record.boots.iter_mut().rev().skip(TAILS_MAX) {
        old.pstore_tail = Vec::new();
    }
    match &decision {
        Decision::Trial(tx) => {
            record.phase =
                Phase::Trial { transaction: tx.clone(), boot_id: clip(boot_id), gate: Gate::Pending };
        }
        Decision::Rescue(reason) => enter_rescue(record, reason),
        Decision::Normal | Decision::LateFallback | Decision::Redirect(_) => {}
    }
    effects.push(decision.effect());
    effects
}

/// `Booted` told twice in one boot changes nothing and says the same again.
fn seen(record: &Record, boot_id: &str) -> Option<Vec<Effect>> {
    let boot = record.last_boot().filter(|boot| boot.boot_id == boot_id)?;
    let effect = match boot.kind {
        BootKind::Redirect => Decision::Redirect("as decided before in this boot".to_owned()).effect(),
        BootKind::Rescue => {
            Decision::Rescue(record.rescue.clone().unwrap_or_else(|| "neither slot is good".to_owned()))
                .effect()
        }
        kind => Effect::Continue(kind),
    };
    Some(vec![effect])
}

enum Decision {
    Normal,
    Trial(Transaction),
    LateFallback,
    Redirect(String),
    Rescue(String),
}

impl Decision {
    fn kind(&self) -> BootKind {
        match self {
            Decision::Normal => BootKind::Normal,
            Decision::Trial(_) => BootKind::Trial,
            Decision::LateFallback => BootKind::LateFallback,
            Decision::Redirect(_) => BootKind::Redirect,
            Decision::Rescue(_) => BootKind::Rescue,
        }
    }

    fn effect(&self) -> Effect {
        match self {
            Decision::Redirect(reason) => Effect::Reboot { reason: reason.clone() },
            Decision::Rescue(reason) => Effect::Rescue { reason: reason.clone() },
            Decision::Normal | Decision::Trial(_) | Decision::LateFallback => Effect::Continue(self.kind()),
        }
    }
}

/// Counts how the boot before ended, if it was one of the committed slot and says something about it.
fn settle_count(record: &mut Record, previous: Option<&BootEntry>, slot: Slot, reset: ResetReason) {
    // A boot that handed over to a trial or a late fallback is judged there.
    let judged =
        matches!(record.phase, Phase::Idle | Phase::Announced(_) | Phase::Writing(_) | Phase::Ready(_));
    let Some(boot) = previous.filter(|_| judged) else { return };
    if boot.slot != record.committed
        || boot.kind != BootKind::Normal
        || boot.stable
        || slot != record.committed
    {
        return;
    }
    match reset {
        ResetReason::Watchdog | ResetReason::Panic | ResetReason::Verity => {
            record.late = record.late.saturating_add(1);
        }
        // A healthy system that was switched off or rebooted before its soak ended has not failed.
        _ if boot.healthy => {}
        ResetReason::Clean => record.late = record.late.saturating_add(1),
        ResetReason::Power | ResetReason::Unknown => {
            record.interrupted = record.interrupted.saturating_add(1)
        }
    }
}

/// Ends what the boot before left open. Only here falls the verdict over a trial.
fn settle_phase(
    record: &mut Record,
    slot: Slot,
    reset: ResetReason,
    pstore_tail: &[String],
    effects: &mut Vec<Effect>,
) {
    let (tx, gate) = match &record.phase {
        Phase::Announced(_) | Phase::Writing(_) => {
            record.phase = Phase::Idle;
            return;
        }
        Phase::Armed(tx) if tx.slot != slot => (tx.clone(), Gate::Pending),
        Phase::Trial { transaction, gate, .. } => (transaction.clone(), gate.clone()),
        Phase::Idle | Phase::Ready(_) | Phase::Armed(_) | Phase::LateFallback { .. } => return,
    };
    let started = matches!(record.phase, Phase::Trial { .. });
    let verdict = match (gate, reset) {
        (Gate::Failed { reason, log }, _) => Some((format!("unhealthy: {reason}"), log)),
        // A root that nobody mounted yet cannot be it: that was the committed slot's, and is judged there.
        (_, ResetReason::Verity) if !started => None,
        (_, ResetReason::Verity) => {
            Some(("the new root is corrupt (dm-verity)".to_owned(), pstore_tail.to_vec()))
        }
        (_, ResetReason::Panic) => Some(("the new kernel panicked".to_owned(), pstore_tail.to_vec())),
        (_, ResetReason::Watchdog) => {
            Some(("the new system hung (hardware watchdog)".to_owned(), pstore_tail.to_vec()))
        }
        (_, ResetReason::Power | ResetReason::Clean | ResetReason::Unknown) => None,
    };
    let attempts = tx.attempts.saturating_add(1);
    let max = if reset == ResetReason::Power { CUT_ATTEMPTS_MAX } else { ATTEMPTS_MAX };
    let (reason, log) = match verdict {
        Some(verdict) => verdict,
        None if attempts < max => {
            record.phase = Phase::Ready(Transaction { attempts, ..tx });
            return;
        }
        None => {
            let how = match (started, reset) {
                (false, _) => "never reached its init",
                (true, ResetReason::Clean) => "rebooted before it was committed",
                (true, _) => "was cut off before it was committed",
            };
            (format!("{attempts} trial boots without a verdict; the last one {how}"), pstore_tail.to_vec())
        }
    };
    effects.push(reject(record, tx, &reason, &log));
}

/// Remembers a failed release and ends its transaction.
fn reject(record: &mut Record, tx: Transaction, reason: &str, log: &[String]) -> Effect {
    let reason = clip(reason);
    *record.slot_mut(tx.slot) = SlotState::Bad { reason: reason.clone() };
    record.rejected.retain(|old| old.release.manifest_hash != tx.release.manifest_hash);
    record.rejected.push(Rejected {
        release: tx.release.clone(),
        reason: reason.clone(),
        log: clip_log(log),
        at_boot: record.last_boot().map_or(0, |boot| boot.number),
    });
    let surplus = record.rejected.len().saturating_sub(REJECTED_MAX);
    record.rejected.drain(..surplus);
    record.phase = Phase::Idle;
    Effect::Outcome { id: tx.id, release: tx.release, result: Err(reason) }
}

/// What this boot is for. Leaves the boot entry and the trial's phase to the caller.
fn decide(record: &mut Record, previous: Option<&BootEntry>, slot: Slot, reset: ResetReason) -> Decision {
    if record.rescue.is_some() && reset == ResetReason::Power && !matches!(record.phase, Phase::Armed(_)) {
        // Someone switched it off and on again: as good as asking for one more chance.
        another_chance(record);
    }
    match (&record.phase, slot == record.committed) {
        (Phase::Armed(tx), _) if tx.slot == slot => Decision::Trial(tx.clone()),
        (Phase::LateFallback { from, reason, attempts }, committed) => {
            let (from, reason, attempts) = (*from, reason.clone(), *attempts);
            late_fallback(record, previous, committed, reset, from, &reason, attempts)
        }
        (_, true) => match record.rescue.clone() {
            Some(reason) => Decision::Rescue(reason),
            None => committed_slot(record, previous, reset),
        },
        (_, false) => match record.rescue.clone() {
            Some(reason) => Decision::Rescue(reason),
            None => wrong_slot(record, slot),
        },
    }
}

/// The committed slot runs and nothing special is under way.
fn committed_slot(record: &mut Record, previous: Option<&BootEntry>, reset: ResetReason) -> Decision {
    let corrupt = reset == ResetReason::Verity && previous.is_some_and(|boot| boot.slot == record.committed);
    let why = if corrupt {
        "its root is corrupt (dm-verity)".to_owned()
    } else if record.late >= LATE_MAX {
        format!("{} boots in a row failed", record.late)
    } else if record.interrupted >= INTERRUPTED_MAX {
        format!("{} boots in a row were cut off", record.interrupted)
    } else {
        return Decision::Normal;
    };
    fall_back(record, &format!("slot {} fails: {why}", record.committed))
}

/// Boots the other slot once, or gives up.
fn fall_back(record: &mut Record, reason: &str) -> Decision {
    let other = !record.committed;
    if record.is_unusable(other) || !record.slot(other).bootable() {
        record.phase = match &record.phase {
            Phase::LateFallback { .. } => Phase::Idle,
            phase => phase.clone(),
        };
        return Decision::Rescue(format!("{reason}; slot {other} cannot be booted"));
    }
    record.phase = match &record.phase {
        // The other slot waits for its trial anyway: that is the stricter way to start it.
        Phase::Ready(tx) if tx.slot == other => Phase::Armed(tx.clone()),
        _ => Phase::LateFallback { from: record.committed, reason: clip(reason), attempts: 0 },
    };
    Decision::Redirect(format!("{reason}; trying slot {other}"))
}

/// A boot while a late fallback is open.
fn late_fallback(
    record: &mut Record,
    previous: Option<&BootEntry>,
    committed: bool,
    reset: ResetReason,
    from: Slot,
    reason: &str,
    attempts: u32,
) -> Decision {
    let other = !from;
    let redirected = previous.is_some_and(|boot| boot.kind == BootKind::Redirect);
    if !committed && redirected {
        return Decision::LateFallback;
    }
    let cut = match reset {
        ResetReason::Power | ResetReason::Unknown => true,
        ResetReason::Clean => previous.is_some_and(|boot| boot.healthy),
        ResetReason::Watchdog | ResetReason::Panic | ResetReason::Verity => false,
    };
    let attempts = attempts.saturating_add(1);
    if cut && !redirected && attempts < LATE_MAX {
        // It was switched off before it could say anything.
        record.phase = Phase::LateFallback { from, reason: reason.to_owned(), attempts };
        return if committed {
            Decision::Redirect(format!("{reason}; slot {other} was cut off, trying it again"))
        } else {
            Decision::LateFallback
        };
    }
    record.phase = Phase::Idle;
    let how = if redirected { "did not start" } else { "failed too" };
    Decision::Rescue(format!("{reason}; slot {other} {how}"))
}

/// Neither the record nor the one-shot explains why this slot runs: the firmware lost its selector, someone chose
/// by hand, or the committed slot's boot partition is gone.
fn wrong_slot(record: &mut Record, slot: Slot) -> Decision {
    let from = record.committed;
    if record.boots.is_empty() {
        // Nothing is remembered, so a reboot would not be either.
        record.phase = Phase::LateFallback {
            from,
            reason: format!("the loader started slot {slot} although its default is {from}"),
            attempts: 0,
        };
        return Decision::LateFallback;
    }
    if !record.selector_repaired {
        record.selector_repaired = true;
        return Decision::Redirect(format!("slot {slot} runs but slot {from} is committed"));
    }
    let reason = format!("slot {from} is committed but the loader does not start it");
    if let Phase::Ready(tx) = &record.phase
        && tx.slot == slot
    {
        return Decision::Trial(tx.clone());
    }
    if record.slot(slot).bootable() {
        record.phase = Phase::LateFallback { from, reason, attempts: 0 };
        return Decision::LateFallback;
    }
    Decision::Rescue(format!("{reason}, and slot {slot} is not good"))
}

fn enter_rescue(record: &mut Record, reason: &str) {
    if record.rescue.is_none() {
        record.rescues = record.rescues.saturating_add(1);
        record.rescue = Some(clip(reason));
    }
}

/// One more failure is allowed before the other slot's turn.
fn another_chance(record: &mut Record) {
    record.rescue = None;
    record.late = LATE_MAX.saturating_sub(1);
    record.interrupted = INTERRUPTED_MAX.saturating_sub(1);
    record.unusable = [false, false];
    record.selector_repaired = false;
}

fn root_unusable(record: &mut Record, reason: &str) -> Result<Vec<Effect>, Refused> {
    let slot = running_slot(record)?;
    // Without a boot before this one the record may be in memory only: two slots that each send the machine to the
    // other would do so for ever.
    let remembered = record.boots.len() > 1;
    let known = record.is_unusable(slot);
    record.set_unusable(slot, true);
    let why = format!("the root of slot {slot} cannot be opened: {reason}");
    if let Phase::Trial { gate, .. } = &mut record.phase {
        *gate = Gate::Failed { reason: clip(&why), log: Vec::new() };
        return Ok(vec![Effect::Reboot { reason: why }]);
    }
    // Rescue on the other root is better than rescue without any; once.
    let elsewhere =
        !known && remembered && !record.is_unusable(!slot) && *record.slot(!slot) != SlotState::Invalid;
    let decision = if record.rescue.is_some() {
        if elsewhere {
            Decision::Redirect(format!("{why}; trying rescue on slot {}", !slot))
        } else {
            Decision::Rescue(why)
        }
    } else if slot == record.committed && !known && remembered {
        match fall_back(record, &why) {
            Decision::Rescue(reason) if elsewhere => {
                enter_rescue(record, &reason);
                Decision::Redirect(format!("{why}; trying rescue on slot {}", !slot))
            }
            decision => decision,
        }
    } else if let (Phase::LateFallback { from, reason, .. }, true) = (record.phase.clone(), remembered) {
        record.phase = Phase::Idle;
        enter_rescue(record, &format!("{reason}; {why}"));
        Decision::Redirect(format!("{why}; going to rescue on slot {from}"))
    } else {
        record.phase = match &record.phase {
            Phase::LateFallback { .. } => Phase::Idle,
            phase => phase.clone(),
        };
        Decision::Rescue(why)
    };
    if let Some(boot) = record.boots.last_mut() {
        boot.kind = decision.kind();
        boot.clean = decision.kind() == BootKind::Redirect;
    }
    if let Decision::Rescue(reason) = &decision {
        enter_rescue(record, reason);
    }
    Ok(vec![decision.effect()])
}

fn retry(record: &mut Record) -> Result<Effect, Refused> {
    let slot = running_slot(record)?;
    if !record.last_boot().is_some_and(|boot| boot.kind == BootKind::Rescue) {
        return refuse("not in rescue");
    }
    another_chance(record);
    let number_of_boots = record.boots.len();
    let other_bootable = record.slot(!slot).bootable();
    if let Some(boot) = record.boots.last_mut() {
        // Rescue on the other slot goes back to the committed one. Where nothing is remembered of earlier boots, the
        // other slot gets its chance too.
        let over = slot != record.committed || (number_of_boots == 1 && other_bootable);
        boot.kind = if over { BootKind::Redirect } else { BootKind::Rescue };
        boot.clean = true;
    }
    Ok(Effect::Reboot { reason: "giving the slots another chance".to_owned() })
}

// --- update ---------------------------------------------------------------------------------------------------

fn announce(record: &mut Record, id: String, release: Release, force: bool) -> Result<Vec<Effect>, Refused> {
    let running = running_slot(record)?;
    if running != record.committed && record.rescue.is_none() {
        return refuse(format!("slot {running} runs but is not committed; wait until it is, or fell back"));
    }
    if id.is_empty() || release.manifest_hash.is_empty() {
        return refuse("a transaction needs an id and a manifest hash");
    }
    if [&id, &release.version, &release.manifest_hash].into_iter().any(|text| text.len() > LINE_MAX) {
        return refuse(format!("id, version and manifest hash may have {LINE_MAX} bytes each"));
    }
    above_floor(record, &release)?;
    if let (Some(bad), false) = (record.rejection(&release.manifest_hash), force) {
        return refuse(format!("{} failed here before: {}", bad.release.version, bad.reason));
    }
    let effects = match &record.phase {
        Phase::Idle | Phase::Announced(_) => Vec::new(),
        Phase::Writing(tx) if tx.id == id => Vec::new(),
        Phase::Ready(tx) if tx.id != id => vec![Effect::Outcome {
            id: tx.id.clone(),
            release: tx.release.clone(),
            result: Err(format!("superseded by {} before it was committed", release.version)),
        }],
        Phase::Writing(tx) => {
            return refuse(format!("{} is being written; cancel it first", tx.release.version));
        }
        Phase::Ready(tx) => {
            return refuse(format!("{} is installed already; activate it", tx.release.version));
        }
        Phase::Armed(tx) => {
            return refuse(format!("the trial of {} is armed; disarm it first", tx.release.version));
        }
        Phase::Trial { transaction, .. } => {
            return refuse(format!("{} is on trial; wait for its verdict", transaction.release.version));
        }
        Phase::LateFallback { .. } => return refuse("a late fallback is under way; wait until it is stable"),
    };
    record.phase = Phase::Announced(Transaction { id, release, slot: !running, attempts: 0 });
    Ok(effects)
}

fn above_floor(record: &Record, release: &Release) -> Result<(), Refused> {
    let Ok(version) = semver::Version::parse(&release.version) else {
        return refuse(format!("version `{}` is not a semantic version", release.version));
    };
    match record.floor.as_deref().map(semver::Version::parse) {
        Some(Ok(floor)) if version < floor => {
            refuse(format!("version {version} is below the floor {floor} of this device"))
        }
        Some(Ok(_) | Err(_)) | None => Ok(()),
    }
}

fn write_started(record: &mut Record, slot: Slot) -> Result<(), Refused> {
    if running_slot(record)? == slot {
        return refuse(format!("slot {slot} is running and is never written"));
    }
    match &record.phase {
        Phase::Announced(tx) | Phase::Writing(tx) if tx.slot == slot => {
            record.phase = Phase::Writing(tx.clone());
            *record.slot_mut(slot) = SlotState::Invalid;
            record.set_unusable(slot, false);
            // Only in rescue on the other slot: the default must not name what is about to be overwritten.
            record.committed = !slot;
            if *record.slot(!slot) == SlotState::Invalid {
                // It cannot be half written, for it runs; but that is all that is known of it.
                *record.slot_mut(!slot) = SlotState::Bad { reason: "its write never ended".to_owned() };
            }
            Ok(())
        }
        phase => refuse(format!("nothing was announced for slot {slot} (phase {})", phase.name())),
    }
}

fn write_finished(record: &mut Record, ok: bool) -> Result<(), Refused> {
    match (record.phase.clone(), ok) {
        (Phase::Writing(tx), true) => {
            *record.slot_mut(tx.slot) = SlotState::Valid { release: tx.release.clone() };
            record.phase = Phase::Ready(tx);
            Ok(())
        }
        (Phase::Announced(_) | Phase::Writing(_), false) => {
            record.phase = Phase::Idle;
            Ok(())
        }
        (Phase::Ready(_), true) => Ok(()),
        (phase, _) => refuse(format!("nothing is being written (phase {})", phase.name())),
    }
}

fn activate(record: &mut Record, slot: Slot) -> Result<(), Refused> {
    let running = running_slot(record)?;
    match (record.phase.clone(), record.slot(slot)) {
        (Phase::Ready(tx) | Phase::Armed(tx), _) if tx.slot == slot => {
            record.phase = Phase::Armed(tx);
            Ok(())
        }
        // Going back by hand to the release in the other slot is a trial like any other.
        (Phase::Idle, SlotState::Valid { release }) if slot != running && slot != record.committed => {
            let release = release.clone();
            above_floor(record, &release)?;
            let id = format!("activate-{}", record.last_boot().map_or(0, |boot| boot.number));
            record.phase = Phase::Armed(Transaction { id, release, slot, attempts: 0 });
            Ok(())
        }
        (phase, _) => refuse(format!("slot {slot} holds nothing to try (phase {})", phase.name())),
    }
}

fn disarm(record: &mut Record) -> Result<(), Refused> {
    match record.phase.clone() {
        Phase::Armed(tx) => {
            record.phase = Phase::Ready(tx);
            Ok(())
        }
        Phase::Idle | Phase::Announced(_) | Phase::Writing(_) | Phase::Ready(_) => Ok(()),
        phase @ (Phase::Trial { .. } | Phase::LateFallback { .. }) => {
            refuse(format!("too late to disarm (phase {})", phase.name()))
        }
    }
}

fn cancel(record: &mut Record) -> Result<Effect, Refused> {
    let tx = match record.phase.clone() {
        Phase::Announced(tx) => tx,
        Phase::Writing(tx) | Phase::Ready(tx) | Phase::Armed(tx) => {
            *record.slot_mut(tx.slot) = SlotState::Invalid;
            tx
        }
        phase @ (Phase::Idle | Phase::Trial { .. } | Phase::LateFallback { .. }) => {
            return refuse(format!("nothing to cancel (phase {})", phase.name()));
        }
    };
    record.phase = Phase::Idle;
    Ok(Effect::Outcome { id: tx.id, release: tx.release, result: Err("cancelled".to_owned()) })
}

// --- health ---------------------------------------------------------------------------------------------------

fn gate_passed(record: &mut Record, boot_id: &str) -> Result<(), Refused> {
    let boot = running(record, boot_id)?;
    match boot.kind {
        BootKind::Normal | BootKind::Trial | BootKind::LateFallback => {}
        BootKind::Rescue | BootKind::Redirect => return refuse("a rescue boot has no gate"),
    }
    if let Phase::Trial { gate, .. } = &mut record.phase {
        match gate {
            Gate::Pending => *gate = Gate::Passed,
            Gate::Passed | Gate::Soaked { .. } => {}
            Gate::Failed { reason, .. } => return refuse(format!("this trial failed already: {reason}")),
        }
    }
    running(record, boot_id)?.healthy = true;
    record.interrupted = 0;
    Ok(())
}

fn gate_failed(
    record: &mut Record,
    boot_id: &str,
    reason: &str,
    log: &[String],
) -> Result<Vec<Effect>, Refused> {
    running(record, boot_id)?.healthy = false;
    let Phase::Trial { gate, .. } = &mut record.phase else { return Ok(Vec::new()) };
    // The first failure is the cause; what follows is its consequence.
    if !matches!(gate, Gate::Failed { .. }) {
        *gate = Gate::Failed { reason: clip(reason), log: clip_log(log) };
    }
    Ok(vec![Effect::Reboot { reason: format!("the trial failed: {}", clip(reason)) }])
}

fn soaked(record: &mut Record, boot_id: &str, floor: Option<String>) -> Result<Vec<Effect>, Refused> {
    let boot = running(record, boot_id)?;
    if !boot.healthy {
        return refuse("the health gate has not passed in this boot");
    }
    let slot = boot.slot;
    let floor = floor.filter(|floor| floor.len() <= LINE_MAX);
    match &mut record.phase {
        // Stable, but committed only when RAUC says so.
        Phase::Trial { gate, .. } => match gate {
            Gate::Passed | Gate::Soaked { .. } => {
                *gate = Gate::Soaked { floor };
                Ok(Vec::new())
            }
            Gate::Pending => refuse("the health gate has not passed in this trial"),
            Gate::Failed { reason, .. } => refuse(format!("this trial failed already: {reason}")),
        },
        Phase::LateFallback { from, reason, .. } => {
            let (from, reason) = (*from, reason.clone());
            if slot == from {
                return refuse("the other slot has not been tried yet");
            }
            record.phase = Phase::Idle;
            record.committed = slot;
            *record.slot_mut(from) = SlotState::Bad { reason: reason.clone() };
            stable(record, floor);
            Ok(vec![Effect::Switched { from, reason }])
        }
        Phase::Idle | Phase::Announced(_) | Phase::Writing(_) | Phase::Ready(_) | Phase::Armed(_) => {
            stable(record, floor);
            Ok(Vec::new())
        }
    }
}

fn commit(record: &mut Record, boot_id: &str) -> Result<Vec<Effect>, Refused> {
    let boot = running(record, boot_id)?.clone();
    match record.phase.clone() {
        Phase::Trial { transaction: tx, boot_id: trial, gate: Gate::Soaked { floor } }
            if trial == boot_id && tx.slot == boot.slot && boot.healthy =>
        {
            record.committed = tx.slot;
            *record.slot_mut(tx.slot) = SlotState::Valid { release: tx.release.clone() };
            record.phase = Phase::Idle;
            record.rejected.retain(|old| old.release.manifest_hash != tx.release.manifest_hash);
            stable(record, floor);
            Ok(vec![Effect::Outcome { id: tx.id, release: tx.release, result: Ok(()) }])
        }
        Phase::Trial { gate: Gate::Failed { reason, .. }, .. } => {
            refuse(format!("this trial failed: {reason}"))
        }
        Phase::Trial { .. } => refuse("the health gate and the soak have not passed in this boot"),
        // Committed already, in this boot or before it.
        _ if boot.slot == record.committed && boot.kind != BootKind::Rescue => Ok(Vec::new()),
        phase => refuse(format!("slot {} is not on trial (phase {})", boot.slot, phase.name())),
    }
}

/// The running slot is the committed one and has proved itself.
fn stable(record: &mut Record, floor: Option<String>) {
    if let Some(boot) = record.boots.last_mut() {
        boot.stable = true;
        let slot = boot.slot;
        record.set_unusable(slot, false);
    }
    record.late = 0;
    record.interrupted = 0;
    record.rescue = None;
    record.rescues = 0;
    record.selector_repaired = false;
    let parse = |text: &Option<String>| text.as_deref().and_then(|text| semver::Version::parse(text).ok());
    if parse(&floor) > parse(&record.floor) {
        record.floor = floor;
    }
}
