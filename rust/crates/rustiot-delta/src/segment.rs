//! A segment: a part of the target as copies from old data with corrections, new data, and zeros. Decompressed as a
//! whole, then read at any offset.

use crate::code::Code;
use crate::format::{Reader, SEGMENT_OPS_MAX, unzigzag};
use crate::reference::References;
use crate::target::Sources;
use crate::{Error, Part, lzma};
use std::io::{self, Read};

/// Streams of a segment, in this order.
pub(crate) const STREAMS: usize = 6;

/// What an operation makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Old data from an address on, with corrections.
    Copy,
    /// The same, where what it refers to is predicted before it is corrected.
    Moved,
    /// New data.
    Extra,
    /// Zeros.
    Zero,
}

#[derive(Clone, Copy, Debug)]
struct Op {
    /// Start in the segment.
    start: u64,
    kind: Kind,
    /// Address of old data, or offset of new data.
    from: u64,
    /// The corrections from here on.
    fixes: Fixes,
}

/// A place in the streams of corrections.
#[derive(Clone, Copy, Debug)]
struct Fixes {
    /// Copied bytes in front of the next correction; `u64::MAX` when there is none.
    gap: u64,
    /// The next gap in its stream.
    gap_at: u32,
    /// The next value in its stream.
    value_at: u32,
}

/// A place in the target and all that belongs to it.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    offset: u64,
    op: usize,
    fixes: Fixes,
}

/// A segment in memory.
pub(crate) struct Segment {
    /// Start in the target.
    start: u64,
    len: u64,
    ops: Vec<Op>,
    gaps: Vec<u8>,
    values: Vec<u8>,
    extra: Vec<u8>,
    references: References,
    cursor: Option<Cursor>,
}

impl Segment {
    /// Reads a segment that makes `len` bytes of the target from `start` on and whose streams have at most `most`.
    pub(crate) fn parse(
        bytes: &mut dyn Read,
        start: u64,
        len: u64,
        most: u64,
        number: usize,
    ) -> Result<Self, Error> {
        let part = Part::Segment(number);
        let damaged = |what| Error::Damaged { part, what };
        let [lens, seeks, references, gaps, values, extra] = streams(bytes, most)
            .map_err(|_| damaged("its streams cannot be decompressed"))?
            .ok_or(Error::TooLarge { part, what: "its streams" })?;
        let references = References::parse(&references).ok_or(damaged("its references make no sense"))?;
        let references = references.map_err(|what| Error::TooLarge { part, what })?;
        let mut segment =
            Segment { start, len, ops: Vec::new(), gaps, values, extra, references, cursor: None };
        segment.read_ops(&lens, &seeks).ok_or(damaged("its operations make no sense"))?;
        if segment.ops.len() > SEGMENT_OPS_MAX {
            return Err(Error::TooLarge { part, what: "the number of its operations" });
        }
        Ok(segment)
    }

    /// Fills the list of operations. `None` when they do not make exactly the segment from exactly the streams.
    fn read_ops(&mut self, lens: &[u8], seeks: &[u8]) -> Option<()> {
        let (mut lens, mut seeks) = (Reader::new(lens), Reader::new(seeks));
        let (mut start, mut old, mut extra) = (0u64, 0u64, 0u64);
        let mut fixes = self.first_fix()?;
        while lens.left() > 0 {
            if self.ops.len() > SEGMENT_OPS_MAX {
                return Some(());
            }
            let word = lens.number()?;
            let (len, kind) = (word >> 2, word & 3);
            let (kind, from) = match kind {
                0 | 3 => {
                    old = old.checked_add_signed(unzigzag(seeks.number()?))?;
                    (if kind == 0 { Kind::Copy } else { Kind::Moved }, old)
                }
                1 => (Kind::Extra, extra),
                2 => (Kind::Zero, 0),
                _ => return None,
            };
            if len == 0 {
                return None;
            }
            self.ops.push(Op { start, kind, from, fixes });
            start = start.checked_add(len)?;
            match kind {
                Kind::Copy | Kind::Moved => {
                    old = old.checked_add(len)?;
                    fixes = self.skip(fixes, len)?;
                }
                Kind::Extra => extra = extra.checked_add(len)?,
                Kind::Zero => {}
            }
        }
        let whole = start == self.len && extra == self.extra.len() as u64 && seeks.left() == 0;
        let used = fixes.gap == u64::MAX && fixes.value_at as usize == self.values.len();
        (whole && used).then_some(())
    }

    fn first_fix(&self) -> Option<Fixes> {
        self.next_fix(Fixes { gap: 0, gap_at: 0, value_at: 0 })
    }

