//! Images as tools write them on a workstation: OCI layouts and archives, skopeo's `dir:`, and what `docker save` writes.
//!
//! Reads only. Documents are checked against their digests, layers against their `diff_id` when they are unpacked. Called
//! by the publisher.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::PublishError;
use crate::archive::clean;
use crate::digest::{Digest, Hasher, ImageId};
use crate::layer::compression::decompress;
use crate::limits::Limits;
use crate::manifest::{
    Descriptor, Document, ImageConfig, Index, Manifest, ManifestError, media, null_default,
};
use crate::platform::Platform;

/// Largest document that is read.
const DOCUMENT_MAX: u64 = 4 << 20;
/// How deep indexes may lie in indexes.
const DEPTH: usize = 3;

/// The manifest of an image as a registry has it.
#[derive(Clone, Debug)]
pub(super) struct Exact {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    /// Its layers, as they travel.
    pub layers: Vec<Descriptor>,
    /// Another tool may change it when it pushes the image: nothing in it is compressed.
    pub doubtful: bool,
}

/// An image in an archive or a directory.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub id: ImageId,
    pub platform: Platform,
    /// None from `docker save`, which knows none.
    pub manifest: Option<Exact>,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// One of its layers.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub diff_id: Digest,
    place: Place,
}

/// Where bytes lie.
#[derive(Clone, Debug)]
enum Place {
    File(PathBuf),
    Part { file: Arc<File>, at: u64, length: u64 },
}

/// A part of a file, from its beginning.
struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(into.get_mut(..most).unwrap_or_default(), self.at)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Place {
    fn open(&self) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Place::File(path) => Box::new(File::open(path)?),
            Place::Part { file, at, length } => Box::new(Part { file: file.clone(), at: *at, left: *length }),
        })
    }
}

impl Layer {
    /// Writes the layer's archive, not compressed, and gives its length.
    pub(super) fn unpack(&self, from: &Path, to: &mut File) -> Result<u64, PublishError> {
        let unread = |source| PublishError::Layer { path: from.to_owned(), layer: self.diff_id, source };
        let mut plain = decompress(self.place.open().map_err(unread)?).map_err(unread)?;
        let (mut hasher, mut length, mut buffer) = (Hasher::default(), 0, vec![0; 128 << 10]);
        loop {
            let read = match plain.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unread(error)),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            hasher.update(bytes);
            to.write_all(bytes).map_err(PublishError::Scratch)?;
            length += read as u64;
        }
        let found = hasher.finish();
        if found != self.diff_id {
            let what = "a layer".to_owned();
            return Err(PublishError::Damaged { path: from.to_owned(), what, expected: self.diff_id, found });
        }
        Ok(length)
    }
}

/// What the images are in.
enum Holder {
    /// An OCI layout.
    Layout(PathBuf),
    /// skopeo's `dir:`.
    Dir(PathBuf),
    /// One file.
    Archive { file: Arc<File>, entries: BTreeMap<String, (u64, u64)>, links: BTreeMap<String, String> },
}

/// An image in Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "null_default")]
    layers: Vec<String>,
}

/// All images in an archive or a directory.
pub(super) fn images(path: &Path) -> Result<Vec<Image>, PublishError> {
    let opened = Opened { path, holder: Holder::open(path)? };
    let mut found = Vec::new();
    if opened.place("index.json").is_some() {
        let bytes = opened.document("index.json")?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|error| opened.none(format!("index.json: {error}")))?;
        opened.index(&index, DEPTH, &mut found)?;
    } else if matches!(opened.holder, Holder::Dir(_)) {
        opened.manifest(&opened.document("manifest.json")?, "", DEPTH, &mut found)?;
    } else if opened.place("manifest.json").is_some() {
        let bytes = opened.document("manifest.json")?;
        let saved: Vec<Saved> =
            serde_json::from_slice(&bytes).map_err(|error| opened.none(format!("manifest.json: {error}")))?;
        for image in saved {
            found.push(opened.saved(&image)?);
        }
    } else {
        return Err(opened.none("it has neither index.json nor manifest.json"));
    }
    let mut ids = BTreeSet::new();
    found.retain(|image: &Image| ids.insert(image.id));
    match found.is_empty() {
        true => Err(opened.none("it has no container image")),
        false => Ok(found),
    }
}

