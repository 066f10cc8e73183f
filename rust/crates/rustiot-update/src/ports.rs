//! What the engine needs of the outside: RAUC, the boot ledger, the disk's counters, systemd, the repository, the
//! fetch proxy.
//!
//! Narrow on purpose: each is replaced by a recording fake in the engine's tests. The real ones are in `rauc`,
//! `daemon`, `disk`, `repository` and `fetch`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use rustiot_boot::{Event, Record, Slot};
use rustiot_config::UpdateSettings;

use crate::bundle::Manifest;
use crate::failure::Failure;
use crate::plan::{Plan, Way};
use crate::status::{Transfer, Veto};

/// One install order to RAUC.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Path or URL.
    pub source: String,
    /// Transaction id.
    pub id: String,
    /// Manifest hash that the bundle must have.
    pub manifest_hash: String,
}

/// RAUC.
pub(crate) trait Installer {
    /// Verifies the signature and reads the manifest.
    async fn inspect(&self, source: &str) -> Result<Manifest, Failure>;
    /// Writes the other slot; returns when it is complete.
    async fn install(&self, order: &Order, progress: impl Fn(u8, &str)) -> Result<(), Failure>;
    /// Whether RAUC is installing at this moment.
    async fn busy(&self) -> Result<bool, Failure>;
    /// Manifest hash of the bundle that filled both partitions of `slot`, if both are complete.
    async fn written(&self, slot: Slot) -> Result<Option<String>, Failure>;
    /// Makes the next boot the trial of the other slot.
    async fn activate(&self) -> Result<(), Failure>;
    /// Stops whatever RAUC does; returns when it is gone.
    async fn abort(&self) -> Result<(), Failure>;
}

/// The boot ledger.
pub(crate) trait Ledger {
    /// What is remembered of the slots.
    fn record(&self) -> Result<Record, Failure>;
    /// Takes one step of the policy.
    fn apply(&self, event: Event) -> Result<(), Failure>;
}

/// The partitions of a slot, by their names.
pub(crate) trait Disk {
    /// Bytes that the partition holds.
    fn capacity(&self, label: &str) -> Option<u64>;
    /// Bytes written to the partition since boot.
    fn written(&self, label: &str) -> Option<u64>;
}

/// What the owner's configuration says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rules {
    /// Section `[update]`.
    pub update: UpdateSettings,
    /// The device's time zone.
    pub zone: String,
}

/// The machine.
pub(crate) trait Machine {
    /// Starts an orderly restart.
    async fn reboot(&self) -> Result<(), Failure>;
    /// The configuration in force, read each time: a changed one counts from the next decision on.
    fn rules(&self) -> Rules;
    /// Applications that put off a restart.
    fn vetoes(&self) -> Vec<Veto>;
    /// Whether it runs on its battery.
    fn on_battery(&self) -> bool;
    /// Unix time, seconds.
    fn now(&self) -> u64;
    /// First bytes of a local file, if it can be read.
    fn head(&self, path: &str) -> Option<[u8; 4]>;
    /// Whether the path is a directory.
    fn is_dir(&self, path: &str) -> bool;
}

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On servers: the first one, then mirrors.
    Urls(Vec<String>),
    /// In a directory of this device (a USB stick, or what a workstation pushed).
    Dir(PathBuf),
}

/// What the decision needs to know of the device; what never changes in a boot is the repository's own business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// Where to look.
    pub place: Place,
    /// Manifest hash of the running release, where it was installed from a bundle.
    pub running: Option<String>,
    /// Oldest version that may be installed.
    pub floor: Option<String>,
    /// Releases that failed here, by manifest hash.
    pub known_bad: BTreeSet<String>,
    /// Bytes of the partitions of a slot by image name, where known.
    pub partitions: Vec<(String, u64)>,
    /// Labels of the device.
    pub labels: Vec<String>,
    /// Bytes that downloads may take; none where nothing is downloaded: the repository lies in a directory.
    pub room: Option<u64>,
    /// Whether what has no room may go straight into the slot.
    pub streams: bool,
    /// A person asks: waves and pauses do not count. `true` to take even what runs, or failed here.
    pub wanted: Option<bool>,
    /// The version that a person asks for; none: the newest.
    pub version: Option<semver::Version>,
}

/// What the repository answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    /// Bytes that the look took.
    pub bytes: u64,
    /// The plan, or why there is none.
    pub answer: Result<Plan, Box<NoPlan>>,
}

/// Why there is nothing to install.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NoPlan {
    /// One word: `up-to-date`, `later`, `paused`, …
    pub word: String,
    /// The release that it is about, where known.
    pub version: Option<String>,
    /// For people.
    pub failure: Failure,
    /// When it is worth looking again before the next look is due, Unix seconds.
    pub retry_at: Option<u64>,
}

/// Releases on a plain web server or in a directory.
pub(crate) trait Repository {
    /// Looks, verifies, and decides what there is for this device.
    async fn check(&self, question: &Question) -> Result<Found, Failure>;
    /// How long to wait from `now` (since the epoch) until this device's own instant of the interval.
    fn wait(&self, interval: Duration, now: Duration) -> Duration;
}

/// What bounds a download.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes a second.
    pub rate: Option<u64>,
    /// Most bytes of the cache; 0: none.
    pub cache: u64,
}

/// The fetch proxy.
pub(crate) trait Fetcher {
    /// A way that is being gone.
    type Session: Session;
    /// Goes a way, on from what is in the cache.
    async fn open(&self, way: &Way, limits: Limits) -> Result<Self::Session, Failure>;
    /// Bytes of the cache's file system that downloads may take, what they have already included.
    fn room(&self) -> u64;
    /// Empties the cache.
    fn forget(&self);
}

/// One job of the fetch proxy; it ends when it is dropped. What is in the cache stays there.
pub(crate) trait Session {
    /// Where RAUC finds the bundle.
    fn url(&self) -> String;
    /// Finds out whether this way can work at all, before RAUC is asked.
    async fn prepare(&self) -> Result<(), Failure>;
    /// Brings the whole file into the cache and verifies it. Goes on until it has it, or until no mirror ever will.
    async fn download(&self) -> Result<(), Failure>;
    /// How far it has come.
    fn progress(&self) -> Transfer;
    /// Changes the limits.
    fn limit(&self, limits: Limits);
    /// How long RAUC has been waiting for the answer that it waits for the longest.
    fn held(&self) -> Duration;
    /// What went wrong last on the side that RAUC does not see.
    fn complaint(&self) -> Option<Failure>;
    /// Has nothing for RAUC any more: whatever it reads fails at once. False where RAUC reads a file itself.
    fn end(&self) -> bool;
}

impl<T: Installer> Installer for std::rc::Rc<T> {
    async fn inspect(&self, source: &str) -> Result<Manifest, Failure> {
        T::inspect(self, source).await
    }
    async fn install(&self, order: &Order, progress: impl Fn(u8, &str)) -> Result<(), Failure> {
        T::install(self, order, progress).await
    }
    async fn busy(&self) -> Result<bool, Failure> {
        T::busy(self).await
    }
    async fn written(&self, slot: Slot) -> Result<Option<String>, Failure> {
        T::written(self, slot).await
    }
    async fn activate(&self) -> Result<(), Failure> {
        T::activate(self).await
    }
    async fn abort(&self) -> Result<(), Failure> {
        T::abort(self).await
    }
}
