//! May this stage of the update begin now? Holds, times, windows, battery, metered links and applications' vetoes.
//!
//! Pure: one total function. Called by the engine before each stage, again whenever something may have changed.

use crate::status::{By, Hold, Stage, Transaction, Veto};

/// What stands at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions<'a> {
    /// Unix time, seconds.
    pub now: u64,
    /// The windows.
    pub window: crate::window::State,
    /// Downloads by the device itself wait for a window as well.
    pub download_in_window: bool,
    /// Most bytes that the device fetches by itself, on a metered link.
    pub metered_limit: Option<u64>,
    /// The device runs on its battery, and its owner wants it to wait then.
    pub battery: bool,
    /// The device restarts by itself into what is installed.
    pub restarts: bool,
    /// Who puts off a restart.
    pub vetoes: &'a [Veto],
    /// Seconds for which they can.
    pub max_deferral_s: u64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may begin.
    Open,
    /// It may begin, over the heads of these applications.
    Overrides(Vec<String>),
    /// Only a person can open it.
    Held(String),
    /// Not now; it is worth looking again at this time (Unix seconds), if one is known.
    Later {
        /// For people.
        why: String,
        /// Unix seconds.
        at: Option<u64>,
    },
    /// Applications put it off: this counts against their patience.
    Vetoed(String),
}

/// May `stage` of `tx` begin?
#[must_use]
pub fn gate(stage: Stage, tx: &Transaction, c: &Conditions<'_>) -> Gate {
    let held = tx.request.hold.stage() == Some(stage);
    // `Activate` says that the trial may begin; a hold before the restart stands by itself.
    if held && !(stage == Stage::Activate && tx.approved) {
        return Gate::Held(format!("waits for `rustiot update {}`", order(stage)));
    }
    if let Some(at) = tx.not_before.get(&stage).filter(|at| **at > c.now) {
        return Gate::Later { why: format!("is put off until {}", time(*at)), at: Some(*at) };
    }
    // What restarts by itself is not armed before it may: a power cut in between would be the restart.
    let restart_follows = c.restarts && tx.request.hold != Hold::Reboot;
    let restart = stage == Stage::Reboot || (stage == Stage::Activate && restart_follows);
    if stage == Stage::Reboot && !c.restarts {
        return Gate::Held("waits for `rustiot update reboot` or a restart".into());
    }
    if tx.by == By::Policy {
        let bound = match stage {
            Stage::Download => c.download_in_window,
            Stage::Install => true,
            Stage::Activate | Stage::Reboot => restart,
        };
        if bound && !c.window.open {
            let when =
                c.window.changes.map_or_else(String::new, |at| format!(", which opens at {}", time(at)));
            return Gate::Later { why: format!("waits for a window{when}"), at: c.window.changes };
        }
        if c.battery && (stage == Stage::Install || restart) {
            let why = "waits for external power: the device runs on its battery".to_owned();
            return Gate::Later { why, at: None };
        }
        if let (Some(limit), Some(way)) = (c.metered_limit, tx.current_way())
            && matches!(stage, Stage::Download | Stage::Install)
            && tx.spent.fetched == 0
            && !way.is_local()
            && way.bytes > limit
        {
            return Gate::Held(format!(
                "is {} bytes, more than the {limit} that a metered link may take by itself; waits for `rustiot update {}`",
                way.bytes,
                order(stage)
            ));
        }
    }
    if !restart || c.vetoes.is_empty() {
        return Gate::Open;
    }
    let names: Vec<String> = c.vetoes.iter().map(|veto| format!("{} ({})", veto.who, veto.why)).collect();
    if tx.deferred_s >= c.max_deferral_s {
        return Gate::Overrides(names);
    }
    let left = c.max_deferral_s.saturating_sub(tx.deferred_s);
    Gate::Vetoed(format!("is put off by {}, for at most {left} s more", names.join(", ")))
}

/// The word that lets it go on.
fn order(stage: Stage) -> &'static str {
    match stage {
        Stage::Download => "download",
        Stage::Install => "install",
        Stage::Activate => "activate",
        Stage::Reboot => "reboot",
    }
}

