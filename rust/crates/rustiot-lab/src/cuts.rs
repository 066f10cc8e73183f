//! Power cuts at chosen instants of an update, of a first boot or of containers' lives, with the volatile write cache of a
//! real medium: one run is recorded, then the disk is rebuilt as of many instants and each is booted.

use crate::containers::{self, Engine, IMAGE, Registry};
use crate::ctx::Ctx;
use crate::device::{BootInfo, COMMAND, Device, HEALTHY};
use crate::fixtures::{A, B, Release};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use testbed::writelog::{Entry, Random, WriteLog, apply};
use testbed::{Disk, FileServer, Machine, Off};

/// Between two looks at the firmware's variables and the log's length while a run is recorded.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A recorded run: everything that the disk and the firmware's variables went through.
pub struct Recording {
    base: PathBuf,
    /// What a machine must be when it is healthy again after a cut.
    whole: Whole,
    /// The roots that may run.
    roots: Vec<Root>,
    log_path: PathBuf,
    log: WriteLog,
    /// When there was how much of it.
    watched: Watched,
    /// Bytes of it that belong to the preparation: no cut falls into them.
    prepared: u64,
    /// The bundles, at the address that the device was told.
    _server: Option<FileServer>,
    /// The same of images.
    registry: Option<Registry>,
}

/// What a machine must be when it is healthy again after a cut.
enum Whole {
    /// Slot a has the old release, slot b the new one; never a mixture.
    OldOrNew,
    /// All that a first boot makes is there.
    Provisioned,
    /// Whatever the engine shows is whole, and all can be done again.
    Containers,
}

/// A release's root in its slot.
struct Root {
    version: &'static str,
    slot: &'static str,
    hash: String,
    /// What was signed.
    image: PathBuf,
    /// Where the slot has it on the disk, bytes.
    at: u64,
}

/// What a recorded run looked like from outside, again and again.
#[derive(Default)]
struct Watched {
    /// The variables and the log's lengths between which they were written.
    vars: Vec<Vars>,
    /// The log's length (bytes) at each look, all looks as far apart in time.
    lengths: Vec<u64>,
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
    /// It was followed until it was healthy; else until its root took over.
    pub healthy: bool,
    /// What is wrong with it, if anything.
    pub problem: Option<String>,
}

impl Recording {
    /// Installs B on a healthy machine with A and records it until B is committed.
    pub fn of_update(ctx: &Ctx) -> Result<Self> {
        let server = ctx.serve(&[&B])?;
        let snapshot = ctx.fixtures.healthy(ctx.lab, ctx.board)?;
        let base = ctx.dir().join("before.raw");
        flatten(ctx, &snapshot.disk(), &base)?;
        let machine = ctx.healthy_logged()?;
        let before = machine.boot()?;
        let update = |machine: &Machine| -> Result<()> {
            let output = machine.install(&server.guest_url("b.raucb"))?;
            ensure!(output.ok(), "the recorded install failed: {}{}", output.stdout, output.stderr);
            machine.wait_next_healthy(&before)?;
            machine.wait_settled()?;
            Ok(())
        };
        let (log_path, log, watched) = record(machine, &update)?;
        let roots = vec![root(ctx, &A, "a")?, root(ctx, &B, "b")?];
        Ok(Recording {
            base,
            whole: Whole::OldOrNew,
            roots,
            log_path,
            log,
            watched,
            prepared: 0,
            _server: Some(server),
            registry: None,
        })
    }

    /// Records a first boot, from the first write to the committed slot.
    pub fn of_first_boot(ctx: &Ctx) -> Result<Self> {
        let base = ctx.fresh_raw()?;
        let machine = ctx.fresh_logged(&base)?.power_on()?;
        let boot = |machine: &Machine| -> Result<()> {
            machine.wait_healthy()?;
            machine.wait_settled()?;
            Ok(())
        };
        let (log_path, log, watched) = record(machine, &boot)?;
        let roots = vec![root(ctx, &A, "a")?];
        Ok(Recording {
            base,
            whole: Whole::Provisioned,
            roots,
            log_path,
            log,
            watched,
            prepared: 0,
            _server: None,
            registry: None,
        })
    }

