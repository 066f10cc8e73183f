//! The signed index of one board: its releases, newest first, and every way to get each of them with its exact size.
//!
//! Pure. [`Index::parse`] takes bytes whose signature TUF has checked and still believes nothing: sizes, names and order
//! are checked, unknown keys are ignored, so that newer publishers can add some. Written by the publisher, read by the
//! client and by `plan`.

use crate::digest::Digest;
use crate::rollout::{Rollout, Rollouts};
use semver::Version;
use serde::{Deserialize, Serialize};

/// Format of index and roll-out file that this code reads and writes.
pub const FORMAT: u32 = 1;
/// Largest index, bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Most releases in an index.
pub const MAX_RELEASES: usize = 64;
/// Most ways of one release.
pub const MAX_WAYS: usize = 64;
/// Longest notes, bytes.
pub const MAX_NOTES: usize = 4096;
/// Longest name of a file, board, image or label, bytes.
pub const MAX_NAME: usize = 128;
/// Largest file, bytes (1 TiB): sums of sizes cannot overflow.
pub const MAX_FILE: u64 = 1 << 40;

/// Why bytes are no index or roll-out file that may be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is larger than it may be.
    #[error("it has {len} bytes, at most {MAX_BYTES} are read")]
    TooLarge {
        /// Bytes.
        len: usize,
    },
    /// It is no JSON of this shape.
    #[error("it is not written as expected")]
    Json(#[from] serde_json::Error),
    /// It is written for newer clients.
    #[error("it has format {format}, this device reads {FORMAT}: the device needs a newer release")]
    Format {
        /// What it says.
        format: u32,
    },
    /// It breaks a rule.
    #[error("{place}: {problem}")]
    Rule {
        /// Which part of it.
        place: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The index of one board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// [`FORMAT`].
    pub format: u32,
    /// The board (RAUC's `compatible`).
    pub compatible: String,
    /// When it was written, Unix seconds by the publisher's clock.
    pub published: u64,
    /// Releases, newest version first.
    pub releases: Vec<Release>,
}

/// One release of a board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its version.
    pub version: Version,
    /// SHA-256 of RAUC's manifest in the bundle: what the release is known by.
    pub manifest_hash: Digest,
    /// Root hash of the root image's verity tree: a release that was flashed, not installed, is known by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_hash: Option<Digest>,
    /// The oldest version that a device with this release may go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Version>,
    /// Build time, Unix seconds.
    #[serde(default)]
    pub build_epoch: u64,
    /// What is new, for people; plain text.
    #[serde(default)]
    pub notes: String,
    /// A file that says more: package lists and differences (JSON).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<File>,
    /// The bundle that every way produces.
    pub bundle: Content,
    /// The images in it, as they are written to the slot.
    pub images: Vec<Source>,
    /// Every way to get the bundle.
    pub ways: Vec<Way>,
    /// Who may take it, and when. Not in the index's file: it comes from the roll-out file, which another key signs.
    #[serde(skip)]
    pub rollout: Rollout,
}

/// Length and hash of something that is no file of the repository by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes.
    pub len: u64,
    /// SHA-256.
    pub sha256: Digest,
}

/// A file of the repository. Its path is `targets/<sha256>.<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name without the hash.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// SHA-256.
    pub sha256: Digest,
}

impl File {
    /// The file's name in the directory `targets/`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.sha256, self.name)
    }
}

/// An image of a bundle, or of the release that a delta starts from: the first `len` bytes of the partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `root` or `boot`.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// SHA-256.
    pub sha256: Digest,
}

/// What kind of way it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayKind {
    /// A `.rdelta` that needs the images of one older release.
    Delta,
    /// A `.rdelta` that needs nothing.
    Full,
    /// The bundle as it is.
    Bundle,
    /// A kind that is younger than this code; never used.
    #[serde(other)]
    Unknown,
}

impl std::fmt::Display for WayKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WayKind::Delta => "delta",
            WayKind::Full => "full",
            WayKind::Bundle => "bundle",
            WayKind::Unknown => "unknown",
        })
    }
}

/// One way to get a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Its kind.
    pub kind: WayKind,
    /// What is fetched: all of it for `delta` and `full`.
    pub file: File,
    /// Manifest hash of the release that must be running (`delta`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Digest>,
    /// Root hash of that release, for devices that were flashed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_root_hash: Option<Digest>,
    /// Its version, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_version: Option<Version>,
    /// Images that the device must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
}

