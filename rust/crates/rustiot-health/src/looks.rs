//! One look at everything: runs the checks and gives their results to the gate.
//!
//! Decides nothing. Called by [`crate::service`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustiot_config::{HealthSettings, NetworkCheck};
use serde::Deserialize;
use tokio::time::timeout;
use zbus::Connection;

use crate::background::Background;
use crate::check::{CheckResult, Need, Verdict};
use crate::checks::network::Facts;
use crate::checks::{clock, disk, memory, network, scripts, units};
use crate::rauc::Rauc;
use crate::systemd::Systemd;

/// How often the disks are written to for a check: the watchdog asks more often, this one looks for errors.
const DISK_EVERY: Duration = Duration::from_secs(60);
/// How often scripts run.
const SCRIPTS_EVERY: Duration = Duration::from_secs(30);
/// How long a change of what works must last before it is remembered.
const REMEMBER_AFTER: Duration = Duration::from_secs(600);
/// What is remembered as working besides the network.
const DATA: &str = "data partition";

/// What we need of the image's `release.json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Release {
    /// Lowest version that may be installed once this one is committed.
    pub floor: Option<String>,
    /// When the image was built, in seconds since 1970.
    pub build_epoch: Option<u64>,
}

/// Runs the checks.
pub struct Looks {
    /// Below this everything is found: `/`.
    root: PathBuf,
    bus: Option<Connection>,
    units: units::Units,
    state_disk: Background<Verdict>,
    data_disk: Background<Verdict>,
    scripts: Background<Vec<CheckResult>>,
    before: Option<Facts>,
    now: Facts,
    changed_since: Option<Duration>,
    /// The image's own facts.
    pub release: Release,
}

impl Looks {
    /// Nothing is looked at yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let read = |path: &str| fs::read(root.join(path)).ok();
        Self {
            root: root.into(),
            bus: None,
            units: units::Units::default(),
            state_disk: Background::new(DISK_EVERY),
            data_disk: Background::new(DISK_EVERY),
            scripts: Background::new(SCRIPTS_EVERY),
            before: None,
            now: Facts::default(),
            changed_since: None,
            release: read("usr/lib/rustiot/release.json")
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .unwrap_or_default(),
        }
    }

    /// The bus, if it answers within `limit`.
    pub async fn bus(&mut self, limit: Duration) -> Option<Connection> {
        if self.bus.is_none() {
            self.bus = timeout(limit, Connection::system()).await.ok().and_then(Result::ok);
        }
        self.bus.clone()
    }

    /// One look. `now` is the age of the boot.
    pub async fn look(&mut self, now: Duration, settings: &HealthSettings) -> Vec<CheckResult> {
        let limit = settings.check_timeout.get();
        let mut results = Vec::new();
        self.look_at_bus(limit, settings, &mut results).await;
        if settings.disk {
            self.look_at_disks(now, limit, settings, &mut results).await;
        }
        let text = |path: &str| fs::read_to_string(self.root.join(path)).ok();
        let pressure = (text("proc/pressure/memory"), text("proc/meminfo"));
        let verdict = memory::judge(pressure.0.as_deref(), pressure.1.as_deref(), settings.memory_pressure);
        results.push(CheckResult::new("memory", Need::RequiredInTrial, verdict));

        self.now = network::facts(&network::read(&self.root));
        if self.data_disk.last().is_some_and(Verdict::passed) {
            self.now.works.insert(DATA.into());
        }
        if settings.network == NetworkCheck::Relative {
            let mut before = self.before();
            if let Some(before) = &mut before {
                before.works.remove(DATA);
            }
            let verdict = network::judge(before.as_ref(), &self.now);
            results.push(CheckResult::new("network", Need::RequiredInTrial, verdict));
        }

        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
        let synchronised = self.root.join("run/systemd/timesync/synchronized").exists();
        let verdict = clock::judge(seconds, self.release.build_epoch, synchronised, settings.clock);
        results.push(CheckResult::new("clock", Need::RequiredInTrial, verdict));

        let directory = self.root.join(scripts::DIRECTORY.trim_start_matches('/'));
        let (script_limit, any) = (settings.script_timeout.get(), directory.is_dir());
        if any {
            self.scripts.drive(now, || scripts::run_all(directory, script_limit)).await;
            match self.scripts.last() {
                Some(last) => results.extend_from_slice(last),
                None => {
                    let verdict = Verdict::Pending("the image's own checks run for the first time".into());
                    results.push(CheckResult::new("scripts", Need::RequiredInTrial, verdict));
                }
            }
        }
        results
    }

    async fn look_at_bus(
        &mut self,
        limit: Duration,
        settings: &HealthSettings,
        results: &mut Vec<CheckResult>,
    ) {
        let names =
            |list: &[rustiot_config::scalar::Unit]| list.iter().map(|u| u.as_str().to_owned()).collect();
        let (required, advisory): (Vec<String>, Vec<String>) =
            (names(&settings.required_units), names(&settings.advisory_units));
        let Some(bus) = self.bus(limit).await else {
            let verdict = Verdict::Fail("the system bus does not answer".into());
            results.push(CheckResult::new("units", Need::Required, verdict));
            return;
        };
        let systemd = Systemd::on_bus(bus.clone());
        let late = || Verdict::Fail(format!("systemd did not answer within {} s", limit.as_secs()));
        let verdict =
            timeout(limit, self.units.required(&systemd, &required)).await.unwrap_or_else(|_| late());
        // A bus that was restarted needs a new connection.
        if matches!(&verdict, Verdict::Fail(why) if why.contains("answer")) {
            self.bus = None;
        }
        let for_good = self.units.failed_for_good();
        results.push(CheckResult::new("units", Need::Required, verdict).for_good(for_good));
        let verdict = timeout(limit, units::advisory(&systemd, &advisory)).await.unwrap_or_else(|_| late());
        results.push(CheckResult::new("other units", Need::Advisory, verdict));

        if settings.rauc {
            let verdict = match timeout(limit, Rauc::on_bus(bus).boot_slot()).await {
                Ok(Ok(_)) => Verdict::Pass,
                Ok(Err(error)) => Verdict::Fail(format!("RAUC does not answer: {error}")),
                Err(_) => Verdict::Fail(format!("RAUC did not answer within {} s", limit.as_secs())),
            };
            results.push(CheckResult::new("rauc", Need::RequiredInTrial, verdict));
        }
    }

    async fn look_at_disks(
        &mut self,
        now: Duration,
        limit: Duration,
        settings: &HealthSettings,
        results: &mut Vec<CheckResult>,
    ) {
        let (state, data) = (self.root.join("state"), self.root.join("data"));
        // The first probe waits for the mounts, which provisioning makes; "not mounted" is then a result like any.
        let number = now.as_secs();
        let run = |mount: PathBuf, file: &'static str| {
            move || async move {
                tokio::task::spawn_blocking(move || disk::write_and_read(&mount, file, number))
                    .await
                    .unwrap_or_else(|error| Verdict::Fail(error.to_string()))
            }
        };
        self.state_disk.drive(now, run(state, "health/probe")).await;
        self.data_disk.drive(now, run(data.clone(), ".rustiot/health-probe")).await;
        let verdict = disk_verdict(&self.state_disk, now, limit);
        results.push(CheckResult::new("state", Need::Required, verdict));

        // A dead data partition costs no reachability, so it decides only if it worked before the update.
        let worked = self.before().is_some_and(|before| before.works.contains(DATA));
        let need = if worked { Need::RequiredInTrial } else { Need::Advisory };
        results.push(CheckResult::new("data", need, disk_verdict(&self.data_disk, now, limit)));
        let verdict = disk::free(&data, settings.disk_free.bytes());
        results.push(CheckResult::new("data space", Need::Advisory, verdict));
    }

    /// What worked in the last stable boot.
    fn before(&mut self) -> Option<Facts> {
        if self.before.is_none() {
            let bytes = fs::read(self.memory()).ok()?;
            self.before = serde_json::from_slice(&bytes).ok();
        }
        self.before.clone()
    }

    fn memory(&self) -> PathBuf {
        self.root.join("state/health/before.json")
    }

    /// Remembers what works as the measure for the next release: at once when the boot becomes stable (`at_once`),
    /// later when a change has lasted. Blocks for a write when there is something to remember.
    ///
    /// # Errors
    /// The disk's.
    pub fn remember(&mut self, now: Duration, at_once: bool) -> Result<(), rustiot_durable::Error> {
        if self.before.as_ref() == Some(&self.now) {
            self.changed_since = None;
            return Ok(());
        }
        let since = *self.changed_since.get_or_insert(now);
        if !at_once && now.saturating_sub(since) < REMEMBER_AFTER {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&self.now).unwrap_or_default();
        let path = self.memory();
        if let Some(directory) = path.parent() {
            // A failure shows in the write.
            let _ = fs::create_dir_all(directory);
        }
        rustiot_durable::atomic_write(&path, &bytes)?;
        self.before = Some(self.now.clone());
        self.changed_since = None;
        Ok(())
    }
}

