//! The service's logic between the tree and the world: who may say what, what a probe means, what an effect does.
//!
//! Talks to the world through [`Port`] only, so that its tests need neither a device nor root. Never blocks: what may
//! block runs in threads of the port. Called by [`crate::run`].

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use rustiot_config::WatchdogSettings;
use rustiot_liveness::{Message, Name, UnitName};

use crate::budget::Budget;
use crate::disk::{self, Found, Patience};
use crate::hardware::About;
use crate::status::{Entry, Status};
use crate::tree::{Ceiling, EXPECTED_WITHIN, Effect, Event, Limits, Now, Tree};

/// Most children of one user that is not root.
pub const MAX_CHILDREN_PER_USER: usize = 8;
/// Entries that the status keeps.
const MAX_LOG: usize = 32;
/// Refused datagrams are told so often at most.
const REFUSAL_PAUSE: Duration = Duration::from_secs(60);
/// How long PID 1 and the disk have for their first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(60);
/// Silence of the health service that counts as hung.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(120);

/// What the service does to the world. Nothing here may block.
pub trait Port {
    /// Feeds the hardware.
    ///
    /// # Errors
    /// The device's.
    fn feed(&mut self) -> io::Result<()>;
    /// Restarts units, the first one first.
    fn restart(&mut self, units: Vec<UnitName>);
    /// Notes the reason, then reboots.
    fn reboot(&mut self, reason: &str, forced: bool, budget: Budget);
    /// From now on nobody feeds.
    fn starve(&mut self, reason: &str);
    /// Remembers the budget.
    fn save(&mut self, budget: Budget);
    /// Tells the owner.
    fn say(&mut self, text: &str);
}

/// Who sent a datagram, from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Control group, as in `/proc/<pid>/cgroup` after `0::`; empty if it is gone.
    pub cgroup: String,
}

impl Sender {
    /// The unit that the sender runs in: the last service in its control group.
    fn unit(&self) -> Option<UnitName> {
        self.cgroup.rsplit('/').find_map(|part| UnitName::new(part).ok())
    }

    /// The slices above the unit.
    fn group(&self) -> String {
        self.cgroup.split('/').filter(|part| part.ends_with(".slice")).collect::<Vec<_>>().join("/")
    }

    /// Only services of the OS may cost a reboot: they sit in `system.slice` itself, and run as root or are ours.
    /// The control group cannot be forged by who is not root.
    fn ceiling(&self) -> Ceiling {
        let system = self.group() == "system.slice";
        let ours = self.unit().is_some_and(|u| u.as_str().starts_with("rustiot-"));
        if system && self.unit().is_some() && (self.uid == 0 || ours) {
            Ceiling::Reboot
        } else {
            Ceiling::Unit
        }
    }
}

/// The service.
pub struct Service {
    tree: Tree,
    owners: BTreeMap<Name, u32>,
    settings: WatchdogSettings,
    patience: Patience,
    disk_asked: Option<Duration>,
    disk_found: String,
    fed: u64,
    fed_at: Duration,
    feed_failed: bool,
    starving: Option<String>,
    refused_at: Option<Duration>,
    log: Vec<Entry>,
}

/// A builtin child's name.
fn builtin(name: &str) -> Option<Name> {
    Name::new(name).ok()
}

impl Service {
    /// `health_expected` is false in rescue, where nothing is decided about the release.
    #[must_use]
    pub fn new(now: Now, settings: WatchdogSettings, pid1_expected: bool, health_expected: bool) -> Self {
        let mut service = Self {
            tree: Tree::new(now),
            owners: BTreeMap::new(),
            settings: WatchdogSettings::default(),
            patience: Patience::default(),
            disk_asked: None,
            disk_found: "not asked yet".into(),
            fed: 0,
            fed_at: Duration::ZERO,
            feed_failed: false,
            starving: None,
            refused_at: None,
            log: Vec::new(),
        };
        service.configure(now, settings, pid1_expected);
        if let (true, Some(name)) = (health_expected, builtin("health")) {
            let unit = UnitName::new("rustiot-health.service").ok();
            service.owners.insert(name.clone(), 0);
            service.tree.expect(now, name, unit, HEALTH_TIMEOUT, Ceiling::Reboot, EXPECTED_WITHIN);
        }
        service
    }