    /// The gap in front of the next correction.
    fn next_fix(&self, fixes: Fixes) -> Option<Fixes> {
        let rest = self.gaps.get(fixes.gap_at as usize..)?;
        if rest.is_empty() {
            return Some(Fixes { gap: u64::MAX, ..fixes });
        }
        let mut reader = Reader::new(rest);
        let gap = reader.number()?;
        let used = rest.len().checked_sub(reader.left())?;
        Some(Fixes { gap, gap_at: fixes.gap_at.checked_add(u32::try_from(used).ok()?)?, ..fixes })
    }

    /// Passes over `len` copied bytes.
    fn skip(&self, mut fixes: Fixes, mut len: u64) -> Option<Fixes> {
        while fixes.gap != u64::MAX && fixes.gap < len {
            len -= fixes.gap + 1;
            self.values.get(fixes.value_at as usize)?;
            fixes.value_at = fixes.value_at.checked_add(1)?;
            fixes = self.next_fix(fixes)?;
        }
        if fixes.gap != u64::MAX {
            fixes.gap -= len;
        }
        Some(fixes)
    }

    /// Fills `buf` from `offset` of the segment on; returns how much came from the sources.
    pub(crate) fn read(
        &mut self,
        offset: u64,
        buf: &mut [u8],
        sources: &Sources,
        number: usize,
    ) -> Result<u64, Error> {
        let broken = Error::Damaged { part: Part::Segment(number), what: "an operation leads nowhere" };
        let Some(mut cursor) = self.find(offset) else { return Err(broken) };
        let mut reused = 0u64;
        let mut rest = buf;
        while !rest.is_empty() {
            let end = self.ops.get(cursor.op.saturating_add(1)).map_or(self.len, |next| next.start);
            let Some(op) = self.ops.get(cursor.op).filter(|_| cursor.offset < end) else {
                return Err(broken);
            };
            let within = cursor.offset.saturating_sub(op.start);
            let now = usize::try_from(end - cursor.offset).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(now);
            match op.kind {
                Kind::Zero => part.fill(0),
                Kind::Extra => {
                    let start = usize::try_from(op.from.saturating_add(within)).unwrap_or(usize::MAX);
                    let from = self.extra.get(start..).and_then(|extra| extra.get(..now));
                    let Some(from) = from else { return Err(broken) };
                    part.copy_from_slice(from);
                }
                Kind::Copy | Kind::Moved => {
                    let from = op.from.saturating_add(within);
                    if !sources.read(from, part)? {
                        return Err(broken);
                    }
                    if op.kind == Kind::Moved {
                        let by = (self.start.wrapping_add(op.start) as i64).wrapping_sub(op.from as i64);
                        self.references
                            .predict(from, by, part, &mut |at, window| sources.read(at, window))?;
                    }
                    match self.fix(cursor.fixes, part) {
                        Some(fixes) => cursor.fixes = fixes,
                        None => return Err(broken),
                    }
                    reused = reused.saturating_add(now as u64);
                }
            }
            cursor.offset = cursor.offset.saturating_add(now as u64);
            if cursor.offset == end {
                cursor.op = cursor.op.saturating_add(1);
            }
            rest = after;
        }
        self.cursor = Some(cursor);
        Ok(reused)
    }

    /// The cursor at `offset`.
    fn find(&self, offset: u64) -> Option<Cursor> {
        if let Some(cursor) = self.cursor.filter(|cursor| cursor.offset == offset) {
            return Some(cursor);
        }
        let number = self.ops.partition_point(|op| op.start <= offset).checked_sub(1)?;
        let op = self.ops.get(number)?;
        let fixes = match op.kind {
            Kind::Copy | Kind::Moved => self.skip(op.fixes, offset - op.start)?,
            _ => op.fixes,
        };
        Some(Cursor { offset, op: number, fixes })
    }

    /// Corrects copied bytes.
    fn fix(&self, mut fixes: Fixes, part: &mut [u8]) -> Option<Fixes> {
        let mut rest = part;
        while fixes.gap < rest.len() as u64 {
            let (byte, after) = rest.split_at_mut(fixes.gap as usize).1.split_first_mut()?;
            *byte = byte.wrapping_add(*self.values.get(fixes.value_at as usize)?);
            fixes.value_at = fixes.value_at.checked_add(1)?;
            fixes = self.next_fix(fixes)?;
            rest = after;
        }
        if fixes.gap != u64::MAX {
            fixes.gap -= rest.len() as u64;
        }
        Some(fixes)
    }
}

