//! The manifest of a RAUC bundle of format `verity`, read out of its signature block: what the release is known by.
//!
//! It reads, it does not verify: the signature is RAUC's business, here ([`super::Tool`]) and on the device. Every length
//! comes from outside and is checked.

use super::{At, Error};
use crate::digest::Digest;
use semver::Version;
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Largest signature block, bytes; RAUC's own limit.
const MAX_SIGNATURE: u64 = 64 << 10;

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// SHA-256 of its text: RAUC's `manifest-hash`.
    pub hash: Digest,
    /// The board.
    pub compatible: String,
    /// The version.
    pub version: Version,
    /// Root hash of the root image.
    pub root_hash: Option<Digest>,
    /// The oldest version that a device with this release may go back to, if it says.
    pub floor: Option<Version>,
    /// Build time, Unix seconds, if it says.
    pub build_epoch: u64,
    /// Images by slot class, with their file names.
    pub images: BTreeMap<String, String>,
}

/// Reads the manifest of the bundle at `path`.
///
/// # Errors
/// It is no bundle of format `verity` with a manifest that a release of RustIoT OS has.
pub fn manifest(path: &Path) -> Result<Manifest, Error> {
    let wrong = |why: &str| Error::Bundle { path: path.to_owned(), why: why.to_owned() };
    let mut file = std::fs::File::open(path).at("open", path)?;
    let len = file.metadata().at("look at", path)?.len();
    let mut magic = [0; 4];
    file.read_exact(&mut magic).at("read", path)?;
    if &magic != b"hsqs" {
        return Err(wrong("no RAUC bundle: it does not begin with a squashfs"));
    }
    file.seek(SeekFrom::End(-8)).at("read", path)?;
    let mut size = [0; 8];
    file.read_exact(&mut size).at("read", path)?;
    let size = u64::from_be_bytes(size);
    if size == 0 || size > MAX_SIGNATURE || size.saturating_add(8) >= len {
        return Err(wrong("no RAUC bundle, or it was cut off: there is no signature at its end"));
    }
    file.seek(SeekFrom::Start(len - 8 - size)).at("read", path)?;
    let mut signature = Vec::new();
    file.take(size).read_to_end(&mut signature).at("read", path)?;
    let text = content(&signature).ok_or_else(|| {
        wrong(
            "its manifest is not in its signature: it has the format `plain`, make one with `format=verity`",
        )
    })?;
    parse(text).map_err(|why| Error::Bundle { path: path.to_owned(), why })
}

/// The content of a CMS SignedData (RFC 5652, 5.1), as text.
pub(super) fn content(cms: &[u8]) -> Option<&str> {
    // ContentInfo ::= SEQUENCE { contentType OID, content [0] EXPLICIT SignedData }
    let (info, _) = element(cms, 0x30)?;
    let (_, rest) = element(info, 0x06)?;
    let (signed, _) = element(rest, 0xa0)?;
    // SignedData ::= SEQUENCE { version, digestAlgorithms SET, encapContentInfo SEQUENCE { OID, [0] OCTET STRING }, … }
    let (signed, _) = element(signed, 0x30)?;
    let (_, rest) = element(signed, 0x02)?;
    let (_, rest) = element(rest, 0x31)?;
    let (encapsulated, _) = element(rest, 0x30)?;
    let (_, rest) = element(encapsulated, 0x06)?;
    let (explicit, _) = element(rest, 0xa0)?;
    let (octets, _) = element(explicit, 0x04)?;
    std::str::from_utf8(octets).ok()
}