/// A manifest that was asked of a registry.
pub(super) fn exact(bytes: &[u8], path: &Path) -> Result<(ImageId, Exact), PublishError> {
    let wrong = |why: &str| PublishError::Request(format!("{}: {why}", path.display()));
    let unusable = |source| PublishError::Manifest { path: path.to_owned(), source };
    match Document::parse(bytes, "").map_err(unusable)? {
        Document::Index(_) => Err(wrong(
            "this is an index of several images: name the manifest of one platform \
             (skopeo inspect --raw docker://REGISTRY/NAME@DIGEST)",
        )),
        Document::Manifest(manifest) => {
            manifest.check(Limits::default().layers).map_err(unusable)?;
            let id = ImageId(manifest.config.digest);
            Ok((id, Exact { doubtful: false, ..described(bytes, "", manifest) }))
        }
    }
}

fn described(bytes: &[u8], said: &str, manifest: Manifest) -> Exact {
    let own = [&*manifest.media_type, said].into_iter().find(|kind| !kind.is_empty());
    let packed = |layer: &Descriptor| ![media::OCI_LAYER, media::DOCKER_LAYER].contains(&&*layer.media_type);
    Exact {
        media_type: own.unwrap_or(media::OCI_MANIFEST).to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        doubtful: !manifest.layers.iter().all(packed),
        layers: manifest.layers,
    }
}

struct Opened<'a> {
    path: &'a Path,
    holder: Holder,
}

