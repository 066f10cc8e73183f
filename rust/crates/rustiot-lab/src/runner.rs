//! The registry of guarantees and the scheduler that tests them, several machines side by side.

use crate::ctx::{Ctx, Figures, Skip};
use crate::fixtures::Fixtures;
use crate::lab::Lab;
use anyhow::Result;
use rustiot_board::Board;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a test may be chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// Belongs to the short run that every change gets, on every board of the test.
    Quick,
    /// The short run does it on the first board only.
    QuickOnFirst,
}

/// A promise and the test that holds it.
#[derive(Debug, Clone, Copy)]
pub struct LabTest {
    /// The promise as a name.
    pub name: &'static str,
    /// The boards that it is tested on; empty for all.
    pub boards: &'static [&'static str],
    /// The promise as a sentence.
    pub promise: &'static str,
    /// What it is chosen by.
    pub tags: &'static [Tag],
    /// The test.
    pub run: fn(&mut Ctx) -> Result<()>,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome")]
pub enum Outcome {
    /// The promise is kept.
    Passed,
    /// It is not.
    Failed {
        /// The error with its causes.
        why: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// This machine cannot tell.
    Skipped {
        /// What is lacking.
        why: String,
    },
}

/// One test on one board.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `board/name`.
    pub id: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took, milliseconds.
    pub milliseconds: u128,
    /// What it counted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<&'static str, u64>,
}

/// The tests that are to be run: those on `boards`, `only` the ones whose `board/name` contains a
/// of these texts, or only the `quick` ones.
pub fn list<'a>(
    tests: &'a [LabTest],
    boards: &'a [Board],
    only: &[String],
    quick: bool,
) -> Vec<(&'a LabTest, &'a Board)> {
    let mut chosen = Vec::new();
    for test in tests {
        let on = |board: &&Board| test.boards.is_empty() || test.boards.contains(&board.name.as_str());
        for (index, board) in boards.iter().filter(on).enumerate() {
            let wanted = only.is_empty() || only.iter().any(|only| id(test, board).contains(only));
            let short =
                test.tags.contains(&Tag::Quick) || (test.tags.contains(&Tag::QuickOnFirst) && index == 0);
            if wanted && (!quick || short || !only.is_empty()) {
                chosen.push((test, board));
            }
        }
    }
    chosen
}

/// `board/name`.
pub fn id(test: &LabTest, board: &Board) -> String {
    format!("{}/{}", board.name, test.name)
}

/// Runs `tests` with `workers` at once and tells each end to `told` as it comes. `short`: [`Ctx::short`].
pub fn run(
    lab: &Lab,
    fixtures: &Fixtures,
    tests: &[(&LabTest, &Board)],
    workers: usize,
    short: bool,
    told: &(dyn Fn(&Report) + Sync),
) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(BTreeMap::new());
    let pulse = Pulse::default();
    std::thread::scope(|scope| {
        scope.spawn(|| pulse.beat());
        let workers: Vec<_> = (0..workers.clamp(1, tests.len().max(1)))
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some((test, board)) = tests.get(number) else { break };
                        let report = once_or_twice(lab, fixtures, test, board, short, &pulse);
                        told(&report);
                        reports.lock().unwrap_or_else(PoisonError::into_inner).insert(number, report);
                    }
                })
            })
            .collect();
        for worker in workers {
            let _ = worker.join();
        }
        pulse.ended.store(true, Ordering::Relaxed);
    });
    reports.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// Whether this machine runs at all. One that stood still (a sandbox that was paused, say) lets the watchdogs of its
/// guests run out without a fault of theirs.
#[derive(Default)]
struct Pulse {
    ended: AtomicBool,
    /// When a standstill ended, and how long it was.
    stood: Mutex<Vec<(Instant, Duration)>>,
}

/// Between two beats.
const BEAT: Duration = Duration::from_millis(500);
/// A beat that is so late was no matter of load. The guests' watchdogs run out after 60 s.
const STANDSTILL: Duration = Duration::from_secs(15);

impl Pulse {
    fn beat(&self) {
        let mut before = Instant::now();
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(BEAT);
            let now = Instant::now();
            let gap = now.duration_since(before);
            if gap >= STANDSTILL {
                self.stood.lock().unwrap_or_else(PoisonError::into_inner).push((now, gap));
            }
            before = now;
        }
    }

    /// The longest standstill since `began`.
    fn stood_since(&self, began: Instant) -> Option<Duration> {
        let stood = self.stood.lock().unwrap_or_else(PoisonError::into_inner);
        stood.iter().filter(|(at, _)| *at >= began).map(|(_, gap)| *gap).max()
    }
}

