//! What a device lives through, one story a test, named by the promise.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop at once")]

mod common;

use common::{Machine, release};
use rustiot_boot::{BootKind, Effect, Event, Phase, Record, ResetReason, Slot, SlotState};

const NORMAL: Effect = Effect::Continue(BootKind::Normal);
const TRIAL: Effect = Effect::Continue(BootKind::Trial);
const LATE: Effect = Effect::Continue(BootKind::LateFallback);

fn reboots(effect: &Effect) -> bool {
    matches!(effect, Effect::Reboot { .. })
}

fn rescues(effect: &Effect) -> bool {
    matches!(effect, Effect::Rescue { .. })
}

#[test]
fn updates_there_and_back() {
    let mut machine = Machine::running();
    for n in 2..8 {
        let old = machine.slot();
        machine.install(n).unwrap();
        assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
        assert_eq!((machine.slot(), machine.default), (!old, old), "the default stays until the commit");
        machine.prove();
        machine.tell(Event::Commit { boot_id: machine.boot_id() }).unwrap();
        assert_eq!(machine.default, !old);
        assert_eq!(machine.record.phase, Phase::Idle);
        assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
        machine.prove();
    }
    assert_eq!(machine.outcomes, vec![Ok(()); 6]);
}

#[test]
fn a_panic_or_hang_rejects_at_once_and_is_remembered() {
    for reset in [ResetReason::Panic, ResetReason::Watchdog, ResetReason::Verity] {
        let mut machine = Machine::running();
        machine.install(2).unwrap();
        assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
        assert_eq!(machine.boot(reset, None), NORMAL);
        assert_eq!(machine.slot(), Slot::A);
        assert!(matches!(machine.outcomes.as_slice(), [Err(_)]));
        let rejected = machine.record.rejection("hash-2").unwrap().clone();
        assert_eq!(rejected.log, ["last line"]);
        let refused = machine.install(2).unwrap_err().to_string();
        assert!(refused.contains(&rejected.reason), "{refused}");
        machine.install(3).unwrap();
    }
}

#[test]
fn a_kernel_that_dies_before_its_init_is_rejected_too() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    // The loader spent the one-shot, the new kernel panicked, and the old slot is back.
    machine.next = None;
    assert_eq!(machine.boot(ResetReason::Panic, Some(Slot::A)), NORMAL);
    assert!(machine.record.rejection("hash-2").is_some());
}

#[test]
fn three_interrupted_trials_are_enough() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    for reset in [ResetReason::Power, ResetReason::Clean] {
        assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
        assert_eq!(machine.boot(reset, None), NORMAL);
        assert!(matches!(machine.record.phase, Phase::Ready(_)), "not armed by itself");
        machine.tell(Event::Activate { slot: Slot::B }).unwrap();
    }
    assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
    assert!(machine.record.rejection("hash-2").unwrap().reason.contains("rebooted before it was committed"));
    assert_eq!(*machine.record.slot(Slot::A), SlotState::Unknown);
    assert!(matches!(machine.record.slot(Slot::B), SlotState::Bad { .. }));
}

#[test]
fn trials_that_are_switched_off_get_twice_as_many_attempts() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    for _ in 0..5 {
        assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
        assert_eq!(machine.boot(ResetReason::Power, None), NORMAL);
        machine.tell(Event::Activate { slot: Slot::B }).unwrap();
    }
    assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
    assert_eq!(machine.boot(ResetReason::Power, None), NORMAL);
    assert!(
        machine.record.rejection("hash-2").unwrap().reason.contains("was cut off before it was committed")
    );
}

#[test]
fn a_healthy_trial_that_reboots_before_the_commit_is_no_success() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    machine.boot(ResetReason::Clean, None);
    machine.prove();
    machine.tell(Event::ShuttingDown { boot_id: machine.boot_id() }).unwrap();
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
    assert_eq!((machine.slot(), machine.record.committed), (Slot::A, Slot::A));
}

