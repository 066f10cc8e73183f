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
