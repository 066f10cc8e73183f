//! The decoder: a seekable view of the target. One segment at a time lies decompressed in memory.

use crate::format::{
    INDEX_MAX, Index, PREFIX, SEAL, STREAMS_OVER, SegmentInfo, half, index_len, source_bases, streams_max,
};
use crate::segment::Segment;
use crate::tree::TreeHasher;
use crate::{Error, FileAt, Header, Part, ReadAt};
use sha2::{Digest, Sha256};
use std::io;
use std::ops::Range;

/// Bytes that [`Target::verify`] makes at once.
const STEP: usize = 64 << 10;

/// A delta whose header and index have been read and checked.
pub struct Delta<D> {
    delta: D,
    index: Index,
}

impl<D: ReadAt> Delta<D> {
    /// Reads and checks header and index, nothing else.
    ///
    /// # Errors
    /// It is no delta, damaged, too large, or cannot be read.
    pub fn open(delta: D) -> Result<Self, Error> {
        let unread = |offset| move |source| Error::ReadDelta { offset, source };
        let mut prefix = [0; PREFIX];
        delta.read_at(0, &mut prefix).map_err(unread(0))?;
        let len = index_len(&prefix)?.min(INDEX_MAX);
        if (len as u64) > delta.len() {
            return Err(Error::Damaged { part: Part::Header, what: "the index is longer than the delta" });
        }
        let mut bytes = vec![0; PREFIX.saturating_add(len).saturating_add(SEAL)];
        delta.read_at(0, &mut bytes).map_err(unread(0))?;
        let index = Index::parse(&bytes, delta.len())?;
        Ok(Delta { delta, index })
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.index.header
    }

    /// Byte ranges of the delta that are needed for `range` of the target, in order, not touching each other. The
    /// header is not among them.
    pub fn needs(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut wanted = vec![range.clone()];
        // A tree needs all that it hashes, which may hold other trees (earlier ones).
        for tree in self.index.trees.iter().rev() {
            if wanted.iter().any(|want| want.start < tree.tree_end() && tree.tree_start < want.end) {
                wanted.push(tree.data_start..tree.data_end());
            }
        }
        let mut needs: Vec<Range<u64>> = Vec::new();
        for segment in &self.index.segments {
            let end = segment.start.saturating_add(segment.len);
            if !wanted.iter().any(|want| want.start < end && segment.start < want.end) || segment.size == 0 {
                continue;
            }
            let end = segment.at.saturating_add(segment.size);
            match needs.last_mut() {
                Some(last) if last.end == segment.at => last.end = end,
                _ => needs.push(segment.at..end),
            }
        }
        needs
    }

    /// The target. `sources` in the header's order; each may be longer than the header says.
    ///
    /// # Errors
    /// Other sources than the header says, by number or length.
    pub fn target(self, sources: Vec<Box<dyn ReadAt + Send>>) -> Result<Target<D>, Error> {
        let wanted = &self.index.header.sources;
        if wanted.len() != sources.len() {
            return Err(Error::Sources { wanted: wanted.len(), given: sources.len() });
        }
        for (wanted, given) in wanted.iter().zip(&sources) {
            if given.len() < wanted.len {
                return Err(Error::SourceLength {
                    name: wanted.name.clone(),
                    wanted: wanted.len,
                    given: given.len(),
                });
            }
        }
        let bases = source_bases(wanted.iter().map(|source| &source.len));
        let sources = wanted
            .iter()
            .zip(sources)
            .zip(bases)
            .map(|((info, bytes), base)| Old { name: info.name.clone(), base, len: info.len, bytes })
            .collect();
        let trees = self
            .index
            .trees
            .iter()
            .map(|tree| Tree::Hashing(Box::new(TreeHasher::new(tree.data_blocks, &tree.salt))));
        let trees = trees.collect();
        Ok(Target { delta: self, sources: Sources(sources), loaded: None, trees, hashed_to: 0, reused: 0 })
    }
}

/// A source at its place in the address space of all.
struct Old {
    name: String,
    base: u64,
    len: u64,
    bytes: Box<dyn ReadAt + Send>,
}

/// All sources as one address space.
pub(crate) struct Sources(Vec<Old>);

impl Sources {
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Sources(Vec::new())
    }

    /// Fills `buf` from `address` on; `Ok(false)` where no source is.
    pub(crate) fn read(&self, address: u64, buf: &mut [u8]) -> Result<bool, Error> {
        let found = self.0.iter().rev().find(|old| old.base <= address);
        let Some(old) = found else { return Ok(false) };
        let offset = address - old.base;
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > old.len) {
            return Ok(false);
        }
        let unread = |source| Error::ReadSource { name: old.name.clone(), offset, source };
        old.bytes.read_at(offset, buf).map_err(unread)?;
        Ok(true)
    }
}

