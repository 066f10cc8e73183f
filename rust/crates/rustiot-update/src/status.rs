//! What the service says about itself: phase, progress, the transaction, the last refusal, the history.
//!
//! Pure types with one JSON form for the bus, the status file, the history file and the command line
//! (`docs/contracts/update-dbus.md`). They decide nothing.

use std::collections::BTreeMap;

use rustiot_boot::{Release, Slot};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::plan::{Plan, Way};

/// Where an update stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing is under way.
    #[default]
    Idle,
    /// The repository is asked, or the bundle is looked at; nothing has been written.
    Checking,
    /// A release is there; its download waits for a person, a window or a time.
    Available,
    /// A file of the release comes into the cache.
    Downloading,
    /// Complete in the cache; the install waits for a person, a window or a time.
    Downloaded,
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
            Self::Available => "available",
            Self::Downloading => "downloading",
            Self::Downloaded => "downloaded",
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
    /// What comes over the network.
    #[serde(default)]
    pub transfer: Transfer,
}

/// What comes over the network, in this attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Bytes of the bundle that were on the device already (running slot, cache of an earlier attempt).
    pub reused: u64,
    /// Bytes of the file that is fetched; 0 while it is not known.
    pub total: u64,
    /// Bytes a second.
    pub rate: u64,
    /// Seconds that are left at this rate; 0 while it is not known.
    pub eta: u64,
}

/// A part of an update that can be held back, put off to a time or bound to windows by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Bring the file into the cache.
    Download,
    /// Write the other slot.
    #[default]
    Install,
    /// Make the next boot the trial.
    Activate,
    /// Restart into it.
    Reboot,
}

impl Stage {
    /// Reads its name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "download" => Some(Self::Download),
            "install" => Some(Self::Install),
            "activate" => Some(Self::Activate),
            "reboot" => Some(Self::Reboot),
            _ => None,
        }
    }

    /// Its name on the bus and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Install => "install",
            Self::Activate => "activate",
            Self::Reboot => "reboot",
        }
    }
}

/// Who wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// A person, or a program in a person's place: windows and metered links do not bind it.
    #[default]
    Person,
    /// A server that the owner has put in charge of releases (hawkBit): windows and metered links do not bind it, and
    /// nobody waits for the answer to the first look.
    Server,
    /// The configuration.
    Policy,
}

impl By {
    /// Reads its name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "person" => Some(Self::Person),
            "server" => Some(Self::Server),
            "policy" => Some(Self::Policy),
            _ => None,
        }
    }
}

/// What to leave to a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// Nothing: activate, and restart as the configuration says.
    #[default]
    None,
    /// Fetch nothing yet.
    Download,
    /// Download only.
    Install,
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
            "download" => Some(Self::Download),
            "install" => Some(Self::Install),
            "activate" => Some(Self::Activate),
            "reboot" => Some(Self::Reboot),
            _ => None,
        }
    }

    /// The stage before which it stops.
    #[must_use]
    pub fn stage(self) -> Option<Stage> {
        match self {
            Self::None => None,
            Self::Download => Some(Stage::Download),
            Self::Install => Some(Stage::Install),
            Self::Activate => Some(Stage::Activate),
            Self::Reboot => Some(Stage::Reboot),
        }
    }
}

/// What somebody asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Transaction id (UUID).
    pub id: String,
    /// Absolute path or HTTP(S) URL of the bundle, or of the repository that the plan is from.
    pub source: String,
    /// What to leave to a person.
    #[serde(default)]
    pub hold: Hold,
    /// Install a release although it failed here before, or is the running one.
    #[serde(default)]
    pub force: bool,
    /// On whose behalf. The transaction keeps it.
    #[serde(skip)]
    pub by: By,
    /// What the file at a URL must have. The plan keeps it.
    #[serde(skip)]
    pub file: Expected,
    /// The URL is that of a repository, not of a bundle.
    #[serde(skip)]
    pub repository: bool,
    /// The release of a repository; none: the newest. The plan keeps it.
    #[serde(skip)]
    pub version: Option<String>,
}