fn time(at: u64) -> String {
    let stamp = i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    stamp.map_or_else(|| format!("{at} (Unix seconds)"), |stamp| stamp.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::reconcile::tests::remembered;
    use crate::window::State;
    use proptest::prelude::*;

    fn conditions(vetoes: &[Veto]) -> Conditions<'_> {
        Conditions {
            now: 1_000,
            window: State { open: true, changes: None },
            download_in_window: false,
            metered_limit: None,
            battery: false,
            restarts: true,
            vetoes,
            max_deferral_s: 600,
        }
    }

    fn transaction(by: By) -> Transaction {
        Transaction { by, approved: false, ..remembered() }
    }

    const STAGES: [Stage; 4] = [Stage::Download, Stage::Install, Stage::Activate, Stage::Reboot];

    #[test]
    fn a_closed_window_binds_the_device_and_nobody_above_it() {
        let c = Conditions { window: State { open: false, changes: Some(2_000) }, ..conditions(&[]) };
        for stage in STAGES {
            let by_policy = gate(stage, &transaction(By::Policy), &c);
            match stage {
                Stage::Download => assert_eq!(by_policy, Gate::Open),
                _ => assert!(matches!(by_policy, Gate::Later { at: Some(2_000), .. }), "{stage:?}"),
            }
            for above in [By::Person, By::Server] {
                assert_eq!(gate(stage, &transaction(above), &c), Gate::Open, "{stage:?}");
            }
        }
        let c = Conditions { download_in_window: true, ..c };
        assert!(matches!(gate(Stage::Download, &transaction(By::Policy), &c), Gate::Later { .. }));
    }

    #[test]
    fn a_hold_binds_everyone_and_only_its_own_stage() {
        for held in STAGES {
            let mut tx = transaction(By::Person);
            tx.request.hold = Hold::parse(held.as_str()).unwrap();
            for stage in STAGES {
                let expected = stage == held;
                assert_eq!(
                    matches!(gate(stage, &tx, &conditions(&[])), Gate::Held(_)),
                    expected,
                    "{held:?} {stage:?}"
                );
            }
        }
    }

    #[test]
    fn a_time_binds_everyone() {
        let mut tx = transaction(By::Person);
        tx.not_before.insert(Stage::Install, 1_001);
        assert!(matches!(gate(Stage::Install, &tx, &conditions(&[])), Gate::Later { at: Some(1_001), .. }));
        assert_eq!(gate(Stage::Download, &tx, &conditions(&[])), Gate::Open);
        tx.not_before.insert(Stage::Install, 1_000);
        assert_eq!(gate(Stage::Install, &tx, &conditions(&[])), Gate::Open);
    }

    #[test]
    fn vetoes_put_a_restart_off_for_so_long_and_no_longer() {
        let vetoes = [Veto { who: "pump".into(), why: "is running".into() }];
        let c = conditions(&vetoes);
        let mut tx = transaction(By::Person);
        for stage in STAGES {
            let restart = matches!(stage, Stage::Activate | Stage::Reboot);
            assert_eq!(matches!(gate(stage, &tx, &c), Gate::Vetoed(_)), restart, "{stage:?}");
        }
        tx.deferred_s = 600;
        assert_eq!(gate(Stage::Reboot, &tx, &c), Gate::Overrides(vec!["pump (is running)".into()]));
        // An activation that no restart follows disturbs nobody.
        tx.deferred_s = 0;
        tx.request.hold = Hold::Reboot;
        assert_eq!(gate(Stage::Activate, &tx, &c), Gate::Open);
    }

    #[test]
    fn on_its_battery_a_device_fetches_but_neither_writes_nor_restarts_by_itself() {
        let c = Conditions { battery: true, ..conditions(&[]) };
        for stage in STAGES {
            let answer = gate(stage, &transaction(By::Policy), &c);
            assert_eq!(answer == Gate::Open, stage == Stage::Download, "{stage:?}: {answer:?}");
            assert_eq!(gate(stage, &transaction(By::Person), &c), Gate::Open, "{stage:?}");
        }
    }

    #[test]
    fn a_metered_link_lets_small_downloads_pass() {
        let c = Conditions { metered_limit: Some(100), ..conditions(&[]) };
        let mut tx = transaction(By::Policy);
        let mut plan = Plan::plain("http://h/x", &crate::status::Expected::default());
        plan.ways[0].bytes = 101;
        tx.plan = Some(plan);
        assert!(matches!(gate(Stage::Download, &tx, &c), Gate::Held(_)));
        tx.spent.fetched = 1;
        assert_eq!(gate(Stage::Download, &tx, &c), Gate::Open, "what was begun is not given away");
        tx.spent.fetched = 0;
        let mut local = tx.clone();
        local.plan.as_mut().unwrap().ways[0].urls = vec!["file:///run/rustiot/media/sda1/x".into()];
        assert_eq!(gate(Stage::Download, &local, &c), Gate::Open, "a medium costs nothing");
        tx.by = By::Person;
        assert_eq!(gate(Stage::Download, &tx, &c), Gate::Open);
    }

    proptest! {
        #[test]
        fn by_itself_it_never_writes_or_restarts_while_the_windows_are_closed(
            stage in 1_usize..4, hold in 0_usize..5, approved: bool, deferred_s: u64, restarts: bool, now: u64,
        ) {
            let mut tx = transaction(By::Policy);
            tx.request.hold = [Hold::None, Hold::Download, Hold::Install, Hold::Activate, Hold::Reboot][hold];
            (tx.approved, tx.deferred_s) = (approved, deferred_s);
            let c = Conditions {
                now, restarts, window: State { open: false, changes: None }, ..conditions(&[])
            };
            let stage = STAGES[stage];
            let answer = gate(stage, &tx, &c);
            // Arming a slot that a person restarts into is no restart.
            let harmless = stage == Stage::Activate && (!restarts || tx.request.hold == Hold::Reboot);
            prop_assert!(harmless || !matches!(answer, Gate::Open | Gate::Overrides(_)), "{:?}", answer);
        }
    }
}
