//! The encoder. Workstation only: it may take minutes, gigabytes and all processors. Same inputs, same bytes,
//! whatever the number of processors.

// The encoder indexes its own tables and what the workstation's user gave it; nothing here meets hostile bytes.
#![expect(clippy::indexing_slicing, reason = "bounds follow from the algorithm; workstation only")]

mod blocks;
mod choose;
mod diff;
mod pack;
mod price;
mod programs;
mod threads;
mod trees;

pub use trees::TreeHint;

use crate::format::{Header, Index, LEN_MAX, SegmentInfo, SourceInfo, TreeInfo, half, streams_max};
use crate::{Delta, Error, ReadAt};
use programs::Programs;
use sha2::{Digest, Sha256};

/// An old image.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// `root`, `boot` or another name.
    pub name: &'a str,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// How to encode.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Leave out hash trees also where there is no source. The device then has to fetch everything before RAUC gets
    /// the first byte, so it needs a cache.
    pub trees_in_full: bool,
    /// Hash trees that the encoder does not find by itself.
    pub trees: Vec<TreeHint>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Length of the delta, bytes.
    pub len: u64,
    /// SHA-256 of the delta.
    pub sha256: [u8; 32],
    /// Segments in it.
    pub segments: usize,
    /// Bytes of the target that the device computes as hash trees.
    pub trees: u64,
    /// Compressed bytes by stream: lengths, seeks, references, gaps, values, new data.
    pub streams: [u64; crate::segment::STREAMS],
}

