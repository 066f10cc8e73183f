//! Releases from hawkBit: a device takes what a server of ours deploys to it, and the server hears the truth, in order.

use super::add_configuration;
use super::trials::{BROKEN_SERVICE, set_health};
use crate::ctx::Ctx;
use crate::device::{Device, HEALTHY};
use crate::fixtures::{A, B, Release};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, ensure};
use rustiot_hawkbit_server::Running;
use serde_json::Value;
use testbed::Machine;

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "hawkbit_hears_of_success_after_the_commit",
        boards: &[],
        promise: "A release that hawkBit deploys is fetched, installed and tried; hawkBit hears of each step in its order, and of success after the commit and not before.",
        tags: &[Tag::QuickOnFirst],
        run: hawkbit_hears_of_success_after_the_commit,
    },
    LabTest {
        name: "hawkbit_hears_why_a_bad_release_was_left",
        boards: &[],
        promise: "A bad release from hawkBit is left, and hawkBit hears of the failure and its reason once the old release is back.",
        tags: &[Tag::QuickOnFirst],
        run: hawkbit_hears_why_a_bad_release_was_left,
    },
];

const NAME: &str = "lab-device";
const TOKEN: &str = "5c1c0b3a1e8f4bd3a6a0";

/// What hawkBit hears on the way at least, in this order: phases that last. One that is over within a second need not be
/// seen.
const STEPS: &[&str] = &["RAUC is writing", "restarts into"];

/// A device whose releases come from a hawkBit, and a deployment to it.
struct Deployment {
    hawkbit: Running,
    machine: Machine,
    action: u64,
}

impl Deployment {
    /// hawkBit deploys `release` to a healthy device. The trial soaks for long enough to be asked about often.
    fn begin(ctx: &Ctx, release: &Release) -> Result<Self> {
        let bundle = std::fs::read(ctx.bundle(release)?).context("cannot read the bundle")?;
        let hawkbit = Running::start().context("no hawkBit")?;
        let action = {
            let mut world = hawkbit.world();
            world.sleep = Some("00:00:10".into());
            world.knows(NAME, TOKEN);
            let set = world.add_bundle(release.version, &bundle);
            world.assign(NAME, set, "forced", None)
        };
        let machine = ctx.healthy()?;
        set_health(&machine, "soak", "2m")?;
        machine.sh(&format!(
            "mount -o remount,rw /config && echo {TOKEN} > /config/hawkbit.token && sync && mount -o remount,ro /config"
        ))?;
        let url = hawkbit.guest_url();
        add_configuration(
            &machine,
            &format!(
                "[update.hawkbit]\nurl = \"{url}\"\nallow_http = true\ncontroller = \"{NAME}\"\n\
                 target_token_file = \"/config/hawkbit.token\"\nprogress_per_minute = 60\n"
            ),
        )?;
        Ok(Deployment { hawkbit, machine, action })
    }

