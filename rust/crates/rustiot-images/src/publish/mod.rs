//! The publisher of image deltas: from two versions of an image, what a registry offers to devices that have the older.
//!
//! Workstation only (feature `publish`): the encoder takes time, memory and all processors. Talks to no registry: it
//! reads images from files and writes an OCI layout for other tools to copy. Called by the workstation's command line.
//! Contract: `docs/contracts/images.md`.

mod layout;
mod open;
mod pair;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use rustiot_delta::{EncodeError, Options, Source, encode};
use serde::Serialize;
use serde_json::{Value, json};

use crate::delta::{ARTIFACT, BLOB, DOCUMENT_MAX, FROM, SOURCES, TARGET, referrers_tag};
use crate::digest::{Digest, ImageId};
use crate::manifest::{ManifestError, media};
use crate::platform::Platform;
use layout::Layout;
use open::{Exact, Image};
use pair::Profile;

/// What an artifact has in place of a configuration (OCI image specification 1.1, "empty descriptor").
const EMPTY: (&str, &[u8]) = ("application/vnd.oci.empty.v1+json", b"{}");

/// No deltas were published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A file or directory.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no room for unpacked layers, or it cannot be written.
    #[error("cannot keep an unpacked layer: beside --out there must be room for all layers of both images")]
    Scratch(#[source] io::Error),
    /// Not an image.
    #[error(
        "{} is no container image: {why} (an OCI layout or archive, a directory that skopeo wrote as dir:, or an archive \
         of docker save)",
        path.display()
    )]
    NoImage {
        /// What was given.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A document of an image is of no use.
    #[error("an image in {} cannot be used", path.display())]
    Manifest {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A layer cannot be read.
    #[error("cannot unpack layer {layer} of {}", path.display())]
    Layer {
        /// Where.
        path: PathBuf,
        /// Its `diff_id`.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Bytes are not what they are named.
    #[error("{what} in {} has the digest {found} and should have {expected}: fetch it again", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What.
        what: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Request(String),
    /// The directory for the result has other things in it.
    #[error("{} is not empty and no OCI layout: name a new directory, or one that this command made", path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// The layout for the result cannot be read.
    #[error("{} of the layout cannot be used: {why}", path.display())]
    BadLayout {
        /// The document.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The layout for the result has an image that no tag leads to.
    #[error(
        "{} has an image without a name: copy the list of referrers as oci:{}:sha256-HEX, with the tag behind it",
        path.display(), path.display()
    )]
    Unnamed {
        /// The layout.
        path: PathBuf,
    },
    /// Another process writes it.
    #[error("another process writes {}", path.display())]
    Busy {
        /// The layout.
        path: PathBuf,
    },
    /// Devices would not read the list.
    #[error(
        "the list {tag} gets more than {max} bytes, which no device reads: begin a new directory with fewer old images"
    )]
    TooMany {
        /// The tag.
        tag: String,
        /// What devices read.
        max: u64,
    },
    /// A layer cannot be encoded.
    #[error("cannot encode layer {layer}")]
    Encode {
        /// Its `diff_id`.
        layer: Digest,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] rustiot_durable::Error),
}

/// What to publish.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The image that devices have.
    pub old: &'a Path,
    /// The image that they shall get.
    pub new: &'a Path,
    /// The manifest of the new image as the registry has it, where `new` has another or none.
    pub manifest: Option<&'a Path>,
    /// Only for this platform.
    pub platform: Option<Platform>,
    /// The layout that is written, or gets more.
    pub out: &'a Path,
}

/// What was published for one platform.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Published {
    /// For whom.
    pub platform: String,
    /// The image that devices have.
    pub from: ImageId,
    /// The image that they get.
    pub to: ImageId,
    /// Its manifest.
    pub subject: Digest,
    /// The tag that the list goes to.
    pub tag: String,
    /// The artifact with the deltas; none where no delta is worth it.
    pub artifact: Option<Digest>,
    /// Whether the layout is another than before.
    pub changed: bool,
    /// What else is in the list.
    pub kept: usize,
    /// Layers that both images have.
    pub same: usize,
    /// Layers that the old image lacks.
    pub layers: Vec<Delta>,
}

/// What became of one layer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Delta {
    /// The layer.
    pub diff_id: Digest,
    /// What it takes to fetch it, compressed as the registry has it.
    pub layer_bytes: u64,
    /// What the smallest delta takes; none where there is nothing to make it from.
    pub delta_bytes: Option<u64>,
    /// Whether it is offered: only if it is smaller.
    pub offered: bool,
    /// What it is made from.
    pub sources: Vec<Digest>,
}

