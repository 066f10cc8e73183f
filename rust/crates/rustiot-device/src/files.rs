//! The files in which the services say what they know. Read leniently: what is missing or damaged is absent, since the
//! command must answer best when something is wrong.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longest status file that is read, bytes.
const FILE_MAX: u64 = 4 << 20;

/// Files below a root directory.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Files below `root`.
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The boot ledger's paths.
    pub fn slots(&self) -> rustiot_slots::Paths {
        rustiot_slots::Paths::below(&self.root)
    }

    /// The container engine's socket.
    #[cfg(feature = "engine")]
    pub fn engine(&self) -> PathBuf {
        self.root.join("run/docker.sock")
    }

    /// Whether these are the running device's own.
    pub fn are_live(&self) -> bool {
        self.root == Path::new("/")
    }

    fn text(&self, path: &str) -> Option<String> {
        let path = self.root.join(path.trim_start_matches('/'));
        let mut text = String::new();
        std::fs::File::open(path).ok()?.take(FILE_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn json<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        serde_json::from_str(&self.text(path)?).ok()
    }

    /// `/usr/lib/rustiot/release.json`.
    pub fn release(&self) -> Option<Value> {
        self.json("/usr/lib/rustiot/release.json")
    }

    /// `/run/rustiot/boot.json`.
    pub fn boot(&self) -> Option<Value> {
        self.json("/run/rustiot/boot.json")
    }

    /// `/run/rustiot/health.json`.
    pub fn health(&self) -> Option<rustiot_health::Status> {
        self.json(rustiot_health::status::PATH)
    }

    /// `/run/rustiot/provision.json`.
    pub fn provision(&self) -> Option<rustiot_provision::Status> {
        self.json(rustiot_provision::STATUS)
    }

    /// `/run/rustiot/update.json`.
    pub fn update(&self) -> Option<rustiot_update::Status> {
        self.json(rustiot_update::STATUS_FILE)
    }

    /// Seconds since the kernel started.
    pub fn uptime(&self) -> Option<u64> {
        self.text("/proc/uptime")?.split(['.', ' ']).next()?.parse().ok()
    }

    /// The host name in force.
    pub fn hostname(&self) -> Option<String> {
        let name = self.text("/proc/sys/kernel/hostname")?.trim().to_owned();
        (!name.is_empty()).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_damaged_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::below(dir.path());
        assert!(files.boot().is_none() && files.update().is_none() && files.uptime().is_none());
        let run = dir.path().join("run/rustiot");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::File::create(run.join("boot.json")).unwrap();
        assert!(files.boot().is_none());
    }
}
