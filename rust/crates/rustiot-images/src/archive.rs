//! Images as one file: `save` writes an archive that is an OCI layout and Docker's at once, `load` reads either.
//!
//! Both stream: layers are never in memory and never unpacked. `load` publishes all images of an archive or none. Called
//! by the engine.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::core;
use crate::digest::{Digest, Hasher, ImageId};
use crate::error::{Error, disk};
use crate::layer::{self, LayerError, Watch, file, walk};
use crate::manifest::{Descriptor, Document, ImageConfig, Index, Manifest, media};
use crate::platform::Platform;
use crate::progress::{Progress, Status};
use crate::reference::Reference;
use crate::store::{Claim, LayerInfo, Loaded, NewImage, Store};

/// Most bytes of JSON of an archive that are kept in memory.
const JSON_MAX: u64 = 16 << 20;

/// An image in Docker's `manifest.json`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default, deserialize_with = "crate::manifest::null_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "crate::manifest::null_default")]
    layers: Vec<String>,
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn wrong(why: impl Into<String>) -> Error {
    Error::Archive { why: why.into() }
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::ArchiveIo { step, source }
}

impl Store {
    /// Writes an archive that `load` here, `docker load` and OCI tools read. Layers are in it as they are, not
    /// compressed. By name, an image is in it with that name; by id, without one.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Damaged`], [`Error::ArchiveIo`].
    pub fn save(&self, names: &[String], to: &mut dyn Write) -> Result<(), Error> {
        let mut images: BTreeMap<ImageId, Vec<Reference>> = BTreeMap::new();
        for name in names {
            let id = self.resolve(name)?;
            let tags = images.entry(id).or_default();
            if let Ok(reference) = name.parse::<Reference>()
                && reference.tag().is_some()
                && self.resolve(&reference.to_string()).is_ok_and(|found| found == id)
            {
                tags.push(reference);
            }
        }
        let mut out = Builder::new(to);
        let mut written = std::collections::BTreeSet::new();
        put(&mut out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let (mut index, mut docker) = (Vec::new(), Vec::new());
        for (id, tags) in images {
            let rootfs = self.rootfs(&id)?;
            // Nobody removes it meanwhile.
            let _claims: Vec<Claim> = rootfs
                .layers
                .iter()
                .map(|layer| self.inner.claim(core::layer_name(&layer.diff_id)))
                .collect();
            let (record, _) = self.record(&id)?;
            let mut layers = Vec::new();
            for layer in &rootfs.layers {
                let opened = std::fs::File::open(&layer.file).map_err(disk("open", &layer.file))?;
                let end = file::quick(&opened, &layer.diff_id).map_err(|why| Error::Damaged {
                    id,
                    layer: layer.diff_id,
                    why,
                })?;
                layers.push(
                    json!({"mediaType": media::OCI_LAYER, "digest": layer.diff_id, "size": end.archive}),
                );
                if written.insert(layer.diff_id) {
                    let header = header(end.archive);
                    let mut archive = file::archive(&opened, &end);
                    append(&mut out, header, &blob(&layer.diff_id), &mut archive)?;
                }
            }
            let config = record.config.as_bytes();
            if written.insert(id.0) {
                put(&mut out, &blob(&id.0), config)?;
            }
            let manifest = json!({
                "schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
                "config": {"mediaType": media::OCI_CONFIG, "digest": id, "size": config.len()},
                "layers": layers,
            })
            .to_string();
            let digest = Digest::of(manifest.as_bytes());
            put(&mut out, &blob(&digest), manifest.as_bytes())?;
            let size = manifest.len();
            for tag in &tags {
                index.push(json!({
                    "mediaType": media::OCI_MANIFEST, "digest": digest, "size": size,
                    "annotations": {
                        "io.containerd.image.name": tag.to_string(),
                        "org.opencontainers.image.ref.name": tag.tag(),
                    },
                }));
            }
            if tags.is_empty() {
                index.push(json!({"mediaType": media::OCI_MANIFEST, "digest": digest, "size": size}));
            }
            docker.push(Entry {
                config: blob(&id.0),
                repo_tags: tags.iter().map(Reference::familiar).collect(),
                layers: rootfs.layers.iter().map(|layer| blob(&layer.diff_id)).collect(),
            });
        }
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": index});
        put(&mut out, "index.json", index.to_string().as_bytes())?;
        let docker = serde_json::to_vec(&docker).map_err(|error| failed("write")(error.into()))?;
        put(&mut out, "manifest.json", &docker)?;
        out.into_inner().and_then(Write::flush).map_err(failed("write"))
    }

    /// Takes images in from an OCI or a docker-archive tar stream, plain, gzip or zstd. All of them or none. Of an index
    /// with several platforms, the image for `platform`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(
        &self,
        from: &mut dyn Read,
        platform: &Platform,
        progress: &Progress,
    ) -> Result<Vec<Loaded>, Error> {
        let loaded = self.load_all(from, platform, progress);
        if loaded.is_err() {
            self.sweep_now();
        }
        loaded
    }

