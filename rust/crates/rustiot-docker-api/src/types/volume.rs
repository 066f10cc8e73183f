//! Volumes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire::zero_time;

/// Body of `POST /volumes/create`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateVolume {
    /// Name; empty for one of the engine's making.
    pub name: String,
    /// `local` or empty.
    pub driver: String,
    /// Driver's options.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    /// Name.
    pub name: String,
    /// `local`.
    pub driver: String,
    /// Directory on the host.
    pub mountpoint: String,
    /// When it was made.
    #[serde(with = "zero_time")]
    pub created_at: Option<Timestamp>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `local`.
    pub scope: String,
    /// Driver's options.
    pub options: BTreeMap<String, String>,
    /// Only in `system df`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_data: Option<VolumeUsage>,
    /// Made without a name (pruned without `--all`).
    #[serde(skip)]
    pub anonymous: bool,
    /// Containers that use it, running or not.
    #[serde(skip)]
    pub in_use: bool,
}

/// What a volume holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeUsage {
    /// Bytes; -1 for not known.
    pub size: i64,
    /// Containers that use it; -1 for not known.
    pub ref_count: i64,
}
