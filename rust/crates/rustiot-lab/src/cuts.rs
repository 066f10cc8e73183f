//! Power cuts at chosen instants of an update, with the volatile write cache of a real medium: one
//! update is recorded, then the disk is rebuilt as of many instants and each is booted.

use crate::ctx::Ctx;
use crate::device::Device;
use crate::fixtures::{A, B};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use testbed::writelog::{Random, WriteLog, apply};
use testbed::{Disk, FileServer, Off};

/// Between two looks at the firmware's variables while an update is recorded.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A recorded update: everything that the disk and the firmware's variables went through.
pub struct Recording {
    base: PathBuf,
    log_path: PathBuf,
    log: WriteLog,
    /// The variables and the log's length (bytes) between which two they were written.
    vars: Vec<Vars>,
    /// The bundles, at the address that the device was told.
    _server: FileServer,
}

/// One content of the firmware's variables.
struct Vars {
    /// They were older when the log had this many bytes …
    from: u64,
    /// … and no older when it had these.
    to: u64,
    content: Vec<u8>,
}

/// One cut and what became of the device.
#[derive(Debug, Clone, Serialize)]
pub struct Cut {
    /// Writes that were completed before the power went.
    pub after_writes: usize,
    /// What chose the fate of unflushed ones.
    pub seed: u64,
    /// The slot that the device came up in.
    pub slot: String,
    /// Its version.
    pub version: String,
    /// What is wrong with it, if anything.
    pub problem: Option<String>,
}

impl Recording {
    /// Installs B on a healthy machine with A and records it until B is committed.
    pub fn make(ctx: &Ctx) -> Result<Self> {
        let server = ctx.serve(&[&B])?;
        let machine = ctx.healthy_logged()?;
        let (dir, before) = (machine.dir().to_path_buf(), machine.boot()?);
        let (log_path, vars_path) = (dir.join("writes.log"), dir.join("vars.fd"));
        let base = ctx.dir().join("before.raw");
        let snapshot = ctx.fixtures.healthy(ctx.lab, ctx.board)?;
        flatten(ctx, &snapshot.disk(), &base)?;
        let done = AtomicBool::new(false);
        let (vars, end) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch_vars(&vars_path, &log_path, &done));
            let update = || -> Result<()> {
                let output = machine.install(&server.guest_url("b.raucb"))?;
                ensure!(output.ok(), "the recorded install failed: {}{}", output.stdout, output.stderr);
                machine.wait_next_healthy(&before)?;
                machine.wait_settled()?;
                Ok(())
            };
            let end = update();
            done.store(true, Ordering::Relaxed);
            (watcher.join(), end)
        });
        end?;
        let Ok(vars) = vars else { bail!("the watcher of the firmware's variables panicked") };
        drop(machine.power_cut());
        let log = WriteLog::open(&log_path)?;
        ensure!(log.entries().iter().any(|entry| entry.flush), "the device never flushed its disk");
        Ok(Recording { base, log_path, log, vars, _server: server })
    }

    /// How many writes there were: cuts fall after 0 to this many.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Whether nothing was written at all.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// The machine as it is when the power comes back after a cut.
    pub fn cut(&self, ctx: &Ctx, after_writes: usize, seed: u64) -> Result<Off> {
        let dir = ctx.machine_dir()?;
        let image = dir.file("cut.raw");
        flatten(ctx, &self.base, &image)?;
        apply(&self.log.cut(after_writes, seed), &self.log_path, &image)?;
        let disk = Disk::overlay(&ctx.lab.tools(), &image, &dir.file("disk.qcow2"), None)?;
        let off = Off::new(ctx.lab.spec(ctx.board)?, disk, dir)?;
        if let Some(content) = self.vars_at(after_writes, seed) {
            std::fs::write(off.vars(), content).context("cannot set the firmware's variables")?;
        }
        Ok(off)
    }

    /// The variables as of an instant; where two are possible the seed chooses.
    fn vars_at(&self, after_writes: usize, seed: u64) -> Option<&[u8]> {
        let later = self.log.entries().get(after_writes..).unwrap_or_default();
        let at = later.iter().find_map(|entry| entry.data).unwrap_or(u64::MAX);
        let mut random = Random(seed);
        let there = |vars: &&Vars| at >= vars.to || (at > vars.from && random.next().is_multiple_of(2));
        self.vars.iter().take_while(there).last().or(self.vars.first()).map(|vars| &*vars.content)
    }

    /// Cuts the power, lets it come back and says what became of the device: it has to become
    /// healthy by itself, as wholly A or wholly B.
    pub fn try_cut(&self, ctx: &Ctx, after_writes: usize, seed: u64) -> Cut {
        let mut cut = Cut { after_writes, seed, slot: "?".into(), version: "?".into(), problem: None };
        let mut attempt = || -> Result<()> {
            let machine = self.cut(ctx, after_writes, seed)?.power_on()?;
            let boot = machine.wait_healthy()?;
            cut.slot = boot.slot.to_string();
            cut.version = machine.version()?;
            ensure!([A.version, B.version].contains(&&*cut.version), "an unknown version");
            let expected = if boot.slot.letter() == "a" { A.version } else { B.version };
            ensure!(cut.version == expected, "slot {} runs {}", cut.slot, cut.version);
            ensure!(boot.kind != "rescue", "it is in rescue: {}", boot.raw);
            // Every block of the running root is what was signed.
            machine.sh("cat $(findmnt -n -o SOURCE /) > /dev/null")?;
            Ok(())
        };
        cut.problem = attempt().err().map(|error| format!("{error:#}"));
        cut
    }

    /// Tries all of `instants`, `workers` machines at once; `told` hears of each end as it comes.
    pub fn try_all(
        &self,
        ctx: &Ctx,
        instants: &[(usize, u64)],
        workers: usize,
        told: &(dyn Fn(usize, &Cut) + Sync),
    ) -> Vec<Cut> {
        let (next, cuts) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..workers.max(1) {
                scope.spawn(|| {
                    while let Some(&(after, seed)) = instants.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let cut = self.try_cut(ctx, after, seed);
                        let mut cuts = cuts.lock().unwrap_or_else(PoisonError::into_inner);
                        cuts.push(cut.clone());
                        told(cuts.len(), &cut);
                    }
                });
            }
        });
        cuts.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// `runs` instants, spread over the whole update by `seed`.
    pub fn instants(&self, runs: usize, seed: u64) -> Vec<(usize, u64)> {
        let mut random = Random(seed);
        (0..runs).map(|_| (random.below(self.len().saturating_add(1)), random.next())).collect()
    }
}

fn flatten(ctx: &Ctx, from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    ctx.lab.tools().run("qemu-img", &["convert", "-O", "raw", &from, &to])?;
    Ok(())
}

/// Notes each content of the variables' file, and how long the log was around the change.
fn watch_vars(vars: &Path, log: &Path, done: &AtomicBool) -> Vec<Vars> {
    let length = || std::fs::metadata(log).map_or(0, |meta| meta.len());
    let mut seen: Vec<Vars> = Vec::new();
    let mut before = 0;
    loop {
        let last = done.load(Ordering::Relaxed);
        let content = std::fs::read(vars).unwrap_or_default();
        let now = length();
        if !content.is_empty() && seen.last().is_none_or(|old| old.content != content) {
            seen.push(Vars { from: before, to: now, content });
        }
        before = now;
        if last {
            return seen;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
