//! What the client must not forget: versions that must not fall and the signed time, in a two-copy ledger; and the
//! metadata of the last check as files, so that most checks fetch nothing.
//!
//! The ledger holds the hash of every file: one that is torn or damaged is dropped and fetched again, and the versions
//! still stand. Files are written before the ledger that names them.

use super::Versions;
use crate::digest::Digest;
use rustiot_durable::Ledger;
use rustiot_http::Validator;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// A file of the client's own cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct StoreError {
    /// What was to be done.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What is remembered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    pub versions: Versions,
    /// What the versions belong to.
    #[serde(default)]
    pub keys: Option<Digest>,
    /// When the newest accepted metadata was signed.
    #[serde(default)]
    pub signed: u64,
    /// Of `timestamp.json`, by mirror.
    #[serde(default)]
    pub validators: BTreeMap<String, Validator>,
    /// Hashes of the files.
    #[serde(default)]
    pub hashes: BTreeMap<String, Digest>,
    #[serde(skip)]
    pub root: Option<Vec<u8>>,
    #[serde(skip)]
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Memory {
    /// Drops the files, and keeps what must not fall.
    pub fn forget_files(&mut self) {
        self.files.clear();
        self.validators.clear();
    }

    /// Takes the files of a new check; returns those that are to be written.
    pub fn replace_files(&mut self, files: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
        let changed = files.iter().filter(|(name, bytes)| self.files.get(*name) != Some(*bytes));
        let changed = changed.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
        self.files = files;
        changed
    }
}

/// The client's directory.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

const LEDGER: &str = "trusted";
const ROOT: &str = "root.json";

impl Store {
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|source| StoreError {
            what: "make",
            path: dir.to_owned(),
            source,
        })?;
        Ok(Store { dir: dir.to_owned() })
    }

    /// What there is and is whole.
    pub fn load(&self) -> Memory {
        let loaded = Ledger::at(&self.dir, LEDGER).load();
        let Some(payload) = loaded.newest.map(|stored| stored.payload) else { return Memory::default() };
        let Ok(mut memory) = serde_json::from_slice::<Memory>(&payload) else { return Memory::default() };
        let whole = |name: &str, digest: &Digest| {
            std::fs::read(self.dir.join(name)).ok().filter(|bytes| Digest::of(bytes) == *digest)
        };
        let mut complete = true;
        for (name, digest) in &memory.hashes {
            match (whole(name, digest), name.as_str()) {
                (Some(bytes), ROOT) => memory.root = Some(bytes),
                (Some(bytes), _) => drop(memory.files.insert(name.clone(), bytes)),
                (None, ROOT) => {}
                (None, _) => complete = false,
            }
        }
        if !complete {
            memory.validators.clear();
        }
        memory
    }

    /// Writes the files that changed, then the ledger.
    pub fn save(&self, memory: &Memory, changed: &BTreeMap<String, Vec<u8>>) -> Result<(), StoreError> {
        let mut memory = memory.clone();
        for (name, bytes) in changed {
            self.write(name, bytes)?;
        }
        memory.hashes = memory.files.iter().map(|(name, bytes)| (name.clone(), Digest::of(bytes))).collect();
        if let Some(root) = &memory.root {
            if std::fs::read(self.dir.join(ROOT)).ok().as_ref() != Some(root) {
                self.write(ROOT, root)?;
            }
            memory.hashes.insert(ROOT.to_owned(), Digest::of(root));
        }
        let failed =
            |what: &'static str, source: io::Error| StoreError { what, path: self.dir.join(LEDGER), source };
        let payload = serde_json::to_vec(&memory).map_err(|error| failed("write", error.into()))?;
        Ledger::at(&self.dir, LEDGER)
            .store(&payload)
            .map_err(|error| failed("store", io::Error::other(error)))?;
        // Files of older sets: nothing names them any more.
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".json") && !memory.hashes.contains_key(&name) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        rustiot_durable::atomic_write(&self.dir.join(name), bytes).map_err(|error| StoreError {
            what: error.step,
            path: error.path,
            source: error.source,
        })
    }
}