impl Index {
    /// Reads and checks an index.
    ///
    /// # Errors
    /// [`Error`]: too large, no JSON, of a newer format, or against a rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let index: Index = parse(bytes)?;
        index.check()?;
        Ok(index)
    }

    /// Gives each release its roll-out; one that is not named is offered to nobody.
    #[must_use]
    pub fn with(mut self, rollouts: &Rollouts) -> Self {
        for release in &mut self.releases {
            let found = rollouts.rollouts.iter().find(|named| named.manifest_hash == release.manifest_hash);
            release.rollout = found.map(|named| named.rollout.clone()).unwrap_or_default();
        }
        self
    }

    /// The release with this manifest hash.
    #[must_use]
    pub fn release(&self, manifest_hash: &Digest) -> Option<&Release> {
        self.releases.iter().find(|release| release.manifest_hash == *manifest_hash)
    }

    /// Checks the rules that the types cannot hold.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Rule`].
    pub fn check(&self) -> Result<(), Error> {
        format(self.format)?;
        name("compatible", &self.compatible)?;
        if self.releases.len() > MAX_RELEASES {
            return Err(rule("releases", "too many"));
        }
        for pair in self.releases.windows(2) {
            if let [newer, older] = pair
                && newer.version.cmp_precedence(&older.version).is_le()
            {
                return Err(rule(
                    &format!("release {}", older.version),
                    "the newest must come first, each version once",
                ));
            }
        }
        self.releases.iter().try_for_each(Release::check)
    }
}

