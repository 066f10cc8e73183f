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
        promise: "Power cuts and a killed service in a download cost at most 5 % more bytes than a clean run.",
        tags: &[],
        run: a_download_that_is_cut_again_and_again_costs_no_byte_twice,
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
    Release { files: &[File::Noise("usr/share/noise", 20 << 20)], ..Release::new("noisy", "1.3.0") };

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
    let server = ctx.publish(&[&A, &NOISY])?;
    let mut machine = ctx.healthy()?;
    look_at(&machine, &server)?;
    machine.sh("rustiot update check")?;
    let plan = json(&machine, "rustiot update plan")?;
    let promised = number(&plan, "/ways/0/bytes");
    ensure!(promised > 20 << 20 && text(&plan, "/ways/0/kind") == "delta", "no delta worth it: {plan}");
    let begun = server.bytes();
    server.set_faults(testbed::Faults { bytes_per_second: Some(600_000), ..testbed::Faults::default() });
    machine.sh("rustiot update install --hold activate --no-wait")?;
    let share = |n: u64| begun + promised * n / 8;
    for n in 1..8 {
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
    ensure!(fetched * 100 <= promised * 105, "{fetched} bytes came for {promised}");
    ctx.figures.note("promised_bytes", promised);
    ctx.figures.note("fetched_bytes", fetched);
    let before = machine.boot()?;
    machine.run("rustiot update hold none", COMMAND)?;
    machine.wait_next_healthy(&before)?;
    ensure!(machine.version()? == NOISY.version, "runs {}", machine.version()?);
    Ok(())
}
