//! Stretches of the target as compressed segments.

use super::programs::{Programs, differ};
use super::threads::each;
use super::{EncodeError, Made, Old, Stretch};
use crate::code::Code;
use crate::format::{SEGMENT_OPS_MAX, put_number, zigzag};
use crate::segment::STREAMS;
use lzma_rust2::{EncodeMode, LzmaOptions, LzmaWriter, MfType};
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;

/// Streams up to this length are compressed in all the ways that [`WAYS`] has, longer ones only in the first.
const SHORT: usize = 1 << 20;
/// New data shorter than this is taken as it is.
const CODE: usize = 256;
/// LZMA's literal context bits, literal position bits and position bits.
const WAYS: [(u32, u32, u32); 6] = [(3, 0, 2), (3, 0, 0), (0, 0, 0), (4, 0, 0), (0, 2, 2), (1, 0, 0)];

/// A segment as it lies in the delta.
pub(crate) struct Packed {
    /// Length in the target.
    pub(crate) len: u64,
    pub(crate) bytes: Vec<u8>,
    /// Compressed bytes by stream.
    pub(crate) streams: [u64; STREAMS],
}

/// A segment's streams before they are compressed.
#[derive(Default)]
struct Raw {
    len: usize,
    ops: usize,
    /// Where old data goes on after the last copy.
    old: i64,
    /// Copied bytes since the last correction.
    gap: u64,
    /// Programs that copies come from, and how much is told of them.
    programs: BTreeSet<usize>,
    told: usize,
    streams: [Vec<u8>; STREAMS],
}

impl Raw {
    fn size(&self) -> usize {
        self.streams.iter().map(Vec::len).sum::<usize>() + self.told
    }

    fn push_len(&mut self, len: usize, kind: u64) {
        self.len += len;
        self.ops += 1;
        put_number(&mut self.streams[0], (len as u64) << 2 | kind);
    }

    /// Adds as much of the stretch as fits; returns how much that was: nothing when that takes a new segment.
    fn push(&mut self, from: &From<'_>, stretch: &Stretch, most: usize) -> usize {
        let From { target, old, .. } = *from;
        let len = stretch.end - stretch.start;
        match stretch.made {
            Made::Zero => self.push_len(len, 2),
            Made::Extra => {
                let len = len.min(most.saturating_sub(self.size()).max(1));
                self.push_len(len, 1);
                self.streams[5].extend_from_slice(&target[stretch.start..stretch.start + len]);
                return len;
            }
            Made::Copy(address) => {
                let to = &target[stretch.start..stretch.end];
                let plain = &old.bytes[address..address + len];
                let predicted = from.predicted(address, stretch);
                if let Some((_, numbers)) = &predicted
                    && !self.tell(from.programs, numbers, most)
                {
                    return 0;
                }
                put_number(&mut self.streams[1], zigzag(address as i64 - self.old));
                let (from, kind) = match &predicted {
                    Some((predicted, _)) => (predicted.as_slice(), 3),
                    None => (plain, 0),
                };
                let mut done = 0;
                // Corrections are few: pass over what is equal as fast as it goes.
                while done < len && self.size() < most {
                    let same = super::blocks::common_prefix(&from[done..], &to[done..]);
                    done += same;
                    self.gap += same as u64;
                    if done < len {
                        put_number(&mut self.streams[3], self.gap);
                        self.streams[4].push(to[done].wrapping_sub(from[done]));
                        self.gap = 0;
                        done += 1;
                    }
                }
                self.push_len(done, kind);
                self.old = (address + done) as i64;
                return done;
            }
        }
        len
    }
}

impl Raw {
    /// Adds programs to those that are told of; false when they do not fit any more.
    fn tell(&mut self, programs: &Programs, numbers: &Range<usize>, most: usize) -> bool {
        let new = || numbers.clone().filter(|number| !self.programs.contains(number));
        let more: usize = new().map(|number| programs.get(number).size).sum();
        let fits = programs.fit(self.programs.iter().copied().chain(new()));
        if self.len > 0 && more > 0 && (!fits || self.size() + more >= most) {
            return false;
        }
        self.programs.extend(numbers.clone());
        self.told += more;
        true
    }
}

/// What stretches are made from.
struct From<'a> {
    target: &'a [u8],
    old: &'a Old,
    programs: &'a Programs,
}

impl From<'_> {
    /// What a copy becomes when its references are predicted, and the programs that it is from; none when that does not
    /// help.
    fn predicted(&self, address: usize, stretch: &Stretch) -> Option<(Vec<u8>, Range<usize>)> {
        let len = stretch.end - stretch.start;
        let numbers = self.programs.within(address, len);
        let (plain, to) = (&self.old.bytes[address..address + len], &self.target[stretch.start..stretch.end]);
        if numbers.is_empty() || plain == to || !self.programs.fit(numbers.clone()) {
            return None;
        }
        let predicted =
            self.programs.predicted(self.old, address, stretch.start as i64 - address as i64, len);
        (differ(&predicted, to) < differ(plain, to)).then_some((predicted, numbers))
    }
}

