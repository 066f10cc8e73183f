//! What the engine tells about containers: lists, inspection, processes, samples, paths.
//!
//! The texts that Docker derives from these ("Up 5 minutes (healthy)") are made by the HTTP side, not by the engine.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::config::{ContainerConfig, HostConfig};
use super::network::{EndpointSettings, NetworkSettings};
use super::wire::zero_time;

/// Docker's states of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    #[default]
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended and waits for the restart policy's next start.
    Restarting,
    /// Is being removed.
    Removing,
    /// Ended.
    Exited,
    /// Could not be removed.
    Dead,
}

impl Status {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }
}

/// What a container does now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerState {
    /// State.
    pub status: Status,
    /// The last end was the kernel's OOM killer.
    pub oom_killed: bool,
    /// Process in the host's numbers; 0 when it does not run.
    pub pid: u32,
    /// Of the last end.
    pub exit_code: i32,
    /// Why the last start failed; empty otherwise.
    pub error: String,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last end.
    pub finished_at: Option<Timestamp>,
    /// When it has a health check.
    pub health: Option<Health>,
}

impl Serialize for ContainerState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Wire<'a> {
            status: Status,
            running: bool,
            paused: bool,
            restarting: bool,
            #[serde(rename = "OOMKilled")]
            oom_killed: bool,
            dead: bool,
            pid: u32,
            exit_code: i32,
            error: &'a str,
            #[serde(with = "zero_time")]
            started_at: Option<Timestamp>,
            #[serde(with = "zero_time")]
            finished_at: Option<Timestamp>,
            #[serde(skip_serializing_if = "Option::is_none")]
            health: Option<&'a Health>,
        }
        Wire {
            status: self.status,
            // Docker's own: a paused or restarting container counts as running.
            running: matches!(self.status, Status::Running | Status::Paused | Status::Restarting),
            paused: self.status == Status::Paused,
            restarting: self.status == Status::Restarting,
            oom_killed: self.oom_killed,
            dead: self.status == Status::Dead,
            pid: self.pid,
            exit_code: self.exit_code,
            error: &self.error,
            started_at: self.started_at,
            finished_at: self.finished_at,
            health: self.health.as_ref(),
        }
        .serialize(serializer)
    }
}

/// What the health check says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// Verdict.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last checks (Docker keeps five).
    pub log: Vec<HealthResult>,
}

/// A health check's verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No verdict yet.
    #[default]
    Starting,
    /// The last check passed.
    Healthy,
    /// Too many failures in a row.
    Unhealthy,
}

impl HealthStatus {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthResult {
    /// Begin.
    pub start: Timestamp,
    /// End.
    #[serde(with = "zero_time")]
    pub end: Option<Timestamp>,
    /// 0 is healthy.
    pub exit_code: i32,
    /// First 4096 bytes.
    pub output: String,
}

/// A port, exposed or published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Address on the host.
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    pub ip: Option<std::net::IpAddr>,
    /// In the container.
    #[serde(rename = "PrivatePort")]
    pub private_port: u16,
    /// On the host.
    #[serde(rename = "PublicPort", skip_serializing_if = "Option::is_none")]
    pub public_port: Option<u16>,
    /// `tcp`, `udp`, `sctp`.
    #[serde(rename = "Type")]
    pub protocol: String,
}

/// A mount as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MountPoint {
    /// `bind`, `volume`, `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Volume's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// On the host.
    pub source: String,
    /// In the container.
    pub destination: String,
    /// Volume's driver.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Options as given.
    pub mode: String,
    /// Writable.
    #[serde(rename = "RW")]
    pub rw: bool,
    /// Propagation.
    pub propagation: String,
}

/// One row of the list. Filters and the status text are made from it by the HTTP side.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerSummary {
    /// Full id.
    pub id: String,
    /// Without a slash.
    pub name: String,
    /// Image as named; its id when the name went to another image since.
    pub image: String,
    /// `sha256:…`.
    pub image_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
    /// Exposed and published.
    pub ports: Vec<Port>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// State.
    pub state: ContainerState,
    /// As in its host configuration.
    pub network_mode: String,
    /// By network name.
    pub networks: BTreeMap<String, EndpointSettings>,
    /// Mounts.
    pub mounts: Vec<MountPoint>,
    /// Bytes written; only when sizes were asked for.
    pub size_rw: Option<i64>,
    /// Bytes in all; only when sizes were asked for.
    pub size_root_fs: Option<i64>,
}

