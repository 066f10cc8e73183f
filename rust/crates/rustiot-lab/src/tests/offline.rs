//! Releases without a server: from a USB stick, and over ssh from a workstation.

use super::ota::{NOISY, json, number, outcome, take_b, text};
use crate::COMMAND;
use crate::ctx::Ctx;
use crate::device::{Device, HEALTHY};
use crate::fixtures::{A, B};
use crate::runner::LabTest;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::{Disk, Machine, Off};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "takes_a_release_from_a_usb_stick",
        boards: &["qemux86-64"],
        promise: "A USB stick with a repository that is plugged in is found, mounted read-only, offered, installed by the difference without a byte from the network, committed, and unmounted.",
        tags: &[],
        run: takes_a_release_from_a_usb_stick,
    },
    LabTest {
        name: "a_stick_that_is_pulled_out_leaves_nothing",
        boards: &["qemux86-64"],
        promise: "A USB stick that is pulled out in the middle of an install ends it with that reason, leaves no mount, no file and no slot that would boot; plugged in again, it is installed.",
        tags: &[],
        run: a_stick_that_is_pulled_out_leaves_nothing,
    },
    LabTest {
        name: "a_workstation_pushes_a_release_over_ssh",
        boards: &["qemux86-64"],
        promise: "`rustiot push-os` installs a release of a directory by the difference through an ssh connection alone, and tells the outcome after the restart.",
        tags: &[],
        run: a_workstation_pushes_a_release_over_ssh,
    },
    LabTest {
        name: "what_nobody_signed_comes_by_no_stick_and_no_push",
        boards: &["qemux86-64"],
        promise: "A repository of other keys, on a stick or pushed over ssh, is refused as untrusted with that reason; nothing is written, and the stick is unmounted.",
        tags: &[],
        run: what_nobody_signed_comes_by_no_stick_and_no_push,
    },
];

/// Where the partition of a stick begins, bytes.
const FIRST: u64 = 1 << 20;
/// How large a stick is, bytes.
const STICK: u64 = 512 << 20;
/// Where the device has it.
const MOUNT: &str = "/run/rustiot/media/sda1";

/// A stick as people have them, one partition with FAT, and on it what the web server would show.
fn stick(ctx: &Ctx) -> Result<PathBuf> {
    let path = ctx.dir().join("stick.img");
    let mut file = std::fs::File::create(&path).context("cannot make a stick")?;
    file.set_len(STICK).context("cannot make a stick")?;
    // One entry of type 0x0c (FAT32, LBA) in the partition table, and its mark.
    let sectors = |bytes: u64| u32::try_from(bytes / 512).unwrap_or_default().to_le_bytes();
    let mut entry = vec![0, 0xfe, 0xff, 0xff, 0x0c, 0xfe, 0xff, 0xff];
    entry.extend(sectors(FIRST));
    entry.extend(sectors(STICK - FIRST));
    for (at, bytes) in [(446, entry.as_slice()), (510, &[0x55, 0xaa])] {
        file.seek(SeekFrom::Start(at)).context("cannot seek")?;
        file.write_all(bytes).context("cannot write the partition table")?;
    }
    drop(file);
    let tools = ctx.lab.tools();
    let name = path.to_string_lossy().into_owned();
    let kib = ((STICK - FIRST) / 1024).to_string();
    tools.run("mkfs.fat", &["-F", "32", "--offset", &(FIRST / 512).to_string(), &name, &kib])?;
    let image = format!("{name}@@{FIRST}");
    tools.run("mmd", &["-i", &image, "::rustiot-repository"])?;
    for dir in ["metadata", "targets"] {
        let from = ctx.published().join(dir).to_string_lossy().into_owned();
        tools.run("mcopy", &["-s", "-i", &image, &from, "::rustiot-repository/"])?;
    }
    Ok(path)
}

/// A machine with a USB port that has never been on, with `policy` in its configuration, healthy and settled.
fn with_usb(ctx: &Ctx, policy: &str) -> Result<Machine> {
    let config = format!("{}[update]\npolicy = \"{policy}\"\n", ctx.lab.config()?);
    let base = ctx.fixtures.disk(ctx.lab, ctx.board, &A, &config)?;
    let dir = ctx.machine_dir()?;
    let disk = Disk::overlay(&ctx.lab.tools(), &base, &dir.file("disk.qcow2"), Some(ctx.fixtures.medium()))?;
    let mut spec = ctx.lab.spec(ctx.board)?;
    spec.devices.push("qemu-xhci,id=usb".into());
    let machine = Off::new(spec, disk, dir)?.power_on()?;
    machine.wait_healthy()?;
    machine.wait_settled()?;
    Ok(machine)
}

