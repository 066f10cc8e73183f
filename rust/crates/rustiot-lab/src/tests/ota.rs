//! Updates over the air: the device finds a release in a repository on a plain web server and fetches the difference.

use super::add_configuration;
use crate::COMMAND;
use crate::battery;
use crate::ctx::Ctx;
use crate::device::{Device, HEALTHY};
use crate::fixtures::{A, B, File, Release};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Instant;
use testbed::{FileServer, Machine};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "updates_by_the_difference_from_a_plain_web_server",
        boards: &[],
        promise: "A device finds a release in a repository of static files, shows what it costs, and fetches the difference and no more.",
        tags: &[Tag::QuickOnFirst],
        run: updates_by_the_difference_from_a_plain_web_server,
    },
    LabTest {
        name: "a_damaged_delta_is_followed_by_the_next_way",
        boards: &[],
        promise: "A delta that is damaged on the server costs a detour, is told, and the release is installed all the same.",
        tags: &[],
        run: a_damaged_delta_is_followed_by_the_next_way,
    },
    LabTest {
        name: "a_download_that_is_cut_again_and_again_costs_no_byte_twice",
        boards: &[],
        promise: "Power cuts and a killed service in a download cost no more than what was on its way: at most 128 KiB each.",
        tags: &[],
        run: a_download_that_is_cut_again_and_again_costs_no_byte_twice,
    },
    LabTest {
        name: "an_update_keeps_to_its_memory_and_writes_the_slot_once",
        boards: &[],
        promise: "By the delta, by the whole compressed release over the cache and by the same without a cache, the update service stays below its bounds of memory, the slot is written once, and the data partition as much as the cache takes.",
        tags: &[],
        run: an_update_keeps_to_its_memory_and_writes_the_slot_once,
    },
    LabTest {
        name: "an_install_that_is_cancelled_leaves_nothing",
        boards: &[],
        promise: "An install that is cancelled while RAUC streams it stops at once, leaves no device, no mount and no slot that would boot, and the next install works.",
        tags: &[],
        run: an_install_that_is_cancelled_leaves_nothing,
    },
    LabTest {
        name: "an_outage_longer_than_raucs_patience_costs_nothing",
        boards: &["qemux86-64"],
        promise: "A server that is away in the middle of a streamed install, for longer than the kernel waits for RAUC's device, costs no release: what is missing is fetched once it is back, and installed.",
        tags: &[],
        run: an_outage_longer_than_raucs_patience_costs_nothing,
    },
    LabTest {
        name: "by_itself_a_device_keeps_to_windows_rate_and_applications",
        boards: &["qemux86-64"],
        promise: "What a device does by itself keeps to its owner's rules: nothing comes outside the windows, a download stops when one closes and goes on in the next at no more than the rate, and an application puts the restart off.",
        tags: &[],
        run: by_itself_a_device_keeps_to_windows_rate_and_applications,
    },
    LabTest {
        name: "on_its_battery_a_device_waits_with_the_install",
        boards: &["qemux86-64"],
        promise: "Where its owner says so, a device on its battery fetches a release and installs it only when the mains is back.",
        tags: &[],
        run: on_its_battery_a_device_waits_with_the_install,
    },
];

/// A release whose delta is worth cutting, and whose bundle takes its time on a slow stick.
pub(super) const NOISY: Release =
    Release { files: &[File::Noise("usr/share/noise", 14 << 20)], ..Release::new("noisy", "1.3.0") };

/// Tells the device where its releases come from; it is under way from the next question on.
fn look_at(machine: &Machine, server: &FileServer) -> Result<()> {
    let url = server.guest_url("");
    add_configuration(machine, &format!("[update]\nsource = \"{url}\"\npolicy = \"manual\"\n"))
}

