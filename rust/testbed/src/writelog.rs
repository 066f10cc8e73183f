//! What a disk with a volatile write cache holds after a power cut: reads the log that QEMU's
//! `blklogwrites` driver keeps of every write and flush, and rebuilds the disk as of any instant,
//! with writes that no flush had covered kept, lost or torn by a seed.
//!
//! The format is that of Linux' dm-log-writes (`Documentation/admin-guide/device-mapper/
//! log-writes.rst`): a superblock in the first sector, then for each write one sector of header
//! and its data. QEMU logs a write or flush after it has completed, so a logged flush covers
//! everything before it. Never trusts the log: every number in it is checked.

use crate::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// The disk sector: what a drive writes whole or not at all. Bytes.
const SECTOR: u64 = 512;
/// Bytes copied at once when a disk is rebuilt.
const CHUNK: u64 = 1 << 20;

/// One write, discard or flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where on the disk, bytes.
    pub offset: u64,
    /// How much of the disk, bytes; 0 for a mere flush.
    pub bytes: u64,
    /// Where its data is in the log, bytes; `None` for a discard (the disk then reads zero).
    pub data: Option<u64>,
    /// Everything before this entry is on the medium.
    pub flush: bool,
    /// This write itself is on the medium (force unit access).
    pub durable: bool,
}

/// Everything that a machine wrote, in the order in which it was completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteLog {
    entries: Vec<Entry>,
}

/// A stretch of the disk that a power cut leaves written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where on the disk, bytes.
    pub offset: u64,
    /// How much, bytes.
    pub bytes: u64,
    /// Where its data is in the log, bytes; `None` for zeroes.
    pub data: Option<u64>,
}

impl WriteLog {
    /// Reads the log's headers. The log may end anywhere, as it does when QEMU was killed: an
    /// entry whose data is not all there did not happen.
    pub fn parse(log: &mut (impl Read + Seek)) -> Result<Self> {
        let end = log.seek(SeekFrom::End(0)).map_err(Error::io("seek in", "write log"))?;
        let bad = |offset, problem| Error::WriteLog { offset, problem };
        let first = read_words(log, 0, end)?.ok_or(bad(0, "no superblock"))?;
        let [magic, version, _count, sector_bytes] = first;
        if magic != MAGIC {
            return Err(bad(0, "wrong magic number"));
        }
        if version != 1 {
            return Err(bad(8, "unknown version"));
        }
        // Only the low half is the sector size; the rest of the sector is undefined.
        let sector = sector_bytes & 0xffff_ffff;
        if !sector.is_power_of_two() || !(SECTOR..=65536).contains(&sector) {
            return Err(bad(24, "impossible sector size"));
        }
        let mut entries = Vec::new();
        let mut at = sector;
        // The superblock counts entries only up to the last flush: go on to the log's own end.
        while let Some([start, sectors, flags, data_bytes]) = read_words(log, at, end)? {
            if [start, sectors, flags, data_bytes] == [0; 4] {
                break;
            }
            let too_big = || bad(at, "an entry beyond any disk");
            let offset = start.checked_mul(sector).ok_or_else(too_big)?;
            let bytes = sectors.checked_mul(sector).ok_or_else(too_big)?;
            offset.checked_add(bytes).filter(|end| *end < 1 << 60).ok_or_else(too_big)?;
            if flags & !(FLUSH | FUA | DISCARD | MARK) != 0 {
                return Err(bad(at, "unknown flags"));
            }
            let header_end = at.checked_add(sector).ok_or_else(too_big)?;
            let has_data = bytes > 0 && flags & (DISCARD | MARK) == 0;
            let follows = if flags & MARK != 0 {
                data_bytes
            } else if has_data {
                bytes
            } else {
                0
            };
            let next = header_end
                .checked_add(follows)
                .and_then(|next| next.checked_next_multiple_of(sector))
                .ok_or_else(too_big)?;
            if next > end {
                break;
            }
            if flags & MARK == 0 {
                entries.push(Entry {
                    offset,
                    bytes,
                    data: has_data.then_some(header_end),
                    flush: flags & FLUSH != 0,
                    durable: flags & FUA != 0,
                });
            }
            at = next;
        }
        Ok(WriteLog { entries })
    }

    /// Reads the log in a file.
    pub fn open(path: &Path) -> Result<Self> {
        WriteLog::parse(&mut File::open(path).map_err(Error::io("open", path))?)
    }