    /// Loads and pulls images, makes, starts, enters, stops and removes containers and volumes, and collects images on a
    /// healthy machine.
    pub fn of_containers(ctx: &Ctx) -> Result<Self> {
        let snapshot = ctx.fixtures.healthy(ctx.lab, ctx.board)?;
        let base = ctx.dir().join("before.raw");
        flatten(ctx, &snapshot.disk(), &base)?;
        let machine = ctx.healthy_logged()?;
        let archive = std::fs::read(containers::image(ctx)?).context("cannot read the image")?;
        machine.put(ARCHIVE, &archive, COMMAND)?;
        let registry = Registry::start(ctx)?;
        registry.allow(&machine)?;
        machine.sh("sync")?;
        let writes = machine.dir().join("writes.log");
        let prepared = std::fs::metadata(&writes).context("there is no log of writes")?.len();
        let engine = Engine::of(ctx, &machine)?;
        let (log_path, log, watched) = record(machine, &|_| life_of_containers(&engine, ctx, &registry))?;
        let roots = vec![root(ctx, &A, "a")?];
        Ok(Recording {
            base,
            whole: Whole::Containers,
            roots,
            log_path,
            log,
            watched,
            prepared,
            _server: None,
            registry: Some(registry),
        })
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
        self.watched
            .vars
            .iter()
            .take_while(there)
            .last()
            .or(self.watched.vars.first())
            .map(|vars| &*vars.content)
    }

    /// Cuts the power, lets it come back and says what became of the device: by itself it has to run a root that was
    /// signed, of the release that its slot has, and to become healthy where that is waited for.
    pub fn try_cut(&self, ctx: &Ctx, after_writes: usize, seed: u64, healthy: bool) -> Cut {
        let unknown = || "?".to_string();
        let mut cut = Cut { after_writes, seed, slot: unknown(), version: unknown(), healthy, problem: None };
        let mut attempt = || -> Result<()> {
            let off = self.cut(ctx, after_writes, seed)?;
            let dir = off.dir().to_path_buf();
            let disk = File::open(dir.join("cut.raw")).context("cannot open the disk")?;
            let machine = off.power_on()?;
            // Open in the machine, and gone with it: many cuts would fill the disk.
            for disk in ["cut.raw", "disk.qcow2"] {
                std::fs::remove_file(dir.join(disk)).context("cannot remove a disk")?;
            }
            // The end of the initramfs: the policy has decided, state and data are mounted, dm-verity has the root.
            let line = machine
                .console()
                .expect(r"rustiot-init: switch-root kind=\w+ ms=\d+ root=[0-9a-f]{16}", HEALTHY)?;
            ensure!(!line.contains("kind=rescue"), "it is in rescue: {}", machine.console().tail());
            let hash = line.rsplit('=').next().unwrap_or_default();
            let root = self.roots.iter().find(|root| root.hash.starts_with(hash));
            let root = root.with_context(|| format!("nobody has signed the root that runs: {line}"))?;
            (cut.slot, cut.version) = (root.slot.into(), root.version.into());
            let decided = machine.console().text(0);
            let slot = decided.rsplit("rustiot-init: slot=").next().unwrap_or_default();
            ensure!(slot.starts_with(root.slot), "release {} runs in another slot: {line}", root.version);
            ensure!(holds(&disk, root.at, &root.image)?, "the root that runs is not what was signed");
            if !healthy {
                return Ok(());
            }
            let boot = machine.wait_healthy()?;
            ensure!(machine.version()? == root.version, "it runs {}", machine.version()?);
            self.whole(&machine, &boot, root.version)
        };
        cut.problem = attempt().err().map(|error| format!("{error:#}"));
        cut
    }