    /// Takes over settings, at start and when provisioning has written them.
    pub fn configure(&mut self, now: Now, settings: WatchdogSettings, pid1_expected: bool) {
        let limits = Limits {
            restarts: settings.restarts,
            restart_window: settings.restart_window.get(),
            reboots: settings.reboots,
            reboot_window: settings.reboot_window.get(),
        };
        let _ = self.tree.step(now, Event::Limits(limits));
        let disk = settings.disk_timeout.get();
        for (name, timeout, wanted) in [
            // The probe itself comes only so often.
            ("disk", disk.saturating_add(disk::EVERY), true),
            ("pid1", settings.pid1_timeout.get(), pid1_expected),
        ] {
            if let (true, Some(name)) = (wanted, builtin(name)) {
                self.tree.expect(now, name, None, timeout, Ceiling::ForcedReboot, FIRST_ANSWER);
            }
        }
        self.settings = settings;
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &WatchdogSettings {
        &self.settings
    }

    /// An event of the tree from elsewhere: budget, trial, commit.
    pub fn event(&mut self, now: Now, event: Event, port: &mut impl Port) {
        let effects = self.tree.step(now, event);
        self.carry_out(now, effects, port);
    }

    /// Time has passed: looks at everything, and feeds.
    pub fn tick(&mut self, now: Now, writes: Option<u64>, port: &mut impl Port) {
        if let Some(asked) = self.disk_asked {
            let waiting = now.real.saturating_sub(asked);
            if self.patience.busy(waiting, self.settings.disk_timeout.get(), writes) {
                self.disk_found =
                    format!("busy: the probe waits for {} s behind other writes", waiting.as_secs());
                self.alive(now, "disk", port);
            }
        }
        self.event(now, Event::Tick, port);
    }

    /// A datagram came.
    pub fn datagram(&mut self, now: Now, sender: &Sender, bytes: &[u8], port: &mut impl Port) {
        let admitted = Message::parse(bytes).map_err(|e| e.to_string()).and_then(|m| self.admit(sender, m));
        match admitted {
            Ok(event) => self.event(now, event, port),
            // Anybody can send nonsense; the log is for what matters.
            Err(_) if self.refused_at.is_some_and(|at| now.real < at.saturating_add(REFUSAL_PAUSE)) => {}
            Err(why) => {
                self.refused_at = Some(now.real);
                self.note(now, format!("pid {} (uid {}): {why}", sender.pid, sender.uid), port);
            }
        }
    }

    /// PID 1 has answered.
    pub fn pid1_answered(&mut self, now: Now, port: &mut impl Port) {
        self.alive(now, "pid1", port);
    }

    /// The disk was asked.
    pub fn disk_asked(&mut self, now: Now) {
        self.disk_asked = Some(now.real);
    }

    /// The disk has answered, well or not.
    pub fn disk_answered(&mut self, now: Now, answer: &io::Result<Found>, port: &mut impl Port) {
        let asked = self.disk_asked.take().unwrap_or(now.real);
        let took = now.real.saturating_sub(asked).as_millis();
        let found = match answer {
            Ok(Found::Good) => "good".to_owned(),
            Ok(Found::Absent) => "no state file system".to_owned(),
            Err(error) => format!("error: {error}"),
        };
        if found.starts_with("error") && found != self.disk_found {
            self.note(now, format!("disk: {found} after {took} ms"), port);
        }
        self.disk_found = found;
        self.alive(now, "disk", port);
    }

    /// What the status file shows.
    #[must_use]
    pub fn status(&self, now: Now, hardware: Option<About>, timeout: Duration) -> Status {
        Status {
            hardware,
            timeout_s: timeout.as_secs(),
            fed: self.fed,
            starving: self.starving.clone(),
            fed_at_s: self.fed_at.as_secs(),
            children: self.tree.children(now),
            disk: self.disk_found.clone(),
            wanted: self.tree.wanted().map(str::to_owned),
            budget: self.tree.budget().clone(),
            stable_after_s: self.tree.stable_after().as_secs(),
            trial_deadline_s: self.tree.trial_deadline().map(|d| d.as_secs()),
            log: self.log.clone(),
        }
    }

    /// Whether the trial still waits for its commit.
    #[must_use]
    pub fn on_trial(&self) -> bool {
        self.tree.trial_deadline().is_some()
    }

    fn alive(&mut self, now: Now, name: &str, port: &mut impl Port) {
        if let Some(name) = builtin(name) {
            self.event(now, Event::Alive(name), port);
        }
    }

    /// Turns a message into an event if its sender may say it.
    fn admit(&mut self, sender: &Sender, message: Message) -> Result<Event, String> {
        let name = match &message {
            Message::Stopping if sender.uid == 0 => return Ok(Event::Stopping),
            Message::Stopping => return Err("only root may announce a shutdown".into()),
            Message::Hello { name, .. }
            | Message::Alive(name)
            | Message::Bye(name)
            | Message::Fail { name, .. } => name.clone(),
        };
        if ["pid1", "disk"].contains(&name.as_str()) {
            return Err(format!("nobody speaks for {name}"));
        }
        let owner = self.owners.get(&name).copied();
        match (&message, owner) {
            (_, Some(owner)) if sender.uid == 0 || sender.uid == owner => {}
            (_, Some(owner)) => return Err(format!("{name} belongs to uid {owner}")),
            (Message::Hello { .. }, None) => {}
            // After our own restart nobody is registered; clients say hello again by themselves.
            (_, None) => return Err(format!("{name} has not said hello")),
        }
        Ok(match message {
            Message::Hello { name, timeout, unit } => {
                let own = sender.unit();
                if sender.uid != 0 && unit.is_some() && unit != own {
                    return Err(format!("{name} may not have another unit than its own restarted"));
                }
                let theirs = self.owners.values().filter(|uid| **uid == sender.uid).count();
                if owner.is_none() && sender.uid != 0 && theirs >= MAX_CHILDREN_PER_USER {
                    return Err(format!("uid {} has {theirs} children already", sender.uid));
                }
                let event = Event::Hello {
                    name: name.clone(),
                    unit: unit.or(own),
                    group: sender.group(),
                    timeout,
                    ceiling: sender.ceiling(),
                    pid: sender.pid,
                };
                if self.owners.len() < crate::tree::MAX_CHILDREN {
                    self.owners.entry(name).or_insert(sender.uid);
                }
                event
            }
            Message::Alive(name) => Event::Alive(name),
            Message::Bye(name) => Event::Bye(name),
            Message::Fail { name, reason } => Event::Fail { name, reason },
            Message::Stopping => Event::Stopping,
        })
    }

    fn carry_out(&mut self, now: Now, effects: Vec<Effect>, port: &mut impl Port) {
        for effect in effects {
            match effect {
                Effect::Feed => self.feed(now, port),
                Effect::Restart { units, reason } => {
                    let list: Vec<&str> = units.iter().map(UnitName::as_str).collect();
                    self.note(now, format!("{reason}: restarting {}", list.join(", ")), port);
                    port.restart(units);
                }
                Effect::Reboot { reason, forced, budget } => {
                    self.note(now, format!("rebooting: {reason}"), port);
                    port.reboot(&reason, forced, budget);
                }
                Effect::Starve { reason } => {
                    self.note(now, format!("no longer feeding the hardware: {reason}"), port);
                    self.starving = Some(reason.clone());
                    port.starve(&reason);
                }
                Effect::Save(budget) => port.save(budget),
                Effect::Say(text) => self.note(now, text, port),
            }
        }
        let known: Vec<Name> = self.tree.children(now).into_iter().map(|c| c.name).collect();
        self.owners.retain(|name, _| known.contains(name));
    }

    fn feed(&mut self, now: Now, port: &mut impl Port) {
        match port.feed() {
            Ok(()) => {
                self.fed = self.fed.saturating_add(1);
                self.fed_at = now.real;
                self.feed_failed = false;
            }
            Err(error) if !self.feed_failed => {
                self.feed_failed = true;
                self.note(now, format!("cannot feed the hardware: {error}"), port);
            }
            Err(_) => {}
        }
    }

    fn note(&mut self, now: Now, text: String, port: &mut impl Port) {
        port.say(&text);
        if self.log.len() >= MAX_LOG {
            self.log.remove(0);
        }
        self.log.push(Entry { at_s: now.real.as_secs(), text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[derive(Default)]
    struct Fake {
        log: Vec<String>,
        fed: u32,
        broken: bool,
    }

    impl Port for Fake {
        fn feed(&mut self) -> io::Result<()> {
            if self.broken {
                return Err(io::Error::from_raw_os_error(5));
            }
            self.fed += 1;
            Ok(())
        }

        fn restart(&mut self, units: Vec<UnitName>) {
            self.log.push(format!("restart {units:?}"));
        }

        fn reboot(&mut self, reason: &str, forced: bool, budget: Budget) {
            self.log.push(format!("reboot forced={forced} level={} {reason}", budget.level));
        }

        fn starve(&mut self, reason: &str) {
            self.log.push(format!("starve {reason}"));
        }

        fn save(&mut self, budget: Budget) {
            self.log.push(format!("save {}", budget.level));
        }

        fn say(&mut self, text: &str) {
            self.log.push(text.to_owned());
        }
    }

    fn at(s: u32) -> Now {
        Now { real: S * s, soft: S * s }
    }

    fn service() -> (Service, Fake) {
        let mut port = Fake::default();
        let mut service = Service::new(at(0), WatchdogSettings::default(), true, true);
        service.event(at(0), Event::Remembered(Budget::default()), &mut port);
        (service, port)
    }

    fn from(uid: u32, cgroup: &str) -> Sender {
        Sender { pid: 100 + uid as i32, uid, cgroup: cgroup.to_owned() }
    }

    const ENGINE: &str = "/system.slice/rustiot-engine.service";

    #[test]
    fn who_may_speak_for_whom() {
        let refused: &[(Sender, &str, &str)] = &[
            (from(0, ENGINE), "ALIVE pid1", "nobody speaks for pid1"),
            (from(0, ENGINE), "HELLO disk 10", "nobody speaks for disk"),
            (from(1000, ENGINE), "HELLO health 10", "health belongs to uid 0"),
            (from(1000, ENGINE), "ALIVE engine", "engine belongs to uid 0"),
            (from(1000, ENGINE), "STOPPING", "only root may announce a shutdown"),
            (from(0, ENGINE), "ALIVE other", "other has not said hello"),
            (from(7, "/user.slice/x.service"), "HELLO x 9 ssh.service", "may not have another unit"),
            (from(0, ENGINE), "what", "unknown verb"),
        ];
        for (sender, text, expected) in refused {
            let (mut service, mut port) = service();
            service.datagram(at(1), &from(0, ENGINE), b"HELLO engine 30", &mut port);
            service.datagram(at(1), sender, text.as_bytes(), &mut port);
            assert!(port.log.iter().any(|l| l.contains(expected)), "{text}: {:?}", port.log);
        }
        let (mut service, mut port) = service();
        for (sender, text) in [
            (from(0, ENGINE), "HELLO engine 30"),
            (from(0, "/user.slice/session-1.scope"), "ALIVE engine"),
            (from(0, "/system.slice/rustiot-health.service"), "HELLO health 60"),
            (from(990, "/system.slice/rustiot-update.service"), "HELLO update 60"),
            (from(990, "/system.slice/rustiot-update.service"), "BYE update"),
            (from(991, "/system.slice/other.service"), "HELLO update 60 other.service"),
        ] {
            service.datagram(at(1), &sender, text.as_bytes(), &mut port);
        }
        assert_eq!(port.log, [] as [&str; 0]);
    }

    #[test]
    fn only_services_of_the_os_may_cost_a_reboot() {
        let table = [
            (from(0, ENGINE), Ceiling::Reboot),
            (from(990, "/system.slice/rustiot-update.service"), Ceiling::Reboot),
            (from(0, "/system.slice/rustiot-engine.service/payload/x"), Ceiling::Reboot),
            (from(990, "/system.slice/web.service"), Ceiling::Unit),
            (from(0, "/rustiot-apps.slice/web.service"), Ceiling::Unit),
            (from(0, "/user.slice/user-0.slice/session-1.scope"), Ceiling::Unit),
            (from(0, ""), Ceiling::Unit),
        ];
        for (sender, ceiling) in table {
            assert_eq!(sender.ceiling(), ceiling, "{sender:?}");
        }
        assert_eq!(
            from(0, "/user.slice/user-0.slice/session-1.scope").unit(),
            None,
            "a scope has no restart"
        );
    }

    #[test]
    fn one_user_cannot_fill_the_tree() {
        let (mut service, mut port) = service();
        for i in 0..50 {
            let text = format!("HELLO app{i} 60");
            service.datagram(at(1), &from(1000, "/system.slice/app.service"), text.as_bytes(), &mut port);
        }
        assert_eq!(service.status(at(1), None, S).children.len(), 3 + MAX_CHILDREN_PER_USER);
        assert_eq!(port.log.len(), 1, "told once, not 42 times");
    }

    #[test]
    fn a_hung_pid_1_ends_in_a_forced_reboot_and_then_in_hunger() {
        let (mut service, mut port) = service();
        let mut s = 0;
        let mut run = |service: &mut Service, port: &mut Fake, seconds: u32, pid1: bool| {
            for _ in 0..seconds / 10 {
                s += 10;
                service.disk_asked(at(s));
                service.disk_answered(at(s), &Ok(Found::Good), port);
                if pid1 {
                    service.pid1_answered(at(s), port);
                }
                service.tick(at(s), None, port);
            }
        };
        run(&mut service, &mut port, 500, true);
        assert_eq!((port.log.len(), port.fed), (0, 50));
        run(&mut service, &mut port, 100, false);
        let orders: Vec<&String> =
            port.log.iter().filter(|l| l.starts_with("reboot ") || l.starts_with("starve")).collect();
        let reason = "pid1 gave no sign of life for 60 s";
        assert_eq!(orders, [&format!("reboot forced=true level=1 {reason}"), &format!("starve {reason}")]);
        let fed = port.fed;
        run(&mut service, &mut port, 100, true);
        assert_eq!(port.fed, fed, "no way back");
        let status = service.status(at(700), None, S * 60);
        assert_eq!(status.starving.as_deref(), Some(reason));
    }

    #[test]
    fn a_stalled_write_reboots_and_a_busy_disk_does_not() {
        for (busy, expected) in [(false, 1), (true, 0)] {
            let (mut service, mut port) = service();
            service.disk_asked(at(0));
            service.disk_answered(at(0), &Ok(Found::Good), &mut port);
            service.disk_asked(at(30));
            for s in (30..330).step_by(10) {
                service.pid1_answered(at(s), &mut port);
                let writes = if busy { u64::from(s) } else { 5 };
                service.tick(at(s), Some(writes), &mut port);
            }
            let reboots = port.log.iter().filter(|l| l.starts_with("reboot forced=true")).count();
            assert_eq!(reboots, expected, "{:?}", port.log);
        }
    }

    #[test]
    fn an_error_of_the_disk_is_told_once_and_is_no_stall() {
        let (mut service, mut port) = service();
        for s in (0..600).step_by(10) {
            service.pid1_answered(at(s), &mut port);
            service.disk_asked(at(s));
            service.disk_answered(at(s), &Err(io::Error::from_raw_os_error(30)), &mut port);
            service.tick(at(s), None, &mut port);
        }
        assert_eq!(port.log.len(), 1, "{:?}", port.log);
        assert!(service.status(at(600), None, S).disk.contains("Read-only"));
    }

    #[test]
    fn a_device_that_cannot_be_fed_is_told_once_and_counted_honestly() {
        let (mut service, mut port) = service();
        port.broken = true;
        for s in 0..5 {
            service.tick(at(s), None, &mut port);
        }
        assert_eq!(port.log.len(), 1);
        assert_eq!(service.status(at(5), None, S).fed, 0);
    }

    #[test]
    fn the_log_is_bounded() {
        let (mut service, mut port) = service();
        for i in 0..100 {
            service.datagram(at(i * 60), &from(5, ""), b"?", &mut port);
        }
        assert_eq!(port.log.len(), 100);
        assert_eq!(service.status(at(1), None, S).log.len(), MAX_LOG);
    }
}
