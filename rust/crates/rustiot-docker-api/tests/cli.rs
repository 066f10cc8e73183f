//! The stock Docker command line against the server with an engine in memory: output, exit codes, streams, terminals.
//!
//! Skipped, and said so, where there is no `docker` (or no Compose) on the machine.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a helper that panics fails the test, which is what it is for"
)]

mod fake;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake::Fake;
use rustiot_docker_api::server::{Settings, serve};

struct Host {
    dir: tempfile::TempDir,
    engine: Arc<Fake>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Host {
    fn start() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let engine = Fake::new();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let served = Arc::clone(&engine);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::bind(path).unwrap();
                ready.send(()).unwrap();
                serve(listener, served, settings, async { drop(stopped.await) }).await.unwrap();
            });
        });
        is_ready.recv().unwrap();
        Self { dir, engine, stop: Some(stop), thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.dir.path())
            .env_remove("DOCKER_CONTEXT")
            .env_remove("DOCKER_API_VERSION")
            .current_dir(self.dir.path());
    }

    fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        within(self.docker(arguments).stdin(Stdio::null()), &[])
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "docker {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and what was said on standard error.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "docker {arguments:?}: {output:?}");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn seen(&self, what: &str) -> bool {
        self.engine.seen.lock().unwrap().iter().any(|line| line.contains(what))
    }

    /// Sends bytes and returns what comes until the server closes, or a second is silent after the first byte or two are
    /// over. The first byte may take as long as a busy machine needs.
    fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        // A server that refuses a body need not read all of it.
        let _ = stream.write_all(request.as_bytes());
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut buffer = [0; 4096];
        let first = stream.read(&mut buffer).unwrap_or(0);
        let mut answer = buffer[..first].to_vec();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2)
            && let Ok(n @ 1..) = stream.read(&mut buffer)
        {
            answer.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking(), "the server ended with a panic");
    }
}

/// Runs a command that must end within a minute.
fn within(command: &mut Command, input: &[u8]) -> Output {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        std::thread::spawn(move || stdin.write_all(&input));
    }
    finish(child)
}

