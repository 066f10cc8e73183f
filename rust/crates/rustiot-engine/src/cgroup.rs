//! Control groups of version 2: one for each container below the apps' own, its limits, its counters.
//!
//! Never touches a group outside the directory that it is given. Called by the container's lifecycle.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rustiot_docker_api::types::Resources;

/// The file systems' root, where libcontainer also looks.
pub const ROOT: &str = "/sys/fs/cgroup";

/// A limit that cannot be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {file} to {value} in {group}")]
pub struct Error {
    group: PathBuf,
    file: String,
    value: String,
    #[source]
    source: io::Error,
}

#[expect(clippy::disallowed_methods, reason = "a kernel's file: there is no medium to wait for")]
fn write(group: &Path, file: &str, value: &str) -> Result<(), Error> {
    std::fs::write(group.join(file), value).map_err(|source| Error {
        group: group.to_owned(),
        file: file.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Makes the apps' group and its group of shims, and hands the controllers that there are down to the containers.
///
/// # Errors
/// It cannot be made.
pub fn prepare(parent: &Path) -> io::Result<()> {
    std::fs::create_dir_all(shims(parent))?;
    let controllers = std::fs::read_to_string(parent.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        let _ = write(parent, "cgroup.subtree_control", &format!("+{controller}"));
    }
    Ok(())
}

/// The shims' group.
pub fn shims(parent: &Path) -> PathBuf {
    parent.join("shims")
}

/// Moves a process into it. The kernel waits for a grace period of RCU (some 10 ms), unless it has just done so.
///
/// # Errors
/// There is no such process any more, or the kernel refuses.
pub fn join(group: &Path, pid: u32) -> Result<(), Error> {
    write(group, "cgroup.procs", &pid.to_string())
}

/// Docker's shares (2 to 262144) as a weight (1 to 10000), as runc converts them.
fn weight(shares: i64) -> i64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// The limits as files and values, in the order in which they must be written.
pub fn limits(resources: &Resources) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    if resources.memory > 0 {
        out.push(("memory.max", resources.memory.to_string()));
        // Without a word: as much swap as memory, as Docker has it. The kernel's file counts swap alone.
        let swap = match resources.memory_swap {
            -1 => "max".to_owned(),
            0 => resources.memory.to_string(),
            both => (both - resources.memory).max(0).to_string(),
        };
        out.push(("memory.swap.max", swap));
    }
    if resources.memory_reservation > 0 {
        out.push(("memory.low", resources.memory_reservation.to_string()));
    }
    if resources.nano_cpus > 0 {
        out.push(("cpu.max", format!("{} 100000", (resources.nano_cpus / 10_000).max(1000))));
    } else if resources.cpu_quota != 0 || resources.cpu_period > 0 {
        let period = if resources.cpu_period > 0 { resources.cpu_period } else { 100_000 };
        let quota = if resources.cpu_quota > 0 { resources.cpu_quota.to_string() } else { "max".to_owned() };
        out.push(("cpu.max", format!("{quota} {period}")));
    }
    if resources.cpu_shares > 0 {
        out.push(("cpu.weight", weight(resources.cpu_shares).to_string()));
    }
    if !resources.cpuset_cpus.is_empty() {
        out.push(("cpuset.cpus", resources.cpuset_cpus.clone()));
    }
    if !resources.cpuset_mems.is_empty() {
        out.push(("cpuset.mems", resources.cpuset_mems.clone()));
    }
    match resources.pids_limit {
        Some(limit) if limit > 0 => out.push(("pids.max", limit.to_string())),
        Some(limit) if limit < 0 => out.push(("pids.max", "max".to_owned())),
        // Clients send 0 for nothing said.
        Some(_) | None => {}
    }
    if resources.blkio_weight > 0 {
        out.push(("io.weight", format!("default {}", resources.blkio_weight)));
    }
    let mut devices: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (list, key) in [
        (&resources.blkio_device_read_bps, "rbps"),
        (&resources.blkio_device_write_bps, "wbps"),
        (&resources.blkio_device_read_iops, "riops"),
        (&resources.blkio_device_write_iops, "wiops"),
    ] {
        for device in list {
            devices.entry(&device.path).or_default().push(format!("{key}={}", device.rate));
        }
    }
    for (path, rates) in devices {
        if let Some(number) = device_number(Path::new(path)) {
            out.push(("io.max", format!("{number} {}", rates.join(" "))));
        }
    }
    out
}

fn device_number(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let rdev = std::fs::metadata(path).ok()?.rdev();
    Some(format!("{}:{}", nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev)))
}

/// Makes a container's group with its limits.
///
/// # Errors
/// A limit that the kernel does not take, by name.
pub fn create(group: &Path, resources: &Resources, defaults: &Resources) -> Result<(), Error> {
    std::fs::create_dir_all(group).map_err(|source| Error {
        group: group.to_owned(),
        file: "cgroup".to_owned(),
        value: "a new group".to_owned(),
        source,
    })?;
    for (file, value) in limits(defaults) {
        // A default is no promise: a kernel without the controller still runs the container.
        let _ = write(group, file, &value);
    }
    update(group, resources)
}

/// New limits.
///
/// # Errors
/// As [`create`].
pub fn update(group: &Path, resources: &Resources) -> Result<(), Error> {
    for (file, value) in limits(resources) {
        match write(group, file, &value) {
            // Kernels without swap accounting have no such file, and nothing to limit.
            // No limit where there is nothing to limit with.
            Err(error) if (file == "memory.swap.max" || value == "max") && !group.join(file).exists() => {
                drop(error)
            }
            result => result?,
        }
    }
    Ok(())
}

/// Kills what is in it and removes it.
pub async fn remove(group: &Path) {
    if !group.exists() {
        return;
    }
    let _ = write(group, "cgroup.kill", "1");
    for _ in 0..100 {
        // Groups that the container made below its own go first.
        for below in below(group).into_iter().rev() {
            let _ = std::fs::remove_dir(below);
        }
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            _ => return,
        }
    }
}

