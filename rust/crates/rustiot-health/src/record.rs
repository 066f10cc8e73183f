//! What health enters into the boot ledger, and the tail of the log that goes with a failure.
//!
//! Everything here blocks (locks, fsync, a program): never call it from the service's loop but through
//! `spawn_blocking`. Called by [`crate::service`] and by the entry points for the watchdog and the shutdown unit.

use std::path::Path;
use std::process::{Command, Stdio};

use rustiot_board::{Board, LoaderKind};
use rustiot_loader::LoaderConfig;
use rustiot_slots::{Applied, Event, Paths, SlotShell};

/// The board file of the image.
const BOARD: &str = "/usr/lib/rustiot/board.toml";
/// Lines of the log that are kept.
const LOG_LINES: &str = "40";
/// Longest line that is kept, in characters.
const MAX_LINE: usize = 300;

/// Why nothing was entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The board file is not there or not valid, so the boot loader's kind is not known.
    #[error("cannot tell the boot loader of this board")]
    Board(#[from] rustiot_board::Error),
    /// The ledger.
    #[error(transparent)]
    Slots(#[from] rustiot_slots::Error),
}

/// Applies one event.
///
/// # Errors
/// [`Error`]; nothing changed, unless only the loader could not be told.
pub fn tell(event: Event) -> Result<Applied, Error> {
    let kind = match Board::load(Path::new(BOARD))?.boot.loader {
        LoaderKind::Uefi => rustiot_loader::LoaderKind::Uefi,
        LoaderKind::Uboot => rustiot_loader::LoaderKind::Uboot,
        LoaderKind::Tryboot => rustiot_loader::LoaderKind::Tryboot,
    };
    let mut shell = SlotShell::open(Paths::default(), LoaderConfig::on_device(kind).open())?;
    Ok(shell.apply(event)?)
}

/// This boot failed for `reason`: entered with the tail of its log.
///
/// # Errors
/// As [`tell`].
pub fn failure(boot_id: String, reason: String) -> Result<Applied, Error> {
    tell(Event::GateFailed { boot_id, reason, log: log_tail() })
}

/// The kernel's id of this boot; empty if the kernel does not say, which no ledger knows.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string(Paths::default().boot_id).map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The last lines of this boot's journal; says so if there are none to be had.
#[must_use]
pub fn log_tail() -> Vec<String> {
    let output = Command::new("timeout")
        .args(["5", "journalctl", "--boot", "--no-pager", "--quiet", "--output=cat", "--lines", LOG_LINES])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match output {
        Ok(output) if !output.stdout.is_empty() => lines(&output.stdout),
        _ => vec!["the journal did not answer".into()],
    }
}

fn lines(bytes: &[u8]) -> Vec<String> {
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).take(MAX_LINE).collect();
    String::from_utf8_lossy(bytes).lines().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_clean_and_short() {
        let long = "x".repeat(1000);
        let text = format!("a\u{1b}[31mred\n\n{long}\n\u{0}\n");
        let lines = lines(&[text.as_bytes(), b"\xff\n"].concat());
        assert_eq!(lines[0], "a[31mred");
        assert_eq!((lines[2].len(), lines[3].as_str(), lines[4].as_str()), (MAX_LINE, "", "\u{fffd}"));
    }
}
