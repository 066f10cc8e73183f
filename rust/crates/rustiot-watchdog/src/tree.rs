//! The liveness tree: who is watched, when silence counts, and what is done about it.
//!
//! Pure: [`Tree::step`] takes the time and an event and returns effects; [`crate::service`] supplies the clock
//! and carries the effects out. Every restart and reboot is rate-limited, and every limit decays or doubles up
//! to a bound: nothing is ever given up.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use rustiot_liveness::{Name, UnitName};

/// Most children that are watched at a time; further ones are refused.
pub const MAX_CHILDREN: usize = 64;
/// Shortest time that a restarted unit has before its silence counts again.
pub const RESTART_GRACE: Duration = Duration::from_secs(60);
/// Longest pause between two restarts of a unit that may not ask for a reboot.
pub const LONGEST_GRACE: Duration = Duration::from_secs(3600);
/// How long an ordered reboot may take before the hardware is left to do it.
pub const REBOOT_GRACE: Duration = Duration::from_secs(90);
/// The same where PID 1 or the disk hangs and the kernel is asked directly.
pub const FORCED_GRACE: Duration = Duration::from_secs(30);
/// How long an orderly shutdown may take.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(150);
/// How long an expected child has to register, counted from the first step.
pub const EXPECTED_WITHIN: Duration = Duration::from_secs(600);
/// Boots that fail before the boot policy changes the slot.
pub const LATE_BOOTS: u32 = rustiot_boot::LATE_MAX;
/// The group is restarted for so many troubles beyond `restarts`, before a reboot.
pub const GROUP_RESTARTS: u32 = 2;
/// A budget that could not be read yet allows no reboot before this age of the boot.
pub const UNKNOWN_BUDGET_PAUSE: Duration = Duration::from_secs(600);

/// The time of a step. Both run since boot, suspend included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Real time.
    pub real: Duration,
    /// Time as far as processes of normal priority got to run in it (see [`crate::clock`]): what a child's
    /// silence is measured in, so that load alone is no failure.
    pub soft: Duration,
}

/// What the owner can set (`watchdog.*` in `rustiot.toml`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Troubles that are answered by restarting the unit (which systemd has done already after a crash); two
    /// further ones by restarting every registered unit of its slice, all others by a reboot.
    pub restarts: u32,
    /// Time in which a child that lives well loses all points of `restarts`.
    pub restart_window: Duration,
    /// Reboots before the other slot boots; see [`Tree::stable_after`].
    pub reboots: u32,
    /// Running time without trouble that takes one reboot back.
    pub reboot_window: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            restarts: 3,
            restart_window: Duration::from_secs(600),
            reboots: 3,
            reboot_window: Duration::from_secs(86_400),
        }
    }
}

impl Limits {
    /// How long a child must live well to lose one point.
    fn point(&self) -> Duration {
        self.restart_window.checked_div(self.restarts.max(1)).unwrap_or_default().max(Duration::from_secs(1))
    }

    fn restart_group_up_to(&self) -> u32 {
        self.restarts.saturating_add(GROUP_RESTARTS)
    }
}

/// The last resort that trouble with a child may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ceiling {
    /// Restart its unit, at a growing pause. For whatever does not run as root.
    Unit,
    /// Reboot the device.
    Reboot,
    /// Reboot at once, past systemd: for PID 1 and the disk, where nothing orderly would end.
    ForcedReboot,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// A child registers.
    Hello {
        /// Its name.
        name: Name,
        /// The unit to restart.
        unit: Option<UnitName>,
        /// Units of the same group are restarted together (the slice).
        group: String,
        /// Silence that counts as hung.
        timeout: Duration,
        /// How far its trouble may go.
        ceiling: Ceiling,
        /// Who it is: another process under the same name has replaced one that died.
        pid: i32,
    },
    /// A child makes progress.
    Alive(Name),
    /// A child ends in order.
    Bye(Name),
    /// A child asks for a reboot; repeated while it holds, withdrawn by `Alive`.
    Fail {
        /// Its name.
        name: Name,
        /// Why.
        reason: String,
    },
    /// The owner's limits.
    Limits(Limits),
    /// What earlier boots left of the reboot budget.
    Remembered(Budget),
    /// This boot is a trial that must be committed before this time.
    Trial {
        /// Time since boot.
        deadline: Duration,
    },
    /// The trial is over: committed.
    Committed,
    /// The system shuts down in order.
    Stopping,
}

