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
    core::{Core, describe},
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
    /// [`Error::Busy`] when the lock is not to be had; [`Error::Machine`] when the boot's report cannot be used.
    pub fn open(paths: Paths, loader: Box<dyn Loader>) -> Result<SlotShell, Error> {
        let report = paths.read_report()?;
        let slot = report.as_ref().map(|report| report.slot);
        let mut shell = SlotShell::load(paths, loader, slot, true)?;
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

    /// What was wrong with ledger or loader when it was opened, for people. Nothing in it stops anything.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.core.notes
    }

    /// Tells what happened. When this returns, the record is durable and the loader has been told.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::NoLedger`]: nothing changed. [`Error::Ledger`]: nothing changed.
    /// [`Error::Loader`]: the record is durable; the loader is tried again at the next opening.
    pub fn apply(&mut self, event: Event) -> Result<Applied, Error> {
        let booting = matches!(event, Event::Booted { .. } | Event::RootUnusable { .. } | Event::Retry);
        if self.core.memory == Memory::Volatile && !booting {
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
