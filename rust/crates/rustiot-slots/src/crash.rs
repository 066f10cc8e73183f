//! Tests: the power goes, or the process dies, at every operation on ledger and loader during a whole update.

use std::{cell::Cell, collections::BTreeSet, rc::Rc};

use rustiot_boot::{BootKind, Effect, Event, Phase, Record, Release, ResetReason, Slot, SlotState};
use rustiot_durable::{
    Ledger, Storage,
    model::{ModelDisk, Remount},
};
use rustiot_loader::{Error as LoaderError, Loader};

use crate::{Error, core::Core};

/// A loader whose selector lies on the model disk: each change is one durable operation, as with firmware variables.
/// With a `register` the one-shot is a flag that a power cut forgets, and its target is on the disk, as on the Raspberry
/// Pi.
#[derive(Clone)]
struct ModelLoader {
    disk: ModelDisk,
    register: Option<Rc<Cell<bool>>>,
}

impl ModelLoader {
    fn get(&self, name: &str) -> Result<Option<Slot>, LoaderError> {
        let bytes = self.disk.read(name, 9).map_err(|error| fail("read", error))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok()))
    }

    fn set(&self, name: &str, slot: Option<Slot>) -> Result<bool, LoaderError> {
        if self.get(name)? == slot {
            return Ok(false);
        }
        let text = slot.map_or("", Slot::letter);
        self.disk.set(name, text.as_bytes()).map_err(|error| fail("write", error))?;
        Ok(true)
    }
}

fn fail(action: &'static str, source: std::io::Error) -> LoaderError {
    LoaderError::Io { action, what: "model".into(), source }
}

impl Loader for ModelLoader {
    fn default_slot(&mut self) -> Result<Option<Slot>, LoaderError> {
        self.get("default")
    }
    fn set_default(&mut self, slot: Slot) -> Result<bool, LoaderError> {
        self.set("default", Some(slot))
    }
    fn next_slot(&mut self) -> Result<Option<Slot>, LoaderError> {
        match &self.register {
            Some(flag) if !flag.get() => Ok(None),
            _ => self.get("next"),
        }
    }
    fn set_next(&mut self, slot: Slot) -> Result<bool, LoaderError> {
        let moved = self.set("next", Some(slot))?;
        Ok(self.register.as_ref().is_some_and(|flag| !flag.replace(true)) || moved)
    }
    fn clear_next(&mut self) -> Result<bool, LoaderError> {
        match &self.register {
            Some(flag) => Ok(flag.replace(false)),
            None => self.set("next", None),
        }
    }
}

/// A device whose ledger and selector are on one disk.
struct Device {
    disk: ModelDisk,
    register: Option<Rc<Cell<bool>>>,
    boots: u32,
    slot: Slot,
}

impl Device {
    fn new() -> Device {
        let disk = ModelDisk::default();
        disk.set("default", b"a").unwrap();
        Device { disk, register: None, boots: 0, slot: Slot::A }
    }

    fn with_register() -> Device {
        Device { register: Some(Rc::default()), ..Device::new() }
    }

    fn loader(&self) -> ModelLoader {
        ModelLoader { disk: self.disk.clone(), register: self.register.clone() }
    }

    /// The power comes back; registers are empty.
    fn remount(&self, how: Remount) {
        self.disk.remount(how);
        if let Some(flag) = &self.register {
            flag.set(false);
        }
    }

    fn boot_id(&self) -> String {
        format!("boot-{}", self.boots)
    }

    /// As a process that starts: the ledger is loaded and, once the boot is known, the loader put right.
    fn open(&self) -> Core<ModelDisk> {
        let ledger = Ledger::new(self.disk.clone(), "ledger").reserve(4 << 10);
        let mut core = Core::load(Some(ledger), Box::new(self.loader()), Some(self.slot));
        core.memory = crate::Memory::Durable;
        if core.record.last_boot().is_some_and(|boot| boot.boot_id == self.boot_id()) {
            // What fails here is tried again by the next one.
            let _ = core.reconcile();
        }
        core
    }

