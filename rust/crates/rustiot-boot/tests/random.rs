//! Random lives of a device: the invariants hold, and nothing reboots for ever.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop at once")]

mod common;

use common::{Machine, RESETS, release};
use proptest::prelude::*;
use rustiot_boot::{BootKind, Effect, Event, Phase, Record, ResetReason, Slot};

#[derive(Clone, Debug)]
enum Act {
    /// Reset; the firmware obeys, or starts that slot.
    Boot(ResetReason, Option<Slot>),
    RootUnusable,
    Retry,
    Announce(u32, bool),
    WriteStarted(Slot),
    WriteFinished(bool),
    Activate(Slot),
    Disarm,
    Cancel,
    GatePassed,
    GateFailed,
    Soaked(Option<u32>),
    Commit,
    ShuttingDown,
    /// The whole way at once, so that random lives get far.
    Install(u32),
    Prove,
}

fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![Just(Slot::A), Just(Slot::B)]
}

fn reset() -> impl Strategy<Value = ResetReason> {
    proptest::sample::select(RESETS.as_slice())
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (reset(), prop_oneof![4 => Just(None), 1 => slot().prop_map(Some)]).prop_map(|(r, s)| Act::Boot(r, s)),
        2 => Just(Act::RootUnusable),
        1 => Just(Act::Retry),
        2 => (0..24u32, any::<bool>()).prop_map(|(n, force)| Act::Announce(n, force)),
        2 => slot().prop_map(Act::WriteStarted),
        2 => any::<bool>().prop_map(Act::WriteFinished),
        2 => slot().prop_map(Act::Activate),
        1 => Just(Act::Disarm),
        1 => Just(Act::Cancel),
        3 => Just(Act::GatePassed),
        1 => Just(Act::GateFailed),
        3 => proptest::option::of(0..24u32).prop_map(Act::Soaked),
        3 => Just(Act::Commit),
        1 => Just(Act::ShuttingDown),
        4 => (0..24u32).prop_map(Act::Install),
        3 => Just(Act::Prove),
    ]
}

fn event(machine: &Machine, act: &Act) -> Event {
    let boot_id = machine.boot_id();
    match act {
        Act::RootUnusable => Event::RootUnusable { reason: "EIO".into() },
        Act::Retry => Event::Retry,
        Act::Announce(n, force) => {
            Event::Announce { id: format!("tx-{n}"), release: release(*n), force: *force }
        }
        Act::WriteStarted(slot) => Event::WriteStarted { slot: *slot },
        Act::WriteFinished(ok) => Event::WriteFinished { ok: *ok },
        Act::Activate(slot) => Event::Activate { slot: *slot },
        Act::Disarm => Event::Disarm,
        Act::Cancel => Event::Cancel,
        Act::GatePassed => Event::GatePassed { boot_id },
        Act::GateFailed => Event::GateFailed { boot_id, reason: "no".into(), log: vec!["line".into(); 99] },
        Act::Soaked(floor) => Event::Soaked { boot_id, floor: floor.map(|n| release(n).version) },
        Act::Commit => Event::Commit { boot_id },
        Act::ShuttingDown | Act::Boot(..) | Act::Install(_) | Act::Prove => Event::ShuttingDown { boot_id },
    }
}

/// Lives through `acts`; [`Machine::tell`] checks the invariants after each step.
fn live(acts: &[Act]) -> Machine {
    let mut machine = Machine::new(Record::fresh(Slot::A));
    machine.boot(ResetReason::Unknown, None);
    for act in acts {
        let before = machine.record.clone();
        match act {
            Act::Boot(reset, instead) => drop(machine.boot(*reset, *instead)),
            Act::Install(n) => drop(machine.install(*n)),
            Act::Prove => {
                for act in [Act::GatePassed, Act::Soaked(None), Act::Commit] {
                    let _ = machine.tell(event(&machine, &act));
                }
            }
            act => {
                let told = machine.tell(event(&machine, act));
                if told.is_err() {
                    assert_eq!(machine.record, before, "a refusal changes nothing");
                }
                committed_rightly(&before, &machine.record, act);
            }
        }
    }
    machine
}