/// Plugs the stick in. `rate`: most bytes a second that it is read at.
fn plug(machine: &Machine, stick: &Path, rate: Option<u64>) -> Result<()> {
    let file = json!({"driver": "file", "filename": stick, "read-only": true});
    let raw = json!({"driver": "raw", "node-name": "stick", "read-only": true, "file": file});
    machine.qmp().run("blockdev-add", raw)?;
    let mut drive = "stick";
    if let Some(rate) = rate {
        let limits = json!({"bps-total": rate});
        let group = json!({"qom-type": "throttle-group", "id": "slow", "limits": limits});
        machine.qmp().run("object-add", group)?;
        let node = json!({
            "driver": "throttle", "node-name": "slow-stick", "throttle-group": "slow", "file": "stick", "read-only": true
        });
        machine.qmp().run("blockdev-add", node)?;
        drive = "slow-stick";
    }
    let device = json!({"driver": "usb-storage", "id": "plugged", "bus": "usb.0", "drive": drive});
    machine.qmp().run("device_add", device)?;
    Ok(())
}

/// Pulls it out, as hands do.
fn pull(machine: &Machine) -> Result<()> {
    let mark = machine.mark();
    machine.qmp().run("device_del", json!({"id": "plugged"}))?;
    machine.qmp().wait("DEVICE_DELETED", mark, HEALTHY)?;
    Ok(())
}

fn wait_phase(machine: &Machine, phase: &str) -> Result<Value> {
    let mut last = Value::Null;
    machine.wait_until(phase, HEALTHY, &mut |machine| {
        last = json(machine, "rustiot update status")?;
        Ok(text(&last, "/phase") == phase)
    })?;
    Ok(last)
}

fn wait_unmounted(machine: &Machine) -> Result<()> {
    machine.wait_until("the stick to be unmounted", HEALTHY, &mut |machine| {
        Ok(machine.sh("cat /proc/mounts; ls /run/rustiot/media")?.lines().all(|line| !line.contains("sda1")))
    })
}

fn takes_a_release_from_a_usb_stick(ctx: &mut Ctx) -> Result<()> {
    // Nobody asks the server: it is only how the files are made.
    drop(ctx.publish(&[&A, &B])?);
    let stick = stick(ctx)?;
    let machine = with_usb(ctx, "check")?;
    plug(&machine, &stick, None)?;
    let status = wait_phase(&machine, "available")?;
    let place = format!("{MOUNT}/rustiot-repository");
    ensure!(text(&status, "/medium") == place, "needs another medium: {status}");
    let mounts = machine.sh("cat /proc/mounts")?;
    let mount = mounts.lines().find(|line| line.contains(MOUNT)).context("it is not mounted")?;
    let options = mount.split(' ').nth(3).unwrap_or_default();
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        ensure!(options.split(',').any(|have| have == option), "mounted without {option}: {mount}");
    }
    let plan = json(&machine, "rustiot update plan")?;
    ensure!(text(&plan, "/ways/0/kind") == "delta", "not by delta: {plan}");
    let entry = take_b(&machine)?;
    ensure!(text(&entry, "/way") == "delta", "{entry}");
    ensure!(text(&entry, "/source") == place, "from elsewhere: {entry}");
    ensure!(number(&entry, "/spent/fetched") == 0, "bytes came over a network: {entry}");
    let image = ctx.fixtures.image(ctx.lab, ctx.board, &B)?;
    let bytes = std::fs::read(&image.root).context("cannot read the root image")?;
    let wanted = rustiot_repository::Digest::of(&bytes).to_string();
    let (slot, len) = (machine.boot()?.slot, bytes.len());
    let hash = machine.sh(&format!("head -c {len} /dev/disk/by-partlabel/root-{slot} | sha256sum"))?;
    ensure!(hash.starts_with(&wanted), "the slot holds other bytes than the release: {hash}");
    // It was still in when the device restarted: looked at once more, and found to be old news.
    wait_unmounted(&machine)?;
    ctx.figures.note("stick_bytes", number(&plan, "/ways/0/bytes"));
    Ok(())
}

