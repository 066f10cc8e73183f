//! Steps: the file systems of `state` and `data`, the `config` partition, growth, and the directories of `/var`.
//!
//! The rules: what is there and can be mounted is used; what holds no file system gets one; what is broken is
//! repaired, and made anew when repair does not help; a medium that cannot be *read* is never formatted, because it
//! may work again on the next start. When all fails there is memory in its place: the device stays reachable.

use crate::gpt;
use crate::journal::Journal;
use crate::os::{Disk, Mount, Os, Partition};
use crate::status::Outcome;
use crate::superblock::{self, Found, PROBE, UNFINISHED};
use std::io;
use std::path::Path;

/// How a step ended, with what there is to say.
pub(crate) type Result = (Outcome, String);

const MIB: u64 = 1 << 20;
/// What is said of a file system that is new, where there was none.
pub(crate) const MADE: &str = "made";
/// The label of the file system that containers write to.
const SHARED: &str = "data";

fn probe(os: &impl Os, partition: &Partition) -> io::Result<Found> {
    let length = PROBE.min(usize::try_from(partition.bytes).unwrap_or(PROBE));
    Ok(superblock::look(&os.read_device(&partition.device, 0, length)?))
}

/// Repairs. e2fsck(8): 0 clean, 1 repaired, 2 repaired and a restart is due; above that errors are left.
fn repair(os: &impl Os, partition: &Partition) -> std::result::Result<(), String> {
    match os.run("e2fsck", &["-f", "-y", &partition.device]) {
        Ok(ran) if ran.code.is_some_and(|code| (0..=2).contains(&code)) => Ok(()),
        Ok(ran) => Err(format!("e2fsck ended with {:?}: {}", ran.code, ran.stderr)),
        Err(error) => Err(format!("e2fsck cannot be run: {error}")),
    }
}

fn succeed(os: &impl Os, program: &str, arguments: &[&str]) -> std::result::Result<(), String> {
    match os.run(program, arguments) {
        Ok(ran) if ran.code == Some(0) => Ok(()),
        Ok(ran) => Err(format!("{program} ended with {:?}: {}", ran.code, ran.stderr)),
        Err(error) => Err(format!("{program} cannot be run: {error}")),
    }
}

fn make(os: &impl Os, partition: &Partition, label: &str) -> std::result::Result<(), String> {
    // What containers cannot take from the system on the partition that they share: with it the engine can still write
    // down that one is removed.
    let reserved = if label == SHARED { "1" } else { "0" };
    let label = format!("{label}{UNFINISHED}");
    // A broken superblock is repaired from the copy in the second block group, so there must be one where e2fsck
    // looks: a group is 8 × block size blocks (128 MiB with 4 KiB, 8 MiB with 1 KiB).
    let block = if partition.bytes <= 2 * 128 * MIB { "1024" } else { "4096" };
    // Lazy initialisation: quick on a large medium; the kernel does the rest in the background.
    let arguments = [
        "-q",
        "-F",
        "-L",
        &label,
        "-m",
        reserved,
        "-b",
        block,
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1",
    ];
    let arguments: Vec<&str> = arguments.into_iter().chain([partition.device.as_str()]).collect();
    succeed(os, "mkfs.ext4", &arguments)
}

/// Gives a file system that is whole its label.
fn finish(os: &impl Os, partition: &Partition, label: &str) -> std::result::Result<(), String> {
    // By default the reserve is root's by number, and a container's root has the same number. Made another user's, it
    // is for those with CAP_SYS_RESOURCE: the engine has it, containers have not.
    let owner: &[&str] = if label == SHARED { &["-u", "65534"] } else { &[] };
    succeed(os, "tune2fs", &[&["-L", label], owner, &[partition.device.as_str()]].concat())
}

