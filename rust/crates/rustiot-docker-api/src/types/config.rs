//! What a container is made of, as `POST /containers/create` takes it and as inspection shows it again.
//!
//! Used by [`crate::Engine::create_container`], which also checks what cannot be checked without the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::network::EndpointSettings;
use super::wire::{Empty, is_zero, list_or_one};

/// What belongs to the image as much as to the container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Host name; empty for the short id.
    pub hostname: String,
    /// NIS domain name.
    pub domainname: String,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// The creating client wants to attach to it.
    pub attach_stdin: bool,
    /// As above.
    pub attach_stdout: bool,
    /// As above.
    pub attach_stderr: bool,
    /// `80/tcp` and so on.
    pub exposed_ports: BTreeMap<String, Empty>,
    /// A pseudo-terminal instead of three pipes.
    pub tty: bool,
    /// Keep standard input open without anybody attached.
    pub open_stdin: bool,
    /// Close standard input when the first attached client goes.
    pub stdin_once: bool,
    /// `NAME=value`; a name alone removes it from the image's.
    pub env: Vec<String>,
    /// Arguments; `None` for the image's.
    #[serde(deserialize_with = "list_or_one")]
    pub cmd: Option<Vec<String>>,
    /// Health check; `None` for the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    /// Image as it was named.
    pub image: String,
    /// Paths that become anonymous volumes.
    pub volumes: BTreeMap<String, Empty>,
    /// Working directory.
    pub working_dir: String,
    /// Program; `None` for the image's; a list with one empty string for none.
    #[serde(deserialize_with = "list_or_one")]
    pub entrypoint: Option<Vec<String>>,
    /// No network at all.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub network_disabled: bool,
    /// MAC address of its first interface (older clients put it here).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal of `stop`, by name or number; empty for the image's or SIGTERM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds of `stop` before SIGKILL; `None` for 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Shell of the image's shell-form commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

/// A health check. Durations are nanoseconds; 0 inherits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthConfig {
    /// `[]` inherits, `["NONE"]` switches off, `["CMD", …]`, `["CMD-SHELL", line]`.
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Of one check.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Failures at the start that do not count.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks in the start period.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// What belongs to the host: limits, mounts, ports, privileges.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `source:target[:options]`.
    pub binds: Vec<String>,
    /// File that the client wrote the id to.
    #[serde(rename = "ContainerIDFile")]
    pub container_id_file: String,
    /// Log driver.
    pub log_config: LogConfig,
    /// `bridge` (also when the client said `default` or nothing), `host`, `none`, `container:ID` or a network's name.
    pub network_mode: String,
    /// `80/tcp` → where on the host.
    pub port_bindings: BTreeMap<String, Option<Vec<PortBinding>>>,
    /// What to do when it ends.
    pub restart_policy: RestartPolicy,
    /// Remove it when it ends.
    pub auto_remove: bool,
    /// Driver of anonymous volumes.
    pub volume_driver: String,
    /// Containers whose volumes it takes over.
    pub volumes_from: Vec<String>,
    /// Height and width.
    pub console_size: [u32; 2],
    /// Annotations handed to the runtime.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Capabilities added to the default set.
    pub cap_add: Vec<String>,
    /// Capabilities taken from it.
    pub cap_drop: Vec<String>,
    /// `private`, `host` or empty.
    pub cgroupns_mode: String,
    /// Name servers.
    pub dns: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// `name:address`.
    pub extra_hosts: Vec<String>,
    /// Supplementary groups.
    pub group_add: Vec<String>,
    /// `none`, `private`, `shareable`, `container:ID`, `host` or empty.
    pub ipc_mode: String,
    /// Legacy links, `container:alias`.
    pub links: Vec<String>,
    /// Added to its OOM score.
    pub oom_score_adj: i32,
    /// `container:ID`, `host` or empty.
    pub pid_mode: String,
    /// All capabilities, all devices, no profile.
    pub privileged: bool,
    /// Publish every exposed port.
    pub publish_all_ports: bool,
    /// Read-only root.
    pub readonly_rootfs: bool,
    /// `no-new-privileges`, `seccomp=…`, `apparmor=…`, `systempaths=unconfined`.
    pub security_opt: Vec<String>,
    /// `size=…` and so on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub storage_opt: BTreeMap<String, String>,
    /// Path → mount options.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    /// `host` or empty.
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    /// `host` or empty.
    pub userns_mode: String,
    /// Bytes of `/dev/shm`; 0 for 64 MiB.
    pub shm_size: i64,
    /// Kernel parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// OCI runtime by name; empty for the engine's own.
    pub runtime: String,
    /// Paths in `/proc` and `/sys` that are hidden; `None` for the default list.
    pub masked_paths: Option<Vec<String>>,
    /// Paths that are read-only; `None` for the default list.
    pub readonly_paths: Option<Vec<String>>,
    /// An init process that reaps; `None` for the engine's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Mounts in the long form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountRequest>,
    /// Limits.
    #[serde(flatten)]
    pub resources: Resources,
}

