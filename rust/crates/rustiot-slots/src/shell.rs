//! The boot policy on a real device: lock, ledger, loader, and what this boot is.
//!
//! Holds the lock while it lives, so keep it for a moment only, and never across a call to RAUC, whose backend needs
//! the lock too. Called by `rustiot-init` ([`SlotShell::for_boot`]) and everything else ([`SlotShell::open`]).

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    thread,
    time::Duration,
};

use rustiot_boot::{Effect, Event, Record, Slot};
use rustiot_durable::{Dir, Ledger};
use rustiot_loader::Loader;

use crate::{
    Applied, Error, Memory, Paths,
    core::{Core, describe, is_booting},
};

/// Name of the ledger in its directory.
pub(crate) const LEDGER: &str = "ledger";
/// How long another holder of the lock is waited for: far longer than a store and the loader take.
const LOCK_TRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The policy with its memory and its hands.
pub struct SlotShell {
    core: Core<Dir>,
    paths: Paths,
    /// Released when dropped.
    _lock: File,
}

impl SlotShell {
    /// For `rustiot-init`, before this boot is known: `state_mounted` says whether the state partition is at
    /// `paths.ledger`; `slot` is the running one. Without a ledger the loader's default is believed. Without state
    /// everything works, but nothing is remembered. Apply [`Event::Booted`] next.
    ///
    /// # Errors
    /// [`Error`] when not even that is possible.
    pub fn for_boot(
        paths: Paths,
        loader: Box<dyn Loader>,
        slot: Slot,
        state_mounted: bool,
    ) -> Result<SlotShell, Error> {
        let mut shell = SlotShell::load(paths, loader, Some(slot), state_mounted)?;
        if state_mounted {
            shell.create_directory()?;
            shell.core.memory = Memory::Durable;
        }
        Ok(shell)
    }

    /// For all others, once `rustiot-init` has run. Puts the loader right if a power cut left it behind the record.
    /// Without a ledger, [`SlotShell::record`] tells what little is known, and every event is refused with
    /// [`Error::NoLedger`] until [`SlotShell::ensure_ledger`] has made one.
    ///
    /// # Errors
    /// [`Error::Busy`] when the lock is not to be had; [`Error::Machine`] when the kernel's boot id cannot be read.
    pub fn open(paths: Paths, loader: Box<dyn Loader>) -> Result<SlotShell, Error> {
        let mut unreadable = None;
        let report = paths.read_report().unwrap_or_else(|error| {
            unreadable = Some(describe(&error));
            None
        });
        let slot = report.as_ref().map(|report| report.slot);
        let mut shell = SlotShell::load(paths, loader, slot, true)?;
        shell.core.notes.extend(unreadable);
        if shell.core.memory == Memory::Volatile {
            if let Some(report) = report {
                // In memory only: what runs is known even so.
                let (record, _) = rustiot_boot::step(&shell.core.record, report.event())?;
                shell.core.record = record;
            }
        } else if shell.knows_this_boot()?
            && let Err(error) = shell.core.reconcile()
        {
            shell.core.notes.push(describe(&error));
        }
        Ok(shell)
    }

    fn load(
        paths: Paths,
        loader: Box<dyn Loader>,
        slot: Option<Slot>,
        state_mounted: bool,
    ) -> Result<SlotShell, Error> {
        let lock = lock(&paths)?;
        // Without state the directory would be one of the initramfs.
        let ledger = state_mounted.then(|| Ledger::at(&paths.ledger, LEDGER));
        let core = Core::load(ledger, loader, slot);
        Ok(SlotShell { core, paths, _lock: lock })
    }

    fn create_directory(&self) -> Result<(), Error> {
        Dir::new(&self.paths.ledger)
            .create()
            .map_err(|source| Error::Machine { path: self.paths.ledger.display().to_string(), source })
    }

    fn knows_this_boot(&self) -> Result<bool, Error> {
        let id = self.paths.read_boot_id()?;
        Ok(self.core.record.last_boot().is_some_and(|boot| boot.boot_id == id))
    }

    /// What is remembered, as of the last event.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.core.record
    }

    /// Whether what happens is remembered.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.core.memory
    }

    /// What was wrong with ledger or loader and stopped nothing, for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.core.notes
    }

    /// Tells what happened. When this returns, the record is durable and the loader has been told.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::NoLedger`]: nothing changed. [`Error::Ledger`]: nothing changed.
    /// [`Error::Loader`]: the record is durable; the loader is tried again at the next opening. In a boot under way
    /// (`Booted`, `RootUnusable`, `Retry`) that is a [note](SlotShell::notes) instead: the decision must be obeyed.
    pub fn apply(&mut self, event: Event) -> Result<Applied, Error> {
        if self.core.memory == Memory::Volatile && !is_booting(&event) {
            return Err(Error::NoLedger);
        }
        self.core.apply(event)
    }

    /// For provisioning, once the state partition is mounted: makes the ledger if there is none, and enters this boot
    /// if `rustiot-init` could not (the state partition was repaired after it ran). The effects are those of
    /// [`Event::Booted`], as if they came from init; obey a `Reboot`. Nothing to do is no error.
    ///
    /// # Errors
    /// [`Error::Machine`] when `rustiot-init` left no report of this boot; else as [`SlotShell::apply`].
    pub fn ensure_ledger(&mut self) -> Result<Vec<Effect>, Error> {
        if self.core.memory == Memory::Durable && self.knows_this_boot()? {
            return Ok(Vec::new());
        }
        let report = self.paths.read_report()?.ok_or_else(|| Error::Machine {
            path: self.paths.report.display().to_string(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        if self.core.memory == Memory::Durable {
            return Ok(self.core.apply(report.event())?.effects);
        }
        self.create_directory()?;
        self.core.memory = Memory::Durable;
        let record = self.core.record.clone();
        self.core.remember(record).inspect_err(|_| self.core.memory = Memory::Volatile)?;
        if let Err(error) = self.core.reconcile() {
            self.core.notes.push(describe(&error));
        }
        Ok(Vec::new())
    }
}

fn lock(paths: &Paths) -> Result<File, Error> {
    let fail = |source| Error::Machine { path: paths.lock.display().to_string(), source };
    if let Some(parent) = paths.lock.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&paths.lock).map_err(fail)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
    }
    Err(Error::Busy { path: paths.lock.display().to_string() })
}

