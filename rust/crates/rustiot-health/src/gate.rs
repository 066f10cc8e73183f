//! The gate's policy: when a boot is healthy, when it is stable, and when a trial has failed.
//!
//! Pure: results and time in, actions out; no clock, no bus, no disk. Called by [`crate::service`].

use std::time::Duration;

use rustiot_boot::BootKind;
use serde::{Deserialize, Serialize};

use crate::check::{CheckResult, failed_for_good, obstacle};

/// How long a boot that is not a trial may be unhealthy before the watchdog is asked for a reboot (which it grants
/// by its own budget). Long, because the cause is rarely one that a reboot mends.
pub const PATIENCE: Duration = Duration::from_secs(3600);

/// How long a failure for good must last in a trial before it ends it, at least: somebody may still start the unit by
/// hand, a timer or a path may, and `health.settle` can be very short.
const LASTING: Duration = Duration::from_secs(15);

/// Two looks are never closer.
const SHORTEST: Duration = Duration::from_millis(100);

/// The owner's times (`health.*` in `rustiot.toml`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// All deciding checks must have passed for so long before the gate opens.
    pub settle: Duration,
    /// And for so long after it before the boot is stable.
    pub soak: Duration,
    /// Age of the boot at which the gate must be open.
    pub deadline: Duration,
    /// Age of the boot before which it is not called stable, whatever the soak says (the watchdog's wish after it had
    /// to reboot).
    pub stable_after: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open the gate: `GatePassed`, `READY=1`.
    Open,
    /// A trial that soaked: `Soaked`, then RAUC's mark. Repeated until [`Gate::committed`] is told.
    Commit,
    /// Any other boot that soaked: `Soaked`.
    Stable,
    /// The trial failed: record why, reboot.
    FailTrial(String),
    /// Not a trial, and not healthy at its deadline: tell.
    Degraded(String),
    /// Not a trial, and not healthy for long: ask the watchdog for a reboot. Repeated while it holds.
    AskReboot(String),
}

/// Where the boot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// The gate is closed; `since` is the age of the boot since which all deciding checks pass.
    Checking {
        /// Passing since.
        since: Option<Duration>,
    },
    /// The gate is open; nothing has failed since.
    Soaking {
        /// Passing since.
        since: Duration,
        /// Failing since.
        failing: Option<Duration>,
    },
    /// Soaked, waiting for RAUC.
    Committing,
    /// Stable (and committed).
    Stable,
    /// The trial failed.
    Failed,
}

