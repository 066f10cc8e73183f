//! What the service remembers over a restart: the transaction under way, the history, the last refusal.
//!
//! Everything is written durably and read leniently: a file that cannot be parsed is as good as none, a line of the
//! history that cannot be parsed is dropped. A list that cannot be *read* is not an empty one: it is never written
//! over, and what was to be added waits in memory for the next time. Decides nothing. Used by the engine and by
//! `report`.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustiot_durable::atomic_write;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Kind};
use crate::status::{Check, HistoryEntry, Transaction, Why};

/// Entries that the history keeps.
pub const HISTORY_ENTRIES: usize = 64;
/// Outcomes that wait to be posted, at most.
pub const REPORTS: usize = 32;
/// Newest entries that keep their log tail.
const HISTORY_LOGS: usize = 8;
/// Lines of a log tail, and bytes of a line.
const LOG_LINES: usize = 60;
const LOG_LINE_BYTES: usize = 240;

/// The directory `/state/update`.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// What could not be written yet.
    late_entries: RefCell<Vec<HistoryEntry>>,
    late_reports: RefCell<Vec<serde_json::Value>>,
}

impl Store {
    /// Opens the directory, creating it if there is none.
    ///
    /// # Errors
    /// [`Kind::State`] when it cannot be created.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Failure> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(|e| state("cannot create", &dir, &e))?;
        Ok(Self { dir, late_entries: RefCell::default(), late_reports: RefCell::default() })
    }

    /// The transaction under way.
    #[must_use]
    pub fn transaction(&self) -> Option<Transaction> {
        read(&self.dir.join("transaction.json"))
    }

    /// Remembers the transaction under way, or that there is none.
    ///
    /// # Errors
    /// [`Kind::State`] when it cannot be written.
    pub fn set_transaction(&self, transaction: Option<&Transaction>) -> Result<(), Failure> {
        self.set("transaction.json", transaction)
    }

    /// The last refusal or failure.
    #[must_use]
    pub fn why(&self) -> Option<Why> {
        read(&self.dir.join("why.json"))
    }

    /// Remembers the last refusal or failure, or that there is none.
    ///
    /// # Errors
    /// [`Kind::State`] when it cannot be written.
    pub fn set_why(&self, why: Option<&Why>) -> Result<(), Failure> {
        self.set("why.json", why)
    }

    /// The last look at the repository.
    #[must_use]
    pub fn check(&self) -> Option<Check> {
        read(&self.dir.join("check.json"))
    }

    /// Remembers the last look at the repository.
    ///
    /// # Errors
    /// [`Kind::State`] when it cannot be written.
    pub fn set_check(&self, check: &Check) -> Result<(), Failure> {
        self.set("check.json", Some(check))
    }

    /// Outcomes that wait to be posted, oldest first, each as JSON.
    ///
    /// # Errors
    /// [`Kind::State`] when they cannot be read.
    pub fn reports(&self) -> Result<Vec<serde_json::Value>, Failure> {
        self.lines("reports.jsonl")
    }

    /// Adds an outcome to those that wait; the oldest go when there are too many, and one that waits is not added
    /// twice.
    ///
    /// # Errors
    /// [`Kind::State`] when those that wait cannot be read or written; this one goes with the next then.
    pub fn add_report(&self, report: serde_json::Value) -> Result<(), Failure> {
        let mut late = self.late_reports.borrow_mut();
        late.push(report);
        keep_newest(&mut late, REPORTS);
        let mut waiting = self.reports()?;
        let before = waiting.len();
        for report in late.iter() {
            if !waiting.contains(report) {
                waiting.push(report.clone());
            }
        }
        if waiting.len() > before {
            keep_newest(&mut waiting, REPORTS);
            self.set_reports(&waiting)?;
        }
        late.clear();
        Ok(())
    }

    /// Forgets outcomes that have been posted.
    ///
    /// # Errors
    /// [`Kind::State`] when those that wait cannot be read or written.
    pub fn remove_reports(&self, posted: &[serde_json::Value]) -> Result<(), Failure> {
        let mut waiting = self.reports()?;
        waiting.retain(|report| !posted.contains(report));
        self.set_reports(&waiting)
    }

    fn set_reports(&self, reports: &[serde_json::Value]) -> Result<(), Failure> {
        let text = reports.iter().fold(String::new(), |text, report| format!("{text}{report}\n"));
        self.write("reports.jsonl", text.as_bytes())
    }

    /// Ended transactions, newest last.
    ///
    /// # Errors
    /// [`Kind::State`] when they cannot be read.
    pub fn history(&self) -> Result<Vec<HistoryEntry>, Failure> {
        self.lines("history.jsonl")
    }

    /// Adds an ended transaction and returns the bounded history. An entry with the same transaction id and result
    /// is not added twice: a power cut between this and the next write repeats the call.
    ///
    /// # Errors
    /// [`Kind::State`] when the history cannot be read or written; this entry goes with the next then.
    pub fn append(&self, mut entry: HistoryEntry) -> Result<Vec<HistoryEntry>, Failure> {
        bound_log(&mut entry.log);
        let mut late = self.late_entries.borrow_mut();
        late.push(entry);
        keep_newest(&mut late, HISTORY_ENTRIES);
        let mut history = self.history()?;
        let before = history.len();
        for entry in late.iter() {
            let known = |old: &HistoryEntry| {
                !entry.transaction.is_empty()
                    && old.transaction == entry.transaction
                    && old.result == entry.result
            };
            if !history.last().is_some_and(known) {
                history.push(entry.clone());
            }
        }
        if history.len() > before {
            keep_newest(&mut history, HISTORY_ENTRIES);
            let old = history.len().saturating_sub(HISTORY_LOGS);
            history.iter_mut().take(old).for_each(|entry| entry.log.clear());
            let mut text = Vec::new();
            for entry in &history {
                serde_json::to_writer(&mut text, entry)
                    .map_err(|e| Failure::from_error(Kind::State, "cannot write the update history", &e))?;
                text.push(b'\n');
            }
            self.write("history.jsonl", &text)?;
        }
        late.clear();
        Ok(history)
    }

    /// The values of a file with one in each line; no file has none.
    fn lines<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>, Failure> {
        let path = self.dir.join(name);
        match std::fs::read(&path) {
            Ok(text) => Ok(values(&text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(state("cannot read", &path, &error)),
        }
    }

    fn set<T: Serialize>(&self, name: &str, value: Option<&T>) -> Result<(), Failure> {
        // "null" instead of removing the file: a removal is not durable, and a cancelled transaction must not come back.
        let text = serde_json::to_vec_pretty(&value)
            .map_err(|e| Failure::from_error(Kind::State, format!("cannot write {name}"), &e))?;
        self.write(name, &text)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.dir.join(name);
        // The error names the file.
        atomic_write(&path, bytes).map_err(|e| {
            Failure::from_error(Kind::State, "the update cannot be remembered", &e).hint(STATE_HINT)
        })
    }
}

/// What can be told from each line.
fn values<T: DeserializeOwned>(text: &[u8]) -> Vec<T> {
    text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn keep_newest<T>(list: &mut Vec<T>, most: usize) {
    list.drain(..list.len().saturating_sub(most));
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            eprintln!("cannot read {}: {error}; taken as not there", path.display());
            None
        }
    }
}