/// The answer of a command in JSON.
pub(super) fn json(machine: &Machine, command: &str) -> Result<Value> {
    let text = machine.sh(&format!("{command} --json"))?;
    serde_json::from_str(&text).with_context(|| format!("`{command} --json` said: {text}"))
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// The newest entry of the history, which comes a moment after the commit.
pub(super) fn outcome(machine: &Machine) -> Result<Value> {
    let mut newest = Value::Null;
    machine.wait_until("an entry in the history", HEALTHY, &mut |machine| {
        let history = json(machine, "rustiot update history")?;
        newest = history.as_array().and_then(|entries| entries.last()).cloned().unwrap_or_default();
        Ok(!newest.is_null())
    })?;
    Ok(newest)
}

/// Takes what the repository has, B; its entry in the history once it is committed.
pub(super) fn take_b(machine: &Machine) -> Result<Value> {
    let before = machine.boot()?;
    let output = machine.run("rustiot update install", HEALTHY)?;
    ensure!(output.ok(), "the install ended with {}: {}{}", output.status, output.stdout, output.stderr);
    machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == B.version, "runs {}", machine.version()?);
    machine.wait_settled()?;
    let entry = outcome(machine)?;
    ensure!(text(&entry, "/result") == "committed", "not committed: {entry}");
    Ok(entry)
}

fn updates_by_the_difference_from_a_plain_web_server(ctx: &mut Ctx) -> Result<()> {
    let server = ctx.publish(&[&A, &B])?;
    let whole = std::fs::metadata(ctx.bundle(&B)?).context("no bundle")?.len();
    let machine = ctx.healthy()?;
    look_at(&machine, &server)?;
    machine.sh("rustiot update check")?;
    let looked = server.bytes();
    let plan = json(&machine, "rustiot update plan")?;
    ensure!(text(&plan, "/release/version") == B.version, "no plan for {}: {plan}", B.version);
    ensure!(text(&plan, "/ways/0/kind") == "delta", "not by delta: {plan}");
    let promised = number(&plan, "/ways/0/bytes");
    ensure!(server.bytes() == looked, "looking at a plan fetched {} bytes", server.bytes() - looked);
    // What is in it is a file of its own that comes when somebody asks: with what differs from the running release.
    let contents = json(&machine, "rustiot update plan --details")?;
    let packages = contents.pointer("/contents/packages").and_then(Value::as_array).map_or(0, Vec::len);
    ensure!(packages > 50, "{packages} packages: {contents}");
    let from = text(&contents, "/contents/difference/from_version");
    ensure!(from == A.version, "no difference to what runs: {from:?}");
    let begun = server.bytes();
    ensure!(begun > looked, "the list came from nowhere");
    take_b(&machine)?;
    let fetched = server.bytes().saturating_sub(begun);
    ensure!(fetched <= promised + promised / 10 + 8192, "{fetched} bytes came, {promised} were promised");
    ensure!(fetched < whole / 100, "{fetched} of {whole} bytes came");
    ctx.figures.note("check_bytes", looked);
    ctx.figures.note("fetched_bytes", fetched);
    ctx.figures.note("bundle_bytes", whole);
    Ok(())
}

/// Bytes written to a partition since the boot, by the kernel's count.
fn written(machine: &Machine, partition: &str) -> Result<u64> {
    let stat = format!(
        "sync; awk '{{ printf \"%d\", $7 * 512 }}' /sys/class/block/$(basename $(readlink -f /dev/disk/by-partlabel/{partition}))/stat"
    );
    machine.sh(&stat)?.parse().with_context(|| format!("no count for {partition}"))
}

/// What one install is measured by.
struct Meter<'a> {
    machine: &'a Machine,
    slot: rustiot_boot::Slot,
    /// Bytes of both images.
    images: u64,
}

