//! The watchdog while nothing is being updated: a stalled service tree is noticed, load is not.

use crate::ctx::Ctx;
use crate::device::{COMMAND, Device, HEALTHY};
use crate::runner::{LabTest, Tag};
use anyhow::{Result, ensure};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "the_watchdog_fires_when_its_service_stalls",
        boards: &[],
        promise: "When the service that feeds the watchdog stalls, the hardware resets, and the device says that it did.",
        tags: &[Tag::QuickOnFirst],
        run: the_watchdog_fires_when_its_service_stalls,
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
