//! `demo`: what an owner fears, done to a machine before his eyes: an update, a bad update, a power
//! cut in the middle of one, a kernel that hangs. Everything is real; only the waiting is told.

use crate::fail::Done;
use crate::run::Bench;
use anyhow::{Context as _, Result, ensure};
use rustiot_image::Context;
use rustiot_lab::{B, BootInfo, COMMAND, Device, File, HEALTHY, Release};
use std::time::{Duration, Instant};
use testbed::{FileServer, Machine};

/// A release whose secure shell, which is required, never comes up.
const BAD: Release = Release {
    files: &[
        File::Text(
            "usr/lib/systemd/system/ssh.service.d/broken.conf",
            "[Service]\nExecStartPre=\nExecStart=\nExecStart=/bin/false\nRestart=no\n",
        ),
        File::Link("usr/lib/systemd/system/rustiot-required.target.wants/ssh.service", "../ssh.service"),
    ],
    ..Release::new("bad", "1.2.0")
};

/// How much of an install is written when its power is cut.
const INTO_THE_INSTALL: u64 = 8 << 20;

struct Story {
    began: Instant,
}

impl Story {
    fn tell(&self, text: &str) {
        println!("{:>6.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    fn chapter(&self, title: &str) {
        println!("\n== {title}");
    }
}

/// Plays the story on `board`.
pub fn run(context: &Context, board: &str) -> Done {
    Ok(play(context, board)?)
}

fn play(context: &Context, board: &str) -> Result<()> {
    let bench = Bench::open(context, board)?;
    let snapshot = bench.fixtures.healthy(&bench.lab, &bench.board)?;
    let (server, _dir) = bench.serve(&[&B, &BAD])?;
    let story = Story { began: Instant::now() };
    let machine = snapshot.restore(bench.lab.scratch("demo")?)?;
    let first = machine.boot()?;
    story.tell(&format!("{} runs release {} in slot {}", bench.board.name, machine.version()?, first.slot));

    story.chapter("An update");
    let updated = update(&story, &machine, &server, &first)?;

    story.chapter("A release that is no good");
    let back = bad_update(&story, &machine, &server, &updated)?;

    story.chapter("The power goes in the middle of an install");
    let machine = power_cut(&story, machine, &server)?;
    ensure!(machine.boot()?.slot == back.slot, "it came back in another slot");

    story.chapter("The kernel hangs");
    hang(&story, &machine)?;

    println!("\nThe machine is as well as at the start. Try it yourself: rustiot run");
    Ok(())
}

fn update(story: &Story, machine: &Machine, server: &FileServer, before: &BootInfo) -> Result<BootInfo> {
    machine.start(&format!("rustiot update install {}", server.guest_url("b.raucb")), COMMAND)?;
    story.tell("installing release 1.1.0 into the other slot; the running system goes on");
    let boot = machine.wait_next_healthy(before)?;
    story.tell(&format!("it rebooted once, on trial: {} in slot {}, healthy", machine.version()?, boot.slot));
    machine.wait_settled()?;
    story.tell(&format!(
        "still healthy after the soak: committed ({} MB fetched)",
        server.bytes() / 1_000_000
    ));
    Ok(boot)
}

fn bad_update(story: &Story, machine: &Machine, server: &FileServer, before: &BootInfo) -> Result<BootInfo> {
    machine.start(&format!("rustiot update install {}", server.guest_url("bad.raucb")), COMMAND)?;
    story.tell("installing release 1.2.0, whose secure shell never starts");
    let boot = machine.wait_next_healthy(before)?;
    ensure!(boot.slot == before.slot, "the bad release stayed");
    story.tell(&format!("back in slot {} with release {}", boot.slot, machine.version()?));
    let record = machine.ledger()?;
    let rejected = record.rejected.last().context("the bad release is not remembered")?;
    story.tell(&format!("release {} is rejected: {}", rejected.release.version, rejected.reason));
    Ok(boot)
}

fn power_cut(story: &Story, machine: Machine, server: &FileServer) -> Result<Machine> {
    let fetched = server.bytes();
    // The release that is committed already is installed once more, by force.
    let url = server.guest_url("b.raucb");
    machine.start(&format!("rustiot update install --force {url}"), COMMAND)?;
    machine.wait_until("the install", HEALTHY, &mut |_| {
        Ok(server.bytes().saturating_sub(fetched) > INTO_THE_INSTALL)
    })?;
    story.tell("the install is half done, and now the plug is pulled");
    let machine = machine.power_cut().power_on()?;
    machine.wait_healthy()?;
    story.tell(&format!("power is back, and so is release {}", machine.version()?));
    Ok(machine)
}

fn hang(story: &Story, machine: &Machine) -> Result<()> {
    let (mark, before) = (machine.mark(), machine.boot()?);
    machine.hang(Duration::from_secs(60))?;
    story.tell("the kernel spins with its interrupts off; nothing in it can help itself");
    machine.wait_watchdog(mark, HEALTHY)?;
    story.tell("the hardware watchdog has had enough and resets the board");
    let boot = machine.wait_next_healthy(&before)?;
    story.tell(&format!("healthy again in slot {}; it knows why it was reset: {}", boot.slot, boot.reset));
    Ok(())
}