impl Meter<'_> {
    fn written(&self) -> Result<(u64, u64)> {
        let slot = |class| written(self.machine, &format!("{class}-{}", self.slot));
        Ok((slot("root")?.saturating_add(slot("boot")?), written(self.machine, "data")?))
    }

    /// `kind` of the update service's memory, bytes.
    fn memory(&self, kind: &str) -> Result<u64> {
        let pid = "$(systemctl show -P MainPID rustiot-update.service)";
        let text = self.machine.sh(&format!("awk '/^{kind}:/ {{ print $2 }}' /proc/{pid}/status"))?;
        Ok(text.parse::<u64>().with_context(|| format!("no {kind}: {text}"))?.saturating_mul(1024))
    }

    /// Installs what the repository has up to the activation. The figures: peak of the memory, bytes written to the slot and
    /// to `data`.
    fn install(&self, ctx: &Ctx, figures: [&'static str; 3]) -> Result<Installed> {
        let [name, ..] = figures;
        let began = Instant::now();
        self.machine.sh("echo 5 > /proc/$(systemctl show -P MainPID rustiot-update.service)/clear_refs")?;
        let before = self.written()?;
        let output = self.machine.run("rustiot update install --hold activate", HEALTHY)?;
        ensure!(output.ok(), "{name}: it ended with {}: {}", output.status, output.stderr);
        let after = self.written()?;
        let status = json(self.machine, "rustiot update status")?;
        ensure!(text(&status, "/phase") == "installed", "{name}: not installed: {status}");
        let way = usize::try_from(number(&status, "/transaction/way")).unwrap_or(usize::MAX);
        let way = text(&status, &format!("/transaction/plan/ways/{way}/kind")).to_owned();
        let (slot, data) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
        let peak = self.memory("VmHWM")?;
        for (figure, value) in figures.into_iter().zip([peak, slot, data]) {
            ctx.figures.note(figure, value);
        }
        ensure!(peak <= PEAK, "{name}: {peak} bytes of memory, {PEAK} are allowed");
        let most = self.images.saturating_add(self.images / 50);
        ensure!(slot >= self.images && slot <= most, "{name}: {slot} bytes into a slot of {}", self.images);
        let (bytes, a_second) = BESIDES;
        let besides = bytes.saturating_add(a_second.saturating_mul(began.elapsed().as_secs()));
        Ok(Installed { way, data, besides })
    }

    /// Takes it back, so that the slot is free for the next one.
    fn back(&self) -> Result<()> {
        self.machine.sh("rustiot update cancel")?;
        idle(self.machine)
    }
}

/// What an install was like.
struct Installed {
    way: String,
    /// Bytes written to `data`, and how many of them may be others'.
    data: u64,
    besides: u64,
}

/// Most memory of the update service, its program's own pages counted, bytes.
const PEAK: u64 = 20_000_000;
/// What logs and the file system's journal may write to `data` meanwhile: bytes, and bytes a second.
const BESIDES: (u64, u64) = (4 << 20, 64 << 10);

/// Nothing is under way, in the service, in the ledger, and at RAUC.
fn idle(machine: &Machine) -> Result<()> {
    machine.wait_until("that nothing is under way", COMMAND, &mut |machine| {
        let phase = json(machine, "rustiot update status")?;
        let rauc = "busctl get-property de.pengutronix.rauc / de.pengutronix.rauc.Installer Operation";
        Ok(matches!(text(&phase, "/phase"), "idle" | "available")
            && machine.ledger()?.phase.name() == "idle"
            && machine.sh(rauc)?.contains("\"idle\""))
    })
}