/// Makes deltas from one version of an image to another and puts them into an OCI layout, beside what is there.
/// `progress` gets what is done and a share of it, 0 to 1.
///
/// Where nothing is offered, no layout is made.
///
/// # Errors
/// [`PublishError`]. The layout then offers what it offered before, or more.
pub fn publish(
    request: &Request<'_>,
    progress: &(dyn Fn(&str, f32) + Sync),
) -> Result<Vec<Published>, PublishError> {
    let pairs = pairs(request)?;
    let mut out = Layout::open(request.out)?;
    let all = pairs.iter().map(|(old, new, exact)| one(request, old, new, exact, &mut out, progress));
    let published = all.collect();
    out.tidy();
    published
}

/// Images of both sides that belong together, and the manifests of the new ones.
fn pairs(request: &Request<'_>) -> Result<Vec<(Image, Image, Exact)>, PublishError> {
    let wanted =
        |image: &Image| request.platform.as_ref().is_none_or(|one| one.normalised() == image.platform);
    let read = |path: &Path| -> Result<BTreeMap<String, Image>, PublishError> {
        let mut found = BTreeMap::new();
        for image in open::images(path)?.into_iter().filter(wanted) {
            let platform = image.platform.to_string();
            if found.insert(platform.clone(), image).is_some() {
                let path = path.display();
                return Err(PublishError::Request(format!(
                    "{path} has several images for {platform}: give one of them (skopeo copy oci:LAYOUT:NAME dir:DIR)"
                )));
            }
        }
        Ok(found)
    };
    let (mut old, new) = (read(request.old)?, read(request.new)?);
    let given = request.manifest.map(|path| {
        let bytes = std::fs::read(path);
        let bytes =
            bytes.map_err(|source| PublishError::Io { step: "read", path: path.to_owned(), source })?;
        Ok::<_, PublishError>((path, open::exact(&bytes, path)?))
    });
    let given = given.transpose()?;
    let fits = |(id, exact): &(ImageId, Exact), image: &Image| {
        *id == image.id && exact.layers.len() == image.layers.len()
    };
    if let Some((path, named)) = given.as_ref().filter(|(_, named)| !new.values().any(|new| fits(named, new)))
    {
        return Err(PublishError::Request(format!(
            "{} is the manifest of image {}, which is not in {}",
            path.display(),
            named.0.0.short(),
            request.new.display()
        )));
    }
    let none = PublishError::Request(format!(
        "no platform is in both images: {} has {}, {} has {}",
        request.old.display(),
        platforms(&old),
        request.new.display(),
        platforms(&new)
    ));
    let mut pairs = Vec::new();
    for (platform, mut new) in new {
        let Some(old) = old.remove(&platform) else { continue };
        let exact = match &given {
            Some((_, named)) if fits(named, &new) => named.1.clone(),
            Some(_) => continue,
            None => known(request, new.manifest.take())?,
        };
        pairs.push((old, new, exact));
    }
    if pairs.is_empty() { Err(none) } else { Ok(pairs) }
}

fn platforms(found: &BTreeMap<String, Image>) -> String {
    match found.is_empty() {
        true => "none that was asked for".to_owned(),
        false => found.keys().cloned().collect::<Vec<_>>().join(", "),
    }
}

/// The manifest of the new image, if it is the one that the registry has.
fn known(request: &Request<'_>, manifest: Option<Exact>) -> Result<Exact, PublishError> {
    let path = request.new.display();
    let why = match manifest {
        Some(exact) if !exact.doubtful => return Ok(exact),
        Some(_) => {
            "has layers that are not compressed; what pushes it compresses them, and makes another manifest"
        }
        None => "has no manifest",
    };
    Err(PublishError::Request(format!(
        "{path} {why}. Deltas belong to the manifest that the registry has: take the image from there \
         (skopeo copy docker://REGISTRY/NAME:TAG dir:DIR), or name the manifest with --manifest FILE \
         (skopeo inspect --raw docker://REGISTRY/NAME:TAG > FILE)"
    )))
}