/// What is to be done. Each is harmless when it is done twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Feed the hardware.
    Feed,
    /// Restart these units.
    Restart {
        /// The units, the silent one first.
        units: Vec<UnitName>,
        /// Why.
        reason: String,
    },
    /// Write down the reason (in the boot ledger, too: the boot was not healthy) and the budget, both bounded in
    /// time, then reboot.
    Reboot {
        /// Why.
        reason: String,
        /// Past systemd, without waiting for the disk.
        forced: bool,
        /// To be remembered.
        budget: Budget,
    },
    /// The hardware gets no more: it resets the machine within its timeout.
    Starve {
        /// Why.
        reason: String,
    },
    /// Remember the budget.
    Save(Budget),
    /// Tell the owner.
    Say(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Child {
    unit: Option<UnitName>,
    group: String,
    timeout: Duration,
    ceiling: Ceiling,
    pid: Option<i32>,
    /// Always watched: it must come back after `Bye`.
    expected: bool,
    /// Soft time of the last sign of life.
    last: Duration,
    /// Soft time before which silence does not count.
    grace_until: Duration,
    score: u32,
    /// Soft time at which the score last changed.
    score_at: Duration,
    /// We restarted it ourselves: the next `Hello` of another process is no crash.
    excused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    by: Name,
    reason: String,
    forced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Ending {
    since: Duration,
    limit: Duration,
    reason: String,
}

/// The tree. Build it with [`Tree::new`], drive it with [`Tree::step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    limits: Limits,
    children: BTreeMap<Name, Child>,
    budget: Budget,
    budget_known: bool,
    trial: Option<Duration>,
    wanted: Option<Wanted>,
    ending: Option<Ending>,
    starving: bool,
    earned_at: Duration,
}

/// A child as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStatus {
    /// Its name.
    pub name: Name,
    /// Unit that is restarted.
    pub unit: Option<UnitName>,
    /// Silence that counts as hung, in seconds.
    pub timeout_s: u64,
    /// Seconds since the last sign of life.
    pub age_s: u64,
    /// Recent trouble; 0 is none.
    pub score: u32,
    /// The last resort.
    pub ceiling: Ceiling,
}

