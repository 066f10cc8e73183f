//! First boot and every boot: file systems, identity, the owner's configuration.
//!
//! Idempotent steps, each of which looks at the thing itself; power may go between any two and in the middle of any
//! one. Never updates the system, never talks to the network, never writes to the `config` partition. Called by
//! `rustiot-provision.service` and `rustiot-provision-late.service` through the multi-call binary, and by
//! `rustiot provision apply|status`. Contract: `docs/contracts/provision.md`.

mod apply;
pub mod gpt;
mod identity;
mod journal;
pub mod linux;
pub mod os;
mod run;
pub mod status;
mod storage;
pub mod superblock;
mod sys;
#[cfg(test)]
mod tests;

pub use rustiot_config::{Message, Origin, Place, Severity};
pub use status::{Outcome, STATUS, Status, Step};

use std::path::Path;

/// The early part, before the network and before the journal is kept. Returns what it did; it has been written to
/// [`STATUS`] as well. Needs root.
pub fn run_early() -> Status {
    run::early(&linux::Linux)
}

/// The late part, when the system is up: lets `data` fill its partition. Needs root.
pub fn run_late() -> Status {
    run::late(&linux::Linux)
}

/// Reads the owner's files again and tells who uses them. Needs root.
pub fn apply() -> Status {
    run::reapply(&linux::Linux)
}

/// What the runs of this start have left; `None` when there was none yet, or its file is damaged.
#[must_use]
pub fn status() -> Option<Status> {
    let bytes = os::Os::read(&linux::Linux, Path::new(STATUS), 1 << 20).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

/// The command line of `rustiot-provision`: `early`, `late`, `apply` or `status [--json]`, without the program's
/// name. Returns the exit code: 0 ok, 1 a step failed, 2 usage, 3 not provisioned yet.
///
/// A start must go on whatever happens here, so the units ignore the code; people and scripts do not.
pub fn main(arguments: impl IntoIterator<Item = String>) -> u8 {
    let arguments: Vec<String> = arguments.into_iter().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let status = match arguments.as_slice() {
        ["early"] => Some(run_early()),
        ["late"] => Some(run_late()),
        ["apply"] => Some(apply()),
        ["status"] | ["status", "--json"] => status(),
        _ => {
            eprintln!("usage: rustiot-provision early | late | apply | status [--json]");
            return 2;
        }
    };
    let Some(status) = status else {
        eprintln!("this start has not been provisioned yet (there is no {STATUS})");
        return 3;
    };
    match arguments.as_slice() {
        [_, "--json"] => println!("{}", serde_json::to_string_pretty(&status).unwrap_or_default()),
        ["early" | "late"] => report(&status),
        _ => print!("{}", status.text()),
    }
    // `status` itself succeeds by telling.
    let counts = |step: &&Step| status.ran.contains(&step.name);
    u8::from(status.steps.iter().filter(counts).any(|step| step.outcome == Outcome::Failed))
}

/// For the journal and the console, with the priorities of sd-daemon(3): one line always, then what is not as it
/// was.
fn report(status: &Status) {
    let ran: Vec<&Step> = status.steps.iter().filter(|step| status.ran.contains(&step.name)).collect();
    let ms = ran.iter().fold(0_u64, |sum, step| sum.saturating_add(step.ms));
    let changed = ran.iter().filter(|step| step.outcome != Outcome::Unchanged).count();
    eprintln!("<6>{}: {} steps in {ms} ms, {changed} with something to say", status.hostname, ran.len());
    for Step { name, outcome, detail, .. } in
        status.steps.iter().filter(|step| status.ran.contains(&step.name))
    {
        match outcome {
            Outcome::Unchanged => {}
            Outcome::Done => eprintln!("<5>{name}: {detail}"),
            Outcome::Degraded => eprintln!("<4>{name}: {detail}"),
            Outcome::Failed => eprintln!("<3>{name}: {detail}"),
        }
    }
    if status.ran.iter().any(|name| name == "configuration") {
        for message in &status.messages {
            eprintln!("<4>{message}");
        }
    }
}
