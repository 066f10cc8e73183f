//! Our own side of the fence: how programs of the toolbox are started, and that they die with us.

use crate::{Error, Result, sys};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

type MakeCommand = dyn Fn(&str) -> Command + Send + Sync;

/// The exit code of a shell, `env` or `chroot` that does not find the program that it is to become
/// (POSIX, 2.8.2).
const NOT_FOUND: i32 = 127;

/// How a program of the toolbox (QEMU, `qemu-img`) becomes a command on this machine.
#[derive(Clone)]
pub struct Tools {
    make: Arc<MakeCommand>,
    remedy: Arc<str>,
}

impl Tools {
    /// From a function that makes a `Command` of a program's name. The command must end in
    /// `exec`: the process that is spawned has to become the program, or killing it would not.
    pub fn new(make: impl Fn(&str) -> Command + Send + Sync + 'static) -> Self {
        Tools { make: Arc::new(make), remedy: "install it".into() }
    }

    /// The same; `remedy` tells a person what to do where a program is lacking.
    #[must_use]
    pub fn with_remedy(self, remedy: &str) -> Self {
        Tools { remedy: remedy.into(), ..self }
    }

    /// Programs found in this machine's own `PATH`.
    pub fn host() -> Self {
        Tools::new(|program| Command::new(program))
    }

    /// The command for `program`, without arguments yet.
    pub fn command(&self, program: &str) -> Command {
        (self.make)(program)
    }

    /// Runs a short program to its end and returns what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Vec<u8>> {
        let mut command = self.command(program);
        command.args(args);
        let Output { status, stdout, stderr } =
            command.output().map_err(|source| Error::spawn(command.get_program(), program, source))?;
        if !status.success() {
            self.found(program, status)?;
            let stderr = String::from_utf8_lossy(&stderr).trim().to_string();
            return Err(Error::Program { program: program.into(), status, stderr });
        }
        Ok(stdout)
    }
}

impl Tools {
    /// Whether a program that ended with `status` was there at all.
    pub(crate) fn found(&self, program: &str, status: ExitStatus) -> Result<()> {
        match status.code() {
            Some(NOT_FOUND) => {
                Err(Error::Missing { program: program.into(), remedy: self.remedy.to_string() })
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tools")
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
        if !std::mem::take(&mut self.kill) {
            return;
        }
        let _ = killpg(Pid::from_raw(self.group), Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        let status = self.child.try_wait().ok().flatten();
        if status.is_some() {
            self.kill = false;
        }
        status
    }

    /// Lets it live on after us.
    pub fn detach(&mut self) {
        rustiot_scratch::spare(self.group);
        self.kill = false;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
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
/// alone to handle. It dies with its value and with this process; one that `outlives` it only from
/// [`Process::detach`] on.
pub(crate) fn start(program: &str, mut command: Command, outlives: bool) -> Result<Process> {
    command.process_group(0);
    if !outlives {
        sys::die_with_parent(&mut command);
    }
    let lacking = command.get_program().to_owned();
    let child = spawn(command).map_err(|source| Error::spawn(&lacking, program, source))?;
    let group = i32::try_from(child.id()).unwrap_or(i32::MAX);
    Ok(Process { child, group, kill: true })
}

/// Spawns a command from the thread that lives as long as this process.
pub fn spawn(command: Command) -> std::io::Result<Child> {
    let (reply, answer) = channel();
    let gone = || std::io::Error::other("the spawning thread is gone");
    spawner().lock().unwrap_or_else(PoisonError::into_inner).send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustiot_scratch::Scratch;

    /// A fifo whose end is read when no process that `script` started lives any more.
    fn holds(fifo: &std::path::Path, outlives: bool) -> (Process, std::fs::File) {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Both the shell and its child hold the fifo's write end open.
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec 9>{}; sleep 1000 & wait", fifo.display()));
        let process = start("sh", command, outlives).unwrap();
        (process, std::fs::File::open(fifo).unwrap())
    }

    #[test]
    fn a_child_and_its_children_die_with_the_value_even_if_it_was_to_outlive_us() {
        let scratch = Scratch::new(&std::env::temp_dir(), "testbed-host").unwrap();
        for outlives in [false, true] {
            let (mut process, mut reader) = holds(&scratch.file(&format!("alive-{outlives}")), outlives);
            assert!(process.ended().is_none());
            drop(process);
            // The read returns only when no process holds the write end any more.
            let mut rest = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut rest).unwrap();
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn a_child_that_is_let_go_lives_on() {
        let scratch = Scratch::new(&std::env::temp_dir(), "testbed-host").unwrap();
        let (mut process, _reader) = holds(&scratch.file("alive"), true);
        let group = Pid::from_raw(process.pid());
        process.detach();
        drop(process);
        // Signal 0 only asks whether it is there; it is ended by what asks next.
        assert!(killpg(group, None).is_ok());
        killpg(group, Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_program_that_is_lacking_is_named_with_the_remedy() {
        const NO: &str = "rustiot-no-such-program";
        let error = Tools::host().run(NO, &[]).unwrap_err();
        assert!(matches!(&error, Error::Missing { program, .. } if program == NO), "{error}");
        // As the toolbox does it: the process that is spawned is there, the program that it becomes is not.
        let tools = Tools::new(|program| {
            let mut command = Command::new("sh");
            command.args(["-c", "exec env -C / \"$@\"", "sh", program]);
            command
        });
        let error = tools.with_remedy("remove the toolbox").run(NO, &[]).unwrap_err().to_string();
        assert!(error.contains(NO) && error.contains("remove the toolbox"), "{error}");
        let other = Tools::host().run("false", &[]).unwrap_err();
        assert!(matches!(other, Error::Program { .. }), "{other}");
    }
}
