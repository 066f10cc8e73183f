//! The loop: look, step the gate, do what it says, show it, tell the watchdog.
//!
//! The gate decides and [`crate::record`] remembers; here is only the order of things and what happens when one of
//! them fails. Called by [`crate::main`].

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use rustiot_boot::{BootKind, Event};
use rustiot_config::Settings;
use rustiot_liveness::{Client, Name};
use sd_notify::NotifyState;
use serde::Deserialize;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::check::obstacle;
use crate::checks::units;
use crate::gate::{Action, Gate, State, Times};
use crate::looks::Looks;
use crate::rauc::Rauc;
use crate::record;
use crate::status::Status;
use crate::systemd::{Jobs, Systemd};

/// Once stable, there is no hurry.
const CALM_INTERVAL: Duration = Duration::from_secs(30);
/// Silence after which the watchdog restarts us, at least; a look takes seconds, even when everything times out.
const ALIVE_WITHIN: Duration = Duration::from_secs(180);
/// How long the ledger may take.
const LEDGER_LIMIT: Duration = Duration::from_secs(30);
/// How long RAUC may take to mark.
const MARK_LIMIT: Duration = Duration::from_secs(60);
/// How long an orderly reboot may take before the kernel is told.
const REBOOT_LIMIT: Duration = Duration::from_secs(60);

const RUN: &str = "/run/rustiot";

/// What we need of `boot.json`.
#[derive(Debug, Deserialize)]
struct BootReport {
    kind: BootKind,
    #[serde(default)]
    timings_ms: Timings,
}

#[derive(Debug, Default, Deserialize)]
struct Timings {
    #[serde(default)]
    switch_root: u64,
}

/// What we need of `watchdog.json`.
#[derive(Debug, Default, Deserialize)]
struct WatchdogReport {
    #[serde(default)]
    stable_after_s: u64,
}

struct Service {
    boot_id: String,
    kind: BootKind,
    /// Age of the boot at which user space started.
    started: Duration,
    settings: Settings,
    settings_at: Option<SystemTime>,
    gate: Gate,
    looks: Looks,
    /// Hears the end of the boot while one is waited for.
    boot_ends: Option<Jobs>,
    watchdog: Option<Client>,
    opened_at: Option<Duration>,
    stable_at: Option<Duration>,
    committed: bool,
    /// The boot is stable, but the ledger does not know yet.
    stable_untold: bool,
    failure: Option<String>,
}

/// Runs until SIGTERM, or until a failed trial ends in a reboot.
///
/// # Errors
/// Signals cannot be had.
pub async fn run() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut service = Service::new();
    if service.kind == BootKind::Rescue {
        // Nothing is decided in rescue: reachable is all it has to be.
        notify(&[NotifyState::Ready]);
        term.recv().await;
        return Ok(());
    }
    if service.gate.state() == State::Stable {
        // Started again in a boot that is stable: the gate opened long ago, and boot-complete.target waits for us.
        notify(&[NotifyState::Ready, NotifyState::Status("healthy")]);
    }
    loop {
        let round = async {
            let pause = service.round().await;
            service.wait(pause).await;
        };
        // Everything that a round does may be cut short and done again.
        tokio::select! {
            () = round => {}
            _ = term.recv() => return Ok(()),
        }
    }
}

/// Silence that means trouble: an owner who wants few looks is not restarted between two of them.
fn alive_within(interval: Duration) -> Duration {
    ALIVE_WITHIN.max(interval.saturating_mul(2))
}

fn client(within: Duration) -> Option<Client> {
    Name::new("health").ok().map(|name| Client::new(name, within))
}

impl Service {
    fn new() -> Self {
        let report: Option<BootReport> = read_json("boot.json");
        let kind = report.as_ref().map_or(BootKind::Normal, |r| r.kind);
        let started = Duration::from_millis(report.map_or(0, |r| r.timings_ms.switch_root));
        let boot_id = record::boot_id();
        let settings = Settings::default();
        let mut gate = Gate::new(kind, times(&settings, started));
        let earlier = Status::read(&Path::new(RUN).join("health.json")).ok().filter(|s| s.boot_id == boot_id);
        let stable = earlier.as_ref().is_some_and(|s| s.stable);
        if stable {
            // We were restarted: what is committed stays so.
            gate.resume_stable();
        }
        let seconds = |s: Option<u64>| s.map(Duration::from_secs);
        Self {
            boot_id,
            kind,
            started,
            settings,
            settings_at: None,
            gate,
            looks: Looks::new(Path::new("/")),
            boot_ends: None,
            watchdog: client(ALIVE_WITHIN),
            opened_at: earlier.as_ref().and_then(|s| seconds(s.opened_at_s)),
            stable_at: earlier.as_ref().and_then(|s| seconds(s.stable_at_s)),
            committed: kind == BootKind::Normal || stable,
            stable_untold: false,
            failure: None,
        }
    }

