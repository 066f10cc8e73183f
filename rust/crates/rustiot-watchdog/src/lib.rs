//! Owner of the hardware watchdog and the liveness tree: feeds the hardware as long as PID 1 turns, the disk takes
//! writes and the services that registered make progress, and climbs from a unit's restart to a reboot otherwise.
//!
//! A few threads and no async runtime: the less it needs, the less can stop it. Never disarms the hardware. Runs as
//! `rustiot-watchdog.service` through the multi-call binary. Contract: `docs/contracts/watchdog.md`.

pub mod budget;
pub mod clock;
mod disk;
mod hardware;
mod pid1;
mod port;
mod service;
pub mod status;
mod sys;
pub mod tree;

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use rustiot_config::Settings;
use serde::Deserialize;

use crate::clock::SoftClock;
use crate::disk::Found;
use crate::pid1::Pid1;
use crate::port::Machine;
use crate::service::{Port, Sender, Service};
use crate::tree::{Event, Now};

pub use status::Status;

/// How often the canary counts.
const BEAT: Duration = Duration::from_secs(2);
/// How often the hardware is looked for while there is none.
const LOOK_FOR_HARDWARE: Duration = Duration::from_secs(10);
/// How long the start waits for the hardware's driver before it goes on without.
const WAIT_FOR_HARDWARE: Duration = Duration::from_secs(5);
/// Datagrams taken in one round, so that a flood cannot keep us from feeding.
const DATAGRAMS_A_ROUND: usize = 256;

/// Where things are.
#[derive(Clone, Debug)]
struct Paths {
    run: PathBuf,
    state: PathBuf,
    board: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            run: "/run/rustiot".into(),
            state: "/state".into(),
            board: "/usr/lib/rustiot/board.toml".into(),
        }
    }
}

/// What we need of `boot.json`.
#[derive(Debug, Deserialize)]
struct BootReport {
    kind: rustiot_boot::BootKind,
    #[serde(default)]
    timings_ms: Timings,
}

#[derive(Debug, Default, Deserialize)]
struct Timings {
    #[serde(default)]
    switch_root: u64,
}

/// What we need of `health.json`.
#[derive(Debug, Deserialize)]
struct HealthReport {
    #[serde(default)]
    committed: bool,
}

/// The service's `main`. Returns the exit code.
#[must_use]
pub fn main() -> u8 {
    match run(&Paths::default()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rustiot-watchdog: {error:#}");
            1
        }
    }
}

