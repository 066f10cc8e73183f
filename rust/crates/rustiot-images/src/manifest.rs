//! Manifests, indexes and image configurations, of OCI and of Docker's second schema, as they come from outside.
//!
//! Pure and total. Takes what registries really send (`null` for an empty list, unknown fields); refuses what cannot be
//! an image. Called by the pull, by `load` and `save`, and by whoever starts a container from a configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::digest::{Digest, DigestError};
use crate::platform::Platform;

/// Media types.
pub mod media {
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, not compressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker's index.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's manifest, second schema.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker's layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker's layer, zstd.
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    /// Docker's layer, not compressed.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
}

/// A manifest, an index or a configuration is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No JSON of this kind.
    #[error("the {what} is malformed")]
    Json {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Something that this crate does not know.
    #[error("the {what} is of the media type {media_type:?}, which is not supported{hint}")]
    MediaType {
        /// Manifest, configuration or layer.
        what: &'static str,
        /// What it says it is.
        media_type: String,
        /// What to do, with a leading blank, where there is something.
        hint: &'static str,
    },
    /// The parts contradict each other, or exceed a limit.
    #[error("the {what} makes no sense: {why}")]
    Nonsense {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// A digest that is none.
    #[error("the {what} has a bad digest")]
    Digest {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Which.
        #[source]
        source: DigestError,
    },
    /// An index without an image for this platform.
    #[error("no image for {wanted} (there is {offered})")]
    Platform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        offered: String,
    },
}

/// A blob as a manifest names it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default, deserialize_with = "null_default")]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// For whom, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub annotations: BTreeMap<String, String>,
}

/// An image's manifest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What it is; may be empty in OCI's.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub media_type: String,
    /// The image's configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    #[serde(default, deserialize_with = "null_default")]
    pub layers: Vec<Descriptor>,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Several images under one name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// What it is; may be empty in OCI's.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_default")]
    pub media_type: String,
    /// The images' manifests.
    #[serde(default, deserialize_with = "null_default")]
    pub manifests: Vec<Descriptor>,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub annotations: BTreeMap<String, String>,
}

/// What a tag or a digest leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// `null` and a missing field are the same.
pub(crate) fn null_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

impl Document {
    /// Reads a manifest or an index. `media_type` is what the server said it is; the document's own word counts more,
    /// and one that says neither is judged by its fields.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Document, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            #[serde(default)]
            schema_version: u32,
            #[serde(default, deserialize_with = "null_default")]
            media_type: String,
            manifests: Option<Value>,
            layers: Option<Value>,
        }
        let json = |source| ManifestError::Json { what: "manifest", source };
        let head: Head = serde_json::from_slice(bytes).map_err(json)?;
        let said = media_type.split(';').next().unwrap_or_default().trim();
        if head.schema_version == 1 {
            return Err(ManifestError::MediaType {
                what: "manifest",
                media_type: "application/vnd.docker.distribution.manifest.v1+json".to_owned(),
                hint: " (push the image again with a current tool)",
            });
        }
        if head.manifests.is_some() && head.layers.is_some() {
            // One document that is both has been used to show one image to a scanner and another to a device.
            let why = "it has both `manifests` and `layers`".to_owned();
            return Err(ManifestError::Nonsense { what: "manifest", why });
        }
        let own = if head.media_type.is_empty() { said } else { &head.media_type };
        let index = match own {
            media::OCI_INDEX | media::DOCKER_LIST => true,
            media::OCI_MANIFEST | media::DOCKER_MANIFEST => false,
            "" | "application/json" | "text/plain" | "application/octet-stream" => head.manifests.is_some(),
            other => {
                let media_type = other.chars().take(120).collect();
                return Err(ManifestError::MediaType { what: "manifest", media_type, hint: "" });
            }
        };
        if head.schema_version != 2 {
            let why = format!("schemaVersion is {}, not 2", head.schema_version);
            return Err(ManifestError::Nonsense { what: "manifest", why });
        }
        Ok(match index {
            true => Document::Index(serde_json::from_slice(bytes).map_err(json)?),
            false => Document::Manifest(serde_json::from_slice(bytes).map_err(json)?),
        })
    }
}