/// The file system of a partition, mounted: made, repaired or made anew as it needs.
pub(crate) fn file_system(os: &impl Os, disk: &Disk, label: &str) -> Result {
    let target = format!("/{label}");
    let Some(partition) = disk.partition(label) else {
        return in_memory(os, &target, format!("there is no partition {label:?}"));
    };
    match os.mounted(&target) {
        Ok(Some((kind, _))) if kind == "ext4" => return mounted_already(os, partition, label),
        Ok(Some(_)) => {
            // Memory of an earlier run that failed.
            if let Err(error) = os.unmount(&target) {
                return (
                    Outcome::Degraded,
                    format!("{target} is in use and cannot be put right now: {error}"),
                );
            }
        }
        Ok(None) => {}
        Err(error) => return (Outcome::Failed, format!("the list of mounts cannot be read: {error}")),
    }
    let mount = || os.mount(Mount::Ext4(&partition.device), &target);
    let lost = match probe(os, partition) {
        Err(error) => return in_memory(os, &target, format!("{label} cannot be read ({error})")),
        Ok(Found::Blank) => None,
        Ok(found) => {
            let why = match found {
                // Perhaps only its superblock is gone: e2fsck looks for a copy.
                Found::Other => "held something that is no ext4".to_owned(),
                _ => match mount() {
                    Ok(()) => return mounted_already(os, partition, label),
                    Err(error) => format!("could not be mounted ({error})"),
                },
            };
            match repair(os, partition).and_then(|()| mount().map_err(|error| error.to_string())) {
                Ok(()) => return (Outcome::Done, format!("{label} {why} and was repaired")),
                Err(_) if matches!(found, Found::Ext4 { unfinished: true, .. }) => None,
                Err(error) => Some(format!("{label} {why} and could not be repaired ({error})")),
            }
        }
    };
    let made = make(os, partition, label)
        .and_then(|()| mount().map_err(|error| error.to_string()))
        .and_then(|()| finish(os, partition, label));
    match (made, lost) {
        (Ok(()), None) => (Outcome::Done, MADE.into()),
        (Ok(()), Some(why)) => (Outcome::Degraded, format!("{why}; made anew, its content is lost")),
        (Err(error), None) => in_memory(os, &target, format!("{label} cannot be made ({error})")),
        (Err(error), Some(why)) => {
            in_memory(os, &target, format!("{why}, and cannot be made anew ({error})"))
        }
    }
}

/// A mounted file system in which the kernel has found errors is repaired while nobody uses it yet.
fn mounted_already(os: &impl Os, partition: &Partition, label: &str) -> Result {
    let target = format!("/{label}");
    match probe(os, partition) {
        Ok(Found::Ext4 { errors: true, .. }) => {}
        Ok(Found::Ext4 { unfinished: true, .. }) => {
            return match finish(os, partition, label) {
                Ok(()) => (Outcome::Done, MADE.into()),
                Err(error) => (Outcome::Failed, error),
            };
        }
        _ => return (Outcome::Unchanged, String::new()),
    }
    if let Err(error) = os.unmount(&target) {
        return (
            Outcome::Degraded,
            format!("{target} has errors, but is in use and cannot be repaired: {error}"),
        );
    }
    let repaired = repair(os, partition);
    match (repaired, os.mount(Mount::Ext4(&partition.device), &target)) {
        (Ok(()), Ok(())) => (Outcome::Done, format!("{target} had errors and was repaired")),
        (Err(why), Ok(())) => {
            (Outcome::Degraded, format!("{target} has errors that repair does not end: {why}"))
        }
        (_, Err(error)) => {
            in_memory(os, &target, format!("{target} cannot be mounted after repair ({error})"))
        }
    }
}

fn in_memory(os: &impl Os, target: &str, why: String) -> Result {
    match os.mount(Mount::Memory, target) {
        Ok(()) => (Outcome::Degraded, format!("{why}; {target} is in memory until the next start")),
        Err(error) => (Outcome::Failed, format!("{why}, and memory cannot be mounted at {target}: {error}")),
    }
}

/// Mounts the owner's partition, read only. Run again, it shows what was changed on the medium meanwhile.
pub(crate) fn config(os: &impl Os, disk: &Disk) -> Result {
    const TARGET: &str = "/config";
    let Some(partition) = disk.partition("config") else {
        return (Outcome::Degraded, "there is no partition \"config\": last good values are used".into());
    };
    let was = os.mounted(TARGET).ok().flatten().is_some();
    if was && let Err(error) = os.unmount(TARGET) {
        // Somebody works in there: what he wrote through this mount is seen anyway.
        return (Outcome::Unchanged, format!("/config is in use and was not mounted afresh: {error}"));
    }
    match os.mount(Mount::Fat(&partition.device), TARGET) {
        Ok(()) => (Outcome::Unchanged, String::new()),
        Err(error) => (Outcome::Degraded, format!("cannot be mounted ({error}): last good values are used")),
    }
}

