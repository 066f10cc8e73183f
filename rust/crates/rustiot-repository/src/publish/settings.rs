//! `repo.toml`: what a publisher decides about a repository.

use super::{At, Error};
use crate::rollout::{Rollout, Wave, is_label};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A role that signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleName {
    /// Says which keys sign the others. Offline.
    Root,
    /// Says what a release is. Offline, or on the machine that releases.
    Targets,
    /// Says how fast it is rolled out. At hand.
    Rollout,
    /// Says which metadata belongs together. Online.
    Snapshot,
    /// Says that all of it is fresh. Online.
    Timestamp,
}

impl RoleName {
    /// All roles.
    pub const ALL: [RoleName; 5] =
        [RoleName::Root, RoleName::Targets, RoleName::Rollout, RoleName::Snapshot, RoleName::Timestamp];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RoleName::Root => "root",
            RoleName::Targets => "targets",
            RoleName::Rollout => "rollout",
            RoleName::Snapshot => "snapshot",
            RoleName::Timestamp => "timestamp",
        }
    }
}

/// A key that may sign for a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// The role.
    pub role: RoleName,
    /// A PEM file, relative to the repository, or a PKCS#11 URI.
    pub key: String,
    /// Its id in the metadata: with it the key need not be at hand.
    pub id: String,
}

/// Days until each role expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Days {
    /// Root.
    pub root: u32,
    /// Targets.
    pub targets: u32,
    /// Roll-out.
    pub rollout: u32,
    /// Snapshot.
    pub snapshot: u32,
    /// Timestamp: how long a device can be shown an old state.
    pub timestamp: u32,
}

impl Default for Days {
    fn default() -> Self {
        Days { root: 730, targets: 365, rollout: 365, snapshot: 30, timestamp: 14 }
    }
}

impl Days {
    /// Of a role.
    #[must_use]
    pub fn of(&self, role: RoleName) -> u32 {
        match role {
            RoleName::Root => self.root,
            RoleName::Targets => self.targets,
            RoleName::Rollout => self.rollout,
            RoleName::Snapshot => self.snapshot,
            RoleName::Timestamp => self.timestamp,
        }
    }
}

/// Signatures that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// For a root.
    pub root: u32,
    /// For an index.
    pub targets: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { root: 1, targets: 1 }
    }
}

/// `repo.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Deltas from this many releases before.
    pub deltas: usize,
    /// And from these versions (what devices are flashed with in the factory).
    pub factory: Vec<String>,
    /// Releases that an index names; older ones stay on the server but are no longer offered.
    pub releases: usize,
    /// Offer the whole bundle compressed: the way for every device that has no delta.
    pub full_way: bool,
    /// Offer the bundle as it is, too.
    pub bundle_way: bool,
    /// Days until each role expires.
    pub days: Days,
    /// Signatures that are needed.
    pub threshold: Thresholds,
    /// Root and targets keys that `init` makes beyond the signatures that are needed.
    #[serde(skip)]
    pub spare: [u32; 2],
    /// Keys.
    #[serde(rename = "key")]
    pub keys: Vec<KeyEntry>,
    /// Waves of a new release: `not_before` counts from its publication, seconds. None: everyone at once.
    #[serde(rename = "wave")]
    pub waves: Vec<Wave>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            deltas: 3,
            factory: Vec::new(),
            releases: 16,
            full_way: true,
            bundle_way: false,
            days: Days::default(),
            threshold: Thresholds::default(),
            spare: [0, 0],
            keys: Vec::new(),
            waves: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads `repo.toml` of a repository.
    ///
    /// # Errors
    /// It is not there, or wrong: with line and column.
    pub fn load(path: &Path) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::Refused {
                problem: format!("{} is not there", path.display()),
                hint: "make a repository with: rustiot repo init --repo DIR",
            });
        }
        let text = std::fs::read_to_string(path).at("read", path)?;
        let wrong = |why: String| Error::Settings { path: path.to_owned(), why };
        let settings: Settings = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        for role in [RoleName::Root, RoleName::Targets] {
            let (need, have) = (settings.threshold(role), settings.keys_of(role).count());
            if usize::try_from(need).unwrap_or(usize::MAX) > have || need == 0 {
                return Err(wrong(format!("threshold.{} is {need}, there are {have} keys", role.as_str())));
            }
        }
        if !settings.full_way && !settings.bundle_way {
            return Err(wrong(
                "full_way and bundle_way are both false: a device without a delta could never update".into(),
            ));
        }
        // Devices would refuse the roll-outs as a whole.
        let rollout = Rollout { waves: settings.waves.clone(), ..Rollout::everyone() };
        rollout.check("wave").map_err(|error| wrong(error.to_string()))?;
        if let Some(label) = rollout.waves.iter().flat_map(|wave| &wave.labels).find(|label| !is_label(label))
        {
            return Err(wrong(format!(
                "wave: no device can carry the label {label:?}; write at most 64 letters, digits, dots, hyphens and underscores"
            )));
        }
        Ok(settings)
    }

    /// Writes it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = toml::to_string_pretty(self)
            .map_err(|error| Error::Settings { path: path.to_owned(), why: error.to_string() })?;
        Ok(rustiot_durable::atomic_write(path, text.as_bytes())?)
    }

    /// Signatures that a role needs.
    #[must_use]
    pub fn threshold(&self, role: RoleName) -> u32 {
        match role {
            RoleName::Root => self.threshold.root,
            RoleName::Targets => self.threshold.targets,
            _ => 1,
        }
    }

    /// Keys of a role.
    pub fn keys_of(&self, role: RoleName) -> impl Iterator<Item = &KeyEntry> {
        self.keys.iter().filter(move |entry| entry.role == role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_without_a_way_for_every_device_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repo.toml");
        let key = |role| KeyEntry { role, key: "k.pem".into(), id: "0".into() };
        let keys = vec![key(RoleName::Root), key(RoleName::Targets)];
        let mut settings = Settings { keys, full_way: false, bundle_way: true, ..Settings::default() };
        settings.save(&path).unwrap();
        assert_eq!(Settings::load(&path).unwrap(), settings);
        settings.bundle_way = false;
        settings.save(&path).unwrap();
        let why = Settings::load(&path).unwrap_err().to_string();
        assert!(why.contains("repo.toml") && why.contains("full_way and bundle_way"), "{why}");
    }

    #[test]
    fn waves_that_devices_would_refuse_are_refused_before_anything_is_published_by_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repo.toml");
        let key = |role| KeyEntry { role, key: "k.pem".into(), id: "0".into() };
        let load = |permille, label: &str| {
            let wave = Wave { name: "w".into(), permille, not_before: 0, labels: vec![label.into()] };
            let keys = vec![key(RoleName::Root), key(RoleName::Targets)];
            Settings { keys, waves: vec![wave], ..Settings::default() }.save(&path).unwrap();
            Settings::load(&path).map_err(|error| error.to_string())
        };
        // Nobody, until somebody says who.
        assert!(load(0, "canary").is_ok() && load(1000, "canary").is_ok());
        for (permille, label, word) in
            [(1001, "canary", "1000 permille"), (1, "can ary", "\"can ary\""), (1, "", "label")]
        {
            let why = load(permille, label).unwrap_err();
            assert!(why.contains("repo.toml: wave") && why.contains(word), "{why}");
        }
    }
}
