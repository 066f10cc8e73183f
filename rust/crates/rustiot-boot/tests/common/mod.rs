//! What the policy's tests share: representative records, all events, and a machine with a model of a boot loader.

#![allow(dead_code, reason = "each test binary uses its part")]

use rustiot_boot::{
    BootEntry, BootKind, Effect, Event, Gate, Phase, Record, Refused, Release, ResetReason, Slot, SlotState,
    Transaction, step,
};

pub const RESETS: [ResetReason; 6] = [
    ResetReason::Unknown,
    ResetReason::Power,
    ResetReason::Clean,
    ResetReason::Watchdog,
    ResetReason::Panic,
    ResetReason::Verity,
];

/// The boot that runs in every representative record.
pub const NOW: &str = "boot-now";

pub fn release(n: u32) -> Release {
    Release { version: format!("1.{n}.0"), manifest_hash: format!("hash-{n}") }
}

pub fn transaction(n: u32, slot: Slot) -> Transaction {
    Transaction { id: format!("tx-{n}"), release: release(n), slot, attempts: 0 }
}

pub fn boot(slot: Slot, kind: BootKind) -> BootEntry {
    BootEntry {
        number: 7,
        boot_id: NOW.into(),
        slot,
        kind,
        reset: ResetReason::Clean,
        pstore_tail: vec![],
        healthy: false,
        stable: false,
        clean: false,
    }
}

/// A is committed and holds release 1; B holds release 2.
pub fn base(phase: Phase, running: BootEntry) -> Record {
    let mut record = Record::fresh(Slot::A);
    record.slots = [SlotState::Valid { release: release(1) }, SlotState::Valid { release: release(2) }];
    record.phase = phase;
    record.boots = vec![BootEntry { number: 6, boot_id: "boot-before".into(), ..running.clone() }, running];
    record
}

/// A record of every kind that the policy tells apart, by name.
pub fn records() -> Vec<(&'static str, Record)> {
    let normal = || boot(Slot::A, BootKind::Normal);
    let tx = |attempts| Transaction { attempts, ..transaction(2, Slot::B) };
    let trial = |gate, healthy| {
        let phase = Phase::Trial { transaction: tx(0), boot_id: NOW.into(), gate };
        base(phase, BootEntry { healthy, ..boot(Slot::B, BootKind::Trial) })
    };
    let late = |running: BootEntry| {
        base(Phase::LateFallback { from: Slot::A, reason: "it fails".into(), attempts: 0 }, running)
    };
    let mut all = vec![
        ("idle", base(Phase::Idle, normal())),
        ("idle", base(Phase::Idle, BootEntry { healthy: true, ..normal() })),
        ("idle", Record { late: 3, ..base(Phase::Idle, normal()) }),
        ("idle", Record { interrupted: 12, ..base(Phase::Idle, normal()) }),
        ("idle", Record { selector_repaired: true, ..base(Phase::Idle, normal()) }),
        ("announced", base(Phase::Announced(tx(0)), normal())),
        ("writing", base(Phase::Writing(tx(0)), normal())),
        ("ready", base(Phase::Ready(tx(0)), normal())),
        ("ready", base(Phase::Ready(tx(2)), normal())),
        ("armed", base(Phase::Armed(tx(0)), normal())),
        ("armed", base(Phase::Armed(tx(2)), normal())),
        ("trial", trial(Gate::Pending, false)),
        ("trial", trial(Gate::Passed, true)),
        ("trial", trial(Gate::Soaked { floor: Some("1.1.0".into()) }, true)),
        ("trial", trial(Gate::Failed { reason: "no network".into(), log: vec!["line".into()] }, false)),
        ("late fallback", late(boot(Slot::A, BootKind::Redirect))),
        ("late fallback", late(boot(Slot::B, BootKind::LateFallback))),
        ("late fallback", late(BootEntry { healthy: true, ..boot(Slot::B, BootKind::LateFallback) })),
    ];
    for (name, record) in &mut all {
        match *name {
            "writing" => record.slots[1] = SlotState::Invalid,
            // Until it is announced, B holds something else or nothing.
            "announced" => record.slots[1] = SlotState::Unknown,
            _ => {}
        }
    }
    let mut rescue = Record {
        rescue: Some("neither is good".into()),
        rescues: 1,
        ..base(Phase::Idle, boot(Slot::A, BootKind::Rescue))
    };
    all.push(("rescue", rescue.clone()));
    rescue.slots[1] = SlotState::Bad { reason: "it failed".into() };
    all.push(("rescue", rescue.clone()));
    rescue.boots[1].slot = Slot::B;
    all.push(("rescue", rescue));
    all.push(("fresh", Record::fresh(Slot::A)));
    all
}