enum Tree {
    Hashing(Box<TreeHasher>),
    Known(Vec<u8>),
}

/// A seekable view of what a delta makes.
pub struct Target<D> {
    delta: Delta<D>,
    sources: Sources,
    loaded: Option<(usize, Segment)>,
    trees: Vec<Tree>,
    /// Up to here the target has gone through the trees' hashers.
    hashed_to: u64,
    reused: u64,
}

impl<D: ReadAt> Target<D> {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.delta.index.header.target_len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the delta says of itself.
    pub fn header(&self) -> &Header {
        self.delta.header()
    }

    /// Fills `buf` from `offset` of the target on. Cheapest in order; going back decodes a segment again. The first
    /// byte of a hash tree costs one pass over all that it hashes.
    ///
    /// # Errors
    /// Beyond the end, the delta is damaged, or something cannot be read.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let target_len = self.len();
        let len = buf.len() as u64;
        let end = offset.checked_add(len).filter(|end| *end <= target_len);
        let end = end.ok_or(Error::OutOfRange { offset, len, target_len })?;
        let trees = &self.delta.index.trees;
        let last = trees.iter().rposition(|tree| tree.tree_start < end && offset < tree.tree_end());
        if let Some(last) = last {
            self.compute(last)?;
        }
        self.reused = self.reused.saturating_add(self.read_once(offset, buf)?);
        Ok(())
    }

    /// Bytes of the target that came from the sources, of those that were read so far.
    pub fn reused_bytes(&self) -> u64 {
        self.reused
    }

    /// Makes the whole target once, in order, and compares its checksum; `each` gets every part.
    ///
    /// # Errors
    /// As [`Target::read_at`], when the checksum differs, and [`Error::Write`] with what `each` said.
    pub fn verify(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), Error> {
        let mut buf = vec![0; STEP];
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < self.len() {
            let now = usize::try_from(self.len() - at).unwrap_or(STEP).min(STEP);
            let part = buf.get_mut(..now).unwrap_or_default();
            self.read_at(at, part)?;
            hash.update(&*part);
            each(part).map_err(Error::Write)?;
            at = at.saturating_add(now as u64);
        }
        if hash.finalize().as_slice() != self.header().target_sha256 {
            return Err(Error::Mismatch);
        }
        Ok(())
    }

    /// Makes tree `last` and those before it known.
    fn compute(&mut self, last: usize) -> Result<(), Error> {
        let end = self.delta.index.trees.get(last).map_or(0, |tree| tree.data_end());
        let mut buf = Vec::new();
        while self.hashed_to < end {
            buf.resize(STEP.min(usize::try_from(end - self.hashed_to).unwrap_or(STEP)), 0);
            self.read_once(self.hashed_to, &mut buf)?;
        }
        for number in 0..=last {
            self.finish_tree(number)?;
        }
        Ok(())
    }

    /// Turns the hasher of a tree whose data has come by into the tree.
    fn finish_tree(&mut self, number: usize) -> Result<(), Error> {
        let (Some(info), Some(tree)) = (self.delta.index.trees.get(number), self.trees.get_mut(number))
        else {
            return Ok(());
        };
        if let Tree::Hashing(hasher) = tree
            && info.data_end() <= self.hashed_to
        {
            let hasher = std::mem::replace(&mut **hasher, TreeHasher::new(0, &[]));
            let made = hasher.finish(info.data_blocks);
            if made.len() as u64 != info.len() {
                return Err(Error::Damaged { part: Part::Tree(number), what: "its length differs" });
            }
            *tree = Tree::Known(made);
        }
        Ok(())
    }

    /// Fills `buf`; returns how much came from the sources. Trees in it must be known or have had their data just
    /// before.
    fn read_once(&mut self, offset: u64, buf: &mut [u8]) -> Result<u64, Error> {
        let mut reused = 0u64;
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let want = rest.len() as u64;
            let (now, from) = self.piece(at, want);
            let (part, after) = rest.split_at_mut(now as usize);
            match from {
                Some(number) => self.read_tree(number, at, part)?,
                None => reused = reused.saturating_add(self.read_segments(at, part)?),
            }
            self.hash(at, part);
            at = at.saturating_add(now);
            rest = after;
        }
        Ok(reused)
    }

    /// How many bytes from `at` on come from one place, and the tree if it is one.
    fn piece(&self, at: u64, want: u64) -> (u64, Option<usize>) {
        let mut now = want;
        for (number, tree) in self.delta.index.trees.iter().enumerate() {
            if tree.tree_start <= at && at < tree.tree_end() {
                return (now.min(tree.tree_end() - at), Some(number));
            }
            if at < tree.tree_start {
                now = now.min(tree.tree_start - at);
            }
        }
        (now, None)
    }

    fn read_tree(&mut self, number: usize, at: u64, part: &mut [u8]) -> Result<(), Error> {
        self.finish_tree(number)?;
        let start = self.delta.index.trees.get(number).map_or(0, |tree| tree.tree_start);
        let from = match self.trees.get(number) {
            Some(Tree::Known(bytes)) => usize::try_from(at.saturating_sub(start))
                .ok()
                .and_then(|offset| bytes.get(offset..)?.get(..part.len())),
            _ => None,
        };
        let from = from.ok_or(Error::Damaged { part: Part::Tree(number), what: "it hashes itself" })?;
        part.copy_from_slice(from);
        Ok(())
    }

    /// Passes what follows on what was hashed so far to the trees' hashers.
    fn hash(&mut self, at: u64, part: &[u8]) {
        let end = at.saturating_add(part.len() as u64);
        if at > self.hashed_to || end <= self.hashed_to || self.trees.is_empty() {
            return;
        }
        let skip = |start: u64| usize::try_from(start.saturating_sub(at)).unwrap_or(usize::MAX);
        for (tree, info) in self.trees.iter_mut().zip(&self.delta.index.trees) {
            if let Tree::Hashing(hasher) = tree {
                hasher.update(part.get(skip(info.data_start.max(self.hashed_to))..).unwrap_or_default());
            }
        }
        self.hashed_to = end;
    }

    fn read_segments(&mut self, at: u64, part: &mut [u8]) -> Result<u64, Error> {
        let mut reused = 0u64;
        let mut at = at;
        let mut rest = part;
        while !rest.is_empty() {
            let segments = &self.delta.index.segments;
            let number = segments.partition_point(|segment| segment.start <= at).saturating_sub(1);
            // Empty segments have the start of the one behind them: the last of them is found.
            let info = segments.get(number).ok_or(Error::OutOfRange {
                offset: at,
                len: rest.len() as u64,
                target_len: self.delta.index.header.target_len,
            })?;
            let offset = at - info.start;
            let left = usize::try_from(info.len.saturating_sub(offset)).unwrap_or(usize::MAX);
            let (now, after) = rest.split_at_mut(left.min(rest.len()));
            if now.is_empty() {
                return Err(Error::Damaged { part: Part::Header, what: "an empty segment" });
            }
            if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
                // The old one's memory first.
                self.loaded = None;
                let most = streams_max(self.delta.index.trees_len()).saturating_add(STREAMS_OVER);
                self.loaded = Some((number, load(&self.delta.delta, number, info, most)?));
            }
            if let Some((_, segment)) = &mut self.loaded {
                reused = reused.saturating_add(segment.read(offset, now, &self.sources, number)?);
            }
            at = at.saturating_add(now.len() as u64);
            rest = after;
        }
        Ok(reused)
    }
}