    /// One round; returns how long to wait for the next.
    async fn round(&mut self) -> Duration {
        self.reload();
        self.listen().await;
        let results = self.looks.look(uptime(), &self.settings.health).await;
        let now = uptime();
        let actions = self.gate.step(now, &results);
        let mut ask_reboot = None;
        for action in actions {
            match action {
                Action::Open => self.open(now).await,
                Action::Commit => self.commit(now).await,
                Action::Stable => {
                    self.stable_at = Some(now);
                    self.stable_untold = true;
                }
                Action::FailTrial(reason) => {
                    self.failure = Some(reason.clone());
                    self.show(now, &results);
                    self.fail_trial(reason).await;
                }
                Action::Degraded(reason) => {
                    say(&format!("this boot is not healthy: {reason}"));
                    let (boot_id, why) = (self.boot_id.clone(), reason.clone());
                    self.enter("the failure", move || record::failure(boot_id, why)).await;
                    self.failure = Some(reason);
                }
                Action::AskReboot(reason) => ask_reboot = Some(reason),
            }
        }
        if self.stable_untold {
            self.tell_stable().await;
        }
        if self.gate.state() == State::Stable {
            // Blocks for one small write, rarely; the ledger's own lock is not involved.
            if let Err(error) = self.looks.remember(now, self.stable_at == Some(now)) {
                self.failure = Some(format!("cannot remember what works: {error}"));
            }
        }
        if let Some(watchdog) = &mut self.watchdog {
            match &ask_reboot {
                Some(reason) => watchdog.fail(reason),
                None => watchdog.alive(),
            };
        }
        self.show(now, &results);
        let interval = self.settings.health.interval.get();
        match self.gate.state() {
            State::Stable => interval.max(CALM_INTERVAL),
            _ => self.gate.next_look(uptime(), interval),
        }
    }

    /// Listens for the end of a boot that has not come to it. Before the look: an end right after it is heard, too.
    async fn listen(&mut self) {
        if self.gate.state() != (State::Checking { since: None }) {
            self.boot_ends = None;
        } else if self.boot_ends.is_none() {
            let limit = self.settings.health.check_timeout.get();
            if let Some(bus) = self.looks.bus(limit).await {
                let systemd = Systemd::on_bus(bus);
                // A bus that cannot tell leaves it to the pauses between looks.
                self.boot_ends =
                    timeout(limit, systemd.jobs(units::BOOT_ENDS_AT)).await.ok().and_then(Result::ok);
            }
        }
    }

    /// Waits for the next round: for `pause`, or in a boot that has not come to its end yet until it does.
    async fn wait(&mut self, pause: Duration) {
        let starting = self.gate.state() == State::Checking { since: None };
        let Some(ends) = self.boot_ends.as_mut().filter(|_| starting) else {
            return sleep(pause).await;
        };
        let until = Instant::now() + pause;
        if timeout_at(until, ends.done()).await == Ok(false) {
            // The bus is gone: listened to anew before the next look.
            self.boot_ends = None;
            sleep_until(until).await;
        }
    }

    /// Takes over settings that provisioning has written, and the watchdog's wish.
    fn reload(&mut self) {
        let path = Path::new(RUN).join("settings.json");
        let at = fs::metadata(&path).and_then(|m| m.modified()).ok();
        if at.is_some()
            && at != self.settings_at
            && let Ok(settings) = Settings::load_from(&path)
        {
            let within = alive_within(settings.health.interval.get());
            if within != alive_within(self.settings.health.interval.get()) {
                self.watchdog = client(within);
            }
            self.settings = settings;
            self.settings_at = at;
        }
        let wish: WatchdogReport = read_json("watchdog.json").unwrap_or_default();
        let mut times = times(&self.settings, self.started);
        if self.kind != BootKind::Trial {
            times.stable_after = Duration::from_secs(wish.stable_after_s);
        }
        self.gate.set_times(times);
    }

    async fn open(&mut self, now: Duration) {
        self.opened_at = Some(now);
        let boot_id = self.boot_id.clone();
        self.enter("the open gate", move || record::tell(Event::GatePassed { boot_id })).await;
        say("healthy: the gate is open");
        notify(&[NotifyState::Ready, NotifyState::Status("healthy")]);
    }

    /// Stable, and RAUC's mark makes it committed. Everything in it may be repeated.
    async fn commit(&mut self, now: Duration) {
        if !self.enter_stable().await {
            return;
        }
        let limit = self.settings.health.check_timeout.get();
        let Some(bus) = self.looks.bus(limit).await else {
            self.failure = Some("cannot commit: the system bus does not answer".into());
            return;
        };
        match timeout(MARK_LIMIT, Rauc::on_bus(bus).mark_good()).await {
            Ok(Ok(message)) => {
                say(&format!("committed: {message}"));
                notify(&[NotifyState::Status("committed")]);
                self.gate.committed();
                self.stable_at = Some(now);
                self.committed = true;
                self.failure = None;
            }
            Ok(Err(error)) => self.failure = Some(format!("cannot commit: {error}")),
            Err(_) => self.failure = Some(format!("cannot commit: no answer in {} s", MARK_LIMIT.as_secs())),
        }
        if let Some(failure) = &self.failure {
            say(failure);
        }
    }

