//! A release that fails its trial, in every way that we can think of: the old slot comes back by
//! itself, after one boot and at most one watchdog period, and says why.

use crate::ctx::{Ctx, Figures};
use crate::device::{BootInfo, Device, HEALTHY};
use crate::fixtures::{B, File, Release};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, ensure};
use rustiot_boot::{Record, ResetReason};
use testbed::Machine;

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "falls_back_when_the_kernel_panics",
        boards: &[],
        promise: "A release whose kernel panics is left after one boot, rejected, with the panic's last lines.",
        tags: &[Tag::QuickOnFirst],
        run: falls_back_when_the_kernel_panics,
    },
    LabTest {
        name: "falls_back_when_init_is_missing",
        boards: &[],
        promise: "A release that never reaches its init is left after one boot, and counted.",
        tags: &[Tag::QuickOnFirst],
        run: falls_back_when_init_is_missing,
    },
    LabTest {
        name: "falls_back_when_the_kernel_hangs",
        boards: &[],
        promise: "A kernel that spins with interrupts off is reset by the hardware watchdog, once.",
        tags: &[Tag::QuickOnFirst],
        run: falls_back_when_the_kernel_hangs,
    },
    LabTest {
        name: "falls_back_when_the_initramfs_hangs",
        boards: &[],
        promise: "An init that hangs is fed only until its deadline; then the watchdog resets, once.",
        tags: &[Tag::QuickOnFirst],
        run: falls_back_when_the_initramfs_hangs,
    },
    LabTest {
        name: "falls_back_when_the_boot_hangs_before_multi_user",
        boards: &[],
        promise: "A unit that never finishes cannot keep a trial open beyond its deadline.",
        tags: &[Tag::QuickOnFirst],
        run: falls_back_when_the_boot_hangs_before_multi_user,
    },
    LabTest {
        name: "falls_back_when_the_kernel_hangs_before_init",
        boards: &[],
        promise: "A kernel that hangs before anything of ours runs is reset by the watchdog that the loader armed, once.",
        tags: &[Tag::QuickOnFirst],
        run: falls_back_when_the_kernel_hangs_before_init,
    },
    LabTest {
        name: "falls_back_when_the_system_hangs_after_it_was_healthy",
        boards: &[],
        promise: "A release that hangs in its soak, with all services running, is not committed.",
        tags: &[Tag::QuickOnFirst],
        run: falls_back_when_the_system_hangs_after_it_was_healthy,
    },
    LabTest {
        name: "falls_back_when_a_required_service_is_broken",
        boards: &[],
        promise: "A release with a broken required service is left as soon as the service has failed for good, and never taken again by itself; a newer one is.",
        tags: &[Tag::QuickOnFirst],
        run: falls_back_when_a_required_service_is_broken,
    },
    LabTest {
        name: "falls_back_when_the_new_release_reboots_again_and_again",
        boards: &[],
        promise: "Clean reboots in the trial window are no success.",
        tags: &[],
        run: falls_back_when_the_new_release_reboots_again_and_again,
    },
    LabTest {
        name: "does_not_commit_when_the_gate_is_deleted",
        boards: &[],
        promise: "A release without a health gate is not committed, whatever it says of itself.",
        tags: &[Tag::QuickOnFirst],
        run: does_not_commit_when_the_gate_is_deleted,
    },
];

/// Runs as soon as file systems are there, before anything that the gate waits for.
const PANICS: Release = Release {
    files: &[
        File::Text(
            "usr/lib/systemd/system/bad.service",
            "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\n\
             ExecStart=/bin/sh -c 'echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger'\n",
        ),
        File::Link("usr/lib/systemd/system/sysinit.target.wants/bad.service", "../bad.service"),
    ],
    ..Release::new("panics", "1.2.0")
};

const NO_INIT: Release = Release { no_init: true, ..Release::new("no-init", "1.2.1") };

const INIT_HANGS: Release =
    Release { cmdline: &["rustiot.fault=init-hang"], ..Release::new("init-hangs", "1.2.2") };

const NEVER_UP: Release = Release {
    files: &[
        File::Text(
            "usr/lib/systemd/system/bad.service",
            "[Unit]\nBefore=multi-user.target\n[Service]\nType=oneshot\nTimeoutStartSec=infinity\n\
             ExecStart=/bin/sleep infinity\n",
        ),
        File::Link("usr/lib/systemd/system/multi-user.target.requires/bad.service", "../bad.service"),
    ],
    ..Release::new("never-up", "1.2.3")
};

