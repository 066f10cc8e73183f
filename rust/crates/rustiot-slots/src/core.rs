//! Step, persist, run the loader's effects: the part that a power cut may hit anywhere.
//!
//! Order: the new record is durable before the loader is touched. A cut in between leaves a record that says what the
//! loader must hold, and [`Core::reconcile`] puts that right at the next start. Never decides. Called by
//! [`crate::SlotShell`]; generic over the medium so that tests can cut the power.

use rustiot_boot::{Effect, Event, Record, Slot, step};
use rustiot_durable::{Ledger, Storage};
use rustiot_loader::Loader;

use crate::{Error, parse_record};

/// Whether what happens is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// In the ledger.
    Durable,
    /// Only in this process: the state partition is not there (yet).
    Volatile,
}

/// What came of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What the caller must do, in order: `Continue`, `Reboot`, `Rescue`, `Outcome`, `Switched`. The loader's effects
    /// have been run.
    pub effects: Vec<Effect>,
    /// Something was not as it should have been before, and was put right in the loader: its default or a boot entry.
    pub default_changed: bool,
}

pub(crate) struct Core<S> {
    ledger: Option<Ledger<S>>,
    pub(crate) memory: Memory,
    pub(crate) record: Record,
    pub(crate) loader: Box<dyn Loader>,
    pub(crate) notes: Vec<String>,
}

impl<S: Storage> Core<S> {
    /// Loads the record. Without one (first boot, state destroyed, no state partition and so no `ledger`) the loader is
    /// believed; `fallback` is the slot to assume when it says nothing either.
    pub(crate) fn load(
        ledger: Option<Ledger<S>>,
        mut loader: Box<dyn Loader>,
        fallback: Option<Slot>,
    ) -> Core<S> {
        let mut notes = Vec::new();
        let found = ledger.as_ref().and_then(|ledger| {
            let loaded = ledger.load();
            notes.extend(loaded.complaints());
            if loaded.newest.is_none() && !loaded.never_written() {
                notes.push("both copies of the boot ledger are lost".to_owned());
            }
            parse_record(&loaded.newest?.payload)
                .inspect_err(|error| notes.push(format!("the boot ledger cannot be understood: {error}")))
                .ok()
        });
        let memory = if found.is_some() { Memory::Durable } else { Memory::Volatile };
        let record = found.unwrap_or_else(|| {
            let believed = loader.default_slot().unwrap_or_else(|error| {
                notes.push(describe(&error));
                None
            });
            Record::fresh(believed.or(fallback).unwrap_or(Slot::A))
        });
        Core { ledger, memory, record, loader, notes }
    }

    /// One event: the record is durable and the loader is told when this returns. In a boot under way the decision
    /// counts more than a loader that cannot be told, which becomes a note; else that is an error.
    pub(crate) fn apply(&mut self, event: Event) -> Result<Applied, Error> {
        let booting = is_booting(&event);
        let (next, effects) = step(&self.record, event)?;
        if next != self.record {
            self.remember(next)?;
        }
        let mut applied = Applied { effects: Vec::new(), default_changed: false };
        for effect in effects {
            let told = match effect {
                Effect::SetDefault(slot) => {
                    self.loader.set_default(slot).map(|changed| applied.default_changed |= changed)
                }
                Effect::SetNext(slot) => self.loader.set_next(slot).map(drop),
                Effect::ClearNext => self.loader.clear_next().map(drop),
                other => {
                    applied.effects.push(other);
                    Ok(())
                }
            };
            match told {
                Err(error) if booting => self.notes.push(describe(&error)),
                told => told?,
            }
        }
        Ok(applied)
    }

    /// Puts `record` in force, durably if there is a ledger.
    pub(crate) fn remember(&mut self, record: Record) -> Result<(), Error> {
        if let (Memory::Durable, Some(ledger)) = (self.memory, &self.ledger) {
            let bytes = serde_json::to_vec(&record).map_err(Error::Encode)?;
            ledger.store(&bytes)?;
        }
        self.record = record;
        Ok(())
    }

    /// Brings the loader to where the record says it must be: what a power cut between persisting and the effects left
    /// undone. Only right after this boot is in the record; before that the one-shot may have been spent rightly.
    pub(crate) fn reconcile(&mut self) -> Result<(), Error> {
        let want = self.record.selection();
        if self.loader.default_slot()? != Some(want.default) {
            self.loader.set_default(want.default)?;
        }
        match want.next {
            Some(slot) => drop(self.loader.set_next(slot)?),
            None => drop(self.loader.clear_next()?),
        }
        Ok(())
    }
}

/// What happens before the real init runs.
pub(crate) fn is_booting(event: &Event) -> bool {
    matches!(event, Event::Booted { .. } | Event::RootUnusable { .. } | Event::Retry)
}

/// An error and its causes on one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