fn an_update_keeps_to_its_memory_and_writes_the_slot_once(ctx: &mut Ctx) -> Result<()> {
    // To compress a whole release takes minutes: only of the one that is installed.
    drop(ctx.publish(&[&A])?);
    ctx.publish_compressed()?;
    let server = ctx.publish(&[&B])?;
    let image = ctx.fixtures.image(ctx.lab, ctx.board, &B)?;
    let len = |path: &PathBuf| std::fs::metadata(path).map(|meta| meta.len()).context("no image");
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    let images = len(&image.root)?.saturating_add(len(&image.boot)?);
    let meter = Meter { machine: &machine, slot: !before.slot, images };
    ctx.figures.note("images_bytes", images);
    look_at(&machine, &server)?;
    machine.sh("rustiot update check")?;
    let plan = json(&machine, "rustiot update plan")?;
    let (delta, full) = (number(&plan, "/ways/0/bytes"), number(&plan, "/ways/1/bytes"));
    let two = text(&plan, "/ways/1/kind") == "full" && plan.pointer("/ways/2").is_none();
    ensure!(text(&plan, "/ways/0/kind") == "delta" && two, "other ways than the product's: {plan}");
    ctx.figures.note("delta_bytes", delta);
    ctx.figures.note("full_bytes", full);

    let figures = ["delta_peak_bytes", "delta_slot_bytes", "delta_data_bytes"];
    let Installed { way, data, besides } = meter.install(ctx, figures)?;
    ensure!(way == "delta" && data <= delta + besides, "{data} bytes on data for the {way} of {delta}");
    meter.back()?;

    // Without room for it the delta is left out, and the whole release goes straight to the slot.
    add_configuration(&machine, "cache = \"0\"\n")?;
    let figures = ["uncached_peak_bytes", "uncached_slot_bytes", "uncached_data_bytes"];
    let Installed { way, data, besides } = meter.install(ctx, figures)?;
    ensure!(way == "full" && data <= besides, "{data} bytes on data for the {way} without a cache");
    meter.back()?;

    // Without the delta, and with a cache that is as large as it needs to be.
    for delta in deltas(ctx)? {
        std::fs::remove_file(&delta).context("cannot remove the delta")?;
    }
    let cache = (full >> 20) + 1;
    machine.sh(
        "mount -o remount,rw /config && sed -i '/^cache = /d' /config/rustiot.toml && mount -o remount,ro /config",
    )?;
    add_configuration(&machine, &format!("cache = \"{cache}M\"\n"))?;
    let figures = ["full_peak_bytes", "full_slot_bytes", "full_data_bytes"];
    let Installed { way, data, besides } = meter.install(ctx, figures)?;
    let bounded = data >= full && data <= full + besides;
    ensure!(way == "full" && bounded, "{data} bytes on data for the {way} of {full}");
    machine.run("rustiot update hold none", COMMAND)?;
    machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == B.version, "runs {}", machine.version()?);
    machine.wait_settled()?;
    machine.wait_until("the commit in the history", HEALTHY, &mut |machine| {
        Ok(text(&outcome(machine)?, "/result") == "committed")
    })
}

/// Begins to stream B from `server` and waits until `bytes` of it are in the slot.
fn stream(machine: &Machine, server: &FileServer, bytes: u64) -> Result<()> {
    let url = server.guest_url(&format!("{}.raucb", B.name));
    machine.sh(&format!("rustiot update install --no-wait {url}"))?;
    machine.wait_until("the first bytes in the slot", HEALTHY, &mut |machine| {
        let status = json(machine, "rustiot update status")?;
        Ok(text(&status, "/phase") == "installing" && number(&status, "/progress/bytes") > bytes)
    })
}