pub(super) const BROKEN_SERVICE: Release = Release {
    files: &[
        File::Text(
            "usr/lib/systemd/system/ssh.service.d/broken.conf",
            "[Service]\nExecStartPre=\nExecStart=\nExecStart=/bin/false\nRestart=no\n",
        ),
        File::Link("usr/lib/systemd/system/rustiot-required.target.wants/ssh.service", "../ssh.service"),
    ],
    ..Release::new("broken-service", "1.2.4")
};

const REBOOTS: Release = Release {
    files: &[
        File::Text(
            "usr/lib/systemd/system/bad.service",
            "[Unit]\nAfter=sysinit.target\n[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl reboot\n",
        ),
        File::Link("usr/lib/systemd/system/sysinit.target.wants/bad.service", "../bad.service"),
    ],
    ..Release::new("reboots", "1.2.5")
};

const NO_GATE: Release = Release {
    files: &[File::Link("usr/lib/systemd/system/rustiot-health.service", "/dev/null")],
    ..Release::new("no-gate", "1.2.6")
};

/// A machine that is about to try a release.
struct Trial {
    machine: Machine,
    before: BootInfo,
    number: u64,
    /// In QEMU's events: all that come after it belong to the trial.
    mark: usize,
    figures: Figures,
}

impl Trial {
    /// Installs `release` on a healthy machine; the reboot into it is under way when this returns.
    fn start(ctx: &Ctx, release: &Release) -> Result<Self> {
        Self::install(ctx, ctx.healthy()?, release)
    }

    /// The same with another value of a key of `[health]`.
    fn start_with(ctx: &Ctx, (key, value): (&str, &str), release: &Release) -> Result<Self> {
        let machine = ctx.healthy()?;
        set_health(&machine, key, value)?;
        Self::install(ctx, machine, release)
    }

    fn install(ctx: &Ctx, machine: Machine, release: &Release) -> Result<Self> {
        let server = ctx.serve(&[release])?;
        let url = server.guest_url(&format!("{}.raucb", release.name));
        Self::begin(ctx, machine, |machine| {
            let output = machine.install(&url)?;
            ensure!(
                output.ok(),
                "the install ended with {}: {}{}",
                output.status,
                output.stdout,
                output.stderr
            );
            Ok(())
        })
    }

    /// The same with the good release B and a machine that has installed it already.
    fn start_b(ctx: &Ctx) -> Result<Self> {
        Self::reboot(ctx, ctx.installed()?)
    }

    /// Restarts `machine` into the release that it has installed.
    fn reboot(ctx: &Ctx, machine: Machine) -> Result<Self> {
        Self::begin(ctx, machine, |machine| Ok(machine.start("rustiot update reboot", crate::COMMAND)?))
    }

    fn begin(ctx: &Ctx, machine: Machine, go: impl FnOnce(&Machine) -> Result<()>) -> Result<Self> {
        let before = machine.boot()?;
        let number =
            machine.ledger()?.last_boot().map(|boot| boot.number).context("no boot in the ledger")?;
        let mark = machine.mark();
        go(&machine)?;
        Ok(Trial { machine, before, number, mark, figures: ctx.figures.clone() })
    }

    /// Waits for the old slot to be back and healthy; what the ledger says then.
    fn back(&self) -> Result<Record> {
        self.machine.wait_until("the old slot to be back", HEALTHY, &mut |machine| {
            let boot = machine.boot()?;
            let healthy = "systemctl is-active --quiet boot-complete.target";
            Ok(boot.boot_id != self.before.boot_id
                && boot.slot == self.before.slot
                && machine.run(healthy, crate::COMMAND)?.ok())
        })?;
        self.count();
        let record = self.machine.ledger()?;
        ensure!(record.committed == self.before.slot, "slot {} was committed", record.committed);
        Ok(record)
    }

    /// Notes what the way back took, as QEMU saw it: the first reset leads into the trial, each further one out of a
    /// boot that failed.
    fn count(&self) {
        let events = self.machine.events(self.mark);
        let resets: Vec<_> = events.iter().filter(|event| event.name == "RESET").collect();
        let fired = events.iter().filter(|event| event.name == "WATCHDOG").count();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.figures.note("failed_boots", count(resets.len().saturating_sub(1)));
        self.figures.note("watchdog_periods", count(fired));
        if let (Some(into), Some(out)) = (resets.first(), resets.last()) {
            self.figures.note("seconds", out.at.saturating_sub(into.at).as_secs());
        }
    }

