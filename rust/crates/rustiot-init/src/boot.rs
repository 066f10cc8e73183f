//! The way from the first instruction to a mounted root, in order, with every decision visible and every failure
//! led to a reboot or to rescue.
//!
//! All kernel calls go through [`Sys`]; files are below `root`, which is `/` on a device. Never decides about slots:
//! that is the policy's. Called by `main`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, mount::MsFlags};
use rustiot_boot::{BootKind, Effect, Event, Record, ResetReason, Slot};
use rustiot_slots::Applied;

use crate::{
    cmdline::{self, Cmdline, Fault},
    config::{InitConfig, LoaderKind, Verity},
    disk::{self, Located, Origin},
    dm::{self, OnCorruption},
    files, identity,
    pstore::{self, Crash},
    report::{BootReport, MountState, Reset, Timings},
    sys::{Mount, Sys},
    watchdog::Watchdog,
};

/// The new root, until it becomes `/`.
pub const SYSROOT: &str = "sysroot";

/// What runs as PID 1 afterwards: the first that is there.
pub const INITS: [&str; 2] = ["/usr/lib/systemd/systemd", "/sbin/init"];

/// The mounts without which nothing runs; a root that lacks one of these directories is not usable.
const MOVED: [&str; 4] = ["dev", "proc", "sys", "run"];

/// How long the boot partition may take to appear, in milliseconds.
const DISK_WAIT_MS: u64 = 30_000;
/// How long its sister partitions may take after that; an entry that the kernel refuses never comes.
const PARTITIONS_WAIT_MS: u64 = 2_000;
/// Pause between two looks, in milliseconds.
const DISK_POLL_MS: u64 = 5;
/// Leave for a step that replays a journal or reads a slow medium; the watchdog's deadline still holds.
const LONG_MS: u64 = 600_000;

/// `LoaderDevicePartUUID` of the Boot Loader Interface.
const LOADER_VARIABLE: &str =
    "sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// The partition that the Raspberry Pi's firmware booted from (its documentation: device tree, `/chosen/bootloader`).
const LOADER_PARTITION: &str = "proc/device-tree/chosen/bootloader/partition";

/// The boot policy with its memory, as `rustiot-slots` provides it.
pub trait Policy {
    /// What is remembered, as of the last event.
    fn record(&self) -> &Record;

    /// What was wrong with ledger or loader when they were opened, and stopped nothing.
    fn notes(&self) -> &[String];

    /// Tells what happened. The loader's effects have been run when this returns, and the new record is durable.
    ///
    /// # Errors
    /// Why it could not be decided, remembered or told to the loader, for people.
    fn tell(&mut self, event: Event) -> Result<Applied, String>;
}

/// Opens the policy once the disk is known; the flag says whether the state partition is mounted.
pub type OpenPolicy<'a> = dyn FnMut(&InitConfig, &Located, bool) -> Result<Box<dyn Policy>, String> + 'a;

/// How the boot goes on.
#[derive(Debug)]
pub enum Outcome {
    /// The root is mounted on `/sysroot` and everything has been moved there.
    SwitchRoot {
        /// Start the rescue target instead of the default one.
        rescue: bool,
    },
    /// Reboot now.
    Reboot {
        /// Why.
        reason: String,
    },
    /// No root can be opened; stay here with the network on.
    Rescue {
        /// Why.
        reason: String,
    },
    /// A lab image was asked to fail.
    Fault(Fault),
}

/// A boot under way.
pub struct Boot<'a> {
    sys: &'a mut dyn Sys,
    root: &'a Path,
    timings: Timings,
    /// The watchdog, once it is open.
    pub watchdog: Watchdog,
    /// The configuration, once it is read.
    pub config: Option<InitConfig>,
    /// The policy, once the disk is known.
    pub policy: Option<Box<dyn Policy>>,
    /// What is known of this boot so far.
    pub facts: Facts,
    messages: Vec<String>,
}