    async fn tell_stable(&mut self) {
        if self.enter_stable().await {
            self.stable_untold = false;
            self.committed = true;
            say("stable");
            notify(&[NotifyState::Status("stable")]);
        }
    }

    /// Enters that the gate has passed (again, in case it could not be entered then) and the soak is over.
    async fn enter_stable(&mut self) -> bool {
        let (boot_id, floor) = (self.boot_id.clone(), self.looks.release.floor.clone());
        let tell = move || {
            record::tell(Event::GatePassed { boot_id: boot_id.clone() })?;
            record::tell(Event::Soaked { boot_id, floor })
        };
        self.enter("the soak", tell).await
    }

    /// Runs ledger work in a thread, bounded in time. Returns whether it was entered.
    async fn enter<T, E>(&mut self, what: &str, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> bool
    where
        T: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let result = match timeout(LEDGER_LIMIT, spawn_blocking(work)).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(error))) => Err(format!("{:#}", anyhow::Error::new(error))),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {} s", LEDGER_LIMIT.as_secs())),
        };
        match result {
            Ok(()) => true,
            Err(why) => {
                let failure = format!("cannot enter {what} in the boot ledger: {why}");
                if self.failure.as_ref() != Some(&failure) {
                    say(&failure);
                }
                self.failure = Some(failure);
                false
            }
        }
    }

    /// Records why, then reboots: in order if systemd still can, else through the kernel. Does not return.
    async fn fail_trial(&mut self, reason: String) {
        say(&format!("this trial has failed: {reason}"));
        let (boot_id, why) = (self.boot_id.clone(), reason);
        self.enter("the failed trial", move || record::failure(boot_id, why)).await;
        let limit = self.settings.health.check_timeout.get();
        let asked = match self.looks.bus(limit).await {
            Some(bus) => timeout(limit, Systemd::on_bus(bus).reboot()).await.is_ok_and(|r| r.is_ok()),
            None => false,
        };
        if !asked {
            let _ = timeout(limit, Command::new("systemctl").arg("reboot").status()).await;
        }
        sleep(REBOOT_LIMIT).await;
        say("systemd does not reboot; asking the kernel");
        let _ = timeout(Duration::from_secs(3), spawn_blocking(nix::unistd::sync)).await;
        let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
        // Not even that: the watchdog's deadline for the trial is next.
        std::future::pending::<()>().await;
    }

    fn show(&self, now: Duration, results: &[crate::check::CheckResult]) {
        let state = self.gate.state();
        let health = &self.settings.health;
        let obstacle = obstacle(self.kind, results);
        let left = match state {
            State::Soaking { since, .. } => {
                Some(health.soak.get().saturating_sub(now.saturating_sub(since)).as_secs())
            }
            _ => None,
        };
        let status = Status {
            boot_id: self.boot_id.clone(),
            kind: self.kind,
            gate: state,
            healthy: obstacle.is_none(),
            obstacle,
            open: self.opened_at.is_some(),
            stable: state == State::Stable,
            committed: self.committed,
            at_s: now.as_secs(),
            opened_at_s: self.opened_at.map(|d| d.as_secs()),
            stable_at_s: self.stable_at.map(|d| d.as_secs()),
            deadline_s: self.started.saturating_add(health.deadline.get()).as_secs(),
            soak_s: health.soak.as_secs(),
            soak_left_s: left,
            failure: self.failure.clone(),
            checks: results.to_vec(),
        };
        if let Ok(text) = serde_json::to_vec_pretty(&status) {
            let path = Path::new(RUN).join("health.json");
            if let Err(error) = rustiot_durable::atomic_write_volatile(&path, &text) {
                say(&format!("cannot show the status: {error}"));
            }
        }
    }
}

fn times(settings: &Settings, started: Duration) -> Times {
    Times {
        settle: settings.health.settle.get(),
        soak: settings.health.soak.get(),
        deadline: started.saturating_add(settings.health.deadline.get()),
        stable_after: Duration::ZERO,
    }
}

fn read_json<T: for<'a> Deserialize<'a>>(file: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(Path::new(RUN).join(file)).ok()?).ok()
}

/// Age of the boot, suspend included.
pub(crate) fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// One line for the journal.
fn say(text: &str) {
    eprintln!("rustiot-health: {text}");
}

/// To systemd; without it nobody listens, and what it does not hear harms nobody.
fn notify(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_interval_that_an_owner_may_set_counts_as_silence() {
        let seconds = Duration::from_secs;
        assert_eq!(alive_within(seconds(5)), ALIVE_WITHIN);
        // The longest that rustiot-config takes; 3600 s is the watchdog's own limit.
        assert_eq!(alive_within(seconds(600)), seconds(1200));
    }
}