    fn tell(&self, event: Event) -> Result<Vec<Effect>, Error> {
        Ok(self.open().apply(event)?.effects)
    }

    /// The firmware chooses and spends the one-shot, init tells, and obeys until something runs.
    fn boot(&mut self, mut reset: ResetReason) -> Result<(), Error> {
        for _ in 0..4 {
            let mut loader = self.loader();
            let next = loader.next_slot().unwrap();
            if next.is_some() {
                loader.clear_next().map_err(Error::Loader)?;
            }
            self.slot = next.or(loader.default_slot().unwrap()).unwrap_or(Slot::A);
            self.boots += 1;
            let core = self.open();
            assert_ne!(*core.record.slot(self.slot), SlotState::Invalid, "a half-written slot was started");
            drop(core);
            let event =
                Event::Booted { slot: self.slot, boot_id: self.boot_id(), reset, pstore_tail: vec![] };
            match self.tell(event)?.last() {
                Some(Effect::Reboot { .. }) => reset = ResetReason::Clean,
                Some(Effect::Continue(_)) => return Ok(()),
                other => panic!("{other:?}"),
            }
        }
        panic!("redirected without end");
    }

    fn record(&self) -> Record {
        self.open().record
    }

    /// One step of the services towards release 2; what they do depends only on what is remembered, as after a restart.
    /// Tells whether it is done.
    fn step(&mut self) -> Result<bool, Error> {
        let record = self.record();
        let boot_id = self.boot_id();
        let boot = record.last_boot().filter(|boot| boot.boot_id == boot_id).cloned();
        let Some(boot) = boot else { panic!("this boot is not in the record") };
        let target = release();
        let event = match &record.phase {
            _ if !boot.healthy => Event::GatePassed { boot_id },
            _ if !boot.stable
                && !matches!(&record.phase, Phase::Trial { gate: rustiot_boot::Gate::Soaked { .. }, .. }) =>
            {
                Event::Soaked { boot_id, floor: Some("1.0.0".into()) }
            }
            Phase::Idle
                if *record.slot(record.committed) == (SlotState::Valid { release: target.clone() }) =>
            {
                return if boot.kind == BootKind::Normal {
                    Ok(true)
                } else {
                    self.boot(ResetReason::Clean).map(|()| false)
                };
            }
            Phase::Idle => Event::Announce { id: "tx".into(), release: target, force: false },
            Phase::Announced(tx) => Event::WriteStarted { slot: tx.slot },
            Phase::Writing(_) => Event::WriteFinished { ok: true },
            Phase::Ready(tx) => Event::Activate { slot: tx.slot },
            Phase::Armed(_) => return self.boot(ResetReason::Clean).map(|()| false),
            Phase::Trial { .. } => Event::Commit { boot_id },
            Phase::LateFallback { .. } => panic!("nothing failed here"),
        };
        self.tell(event)?;
        Ok(false)
    }

    /// Steps until done, or until something fails.
    fn run(&mut self) -> Result<(), Error> {
        for _ in 0..60 {
            if self.step()? {
                return Ok(());
            }
        }
        panic!("does not end: {:?}", self.record());
    }

    fn finished(&self) {
        let record = self.record();
        assert_eq!(record.committed, Slot::B);
        assert_eq!(record.phase, Phase::Idle);
        assert_eq!(record.floor.as_deref(), Some("1.0.0"));
        assert!(record.rejected.is_empty());
        let mut loader = self.loader();
        assert_eq!(loader.default_slot().unwrap(), Some(Slot::B));
        assert_eq!(loader.next_slot().unwrap(), None);
    }
}

fn release() -> Release {
    Release { version: "2.0.0".into(), manifest_hash: "hash-2".into() }
}

