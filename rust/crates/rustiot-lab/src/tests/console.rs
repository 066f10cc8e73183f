//! What a newcomer sees first: `rustiot run` at a terminal, and what a script gets of it. The terminal is a pseudo one,
//! from util-linux's `script`.

use crate::COMMAND;
use crate::containers::docker;
use crate::ctx::{Ctx, Skip};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "run_ends_at_a_root_console_and_leaves_nothing_behind",
        boards: &[],
        promise: "At a terminal `rustiot run` tells how to go on and ends at a root console; Ctrl-C ends it, exit code 0, and nothing of it is left.",
        tags: &[Tag::QuickOnFirst],
        run: run_ends_at_a_root_console_and_leaves_nothing_behind,
    },
    LabTest {
        name: "run_detach_keeps_a_machine_until_it_is_stopped",
        boards: &[],
        promise: "`rustiot run --detach --json` names a healthy machine and how to log in; `ps` lists it, `stop` ends it.",
        tags: &[Tag::QuickOnFirst],
        run: run_detach_keeps_a_machine_until_it_is_stopped,
    },
    LabTest {
        name: "run_detach_forwards_the_container_engine",
        boards: &[],
        promise: "With `--engine-socket` the stock Docker client at the workstation reaches the machine's engine, until the machine is stopped.",
        tags: &[Tag::QuickOnFirst],
        run: run_detach_forwards_the_container_engine,
    },
    LabTest {
        name: "run_check_tells_a_script_what_it_asks_for",
        boards: &[],
        promise: "`rustiot run --check --json` boots, and prints versions, timings, slots and health of a healthy device.",
        tags: &[],
        run: run_check_tells_a_script_what_it_asks_for,
    },
];

const CTRL_A: u8 = 1;
const CTRL_C: u8 = 3;

