//! Image deltas as a registry offers them: which artifact says what of which image.
//!
//! Pure and total; reads what anybody may have put beside an image. Nothing in it is trusted: what it leads to is a
//! layer's archive whose digest stands in the image's configuration. Called by the pull, and by the publisher for the
//! same names. Contract: `docs/contracts/images.md`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::digest::{Digest, ImageId};
use crate::manifest::{media, null_default};

/// What an artifact with deltas of one image is called (`artifactType`).
pub const ARTIFACT: &str = "application/vnd.rustiot.image-delta.v1";
/// One layer's delta: `.rdelta` of the codec's version 02.
pub const BLOB: &str = "application/vnd.rustiot.rdelta.v2";
/// On the artifact: the id of the image that a device must have.
pub const FROM: &str = "org.rustiot.delta.from";
/// On a blob: the `diff_id` of the layer that it makes.
pub const TARGET: &str = "org.rustiot.delta.target";
/// On a blob: the `diff_id`s of the layers that it is made from, in the codec's order, a blank between two.
pub const SOURCES: &str = "org.rustiot.delta.sources";

/// Largest list of what refers to an image, and largest artifact, that a device reads.
pub(crate) const DOCUMENT_MAX: u64 = 256 << 10;
/// Most sources of a delta, as in the codec.
const SOURCES_MAX: usize = 16;

/// What is offered cannot be used. Never an error of a pull: the layer is fetched as a whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeltaError {
    /// A document is none.
    #[error("the {what} is malformed")]
    Json {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// A document is another one than it should be.
    #[error("the {what} is of no use: {why}")]
    Document { what: &'static str, why: &'static str },
    /// It cannot be fetched.
    #[error("it cannot be fetched")]
    Fetch(#[source] Box<crate::Error>),
    /// The registry takes too long to say what it has.
    #[error("the registry does not say in {0} s what it has")]
    Slow(u64),
    /// Another pull fetches the same bytes.
    #[error("another pull is fetching it")]
    Busy,
    /// A source is not here, or not as it should be.
    #[error("layer {layer} that it is made from {why}")]
    Source { layer: Digest, why: &'static str },
    /// It says something else of itself than the artifact.
    #[error("it is not what the registry says: {0}")]
    Other(&'static str),
    /// It cannot be decoded.
    #[error("it cannot be decoded")]
    Codec(#[from] rustiot_delta::Error),
    /// What it makes is no layer, or another one.
    #[error("what it makes is of no use")]
    Layer(#[from] crate::LayerError),
}

impl From<crate::Error> for DeltaError {
    fn from(error: crate::Error) -> DeltaError {
        DeltaError::Fetch(Box::new(error))
    }
}

/// What refers to an image, of the kind that is looked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Artifact {
    pub digest: Digest,
    /// The image that it starts from.
    pub from: ImageId,
}

/// A delta for a layer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Offer {
    /// The blob.
    pub digest: Digest,
    pub size: u64,
    /// Layers that it is made from, in the codec's order.
    pub sources: Vec<Digest>,
}

/// What a list or an artifact names, as far as it is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default, deserialize_with = "null_default")]
    media_type: String,
    #[serde(default, deserialize_with = "null_default")]
    artifact_type: String,
    #[serde(default, deserialize_with = "null_default")]
    digest: String,
    #[serde(default, deserialize_with = "null_default")]
    size: u64,
    #[serde(default, deserialize_with = "null_default")]
    annotations: BTreeMap<String, String>,
}

/// Artifacts in a list of what refers to an image that start from an image of `have`. Foreign entries are passed over,
/// whatever they are. One without a type may be ours: skopeo 1.9 (Debian 12) drops types from the lists that it
/// copies, and the artifact itself says what it is.
pub(crate) fn artifacts(list: &[u8], have: &BTreeSet<ImageId>) -> Result<Vec<Artifact>, DeltaError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        #[serde(default, deserialize_with = "null_default")]
        media_type: String,
        #[serde(default, deserialize_with = "null_default")]
        manifests: Vec<Entry>,
    }
    let what = "list of what refers to the image";
    let list: List = serde_json::from_slice(list).map_err(|source| DeltaError::Json { what, source })?;
    if !["", media::OCI_INDEX].contains(&&*list.media_type) {
        return Err(DeltaError::Document { what, why: "it is no OCI index" });
    }
    let ours = |entry: &&Entry| {
        ["", ARTIFACT].contains(&&*entry.artifact_type)
            && entry.media_type == media::OCI_MANIFEST
            && entry.size <= DOCUMENT_MAX
    };
    let artifact = |entry: &Entry| {
        let from = ImageId(entry.annotations.get(FROM)?.parse().ok()?);
        have.contains(&from).then_some(())?;
        Some(Artifact { digest: entry.digest.parse().ok()?, from })
    };
    Ok(list.manifests.iter().filter(ours).filter_map(artifact).collect())
}

