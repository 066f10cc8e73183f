//! A medium that rots, fills up or forgets: the device stays reachable, or becomes so by itself.

use crate::ctx::Ctx;
use crate::device::{COMMAND, Device, HEALTHY};
use crate::fixtures::{A, B};
use crate::runner::{LabTest, Tag};
use crate::tests::update;
use anyhow::{Context as _, Result, ensure};
use std::io::{Read as _, Write as _};
use testbed::{Machine, Off};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "leaves_a_root_with_a_flipped_bit",
        boards: &[],
        promise: "One flipped bit of the running root is noticed when it is read; the other slot takes over and says why.",
        tags: &[Tag::QuickOnFirst],
        run: leaves_a_root_with_a_flipped_bit,
    },
    LabTest {
        name: "stays_in_rescue_when_both_roots_are_gone",
        boards: &[],
        promise: "With no root left the initramfs stays up with an address and a page that says why; no loop.",
        tags: &[Tag::QuickOnFirst],
        run: stays_in_rescue_when_both_roots_are_gone,
    },
    LabTest {
        name: "survives_the_loss_of_its_state",
        boards: &[],
        promise: "With the state partition destroyed the device comes up, repairs it or makes a new one, and says so.",
        tags: &[Tag::QuickOnFirst],
        run: survives_the_loss_of_its_state,
    },
    LabTest {
        name: "survives_the_loss_of_its_data",
        boards: &[],
        promise: "With the data partition destroyed the device comes up healthy and says so.",
        tags: &[Tag::QuickOnFirst],
        run: survives_the_loss_of_its_data,
    },
    LabTest {
        name: "leaves_a_committed_slot_that_cannot_be_opened",
        boards: &[],
        promise: "A committed slot whose root cannot be opened any more is left for the other one, without a loop.",
        tags: &[Tag::QuickOnFirst],
        run: leaves_a_committed_slot_that_cannot_be_opened,
    },
    LabTest {
        name: "leaves_a_committed_slot_whose_boot_partition_is_gone",
        boards: &[],
        promise: "A committed slot whose kernel is gone is left for the other one.",
        tags: &[Tag::QuickOnFirst],
        run: leaves_a_committed_slot_whose_boot_partition_is_gone,
    },
    LabTest {
        name: "survives_full_file_systems",
        boards: &[],
        promise: "With data and state full to the last byte the device boots, is reachable and refuses an update with the reason; with room again it can be updated.",
        tags: &[Tag::QuickOnFirst],
        run: survives_full_file_systems,
    },
    LabTest {
        name: "forgotten_firmware_variables_change_nothing",
        boards: &["qemux86-64"],
        promise: "A firmware that lost its variables boots some slot; the ledger's slot runs in the end.",
        tags: &[],
        run: forgotten_firmware_variables_change_nothing,
    },
];

/// Turns over a bit in each of the first blocks of partition `name`: its file system is gone.
fn wreck(ctx: &Ctx, off: &Off, name: &str) -> Result<()> {
    let start = ctx.partition(name)?;
    for block in 0..4u64 {
        for byte in [0u64, 510, 1024, 1040, 1080] {
            let offset = block.saturating_mul(4096).saturating_add(byte);
            off.flip_bit(start.saturating_add(offset), 3)?;
        }
    }
    Ok(())
}

fn leaves_a_root_with_a_flipped_bit(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.updated()?;
    let before = machine.boot()?;
    // Twenty megabytes into the root is file content.
    let offset = ctx.partition(&format!("root-{}", before.slot.letter()))?.saturating_add(20 << 20);
    machine.flip_bit(offset, 5)?;
    machine.sh("test -b $(findmnt -n -o SOURCE /)")?;
    machine.start("echo 3 > /proc/sys/vm/drop_caches; cat $(findmnt -n -o SOURCE /) > /dev/null", COMMAND)?;
    let boot = machine.wait_next_healthy(&before)?;
    ensure!(boot.slot == !before.slot, "still in the damaged slot {}", boot.slot);
    ensure!(machine.version()? == A.version, "runs {}", machine.version()?);
    let record = machine.wait_settled()?;
    let last = record.last_boot().context("no boot in the ledger")?;
    ensure!(
        record.boots.iter().any(|boot| boot.pstore_tail.iter().any(|line| line.contains("verity"))),
        "the reason is not kept: {last:?}"
    );
    Ok(())
}

fn leaves_a_committed_slot_that_cannot_be_opened(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.updated()?;
    let before = machine.boot()?;
    let off = machine.power_off(HEALTHY)?;
    wreck(ctx, &off, &format!("root-{}", before.slot.letter()))?;
    let machine = off.power_on()?;
    let boot = machine.wait_next_healthy(&before)?;
    ensure!(boot.slot == !before.slot, "in slot {}", boot.slot);
    let record = machine.wait_settled()?;
    ensure!(record.committed == boot.slot, "committed slot {}", record.committed);
    ensure!(!record.slot(before.slot).bootable(), "the damaged slot still counts as bootable");
    Ok(())
}

fn leaves_a_committed_slot_whose_boot_partition_is_gone(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.updated()?;
    let before = machine.boot()?;
    let off = machine.power_off(HEALTHY)?;
    wreck(ctx, &off, &format!("boot-{}", before.slot.letter()))?;
    let machine = off.power_on()?;
    let boot = machine.wait_next_healthy(&before)?;
    ensure!(boot.slot == !before.slot, "in slot {}", boot.slot);
    Ok(())
}

