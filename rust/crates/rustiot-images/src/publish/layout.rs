//! The OCI layout that is copied to a registry: blobs, and under the tag of each image the list of what refers to it.
//!
//! What others put there stays. Blobs are durable before a list names them, and a list before the layout does; so a run
//! that was cut off leaves what was there before. One process at a time. Called by the publisher.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::PublishError;
use crate::delta::{ARTIFACT, DOCUMENT_MAX, FROM};
use crate::digest::{Digest, ImageId};
use crate::manifest::media;

/// Under which name of a layout an image is found.
const NAME: &str = "org.opencontainers.image.ref.name";

/// A layout that is written.
pub(super) struct Layout {
    dir: PathBuf,
    index: Value,
    _lock: File,
}

/// What a list of referrers became.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Merged {
    /// Whether it is another than before.
    pub changed: bool,
    /// Entries that were there and stay.
    pub kept: usize,
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

fn note<'a>(entry: &'a Value, name: &str) -> Option<&'a str> {
    text(entry.get("annotations")?, name)
}

fn entries(list: &mut Value) -> Option<&mut Vec<Value>> {
    list.get_mut("manifests")?.as_array_mut()
}

impl Layout {
    /// Opens a layout, or makes one in a directory that is empty or not there.
    pub(super) fn open(dir: &Path) -> Result<Layout, PublishError> {
        let io = |step, path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::Io { step, path, source }
        };
        let (head, index) = (dir.join("oci-layout"), dir.join("index.json"));
        if !head.is_file() {
            std::fs::create_dir_all(dir).map_err(io("create", dir))?;
            if std::fs::read_dir(dir).map_err(io("look into", dir))?.next().is_some() {
                return Err(PublishError::NotALayout { path: dir.to_owned() });
            }
            rustiot_durable::atomic_write(&head, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let lock = File::open(&head).map_err(io("open", &head))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => PublishError::Busy { path: dir.to_owned() },
            std::fs::TryLockError::Error(source) => io("lock", dir)(source),
        })?;
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(io("create", &blobs))?;
        let mut layout = Layout { dir: dir.to_owned(), index: Value::Null, _lock: lock };
        layout.index = match std::fs::read(&index) {
            Ok(bytes) => layout.parse(&bytes, "index.json")?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => empty(),
            Err(error) => return Err(io("read", &index)(error)),
        };
        let unnamed = entries(&mut layout.index).and_then(|all| all.iter().find(|e| note(e, NAME).is_none()));
        match unnamed {
            Some(_) => Err(PublishError::Unnamed { path: dir.to_owned() }),
            None => Ok(layout),
        }
    }

    fn parse(&self, bytes: &[u8], name: &str) -> Result<Value, PublishError> {
        let bad = |why: String| PublishError::BadLayout { path: self.dir.join(name), why };
        let mut value: Value = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        match entries(&mut value) {
            Some(_) => Ok(value),
            None => Err(bad("it is no OCI index".to_owned())),
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Writes a blob that is not there yet, or not as it should be.
    pub(super) fn blob(&self, bytes: &[u8]) -> Result<Digest, PublishError> {
        let digest = Digest::of(bytes);
        let path = self.path(&digest);
        if !std::fs::read(&path).is_ok_and(|there| there == bytes) {
            rustiot_durable::atomic_write(&path, bytes)?;
        }
        Ok(digest)
    }

    /// A document that the layout names, checked.
    fn document(&self, entry: &Value) -> Result<Vec<u8>, PublishError> {
        let bad = |path: PathBuf, why: String| PublishError::BadLayout { path, why };
        let named = text(entry, "digest").and_then(|digest| digest.parse::<Digest>().ok());
        let digest = named.ok_or_else(|| {
            bad(self.dir.join("index.json"), "an entry has no digest that is known here".to_owned())
        })?;
        let path = self.path(&digest);
        let bytes = std::fs::read(&path).map_err(|error| {
            bad(path.clone(), format!("{error}: copy the list of referrers with all that it names (--all)"))
        })?;
        match Digest::of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(PublishError::Damaged {
                path: self.dir.clone(),
                what: format!("blobs/sha256/{}", digest.hex()),
                expected: digest,
                found,
            }),
        }
    }

    /// Puts an artifact into the list under a tag. It takes the place of one from the same image.
    pub(super) fn refer(
        &mut self,
        tag: &str,
        from: &ImageId,
        artifact: Value,
    ) -> Result<Merged, PublishError> {
        let here = |entry: &Value| note(entry, NAME) == Some(tag);
        let before = entries(&mut self.index).and_then(|all| all.iter().find(|entry| here(entry)).cloned());
        let old = before.as_ref().map(|entry| self.document(entry)).transpose()?;
        let mut list = match &old {
            Some(bytes) => self.parse(bytes, tag)?,
            None => empty(),
        };
        let was = list.clone();
        let from = from.0.to_string();
        let mut all = std::mem::take(entries(&mut list).unwrap_or(&mut Vec::new()));
        for entry in &mut all {
            self.complete(entry)?;
        }
        let ours = |entry: &Value| {
            text(entry, "artifactType") == Some(ARTIFACT) && note(entry, FROM) == Some(from.as_str())
        };
        let at = all.iter().position(ours).unwrap_or(all.len());
        let mut number = 0;
        all.retain(|entry| {
            number += 1;
            number - 1 == at || !ours(entry)
        });
        match all.get_mut(at) {
            Some(place) => *place = artifact,
            None => all.push(artifact),
        }
        let kept = all.len() - 1;
        if let Some(entries) = entries(&mut list) {
            *entries = all;
        }
        if list == was && before.is_some() {
            return Ok(Merged { changed: false, kept });
        }
        let bytes = list.to_string().into_bytes();
        if bytes.len() as u64 > DOCUMENT_MAX {
            return Err(PublishError::TooMany { tag: tag.to_owned(), max: DOCUMENT_MAX });
        }
        let digest = self.blob(&bytes)?;
        let named = json!({"mediaType": media::OCI_INDEX, "digest": digest, "size": bytes.len(),
            "annotations": {NAME: tag}});
        if let Some(all) = entries(&mut self.index) {
            all.retain(|entry| !here(entry));
            all.push(named);
        }
        let index = self.index.to_string();
        rustiot_durable::atomic_write(&self.dir.join("index.json"), index.as_bytes())?;
        self.forget(before.as_ref());
        Ok(Merged { changed: true, kept })
    }

    /// Some tools drop the types from a list that they copy: they are taken from the manifests again.
    fn complete(&self, entry: &mut Value) -> Result<(), PublishError> {
        let bytes = self.document(entry)?;
        let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let own = text(&manifest, "artifactType")
            .or_else(|| text(manifest.get("config")?, "mediaType"))
            .filter(|kind| !kind.is_empty());
        let lacks = text(entry, "artifactType").is_none_or(str::is_empty);
        if let (true, Some(own), Some(entry)) = (lacks, own, entry.as_object_mut()) {
            entry.insert("artifactType".to_owned(), json!(own));
        }
        Ok(())
    }

    /// Removes the list that is replaced, unless another name leads to it.
    fn forget(&mut self, list: Option<&Value>) {
        let digest = |entry: &Value| text(entry, "digest").and_then(|digest| digest.parse::<Digest>().ok());
        let named: BTreeSet<Digest> =
            entries(&mut self.index).into_iter().flatten().filter_map(|e| digest(e)).collect();
        if let Some(old) = list.and_then(digest).filter(|old| !named.contains(old)) {
            // It costs a few hundred bytes if it stays.
            let _ = std::fs::remove_file(self.path(&old));
        }
    }
}

fn empty() -> Value {
    json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []})
}
