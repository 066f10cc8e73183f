//! What is installed and how to get it: the plan as the service keeps it, shows it and goes through it.
//!
//! Pure types with one JSON form, in `transaction.json`, on the bus and on the command line. Made from
//! `rustiot-repository`'s answer, or for a plain URL. Decides nothing.

use rustiot_boot::Release;
use serde::{Deserialize, Serialize};

use crate::status::Expected;

/// What kind of way it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayKind {
    /// The difference to the running release.
    Delta,
    /// The whole release, compressed.
    Full,
    /// The bundle as it is.
    Bundle,
    /// A bundle at a URL of which nothing is known.
    Plain,
}

impl WayKind {
    /// The name in JSON and in sentences.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Full => "full",
            Self::Bundle => "bundle",
            Self::Plain => "plain",
        }
    }
}

/// One way to get the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Its kind.
    pub kind: WayKind,
    /// Where the file is: mirrors, the first one first.
    pub urls: Vec<String>,
    /// Bytes that will be fetched; 0 when nobody knows.
    pub bytes: u64,
    /// Whether `bytes` is the whole story: of a bundle, which RAUC reads in parts, it is the length of the file.
    pub exact: bool,
    /// Bytes of the file, where known.
    #[serde(default)]
    pub len: Option<u64>,
    /// SHA-256 of the file, hex, where known.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Images of the running slot that it needs.
    #[serde(default)]
    pub sources: Vec<String>,
}

impl Way {
    /// Whether the file lies in a directory of this device: nothing of it comes over a network or into the cache.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.urls.first().is_some_and(|url| url.starts_with("file:"))
    }
}

/// The file that says what a release consists of, and what differs from older ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetailsFile {
    /// Where it is: mirrors, the first one first.
    pub urls: Vec<String>,
    /// Its bytes.
    pub len: u64,
    /// Its SHA-256, hex.
    pub sha256: String,
}

/// What to install, and how to get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The release; none for a plain URL.
    pub release: Option<Release>,
    /// Version that runs now, where known.
    #[serde(default)]
    pub from: Option<String>,
    /// What is new, in the publisher's words.
    #[serde(default)]
    pub notes: String,
    /// Bytes of the bundle that every way produces; 0 when nobody knows.
    #[serde(default)]
    pub bundle: u64,
    /// Bytes that will be written to the slot; 0 when nobody knows.
    #[serde(default)]
    pub written: u64,
    /// The oldest version that the device may go back to afterwards.
    #[serde(default)]
    pub floor: Option<String>,
    /// The wave of the roll-out that let this device in.
    #[serde(default)]
    pub wave: Option<String>,
    /// What is in it, where the publisher says so; nobody fetches it before it is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<DetailsFile>,
    /// The ways, cheapest first; when one fails the next one is tried.
    pub ways: Vec<Way>,
    /// Ways for whose file there was no room when this was planned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_room: Vec<Way>,
}

impl Plan {
    /// The plan for a bundle at a URL, of which somebody may know length and checksum.
    #[must_use]
    pub fn plain(url: &str, file: &Expected) -> Self {
        Self {
            release: None,
            from: None,
            notes: String::new(),
            bundle: 0,
            written: 0,
            floor: None,
            wave: None,
            details: None,
            ways: vec![Way {
                kind: WayKind::Plain,
                urls: vec![url.to_owned()],
                bytes: file.size.unwrap_or(0),
                exact: file.size.is_some(),
                len: file.size,
                sha256: file.sha256.clone(),
                sources: Vec::new(),
            }],
            without_room: Vec::new(),
        }
    }

    /// Version of the release, where known.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.release.as_ref().map(|release| release.version.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_the_disk() {
        let file = Expected { size: Some(5), sha256: Some("ab".repeat(32)) };
        let plan = Plan::plain("http://h/x", &file);
        assert_eq!(
            (plan.ways[0].len, plan.ways[0].exact, &plan.ways[0].sha256),
            (Some(5), true, &file.sha256)
        );
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert_eq!((plan.version(), plan.ways[0].kind.as_str()), (None, "plain"));
        for kind in [WayKind::Delta, WayKind::Full, WayKind::Bundle, WayKind::Plain] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
