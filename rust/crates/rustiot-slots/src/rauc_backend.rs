//! RAUC's `custom` boot backend: the only way in which RAUC touches the slots.
//!
//! Protocol (RAUC manual, "Custom Bootloader Backend Interface"): `get-primary`, `get-current`, `get-state NAME`,
//! `set-primary NAME`, `set-state NAME good|bad`; bootnames `A` and `B`; the answer on standard output; 0 if all is
//! well, anything else makes RAUC fail the operation. Never believes RAUC that a slot is good: a commit needs the
//! policy's consent. Installed as `/usr/lib/rustiot/rauc-backend`; started by RAUC.

use std::io::Write;

use rustiot_boot::{Event, Phase, Slot};
use rustiot_loader::Loader;

use crate::{Error, Paths, SlotShell, core::describe};

/// Usage error, by the house's exit codes.
const USAGE: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    GetPrimary,
    GetCurrent,
    GetState(Slot),
    SetPrimary(Slot),
    SetState(Slot, bool),
}

fn parse(args: &[String]) -> Option<Command> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Some(match args.as_slice() {
        ["get-primary"] => Command::GetPrimary,
        ["get-current"] => Command::GetCurrent,
        ["get-state", name] => Command::GetState(bootname(name)?),
        ["set-primary", name] => Command::SetPrimary(bootname(name)?),
        ["set-state", name, "good"] => Command::SetState(bootname(name)?, true),
        ["set-state", name, "bad"] => Command::SetState(bootname(name)?, false),
        _ => return None,
    })
}

fn bootname(name: &str) -> Option<Slot> {
    Slot::ALL.into_iter().find(|slot| slot.bootname() == name)
}

/// Runs the backend with the arguments after the program's name; returns its exit code. Writes the answer to standard
/// output and what went wrong to standard error (RAUC passes it on to the journal).
pub fn main(args: &[String], paths: Paths, loader: Box<dyn Loader>) -> u8 {
    let Some(command) = parse(args) else {
        eprintln!(
            "rauc-backend: expected get-primary, get-current, get-state NAME, set-primary NAME or \
             set-state NAME good|bad, with NAME `A` or `B`"
        );
        return USAGE;
    };
    match run(command, paths, loader) {
        Ok(None) => 0,
        Ok(Some(answer)) => match writeln!(std::io::stdout(), "{answer}") {
            Ok(()) => 0,
            Err(_) => 1,
        },
        Err(error) => {
            eprintln!("rauc-backend: {}", describe(&error));
            error.exit_code()
        }
    }
}

