//! The order of the steps, and what is done with how they end.
//!
//! A step that fails stops no other one: what can be reached is reached. Every start runs all of them; each finds
//! out by itself whether there is anything to do.

use crate::journal::Journal;
use crate::os::{Disk, Os};
use crate::status::{Outcome, STATUS, Status, Step};
use crate::storage::Result;
use crate::{apply, identity, storage};
use std::path::Path;
use std::time::Instant;

/// Runs steps and keeps the status file.
struct Runner<'a, O> {
    os: &'a O,
    status: Status,
}

impl<'a, O: Os> Runner<'a, O> {
    fn new(os: &'a O) -> Self {
        let known = os.read(Path::new(STATUS), 1 << 20).ok().flatten().unwrap_or_default();
        Self { os, status: serde_json::from_slice(&known).unwrap_or_default() }
    }

    fn step(&mut self, name: &str, run: impl FnOnce(&O, &mut Status) -> Result) {
        let start = Instant::now();
        let (outcome, detail) = run(self.os, &mut self.status);
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.status.record(Step { name: name.into(), outcome, detail, ms });
    }

    /// A blank state beside a data that is in use was not always blank.
    fn notice_a_lost_state(&mut self) {
        let outcome =
            |name: &str| self.status.steps.iter().find(|step| step.name == name).map(|step| step.outcome);
        let lost = outcome("state") == Some(Outcome::Done) && outcome("data") == Some(Outcome::Unchanged);
        let state = self.status.steps.iter_mut().find(|step| step.name == "state");
        if let Some(state) = state.filter(|step| lost && step.detail == storage::MADE) {
            state.outcome = Outcome::Degraded;
            state.detail = "it was blank, though data is in use: made anew, its content is lost".into();
            self.status.ok = false;
        }
    }

    fn finish(self) -> Status {
        let text = serde_json::to_string(&self.status).unwrap_or_default();
        let wrote = self
            .os
            .make_dir(Path::new("/run/rustiot"), 0o755)
            .and_then(|()| self.os.write(Path::new(STATUS), text.as_bytes(), 0o644, false));
        let mut status = self.status;
        if let Err(error) = wrote {
            let detail = format!("{STATUS} cannot be written: {error}");
            status.record(Step { name: "status".into(), outcome: Outcome::Failed, detail, ms: 0 });
        }
        status
    }
}

/// When the disk cannot be found there are no partitions: everything falls back to memory, and says why.
fn disk(os: &impl Os) -> (Disk, Result) {
    match os.disk() {
        Ok(disk) => (disk, (Outcome::Unchanged, String::new())),
        Err(error) => {
            let none = Disk { device: String::new(), bytes: 0, sector: 512, partitions: Vec::new() };
            (none, (Outcome::Failed, format!("the disk that the system runs from cannot be found: {error}")))
        }
    }
}

/// Before the network, before the journal is kept: file systems, identity, configuration.
pub(crate) fn early(os: &impl Os) -> Status {
    let mut runner = Runner::new(os);
    let (mut system, found) = disk(os);
    runner.step("disk", |_, _| found);
    runner.step("state", |os, _| storage::file_system(os, &system, "state"));

    let mut journal = Journal::load(os);
    if system.partition("data").is_some() {
        runner.step("partition", |os, _| storage::grow_table(os, &system, &mut journal));
        // The partition may have another length now.
        system = os.disk().unwrap_or(system);
    }
    runner.step("data", |os, _| storage::file_system(os, &system, "data"));
    runner.notice_a_lost_state();
    runner.step("config", |os, _| storage::config(os, &system));
    runner.step("var", |os, _| storage::var(os));

    runner.step("machine-id", |os, _| identity::machine_id(os));
    runner.step("device-key", |os, _| identity::device_key(os));
    runner.step("ssh-host-key", |os, _| identity::ssh_host_key(os));
    runner.step("ledger", |os, _| match os.ensure_ledger() {
        Ok(None) => (Outcome::Unchanged, String::new()),
        Ok(Some(what)) => (Outcome::Done, what),
        Err(why) => (Outcome::Failed, why),
    });
    let name = hostname(&mut runner);
    runner.step("configuration", |os, status| {
        let (result, changed) = apply::configuration(os, &name, status);
        tell_journald(os, &changed);
        result
    });
    runner.finish()
}