/// Operations that an undisturbed update takes, the first boot included.
fn operations(mut device: Device) -> usize {
    device.boot(ResetReason::Unknown).unwrap();
    device.run().unwrap();
    device.finished();
    device.disk.operations()
}

/// The power goes at every operation of an update; returns how many boots it may take.
fn cut_everywhere(new: fn() -> Device) -> BTreeSet<u32> {
    let total = operations(new());
    assert!(total > 60, "{total}");
    let mut ends = BTreeSet::new();
    for cut in 0..total {
        for remount in Remount::some(2) {
            let mut device = new();
            device.disk.cut_after(cut);
            let result = device.boot(ResetReason::Unknown).and_then(|()| device.run());
            assert!(result.is_err() || cut + 1 >= total, "cut {cut} was not noticed");
            device.remount(remount);
            device.boot(ResetReason::Power).unwrap();
            device.run().unwrap();
            device.finished();
            ends.insert(device.boots);
        }
    }
    ends
}

#[test]
fn power_cut_at_every_operation_of_an_update_still_ends_in_the_new_release() {
    let ends = cut_everywhere(Device::new);
    assert!(ends.iter().all(|boots| *boots <= 6), "boots that it took: {ends:?}");
}

/// The one-shot that a cut forgets costs an attempt that never started, not the update.
#[test]
fn a_one_shot_in_a_register_may_be_forgotten_at_any_time() {
    let ends = cut_everywhere(Device::with_register);
    assert!(ends.iter().all(|boots| *boots <= 6), "boots that it took: {ends:?}");
    let mut device = Device::with_register();
    device.boot(ResetReason::Unknown).unwrap();
    while !matches!(device.record().phase, Phase::Armed(_)) {
        device.step().unwrap();
    }
    device.remount(Remount::Kept);
    device.boot(ResetReason::Power).unwrap();
    assert_eq!(device.slot, Slot::A);
    assert!(matches!(device.record().phase, Phase::Ready(_)), "{:?}", device.record().phase);
    device.run().unwrap();
    device.finished();
}

#[test]
fn a_process_killed_at_every_operation_leaves_nothing_undone() {
    let total = operations(Device::new());
    for cut in 0..total {
        let mut device = Device::new();
        device.disk.cut_after(cut);
        let mut result = device.boot(ResetReason::Unknown);
        if result.is_ok() {
            result = device.run();
        }
        if result.is_err() {
            // The machine goes on; only the process and what it was about to do are lost.
            device.disk.remount(Remount::Kept);
            let known = device.record().last_boot().is_some_and(|boot| boot.boot_id == device.boot_id());
            if !known {
                // Init itself died, and nobody knows how.
                device.boot(ResetReason::Unknown).unwrap();
            }
            device.run().unwrap();
        }
        device.finished();
    }
}

#[test]
fn repeated_cuts_do_not_stop_an_update_for_ever() {
    let mut device = Device::new();
    device.boot(ResetReason::Unknown).unwrap();
    for round in 0..200 {
        // Each time the power lasts for some other part of the way.
        device.disk.cut_after(15 + round * 7 % 41);
        let result = device.run();
        if result.is_ok() {
            device.disk.remount(Remount::Kept);
            device.finished();
            return;
        }
        device.disk.remount(Remount::Torn(round as u64));
        device.boot(ResetReason::Power).unwrap();
    }
    panic!("never finished: {:?}", device.record());
}

#[test]
fn both_copies_lost_believes_the_loader() {
    let mut device = Device::new();
    device.boot(ResetReason::Unknown).unwrap();
    device.run().unwrap();
    for copy in ["ledger.0", "ledger.1"] {
        device.disk.set(copy, b"rubbish").unwrap();
    }
    let core = device.open();
    assert_eq!(core.record, Record::fresh(Slot::B));
    assert_eq!(core.notes.len(), 3, "{:?}", core.notes);
    drop(core);
    device.boot(ResetReason::Power).unwrap();
    assert_eq!((device.slot, device.record().committed), (Slot::B, Slot::B));
}