#[test]
fn a_failed_gate_rejects_with_its_own_reason_and_log() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    machine.boot(ResetReason::Clean, None);
    let failed = |reason: &str| Event::GateFailed {
        boot_id: "boot-2".into(),
        reason: reason.into(),
        log: vec!["sshd: cannot bind".into()],
    };
    assert!(reboots(&machine.tell(failed("sshd.service failed")).unwrap()[0]));
    // What fails afterwards is a consequence, and no pass counts any more.
    machine.tell(failed("another reason")).unwrap();
    assert!(machine.tell(Event::GatePassed { boot_id: machine.boot_id() }).is_err());
    assert!(machine.tell(Event::Commit { boot_id: machine.boot_id() }).is_err());
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
    let rejected = machine.record.rejection("hash-2").unwrap();
    assert_eq!(rejected.reason, "unhealthy: sshd.service failed");
    assert_eq!(rejected.log, ["sshd: cannot bind"]);
}

#[test]
fn nothing_is_committed_without_gate_and_soak_of_this_very_boot() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    machine.boot(ResetReason::Clean, None);
    let now = machine.boot_id();
    let commit =
        |machine: &mut Machine, boot_id: &str| machine.tell(Event::Commit { boot_id: boot_id.into() });
    assert!(commit(&mut machine, &now).is_err(), "the gate was deleted");
    assert!(machine.tell(Event::Soaked { boot_id: now.clone(), floor: None }).is_err(), "soak without gate");
    machine.tell(Event::GatePassed { boot_id: now.clone() }).unwrap();
    assert!(commit(&mut machine, &now).is_err(), "no soak");
    machine.tell(Event::Soaked { boot_id: now.clone(), floor: None }).unwrap();
    assert!(commit(&mut machine, "boot-1").is_err(), "another boot");
    commit(&mut machine, &now).unwrap();
    commit(&mut machine, &now).unwrap();
    assert_eq!(machine.default, Slot::B);
}

#[test]
fn the_committed_slot_goes_bad_and_the_other_takes_over() {
    let mut machine = Machine::running();
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL, "the boot before was stable");
    for _ in 0..2 {
        assert_eq!(machine.boot(ResetReason::Watchdog, None), NORMAL);
    }
    assert!(reboots(&machine.boot(ResetReason::Watchdog, None)));
    assert_eq!(machine.next, Some(Slot::B));
    assert_eq!(machine.boot(ResetReason::Clean, None), LATE);
    assert_eq!(machine.default, Slot::A, "nothing is settled before it is stable");
    machine.tell(Event::GatePassed { boot_id: machine.boot_id() }).unwrap();
    let effects = machine.tell(Event::Soaked { boot_id: machine.boot_id(), floor: None }).unwrap();
    assert!(matches!(&effects[..], [Effect::Switched { from: Slot::A, .. }]));
    assert_eq!(machine.default, Slot::B);
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
    machine.prove();
    machine.install(3).unwrap();
}

#[test]
fn a_corrupt_root_changes_over_at_once() {
    let mut machine = Machine::running();
    assert!(reboots(&machine.boot(ResetReason::Verity, None)));
    assert_eq!(machine.boot(ResetReason::Clean, None), LATE);
}

#[test]
fn a_root_that_cannot_be_opened_changes_over_in_the_same_boot() {
    let mut machine = Machine::running();
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
    let effects = machine.tell(Event::RootUnusable { reason: "EIO".into() }).unwrap();
    assert!(reboots(&effects[0]));
    assert_eq!(machine.boot(ResetReason::Clean, None), LATE);
    machine.prove();
    assert_eq!(machine.default, Slot::B);
}

#[test]
fn without_memory_nothing_sends_the_machine_to_and_fro() {
    for slot in Slot::ALL {
        let mut machine = Machine::new(Record::fresh(Slot::A));
        assert!(!reboots(&machine.boot(ResetReason::Unknown, Some(slot))));
        let effects = machine.tell(Event::RootUnusable { reason: "EIO".into() }).unwrap();
        assert!(rescues(&effects[0]));
    }
}

#[test]
fn both_slots_bad_is_rescue_and_stays_so() {
    let mut machine = Machine::running();
    machine.boot(ResetReason::Verity, None);
    assert_eq!(machine.boot(ResetReason::Clean, None), LATE);
    assert!(rescues(&machine.boot_through(ResetReason::Verity, None)));
    assert_eq!(machine.slot(), Slot::A);
    for reset in [ResetReason::Clean, ResetReason::Watchdog, ResetReason::Panic, ResetReason::Unknown] {
        assert!(rescues(&machine.boot(reset, None)), "{reset:?}");
    }
}