/// Every event with every parameter that matters.
pub fn events() -> Vec<(&'static str, Event)> {
    let now = || NOW.to_owned();
    let mut all = vec![
        ("root unusable", Event::RootUnusable { reason: "not erofs".into() }),
        ("retry", Event::Retry),
        ("disarm", Event::Disarm),
        ("cancel", Event::Cancel),
        ("shutting down", Event::ShuttingDown { boot_id: now() }),
        ("commit", Event::Commit { boot_id: now() }),
        ("commit", Event::Commit { boot_id: "another boot".into() }),
        ("gate passed", Event::GatePassed { boot_id: now() }),
        ("gate passed", Event::GatePassed { boot_id: "another boot".into() }),
        (
            "gate failed",
            Event::GateFailed { boot_id: now(), reason: "no network".into(), log: vec!["line".into()] },
        ),
        ("soaked", Event::Soaked { boot_id: now(), floor: None }),
        ("soaked", Event::Soaked { boot_id: now(), floor: Some("1.2.0".into()) }),
    ];
    for ok in [true, false] {
        let name = if ok { "written" } else { "write failed" };
        all.push((name, Event::WriteFinished { ok }));
    }
    for (n, force) in [(2, false), (3, false), (3, true)] {
        all.push(("announce", Event::Announce { id: format!("tx-{n}"), release: release(n), force }));
    }
    for slot in Slot::ALL {
        all.push(("write started", Event::WriteStarted { slot }));
        all.push(("activate", Event::Activate { slot }));
        for reset in RESETS {
            let name = if slot == Slot::A { "committed slot boots" } else { "other slot boots" };
            all.push((
                name,
                Event::Booted { slot, boot_id: "boot-next".into(), reset, pstore_tail: vec!["oops".into()] },
            ));
        }
    }
    all
}

/// What must hold after every step, whatever was before.
pub fn check(record: &Record) {
    let committed = record.slot(record.committed);
    assert_ne!(*committed, SlotState::Invalid, "the default must not name a slot that is half written");
    if let Some(next) = record.selection().next {
        // A bad slot is started to put the selector right, or for rescue, and never for its own sake.
        let last_resort = record.rescue.is_some() && *record.slot(next) != SlotState::Invalid;
        let state = record.slot(next);
        assert!(
            next == record.committed || last_resort || state.bootable(),
            "the one-shot must not name a slot that is {state:?}"
        );
    }
    match &record.phase {
        Phase::Writing(tx) | Phase::Ready(tx) | Phase::Armed(tx) => assert_ne!(tx.slot, record.committed),
        Phase::Trial { transaction, .. } => assert_ne!(transaction.slot, record.committed),
        Phase::LateFallback { from, .. } => assert_eq!(*from, record.committed),
        Phase::Idle | Phase::Announced(_) => {}
    }
    if let Some(tx) = record.phase.transaction() {
        assert!(tx.attempts < rustiot_boot::CUT_ATTEMPTS_MAX);
    }
    assert!(record.boots.len() <= rustiot_boot::BOOTS_MAX);
    assert!(record.rejected.len() <= rustiot_boot::REJECTED_MAX);
    assert!(
        record.boots.iter().filter(|boot| !boot.pstore_tail.is_empty()).count() <= rustiot_boot::TAILS_MAX
    );
}