/// What is known of a boot; rescue shows it.
#[derive(Debug, Default)]
pub struct Facts {
    /// The slot.
    pub slot: Option<Slot>,
    /// Kernel boot id.
    pub boot_id: String,
    /// Why the machine was reset before.
    pub reset: Option<ResetReason>,
    /// The kernel's last words of the boot before.
    pub crash: Crash,
    /// The `state` partition is mounted, so what the policy decides is remembered.
    pub remembers: bool,
    /// The boot loader's selection had been lost and was put right.
    pub loader_repaired: bool,
}

impl<'a> Boot<'a> {
    /// A boot that begins now.
    pub fn new(sys: &'a mut dyn Sys, root: &'a Path) -> Boot<'a> {
        let timings = Timings { exec: sys.now_ms(), ..Timings::default() };
        Boot {
            sys,
            root,
            timings,
            watchdog: Watchdog::default(),
            config: None,
            policy: None,
            facts: Facts::default(),
            messages: Vec::new(),
        }
    }

    /// Loads what only rescue needs.
    #[must_use]
    pub fn for_rescue(mut self) -> Boot<'a> {
        if let Some(config) = self.config.take() {
            for module in &config.network_modules {
                self.load_module(&config, module);
            }
            self.config = Some(config);
        }
        self
    }

    /// Boots.
    pub fn run(&mut self, open_policy: &mut OpenPolicy) -> Outcome {
        match self.try_run(open_policy) {
            Ok(outcome) => outcome,
            Err(reason) => Outcome::Rescue { reason },
        }
    }

    fn try_run(&mut self, open_policy: &mut OpenPolicy) -> Result<Outcome, String> {
        self.base_mounts();
        let config = self.read("rustiot/init.json")?;
        let config = InitConfig::parse(&config).map_err(|error| chain(&error))?;
        self.modules(&config);
        self.timings.modules = self.sys.now_ms();
        self.config = Some(config.clone());

        let cmdline = fs::read_to_string(self.root.join("proc/cmdline")).unwrap_or_default();
        let cmdline = Cmdline::parse(&cmdline);
        if let Some(fault) = cmdline.fault.filter(|_| config.lab) {
            return Ok(Outcome::Fault(fault));
        }
        self.firmware_mounts();
        let located = self.locate(&config, &cmdline)?;
        self.timings.disk = self.sys.now_ms();
        self.facts.slot = Some(located.slot);
        let state = self.mount_partition(&located, "state");
        let data = self.mount_partition(&located, "data");
        self.facts.remembers = state == MountState::Mounted;
        self.timings.mounts = self.sys.now_ms();
        self.step(0);

        match open_policy(&config, &located, self.facts.remembers) {
            Ok(policy) => {
                for note in policy.notes() {
                    self.note(note.clone());
                }
                self.policy = Some(policy);
            }
            Err(error) => self.note(format!("boot ledger: {error}")),
        }
        let go = self.booted(&located);
        self.timings.policy = self.sys.now_ms();
        let (kind, rescue) = match &go {
            Go::On(kind) => (*kind, None),
            Go::Reboot(_) => (BootKind::Redirect, None),
            Go::Rescue(reason) => (BootKind::Rescue, Some(reason.clone())),
        };
        let mut report = self.report(&located, kind, state, data, rescue);
        self.sys.say(&format!(
            "slot={} kind={} reset={} boot={} state={} data={}",
            report.slot,
            word(&report.kind),
            word(&report.reset.reason),
            report.boot_number,
            word(&report.state),
            word(&report.data)
        ));
        match go {
            Go::On(_) => {}
            Go::Reboot(reason) => return Ok(Outcome::Reboot { reason }),
            Go::Rescue(reason) => self.sys.say(&format!("rescue level=1 reason=\"{reason}\"")),
        }

        // the read errors of a dying disk take long
        self.step(LONG_MS);
        match self.open_root(&located, kind) {
            Ok(root_hash) => report.root_hash = root_hash,
            Err(reason) => return Ok(self.root_unusable(reason)),
        }
        self.step(0);
        Ok(self.finish(report))
    }

    fn report(
        &self,
        located: &Located,
        kind: BootKind,
        state: MountState,
        data: MountState,
        rescue: Option<String>,
    ) -> BootReport {
        let record = self.policy.as_ref().map(|policy| policy.record());
        let attempt = record.and_then(|record| record.phase.transaction()).map(|tx| tx.attempts);
        BootReport {
            slot: located.slot,
            boot_id: self.facts.boot_id.clone(),
            boot_number: record.and_then(Record::last_boot).map_or(0, |boot| boot.number),
            kind,
            attempt: attempt.filter(|_| kind == BootKind::Trial),
            reset: Reset {
                reason: self.facts.reset.unwrap_or(ResetReason::Unknown),
                pstore_tail: self.facts.crash.tail(),
            },
            root_hash: String::new(),
            state,
            data,
            timings_ms: self.timings,
            rescue,
            messages: Vec::new(),
            loader_repaired: self.facts.loader_repaired,
        }
    }

    fn step(&mut self, leave_ms: u64) {
        let now = self.sys.now_ms();
        self.watchdog.step(now, leave_ms);
    }

    /// Something is wrong and the boot goes on.
    fn note(&mut self, message: String) {
        self.sys.say(&message);
        self.messages.push(message);
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        fs::read(self.path(path)).map_err(|error| format!("cannot read /{path}: {error}"))
    }

    fn mount(
        &mut self,
        source: &str,
        target: &str,
        fstype: &str,
        flags: MsFlags,
        data: &str,
    ) -> Result<(), Errno> {
        let target = self.path(target);
        // a directory that cannot be made shows in the mount that follows
        let _ = fs::create_dir_all(&target);
        self.sys.mount(&Mount { source: Path::new(source), target: &target, fstype, flags, data })
    }

    /// The file systems without which nothing can be seen. A failure shows in what follows.
    fn base_mounts(&mut self) {
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let quiet = safe | MsFlags::MS_NOEXEC;
        for (fstype, target, flags, data) in [
            ("proc", "proc", quiet, ""),
            ("sysfs", "sys", quiet, ""),
            ("devtmpfs", "dev", MsFlags::MS_NOSUID, "mode=0755"),
            ("tmpfs", "run", safe, "mode=0755"),
        ] {
            match self.mount(fstype, target, fstype, flags, data) {
                // devtmpfs may be there already (CONFIG_DEVTMPFS_MOUNT)
                Ok(()) | Err(Errno::EBUSY) => {}
                Err(errno) => self.note(format!("mount {fstype}: {errno}")),
            }
        }
        let _ = fs::create_dir_all(self.path("run/rustiot"));
        self.reboot_on_panic();
    }

    /// A kernel panic must end in a reboot, whatever the command line forgot.
    fn reboot_on_panic(&mut self) {
        let path = self.path("proc/sys/kernel/panic");
        if fs::read_to_string(&path).is_ok_and(|text| text.trim() == "0") {
            let _ = fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"10\n"));
        }
    }

    /// Loads the modules in order and opens the watchdog as soon as its driver is there.
    fn modules(&mut self, config: &InitConfig) {
        let mut watchdog = self.try_watchdog(config);
        for module in &config.modules {
            self.load_module(config, module);
            watchdog = self.try_watchdog(config);
        }
        if let Err(errno) = watchdog {
            self.note(format!("no watchdog: {errno}"));
        }
    }

    fn load_module(&mut self, config: &InitConfig, module: &str) {
        let params = match (Path::new(module).file_stem(), &config.ramoops) {
            (Some(name), Some(ramoops)) if name == "ramoops" => ramoops.params(),
            _ => String::new(),
        };
        let path = self.path(module.trim_start_matches('/'));
        match self.sys.load_module(&path, &params) {
            // ENODEV: a driver whose hardware this machine does not have
            Ok(()) | Err(Errno::ENODEV) => {}
            Err(errno) => self.note(format!("module {module}: {errno}")),
        }
    }

    /// Opens the watchdog, if the board has one and it is not open yet.
    fn try_watchdog(&mut self, config: &InitConfig) -> Result<(), Errno> {
        let Some(wanted) = config.watchdog.as_ref().filter(|_| !self.watchdog.is_open()) else {
            return Ok(());
        };
        self.watchdog = Watchdog::open(self.sys, self.root, wanted, self.timings.exec)?;
        if let Err(errno) = self.watchdog.start(self.sys) {
            self.note(format!("watchdog thread: {errno}"));
        }
        self.step(0);
        let timeout = self.watchdog.timeout_s();
        self.sys.say(&format!("watchdog={} timeout_s={timeout}", wanted.device));
        Ok(())
    }

    /// UEFI variables and pstore, where the kernel has them.
    fn firmware_mounts(&mut self) {
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        for (fstype, target) in [("efivarfs", "sys/firmware/efi/efivars"), ("pstore", "sys/fs/pstore")] {
            if self.path(target).is_dir() {
                match self.mount(fstype, target, fstype, quiet, "") {
                    Ok(()) | Err(Errno::EBUSY) => {}
                    Err(errno) => self.note(format!("mount {fstype}: {errno}")),
                }
            }
        }
    }

    /// Finds disk and slot, waiting for the disk.
    fn locate(&mut self, config: &InitConfig, cmdline: &Cmdline) -> Result<Located, String> {
        let boot = match config.loader {
            LoaderKind::Uefi => Origin::Id(
                cmdline::uuid_variable(&self.read(LOADER_VARIABLE)?)
                    .ok_or("UEFI variable LoaderDevicePartUUID holds no UUID")?,
            ),
            LoaderKind::Uboot => {
                Origin::Id(cmdline.boot.ok_or("no rustiot.boot=<PARTUUID> on the kernel command line")?)
            }
            LoaderKind::Tryboot => Origin::Number(
                cmdline::cell(&self.read(LOADER_PARTITION)?)
                    .ok_or_else(|| format!("/{LOADER_PARTITION} is no number"))?,
            ),
        };
        self.step(DISK_WAIT_MS);
        let start = self.sys.now_ms();
        let mut seen_ms = None;
        loop {
            let found = disk::locate(self.root, boot);
            let now = self.sys.now_ms();
            let waited = |since: u64, ms| now.saturating_sub(since) >= ms;
            match found {
                Ok(Some(located))
                    if located.complete || waited(*seen_ms.get_or_insert(now), PARTITIONS_WAIT_MS) =>
                {
                    self.step(0);
                    return Ok(located);
                }
                Err(error) if waited(start, DISK_WAIT_MS) => return Err(chain(&error)),
                Ok(None) if waited(start, DISK_WAIT_MS) => {
                    return Err(format!("no disk has the boot partition {boot}"));
                }
                _ => self.sys.pause(DISK_POLL_MS),
            }
        }
    }

    /// Mounts `state` or `data`. The kernel replays the journal; anything more is provisioning's.
    fn mount_partition(&mut self, located: &Located, label: &str) -> MountState {
        let Some(partition) = located.disk.partition(label) else { return MountState::Absent };
        let device = self.path("dev").join(&partition.device);
        self.step(LONG_MS);
        let flags = MsFlags::MS_NOATIME | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        match self.mount(&device.to_string_lossy(), label, "ext4", flags, "data=ordered") {
            Ok(()) => MountState::Mounted,
            Err(errno) => {
                self.note(format!("mount {label} ({}): {errno}", partition.device));
                MountState::Unmountable
            }
        }
    }

    /// Works out why the machine was reset and asks the policy. The crash record is kept in `state` and leaves pstore
    /// only after the policy has remembered its verdict.
    fn booted(&mut self, located: &Located) -> Go {
        let crash = Crash::read(&self.path("sys/fs/pstore"));
        let boot_id = fs::read_to_string(self.path("proc/sys/kernel/random/boot_id")).unwrap_or_default();
        self.facts.boot_id = boot_id.trim().to_string();
        let record = self.policy.as_ref().map(|policy| policy.record());
        let last_clean = record.filter(|r| r.last_boot().is_some()).map(Record::ended_cleanly);
        let reset = pstore::reset_reason(&crash, self.watchdog.card_reset(), last_clean);
        self.facts.reset = Some(reset);
        let event = Event::Booted {
            slot: located.slot,
            boot_id: self.facts.boot_id.clone(),
            reset,
            pstore_tail: crash.tail(),
        };
        let told = self.policy.as_mut().map(|policy| policy.tell(event));
        let known = self.policy.as_ref().and_then(|policy| policy.record().last_boot());
        let known = known.filter(|boot| boot.boot_id == self.facts.boot_id).map(|boot| boot.kind);
        let go = match told {
            Some(Ok(applied)) => {
                self.facts.loader_repaired = applied.default_changed;
                Go::from_effects(applied.effects)
            }
            Some(Err(error)) => {
                self.note(format!("boot ledger: {error}"));
                Go::On(match known {
                    // remembered, but the loader could not be told
                    Some(kind @ (BootKind::Trial | BootKind::LateFallback)) => kind,
                    // what is not remembered is not committed either: a trial that runs on ends in the old slot
                    _ => BootKind::Normal,
                })
            }
            None => Go::On(BootKind::Normal),
        };
        if self.facts.remembers && known.is_some() && !crash.is_empty() {
            let record = self.policy.as_ref().map(|policy| policy.record());
            let number = record.and_then(Record::last_boot).map_or(0, |boot| boot.number);
            match keep_crash(&self.path("state/pstore"), number, &crash.text) {
                Ok(()) => crash.forget(),
                Err(error) => self.note(format!("crash record stays in pstore: {error}")),
            }
        }
        self.facts.crash = crash;
        self.with_memory_only(go)
    }

    /// Reboots into the other slot are safe only for a policy that remembers that it ordered one: otherwise two slots
    /// could send each other the machine for ever. Without memory this slot goes on.
    fn with_memory_only(&mut self, go: Go) -> Go {
        match go {
            Go::Reboot(reason) if !self.facts.remembers => {
                self.note(format!("not rebooted, for nothing is remembered without /state: {reason}"));
                Go::On(BootKind::Normal)
            }
            go => go,
        }
    }

    /// Maps and mounts the root; its hash.
    fn open_root(&mut self, located: &Located, kind: BootKind) -> Result<String, String> {
        let verity = Verity::parse(&self.read("rustiot/verity.json")?).map_err(|error| chain(&error))?;
        let label = format!("root-{}", located.slot);
        let partition = located.disk.partition(&label).ok_or_else(|| format!("no partition {label}"))?;
        let mode = match kind {
            BootKind::Rescue => OnCorruption::Fail,
            _ => OnCorruption::Panic,
        };
        let device = dm::open_root(self.sys, &verity, partition, mode).map_err(|error| chain(&error))?;
        self.mount(&device, SYSROOT, "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "")
            .map_err(|errno| format!("cannot mount {label} ({device}): {errno}"))?;
        Ok(verity.root_hash)
    }

    fn root_unusable(&mut self, reason: String) -> Outcome {
        self.step(0);
        self.sys.say(&format!("root unusable: {reason}"));
        let event = Event::RootUnusable { reason: reason.clone() };
        let told = self.policy.as_mut().map(|policy| policy.tell(event)).transpose();
        let told = told.map(|applied| applied.map_or(Vec::new(), |applied| applied.effects));
        match told.map(|effects| self.with_memory_only(Go::from_effects(effects))) {
            Ok(Go::Reboot(reason)) => Outcome::Reboot { reason },
            Ok(Go::Rescue(reason)) => Outcome::Rescue { reason },
            Ok(Go::On(_)) => Outcome::Rescue { reason },
            Err(error) => Outcome::Rescue { reason: format!("{reason}; boot ledger: {error}") },
        }
    }

    /// Identity, report, and everything moved into the new root.
    fn finish(&mut self, mut report: BootReport) -> Outcome {
        let sysroot = self.path(SYSROOT);
        let missing = MOVED.iter().find(|directory| !sysroot.join(directory).is_dir());
        if let Some(missing) = missing {
            return self.root_unusable(format!("the root has no /{missing}"));
        }
        // a link may be absolute, so it cannot be followed from here
        if !INITS.iter().any(|init| sysroot.join(init.trim_start_matches('/')).symlink_metadata().is_ok()) {
            return self.root_unusable(format!("the root has none of {}", INITS.join(", ")));
        }
        self.bind_machine_id();
        let rescue = report.kind == BootKind::Rescue;
        report.messages = std::mem::take(&mut self.messages);
        report.timings_ms.switch_root = self.sys.now_ms();
        if let Err(error) = report.write(self.root) {
            self.sys.say(&chain(&error));
        }
        self.sys.say(&format!(
            "switch-root kind={} ms={} root={}",
            word(&report.kind),
            report.timings_ms.switch_root.saturating_sub(self.timings.exec),
            report.root_hash.get(..16).unwrap_or_default()
        ));
        self.step(0);
        for (directory, state) in [("state", report.state), ("data", report.data)] {
            if state == MountState::Mounted
                && let Err(errno) = self.move_mount(directory)
            {
                self.sys.say(&format!("cannot move /{directory} into the root: {errno}"));
            }
        }
        for directory in MOVED {
            if let Err(errno) = self.move_mount(directory) {
                return Outcome::Reboot {
                    reason: format!("cannot move /{directory} into the root: {errno}"),
                };
            }
        }
        Outcome::SwitchRoot { rescue }
    }

    fn move_mount(&mut self, directory: &str) -> Result<(), Errno> {
        let (source, target) = (self.path(directory), self.path(SYSROOT).join(directory));
        let flags = MsFlags::MS_MOVE;
        self.sys.mount(&Mount { source: &source, target: &target, fstype: "", flags, data: "" })
    }

    /// Puts the machine id over the read-only root's `/etc/machine-id`.
    fn bind_machine_id(&mut self) {
        let file = self.path("run/rustiot/machine-id");
        let target = self.path(SYSROOT).join("etc/machine-id");
        let done = identity::machine_id(self.root)
            .map_err(|error| chain(&error))
            .and_then(|id| {
                rustiot_durable::atomic_write_volatile(&file, format!("{id}\n").as_bytes())
                    .map_err(|error| chain(&error))
            })
            .and_then(|()| {
                let mount =
                    Mount { source: &file, target: &target, fstype: "", flags: MsFlags::MS_BIND, data: "" };
                self.sys.mount(&mount).map_err(|errno| errno.to_string())
            });
        if let Err(error) = done {
            self.note(format!("machine-id: {error}"));
        }
    }
}