    /// What was written, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many entries there are: a cut may fall after 0 ..= this many.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is on the medium if the power goes after the first `at` entries. Writes before the
    /// last flush are there; of later ones `seed` chooses: all, nothing, or some sectors.
    pub fn cut(&self, at: usize, seed: u64) -> Vec<Piece> {
        let done = self.entries.get(..at).unwrap_or(&self.entries);
        let flushed = done.iter().rposition(|entry| entry.flush).map_or(0, |i| i.saturating_add(1));
        let mut random = Random(seed);
        let mut pieces = Vec::new();
        for (index, entry) in done.iter().enumerate().filter(|(_, entry)| entry.bytes > 0) {
            let whole = Piece { offset: entry.offset, bytes: entry.bytes, data: entry.data };
            if index < flushed || entry.durable {
                pieces.push(whole);
                continue;
            }
            match random.next() % 5 {
                0 | 1 => {}
                2 | 3 => pieces.push(whole),
                _ => {
                    let sectors = (0..entry.bytes).step_by(512).filter(|_| random.next().is_multiple_of(2));
                    pieces.extend(sectors.map(|skip| Piece {
                        offset: entry.offset.saturating_add(skip),
                        bytes: SECTOR,
                        data: entry.data.map(|data| data.saturating_add(skip)),
                    }));
                }
            }
        }
        pieces
    }
}

/// Writes the pieces of a cut onto `disk`, which must hold what it held when the log began.
pub fn apply(pieces: &[Piece], log: &Path, disk: &Path) -> Result<()> {
    let source = File::open(log).map_err(Error::io("open", log))?;
    let target = File::options().write(true).open(disk).map_err(Error::io("open for writing", disk))?;
    let mut buffer = Vec::new();
    for piece in pieces {
        let mut done = 0;
        while done < piece.bytes {
            let n = CHUNK.min(piece.bytes.saturating_sub(done));
            buffer.clear();
            buffer.resize(usize::try_from(n).unwrap_or(usize::MAX), 0);
            if let Some(data) = piece.data {
                source
                    .read_exact_at(&mut buffer, data.saturating_add(done))
                    .map_err(Error::io("read", log))?;
            }
            target
                .write_all_at(&buffer, piece.offset.saturating_add(done))
                .map_err(Error::io("write", disk))?;
            done = done.saturating_add(n);
        }
    }
    Ok(())
}