/// Limits of cgroup v2 and rlimits; also what `POST /containers/{id}/update` takes. 0 and empty mean none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    /// Relative weight, 2…262144, 1024 as usual.
    pub cpu_shares: i64,
    /// Bytes.
    pub memory: i64,
    /// Billionths of a CPU.
    pub nano_cpus: i64,
    /// Parent in the cgroup tree.
    pub cgroup_parent: String,
    /// 10…1000.
    pub blkio_weight: u16,
    /// Weight per device.
    pub blkio_weight_device: Vec<WeightDevice>,
    /// Bytes read per second and device.
    pub blkio_device_read_bps: Vec<ThrottleDevice>,
    /// Bytes written per second and device.
    pub blkio_device_write_bps: Vec<ThrottleDevice>,
    /// Reads per second and device.
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Vec<ThrottleDevice>,
    /// Writes per second and device.
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Vec<ThrottleDevice>,
    /// Microseconds.
    pub cpu_period: i64,
    /// Microseconds per period; -1 for none.
    pub cpu_quota: i64,
    /// `0-2,4`.
    pub cpuset_cpus: String,
    /// `0`.
    pub cpuset_mems: String,
    /// Devices it may use.
    pub devices: Vec<DeviceMapping>,
    /// `c 10:200 rwm`.
    pub device_cgroup_rules: Option<Vec<String>>,
    /// Soft limit in bytes.
    pub memory_reservation: i64,
    /// Memory and swap together in bytes; -1 for unlimited swap, 0 for twice the memory.
    pub memory_swap: i64,
    /// 0…100 (a cgroup v1 setting; `None` or -1 for the kernel's).
    pub memory_swappiness: Option<i64>,
    /// Not with cgroup v2.
    pub oom_kill_disable: Option<bool>,
    /// Processes; 0 or -1 for no limit.
    pub pids_limit: Option<i64>,
    /// rlimits.
    pub ulimits: Vec<Ulimit>,
}

/// A weight of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WeightDevice {
    /// Device node on the host.
    pub path: String,
    /// 10…1000.
    pub weight: u16,
}

/// A rate of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ThrottleDevice {
    /// Device node on the host.
    pub path: String,
    /// Per second.
    pub rate: u64,
}

/// A device node handed to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceMapping {
    /// On the host.
    pub path_on_host: String,
    /// In the container.
    pub path_in_container: String,
    /// Of `r`, `w`, `m`.
    pub cgroup_permissions: String,
}

/// An rlimit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// `nofile` and so on.
    pub name: String,
    /// Hard limit.
    pub hard: i64,
    /// Soft limit.
    pub soft: i64,
}

/// A log driver and its options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogConfig {
    /// Driver; empty for the engine's default.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Options.
    pub config: BTreeMap<String, String>,
}

