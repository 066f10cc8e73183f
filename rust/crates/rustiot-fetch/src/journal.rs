//! The journal of a download: which file it is, and which of its bytes are on the medium.
//!
//! Pure: bytes to entries and back. A journal is only ever appended to; what follows the first frame that is not whole
//! does not count, which is how a write that was cut off ends. Called by the cache; public for a fuzz target. Format:
//! `docs/contracts/proxy.md`.

use std::ops::Range;

use rustiot_http::Validator;
use serde::{Deserialize, Serialize};

/// Kind, length and CRC around a payload.
const OVERHEAD: usize = 1 + 2 + 4;

/// Which file a download is of.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    /// What it was asked for by: the SHA-256 of its contents, or of its addresses where the contents' is not known.
    pub key: String,
    /// Its length, bytes.
    pub len: u64,
}

/// One entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    /// The file. Always the first entry, and only there.
    Identity(Identity),
    /// What the servers say of it, one for each address. The last one counts.
    Validators(Vec<Validator>),
    /// Bytes that are on the medium.
    Range {
        /// Where.
        range: Range<u64>,
        /// Their CRC-32 (IEEE).
        crc: u32,
    },
    /// All bytes are there and have the right SHA-256.
    Verified,
}

/// An entry as bytes; `None` if it is too long for a frame (64 KiB).
#[must_use]
pub fn frame(entry: &Entry) -> Option<Vec<u8>> {
    let (kind, payload) = match entry {
        Entry::Identity(identity) => (b'I', serde_json::to_vec(identity).ok()?),
        Entry::Validators(validators) => (b'V', serde_json::to_vec(validators).ok()?),
        Entry::Range { range, crc } => {
            let mut payload = Vec::with_capacity(20);
            payload.extend(range.start.to_le_bytes());
            payload.extend(range.end.to_le_bytes());
            payload.extend(crc.to_le_bytes());
            (b'R', payload)
        }
        Entry::Verified => (b'D', Vec::new()),
    };
    let mut frame = Vec::with_capacity(payload.len().saturating_add(OVERHEAD));
    frame.push(kind);
    frame.extend(u16::try_from(payload.len()).ok()?.to_le_bytes());
    frame.extend(payload);
    let crc = crc32fast::hash(&frame);
    frame.extend(crc.to_le_bytes());
    Some(frame)
}

/// The entries of a journal and how many of its bytes they take; the rest is no journal.
#[must_use]
pub fn parse(bytes: &[u8]) -> (Vec<Entry>, usize) {
    let mut entries = Vec::new();
    let mut used = 0;
    while let Some((entry, len)) = bytes.get(used..).and_then(one) {
        // Only the first says which file it is.
        if entries.is_empty() != matches!(entry, Entry::Identity(_)) {
            break;
        }
        entries.push(entry);
        used = used.saturating_add(len);
    }
    (entries, used)
}

fn one(bytes: &[u8]) -> Option<(Entry, usize)> {
    let (head, rest) = bytes.split_first_chunk::<3>()?;
    let [kind, low, high] = *head;
    let len = usize::from(u16::from_le_bytes([low, high]));
    let payload = rest.get(..len)?;
    let (crc, _) = rest.get(len..)?.split_first_chunk::<4>()?;
    let covered = bytes.get(..len.checked_add(3)?)?;
    if crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
        return None;
    }
    let entry = match kind {
        b'I' => Entry::Identity(serde_json::from_slice(payload).ok()?),
        b'V' => Entry::Validators(serde_json::from_slice(payload).ok()?),
        b'R' => {
            let (start, rest) = payload.split_first_chunk::<8>()?;
            let (end, rest) = rest.split_first_chunk::<8>()?;
            let crc: [u8; 4] = rest.try_into().ok()?;
            let range = u64::from_le_bytes(*start)..u64::from_le_bytes(*end);
            if range.start >= range.end {
                return None;
            }
            Entry::Range { range, crc: u32::from_le_bytes(crc) }
        }
        b'D' if payload.is_empty() => Entry::Verified,
        _ => return None,
    };
    Some((entry, len.checked_add(OVERHEAD)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let range = (0u64..1 << 40, 1u64..1 << 30, any::<u32>())
            .prop_map(|(start, len, crc)| Entry::Range { range: start..start + len, crc });
        let validator = (any::<Option<String>>(), any::<Option<String>>())
            .prop_map(|(etag, last_modified)| Validator { etag, last_modified });
        let validators = prop::collection::vec(validator, 0..3).prop_map(Entry::Validators);
        let rest = prop::collection::vec(prop_oneof![range, validators, Just(Entry::Verified)], 0..20);
        ("[a-f0-9]{8}", any::<u64>(), rest).prop_map(|(key, len, mut rest)| {
            rest.insert(0, Entry::Identity(Identity { key, len }));
            rest
        })
    }

    proptest! {
        #[test]
        fn round_trip_and_every_cut(entries in entries(), cut: prop::sample::Index, flip: prop::sample::Index) {
            let frames: Vec<Vec<u8>> = entries.iter().map(|entry| frame(entry).unwrap()).collect();
            let bytes = frames.concat();
            prop_assert_eq!(parse(&bytes), (entries.clone(), bytes.len()));
            // Cut anywhere: whole frames before it stay.
            let cut = cut.index(bytes.len());
            let (found, used) = parse(&bytes[..cut]);
            prop_assert!(used <= cut && entries.starts_with(&found));
            prop_assert_eq!(frames[..found.len()].concat().len(), used);
            prop_assert!(used + frames[found.len()].len() > cut);
            // Any flipped byte ends it there.
            let mut torn = bytes.clone();
            let at = flip.index(torn.len());
            torn[at] ^= 0x10;
            let (found, used) = parse(&torn);
            prop_assert!(used <= at && entries.starts_with(&found));
        }

        #[test]
        fn total_on_any_bytes(bytes: Vec<u8>) {
            let (_, used) = parse(&bytes);
            prop_assert!(used <= bytes.len());
        }
    }

    #[test]
    fn a_second_identity_ends_it() {
        let identity = frame(&Entry::Identity(Identity { key: "a".into(), len: 1 })).unwrap();
        let range = frame(&Entry::Range { range: 0..1, crc: 0 }).unwrap();
        assert_eq!(parse(&[identity.clone(), identity.clone()].concat()).1, identity.len());
        assert_eq!(parse(&range), (vec![], 0));
    }
}