    fn whole(&self, machine: &Machine, boot: &BootInfo, version: &str) -> Result<()> {
        match (&self.whole, &self.registry) {
            (Whole::OldOrNew, _) => old_or_new(boot, version),
            (Whole::Provisioned, _) => provisioned(machine),
            (Whole::Containers, Some(registry)) => containers_are_whole(machine, registry),
            (Whole::Containers, None) => bail!("there is no registry"),
        }
    }

    /// Tries all of `instants` of a recording of containers' lives as [`Recording::try_cut`] does, but for the machine: it
    /// is one that runs, and gets the data partition as each cut left it on a disk of its own, mounts it as a boot does,
    /// and starts its engine over it. Nothing of that partition has been in the machine before.
    pub fn try_data(
        &self,
        ctx: &Ctx,
        instants: &[(usize, u64)],
        told: &dyn Fn(usize, &Cut),
    ) -> Result<Vec<Cut>> {
        let registry = self.registry.as_ref().context("there is no registry")?;
        let (mut warm, mut cuts) = (None, Vec::new());
        for &(after_writes, seed) in instants {
            let none = || "-".to_string();
            let mut cut =
                Cut { after_writes, seed, slot: none(), version: none(), healthy: false, problem: None };
            let machine = match warm.take() {
                Some(machine) => machine,
                None => warm_machine(ctx, registry)?,
            };
            match self.data_is_whole(ctx, &machine, registry, after_writes, seed) {
                Ok(()) => warm = Some(machine),
                // What it left behind would be taken for the next one's.
                Err(error) => cut.problem = Some(format!("{error:#}")),
            }
            cuts.push(cut.clone());
            told(cuts.len(), &cut);
        }
        Ok(cuts)
    }

    fn data_is_whole(
        &self,
        ctx: &Ctx,
        machine: &Machine,
        registry: &Registry,
        after_writes: usize,
        seed: u64,
    ) -> Result<()> {
        let image = ctx.dir().join("data.raw");
        flatten(ctx, &self.base, &image)?;
        apply(&self.log.cut(after_writes, seed), &self.log_path, &image)?;
        let start = testbed::partition_start(&image, "data")?;
        let bytes = testbed::partition_bytes(&image, "data")?;
        let file = json!({"driver": "file", "filename": image});
        let node = json!({"driver": "raw", "node-name": "cut", "offset": start, "size": bytes, "file": file});
        machine.qmp().run("blockdev-add", node)?;
        let device =
            json!({"driver": "scsi-hd", "id": "cut", "bus": "scsi.0", "drive": "cut", "serial": "cut"});
        machine.qmp().run("device_add", device)?;
        machine.wait_until("the disk of the cut", COMMAND, &mut |machine| {
            Ok(machine.run(&format!("test -b {CUT_DISK}"), COMMAND)?.ok())
        })?;
        machine.sh(&format!(
            "mkdir -p /run/cut && mount -t ext4 -o \"$(findmnt -no OPTIONS /data)\" {CUT_DISK} /run/cut && \
             mkdir -p /run/cut/engine && mount --bind /run/cut/engine /data/engine && \
             systemctl start rustiot-engine.socket rustiot-engine-resume.service"
        ))?;
        let whole = containers_are_whole(machine, registry);
        if let Err(error) = whole {
            let journal = machine.sh("journalctl -q -u rustiot-engine -n 20 -o cat; ls -l /data/engine/*");
            return Err(error.context(journal.unwrap_or_default()));
        }
        machine.sh(&format!(
            "{ENGINE_ENDS} && umount /data/engine && umount /run/cut && e2fsck -f -n {CUT_DISK}"
        ))?;
        let mark = machine.mark();
        machine.qmp().run("device_del", json!({"id": "cut"}))?;
        machine.qmp().wait("DEVICE_DELETED", mark, HEALTHY)?;
        machine.qmp().run("blockdev-del", json!({"node-name": "cut"}))?;
        machine.wait_until("the disk to be gone", COMMAND, &mut |machine| {
            Ok(!machine.run(&format!("test -b {CUT_DISK}"), COMMAND)?.ok())
        })?;
        std::fs::remove_file(&image).context("cannot remove a disk")
    }