/// The deltas of an artifact, by the layer that they make. What is of another version of the codec is passed over.
pub(crate) fn offers(artifact: &[u8], subject: &Digest) -> Result<BTreeMap<Digest, Offer>, DeltaError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        #[serde(default, deserialize_with = "null_default")]
        media_type: String,
        #[serde(default, deserialize_with = "null_default")]
        artifact_type: String,
        subject: Option<Subject>,
        #[serde(default, deserialize_with = "null_default")]
        layers: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Subject {
        digest: String,
    }
    let what = "artifact";
    let manifest: Manifest =
        serde_json::from_slice(artifact).map_err(|source| DeltaError::Json { what, source })?;
    let wrong = |why| Err(DeltaError::Document { what, why });
    if manifest.media_type != media::OCI_MANIFEST || manifest.artifact_type != ARTIFACT {
        return wrong("it is something else than image deltas");
    }
    if !manifest.subject.is_some_and(|named| named.digest.parse() == Ok(*subject)) {
        return wrong("it is about another image");
    }
    let offer = |blob: &Entry| {
        let target: Digest = blob.annotations.get(TARGET)?.parse().ok()?;
        let sources = blob.annotations.get(SOURCES)?.split(' ').map(str::parse);
        let sources: Vec<Digest> = sources.take(SOURCES_MAX + 1).collect::<Result<_, _>>().ok()?;
        let usable = blob.media_type == BLOB && sources.len() <= SOURCES_MAX;
        usable.then_some((target, Offer { digest: blob.digest.parse().ok()?, size: blob.size, sources }))
    };
    let mut offers = BTreeMap::new();
    for (target, offer) in manifest.layers.iter().filter_map(offer) {
        cheaper(&mut offers, target, offer);
    }
    Ok(offers)
}

/// Of several deltas for a layer, the smallest.
pub(crate) fn cheaper(offers: &mut BTreeMap<Digest, Offer>, target: Digest, offer: Offer) {
    if offers.get(&target).is_none_or(|other| other.size > offer.size) {
        offers.insert(target, offer);
    }
}

/// The tag under which registries without the referrers API keep the list of what refers to a manifest.
pub(crate) fn referrers_tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn list(entries: &[Value]) -> Vec<u8> {
        json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries})
            .to_string()
            .into_bytes()
    }

    fn entry(from: &str) -> Value {
        json!({"mediaType": media::OCI_MANIFEST, "artifactType": ARTIFACT, "digest": digest("artifact"), "size": 900,
            "annotations": {FROM: digest(from)}})
    }

    #[test]
    fn only_what_starts_from_an_image_that_is_here() {
        let have: BTreeSet<ImageId> = [ImageId(digest("old")), ImageId(digest("older"))].into();
        let strange = [
            json!({"digest": "sha512:00", "mediaType": null, "artifactType": "a signature"}),
            json!({}),
            json!({"mediaType": media::OCI_INDEX, "artifactType": ARTIFACT, "digest": digest("x"), "size": 1,
                "annotations": {FROM: digest("old")}}),
            json!({"mediaType": media::OCI_MANIFEST, "artifactType": ARTIFACT, "digest": digest("x"), "size": 1_u64 << 40,
                "annotations": {FROM: digest("old")}}),
            json!({"mediaType": media::OCI_MANIFEST, "artifactType": ARTIFACT, "digest": digest("x"), "size": 1}),
            json!({"mediaType": media::OCI_MANIFEST, "artifactType": ARTIFACT, "digest": "latest", "size": 1,
                "annotations": {FROM: digest("old")}}),
            entry("foreign"),
        ];
        assert_eq!(artifacts(&list(&strange), &have).unwrap(), []);
        let mut untyped = entry("old");
        untyped.as_object_mut().unwrap().remove("artifactType");
        assert_eq!(artifacts(&list(&[untyped]), &have).unwrap().len(), 1, "as skopeo 1.9 leaves it");
        let found = artifacts(&list(&[&strange[..], &[entry("old")]].concat()), &have).unwrap();
        assert_eq!(found, [Artifact { digest: digest("artifact"), from: ImageId(digest("old")) }]);
        for text in [&b"{"[..], b"<html>", br#"{"mediaType": "text/plain"}"#, br#"{"manifests": {}}"#] {
            assert!(artifacts(text, &have).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn an_artifact_names_its_image_and_its_layers() {
        let blob = |media_type: &str, target: &str, size: u64, sources: &str| {
            json!({"mediaType": media_type, "digest": digest("blob"), "size": size,
                "annotations": {TARGET: digest(target), SOURCES: sources}})
        };
        let old = digest("old").to_string();
        let many = vec![old.as_str(); 17].join(" ");
        let artifact = |kind: &str, subject: Value| {
            let layers = [
                blob(BLOB, "new", 30, &format!("{old} {old}")),
                blob(BLOB, "new", 20, &old),
                blob(BLOB, "new", 25, &old),
                blob("application/vnd.rustiot.rdelta.v3", "later", 1, &old),
                blob(BLOB, "none", 1, ""),
                blob(BLOB, "many", 1, &many),
                json!({"mediaType": BLOB}),
            ];
            let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": kind,
                "subject": subject, "layers": layers});
            manifest.to_string().into_bytes()
        };
        let subject = digest("manifest");
        let offers_of = |bytes: Vec<u8>| offers(&bytes, &subject);
        let found = offers_of(artifact(ARTIFACT, json!({"digest": subject}))).unwrap();
        let offer = Offer { digest: digest("blob"), size: 20, sources: vec![digest("old")] };
        assert_eq!(found, [(digest("new"), offer)].into());
        assert!(offers_of(artifact(ARTIFACT, json!({"digest": digest("another")}))).is_err());
        assert!(offers_of(artifact(ARTIFACT, Value::Null)).is_err());
        assert!(offers_of(artifact("another/kind", json!({"digest": subject}))).is_err());
        assert!(offers_of(b"{}".to_vec()).is_err());
    }

    proptest! {
        #[test]
        fn total(bytes: Vec<u8>) {
            let _ = artifacts(&bytes, &BTreeSet::new());
            let _ = offers(&bytes, &Digest::of(b""));
        }
    }
}
