//! What a command of the workstation must not leave behind: scratch directories, and processes that it started. A
//! directory goes with its value; when a signal ends the command, [`cleanup`] takes everything at once; what a process
//! left that was killed hard goes when the next one makes a directory of the same kind.
//!
//! It removes only directories that it made or was given, and kills only children of this process and theirs. Used by
//! `rustiot-image`, `testbed` and those above them.

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A scratch directory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct Error {
    /// The verb, as in "cannot create".
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { what, path: path.into(), source }
}

/// What is to be undone when we are told to stop, and who is to be spared.
struct Leftovers {
    dirs: BTreeSet<PathBuf>,
    spared: BTreeSet<i32>,
}

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers { dirs: BTreeSet::new(), spared: BTreeSet::new() });

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long killed processes may take to be gone; one that waits for a disk takes its time.
const PROCESSES_END: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Makes children of children ours when their parents end, so that [`cleanup`] finds them. Call it first.
pub fn watch_over_children() {
    // Without it only what a tool left when it was killed escapes us.
    let _ = set_child_subreaper(true);
}

/// Lets a child live when [`cleanup`] comes, with all its own children.
pub fn spare(child: i32) {
    leftovers().spared.insert(child);
}

/// Kills every process below this one and removes every scratch directory. From here on no thread makes or drops one,
/// nor gets past [`not_ending`]: the program must exit at once.
pub fn cleanup() {
    let left = leftovers();
    let began = Instant::now();
    loop {
        let children = below(std::process::id().cast_signed(), &left.spared, &processes());
        if children.is_empty() || began.elapsed() > PROCESSES_END {
            break;
        }
        for child in children {
            // It may have ended by itself, and then there is nothing to kill.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    for dir in &left.dirs {
        let _ = std::fs::remove_dir_all(dir);
    }
    std::mem::forget(left);
}

/// Returns if nobody is in [`cleanup`], and never if somebody is: a child that was killed there is no failure to tell.
pub fn not_ending() {
    drop(leftovers());
}

/// Every process that has not ended, with its parent (proc(5), stat, fields 3 and 4).
fn processes() -> BTreeMap<i32, i32> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let stat = id.and_then(|_: i32| std::fs::read_to_string(entry.path().join("stat")).ok());
        if let (Some(id), Some(parent)) = (id, stat.as_deref().and_then(parent_of)) {
            found.insert(id, parent);
        }
    }
    found
}

/// The parent in a `stat` file, whose second field is a name in brackets with anything in it; none if the process has
/// ended and only waits to be noticed.
fn parent_of(stat: &str) -> Option<i32> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    let state = fields.next()?;
    fields.next()?.parse().ok().filter(|_| !matches!(state, "Z" | "X"))
}

/// All processes below `top`, but not below those that are spared.
fn below(top: i32, spared: &BTreeSet<i32>, parents: &BTreeMap<i32, i32>) -> Vec<i32> {
    let mut found = vec![top];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(
            parents
                .iter()
                .filter(|(child, of)| **of == parent && **child != top && !spared.contains(child))
                .map(|(child, _)| *child),
        );
        at = at.saturating_add(1);
    }
    found.split_off(1)
}

/// A directory of ours that is removed when this value goes, or by [`cleanup`].
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keep: bool,
    /// Locked as long as this process lives, so that nobody takes the directory for a leftover.
    _lock: Option<File>,
}