/// Why nothing was encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Two sources have one name, or a name is empty or too long.
    #[error("{0:?} cannot name a source")]
    Name(String),
    /// More than the format or the encoder can hold: 4 GiB of old data, a terabyte of target.
    #[error("{0} is too large")]
    TooLarge(&'static str),
    /// A thread of the encoder ended without a result: out of memory, or a bug here.
    #[error("a thread of the encoder failed")]
    Thread,
    /// LZMA refused.
    #[error("cannot compress")]
    Compress(#[source] std::io::Error),
    /// The delta cannot be written.
    #[error("cannot write the delta")]
    Write(#[source] std::io::Error),
    /// What was encoded does not decode to the target: a bug here, caught before anyone gets it.
    #[error("the delta does not make the target")]
    Verify(#[source] Error),
}

/// Writes the delta that makes `target` from `sources` to `out`, after it was decoded and compared.
/// `progress` gets a share of the work, 0 to 1, now and then.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode(
    target: &[u8],
    sources: &[Source<'_>],
    options: &Options,
    out: &mut dyn std::io::Write,
    progress: &(dyn Fn(f32) + Sync),
) -> Result<Summary, EncodeError> {
    check(target, sources)?;
    let trees = match sources.is_empty() && !options.trees_in_full {
        true => Vec::new(),
        false => trees::find(target, &options.trees),
    };
    progress(0.05);
    let old = Old::new(sources)?;
    let (ops, programs) = match sources.is_empty() {
        true => (diff::full(target.len(), &trees), Programs::none()),
        false => compare(target, &trees, &old, &|share| progress(0.05 + 0.6 * share))?,
    };
    let ops = within_sources(ops, &old);
    progress(0.65);
    let trees_len: u64 = trees.iter().map(TreeInfo::len).sum();
    let how = pack::How { full: sources.is_empty(), streams: streams_max(trees_len) as usize };
    let packed = pack::pack(target, &old, &ops, &programs, how, &|share| progress(0.65 + 0.3 * share))?;
    let header = Header {
        target_len: target.len() as u64,
        target_sha256: Sha256::digest(target).into(),
        sources: sources
            .iter()
            .map(|source| SourceInfo {
                name: source.name.into(),
                len: source.bytes.len() as u64,
                sha256: Sha256::digest(source.bytes).into(),
            })
            .collect(),
    };
    let delta = put_together(header, trees, &packed);
    verify(&delta, target, sources)?;
    out.write_all(&delta).map_err(EncodeError::Write)?;
    progress(1.0);
    let mut streams = [0; crate::segment::STREAMS];
    for segment in &packed {
        streams.iter_mut().zip(segment.streams).for_each(|(sum, size)| *sum += size);
    }
    Ok(Summary {
        len: delta.len() as u64,
        sha256: Sha256::digest(&delta).into(),
        segments: packed.len(),
        trees: trees_len,
        streams,
    })
}

/// Predictions have to save this part of what there is to save.
const WORTH: usize = 50;
/// A target of which more than this part is new has little in common with the old data.
const FAR: usize = 10;

/// Compares, and compares again with what was learned of programs: tables in which every reference has changed are only
/// recognised then.
fn compare(
    target: &[u8],
    trees: &[TreeInfo],
    old: &Old,
    progress: &(dyn Fn(f32) + Sync),
) -> Result<(Vec<Stretch>, Programs), EncodeError> {
    let rounds = programs::ROUNDS as f32 + 2.0;
    let mut stretches = diff::diff(target, trees, old, &|share| progress(share / rounds))?;
    let mut known = Programs::learn(target, old, &stretches);
    let progress_of = |round: usize| move |share: f32| progress((round as f32 + share) / rounds);
    let cut_for = |takes: usize| {
        let far = takes >= WORTH && takes > target.len() / FAR;
        if far { choose::CUT_FAR } else { choose::CUT }
    };
    if known.is_empty() {
        // There is nothing to predict and nothing to compare with.
        let first = choose::choose(target, old, &stretches, choose::CUT, &progress_of(1))?;
        let chosen = match cut_for(programs::weigh(target, old, old, &first).1) {
            choose::CUT => first,
            cut => choose::choose(target, old, &stretches, cut, &progress_of(2))?,
        };
        return Ok((chosen, known));
    }
    let mut predicted = known.all_predicted(old, &stretches);
    let first = choose::choose(target, &predicted, &stretches, choose::CUT, &|_| {})?;
    let (saved, takes) = programs::weigh(target, old, &predicted, &first);
    if saved < takes / WORTH {
        // They would cost the device time for nothing.
        let cut = cut_for(takes);
        return Ok((choose::choose(target, old, &stretches, cut, &progress_of(1))?, Programs::none()));
    }
    for round in 1..=programs::ROUNDS {
        stretches = diff::diff(target, trees, &predicted, &progress_of(round))?;
        known = Programs::learn(target, old, &stretches);
        predicted = known.all_predicted(old, &stretches);
    }
    let last = progress_of(programs::ROUNDS + 1);
    Ok((choose::choose(target, &predicted, &stretches, choose::CUT, &last)?, known))
}

fn check(target: &[u8], sources: &[Source<'_>]) -> Result<(), EncodeError> {
    if target.len() as u64 > LEN_MAX {
        return Err(EncodeError::TooLarge("the target"));
    }
    for (number, source) in sources.iter().enumerate() {
        let twice = sources[..number].iter().any(|other| other.name == source.name);
        if twice || source.name.is_empty() || source.name.len() > 64 || number >= 16 {
            return Err(EncodeError::Name(source.name.into()));
        }
    }
    Ok(())
}

fn put_together(header: Header, trees: Vec<TreeInfo>, packed: &[pack::Packed]) -> Vec<u8> {
    let segments = packed.iter().map(|segment| SegmentInfo {
        start: 0,
        len: segment.len,
        at: 0,
        size: segment.bytes.len() as u64,
        digest: half(&Sha256::digest(&segment.bytes)),
    });
    let mut delta = Index { header, trees, segments: segments.collect() }.to_bytes();
    for segment in packed {
        delta.extend_from_slice(&segment.bytes);
    }
    delta
}

/// Decodes what was encoded.
fn verify(delta: &[u8], target: &[u8], sources: &[Source<'_>]) -> Result<(), EncodeError> {
    // The decoder owns its sources; here they are borrowed, so they are lent by number.
    let owned = sources.iter().map(|source| Box::new(source.bytes.to_vec()) as Box<dyn ReadAt + Send>);
    let made = Delta::open(delta).and_then(|delta| delta.target(owned.collect()));
    let mut made = made.map_err(EncodeError::Verify)?;
    let mut at = 0usize;
    let mut same = |part: &[u8]| {
        let end = at + part.len();
        let same = target.get(at..end) == Some(part);
        at = end;
        if same { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
    };
    made.verify(&mut same).map_err(EncodeError::Verify)
}

/// All sources in one address space, as the decoder sees them; what is between them is zeros that nobody refers to.
pub(crate) struct Old {
    bytes: Vec<u8>,
    /// Start and end of each source.
    ranges: Vec<(usize, usize)>,
}

impl Old {
    fn new(sources: &[Source<'_>]) -> Result<Self, EncodeError> {
        let lens: Vec<u64> = sources.iter().map(|source| source.bytes.len() as u64).collect();
        let bases = crate::format::source_bases(&lens);
        let mut old = Old { bytes: Vec::new(), ranges: Vec::new() };
        for (source, base) in sources.iter().zip(bases) {
            if base + source.bytes.len() as u64 >= u64::from(u32::MAX) {
                return Err(EncodeError::TooLarge("the old data"));
            }
            old.bytes.resize(base as usize, 0);
            old.bytes.extend_from_slice(source.bytes);
            old.ranges.push((base as usize, old.bytes.len()));
        }
        Ok(old)
    }

    /// Start and end of the source at `address`.
    fn range(&self, address: usize) -> (usize, usize) {
        self.ranges.iter().rev().find(|(start, _)| *start <= address).copied().unwrap_or((0, 0))
    }
}

/// The stretches, none of whose copies leads over the end of a source: the decoder reads each copy from one. Sources lie
/// side by side, so a copy that goes on may well come to the next one; what is between two is nobody's, and new data.
fn within_sources(stretches: Vec<Stretch>, old: &Old) -> Vec<Stretch> {
    let mut within = Vec::with_capacity(stretches.len());
    for mut stretch in stretches {
        while let Made::Copy(address) = stretch.made {
            let (_, high) = old.range(address);
            let behind = |(low, _): &&(usize, usize)| *low > address;
            let next = old.ranges.iter().find(behind).map_or(usize::MAX, |(low, _)| *low);
            let (made, border) = if address < high { (stretch.made, high) } else { (Made::Extra, next) };
            let end = stretch.start.saturating_add(border - address).min(stretch.end);
            within.push(Stretch { end, made, ..stretch });
            if end == stretch.end {
                break;
            }
            stretch = Stretch { start: end, made: Made::Copy(border), ..stretch };
        }
        if !matches!(stretch.made, Made::Copy(_)) {
            within.push(stretch);
        }
    }
    within
}

/// What makes a stretch of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// From old data at this address, with corrections.
    Copy(usize),
    /// From new data.
    Extra,
    /// Zeros, or anything where a tree lies over it.
    Zero,
}

/// A stretch of the target. All together make the target, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) made: Made,
}
