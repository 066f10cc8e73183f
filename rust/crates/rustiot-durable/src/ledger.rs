//! A small state in two copies: whatever happens during a write, one copy is whole.
//!
//! A copy is `<name>.0` or `<name>.1`; the newest valid one counts, the other one is written next, so the newest is
//! never touched. Never interprets the payload. Called by `rustiot-slots` (the boot ledger) and provisioning.
//!
//! A frame, all numbers little-endian: magic `RIOTLDG1`, generation `u64`, payload length `u32`, CRC-32 (IEEE) `u32`
//! over all other bytes, payload. What follows it does not count: files are made longer than they need be and then
//! written in place, so that a full file system does not stop the ledger.

use std::io;

use crate::storage::{Dir, Storage};

const MAGIC: [u8; 8] = *b"RIOTLDG1";
/// Bytes before the payload.
pub const HEADER_LEN: usize = 24;
/// Longest frame, in bytes.
pub const FRAME_MAX: usize = 1 << 20;
/// Length that a new copy is given, in bytes: a longer payload needs space that may not be there.
pub const RESERVE: usize = 128 << 10;

/// Why bytes are not a valid frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than a header: an interrupted write, as a rule.
    #[error("{0} bytes are shorter than a header")]
    Short(usize),
    /// Not a ledger file.
    #[error("wrong magic number")]
    Magic,
    /// The length in the header is not the file's.
    #[error("header says {said} bytes of payload, the file has only {found}")]
    Length {
        /// In the header.
        said: u32,
        /// In the file.
        found: usize,
    },
    /// Damaged.
    #[error("checksum is wrong")]
    Checksum,
    /// The medium could not be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// Splits a frame into generation and payload. Total: any bytes may come.
///
/// # Errors
/// [`FrameError`] says what is wrong.
pub fn parse(bytes: &[u8]) -> Result<(u64, &[u8]), FrameError> {
    let short = || FrameError::Short(bytes.len());
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    let (generation, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (crc, payload) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    if *magic != MAGIC {
        return Err(FrameError::Magic);
    }
    let said = u32::from_le_bytes(*length);
    let found = payload.len();
    let payload = usize::try_from(said)
        .ok()
        .and_then(|said| payload.get(..said))
        .ok_or(FrameError::Length { said, found })?;
    if checksum(*generation, *length, payload) != u32::from_le_bytes(*crc) {
        return Err(FrameError::Checksum);
    }
    Ok((u64::from_le_bytes(*generation), payload))
}

/// The frame that [`parse`] takes apart; `None` if the payload is too long ([`FRAME_MAX`]).
#[must_use]
pub fn frame(generation: u64, payload: &[u8]) -> Option<Vec<u8>> {
    let total = HEADER_LEN.checked_add(payload.len()).filter(|total| *total <= FRAME_MAX)?;
    let generation = generation.to_le_bytes();
    let length = u32::try_from(payload.len()).ok()?.to_le_bytes();
    let mut bytes = Vec::with_capacity(total);
    bytes.extend(MAGIC);
    bytes.extend(generation);
    bytes.extend(length);
    bytes.extend(checksum(generation, length, payload).to_le_bytes());
    bytes.extend(payload);
    Some(bytes)
}

fn checksum(generation: [u8; 8], length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&MAGIC);
    hasher.update(&generation);
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

/// The ledger could not be written. The newest copy is untouched.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// An operation on the medium failed.
    #[error("cannot {step} ledger copy {file}")]
    Write {
        /// What failed.
        step: &'static str,
        /// The copy.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The payload does not fit.
    #[error("{0} bytes are too long for a ledger (at most {max})", max = FRAME_MAX - HEADER_LEN)]
    TooLong(usize),
}

/// State of one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// There is no such file.
    Absent,
    /// Whole.
    Valid {
        /// Its generation.
        generation: u64,
    },
    /// Not whole.
    Bad(FrameError),
}

/// What a valid copy holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Counts the writes.
    pub generation: u64,
    /// What was stored.
    pub payload: Vec<u8>,
}

/// Both copies as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The newest valid copy, if there is any.
    pub newest: Option<Stored>,
    /// What each copy was like. One bad copy is what a cut write leaves; the next write mends it.
    pub copies: [CopyState; 2],
}

impl Loaded {
    /// No copy was ever written, as opposed to lost.
    #[must_use]
    pub fn never_written(&self) -> bool {
        self.copies == [CopyState::Absent, CopyState::Absent]
    }

