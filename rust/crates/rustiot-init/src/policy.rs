//! Joins the boot to `rustiot-slots`: the ledger in `/state/boot`, and the loader of the disk that we booted from.
//!
//! Decides nothing. Called by `main`.

use std::path::Path;

use rustiot_boot::{Event, Record};
use rustiot_loader::{LoaderConfig, MAILBOX};
use rustiot_slots::{Applied, Paths, SlotShell};

use crate::{
    boot::{Policy, chain},
    config::LoaderKind,
    disk::Located,
};

/// Opens ledger and loader below `root`.
///
/// # Errors
/// Why neither a ledger nor a fresh record can be had, for people.
pub fn open(
    root: &Path,
    kind: LoaderKind,
    located: &Located,
    state_mounted: bool,
) -> Result<Box<dyn Policy>, String> {
    // without the partition the loader's own error names this path
    let selector = |label: &str| {
        let device = located.disk.partition(label).map_or(label, |partition| partition.device.as_str());
        root.join("dev").join(device)
    };
    let loader = match kind {
        LoaderKind::Uefi => {
            LoaderConfig::Uefi { efivars: root.join("sys/firmware/efi/efivars"), partitions: located.boot }
        }
        LoaderKind::Uboot => {
            LoaderConfig::Uboot { device: selector("uboot-env"), layout: Default::default() }
        }
        LoaderKind::Tryboot => LoaderConfig::Tryboot {
            device: selector("autoboot"),
            mailbox: root.join(MAILBOX.trim_start_matches('/')),
        },
    };
    let shell = SlotShell::for_boot(Paths::below(root), loader.open(), located.slot, state_mounted)
        .map_err(|error| chain(&error))?;
    Ok(Box::new(Slots(shell)))
}

struct Slots(SlotShell);

impl Policy for Slots {
    fn record(&self) -> &Record {
        self.0.record()
    }

    fn notes(&self) -> &[String] {
        self.0.notes()
    }

    fn tell(&mut self, event: Event) -> Result<Applied, String> {
        self.0.apply(event).map_err(|error| chain(&error))
    }
}
