//! Tests: a device in a temporary directory, with U-Boot's selector in a file. Real files, the real shell.

use std::{fs, path::Path};

use rustiot_boot::{Effect, Event, ResetReason, Slot};
use rustiot_durable::atomic_write;
use rustiot_loader::{EnvLayout, Loader, LoaderConfig};

use crate::{Applied, Error, Paths, SlotShell};

pub(crate) struct Device {
    root: tempfile::TempDir,
    boots: u32,
}

impl Device {
    pub(crate) fn new() -> Device {
        let root = tempfile::tempdir().unwrap();
        for directory in ["state", "run/rustiot", "proc/sys/kernel/random", "dev"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        atomic_write(&root.path().join("dev/uboot-env"), &[0xff; 80 << 10]).unwrap();
        let device = Device { root, boots: 0 };
        device.loader().set_default(Slot::A).unwrap();
        device.new_boot_id();
        device
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn paths(&self) -> Paths {
        Paths::below(self.root.path())
    }

    pub(crate) fn loader(&self) -> Box<dyn Loader> {
        LoaderConfig::Uboot { device: self.root.path().join("dev/uboot-env"), layout: EnvLayout::default() }
            .open()
    }

    pub(crate) fn boot_id(&self) -> String {
        format!("boot-{}", self.boots)
    }

    fn new_boot_id(&self) {
        atomic_write(&self.paths().boot_id, format!("{}\n", self.boot_id()).as_bytes()).unwrap();
    }

    /// The loader chooses, init tells, and leaves its report. What it was told to do comes back.
    pub(crate) fn boot(&mut self, reset: ResetReason) -> Vec<Effect> {
        self.boot_with(reset, true)
    }

    pub(crate) fn boot_without_state(&mut self) -> Vec<Effect> {
        self.boot_with(ResetReason::Unknown, false)
    }

    fn boot_with(&mut self, reset: ResetReason, state: bool) -> Vec<Effect> {
        let mut loader = self.loader();
        let slot = loader.next_slot().unwrap().or(loader.default_slot().unwrap()).unwrap_or(Slot::A);
        loader.clear_next().unwrap();
        self.boots += 1;
        self.new_boot_id();
        let mut shell = SlotShell::for_boot(self.paths(), loader, slot, state).unwrap();
        let boot_id = self.boot_id();
        let applied = shell
            .apply(Event::Booted { slot, boot_id: boot_id.clone(), reset, pstore_tail: vec![] })
            .unwrap();
        let report = format!(
            r#"{{"slot":"{slot}","boot_id":"{boot_id}","reset":{{"reason":"power","pstore_tail":[]}},"more":1}}"#
        );
        atomic_write(&self.paths().report, report.as_bytes()).unwrap();
        applied.effects
    }

    pub(crate) fn open(&self) -> SlotShell {
        SlotShell::open(self.paths(), self.loader()).unwrap()
    }

    pub(crate) fn tell(&self, event: Event) -> Result<Applied, Error> {
        self.open().apply(event)
    }

    /// This boot becomes stable.
    pub(crate) fn prove(&self) {
        self.tell(Event::GatePassed { boot_id: self.boot_id() }).unwrap();
        self.tell(Event::Soaked { boot_id: self.boot_id(), floor: None }).unwrap();
    }
}