impl Index {
    /// The image for this platform.
    ///
    /// # Errors
    /// [`ManifestError::Platform`].
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        let usable = |descriptor: &&Descriptor| {
            // Provenance and signatures travel in the same list.
            let attestation = descriptor.annotations.contains_key("vnd.docker.reference.type");
            let known = descriptor.media_type.is_empty()
                || [media::OCI_MANIFEST, media::DOCKER_MANIFEST].contains(&&*descriptor.media_type);
            known && !attestation
        };
        let ranked = self.manifests.iter().filter(usable).filter_map(|descriptor| {
            let rank = match &descriptor.platform {
                Some(platform) => wanted.rank(platform)?,
                // Of one image alone, its configuration decides.
                None if self.manifests.len() == 1 => 0,
                None => return None,
            };
            Some((rank, descriptor))
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, descriptor)| descriptor).ok_or_else(|| {
            let mut offered: Vec<String> = self
                .manifests
                .iter()
                .filter(usable)
                .filter_map(|descriptor| descriptor.platform.as_ref())
                .map(|platform| platform.to_string().chars().take(40).collect())
                .take(16)
                .collect();
            if offered.is_empty() {
                offered.push("none".to_owned());
            }
            ManifestError::Platform { wanted: wanted.clone(), offered: offered.join(", ") }
        })
    }
}

impl Manifest {
    /// Checks what can be checked without the blobs.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn check(&self, layers: usize) -> Result<(), ManifestError> {
        match &*self.config.media_type {
            media::OCI_CONFIG
            | media::DOCKER_CONFIG
            | "application/json"
            | "application/octet-stream"
            | "" => {}
            other => {
                return Err(ManifestError::MediaType {
                    what: "configuration",
                    media_type: other.chars().take(120).collect(),
                    hint: " (this is another artifact than a container image)",
                });
            }
        }
        if self.layers.len() > layers {
            let why = format!("it has {} layers, and {layers} are allowed", self.layers.len());
            return Err(ManifestError::Nonsense { what: "manifest", why });
        }
        self.layers.iter().try_for_each(|layer| match &*layer.media_type {
            media::OCI_LAYER
            | media::OCI_LAYER_GZIP
            | media::OCI_LAYER_ZSTD
            | media::DOCKER_LAYER
            | media::DOCKER_LAYER_GZIP
            | media::DOCKER_LAYER_ZSTD => Ok(()),
            // Not to be passed on to others; pulling them is fine where the registry has them.
            "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(()),
            other => {
                let hint = match other.ends_with("+encrypted") {
                    true => " (encrypted layers cannot be read)",
                    false => "",
                };
                let media_type = other.chars().take(120).collect();
                Err(ManifestError::MediaType { what: "layer", media_type, hint })
            }
        })
    }
}

/// An image's configuration: what Docker and OCI have in common, and Docker's health check.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ImageConfig {
    /// `amd64` …
    #[serde(default, deserialize_with = "null_default")]
    pub architecture: String,
    /// `linux`.
    #[serde(default, deserialize_with = "null_default")]
    pub os: String,
    /// `v7` …
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// What a container starts with.
    #[serde(default, deserialize_with = "null_default")]
    pub config: RunConfig,
    /// The layers by their content.
    #[serde(default)]
    pub rootfs: RootFs,
    /// How it was made, step by step.
    #[serde(default, deserialize_with = "null_default")]
    pub history: Vec<History>,
}

/// The layers by their content.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(default, rename = "type", deserialize_with = "null_default")]
    pub kind: String,
    /// Digests of the layers, not compressed, the lowest first.
    #[serde(default, deserialize_with = "null_default")]
    pub diff_ids: Vec<Digest>,
}

/// A step in the making of an image.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Words.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether it made no layer.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// What a container starts with, unless its creator says otherwise. Names are Docker's.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user`, `uid`, `user:group`, `uid:gid`.
    #[serde(default, deserialize_with = "null_default")]
    pub user: String,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "null_default")]
    pub env: Vec<String>,
    /// The program.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, or the program where there is no entry point.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// Where it starts.
    #[serde(default, deserialize_with = "null_default")]
    pub working_dir: String,
    /// `80/tcp` …
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// Paths that get a volume.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Value>,
    /// Labels.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds between the stop signal and the kill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// How to see whether it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// The shell of shell-form commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

/// Docker's health check. Times are in nanoseconds, 0 is the default.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", line]`.
    #[serde(default, deserialize_with = "null_default")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(default, deserialize_with = "null_default")]
    pub interval: i64,
    /// Longest time of one check.
    #[serde(default, deserialize_with = "null_default")]
    pub timeout: i64,
    /// Time in which failures do not count.
    #[serde(default, deserialize_with = "null_default")]
    pub start_period: i64,
    /// Between two checks during the start period.
    #[serde(default, deserialize_with = "null_default")]
    pub start_interval: i64,
    /// Failures in a row until it is unhealthy.
    #[serde(default, deserialize_with = "null_default")]
    pub retries: i64,
}

