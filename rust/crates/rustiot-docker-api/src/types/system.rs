//! What the engine tells about itself and its host.

use std::collections::BTreeMap;

use serde::Serialize;

use super::container::ContainerSummary;
use super::image::ImageSummary;
use super::volume::Volume;

/// What `docker version` shows of the server. The API's versions are added by the HTTP side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    /// Engine's version.
    pub version: String,
    /// Commit that it was built of; may be empty.
    pub git_commit: String,
    /// `linux`.
    pub os: String,
    /// `amd64` and so on.
    pub arch: String,
    /// Kernel.
    pub kernel_version: String,
    /// When it was built; may be empty.
    pub build_time: String,
}

/// What `docker info` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Info {
    /// Stays the same for this device.
    #[serde(rename = "ID")]
    pub id: String,
    /// All.
    pub containers: u32,
    /// Running.
    pub containers_running: u32,
    /// Paused.
    pub containers_paused: u32,
    /// Stopped.
    pub containers_stopped: u32,
    /// Images.
    pub images: u32,
    /// Storage driver.
    pub driver: String,
    /// Its state, in pairs.
    pub driver_status: Vec<(String, String)>,
    /// Where its data is.
    pub docker_root_dir: String,
    /// What containers can be given.
    pub plugins: Plugins,
    /// `memory.max` works.
    pub memory_limit: bool,
    /// Swap limit works.
    pub swap_limit: bool,
    /// CPU period works.
    pub cpu_cfs_period: bool,
    /// CPU quota works.
    pub cpu_cfs_quota: bool,
    /// CPU weight works.
    #[serde(rename = "CPUShares")]
    pub cpu_shares: bool,
    /// cpuset works.
    #[serde(rename = "CPUSet")]
    pub cpu_set: bool,
    /// pids limit works.
    pub pids_limit: bool,
    /// Packets are forwarded.
    #[serde(rename = "IPv4Forwarding")]
    pub ipv4_forwarding: bool,
    /// File descriptors of the engine; `docker info` shows it in debug mode.
    pub n_fd: u32,
    /// OOM killer can be switched off (never with cgroup v2).
    pub oom_kill_disable: bool,
    /// `2026-01-01T00:00:00Z`.
    pub system_time: String,
    /// Default log driver.
    pub logging_driver: String,
    /// `systemd` or `cgroupfs`.
    pub cgroup_driver: String,
    /// `2`.
    pub cgroup_version: String,
    /// Kernel.
    pub kernel_version: String,
    /// As in `/etc/os-release`.
    pub operating_system: String,
    /// As in `/etc/os-release`.
    #[serde(rename = "OSVersion")]
    pub os_version: String,
    /// `linux`.
    #[serde(rename = "OSType")]
    pub os_type: String,
    /// `x86_64` and so on.
    pub architecture: String,
    /// CPUs.
    #[serde(rename = "NCPU")]
    pub ncpu: u32,
    /// Bytes of memory.
    pub mem_total: u64,
    /// Host name.
    pub name: String,
    /// Registry that names without one mean.
    pub index_server_address: String,
    /// Mirrors and insecure registries.
    pub registry_config: RegistryConfig,
    /// OCI runtimes by name.
    pub runtimes: BTreeMap<String, Runtime>,
    /// Name of the one in use.
    pub default_runtime: String,
    /// Containers stay when the engine restarts.
    pub live_restore_enabled: bool,
    /// `name=seccomp,profile=builtin`, `name=cgroupns`.
    pub security_options: Vec<String>,
    /// Init process of `--init`.
    pub init_binary: String,
    /// Engine's version.
    pub server_version: String,
    /// Labels of the host.
    pub labels: Vec<String>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// What containers can be given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Plugins {
    /// Volume drivers.
    pub volume: Vec<String>,
    /// Network drivers.
    pub network: Vec<String>,
    /// Always empty.
    pub authorization: Option<Vec<String>>,
    /// Log drivers.
    pub log: Vec<String>,
}

/// Registries with their peculiarities.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RegistryConfig {
    /// Networks whose registries need no TLS.
    #[serde(rename = "InsecureRegistryCIDRs")]
    pub insecure_registry_cidrs: Vec<String>,
    /// By name.
    pub index_configs: BTreeMap<String, IndexInfo>,
    /// Mirrors of the default registry.
    pub mirrors: Vec<String>,
}

/// A registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IndexInfo {
    /// Name.
    pub name: String,
    /// Its mirrors.
    pub mirrors: Vec<String>,
    /// TLS is needed.
    pub secure: bool,
    /// The default one.
    pub official: bool,
}

/// An OCI runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// Program.
    pub path: String,
}

/// What `system df` is made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskUsage {
    /// Bytes of all layers.
    pub layers_size: i64,
    /// Images, with `containers` and `shared_size` computed.
    pub images: Vec<ImageSummary>,
    /// Containers, with sizes.
    pub containers: Vec<ContainerSummary>,
    /// Volumes, with usage.
    pub volumes: Vec<Volume>,
}

/// What pruning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Ids or names.
    pub deleted: Vec<String>,
    /// Bytes.
    pub space_reclaimed: u64,
}