#[cfg(test)]
mod tests {
    use rustiot_boot::{BootKind, Phase, Release, ResetReason};

    use super::*;
    use crate::testing::Device;

    #[test]
    fn init_makes_the_ledger_on_a_mounted_state() {
        let mut device = Device::new();
        assert_eq!(device.boot(ResetReason::Unknown), [Effect::Continue(BootKind::Normal)]);
        let shell = device.open();
        assert_eq!((shell.memory(), shell.notes().len()), (Memory::Durable, 0));
        assert_eq!(shell.record().boots.len(), 1);
    }

    #[test]
    fn provisioning_makes_it_when_init_could_not() {
        let mut device = Device::new();
        assert_eq!(device.boot_without_state(), [Effect::Continue(BootKind::Normal)]);
        assert!(fs::read_dir(device.root().join("state")).unwrap().next().is_none(), "nothing was written");
        let gate = || Event::GatePassed { boot_id: device.boot_id() };
        assert!(matches!(device.tell(gate()), Err(Error::NoLedger)));
        assert_eq!(device.open().record().last_boot().map(|boot| boot.slot), Some(Slot::A));

        assert_eq!(device.open().ensure_ledger().unwrap(), []);
        assert_eq!(device.open().ensure_ledger().unwrap(), [], "again does nothing");
        assert_eq!(device.open().record().boots.len(), 1);
        device.tell(gate()).unwrap();
    }

    #[test]
    fn provisioning_enters_a_boot_that_init_could_not() {
        let mut device = Device::new();
        device.boot(ResetReason::Unknown);
        device.prove();
        // The state partition could not be mounted in the initramfs and is repaired later.
        device.boot_without_state();
        assert!(matches!(
            device.tell(Event::GatePassed { boot_id: device.boot_id() }),
            Err(Error::Refused(_))
        ));
        assert_eq!(device.open().ensure_ledger().unwrap(), [Effect::Continue(BootKind::Normal)]);
        assert_eq!(device.open().record().boots.len(), 2);
        device.prove();
    }

    #[test]
    fn a_loader_left_behind_by_a_power_cut_is_put_right() {
        let mut device = Device::new();
        device.boot(ResetReason::Unknown);
        device.prove();
        let release = Release { version: "2.0.0".into(), manifest_hash: "hash-2".into() };
        device.tell(Event::Announce { id: "tx".into(), release, force: false }).unwrap();
        device.tell(Event::WriteStarted { slot: Slot::B }).unwrap();
        device.tell(Event::WriteFinished { ok: true }).unwrap();
        device.tell(Event::Activate { slot: Slot::B }).unwrap();
        device.loader().clear_next().unwrap();
        assert!(matches!(device.open().record().phase, Phase::Armed(_)));
        assert_eq!(device.loader().next_slot().unwrap(), Some(Slot::B));
    }

    #[test]
    fn a_loader_that_fails_is_noted_and_does_not_hide_the_ledger() {
        let mut device = Device::new();
        device.boot(ResetReason::Unknown);
        fs::remove_file(device.root().join("dev/uboot-env")).unwrap();
        let mut shell = device.open();
        assert_eq!(shell.notes().len(), 1, "{:?}", shell.notes());
        shell.apply(Event::GatePassed { boot_id: device.boot_id() }).unwrap();
        assert!(shell.record().last_boot().unwrap().healthy);
        drop(shell);
        let mut shell = SlotShell::for_boot(device.paths(), device.loader(), Slot::A, true).unwrap();
        let event = Event::Booted {
            slot: Slot::A,
            boot_id: "next".into(),
            reset: ResetReason::Clean,
            pstore_tail: vec![],
        };
        assert_eq!(shell.apply(event).unwrap().effects, [Effect::Continue(BootKind::Normal)]);
        assert_eq!(shell.notes().len(), 2, "{:?}", shell.notes());
    }

    #[test]
    fn a_second_holder_waits_for_the_first() {
        let mut device = Device::new();
        device.boot(ResetReason::Unknown);
        let first = device.open();
        let paths = device.paths();
        let held = OpenOptions::new().write(true).open(&paths.lock).unwrap();
        assert!(matches!(held.try_lock(), Err(TryLockError::WouldBlock)));
        drop(first);
        assert!(held.try_lock().is_ok());
    }

    #[test]
    fn a_report_of_another_boot_is_none() {
        let mut device = Device::new();
        device.boot(ResetReason::Unknown);
        let report = r#"{"slot":"b","boot_id":"long ago"}"#;
        rustiot_durable::atomic_write(&device.paths().report, report.as_bytes()).unwrap();
        assert_eq!(device.paths().read_report().unwrap(), None);
        rustiot_durable::atomic_write(&device.paths().report, b"{").unwrap();
        assert!(device.paths().read_report().is_err());
        // With a ledger that is no reason to stop; without one nothing is known of this boot.
        assert_eq!(device.open().notes().len(), 1);
        device.prove();
        std::fs::remove_dir_all(device.paths().ledger).unwrap();
        assert!(matches!(device.open().ensure_ledger(), Err(Error::Machine { .. })));
    }
}
