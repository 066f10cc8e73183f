//! The end of a layer's file, by which a whole layer is told from a torn one, and every byte of it checked.
//!
//! Reads what it is given; writes nothing. Called by the import, the store's start and the scrub.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::erofs::{HEAD, Written};
use crate::digest::{Digest, Hasher};

const MAGIC: &[u8; 8] = b"RIOTLYR1";
/// Length of the end.
pub(crate) const END: u64 = 112;

/// What is where in a layer's file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct End {
    pub diff_id: Digest,
    /// Length of the archive, which begins behind the head.
    pub archive: u64,
    pub metadata: Written,
    pub entries: u64,
}

impl End {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.archive.to_le_bytes());
        bytes.extend(self.metadata.at.to_le_bytes());
        bytes.extend(self.metadata.length.to_le_bytes());
        bytes.extend(self.entries.to_le_bytes());
        bytes.extend(self.diff_id.bytes());
        bytes.extend(self.metadata.digest.bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend(crc.to_le_bytes());
        bytes.resize(END as usize, 0);
        bytes
    }

    /// Of a file's last bytes.
    pub fn decode(bytes: &[u8]) -> Option<End> {
        let (body, rest) = bytes.split_at_checked(104)?;
        let crc = rest.first_chunk::<4>().copied().map(u32::from_le_bytes)?;
        let mut body_rest = body.strip_prefix(MAGIC)?;
        if crc != crc32fast::hash(body) {
            return None;
        }
        let mut number = || {
            let (bytes, rest) = body_rest.split_first_chunk::<8>()?;
            body_rest = rest;
            Some(u64::from_le_bytes(*bytes))
        };
        let (archive, at, length, entries) = (number()?, number()?, number()?, number()?);
        let (diff_id, rest) = body_rest.split_first_chunk::<32>()?;
        let digest = rest.first_chunk::<32>()?;
        let metadata = Written { at, length, digest: Digest::from_bytes(*digest) };
        Some(End { diff_id: Digest::from_bytes(*diff_id), archive, metadata, entries })
    }
}

/// Looks at a layer's end: whether it is whole and the one that its name says. The reason when not.
pub(crate) fn quick(file: &File, diff_id: &Digest) -> Result<End, &'static str> {
    let size = file.metadata().map_err(|_| "cannot be read")?.len();
    let at = size.checked_sub(END).ok_or("is cut short")?;
    let mut bytes = [0; END as usize];
    file.read_exact_at(&mut bytes, at).map_err(|_| "cannot be read")?;
    let end = End::decode(&bytes).ok_or("is torn")?;
    let metadata_at = HEAD.checked_add(end.archive).map(|at| at.next_multiple_of(512));
    if metadata_at != Some(end.metadata.at) || end.metadata.at.checked_add(end.metadata.length) != Some(at) {
        return Err("is torn");
    }
    if end.diff_id != *diff_id {
        return Err("is another layer");
    }
    Ok(end)
}

/// Reads every byte against its digest. The reason when something is wrong.
pub(crate) fn full(file: &File, diff_id: &Digest) -> Result<End, &'static str> {
    let end = quick(file, diff_id)?;
    if hash(file, HEAD, end.archive).map_err(|_| "cannot be read")? != *diff_id {
        return Err("has contents that do not fit its digest");
    }
    let mut hasher = Hasher::default();
    feed(file, 0, HEAD, &mut hasher).map_err(|_| "cannot be read")?;
    feed(file, end.metadata.at, end.metadata.length, &mut hasher).map_err(|_| "cannot be read")?;
    if hasher.finish() != end.metadata.digest {
        return Err("has metadata that do not fit their digest");
    }
    Ok(end)
}

/// Of a whole file.
pub(crate) fn digest(file: &File) -> io::Result<Digest> {
    hash(file, 0, file.metadata()?.len())
}

fn hash(file: &File, at: u64, length: u64) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    feed(file, at, length, &mut hasher)?;
    Ok(hasher.finish())
}

fn feed(file: &File, at: u64, length: u64, hasher: &mut Hasher) -> io::Result<()> {
    let mut archive = Stretch { file, at, left: length };
    let mut buffer = vec![0; 128 << 10];
    loop {
        match archive.read(&mut buffer)? {
            0 if archive.left > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => return Ok(()),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// The archive that a layer's file holds, byte for byte.
pub(crate) fn archive<'a>(file: &'a File, end: &End) -> Stretch<'a> {
    Stretch { file, at: HEAD, left: end.archive }
}

/// A stretch of a file.
#[derive(Debug)]
pub(crate) struct Stretch<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Stretch<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(into.get_mut(..most).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