#[test]
fn both_roots_gone_is_rescue_after_one_look_at_each() {
    let mut machine = Machine::running();
    machine.boot(ResetReason::Clean, None);
    let gone = || Event::RootUnusable { reason: "EIO".into() };
    assert!(reboots(&machine.tell(gone()).unwrap()[0]));
    assert_eq!(machine.boot(ResetReason::Clean, None), LATE);
    // The other root is gone too: rescue on the committed one, then in the initramfs.
    assert!(reboots(&machine.tell(gone()).unwrap()[0]));
    assert!(rescues(&machine.boot(ResetReason::Clean, None)));
    assert!(rescues(&machine.tell(gone()).unwrap()[0]));
    assert!(rescues(&machine.tell(gone()).unwrap()[0]), "and no reboot any more");
}

#[test]
fn rescue_prefers_a_slot_with_a_root() {
    let mut machine = Machine::running();
    // A trial left slot B bad but bootable; then the root of A rots away.
    machine.install(2).unwrap();
    machine.boot(ResetReason::Clean, None);
    machine.boot(ResetReason::Panic, None);
    let gone = || Event::RootUnusable { reason: "EIO".into() };
    assert!(reboots(&machine.tell(gone()).unwrap()[0]));
    assert!(rescues(&machine.boot(ResetReason::Clean, None)), "B is bad: it serves for rescue only");
    assert_eq!((machine.slot(), machine.default), (Slot::B, Slot::A));
    // It dies there as well: then rescue stays in the initramfs.
    assert!(rescues(&machine.boot(ResetReason::Panic, None)));
    assert!(rescues(&machine.tell(gone()).unwrap()[0]));
}

#[test]
fn rescue_ends_with_a_new_release() {
    let mut machine = Machine::running();
    machine.boot(ResetReason::Verity, None);
    machine.boot(ResetReason::Clean, None);
    assert!(rescues(&machine.boot_through(ResetReason::Panic, None)));
    machine.install(5).unwrap();
    assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
    machine.prove();
    machine.tell(Event::Commit { boot_id: machine.boot_id() }).unwrap();
    assert_eq!(machine.record.rescue, None);
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
}

#[test]
fn a_failed_trial_from_rescue_leads_back_to_rescue() {
    let mut machine = Machine::running();
    machine.boot(ResetReason::Verity, None);
    machine.boot(ResetReason::Clean, None);
    assert!(rescues(&machine.boot_through(ResetReason::Panic, None)));
    machine.install(5).unwrap();
    assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
    assert!(rescues(&machine.boot(ResetReason::Watchdog, None)));
    assert!(machine.record.rejection("hash-5").is_some());
    machine.install(6).unwrap();
}

#[test]
fn rescue_on_the_other_slot_can_write_the_committed_one() {
    let mut machine = Machine::running();
    machine.record.rescue = Some("neither is good".into());
    machine.record.rescues = 1;
    if let Some(boot) = machine.record.boots.last_mut() {
        boot.slot = Slot::B;
    }
    machine.tell(Event::Announce { id: "tx-5".into(), release: release(5), force: false }).unwrap();
    assert_eq!(machine.default, Slot::A);
    machine.tell(Event::WriteStarted { slot: Slot::A }).unwrap();
    assert_eq!(machine.default, Slot::B, "the default never names what is being overwritten");
    machine.tell(Event::WriteFinished { ok: true }).unwrap();
    machine.tell(Event::Activate { slot: Slot::A }).unwrap();
    assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
}

#[test]
fn retry_and_power_cycle_give_one_more_chance_and_the_pause_grows() {
    let mut machine = Machine::running();
    machine.boot(ResetReason::Verity, None);
    machine.boot(ResetReason::Clean, None);
    let mut pauses = vec![];
    for _ in 0..7 {
        assert!(rescues(&machine.boot_through(ResetReason::Panic, None)));
        pauses.push(machine.record.rescue_pause_s() / 3600);
        assert!(reboots(&machine.tell(Event::Retry).unwrap()[0]));
        assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
        assert_eq!(machine.boot_through(ResetReason::Panic, None), LATE);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 24, 24]);
    assert!(rescues(&machine.boot_through(ResetReason::Panic, None)));
    assert_eq!(machine.boot(ResetReason::Power, None), NORMAL, "switched off and on");
    machine.prove();
    assert_eq!(machine.record.rescues, 0);
}