/// What `inspect` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerInspect {
    /// Full id.
    pub id: String,
    /// When it was made.
    #[serde(with = "zero_time")]
    pub created: Option<Timestamp>,
    /// Program.
    pub path: String,
    /// Arguments.
    pub args: Vec<String>,
    /// State.
    pub state: ContainerState,
    /// Image's id.
    pub image: String,
    /// File bound over `/etc/resolv.conf`.
    pub resolv_conf_path: String,
    /// File bound over `/etc/hostname`.
    pub hostname_path: String,
    /// File bound over `/etc/hosts`.
    pub hosts_path: String,
    /// Log file, where the driver has one.
    pub log_path: String,
    /// With a leading slash.
    pub name: String,
    /// Restarts by policy.
    pub restart_count: u32,
    /// Storage driver.
    pub driver: String,
    /// `linux`.
    pub platform: String,
    /// SELinux, unused.
    pub mount_label: String,
    /// SELinux, unused.
    pub process_label: String,
    /// Profile's name.
    pub app_armor_profile: String,
    /// Running execs.
    #[serde(rename = "ExecIDs")]
    pub exec_ids: Option<Vec<String>>,
    /// Host's half, as given and filled up.
    pub host_config: HostConfig,
    /// Storage driver's data.
    pub graph_driver: GraphDriver,
    /// Bytes written; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<i64>,
    /// Bytes in all; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<i64>,
    /// Mounts.
    pub mounts: Vec<MountPoint>,
    /// Image's half, as given and filled up.
    pub config: ContainerConfig,
    /// Networks.
    pub network_settings: NetworkSettings,
}

/// The storage driver's data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GraphDriver {
    /// Name.
    pub name: String,
    /// Paths.
    pub data: BTreeMap<String, String>,
}

/// Answer of `top`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Top {
    /// Columns.
    pub titles: Vec<String>,
    /// Rows.
    pub processes: Vec<Vec<String>>,
}

/// A path that differs from the image (`docker diff`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute, in the container.
    pub path: String,
    /// How.
    pub kind: ChangeKind,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Other content or attributes.
    Modified,
    /// New.
    Added,
    /// Gone.
    Deleted,
}

/// What `cp` must know about a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathStat {
    /// Last component.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// `st_mode` of Linux, type bits included.
    pub mode: u32,
    /// Last change.
    pub modified: Timestamp,
    /// Target of a symbolic link, resolved inside the container's root to an absolute path; empty for anything else.
    pub link_target: String,
}

/// How `cp` into a container behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutArchive {
    /// A directory never replaces a file nor the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Keep the archive's owners (`cp -a`); otherwise all belongs to the container's user.
    pub copy_uid_gid: bool,
}

/// An exec as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecInspect {
    /// Its id.
    pub id: String,
    /// Container's full id.
    pub container_id: String,
    /// Runs now.
    pub running: bool,
    /// `None` before it ended.
    pub exit_code: Option<i32>,
    /// In the host's numbers; 0 when it does not run.
    pub pid: u32,
    /// As it was asked for.
    pub config: super::config::ExecConfig,
}

/// One reading of a running container's counters. The HTTP side makes Docker's stream of pairs from them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// When they were read.
    pub read: Timestamp,
    /// Nanoseconds of CPU time (`cpu.stat` usage).
    pub cpu_total: u64,
    /// Of it in user mode.
    pub cpu_user: u64,
    /// Of it in the kernel.
    pub cpu_system: u64,
    /// Nanoseconds of CPU time of the whole machine, all CPUs together (`/proc/stat`).
    pub system_total: u64,
    /// CPUs that it may use.
    pub online_cpus: u32,
    /// `nr_periods`.
    pub throttling_periods: u64,
    /// `nr_throttled`.
    pub throttled_periods: u64,
    /// Nanoseconds throttled.
    pub throttled_time: u64,
    /// `memory.current`.
    pub memory_usage: u64,
    /// `memory.max`, or the machine's memory.
    pub memory_limit: u64,
    /// `memory.stat`, as far as it is cheap (`inactive_file` is needed: the command line subtracts it).
    pub memory_stats: BTreeMap<String, u64>,
    /// `oom_kill` of `memory.events`.
    pub memory_failcnt: u64,
    /// `pids.current`.
    pub pids: u64,
    /// `pids.max`; 0 for none.
    pub pids_limit: u64,
    /// Bytes and counts by block device.
    pub block: Vec<BlockSample>,
    /// By interface name in the container.
    pub interfaces: BTreeMap<String, InterfaceSample>,
}

/// `io.stat` of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockSample {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Counters of one network interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct InterfaceSample {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Dropped when receiving.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Dropped when sending.
    pub tx_dropped: u64,
}