impl Release {
    fn check(&self) -> Result<(), Error> {
        let at = |what: &str| format!("release {}, {what}", self.version);
        if self.notes.len() > MAX_NOTES {
            return Err(rule(&at("notes"), "too long"));
        }
        len(&at("bundle"), self.bundle.len)?;
        if let Some(details) = &self.details {
            file(&at("details"), details)?;
        }
        sources(&at("images"), &self.images)?;
        if self.ways.len() > MAX_WAYS {
            return Err(rule(&at("ways"), "too many"));
        }
        for way in &self.ways {
            let at = at(&format!("way {}", way.file.name));
            file(&at, &way.file)?;
            sources(&at, &way.sources)?;
            match way.kind {
                WayKind::Delta if way.from.is_none() || way.sources.is_empty() => {
                    return Err(rule(&at, "a delta must name what it starts from"));
                }
                WayKind::Full if !way.sources.is_empty() => {
                    return Err(rule(&at, "a full way must need no sources"));
                }
                WayKind::Bundle
                    if way.file.sha256 != self.bundle.sha256 || way.file.len != self.bundle.len =>
                {
                    return Err(rule(&at, "it is another file than the bundle"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads one of the repository's own JSON files.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    /// The one key that decides how to read the others.
    #[derive(Deserialize)]
    struct Probe {
        format: u32,
    }
    if bytes.len() > MAX_BYTES {
        return Err(Error::TooLarge { len: bytes.len() });
    }
    format(serde_json::from_slice::<Probe>(bytes)?.format)?;
    Ok(serde_json::from_slice(bytes)?)
}

fn format(format: u32) -> Result<(), Error> {
    if format == FORMAT { Ok(()) } else { Err(Error::Format { format }) }
}

pub(crate) fn rule(place: &str, problem: &'static str) -> Error {
    Error::Rule { place: place.to_owned(), problem }
}

/// A name that is safe in a path and a URL as it stands.
pub(crate) fn name(place: &str, text: &str) -> Result<(), Error> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
    if text.is_empty() || text.len() > MAX_NAME {
        return Err(rule(place, "a name has 1 to 128 characters"));
    }
    if !text.bytes().all(fine) || text.starts_with('.') {
        return Err(rule(
            place,
            "a name consists of letters, digits and . _ + ~ - and does not begin with a dot",
        ));
    }
    Ok(())
}

fn len(place: &str, len: u64) -> Result<(), Error> {
    if len > MAX_FILE { Err(rule(place, "larger than 1 TiB")) } else { Ok(()) }
}

fn file(place: &str, file: &File) -> Result<(), Error> {
    name(place, &file.name)?;
    len(place, file.len)
}

fn sources(place: &str, sources: &[Source]) -> Result<(), Error> {
    if sources.len() > 8 {
        return Err(rule(place, "more than 8 images"));
    }
    for (number, source) in sources.iter().enumerate() {
        name(place, &source.name)?;
        len(place, source.len)?;
        if sources.iter().take(number).any(|other| other.name == source.name) {
            return Err(rule(place, "an image is named twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    pub(crate) fn file_of(name: &str, len: u64) -> File {
        File { name: name.into(), len, sha256: digest(name) }
    }

    /// A release with a full way of 60 MB and a delta of 0.7 MB from each of `from`.
    pub(crate) fn release(version: &str, from: &[&str]) -> Release {
        let images = |version: &str| {
            [("root", 120_000_000u64), ("boot", 20_000_000)]
                .map(|(name, len)| Source {
                    name: name.into(),
                    len,
                    sha256: digest(&format!("{name} {version}")),
                })
                .to_vec()
        };
        let bundle = Content { len: 141_000_000, sha256: digest(&format!("bundle {version}")) };
        let mut ways = vec![Way {
            kind: WayKind::Full,
            file: file_of(&format!("{version}.full.rdelta"), 60_000_000),
            from: None,
            from_root_hash: None,
            from_version: None,
            sources: Vec::new(),
        }];
        for from in from {
            ways.push(Way {
                kind: WayKind::Delta,
                file: file_of(&format!("{version}.from-{from}.rdelta"), 700_000),
                from: Some(digest(from)),
                from_root_hash: Some(digest(&format!("root hash {from}"))),
                from_version: from.parse().ok(),
                sources: images(from),
            });
        }
        Release {
            version: version.parse().unwrap(),
            manifest_hash: digest(version),
            root_hash: Some(digest(&format!("root hash {version}"))),
            floor: None,
            build_epoch: 1_700_000_000,
            notes: format!("What is new in {version}"),
            details: None,
            bundle,
            images: images(version),
            ways,
            rollout: Rollout::everyone(),
        }
    }

    pub(crate) fn index() -> Index {
        Index {
            format: FORMAT,
            compatible: "rustiot-x".into(),
            published: 1_700_000_000,
            releases: vec![
                release("1.2.0", &["1.1.0", "1.0.0"]),
                release("1.1.0", &["1.0.0"]),
                release("1.0.0", &[]),
            ],
        }
    }

    fn bytes(index: &Index) -> Vec<u8> {
        serde_json::to_vec(index).unwrap()
    }

    #[test]
    fn an_index_round_trips_without_its_roll_outs() {
        let mut expected = index();
        let read = Index::parse(&bytes(&expected)).unwrap();
        for release in &mut expected.releases {
            release.rollout = Rollout::default();
        }
        assert_eq!(read, expected);
    }

    #[test]
    fn unknown_keys_and_ways_are_ignored() {
        let mut value = serde_json::to_value(index()).unwrap();
        value["colour"] = "green".into();
        value["releases"][0]["taste"] = 7.into();
        value["releases"][0]["ways"][0]["kind"] = "telepathy".into();
        let read = Index::parse(&serde_json::to_vec(&value).unwrap()).unwrap();
        assert_eq!(read.releases[0].ways[0].kind, WayKind::Unknown);
    }

    #[test]
    fn a_newer_format_is_told_as_such_even_if_its_shape_is_another() {
        let error = Index::parse(br#"{"format": 2, "releases": "elsewhere"}"#).unwrap_err();
        assert!(matches!(error, Error::Format { format: 2 }), "{error}");
        assert!(error.to_string().contains("newer release"));
    }

    #[test]
    fn each_broken_rule_is_told_with_its_place() {
        type Change = fn(&mut Index);
        let table: &[(Change, &str)] = &[
            (|i| i.compatible = "../x".into(), "compatible"),
            (|i| i.compatible.clear(), "compatible"),
            (|i| i.releases.reverse(), "newest must come first"),
            (|i| i.releases[1].version = i.releases[0].version.clone(), "newest must come first"),
            (|i| i.releases[0].notes = "x".repeat(MAX_NOTES + 1), "notes"),
            (|i| i.releases[0].ways[0].file.name = "a/b".into(), "way a/b"),
            (|i| i.releases[0].ways[0].file.name = ".hidden".into(), "dot"),
            (|i| i.releases[0].ways[0].file.len = u64::MAX, "1 TiB"),
            (|i| i.releases[0].ways[1].from = None, "starts from"),
            (|i| i.releases[0].ways[1].sources.clear(), "starts from"),
            (|i| i.releases[0].ways[1].sources[1].name = "root".into(), "twice"),
            (|i| i.releases[0].ways[0].sources = i.releases[0].images.clone(), "no sources"),
            (|i| i.releases[0].ways[0].kind = WayKind::Bundle, "another file"),
            (|i| i.releases[0].bundle.len = u64::MAX, "bundle"),
            (|i| i.releases[0].ways = vec![i.releases[0].ways[0].clone(); MAX_WAYS + 1], "too many"),
        ];
        for (number, (change, words)) in table.iter().enumerate() {
            let mut broken = index();
            change(&mut broken);
            let error = Index::parse(&bytes(&broken)).unwrap_err().to_string();
            assert!(error.contains(words), "row {number}: {error}");
        }
    }

    #[test]
    fn an_endless_index_is_not_read() {
        assert!(matches!(Index::parse(&vec![b' '; MAX_BYTES + 1]), Err(Error::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Index::parse(&bytes);
            let _ = Rollouts::parse(&bytes);
        }

        #[test]
        fn no_damage_panics_and_what_passes_keeps_the_rules(at in 0usize..4000, to: u8, cut in 0usize..8000) {
            let mut bytes = bytes(&index());
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            bytes.truncate(cut);
            if let Ok(index) = Index::parse(&bytes) {
                prop_assert!(index.check().is_ok());
                prop_assert!(index.releases.iter().flat_map(|r| &r.ways).all(|w| !w.file.path().contains('/')));
            }
        }
    }
}