fn run_ends_at_a_root_console_and_leaves_nothing_behind(ctx: &mut Ctx) -> Result<()> {
    // The machine that it wakes is this test's fixture, too.
    ctx.fixtures.healthy(ctx.lab, ctx.board)?;
    let before = machines(ctx)?;
    let mut run = Terminal::start(ctx)?;
    let told = run.expect("end it")?;
    for words in ["log in", "ssh -i", "update it", "rustiot update install http://", "break it"] {
        ensure!(told.contains(words), "nothing about {words}: {told}");
    }
    let port = told.split("-p ").nth(1).and_then(|rest| rest.split(' ').next());
    let port: u16 = port.and_then(|port| port.parse().ok()).context("no port to log in at")?;
    run.expect("# ")?;
    run.send(b"echo sum=$((40+2)) user=$(id -un)\r")?;
    run.expect("sum=42 user=root")?;
    // One Ctrl-C for the machine, the next for us. Only a command that speaks has surely begun: the terminal echoes what
    // is typed before the shell has read it, and a Ctrl-C in between is for nobody.
    run.send(b"echo going=$((2+2)); sleep 1000\r")?;
    run.expect("going=4")?;
    run.send(&[CTRL_A, CTRL_C])?;
    run.expect("# ")?;
    run.send(b"echo back=$((1+1))\r")?;
    run.expect("back=2")?;
    run.send(&[CTRL_C])?;
    run.expect("its disk is forgotten")?;
    ensure!(run.ends()?, "the exit code is not 0");
    ensure!(TcpStream::connect(("127.0.0.1", port)).is_err(), "something still listens at its port");
    let left: Vec<String> = machines(ctx)?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn run_detach_keeps_a_machine_until_it_is_stopped(ctx: &mut Ctx) -> Result<()> {
    ctx.fixtures.healthy(ctx.lab, ctx.board)?;
    let told = json(&command(ctx, &["run", "--board", &ctx.board.name, "--detach", "--json"])?)?;
    let text = |key: &str| told.get(key).and_then(Value::as_str).map(str::to_owned).context(key.to_owned());
    let name = text("name")?;
    let kept = (|| {
        let port = told.get("ssh_port").and_then(Value::as_u64).context("no ssh_port")?.to_string();
        let login = ["-i", &text("ssh_key")?, "-p", &port, "-o", "BatchMode=yes"];
        let hosts =
            ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@127.0.0.1"];
        let run = Command::new("ssh").args(login).args(hosts).arg("rustiot health --json").output();
        let run = run.context("cannot run ssh")?;
        ensure!(run.status.success(), "cannot log in: {}", String::from_utf8_lossy(&run.stderr));
        ensure!(listed(ctx, &name)?, "`ps` does not list {name}");
        Ok(())
    })();
    let stopped = command(ctx, &["stop", &name]);
    kept?;
    stopped?;
    ensure!(!listed(ctx, &name)?, "`ps` still lists {name}");
    Ok(())
}

fn run_detach_forwards_the_container_engine(ctx: &mut Ctx) -> Result<()> {
    ctx.fixtures.healthy(ctx.lab, ctx.board)?;
    let socket = ctx.dir().join("engine.sock");
    let forwarded = ["--engine-socket", &socket.to_string_lossy()];
    let run = [&["run", "--board", &ctx.board.name, "--detach", "--json"], &forwarded[..]].concat();
    let told = json(&command(ctx, &run)?)?;
    let name = told.get("name").and_then(Value::as_str).context("no name")?.to_owned();
    let seen = docker(&ctx.lab.tools(), &socket, &["version", "--format", "{{.Server.Os}}"]);
    command(ctx, &["stop", &name])?;
    let seen = seen?;
    ensure!(seen.ok() && seen.stdout == "linux\n", "docker: {}{}", seen.stdout, seen.stderr);
    ensure!(!socket.exists(), "the forwarded socket was left");
    Ok(())
}

/// Whether `ps` lists the machine `name`.
fn listed(ctx: &Ctx, name: &str) -> Result<bool> {
    let machines = json(&command(ctx, &["ps", "--json"])?)?;
    let machines = machines.as_array().context("`ps --json` prints no list")?;
    Ok(machines.iter().any(|machine| machine.get("name").is_some_and(|n| n == name)))
}

fn run_check_tells_a_script_what_it_asks_for(ctx: &mut Ctx) -> Result<()> {
    let told = json(&command(ctx, &["run", "--board", &ctx.board.name, "--check", "--json"])?)?;
    let at = |pointer: &str| told.pointer(pointer).with_context(|| format!("no {pointer} in {told}"));
    ensure!(at("/healthy")? == true && at("/version")? == crate::A.version, "not A, or not healthy: {told}");
    ensure!(at("/power_on_to_healthy_ms")?.as_u64().is_some_and(|ms| ms > 0), "no time: {told}");
    ensure!(at("/boot/timings_ms/switch_root")?.as_u64().is_some_and(|ms| ms > 0), "no timings: {told}");
    ensure!(at("/slots/committed")? == at("/boot/slot")?, "the slots disagree: {told}");
    let checks = at("/health/checks")?.as_array().context("no list of checks")?;
    let units = checks.iter().find(|check| check.get("name").is_some_and(|name| name == "units"));
    ensure!(units.is_some_and(|check| check.get("verdict").is_some_and(|v| v == "pass")), "{told}");
    Ok(())
}

/// Standard output of this very command with other arguments, which must end well.
fn command(ctx: &Ctx, args: &[&str]) -> Result<String> {
    let output = Command::new(myself())
        .args(args)
        .env("RUSTIOT_ROOT", ctx.lab.context.repo())
        .env("RUSTIOT_CACHE", ctx.lab.context.cache())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {args:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{args:?} ended with {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))
}

/// Not by its path: there may be another one by now, or none, when it was built again since we started.
fn myself() -> String {
    format!("/proc/{}/exe", std::process::id())
}

/// Directories of machines and servers that `rustiot run` makes.
fn machines(ctx: &Ctx) -> Result<BTreeSet<String>> {
    let dir = std::fs::read_dir(ctx.lab.machines()).context("cannot list the machines")?;
    let names = dir.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("run-")).collect())
}

/// This very command at a terminal of its own.
struct Terminal {
    child: Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(ctx: &Ctx) -> Result<Self> {
        let line = format!("{} run --board '{}'", myself(), ctx.board.name);
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"])
            .env("RUSTIOT_ROOT", ctx.lab.context.repo())
            .env("RUSTIOT_CACHE", ctx.lab.context.cache())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|_| Skip("`script` (bsdutils) is not installed".into()))?;
        let mut stdout = child.stdout.take().context("the terminal has no output")?;
        let (tell, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if tell.send(buffer.get(..count).unwrap_or_default().to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Terminal { child, output, seen: String::new() })
    }

    fn send(&mut self, keys: &[u8]) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("the terminal has no keyboard")?;
        stdin.write_all(keys).and_then(|()| stdin.flush()).context("cannot type")
    }

    /// Everything up to `words`, which come within the limit.
    fn expect(&mut self, words: &str) -> Result<String> {
        let until = Instant::now() + COMMAND;
        loop {
            if let Some((before, after)) = self.seen.split_once(words) {
                let before = before.to_owned();
                self.seen = after.to_owned();
                return Ok(before);
            }
            match self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => bail!("no {words:?} at the terminal, but: {}", self.seen),
            }
        }
    }

    /// Waits for its end. Whether the exit code is 0.
    fn ends(&mut self) -> Result<bool> {
        let until = Instant::now() + COMMAND;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().context("cannot wait")? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("it does not end")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The terminal goes with `script`, and its hang-up ends what runs at it. After a good end there is nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
