//! What is kept of a container: one file, replaced as a whole, so that there is an old one or a new one and never a half.
//! It is durable, but for a container that goes when it ends: of that a power cut leaves nothing.
//!
//! Never says that a container runs: whether it does, its shim tells. Called by the engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustiot_docker_api::Timestamp;
use rustiot_docker_api::types::{ContainerConfig, EndpointSettings, HostConfig};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

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

/// The record's file.
pub const FILE: &str = "container.json";

impl Record {
    /// It goes when it ends (`--rm`), and a power cut ends it: nothing of it is waited for on the medium, and its record is
    /// of this boot. (Not with a volume that goes with it: without a record nobody would know whose that is.)
    pub fn is_transient(&self) -> bool {
        self.host.auto_remove && !self.mounts.iter().any(|m| m.anonymous)
    }

    /// The directory of its record.
    pub fn directory(&self, layout: &Layout) -> PathBuf {
        if self.is_transient() { layout.transient(&self.id) } else { layout.container(&self.id) }
    }

    /// How its last run ended, by its shim.
    pub fn exit(&self, layout: &Layout) -> PathBuf {
        self.directory(layout).join("exit.json")
    }

    /// Durable when it returns, or there for this boot if it is transient.
    ///
    /// # Errors
    /// The medium's.
    pub fn save(&self, layout: &Layout) -> Result<(), rustiot_durable::Error> {
        let directory = self.directory(layout);
        if self.is_transient() {
            // Not there yet, or not for a record of an engine that kept all of them on the medium.
            let _ = std::fs::create_dir_all(&directory);
        }
        // On the file system of `run` this waits for nothing.
        rustiot_durable::atomic_write(&directory.join(FILE), &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads the one of a container.
    ///
    /// # Errors
    /// It cannot be read or is none.
    pub fn load(layout: &Layout, id: &str) -> std::io::Result<Record> {
        let read = |directory: &Path| std::fs::read(directory.join(FILE));
        let text = match read(&layout.container(id)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => read(&layout.transient(id)),
            other => other,
        }?;
        serde_json::from_slice(&text).map_err(std::io::Error::other)
    }
}
