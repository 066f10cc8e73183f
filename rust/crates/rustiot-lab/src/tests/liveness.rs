//! The watchdog while nothing is being updated: a stalled service tree is noticed, load is not.

use crate::ctx::Ctx;
use crate::device::{COMMAND, Device, HEALTHY};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, ensure};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "the_watchdog_fires_when_its_service_stalls",
        boards: &[],
        promise: "When the service that feeds the watchdog stalls, the hardware resets, and the device says that it did.",
        tags: &[Tag::QuickOnFirst],
        run: the_watchdog_fires_when_its_service_stalls,
    },
    LabTest {
        name: "a_service_that_stalls_is_started_again",
        boards: &[],
        promise: "A service of the liveness tree that stalls without dying is noticed and started again; nothing reboots.",
        tags: &[],
        run: a_service_that_stalls_is_started_again,
    },
    LabTest {
        name: "a_frozen_service_manager_ends_in_a_reboot",
        boards: &[],
        promise: "PID 1 that does nothing any more, while services run on, ends in a reboot without its help, and the reason is kept.",
        tags: &[],
        run: a_frozen_service_manager_ends_in_a_reboot,
    },
    LabTest {
        name: "load_alone_does_not_fire_the_watchdog",
        boards: &[],
        promise: "All processors and all memory busy for longer than the watchdog's period: no reset.",
        tags: &[],
        run: load_alone_does_not_fire_the_watchdog,
    },
];

fn the_watchdog_fires_when_its_service_stalls(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    let mark = machine.mark();
    machine.sh("systemctl kill --signal=STOP rustiot-watchdog.service")?;
    machine.wait_watchdog(mark, HEALTHY)?;
    let boot = machine.wait_next_healthy(&before)?;
    ensure!(boot.slot == before.slot, "one reset of a committed slot changed the slot");
    ensure!(boot.raw.to_string().contains("watchdog"), "the reason is not told: {}", boot.raw);
    ensure!(machine.watchdog_resets() == 1, "the watchdog fired {} times", machine.watchdog_resets());
    Ok(())
}

fn a_service_that_stalls_is_started_again(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let pid = "systemctl show --property=MainPID --value rustiot-health.service";
    let (before, stalled) = (machine.boot()?, machine.sh(pid)?);
    machine.sh("systemctl kill --signal=STOP rustiot-health.service")?;
    machine.wait_until("the service to be another process", HEALTHY, &mut |machine| {
        let now = machine.sh(pid)?;
        Ok(now != stalled && now != "0")
    })?;
    machine.wait_healthy()?;
    ensure!(machine.boot()?.boot_id == before.boot_id, "the device rebooted");
    let said = machine.sh("cat /run/rustiot/watchdog.json")?;
    let status: serde_json::Value = serde_json::from_str(&said).context("watchdog.json")?;
    let children = status.get("children").and_then(|list| list.as_array()).cloned().unwrap_or_default();
    let health = children.iter().find(|child| child.get("name").is_some_and(|name| name == "health"));
    let score = health.and_then(|child| child.get("score")).and_then(serde_json::Value::as_u64);
    ensure!(score.is_some_and(|score| score > 0), "the watchdog does not count it: {said}");
    Ok(())
}

fn a_frozen_service_manager_ends_in_a_reboot(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    machine.sh("echo 1 > /sys/fs/cgroup/init.scope/cgroup.freeze")?;
    let boot = machine.wait_next_healthy(&before)?;
    ensure!(boot.slot == before.slot, "one reboot of a committed slot changed the slot");
    ensure!(machine.watchdog_resets() == 0, "the hardware had to do it");
    let budget = machine.sh("cat /state/watchdog/budget.json")?;
    ensure!(budget.contains("pid1"), "the reason is not kept: {budget}");
    Ok(())
}

fn load_alone_does_not_fire_the_watchdog(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    machine.start(
        "for i in 1 2 3 4 5 6 7 8; do timeout 100 sh -c 'while :; do :; done' & done; \
         timeout 100 sh -c 'head -c 500m /dev/zero | tail -c 1 > /dev/null; sleep 100'",
        COMMAND,
    )?;
    let began = machine.sh("cut -d. -f1 /proc/uptime")?.parse::<u64>()?;
    machine.wait_until("the load to have lasted", HEALTHY, &mut |machine| {
        let now: u64 = machine.sh("cut -d. -f1 /proc/uptime")?.parse()?;
        Ok(now > began.saturating_add(95))
    })?;
    ensure!(machine.boot()?.boot_id == before.boot_id, "the device rebooted");
    ensure!(machine.watchdog_resets() == 0, "the watchdog fired");
    Ok(())
}