    /// What is wrong, copy by copy, for people; empty when nothing is.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        (0..)
            .zip(&self.copies)
            .filter_map(|(copy, state): (u32, _)| match state {
                CopyState::Bad(error) => Some(format!("copy {copy}: {error}")),
                CopyState::Absent | CopyState::Valid { .. } => None,
            })
            .collect()
    }
}

/// A two-copy ledger.
#[derive(Clone, Debug)]
pub struct Ledger<S> {
    storage: S,
    names: [String; 2],
    reserve: usize,
}

impl Ledger<Dir> {
    /// The ledger `name` in the directory at `path`.
    #[must_use]
    pub fn at(path: &std::path::Path, name: &str) -> Ledger<Dir> {
        Ledger::new(Dir::new(path), name)
    }
}

impl<S: Storage> Ledger<S> {
    /// The ledger `name` in `storage`.
    pub fn new(storage: S, name: &str) -> Ledger<S> {
        Ledger { storage, names: [format!("{name}.0"), format!("{name}.1")], reserve: RESERVE }
    }

    /// Gives new copies another length than [`RESERVE`].
    #[must_use]
    pub fn reserve(self, bytes: usize) -> Ledger<S> {
        Ledger { reserve: bytes, ..self }
    }

    /// Reads both copies. What cannot be read is reported as bad, never as an error: the other copy may do.
    pub fn load(&self) -> Loaded {
        let [first, second] = &self.names;
        let ((first, a), (second, b)) = (self.load_copy(first), self.load_copy(second));
        let newest = match (a, b) {
            (Some(a), Some(b)) => Some(if b.generation > a.generation { b } else { a }),
            (a, b) => a.or(b),
        };
        Loaded { newest, copies: [first, second] }
    }

    fn load_copy(&self, name: &str) -> (CopyState, Option<Stored>) {
        let bytes = match self.storage.read(name, FRAME_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return (CopyState::Absent, None),
            Err(error) => return (CopyState::Bad(FrameError::Unreadable(error.to_string())), None),
        };
        match parse(&bytes) {
            Ok((generation, payload)) => {
                (CopyState::Valid { generation }, Some(Stored { generation, payload: payload.to_vec() }))
            }
            Err(error) => (CopyState::Bad(error), None),
        }
    }

    /// Writes `payload` over the copy that is not the newest. When this returns, the medium has it.
    ///
    /// # Errors
    /// [`LedgerError`]; what was newest before is still there.
    pub fn store(&self, payload: &[u8]) -> Result<u64, LedgerError> {
        let loaded = self.load();
        let generation = loaded.newest.as_ref().map_or(1, |newest| newest.generation.saturating_add(1));
        let bytes = frame(generation, payload).ok_or(LedgerError::TooLong(payload.len()))?;
        let [first, second] = &self.names;
        let (name, state) = match (&loaded.newest, &loaded.copies) {
            (Some(newest), [CopyState::Valid { generation }, state]) if *generation == newest.generation => {
                (second, state)
            }
            (_, [state, _]) => (first, state),
        };
        let fail = |step| move |source| LedgerError::Write { step, file: name.clone(), source };
        if *state == CopyState::Absent {
            self.storage.write(name, &vec![0; self.reserve], 0o644).map_err(fail("create"))?;
        } else {
            self.storage.overwrite(name, &[0; HEADER_LEN]).map_err(fail("invalidate"))?;
        }
        self.storage.sync(name).map_err(fail("sync the invalidated"))?;
        self.storage.overwrite(name, &bytes).map_err(fail("write"))?;
        self.storage.sync(name).map_err(fail("sync"))?;
        self.storage.sync_dir().map_err(fail("sync the directory of"))?;
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{ModelDisk, Remount};

    fn payload(ledger: &Ledger<ModelDisk>) -> Option<Vec<u8>> {
        ledger.load().newest.map(|stored| stored.payload)
    }

    #[test]
    fn stores_in_turn_and_loads_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(dir.path(), "ledger");
        assert!(ledger.load().never_written());
        for n in 1..6u64 {
            assert_eq!(ledger.store(n.to_string().as_bytes()).unwrap(), n);
            let newest = ledger.load().newest.unwrap();
            assert_eq!((newest.generation, newest.payload), (n, n.to_string().into_bytes()));
        }
        assert_eq!(
            ledger.load().copies,
            [CopyState::Valid { generation: 5 }, CopyState::Valid { generation: 4 }]
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    /// A write needs no space once both copies are there.
    #[test]
    fn writes_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(dir.path(), "ledger");
        ledger.store(b"one").unwrap();
        ledger.store(b"two").unwrap();
        for payload in [vec![b'x'; 50_000], b"short".to_vec()] {
            ledger.store(&payload).unwrap();
            assert_eq!(ledger.load().newest.unwrap().payload, payload);
        }
        for copy in ["ledger.0", "ledger.1"] {
            assert_eq!(std::fs::metadata(dir.path().join(copy)).unwrap().len(), RESERVE as u64);
        }
    }

    #[test]
    fn says_which_copy_is_bad_and_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(dir.path(), "ledger");
        ledger.store(b"one").unwrap();
        ledger.store(b"two").unwrap();
        crate::atomic_write(&dir.path().join("ledger.1"), b"RIOTLDG1 rubbish that is long enough").unwrap();
        let loaded = ledger.load();
        assert_eq!(loaded.newest.as_ref().unwrap().payload, b"one");
        assert!(!loaded.never_written());
        assert_eq!(loaded.complaints().len(), 1);
        assert!(loaded.complaints()[0].starts_with("copy 1: header says"), "{:?}", loaded.complaints());
        ledger.store(b"three").unwrap();
        assert!(ledger.load().complaints().is_empty());
    }