    /// Tries all of `instants`, `workers` machines at once, and follows every `healthy`th until it is healthy, the
    /// others until their root runs; `told` hears of each end as it comes.
    pub fn try_all(
        &self,
        ctx: &Ctx,
        instants: &[(usize, u64)],
        workers: usize,
        healthy: usize,
        told: &(dyn Fn(usize, &Cut) + Sync),
    ) -> Vec<Cut> {
        let (next, cuts) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..workers.max(1) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(&(after, seed)) = instants.get(number) else { break };
                        let cut = self.try_cut(ctx, after, seed, number.is_multiple_of(healthy.max(1)));
                        let mut cuts = cuts.lock().unwrap_or_else(PoisonError::into_inner);
                        cuts.push(cut.clone());
                        told(cuts.len(), &cut);
                    }
                });
            }
        });
        cuts.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// `runs` instants of the whole run, by `seed`. Every other one is a moment as any other, as power goes: most
    /// meet the long stretches. The rest fall just before a flush, where steps are decided, however short they are.
    pub fn instants(&self, runs: usize, seed: u64) -> Vec<(usize, u64)> {
        let prepared = |at: &Entry| at.data.is_some_and(|at| at < self.prepared);
        let first = self.log.entries().iter().rposition(prepared).map_or(0, |last| last.saturating_add(1));
        let lengths: Vec<u64> =
            self.watched.lengths.iter().copied().filter(|length| *length >= self.prepared).collect();
        let later = self.log.entries().get(first..).unwrap_or_default();
        let moved = |(at, seed): (usize, u64)| (at.saturating_add(first), seed);
        instants(later, &lengths, runs, seed).into_iter().map(moved).collect()
    }

    /// `runs` instants just before a flush, evenly spread over all flushes: what a step wrote is
    /// there, and the medium has promised nothing yet.
    pub fn before_flushes(&self, runs: usize, seed: u64) -> Vec<(usize, u64)> {
        let flushes: Vec<usize> =
            self.log.entries().iter().enumerate().filter(|(_, e)| e.flush).map(|(at, _)| at).collect();
        let mut random = Random(seed);
        let nth = |n: usize| flushes.get(n.saturating_mul(flushes.len()) / runs.max(1)).copied();
        (0..runs).filter_map(nth).map(|at| (at, random.next())).collect()
    }
}

/// A release's root in slot `slot`.
fn root(ctx: &Ctx, release: &Release, slot: &'static str) -> Result<Root> {
    let image = ctx.fixtures.image(ctx.lab, ctx.board, release)?;
    let at = ctx.partition(&format!("root-{slot}"))?;
    Ok(Root { version: release.version, slot, hash: image.verity.root_hash, image: image.root, at })
}

/// Whether every block of the file `content` stands on `disk` from byte `at` on.
fn holds(disk: &File, at: u64, content: &Path) -> Result<bool> {
    let mut content = File::open(content).with_context(|| format!("cannot open {}", content.display()))?;
    let (mut expected, mut found) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = at;
    loop {
        let count = content.read(&mut expected).context("cannot read a root")?;
        if count == 0 {
            return Ok(true);
        }
        found.resize(count, 0);
        disk.read_exact_at(&mut found, at).context("cannot read the disk")?;
        if Some(&*found) != expected.get(..count) {
            return Ok(false);
        }
        at = at.saturating_add(u64::try_from(count)?);
    }
}

fn old_or_new(boot: &BootInfo, version: &str) -> Result<()> {
    let expected = if boot.slot.letter() == "a" { A.version } else { B.version };
    ensure!(version == expected, "slot {} runs {version}", boot.slot);
    Ok(())
}