/// Reads and decompresses the streams; `Ok(None)` when they would be too large.
fn streams(bytes: &mut dyn Read, most: u64) -> io::Result<Option<[Vec<u8>; STREAMS]>> {
    let mut head_len = [0];
    bytes.read_exact(&mut head_len)?;
    let mut head = vec![0; usize::from(head_len[0])];
    bytes.read_exact(&mut head)?;
    let mut head = Reader::new(&head);
    let mut infos = [(0u8, 0u64, 0u64); STREAMS];
    let mut sum = 0u64;
    for info in &mut infos {
        let read = || Some((head.byte()?, head.number()?, head.number()?));
        *info = { read }().ok_or(io::ErrorKind::InvalidData)?;
        sum = sum.saturating_add(info.1);
    }
    if sum > most {
        return Ok(None);
    }
    let code = head.byte().and_then(|code| Code::ALL.get(usize::from(code)));
    let code = code.filter(|_| head.left() == 0).ok_or(io::ErrorKind::InvalidData)?;
    let mut streams = <[Vec<u8>; STREAMS]>::default();
    for (stream, (method, raw, size)) in streams.iter_mut().zip(infos) {
        *stream = decompress(&mut (&mut *bytes).take(size), method, raw)?;
    }
    if let Some(extra) = streams.last_mut() {
        code.undo(extra);
    }
    Ok(Some(streams))
}

/// `method`: 0 as it is, else LZMA's properties byte plus one.
fn decompress<R: Read>(bytes: &mut io::Take<R>, method: u8, raw: u64) -> io::Result<Vec<u8>> {
    let mut out = vec![0; usize::try_from(raw).map_err(|_| io::ErrorKind::InvalidData)?];
    match method.checked_sub(1) {
        None => bytes.read_exact(&mut out)?,
        Some(props) => {
            let size = bytes.limit();
            lzma::decode(bytes, size, props, &mut out)?;
        }
    }
    if bytes.limit() > 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: u64 = 8 << 20;

    fn segment(streams: [&[u8]; STREAMS]) -> Vec<u8> {
        let mut head = Vec::new();
        for stream in streams {
            head.push(0);
            crate::format::put_number(&mut head, stream.len() as u64);
            crate::format::put_number(&mut head, stream.len() as u64);
        }
        head.push(0);
        [vec![head.len() as u8], head, streams.concat()].concat()
    }

    #[test]
    fn streams_that_are_too_large_are_refused_before_they_are_made() {
        let mut head = Vec::new();
        for _ in 0..STREAMS {
            head.push(1);
            crate::format::put_number(&mut head, MOST);
            crate::format::put_number(&mut head, 100);
        }
        let bytes = [vec![head.len() as u8], head].concat();
        let made = Segment::parse(&mut bytes.as_slice(), 0, 5, MOST, 0).map(drop);
        assert!(matches!(made, Err(Error::TooLarge { .. })));
    }

    #[test]
    fn streams_must_be_used_up() {
        // Two bytes of new data, three of zeros.
        assert!(
            Segment::parse(&mut segment([&[9, 14], &[], &[], &[], &[], &[1, 2]]).as_slice(), 0, 5, MOST, 0)
                .is_ok()
        );
        for (streams, len) in [
            ([&[9u8, 14][..], &[], &[], &[], &[], &[1, 2, 3]], 5),
            ([&[9, 14], &[], &[], &[], &[], &[1, 2]], 6),
            ([&[9, 14], &[0], &[], &[], &[], &[1, 2]], 5),
            ([&[9, 14], &[], &[0], &[], &[], &[1, 2]], 5),
            ([&[9, 14], &[], &[], &[0], &[0], &[1, 2]], 5),
            ([&[9, 15], &[], &[], &[], &[], &[1, 2]], 5),
            ([&[9, 14, 2], &[], &[], &[], &[], &[1, 2]], 5),
        ] {
            let made = Segment::parse(&mut segment(streams).as_slice(), 0, len, MOST, 0).map(drop);
            assert!(matches!(made, Err(Error::Damaged { .. })));
        }
    }

    proptest! {
        #[test]
        fn any_streams_are_an_error_or_a_segment(
            lens in prop::collection::vec(any::<u8>(), 0..12),
            seeks in prop::collection::vec(any::<u8>(), 0..6),
            references in prop::collection::vec(any::<u8>(), 0..30),
            gaps in prop::collection::vec(0..20u8, 0..6),
            values: [u8; 4],
            extra: [u8; 4],
            len in 0..60u64,
        ) {
            let bytes = segment([&lens, &seeks, &references, &gaps, &values, &extra]);
            if let Ok(mut segment) = Segment::parse(&mut bytes.as_slice(), 0, len, MOST, 0) {
                let mut buf = vec![0; len as usize];
                let _ = segment.read(0, &mut buf, &Sources::none(), 0);
            }
        }

        #[test]
        fn any_bytes_are_an_error_or_a_segment(bytes: Vec<u8>, len in 0..1000u64) {
            let _ = Segment::parse(&mut bytes.as_slice(), 0, len, MOST, 0);
        }
    }
}