/// A new default needs gate and soak in the boot that asks, or a rescue that runs elsewhere.
fn committed_rightly(before: &Record, after: &Record, act: &Act) {
    if before.committed == after.committed {
        let (was, is) = (before.slot(before.committed), after.slot(after.committed));
        assert!(is.bootable() || !was.bootable(), "{act:?} made the default {is:?}");
        return;
    }
    let boot = before.last_boot().unwrap();
    match act {
        Act::Commit => assert!(
            matches!(&before.phase, Phase::Trial { gate: rustiot_boot::Gate::Soaked { .. }, boot_id, .. } if *boot_id == boot.boot_id)
                && boot.healthy
                && boot.slot == after.committed
        ),
        Act::Soaked(_) => {
            assert!(boot.healthy && boot.slot == after.committed);
            assert!(matches!(before.phase, Phase::LateFallback { .. }));
        }
        Act::WriteStarted(slot) => assert!(before.rescue.is_some() && boot.slot == !*slot),
        act => panic!("{act:?} changed the default"),
    }
}

proptest! {
    #[test]
    fn invariants_hold_in_every_life(acts in proptest::collection::vec(act(), 0..60)) {
        live(&acts);
    }

    /// From anywhere: if no boot is ever stable, rescue comes within a bounded number of boots, and stays.
    #[test]
    fn without_a_stable_boot_rescue_comes_and_stays(
        acts in proptest::collection::vec(act(), 0..40),
        resets in proptest::collection::vec(reset().prop_filter("a person's doing", |r| *r != ResetReason::Power), 60),
        stubborn in prop_oneof![4 => Just(None), 1 => slot().prop_map(Some)],
        roots in any::<[bool; 2]>(),
    ) {
        let mut machine = live(&acts);
        let start = machine.boots;
        let mut last_restless = start;
        for reset in resets {
            let mut effect = machine.boot_through(reset, stubborn);
            let root = roots[usize::from(machine.slot() == Slot::B)];
            if !root {
                // The root of that slot is gone: init says so, and obeys.
                let told = machine.tell(Event::RootUnusable { reason: "EIO".into() }).unwrap();
                effect = told.last().unwrap().clone();
            }
            if !matches!(effect, Effect::Rescue { .. }) {
                last_restless = machine.boots;
            }
        }
        let took = last_restless - start;
        prop_assert!(took <= 30, "{took} boots until rescue: {:?}", machine.record);
    }

    /// From anywhere: a trial that is not committed is over with the next boot that the firmware starts rightly.
    #[test]
    fn an_uncommitted_trial_leads_back(acts in proptest::collection::vec(act(), 0..40), reset in reset()) {
        let mut machine = live(&acts);
        if machine.record.last_boot().unwrap().kind == BootKind::Trial
            && let Phase::Trial { .. } = machine.record.phase
        {
            let old = machine.record.committed;
            machine.boot(reset, None);
            prop_assert_eq!(machine.slot(), old);
            prop_assert!(!matches!(machine.record.phase, Phase::Trial { .. }), "the verdict has fallen");
            prop_assert_eq!(machine.record.committed, old);
        }
    }

    /// From anywhere, rescue included: a good release can be installed, tried and committed, and then all is normal.
    #[test]
    fn a_good_release_always_helps(acts in proptest::collection::vec(act(), 0..40)) {
        let mut machine = live(&acts);
        // Whatever is under way ends by itself: boots, stable if they may be.
        for _ in 0..40 {
            let _ = machine.tell(Event::Cancel);
            if machine.install(99).is_ok() {
                break;
            }
            machine.boot_through(ResetReason::Clean, None);
            let boot_id = machine.boot_id();
            let _ = machine.tell(Event::GatePassed { boot_id: boot_id.clone() });
            let _ = machine.tell(Event::Soaked { boot_id, floor: None });
        }
        prop_assert_eq!(machine.boot(ResetReason::Clean, None), Effect::Continue(BootKind::Trial));
        machine.prove();
        machine.tell(Event::Commit { boot_id: machine.boot_id() }).unwrap();
        prop_assert_eq!(machine.boot(ResetReason::Clean, None), Effect::Continue(BootKind::Normal));
        prop_assert!(machine.record.rescue.is_none());
    }

    /// The record always fits into the ledger.
    #[test]
    fn the_record_stays_small(acts in proptest::collection::vec(act(), 200)) {
        let machine = live(&acts);
        let bytes = serde_json::to_vec(&machine.record).unwrap();
        prop_assert!(bytes.len() < 128 << 10, "{} bytes", bytes.len());
        prop_assert_eq!(serde_json::from_slice::<Record>(&bytes).unwrap(), machine.record);
    }
}