fn disk_verdict(check: &Background<Verdict>, now: Duration, limit: Duration) -> Verdict {
    match (check.last(), check.waiting(now)) {
        (_, Some(waiting)) if waiting > limit => {
            Verdict::Fail(format!("has not answered for {} s", waiting.as_secs()))
        }
        (Some(last), _) => last.clone(),
        (None, _) => Verdict::Pending("is being asked".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn what_works_is_remembered_at_once_when_stable_and_later_only_if_it_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let mut looks = Looks::new(dir.path());
        looks.now.works.insert("link on x".into());
        looks.remember(S, true).unwrap();
        assert_eq!(Looks::new(dir.path()).before(), Some(looks.now.clone()));

        looks.now.works.clear();
        looks.remember(S * 100, false).unwrap();
        looks.now.works.insert("link on x".into());
        looks.remember(S * 200, false).unwrap();
        looks.now.works.clear();
        looks.remember(S * 300, false).unwrap();
        looks.remember(S * 899, false).unwrap();
        assert_eq!(Looks::new(dir.path()).before().unwrap().works.len(), 1, "a flap is not remembered");
        looks.remember(S * 900, false).unwrap();
        assert_eq!(Looks::new(dir.path()).before(), Some(Facts::default()));
    }

    #[test]
    fn a_disk_that_does_not_answer_fails_although_it_did_before() {
        let mut check = Background::new(S);
        assert_eq!(disk_verdict(&check, S, S * 10), Verdict::Pending("is being asked".into()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check.drive(S, std::future::pending::<Verdict>));
        assert!(matches!(disk_verdict(&check, S * 5, S * 10), Verdict::Pending(_)));
        assert_eq!(disk_verdict(&check, S * 12, S * 10), Verdict::Fail("has not answered for 11 s".into()));
    }

    #[tokio::test]
    async fn a_look_at_an_empty_root_finds_faults_and_does_not_panic() {
        let dir = tempfile::tempdir().unwrap();
        let mut looks = Looks::new(dir.path());
        let mut settings = HealthSettings { rauc: false, ..HealthSettings::default() };
        settings.check_timeout = rustiot_config::scalar::Duration::secs(1);
        let results = looks.look(S, &settings).await;
        let names: Vec<&str> = results.iter().map(|r| r.name.as_str()).collect();
        assert!(names.ends_with(&["state", "data", "data space", "memory", "network", "clock"]), "{names:?}");
    }
}