/// Runs a test; again, once, if it failed while this machine stood still.
fn once_or_twice(
    lab: &Lab,
    fixtures: &Fixtures,
    test: &LabTest,
    board: &Board,
    short: bool,
    pulse: &Pulse,
) -> Report {
    let began = Instant::now();
    let report = one(lab, fixtures, test, board, short);
    match (&report.outcome, pulse.stood_since(began)) {
        (Outcome::Failed { why, .. }, Some(gap)) => {
            eprintln!("{} failed ({why}) while this machine stood still for {gap:.0?}: once more", report.id);
            one(lab, fixtures, test, board, short)
        }
        _ => report,
    }
}

fn one(lab: &Lab, fixtures: &Fixtures, test: &LabTest, board: &Board, short: bool) -> Report {
    let began = Instant::now();
    let logs = lab.test_logs().join(&board.name).join(test.name);
    let figures = Figures::default();
    let outcome = match attempt(lab, fixtures, test, board, short, &figures, &logs) {
        Ok(()) => Outcome::Passed,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(why)) => Outcome::Skipped { why: why.clone() },
            None => Outcome::Failed { why: format!("{error:#}"), logs },
        },
    };
    let milliseconds = began.elapsed().as_millis();
    Report { id: id(test, board), outcome, milliseconds, figures: figures.all() }
}

fn attempt(
    lab: &Lab,
    fixtures: &Fixtures,
    test: &LabTest,
    board: &Board,
    short: bool,
    figures: &Figures,
    logs: &PathBuf,
) -> Result<()> {
    let mut ctx = Ctx::new(lab, board, fixtures)?;
    (ctx.figures, ctx.short) = (figures.clone(), short);
    let run = std::panic::AssertUnwindSafe(|| (test.run)(&mut ctx));
    let result = std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(anyhow::anyhow!("the test panicked: {}", text.unwrap_or_default()))
    });
    match &result {
        Err(error) if error.downcast_ref::<Skip>().is_none() => {
            if let Err(lost) = ctx.keep_logs(logs) {
                eprintln!("the logs of {} are lost: {lost:#}", id(test, board));
            }
        }
        _ => {
            let _ = std::fs::remove_dir_all(logs);
        }
    }
    result
}

impl Report {
    /// One line for people.
    pub fn line(&self) -> String {
        let seconds = Duration::from_millis(u64::try_from(self.milliseconds).unwrap_or(u64::MAX));
        let (word, rest) = match &self.outcome {
            Outcome::Passed => ("ok", String::new()),
            Outcome::Failed { why, logs } => ("FAILED", format!("\n    {why}\n    logs: {}", logs.display())),
            Outcome::Skipped { why } => ("skipped", format!(": {why}")),
        };
        format!("{word:<7} {:>6.1} s  {}{rest}", seconds.as_secs_f64(), self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTS: [LabTest; 3] = [
        LabTest { name: "boots", boards: &[], promise: "", tags: &[Tag::Quick], run: |_| Ok(()) },
        LabTest { name: "cuts", boards: &[], promise: "", tags: &[Tag::QuickOnFirst], run: |_| Ok(()) },
        LabTest { name: "vars", boards: &["qemux86-64"], promise: "", tags: &[], run: |_| Ok(()) },
    ];

    fn ids(only: &[&str], quick: bool) -> Vec<String> {
        let conf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../conf/boards");
        let boards =
            ["qemux86-64", "qemuarm64"].map(|name| Board::load(&conf.join(format!("{name}.toml"))).unwrap());
        let only: Vec<String> = only.iter().map(|text| (*text).to_owned()).collect();
        list(&TESTS, &boards, &only, quick).into_iter().map(|(test, board)| id(test, board)).collect()
    }

    #[test]
    fn every_test_runs_on_each_of_its_boards() {
        assert_eq!(ids(&[], false).len(), 5);
        assert_eq!(ids(&["vars"], false), ["qemux86-64/vars"]);
        assert_eq!(ids(&["qemuarm64/cuts", "qemuarm64/boots"], false), ["qemuarm64/boots", "qemuarm64/cuts"]);
    }

    #[test]
    fn the_short_run_has_what_is_tagged_for_it() {
        assert_eq!(ids(&[], true), ["qemux86-64/boots", "qemuarm64/boots", "qemux86-64/cuts"]);
    }

    #[test]
    fn only_a_standstill_during_the_test_excuses_it() {
        let pulse = Pulse::default();
        let began = Instant::now();
        assert_eq!(pulse.stood_since(began), None);
        let gap = Duration::from_secs(40);
        pulse.stood.lock().unwrap().push((began, gap));
        assert_eq!(pulse.stood_since(began), Some(gap));
        assert_eq!(pulse.stood_since(began + Duration::from_millis(1)), None, "that was before");
        pulse.ended.store(true, Ordering::Relaxed);
        pulse.beat();
    }

    #[test]
    fn a_failure_says_where_its_logs_are() {
        let outcome = Outcome::Failed { why: "no boot".into(), logs: "build/x".into() };
        let report = Report { id: "b/t".into(), outcome, milliseconds: 1500, figures: BTreeMap::new() };
        assert_eq!(report.line(), "FAILED     1.5 s  b/t\n    no boot\n    logs: build/x");
    }
}