    fn load_all(
        &self,
        from: &mut dyn Read,
        platform: &Platform,
        progress: &Progress,
    ) -> Result<Vec<Loaded>, Error> {
        let plain = layer::compression::decompress(from).map_err(failed("read"))?;
        let mut stream = Plain { from: plain, at: 0 };
        let mut found = Found::default();
        while let Some(entry) = walk::next(&mut stream).map_err(unreadable)? {
            self.take(&mut stream, &entry, progress, &mut found)?;
            walk::skip_padding(&mut stream).map_err(unreadable)?;
        }
        let images = found.images(platform)?;
        if images.is_empty() {
            return Err(wrong("it has neither manifest.json nor index.json with an image"));
        }
        let loaded = images.iter().map(|image| Loaded { id: image.id, names: image.tags.clone() }).collect();
        self.inner.publish(images)?;
        Ok(loaded)
    }

    /// One entry of the archive.
    fn take(
        &self,
        stream: &mut Plain<'_>,
        entry: &walk::Entry,
        progress: &Progress,
        found: &mut Found,
    ) -> Result<(), Error> {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let path = clean("", &path);
        let link = String::from_utf8_lossy(&entry.link).into_owned();
        match entry.kind {
            EntryType::Symlink => {
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                found.links.insert(path.clone(), clean(parent, &link));
            }
            EntryType::Link => {
                found.links.insert(path.clone(), clean("", &link));
            }
            _ => {}
        }
        let mut body = Body { stream, left: entry.stored };
        if !matches!(entry.kind, EntryType::Regular | EntryType::Continuous) {
            return io::copy(&mut body, &mut io::sink()).map(drop).map_err(failed("read"));
        }
        let mut first = Vec::new();
        (&mut body).take(512).read_to_end(&mut first).map_err(failed("read"))?;
        // A tar archive begins with a name and is never this short; JSON of an image begins with a bracket.
        let text = first.iter().find(|byte| !byte.is_ascii_whitespace());
        if matches!(text, Some(b'{' | b'[')) && entry.stored <= JSON_MAX {
            found.json += entry.stored;
            if found.json > JSON_MAX {
                return Err(wrong(format!("it has more than {JSON_MAX} bytes of JSON")));
            }
            body.read_to_end(&mut first).map_err(failed("read"))?;
            found.documents.insert(path, first);
            return Ok(());
        }
        if entry.stored < 10 {
            return io::copy(&mut body, &mut io::sink()).map(drop).map_err(failed("read"));
        }
        let short: String = path.chars().take(80).collect();
        let (file, claim) = self.inner.temporary()?;
        let (consumed, cancelled) = (AtomicU64::new(0), AtomicBool::new(false));
        let size = entry.stored;
        let tell = |now| progress.count(short.clone(), Status::LoadingLayer, now, size);
        let watch = Watch { consumed: &consumed, cancelled: &cancelled, progress: &tell };
        let (result, digest) = {
            let hasher = Hasher::default();
            let mut hashed = Hashed { from: (&first[..]).chain(&mut body), hasher, consumed: &consumed };
            let result = layer::compression::decompress(&mut hashed)
                .map_err(LayerError::Read)
                .and_then(|plain| layer::import(plain, &file, &self.inner.limits, &watch));
            io::copy(&mut hashed, &mut io::sink()).map_err(failed("read"))?;
            (result, hashed.hasher.finish())
        };
        match result {
            Ok(imported) => {
                let settled = self.inner.settle(&claim, &imported.diff_id)?;
                let info = LayerInfo {
                    diff_id: imported.diff_id,
                    digest,
                    fetched: entry.stored,
                    size: imported.size,
                };
                found.layers.insert(path, (info, settled));
            }
            Err(source) => {
                let error = Error::Layer { name: "the archive".to_owned(), layer: short.into(), source };
                match error {
                    Error::Layer { source: LayerError::NoSpace { .. } | LayerError::Write(_), .. } => {
                        return Err(error);
                    }
                    // Something that no image needs, perhaps.
                    error => drop(found.failed.insert(path, error)),
                }
            }
        }
        Ok(())
    }
}

