//! A download on the medium: what is there stays there, over restarts and power cuts.
//!
//! Data is on the medium before the journal says so; the journal is invalid before data is thrown away. On opening,
//! what the journal says is read once and compared with its CRC. Blocks; called by the store, off the main thread.
//! Contract: `docs/contracts/proxy.md`.

use std::io;
use std::ops::Range;

use rustiot_http::Validator;
use sha2::{Digest, Sha256};

use crate::journal::{Entry, Identity, frame, parse};
use crate::medium::{Medium, Which};
use crate::ranges::RangeSet;

/// Longest journal that is read. More cannot come together: it has a thousand entries for a download and some for each start.
const JOURNAL_MAX: u64 = 16 << 20;
/// How much is read at once.
const BLOCK: usize = 64 << 10;
/// The journal grows by so much, filled with zeros: a sync of what lies within its length costs the medium one block, and
/// one that changes the length costs the file system's own journal five more.
const JOURNAL_STEP: u64 = 32 << 10;

/// A download on the medium.
#[derive(Debug)]
pub struct Cache<M> {
    medium: M,
    identity: Identity,
    validators: Vec<Validator>,
    have: RangeSet,
    verified: bool,
    /// Where the next entry belongs, and where the zeros behind it end.
    journal_len: u64,
    journal_end: u64,
}

/// The medium failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct CacheError {
    /// What failed.
    pub step: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> CacheError {
    move |source| CacheError { step, source }
}

