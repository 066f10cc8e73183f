//! A container's record as an OCI runtime specification: what Docker's options mean to the kernel.
//!
//! Pure but for looking up devices on the host. Never starts anything. Called when a container is started and when a
//! program is entered.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustiot_docker_api::Error;
use rustiot_docker_api::types::HostConfig;
use serde_json::{Value, json};

use crate::places::Places;
use crate::record::{Mount, MountKind, Record};
use crate::users::User;
use crate::{create, seccomp};

/// What a container may unless it is told otherwise: Docker's set.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All, by their numbers.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// When an app asks for nothing it goes before the host's services when memory ends, and after nothing of its own kind.
const OOM_SCORE: i32 = 300;
const SHM: i64 = 64 << 20;

/// What a container may do.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    pub capabilities: BTreeSet<String>,
    pub no_new_privileges: bool,
    /// A profile of the OCI specification, `None` for unconfined.
    pub seccomp: Option<Value>,
}

impl Confinement {
    /// The set with which libcontainer must hand over, and the set in the end when it is another one: see
    /// `rustiot_runtime`'s executor.
    pub fn handed_over(&self) -> (BTreeSet<String>, Option<String>) {
        let mut wide = self.capabilities.clone();
        if self.seccomp.is_none() || self.no_new_privileges || wide.contains("CAP_SYS_ADMIN") {
            return (wide, None);
        }
        let mask = ALL.iter().enumerate().filter(|(_, name)| self.capabilities.contains(**name));
        let mask = mask.fold(0_u64, |mask, (bit, _)| mask | 1 << bit);
        wide.extend(["CAP_SYS_ADMIN".to_owned(), "CAP_SETPCAP".to_owned()]);
        (wide, Some(format!("{mask:x}")))
    }
}

fn capability(name: &str) -> Result<String, Error> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if ALL.contains(&full.as_str()) {
        Ok(full)
    } else {
        Err(Error::Invalid(format!("invalid capability: unknown capability: \"{full}\"")))
    }
}

/// Docker's rules for `--cap-add`, `--cap-drop`, `--privileged` and `--security-opt`.
///
/// # Errors
/// Unknown names and options.
pub fn confinement(host: &HostConfig) -> Result<Confinement, Error> {
    let mut capabilities: BTreeSet<String> = DEFAULT.map(str::to_owned).into();
    let all = || ALL.map(str::to_owned).into();
    if host.privileged {
        capabilities = all();
    } else {
        let is_all = |name: &&String| name.eq_ignore_ascii_case("ALL");
        if host.cap_drop.iter().any(|n| is_all(&n)) {
            capabilities.clear();
        }
        if host.cap_add.iter().any(|n| is_all(&n)) {
            capabilities = all();
        }
        for name in host.cap_drop.iter().filter(|n| !is_all(n)) {
            capabilities.remove(&capability(name)?);
        }
        for name in host.cap_add.iter().filter(|n| !is_all(n)) {
            capabilities.insert(capability(name)?);
        }
    }
    let mut out = Confinement { capabilities, ..Confinement::default() };
    out.seccomp = (!host.privileged).then(|| seccomp::default_profile(&out.capabilities));
    for option in &host.security_opt {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => out.no_new_privileges = true,
            ("no-new-privileges", "false") | ("label" | "apparmor", _) => {}
            ("seccomp", "unconfined") => out.seccomp = None,
            ("seccomp", "builtin") => {}
            ("seccomp", text) => {
                out.seccomp = Some(seccomp::custom_profile(text, &out.capabilities).map_err(Error::Invalid)?);
            }
            ("systempaths" | "systempaths=unconfined", _) => {}
            _ => return Err(Error::Invalid(format!("invalid --security-opt: {option:?}"))),
        }
    }
    Ok(out)
}

/// What the start of a container found out.
pub struct Surroundings<'a> {
    pub root: &'a Path,
    pub group: String,
    /// Of its network; `None` for the host's own, an empty one for a new one without anything.
    pub network: Option<PathBuf>,
    pub user: &'a User,
    /// `hosts`, `hostname`, `resolv.conf`.
    pub files: &'a Path,
    /// Namespaces of another container: kind and path.
    pub joined: Vec<(&'static str, PathBuf)>,
    pub hostname: String,
    pub init: Option<&'a Path>,
    /// The arguments in the end.
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
}

