//! The gate in front of `boot-complete.target`: checks, settle, soak, commit; and the end of a trial that fails.
//!
//! The gate's policy is pure ([`gate`]); the ledger is `rustiot-slots`', committing is RAUC's. Changes nothing on the
//! device but its probe files and `/state/health`. Runs as `rustiot-health.service` through the multi-call binary.
//! Contract: `docs/contracts/health.md`.

mod background;
pub mod check;
pub mod checks;
pub mod gate;
mod looks;
mod rauc;
mod record;
mod rescue;
mod service;
pub mod status;
mod systemd;
#[cfg(test)]
mod testing;

use std::path::Path;
use std::process::Command;

use rustiot_boot::Event;

pub use status::Status;

const USAGE: &str = "usage: rustiot-health [record-failure REASON | record-shutdown | retry-rescue]";

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    /// The service.
    Serve,
    /// The watchdog reboots for this reason.
    RecordFailure(String),
    /// systemd shuts down.
    RecordShutdown,
    /// The device may have been in rescue for long enough.
    RetryRescue,
}

fn parse(args: &[String]) -> Option<Task> {
    match args {
        [] => Some(Task::Serve),
        [verb, reason] if verb == "record-failure" => Some(Task::RecordFailure(reason.clone())),
        [verb] if verb == "record-shutdown" => Some(Task::RecordShutdown),
        [verb] if verb == "retry-rescue" => Some(Task::RetryRescue),
        _ => None,
    }
}

/// The program's `main` with the arguments after its name: the service without any, `record-failure REASON` for the
/// watchdog, `record-shutdown` for the shutdown unit, `retry-rescue` for the timer of rescue. Returns the exit code.
#[must_use]
pub fn main(args: &[String]) -> u8 {
    let result = match parse(args) {
        None => {
            eprintln!("{USAGE}");
            return 2;
        }
        Some(Task::Serve) => serve(),
        Some(Task::RecordFailure(reason)) => {
            record::failure(record::boot_id(), reason).map(|_| ()).map_err(Into::into)
        }
        Some(Task::RecordShutdown) => record_shutdown(),
        Some(Task::RetryRescue) => rescue::retry(service::uptime()),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rustiot-health: {error:#}");
            1
        }
    }
}

fn serve() -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    let result = runtime.block_on(service::run());
    // A probe may hang on a dead disk for ever; nobody waits for it.
    runtime.shutdown_background();
    result
}

/// Tells the watchdog that silence is to be expected and enters the orderly shutdown, if there is one: the unit that
/// calls this may be stopped by hand, too.
fn record_shutdown() -> anyhow::Result<()> {
    let output = Command::new("systemctl").arg("is-system-running").output()?;
    if output.stdout.trim_ascii() != b"stopping" {
        eprintln!("rustiot-health: the system does not shut down; nothing is recorded");
        return Ok(());
    }
    if let Err(error) = rustiot_liveness::stopping(Path::new(rustiot_liveness::SOCKET)) {
        eprintln!("rustiot-health: the watchdog does not listen: {error}");
    }
    record::tell(Event::ShuttingDown { boot_id: record::boot_id() })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let args = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(parse(&[]), Some(Task::Serve));
        assert_eq!(parse(&args(&["record-failure", "why"])), Some(Task::RecordFailure("why".into())));
        assert_eq!(parse(&args(&["record-shutdown"])), Some(Task::RecordShutdown));
        assert_eq!(parse(&args(&["retry-rescue"])), Some(Task::RetryRescue));
        for wrong in [&["record-failure"][..], &["record-shutdown", "x"], &["--help"]] {
            assert_eq!(parse(&args(wrong)), None);
        }
        assert_eq!(main(&args(&["--help"])), 2);
    }
}