/// A younger directory may not have its lock yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Removes directories `name-…` in `parent` that no living process has locked.
fn sweep(parent: &Path, name: &str) {
    let prefix = format!("{name}-");
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let old = || {
            let modified = entry.metadata().and_then(|meta| meta.modified()).ok()?;
            modified.elapsed().ok().filter(|age| *age > YOUNG)
        };
        let ours = entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix));
        let dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if ours && dir && old().is_some() && File::open(&path).is_ok_and(|f| f.try_lock().is_ok()) {
            // It may not be ours to remove: then it stays.
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

impl Scratch {
    /// A fresh directory `name-…` below `parent`, which is made if it is missing. What killed processes left there
    /// under the same `name` is removed: where people have files too, choose one that none of them has.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(parent: &Path, name: &str) -> Result<Self, Error> {
        std::fs::create_dir_all(parent).map_err(at("create", parent))?;
        sweep(parent, name);
        let mut left = leftovers();
        let path = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(parent)
            .map_err(at("create a directory in", parent))?
            .keep();
        left.dirs.insert(path.clone());
        drop(left);
        let mut scratch = Scratch { path, keep: false, _lock: None };
        let lock = File::open(&scratch.path).and_then(|dir| dir.lock().map(|()| dir));
        scratch._lock = Some(lock.map_err(at("lock", &scratch.path))?);
        Ok(scratch)
    }

    /// A directory of a given name, made if it is missing, that goes with this value unless it is kept.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn adopt(path: PathBuf) -> Result<Self, Error> {
        let mut left = leftovers();
        std::fs::create_dir_all(&path).map_err(at("create", &path))?;
        left.dirs.insert(path.clone());
        Ok(Scratch { path, keep: false, _lock: None })
    }

    /// A directory of a given name that stays.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn lasting(path: PathBuf) -> Result<Self, Error> {
        std::fs::create_dir_all(&path).map_err(at("create", &path))?;
        Ok(Scratch { path, keep: true, _lock: None })
    }

    /// From now on it stays.
    pub fn keep(&mut self) {
        leftovers().dirs.remove(&self.path);
        self.keep = true;
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            leftovers().dirs.remove(&self.path);
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_and_what_a_living_one_has_stays() {
        let parent = tempfile::tempdir().unwrap();
        let living = Scratch::new(parent.path(), "t").unwrap();
        let (left, other) = (parent.path().join("t-left"), parent.path().join("theirs"));
        for dir in [&left, &other, &living.path().to_path_buf()] {
            std::fs::create_dir_all(dir).unwrap();
            let long_ago = std::time::SystemTime::now().checked_sub(YOUNG * 2).unwrap();
            let times = std::fs::FileTimes::new().set_modified(long_ago);
            File::open(dir).unwrap().set_times(times).unwrap();
        }
        let _next = Scratch::new(parent.path(), "t").unwrap();
        assert_eq!((left.exists(), other.exists(), living.path().exists()), (false, true, true));
    }

    #[test]
    fn a_directory_goes_with_its_value_unless_it_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let made = Scratch::new(parent.path(), "t").unwrap();
        let path = made.path().to_path_buf();
        assert!(path.is_dir() && leftovers().dirs.contains(&path));
        drop(made);
        assert!(!path.exists() && !leftovers().dirs.contains(&path));
        let named = parent.path().join("named");
        drop(Scratch::adopt(named.clone()).unwrap());
        assert!(!named.exists());
        let mut kept = Scratch::adopt(named.clone()).unwrap();
        kept.keep();
        drop(kept);
        assert!(named.is_dir() && !leftovers().dirs.contains(&named));
    }

    #[test]
    fn everything_below_us_is_found_but_what_is_spared() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 2), (6, 5), (7, 1)]);
        assert_eq!(below(2, &BTreeSet::from([5]), &parents), [3, 4]);
        assert_eq!(below(2, &BTreeSet::new(), &parents), [3, 5, 4, 6]);
        assert_eq!(below(7, &BTreeSet::new(), &parents), [0; 0]);
    }

    #[test]
    fn a_parent_is_read_past_any_name_and_one_that_has_ended_does_not_count() {
        assert_eq!(parent_of("12 (a ) S 1) S 34 12 12"), Some(34));
        assert_eq!(parent_of("12 (a) Z 34 12 12"), None);
        assert_eq!(parent_of("nothing"), None);
        let us = std::process::id().cast_signed();
        assert!(processes().contains_key(&us));
    }
}