fn provisioned(machine: &Machine) -> Result<()> {
    machine.wait_settled()?;
    machine.sh("test -s /state/identity/machine-id && test -s /state/identity/device.key")?;
    machine.sh("ssh-keygen -l -f /state/ssh/ssh_host_ed25519_key && findmnt /state && findmnt /data")?;
    let status = machine.sh("rustiot provision status --json")?;
    let status: serde_json::Value = serde_json::from_str(&status).context("provision status")?;
    // A file system whose making was cut is made anew, and that is told: degraded. Nothing fails.
    let steps = status.get("steps").and_then(|steps| steps.as_array()).context("no steps")?;
    let failed = |step: &&serde_json::Value| step.get("outcome").is_none_or(|outcome| outcome == "failed");
    ensure!(!steps.is_empty() && !steps.iter().any(|step| failed(&step)), "a step failed: {status}");
    let of = |path: &str| machine.sh(&format!("df --output=size -B1 {path} | tail -1"));
    let (data, disk) =
        (of("/data")?, machine.sh("lsblk -bdno SIZE /dev/$(lsblk -no PKNAME $(findmnt -no SOURCE /data))")?);
    let (data, disk): (u64, u64) = (data.trim().parse()?, disk.trim().parse()?);
    ensure!(data > disk / 2, "data did not grow: {data} of {disk} bytes");
    Ok(())
}

/// Where the recorded device has the archive of the image.
const ARCHIVE: &str = "/data/app.tar";
/// Where a cut's data partition appears in the machine that runs.
const CUT_DISK: &str = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_cut";
/// Ends the engine and takes away what it keeps in memory for later; as after a start of the device nothing is mounted.
const ENGINE_ENDS: &str = "systemctl stop rustiot-engine.socket rustiot-engine.service && \
    { grep -o '/run/rustiot/engine/[^ ]*' /proc/mounts | sort -r | xargs -r umount; } && rm -rf /run/rustiot/engine";

/// Twice, so that what is made meets what was removed before.
fn life_of_containers(engine: &Engine, ctx: &Ctx, registry: &Registry) -> Result<()> {
    let archive = containers::image(ctx)?;
    for _ in 0..2 {
        engine.ok(&["load", "-i", &archive.to_string_lossy()])?;
        engine.start("one", &["--restart", "always", "-v", "store:/v"], &["idle"])?;
        engine.ok(&["exec", "one", "/app", "keep", "/v/file", "kept"])?;
        engine.ok(&["create", "--name", "two", "--network", "none", IMAGE, "idle"])?;
        engine.ok(&["start", "two"])?;
        engine.ok(&["stop", "two"])?;
        engine.ok(&["rename", "two", "three"])?;
        // By the pull that `run` makes of itself, and by one of its own that finds two of three layers.
        engine.ok(&["run", "-d", "--name", "four", "--network", "none", &registry.name("1"), "idle"])?;
        engine.ok(&["pull", &registry.name("2")])?;
        engine.ok(&["rm", "-f", "one", "three"])?;
        engine.ok(&["volume", "rm", "store"])?;
        // Takes what no container needs, and later the rest.
        engine.ok(&["image", "prune", "--all", "--force"])?;
        engine.ok(&["rm", "-f", "four"])?;
        engine.ok(&["image", "rm", &registry.name("1")])?;
    }
    Ok(())
}