    /// The old slot is back after the one failed boot, which left `reset` behind; boots that
    /// reached the ledger, and watchdog resets, are counted.
    fn back_after(&self, reset: &[ResetReason], failed_boots: u64, resets: usize) -> Result<Record> {
        let record = self.back()?;
        let last = record.last_boot().context("no boot in the ledger")?;
        ensure!(reset.contains(&last.reset), "the boot before ended by {:?}", last.reset);
        let boots = last.number.saturating_sub(self.number);
        ensure!(boots == failed_boots.saturating_add(1), "{boots} boots until the old slot was back");
        let fired = self.machine.watchdog_resets();
        ensure!(fired == resets, "the watchdog fired {fired} times: {:?}", self.machine.events(self.mark));
        Ok(record)
    }
}

/// Gives `key` of `[health]` another value in the configuration of `machine`. It counts from the next boot on.
pub(super) fn set_health(machine: &Machine, key: &str, value: &str) -> Result<()> {
    machine.sh(&format!(
        "mount -o remount,rw /config && sed -i 's/^{key} = .*/{key} = \"{value}\"/' /config/rustiot.toml && \
         grep -q '^{key} = \"{value}\"' /config/rustiot.toml && mount -o remount,ro /config"
    ))?;
    Ok(())
}

/// The release is rejected for a reason with `words` in it.
fn rejected(record: &Record, release: &Release, words: &str) -> Result<()> {
    let rejection = record
        .rejected
        .iter()
        .find(|rejection| rejection.release.version == release.version)
        .with_context(|| format!("{} is not rejected: {record:?}", release.name))?;
    let reason = rejection.reason.to_lowercase();
    ensure!(reason.contains(words), "rejected because: {reason}");
    Ok(())
}

fn falls_back_when_the_kernel_panics(ctx: &mut Ctx) -> Result<()> {
    let trial = Trial::start(ctx, &PANICS)?;
    let record = trial.back_after(&[ResetReason::Panic], 1, 0)?;
    rejected(&record, &PANICS, "panic")?;
    let tail = &record.last_boot().context("no boot")?.pstore_tail;
    ensure!(tail.iter().any(|line| line.contains("sysrq")), "the panic's lines are not kept: {tail:?}");
    Ok(())
}

fn falls_back_when_init_is_missing(ctx: &mut Ctx) -> Result<()> {
    let trial = Trial::start(ctx, &NO_INIT)?;
    // No init, no entry in the history: only the old slot's own boot is counted.
    let record = trial.back_after(
        &[ResetReason::Clean, ResetReason::Panic, ResetReason::Power, ResetReason::Watchdog],
        0,
        0,
    )?;
    let attempts = record.phase.transaction().map(|transaction| transaction.attempts);
    ensure!(
        attempts == Some(1) || !record.rejected.is_empty(),
        "the attempt is not counted: {:?}",
        record.phase
    );
    Ok(())
}

fn falls_back_when_the_kernel_hangs(ctx: &mut Ctx) -> Result<()> {
    let trial = Trial::start_b(ctx)?;
    trial.machine.console().expect("rustiot-init: .*kind=trial", HEALTHY)?;
    trial.machine.hang(HEALTHY)?;
    let record = trial.back_after(&[ResetReason::Watchdog], 1, 1)?;
    rejected(&record, &B, "watchdog")
}

fn falls_back_when_the_kernel_hangs_before_init(ctx: &mut Ctx) -> Result<()> {
    let trial = Trial::start_b(ctx)?;
    // The loader's last words. A hang waits until the processors are in the kernel, which they are for seconds before
    // there is an init.
    trial.machine.console().expect("RustIoT guard: watchdog armed|Starting kernel", HEALTHY)?;
    trial.machine.hang(HEALTHY)?;
    // Nobody was there to write an entry of the history.
    let record = trial.back_after(&[ResetReason::Watchdog], 0, 1)?;
    rejected(&record, &B, "watchdog")
}

fn falls_back_when_the_initramfs_hangs(ctx: &mut Ctx) -> Result<()> {
    let trial = Trial::start(ctx, &INIT_HANGS)?;
    // It hangs before it has the state partition: no entry in the history.
    let record = trial.back_after(&[ResetReason::Watchdog], 0, 1)?;
    rejected(&record, &INIT_HANGS, "watchdog")
}