/// The capabilities as the specification has them.
fn capabilities(set: &BTreeSet<String>) -> Value {
    json!({ "bounding": set, "effective": set, "permitted": set, "inheritable": [], "ambient": [] })
}

/// How much sooner than the system's services a container's processes end when memory runs out. For entered ones it must
/// be said as well: their parent is the shim, which is protected.
pub fn oom_score(host: &HostConfig) -> i32 {
    if host.oom_score_adj == 0 { OOM_SCORE } else { host.oom_score_adj }
}

/// A process of the container.
pub fn process(
    arguments: &[String],
    environment: &[String],
    directory: &str,
    user: &User,
    terminal: bool,
    confinement: &Confinement,
    handed_over: &BTreeSet<String>,
) -> Value {
    let mut process = json!({
        "terminal": terminal,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "args": arguments,
        "env": environment,
        "cwd": if directory.is_empty() { "/" } else { directory },
        "capabilities": capabilities(handed_over),
    });
    // Absent where it is not wanted: libcontainer takes a `false` for a wish to install the filter late.
    if confinement.no_new_privileges
        && let Some(process) = process.as_object_mut()
    {
        process.insert("noNewPrivileges".to_owned(), true.into());
    }
    process
}

/// The bundle's `config.json`.
///
/// # Errors
/// Options that make no sense on this host.
pub fn build(
    record: &Record,
    confinement: &Confinement,
    around: &Surroundings<'_>,
    mut places: Places,
) -> Result<Value, Error> {
    let mut place = |target: &str, source: Option<&Path>| {
        let place = places.mount(Path::new(target), source);
        let place = place.map_err(|e| Error::failed(format!("cannot follow the links to {target}"), e))?;
        Ok::<_, Error>(place.to_string_lossy().into_owned())
    };
    let host = &record.host;
    let (wide, _) = confinement.handed_over();
    let mut arguments = around.arguments.clone();
    let mut mounts = base_mounts(host);
    for mount in &mounts {
        place(mount["destination"].as_str().unwrap_or_default(), None)?;
    }
    if let Some(init) = around.init {
        arguments.splice(0..0, ["/sbin/docker-init".to_owned(), "--".to_owned()]);
        mounts.push(bind(&init.to_string_lossy(), &place("/sbin/docker-init", None)?, &["ro"]));
    }
    let mut own = own_files(record, around);
    own.extend(record.mounts.iter().cloned());
    // Outer paths before inner ones: what the engine writes is seen in a volume at /etc, too. Not in one that is read-only,
    // where no place can be made for it.
    own.sort_by_key(|m| if m.target == "/etc" && m.read_only { 3 } else { m.target.matches('/').count() });
    for mount in &own {
        let source = (mount.kind != MountKind::Tmpfs).then_some(Path::new(&mount.source));
        let place = place(&mount.target, source)?;
        mounts.retain(|m| m["destination"] != place.as_str());
        match mount.kind {
            MountKind::Tmpfs => {
                let mut options = vec!["noexec", "nosuid", "nodev"];
                for option in mount.options.split(',').filter(|o| !o.is_empty()) {
                    options.retain(|o| o.strip_prefix("no") != Some(option));
                    options.push(option);
                }
                mounts.push(
                    json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options }),
                );
            }
            MountKind::Bind | MountKind::Volume => {
                let mut options =
                    vec![if mount.propagation.is_empty() { "rprivate" } else { &mount.propagation }];
                if mount.read_only {
                    options.push("ro");
                }
                mounts.push(bind(&mount.source, &place, &options));
            }
        }
    }
    let mut linux = json!({
        "cgroupsPath": format!("/{}", around.group),
        "namespaces": namespaces(host, around),
        "maskedPaths": [],
        "readonlyPaths": [],
        "sysctl": sysctls(host, around),
    });
    let (devices, rules) = devices(host)?;
    let rows = host.console_size;
    let mut process = process(
        &arguments,
        &around.environment,
        &record.config.working_dir,
        around.user,
        record.config.tty,
        confinement,
        &wide,
    );
    if let Some(process) = process.as_object_mut() {
        process.insert("oomScoreAdj".to_owned(), oom_score(host).into());
        process.insert("rlimits".to_owned(), rlimits(host)?);
        if record.config.tty && rows != [0, 0] {
            process.insert("consoleSize".to_owned(), json!({ "height": rows[0], "width": rows[1] }));
        }
    }
    if let Some(linux) = linux.as_object_mut() {
        linux.insert("devices".to_owned(), devices.into());
        linux.insert("resources".to_owned(), json!({ "devices": rules }));
        let open = host.privileged || host.security_opt.iter().any(|o| o.starts_with("systempaths"));
        if !open {
            let paths = |own: &Option<Vec<String>>, default: &[&str]| -> Value {
                own.as_ref().map_or_else(|| json!(default), |own| json!(own))
            };
            linux.insert("maskedPaths".to_owned(), paths(&host.masked_paths, &MASKED));
            linux.insert("readonlyPaths".to_owned(), paths(&host.readonly_paths, &READ_ONLY));
        }
        if let Some(seccomp) = &confinement.seccomp {
            linux.insert("seccomp".to_owned(), seccomp.clone());
        }
    }
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": { "path": around.root, "readonly": host.readonly_rootfs },
        "mounts": mounts,
        "linux": linux,
    });
    if let Some(spec) = spec.as_object_mut()
        && host.uts_mode != "host"
    {
        spec.insert("hostname".to_owned(), around.hostname.clone().into());
        if !record.config.domainname.is_empty() {
            spec.insert("domainname".to_owned(), record.config.domainname.clone().into());
        }
    }
    Ok(spec)
}