    #[test]
    fn an_unreadable_copy_is_no_reason_to_give_up() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(dir.path(), "ledger");
        ledger.store(b"one").unwrap();
        std::fs::create_dir(dir.path().join("ledger.1")).unwrap();
        let loaded = ledger.load();
        assert_eq!(loaded.newest.unwrap().payload, b"one");
        assert!(matches!(
            loaded.copies,
            [CopyState::Valid { .. }, CopyState::Bad(FrameError::Unreadable(_))]
        ));
        // It cannot be mended either, and the good copy stays.
        assert!(matches!(ledger.store(b"two"), Err(LedgerError::Write { step: "invalidate", .. })));
        assert_eq!(ledger.load().newest.unwrap().payload, b"one");
    }

    #[test]
    fn too_long_is_refused_before_anything_is_touched() {
        let disk = ModelDisk::default();
        let ledger = Ledger::new(disk.clone(), "ledger");
        ledger.store(b"old").unwrap();
        let before = disk.operations();
        assert!(matches!(ledger.store(&vec![0; FRAME_MAX]), Err(LedgerError::TooLong(FRAME_MAX))));
        assert_eq!(disk.operations(), before);
    }

    /// Every number of writes before, every operation at which the power may go, every way to come back.
    #[test]
    fn power_cut_at_any_operation_leaves_old_or_new() {
        let run = |writes: usize| {
            let disk = ModelDisk::default();
            let ledger = Ledger::new(disk.clone(), "ledger").reserve(64);
            for n in 0..writes {
                ledger.store(format!("contents number {n}").as_bytes()).unwrap();
            }
            (disk, ledger)
        };
        for writes in 0..4 {
            let total = {
                let (disk, ledger) = run(writes);
                let before = disk.operations();
                ledger.store(b"new").unwrap();
                disk.operations() - before
            };
            for cut in 0..=total {
                for remount in Remount::some(64) {
                    let (disk, ledger) = run(writes);
                    let old = payload(&ledger);
                    disk.cut_after(cut);
                    let result = ledger.store(b"new");
                    assert_eq!(result.is_ok(), cut == total);
                    disk.remount(remount);
                    let found = payload(&ledger);
                    let is_new = found.as_deref() == Some(b"new");
                    assert!(is_new || found == old, "{writes} writes, cut {cut}, {remount:?}: {found:?}");
                    assert!(is_new || result.is_err(), "{writes} writes, cut {cut}, {remount:?}: lost");
                    ledger.store(b"next").unwrap();
                    disk.remount(Remount::Lost);
                    assert_eq!(payload(&ledger).unwrap(), b"next");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_frame_survives_the_round_trip(generation: u64, payload: Vec<u8>) {
            let bytes = frame(generation, &payload).unwrap();
            prop_assert_eq!(parse(&bytes), Ok((generation, payload.as_slice())));
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            if let Ok((generation, payload)) = parse(&bytes) {
                prop_assert!(bytes.starts_with(&frame(generation, payload).unwrap()));
            }
        }

        #[test]
        fn no_flipped_bit_and_no_cut_goes_unnoticed(payload: Vec<u8>, at: prop::sample::Index, cut: bool) {
            let mut bytes = frame(7, &payload).unwrap();
            if cut {
                bytes.truncate(at.index(bytes.len()));
            } else {
                let bit = at.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