/// A machine with a place for a further disk, that may ask the registry, and whose engine does not run.
fn warm_machine(ctx: &Ctx, registry: &Registry) -> Result<Machine> {
    let base = ctx.fixtures.base(ctx.lab, ctx.board)?;
    let dir = ctx.machine_dir()?;
    let disk = Disk::overlay(&ctx.lab.tools(), &base, &dir.file("disk.qcow2"), Some(ctx.fixtures.medium()))?;
    let mut spec = ctx.lab.spec(ctx.board)?;
    spec.devices.push("virtio-scsi-pci,id=scsi".into());
    let machine = Off::new(spec, disk, dir)?.power_on()?;
    machine.wait_healthy()?;
    machine.wait_settled()?;
    let archive = std::fs::read(containers::image(ctx)?).context("cannot read the image")?;
    machine.put(ARCHIVE, &archive, COMMAND)?;
    registry.allow(&machine)?;
    machine.sh(&format!("mkdir -p /data/engine && modprobe -a virtio_scsi sd_mod && {ENGINE_ENDS}"))?;
    Ok(machine)
}

/// Whatever the engine shows is whole: containers start, images run, what is removed leaves nothing, and the same images
/// can be had again, by an archive and by the registry.
fn containers_are_whole(machine: &Machine, registry: &Registry) -> Result<()> {
    let names = |command: &str, pointers: &[&str]| -> Result<Vec<String>> {
        let list = machine.sh(command)?;
        let list: Vec<serde_json::Value> =
            serde_json::from_str(&list).with_context(|| format!("{command}: {list}"))?;
        let name = |row: &serde_json::Value| {
            pointers.iter().find_map(|p| row.pointer(p)?.as_str().map(str::to_owned))
        };
        Ok(list.iter().filter_map(name).collect())
    };
    for name in names("rustiot container list --all --json", &["/Names/0"])? {
        let name = name.trim_start_matches('/');
        machine.sh(&format!("rustiot container inspect {name} && rustiot container start {name}"))?;
        machine.sh(&format!("rustiot container remove --force {name}"))?;
    }
    let run = |image: &str| {
        machine.sh(&format!(
            "rustiot container run --name probe --network none {image} say whole && \
             until rustiot container logs probe | grep -qx whole; do sleep 0.2; done; \
             rustiot container remove --force probe"
        ))
    };
    for image in names("rustiot container images --json", &["/RepoTags/0", "/Id"])? {
        run(&image)?;
        machine.sh(&format!("rustiot container remove-image {image}"))?;
    }
    // Layers of a load or pull that was cut off are kept for the next one until an image is removed
    // (docs/contracts/images.md).
    for (how, image) in [
        (format!("load {ARCHIVE}"), IMAGE.to_owned()),
        (format!("pull {}", registry.name("1")), registry.name("1")),
        (format!("pull {}", registry.name("2")), registry.name("2")),
    ] {
        machine.sh(&format!("rustiot container {how}"))?;
        run(&image)?;
    }
    for image in [IMAGE, &registry.name("1"), &registry.name("2")] {
        machine.sh(&format!("rustiot container remove-image {image}"))?;
    }
    let left = machine
        .sh("ls /data/engine/containers /data/engine/images; findmnt -rno TARGET | grep engine/c/ || true")?;
    let debris =
        |line: &&str| line.starts_with("layer-") || line.starts_with("image-") || line.starts_with("tmp-");
    ensure!(!left.contains("/run/"), "a removed container's root is mounted: {left}");
    ensure!(!left.lines().any(|line| debris(&line)), "removed images left files: {left}");
    Ok(())
}

type Recorded = (PathBuf, WriteLog, Watched);

fn instants(entries: &[Entry], lengths: &[u64], runs: usize, seed: u64) -> Vec<(usize, u64)> {
    let flushes: Vec<usize> = entries.iter().enumerate().filter(|(_, e)| e.flush).map(|(at, _)| at).collect();
    let mut random = Random(seed);
    let one = |number: usize| {
        let at = if number.is_multiple_of(2) {
            let length = lengths.get(random.below(lengths.len())).copied().unwrap_or(u64::MAX);
            entries.iter().position(|entry| entry.data.is_some_and(|at| at >= length))
        } else {
            flushes.get(random.below(flushes.len())).copied()
        };
        (at.unwrap_or(entries.len()), random.next())
    };
    (0..runs).map(one).collect()
}

