//! What a release consists of and what differs from older ones: the file that the index calls `details`.
//!
//! Pure. The publisher writes it out of SPDX documents; a device reads it when somebody asks.

use crate::digest::Digest;
use crate::index::{FORMAT, File};
use semver::Version;
use serde::{Deserialize, Serialize};

/// Largest details, bytes.
pub const MAX_DETAILS: usize = 1 << 20;

/// A package of a release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A package with another version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// The version in the older release.
    pub from: String,
    /// The version in this one.
    pub to: String,
}

/// What differs from an older release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Manifest hash of the older release.
    pub from: Digest,
    /// Its version.
    pub from_version: Version,
    /// Packages with another version, by name.
    pub changed: Vec<Change>,
    /// Packages that the older release did not have.
    pub added: Vec<Package>,
    /// Packages that only the older release has.
    pub removed: Vec<Package>,
    /// How many more there are than are listed here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
}

/// The file that the index calls `details`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// [`FORMAT`].
    pub format: u32,
    /// The SPDX document that the list comes from.
    pub sbom: File,
    /// Packages by name.
    pub packages: Vec<Package>,
    /// What differs from older releases, the newest of them first.
    pub differences: Vec<Difference>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Difference {
    /// How many packages differ, listed or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.listed().saturating_add(self.more)
    }

    pub(crate) fn listed(&self) -> usize {
        self.changed.len().saturating_add(self.added.len()).saturating_add(self.removed.len())
    }
}

impl Details {
    /// Reads the file, whose hash the caller has compared.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_DETAILS {
            return Err(format!("it has {} bytes, at most {MAX_DETAILS} are read", bytes.len()));
        }
        let details: Details = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match details.format {
            FORMAT => Ok(details),
            other => Err(format!("it has the format {other}, this program reads {FORMAT}")),
        }
    }

    /// The difference from a release of this version, if there is one.
    #[must_use]
    pub fn since(&self, version: &Version) -> Option<&Difference> {
        self.differences.iter().find(|difference| difference.from_version == *version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn details() -> Details {
        let package = |name: &str| Package { name: name.into(), version: "1".into() };
        let difference = Difference {
            from: Digest([7; 32]),
            from_version: Version::new(1, 0, 0),
            changed: vec![Change { name: "curl".into(), from: "1".into(), to: "2".into() }],
            added: vec![package("new")],
            removed: Vec::new(),
            more: 3,
        };
        let sbom = File { name: "x.spdx.json".into(), len: 1, sha256: Digest([1; 32]) };
        Details { format: FORMAT, sbom, packages: vec![package("curl")], differences: vec![difference] }
    }

    #[test]
    fn what_was_written_is_read_and_another_format_or_size_is_told() {
        let bytes = serde_json::to_vec(&details()).unwrap();
        let read = Details::parse(&bytes).unwrap();
        assert_eq!(read, details());
        assert_eq!(read.since(&Version::new(1, 0, 0)).unwrap().count(), 5);
        assert!(read.since(&Version::new(1, 0, 1)).is_none());
        let other = serde_json::to_vec(&Details { format: 9, ..details() }).unwrap();
        assert!(Details::parse(&other).unwrap_err().contains("format 9"));
        assert!(Details::parse(&vec![b' '; MAX_DETAILS + 1]).unwrap_err().contains("at most"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..400, to: u8) {
            let _ = Details::parse(&bytes);
            let mut damaged = serde_json::to_vec(&details()).unwrap();
            if let Some(byte) = damaged.get_mut(at) {
                *byte = to;
            }
            let _ = Details::parse(&damaged);
        }
    }
}