fn unreadable(error: LayerError) -> Error {
    match error {
        LayerError::Read(source) => failed("read")(source),
        LayerError::Tar { offset, source } => wrong(format!("it is broken after {offset} bytes ({source})")),
        other => wrong(other.to_string()),
    }
}

/// A path without `.` and `..`, seen from a directory.
pub(crate) fn clean(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { from.split('/').collect() };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("/")
}

/// What an archive holds.
#[derive(Default)]
struct Found {
    documents: BTreeMap<String, Vec<u8>>,
    layers: BTreeMap<String, (LayerInfo, Claim)>,
    failed: BTreeMap<String, Error>,
    links: BTreeMap<String, String>,
    json: u64,
}

impl Found {
    fn follow<'a>(&'a self, path: &'a str) -> &'a str {
        let mut at = path;
        for _ in 0..8 {
            match self.links.get(at) {
                Some(next) => at = next,
                None => break,
            }
        }
        at
    }

    fn document(&self, path: &str) -> Result<&[u8], Error> {
        let path = clean("", path);
        let found = self.documents.get(self.follow(&path));
        found.map(Vec::as_slice).ok_or_else(|| wrong(format!("{path:?} is missing")))
    }

    fn layer(&mut self, path: &str) -> Result<LayerInfo, Error> {
        let path = clean("", path);
        let path = self.follow(&path).to_owned();
        if let Some((info, _)) = self.layers.get(&path) {
            return Ok(info.clone());
        }
        Err(self.failed.remove(&path).unwrap_or_else(|| wrong(format!("layer {path:?} is missing"))))
    }

    fn images(&mut self, platform: &Platform) -> Result<Vec<NewImage>, Error> {
        if let Ok(bytes) = self.document("manifest.json") {
            let entries: Vec<Entry> =
                serde_json::from_slice(bytes).map_err(|error| wrong(format!("manifest.json: {error}")))?;
            return entries.into_iter().map(|entry| self.docker(entry)).collect();
        }
        let bytes = self.document("index.json")?;
        let index: Index =
            serde_json::from_slice(bytes).map_err(|error| wrong(format!("index.json: {error}")))?;
        let mut images: Vec<NewImage> = Vec::new();
        for descriptor in &index.manifests {
            let image = self.oci(descriptor, platform)?;
            match images.iter_mut().find(|other| other.id == image.id) {
                Some(other) => other.tags.extend(image.tags),
                None => images.push(image),
            }
        }
        Ok(images)
    }