/// What lies in `/var` and must outlive a start: `(directory on state or data, mode, place in /var)`.
const BINDS: [(&str, u32, &str); 2] =
    [("/data/log", 0o755, "/var/log"), ("/state/systemd", 0o755, "/var/lib/systemd")];

/// Brings the lasting directories to their places in `/var`, which itself is memory.
pub(crate) fn var(os: &impl Os) -> Result {
    let mut problems = Vec::new();
    for (source, mode, target) in BINDS {
        if matches!(os.mounted(target), Ok(Some(_))) {
            continue;
        }
        let bound = os
            .make_dir(Path::new(source), mode)
            .and_then(|()| os.make_dir(Path::new(target), mode))
            .and_then(|()| os.mount(Mount::Bind(source), target));
        if let Err(error) = bound {
            problems.push(format!("{target} is not kept over a restart: {error}"));
        }
    }
    let outcome = if problems.is_empty() { Outcome::Unchanged } else { Outcome::Degraded };
    (outcome, problems.join("; "))
}

struct Medium<'a, O> {
    os: &'a O,
    device: &'a str,
}

impl<O: Os> gpt::Read for Medium<'_, O> {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        self.os.read_device(self.device, offset, length).ok()
    }
}

/// Grows the `data` partition to the end of the medium and tells the kernel. The file system follows in
/// [`grow_data`], or is made large enough from the start.
pub(crate) fn grow_table(os: &impl Os, disk: &Disk, journal: &mut Journal) -> Result {
    if journal.table_for == disk.bytes {
        return (Outcome::Unchanged, String::new());
    }
    let medium = Medium { os, device: &disk.device };
    let plan = match gpt::grow(&medium, disk.bytes, disk.sector, "data") {
        Ok(plan) => plan,
        Err(error) => return (Outcome::Degraded, error.to_string()),
    };
    for (offset, bytes) in &plan.writes {
        if let Err(error) = os.write_device(&disk.device, *offset, bytes) {
            return (Outcome::Failed, format!("the partition table cannot be written: {error}"));
        }
    }
    let known = disk.partition("data").map_or(0, |partition| partition.bytes);
    if known != plan.partition.length
        && let Err(error) = os.resize_partition(&disk.device, plan.partition)
    {
        // The table is right; the kernel reads it on the next start.
        return (Outcome::Failed, format!("the kernel does not take the new size of data now: {error}"));
    }
    if let Err(error) = journal.update(os, |journal| journal.table_for = disk.bytes) {
        return (Outcome::Failed, format!("the journal cannot be written: {error}"));
    }
    match known.cmp(&plan.partition.length) {
        std::cmp::Ordering::Less => {
            let (from, to) = (known / MIB, plan.partition.length / MIB);
            (Outcome::Done, format!("data grows from {from} to {to} MiB"))
        }
        _ if plan.writes.is_empty() => (Outcome::Unchanged, String::new()),
        _ => (Outcome::Done, "the partition table was put right".into()),
    }
}

/// Lets the mounted file system of `data` fill its partition, while it is in use.
pub(crate) fn grow_data(os: &impl Os, disk: &Disk, journal: &mut Journal) -> Result {
    let Some(partition) = disk.partition("data") else {
        return (Outcome::Degraded, "there is no partition \"data\"".into());
    };
    if journal.data_filled == partition.bytes {
        return (Outcome::Unchanged, String::new());
    }
    match os.mounted("/data") {
        Ok(Some((kind, _))) if kind == "ext4" => {}
        _ => return (Outcome::Degraded, "data is not on its partition".into()),
    }
    if let Err(error) = succeed(os, "resize2fs", &[&partition.device]) {
        return (Outcome::Failed, error);
    }
    match journal.update(os, |journal| journal.data_filled = partition.bytes) {
        Ok(()) => (Outcome::Done, format!("data has {} MiB", partition.bytes / MIB)),
        Err(error) => (Outcome::Failed, format!("the journal cannot be written: {error}")),
    }
}