impl Opened<'_> {
    fn none(&self, why: impl Into<String>) -> PublishError {
        PublishError::NoImage { path: self.path.to_owned(), why: why.into() }
    }

    fn place(&self, name: &str) -> Option<Place> {
        match &self.holder {
            Holder::Layout(dir) | Holder::Dir(dir) => {
                let path = dir.join(name);
                path.is_file().then_some(Place::File(path))
            }
            Holder::Archive { file, entries, links } => {
                let mut name = name;
                for _ in 0..8 {
                    match links.get(name) {
                        Some(next) => name = next,
                        None => break,
                    }
                }
                let (at, length) = *entries.get(name)?;
                Some(Place::Part { file: file.clone(), at, length })
            }
        }
    }

    fn blob(&self, digest: &Digest) -> String {
        match self.holder {
            Holder::Dir(_) => digest.hex(),
            _ => format!("blobs/sha256/{}", digest.hex()),
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, PublishError> {
        let place = self.place(name).ok_or_else(|| self.none(format!("{name} is missing")))?;
        let mut bytes = Vec::new();
        let read = place.open().and_then(|from| from.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|source| PublishError::Io { step: "read", path: self.path.join(name), source })?;
        match bytes.len() as u64 > DOCUMENT_MAX {
            true => Err(self.none(format!("{name} has more than {DOCUMENT_MAX} bytes"))),
            false => Ok(bytes),
        }
    }

    fn checked(&self, digest: &Digest, name: &str) -> Result<Vec<u8>, PublishError> {
        let bytes = self.document(name)?;
        let found = Digest::of(&bytes);
        if found != *digest {
            let (path, what) = (self.path.to_owned(), name.to_owned());
            return Err(PublishError::Damaged { path, what, expected: *digest, found });
        }
        Ok(bytes)
    }

    fn index(&self, index: &Index, depth: usize, found: &mut Vec<Image>) -> Result<(), PublishError> {
        let Some(depth) = depth.checked_sub(1) else { return Err(self.none("indexes lie in indexes")) };
        for descriptor in &index.manifests {
            let name = match self.holder {
                Holder::Dir(_) => format!("{}.manifest.json", descriptor.digest.hex()),
                _ => self.blob(&descriptor.digest),
            };
            // Provenance and signatures travel in the same list, and platforms that were not fetched are named in it.
            let attestation = descriptor.annotations.contains_key("vnd.docker.reference.type");
            if attestation || (depth + 1 < DEPTH && self.place(&name).is_none()) {
                continue;
            }
            let bytes = self.checked(&descriptor.digest, &name)?;
            self.manifest(&bytes, &descriptor.media_type, depth, found)?;
        }
        Ok(())
    }

    fn manifest(
        &self,
        bytes: &[u8],
        media_type: &str,
        depth: usize,
        found: &mut Vec<Image>,
    ) -> Result<(), PublishError> {
        let unusable = |source| PublishError::Manifest { path: self.path.to_owned(), source };
        let manifest = match Document::parse(bytes, media_type).map_err(unusable)? {
            Document::Index(index) => return self.index(&index, depth, found),
            Document::Manifest(manifest) => manifest,
        };
        match manifest.check(Limits::default().layers) {
            // Something else than a container image, that lies beside it.
            Err(ManifestError::MediaType { what: "configuration", .. }) => return Ok(()),
            checked => checked.map_err(unusable)?,
        }
        let config = self.checked(&manifest.config.digest, &self.blob(&manifest.config.digest))?;
        let names: Vec<String> = manifest.layers.iter().map(|layer| self.blob(&layer.digest)).collect();
        let id = ImageId(manifest.config.digest);
        let mut exact = described(bytes, media_type, manifest);
        // What skopeo puts into a `dir:` is the registry's, to the byte.
        exact.doubtful &= !matches!(self.holder, Holder::Dir(_));
        found.push(self.image(id, &config, &names, Some(exact))?);
        Ok(())
    }

    fn saved(&self, saved: &Saved) -> Result<Image, PublishError> {
        let config = self.document(&clean("", &saved.config))?;
        let names: Vec<String> = saved.layers.iter().map(|name| clean("", name)).collect();
        self.image(ImageId(Digest::of(&config)), &config, &names, None)
    }

    fn image(
        &self,
        id: ImageId,
        config: &[u8],
        layers: &[String],
        manifest: Option<Exact>,
    ) -> Result<Image, PublishError> {
        let unusable = |source| PublishError::Manifest { path: self.path.to_owned(), source };
        let config = ImageConfig::parse(config, layers.len()).map_err(unusable)?;
        let layers = config.rootfs.diff_ids.iter().zip(layers).map(|(diff_id, name)| {
            let place = self.place(name).ok_or_else(|| self.none(format!("layer {name} is missing")))?;
            Ok(Layer { diff_id: *diff_id, place })
        });
        let layers = layers.collect::<Result<_, PublishError>>()?;
        Ok(Image { id, platform: config.platform().normalised(), manifest, layers })
    }
}

impl Holder {
    fn open(path: &Path) -> Result<Holder, PublishError> {
        let failed = |source| PublishError::Io { step: "open", path: path.to_owned(), source };
        let none = |why: &str| PublishError::NoImage { path: path.to_owned(), why: why.into() };
        let found = std::fs::metadata(path).map_err(failed)?;
        if found.is_dir() {
            if path.join("index.json").is_file() {
                return Ok(Holder::Layout(path.to_owned()));
            }
            let dir = path.join("version").is_file() && path.join("manifest.json").is_file();
            return match dir {
                true => Ok(Holder::Dir(path.to_owned())),
                false => Err(none("this directory is neither an OCI layout nor what skopeo writes for dir:")),
            };
        }
        let mut file = File::open(path).map_err(failed)?;
        let mut first = [0; 4];
        let have = file.read_at(&mut first, 0).map_err(failed)?;
        if matches!(first.get(..have), Some([0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd])) {
            // Layers are read in any order, so it is unpacked first.
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut plain = tempfile::tempfile_in(dir)
                .or_else(|_| tempfile::tempfile())
                .map_err(PublishError::Scratch)?;
            let mut from = decompress(file).map_err(failed)?;
            io::copy(&mut from, &mut plain).map_err(failed)?;
            file = plain;
        }
        let (mut entries, mut links) = (BTreeMap::new(), BTreeMap::new());
        let broken = |error: io::Error| PublishError::NoImage {
            path: path.to_owned(),
            why: format!("it is no tar archive, or a broken one ({error})"),
        };
        let shared = Arc::new(file.try_clone().map_err(failed)?);
        io::Seek::rewind(&mut file).map_err(failed)?;
        let mut archive = tar::Archive::new(file);
        for entry in archive.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let name = clean("", &String::from_utf8_lossy(&entry.path_bytes()));
            let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
            match (entry.header().entry_type(), link) {
                (tar::EntryType::Symlink, Some(link)) => {
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    links.insert(name.clone(), clean(parent, &link));
                }
                (tar::EntryType::Link, Some(link)) => drop(links.insert(name, clean("", &link))),
                (tar::EntryType::Regular | tar::EntryType::Continuous, _) => {
                    entries.insert(name, (entry.raw_file_position(), entry.size()));
                }
                _ => {}
            }
        }
        Ok(Holder::Archive { file: shared, entries, links })
    }
}