fn an_install_that_is_cancelled_leaves_nothing(ctx: &mut Ctx) -> Result<()> {
    let server = ctx.serve(&[&B])?;
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    server.set_faults(testbed::Faults { bytes_per_second: Some(3_000_000), ..testbed::Faults::default() });
    stream(&machine, &server, 4 << 20)?;
    let began = Instant::now();
    machine.sh("rustiot update cancel")?;
    ctx.figures.note("cancel_ms", u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    idle(&machine)?;
    let fetched = server.bytes();
    let record = machine.ledger()?;
    ensure!(
        !matches!(record.slot(!before.slot), rustiot_boot::SlotState::Valid { .. }),
        "a half-written slot counts as valid: {:?}",
        record.slot(!before.slot)
    );
    let slots: Value = json(&machine, "rustiot slots")?;
    ensure!(slots.pointer("/loader/default") == slots.get("running"), "the next boot is another: {slots}");
    machine.wait_until("that RAUC's devices are gone", COMMAND, &mut |machine| {
        let left = machine.sh("ls /sys/block/nbd*/pid 2>/dev/null; grep -h rauc /sys/block/dm-*/dm/name 2>/dev/null; grep squashfs /proc/mounts; true")?;
        Ok(left.is_empty())
    })?;
    let entry = outcome(&machine)?;
    ensure!(text(&entry, "/result") == "cancelled", "not cancelled: {entry}");
    ensure!(server.bytes() == fetched, "{} bytes came after it", server.bytes() - fetched);
    ensure!(machine.boot()?.boot_id == before.boot_id, "it restarted");

    // The trial that would follow is other tests' matter.
    server.set_faults(testbed::Faults::default());
    let url = server.guest_url(&format!("{}.raucb", B.name));
    let output = machine.run(&format!("rustiot update install --hold activate {url}"), HEALTHY)?;
    ensure!(output.ok(), "the next install ended with {}: {}", output.status, output.stderr);
    let status = json(&machine, "rustiot update status")?;
    ensure!(text(&status, "/phase") == "installed", "the next one is not installed: {status}");
    Ok(())
}

fn an_outage_longer_than_raucs_patience_costs_nothing(ctx: &mut Ctx) -> Result<()> {
    let server = ctx.serve(&[&B])?;
    let whole = std::fs::metadata(ctx.bundle(&B)?).context("no bundle")?.len();
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    server.set_faults(testbed::Faults { bytes_per_second: Some(6_000_000), ..testbed::Faults::default() });
    stream(&machine, &server, 16 << 20)?;
    server.set_faults(testbed::Faults { status: Some(503), ..testbed::Faults::default() });
    let began = Instant::now();
    let mut told = false;
    machine.wait_until("that RAUC is not asked any more", HEALTHY, &mut |machine| {
        let status = json(machine, "rustiot update status")?;
        told |=
            text(&status, "/phase") == "installing" && text(&status, "/message").contains("fetched first");
        Ok(text(&status, "/phase") == "downloading")
    })?;
    let seconds = began.elapsed().as_secs();
    ctx.figures.note("seconds_until_rauc_gave_up", seconds);
    ensure!(seconds >= 290, "it ended after {seconds} s: that was not the kernel");
    ensure!(told, "nobody was told that RAUC is held");
    let log = machine.sh("dmesg | grep -ci 'nbd.*\\(timed out\\|error\\)' || true")?;
    ensure!(log != "0", "the kernel gave no device up");
    server.set_faults(testbed::Faults::default());
    machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == B.version, "runs {}", machine.version()?);
    machine.wait_settled()?;
    let entry = outcome(&machine)?;
    ensure!(text(&entry, "/result") == "committed", "not committed: {entry}");
    let fetched = server.bytes();
    ctx.figures.note("fetched_bytes", fetched);
    ctx.figures.note("bundle_bytes", whole);
    ensure!(fetched * 100 <= whole * 105, "{fetched} bytes came for {whole}");
    Ok(())
}

fn on_its_battery_a_device_waits_with_the_install(ctx: &mut Ctx) -> Result<()> {
    let server = ctx.publish(&[&A, &B])?;
    let mut off = ctx.fresh(Some(ctx.fixtures.medium()))?;
    battery::insert(&mut off)?;
    let machine = off.power_on()?;
    let before = machine.wait_healthy()?;
    machine.wait_settled()?;
    let on_battery = |machine: &Machine| -> Result<bool> {
        let policy = json(machine, "rustiot update policy")?;
        policy.get("on_battery").and_then(Value::as_bool).with_context(|| format!("no power: {policy}"))
    };
    ensure!(!on_battery(&machine)?, "on its battery from the beginning");
    battery::unplug(&machine, true)?;
    machine.wait_until("that it runs on its battery", COMMAND, &mut |machine| on_battery(machine))?;
    let url = server.guest_url("");
    let owner = format!("[update]\nsource = \"{url}\"\npolicy = \"auto\"\non_battery = \"wait\"\n");
    add_configuration(&machine, &owner)?;
    machine.sh("rustiot update check")?;
    machine.wait_until("that the install waits for power", HEALTHY, &mut |machine| {
        let status = json(machine, "rustiot update status")?;
        Ok(text(&status, "/message").contains("external power"))
    })?;
    let status = json(&machine, "rustiot update status")?;
    ensure!(text(&status, "/phase") == "downloaded", "not downloaded: {status}");
    ensure!(number(&status, "/progress/written") == 0, "something was written: {status}");

    battery::unplug(&machine, false)?;
    machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == B.version, "runs {}", machine.version()?);
    machine.wait_settled()?;
    let entry = outcome(&machine)?;
    ensure!(text(&entry, "/result") == "committed", "not committed: {entry}");
    Ok(())
}