fn stays_in_rescue_when_both_roots_are_gone(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let off = machine.power_off(HEALTHY)?;
    wreck(ctx, &off, "root-a")?;
    wreck(ctx, &off, "root-b")?;
    let machine = off.power_on()?;
    // Each slot is tried once more for its root, by a reboot; then it stays.
    let there = r"rustiot-init: rescue level=2 address=10\.0\.2\.\d+ ";
    machine.console().expect(there, HEALTHY)?;
    let mark = machine.mark();
    let page = get(machine.forward(80)?, "/status.json")?;
    ensure!(page.contains("the root of slot"), "the page does not say why: {page}");
    // It says so once a minute.
    machine.console().expect(there, HEALTHY)?;
    ensure!(machine.events(mark).iter().all(|event| event.name != "RESET"), "it reboots in a loop");
    Ok(())
}

/// What a web server answers.
fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
    stream.set_read_timeout(Some(COMMAND)).context("cannot set a timeout")?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").context("cannot ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no answer")?;
    Ok(answer)
}

fn survives_the_loss_of_its_state(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    let off = machine.power_off(HEALTHY)?;
    wreck(ctx, &off, "state")?;
    let machine = off.power_on()?;
    let boot = machine.wait_next_healthy(&before)?;
    ensure!(boot.slot == before.slot, "in slot {}", boot.slot);
    let record = machine.wait_settled()?;
    ensure!(record.committed == boot.slot, "committed slot {}", record.committed);
    tells_of_the_damage(&machine, "state")?;
    machine.sh("touch /state/alive && test -s /state/ssh/ssh_host_ed25519_key")?;
    Ok(())
}

fn survives_the_loss_of_its_data(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let (before, id) = (machine.boot()?, machine.sh("cat /etc/machine-id")?);
    let off = machine.power_off(HEALTHY)?;
    wreck(ctx, &off, "data")?;
    let machine = off.power_on()?;
    machine.wait_next_healthy(&before)?;
    ensure!(machine.sh("cat /etc/machine-id")? == id, "it became another device");
    tells_of_the_damage(&machine, "data")?;
    machine.sh("touch /data/alive")?;
    Ok(())
}

/// The step of file system `name` says that it was damaged and what became of it.
fn tells_of_the_damage(machine: &Machine, name: &str) -> Result<()> {
    let said = machine.sh("rustiot provision status")?;
    let step = said.lines().find(|line| line.split_whitespace().next() == Some(name));
    let told = step.is_some_and(|step| step.contains("was repaired") || step.contains("made anew"));
    ensure!(told, "nothing is said about {name}: {said}");
    Ok(())
}

fn survives_full_file_systems(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    let fill = |dir: &str| {
        machine.sh(&format!(
            "fallocate -l $(( $(df --output=avail -B1 {dir} | tail -1) )) {dir}/full 2>/dev/null; \
             cat /dev/zero > {dir}/rest 2>/dev/null; sync; test $(df --output=avail -B1 {dir} | tail -1) -eq 0"
        ))
    };
    fill("/data")?;
    fill("/state")?;
    machine.start("systemctl reboot", COMMAND)?;
    machine.wait_next_healthy(&before)?;
    let output = machine.ssh(&ctx.lab.ssh_key()?.private, "rustiot status --json")?;
    ensure!(output.ok(), "not reachable: {}", output.stderr);
    // No room to remember an update in: none is begun, and the device says why.
    let server = ctx.serve(&[&B])?;
    let slots = machine.sh("rustiot slots --json")?;
    let refused = machine.install(&server.guest_url("b.raucb"))?;
    let words = ["No space left on device", "/state", "df /state"];
    ensure!(
        refused.status == 1 && words.iter().all(|words| refused.stderr.contains(words)),
        "exit code {} and {}",
        refused.status,
        refused.stderr
    );
    ensure!(machine.sh("rustiot slots --json")? == slots, "the slots changed");
    machine.wait_until("health to tell of the full disk", HEALTHY, &mut |machine| {
        Ok(machine.run("rustiot health | grep -q 'data space *warn .* free'", COMMAND)?.ok())
    })?;
    // Space returns: so does everything else.
    machine.sh("rm -f /data/full /data/rest /state/full /state/rest; sync")?;
    if ctx.short {
        // That an installed one starts, many other tests see.
        let held = format!("rustiot update install --hold activate {}", server.guest_url("b.raucb"));
        let installed = machine.run(&held, HEALTHY)?;
        ensure!(installed.ok(), "the install ended with {}: {}", installed.status, installed.stderr);
        return Ok(());
    }
    update(&machine, &server, &B)?;
    Ok(())
}

fn forgotten_firmware_variables_change_nothing(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.updated()?;
    let before = machine.boot()?;
    let off = machine.power_off(HEALTHY)?;
    off.clear_vars()?;
    let machine = off.power_on()?;
    machine.wait_until("the committed slot to run", HEALTHY, &mut |machine| {
        let boot = machine.boot()?;
        Ok(boot.boot_id != before.boot_id && boot.slot == before.slot)
    })?;
    machine.wait_healthy()?;
    machine.wait_settled()?;
    // For good: another reboot stays there.
    let again = machine.boot()?;
    machine.start("systemctl reboot", COMMAND)?;
    let boot = machine.wait_next_healthy(&again)?;
    ensure!(boot.slot == before.slot, "in slot {}", boot.slot);
    Ok(())
}