    fn docker(&mut self, entry: Entry) -> Result<NewImage, Error> {
        let config = self.document(&entry.config)?.to_vec();
        let id = ImageId(Digest::of(&config));
        let layers = entry.layers.iter().map(|path| self.layer(path)).collect::<Result<Vec<_>, _>>()?;
        let tags = entry.repo_tags.iter().map(|name| name.parse()).collect::<Result<Vec<Reference>, _>>()?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::DOCKER_MANIFEST,
            "config": {"mediaType": media::DOCKER_CONFIG, "digest": id, "size": config.len()},
            "layers": layers.iter().map(|layer| {
                json!({"mediaType": media::OCI_LAYER, "digest": layer.digest, "size": layer.fetched})
            }).collect::<Vec<_>>(),
        });
        new_image(id, config, manifest.to_string().into_bytes(), layers, tags)
    }

    fn checked(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let bytes = self.document(&blob(&descriptor.digest))?;
        let found = Digest::of(bytes);
        if found != descriptor.digest {
            return Err(wrong(format!("{} has the digest {found}", descriptor.digest)));
        }
        Ok(bytes.to_vec())
    }

    fn oci(&mut self, descriptor: &Descriptor, platform: &Platform) -> Result<NewImage, Error> {
        let unusable = |source| Error::Manifest { name: "the archive".to_owned(), source };
        let mut bytes = self.checked(descriptor)?;
        let mut document = Document::parse(&bytes, &descriptor.media_type).map_err(unusable)?;
        if let Document::Index(index) = &document {
            let chosen = index.select(platform).map_err(unusable)?;
            bytes = self.checked(chosen)?;
            document = Document::parse(&bytes, &chosen.media_type).map_err(unusable)?;
        }
        let Document::Manifest(manifest) = document else { return Err(wrong("it has an index in an index")) };
        let Manifest { config, layers, .. } = manifest;
        let mut infos = Vec::new();
        for layer in &layers {
            let info = self.layer(&blob(&layer.digest))?;
            if info.digest != layer.digest {
                return Err(wrong(format!("layer {} has the digest {}", layer.digest, info.digest)));
            }
            infos.push(info);
        }
        let note = |name: &str| descriptor.annotations.get(name);
        // A tag alone names no image.
        let name = note("io.containerd.image.name")
            .or_else(|| note("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':'])));
        let tags = name.map(|name| name.parse::<Reference>()).transpose()?.into_iter();
        let tags = tags.filter(|name| name.tag().is_some()).collect();
        new_image(ImageId(config.digest), self.checked(&config)?, bytes, infos, tags)
    }
}

fn new_image(
    id: ImageId,
    config: Vec<u8>,
    manifest: Vec<u8>,
    layers: Vec<LayerInfo>,
    tags: Vec<Reference>,
) -> Result<NewImage, Error> {
    let parsed = ImageConfig::parse(&config, layers.len())
        .map_err(|source| Error::Manifest { name: "the archive".to_owned(), source })?;
    for (layer, expected) in layers.iter().zip(&parsed.rootfs.diff_ids) {
        if layer.diff_id != *expected {
            let source = LayerError::DiffId { expected: *expected, found: layer.diff_id };
            return Err(Error::Layer {
                name: "the archive".to_owned(),
                layer: layer.digest.short().into(),
                source,
            });
        }
    }
    let text = |bytes| String::from_utf8(bytes).map_err(|_| wrong("a document is no UTF-8"));
    Ok(NewImage { id, config: text(config)?, manifest: text(manifest)?, layers, tags, repo_digest: None })
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o444);
    header
}

fn put(out: &mut Builder<&mut dyn Write>, name: &str, bytes: &[u8]) -> Result<(), Error> {
    append(out, header(bytes.len() as u64), name, &mut &*bytes)
}

fn append(
    out: &mut Builder<&mut dyn Write>,
    mut header: Header,
    name: &str,
    bytes: &mut dyn Read,
) -> Result<(), Error> {
    out.append_data(&mut header, name, bytes).map_err(failed("write"))
}

/// The archive as it streams by.
struct Plain<'a> {
    from: Box<dyn Read + 'a>,
    at: u64,
}

impl walk::Stream for Plain<'_> {
    fn position(&self) -> u64 {
        self.at
    }

    fn read(&mut self, into: &mut [u8]) -> Result<bool, LayerError> {
        let mut done = 0;
        while let Some(rest @ [_, ..]) = into.get_mut(done..) {
            match self.from.read(rest) {
                Ok(0) if done == 0 => return Ok(false),
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(LayerError::Tar { offset: self.at, source });
                }
                Ok(read) => {
                    done += read;
                    self.at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        Ok(true)
    }

    fn skip(&mut self, count: u64) -> Result<(), LayerError> {
        let skipped =
            io::copy(&mut (&mut self.from).take(count), &mut io::sink()).map_err(LayerError::Read)?;
        self.at += skipped;
        if skipped < count {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(LayerError::Tar { offset: self.at, source });
        }
        Ok(())
    }
}

/// The contents of one entry; an archive that ends in them is an error.
struct Body<'a, 'b> {
    stream: &'a mut Plain<'b>,
    left: u64,
}

impl Read for Body<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.stream.from.read(into.get_mut(..most).unwrap_or_default())?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.stream.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Hashes and counts what goes by.
struct Hashed<'a, R> {
    from: R,
    hasher: Hasher,
    consumed: &'a AtomicU64,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.hasher.update(into.get(..read).unwrap_or_default());
        self.consumed.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
