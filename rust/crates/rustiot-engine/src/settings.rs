//! What the owner of a device may choose for its apps.
//!
//! Pure but for reading its one file. Called at the engine's start.

use std::path::PathBuf;

use rustiot_docker_api::types::Resources;
use rustiot_images::{Limits, RegistryConfig};

/// See the module.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What a container gets that asks for nothing.
    pub defaults: Resources,
    /// Bytes of one log file.
    pub log_size: u64,
    /// Log files of a container.
    pub log_files: u32,
    /// Bytes that a container may log in a second on average.
    pub log_rate: u64,
    /// What images may cost.
    pub limits: Limits,
    /// How registries are reached.
    pub registries: RegistryConfig,
    /// Docker's `config.json` with credentials.
    pub credentials: PathBuf,
}

/// A fork bomb must find an end; Docker has none.
const PIDS: i64 = 4096;

impl Default for Settings {
    fn default() -> Self {
        Self {
            defaults: Resources { pids_limit: Some(PIDS), ..Resources::default() },
            log_size: 4 << 20,
            log_files: 3,
            log_rate: 256 << 10,
            limits: Limits::default(),
            registries: RegistryConfig::default(),
            credentials: "/data/engine/registry.json".into(),
        }
    }
}
