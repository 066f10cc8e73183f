//! Which disk we booted from, which slot that is, and where the other partitions of the same disk are.
//!
//! Reads `/sys/class/block` and the partition table; never writes, never looks at another disk's partitions by
//! name (a second medium with the same image must not be mixed in). Called by [`crate::boot`].

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustiot_boot::Slot;
use rustiot_loader::{BootPartition, Guid};

use crate::{
    files,
    gpt::{self, GptError},
};

/// A partition as the kernel found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Device name below `/dev`.
    pub device: String,
    /// `major:minor`.
    pub devno: String,
    /// Number in the table, from 1.
    pub number: u32,
    /// Name in the table (`boot-a`, `state`, …).
    pub label: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// A disk with partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Device name below `/dev`.
    pub device: String,
    /// In the order of their device names.
    pub partitions: Vec<Partition>,
}

impl Disk {
    /// The partition with that name.
    #[must_use]
    pub fn partition(&self, label: &str) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.label == label)
    }
}

/// The boot disk and the slot that this kernel came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The disk.
    pub disk: Disk,
    /// The slot.
    pub slot: Slot,
    /// The kernel has made a device of every entry of the table. It does so one by one, so a partition that is missing
    /// while this is false may still come.
    pub complete: bool,
    /// `boot-a` and `boot-b` as the table describes them, where it has both.
    pub boot: Option<[BootPartition; 2]>,
}

/// All disks that have partitions, from `sysfs` (`/sys`). What cannot be read is not there (yet).
#[must_use]
pub fn scan(sysfs: &Path) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    for path in files::entries(&sysfs.join("class/block")) {
        let Some((parent, partition)) = read_partition(&path) else { continue };
        match disks.iter_mut().find(|disk| disk.device == parent) {
            Some(disk) => disk.partitions.push(partition),
            None => disks.push(Disk { device: parent, partitions: vec![partition] }),
        }
    }
    disks
}

/// A partition and the name of its disk, or nothing when `path` is a whole disk.
fn read_partition(path: &Path) -> Option<(String, Partition)> {
    let uevent = fs::read_to_string(path.join("uevent")).ok()?;
    let partition = parse_uevent(&uevent, &fs::read_to_string(path.join("size")).ok()?)?;
    let parent = fs::canonicalize(path).ok()?.parent()?.file_name()?.to_str()?.to_string();
    Some((parent, partition))
}

/// A partition from the files `uevent` and `size` of its directory in `/sys`, or nothing when it is a whole disk.
#[must_use]
pub fn parse_uevent(uevent: &str, size: &str) -> Option<Partition> {
    let value = |key: &str| {
        uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_string))
    };
    Some(Partition {
        device: value("DEVNAME")?,
        devno: format!("{}:{}", value("MAJOR")?.parse::<u32>().ok()?, value("MINOR")?.parse::<u32>().ok()?),
        number: value("PARTN")?.parse().ok()?,
        label: value("PARTNAME").unwrap_or_default(),
        // sysfs counts sectors of 512 bytes whatever the medium has (Documentation/ABI/stable/sysfs-block)
        bytes: size.trim().parse::<u64>().ok()?.checked_mul(512)?,
    })
}

/// How the boot loader says which partition it booted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By its unique id.
    Id(Guid),
    /// By its number, on a disk that has our slots.
    Number(u32),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Id(id) => id.fmt(f),
            Origin::Number(number) => write!(f, "number {number}"),
        }
    }
}

/// Finds the disk and the slot of the boot partition `boot`, or nothing when no disk has it (yet). Two media that both
/// have it cannot be told apart here; the first by name is taken, as by the firmware.
///
/// # Errors
/// [`LocateError`] when a disk that could be it has no sound table, or the partition is not a boot slot.
pub fn locate(root: &Path, boot: Origin) -> Result<Option<Located>, LocateError> {
    let mut unsound = None;
    for disk in scan(&root.join("sys")) {
        if disk.partition("boot-a").is_none() && disk.partition("boot-b").is_none() {
            continue;
        }
        let table = match read_table(root, &disk.device) {
            Ok(table) => table,
            Err(error) => {
                unsound = Some(error);
                continue;
            }
        };
        let is_it = |entry: &&BootPartition| match boot {
            Origin::Id(id) => entry.guid == id,
            Origin::Number(number) => entry.number == number,
        };
        let Some(entry) = table.iter().find(is_it) else { continue };
        let Some(partition) = disk.partitions.iter().find(|p| p.number == entry.number) else { continue };
        let slot = match partition.label.as_str() {
            "boot-a" => Slot::A,
            "boot-b" => Slot::B,
            other => return Err(LocateError::NotASlot { label: other.to_string() }),
        };
        let entry = |label| {
            let number = disk.partition(label)?.number;
            table.iter().find(|entry| entry.number == number).copied()
        };
        let boot = entry("boot-a").zip(entry("boot-b")).map(|(a, b)| [a, b]);
        let complete = table.iter().all(|entry| disk.partitions.iter().any(|p| p.number == entry.number));
        return Ok(Some(Located { slot, boot, complete, disk }));
    }
    unsound.map_or(Ok(None), Err)
}