#[test]
fn power_cuts_before_the_gate_do_not_condemn_a_slot() {
    let mut machine = Machine::running();
    machine.boot(ResetReason::Power, None);
    for _ in 0..11 {
        assert_eq!(machine.boot(ResetReason::Power, None), NORMAL);
    }
    machine.tell(Event::GatePassed { boot_id: machine.boot_id() }).unwrap();
    for _ in 0..12 {
        assert_eq!(machine.boot(ResetReason::Power, None), NORMAL);
    }
    // But a board that cannot tell a hang from a cut does not loop for ever.
    assert!(reboots(&machine.boot(ResetReason::Power, None)));
}

#[test]
fn reboots_by_hand_of_a_healthy_system_do_not_count() {
    let mut machine = Machine::running();
    for _ in 0..40 {
        assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
        machine.tell(Event::GatePassed { boot_id: machine.boot_id() }).unwrap();
    }
}

#[test]
fn a_lost_selector_is_put_right_once_and_then_accepted() {
    let mut machine = Machine::running();
    assert!(reboots(&machine.boot(ResetReason::Clean, Some(Slot::B))));
    assert_eq!(machine.next, Some(Slot::A));
    assert_eq!(machine.boot(ResetReason::Clean, Some(Slot::B)), LATE, "the firmware insists");
    machine.prove();
    assert_eq!(machine.default, Slot::B);
}

#[test]
fn a_person_who_starts_the_ready_slot_by_hand_is_sent_back() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    machine.tell(Event::Disarm).unwrap();
    assert!(reboots(&machine.boot(ResetReason::Clean, Some(Slot::B))));
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
    assert!(matches!(&machine.record.phase, Phase::Ready(tx) if tx.attempts == 0));
}

#[test]
fn a_trial_that_the_loader_starts_twice_is_sent_back() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
    assert!(reboots(&machine.boot(ResetReason::Power, Some(Slot::B))));
    assert_eq!(machine.boot(ResetReason::Clean, None), NORMAL);
    assert!(matches!(&machine.record.phase, Phase::Ready(tx) if tx.attempts == 1));
}

#[test]
fn a_cut_during_the_write_leaves_the_slot_invalid_and_the_device_up() {
    let mut machine = Machine::running();
    machine.tell(Event::Announce { id: "tx".into(), release: release(2), force: false }).unwrap();
    assert!(machine.tell(Event::WriteStarted { slot: Slot::A }).is_err(), "never the running slot");
    machine.tell(Event::WriteStarted { slot: Slot::B }).unwrap();
    assert_eq!(machine.boot(ResetReason::Power, None), NORMAL);
    assert_eq!(*machine.record.slot(Slot::B), SlotState::Invalid);
    assert!(machine.tell(Event::Activate { slot: Slot::B }).is_err());
    machine.install(2).unwrap();
}

#[test]
fn nothing_is_written_that_was_not_announced() {
    let mut machine = Machine::running();
    assert!(machine.tell(Event::WriteStarted { slot: Slot::B }).is_err());
}

#[test]
fn a_bundle_that_is_refused_before_the_write_leaves_the_slot_alone() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    machine.boot(ResetReason::Clean, None);
    machine.prove();
    machine.tell(Event::Commit { boot_id: machine.boot_id() }).unwrap();
    machine.tell(Event::Announce { id: "tx".into(), release: release(3), force: false }).unwrap();
    machine.tell(Event::WriteFinished { ok: false }).unwrap();
    assert!(machine.record.slot(Slot::A).bootable());
}

