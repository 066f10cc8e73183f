//! What a newcomer sees first: `rustiot run` at a terminal. The terminal is a pseudo one, from util-linux's `script`.

use crate::COMMAND;
use crate::ctx::{Ctx, Skip};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub(super) const TESTS: &[LabTest] = &[LabTest {
    name: "run_ends_at_a_root_console_and_leaves_nothing_behind",
    boards: &[],
    promise: "At a terminal `rustiot run` tells how to go on and ends at a root console; Ctrl-C ends it, exit code 0, and nothing of it is left.",
    tags: &[Tag::QuickOnFirst],
    run: run_ends_at_a_root_console_and_leaves_nothing_behind,
}];

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
        // Not by its path: there may be another one by now, or none, when it was built again since we started.
        let line = format!("/proc/{}/exe run --board '{}'", std::process::id(), ctx.board.name);
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