/// The container's name, addresses and name servers.
fn own_files(record: &Record, around: &Surroundings<'_>) -> Vec<Mount> {
    let of = |name: &str| {
        // In many images /etc/resolv.conf is a link to what some service makes on a machine.
        let (file, target) = (around.files.join(name), format!("/etc/{name}"));
        let wanted = file.exists() && record.mounts.iter().all(|m| m.target != target);
        wanted.then(|| Mount {
            read_only: record.host.readonly_rootfs,
            ..create::bind(&file.to_string_lossy(), target)
        })
    };
    ["hosts", "hostname", "resolv.conf"].into_iter().filter_map(of).collect()
}

fn bind(source: &str, target: &str, options: &[&str]) -> Value {
    let mut all = vec!["rbind"];
    all.extend(options);
    json!({ "destination": target, "type": "bind", "source": source, "options": all })
}

fn base_mounts(host: &HostConfig) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let access = if host.privileged { "rw" } else { "ro" };
    let shm = format!("size={}", if host.shm_size > 0 { host.shm_size } else { SHM });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", access]),
    ];
    if host.ipc_mode == "host" {
        mounts.push(bind("/dev/mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]));
        mounts.push(bind("/dev/shm", "/dev/shm", &["nosuid", "noexec", "nodev"]));
    } else {
        mounts.push(mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
        mounts.push(json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", shm] }));
    }
    mounts
}

fn namespaces(host: &HostConfig, around: &Surroundings<'_>) -> Vec<Value> {
    let joined = |kind: &str| around.joined.iter().find(|(k, _)| *k == kind).map(|(_, path)| path);
    let mut out = vec![json!({ "type": "mount" })];
    for (kind, shared) in [
        ("pid", host.pid_mode == "host"),
        ("ipc", host.ipc_mode == "host"),
        ("uts", host.uts_mode == "host"),
        ("cgroup", host.cgroupns_mode == "host" || host.privileged && host.cgroupns_mode.is_empty()),
    ] {
        match joined(kind) {
            Some(path) => out.push(json!({ "type": kind, "path": path })),
            None if !shared => out.push(json!({ "type": kind })),
            None => {}
        }
    }
    match &around.network {
        Some(path) if path.as_os_str().is_empty() => out.push(json!({ "type": "network" })),
        Some(path) => out.push(json!({ "type": "network", "path": path })),
        None => {}
    }
    out
}

fn sysctls(host: &HostConfig, around: &Surroundings<'_>) -> Value {
    let mut all = host.sysctls.clone();
    if around.network.is_some() && !host.privileged && !host.network_mode.starts_with("container:") {
        // In a network of its own, low ports and ping need no privilege.
        all.entry("net.ipv4.ip_unprivileged_port_start".to_owned()).or_insert_with(|| "0".to_owned());
        all.entry("net.ipv4.ping_group_range".to_owned()).or_insert_with(|| "0 2147483647".to_owned());
    }
    json!(all)
}

/// Sysctls that belong to a namespace of the container.
///
/// # Errors
/// Any other.
pub fn check_sysctls(host: &HostConfig) -> Result<(), Error> {
    for name in host.sysctls.keys() {
        let ipc = name.starts_with("kernel.msg")
            || name.starts_with("kernel.shm")
            || name == "kernel.sem"
            || name.starts_with("fs.mqueue.");
        let network = name.starts_with("net.") && host.network_mode != "host";
        if !(ipc && host.ipc_mode != "host" || network) {
            return Err(Error::Invalid(format!(
                "sysctl '{name}' is not allowed: it is not the container's own"
            )));
        }
    }
    Ok(())
}

fn rlimits(host: &HostConfig) -> Result<Value, Error> {
    let mut out = Vec::new();
    for limit in &host.resources.ulimits {
        let name = limit.name.to_ascii_uppercase();
        let known = [
            "CORE",
            "CPU",
            "DATA",
            "FSIZE",
            "LOCKS",
            "MEMLOCK",
            "MSGQUEUE",
            "NICE",
            "NOFILE",
            "NPROC",
            "RSS",
            "RTPRIO",
            "RTTIME",
            "SIGPENDING",
            "STACK",
            "AS",
        ];
        if !known.contains(&name.as_str()) {
            return Err(Error::Invalid(format!("invalid ulimit type: {}", limit.name)));
        }
        let value = |v: i64| u64::try_from(v).unwrap_or(u64::MAX);
        out.push(
            json!({ "type": format!("RLIMIT_{name}"), "soft": value(limit.soft), "hard": value(limit.hard) }),
        );
    }
    Ok(out.into())
}

/// One node and the rule for it.
fn device(host_path: &str, target: &str, access: &str) -> Result<Option<(Value, Value)>, Error> {
    let missing = |why: std::io::Error| {
        Error::Invalid(format!(
            "error gathering device information while adding custom device \"{host_path}\": {why}"
        ))
    };
    let meta = std::fs::metadata(host_path).map_err(missing)?;
    let kind = if meta.file_type().is_block_device() {
        "b"
    } else if meta.file_type().is_char_device() {
        "c"
    } else {
        return Ok(None);
    };
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    let node = json!({ "path": target, "type": kind, "major": major, "minor": minor, "fileMode": meta.mode() & 0o777,
        "uid": meta.uid(), "gid": meta.gid() });
    let rule = json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access });
    Ok(Some((node, rule)))
}

/// Every device node below `path`, but for what a container has of its own.
fn all_devices(path: &Path, out: &mut Vec<(Value, Value)>) -> Result<(), Error> {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            let own = ["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.udev"];
            if !own.iter().any(|o| Path::new(o) == path) {
                all_devices(&path, out)?;
            }
        } else if (kind.is_char_device() || kind.is_block_device()) && path != Path::new("/dev/console") {
            let text = path.to_string_lossy();
            out.extend(device(&text, &text, "rwm")?);
        }
    }
    Ok(())
}