/// Reads a segment and takes it apart; its bytes are checked before anything of it is used.
fn load(delta: &dyn ReadAt, number: usize, info: &SegmentInfo, most: u64) -> Result<Segment, Error> {
    let mut bytes = Hashed { delta, at: info.at, left: info.size, hash: Sha256::new() };
    let segment = Segment::parse(&mut bytes, info.start, info.len, most, number);
    // The reader stops at the first error; only a whole segment has a checksum.
    let mut buf = [0; 4096];
    while bytes.left > 0 {
        if let Err(source) = io::Read::read(&mut bytes, &mut buf) {
            return Err(Error::ReadDelta { offset: bytes.at, source });
        }
    }
    if half(&bytes.hash.finalize()) != info.digest && !cfg!(fuzzing) {
        return Err(Error::Damaged { part: Part::Segment(number), what: "its checksum differs" });
    }
    segment
}

/// A segment's bytes, hashed as they are read.
struct Hashed<'a> {
    delta: &'a dyn ReadAt,
    at: u64,
    left: u64,
    hash: Sha256,
}

impl io::Read for Hashed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let now = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let part = buf.get_mut(..now).unwrap_or_default();
        self.delta.read_at(self.at, part)?;
        self.hash.update(&*part);
        self.at = self.at.saturating_add(now as u64);
        self.left = self.left.saturating_sub(now as u64);
        Ok(now)
    }
}

/// Makes the whole target from files, checks it, and gives it to `each` in parts. What [`Target::verify`] does, compiled
/// here with this crate's settings whatever the caller's are.
///
/// # Errors
/// As [`Delta::open`], [`Delta::target`] and [`Target::verify`].
pub fn apply(
    delta: FileAt,
    sources: Vec<FileAt>,
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Header, Error> {
    let sources = sources.into_iter().map(|source| Box::new(source) as Box<dyn ReadAt + Send>);
    let mut target = Delta::open(delta)?.target(sources.collect())?;
    target.verify(each)?;
    Ok(target.header().clone())
}
