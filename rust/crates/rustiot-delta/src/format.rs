//! The file format, as bytes. Contract: `docs/contracts/delta-format.md`.

use crate::{Error, Part};
use sha2::{Digest, Sha256};

/// First bytes of every delta; the last one is the version.
pub(crate) const MAGIC: [u8; 8] = *b"RDELTA\r\x03";
/// Magic and length of the index.
pub(crate) const PREFIX: usize = 12;
/// SHA-256 of magic, length and index, behind them.
pub(crate) const SEAL: usize = 32;
/// The longest index.
pub(crate) const INDEX_MAX: usize = 1 << 20;
/// Bytes that the streams of a segment may have together when decompressed …
const STREAMS_MAX: u64 = 8 << 20;
/// … and with all hash trees.
const HELD_MAX: u64 = 14 << 20;
/// What one more operation may add to streams that are as good as full.
pub(crate) const STREAMS_OVER: u64 = 64 << 10;
/// Operations in a segment.
pub(crate) const SEGMENT_OPS_MAX: usize = 1 << 15;
/// Bytes that all hash trees may have together.
pub(crate) const TREES_MAX: u64 = 8 << 20;
/// The longest target or source.
pub(crate) const LEN_MAX: u64 = 1 << 40;
/// Sources are placed in one address space, each at a multiple of this.
pub(crate) const SOURCE_ALIGN: u64 = 4096;

const SOURCES_MAX: u64 = 16;
const NAME_MAX: u64 = 64;
const TREES_COUNT_MAX: u64 = 4;
const SALT_MAX: u64 = 256;

/// An old image that a delta refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceInfo {
    /// `root`, `boot` or another name.
    pub name: String,
    /// Length in bytes; what is given to the decoder may be longer.
    pub len: u64,
    /// SHA-256 of these bytes.
    pub sha256: [u8; 32],
}

/// What a delta says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of what it makes, bytes.
    pub target_len: u64,
    /// SHA-256 of what it makes.
    pub target_sha256: [u8; 32],
    /// What it is made from, in the order in which [`crate::Delta::target`] wants them; none for a full download.
    pub sources: Vec<SourceInfo>,
}

/// A dm-verity hash tree within the target that the decoder computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeInfo {
    /// Where the hashed data starts in the target.
    pub(crate) data_start: u64,
    /// How many blocks of 4096 bytes are hashed.
    pub(crate) data_blocks: u64,
    /// Where the tree starts in the target.
    pub(crate) tree_start: u64,
    /// What every block is hashed with, in front.
    pub(crate) salt: Vec<u8>,
}

/// A part of the target and where the delta holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentInfo {
    /// Start in the target.
    pub(crate) start: u64,
    /// Length in the target.
    pub(crate) len: u64,
    /// Start in the delta.
    pub(crate) at: u64,
    /// Length in the delta.
    pub(crate) size: u64,
    /// The first half of the SHA-256 of these bytes.
    pub(crate) digest: [u8; 16],
}

/// Everything in front of the segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) header: Header,
    pub(crate) trees: Vec<TreeInfo>,
    pub(crate) segments: Vec<SegmentInfo>,
}

/// What the streams of a segment may have together when the trees have so many bytes; [`STREAMS_OVER`] comes on top.
pub(crate) fn streams_max(trees: u64) -> u64 {
    HELD_MAX.saturating_sub(trees).min(STREAMS_MAX)
}

/// Reads numbers and bytes; `None` at the end or when a number is too large.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Reader { rest }
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    pub(crate) fn bytes(&mut self, len: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(usize::try_from(len).ok()?)?;
        self.rest = rest;
        Some(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N as u64)?.try_into().ok()
    }

    /// LEB128, at most 63 bits.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A number that is at most `max`.
    pub(crate) fn at_most(&mut self, max: u64) -> Option<u64> {
        self.number().filter(|number| *number <= max)
    }
}