fn devices(host: &HostConfig) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let mut nodes = Vec::new();
    if host.privileged {
        let mut all = Vec::new();
        all_devices(Path::new("/dev"), &mut all)?;
        nodes.extend(all.into_iter().map(|(node, _)| node));
        return Ok((nodes, vec![json!({ "allow": true, "access": "rwm" })]));
    }
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx, terminals; tun is Docker's too.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 200)] {
        rules.push(json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" }));
    }
    rules.push(json!({ "allow": true, "type": "c", "major": 136, "access": "rwm" }));
    for mapping in &host.resources.devices {
        let target = if mapping.path_in_container.is_empty() {
            &mapping.path_on_host
        } else {
            &mapping.path_in_container
        };
        let access = if mapping.cgroup_permissions.is_empty() { "rwm" } else { &mapping.cgroup_permissions };
        match device(&mapping.path_on_host, target, access)? {
            Some((node, rule)) => {
                nodes.push(node);
                rules.push(rule);
            }
            // A directory: every device in it.
            None => {
                let mut all = Vec::new();
                all_devices(Path::new(&mapping.path_on_host), &mut all)?;
                for (node, rule) in all {
                    nodes.push(node);
                    rules.push(rule);
                }
            }
        }
    }
    for rule in host.resources.device_cgroup_rules.iter().flatten() {
        rules.push(
            device_rule(rule)
                .ok_or_else(|| Error::Invalid(format!("invalid device cgroup rule format: '{rule}'")))?,
        );
    }
    Ok((nodes, rules))
}

