//! What a release consists of: the list of packages out of its SPDX document, and what differs between two lists.
//!
//! Pure but for [`read`]. SPDX 3 as JSON is read (Yocto's `create-spdx` and `rustiot bundle` write it): every
//! `software_Package` with the primary purpose `install` is a package of the release. All else in the document is passed
//! over. The publisher calls it; no device does. What it makes of the list is [`crate::details`], which a device reads.

use super::{At, Error};
pub use crate::details::{Change, Details, Difference, MAX_DETAILS, Package};
use crate::digest::Digest;
use crate::index::{FORMAT, File};
use semver::Version;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Largest SPDX document, bytes. One of Yocto's holds every source file of every package.
const MAX_SBOM: u64 = 512 << 20;
/// Most packages of a release.
const MAX_PACKAGES: usize = 8192;
/// Longest name or version of a package, bytes.
const MAX_TEXT: usize = 256;
/// Most lines of one difference.
const MAX_LINES: usize = 1000;

/// Where the SPDX document of a bundle lies: `NAME.spdx.json` beside `NAME.raucb`.
#[must_use]
pub fn beside(bundle: &Path) -> PathBuf {
    let mut name = match bundle.extension() {
        Some(extension) if extension == "raucb" => bundle.file_stem().unwrap_or_default().to_owned(),
        _ => bundle.file_name().map_or_else(OsString::new, ToOwned::to_owned),
    };
    name.push(".spdx.json");
    bundle.with_file_name(name)
}

/// A document as it was read.
pub(super) struct Sbom {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    pub(super) packages: Vec<Package>,
}

/// The document beside `bundle`, if there is one.
pub(super) fn read(bundle: &Path) -> Result<Option<Sbom>, Error> {
    let path = beside(bundle);
    let wrong = |why: String| Error::Sbom { path: path.clone(), why };
    let len = match std::fs::metadata(&path) {
        Ok(there) => there.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at("look at", &path),
    };
    if len > MAX_SBOM {
        return Err(wrong(format!(
            "it has {len} bytes, at most {MAX_SBOM} are read: leave the files out of it"
        )));
    }
    let bytes = std::fs::read(&path).at("read", &path)?;
    let packages = packages(&bytes).map_err(wrong)?;
    Ok(Some(Sbom { path, bytes, packages }))
}

/// What is read of a document; all other keys are passed over.
#[derive(Deserialize)]
struct Document {
    #[serde(rename = "spdxVersion")]
    old_version: Option<String>,
    #[serde(rename = "@context")]
    context: Option<Context>,
    #[serde(rename = "@graph")]
    graph: Option<Vec<Element>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Context {
    One(String),
    Some(Vec<serde_json::Value>),
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Element {
    #[serde(rename = "type", alias = "@type")]
    kind: Option<String>,
    #[serde(rename = "spdxId", alias = "@id")]
    id: Option<String>,
    name: Option<String>,
    #[serde(rename = "software_packageVersion")]
    version: Option<String>,
    #[serde(rename = "software_primaryPurpose")]
    purpose: Option<String>,
}

const ADVICE: &str = "write SPDX 3 as JSON, as `rustiot bundle` and Yocto's create-spdx do, or remove the file to publish without a package list";

/// The installed packages that a document names, sorted.
///
/// # Errors
/// It is no SPDX 3 document with installed packages: what is wrong, where, and what to do.
pub fn packages(bytes: &[u8]) -> Result<Vec<Package>, String> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| format!("no SPDX document: {error}; {ADVICE}"))?;
    if let Some(version) = document.old_version {
        return Err(format!("it is {version:?}, which is not read; {ADVICE}"));
    }
    let is_3 = |text: &str| text.contains("spdx.org/rdf/3.");
    let known = match document.context {
        Some(Context::One(text)) => is_3(&text),
        Some(Context::Some(list)) => list.iter().filter_map(|item| item.as_str()).any(is_3),
        Some(Context::Other(_)) | None => false,
    };
    if !known {
        return Err(format!("its @context is not that of SPDX 3; {ADVICE}"));
    }
    let graph = document.graph.ok_or_else(|| format!("it has no list @graph; {ADVICE}"))?;
    let mut found = BTreeSet::new();
    for (number, element) in graph.into_iter().enumerate() {
        let installed = element.purpose.as_deref() == Some("install");
        if element.kind.as_deref() != Some("software_Package") || !installed {
            continue;
        }
        let place = || match (&element.name, &element.id) {
            (Some(name), _) => format!("package {:?}", shortened(name)),
            (None, Some(id)) => format!("package {:?}", shortened(id)),
            (None, None) => format!("element {number} of @graph"),
        };
        let text = |key: &str, value: &Option<String>| match value {
            None => Err(format!("{} has no {key}; add it, or make the document anew", place())),
            Some(text) if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) => {
                Err(format!(
                    "{}: its {key} must have 1 to {MAX_TEXT} bytes and no control characters; correct it, or make the document anew",
                    place()
                ))
            }
            Some(text) => Ok(text.clone()),
        };
        found.insert(Package {
            name: text("name", &element.name)?,
            version: text("software_packageVersion", &element.version)?,
        });
        if found.len() > MAX_PACKAGES {
            return Err(format!("it names more than {MAX_PACKAGES} packages; name only those of one image"));
        }
    }
    if found.is_empty() {
        return Err(format!("no software_Package in it has the primary purpose \"install\"; {ADVICE}"));
    }
    Ok(found.into_iter().collect())
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

