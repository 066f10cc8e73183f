//! A device boots, takes a release, keeps its data, and goes back.

use crate::ctx::Ctx;
use crate::device::{BootInfo, Device};
use crate::fixtures::{A, B, Release};
use crate::runner::{LabTest, Tag};
use anyhow::{Result, ensure};
use testbed::{FileServer, Machine};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "boots_to_healthy",
        boards: &[],
        promise: "A medium fresh from flashing becomes a healthy, committed device by itself.",
        tags: &[Tag::QuickOnFirst],
        run: boots_to_healthy,
    },
    LabTest {
        name: "updates_a_to_b_to_a_with_data_intact",
        boards: &[],
        promise: "An update and the way back change the slot and the version, and nothing of the owner's.",
        tags: &[Tag::QuickOnFirst],
        run: updates_a_to_b_to_a_with_data_intact,
    },
];

fn boots_to_healthy(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.fresh(Some(ctx.fixtures.medium()))?.power_on()?;
    let boot = machine.wait_healthy()?;
    ensure!(boot.slot.letter() == "a" && boot.kind == "normal", "an odd first boot: {}", boot.raw);
    ensure!(machine.version()? == A.version, "version {}", machine.version()?);
    let record = machine.wait_settled()?;
    ensure!(record.committed == boot.slot, "committed slot {}", record.committed);
    machine.sh("findmnt -n -o OPTIONS / | grep -qw ro")?;
    machine.sh("findmnt -n -o FSTYPE / | grep -qw erofs")?;
    let failed = machine.sh("systemctl list-units --state=failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "failed units: {failed}");
    let key = ctx.lab.ssh_key()?.private;
    let output = machine.ssh(&key, "hostname")?;
    ensure!(output.ok(), "ssh: {}", output.stderr);
    Ok(())
}

fn updates_a_to_b_to_a_with_data_intact(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let server = ctx.serve(&[&A, &B])?;
    machine.sh("mkdir -p /data/owner && head -c 5000000 /dev/urandom > /data/owner/file && sync")?;
    let sums = "cat /data/owner/file /etc/machine-id /state/ssh/ssh_host_* /state/identity/* | sha256sum";
    let before = (machine.sh(sums)?, machine.boot()?);
    let there = update(&machine, &server, &B)?;
    ensure!(there.slot == !before.1.slot, "still in slot {}", there.slot);
    ensure!(machine.sh(sums)? == before.0, "data or identity changed on the way to B");
    let back = update(&machine, &server, &A)?;
    ensure!(back.slot == before.1.slot, "not back in slot {}", before.1.slot);
    ensure!(machine.sh(sums)? == before.0, "data or identity changed on the way back");
    ensure!(machine.watchdog_resets() == 0, "the watchdog fired {} times", machine.watchdog_resets());
    Ok(())
}

/// Installs `release`, waits until it runs, healthy and committed.
pub(super) fn update(machine: &Machine, server: &FileServer, release: &Release) -> Result<BootInfo> {
    let before = machine.boot()?;
    let output = machine.install(&server.guest_url(&format!("{}.raucb", release.name)))?;
    ensure!(output.ok(), "the install ended with {}: {}{}", output.status, output.stdout, output.stderr);
    let boot = machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == release.version, "runs {}, not {}", machine.version()?, release.version);
    machine.wait_settled()?;
    Ok(boot)
}
