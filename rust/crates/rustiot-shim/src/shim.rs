//! The loop of a shim: one thread, `poll`.
//!
//! A client that does not read holds the container's output up for [`STALL`] and is then let go: a forgotten terminal
//! must not stop an app. Never waits for anything but `poll`. Called by `main`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Deserialize;

use crate::clock;
use crate::log::Writer;
use crate::protocol::{Answer, Config, Event, Exit, Kind, Request, frame, json_frame, take_frame};
use crate::sys;

/// What may wait for a client before the container's output is held up.
const BEHIND: usize = 256 * 1024;
/// How long a client may hold it up.
const STALL: Duration = Duration::from_secs(10);
/// What may wait for a program's input.
const INPUT: usize = 256 * 1024;
/// How long output is read after the program's end: something else may hold the other end.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a client may take for the last of it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long an engine may take to come before the start. Ours connects at once.
const NOBODY: Duration = Duration::from_secs(10);

/// Why a shim cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// read, write, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses what every shim needs.
    #[error("cannot {action}: {source}")]
    System {
        /// wait for events, …
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The exit status cannot be kept.
    #[error(transparent)]
    Durable(#[from] rustiot_durable::Error),
}

fn system(action: &'static str) -> impl Fn(nix::errno::Errno) -> Error {
    move |errno| Error::System { action, source: errno.into() }
}

/// What the runtime says on its status pipe.
#[derive(Debug, Default, Deserialize)]
struct Status {
    pid: Option<i32>,
    error: Option<String>,
    errno: Option<i32>,
}

/// The container's program, or one that was entered.
#[derive(Default)]
struct Program {
    tty: bool,
    size: Option<(u16, u16)>,
    input: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    input_ends: bool,
    outputs: [Option<OwnedFd>; 2],
    terminal: Option<File>,
    console: Option<(UnixListener, PathBuf)>,
    status: Option<(OwnedFd, Vec<u8>)>,
    answer: Answer,
    pid: Option<i32>,
    started_at: Option<String>,
    exit: Option<(i32, Instant)>,
    asked_by: Option<u64>,
    answered: bool,
}

impl Program {
    fn is_drained(&self) -> bool {
        self.outputs.iter().all(Option::is_none) && self.terminal.is_none() && self.console.is_none()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Role {
    New,
    Idle,
    Watch,
    Streams { program: String, stdin: bool, wants: [bool; 2] },
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
    role: Role,
    behind_since: Option<Instant>,
    /// Closed once everything is sent.
    closing: Option<Instant>,
    sent_input: bool,
}

/// The name of the container's own program.
const MAIN: &str = "";

struct Shim {
    config: Config,
    directory: PathBuf,
    log: Writer,
    programs: BTreeMap<String, Program>,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    /// Ended before the runtime told whose they are.
    unknown: HashMap<i32, i32>,
    stopping: Option<Instant>,
    done: Option<Instant>,
    /// Until when somebody must have come who may start the container.
    expected: Option<Instant>,
}

/// Runs the shim of the container whose `shim.json` is in `directory`, until the container has ended.
///
/// # Errors
/// [`Error`].
pub fn run(directory: &Path) -> Result<(), Error> {
    let path = directory.join("shim.json");
    let text =
        std::fs::read(&path).map_err(|source| Error::File { action: "read", path: path.clone(), source })?;
    let config: Config = serde_json::from_slice(&text).map_err(|e| Error::File {
        action: "understand",
        path,
        source: io::Error::other(e),
    })?;
    let _ = nix::unistd::setsid();
    prctl::set_child_subreaper(true).map_err(system("become the reaper"))?;
    // Last to go when memory ends: who holds the streams must not die before what writes to them.
    // (A host that does not let us is one on which we are tested.)
    let _ = volatile(Path::new("/proc/self/oom_score_adj"), b"-900");
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    mask.thread_block().map_err(system("block signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(system("wait for signals"))?;
    let listener = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|fd| {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .map_err(|source| Error::System { action: "take the socket", source })?;
    let log = Writer::open(&config.log, &config.id)
        .map_err(|source| Error::System { action: "open the log", source })?;
    let mut shim = Shim {
        config,
        directory: directory.to_owned(),
        log,
        programs: BTreeMap::new(),
        clients: BTreeMap::new(),
        next_client: 0,
        unknown: HashMap::new(),
        stopping: None,
        done: None,
        expected: Some(Instant::now() + NOBODY),
    };
    shim.serve(&listener, &signals)?;
    // Last: who waits for the container's end does not wait for this.
    if shim.config.sync_log {
        shim.log.sync();
    }
    Ok(())
}

/// Holds the apps' control group for systemd. On SIGTERM it ends every shim's container, as the system goes down.
///
/// # Errors
/// [`Error`].
pub fn hold(shims: &Path) -> Result<(), Error> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block().map_err(system("block signals"))?;
    mask.wait().map_err(system("wait for signals"))?;
    let processes = || std::fs::read_to_string(shims.join("cgroup.procs")).unwrap_or_default();
    for pid in processes().lines().filter_map(|line| line.parse().ok()) {
        let _ = sys::kill(pid, nix::libc::SIGTERM);
    }
    // systemd ends this wait with SIGKILL for all that is left.
    while !processes().is_empty() {
        let mut none: [PollFd<'_>; 0] = [];
        let _ = poll(&mut none, PollTimeout::from(50_u8));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a kernel's file: there is no medium to wait for")]
fn volatile(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    std::fs::write(path, bytes).map_err(|source| Error::File {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// What a descriptor that is ready belongs to.
enum Ready {
    Listener,
    Signals,
    Client(u64),
    Input(String),
    Output(String, usize),
    Terminal(String),
    Console(String),
    Status(String),
}

impl Shim {
    fn serve(&mut self, listener: &UnixListener, signals: &SignalFd) -> Result<(), Error> {
        loop {
            let now = Instant::now();
            if self.housekeeping(now)? {
                return Ok(());
            }
            let (ready, flags) = self.wait(listener, signals, now)?;
            for (what, events) in ready.into_iter().zip(flags) {
                if events.is_empty() {
                    continue;
                }
                match what {
                    Ready::Listener => self.accept(listener),
                    Ready::Signals => self.signals(signals)?,
                    Ready::Client(id) => self.client(id, events),
                    Ready::Input(program) => self.feed(&program),
                    Ready::Output(program, stream) => self.output(&program, stream),
                    Ready::Terminal(program) => self.terminal(&program, events),
                    Ready::Console(program) => self.console(&program),
                    Ready::Status(program) => self.status(&program),
                }
            }
        }
    }

    fn held_up(&self, program: &str) -> bool {
        self.clients.values().any(|c| {
            c.behind_since.is_some() && matches!(&c.role, Role::Streams { program: p, .. } if p == program)
        })
    }

    fn wait(
        &self,
        listener: &UnixListener,
        signals: &SignalFd,
        now: Instant,
    ) -> Result<(Vec<Ready>, Vec<PollFlags>), Error> {
        let (read, write) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let mut ready = vec![Ready::Listener, Ready::Signals];
        let mut fds = vec![PollFd::new(listener.as_fd(), read), PollFd::new(signals.as_fd(), read)];
        for (id, client) in &self.clients {
            let mut events = if client.closing.is_some() || self.input_is_full(client) {
                PollFlags::empty()
            } else {
                read
            };
            if !client.output.is_empty() {
                events |= write;
            }
            ready.push(Ready::Client(*id));
            fds.push(PollFd::new(client.stream.as_fd(), events));
        }
        for (name, program) in &self.programs {
            let held_up = self.held_up(name);
            if let Some(input) = &program.input
                && !program.waiting.is_empty()
            {
                ready.push(Ready::Input(name.clone()));
                fds.push(PollFd::new(input.as_fd(), write));
            }
            for (index, output) in program.outputs.iter().enumerate() {
                if let Some(output) = output
                    && !held_up
                {
                    ready.push(Ready::Output(name.clone(), index));
                    fds.push(PollFd::new(output.as_fd(), read));
                }
            }
            if let Some(terminal) = &program.terminal {
                let mut events = if held_up { PollFlags::empty() } else { read };
                if !program.waiting.is_empty() {
                    events |= write;
                }
                if !events.is_empty() {
                    ready.push(Ready::Terminal(name.clone()));
                    fds.push(PollFd::new(terminal.as_fd(), events));
                }
            }
            if let Some((console, _)) = &program.console {
                ready.push(Ready::Console(name.clone()));
                fds.push(PollFd::new(console.as_fd(), read));
            }
            if let Some((status, _)) = &program.status {
                ready.push(Ready::Status(name.clone()));
                fds.push(PollFd::new(status.as_fd(), read));
            }
        }
        let timeout = self.deadline().map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(now).as_millis().saturating_add(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(system("wait for events")(errno)),
        }
        let flags = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        Ok((ready, flags))
    }

    /// The next instant at which something happens by itself.
    fn deadline(&self) -> Option<Instant> {
        let drains = self.programs.values().filter_map(|p| p.exit.as_ref().map(|(_, at)| *at + DRAIN));
        let stalls = self.clients.values().filter_map(|c| c.behind_since.map(|at| at + STALL));
        let farewells = self.clients.values().filter_map(|c| c.closing.map(|at| at + FAREWELL));
        drains
            .chain(stalls)
            .chain(farewells)
            .chain(self.stopping)
            .chain(self.expected)
            .chain(self.done.map(|at| at + FAREWELL))
            .min()
    }

    /// Whether a client's input must wait because the program does not take it.
    fn input_is_full(&self, client: &Client) -> bool {
        match &client.role {
            Role::Streams { program, stdin: true, .. } => {
                // Before the start there is nobody to take it.
                self.programs.get(program).is_none_or(|p| p.waiting.len() >= INPUT)
            }
            _ => false,
        }
    }

    /// What is due. True when the shim is done.
    fn housekeeping(&mut self, now: Instant) -> Result<bool, Error> {
        let gone: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| {
                c.behind_since.is_some_and(|at| now >= at + STALL)
                    || c.closing.is_some_and(|at| c.output.is_empty() || now >= at + FAREWELL)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.leave(id);
        }
        // The engine holds a connection from before the start. One that ended in between will not come back for it, and
        // the next one takes over what runs only.
        let deserted = self.programs.is_empty() && self.clients.is_empty() && self.done.is_none();
        if deserted && self.expected.is_none_or(|at| now >= at) {
            return Ok(true);
        }
        if self.stopping.is_some_and(|at| now >= at) {
            self.stopping = None;
            let _ = volatile(&self.config.cgroup.join("cgroup.kill"), b"1");
            if let Some(pid) = self.programs.get(MAIN).and_then(|p| p.pid) {
                let _ = sys::kill(pid, nix::libc::SIGKILL);
            }
        }
        let ended: Vec<String> = self
            .programs
            .iter()
            .filter(|(_, p)| p.exit.is_some_and(|(_, at)| p.is_drained() || now >= at + DRAIN))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            if name == MAIN {
                self.ended()?;
            } else {
                self.exited(&name);
            }
        }
        Ok(match self.done {
            Some(at) => self.clients.is_empty() || now >= at + FAREWELL,
            None => false,
        })
    }

    fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.expected = None;
            self.next_client += 1;
            let client = Client {
                stream,
                input: Vec::new(),
                output: VecDeque::new(),
                role: Role::New,
                behind_since: None,
                closing: None,
                sent_input: false,
            };
            self.clients.insert(self.next_client, client);
        }
    }

    fn signals(&mut self, signals: &SignalFd) -> Result<(), Error> {
        while let Ok(Some(signal)) = signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            if number == nix::libc::SIGTERM || number == nix::libc::SIGINT {
                match self.programs.get(MAIN).and_then(|p| p.pid) {
                    Some(pid) => {
                        let _ = sys::kill(pid, self.config.stop_signal);
                        self.stopping = Some(Instant::now() + Duration::from_secs(self.config.stop_timeout));
                    }
                    None => self.done = Some(Instant::now()),
                }
            }
        }
        // What the runtime told comes before the ends of what it told of.
        let names: Vec<String> = self.programs.keys().cloned().collect();
        for name in &names {
            self.status(name);
        }
        while let Some((pid, code)) = sys::reap() {
            let owner = self.programs.iter().find(|(_, p)| p.pid == Some(pid)).map(|(name, _)| name.clone());
            match owner {
                Some(name) => self.note_end(&name, code),
                None => {
                    // Orphans of the container come by here too: remembered only while a start is under way.
                    if self.programs.values().any(|p| p.status.is_some()) {
                        self.unknown.insert(pid, code);
                    } else {
                        self.unknown.clear();
                    }
                }
            }
        }
        Ok(())
    }

    fn note_end(&mut self, name: &str, code: i32) {
        if let Some(program) = self.programs.get_mut(name) {
            program.exit = Some((code, Instant::now()));
            program.input = None;
            program.console = None;
        }
        if name == MAIN {
            // What was left in another process namespace must not outlive the container.
            let _ = volatile(&self.config.cgroup.join("cgroup.kill"), b"1");
        }
    }

    /// The container has ended and said all it had to say.
    fn ended(&mut self) -> Result<(), Error> {
        let Some(program) = self.programs.get_mut(MAIN) else { return Ok(()) };
        let Some((code, _)) = program.exit.take() else { return Ok(()) };
        program.outputs = [None, None];
        program.terminal = None;
        let pid = program.pid.unwrap_or_default();
        self.log.finish();
        let events = std::fs::read_to_string(self.config.cgroup.join("memory.events")).unwrap_or_default();
        let oom = events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|n| n != "0"));
        let exit = Exit { code, oom, at: clock::now(), pid };
        rustiot_durable::atomic_write(&self.config.exit, &serde_json::to_vec(&exit).unwrap_or_default())?;
        let names: Vec<String> = self.programs.keys().filter(|n| *n != MAIN).cloned().collect();
        for name in names {
            self.exited(&name);
        }
        self.tell(&Event::Ended(exit));
        let now = Instant::now();
        for client in self.clients.values_mut() {
            client.closing.get_or_insert(now);
        }
        self.done = Some(now);
        Ok(())
    }

    /// A program that was entered has ended.
    fn exited(&mut self, name: &str) {
        let Some(program) = self.programs.remove(name) else { return };
        // Without a code when the whole container went: the kernel killed it.
        let code = program.exit.map_or(137, |(code, _)| code);
        let event = Event::Exited { id: name.to_owned(), code };
        self.tell(&event);
        let now = Instant::now();
        for client in self.clients.values_mut() {
            if matches!(&client.role, Role::Streams { program, .. } if program == name) {
                client.output.extend(json_frame(&event));
                client.closing.get_or_insert(now);
            }
        }
    }

    fn tell(&mut self, event: &Event) {
        for client in self.clients.values_mut().filter(|c| c.role == Role::Watch) {
            client.output.extend(json_frame(event));
        }
    }

    /// A client goes, with what depends on it.
    fn leave(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else { return };
        let Role::Streams { program, stdin: true, .. } = client.role else { return };
        let once = program != MAIN || (self.config.stdin_once && client.sent_input);
        if let Some(program) = self.programs.get_mut(&program)
            && once
            && !program.tty
        {
            program.input_ends = true;
            if program.waiting.is_empty() {
                program.input = None;
            }
        }
    }

    fn client(&mut self, id: u64, events: PollFlags) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let mut gone = false;
        if events.contains(PollFlags::POLLOUT) {
            gone |= flush(client).is_err();
        }
        if events.contains(PollFlags::POLLIN) && client.closing.is_none() {
            let mut buffer = [0_u8; 32 * 1024];
            match (&client.stream).read(&mut buffer) {
                Ok(0) => gone = true,
                Ok(n) => client.input.extend(buffer.get(..n).unwrap_or_default()),
                Err(error) if again(&error) => {}
                Err(_) => gone = true,
            }
        } else if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            gone = true;
        }
        gone |= self.frames(id);
        if gone {
            self.leave(id);
        }
    }

    /// Takes up what a client has sent, as far as there is somebody to take it. True when it makes no sense.
    fn frames(&mut self, id: u64) -> bool {
        loop {
            let Some(client) = self.clients.get(&id) else { return false };
            if self.input_is_full(client) {
                return false;
            }
            let Some(client) = self.clients.get_mut(&id) else { return false };
            match take_frame(&mut client.input) {
                Ok(Some((kind, bytes))) => self.frame(id, kind, &bytes),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// What clients sent before there was room for it.
    fn overdue(&mut self, name: &str) {
        let streams = |role: &Role| matches!(role, Role::Streams { program, .. } if program == name);
        let ids: Vec<u64> =
            self.clients.iter().filter(|(_, c)| streams(&c.role)).map(|(id, _)| *id).collect();
        for id in ids {
            if self.frames(id) {
                self.leave(id);
            }
        }
    }

    fn frame(&mut self, id: u64, kind: Kind, bytes: &[u8]) {
        match kind {
            Kind::Stdin => {
                let Some(client) = self.clients.get_mut(&id) else { return };
                client.sent_input = true;
                let Role::Streams { program, stdin: true, .. } = &client.role else { return };
                let Some(program) = self.programs.get_mut(program) else { return };
                if bytes.is_empty() {
                    program.input_ends = true;
                    if program.waiting.is_empty() && !program.tty {
                        program.input = None;
                    }
                } else if program.input.is_some() || program.tty {
                    program.waiting.extend(bytes);
                }
            }
            Kind::Json => match serde_json::from_slice(bytes) {
                Ok(request) => self.request(id, request),
                Err(error) => {
                    let error = Some(format!("the shim does not understand the request: {error}"));
                    self.answer(id, &Answer { error, ..Answer::default() });
                }
            },
            Kind::Stdout | Kind::Stderr => {}
        }
    }

    fn answer(&mut self, id: u64, answer: &Answer) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.output.extend(json_frame(answer));
        }
    }

    fn role(&mut self, id: u64, role: Role) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.role = role;
        }
    }

    fn request(&mut self, id: u64, request: Request) {
        match request {
            Request::Start => {
                self.role(id, Role::Idle);
                if self.programs.contains_key(MAIN) {
                    let error = Some("the container is already started".to_owned());
                    return self.answer(id, &Answer { error, ..Answer::default() });
                }
                let mut arguments =
                    vec!["run".into(), "--bundle".into(), self.config.bundle.clone().into_os_string()];
                if let Some(capabilities) = &self.config.capabilities {
                    arguments.extend(["--capabilities".into(), capabilities.into()]);
                }
                let wanted = Wanted {
                    tty: self.config.tty,
                    stdin: self.config.stdin,
                    size: self.config.size,
                    owner: self.config.owner,
                };
                self.begin(id, MAIN.to_owned(), arguments, &wanted);
            }
            Request::Watch => {
                self.role(id, Role::Watch);
                let main = self.programs.get(MAIN);
                let execs = self.programs.iter().filter(|(n, p)| *n != MAIN && p.exit.is_none());
                let event = Event::Status {
                    pid: main.and_then(|p| p.pid).filter(|_| main.is_some_and(|p| p.exit.is_none())),
                    started_at: main.and_then(|p| p.started_at.clone()),
                    execs: execs.map(|(name, _)| name.clone()).collect(),
                };
                if let Some(client) = self.clients.get_mut(&id) {
                    client.output.extend(json_frame(&event));
                }
            }
            Request::Attach { stdin, stdout, stderr } => {
                self.role(id, Role::Streams { program: MAIN.to_owned(), stdin, wants: [stdout, stderr] });
                self.answer(id, &Answer::default());
            }
            Request::Exec { id: name, process, capabilities, unfiltered, tty, stdin, size, owner } => {
                if name.is_empty() || self.programs.contains_key(&name) {
                    let error = Some(format!("{name} is already started"));
                    return self.answer(id, &Answer { error, ..Answer::default() });
                }
                let mut arguments = vec!["exec".into(), "--process".into(), process.into_os_string()];
                if let Some(capabilities) = capabilities {
                    arguments.extend(["--capabilities".into(), capabilities.into()]);
                }
                if unfiltered {
                    arguments.push("--unfiltered".into());
                }
                self.role(id, Role::Streams { program: name.clone(), stdin, wants: [true, true] });
                self.begin(id, name, arguments, &Wanted { tty, stdin, size, owner });
            }
            Request::Resize { exec, size } => {
                self.role(id, Role::Idle);
                let answer = match self.programs.get_mut(exec.as_deref().unwrap_or(MAIN)) {
                    Some(program) => {
                        program.size = Some(size);
                        match &program.terminal {
                            Some(terminal) => {
                                sys::resize(terminal.as_fd(), size).err().map(|e| e.to_string())
                            }
                            None => None,
                        }
                    }
                    None => Some("no such process".to_owned()),
                };
                self.answer(id, &Answer { error: answer, ..Answer::default() });
            }
            Request::Kill { exec, signal } => {
                self.role(id, Role::Idle);
                let program = self.programs.get(exec.as_deref().unwrap_or(MAIN)).filter(|p| p.exit.is_none());
                let error = match program.and_then(|p| p.pid) {
                    // We are its parent and have not reaped it: the number is still its own.
                    Some(pid) => sys::kill(pid, signal).err().map(|e| e.to_string()),
                    None => Some("no such process".to_owned()),
                };
                self.answer(id, &Answer { error, ..Answer::default() });
            }
        }
    }

    fn begin(&mut self, client: u64, name: String, arguments: Vec<std::ffi::OsString>, wanted: &Wanted) {
        match self.spawn(client, arguments, wanted) {
            Ok(mut program) => {
                program.asked_by = Some(client);
                self.programs.insert(name.clone(), program);
                self.overdue(&name);
            }
            Err(error) => {
                let error = Some(format!("cannot start the runtime: {error}"));
                self.answer(client, &Answer { error, ..Answer::default() });
                if let Some(client) = self.clients.get_mut(&client) {
                    client.closing = Some(Instant::now());
                }
                if name == MAIN {
                    self.done = Some(Instant::now());
                }
            }
        }
    }

    fn spawn(&self, client: u64, arguments: Vec<std::ffi::OsString>, wanted: &Wanted) -> io::Result<Program> {
        let (first, before) = self.config.runtime.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(first);
        command.args(before).args(arguments).arg("--root").arg(&self.config.runtime_root);
        let mut program = Program { tty: wanted.tty, size: wanted.size, ..Program::default() };
        let mut theirs = Vec::new();
        if wanted.tty {
            // Short, and another one for each: an exec's name would not fit into a socket's path.
            let path = self.directory.join(format!("t{client}"));
            let _ = std::fs::remove_file(&path);
            let console = UnixListener::bind(&path)?;
            console.set_nonblocking(true)?;
            command.arg("--console-socket").arg(&path);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            program.console = Some((console, path));
        } else {
            let (uid, gid) = wanted.owner;
            let pipe = |input: bool| -> io::Result<(OwnedFd, OwnedFd)> {
                let (read, write) = io::pipe()?;
                let (ours, its) = if input {
                    (OwnedFd::from(write), OwnedFd::from(read))
                } else {
                    (read.into(), write.into())
                };
                sys::nonblocking(ours.as_fd())?;
                // So that it may open /dev/stdout.
                nix::unistd::fchown(&its, Some(uid.into()), Some(gid.into()))?;
                Ok((ours, its))
            };
            if wanted.stdin {
                let (ours, its) = pipe(true)?;
                command.stdin(its);
                program.input = Some(ours);
            } else {
                command.stdin(Stdio::null());
            }
            let (output, its) = pipe(false)?;
            command.stdout(its);
            let (errors, its) = pipe(false)?;
            command.stderr(its);
            program.outputs = [Some(output), Some(errors)];
        }
        let (status, its) = io::pipe()?;
        let (status, its) = (OwnedFd::from(status), OwnedFd::from(its));
        sys::nonblocking(status.as_fd())?;
        sys::close_on_exec(its.as_fd(), false)?;
        command.arg("--status").arg(its.as_raw_fd().to_string()).arg(&self.config.id);
        theirs.push(its);
        command.spawn()?;
        program.status = Some((status, Vec::new()));
        Ok(program)
    }

    /// Reads what the runtime says of a start; at its end the program runs, or cannot.
    fn status(&mut self, name: &str) {
        let Some(program) = self.programs.get_mut(name) else { return };
        let Some((pipe, text)) = &mut program.status else { return };
        let ended = loop {
            let mut buffer = [0_u8; 4096];
            match nix::unistd::read(&*pipe, &mut buffer) {
                Ok(0) => break true,
                Ok(n) => text.extend(buffer.get(..n).unwrap_or_default()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => break false,
                Err(_) => break true,
            }
        };
        for line in text.split(|b| *b == b'\n') {
            let Ok(status) = serde_json::from_slice::<Status>(line) else { continue };
            program.pid = program.pid.or(status.pid);
            if status.error.is_some() {
                program.answer.error = status.error;
                program.answer.errno = status.errno;
            }
        }
        let known = program.pid.and_then(|pid| self.unknown.remove(&pid));
        if !ended {
            if let Some(code) = known {
                self.note_end(name, code);
            }
            return;
        }
        program.status = None;
        program.answer.pid = program.pid;
        if program.pid.is_none() && program.answer.error.is_none() {
            program.answer.error = Some("the runtime ended without a word".to_owned());
        }
        let failed = program.answer.error.is_some();
        if !failed {
            program.started_at = Some(clock::now());
            // The runtime has set the size that was wanted at first; one that was asked for meanwhile is the one that counts.
            if let (Some(terminal), Some(size)) = (&program.terminal, program.size) {
                let _ = sys::resize(terminal.as_fd(), size);
            }
        }
        if let Some((_, path)) = program.console.take_if(|_| failed) {
            let _ = std::fs::remove_file(path);
        }
        let answer = program.answer.clone();
        let asked_by = program.asked_by.filter(|_| !std::mem::replace(&mut program.answered, true));
        if let Some(client) = asked_by {
            self.answer(client, &answer);
        }
        if let Some(code) = known {
            self.note_end(name, code);
        }
        if failed {
            let now = Instant::now();
            let streams = |role: &Role| matches!(role, Role::Streams { program, .. } if program == name);
            for client in self.clients.values_mut().filter(|c| name == MAIN || streams(&c.role)) {
                client.closing.get_or_insert(now);
            }
            self.programs.remove(name);
            if name == MAIN {
                self.log.finish();
                self.done = Some(now);
            }
        }
    }

    /// libcontainer has made the terminal and sends us its other end.
    fn console(&mut self, name: &str) {
        let Some(program) = self.programs.get_mut(name) else { return };
        let Some((listener, path)) = &program.console else { return };
        let Ok((socket, _)) = listener.accept() else { return };
        let _ = socket.set_nonblocking(false);
        let Ok(Some(terminal)) = sys::receive_descriptor(&socket) else { return };
        let _ = sys::nonblocking(terminal.as_fd());
        if let Some(size) = program.size {
            let _ = sys::resize(terminal.as_fd(), size);
        }
        let _ = std::fs::remove_file(path);
        program.console = None;
        program.terminal = Some(terminal);
    }

    fn feed(&mut self, name: &str) {
        let Some(program) = self.programs.get_mut(name) else { return };
        let closed = match &program.input {
            Some(input) => drain_into(&mut program.waiting, input.as_fd()).is_err(),
            None => false,
        };
        if closed || (program.waiting.is_empty() && program.input_ends) {
            program.input = None;
            program.waiting.clear();
        }
        self.overdue(name);
    }

    fn output(&mut self, name: &str, stream: usize) {
        let Some(program) = self.programs.get_mut(name) else { return };
        let Some(slot) = program.outputs.get_mut(stream) else { return };
        let Some(pipe) = slot else { return };
        let mut buffer = [0_u8; 32 * 1024];
        match nix::unistd::read(&*pipe, &mut buffer) {
            Ok(0) => *slot = None,
            Ok(n) => self.spread(name, stream, buffer.get(..n).unwrap_or_default()),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(_) => *slot = None,
        }
    }

    fn terminal(&mut self, name: &str, events: PollFlags) {
        let Some(program) = self.programs.get_mut(name) else { return };
        let Some(terminal) = &program.terminal else { return };
        if events.contains(PollFlags::POLLOUT) && drain_into(&mut program.waiting, terminal.as_fd()).is_err()
        {
            program.waiting.clear();
        }
        if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            let mut buffer = [0_u8; 32 * 1024];
            match nix::unistd::read(terminal, &mut buffer) {
                Ok(n) if n > 0 => self.spread(name, 0, buffer.get(..n).unwrap_or_default()),
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                // EIO: the last one that had it open has gone.
                Ok(_) | Err(_) => program.terminal = None,
            }
        }
    }

    /// Output goes to the log and to everybody who listens.
    fn spread(&mut self, name: &str, stream: usize, bytes: &[u8]) {
        if name == MAIN {
            self.log.write(stream, bytes);
        }
        let kind = if stream == 0 { Kind::Stdout } else { Kind::Stderr };
        let now = Instant::now();
        for client in self.clients.values_mut() {
            if matches!(&client.role, Role::Streams { program, wants, .. }
                if program == name && wants.get(stream) == Some(&true))
            {
                client.output.extend(frame(kind, bytes));
                let _ = flush(client);
                if client.output.len() > BEHIND {
                    client.behind_since.get_or_insert(now);
                }
            }
        }
    }
}

/// How a program is wanted.
struct Wanted {
    tty: bool,
    stdin: bool,
    size: Option<(u16, u16)>,
    owner: (u32, u32),
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Sends what a client takes now.
fn flush(client: &mut Client) -> io::Result<()> {
    while !client.output.is_empty() {
        let (first, _) = client.output.as_slices();
        match (&client.stream).write(first) {
            Ok(n) => {
                client.output.drain(..n);
                // It reads: the wait is counted anew.
                if client.behind_since.is_some() {
                    client.behind_since = (client.output.len() > BEHIND / 2).then(Instant::now);
                }
            }
            Err(error) if again(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    client.output.shrink_to(4096);
    Ok(())
}

fn drain_into(waiting: &mut VecDeque<u8>, fd: BorrowedFd<'_>) -> Result<(), nix::errno::Errno> {
    while !waiting.is_empty() {
        let (first, _) = waiting.as_slices();
        match nix::unistd::write(fd, first) {
            Ok(n) => {
                waiting.drain(..n);
            }
            Err(nix::errno::Errno::EAGAIN) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