/// How to go on.
enum Go {
    On(BootKind),
    Reboot(String),
    Rescue(String),
}

impl Go {
    /// The one effect that says how to go on; a policy that says nothing means: as usual.
    fn from_effects(effects: Vec<Effect>) -> Go {
        effects
            .into_iter()
            .find_map(|effect| match effect {
                Effect::Continue(kind) => Some(Go::On(kind)),
                Effect::Reboot { reason } => Some(Go::Reboot(reason)),
                Effect::Rescue { reason } => Some(Go::Rescue(reason)),
                Effect::SetNext(_)
                | Effect::ClearNext
                | Effect::SetDefault(_)
                | Effect::Outcome { .. }
                | Effect::Switched { .. } => None,
            })
            .unwrap_or(Go::On(BootKind::Normal))
    }
}

/// Crash records that are kept in `state`.
const KEPT_CRASHES: usize = 4;
/// Their names begin so.
const CRASH_NAME: &str = "before-boot-";

/// Keeps the record of the crash before boot `number`, and the last few only.
fn keep_crash(directory: &Path, number: u64, text: &str) -> Result<(), String> {
    let fail = |error: &dyn std::error::Error| format!("{}: {}", directory.display(), chain(error));
    fs::create_dir_all(directory).map_err(|error| fail(&error))?;
    // zero-padded, so that names sort by age
    let path = directory.join(format!("{CRASH_NAME}{number:010}.txt"));
    rustiot_durable::atomic_write(&path, text.as_bytes()).map_err(|error| fail(&error))?;
    let mut kept = files::entries(directory);
    kept.retain(|path| files::name_starts_with(path, CRASH_NAME));
    for old in kept.iter().rev().skip(KEPT_CRASHES) {
        let _ = fs::remove_file(old);
    }
    Ok(())
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The word that a unit variant is in JSON.
pub fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_string()
}

#[cfg(test)]
mod tests;