/// Waits until the device is in `phase`, and says why with this word.
fn wait_message(machine: &Machine, phase: &str, word: &str) -> Result<()> {
    machine.wait_until(&format!("{phase}, because of {word}"), HEALTHY, &mut |machine| {
        let status = json(machine, "rustiot update status")?;
        Ok(text(&status, "/phase") == phase && text(&status, "/message").contains(word))
    })
}

fn by_itself_a_device_keeps_to_windows_rate_and_applications(ctx: &mut Ctx) -> Result<()> {
    const RATE: u64 = 100_000;
    let server = ctx.publish(&[&A, &NOISY])?;
    let machine = ctx.healthy()?;
    let before = machine.boot()?;
    // The window opens in two to three hours and is three hours long. The clock is set, as it may be on a device whenever
    // it hears from a time server.
    let hour: u64 = machine.sh("date -u +%H | sed 's/^0//'")?.parse().context("no hour")?;
    let window = format!("{:02}:00-{:02}:00 UTC", (hour + 3) % 24, (hour + 6) % 24);
    let set = |hours: u64| machine.sh(&format!("date -u -s \"$(date -u -d '+{hours} hours')\""));
    machine.sh("systemctl stop systemd-timesyncd || true")?;
    let url = server.guest_url("");
    add_configuration(
        &machine,
        &format!(
            "[update]\nsource = \"{url}\"\npolicy = \"auto\"\nwindows = [\"{window}\"]\ndownload = \"window\"\n\
             rate_limit = \"{RATE}\"\n"
        ),
    )?;
    machine.sh("rustiot update check")?;
    wait_message(&machine, "available", "window")?;
    let begun = server.bytes();
    let plan = json(&machine, "rustiot update plan")?;
    let promised = number(&plan, "/ways/0/bytes");
    ensure!(promised > 14 << 20 && text(&plan, "/ways/0/kind") == "delta", "no delta worth it: {plan}");

    set(4)?;
    let opened = Instant::now();
    let fetched = || server.bytes().saturating_sub(begun);
    machine.wait_until("a third of the download", HEALTHY, &mut |_| Ok(fetched() > promised / 3))?;
    // A second's worth may come at once; what lies in buffers on the way is counted by the server already.
    let most = |seconds: u64| RATE.saturating_mul(seconds + 2).saturating_add(4 << 20);
    let (came, seconds) = (fetched(), opened.elapsed().as_secs());
    ctx.figures.note("bytes_a_second", came / seconds.max(1));
    ensure!(came <= most(seconds), "{came} bytes came in {seconds} s, at {RATE} a second");
    set(4)?;
    machine.wait_until("that the download stops with the window", HEALTHY, &mut |machine| {
        let status = json(machine, "rustiot update status")?;
        Ok(text(&status, "/message").contains("window"))
    })?;
    let stopped = fetched();
    ensure!(stopped < promised, "it was over before the window was");
    machine.sh("sleep 5")?;
    ensure!(fetched() == stopped, "{} bytes came outside the window", fetched() - stopped);

    // The application's work begins before the restart is due.
    machine
        .sh("systemd-run --unit=the-app sh -c 'echo \"the pump runs\" > /run/rustiot/update/vetoes/pump; \
         exec flock /run/rustiot/update/vetoes/pump sleep infinity'")?;
    set(20)?;
    wait_message(&machine, "installed", "the pump runs")?;
    let slots: Value = json(&machine, "rustiot slots")?;
    ensure!(
        slots.pointer("/loader/next").is_none_or(Value::is_null),
        "a restart would be the trial: {slots}"
    );
    ensure!(machine.boot()?.boot_id == before.boot_id, "it restarted over the application's head");
    let all = fetched();
    ctx.figures.note("promised_bytes", promised);
    ctx.figures.note("fetched_bytes", all);
    ensure!(all * 100 <= promised * 105, "{all} bytes came for {promised}");
    machine.sh("systemctl stop the-app")?;
    machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == NOISY.version, "runs {}", machine.version()?);
    machine.wait_settled()?;
    let entry = outcome(&machine)?;
    ensure!(text(&entry, "/result") == "committed", "not committed: {entry}");
    ensure!(text(&entry, "/by") == "policy", "not by itself: {entry}");
    Ok(())
}