/// What `new` has otherwise than `old`. A name that is there in several versions is told as added and removed.
pub(super) fn difference(
    from: Digest,
    from_version: Version,
    old: &[Package],
    new: &[Package],
) -> Difference {
    type ByName<'a> = BTreeMap<&'a str, (Vec<&'a Package>, Vec<&'a Package>)>;
    let (olds, news): (BTreeSet<_>, BTreeSet<_>) = (old.iter().collect(), new.iter().collect());
    let mut names: ByName = BTreeMap::new();
    for package in olds.difference(&news) {
        names.entry(&package.name).or_default().0.push(package);
    }
    for package in news.difference(&olds) {
        names.entry(&package.name).or_default().1.push(package);
    }
    let (mut changed, mut added, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for (name, (before, after)) in names {
        if let ([before], [after]) = (before.as_slice(), after.as_slice()) {
            let (from, to) = (before.version.clone(), after.version.clone());
            changed.push(Change { name: name.to_owned(), from, to });
            continue;
        }
        removed.extend(before.into_iter().cloned());
        added.extend(after.into_iter().cloned());
    }
    let mut difference = Difference { from, from_version, changed, added, removed, more: 0 };
    difference.shorten(MAX_LINES);
    difference
}

impl Difference {
    /// Keeps at most `lines`: changed versions first, they say most.
    fn shorten(&mut self, lines: usize) {
        let all = self.count();
        self.changed.truncate(lines);
        self.added.truncate(lines.saturating_sub(self.changed.len()));
        let left = lines.saturating_sub(self.changed.len()).saturating_sub(self.added.len());
        self.removed.truncate(left);
        self.more = all.saturating_sub(self.listed());
    }
}

impl Details {
    /// The details of one document; differences are shortened until all of it fits.
    pub(super) fn new(
        sbom: File,
        packages: Vec<Package>,
        differences: Vec<Difference>,
    ) -> Result<(Self, Vec<u8>), String> {
        let mut details = Details { format: FORMAT, sbom, packages, differences };
        let mut lines = MAX_LINES;
        loop {
            let bytes = serde_json::to_vec(&details).map_err(|error| error.to_string())?;
            if bytes.len() <= MAX_DETAILS {
                return Ok((details, bytes));
            }
            if lines == 0 {
                return Err(format!(
                    "its list of packages takes {} bytes, at most {MAX_DETAILS} fit; name only those of one image",
                    bytes.len()
                ));
            }
            lines /= 2;
            for difference in &mut details.differences {
                difference.shorten(lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn list(packages: &[(&str, &str)]) -> Vec<Package> {
        let package =
            |(name, version): &(&str, &str)| Package { name: (*name).into(), version: (*version).into() };
        packages.iter().map(package).collect()
    }

    fn differ(old: &[(&str, &str)], new: &[(&str, &str)]) -> Difference {
        difference(Digest::of(b"old"), Version::new(1, 0, 0), &list(old), &list(new))
    }

    fn file() -> File {
        File { name: "x.spdx.json".into(), len: 1, sha256: Digest::of(b"x") }
    }

    /// In the form of Yocto's `create-spdx`: recipes, sources, files and builds beside the packages.
    fn yocto() -> serde_json::Value {
        json!({
            "@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld",
            "@graph": [
                {"type": "CreationInfo", "@id": "_:CreationInfo1", "created": "2011-04-05T23:00:00Z",
                 "createdBy": ["http://spdx.org/spdxdocs/bitbake/agent"], "specVersion": "3.0.1"},
                {"type": "software_Package", "spdxId": "http://spdx.org/spdxdocs/openssl/package/libcrypto3",
                 "creationInfo": "_:CreationInfo1", "name": "libcrypto3", "software_packageVersion": "3.5.4",
                 "software_primaryPurpose": "install", "builtTime": "2011-04-05T23:00:00Z",
                 "externalIdentifier": [{"type": "ExternalIdentifier", "externalIdentifierType": "cpe23"}]},
                {"type": "software_Package", "name": "base-files", "software_packageVersion": "3.0.14",
                 "software_primaryPurpose": "install", "software_additionalPurpose": ["archive"]},
                {"type": "software_Package", "name": "openssl", "software_packageVersion": "3.5.4",
                 "software_primaryPurpose": "specification"},
                {"type": "software_Package", "name": "openssl-3.5.4.tar.gz", "software_primaryPurpose": "source"},
                {"type": "software_Package", "name": "rustiot-image", "software_primaryPurpose": "archive"},
                {"type": "software_File", "name": "usr/lib/libcrypto.so.3", "software_primaryPurpose": "executable"},
                {"type": "Relationship", "from": "a", "relationshipType": "hasInput", "to": ["b"]}
            ]
        })
    }

    #[test]
    fn of_yoctos_document_the_installed_packages_are_read() {
        let found = packages(yocto().to_string().as_bytes()).unwrap();
        assert_eq!(found, list(&[("base-files", "3.0.14"), ("libcrypto3", "3.5.4")]));
    }

    #[test]
    fn a_context_may_be_a_list() {
        let mut document = yocto();
        document["@context"] = json!([{"x": "y"}, document["@context"]]);
        assert_eq!(packages(document.to_string().as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn a_document_that_is_none_is_refused_with_what_where_and_what_to_do() {
        let changed = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut document = yocto();
            change(&mut document);
            document.to_string()
        };
        let long = "x".repeat(MAX_TEXT + 1);
        for (text, words, advice) in [
            ("{\n  \"@context\": ".to_owned(), "line 2", "remove the file"),
            ("[]".to_owned(), "no SPDX document", "write SPDX 3"),
            (r#"{"spdxVersion": "SPDX-2.3", "packages": []}"#.to_owned(), "SPDX-2.3", "write SPDX 3"),
            (changed(&|d| d["@context"] = json!("https://example.org/")), "@context", "write SPDX 3"),
            (changed(&|d| d["@context"] = json!(7)), "@context", "write SPDX 3"),
            (changed(&|d| d["@graph"] = json!(null)), "@graph", "write SPDX 3"),
            (changed(&|d| d["@graph"] = json!([])), "purpose \"install\"", "write SPDX 3"),
            (changed(&|d| d["@graph"][1]["name"] = json!(5)), "line 1 column", "write SPDX 3"),
            (
                changed(&|d| d["@graph"][1]["name"] = json!(null)),
                "package/libcrypto3\" has no name",
                "make the document anew",
            ),
            (
                changed(&|d| d["@graph"][1]["software_packageVersion"] = json!(null)),
                "\"libcrypto3\" has no software_packageVersion",
                "make the document anew",
            ),
            (changed(&|d| d["@graph"][1]["name"] = json!("a\u{1b}[2J")), "control characters", "correct it"),
            (
                changed(&|d| d["@graph"][1]["software_packageVersion"] = json!(long)),
                "1 to 256 bytes",
                "correct it",
            ),
        ] {
            let error = packages(text.as_bytes()).unwrap_err();
            assert!(error.contains(words) && error.contains(advice), "{words}: {error}");
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
        let many = |count: usize| {
            let package = |number: usize| {
                json!({"type": "software_Package", "name": format!("p{number}"), "software_packageVersion": "1",
                       "software_primaryPurpose": "install"})
            };
            let graph: Vec<_> = (0..count).map(package).collect();
            changed(&|d| d["@graph"] = json!(graph))
        };
        assert_eq!(packages(many(MAX_PACKAGES).as_bytes()).unwrap().len(), MAX_PACKAGES);
        assert!(packages(many(MAX_PACKAGES + 1).as_bytes()).unwrap_err().contains("more than 8192"));
    }

    #[test]
    fn the_document_lies_beside_the_bundle() {
        for (bundle, document) in [
            ("b/1.0.0.raucb", "b/1.0.0.spdx.json"),
            ("1.0.0", "1.0.0.spdx.json"),
            ("/x/a.b", "/x/a.b.spdx.json"),
        ] {
            assert_eq!(beside(Path::new(bundle)), Path::new(document));
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("1.0.0.raucb")).unwrap().is_none());
    }

    #[test]
    fn added_removed_and_changed_packages_are_told_apart() {
        let found = differ(
            &[("a", "1"), ("gone", "2"), ("same", "3"), ("two", "1"), ("two", "2")],
            &[("a", "1.1"), ("new", "1"), ("same", "3"), ("two", "2"), ("two", "3"), ("two", "4")],
        );
        assert_eq!(found.changed, [Change { name: "a".into(), from: "1".into(), to: "1.1".into() }]);
        assert_eq!(found.added, list(&[("new", "1"), ("two", "3"), ("two", "4")]));
        assert_eq!(found.removed, list(&[("gone", "2"), ("two", "1")]));
        assert_eq!((found.count(), found.more), (6, 0));
        assert_eq!(differ(&[("a", "1")], &[("a", "1")]).count(), 0);
    }

    #[test]
    fn details_are_shortened_until_they_fit_and_say_so() {
        let name = |number: usize| format!("{number:0200}");
        let package = |number| Package { name: name(number), version: "1".into() };
        let packages: Vec<Package> = (0..2000).map(package).collect();
        let from = |number| difference(Digest::of(&[number]), Version::new(1, 0, 0), &[], &packages);
        let (details, bytes) = Details::new(file(), packages.clone(), (0..64).map(from).collect()).unwrap();
        assert!(bytes.len() <= MAX_DETAILS);
        assert_eq!(details.packages.len(), 2000);
        for difference in &details.differences {
            assert_eq!(difference.count(), 2000);
            assert!(!difference.added.is_empty() && difference.more > 0, "{}", difference.added.len());
        }
        assert_eq!(serde_json::from_slice::<Details>(&bytes).unwrap(), details);
        let too_many = (0..8000).map(package).collect();
        let error = Details::new(file(), too_many, Vec::new()).unwrap_err();
        assert!(error.contains("1048576"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..1500, to: u8) {
            let _ = packages(&bytes);
            let mut damaged = yocto().to_string().into_bytes();
            if let Some(byte) = damaged.get_mut(at) {
                *byte = to;
            }
            let _ = packages(&damaged);
        }

        #[test]
        fn a_difference_turns_the_old_list_into_the_new(
            old in proptest::collection::btree_map("[a-f]", "[0-3]", 0..6),
            new in proptest::collection::btree_map("[a-f]", "[0-3]", 0..6),
        ) {
            let as_list = |map: &BTreeMap<String, String>| -> Vec<Package> {
                map.iter().map(|(name, version)| Package { name: name.clone(), version: version.clone() }).collect()
            };
            let found = difference(Digest::of(b""), Version::new(1, 0, 0), &as_list(&old), &as_list(&new));
            let mut made = old;
            for package in &found.removed {
                prop_assert_eq!(made.remove(&package.name), Some(package.version.clone()));
            }
            for change in &found.changed {
                prop_assert_eq!(made.insert(change.name.clone(), change.to.clone()), Some(change.from.clone()));
            }
            for package in &found.added {
                prop_assert_eq!(made.insert(package.name.clone(), package.version.clone()), None);
            }
            prop_assert_eq!(made, new);
        }
    }
}