#[test]
fn the_floor_rises_with_the_commit_only_and_holds() {
    let mut machine = Machine::running();
    machine.install(5).unwrap();
    machine.boot(ResetReason::Clean, None);
    let now = machine.boot_id();
    machine.tell(Event::GatePassed { boot_id: now.clone() }).unwrap();
    machine.tell(Event::Soaked { boot_id: now.clone(), floor: Some("1.4.0".into()) }).unwrap();
    assert_eq!(machine.record.floor, None);
    machine.tell(Event::Commit { boot_id: now }).unwrap();
    assert_eq!(machine.record.floor.as_deref(), Some("1.4.0"));
    let announce = |machine: &mut Machine, n, force| {
        machine.tell(Event::Announce { id: "tx".into(), release: release(n), force })
    };
    let refused = announce(&mut machine, 3, true).unwrap_err().to_string();
    assert_eq!(refused, "refused: version 1.3.0 is below the floor 1.4.0 of this device");
    announce(&mut machine, 4, false).unwrap();
    // A lower floor does not lower it.
    machine.boot(ResetReason::Clean, None);
    let now = machine.boot_id();
    machine.tell(Event::GatePassed { boot_id: now.clone() }).unwrap();
    machine.tell(Event::Soaked { boot_id: now, floor: Some("0.1.0".into()) }).unwrap();
    assert_eq!(machine.record.floor.as_deref(), Some("1.4.0"));
}

#[test]
fn the_owner_may_insist_on_a_rejected_release() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    machine.boot(ResetReason::Clean, None);
    machine.boot(ResetReason::Panic, None);
    machine.tell(Event::Announce { id: "again".into(), release: release(2), force: true }).unwrap();
    machine.tell(Event::WriteStarted { slot: Slot::B }).unwrap();
    machine.tell(Event::WriteFinished { ok: true }).unwrap();
    machine.tell(Event::Activate { slot: Slot::B }).unwrap();
    machine.boot(ResetReason::Clean, None);
    machine.prove();
    machine.tell(Event::Commit { boot_id: machine.boot_id() }).unwrap();
    assert!(machine.record.rejected.is_empty(), "it was good after all");
}

#[test]
fn going_back_by_hand_is_a_trial_like_any_other() {
    let mut machine = Machine::running();
    for n in [2, 3] {
        machine.install(n).unwrap();
        machine.boot(ResetReason::Clean, None);
        machine.prove();
        machine.tell(Event::Commit { boot_id: machine.boot_id() }).unwrap();
    }
    assert_eq!(machine.slot(), Slot::A);
    machine.tell(Event::Activate { slot: Slot::B }).unwrap();
    assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
    assert!(matches!(machine.record.phase.transaction(), Some(tx) if tx.release == release(2)));
}

#[test]
fn a_ready_release_saves_a_device_whose_committed_slot_dies() {
    let mut machine = Machine::running();
    machine.install(2).unwrap();
    machine.tell(Event::Disarm).unwrap();
    assert!(reboots(&machine.boot(ResetReason::Verity, None)));
    assert_eq!(machine.boot(ResetReason::Clean, None), TRIAL);
    machine.prove();
    machine.tell(Event::Commit { boot_id: machine.boot_id() }).unwrap();
    assert_eq!(machine.default, Slot::B);
}

#[test]
fn saying_booted_twice_changes_nothing() {
    let mut machine = Machine::running();
    machine.boot(ResetReason::Verity, None);
    let before = machine.record.clone();
    let event = Event::Booted {
        slot: Slot::A,
        boot_id: machine.boot_id(),
        reset: ResetReason::Verity,
        pstore_tail: vec![],
    };
    assert!(reboots(machine.tell(event).unwrap().last().unwrap()));
    assert_eq!(machine.record, before);
}

#[test]
fn an_older_record_can_still_be_read() {
    let json = r#"{"committed":"b","slots":[{"state":"unknown"},{"state":"valid","release":{"version":"1.0.0","manifest_hash":"h"}}],
        "phase":{"phase":"idle"},"late":1,"selector_repaired":false,"floor":null,"rejected":[],
        "boots":[{"number":1,"boot_id":"x","slot":"b","kind":"normal","reset":"power","pstore_tail":[],"stable":true,"clean":false}],
        "added_by_a_newer_release":{"x":1}}"#;
    let record: Record = serde_json::from_str(json).unwrap();
    assert_eq!((record.committed, &record.rescue), (Slot::B, &None));
    let back = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&back).unwrap(), record);
}