/// Where a port appears on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortBinding {
    /// Address; empty for all.
    #[serde(rename = "HostIp")]
    pub host_ip: String,
    /// Port or `from-to`; empty or `0` for any free one.
    pub host_port: String,
}

/// What to do when a container ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// Empty or `no`, `always`, `unless-stopped`, `on-failure`.
    pub name: String,
    /// For `on-failure`; 0 for no limit.
    pub maximum_retry_count: i64,
}

/// A mount in the long form (`--mount`, Compose).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountRequest {
    /// `bind`, `volume`, `tmpfs` (others are refused by the engine).
    #[serde(rename = "Type")]
    pub kind: String,
    /// Path or volume's name; empty for an anonymous volume.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// `default`, `consistent` and so on: for other systems, no meaning on Linux.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub consistency: String,
    /// For `bind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    /// For `volume`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    /// For `tmpfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
}

/// Options of a bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    /// `rprivate` and so on.
    pub propagation: String,
    /// Without mounts below.
    pub non_recursive: bool,
    /// Make the source if it is missing.
    pub create_mountpoint: bool,
    /// Mounts below stay writable.
    pub read_only_non_recursive: bool,
    /// Fail if mounts below cannot be made read-only.
    pub read_only_force_recursive: bool,
}

/// Options of a volume's mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    /// Do not fill it from the image.
    pub no_copy: bool,
    /// Labels, if it is made now.
    pub labels: BTreeMap<String, String>,
    /// Only this directory of it.
    pub subpath: String,
    /// Driver, if it is made now.
    pub driver_config: Option<DriverConfig>,
}

/// A volume driver and its options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverConfig {
    /// Name.
    pub name: String,
    /// Options.
    pub options: BTreeMap<String, String>,
}

/// Options of a tmpfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    /// Bytes.
    pub size_bytes: i64,
    /// Permission bits.
    pub mode: u32,
}

/// The whole body of `POST /containers/create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateContainer {
    /// Image's half.
    #[serde(flatten)]
    pub config: ContainerConfig,
    /// Host's half.
    pub host_config: HostConfig,
    /// Networks to join at once.
    pub networking_config: NetworkingConfig,
    /// From the query: the name, without a slash, already checked; `None` for one of the engine's making.
    #[serde(skip)]
    pub name: Option<String>,
    /// From the query: `os/arch[/variant]`.
    #[serde(skip)]
    pub platform: Option<String>,
}

/// Networks that a container joins when it is made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkingConfig {
    /// By network name or id.
    pub endpoints_config: BTreeMap<String, EndpointSettings>,
}

/// What creation answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    /// Full id.
    pub id: String,
    /// What the person should know though it worked.
    pub warnings: Vec<String>,
}

/// Body of `POST /containers/{id}/update`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateContainer {
    /// New limits; what is 0 or empty stays.
    #[serde(flatten)]
    pub resources: Resources,
    /// New policy; an empty name leaves it.
    pub restart_policy: RestartPolicy,
}

/// Body of `POST /containers/{id}/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecConfig {
    /// `user[:group]`; empty for the container's.
    pub user: String,
    /// All capabilities.
    pub privileged: bool,
    /// A pseudo-terminal.
    pub tty: bool,
    /// Height and width.
    pub console_size: Option<[u32; 2]>,
    /// Standard input will be sent.
    pub attach_stdin: bool,
    /// Standard output is wanted.
    pub attach_stdout: bool,
    /// Standard error is wanted.
    pub attach_stderr: bool,
    /// Nobody attaches.
    pub detach: bool,
    /// Keys that detach a terminal.
    pub detach_keys: String,
    /// Added to the container's environment.
    pub env: Vec<String>,
    /// Working directory; empty for the container's.
    pub working_dir: String,
    /// Program and arguments.
    pub cmd: Vec<String>,
}