    /// The reports so far: `execution`, `finished` and the lines, oldest first.
    fn reports(&self) -> Vec<(String, String, Vec<String>)> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let world = self.hawkbit.world();
        let reports = world.feedback.iter().map(|body| {
            let lines = body.pointer("/status/details").and_then(Value::as_array).into_iter().flatten();
            (
                text(body.pointer("/status/execution")),
                text(body.pointer("/status/result/finished")),
                lines.map(|line| text(Some(line))).collect(),
            )
        });
        reports.collect()
    }

    fn closed(&self) -> bool {
        self.reports().iter().any(|(execution, ..)| execution == "closed")
    }

    fn requests(&self) -> usize {
        self.hawkbit.world().log.len()
    }

    /// Waits until hawkBit has the last word. `may` says of the device whether that may have come; it is asked again
    /// and again, and a word that came earlier is an error.
    fn end(&self, may: impl Fn(&Machine) -> Result<bool>) -> Result<()> {
        let mut too_early = None;
        self.machine.wait_until("the last word at hawkBit", HEALTHY.saturating_mul(2), &mut |machine| {
            // The reports first: what is there now must have been allowed before the device is asked.
            let closed = self.closed();
            let allowed = may(machine)?;
            if closed && !allowed {
                too_early = Some(machine.ledger()?);
            }
            Ok(closed || too_early.is_some())
        })?;
        ensure!(too_early.is_none(), "reported too early: {too_early:?}; {:?}", self.reports());
        Ok(())
    }

    /// The last word is one, it is the last, and what came before it came in the order of `steps`; the last word's
    /// lines.
    fn told(&self, finished: &str, steps: &[&str]) -> Result<Vec<String>> {
        let reports = self.reports();
        let (last, before) = reports.split_last().context("no report")?;
        ensure!((last.0.as_str(), last.1.as_str()) == ("closed", finished), "the last word: {last:?}");
        for (execution, finished, _) in before {
            ensure!(execution == "proceeding" && finished == "none", "before the end: {reports:?}");
        }
        let mut lines = before.iter().flat_map(|(.., lines)| lines);
        for step in steps {
            ensure!(lines.any(|line| line.contains(step)), "no {step:?} in its place: {reports:#?}");
        }
        Ok(last.2.clone())
    }
}

fn hawkbit_hears_of_success_after_the_commit(ctx: &mut Ctx) -> Result<()> {
    let deployment = Deployment::begin(ctx, &B)?;
    let requests = std::cell::Cell::new((None, 0));
    deployment.end(|machine| {
        let (boot, record) = (machine.boot()?, machine.ledger()?);
        let committed = record.phase.name() == "idle" && record.committed == boot.slot;
        if boot.kind == "trial" && !committed {
            let now = deployment.requests();
            requests.set((requests.get().0.or(Some(now)), now));
        }
        Ok(boot.kind == "trial" && committed)
    })?;
    let (first, last) = requests.get();
    let in_trial = last.saturating_sub(first.context("nobody saw the trial")?);
    ensure!(in_trial > 0, "no request in the trial: the order of the reports means nothing");
    let said = deployment.told("success", STEPS)?;
    ensure!(said == [format!("Release {} runs and is committed.", B.version)], "the last word: {said:?}");
    ensure!(deployment.hawkbit.status(deployment.action) == "finished", "not finished at hawkBit");
    ensure!(deployment.machine.version()? == B.version, "runs {}", deployment.machine.version()?);
    let known = deployment.hawkbit.world().targets.get(NAME).map(|target| target.attributes.clone());
    let board = known.as_ref().and_then(|known| known.get("board"));
    ensure!(board == Some(&ctx.board.compatible), "hawkBit does not know what it has before it: {known:?}");
    let journal = deployment.machine.sh("journalctl --no-pager -u rustiot-update")?;
    ensure!(!journal.contains(TOKEN), "the token is in the journal");
    ctx.figures.note("requests_in_trial", u64::try_from(in_trial).unwrap_or(u64::MAX));
    Ok(())
}

fn hawkbit_hears_why_a_bad_release_was_left(ctx: &mut Ctx) -> Result<()> {
    let deployment = Deployment::begin(ctx, &BROKEN_SERVICE)?;
    let before = deployment.machine.boot()?;
    deployment.end(|machine| {
        let boot = machine.boot()?;
        Ok(boot.slot == before.slot && boot.boot_id != before.boot_id)
    })?;
    let said = deployment.told("failure", STEPS)?;
    let first = said.first().map(String::as_str).unwrap_or_default();
    ensure!(first.starts_with("fell-back") && first.contains("ssh.service"), "the reason: {said:?}");
    ensure!(deployment.hawkbit.status(deployment.action) == "error", "no failure at hawkBit");
    ensure!(deployment.machine.version()? == A.version, "runs {}", deployment.machine.version()?);
    let rejected = deployment.machine.ledger()?.rejected;
    ensure!(
        rejected.iter().any(|r| r.release.version == BROKEN_SERVICE.version),
        "not rejected: {rejected:?}"
    );
    Ok(())
}
