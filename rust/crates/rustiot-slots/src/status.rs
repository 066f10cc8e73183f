//! Reading without the lock and without changing anything: for status commands and other daemons.
//!
//! The ledger keeps two copies, so a reader beside a writer finds the record before or after, never half of one.

use std::path::Path;

use rustiot_boot::{BootEntry, BootKind, Phase, Record, Rejected, Slot, SlotState};
use rustiot_durable::Ledger;
use rustiot_loader::Loader;
use serde::Serialize;

use crate::{Paths, core::describe, shell::LEDGER};

/// Parses a record as the ledger keeps it. Total: any bytes may come.
///
/// # Errors
/// Where and why it is not a record.
pub fn parse_record(bytes: &[u8]) -> Result<Record, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// What the ledger holds.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    /// The newest record; `None` if there is none.
    pub record: Option<Record>,
    /// What is wrong with the ledger, for people.
    pub complaints: Vec<String>,
}

/// Reads the ledger in `directory` (`/state/boot`).
#[must_use]
pub fn read_record(directory: &Path) -> ReadRecord {
    let loaded = Ledger::at(directory, LEDGER).load();
    let mut complaints = loaded.complaints();
    let record = loaded.newest.and_then(|newest| {
        parse_record(&newest.payload).inspect_err(|error| complaints.push(error.to_string())).ok()
    });
    ReadRecord { record, complaints }
}

/// A slot, for `rustiot slots --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotStatus {
    /// Which.
    pub slot: Slot,
    /// This boot runs from it.
    pub running: bool,
    /// The default.
    pub committed: bool,
    /// Whether it may be booted, and what it holds.
    #[serde(flatten)]
    pub state: SlotState,
}

/// What the boot loader holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoaderStatus {
    /// Boots by default.
    pub default: Option<Slot>,
    /// Boots next, once.
    pub next: Option<Slot>,
    /// The firmware's own copies, where the board has two (docs/decisions/0034).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareStatus>,
}

/// Which copy of itself the firmware runs. Its letters have nothing to do with the slots'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FirmwareStatus {
    /// The copy that runs.
    pub chain: Slot,
    /// The copy that the next start moves to.
    pub next: Option<Slot>,
    /// How the last move ended, for people.
    pub last_move: Option<&'static str>,
}

/// All about the slots, for `rustiot slots --json`. Keys only ever get added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// There is a boot ledger.
    pub remembered: bool,
    /// The slot that runs.
    pub running: Option<Slot>,
    /// What this boot is for.
    pub kind: Option<BootKind>,
    /// This boot has passed its soak.
    pub stable: bool,
    /// Both slots.
    pub slots: Vec<SlotStatus>,
    /// Where the device stands between two releases.
    #[serde(flatten)]
    pub phase: Option<Phase>,
    /// Why neither slot is good.
    pub rescue: Option<String>,
    /// Failed boots of the committed slot since one was stable.
    pub late: u32,
    /// Lowest version that may be installed.
    pub floor: Option<String>,
    /// Known bad releases, newest last.
    pub rejected: Vec<Rejected>,
    /// Last boots, newest last.
    pub boots: Vec<BootEntry>,
    /// The boot loader's selector, where it could be read.
    pub loader: Option<LoaderStatus>,
    /// What is wrong, for people.
    pub complaints: Vec<String>,
}

/// Gathers the status. Never fails: what cannot be read is missing, and `complaints` says why.
pub fn status(paths: &Paths, loader: Option<&mut dyn Loader>) -> Status {
    let ReadRecord { record, mut complaints } = read_record(&paths.ledger);
    let report = paths.read_report().unwrap_or_else(|error| {
        complaints.push(describe(&error));
        None
    });
    let boot_id = paths.read_boot_id().ok();
    let this_boot = record
        .as_ref()
        .and_then(Record::last_boot)
        .filter(|boot| boot_id.as_ref() == Some(&boot.boot_id))
        .cloned();
    let running = this_boot.as_ref().map(|boot| boot.slot).or(report.map(|report| report.slot));
    let loader = loader.and_then(|loader| {
        let read = |loader: &mut dyn Loader| -> Result<LoaderStatus, rustiot_loader::Error> {
            let firmware = loader.firmware()?.map(|firmware| FirmwareStatus {
                chain: firmware.current,
                next: firmware.next,
                last_move: firmware.last_move,
            });
            Ok(LoaderStatus { default: loader.default_slot()?, next: loader.next_slot()?, firmware })
        };
        read(loader).inspect_err(|error| complaints.push(describe(error))).ok()
    });
    let slots = Slot::ALL.map(|slot| SlotStatus {
        slot,
        running: running == Some(slot),
        committed: record.as_ref().is_some_and(|record| record.committed == slot),
        state: record.as_ref().map_or(SlotState::Unknown, |record| record.slot(slot).clone()),
    });
    Status {
        remembered: record.is_some(),
        running,
        kind: this_boot.as_ref().map(|boot| boot.kind),
        stable: this_boot.is_some_and(|boot| boot.stable),
        slots: slots.into(),
        phase: record.as_ref().map(|record| record.phase.clone()),
        rescue: record.as_ref().and_then(|record| record.rescue.clone()),
        late: record.as_ref().map_or(0, |record| record.late),
        floor: record.as_ref().and_then(|record| record.floor.clone()),
        rejected: record.as_ref().map_or(Vec::new(), |record| record.rejected.clone()),
        boots: record.map_or(Vec::new(), |record| record.boots),
        loader,
        complaints,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustiot_boot::ResetReason;

    use super::*;
    use crate::testing::Device;

    #[test]
    fn the_status_is_read_without_lock_and_without_change() {
        let mut device = Device::new();
        device.boot(ResetReason::Unknown);
        let _held = device.open();
        let status = status(&device.paths(), Some(device.loader().as_mut()));
        assert_eq!((status.running, status.kind), (Some(Slot::A), Some(BootKind::Normal)));
        assert_eq!(status.loader, Some(LoaderStatus { default: Some(Slot::A), next: None, firmware: None }));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["phase"], "idle");
        assert_eq!(
            json["slots"][0],
            serde_json::json!({"slot":"a","running":true,"committed":true,"state":"unknown"})
        );
        assert_eq!(json["boots"][0]["reset"], "unknown");
    }

    #[test]
    fn what_is_missing_is_said_and_stops_nothing() {
        let device = Device::new();
        std::fs::remove_file(device.root().join("dev/uboot-env")).unwrap();
        std::fs::create_dir_all(&device.paths().ledger).unwrap();
        rustiot_durable::atomic_write(&device.paths().ledger.join("ledger.1"), b"rubbish").unwrap();
        let status = status(&device.paths(), Some(device.loader().as_mut()));
        assert!(!status.remembered);
        assert_eq!(status.complaints.len(), 2, "{:?}", status.complaints);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_refused(bytes: Vec<u8>) {
            let _ = parse_record(&bytes);
            let _ = crate::parse_boot_report(&bytes);
        }

        #[test]
        fn a_damaged_record_never_panics(at: prop::sample::Index, byte: u8) {
            let mut bytes = serde_json::to_vec(&Record::fresh(Slot::A)).unwrap();
            let index = at.index(bytes.len());
            bytes[index] = byte;
            let _ = parse_record(&bytes);
        }
    }
}
