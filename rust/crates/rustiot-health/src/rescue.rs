//! A device in rescue that nobody visits: after the policy's pause the slots get another chance.
//!
//! Asked every few minutes by `rustiot-rescue-retry.timer`, which only `rustiot-rescue.target` starts. Does nothing
//! while an update is under way. In the initramfs `rustiot-init` does the same.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustiot_boot::{BootKind, Event, Phase, Record};
use rustiot_slots::{Paths, read_record};

use crate::record;

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// This boot is no rescue.
    NotInRescue,
    /// An update is being installed: it is the better way out.
    Updating,
    /// Not before so long.
    In(Duration),
    /// Now.
    Now,
}

fn due(record: &Record, up: Duration) -> Due {
    if !record.last_boot().is_some_and(|boot| boot.kind == BootKind::Rescue) {
        return Due::NotInRescue;
    }
    let left = Duration::from_secs(record.rescue_pause_s()).saturating_sub(up);
    match &record.phase {
        Phase::Announced(_) | Phase::Writing(_) => Due::Updating,
        _ if !left.is_zero() => Due::In(left),
        _ => Due::Now,
    }
}

/// Gives the slots another chance when it is time, by a reboot in order.
///
/// # Errors
/// There is no ledger, it cannot be written, or systemd does not reboot.
pub fn retry(up: Duration) -> anyhow::Result<()> {
    let read = read_record(&Paths::default().ledger);
    let record = read.record.with_context(|| format!("no boot ledger: {}", read.complaints.join(", ")))?;
    match due(&record, up) {
        Due::NotInRescue => eprintln!("rustiot-health: not in rescue"),
        Due::Updating => eprintln!("rustiot-health: an update is under way; rescue goes on"),
        Due::In(left) => eprintln!("rustiot-health: the slots get another chance in {} s", left.as_secs()),
        Due::Now => {
            record::tell(Event::Retry)?;
            let status = Command::new("systemctl").args(["--no-block", "reboot"]).status()?;
            ensure!(status.success(), "systemctl reboot ended with {status}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustiot_boot::{BootEntry, Release, ResetReason, Slot, Transaction};

    fn booted(kind: BootKind) -> Record {
        let mut record = Record::fresh(Slot::A);
        record.boots.push(BootEntry {
            number: 1,
            boot_id: "now".into(),
            slot: Slot::A,
            kind,
            reset: ResetReason::Verity,
            pstore_tail: Vec::new(),
            healthy: false,
            stable: false,
            clean: false,
        });
        record
    }

    #[test]
    fn the_slots_get_another_chance_after_the_pause_and_not_before() {
        let record = booted(BootKind::Rescue);
        let pause = Duration::from_secs(record.rescue_pause_s());
        assert_eq!(due(&record, Duration::ZERO), Due::In(pause));
        assert_eq!(due(&record, pause - Duration::from_secs(1)), Due::In(Duration::from_secs(1)));
        assert_eq!(due(&record, pause), Due::Now);
    }

    /// Rescue starts the timer, the timer its service, and the service asks what this program knows.
    #[test]
    fn the_units_lead_here() {
        let units = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../../conf/rootfs/usr/lib/systemd/system");
        let read = |name: &str| std::fs::read_to_string(units.join(name)).unwrap();
        let target = read("rustiot-rescue.target");
        assert!(target.lines().any(|line| line == "Wants=rustiot-rescue-retry.timer"), "{target}");
        let timer = read("rustiot-rescue-retry.timer");
        assert!(timer.contains("\nOnBootSec=") && timer.contains("\nOnUnitActiveSec="), "{timer}");
        let service = read("rustiot-rescue-retry.service");
        let start = service
            .lines()
            .find_map(|l| l.strip_prefix("ExecStart=/usr/lib/rustiot/rustiot-health "))
            .unwrap();
        assert_eq!(crate::parse(&[start.to_owned()]), Some(crate::Task::RetryRescue));
    }

    #[test]
    fn an_update_is_not_disturbed_and_other_boots_are_left_alone() {
        let long = Duration::from_secs(1 << 20);
        assert_eq!(due(&booted(BootKind::Normal), long), Due::NotInRescue);
        let mut record = booted(BootKind::Rescue);
        let release = Release { version: "1.0.0".into(), manifest_hash: "hash".into() };
        let transaction = Transaction { id: "tx".into(), release, slot: Slot::B, attempts: 0 };
        for (phase, expected) in [
            (Phase::Announced(transaction.clone()), Due::Updating),
            (Phase::Writing(transaction.clone()), Due::Updating),
            (Phase::Ready(transaction), Due::Now),
        ] {
            record.phase = phase;
            assert_eq!(due(&record, long), expected);
        }
    }
}