/// The gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    kind: BootKind,
    times: Times,
    state: State,
    unhealthy_since: Option<Duration>,
    /// Something that decides has failed for good since.
    broken_since: Option<Duration>,
    degraded: bool,
    last_obstacle: Option<String>,
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new(kind: BootKind, times: Times) -> Self {
        Self {
            kind,
            times,
            state: State::Checking { since: None },
            unhealthy_since: None,
            broken_since: None,
            degraded: false,
            last_obstacle: None,
        }
    }

    /// Takes over other times (provisioning has written the settings).
    pub fn set_times(&mut self, times: Times) {
        self.times = times;
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// This boot was stable before the service was restarted.
    pub fn resume_stable(&mut self) {
        self.state = State::Stable;
    }

    /// RAUC has marked the slot.
    pub fn committed(&mut self) {
        if self.state == State::Committing {
            self.state = State::Stable;
        }
    }

    /// Age of the boot at which a trial must be stable.
    #[must_use]
    pub fn end(&self) -> Duration {
        self.times.deadline.saturating_add(self.times.soak)
    }

    /// When to look again after a look at `now`: after `interval`, or when the settling or the soak is over if that is
    /// sooner, so that no boot waits for the next beat to be called what it already is.
    #[must_use]
    pub fn next_look(&self, now: Duration, interval: Duration) -> Duration {
        let due = match self.state {
            State::Checking { since: Some(since) } => since.saturating_add(self.times.settle),
            State::Soaking { since, failing: None } => {
                since.saturating_add(self.times.soak).max(self.times.stable_after)
            }
            _ => return interval,
        };
        interval.min(due.saturating_sub(now)).max(SHORTEST)
    }

    /// One look: total over every state. `now` is the age of the boot.
    #[must_use]
    pub fn step(&mut self, now: Duration, results: &[CheckResult]) -> Vec<Action> {
        let obstacle = obstacle(self.judged_as(), results);
        let mut actions = Vec::new();
        match (&obstacle, self.unhealthy_since) {
            (None, _) => self.unhealthy_since = None,
            (Some(_), None) => self.unhealthy_since = Some(now),
            (Some(_), Some(_)) => {}
        }
        if obstacle.is_some() {
            self.last_obstacle.clone_from(&obstacle);
        }
        let broken = failed_for_good(self.judged_as(), results);
        self.broken_since = self.broken_since.or(Some(now)).filter(|_| broken);
        if self.judged_as() == BootKind::Trial {
            self.step_trial(now, obstacle.as_deref(), &mut actions);
        } else {
            self.step_other(now, obstacle.as_deref(), &mut actions);
        }
        actions
    }

    /// A trial that was committed is a boot like any other.
    fn judged_as(&self) -> BootKind {
        if self.state == State::Stable { BootKind::Normal } else { self.kind }
    }

    fn step_trial(&mut self, now: Duration, obstacle: Option<&str>, actions: &mut Vec<Action>) {
        let last = || self.last_obstacle.clone().unwrap_or_else(|| "nothing failed, it was too slow".into());
        let failure = match self.state {
            State::Checking { .. } if now >= self.times.deadline => {
                Some(format!("not healthy within {} s: {}", self.times.deadline.as_secs(), last()))
            }
            // Waiting for the deadline would change nothing.
            State::Checking { .. }
                if self.broken_since.is_some_and(|at| elapsed(now, at) >= self.times.settle.max(LASTING)) =>
            {
                Some(format!("cannot become healthy: {}", last()))
            }
            State::Soaking { failing: Some(at), .. }
                if obstacle.is_some() && elapsed(now, at) >= self.times.settle =>
            {
                Some(format!("became unhealthy: {}", last()))
            }
            State::Soaking { .. } if now >= self.end().max(self.times.stable_after) => {
                Some(format!("did not stay healthy for {} s: {}", self.times.soak.as_secs(), last()))
            }
            State::Committing
                if now >= self.end().max(self.times.stable_after).saturating_add(self.times.settle) =>
            {
                Some("healthy, but it could not be committed".into())
            }
            _ => None,
        };
        // A soak that ends in this very step is not a failure.
        if let Some(reason) = failure
            && !(obstacle.is_none() && self.soaked(now))
        {
            self.state = State::Failed;
            actions.push(Action::FailTrial(reason));
            return;
        }
        self.advance(now, obstacle, actions);
    }

    fn step_other(&mut self, now: Duration, obstacle: Option<&str>, actions: &mut Vec<Action>) {
        if let Some(reason) = obstacle {
            if matches!(self.state, State::Checking { .. }) && now >= self.times.deadline && !self.degraded {
                self.degraded = true;
                actions.push(Action::Degraded(reason.to_owned()));
            }
            if now >= self.times.deadline
                && self.unhealthy_since.is_some_and(|at| elapsed(now, at) >= PATIENCE)
            {
                actions.push(Action::AskReboot(reason.to_owned()));
            }
        }
        self.advance(now, obstacle, actions);
    }

    fn soaked(&self, now: Duration) -> bool {
        match self.state {
            State::Soaking { since, failing: None } => {
                elapsed(now, since) >= self.times.soak && now >= self.times.stable_after
            }
            _ => false,
        }
    }

    fn advance(&mut self, now: Duration, obstacle: Option<&str>, actions: &mut Vec<Action>) {
        self.state = match (self.state, obstacle) {
            (State::Checking { .. }, Some(_)) => State::Checking { since: None },
            (State::Checking { since }, None) => {
                let since = since.unwrap_or(now);
                if elapsed(now, since) >= self.times.settle {
                    actions.push(Action::Open);
                    State::Soaking { since: now, failing: None }
                } else {
                    State::Checking { since: Some(since) }
                }
            }
            (State::Soaking { since, failing }, Some(_)) => {
                State::Soaking { since, failing: failing.or(Some(now)) }
            }
            // After a failure the soak starts again.
            (State::Soaking { failing: Some(_), .. }, None) => State::Soaking { since: now, failing: None },
            (state @ State::Soaking { .. }, None) => {
                if !self.soaked(now) {
                    state
                } else if self.kind == BootKind::Trial {
                    actions.push(Action::Commit);
                    State::Committing
                } else {
                    actions.push(Action::Stable);
                    State::Stable
                }
            }
            (State::Committing, None) => {
                actions.push(Action::Commit);
                State::Committing
            }
            // Something failed between the soak and the commit: soak again.
            (State::Committing, Some(_)) => State::Soaking { since: now, failing: Some(now) },
            (state @ (State::Stable | State::Failed), _) => state,
        };
    }
}