/// How segments are cut.
#[derive(Clone, Copy)]
pub(crate) struct How {
    /// Every segment makes the same length.
    pub(crate) full: bool,
    /// Uncompressed bytes of streams at which a segment ends.
    pub(crate) streams: usize,
}

/// Segments from stretches.
pub(crate) fn pack(
    target: &[u8],
    old: &Old,
    stretches: &[Stretch],
    programs: &Programs,
    how: How,
    progress: &(dyn Fn(f32) + Sync),
) -> Result<Vec<Packed>, EncodeError> {
    let from = From { target, old, programs };
    let mut raws = vec![Raw::default()];
    for stretch in stretches {
        let mut stretch = *stretch;
        while stretch.start < stretch.end {
            let Some(raw) = raws.last_mut() else { break };
            let full = raw.size() >= how.streams || (how.full && raw.len >= how.streams);
            if full || raw.ops + 1 >= SEGMENT_OPS_MAX {
                raws.push(Raw::default());
                continue;
            }
            let done = raw.push(&from, &stretch, how.streams);
            if done == 0 {
                raws.push(Raw::default());
                continue;
            }
            stretch.start += done;
            if let Made::Copy(address) = &mut stretch.made {
                *address += done;
            }
        }
    }
    raws.retain(|raw| raw.len > 0);
    for raw in &mut raws {
        raw.streams[2] = programs.together(raw.programs.iter().copied()).to_bytes();
    }
    compress_all(&raws, progress)
}

fn compress_all(raws: &[Raw], progress: &(dyn Fn(f32) + Sync)) -> Result<Vec<Packed>, EncodeError> {
    let jobs: Vec<(usize, usize)> =
        (0..raws.len()).flat_map(|raw| (0..STREAMS).map(move |stream| (raw, stream))).collect();
    let done = each(jobs.len(), |number| {
        let (raw, stream) = jobs[number];
        let compressed = compress(&raws[raw].streams[stream], stream + 1 == STREAMS);
        progress(number as f32 / jobs.len() as f32);
        compressed
    })?;
    let mut packed = Vec::new();
    let mut done = done.into_iter();
    for raw in raws {
        let mut head = Vec::new();
        let mut body = Vec::new();
        let mut streams = [0; STREAMS];
        let mut new_data = Code::Plain;
        for (number, stream) in done.by_ref().take(STREAMS).enumerate() {
            let Stream { method, code, bytes } = stream.map_err(EncodeError::Compress)?;
            new_data = code;
            head.push(method);
            put_number(&mut head, raw.streams[number].len() as u64);
            put_number(&mut head, bytes.len() as u64);
            streams[number] = bytes.len() as u64;
            body.extend_from_slice(&bytes);
        }
        head.push(new_data as u8);
        let mut bytes = vec![head.len() as u8];
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&body);
        packed.push(Packed { len: raw.len as u64, bytes, streams });
    }
    Ok(packed)
}

/// A compressed stream.
struct Stream {
    method: u8,
    code: Code,
    bytes: Vec<u8>,
}

/// The shortest form of a stream.
fn compress(raw: &[u8], new_data: bool) -> std::io::Result<Stream> {
    let code = if new_data && raw.len() >= CODE { code(raw)? } else { Code::Plain };
    let mut changed = raw.to_vec();
    code.apply(&mut changed);
    let mut best = Stream { method: 0, code: Code::Plain, bytes: raw.to_vec() };
    let ways = if raw.len() < SHORT { WAYS.len() } else { 1 };
    for way in WAYS.into_iter().take(ways) {
        if raw.is_empty() {
            break;
        }
        let (props, bytes) = lzma(&changed, way, (EncodeMode::Normal, 273, MfType::Bt4))?;
        if bytes.len() < best.bytes.len() {
            best = Stream { method: props + 1, code, bytes };
        }
    }
    Ok(best)
}

/// What new data mostly is: the code that leaves the least to a fast compressor.
fn code(raw: &[u8]) -> std::io::Result<Code> {
    let mut best = (usize::MAX, Code::Plain);
    for code in Code::ALL {
        let mut changed = raw.to_vec();
        code.apply(&mut changed);
        let size = lzma(&changed, WAYS[0], (EncodeMode::Fast, 32, MfType::Hc4))?.1.len();
        if size < best.0 {
            best = (size, code);
        }
    }
    Ok(best.1)
}

fn lzma(
    bytes: &[u8],
    (lc, lp, pb): (u32, u32, u32),
    (mode, nice, finder): (EncodeMode, u32, MfType),
) -> std::io::Result<(u8, Vec<u8>)> {
    let dictionary = (bytes.len() as u32).next_power_of_two().max(4096);
    let options = LzmaOptions::new(dictionary, lc, lp, pb, mode, nice, finder, 0);
    let mut writer = LzmaWriter::new_no_header(Vec::new(), &options, false)?;
    writer.write_all(bytes)?;
    Ok((options.get_props(), writer.finish()?))
}