/// Deltas from one image to another.
fn one(
    request: &Request<'_>,
    old: &Image,
    new: &Image,
    exact: &Exact,
    out: &mut Layout,
    progress: &(dyn Fn(&str, f32) + Sync),
) -> Result<Published, PublishError> {
    let have: BTreeSet<Digest> = old.layers.iter().map(|layer| layer.diff_id).collect();
    let mut seen = BTreeSet::new();
    let missing: Vec<usize> = (new.layers.iter().enumerate())
        .filter(|(_, layer)| !have.contains(&layer.diff_id) && seen.insert(layer.diff_id))
        .map(|(number, _)| number)
        .collect();
    let mut published = Published {
        platform: new.platform.to_string(),
        from: old.id,
        to: new.id,
        subject: exact.digest,
        tag: referrers_tag(&exact.digest),
        artifact: None,
        changed: false,
        kept: 0,
        same: new.layers.iter().filter(|layer| have.contains(&layer.diff_id)).count(),
        layers: Vec::new(),
    };
    if missing.is_empty() {
        return Ok(published);
    }
    let mut olds = HashMap::new();
    let mut profiles = HashMap::new();
    let mut seen = BTreeSet::new();
    for (number, layer) in old.layers.iter().enumerate().filter(|(_, layer)| seen.insert(layer.diff_id)) {
        let what = format!("{}, reading the old layers", published.platform);
        progress(&what, number as f32 / old.layers.len() as f32);
        let mut file = scratch(request)?;
        layer.unpack(request.old, &mut file)?;
        profiles.insert(number, Profile::of(&mut file).map_err(PublishError::Scratch)?);
        olds.insert(number, file);
    }
    let mut blobs = Vec::new();
    for (done, number) in missing.iter().enumerate() {
        let Some((layer, descriptor)) = new.layers.get(*number).zip(exact.layers.get(*number)) else {
            continue;
        };
        let what = format!(
            "{}, layer {} ({} of {})",
            published.platform,
            layer.diff_id.short(),
            done + 1,
            missing.len()
        );
        let mut file = scratch(request)?;
        layer.unpack(request.new, &mut file)?;
        let profile = Profile::of(&mut file).map_err(PublishError::Scratch)?;
        let sets = pair::sets(*number, &profile, &profiles);
        let target = all(&mut file)?;
        let mut best: Option<(Vec<u8>, Vec<Digest>)> = None;
        for (turn, set) in sets.iter().enumerate() {
            let tell = |share: f32| progress(&what, (turn as f32 + share) / sets.len() as f32);
            let (bytes, sources) = made(&target, layer.diff_id, set, old, &mut olds, &tell)?;
            if best.as_ref().is_none_or(|(other, _)| bytes.len() < other.len()) {
                best = Some((bytes, sources));
            }
        }
        let mut delta = Delta {
            diff_id: layer.diff_id,
            layer_bytes: descriptor.size,
            delta_bytes: best.as_ref().map(|(bytes, _)| bytes.len() as u64),
            offered: false,
            sources: Vec::new(),
        };
        if let Some((bytes, sources)) = best {
            let size = bytes.len() as u64;
            if size < descriptor.size {
                let names: Vec<String> = sources.iter().map(Digest::to_string).collect();
                blobs.push(json!({"mediaType": BLOB, "digest": out.blob(&bytes)?, "size": size,
                    "annotations": {TARGET: layer.diff_id, SOURCES: names.join(" ")}}));
                delta.offered = true;
            }
            delta.sources = sources;
        }
        published.layers.push(delta);
    }
    if !blobs.is_empty() {
        let (artifact, entry) = artifact(out, &old.id, exact, &blobs, &published.tag)?;
        let merged = out.refer(&published.tag, &old.id, entry)?;
        (published.artifact, published.changed, published.kept) =
            (Some(artifact), merged.changed, merged.kept);
    }
    Ok(published)
}

/// A file without a name, on the medium that gets the result.
fn scratch(request: &Request<'_>) -> Result<File, PublishError> {
    tempfile::tempfile_in(request.out).map_err(PublishError::Scratch)
}

/// All of a file.
fn all(file: &mut File) -> Result<Vec<u8>, PublishError> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(PublishError::Scratch)?;
    Ok(bytes)
}

/// The delta from some layers of the old image.
fn made(
    target: &[u8],
    layer: Digest,
    set: &[usize],
    old: &Image,
    files: &mut HashMap<usize, File>,
    tell: &(dyn Fn(f32) + Sync),
) -> Result<(Vec<u8>, Vec<Digest>), PublishError> {
    let mut sources = Vec::new();
    for number in set {
        let named = old.layers.get(*number).map(|layer| layer.diff_id);
        if let Some((diff_id, file)) = named.zip(files.get_mut(number)) {
            sources.push((diff_id, diff_id.hex(), all(file)?));
        }
    }
    let named: Vec<Source<'_>> = sources.iter().map(|(_, name, bytes)| Source { name, bytes }).collect();
    let mut delta = Vec::new();
    encode(target, &named, &Options::default(), &mut delta, tell)
        .map_err(|source| PublishError::Encode { layer, source })?;
    Ok((delta, sources.into_iter().map(|(diff_id, ..)| diff_id).collect()))
}

/// Writes the artifact; gives its digest and its entry in a list.
fn artifact(
    out: &Layout,
    from: &ImageId,
    subject: &Exact,
    blobs: &[Value],
    tag: &str,
) -> Result<(Digest, Value), PublishError> {
    let (empty_type, empty) = EMPTY;
    let notes = json!({FROM: from});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": ARTIFACT,
        "config": {"mediaType": empty_type, "digest": out.blob(empty)?, "size": empty.len()},
        "layers": blobs,
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        "annotations": notes,
    });
    let bytes = manifest.to_string().into_bytes();
    if bytes.len() as u64 > DOCUMENT_MAX {
        return Err(PublishError::TooMany { tag: tag.to_owned(), max: DOCUMENT_MAX });
    }
    let digest = out.blob(&bytes)?;
    let entry = json!({"mediaType": media::OCI_MANIFEST, "digest": digest, "size": bytes.len(),
        "artifactType": ARTIFACT, "annotations": notes});
    Ok((digest, entry))
}
