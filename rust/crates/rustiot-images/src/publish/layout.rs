//! The OCI layout that is copied to a registry: blobs, and under the tag of each image the list of what refers to it.
//!
//! What others put there stays. Blobs are durable before a list names them, and a list before the layout does; so a run
//! that was cut off leaves what was there before. What no list names any more goes, if it was made here; and so does a
//! layout that nothing came into. One process at a time. Called by the publisher.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{EMPTY, PublishError};
use crate::delta::{ARTIFACT, DOCUMENT_MAX, FROM};
use crate::digest::{Digest, ImageId};
use crate::manifest::media;

/// Under which name of a layout an image is found.
const NAME: &str = "org.opencontainers.image.ref.name";

/// How a delta of any version begins.
const DELTA: &[u8] = b"RDELTA\r";

/// A layout that is written.
pub(super) struct Layout {
    dir: PathBuf,
    index: Value,
    /// Directories that were made for it, the outermost first. They go again if nothing comes into it.
    made: Vec<PathBuf>,
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

fn digest(entry: &Value) -> Option<Digest> {
    text(entry, "digest")?.parse().ok()
}

/// Whether a blob is of a kind that is made here and by nobody else.
fn ours(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut start = Vec::new();
    if file.take(DOCUMENT_MAX).read_to_end(&mut start).is_err() {
        return false;
    }
    let artifact = || serde_json::from_slice::<Value>(&start).unwrap_or_default();
    start.starts_with(DELTA) || start == EMPTY.1 || text(&artifact(), "artifactType") == Some(ARTIFACT)
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
        let mut made = Vec::new();
        if !head.is_file() {
            let missing = dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
            made = missing.map(Path::to_owned).collect();
            made.reverse();
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
        // Who had it may have removed the whole layout meanwhile.
        let same = |there: std::fs::Metadata| lock.metadata().is_ok_and(|ours| ours.ino() == there.ino());
        if !std::fs::metadata(&head).is_ok_and(same) {
            return Err(PublishError::Busy { path: dir.to_owned() });
        }
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(io("create", &blobs))?;
        let mut layout = Layout { dir: dir.to_owned(), index: Value::Null, made, _lock: lock };
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
        let digest = digest(entry).ok_or_else(|| {
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

    /// Removes what no list names any more, if it was made here: deltas and artifacts that others took the place of, and
    /// what a run left that was cut off or failed. Then a layout without anything in it.
    pub(super) fn tidy(mut self) {
        let blobs = self.dir.join("blobs/sha256");
        if let (Some(named), Ok(files)) = (self.named(), std::fs::read_dir(&blobs)) {
            for file in files.flatten() {
                let digest = file.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
                if digest.is_some_and(|digest| !named.contains(&digest)) && ours(&file.path()) {
                    // It costs room if it stays, and the next run tries again.
                    let _ = std::fs::remove_file(file.path());
                }
            }
        }
        if self.dir.join("index.json").exists() {
            return;
        }
        // Only what is empty goes, and the mark of a layout only after all else in it.
        let gone = [blobs, self.dir.join("blobs")].iter().all(|dir| std::fs::remove_dir(dir).is_ok());
        let alone = || std::fs::read_dir(&self.dir).is_ok_and(|files| files.count() == 1);
        if gone && alone() && std::fs::remove_file(self.dir.join("oci-layout")).is_ok() {
            let _ = self.made.iter().rev().try_for_each(std::fs::remove_dir);
        }
    }

    /// All blobs that the layout's names lead to; none where that cannot be known.
    fn named(&mut self) -> Option<BTreeSet<Digest>> {
        let mut named = BTreeSet::new();
        let mut left = entries(&mut self.index)?.clone();
        while let Some(entry) = left.pop() {
            if !named.insert(digest(&entry)?) {
                continue;
            }
            let mut document: Value = serde_json::from_slice(&self.document(&entry).ok()?).ok()?;
            let blobs =
                ["layers", "blobs"].iter().filter_map(|name| document.get(name)?.as_array()).flatten();
            for blob in blobs.chain(document.get("config")) {
                named.insert(digest(blob)?);
            }
            left.append(entries(&mut document).unwrap_or(&mut Vec::new()));
        }
        Some(named)
    }

    /// Removes the list that is replaced, unless another name leads to it.
    fn forget(&mut self, list: Option<&Value>) {
        let named: BTreeSet<Digest> =
            entries(&mut self.index).into_iter().flatten().filter_map(|entry| digest(entry)).collect();
        if let Some(old) = list.and_then(digest).filter(|old| !named.contains(old)) {
            // It costs a few hundred bytes if it stays.
            let _ = std::fs::remove_file(self.path(&old));
        }
    }
}

fn empty() -> Value {
    json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []})
}