/// What is known of a file beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Bytes.
    pub size: Option<u64>,
    /// SHA-256, hex.
    pub sha256: Option<String>,
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
    /// How often the installer itself died in the middle.
    #[serde(default)]
    pub deaths: u32,
    /// Boot id of the last start.
    #[serde(default)]
    pub tried_boot: Option<String>,
    /// Seconds that the successful install took.
    #[serde(default)]
    pub install_seconds: Option<u64>,
    /// Somebody called `Activate`, or nothing held it back: an interrupted trial may be repeated.
    #[serde(default)]
    pub approved: bool,
    /// Somebody takes it back; RAUC may not have stopped yet.
    #[serde(default)]
    pub cancelled: bool,
    /// Who wants it.
    #[serde(default)]
    pub by: By,
    /// What is to be done next, before anything is written.
    #[serde(default)]
    pub stage: Stage,
    /// What is installed and how to get it, where that is known beforehand.
    #[serde(default)]
    pub plan: Option<Plan>,
    /// Which way of the plan is gone at present.
    #[serde(default)]
    pub way: usize,
    /// Ways that did not lead to the end, in order.
    #[serde(default)]
    pub failed_ways: Vec<FailedWay>,
    /// Stages that may not begin before a time, Unix seconds.
    #[serde(default)]
    pub not_before: BTreeMap<Stage, u64>,
    /// How often a download was started.
    #[serde(default)]
    pub fetch_tries: u32,
    /// Bytes and seconds so far, without the attempt that runs.
    #[serde(default)]
    pub spent: Spent,
    /// Seconds for which applications have put off the restart.
    #[serde(default)]
    pub deferred_s: u64,
    /// Applications whose veto was overridden, with their reasons.
    #[serde(default)]
    pub overridden: Vec<String>,
}

impl Transaction {
    /// A transaction for which nothing has been done.
    #[must_use]
    pub fn new(request: Request, started_at: u64, started_boot: &str) -> Self {
        Self {
            request,
            release: None,
            slot: None,
            started_at,
            started_boot: started_boot.to_owned(),
            tries: 0,
            broken_reads: 0,
            deaths: 0,
            tried_boot: None,
            install_seconds: None,
            approved: false,
            cancelled: false,
            by: By::Person,
            stage: Stage::Install,
            plan: None,
            way: 0,
            failed_ways: Vec::new(),
            not_before: BTreeMap::new(),
            fetch_tries: 0,
            spent: Spent::default(),
            deferred_s: 0,
            overridden: Vec::new(),
        }
    }

    /// The way that is gone at present; none for a file of this device.
    #[must_use]
    pub fn current_way(&self) -> Option<&Way> {
        self.plan.as_ref()?.ways.get(self.way)
    }

    /// The release, from its manifest or from the plan.
    #[must_use]
    pub fn known_release(&self) -> Option<&Release> {
        self.release.as_ref().or_else(|| self.plan.as_ref()?.release.as_ref())
    }

    /// What to call it in a sentence.
    #[must_use]
    pub fn name(&self) -> &str {
        self.known_release().map_or(self.request.source.as_str(), |r| r.version.as_str())
    }
}

/// A way that did not lead to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedWay {
    /// Its kind.
    pub way: String,
    /// Bytes that were fetched for it.
    pub fetched: u64,
    /// Why.
    pub failure: Failure,
}

/// Bytes and seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spent {
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Bytes that were on the device already.
    pub reused: u64,
    /// Bytes that reached the slot's partitions.
    pub written: u64,
    /// Seconds of downloads.
    pub download_s: u64,
    /// Seconds of installs, also of those that failed.
    pub install_s: u64,
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
    /// Who wanted it.
    #[serde(default)]
    pub by: By,
    /// Kind of the way by which it came in the end.
    #[serde(default)]
    pub way: Option<String>,
    /// Ways that were tried before.
    #[serde(default)]
    pub failed_ways: Vec<FailedWay>,
    /// Bytes and seconds.
    #[serde(default)]
    pub spent: Spent,
    /// Applications whose veto against the restart was overridden.
    #[serde(default)]
    pub overridden: Vec<String>,
}