/// Four little-endian words at `at`, or `None` beyond the end.
fn read_words(log: &mut (impl Read + Seek), at: u64, end: u64) -> Result<Option<[u64; 4]>> {
    if at.checked_add(32).is_none_or(|last| last > end) {
        return Ok(None);
    }
    let mut bytes = [0u8; 32];
    log.seek(SeekFrom::Start(at)).map_err(Error::io("seek in", "write log"))?;
    log.read_exact(&mut bytes).map_err(Error::io("read", "write log"))?;
    let mut words = [0u64; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    Ok(Some(words))
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 for a bound of 0).
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// Sectors of the model disk.
    const DISK: u64 = 24;

    #[derive(Debug, Clone)]
    enum Op {
        Write { sector: u64, sectors: u64, fill: u8, fua: bool },
        Discard { sector: u64, sectors: u64 },
        Flush,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let place = (0..DISK - 4, 1u64..=4);
        let op = prop_oneof![
            6 => (place.clone(), 1u8.., any::<bool>()).prop_map(|((sector, sectors), fill, fua)| {
                Op::Write { sector, sectors, fill, fua }
            }),
            1 => place.prop_map(|(sector, sectors)| Op::Discard { sector, sectors }),
            2 => Just(Op::Flush),
        ];
        proptest::collection::vec(op, 0..20)
    }

    /// A log as QEMU writes it, with sectors of `size` bytes (disk sectors stay 512: one each).
    fn log(ops: &[Op]) -> Vec<u8> {
        let words = |words: [u64; 4]| {
            let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            sector.resize(512, 0);
            sector
        };
        let mut bytes = words([MAGIC, 1, ops.len() as u64, 512]);
        for op in ops {
            match *op {
                Op::Write { sector, sectors, fill, fua } => {
                    let flags = if fua { FUA } else { 0 };
                    bytes.extend(words([sector, sectors, flags, sectors * 512]));
                    bytes.extend(vec![fill; sectors as usize * 512]);
                }
                Op::Discard { sector, sectors } => {
                    bytes.extend(words([sector, sectors, DISCARD, 0]));
                }
                Op::Flush => bytes.extend(words([0, 0, FLUSH, 0])),
            }
        }
        bytes
    }

    fn paint(disk: &mut [u8], op: &Op) {
        let (sector, sectors, fill) = match *op {
            Op::Write { sector, sectors, fill, .. } => (sector, sectors, fill),
            Op::Discard { sector, sectors } => (sector, sectors, 0),
            Op::Flush => return,
        };
        disk[sector as usize..][..sectors as usize].fill(fill);
    }

    /// The model disk keeps one byte a sector.
    fn rebuild(pieces: &[Piece], log: &[u8]) -> Vec<u8> {
        let mut disk = vec![0u8; DISK as usize];
        for piece in pieces {
            for i in 0..piece.bytes / 512 {
                let byte = piece.data.map_or(0, |data| log[(data + i * 512) as usize]);
                disk[(piece.offset / 512 + i) as usize] = byte;
            }
        }
        disk
    }

    proptest! {
        #[test]
        fn a_cut_after_a_flush_keeps_everything(mut ops in ops(), seed: u64) {
            ops.push(Op::Flush);
            let bytes = log(&ops);
            let parsed = WriteLog::parse(&mut Cursor::new(&bytes)).unwrap();
            prop_assert_eq!(parsed.len(), ops.len());
            let mut expected = vec![0u8; DISK as usize];
            ops.iter().for_each(|op| paint(&mut expected, op));
            prop_assert_eq!(rebuild(&parsed.cut(ops.len(), seed), &bytes), expected);
        }

        #[test]
        fn every_sector_holds_what_was_flushed_or_something_later(
            ops in ops(), at in 0usize..20, seed: u64,
        ) {
            let at = at.min(ops.len());
            let bytes = log(&ops);
            let parsed = WriteLog::parse(&mut Cursor::new(&bytes)).unwrap();
            let disk = rebuild(&parsed.cut(at, seed), &bytes);
            let flushed =
                ops[..at].iter().rposition(|op| matches!(op, Op::Flush)).map_or(0, |i| i + 1);
            let mut allowed = vec![vec![0u8]; DISK as usize];
            let mut now = vec![0u8; DISK as usize];
            for (index, op) in ops[..at].iter().enumerate() {
                paint(&mut now, op);
                let forced = index < flushed || matches!(op, Op::Write { fua: true, .. });
                for (sector, value) in now.iter().enumerate() {
                    let touched = match *op {
                        Op::Write { sector: s, sectors, .. } | Op::Discard { sector: s, sectors } =>
                            (s..s + sectors).contains(&(sector as u64)),
                        Op::Flush => false,
                    };
                    if touched && forced {
                        allowed[sector] = vec![*value];
                    } else if touched {
                        allowed[sector].push(*value);
                    }
                }
            }
            for (value, allowed) in disk.iter().zip(&allowed) {
                prop_assert!(allowed.contains(value), "{value} not in {allowed:?}");
            }
        }

        #[test]
        fn the_same_seed_cuts_the_same(ops in ops(), at in 0usize..20, seed: u64) {
            let parsed = WriteLog::parse(&mut Cursor::new(log(&ops))).unwrap();
            prop_assert_eq!(parsed.cut(at, seed), parsed.cut(at, seed));
        }

        #[test]
        fn a_log_that_ends_anywhere_loses_only_its_last_entry(ops in ops(), lost in 0usize..4096) {
            let bytes = log(&ops);
            let keep = bytes.len().saturating_sub(lost).max(512);
            let whole = WriteLog::parse(&mut Cursor::new(&bytes)).unwrap();
            let part = WriteLog::parse(&mut Cursor::new(&bytes[..keep])).unwrap();
            prop_assert_eq!(part.entries(), &whole.entries()[..part.len()]);
            prop_assert!(lost > 0 || part.len() == whole.len());
        }

        #[test]
        fn random_bytes_are_parsed_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), super_ok: bool,
        ) {
            if super_ok && bytes.len() >= 32 {
                let good = log(&[]);
                bytes[..32].copy_from_slice(&good[..32]);
            }
            if let Ok(parsed) = WriteLog::parse(&mut Cursor::new(&bytes)) {
                let _ = parsed.cut(parsed.len(), 1);
            }
        }
    }

    #[test]
    fn all_three_fates_of_an_unflushed_write_occur() {
        let bytes = log(&[Op::Write { sector: 0, sectors: 4, fill: 7, fua: false }]);
        let parsed = WriteLog::parse(&mut Cursor::new(&bytes)).unwrap();
        let written = |seed| rebuild(&parsed.cut(1, seed), &bytes).iter().filter(|b| **b == 7).count();
        let fates: std::collections::BTreeSet<usize> = (0..200).map(written).collect();
        assert_eq!(fates, (0..=4).collect());
    }

    #[test]
    fn a_file_that_is_no_log_is_refused_with_the_place() {
        let error = WriteLog::parse(&mut Cursor::new(vec![1u8; 4096])).unwrap_err();
        assert_eq!(error.to_string(), "write log, byte 0: wrong magic number");
    }

    #[test]
    fn pieces_are_written_to_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (log_path, disk) = (dir.path().join("log"), dir.path().join("disk"));
        let bytes = log(&[
            Op::Write { sector: 1, sectors: 2, fill: 9, fua: false },
            Op::Discard { sector: 2, sectors: 1 },
            Op::Flush,
        ]);
        std::fs::write(&log_path, bytes).unwrap();
        std::fs::write(&disk, vec![5u8; 4 * 512]).unwrap();
        let parsed = WriteLog::open(&log_path).unwrap();
        apply(&parsed.cut(3, 0), &log_path, &disk).unwrap();
        let after = std::fs::read(&disk).unwrap();
        let sectors: Vec<u8> = after.chunks(512).map(|sector| sector[0]).collect();
        assert_eq!(sectors, [5, 9, 0, 5]);
    }
}