const STATE_HINT: &str = "is the state partition mounted and not full? `rustiot status`, `df /state`";

fn state(what: &str, path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::from_error(Kind::State, format!("{what} {}", path.display()), error).hint(STATE_HINT)
}

fn bound_log(log: &mut Vec<String>) {
    keep_newest(log, LOG_LINES);
    for line in log {
        let mut end = LOG_LINE_BYTES.min(line.len());
        while !line.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        line.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Outcome;
    use proptest::prelude::*;

    fn entry(id: usize) -> HistoryEntry {
        HistoryEntry {
            transaction: id.to_string(),
            source: "/x".into(),
            release: None,
            slot: None,
            result: Outcome::Failed,
            why: None,
            log: vec!["line".into()],
            started_at: 1,
            ended_at: 2,
            started_boot: "b".into(),
            ended_boot: "b".into(),
            install_tries: 1,
            install_seconds: None,
            by: crate::status::By::Person,
            way: None,
            failed_ways: Vec::new(),
            spent: Default::default(),
            overridden: Vec::new(),
        }
    }

    #[test]
    fn outcomes_wait_in_order_and_not_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for id in 0..REPORTS + 3 {
            store.add_report(serde_json::json!({ "id": id })).unwrap();
            store.add_report(serde_json::json!({ "id": id })).unwrap();
        }
        let waiting = store.reports().unwrap();
        assert_eq!((waiting.len(), waiting[0]["id"].as_u64()), (REPORTS, Some(3)));
        store.remove_reports(&waiting[..2]).unwrap();
        assert_eq!(store.reports().unwrap()[0]["id"], 5);
    }

    #[test]
    fn the_history_is_bounded_and_old_logs_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("update")).unwrap();
        for id in 0..HISTORY_ENTRIES + 5 {
            store.append(entry(id)).unwrap();
        }
        let history = store.history().unwrap();
        assert_eq!(history.len(), HISTORY_ENTRIES);
        assert_eq!(history.first().unwrap().transaction, "5");
        assert_eq!(history.iter().filter(|e| !e.log.is_empty()).count(), HISTORY_LOGS);
    }

    #[test]
    fn an_end_is_written_once_however_often_it_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.append(entry(1)).unwrap();
        assert_eq!(store.append(entry(1)).unwrap().len(), 1);
        let late = HistoryEntry { transaction: String::new(), ..entry(0) };
        store.append(late.clone()).unwrap();
        assert_eq!(store.append(late).unwrap().len(), 3);
    }

    #[test]
    fn torn_lines_are_dropped_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.append(entry(1)).unwrap();
        let path = dir.path().join("history.jsonl");
        let mut bytes = b"{\"transaction\": \xff\n\n".to_vec();
        bytes.extend(std::fs::read(&path).unwrap());
        atomic_write(&path, &bytes).unwrap();
        assert_eq!(store.history().unwrap(), [entry(1)]);
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_written_over_and_what_was_added_goes_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let report = |id: usize| serde_json::json!({ "id": id });
        store.append(entry(1)).unwrap();
        store.add_report(report(1)).unwrap();
        // A directory in its place is a read error that is not "there is none", for root as well.
        let hide = |name: &str| {
            std::fs::hard_link(dir.path().join(name), dir.path().join("kept")).unwrap();
            std::fs::remove_file(dir.path().join(name)).unwrap();
            std::fs::create_dir(dir.path().join(name)).unwrap();
        };
        let show = |name: &str| {
            std::fs::remove_dir(dir.path().join(name)).unwrap();
            std::fs::hard_link(dir.path().join("kept"), dir.path().join(name)).unwrap();
            std::fs::remove_file(dir.path().join("kept")).unwrap();
        };
        hide("history.jsonl");
        let failure = store.append(entry(2)).unwrap_err();
        assert_eq!(failure.kind, Kind::State);
        assert!(failure.message.starts_with("cannot read"), "{failure}");
        assert!(failure.message.ends_with("history.jsonl") && !failure.chain.is_empty(), "{failure:?}");
        assert!(dir.path().join("history.jsonl").is_dir(), "written over");
        assert_eq!(store.history().unwrap_err(), failure);
        show("history.jsonl");
        assert_eq!(store.append(entry(3)).unwrap(), [entry(1), entry(2), entry(3)]);
        assert_eq!(store.history().unwrap(), [entry(1), entry(2), entry(3)]);

        hide("reports.jsonl");
        assert_eq!(store.add_report(report(2)).unwrap_err().kind, Kind::State);
        assert_eq!(store.remove_reports(&[report(1)]).unwrap_err().kind, Kind::State);
        assert!(dir.path().join("reports.jsonl").is_dir(), "written over");
        show("reports.jsonl");
        store.add_report(report(3)).unwrap();
        assert_eq!(store.reports().unwrap(), [report(1), report(2), report(3)]);
    }

    #[test]
    fn what_is_set_is_read_and_what_is_unset_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.transaction(), None);
        let tx = crate::reconcile::tests::remembered();
        store.set_transaction(Some(&tx)).unwrap();
        assert_eq!(store.transaction(), Some(tx));
        store.set_transaction(None).unwrap();
        store.set_transaction(None).unwrap();
        assert_eq!(store.transaction(), None);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_a_state_failure() {
        let dir = tempfile::tempdir().unwrap();
        atomic_write(&dir.path().join("file"), b"").unwrap();
        assert_eq!(Store::open(dir.path().join("file/update")).unwrap_err().kind, Kind::State);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            atomic_write(&dir.path().join("history.jsonl"), &bytes).unwrap();
            atomic_write(&dir.path().join("transaction.json"), &bytes).unwrap();
            let store = Store::open(dir.path()).unwrap();
            store.history().unwrap();
            let _ = store.transaction();
        }

        #[test]
        fn log_tails_are_bounded(mut log in proptest::collection::vec(".{0,400}", 0..100)) {
            bound_log(&mut log);
            prop_assert!(log.len() <= LOG_LINES);
            prop_assert!(log.iter().all(|line| line.len() <= LOG_LINE_BYTES));
        }
    }
}