/// `c 189:* rwm`.
fn device_rule(text: &str) -> Option<Value> {
    let mut words = text.split_whitespace();
    let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
    let (major, minor) = numbers.split_once(':')?;
    let number = |n: &str| match n {
        "*" => Some(-1_i64),
        n => n.parse::<u32>().ok().map(i64::from),
    };
    let good = ["a", "b", "c"].contains(&kind)
        && words.next().is_none()
        && !access.is_empty()
        && access.chars().all(|c| "rwm".contains(c));
    good.then(|| Some(json!({ "allow": true, "type": kind, "major": number(major)?, "minor": number(minor)?, "access": access })))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(add: &[&str], drop: &[&str]) -> HostConfig {
        HostConfig {
            cap_add: add.iter().map(|s| (*s).to_owned()).collect(),
            cap_drop: drop.iter().map(|s| (*s).to_owned()).collect(),
            ..HostConfig::default()
        }
    }

    #[test]
    fn capabilities_follow_docker_s_rules() {
        let of = |host: &HostConfig| confinement(host).unwrap().capabilities;
        assert_eq!(of(&host(&[], &[])).len(), 14);
        let one = of(&host(&["net_admin"], &["ALL"]));
        assert_eq!(one, ["CAP_NET_ADMIN".to_owned()].into());
        let most = of(&host(&["ALL"], &["CAP_SYS_ADMIN"]));
        assert!(most.len() == 40 && !most.contains("CAP_SYS_ADMIN"));
        assert!(confinement(&host(&["NO_SUCH"], &[])).is_err());
    }

    #[test]
    fn a_filter_without_the_right_to_install_it_is_handed_over_wide() {
        let plain = confinement(&host(&[], &[])).unwrap();
        let (wide, mask) = plain.handed_over();
        assert!(wide.contains("CAP_SYS_ADMIN") && wide.len() == 15);
        // Docker's well-known default mask.
        assert_eq!(mask.as_deref(), Some("a80425fb"));
        let mut options = host(&[], &[]);
        options.security_opt = vec!["no-new-privileges".to_owned()];
        let (same, mask) = confinement(&options).unwrap().handed_over();
        assert!(mask.is_none() && !same.contains("CAP_SYS_ADMIN"));
        options.security_opt = vec!["seccomp=unconfined".to_owned()];
        assert!(confinement(&options).unwrap().handed_over().1.is_none());
        options.security_opt = vec!["nonsense=1".to_owned()];
        assert!(confinement(&options).is_err());
    }

    #[test]
    fn device_rules_are_read_strictly() {
        assert_eq!(device_rule("c 189:* rw").unwrap()["minor"], -1);
        for bad in ["c 1 r", "x 1:2 r", "c 1:2", "c 1:2 rx", "c 1:2 r more", ""] {
            assert!(device_rule(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn sysctls_of_the_host_are_refused() {
        let mut host = host(&[], &[]);
        host.sysctls = [("net.core.somaxconn".to_owned(), "1".to_owned())].into();
        assert!(check_sysctls(&host).is_ok());
        host.network_mode = "host".to_owned();
        assert!(check_sysctls(&host).is_err());
        host.sysctls = [("kernel.panic".to_owned(), "1".to_owned())].into();
        assert!(check_sysctls(&host).is_err());
    }
}
