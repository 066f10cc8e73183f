//! Our own side of the fence: how programs of the toolbox are started, that they die with us, and
//! scratch directories that are gone afterwards. Never leaves either behind, whatever ends us.

use crate::{Error, Result, sys};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

type MakeCommand = dyn Fn(&str) -> Command + Send + Sync;

/// How a program of the toolbox (QEMU, `qemu-img`) becomes a command on this machine.
#[derive(Clone)]
pub struct Tools(Arc<MakeCommand>);

impl Tools {
    /// From a function that makes a `Command` of a program's name. The command must end in
    /// `exec`: the process that is spawned has to become the program, or killing it would not.
    pub fn new(make: impl Fn(&str) -> Command + Send + Sync + 'static) -> Self {
        Tools(Arc::new(make))
    }

    /// Programs found in this machine's own `PATH`.
    pub fn host() -> Self {
        Tools::new(|program| Command::new(program))
    }

    /// The command for `program`, without arguments yet.
    pub fn command(&self, program: &str) -> Command {
        (self.0)(program)
    }

    /// Runs a short program to its end and returns what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Vec<u8>> {
        let mut command = self.command(program);
        command.args(args);
        let Output { status, stdout, stderr } =
            command.output().map_err(|source| Error::Spawn { program: program.into(), source })?;
        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr).trim().to_string();
            return Err(Error::Program { program: program.into(), status, stderr });
        }
        Ok(stdout)
    }
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tools")
    }
}

/// What has to be undone if we are told to stop: process groups and directories.
#[derive(Default)]
struct Leftovers {
    groups: BTreeSet<i32>,
    dirs: BTreeSet<PathBuf>,
}

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers { groups: BTreeSet::new(), dirs: BTreeSet::new() });

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills every child and removes every scratch directory of this process. For the signal handler
/// of a program: afterwards it must exit at once.
pub fn cleanup() {
    let mut left = leftovers();
    for group in std::mem::take(&mut left.groups) {
        // It may have ended by itself, and then there is nothing to kill.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    for dir in std::mem::take(&mut left.dirs) {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// A running child that is killed, with all its own children, when this value goes.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    group: i32,
    kill: bool,
}

impl Process {
    /// Its process id (and that of its group).
    pub fn pid(&self) -> i32 {
        self.group
    }

    /// Kills the whole group at once, as a power cut does, and waits for its end.
    pub fn kill(&mut self) {
        if !leftovers().groups.remove(&self.group) && !self.kill {
            return;
        }
        self.kill = false;
        let _ = killpg(Pid::from_raw(self.group), Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        let status = self.child.try_wait().ok().flatten();
        if status.is_some() {
            leftovers().groups.remove(&self.group);
            self.kill = false;
        }
        status
    }

    /// Lets it live on after us.
    pub fn detach(&mut self) {
        leftovers().groups.remove(&self.group);
        self.kill = false;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kill {
            self.kill();
        }
    }
}

type Job = (Command, Sender<std::io::Result<Child>>);

/// The kernel's parent-death signal follows the *thread* that spawned, so one thread that lives as
/// long as the process spawns everything; a test's own thread may then come and go.
fn spawner() -> &'static Mutex<Sender<Job>> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (jobs, inbox) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    })
}

/// Starts a long-running child in its own process group, so that a Ctrl-C on the terminal is ours
/// alone to handle. It dies with this process unless `outlives` is set.
pub(crate) fn start(program: &str, mut command: Command, outlives: bool) -> Result<Process> {
    command.process_group(0);
    if !outlives {
        sys::die_with_parent(&mut command);
    }
    let child = spawn(command).map_err(|source| Error::Spawn { program: program.into(), source })?;
    let group = i32::try_from(child.id()).unwrap_or(i32::MAX);
    if !outlives {
        leftovers().groups.insert(group);
    }
    Ok(Process { child, group, kill: !outlives })
}

/// Spawns a command from the thread that lives as long as this process.
pub fn spawn(command: Command) -> std::io::Result<Child> {
    let (reply, answer) = channel();
    let gone = || std::io::Error::other("the spawning thread is gone");
    spawner().lock().unwrap_or_else(PoisonError::into_inner).send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// A directory of ours that is removed when this value goes, or by [`cleanup`]. What a process that
/// was killed left is removed by the next one that makes a directory of the same kind.
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
        if ours && path.is_dir() && old().is_some() && File::open(&path).is_ok_and(|f| f.try_lock().is_ok()) {
            // It may not be ours to remove: then it stays.
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

impl Scratch {
    /// A fresh directory below `parent`, which is made if it is missing.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        sweep(parent, name);
        let path = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(parent)
            .map_err(Error::io("create a directory in", parent))?
            .keep();
        leftovers().dirs.insert(path.clone());
        let lock = File::open(&path).and_then(|dir| dir.lock().map(|()| dir));
        let lock = lock.map_err(Error::io("lock", &path))?;
        Ok(Scratch { path, keep: false, _lock: Some(lock) })
    }

    /// A directory of a given name that stays: for machines that outlive this process.
    pub fn lasting(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(Scratch { path, keep: true, _lock: None })
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
    fn a_child_and_its_children_die_with_the_value() -> Result<()> {
        let scratch = Scratch::new(&std::env::temp_dir(), "testbed-host")?;
        let fifo = scratch.file("alive");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)
            .map_err(|e| Error::io("create", &fifo)(e.into()))?;
        // Both the shell and its child hold the fifo's write end open.
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec 9>{}; sleep 1000 & wait", fifo.display()));
        let mut process = start("sh", command, false)?;
        let mut reader = std::fs::File::open(&fifo).map_err(Error::io("open", &fifo))?;
        assert!(process.ended().is_none());
        drop(process);
        // The read returns only when no process holds the write end any more.
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut rest).map_err(Error::io("read", &fifo))?;
        assert!(rest.is_empty());
        Ok(())
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_a_living_one_has_stays() -> Result<()> {
        let parent = tempfile::tempdir().map_err(Error::io("create", Path::new("tmp")))?;
        let living = Scratch::new(parent.path(), "t")?;
        let (left, other) = (parent.path().join("t-left"), parent.path().join("theirs"));
        for dir in [&left, &other, &living.path().to_path_buf()] {
            std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            let long_ago = std::time::SystemTime::now().checked_sub(YOUNG * 2);
            let times = std::fs::FileTimes::new().set_modified(long_ago.unwrap_or(std::time::UNIX_EPOCH));
            File::open(dir).and_then(|d| d.set_times(times)).map_err(Error::io("age", dir))?;
        }
        let _next = Scratch::new(parent.path(), "t")?;
        assert_eq!((left.exists(), other.exists(), living.path().exists()), (false, true, true));
        Ok(())
    }

    #[test]
    fn a_scratch_directory_goes_with_its_value() -> Result<()> {
        let scratch = Scratch::new(&std::env::temp_dir(), "testbed-scratch")?;
        let path = scratch.path().to_path_buf();
        assert!(path.is_dir());
        drop(scratch);
        assert!(!path.exists());
        Ok(())
    }
}