fn falls_back_when_the_boot_hangs_before_multi_user(ctx: &mut Ctx) -> Result<()> {
    // It never gets healthy: nothing is lost by a deadline that a slow workstation may miss.
    let trial = Trial::start_with(ctx, ("deadline", "30s"), &NEVER_UP)?;
    let record = trial.back_after(&[ResetReason::Clean, ResetReason::Power, ResetReason::Watchdog], 1, 0)?;
    rejected(&record, &NEVER_UP, "multi-user.target")
}

fn falls_back_when_the_system_hangs_after_it_was_healthy(ctx: &mut Ctx) -> Result<()> {
    // A soak longer than the test takes, so that the hang comes in it.
    let machine = ctx.installed()?;
    set_health(&machine, "soak", "1h")?;
    let trial = Trial::reboot(ctx, machine)?;
    trial.machine.wait_until("the trial to be healthy", HEALTHY, &mut |machine| {
        let boot = machine.boot()?;
        let gate = "systemctl is-active --quiet boot-complete.target";
        Ok(boot.kind == "trial" && machine.run(gate, crate::COMMAND)?.ok())
    })?;
    trial.machine.hang(HEALTHY)?;
    let record = trial.back_after(&[ResetReason::Watchdog], 1, 1)?;
    rejected(&record, &B, "watchdog")
}

fn falls_back_when_a_required_service_is_broken(ctx: &mut Ctx) -> Result<()> {
    let trial = Trial::start(ctx, &BROKEN_SERVICE)?;
    let record = trial.back_after(&[ResetReason::Clean], 1, 0)?;
    // At once, not at the deadline: the unit has failed for good.
    rejected(&record, &BROKEN_SERVICE, "cannot become healthy: units: ssh.service is failed")?;
    // The same again is refused, with the memory of why; a newer one is taken.
    let server = ctx.serve(&[&BROKEN_SERVICE, &B])?;
    let again = trial.machine.install(&server.guest_url("broken-service.raucb"))?;
    ensure!(again.status == 3, "the bad release was not refused: {} {}", again.status, again.stderr);
    ensure!(again.stderr.contains("ssh"), "the refusal does not say why: {}", again.stderr);
    if ctx.short {
        // That newer ones are taken, many other tests see.
        return Ok(());
    }
    let before = trial.machine.boot()?;
    let newer = trial.machine.install(&server.guest_url("b.raucb"))?;
    ensure!(newer.ok(), "the newer release was refused: {}", newer.stderr);
    trial.machine.wait_next_healthy(&before)?;
    ensure!(trial.machine.version()? == B.version, "runs {}", trial.machine.version()?);
    trial.machine.wait_settled()?;
    Ok(())
}

fn falls_back_when_the_new_release_reboots_again_and_again(ctx: &mut Ctx) -> Result<()> {
    let trial = Trial::start(ctx, &REBOOTS)?;
    let record = trial.back_after(&[ResetReason::Clean], 1, 0)?;
    let attempts = record.phase.transaction().map(|transaction| transaction.attempts);
    ensure!(attempts == Some(1), "the attempt is not counted: {:?}", record.phase);
    // It is tried again by itself, and given up after the last attempt.
    trial.machine.wait_until("the release to be rejected", HEALTHY.saturating_mul(2), &mut |machine| {
        Ok(!machine.ledger()?.rejected.is_empty())
    })?;
    let record = trial.back()?;
    rejected(&record, &REBOOTS, "rebooted before it was committed")?;
    Ok(())
}

fn does_not_commit_when_the_gate_is_deleted(ctx: &mut Ctx) -> Result<()> {
    let trial = Trial::start_with(ctx, ("deadline", "60s"), &NO_GATE)?;
    trial
        .machine
        .wait_until("the trial to be up", HEALTHY, &mut |machine| Ok(machine.boot()?.kind == "trial"))?;
    // RAUC's own mark-good is refused too: no evidence, no commit.
    let marked = trial.machine.run("rauc status mark-good", crate::COMMAND)?;
    ensure!(!marked.ok(), "RAUC marked a release good that no gate has seen");
    let record = trial.back()?;
    rejected(&record, &NO_GATE, "trial was not committed within")
}