fn read_table(root: &Path, device: &str) -> Result<Vec<BootPartition>, LocateError> {
    let number = |file: PathBuf| {
        let text = fs::read_to_string(&file).map_err(|source| LocateError::Read { path: file, source })?;
        Ok(text.trim().parse::<u64>().unwrap_or(0))
    };
    let sysfs = root.join("sys/class/block").join(device);
    let bytes = number(sysfs.join("size"))?.saturating_mul(512);
    let sector = number(sysfs.join("queue/logical_block_size"))?;
    let path = root.join("dev").join(device);
    let disk = fs::File::open(&path).map_err(|source| LocateError::Read { path: path.clone(), source })?;
    let mut read = |offset, length| {
        let mut buffer = vec![0; length];
        disk.read_exact_at(&mut buffer, offset).map(|()| buffer)
    };
    gpt::partitions(&mut read, bytes, sector)
        .map_err(|source| LocateError::Table { device: device.to_string(), source })
}

/// Why the boot partition cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// A file or device cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The partition table is broken.
    #[error("partition table of {device}")]
    Table {
        /// The disk.
        device: String,
        /// What is wrong.
        #[source]
        source: GptError,
    },
    /// The kernel came from a partition that is no slot.
    #[error("booted from partition \"{label}\", which is no boot slot")]
    NotASlot {
        /// Its name.
        label: String,
    },
}

#[cfg(test)]
pub(crate) mod sample {
    use std::{fs, path::Path};

    /// Partition `n` has the unique id of sixteen bytes `n`.
    pub fn id(n: u8) -> rustiot_loader::Guid {
        rustiot_loader::Guid([n; 16])
    }

    /// A disk in a fake `/sys` and `/dev` below `root`, with one partition of `sectors` per label.
    pub fn disk(root: &Path, name: &str, labels: &[&str], sectors: u64) {
        let ids: Vec<[u8; 16]> = (1..).map(|n| [n; 16]).take(labels.len()).collect();
        let image = crate::gpt::sample::disk(&ids);
        let device = root.join("sys/devices/pci0/block").join(name);
        let class = root.join("sys/class/block");
        fs::create_dir_all(device.join("queue")).unwrap();
        fs::create_dir_all(&class).unwrap();
        fs::create_dir_all(root.join("dev")).unwrap();
        put(&device.join("uevent"), &format!("MAJOR=254\nMINOR=0\nDEVNAME={name}\nDEVTYPE=disk\n"));
        put(&device.join("size"), &format!("{}\n", image.len() / 512));
        put(&device.join("queue/logical_block_size"), "512\n");
        fs::File::create(root.join("dev").join(name))
            .and_then(|mut f| std::io::Write::write_all(&mut f, &image))
            .unwrap();
        std::os::unix::fs::symlink(&device, class.join(name)).unwrap();
        for (n, label) in (1..).zip(labels) {
            let part = device.join(format!("{name}{n}"));
            fs::create_dir_all(&part).unwrap();
            put(
                &part.join("uevent"),
                &format!(
                    "MAJOR=254\nMINOR={n}\nDEVNAME={name}{n}\nDEVTYPE=partition\nPARTN={n}\nPARTNAME={label}\n"
                ),
            );
            put(&part.join("size"), &format!("{sectors}\n"));
            std::os::unix::fs::symlink(&part, class.join(format!("{name}{n}"))).unwrap();
        }
    }