/// The DER element with this tag at the beginning: its content, and what follows.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first != tag {
        return None;
    }
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match *length {
        short if short < 0x80 => (usize::from(short), rest),
        long => {
            let count = usize::from(long & 0x7f);
            if count == 0 || count > 4 {
                return None;
            }
            let (digits, rest) = rest.split_at_checked(count)?;
            (digits.iter().fold(0usize, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
    };
    rest.split_at_checked(length)
}

/// Reads the manifest's text.
pub(super) fn parse(text: &str) -> Result<Manifest, String> {
    let mut keys: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            keys.insert((section.clone(), key.trim().to_owned()), value.trim().to_owned());
        }
    }
    let get = |section: &str, key: &str| keys.get(&(section.to_owned(), key.to_owned())).cloned();
    let need = |section: &str, key: &str| {
        get(section, key).ok_or(format!("its manifest has no {key} in [{section}]"))
    };
    let version = |text: String| {
        Version::parse(&text)
            .map_err(|error| format!("{text:?} is no semantic version such as 1.2.3: {error}"))
    };
    match need("bundle", "format")?.as_str() {
        "verity" => {}
        other => return Err(format!("it has the format {other:?}: make one with `format=verity`")),
    }
    let images: BTreeMap<String, String> = keys
        .iter()
        .filter(|((_, key), _)| key == "filename")
        .filter_map(|((section, _), file)| Some((section.strip_prefix("image.")?.to_owned(), file.clone())))
        .collect();
    if images.keys().ne(["boot", "root"]) {
        return Err("it does not hold exactly the images boot and root".to_owned());
    }
    Ok(Manifest {
        hash: Digest::of(text.as_bytes()),
        compatible: need("update", "compatible")?,
        version: version(need("update", "version")?)?,
        root_hash: get("meta.rustiot", "root-hash").and_then(|text| text.parse().ok()),
        floor: get("meta.rustiot", "floor").map(version).transpose()?,
        build_epoch: get("meta.rustiot", "build-epoch").and_then(|text| text.parse().ok()).unwrap_or(0),
        images,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn text(version: &str) -> String {
        format!(
            "[update]\ncompatible=rustiot-x\nversion={version}\n\n[bundle]\nformat=verity\n\n\
             [image.root]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n\n\
             [meta.rustiot]\nroot-hash={}\nfloor=0.9.0\n",
            Digest::of(version.as_bytes())
        )
    }

    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag, 0x82];
        out.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        out.extend(content);
        out
    }

    /// The bytes of a signature block around a manifest; nothing is signed.
    pub(crate) fn cms(text: &str) -> Vec<u8> {
        let octets = tlv(0xa0, &tlv(0x04, text.as_bytes()));
        let encapsulated = tlv(0x30, &[vec![0x06, 1, 0], octets].concat());
        let signed = tlv(0x30, &[vec![0x02, 1, 3], vec![0x31, 0], encapsulated].concat());
        tlv(0x30, &[vec![0x06, 1, 0], tlv(0xa0, &signed)].concat())
    }

    #[test]
    fn the_hash_is_that_of_the_text() {
        let manifest = parse(&text("1.2.3")).unwrap();
        assert_eq!(manifest.hash, Digest::of(text("1.2.3").as_bytes()));
        assert_eq!(
            (manifest.version.to_string().as_str(), manifest.compatible.as_str()),
            ("1.2.3", "rustiot-x")
        );
        assert_eq!(manifest.floor, Some(Version::new(0, 9, 0)));
        assert_eq!(content(&cms(&text("1.2.3"))), Some(text("1.2.3").as_str()));
    }

    #[test]
    fn what_is_no_release_is_told_why() {
        for (from, to, words) in [
            ("format=verity", "format=plain", "plain"),
            ("version=1.2.3", "version=tuesday", "semantic"),
            ("[image.boot]", "[image.app]", "boot and root"),
            ("compatible=", "incompatible=", "compatible"),
        ] {
            let error = parse(&text("1.2.3").replace(from, to)).unwrap_err();
            assert!(error.contains(words), "{from}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..400, to: u8) {
            let _ = content(&bytes);
            let mut damaged = cms(&text("1.0.0"));
            if let Some(byte) = damaged.get_mut(at) {
                *byte = to;
            }
            let _ = content(&damaged).map(parse);
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