/// Runs until SIGTERM. Leaves the hardware running and well fed for whoever comes next.
fn run(paths: &Paths) -> anyhow::Result<()> {
    let signals = block_signals().context("cannot take over SIGTERM")?;
    let beats = canary().context("cannot start the canary")?;
    let (mut settings_at, settings) = settings(paths, None).unwrap_or_default();
    let mut machine = Machine::new(&device(&paths.board), &paths.state);

    // First of all: the hardware runs already and nobody has fed it since the initramfs.
    let mut looked = sys::uptime();
    while let Err(error) = machine.acquire(settings.watchdog.timeout.get()) {
        if sys::uptime().saturating_sub(looked) >= WAIT_FOR_HARDWARE {
            machine.say(&format!(
                "NO HARDWARE WATCHDOG ({error}): nothing resets this device if its kernel hangs"
            ));
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let _ = machine.feed();
    if machine.hardware().0.is_some_and(|about| !about.survives_close) {
        machine.say("this hardware is disarmed by a plain close: a crash of this service leaves a gap");
    }
    for (what, result) in
        [("lock memory", sys::lock_memory()), ("become a real-time process", sys::become_realtime())]
    {
        if let Err(error) = result {
            machine.say(&format!("cannot {what}: {error}"));
        }
    }

    let socket = listen(&paths.run).context("cannot listen for children")?;
    let mut pid1 = std::env::var("NOTIFY_SOCKET").ok().and_then(|path| Pid1::new(&path).ok());
    let (ask_disk, disk_answers) = disk_prober(&paths.state).context("cannot start the disk's prober")?;

    let report: Option<BootReport> = read_json(&paths.run.join("boot.json"));
    let rescue = report.as_ref().is_some_and(|r| r.kind == rustiot_boot::BootKind::Rescue);
    let mut clock = SoftClock::new(sys::uptime(), beats.load(Ordering::Relaxed), BEAT);
    let mut now = clock.now(sys::uptime(), beats.load(Ordering::Relaxed));
    let mut service = Service::new(now, settings.watchdog.clone(), pid1.is_some(), !rescue);
    start_trial(&mut service, now, report.as_ref(), &settings, &mut machine);
    if let Some(pid1) = &pid1 {
        let _ = pid1.notify("READY=1");
    }

    let mut tick_at = now.real;
    let mut probe_at = now.real;
    let mut remembered = false;
    let mut statistics = None;
    loop {
        let wait = tick_at.saturating_sub(now.real).min(Duration::from_secs(60));
        let stop = wait_for(&signals, &socket, pid1.as_ref(), wait);
        now = clock.now(sys::uptime(), beats.load(Ordering::Relaxed));

        for _ in 0..DATAGRAMS_A_ROUND {
            let Some((sender, bytes)) = receive(&socket) else { break };
            service.datagram(now, &sender, &bytes, &mut machine);
        }
        if pid1.as_mut().is_some_and(Pid1::answered) {
            service.pid1_answered(now, &mut machine);
        }
        while let Ok((answer, budget)) = disk_answers.try_recv() {
            service.disk_answered(now, &answer, &mut machine);
            if matches!(answer, Ok(Found::Good)) && !remembered {
                remembered = true;
                statistics = disk::statistics_of(&paths.state);
                service.event(now, Event::Remembered(budget), &mut machine);
            }
        }
        if stop {
            // One more full timeout for the next owner: our successor, or systemd's own at the end of a shutdown.
            let _ = machine.feed();
            return Ok(());
        }
        if now.real < tick_at {
            continue;
        }

        if let Some(pid1) = &mut pid1 {
            let _ = pid1.ask();
        }
        if now.real >= probe_at && ask_disk.try_send(now.real.as_secs()).is_ok() {
            service.disk_asked(now);
            probe_at = now.real.saturating_add(disk::EVERY);
        }
        if let Some((at, new)) = self::settings(paths, settings_at) {
            settings_at = at;
            let _ = machine.acquire(new.watchdog.timeout.get());
            service.configure(now, new.watchdog.clone(), pid1.is_some());
            if service.on_trial() {
                start_trial(&mut service, now, report.as_ref(), &new, &mut machine);
            }
        }
        if machine.hardware().0.is_none() && now.real.saturating_sub(looked) >= LOOK_FOR_HARDWARE {
            looked = now.real;
            if machine.acquire(service.settings().timeout.get()).is_ok() {
                machine.say("the hardware watchdog has appeared");
            }
        }
        if service.on_trial()
            && read_json::<HealthReport>(&paths.run.join("health.json")).is_some_and(|h| h.committed)
        {
            service.event(now, Event::Committed, &mut machine);
        }
        let writes = statistics.as_ref().and_then(|p| fs::read_to_string(p).ok());
        service.tick(now, writes.as_deref().and_then(disk::completed_writes), &mut machine);

        let (hardware, timeout) = machine.hardware();
        let status = service.status(now, hardware, timeout);
        if let Ok(text) = serde_json::to_vec_pretty(&status) {
            let _ = rustiot_durable::atomic_write_volatile(&paths.run.join("watchdog.json"), &text);
        }
        tick_at = now.real.saturating_add(pace(service.settings().interval.get(), timeout));
    }
}

/// How often to tick: as set, but always three times within the hardware's timeout.
fn pace(interval: Duration, timeout: Duration) -> Duration {
    let third = if timeout.is_zero() { interval } else { timeout.checked_div(3).unwrap_or(interval) };
    interval.min(third).max(Duration::from_secs(1))
}

/// In a trial: sets the time at which it ends if nothing is committed.
fn start_trial(
    service: &mut Service,
    now: Now,
    report: Option<&BootReport>,
    settings: &Settings,
    port: &mut impl Port,
) {
    if let Some(report) = report.filter(|r| r.kind == rustiot_boot::BootKind::Trial) {
        let deadline = Duration::from_millis(report.timings_ms.switch_root)
            .saturating_add(settings.health.deadline.get())
            .saturating_add(settings.health.soak.get())
            .saturating_add(settings.watchdog.trial_margin.get());
        service.event(now, Event::Trial { deadline }, port);
    }
}

/// The device that the board names, or the kernel's first one.
fn device(board: &Path) -> PathBuf {
    match rustiot_board::Board::load(board) {
        Ok(board) => board.watchdog.device.into(),
        Err(_) => "/dev/watchdog".into(),
    }
}

/// The settings, if their file is another than `seen`.
fn settings(paths: &Paths, seen: Option<SystemTime>) -> Option<(Option<SystemTime>, Settings)> {
    let path = paths.run.join("settings.json");
    let at = fs::metadata(&path).and_then(|m| m.modified()).ok()?;
    if seen == Some(at) {
        return None;
    }
    Settings::load_from(&path).ok().map(|settings| (Some(at), settings))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// SIGTERM and SIGINT come through a descriptor in all threads from now on.
fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// The thread of ordinary priority whose counting is soft time.
fn canary() -> io::Result<Arc<AtomicU64>> {
    let beats = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&beats);
    thread::Builder::new().name("canary".into()).spawn(move || {
        loop {
            thread::sleep(BEAT);
            // In beats of time that passed and that we were awake for: never more than the clock says.
            count.fetch_add(1, Ordering::Relaxed);
        }
    })?;
    Ok(beats)
}

type DiskAnswer = (io::Result<Found>, budget::Budget);

/// The thread that asks the disk whenever it gets a number. With each answer comes the budget that is remembered
/// there.
fn disk_prober(state: &Path) -> io::Result<(SyncSender<u64>, Receiver<DiskAnswer>)> {
    let (ask, asked) = mpsc::sync_channel(0);
    let (answer, answers) = mpsc::channel();
    let state = state.to_owned();
    thread::Builder::new().name("disk".into()).spawn(move || {
        while let Ok(number) = asked.recv() {
            let found = disk::probe(&state, number);
            let budget = port::load(&state);
            if answer.send((found, budget)).is_err() {
                return;
            }
        }
    })?;
    Ok((ask, answers))
}

/// Opens the children's socket; everybody may send, the kernel says who did.
fn listen(run: &Path) -> io::Result<UnixDatagram> {
    fs::create_dir_all(run)?;
    let path = run.join("watchdog.sock");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}

/// Waits for a datagram, an answer of PID 1, a signal, or the time. Returns whether to end.
fn wait_for(signals: &SignalFd, socket: &UnixDatagram, pid1: Option<&Pid1>, wait: Duration) -> bool {
    let mut fds =
        vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    fds.extend(pid1.and_then(Pid1::waiting).map(|pipe| PollFd::new(pipe, PollFlags::empty())));
    let millis = u16::try_from(wait.as_millis()).unwrap_or(u16::MAX);
    let _ = poll(&mut fds, PollTimeout::from(millis));
    signals.read_signal().is_ok_and(|signal| signal.is_some())
}

/// One datagram, and who the kernel says has sent it.
fn receive(socket: &UnixDatagram) -> Option<(Sender, Vec<u8>)> {
    let mut bytes = vec![0; rustiot_liveness::protocol::MAX_DATAGRAM.saturating_add(1)];
    let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
    let mut data = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_DONTWAIT).ok()?;
    let credentials = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials),
        _ => None,
    });
    let length = message.bytes;
    bytes.truncate(length);
    let sender = match credentials {
        Some(c) => Sender { pid: c.pid(), uid: c.uid(), cgroup: cgroup(c.pid()) },
        // Cannot be with SO_PASSCRED; nobody in particular, then.
        None => Sender { pid: 0, uid: u32::MAX, cgroup: String::new() },
    };
    Some((sender, bytes))
}