    /// A file of the fake system.
    pub fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes())).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::{sample::id, *};
    use proptest::prelude::*;

    #[test]
    fn finds_slot_and_partitions_on_the_disk_that_booted_only() {
        let root = tempfile::tempdir().unwrap();
        let labels = ["config", "boot-a", "boot-b", "root-a", "root-b", "state"];
        sample::disk(root.path(), "sda", &["boot-a"], 8);
        sample::disk(root.path(), "vda", &labels, 2048);
        let found = locate(root.path(), Origin::Id(id(3))).unwrap().unwrap();
        assert_eq!(found.slot, Slot::B);
        assert_eq!(found.disk.device, "vda");
        assert_eq!(found.boot.unwrap().map(|entry| (entry.number, entry.guid)), [(2, id(2)), (3, id(3))]);
        assert!(found.complete);
        let state = found.disk.partition("state").unwrap();
        assert_eq!((state.device.as_str(), state.devno.as_str(), state.bytes), ("vda6", "254:6", 1 << 20));
        assert_eq!(found.disk.partition("data"), None);
    }

    #[test]
    fn a_number_counts_on_a_disk_with_our_slots_only() {
        let root = tempfile::tempdir().unwrap();
        sample::disk(root.path(), "mmcblk0", &["a", "b", "c", "d", "e"], 8);
        sample::disk(root.path(), "sda", &["autoboot", "config", "boot-a", "boot-b", "root-a"], 8);
        let found = |number| locate(root.path(), Origin::Number(number));
        for (number, slot) in [(3, Slot::A), (4, Slot::B)] {
            let found = found(number).unwrap().unwrap();
            assert_eq!((found.slot, found.disk.device.as_str()), (slot, "sda"));
        }
        assert_eq!(found(9).unwrap(), None);
        assert!(matches!(found(1), Err(LocateError::NotASlot { label }) if label == "autoboot"));
    }

    #[test]
    fn waits_for_an_unknown_id_and_refuses_what_is_no_slot() {
        let root = tempfile::tempdir().unwrap();
        sample::disk(root.path(), "vda", &["config", "boot-a"], 8);
        assert_eq!(locate(root.path(), Origin::Id(id(9))).unwrap(), None);
        let error = locate(root.path(), Origin::Id(id(1))).unwrap_err();
        assert_eq!(error.to_string(), "booted from partition \"config\", which is no boot slot");
    }

    #[test]
    fn tells_when_partitions_are_still_to_come() {
        let root = tempfile::tempdir().unwrap();
        sample::disk(root.path(), "vda", &["boot-a", "state"], 8);
        fs::remove_file(root.path().join("sys/class/block/vda2")).unwrap();
        let found = locate(root.path(), Origin::Id(id(1))).unwrap().unwrap();
        assert!(!found.complete);
    }

    #[test]
    fn ignores_disks_that_cannot_be_it() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(locate(root.path(), Origin::Id(id(1))).unwrap(), None, "no /sys/class/block at all");
        sample::disk(root.path(), "sda", &["something"], 8);
        fs::remove_file(root.path().join("dev/sda")).unwrap();
        assert_eq!(locate(root.path(), Origin::Id(id(1))).unwrap(), None);
    }

    #[test]
    fn reports_a_broken_table() {
        let root = tempfile::tempdir().unwrap();
        sample::disk(root.path(), "vda", &["boot-a"], 8);
        fs::File::create(root.path().join("dev/vda")).unwrap().set_len(64 * 512).unwrap();
        assert!(matches!(locate(root.path(), Origin::Id(id(1))), Err(LocateError::Table { .. })));
    }

    proptest! {
        #[test]
        fn a_uevent_says_what_it_says_in_any_order(
            lines in Just(["MAJOR=8", "MINOR=3", "DEVNAME=sda3", "DEVTYPE=partition", "PARTN=3", "PARTNAME=root=a"])
                .prop_shuffle(),
            missing in 0..6usize, sectors: u64,
        ) {
            let whole = parse_uevent(&lines.join("\n"), &format!("{sectors}\n"));
            let expected = sectors.checked_mul(512).map(|bytes| Partition {
                device: "sda3".into(), devno: "8:3".into(), number: 3, label: "root=a".into(), bytes,
            });
            prop_assert_eq!(&whole, &expected);
            let rest: Vec<&str> = lines.iter().enumerate().filter(|(n, _)| *n != missing).map(|(_, l)| *l).collect();
            let part = parse_uevent(&rest.join("\n"), &format!("{sectors}\n"));
            let optional = lines[missing].starts_with("PARTNAME") || lines[missing].starts_with("DEVTYPE");
            prop_assert_eq!(part.is_some(), whole.is_some() && optional);
        }

        #[test]
        fn any_text_is_a_partition_or_none(
            uevent in "(MAJOR=[0-9]{0,12}\n|MINOR=.*\n|DEVNAME=.*\n|PARTN=[0-9]{0,12}\n|.*\n){0,6}", size in ".*",
        ) {
            if let Some(partition) = parse_uevent(&uevent, &size) {
                prop_assert_eq!(partition.bytes % 512, 0);
                let device = format!("DEVNAME={}", partition.device);
                prop_assert!(uevent.lines().any(|line| line == device));
            }
        }
    }
}