fn below(group: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            all.push(entry.path());
            all.extend(below(&entry.path()));
        }
    }
    all
}

/// Freezes or thaws.
///
/// # Errors
/// The kernel refuses.
pub fn freeze(group: &Path, yes: bool) -> Result<(), Error> {
    write(group, "cgroup.freeze", if yes { "1" } else { "0" })
}

/// Whether it is frozen.
pub fn is_frozen(group: &Path) -> bool {
    std::fs::read_to_string(group.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
}

/// Kills everything in it.
pub fn kill(group: &Path) {
    let _ = write(group, "cgroup.kill", "1");
}

/// The processes in it and below.
pub fn processes(group: &Path) -> Vec<i32> {
    let mut groups = vec![group.to_owned()];
    groups.extend(below(group));
    let mut all = Vec::new();
    for group in groups {
        let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    all.sort_unstable();
    all
}

/// A file of `name value` lines.
pub fn table(group: &Path, file: &str) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// A file of one number; `None` for `max` and where there is none.
pub fn number(group: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_s_limits_become_the_kernel_s() {
        let mut r = Resources {
            memory: 64 << 20,
            nano_cpus: 1_500_000_000,
            pids_limit: Some(50),
            cpu_shares: 1024,
            ..Default::default()
        };
        assert_eq!(
            limits(&r),
            [
                ("memory.max", (64 << 20).to_string()),
                ("memory.swap.max", (64 << 20).to_string()),
                ("cpu.max", "150000 100000".to_owned()),
                ("cpu.weight", "39".to_owned()),
                ("pids.max", "50".to_owned()),
            ]
        );
        r = Resources { memory: 100, memory_swap: 100, ..Default::default() };
        assert!(limits(&r).contains(&("memory.swap.max", "0".to_owned())));
        r = Resources {
            memory: 100,
            memory_swap: -1,
            pids_limit: Some(-1),
            cpu_quota: 50_000,
            ..Default::default()
        };
        assert_eq!(
            limits(&r)[1..],
            [
                ("memory.swap.max", "max".to_owned()),
                ("cpu.max", "50000 100000".to_owned()),
                ("pids.max", "max".to_owned()),
            ]
        );
        assert_eq!((weight(2), weight(262_144), weight(1)), (1, 10_000, 1));
    }

    #[test]
    fn a_table_takes_what_it_understands() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cpu.stat"), "usage_usec 12\nnr_periods x\nuser_usec 7\n").unwrap();
        assert_eq!(
            table(dir.path(), "cpu.stat"),
            [("usage_usec".to_owned(), 12), ("user_usec".to_owned(), 7)].into()
        );
    }
}