fn hostname<O: Os>(runner: &mut Runner<'_, O>) -> String {
    let mut name = String::new();
    runner.step("hostname", |os, _| {
        let (known, result) = identity::hostname(os);
        name = known;
        result
    });
    name
}

/// The journal runs already, with the image's limits; it reads other ones when it starts again.
fn tell_journald(os: &impl Os, changed: &apply::Changed) {
    const OURS: &str = "/run/systemd/journald.conf.d/50-rustiot.conf";
    const IMAGE: &str = "/usr/lib/systemd/journald.conf.d/50-rustiot.conf";
    let lines = |path: &str| -> Vec<String> {
        let bytes = os.read(Path::new(path), 1 << 16).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    if changed.within("systemd/journald.conf.d") && lines(OURS) != lines(IMAGE) {
        // A limit that takes effect one start later is no reason to call this start failed.
        let _ = os.run("systemctl", &["--no-block", "try-restart", "systemd-journald.service"]);
    }
}

/// When the system is up: what takes its time.
pub(crate) fn late(os: &impl Os) -> Status {
    let mut runner = Runner::new(os);
    let (system, found) = disk(os);
    runner.step("disk", |_, _| found);
    let mut journal = Journal::load(os);
    runner.step("data-size", |os, _| storage::grow_data(os, &system, &mut journal));
    runner.step("first-boot", |os, status| {
        if journal.first_boot_done {
            return (Outcome::Unchanged, String::new());
        }
        if status.steps.iter().any(|step| step.name != "first-boot" && step.outcome == Outcome::Failed) {
            return (
                Outcome::Degraded,
                "not at its end: steps that failed are tried again on the next start".into(),
            );
        }
        match journal.update(os, |journal| journal.first_boot_done = true) {
            Ok(()) => (Outcome::Done, "the first start has come to its end".into()),
            Err(error) => (Outcome::Failed, format!("the journal cannot be written: {error}")),
        }
    });
    runner.finish()
}

/// At any time: the owner's files again, and who reads what comes of them is told.
pub(crate) fn reapply(os: &impl Os) -> Status {
    let mut runner = Runner::new(os);
    let (system, found) = disk(os);
    runner.step("disk", |_, _| found);
    runner.step("config", |os, _| storage::config(os, &system));
    let name = hostname(&mut runner);
    let mut changed = apply::Changed::default();
    runner.step("configuration", |os, status| {
        let (result, files) = apply::configuration(os, &name, status);
        changed = files;
        result
    });
    runner.step("services", |os, _| {
        let told: [(&str, &str, &[&str]); 4] = [
            ("systemd/network", "networkctl", &["reload"]),
            ("systemd/timesyncd.conf.d", "systemctl", &["try-restart", "systemd-timesyncd.service"]),
            ("systemd/journald.conf.d", "systemctl", &["try-restart", "systemd-journald.service"]),
            ("rustiot/iwd", "systemctl", &["try-restart", "iwd.service"]),
        ];
        let mut problems = Vec::new();
        let mut outcome = Outcome::Unchanged;
        let told = told.into_iter().filter(|(directory, ..)| changed.within(directory));
        // Containers do not notice a restart of their engine. One that is about to end them needs its time.
        let engine: (_, _, &[&str]) =
            ("", "systemctl", &["--no-block", "try-restart", "rustiot-engine.service"]);
        for (_, program, arguments) in told.chain(changed.engine.then_some(engine)) {
            outcome = Outcome::Done;
            match os.run(program, arguments) {
                Ok(ran) if ran.code == Some(0) => {}
                Ok(ran) => problems.push(format!("{program} {}: {}", arguments.join(" "), ran.stderr)),
                Err(error) => problems.push(format!("{program}: {error}")),
            }
        }
        if problems.is_empty() { (outcome, String::new()) } else { (Outcome::Degraded, problems.join("; ")) }
    });
    runner.finish()
}
