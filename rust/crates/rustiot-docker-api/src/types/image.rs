//! What the engine tells about images, and how it reports the progress of getting them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::config::ContainerConfig;
use super::container::GraphDriver;
use super::wire::zero_time;

/// One row of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageSummary {
    /// `sha256:…` of the configuration.
    pub id: String,
    /// Empty: images here have no parents.
    pub parent_id: String,
    /// `name:tag`.
    pub repo_tags: Vec<String>,
    /// `name@sha256:…`.
    pub repo_digests: Vec<String>,
    /// When it was built.
    #[serde(serialize_with = "unix_seconds")]
    pub created: Timestamp,
    /// Bytes on disk.
    pub size: i64,
    /// Bytes shared with others; -1 for not computed.
    pub shared_size: i64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Containers made of it; -1 for not computed.
    pub containers: i64,
}

fn unix_seconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(time.as_second())
}

/// What `inspect` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageInspect {
    /// `sha256:…` of the configuration.
    pub id: String,
    /// `name:tag`.
    pub repo_tags: Vec<String>,
    /// `name@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Empty.
    pub parent: String,
    /// The last layer's comment.
    pub comment: String,
    /// When it was built.
    #[serde(with = "zero_time")]
    pub created: Option<Timestamp>,
    /// Author.
    pub author: String,
    /// Defaults of its containers.
    pub config: ContainerConfig,
    /// `amd64` and so on.
    pub architecture: String,
    /// `v8` and so on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// `linux`.
    pub os: String,
    /// Bytes on disk.
    pub size: i64,
    /// Storage driver's data.
    pub graph_driver: GraphDriver,
    /// Layers.
    #[serde(rename = "RootFS")]
    pub root_fs: RootFs,
    /// Local data.
    pub metadata: ImageMetadata,
}

/// An image's layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Digests of the uncompressed layers, lowest first.
    pub layers: Vec<String>,
}

/// What the engine knows beside the image's own data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageMetadata {
    /// Last time a tag was set.
    #[serde(with = "zero_time")]
    pub last_tag_time: Option<Timestamp>,
}

/// One step of an image's history, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryEntry {
    /// Image's id on the newest, `<missing>` elsewhere.
    pub id: String,
    /// When it was made.
    #[serde(serialize_with = "unix_seconds")]
    pub created: Timestamp,
    /// Command.
    pub created_by: String,
    /// Tags, on the newest.
    pub tags: Vec<String>,
    /// Bytes.
    pub size: i64,
    /// Comment.
    pub comment: String,
}

/// An image to get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullRequest {
    /// Repository as named, registry included if it was.
    pub image: String,
    /// Tag or `sha256:…`; `None` for `latest`, or all tags where the client asked so.
    pub tag: Option<String>,
    /// `os/arch[/variant]`; `None` for this machine's.
    pub platform: Option<String>,
    /// From `X-Registry-Auth`.
    pub auth: Option<RegistryAuth>,
}

/// Credentials of a registry. `Debug` does not show them.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RegistryAuth {
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// `base64(user:password)`, from older configuration files.
    pub auth: String,
    /// Registry.
    #[serde(rename = "serveraddress")]
    pub server_address: String,
    /// A refresh token instead of a password.
    #[serde(rename = "identitytoken")]
    pub identity_token: String,
    /// A bearer token to be sent as it is.
    #[serde(rename = "registrytoken")]
    pub registry_token: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// One step of a pull or load. The HTTP side makes Docker's `jsonmessage` of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// `Pulling from library/busybox`, `Digest: sha256:…`, `Status: Downloaded newer image for busybox:latest`.
    Status {
        /// Tag on the first line, short layer id (12 characters) on a layer's, `None` elsewhere.
        id: Option<String>,
        /// Text.
        status: String,
    },
    /// `Downloading` or `Extracting` with a bar. At most a few a second for each layer, please.
    Transfer {
        /// Short layer id.
        id: String,
        /// Text.
        status: String,
        /// Bytes so far.
        current: u64,
        /// Bytes in all; 0 when unknown.
        total: u64,
    },
    /// Text as it is, line end included (`Loaded image: busybox:latest\n`).
    Stream(String),
}

/// What removing an image did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum ImageRemoved {
    /// A name went.
    Untagged(String),
    /// Data went.
    Deleted(String),
}

/// What pruning images did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImagesPruned {
    /// What went.
    pub images_deleted: Vec<ImageRemoved>,
    /// Bytes.
    pub space_reclaimed: u64,
}
