//! What is kept of a container: one file, replaced as a whole, so that there is an old one or a new one and never a half.
//!
//! Never says that a container runs: whether it does, its shim tells. Called by the engine.

use std::collections::BTreeMap;
use std::path::Path;

use rustiot_docker_api::Timestamp;
use rustiot_docker_api::types::{ContainerConfig, EndpointSettings, HostConfig};
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the slash.
    pub name: String,
    pub created: Timestamp,
    /// The digest of its image's configuration.
    pub image: String,
    /// What it runs with: the image's configuration under the request's.
    pub config: ContainerConfig,
    pub host: HostConfig,
    /// Networks that it is to be in.
    pub networks: BTreeMap<String, EndpointSettings>,
    pub mounts: Vec<Mount>,
    /// It was started and nobody has stopped it since: what restart policies go by after a restart of the device.
    pub wanted: bool,
    /// Somebody stopped it (`unless-stopped`).
    pub stopped: bool,
    /// It is being removed: the rest of that is done at the next start.
    pub removing: bool,
    pub restarts: u32,
    /// The last run.
    pub last: Run,
}

/// A run of its program.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    pub pid: i32,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub code: i32,
    pub oom: bool,
    pub error: String,
}

/// Something mounted into it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    pub kind: MountKind,
    /// A volume's name.
    pub name: String,
    /// On the host.
    pub source: String,
    pub target: String,
    pub read_only: bool,
    pub propagation: String,
    /// Made with the container and without a name.
    pub anonymous: bool,
    /// An empty volume gets what the image has at this place.
    pub copy_up: bool,
    /// Of a `tmpfs`.
    pub options: String,
    /// As the client wrote it.
    pub mode: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    Bind,
    Volume,
    Tmpfs,
}

impl MountKind {
    pub fn as_str(self) -> &'static str {
        match self {
            MountKind::Bind => "bind",
            MountKind::Volume => "volume",
            MountKind::Tmpfs => "tmpfs",
        }
    }
}

impl Record {
    /// Durable when it returns.
    ///
    /// # Errors
    /// The medium's.
    pub fn save(&self, path: &Path) -> Result<(), rustiot_durable::Error> {
        rustiot_durable::atomic_write(path, &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads one.
    ///
    /// # Errors
    /// It cannot be read or is none.
    pub fn load(path: &Path) -> std::io::Result<Record> {
        serde_json::from_slice(&std::fs::read(path)?).map_err(std::io::Error::other)
    }
}
