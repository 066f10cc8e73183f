//! Where the engine keeps things. Durable: below `data`. Of this boot only: below `run`.
//!
//! Pure. Used by the whole crate.

use std::path::{Path, PathBuf};

/// Directories and programs; the device's own by default.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Images, containers, volumes.
    pub data: PathBuf,
    /// Sockets, bundles, mounts.
    pub run: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
    /// The apps' control group, relative to the file system's root.
    pub cgroup: PathBuf,
    /// `rustiot-shim`.
    pub shim: PathBuf,
    /// The OCI runtime and its first arguments.
    pub runtime: Vec<String>,
    /// A static `init` for `--init`.
    pub init: Option<PathBuf>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            data: "/data/engine".into(),
            run: "/run/rustiot/engine".into(),
            socket: "/run/docker.sock".into(),
            cgroup: "rustiot.slice/rustiot-apps.slice/rustiot-apps.service".into(),
            shim: "/usr/lib/rustiot/rustiot-shim".into(),
            runtime: vec!["/usr/lib/rustiot/rustiot-runtime".to_owned()],
            init: None,
        }
    }
}

impl Layout {
    pub(crate) fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }
    /// What outlives a restart of one container.
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }
    /// Records of containers that go when they end: of this boot only.
    pub(crate) fn transients(&self) -> PathBuf {
        self.run.join("t")
    }
    pub(crate) fn transient(&self, id: &str) -> PathBuf {
        self.transients().join(id)
    }
    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.container(id).join("container.log")
    }
    /// The container's writable layer.
    pub(crate) fn upper(&self, id: &str) -> PathBuf {
        self.container(id).join("upper")
    }
    pub(crate) fn work(&self, id: &str) -> PathBuf {
        self.container(id).join("work")
    }
    pub(crate) fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name)
    }
    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }
    /// What is gone after a restart of the device. Short: socket paths have 107 bytes.
    pub(crate) fn running(&self, id: &str) -> PathBuf {
        self.run.join("c").join(id)
    }
    pub(crate) fn socket_of(&self, id: &str) -> PathBuf {
        self.running(id).join("s")
    }
    pub(crate) fn root_of(&self, id: &str) -> PathBuf {
        self.running(id).join("rootfs")
    }
    /// The networks that were made.
    pub(crate) fn networks(&self) -> PathBuf {
        self.data.join("networks")
    }
    /// Network namespaces, a file each.
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.run.join("n")
    }
    pub(crate) fn layers(&self) -> PathBuf {
        self.run.join("layers")
    }
    pub(crate) fn runtime_root(&self) -> PathBuf {
        self.run.join("r")
    }
    pub(crate) fn group(&self, id: &str) -> PathBuf {
        Path::new(crate::cgroup::ROOT).join(&self.cgroup).join(id)
    }
    pub(crate) fn apps(&self) -> PathBuf {
        Path::new(crate::cgroup::ROOT).join(&self.cgroup)
    }
}