fn run(command: Command, paths: Paths, loader: Box<dyn Loader>) -> Result<Option<&'static str>, Error> {
    let boot_id = paths.read_boot_id()?;
    let mut shell = SlotShell::open(paths, loader)?;
    let running = shell.record().last_boot().map(|boot| boot.slot).ok_or(Error::NoLedger)?;
    let event = match command {
        Command::GetCurrent => return Ok(Some(running.bootname())),
        Command::GetPrimary => {
            let primary = match &shell.record().phase {
                Phase::Armed(tx) => tx.slot,
                _ => shell.record().committed,
            };
            return Ok(Some(primary.bootname()));
        }
        Command::GetState(slot) => {
            return Ok(Some(if shell.record().slot(slot).bootable() { "good" } else { "bad" }));
        }
        Command::SetPrimary(slot) if slot == running => Event::Disarm,
        Command::SetPrimary(slot) => Event::Activate { slot },
        Command::SetState(slot, true) if slot == running => Event::Commit { boot_id },
        Command::SetState(slot, true) => {
            return if shell.record().slot(slot).bootable() {
                Ok(None)
            } else {
                Err(rustiot_boot::Refused(format!("slot {slot} becomes good by a trial only")).into())
            };
        }
        Command::SetState(slot, false) if slot == running => {
            Event::GateFailed { boot_id, reason: "marked bad through RAUC".to_owned(), log: Vec::new() }
        }
        Command::SetState(slot, false) => Event::WriteStarted { slot },
    };
    shell.apply(event)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use rustiot_boot::{Effect, Release, ResetReason};

    use super::*;
    use crate::testing::Device;

    /// What RAUC asks and what it gets; `Err` with the exit code.
    fn ask(device: &Device, args: &str) -> Result<Option<&'static str>, u8> {
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        let command = parse(&args).ok_or(USAGE)?;
        run(command, device.paths(), device.loader()).map_err(|error| error.exit_code())
    }

    fn announce(device: &Device) {
        let release = Release { version: "2.0.0".into(), manifest_hash: "hash-2".into() };
        device.tell(Event::Announce { id: "tx".into(), release, force: false }).unwrap();
    }

    /// An installation, a trial and a commit, in the order in which RAUC 1.13 and the services call.
    #[test]
    fn a_whole_update_as_rauc_sees_it() {
        let mut device = Device::new();
        device.boot(ResetReason::Unknown);
        assert_eq!(ask(&device, "get-current"), Ok(Some("A")));
        assert_eq!(ask(&device, "get-primary"), Ok(Some("A")));
        assert_eq!(ask(&device, "get-state A"), Ok(Some("good")));
        assert_eq!(ask(&device, "get-state B"), Ok(Some("good")));

        assert_eq!(ask(&device, "set-state B bad"), Err(3), "nobody announced a release");
        announce(&device);
        assert_eq!(ask(&device, "set-state A bad"), Ok(None), "no trial: noted, and nothing follows");
        assert_eq!(ask(&device, "set-state B bad"), Ok(None));
        assert_eq!(ask(&device, "get-state B"), Ok(Some("bad")));
        assert_eq!(ask(&device, "set-primary B"), Err(3), "it is half written");
        assert_eq!(ask(&device, "set-state B good"), Err(3), "and no word of RAUC makes it good");
        device.tell(Event::WriteFinished { ok: true }).unwrap();

        assert_eq!(ask(&device, "set-primary B"), Ok(None));
        assert_eq!(ask(&device, "get-primary"), Ok(Some("B")));
        assert_eq!(ask(&device, "set-primary A"), Ok(None));
        assert_eq!(ask(&device, "get-primary"), Ok(Some("A")));
        assert_eq!(ask(&device, "set-primary B"), Ok(None));

        device.boot(ResetReason::Clean);
        assert_eq!(ask(&device, "get-current"), Ok(Some("B")));
        assert_eq!(ask(&device, "get-primary"), Ok(Some("A")));
        assert_eq!(ask(&device, "set-state B good"), Err(3), "the gate has not passed");
        device.prove();
        assert_eq!(ask(&device, "set-primary B"), Err(3), "only a commit makes it the default");
        assert_eq!(ask(&device, "set-state B good"), Ok(None));
        assert_eq!(ask(&device, "set-state B good"), Ok(None), "again does no harm");
        assert_eq!(ask(&device, "get-primary"), Ok(Some("B")));
        assert_eq!(device.loader().default_slot().unwrap(), Some(Slot::B));
        assert_eq!(ask(&device, "set-state A good"), Ok(None));
    }

    #[test]
    fn marking_a_trial_bad_ends_it() {
        let mut device = Device::new();
        device.boot(ResetReason::Unknown);
        announce(&device);
        ask(&device, "set-state B bad").unwrap();
        device.tell(Event::WriteFinished { ok: true }).unwrap();
        ask(&device, "set-primary B").unwrap();
        device.boot(ResetReason::Clean);
        assert_eq!(ask(&device, "set-state B bad"), Ok(None));
        let effects = device.boot(ResetReason::Clean);
        assert!(
            matches!(&effects[..], [Effect::Outcome { result: Err(reason), .. }, _] if reason.contains("marked bad"))
        );
        assert_eq!(ask(&device, "get-current"), Ok(Some("A")));
        assert_eq!(ask(&device, "get-state B"), Ok(Some("bad")));
    }

    #[test]
    fn other_words_are_usage_errors() {
        let device = Device::new();
        for args in [
            "",
            "get-state",
            "get-state C",
            "get-state a",
            "set-state A",
            "set-state A fine",
            "get-primary A",
        ] {
            assert_eq!(ask(&device, args), Err(USAGE), "{args}");
        }
    }

    #[test]
    fn without_a_ledger_rauc_may_look_but_not_touch() {
        let mut device = Device::new();
        device.boot_without_state();
        assert_eq!(ask(&device, "get-current"), Ok(Some("A")));
        assert_eq!(ask(&device, "get-primary"), Ok(Some("A")));
        assert_eq!(ask(&device, "get-state B"), Ok(Some("good")));
        assert_eq!(ask(&device, "set-state B bad"), Err(3));
    }
}