/// A device: the record and a loader that does what it is told.
pub struct Machine {
    pub record: Record,
    pub default: Slot,
    pub next: Option<Slot>,
    pub boots: u64,
    pub outcomes: Vec<Result<(), String>>,
}

impl Machine {
    pub fn new(record: Record) -> Machine {
        let default = record.committed;
        Machine { record, default, next: None, boots: 0, outcomes: vec![] }
    }

    pub fn boot_id(&self) -> String {
        format!("boot-{}", self.boots)
    }

    /// Steps, runs the loader's effects, checks, and hands back the other effects.
    pub fn tell(&mut self, event: Event) -> Result<Vec<Effect>, Refused> {
        let (next, effects) = step(&self.record, event)?;
        self.record = next;
        let mut rest = vec![];
        for effect in effects {
            match effect {
                Effect::SetDefault(slot) => self.default = slot,
                Effect::SetNext(slot) => self.next = Some(slot),
                Effect::ClearNext => self.next = None,
                Effect::Outcome { result, .. } => self.outcomes.push(result),
                other => rest.push(other),
            }
        }
        check(&self.record);
        assert_eq!(self.default, self.record.selection().default, "the loader's default is the record's");
        assert_eq!(self.next, self.record.selection().next, "the loader's one-shot is the record's");
        Ok(rest)
    }

    /// One boot: the loader chooses, the new init tells. With `instead`, the firmware starts that slot whatever it was
    /// told.
    pub fn boot(&mut self, reset: ResetReason, instead: Option<Slot>) -> Effect {
        let chosen = self.next.take().unwrap_or(self.default);
        let slot = instead.unwrap_or(chosen);
        self.boots += 1;
        let event =
            Event::Booted { slot, boot_id: self.boot_id(), reset, pstore_tail: vec!["last line".into()] };
        let mut rest =
            self.tell(event).unwrap_or_else(|refused| panic!("a boot is never refused: {refused}"));
        let last = rest.pop().unwrap_or_else(|| panic!("a boot says how it goes on"));
        assert!(
            matches!(last, Effect::Continue(_) | Effect::Reboot { .. } | Effect::Rescue { .. }),
            "{last:?}"
        );
        assert!(rest.iter().all(|effect| matches!(effect, Effect::Outcome { .. } | Effect::Switched { .. })));
        last
    }

    /// Boots until something runs, obeying what init is told; gives up after 4 redirections in a row.
    pub fn boot_through(&mut self, reset: ResetReason, instead: Option<Slot>) -> Effect {
        let mut effect = self.boot(reset, instead);
        for _ in 0..4 {
            if !matches!(effect, Effect::Reboot { .. }) {
                return effect;
            }
            effect = self.boot(ResetReason::Clean, instead);
        }
        panic!("redirected without end: {effect:?}");
    }

    pub fn slot(&self) -> Slot {
        self.record.last_boot().map_or(self.default, |boot| boot.slot)
    }

    /// The running boot becomes stable.
    pub fn prove(&mut self) {
        let boot_id = self.boot_id();
        self.tell(Event::GatePassed { boot_id: boot_id.clone() })
            .unwrap_or_else(|refused| panic!("{refused}"));
        self.tell(Event::Soaked { boot_id, floor: None }).unwrap_or_else(|refused| panic!("{refused}"));
    }

    /// Installs release `n` into the other slot and arms it.
    pub fn install(&mut self, n: u32) -> Result<(), Refused> {
        let slot = !self.slot();
        self.tell(Event::Announce { id: format!("tx-{n}"), release: release(n), force: false })?;
        self.tell(Event::WriteStarted { slot })?;
        self.tell(Event::WriteFinished { ok: true })?;
        self.tell(Event::Activate { slot })?;
        Ok(())
    }

    /// A device that runs release 1 in A, stable.
    pub fn running() -> Machine {
        let mut machine = Machine::new(Record::fresh(Slot::A));
        assert_eq!(machine.boot(ResetReason::Unknown, None), Effect::Continue(BootKind::Normal));
        machine.prove();
        machine
    }
}