/// The control group of a process (version 2 hierarchy).
fn cgroup(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hardware_is_fed_three_times_within_its_timeout() {
        let s = Duration::from_secs;
        assert_eq!(pace(s(10), s(60)), s(10));
        assert_eq!(pace(s(30), s(60)), s(20));
        assert_eq!(pace(s(10), s(1)), s(1));
        assert_eq!(pace(s(10), s(0)), s(10), "no hardware");
    }

    #[test]
    fn the_kernel_says_who_has_sent_a_datagram() {
        let dir = tempfile::tempdir().unwrap();
        let socket = listen(dir.path()).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        assert_eq!(receive(&socket), None);
        sender.send_to(b"ALIVE x", dir.path().join("watchdog.sock")).unwrap();
        let (sender, bytes) = receive(&socket).unwrap();
        assert_eq!((sender.pid, bytes.as_slice()), (std::process::id() as i32, b"ALIVE x".as_slice()));
        assert_eq!(sender.uid, nix::unistd::getuid().as_raw());
        // A second start takes the name over.
        listen(dir.path()).unwrap();
    }

    #[test]
    fn settings_are_read_once_and_again_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { run: dir.path().into(), ..Paths::default() };
        assert!(settings(&paths, None).is_none());
        rustiot_durable::atomic_write_volatile(
            &dir.path().join("settings.json"),
            br#"{"watchdog":{"timeout":"30s"}}"#,
        )
        .unwrap();
        let (at, read) = settings(&paths, None).unwrap();
        assert_eq!(read.watchdog.timeout.as_secs(), 30);
        assert!(settings(&paths, at).is_none());
    }

    #[test]
    fn the_disk_is_asked_in_another_thread() {
        let dir = tempfile::tempdir().unwrap();
        let (ask, answers) = disk_prober(dir.path()).unwrap();
        ask.send(1).unwrap();
        let (found, budget) = answers.recv().unwrap();
        assert_eq!((found.unwrap(), budget), (Found::Absent, budget::Budget::default()));
    }

    #[test]
    fn reads_what_init_and_health_report() {
        let report: BootReport = serde_json::from_str(
            r#"{"slot":"b","boot_id":"x","kind":"trial","timings_ms":{"exec":10,"switch_root":900},"new":1}"#,
        )
        .unwrap();
        assert_eq!((report.kind, report.timings_ms.switch_root), (rustiot_boot::BootKind::Trial, 900));
        assert!(serde_json::from_str::<HealthReport>(r#"{"committed":true,"x":0}"#).unwrap().committed);
        assert!(!serde_json::from_str::<HealthReport>("{}").unwrap().committed);
    }
}