impl Tree {
    /// A tree that watches nobody yet.
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self {
            limits: Limits::default(),
            children: BTreeMap::new(),
            budget: Budget::default(),
            budget_known: false,
            trial: None,
            wanted: None,
            ending: None,
            starving: false,
            earned_at: now.real,
        }
    }

    /// Adds a child that is watched whether or not it registers. `first_sign_within` is how long it may be
    /// silent from now on before its `timeout` counts. One that is watched already only gets the new `timeout`.
    pub fn expect(
        &mut self,
        now: Now,
        name: Name,
        unit: Option<UnitName>,
        timeout: Duration,
        ceiling: Ceiling,
        first_sign_within: Duration,
    ) {
        if let Some(known) = self.children.get_mut(&name) {
            known.timeout = timeout;
            return;
        }
        let child = Child {
            unit,
            group: String::new(),
            timeout,
            ceiling,
            pid: None,
            expected: true,
            last: now.soft,
            grace_until: now.soft.saturating_add(first_sign_within),
            score: 0,
            score_at: now.soft,
            excused: true,
        };
        self.children.insert(name, child);
    }

    /// One step: total over every state and event.
    #[must_use]
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Tick => self.tick(now, &mut effects),
            Event::Hello { name, unit, group, timeout, ceiling, pid } => {
                let known = self.children.get(&name);
                if known.is_none() && self.children.len() >= MAX_CHILDREN {
                    effects
                        .push(Effect::Say(format!("{name}: refused, {MAX_CHILDREN} children are watched")));
                    return effects;
                }
                let crashed = known.is_some_and(|c| !c.excused && c.pid.is_some_and(|old| old != pid));
                let mut child = known.cloned().unwrap_or(Child {
                    unit: None,
                    group: String::new(),
                    timeout,
                    ceiling,
                    pid: None,
                    expected: false,
                    last: now.soft,
                    grace_until: now.soft,
                    score: 0,
                    score_at: now.soft,
                    excused: false,
                });
                child.unit = unit.or(child.unit);
                child.group = group;
                child.timeout = timeout;
                child.pid = Some(pid);
                let well_until = child.last;
                child.last = now.soft;
                child.grace_until = now.soft;
                child.excused = false;
                if !child.expected {
                    child.ceiling = ceiling;
                }
                self.children.insert(name.clone(), child);
                if crashed {
                    self.trouble(now, &name, Trouble::Crash, well_until, &mut effects);
                }
            }
            Event::Alive(name) => {
                if let Some(child) = self.children.get_mut(&name) {
                    child.last = now.soft;
                    child.grace_until = now.soft;
                    self.withdraw(&name);
                }
            }
            Event::Bye(name) => {
                self.withdraw(&name);
                if let Some(child) = self.children.get_mut(&name) {
                    if child.expected {
                        child.last = now.soft;
                        child.grace_until = now.soft.saturating_add(EXPECTED_WITHIN);
                        child.excused = true;
                    } else {
                        self.children.remove(&name);
                    }
                }
            }
            Event::Fail { name, reason } => {
                if let Some(child) = self.children.get_mut(&name) {
                    child.last = now.soft;
                    child.grace_until = now.soft;
                    if child.ceiling == Ceiling::Unit {
                        effects.push(Effect::Say(format!("{name} may not ask for a reboot: {reason}")));
                    } else {
                        self.want_reboot(now, &name, format!("{name}: {reason}"), false, &mut effects);
                    }
                }
            }
            Event::Limits(limits) => self.limits = limits,
            Event::Remembered(budget) => {
                self.budget = budget;
                self.budget_known = true;
                self.earned_at = now.real;
            }
            Event::Trial { deadline } => self.trial = Some(deadline),
            Event::Committed => self.trial = None,
            Event::Stopping => {
                if self.ending.is_none() {
                    self.wanted = None;
                    self.ending = Some(Ending {
                        since: now.real,
                        limit: SHUTDOWN_LIMIT,
                        reason: "the shutdown hangs".into(),
                    });
                }
            }
        }
        effects
    }

    fn tick(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let Some(ending) = &self.ending {
            if now.real.saturating_sub(ending.since) >= ending.limit && !self.starving {
                self.starving = true;
                effects.push(Effect::Starve { reason: ending.reason.clone() });
            }
        } else {
            self.look_for_silence(now, effects);
            self.look_at_deadline(now, effects);
            self.look_at_wanted(now, effects);
            self.earn(now, effects);
        }
        if !self.starving {
            effects.push(Effect::Feed);
        }
    }

    fn look_for_silence(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let silent: Vec<(Name, Duration)> = self
            .children
            .iter()
            .filter(|(_, c)| {
                let since = c.last.max(c.grace_until);
                now.soft > since && now.soft.saturating_sub(since) >= c.timeout
            })
            .map(|(name, c)| (name.clone(), c.last))
            .collect();
        for (name, well_until) in silent {
            self.trouble(now, &name, Trouble::Silence, well_until, effects);
        }
    }

    fn look_at_deadline(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let Some(deadline) = self.trial.filter(|d| now.real >= *d)
            && self.ending.is_none()
        {
            let reason = format!("trial was not committed within {} s", deadline.as_secs());
            self.reboot(now, reason, false, effects);
        }
    }

    fn look_at_wanted(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.ending.is_none()
            && let Some(wanted) = self.wanted.clone()
            && now.real >= self.earliest_reboot()
        {
            self.reboot(now, wanted.reason, wanted.forced, effects);
        }
    }

    fn earn(&mut self, now: Now, effects: &mut Vec<Effect>) {
        const STEP: Duration = Duration::from_secs(3600);
        let span = now.real.saturating_sub(self.earned_at);
        if span < STEP {
            return;
        }
        self.earned_at = now.real;
        if self.budget.level > 0 && self.budget_known && self.wanted.is_none() {
            self.budget = self.budget.earn(span, self.limits.reboot_window);
            effects.push(Effect::Save(self.budget.clone()));
        }
    }

    /// One more trouble with `name`, which had lived well until `well_until`: scores it and answers.
    fn trouble(
        &mut self,
        now: Now,
        name: &Name,
        trouble: Trouble,
        well_until: Duration,
        effects: &mut Vec<Effect>,
    ) {
        if self.ending.is_some() {
            return;
        }
        let (restarts, group_up_to) = (self.limits.restarts, self.limits.restart_group_up_to());
        let point = self.limits.point();
        let Some(child) = self.children.get_mut(name) else { return };
        let silent_s = now.soft.saturating_sub(child.last).as_secs();
        let well = well_until.saturating_sub(child.score_at);
        let decayed = well.as_millis().checked_div(point.as_millis()).unwrap_or(0);
        let decayed = u32::try_from(decayed).unwrap_or(u32::MAX);
        child.score = child.score.saturating_sub(decayed).saturating_add(1);
        child.score_at = now.soft;
        let reason = match trouble {
            Trouble::Silence => format!("{name} gave no sign of life for {silent_s} s"),
            Trouble::Crash => format!("{name} died {} times in a short time", child.score),
        };
        let beyond = child.score.saturating_sub(group_up_to).min(16);
        let pause = child.timeout.max(RESTART_GRACE).saturating_mul(1 << beyond).min(LONGEST_GRACE);
        child.grace_until = now.soft.saturating_add(pause);
        let (unit, ceiling, score) = (child.unit.clone(), child.ceiling, child.score);

        match (ceiling, unit) {
            (Ceiling::ForcedReboot, _) => self.want_reboot(now, name, reason, true, effects),
            (Ceiling::Reboot, None) => self.want_reboot(now, name, reason, false, effects),
            (Ceiling::Unit, None) => {
                self.children.remove(name);
                effects.push(Effect::Say(format!("{reason}; it has no unit to restart and is forgotten")));
            }
            (Ceiling::Reboot, Some(unit)) if score > group_up_to => {
                self.want_reboot(now, name, reason.clone(), false, effects);
                if self.ending.is_none() {
                    self.restart(now, name, vec![unit], reason, effects);
                }
            }
            (_, Some(_)) if trouble == Trouble::Crash && score <= restarts => {}
            (Ceiling::Unit, Some(unit)) => self.restart(now, name, vec![unit], reason, effects),
            (Ceiling::Reboot, Some(unit)) if score <= restarts => {
                self.restart(now, name, vec![unit], reason, effects);
            }
            (Ceiling::Reboot, Some(unit)) => {
                let units = self.group_of(name, unit);
                self.restart(now, name, units, reason, effects);
            }
        }
    }

    /// `unit` and, once each, the units of all children in the same group that may reboot the device as well.
    fn group_of(&self, name: &Name, unit: UnitName) -> Vec<UnitName> {
        let group = self.children.get(name).map(|c| c.group.clone()).unwrap_or_default();
        let mut units = vec![unit];
        for child in self.children.values().filter(|c| c.group == group && c.ceiling == Ceiling::Reboot) {
            if let Some(unit) = &child.unit
                && !units.contains(unit)
            {
                units.push(unit.clone());
            }
        }
        units
    }

    fn restart(
        &mut self,
        now: Now,
        by: &Name,
        units: Vec<UnitName>,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        for (name, child) in &mut self.children {
            if child.unit.as_ref().is_some_and(|u| units.contains(u)) {
                child.excused = true;
                if name != by {
                    child.grace_until =
                        child.grace_until.max(now.soft.saturating_add(child.timeout.max(RESTART_GRACE)));
                }
            }
        }
        effects.push(Effect::Restart { units, reason });
    }

    /// When the budget allows the next reboot, as age of this boot.
    fn earliest_reboot(&self) -> Duration {
        match (self.trial.is_some(), self.budget_known) {
            (true, _) => Duration::ZERO,
            (false, true) => self.budget.pause(),
            (false, false) => UNKNOWN_BUDGET_PAUSE,
        }
    }

    fn want_reboot(&mut self, now: Now, by: &Name, reason: String, forced: bool, effects: &mut Vec<Effect>) {
        if self.ending.is_some() {
            return;
        }
        let earliest = self.earliest_reboot();
        if now.real >= earliest {
            self.reboot(now, reason, forced, effects);
        } else if self.wanted.as_ref().is_none_or(|w| w.by != *by)
            && !self.wanted.as_ref().is_some_and(|w| w.forced)
        {
            let wait = earliest.saturating_sub(now.real).as_secs();
            effects
                .push(Effect::Say(format!("{reason}: reboot in {wait} s unless it recovers (rate limit)")));
            self.wanted = Some(Wanted { by: by.clone(), reason, forced });
        }
    }

    fn withdraw(&mut self, by: &Name) {
        if self.wanted.as_ref().is_some_and(|w| w.by == *by) {
            self.wanted = None;
        }
    }

    fn reboot(&mut self, now: Now, reason: String, forced: bool, effects: &mut Vec<Effect>) {
        if self.trial.is_none() {
            self.budget = self.budget.spend(&reason);
        }
        let limit = if forced { FORCED_GRACE } else { REBOOT_GRACE };
        self.wanted = None;
        self.ending = Some(Ending { since: now.real, limit, reason: reason.clone() });
        effects.push(Effect::Reboot { reason, forced, budget: self.budget.clone() });
    }

    /// The children for the status file.
    #[must_use]
    pub fn children(&self, now: Now) -> Vec<ChildStatus> {
        self.children
            .iter()
            .map(|(name, c)| ChildStatus {
                name: name.clone(),
                unit: c.unit.clone(),
                timeout_s: c.timeout.as_secs(),
                age_s: now.soft.saturating_sub(c.last).as_secs(),
                score: c.score,
                ceiling: c.ceiling,
            })
            .collect()
    }

    /// The reboot budget.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// How old this boot must be before it may be called stable.
    ///
    /// The last step of the escalation, the other slot, is the boot policy's: it takes it after [`LATE_BOOTS`]
    /// boots that failed before they were stable. So once the watchdog has rebooted often enough, a boot must
    /// outlive twice the pause before the next reboot to be stable, and a fault that returns is counted.
    #[must_use]
    pub fn stable_after(&self) -> Duration {
        let counted = self.budget.level > 0
            && self.budget.level.saturating_add(LATE_BOOTS) > self.limits.reboots.max(LATE_BOOTS);
        if counted { self.budget.pause().saturating_mul(2) } else { Duration::ZERO }
    }

    /// Why a reboot is wanted that the budget still holds back.
    #[must_use]
    pub fn wanted(&self) -> Option<&str> {
        self.wanted.as_ref().map(|w| w.reason.as_str())
    }

    /// Time since boot at which an uncommitted trial ends.
    #[must_use]
    pub fn trial_deadline(&self) -> Option<Duration> {
        self.trial
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Silence,
    Crash,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn at(s: u64) -> Now {
        Now { real: S * s as u32, soft: S * s as u32 }
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn unit(text: &str) -> UnitName {
        UnitName::new(text).unwrap()
    }

    fn hello(text: &str, pid: i32, ceiling: Ceiling) -> Event {
        Event::Hello {
            name: name(text),
            unit: Some(unit(&format!("{text}.service"))),
            group: "system.slice".into(),
            timeout: S * 30,
            ceiling,
            pid,
        }
    }

    /// A tree that runs at virtual time and notes what was ordered when.
    struct Device {
        tree: Tree,
        s: u64,
        log: Vec<(u64, Effect)>,
        fed: u64,
    }

    impl Device {
        fn new(budget: Option<Budget>) -> Self {
            let mut tree = Tree::new(at(10));
            if let Some(budget) = budget {
                let _ = tree.step(at(10), Event::Remembered(budget));
            }
            Self { tree, s: 10, log: Vec::new(), fed: 0 }
        }

        fn say(&mut self, event: Event) {
            for effect in self.tree.step(at(self.s), event) {
                if effect == Effect::Feed {
                    self.fed += 1;
                } else {
                    self.log.push((self.s, effect));
                }
            }
        }

        fn run(&mut self, seconds: u64, mut each: impl FnMut(&mut Self)) {
            for _ in 0..seconds {
                self.s += 1;
                each(self);
                self.say(Event::Tick);
            }
        }

        fn restarts(&self) -> Vec<(u64, Vec<&str>)> {
            let units = |e: &'_ Effect| match e {
                Effect::Restart { units, .. } => Some(units.len()),
                _ => None,
            };
            self.log
                .iter()
                .filter(|(_, e)| units(e).is_some())
                .map(|(s, e)| match e {
                    Effect::Restart { units, .. } => (*s, units.iter().map(UnitName::as_str).collect()),
                    _ => (*s, Vec::new()),
                })
                .collect()
        }

        fn reboots(&self) -> Vec<(u64, bool)> {
            self.log
                .iter()
                .filter_map(|(s, e)| match e {
                    Effect::Reboot { forced, .. } => Some((*s, *forced)),
                    _ => None,
                })
                .collect()
        }

        fn starved(&self) -> Option<u64> {
            self.log.iter().find(|(_, e)| matches!(e, Effect::Starve { .. })).map(|(s, _)| *s)
        }
    }

    #[test]
    fn a_healthy_device_is_fed_and_nothing_else_happens() {
        let mut d = Device::new(Some(Budget::default()));
        d.say(hello("engine", 7, Ceiling::Reboot));
        d.run(10_000, |d| {
            if d.s.is_multiple_of(10) {
                d.say(Event::Alive(name("engine")));
            }
        });
        assert_eq!((d.fed, d.log.as_slice()), (10_000, [].as_slice()));
    }

    #[test]
    fn a_silent_service_climbs_from_unit_to_group_to_reboot() {
        let mut d = Device::new(Some(Budget::default()));
        d.say(hello("engine", 7, Ceiling::Reboot));
        d.say(hello("update", 8, Ceiling::Reboot));
        d.say(hello("app", 9, Ceiling::Unit));
        d.run(1000, |d| {
            d.say(Event::Alive(name("update")));
            d.say(Event::Alive(name("app")));
        });
        // 30 s of silence, then 60 s of grace and 30 s of silence again.
        assert_eq!(
            d.restarts(),
            [
                (40, vec!["engine.service"]),
                (130, vec!["engine.service"]),
                (220, vec!["engine.service"]),
                (310, vec!["engine.service", "update.service"]),
                (400, vec!["engine.service", "update.service"]),
            ]
        );
        assert_eq!(d.reboots(), [(490, false)]);
        assert_eq!(d.starved(), Some(490 + REBOOT_GRACE.as_secs()), "the hardware has the last word");
        assert_eq!(d.tree.budget().level, 1);
    }

    #[test]
    fn a_crash_loop_escalates_too_and_systemd_gets_the_first_tries() {
        let mut d = Device::new(Some(Budget::default()));
        let mut pid = 100;
        d.run(200, |d| {
            if d.s.is_multiple_of(5) {
                pid += 1;
                d.say(hello("engine", pid, Ceiling::Reboot));
                d.say(Event::Alive(name("engine")));
            }
        });
        // First hello at 15 s; crashes at 20, 25, 30 are left to systemd; the restart that we order is no crash.
        assert_eq!(d.restarts(), [(35, vec!["engine.service"]), (45, vec!["engine.service"])]);
        assert_eq!(d.reboots(), [(55, false)]);
    }

    #[test]
    fn an_orderly_restart_is_no_crash_and_old_sins_are_forgiven() {
        let mut d = Device::new(Some(Budget::default()));
        let mut pid = 100;
        d.run(2000, |d| {
            if d.s.is_multiple_of(5) {
                pid += 1;
                d.say(hello("engine", pid, Ceiling::Reboot));
                d.say(Event::Bye(name("engine")));
            }
        });
        assert_eq!(d.log, []);
        // One crash every half window, alive in between: three points go in the window, so it never climbs.
        d.run(20_000, |d| {
            if d.s.is_multiple_of(300) {
                pid += 1;
                d.say(hello("engine", pid, Ceiling::Reboot));
            } else if d.s.is_multiple_of(10) {
                d.say(Event::Alive(name("engine")));
            }
        });
        assert_eq!(d.log, []);
    }

    #[test]
    fn a_long_timeout_does_not_hide_a_service_that_hangs_after_every_restart() {
        let mut d = Device::new(Some(Budget::default()));
        let slow = Event::Hello {
            name: name("slow"),
            unit: Some(unit("slow.service")),
            group: "system.slice".into(),
            timeout: S * 1800,
            ceiling: Ceiling::Reboot,
            pid: 1,
        };
        d.say(slow);
        d.run(40_000, |_| {});
        assert_eq!(d.reboots().len(), 1, "{:?}", d.log);
    }

    #[test]
    fn an_app_never_reboots_the_device_and_is_never_given_up() {
        let mut d = Device::new(Some(Budget::default()));
        d.say(hello("app", 9, Ceiling::Unit));
        d.run(100_000, |d| {
            if d.s.is_multiple_of(100) {
                d.say(Event::Fail { name: name("app"), reason: "x".into() });
            }
        });
        assert_eq!(d.reboots(), []);
        let mut d = Device::new(Some(Budget::default()));
        d.say(hello("app", 9, Ceiling::Unit));
        d.run(100_000, |_| {});
        assert_eq!(d.reboots(), []);
        let times: Vec<u64> = d.restarts().iter().map(|(s, _)| *s).collect();
        let pauses: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(pauses.iter().all(|p| *p <= LONGEST_GRACE.as_secs() + 30), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&(LONGEST_GRACE.as_secs() + 30)), "rate-limited");
    }

    #[test]
    fn a_stalled_disk_or_pid_1_reboots_past_systemd() {
        for child in ["disk", "pid1"] {
            let mut d = Device::new(Some(Budget::default()));
            d.tree.expect(at(10), name(child), None, S * 60, Ceiling::ForcedReboot, Duration::ZERO);
            d.run(100, |d| d.say(Event::Alive(name(child))));
            d.run(100, |_| {});
            assert_eq!(d.reboots(), [(170, true)]);
            assert_eq!(d.starved(), Some(170 + FORCED_GRACE.as_secs()));
        }
    }

    #[test]
    fn a_disk_that_never_answered_waits_because_its_budget_is_unknown() {
        let mut d = Device::new(None);
        d.tree.expect(at(10), name("disk"), None, S * 60, Ceiling::ForcedReboot, Duration::ZERO);
        d.run(2000, |_| {});
        assert_eq!(d.reboots(), [(UNKNOWN_BUDGET_PAUSE.as_secs(), true)]);
    }

    #[test]
    fn each_reboot_waits_twice_as_long_and_recovery_withdraws_it() {
        for (level, pause) in [(0, 0), (1, 600), (2, 1200), (3, 2400), (9, 86_400), (12, 86_400)] {
            let budget = Budget { level, ..Budget::default() };
            let mut d = Device::new(Some(budget.clone()));
            d.tree.expect(at(10), name("disk"), None, S * 60, Ceiling::ForcedReboot, Duration::ZERO);
            d.run(90_000, |_| {});
            assert_eq!(d.reboots(), [(pause.max(70), true)], "level {level}");

            let mut d = Device::new(Some(budget));
            d.tree.expect(at(10), name("disk"), None, S * 60, Ceiling::ForcedReboot, Duration::ZERO);
            d.run(65, |_| {});
            d.run(4000, |d| d.say(Event::Alive(name("disk"))));
            if pause > 70 {
                assert_eq!(d.reboots(), [], "level {level}");
            }
        }
    }

    #[test]
    fn a_trial_that_is_not_committed_ends_at_its_deadline_without_a_pause() {
        let mut d = Device::new(Some(Budget { level: 9, ..Budget::default() }));
        d.say(Event::Trial { deadline: S * 480 });
        d.run(600, |_| {});
        assert_eq!(d.reboots(), [(480, false)]);
        assert_eq!(d.starved(), Some(570));
        assert_eq!(d.tree.budget().level, 9, "a failed trial costs the committed release nothing");

        let mut d = Device::new(Some(Budget::default()));
        d.say(Event::Trial { deadline: S * 480 });
        d.run(400, |_| {});
        d.say(Event::Committed);
        d.run(600, |_| {});
        assert_eq!(d.log, []);
    }

    #[test]
    fn a_shutdown_silences_the_children_but_not_for_ever() {
        let mut d = Device::new(Some(Budget::default()));
        d.say(hello("engine", 7, Ceiling::Reboot));
        d.say(Event::Stopping);
        d.run(SHUTDOWN_LIMIT.as_secs() - 1, |_| {});
        assert_eq!(d.log, []);
        let fed = d.fed;
        d.run(100, |_| {});
        assert_eq!((d.reboots(), d.starved(), d.fed), (vec![], Some(160), fed));
    }

    #[test]
    fn an_unfit_device_is_rebooted_on_request_within_the_budget() {
        let fail = |d: &mut Device| d.say(Event::Fail { name: name("health"), reason: "units".into() });
        let mut d = Device::new(Some(Budget { level: 1, ..Budget::default() }));
        d.say(hello("health", 7, Ceiling::Reboot));
        d.run(1000, fail);
        assert_eq!(d.reboots(), [(600, false)]);

        let mut d = Device::new(Some(Budget { level: 1, ..Budget::default() }));
        d.say(hello("health", 7, Ceiling::Reboot));
        d.run(300, fail);
        d.run(1000, |d| d.say(Event::Alive(name("health"))));
        assert_eq!(d.reboots(), []);
    }

    #[test]
    fn an_expected_child_that_never_comes_is_started_and_then_costs_a_reboot() {
        let mut d = Device::new(Some(Budget::default()));
        let health = Some(unit("rustiot-health.service"));
        d.tree.expect(at(10), name("health"), health, S * 60, Ceiling::Reboot, EXPECTED_WITHIN);
        d.run(659, |_| {});
        assert_eq!(d.log, []);
        d.run(1, |_| {});
        assert_eq!(d.restarts(), [(670, vec!["rustiot-health.service"])]);
        d.run(2000, |_| {});
        assert_eq!(d.reboots().len(), 1);
    }

    #[test]
    fn load_alone_is_no_failure() {
        let mut tree = Tree::new(at(0));
        let _ = tree.step(at(0), Event::Remembered(Budget::default()));
        let _ = tree.step(at(0), hello("engine", 7, Ceiling::Reboot));
        // An hour in which normal processes got 29 seconds.
        for s in 1..3600 {
            let now = Now { real: S * s, soft: S * (s / 124) };
            assert_eq!(tree.step(now, Event::Tick), [Effect::Feed]);
        }
    }

    #[test]
    fn good_days_are_saved_and_take_levels_back() {
        let mut d = Device::new(Some(Budget { level: 2, ..Budget::default() }));
        d.run(2 * 86_400 + 3600, |_| {});
        assert_eq!(d.tree.budget().level, 0);
        let saves = d.log.iter().filter(|(_, e)| matches!(e, Effect::Save(_))).count();
        assert_eq!(saves, 48, "once an hour while there is something to decay, then no more");
    }

    #[test]
    fn the_boot_policy_counts_the_last_reboots_before_the_other_slot() {
        let mut d = Device::new(None);
        let table = [(3, 0, 0), (3, 1, 1200), (3, 2, 2400), (5, 1, 0), (5, 2, 0), (5, 3, 4800), (1, 1, 1200)];
        for (reboots, level, seconds) in table {
            d.say(Event::Limits(Limits { reboots, ..Limits::default() }));
            d.say(Event::Remembered(Budget { level, ..Budget::default() }));
            assert_eq!(d.tree.stable_after().as_secs(), seconds, "{reboots} reboots, level {level}");
        }
    }

    #[test]
    fn children_are_bounded() {
        let mut d = Device::new(Some(Budget::default()));
        for i in 0..100 {
            d.say(hello(&format!("c{i}"), i, Ceiling::Unit));
        }
        assert_eq!(d.tree.children(at(10)).len(), MAX_CHILDREN);
        assert_eq!(d.log.len(), 100 - MAX_CHILDREN);
    }

    /// Every event that the shell can send, for the exhaustive walk.
    fn alphabet() -> Vec<(u64, Event)> {
        vec![
            (1, Event::Tick),
            (100, Event::Tick),
            (700, Event::Tick),
            (0, hello("x", 1, Ceiling::Reboot)),
            (0, hello("x", 2, Ceiling::Reboot)),
            (0, hello("y", 3, Ceiling::Unit)),
            (0, Event::Alive(name("disk"))),
            (0, Event::Alive(name("x"))),
            (0, Event::Bye(name("x"))),
            (0, Event::Fail { name: name("x"), reason: "r".into() }),
            (0, Event::Stopping),
            (0, Event::Trial { deadline: S * 500 }),
            (0, Event::Committed),
        ]
    }

    /// What must hold after every step, whatever came before.
    fn check(before: &Tree, now: Now, event: &Event, effects: &[Effect], after: &Tree) {
        let reboots = effects.iter().filter(|e| matches!(e, Effect::Reboot { .. })).count();
        let starves = effects.iter().any(|e| matches!(e, Effect::Starve { .. }));
        let feeds = effects.contains(&Effect::Feed);
        assert!(reboots <= 1, "one reboot is enough");
        assert_eq!(feeds, *event == Event::Tick && !after.starving, "fed at every tick until it starves");
        assert!(
            !starves || before.ending.is_some(),
            "the hardware is used only when the orderly way took too long"
        );
        assert!(!before.starving || after.starving, "no way back from starving");
        if reboots == 1 {
            assert!(before.ending.is_none(), "a second reboot was ordered");
            assert!(now.real >= before.earliest_reboot(), "rebooted before the budget allows");
            assert!(before.trial.is_some() || after.budget.level == before.budget.level + 1);
        }
        if before.ending.is_some() {
            assert!(effects.iter().all(|e| !matches!(e, Effect::Restart { .. })), "restarted in a shutdown");
        }
    }

    #[test]
    fn every_sequence_of_five_events_keeps_the_rules() {
        let mut start = Tree::new(at(10));
        let _ = start.step(at(10), Event::Remembered(Budget { level: 1, ..Budget::default() }));
        start.expect(at(10), name("disk"), None, S * 60, Ceiling::ForcedReboot, Duration::ZERO);
        let mut states = vec![(start, 10_u64)];
        for _ in 0..5 {
            let mut next = Vec::new();
            for (tree, s) in &states {
                for (passed, event) in alphabet() {
                    let now = at(s + passed);
                    let mut after = tree.clone();
                    let effects = after.step(now, event.clone());
                    check(tree, now, &event, &effects, &after);
                    let state = (after, s + passed);
                    next.push(state);
                }
            }
            next.sort_by_cached_key(|(t, s)| format!("{s}{t:?}"));
            next.dedup();
            states = next;
        }
        assert!(states.len() > 10_000, "{}", states.len());
    }

    proptest! {
        #[test]
        fn long_walks_keep_the_rules_and_a_stalled_disk_is_always_answered(
            walk in prop::collection::vec((0_usize..13, 0_u64..200), 1..300)
        ) {
            let mut tree = Tree::new(at(10));
            let _ = tree.step(at(10), Event::Remembered(Budget { level: 2, ..Budget::default() }));
            tree.expect(at(10), name("disk"), None, S * 60, Ceiling::ForcedReboot, Duration::ZERO);
            let mut s = 10;
            for (i, extra) in walk {
                let (passed, event) = alphabet().swap_remove(i);
                s += passed + extra;
                let before = tree.clone();
                let effects = tree.step(at(s), event.clone());
                check(&before, at(s), &event, &effects, &tree);
            }
            // From any state: if nobody says anything any more, the machine ends within the longest pause.
            let ended = (0..2 * 86_400 + 1000).step_by(50).any(|more| {
                let _ = tree.step(at(s + more), Event::Tick);
                tree.starving
            });
            prop_assert!(ended);
        }
    }
}