/// The opposite of [`Reader::number`].
#[cfg(any(test, feature = "encode"))]
pub(crate) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A signed number from an unsigned one: 0, -1, 1, -2, …
pub(crate) fn unzigzag(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

/// The opposite of [`unzigzag`].
#[cfg(any(test, feature = "encode"))]
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The first half of a SHA-256.
pub(crate) fn half(digest: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
    half
}

/// How long the index is, from the first [`PREFIX`] bytes.
pub(crate) fn index_len(prefix: &[u8; PREFIX]) -> Result<usize, Error> {
    let (magic, len) = prefix.split_first_chunk::<8>().ok_or(Error::NotADelta)?;
    if *magic != MAGIC {
        return Err(Error::NotADelta);
    }
    let len = len.first_chunk::<4>().map_or(0, |len| u32::from_le_bytes(*len)) as usize;
    if len > INDEX_MAX {
        return Err(Error::TooLarge { part: Part::Header, what: "the index" });
    }
    Ok(len)
}

impl Index {
    /// Reads prefix, index and seal; `delta_len` is the length of the whole delta.
    pub(crate) fn parse(bytes: &[u8], delta_len: u64) -> Result<Self, Error> {
        let damaged = |what| Error::Damaged { part: Part::Header, what };
        let (sealed, seal) = bytes.split_last_chunk::<SEAL>().ok_or(damaged("too short"))?;
        // A fuzzer cannot make checksums; what is behind them has to stand without.
        if Sha256::digest(sealed).as_slice() != seal && !cfg!(fuzzing) {
            return Err(damaged("its checksum differs"));
        }
        let mut reader = Reader::new(sealed.get(PREFIX..).unwrap_or_default());
        let index = Self::read(&mut reader, bytes.len() as u64).ok_or(damaged("it breaks off"))?;
        if reader.left() != 0 {
            return Err(damaged("more than an index"));
        }
        index.check(delta_len)?;
        Ok(index)
    }

    fn read(reader: &mut Reader<'_>, mut at: u64) -> Option<Self> {
        let target_len = reader.at_most(LEN_MAX)?;
        let target_sha256 = reader.array()?;
        let mut sources = Vec::new();
        for _ in 0..reader.at_most(SOURCES_MAX)? {
            let len = reader.at_most(NAME_MAX)?;
            let name = String::from_utf8(reader.bytes(len)?.to_vec()).ok()?;
            sources.push(SourceInfo { name, len: reader.at_most(LEN_MAX)?, sha256: reader.array()? });
        }
        let mut trees = Vec::new();
        for _ in 0..reader.at_most(TREES_COUNT_MAX)? {
            trees.push(TreeInfo {
                data_start: reader.at_most(LEN_MAX)?,
                data_blocks: reader.at_most(LEN_MAX / 4096)?,
                tree_start: reader.at_most(LEN_MAX)?,
                salt: {
                    let len = reader.at_most(SALT_MAX)?;
                    reader.bytes(len)?.to_vec()
                },
            });
        }
        let mut segments = Vec::new();
        let mut start = 0u64;
        // Each takes 18 bytes at least, so the index's length bounds their number.
        for _ in 0..reader.number()? {
            let (len, size) = (reader.at_most(LEN_MAX)?, reader.at_most(LEN_MAX)?);
            segments.push(SegmentInfo { start, len, at, size, digest: reader.array()? });
            start = start.checked_add(len)?;
            at = at.checked_add(size)?;
        }
        Some(Index { header: Header { target_len, target_sha256, sources }, trees, segments })
    }

    /// Bytes of all hash trees.
    pub(crate) fn trees_len(&self) -> u64 {
        self.trees.iter().fold(0, |sum, tree| sum.saturating_add(tree.len()))
    }

    fn check(&self, delta_len: u64) -> Result<(), Error> {
        let damaged = |part, what| Err(Error::Damaged { part, what });
        let (start, at) = self.segments.last().map_or((0, None), |last| {
            (last.start.saturating_add(last.len), Some(last.at.saturating_add(last.size)))
        });
        if start != self.header.target_len {
            return damaged(Part::Header, "the segments do not make the target");
        }
        if at.is_some_and(|at| at != delta_len) {
            return damaged(Part::Header, "the delta has another length than its segments");
        }
        for (number, source) in self.header.sources.iter().enumerate() {
            if self.header.sources.iter().take(number).any(|other| other.name == source.name) {
                return damaged(Part::Header, "two sources have one name");
            }
        }
        let mut sum = 0u64;
        for (number, tree) in self.trees.iter().enumerate() {
            let part = Part::Tree(number);
            if tree.data_end() > tree.tree_start || tree.tree_end() > self.header.target_len {
                return damaged(part, "it lies where it cannot");
            }
            // A tree hashes those before it as a whole or not at all, and nothing lies in a tree.
            for other in self.trees.iter().take(number) {
                let apart = other.tree_end() <= tree.data_start || other.tree_start >= tree.data_end();
                let within = other.tree_start >= tree.data_start && other.tree_end() <= tree.data_end();
                if !(apart || within) || other.tree_end() > tree.tree_start {
                    return damaged(part, "it overlaps another one");
                }
            }
            sum = sum.saturating_add(tree.len());
            if sum > TREES_MAX {
                return Err(Error::TooLarge { part, what: "all trees together" });
            }
        }
        Ok(())
    }

    /// All bytes in front of the segments.
    #[cfg(any(test, feature = "encode"))]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut index = Vec::new();
        put_number(&mut index, self.header.target_len);
        index.extend_from_slice(&self.header.target_sha256);
        put_number(&mut index, self.header.sources.len() as u64);
        for source in &self.header.sources {
            put_number(&mut index, source.name.len() as u64);
            index.extend_from_slice(source.name.as_bytes());
            put_number(&mut index, source.len);
            index.extend_from_slice(&source.sha256);
        }
        put_number(&mut index, self.trees.len() as u64);
        for tree in &self.trees {
            put_number(&mut index, tree.data_start);
            put_number(&mut index, tree.data_blocks);
            put_number(&mut index, tree.tree_start);
            put_number(&mut index, tree.salt.len() as u64);
            index.extend_from_slice(&tree.salt);
        }
        put_number(&mut index, self.segments.len() as u64);
        for segment in &self.segments {
            put_number(&mut index, segment.len);
            put_number(&mut index, segment.size);
            index.extend_from_slice(&segment.digest);
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(index.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&index);
        let seal = Sha256::digest(&bytes);
        bytes.extend_from_slice(&seal);
        bytes
    }
}

/// Where each source starts in the address space of all.
pub(crate) fn source_bases<'a>(lens: impl IntoIterator<Item = &'a u64>) -> Vec<u64> {
    let mut next = 0u64;
    lens.into_iter()
        .map(|len| {
            let base = next;
            next = base.saturating_add(*len).div_ceil(SOURCE_ALIGN).saturating_mul(SOURCE_ALIGN);
            base
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index(trees: Vec<TreeInfo>) -> Index {
        let header = Header {
            target_len: 1 << 30,
            target_sha256: [7; 32],
            sources: vec![SourceInfo { name: "root".into(), len: 5, sha256: [1; 32] }],
        };
        let segment = SegmentInfo { start: 0, len: 1 << 30, at: 0, size: 9, digest: [3; 16] };
        Index { header, trees, segments: vec![segment] }
    }

    fn parsed(index: &Index) -> Result<Index, Error> {
        let bytes = index.to_bytes();
        Index::parse(&bytes, bytes.len() as u64 + 9)
    }

    fn tree(data_start: u64, data_blocks: u64, tree_start: u64) -> TreeInfo {
        TreeInfo { data_start, data_blocks, tree_start, salt: vec![1] }
    }

    #[test]
    fn an_index_comes_back() {
        let mut wanted = index(vec![tree(4096, 200, 1 << 20), tree(0, 400, 4 << 20)]);
        wanted.segments[0].at = wanted.to_bytes().len() as u64;
        assert_eq!(parsed(&wanted).unwrap(), wanted);
    }

    #[test]
    fn trees_that_cannot_be_are_refused() {
        let before_its_data = vec![tree(4096, 200, 0)];
        let half_hashed = vec![tree(0, 200, 1 << 20), tree(0, 257, 4 << 20)];
        let beyond_the_end = vec![tree(0, 1 << 18, (1 << 30) - 4096)];
        for trees in [before_its_data, half_hashed, beyond_the_end] {
            assert!(matches!(parsed(&index(trees)), Err(Error::Damaged { part: Part::Tree(_), .. })));
        }
        let large = vec![TreeInfo { data_blocks: 1 << 18, ..tree(0, 0, 0) }; 2];
        assert!(parsed(&index(large)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_an_index(bytes: Vec<u8>) {
            let mut sealed = MAGIC.to_vec();
            sealed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            sealed.extend_from_slice(&bytes);
            let seal = Sha256::digest(&sealed);
            sealed.extend_from_slice(&seal);
            let _ = Index::parse(&sealed, sealed.len() as u64);
        }

        #[test]
        fn numbers_come_back(number in 0u64..1 << 63, signed: i64) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            prop_assert_eq!(Reader::new(&bytes).number(), Some(number));
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }
    }
}