impl ImageConfig {
    /// Reads a configuration and checks it against the number of layers that its manifest has.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8], layers: usize) -> Result<ImageConfig, ManifestError> {
        let what = "configuration";
        let config: ImageConfig =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what, source })?;
        if !matches!(&*config.rootfs.kind, "layers" | "") {
            let kind: String = config.rootfs.kind.chars().take(80).collect();
            return Err(ManifestError::Nonsense {
                what,
                why: format!("its root is made of {kind:?}, not of layers"),
            });
        }
        if config.rootfs.diff_ids.len() != layers {
            let why = format!("it lists {} layers and its manifest {layers}", config.rootfs.diff_ids.len());
            return Err(ManifestError::Nonsense { what, why });
        }
        Ok(config)
    }

    /// The platform that it is for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn document(value: &Value, media_type: &str) -> Result<Document, ManifestError> {
        Document::parse(value.to_string().as_bytes(), media_type)
    }

    fn descriptor(media_type: &str, platform: Value) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(b"").to_string(), "size": 2, "platform": platform})
    }

    #[test]
    fn kinds_are_told_apart() {
        let config = descriptor(media::OCI_CONFIG, Value::Null);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": null});
        assert!(matches!(document(&manifest, media::OCI_MANIFEST), Ok(Document::Manifest(_))));
        assert!(matches!(document(&manifest, "application/json; charset=utf-8"), Ok(Document::Manifest(_))));
        assert!(matches!(document(&manifest, ""), Ok(Document::Manifest(_))));
        let index = json!({"schemaVersion": 2, "mediaType": media::DOCKER_LIST, "manifests": []});
        assert!(matches!(document(&index, media::DOCKER_MANIFEST), Ok(Document::Index(_))));
        let both = json!({"schemaVersion": 2, "config": config, "layers": [], "manifests": []});
        assert!(matches!(document(&both, media::OCI_MANIFEST), Err(ManifestError::Nonsense { .. })));
        let first = json!({"schemaVersion": 1, "fsLayers": []});
        assert!(document(&first, "").unwrap_err().to_string().contains("push the image again"));
        assert!(matches!(document(&manifest, "text/html"), Err(ManifestError::MediaType { .. })));
        assert!(matches!(document(&json!({"schemaVersion": 3}), ""), Err(ManifestError::Nonsense { .. })));
        assert!(matches!(document(&json!([]), ""), Err(ManifestError::Json { .. })));
    }

    #[test]
    fn an_index_gives_the_image_of_the_platform() {
        let of = |arch: &str| descriptor(media::OCI_MANIFEST, json!({"os": "linux", "architecture": arch}));
        let mut attestation = of("amd64");
        attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        attestation["size"] = json!(9);
        let index = json!({"schemaVersion": 2, "manifests": [attestation, of("arm64"), of("amd64")]});
        let Document::Index(index) = document(&index, media::OCI_INDEX).unwrap() else { panic!() };
        let chosen = index.select(&"linux/amd64".parse().unwrap()).unwrap();
        assert_eq!((chosen.size, &*chosen.platform.as_ref().unwrap().architecture), (2, "amd64"));
        let error = index.select(&"linux/riscv64".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(error, "no image for linux/riscv64 (there is linux/arm64, linux/amd64)");
    }

    #[test]
    fn odd_media_types_are_named() {
        let manifest = |config: &str, layer: &str| Manifest {
            schema_version: 2,
            media_type: String::new(),
            config: serde_json::from_value(descriptor(config, Value::Null)).unwrap(),
            layers: vec![serde_json::from_value(descriptor(layer, Value::Null)).unwrap()],
            annotations: BTreeMap::new(),
        };
        manifest(media::OCI_CONFIG, media::OCI_LAYER_ZSTD).check(1).unwrap();
        for (config, layer, word) in [
            ("application/vnd.cncf.helm.config.v1+json", media::OCI_LAYER, "another artifact"),
            (media::OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
            (media::OCI_CONFIG, "application/x-7z", "x-7z"),
        ] {
            let error = manifest(config, layer).check(1).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(manifest(media::OCI_CONFIG, media::OCI_LAYER).check(0).is_err());
    }

    #[test]
    fn dockers_configuration_with_nulls() {
        let text = json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": null},
            "config": {"Env": null, "Cmd": null, "Volumes": null, "ExposedPorts": {"80/tcp": {}}, "Labels": null,
                "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000_i64}, "OnBuild": null},
            "history": [{"created_by": "RUN", "empty_layer": true}],
        });
        let config = ImageConfig::parse(text.to_string().as_bytes(), 0).unwrap();
        assert_eq!(config.config.healthcheck.unwrap().interval, 5_000_000_000);
        assert!(config.config.exposed_ports.contains_key("80/tcp"));
        assert!(ImageConfig::parse(text.to_string().as_bytes(), 1).is_err());
    }

    proptest! {
        #[test]
        fn total(bytes: Vec<u8>, media_type: String) {
            let _ = Document::parse(&bytes, &media_type);
            let _ = ImageConfig::parse(&bytes, 0);
        }
    }
}
