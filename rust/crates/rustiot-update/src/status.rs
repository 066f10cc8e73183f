//! What the service says about itself: phase, progress, the transaction, the last refusal, the history.
//!
//! Pure types with one JSON form for the bus, the status file, the history file and the command line
//! (`docs/contracts/update-dbus.md`). They decide nothing.

use rustiot_boot::{Release, Slot};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Where an update stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing is under way.
    #[default]
    Idle,
    /// The bundle is looked at; nothing has been written.
    Checking,
    /// RAUC writes the other slot.
    Installing,
    /// An install was interrupted and starts over later.
    WaitingToRetry,
    /// Written and verified, held back until `Activate`.
    Installed,
    /// The loader is being told to try the new slot next.
    Activating,
    /// The next boot is the trial; waits for a reboot.
    Activated,
    /// Restarts in a moment.
    Rebooting,
    /// This boot is the trial.
    Trial,
    /// A trial ended without a verdict; it is tried again when the old slot has proved stable.
    WaitingToTryAgain,
    /// The committed slot stopped booting, this boot runs the other one.
    LateFallback,
}

impl Phase {
    /// The name on the bus and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Checking => "checking",
            Self::Installing => "installing",
            Self::WaitingToRetry => "waiting-to-retry",
            Self::Installed => "installed",
            Self::Activating => "activating",
            Self::Activated => "activated",
            Self::Rebooting => "rebooting",
            Self::Trial => "trial",
            Self::WaitingToTryAgain => "waiting-to-try-again",
            Self::LateFallback => "late-fallback",
        }
    }
}

/// How far the write has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// RAUC's own figure, 0 to 100, over all its steps.
    pub percent: u8,
    /// Bytes that reached the inactive slot's partitions, from the kernel's counters.
    pub bytes: u64,
    /// Bytes that will be written: the sizes of the images. 0 before the manifest is known.
    pub total: u64,
    /// RAUC's current step.
    pub step: String,
}

/// What to leave to a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// Nothing: activate, and restart as the configuration says.
    #[default]
    None,
    /// Install only.
    Activate,
    /// Install and activate, and do not restart.
    Reboot,
}

impl Hold {
    /// Reads the option's value.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::None),
            "activate" => Some(Self::Activate),
            "reboot" => Some(Self::Reboot),
            _ => None,
        }
    }
}

/// What somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Transaction id (UUID).
    pub id: String,
    /// Absolute path or HTTP(S) URL of the bundle.
    pub source: String,
    /// What to leave to a person.
    #[serde(default)]
    pub hold: Hold,
    /// Install a release although it failed here before, or is the running one.
    #[serde(default)]
    pub force: bool,
}

/// The transaction under way, as `/state/update/transaction.json` keeps it over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// What was asked for.
    #[serde(flatten)]
    pub request: Request,
    /// The release, once its manifest has been read.
    #[serde(default)]
    pub release: Option<Release>,
    /// The slot it goes to.
    #[serde(default)]
    pub slot: Option<Slot>,
    /// Unix time of the request, seconds, by the device's clock then.
    pub started_at: u64,
    /// Boot id of the request.
    pub started_boot: String,
    /// How often the install has been started.
    #[serde(default)]
    pub tries: u32,
    /// How often a download broke off without a power cut.
    #[serde(default)]
    pub broken_reads: u32,
    /// Boot id of the last start.
    #[serde(default)]
    pub tried_boot: Option<String>,
    /// Seconds that the successful install took.
    #[serde(default)]
    pub install_seconds: Option<u64>,
    /// Somebody called `Activate`, or nothing held it back: an interrupted trial may be repeated.
    #[serde(default)]
    pub approved: bool,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The release runs and is the default.
    Committed,
    /// The trial failed, the old release runs.
    FellBack,
    /// The install failed; nothing changed for the running system.
    Failed,
    /// Refused before anything was written.
    Refused,
    /// Taken back.
    Cancelled,
    /// No transaction: the committed slot stopped booting and the other one took over.
    LateFallback,
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Transaction id; empty for a late fallback.
    pub transaction: String,
    /// Where the bundle came from.
    pub source: String,
    /// The release, where it got so far.
    pub release: Option<Release>,
    /// The slot it was written to.
    pub slot: Option<Slot>,
    /// How it ended.
    pub result: Outcome,
    /// Why, unless it was committed.
    pub why: Option<Failure>,
    /// Tail of the failed boot's log, oldest line first.
    #[serde(default)]
    pub log: Vec<String>,
    /// Unix time of the request, seconds.
    pub started_at: u64,
    /// Unix time of the end, seconds.
    pub ended_at: u64,
    /// Boot id of the request.
    pub started_boot: String,
    /// Boot id of the end.
    pub ended_boot: String,
    /// How often the install was started.
    pub install_tries: u32,
    /// Seconds that the successful install took.
    pub install_seconds: Option<u64>,
}

/// The last refusal or failure, with what it was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// Transaction id.
    pub transaction: String,
    /// Where the bundle came from.
    pub source: String,
    /// Version of the release, where known.
    pub version: Option<String>,
    /// Unix time, seconds.
    pub at: u64,
    /// What went wrong.
    #[serde(flatten)]
    pub failure: Failure,
}

/// Everything that is published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where it stands.
    pub phase: Phase,
    /// The transaction under way.
    pub transaction: Option<Transaction>,
    /// How far the write has come.
    pub progress: Progress,
    /// One line for people: what is happening or waited for.
    pub message: String,
    /// The last refusal or failure; gone with the next commit.
    pub why: Option<Why>,
    /// Ended transactions, newest last, bounded.
    pub history: Vec<HistoryEntry>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_one_name() {
        for phase in [
            Phase::Idle,
            Phase::Checking,
            Phase::Installing,
            Phase::WaitingToRetry,
            Phase::Installed,
            Phase::Activating,
            Phase::Activated,
            Phase::Rebooting,
            Phase::Trial,
            Phase::WaitingToTryAgain,
            Phase::LateFallback,
        ] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
    }

    #[test]
    fn hold_is_read_as_it_is_written() {
        for hold in [Hold::None, Hold::Activate, Hold::Reboot] {
            let text = serde_json::to_value(hold).unwrap();
            assert_eq!(Hold::parse(text.as_str().unwrap()), Some(hold));
        }
        assert_eq!(Hold::parse("never"), None);
    }
}