/// Lets `run` happen to a machine with a logged disk, then cuts its power.
fn record(machine: Machine, run: &dyn Fn(&Machine) -> Result<()>) -> Result<Recorded> {
    let dir = machine.dir().to_path_buf();
    let (log_path, vars_path) = (dir.join("writes.log"), dir.join("vars.fd"));
    let done = AtomicBool::new(false);
    let (watched, end) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&vars_path, &log_path, &done));
        let end = run(&machine);
        done.store(true, Ordering::Relaxed);
        (watcher.join(), end)
    });
    end?;
    let Ok(watched) = watched else { bail!("the watcher of the firmware's variables panicked") };
    drop(machine.power_cut());
    let log = WriteLog::open(&log_path)?;
    ensure!(log.entries().iter().any(|entry| entry.flush), "the device never flushed its disk");
    Ok((log_path, log, watched))
}

fn flatten(ctx: &Ctx, from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    ctx.lab.tools().run("qemu-img", &["convert", "-O", "raw", &from, &to])?;
    Ok(())
}

/// Notes each content of the variables' file and how long the log was around the change; and how long it was at
/// each look.
fn watch(vars: &Path, log: &Path, done: &AtomicBool) -> Watched {
    let length = || std::fs::metadata(log).map_or(0, |meta| meta.len());
    let mut watched = Watched::default();
    let mut before = 0;
    loop {
        let last = done.load(Ordering::Relaxed);
        let content = std::fs::read(vars).unwrap_or_default();
        let now = length();
        if !content.is_empty() && watched.vars.last().is_none_or(|old| old.content != content) {
            watched.vars.push(Vars { from: before, to: now, content });
        }
        watched.lengths.push(now);
        before = now;
        if last {
            return watched;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(data: u64) -> Entry {
        Entry { offset: 0, bytes: 512, data: Some(data), flush: false, durable: false }
    }

    const FLUSH: Entry = Entry { offset: 0, bytes: 0, data: None, flush: true, durable: false };

    #[test]
    fn a_root_is_whole_or_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, root) = (dir.path().join("disk"), dir.path().join("root"));
        let content = vec![7; (1 << 20) + 5];
        std::fs::write(&root, &content).unwrap();
        let mut bytes = [vec![1; 512], content].concat();
        let found = |bytes: &[u8]| {
            std::fs::write(&disk, bytes).unwrap();
            holds(&File::open(&disk).unwrap(), 512, &root)
        };
        assert!(found(&bytes).unwrap());
        *bytes.last_mut().unwrap() ^= 1;
        assert!(!found(&bytes).unwrap());
        bytes.pop();
        assert!(found(&bytes).is_err(), "a disk that ends too soon");
    }

    #[test]
    fn half_of_the_cuts_follow_the_clock_and_half_the_flushes() {
        // A thousand writes in a moment, then one flush and a long silence with two writes.
        let mut log: Vec<Entry> = (0..1000).map(|n| write(n * 1024)).collect();
        log.extend([FLUSH, write(2_000_000), write(2_001_024)]);
        let mut lengths = vec![1_023_999];
        lengths.resize(100, 2_002_048);
        let chosen = instants(&log, &lengths, 20, 1);
        assert_eq!(chosen.len(), 20);
        let by = |rest: usize| chosen.iter().skip(rest).step_by(2).map(|(at, _)| *at).collect::<Vec<_>>();
        assert!(by(1).iter().all(|at| *at == 1000), "{:?}", by(1));
        assert!(by(0).iter().filter(|at| **at == log.len()).count() >= 8, "{:?}", by(0));
        assert_eq!(chosen, instants(&log, &lengths, 20, 1), "a seed is a promise");
        assert_ne!(chosen, instants(&log, &lengths, 20, 2));
        assert!(
            instants(&[], &[], 2, 1).iter().all(|(at, _)| *at == 0),
            "nothing written, nothing to choose"
        );
    }
}