impl<M: Medium> Cache<M> {
    /// Goes on with the download of this file, or begins it and throws another one away.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(medium: M, identity: Identity) -> Result<Cache<M>, CacheError> {
        let mut cache = Cache {
            medium,
            identity,
            validators: Vec::new(),
            have: RangeSet::default(),
            verified: false,
            journal_len: 0,
            journal_end: 0,
        };
        if !cache.load()? {
            cache.begin()?;
        }
        Ok(cache)
    }

    /// Reads the journal; false if it is of another file or none.
    fn load(&mut self) -> Result<bool, CacheError> {
        let len = self.medium.len(Which::Journal).map_err(failed("read the journal"))?;
        if len > JOURNAL_MAX {
            return Ok(false);
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        let count = self.medium.read_at(Which::Journal, 0, &mut bytes).map_err(failed("read the journal"))?;
        bytes.truncate(count);
        let (entries, used) = parse(&bytes);
        if entries.first() != Some(&Entry::Identity(self.identity.clone())) {
            return Ok(false);
        }
        let mut lost = false;
        for entry in entries {
            match entry {
                Entry::Identity(_) => {}
                Entry::Validators(validators) => self.validators = validators,
                Entry::Range { range, crc } if range.end <= self.identity.len => {
                    if self.crc(range.clone())? == Some(crc) {
                        self.have.insert(range);
                    } else {
                        lost = true;
                    }
                }
                Entry::Range { .. } => lost = true,
                Entry::Verified => self.verified = true,
            }
        }
        // Something went bad since: what was verified is no longer what is there.
        self.verified &= !lost && self.have.bytes() == self.identity.len;
        self.journal_len = u64::try_from(used).unwrap_or_default();
        self.journal_end = u64::try_from(bytes.len()).unwrap_or_default();
        if bytes.get(used..).unwrap_or_default().iter().any(|byte| *byte != 0) {
            self.journal_end = self.journal_len;
            self.medium.truncate(Which::Journal, self.journal_len).map_err(failed("cut the journal"))?;
            self.medium.sync(Which::Journal).map_err(failed("sync the journal"))?;
        }
        Ok(true)
    }

    /// Throws everything away and begins this file.
    fn begin(&mut self) -> Result<(), CacheError> {
        self.have = RangeSet::default();
        self.verified = false;
        (self.journal_len, self.journal_end) = (0, 0);
        self.medium.truncate(Which::Journal, 0).map_err(failed("cut the journal"))?;
        self.medium.sync(Which::Journal).map_err(failed("sync the journal"))?;
        self.medium.truncate(Which::Data, 0).map_err(failed("cut the download"))?;
        if let Err(error) = self.medium.reserve(self.identity.len) {
            // A file system that had too little has handed out what it had (ext4): the medium would stay full.
            let _ = self.medium.truncate(Which::Data, 0);
            return Err(failed("make room for the download")(error));
        }
        self.append(&Entry::Identity(self.identity.clone()))?;
        if !self.validators.is_empty() {
            self.append(&Entry::Validators(self.validators.clone()))?;
        }
        Ok(())
    }

    /// Throws all bytes away: the file on the servers is another one now.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn discard(&mut self) -> Result<(), CacheError> {
        self.validators = Vec::new();
        self.begin()
    }

    fn append(&mut self, entry: &Entry) -> Result<(), CacheError> {
        let mut bytes =
            frame(entry).ok_or_else(|| failed("write the journal")(io::ErrorKind::InvalidInput.into()))?;
        let next = self.journal_len.saturating_add(u64::try_from(bytes.len()).unwrap_or_default());
        if next > self.journal_end {
            self.journal_end = next.saturating_add(JOURNAL_STEP);
            bytes.resize(bytes.len().saturating_add(JOURNAL_STEP as usize), 0);
        }
        self.medium
            .write_at(Which::Journal, self.journal_len, &bytes)
            .map_err(failed("write the journal"))?;
        self.medium.sync(Which::Journal).map_err(failed("sync the journal"))?;
        self.journal_len = next;
        Ok(())
    }

    /// Keeps bytes. When it returns, they are on the medium and the journal says so.
    ///
    /// # Errors
    /// [`CacheError`]; they do not count then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CacheError> {
        let end = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if bytes.is_empty() || end > self.identity.len {
            return Ok(());
        }
        self.medium.write_at(Which::Data, offset, bytes).map_err(failed("write the download"))?;
        self.medium.sync(Which::Data).map_err(failed("sync the download"))?;
        self.append(&Entry::Range { range: offset..end, crc: crc32fast::hash(bytes) })?;
        self.have.insert(offset..end);
        Ok(())
    }

    /// Remembers what the servers say of the file.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn set_validators(&mut self, validators: &[Validator]) -> Result<(), CacheError> {
        if self.validators == validators {
            return Ok(());
        }
        validators.clone_into(&mut self.validators);
        self.append(&Entry::Validators(validators.to_owned()))
    }

    /// What the servers said of the file, one for each address.
    #[must_use]
    pub fn validators(&self) -> &[Validator] {
        &self.validators
    }

    /// What is there.
    #[must_use]
    pub fn have(&self) -> &RangeSet {
        &self.have
    }

    /// Whether all is there and has the right SHA-256.
    #[must_use]
    pub fn verified(&self) -> bool {
        self.verified
    }

    /// Compares the whole download with its SHA-256, and remembers that it is right.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn verify(&mut self, sha256: &[u8; 32]) -> Result<bool, CacheError> {
        if self.verified {
            return Ok(true);
        }
        let mut hash = Sha256::new();
        self.each(0..self.identity.len, |bytes| hash.update(bytes))?;
        if hash.finalize().as_slice() != sha256 {
            return Ok(false);
        }
        self.append(&Entry::Verified)?;
        self.verified = true;
        Ok(true)
    }

    /// Fills `buf`.
    ///
    /// # Errors
    /// Not all of it is there, or the medium failed.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
        if !self.have.contains(&(offset..end)) || self.medium.read_at(Which::Data, offset, buf)? != buf.len()
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// CRC-32 of bytes on the medium; `None` if not all of them are there.
    fn crc(&self, range: Range<u64>) -> Result<Option<u32>, CacheError> {
        let mut hasher = crc32fast::Hasher::new();
        let all = self.each(range, |bytes| hasher.update(bytes))?;
        Ok(all.then(|| hasher.finalize()))
    }

    /// Calls with each piece; false if the file ends before the range does.
    fn each(&self, range: Range<u64>, mut with: impl FnMut(&[u8])) -> Result<bool, CacheError> {
        let mut block = vec![0; BLOCK];
        let mut at = range.start;
        while at < range.end {
            let want = usize::try_from(range.end.saturating_sub(at)).unwrap_or(BLOCK).min(BLOCK);
            let piece = block.get_mut(..want).unwrap_or_default();
            // A block of the medium that cannot be read is not there.
            let count = self.medium.read_at(Which::Data, at, piece).unwrap_or_default();
            if count != want {
                return Ok(false);
            }
            with(piece);
            at = at.saturating_add(u64::try_from(want).unwrap_or(u64::MAX));
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::medium::{Files, model::Model};

    type Shared = Arc<Mutex<Model>>;

    fn identity(key: &str, len: u64) -> Identity {
        Identity { key: key.into(), len }
    }

    fn contents(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + at / 251 + 1) as u8).collect()
    }

    /// One download in pieces, out of order; reports what was promised.
    fn download(model: &Shared, promised: &mut RangeSet) -> Result<(), CacheError> {
        let all = contents(1000);
        let mut cache = Cache::open(model.clone(), identity("a", 1000))?;
        for range in [300..500usize, 0..100, 500..1000, 100..300] {
            let wanted = range.start as u64..range.end as u64;
            for gap in cache.have().missing(wanted) {
                cache.write(gap.start, &all[gap.start as usize..gap.end as usize])?;
                promised.insert(gap);
            }
        }
        assert!(cache.verify(&Sha256::digest(&all).into())?);
        Ok(())
    }

    /// After power is back: everything promised is there, and everything that is there is right.
    fn check(model: &Shared, promised: &RangeSet, what: &str) -> bool {
        let all = contents(1000);
        let cache = Cache::open(model.clone(), identity("a", 1000)).unwrap();
        let kept = promised.iter().all(|range| cache.have().contains(range));
        for range in cache.have().iter() {
            let mut found = vec![0; (range.end - range.start) as usize];
            cache.read(range.start, &mut found).unwrap();
            assert_eq!(found, all[range.start as usize..range.end as usize], "{what}");
        }
        kept
    }

    #[test]
    fn power_cut_at_any_operation_loses_nothing_that_was_promised() {
        let model = Shared::default();
        download(&model, &mut RangeSet::default()).unwrap();
        let total = model.lock().unwrap().operations;
        for cut in 0..=total {
            for seed in (0..200).map(|seed: u64| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
                let what = format!("cut {cut}, seed {seed}");
                let model = Shared::default();
                model.lock().unwrap().cut_after = Some(cut);
                let mut promised = RangeSet::default();
                assert_eq!(download(&model, &mut promised).is_ok(), cut == total);
                model.lock().unwrap().remount(seed);
                assert!(check(&model, &promised, &what), "{what}: lost");
                // And it goes on from there, to the end.
                download(&model, &mut promised).unwrap();
                model.lock().unwrap().remount(0);
                assert!(check(&model, &promised, &what), "{what}: lost afterwards");
            }
        }
    }

    #[test]
    fn the_model_notices_a_missing_sync() {
        let lost = (0..200u64).any(|seed| {
            let model = Shared::default();
            model.lock().unwrap().lies = Some(Which::Journal);
            let mut promised = RangeSet::default();
            download(&model, &mut promised).unwrap();
            model.lock().unwrap().remount(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            !check(&model, &promised, "journal")
        });
        assert!(lost);
    }

    #[test]
    fn room_is_taken_at_the_beginning_and_no_entry_makes_the_journal_longer() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(Files::open(dir.path()).unwrap(), identity("a", 1 << 20)).unwrap();
        let of = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap();
        let mut cache = open();
        assert!(of("download.data").blocks() * 512 >= 1 << 20);
        let long = of("download.journal").len();
        for at in 0..100 {
            cache.write(at * 10, &[7; 10]).unwrap();
        }
        drop(cache);
        // Zeros behind the last entry are no damage: nothing is cut off and written anew.
        let mut cache = open();
        cache.write(1000, &[7; 10]).unwrap();
        assert_eq!(of("download.journal").len(), long);
        // Anything else is.
        Files::open(dir.path()).unwrap().write_at(Which::Journal, long - 5, b"x").unwrap();
        drop(cache);
        let cache = open();
        assert!(of("download.journal").len() < long);
        assert_eq!(cache.have().bytes(), 1010);
        // More entries than one step holds.
        let mut cache = cache;
        for at in 0..3000 {
            cache.write(5000 + at, &[7]).unwrap();
        }
        drop(cache);
        assert_eq!(open().have().bytes(), 4010);
    }

    #[test]
    fn room_that_was_found_in_part_only_is_given_back() {
        let model = Shared::default();
        model.lock().unwrap().room = Some(999);
        let error = Cache::open(model.clone(), identity("a", 1000)).err().unwrap();
        assert_eq!(
            (error.step, error.source.kind()),
            ("make room for the download", io::ErrorKind::StorageFull)
        );
        assert_eq!(model.len(Which::Data).unwrap(), 0, "the medium stays full");
        model.lock().unwrap().room = None;
        download(&model, &mut RangeSet::default()).unwrap();
    }

    #[test]
    fn another_file_or_a_flipped_bit_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = |key, len| Cache::open(Files::open(dir.path()).unwrap(), identity(key, len)).unwrap();
        let all = contents(200_000);
        let sha256: [u8; 32] = Sha256::digest(&all).into();
        let mut cache = open("a", 200_000);
        cache.write(100_000, &all[100_000..]).unwrap();
        cache.write(0, &all[..100_000]).unwrap();
        let said = vec![Validator { etag: Some("\"1\"".into()), last_modified: None }];
        cache.set_validators(&said).unwrap();
        assert!(cache.verify(&sha256).unwrap());
        drop(cache);
        let cache = open("a", 200_000);
        assert!(cache.verified());
        assert_eq!(cache.validators(), said);
        assert!(cache.read(199_990, &mut [0; 20]).is_err(), "beyond the end");
        drop(cache);
        Files::open(dir.path()).unwrap().write_at(Which::Data, 5, &[0xff]).unwrap();
        let mut cache = open("a", 200_000);
        assert!(!cache.verified());
        assert_eq!(cache.have().missing(0..200_000), vec![0..100_000]);
        cache.write(0, &contents(100_001)[1..]).unwrap();
        assert!(!cache.verify(&sha256).unwrap(), "wrong bytes from a server");
        cache.discard().unwrap();
        drop(cache);
        let cache = open("a", 200_000);
        assert_eq!(cache.have().bytes(), 0);
        drop(cache);
        for (key, len) in [("b", 200_000), ("b", 100)] {
            let mut cache = open(key, len);
            assert_eq!(cache.have().bytes(), 0);
            cache.write(0, b"x").unwrap();
            cache.write(len, b"beyond").unwrap();
            assert_eq!(cache.have().bytes(), 1);
        }
        Files::remove(dir.path()).unwrap();
        Files::remove(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