/// What the last look at the repository found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Unix time, seconds.
    pub at: u64,
    /// The repository.
    pub source: String,
    /// `available`, or the word for why there is nothing: `up-to-date`, `later`, `not-yet`, `paused`, …, `failed`.
    pub result: String,
    /// The release that was found or refused, where known.
    pub version: Option<String>,
    /// One line for people.
    pub message: String,
    /// Bytes that the look took.
    pub bytes: u64,
    /// Looks in a row that failed.
    #[serde(default)]
    pub failures: u32,
}

/// An application that puts off the restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Veto {
    /// Who.
    pub who: String,
    /// Why, as it says.
    pub why: String,
}

/// What the device may do by itself, and what stands against it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyNow {
    /// `auto`, `check` or `manual`.
    pub policy: String,
    /// The repository, if there is one.
    pub source: Option<String>,
    /// Whether a window is open.
    pub window_open: bool,
    /// When that changes, Unix seconds; none when it never does.
    pub window_changes: Option<u64>,
    /// The windows.
    pub windows: Vec<String>,
    /// What is wrong with them.
    pub complaints: Vec<String>,
    /// The link is metered.
    pub metered: bool,
    /// The device runs on its battery.
    #[serde(default)]
    pub on_battery: bool,
    /// Most bytes a second.
    pub rate_limit: Option<u64>,
    /// Applications that put off a restart now.
    pub vetoes: Vec<Veto>,
    /// Seconds for which they can.
    pub max_deferral_s: u64,
    /// When the repository is looked at next, Unix seconds.
    pub next_check: Option<u64>,
    /// Outcomes that wait to be posted.
    pub reports_waiting: usize,
}

/// hawkBit, where it is the source of releases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hawkbit {
    /// The server, without its path.
    pub server: String,
    /// This device's name there.
    pub controller: String,
    /// When it answered last, Unix seconds.
    pub answered: Option<u64>,
    /// What keeps the device from asking, or the server from answering; gone with the next answer.
    pub problem: Option<String>,
    /// The action that is being carried out or waits.
    pub action: Option<String>,
    /// An action waits for a person's consent.
    pub asks: Option<String>,
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

/// Whom or what a transaction waits for before its next stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waits {
    /// Somebody has to let it go on.
    Person,
    /// It goes on by itself: when a window opens, at a time that was set, with external power.
    Conditions,
    /// It goes on by itself: when applications allow the restart, or their patience is over.
    Applications,
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
    /// What is or would be installed, and how: of the transaction under way, or of what the last look found.
    #[serde(default)]
    pub plan: Option<Plan>,
    /// The last look at the repository.
    #[serde(default)]
    pub check: Option<Check>,
    /// The last refusal or failure; gone with the next commit.
    pub why: Option<Why>,
    /// Ended transactions, newest last, bounded.
    pub history: Vec<HistoryEntry>,
    /// hawkBit, where it is the source of releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hawkbit: Option<Hawkbit>,
    /// Whom or what the transaction waits for, where it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<Waits>,
    /// The medium that is needed: what is on offer or being installed lies on it. Empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub medium: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_one_name() {
        for phase in [
            Phase::Idle,
            Phase::Checking,
            Phase::Available,
            Phase::Downloading,
            Phase::Downloaded,
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
        for hold in [Hold::None, Hold::Download, Hold::Install, Hold::Activate, Hold::Reboot] {
            let text = serde_json::to_value(hold).unwrap();
            assert_eq!(Hold::parse(text.as_str().unwrap()), Some(hold));
            assert_eq!(
                hold.stage().map(Stage::as_str),
                Some(text.as_str().unwrap()).filter(|t| *t != "none")
            );
            assert_eq!(hold.stage().and_then(|stage| Stage::parse(stage.as_str())), hold.stage());
        }
        assert_eq!(Hold::parse("never"), None);
    }
}