fn a_stick_that_is_pulled_out_leaves_nothing(ctx: &mut Ctx) -> Result<()> {
    // Without a release to start from there is no delta: the whole bundle is read.
    drop(ctx.publish(&[&NOISY])?);
    let stick = stick(ctx)?;
    let machine = with_usb(ctx, "auto")?;
    plug(&machine, &stick, Some(1 << 20))?;
    wait_phase(&machine, "installing")?;
    machine.wait_until("the first bytes in the slot", HEALTHY, &mut |machine| {
        Ok(number(&json(machine, "rustiot update status")?, "/progress/bytes") > 4 << 20)
    })?;
    pull(&machine)?;
    let entry = outcome(&machine)?;
    ensure!(text(&entry, "/result") == "failed" && text(&entry, "/why/kind") == "removed", "{entry}");
    ensure!(text(&entry, "/why/message").contains("pulled out"), "{entry}");
    wait_unmounted(&machine)?;
    let left =
        machine.sh("find /data/rustiot-update /run/rustiot/media -type f -size +0 2>/dev/null | wc -l")?;
    ensure!(left == "0", "{left} files are left");
    let record = machine.ledger()?;
    let other = !machine.boot()?.slot;
    ensure!(record.phase.name() == "idle", "the ledger is in {}", record.phase.name());
    ensure!(
        !matches!(record.slot(other), rustiot_boot::SlotState::Valid { .. }),
        "a half-written slot counts as valid: {:?}",
        record.slot(other)
    );
    machine.sh("rustiot update why | grep -q 'plug it in again'")?;
    // The nodes of the first time are still there.
    machine
        .qmp()
        .run("qom-set", json!({"path": "/objects/slow", "property": "limits", "value": {"bps-total": 0}}))?;
    let before = machine.boot()?;
    let device = json!({"driver": "usb-storage", "id": "plugged", "bus": "usb.0", "drive": "slow-stick"});
    machine.qmp().run("device_add", device)?;
    machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == NOISY.version, "runs {}", machine.version()?);
    machine.wait_settled()?;
    let mut newest = Value::Null;
    machine.wait_until("the second entry in the history", HEALTHY, &mut |machine| {
        newest = outcome(machine)?;
        Ok(text(&newest, "/result") == "committed")
    })?;
    ensure!(text(&newest, "/by") == "policy" && text(&newest, "/way") == "bundle", "{newest}");
    Ok(())
}

/// `push-os` of the test's repository to a machine: its report, and how it ended.
fn push(ctx: &Ctx, machine: &Machine, more: &[&str]) -> Result<(Value, std::process::Output)> {
    let key = ctx.lab.ssh_key()?;
    let command = std::env::current_exe().context("cannot find myself")?;
    let output = Command::new(command)
        .args(["push-os", &format!("ssh://root@127.0.0.1:{}", machine.ssh_port()), "--json", "--repo"])
        .arg(ctx.dir().join("repository"))
        .args(["--ssh-option", &format!("IdentityFile={}", key.private.display())])
        .args(["--ssh-option", "StrictHostKeyChecking=no", "--ssh-option", "UserKnownHostsFile=/dev/null"])
        .args(["--ssh-option", "BatchMode=yes", "--ssh-option", "LogLevel=ERROR"])
        .args(more)
        .output()
        .context("cannot run push-os")?;
    Ok((serde_json::from_slice(&output.stdout).unwrap_or_default(), output))
}

fn what_nobody_signed_comes_by_no_stick_and_no_push(ctx: &mut Ctx) -> Result<()> {
    ctx.untrusted()?;
    drop(ctx.publish(&[&A, &B])?);
    let stick = stick(ctx)?;
    let machine = with_usb(ctx, "auto")?;
    let slot = !machine.boot()?.slot;
    let hash = format!("head -c 64M /dev/disk/by-partlabel/root-{slot} | sha256sum");
    let before = machine.sh(&hash)?;
    plug(&machine, &stick, None)?;
    let mut said = String::new();
    let refused = machine.wait_until("that the stick is refused", HEALTHY, &mut |machine| {
        said = machine.run("rustiot update status --json; rustiot update why --json", COMMAND)?.stdout;
        Ok(said.contains("\"untrusted\""))
    });
    refused.with_context(|| format!("the device says {said}"))?;
    wait_unmounted(&machine)?;
    let (report, output) = push(ctx, &machine, &[B.version])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(5),
        "{} for a repository of other keys: {report} {said}",
        output.status
    );
    ensure!(machine.version()? == A.version && machine.sh(&hash)? == before, "something was written");
    ensure!(machine.ledger()?.phase.name() == "idle", "the ledger is not idle");
    Ok(())
}

fn a_workstation_pushes_a_release_over_ssh(ctx: &mut Ctx) -> Result<()> {
    drop(ctx.publish(&[&A, &B])?);
    let whole = std::fs::metadata(ctx.bundle(&B)?).context("no bundle")?.len();
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    let push = |more: &[&str]| push(ctx, &machine, more);
    let (report, output) = push(&[B.version])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "it ended with {}: {report} {said}", output.status);
    ensure!(text(&report, "/result") == "committed" && text(&report, "/way") == "delta", "{report}");
    ensure!(
        text(&report, "/from") == A.version && text(&report, "/release/version") == B.version,
        "{report}"
    );
    let served = number(&report, "/served");
    ensure!(served > 0 && served < whole / 100, "{served} of {whole} bytes went over ssh");
    ensure!(
        machine.boot()?.boot_id != before.boot_id && machine.version()? == B.version,
        "it is not what it says"
    );
    machine.wait_settled()?;
    ensure!(
        text(&outcome(&machine)?, "/transaction") == text(&report, "/transaction"),
        "another transaction"
    );
    let listening = machine.sh("ss -H -ltn")?;
    ensure!(!listening.contains(":47190"), "the port stays: {listening}");
    // And once more: the device's own refusal, with its own exit code.
    let (_, output) = push(&[B.version])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(3), "{} for what runs already: {said}", output.status);
    ctx.figures.note("served_bytes", served);
    ctx.figures.note("bundle_bytes", whole);
    Ok(())
}