fn elapsed(now: Duration, since: Duration) -> Duration {
    now.saturating_sub(since)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::{Need, Verdict};

    const S: Duration = Duration::from_secs(1);
    const TIMES: Times = Times {
        settle: Duration::from_secs(20),
        soak: Duration::from_secs(120),
        deadline: Duration::from_secs(300),
        stable_after: Duration::ZERO,
    };

    fn good() -> Vec<CheckResult> {
        vec![CheckResult::new("units", Need::Required, Verdict::Pass)]
    }

    fn bad(need: Need) -> Vec<CheckResult> {
        vec![
            CheckResult::new("units", Need::Required, Verdict::Pass),
            CheckResult::new("x", need, Verdict::Fail("broken".into())),
        ]
    }

    /// Looks every 5 s from age 10 s on; `bad_at` says when something fails. Returns when what was done first.
    fn run(
        kind: BootKind,
        times: Times,
        until: u32,
        results: impl Fn(u32) -> Vec<CheckResult>,
    ) -> Vec<(u32, Action)> {
        let mut gate = Gate::new(kind, times);
        let mut log: Vec<(u32, Action)> = Vec::new();
        for s in (10..until).step_by(5) {
            for action in gate.step(S * s, &results(s)) {
                if !log.iter().any(|(_, a)| *a == action) {
                    log.push((s, action.clone()));
                }
                if action == Action::Commit {
                    gate.committed();
                }
            }
        }
        log
    }

    fn fail(reason: &str) -> Action {
        Action::FailTrial(reason.to_owned())
    }

    #[test]
    fn a_healthy_trial_opens_after_the_settle_time_and_commits_after_the_soak() {
        let log = run(BootKind::Trial, TIMES, 10_000, |_| good());
        assert_eq!(log, [(30, Action::Open), (150, Action::Commit)]);
    }

    #[test]
    fn a_healthy_normal_boot_becomes_stable() {
        for kind in [BootKind::Normal, BootKind::LateFallback] {
            assert_eq!(run(kind, TIMES, 10_000, |_| good()), [(30, Action::Open), (150, Action::Stable)]);
        }
        let wary = Times { stable_after: S * 1200, ..TIMES };
        assert_eq!(
            run(BootKind::Normal, wary, 10_000, |_| good()),
            [(30, Action::Open), (1200, Action::Stable)]
        );
    }

    #[test]
    fn a_trial_that_never_gets_healthy_fails_at_its_deadline_with_the_reason() {
        for need in [Need::Required, Need::RequiredInTrial] {
            let log = run(BootKind::Trial, TIMES, 1000, |_| bad(need));
            assert_eq!(log, [(300, fail("not healthy within 300 s: x: broken"))]);
        }
        let nothing = run(BootKind::Trial, TIMES, 1000, |_| Vec::new());
        assert_eq!(nothing, [(300, fail("not healthy within 300 s: nothing was checked"))]);
    }

    #[test]
    fn a_trial_in_which_something_failed_for_good_ends_after_the_settle_time() {
        let broken = |need| {
            let failed = CheckResult::new("x", need, Verdict::Fail("broken".into())).for_good(true);
            vec![CheckResult::new("rauc", need, Verdict::Pass), failed]
        };
        let log = run(BootKind::Trial, TIMES, 1000, |_| broken(Need::Required));
        assert_eq!(log, [(30, fail("cannot become healthy: x: broken"))]);
        let hasty = Times { settle: S, ..TIMES };
        let log = run(BootKind::Trial, hasty, 1000, |_| broken(Need::Required));
        assert_eq!(log, [(25, fail("cannot become healthy: x: broken"))], "15 s at least");
        // It comes and goes: that is no failure for good, and the deadline decides.
        let log = run(BootKind::Trial, TIMES, 1000, |s| {
            if s % 15 == 0 { bad(Need::Required) } else { broken(Need::Required) }
        });
        assert_eq!(log, [(300, fail("not healthy within 300 s: x: broken"))]);
        // Started again in time.
        let log = run(BootKind::Trial, TIMES, 1000, |s| if s < 25 { broken(Need::Required) } else { good() });
        assert_eq!(log, [(45, Action::Open), (165, Action::Commit)]);
        // What does not decide ends nothing, and only a trial is ended.
        let log = run(BootKind::Trial, TIMES, 1000, |_| broken(Need::Advisory));
        assert_eq!(log, [(30, Action::Open), (150, Action::Commit)]);
        let log = run(BootKind::Normal, TIMES, 1000, |_| broken(Need::Required));
        assert_eq!(log, [(300, Action::Degraded("x: broken".into()))]);
    }

    #[test]
    fn an_advisory_check_never_decides() {
        let log = run(BootKind::Trial, TIMES, 1000, |_| bad(Need::Advisory));
        assert_eq!(log, [(30, Action::Open), (150, Action::Commit)]);
        let log = run(BootKind::Normal, TIMES, 10_000, |_| bad(Need::RequiredInTrial));
        assert_eq!(log, [(30, Action::Open), (150, Action::Stable)]);
    }

    #[test]
    fn the_next_look_comes_when_something_is_due_and_never_later_than_the_interval() {
        let mut gate = Gate::new(BootKind::Trial, TIMES);
        assert_eq!(gate.next_look(S, S * 5), S * 5, "nothing passes yet");
        let _ = gate.step(S * 30, &good());
        assert_eq!(gate.next_look(S * 30, S * 5), S * 5, "settled in 20 s");
        assert_eq!(gate.next_look(S * 48, S * 5), S * 2);
        assert_eq!(gate.next_look(S * 51, S * 5), SHORTEST, "overdue, but no busy loop");
        assert_eq!(gate.step(S * 50, &good()), [Action::Open]);
        assert_eq!(gate.next_look(S * 168, S * 5), S * 2, "soaked at 170 s");
        let _ = gate.step(S * 169, &bad(Need::Required));
        assert_eq!(gate.next_look(S * 169, S * 5), S * 5, "the soak starts again");
    }

    #[test]
    fn a_break_in_the_settle_time_starts_it_again() {
        let log = run(BootKind::Trial, TIMES, 1000, |s| if s == 25 { bad(Need::Required) } else { good() });
        assert_eq!(log, [(50, Action::Open), (170, Action::Commit)]);
    }

    #[test]
    fn a_short_break_in_the_soak_starts_it_again_and_a_long_one_fails_the_trial() {
        let log = run(BootKind::Trial, TIMES, 1000, |s| if s == 100 { bad(Need::Required) } else { good() });
        assert_eq!(log, [(30, Action::Open), (225, Action::Commit)]);
        let log = run(BootKind::Trial, TIMES, 1000, |s| if s >= 100 { bad(Need::Required) } else { good() });
        assert_eq!(log, [(30, Action::Open), (120, fail("became unhealthy: x: broken"))]);
    }

    #[test]
    fn a_service_that_crashes_every_minute_is_never_committed() {
        let log =
            run(BootKind::Trial, TIMES, 1000, |s| if s % 60 == 0 { bad(Need::Required) } else { good() });
        assert_eq!(log, [(30, Action::Open), (420, fail("did not stay healthy for 120 s: x: broken")),]);
    }

    #[test]
    fn a_commit_that_rauc_refuses_fails_the_trial_in_the_end() {
        let mut gate = Gate::new(BootKind::Trial, TIMES);
        let mut log = Vec::new();
        for s in (10..1000).step_by(5) {
            log.extend(gate.step(S * s, &good()).into_iter().map(|a| (s, a)));
        }
        assert!(log.iter().filter(|(_, a)| *a == Action::Commit).count() > 10, "tried again");
        assert_eq!(log.last(), Some(&(440, fail("healthy, but it could not be committed"))));
    }

    #[test]
    fn an_unhealthy_normal_boot_is_told_at_its_deadline_and_asks_for_a_reboot_after_an_hour() {
        let log = run(BootKind::Normal, TIMES, 8000, |_| bad(Need::Required));
        assert_eq!(
            log,
            [(300, Action::Degraded("x: broken".into())), (3610, Action::AskReboot("x: broken".into())),]
        );
        // Late recovery opens the gate all the same.
        let log = run(BootKind::Normal, TIMES, 8000, |s| if s < 2000 { bad(Need::Required) } else { good() });
        assert_eq!(
            log,
            [(300, Action::Degraded("x: broken".into())), (2020, Action::Open), (2140, Action::Stable),]
        );
    }

    #[test]
    fn a_committed_boot_that_sickens_later_asks_for_a_reboot_too() {
        let log =
            run(BootKind::Trial, TIMES, 20_000, |s| if s < 9000 { good() } else { bad(Need::Required) });
        assert_eq!(log.last(), Some(&(12_600, Action::AskReboot("x: broken".into()))), "once committed");
        let log =
            run(BootKind::Normal, TIMES, 20_000, |s| if s < 9000 { good() } else { bad(Need::Required) });
        assert_eq!(log.last(), Some(&(12_600, Action::AskReboot("x: broken".into()))));
    }

    /// Checks of every kind in every verdict.
    fn any_results() -> impl Strategy<Value = Vec<CheckResult>> {
        let need = prop_oneof![Just(Need::Required), Just(Need::RequiredInTrial), Just(Need::Advisory)];
        let verdict = prop_oneof![
            6 => Just(Verdict::Pass),
            1 => Just(Verdict::Warn("w".into())),
            1 => Just(Verdict::Pending("p".into())),
            1 => Just(Verdict::Fail("f".into())),
        ];
        prop::collection::vec((need, verdict).prop_map(|(n, v)| CheckResult::new("c", n, v)), 0..4)
    }

    #[test]
    fn every_sequence_of_looks_keeps_the_rules() {
        // Good and bad looks in every order of nine, 20 to 60 s apart, for each kind of boot.
        for kind in [BootKind::Trial, BootKind::Normal, BootKind::LateFallback] {
            for bits in 0..512_u32 {
                for pace in [20, 40, 60] {
                    let mut gate = Gate::new(kind, TIMES);
                    let mut looks = Vec::new();
                    let mut opened = false;
                    for i in 0..9 {
                        let ok = bits & (1 << i) != 0;
                        let now = S * (10 + pace * i);
                        let actions = gate.step(now, &if ok { good() } else { bad(Need::Required) });
                        looks.push((now, ok));
                        check(kind, now, ok, &looks, &mut opened, &actions);
                    }
                }
            }
        }
    }

    fn check(
        kind: BootKind,
        now: Duration,
        ok: bool,
        looks: &[(Duration, bool)],
        opened: &mut bool,
        actions: &[Action],
    ) {
        let passing = |span: Duration| {
            let good: Vec<&(Duration, bool)> = looks.iter().rev().take_while(|(_, ok)| *ok).collect();
            good.last().is_some_and(|(at, _)| now - *at >= span)
        };
        for action in actions {
            match action {
                Action::Open => {
                    assert!(ok && passing(TIMES.settle) && !*opened);
                    assert!(kind != BootKind::Trial || now < TIMES.deadline);
                    *opened = true;
                }
                Action::Commit => assert!(kind == BootKind::Trial && *opened && ok && passing(TIMES.soak)),
                Action::Stable => assert!(kind != BootKind::Trial && *opened && ok && passing(TIMES.soak)),
                Action::FailTrial(reason) => assert!(kind == BootKind::Trial && !reason.is_empty()),
                Action::Degraded(_) => assert!(kind != BootKind::Trial && !ok && now >= TIMES.deadline),
                Action::AskReboot(_) => assert!(kind != BootKind::Trial && !ok && now >= PATIENCE),
            }
        }
    }

    proptest! {
        #[test]
        fn every_trial_ends_by_its_limit_and_never_both_ways(
            looks in prop::collection::vec((any_results(), 1_u32..30), 1..100)
        ) {
            let mut gate = Gate::new(BootKind::Trial, TIMES);
            let (mut now, mut committed, mut failed) = (Duration::ZERO, 0, 0);
            for (results, pause) in looks {
                now += S * pause;
                for action in gate.step(now, &results) {
                    match action {
                        Action::Commit => { committed += 1; gate.committed(); }
                        Action::FailTrial(_) => failed += 1,
                        Action::Open => {}
                        other => prop_assert!(false, "{other:?} in a trial"),
                    }
                }
                prop_assert!(committed + failed <= 1);
                if now > gate.end() + TIMES.settle + S * 30 {
                    prop_assert_eq!(committed + failed, 1);
                }
            }
        }
    }
}