fn finish(mut child: Child) -> Output {
    let drain = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = drain(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = drain(child.stderr.take().map(|p| Box::new(p) as _));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!(
                "did not end: {:?} {:?}",
                stdout.join().map(String::from_utf8),
                stderr.join().map(String::from_utf8)
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// A terminal of 30 rows and 100 columns with a command on it.
struct Terminal {
    master: std::fs::File,
    child: Child,
    text: String,
}

impl Terminal {
    fn open(host: &Host, arguments: &[&str]) -> Self {
        let size = nix::pty::Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(&size, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = Command::new("setsid");
        host.prepare(&mut command);
        command.args(["-c", "-w", "docker"]).args(arguments).stdin(slave()).stdout(slave()).stderr(slave());
        let child = command.spawn().unwrap();
        drop(command);
        Self { master: pty.master.into(), child, text: String::new() }
    }

    fn expect(&mut self, what: &str) {
        let begun = Instant::now();
        while !self.text.contains(what) {
            assert!(begun.elapsed() < Duration::from_secs(30), "no {what:?} in {:?}", self.text);
            let mut buffer = [0; 1024];
            match self.master.read(&mut buffer) {
                Ok(n) => self.text.push_str(&String::from_utf8_lossy(&buffer[..n])),
                Err(_) => assert!(self.text.contains(what), "no {what:?} in {:?}", self.text),
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn code(mut self) -> i32 {
        let mut buffer = [0; 1024];
        while matches!(self.master.read(&mut buffer), Ok(n) if n > 0) {}
        self.child.wait().unwrap().code().unwrap()
    }
}

/// A host, or nothing where there is no client to test with.
fn host() -> Option<Host> {
    if Command::new("docker").arg("--version").output().is_err() {
        eprintln!("skipped: no docker command on this machine");
        return None;
    }
    Some(Host::start())
}

fn with_image() -> Option<Host> {
    let host = host()?;
    host.ok(&["pull", "-q", "busybox"]);
    Some(host)
}

#[test]
fn version_and_info_show_the_engine() {
    let Some(host) = host() else { return };
    let text = host.ok(&["version"]);
    assert!(text.contains("Server: RustIoT"), "{text}");
    assert!(text.contains("1.47 (minimum version 1.24)"), "{text}");
    assert_eq!(
        host.ok(&["version", "--format", "{{.Client.APIVersion}} {{.Server.Version}}"]).trim(),
        "1.47 0.1.0"
    );
    let output = host.run(&["info"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "Server Version: 0.1.0",
        "Storage Driver: memory",
        "Operating System: RustIoT OS",
        "Total Memory: 1GiB",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(String::from_utf8(output.stderr).unwrap().contains("this one is a fake"));
}

#[test]
fn pull_shows_progress_and_its_errors_end_it() {
    let Some(host) = host() else { return };
    let text = host.ok(&["pull", "busybox:1.36"]);
    assert!(text.contains("1.36: Pulling from library/busybox"), "{text}");
    assert!(text.contains("aabbccddeeff: Pull complete"), "{text}");
    assert!(text.contains("Status: Downloaded newer image for busybox:1.36"), "{text}");
    assert!(host.seen("tag: Some(\"1.36\")"));
    let (code, text) = host.fails(&["pull", "secret"]);
    assert!(
        code == 1 && text.contains("Error response from daemon: pull access denied for secret"),
        "{text}"
    );
    let (code, text) = host.fails(&["pull", "broken"]);
    assert!(code == 1 && text.contains("layer aabbccddeeff: digest mismatch"), "{text}");
    host.ok(&[
        "pull",
        "-q",
        "--platform",
        "linux/arm64",
        "alpine@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ]);
    assert!(host.seen("platform: Some(\"linux/arm64\")") && host.seen("tag: Some(\"sha256:0000"));
}

#[test]
fn a_login_is_checked_and_sent_with_a_pull() {
    let Some(host) = host() else { return };
    let login = |password: &str| {
        within(
            &mut host.docker(&["login", "-u", "me", "--password-stdin", "registry.example"]),
            password.as_bytes(),
        )
    };
    let refused = login("wrong");
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("incorrect username or password"),
        "{refused:?}"
    );
    let taken = login("right");
    assert!(
        taken.status.success() && String::from_utf8_lossy(&taken.stdout).contains("Login Succeeded"),
        "{taken:?}"
    );
    host.ok(&["pull", "-q", "registry.example/a/b:c"]);
    assert!(host.seen("image: \"registry.example/a/b\", tag: Some(\"c\")"));
    assert!(host.seen("username: \"me\"") && !host.seen("right"));
}

#[test]
fn images_are_listed_inspected_tagged_and_removed() {
    let Some(host) = with_image() else { return };
    host.ok(&["tag", "busybox", "mine:v1"]);
    let text = host.ok(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}"]);
    assert_eq!(text, "busybox:latest 4.5MB\nmine:v1 4.5MB\n");
    assert_eq!(host.ok(&["images", "-q", "--filter", "reference=m*:v?"]).lines().count(), 1);
    assert_eq!(host.ok(&["images", "-q", "--filter", "reference=other"]), "");
    assert_eq!(
        host.ok(&["inspect", "--type", "image", "-f", "{{.Architecture}} {{.Os}}", "busybox"]).trim(),
        "amd64 linux"
    );
    assert!(host.ok(&["history", "busybox"]).contains("ADD rootfs.tar"));
    let text = host.ok(&["rmi", "busybox"]);
    assert!(text.contains("Untagged: busybox:latest") && text.contains("Deleted: sha256:"), "{text}");
    let (code, text) = host.fails(&["rmi", "busybox"]);
    assert!(code == 1 && text.contains("No such image: busybox:latest"), "{text}");
    let (_, text) = host.fails(&["images", "--filter", "size=1"]);
    assert!(text.contains("invalid filter 'size'"), "{text}");
}

#[test]
fn run_carries_output_exit_codes_and_input() {
    let Some(host) = host() else { return };
    // Pulls what is not there.
    let output = host.run(&["run", "--rm", "busybox", "both"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"out\n");
    assert!(output.stderr.ends_with(b"err\n"), "{output:?}");
    assert_eq!(host.run(&["run", "--rm", "busybox", "exit", "42"]).status.code(), Some(42));
    let (code, text) = host.fails(&["run", "--rm", "busybox", "missing"]);
    assert_eq!(code, 127, "{text}");
    assert!(text.contains("executable file not found in $PATH"), "{text}");
    let input: Vec<u8> = (0..200_000_u32).flat_map(|i| (i as u8).to_le_bytes()).collect();
    let output = within(&mut host.docker(&["run", "-i", "--rm", "busybox", "cat"]), &input);
    assert!(output.status.success(), "{:?}", output.stderr);
    assert!(output.stdout == input, "{} of {}", output.stdout.len(), input.len());
    assert_eq!(host.ok(&["ps", "-aq"]), "");
}

#[test]
fn run_on_a_terminal_knows_its_size_and_can_be_left_and_joined() {
    let Some(host) = with_image() else { return };
    let mut terminal = Terminal::open(&host, &["run", "-it", "--name", "term", "busybox", "shell"]);
    terminal.expect("size 30x100");
    terminal.send("hello\r");
    terminal.expect("you said hello");
    // ctrl-p ctrl-q leaves it running.
    terminal.send("\x10\x11");
    assert_eq!(terminal.code(), 0);
    assert_eq!(host.ok(&["ps", "--format", "{{.Names}} {{.State}}"]).trim(), "term running");
    let mut terminal = Terminal::open(&host, &["run", "-it", "--rm", "busybox", "shell"]);
    terminal.expect("$ ");
    terminal.send("exit 7\r");
    assert_eq!(terminal.code(), 7);
}

#[test]
fn a_detached_container_is_listed_followed_stopped_and_removed() {
    let Some(host) = with_image() else { return };
    let id = host.ok(&["run", "-d", "--name", "web", "-p", "8080:80", "-l", "a=b", "busybox", "ticks"]);
    let id = id.trim();
    assert_eq!(id.len(), 64);
    let row =
        host.ok(&["ps", "--format", "{{.ID}}|{{.Image}}|{{.Command}}|{{.Names}}|{{.Ports}}|{{.Status}}"]);
    assert!(
        row.starts_with(&format!("{}|busybox|\"ticks\"|web|0.0.0.0:8080->80/tcp|Up ", &id[..12])),
        "{row}"
    );
    for (filter, found) in [
        ("label=a=b", 1),
        ("label=a=c", 0),
        ("name=^web$", 1),
        ("status=exited", 0),
        ("publish=8080", 1),
        ("ancestor=busybox", 1),
        ("network=bridge", 1),
    ] {
        assert_eq!(host.ok(&["ps", "-q", "-f", filter]).lines().count(), found, "{filter}");
    }
    let (_, text) = host.fails(&["ps", "-f", "status=happy"]);
    assert!(text.contains("invalid filter 'status=happy'"), "{text}");
    let (code, text) = host.fails(&["run", "--name", "web", "busybox", "ticks"]);
    assert!(
        code == 125 && text.contains("Conflict. The container name \"/web\" is already in use by container"),
        "{text}"
    );

    let mut follow =
        host.docker(&["logs", "-f", "--tail", "1", "-t", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 300];
    let mut seen = 0;
    while seen < 150 {
        let n = follow.stdout.as_mut().unwrap().read(&mut first[seen..]).unwrap();
        assert!(n > 0);
        seen += n;
    }
    let line = String::from_utf8_lossy(&first).lines().next().unwrap().to_owned();
    let (time, tick) = line.split_once(' ').unwrap();
    assert!(time.len() == 30 && time.ends_with('Z') && tick.starts_with("tick "), "{line}");
    assert!(host.ok(&["logs", "web"]).starts_with("tick 0\ntick 1\n"));
    assert_eq!(host.ok(&["logs", "--since", "1h", "--tail", "0", "web"]), "");
    assert!(host.ok(&["top", "web", "-o", "pid"]).contains("ticks (-o pid)"));

    host.ok(&["pause", "web"]);
    assert!(host.ok(&["ps", "--format", "{{.Status}}"]).contains("(Paused)"));
    let (_, text) = host.fails(&["pause", "web"]);
    assert!(text.contains("is already paused"), "{text}");
    host.ok(&["unpause", "web"]);
    host.ok(&["rename", "web", "web2"]);
    let (code, text) = host.fails(&["rm", "web2"]);
    assert!(code == 1 && text.contains("stop the container before removing or force remove"), "{text}");
    assert_eq!(host.ok(&["stop", "-t", "3", "-s", "HUP", "web2"]).trim(), "web2");
    assert!(host.seen("stop Some(\"HUP\") Some(3)"));
    // The follower ends with the container.
    assert!(follow.wait().unwrap().success());
    // Stopped already: no error.
    host.ok(&["stop", "web2"]);
    assert_eq!(host.ok(&["wait", "web2"]).trim(), "129");
    assert!(host.ok(&["ps", "-a", "--format", "{{.Status}}"]).starts_with("Exited (129) "));
    let (code, text) = host.fails(&["kill", "web2"]);
    assert!(code == 1 && text.contains("is not running"), "{text}");
    host.ok(&["rm", "web2"]);
    let (code, text) = host.fails(&["inspect", "web2"]);
    assert!(code == 1 && text.contains("No such object: web2"), "{text}");
    let (_, text) = host.fails(&["logs", "web2"]);
    assert!(text.contains("Error response from daemon: No such container: web2"), "{text}");
}

#[test]
fn start_attached_and_wait_see_the_end() {
    let Some(host) = with_image() else { return };
    host.ok(&["create", "--name", "once", "busybox", "both"]);
    assert_eq!(host.ok(&["start", "-a", "once"]), "out\n");
    host.ok(&["create", "--name", "code", "busybox", "exit", "5"]);
    assert_eq!(host.run(&["start", "-a", "code"]).status.code(), Some(5));
    assert_eq!(host.ok(&["wait", "code"]).trim(), "5");
    assert_eq!(
        host.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.Name}}", "code"]).trim(),
        "exited 5 /code"
    );
    host.ok(&["run", "-d", "--name", "slow", "busybox", "ticks"]);
    let waiting = host.docker(&["wait", "slow"]).stdout(Stdio::piped()).spawn().unwrap();
    host.ok(&["kill", "-s", "TERM", "slow"]);
    assert_eq!(finish(waiting).stdout, b"143\n");
    host.ok(&["restart", "slow"]);
    assert_eq!(host.ok(&["ps", "-q"]).lines().count(), 1);
}

#[test]
fn exec_has_pipes_a_terminal_and_exit_codes() {
    let Some(host) = with_image() else { return };
    host.ok(&["run", "-d", "--name", "box", "busybox", "forever"]);
    let output = host.run(&["exec", "box", "both"]);
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(host.run(&["exec", "box", "exit", "3"]).status.code(), Some(3));
    let output = within(&mut host.docker(&["exec", "-i", "box", "cat"]), b"through and back");
    assert_eq!(output.stdout, b"through and back");
    let mut terminal = Terminal::open(&host, &["exec", "-it", "box", "shell"]);
    terminal.expect("size 30x100");
    terminal.send("exit 9\r");
    assert_eq!(terminal.code(), 9);
    host.ok(&["exec", "-d", "box", "echo", "gone"]);
    host.ok(&["stop", "box"]);
    let (code, text) = host.fails(&["exec", "box", "both"]);
    assert!(code == 1 && text.contains("is not running"), "{text}");
}

#[test]
fn stats_compute_rates() {
    let Some(host) = with_image() else { return };
    host.ok(&["run", "-d", "--name", "busy", "busybox", "forever"]);
    let row = host.ok(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.NetIO}} {{.PIDs}}",
    ]);
    assert_eq!(row.trim(), "busy 50.00% 10MiB / 1GiB 1kB / 2kB 3");
    let mut child = host.docker(&["stats", "--format", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    let begun = Instant::now();
    // With a rate from the second reading on.
    while !text.contains("\"CPUPerc\":\"50.00%\"") {
        assert!(begun.elapsed() < Duration::from_secs(20), "{text}");
        let mut buffer = [0; 1000];
        let n = child.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (code, text) = host.fails(&["stats", "--no-stream", "nobody"]);
    assert!(code == 1 && text.contains("No such container: nobody"), "{text}");
}

#[test]
fn events_are_replayed_filtered_and_end() {
    let Some(host) = with_image() else { return };
    let begin =
        format!("{}", std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs());
    let mut live = host
        .docker(&[
            "events",
            "--filter",
            "event=die",
            "--format",
            "{{.Action}} {{.Actor.Attributes.exitCode}}",
        ])
        // A negative age is a time to come; an event that does not come ends the wait then.
        .args(["--since", &begin, "--until", "-60s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    host.ok(&["run", "-d", "--name", "ev", "-l", "k=v", "busybox", "exit", "4"]);
    host.ok(&["wait", "ev"]);
    // The client cuts times to whole seconds.
    let until = (unix_seconds() + 1).to_string();
    let format = ["--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"];
    let all = host.ok(&[&["events", "--since", &begin, "--until", &until][..], &format].concat());
    assert_eq!(all, "container create ev\ncontainer start ev\ncontainer die ev\n");
    for (filter, lines) in [
        ("event=start", 1),
        ("type=network", 0),
        ("container=ev", 3),
        ("label=k=v", 3),
        ("label=k=x", 0),
        ("image=busybox", 3),
    ] {
        let text =
            host.ok(&[&["events", "--since", &begin, "--until", &until, "--filter", filter][..], &format]
                .concat());
        assert_eq!(text.lines().count(), lines, "{filter}: {text}");
    }
    let mut line = String::new();
    BufReader::new(live.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "die 4\n");
    live.kill().unwrap();
    live.wait().unwrap();
    // It waits until its end, and ends.
    assert_eq!(
        host.ok(&["events", "--until", "-1s", "--filter", "event=die", "--filter", "container=nobody"]),
        ""
    );
}

#[test]
fn networks_and_volumes() {
    let Some(host) = with_image() else { return };
    host.ok(&["network", "create", "--subnet", "10.9.0.0/24", "--internal", "--label", "x", "lan"]);
    let text = host.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]);
    assert_eq!(text, "bridge bridge local\nhost host local\nlan bridge local\nnone null local\n");
    assert_eq!(host.ok(&["network", "ls", "-q", "-f", "type=custom"]).lines().count(), 1);
    let text =
        host.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}} {{.Internal}}", "lan"]);
    assert_eq!(text.trim(), "10.9.0.0/24 true");
    let (code, text) = host.fails(&["network", "create", "lan"]);
    assert!(code == 1 && text.contains("network with name lan already exists"), "{text}");
    host.ok(&["run", "-d", "--name", "n1", "--network", "lan", "busybox", "forever"]);
    host.ok(&["network", "connect", "--alias", "db", "bridge", "n1"]);
    assert_eq!(
        host.ok(&["network", "inspect", "-f", "{{range .Containers}}{{.Name}}{{end}}", "bridge"]).trim(),
        "n1"
    );
    host.ok(&["network", "disconnect", "bridge", "n1"]);
    let (_, text) = host.fails(&["network", "rm", "bridge"]);
    assert!(text.contains("pre-defined network and cannot be removed"), "{text}");
    let (_, text) = host.fails(&["network", "inspect", "nowhere"]);
    assert!(text.contains("network nowhere not found"), "{text}");

    assert_eq!(host.ok(&["volume", "create", "--label", "a=b", "store"]).trim(), "store");
    host.ok(&["volume", "create"]);
    assert_eq!(
        host.ok(&["volume", "inspect", "-f", "{{.Mountpoint}} {{.Labels.a}}", "store"]).trim(),
        "/data/volumes/store b"
    );
    assert_eq!(host.ok(&["volume", "ls", "-q", "-f", "label=a"]).trim(), "store");
    // Only those without a name.
    assert!(host.ok(&["volume", "prune", "-f"]).contains("Total reclaimed space: 1kB"));
    assert_eq!(host.ok(&["volume", "ls", "-q"]).trim(), "store");
    host.ok(&["volume", "rm", "store"]);
    let (_, text) = host.fails(&["volume", "rm", "store"]);
    assert!(text.contains("get store: no such volume"), "{text}");
}

#[test]
fn cp_goes_both_ways() {
    let Some(host) = with_image() else { return };
    host.ok(&["create", "--name", "box", "busybox", "forever"]);
    let file = host.dir.path().join("note.txt");
    std::io::Write::write_all(&mut std::fs::File::create(&file).unwrap(), b"hello").unwrap();
    host.ok(&["cp", "-a", file.to_str().unwrap(), "box:/data/"]);
    assert!(
        host.seen("put /data/ note.txt PutArchive { no_overwrite_dir_non_dir: true, copy_uid_gid: true }"),
        "{:?}",
        host.engine.seen
    );
    let back = host.dir.path().join("back.txt");
    host.ok(&["cp", "box:/data/note.txt", back.to_str().unwrap()]);
    assert_eq!(std::fs::read(back).unwrap(), b"hello");
    let (code, text) = host.fails(&["cp", "box:/nothing", "."]);
    assert!(code == 1 && text.contains("Could not find the file /nothing in container box"), "{text}");
}

#[test]
fn disk_usage_and_prunes() {
    let Some(host) = with_image() else { return };
    host.ok(&["run", "--name", "done", "busybox", "echo", "x"]);
    host.ok(&["volume", "create", "v"]);
    let text = host.ok(&["system", "df"]);
    let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..4], ["Images", "1", "1", "4.5MB"], "{text}");
    assert_eq!(rows[1][..4], ["Containers", "1", "0", "12B"], "{text}");
    assert!(host.ok(&["system", "df", "-v"]).contains("busybox"));
    let text = host.ok(&["container", "prune", "-f", "--filter", "until=1h"]);
    assert!(text.contains("Total reclaimed space: 0B"), "{text}");
    host.ok(&["network", "create", "old"]);
    let text = host.ok(&["system", "prune", "-f", "-a"]);
    assert!(text.contains("Deleted Containers:") && text.contains("Deleted Networks:\nold"), "{text}");
    assert!(text.contains("Deleted Images:") && text.contains("deleted: sha256:"), "{text}");
    assert_eq!(host.ok(&["images", "-q"]), "");
}

#[test]
fn save_and_load_stream() {
    let Some(host) = with_image() else { return };
    let archive = host.dir.path().join("images.tar");
    host.ok(&["save", "-o", archive.to_str().unwrap(), "busybox"]);
    assert_eq!(std::fs::metadata(&archive).unwrap().len(), 3_000_000);
    host.ok(&["rmi", "busybox"]);
    assert_eq!(host.ok(&["load", "-i", archive.to_str().unwrap()]), "Loaded image: busybox\n");
    assert!(host.seen("load 3000000 true"), "{:?}", host.engine.seen);
    let (code, text) = host.fails(&["save", "-o", archive.to_str().unwrap(), "nothing"]);
    assert!(code == 1 && text.contains("No such image: nothing:latest"), "{text}");
}

#[test]
fn what_is_not_there_says_so() {
    let Some(host) = with_image() else { return };
    host.ok(&["run", "--name", "box", "busybox", "echo"]);
    for (arguments, words) in [
        (
            &["search", "x"][..],
            "searching a registry is not supported by this engine: search on the workstation",
        ),
        (&["commit", "box"], "making an image of a container is not supported"),
        (&["swarm", "init"], "Swarm is not supported"),
        (&["push", "busybox"], "pushing images is not supported"),
        (&["plugin", "ls"], "plugins is not supported"),
        (&["diff", "box"], "listing what a container changed is not supported"),
        (&["run", "--gpus", "all", "busybox"], "HostConfig.DeviceRequests is not supported"),
    ] {
        let (_, text) = host.fails(arguments);
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
    let output = within(host.docker(&["build", "-"]).env("DOCKER_BUILDKIT", "0"), b"FROM busybox\n");
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("building images is not supported by this engine"),
        "{output:?}"
    );
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn status(answer: &str) -> &str {
    answer.lines().next().unwrap_or_default()
}

#[test]
fn bare_requests_get_dockers_answers() {
    let host = Host::start();
    let get = |path: &str| host.raw(&format!("GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"));
    let post = |path: &str, media: &str, body: &str| {
        host.raw(&format!(
            "POST {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: {media}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let pong = get("/_ping");
    assert_eq!(status(&pong), "HTTP/1.1 200 OK");
    assert!(pong.contains("api-version: 1.47\r\n") && pong.ends_with("\r\n\r\nOK"), "{pong}");
    let head = host.raw("HEAD /v1.24/_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n");
    assert!(head.contains("ostype: linux") && head.ends_with("\r\n\r\n"), "{head}");
    for (path, first, message) in [
        ("/v1.99/info", "HTTP/1.1 400", "client version 1.99 is too new"),
        ("/v1.12/info", "HTTP/1.1 400", "client version 1.12 is too old"),
        ("/nowhere", "HTTP/1.1 404", "{\"message\":\"page not found\"}\n"),
        ("/containers/x/json", "HTTP/1.1 404", "{\"message\":\"No such container: x\"}\n"),
        ("/containers/x/logs", "HTTP/1.1 400", "you must choose at least one stream"),
        ("/containers/x/archive?path=", "HTTP/1.1 400", "'path' cannot be empty"),
        ("/containers/json?filters=%7B", "HTTP/1.1 400", "invalid filters"),
        ("/containers/json?limit=many", "HTTP/1.1 400", "for parameter limit"),
        ("/events?since=2&until=1", "HTTP/1.1 400", "must be before"),
        ("/images/search?term=x", "HTTP/1.1 501", "is not supported by this engine"),
    ] {
        let answer = get(path);
        assert!(status(&answer).starts_with(first) && answer.contains(message), "{path}: {answer}");
    }
    let json = "application/json";
    for (path, media, body, first, message) in [
        ("/containers/create", json, "{", "HTTP/1.1 400", "invalid JSON"),
        (
            "/containers/create",
            "text/plain",
            "{}",
            "HTTP/1.1 400",
            "unsupported Content-Type header (text/plain): must be 'application/json'",
        ),
        ("/containers/create", json, "", "HTTP/1.1 400", "config cannot be empty"),
        (
            "/containers/create?name=a/b",
            json,
            "{\"Image\":\"x\"}",
            "HTTP/1.1 400",
            "Invalid container name (a/b)",
        ),
        ("/containers/create", json, "{\"Image\":\"x\"}", "HTTP/1.1 404", "No such image: x:latest"),
        ("/containers/create", json, "{\"Image\":[]}", "HTTP/1.1 400", "invalid JSON"),
        ("/networks/create", json, "{\"Name\":\"\"}", "HTTP/1.1 400", "network name cannot be empty"),
        ("/containers/x/wait?condition=soon", json, "", "HTTP/1.1 400", "invalid condition"),
    ] {
        let answer = post(path, media, body);
        assert!(status(&answer).starts_with(first) && answer.contains(message), "{path} {body}: {answer}");
    }
    let large = post("/containers/create", json, &format!("{{\"Image\":\"{}\"}}", "x".repeat(1_100_000)));
    assert!(status(&large).starts_with("HTTP/1.1 413"), "{large}");
    let auth = host.raw("POST /images/create?fromImage=x HTTP/1.1\r\nHost: d\r\nConnection: close\r\nX-Registry-Auth: %%%\r\n\r\n");
    assert!(status(&auth).starts_with("HTTP/1.1 400") && auth.contains("not base64"), "{auth}");
    // Pull, create, start twice, attach without an upgrade.
    assert!(
        post("/images/create?fromImage=busybox", json, "")
            .contains("\"id\":\"latest\",\"progressDetail\":{},\"status\":\"Pulling from library/busybox\"")
    );
    let created = post(
        "/containers/create?name=bare",
        json,
        "{\"Image\":\"busybox\",\"Cmd\":[\"ticks\"],\"OpenStdin\":true}",
    );
    assert!(status(&created).starts_with("HTTP/1.1 201"), "{created}");
    assert_eq!(status(&post("/containers/bare/start", json, "")), "HTTP/1.1 204 No Content");
    assert_eq!(status(&post("/containers/bare/start", json, "")), "HTTP/1.1 304 Not Modified");
    let answer = post("/v1.41/containers/bare/attach?stream=1&stdout=1", json, "");
    assert!(
        answer.contains("content-type: application/vnd.docker.raw-stream") && answer.contains("tick "),
        "{answer}"
    );
    let answer = post("/containers/bare/attach?stream=1&stdin=1", json, "");
    assert!(status(&answer).starts_with("HTTP/1.1 501") && answer.contains("Upgrade: tcp"), "{answer}");
    let answer = host.raw("POST /containers/bare/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
    assert!(status(&answer).starts_with("HTTP/1.1 101") && answer.contains("multiplexed-stream"), "{answer}");
    assert!(
        answer.contains("\x01\0\0\0\0\0\0\x07tick ") || answer.contains("\x01\0\0\0\0\0\0\x08tick "),
        "{answer}"
    );
    let kill = post("/containers/bare/kill", json, "");
    assert_eq!(status(&kill), "HTTP/1.1 204 No Content");
}

#[test]
fn a_client_too_many_is_told_and_the_others_go_on() {
    let host = Host::with(Settings { most_connections: 2, ..Settings::default() });
    let keep: Vec<UnixStream> = (0..2)
        .map(|_| {
            let mut stream = UnixStream::connect(host.socket()).unwrap();
            stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
            assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
            stream
        })
        .collect();
    let answer = host.raw("GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n");
    assert!(status(&answer).starts_with("HTTP/1.1 503"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
    drop(keep);
    let begun = Instant::now();
    while !host.raw("GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n").ends_with("OK") {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn compose_brings_a_project_up_and_down() {
    let Some(host) = host() else { return };
    let compose = std::env::var("RUSTIOT_COMPOSE").unwrap_or_else(|_| "docker-compose".to_owned());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&compose);
        host.prepare(&mut command);
        let output = within(command.args(arguments).stdin(Stdio::null()), &[]);
        assert!(output.status.success(), "compose {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    if Command::new(&compose).arg("version").output().is_err() {
        eprintln!("skipped: no docker-compose on this machine");
        return;
    }
    let file = host.dir.path().join("compose.yaml");
    std::fs::File::create(file)
        .unwrap()
        .write_all(
            b"name: shop\nservices:\n  web:\n    image: busybox\n    command: [ticks]\n    ports: ['8080:80']\n    depends_on: [db]\n    networks: [back]\n  db:\n    image: busybox\n    command: [forever]\n    volumes: ['store:/store']\n    networks: [back]\nnetworks:\n  back: {}\nvolumes:\n  store: {}\n",
        )
        .unwrap();
    run(&["up", "-d"]);
    let text = host.ok(&["ps", "--format", "{{.Names}} {{.State}}"]);
    let mut rows: Vec<&str> = text.lines().collect();
    rows.sort_unstable();
    assert_eq!(rows, ["shop-db-1 running", "shop-web-1 running"]);
    assert!(host.ok(&["network", "ls"]).contains("shop_back"));
    assert_eq!(host.ok(&["volume", "ls", "-q"]).trim(), "shop_store");
    assert!(run(&["ps"]).contains("0.0.0.0:8080->80/tcp"));
    assert!(run(&["logs", "web"]).contains("tick 0"));
    assert_eq!(run(&["exec", "-T", "db", "echo", "hi"]), "hi\n");
    assert!(run(&["top", "db"]).contains("forever"));
    // Nothing changed, so nothing is made anew.
    let before = host.ok(&["ps", "-q"]);
    run(&["up", "-d"]);
    assert_eq!(host.ok(&["ps", "-q"]), before);
    run(&["stop", "db"]);
    run(&["down", "-v"]);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    assert!(!host.ok(&["network", "ls"]).contains("shop_back"));
    assert_eq!(host.ok(&["volume", "ls", "-q"]), "");
}