/// The files of deltas that the server has.
fn deltas(ctx: &Ctx) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![ctx.published().join("targets")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).context("cannot list the targets")?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.to_string_lossy().contains(".from-") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn a_damaged_delta_is_followed_by_the_next_way(ctx: &mut Ctx) -> Result<()> {
    let server = ctx.publish(&[&A, &B])?;
    let deltas = deltas(ctx)?;
    ensure!(deltas.len() == 1, "{} deltas", deltas.len());
    for delta in deltas {
        let mut bytes = std::fs::read(&delta).context("cannot read the delta")?;
        let half = bytes.len() / 2;
        *bytes.get_mut(half).context("an empty delta")? ^= 1;
        std::fs::write(&delta, bytes).context("cannot write the delta")?;
    }
    let machine = ctx.healthy()?;
    look_at(&machine, &server)?;
    let entry = take_b(&machine)?;
    ensure!(text(&entry, "/way") == "bundle", "by another way: {entry}");
    ensure!(text(&entry, "/failed_ways/0/way") == "delta", "the detour is not told: {entry}");
    Ok(())
}

fn a_download_that_is_cut_again_and_again_costs_no_byte_twice(ctx: &mut Ctx) -> Result<()> {
    const CUTS: u64 = 7;
    let server = ctx.publish(&[&A, &NOISY])?;
    let mut machine = ctx.healthy()?;
    look_at(&machine, &server)?;
    machine.sh("rustiot update check")?;
    let plan = json(&machine, "rustiot update plan")?;
    let promised = number(&plan, "/ways/0/bytes");
    ensure!(promised > 14 << 20 && text(&plan, "/ways/0/kind") == "delta", "no delta worth it: {plan}");
    let begun = server.bytes();
    server.set_faults(testbed::Faults { bytes_per_second: Some(600_000), ..testbed::Faults::default() });
    machine.sh("rustiot update install --hold activate --no-wait")?;
    let share = |n: u64| begun + promised * n / (CUTS + 1);
    for n in 1..=CUTS {
        machine
            .wait_until("the next part of the download", HEALTHY, &mut |_| Ok(server.bytes() >= share(n)))?;
        if n % 2 == 0 {
            let before = machine.boot()?;
            machine = machine.power_cut().power_on()?;
            machine.wait_healthy()?;
            ensure!(machine.boot()?.boot_id != before.boot_id, "it did not restart");
        } else {
            machine.sh("systemctl kill --signal=KILL rustiot-update")?;
        }
    }
    server.set_faults(testbed::Faults::default());
    machine.wait_until("the release to be installed", HEALTHY, &mut |machine| {
        let state: Value = json(machine, "rustiot update status")?;
        Ok(text(&state, "/phase") == "installed")
    })?;
    let fetched = server.bytes() - begun;
    ctx.figures.note("promised_bytes", promised);
    ctx.figures.note("fetched_bytes", fetched);
    // What the server has sent is in buffers of both systems and of the network between them; that is of no size of the
    // download's.
    ensure!(fetched <= promised + CUTS * (128 << 10), "{fetched} bytes came for {promised}");
    let before = machine.boot()?;
    machine.run("rustiot update hold none", COMMAND)?;
    machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == NOISY.version, "runs {}", machine.version()?);
    Ok(())
}
