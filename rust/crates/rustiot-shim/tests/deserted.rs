//! The real process whose engine ends before it has started the container: the shim must not stay for ever.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that fails; nothing here must be durable"
)]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustiot_shim::protocol::{Config, Log, Request, json_frame};

/// A shim that waits to be told to start, whose runtime sleeps.
fn shim(directory: &Path) -> Child {
    let config = Config {
        id: "id".to_owned(),
        runtime: vec!["sh".to_owned(), "-c".to_owned(), "exec sleep 60".to_owned()],
        runtime_root: directory.to_owned(),
        bundle: directory.to_owned(),
        capabilities: None,
        tty: false,
        stdin: false,
        stdin_once: false,
        size: None,
        owner: (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()),
        log: Log::None,
        sync_log: false,
        exit: directory.join("exit.json"),
        cgroup: directory.to_owned(),
        stop_signal: 15,
        stop_timeout: 1,
    };
    std::fs::write(directory.join("shim.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let listener = UnixListener::bind(directory.join("s")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_rustiot-shim"))
        .arg("run")
        .arg(directory)
        .stdin(OwnedFd::from(listener))
        .spawn()
        .unwrap()
}

fn ends_within(shim: &mut Child, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if shim.try_wait().unwrap().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn watcher(directory: &Path) -> UnixStream {
    let mut watch = UnixStream::connect(directory.join("s")).unwrap();
    watch.write_all(&json_frame(&Request::Watch)).unwrap();
    // It is taken up when it is answered.
    assert!(watch.read(&mut [0; 512]).unwrap() > 0);
    watch
}

#[test]
fn it_ends_with_its_engine_before_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = shim(dir.path());
    let watch = watcher(dir.path());
    // As long as the engine is there it may take its time.
    assert!(!ends_within(&mut shim, Duration::from_secs(1)));
    drop(watch);
    assert!(ends_within(&mut shim, Duration::from_secs(5)), "it stays without an engine");
}

#[test]
fn it_ends_when_no_engine_ever_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = shim(dir.path());
    assert!(ends_within(&mut shim, Duration::from_secs(25)), "it waits for ever");
}

#[test]
fn it_stays_once_the_start_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = shim(dir.path());
    let watch = watcher(dir.path());
    let mut start = UnixStream::connect(dir.path().join("s")).unwrap();
    start.write_all(&json_frame(&Request::Start)).unwrap();
    let runtime = || std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shim.id())).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while runtime().is_empty() {
        assert!(Instant::now() < end, "the runtime was not started");
        std::thread::sleep(Duration::from_millis(20));
    }
    let runtime: i32 = runtime().trim().parse().unwrap();
    drop((watch, start));
    assert!(!ends_within(&mut shim, Duration::from_secs(2)), "it has left the container alone");
    // And another engine finds it.
    drop(watcher(dir.path()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(runtime), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(ends_within(&mut shim, Duration::from_secs(15)));
}
