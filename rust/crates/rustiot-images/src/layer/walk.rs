//! Reads a tar archive as it streams by: ustar, pax and GNU, with the places of the contents.
//!
//! Headers are decoded by the `tar` crate; the walk from one to the next is ours, because pax records hold bytes (a
//! file capability may contain a newline, at which that crate's reader stops), because its extended headers are of any
//! length, and because it must be known where in the stream the contents lie. Never keeps contents. Called by the
//! import.

use std::collections::BTreeMap;
use std::io;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::LayerError;
use super::erofs::BLOCK;

/// Longest extended header: pax records, a long name.
const EXTENDED_MAX: u64 = 1 << 20;

/// Bytes of the archive, in order. What is passed over is not lost: the import keeps the whole stream.
pub(crate) trait Stream {
    /// How many bytes went by.
    fn position(&self) -> u64;
    /// The next bytes, all of them; `false` at an end before the first.
    fn read(&mut self, into: &mut [u8]) -> Result<bool, LayerError>;
    /// Passes over so many bytes.
    fn skip(&mut self, count: u64) -> Result<(), LayerError>;
}

/// An entry of an archive.
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: EntryType,
    pub header: Box<Header>,
    pub pax: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of contents in the archive.
    pub stored: u64,
    /// `(offset in the file, length)` of what a sparse file's contents are, and its whole size.
    pub sparse: Option<(Vec<(u64, u64)>, u64)>,
}

fn broken(offset: u64, why: &'static str) -> LayerError {
    LayerError::Tar { offset, source: io::Error::other(why) }
}

/// The next entry, with the stream at the beginning of its contents; `None` at the end of the archive, with the stream
/// somewhere in its padding.
pub(crate) fn next(stream: &mut impl Stream) -> Result<Option<Entry>, LayerError> {
    let mut pax = BTreeMap::new();
    let (mut long_path, mut long_link) = (None, None);
    loop {
        let at = stream.position();
        let mut block = [0; BLOCK as usize];
        if !stream.read(&mut block)? || block.iter().all(|byte| *byte == 0) {
            return match pax.is_empty() && long_path.is_none() && long_link.is_none() {
                true => Ok(None),
                false => Err(broken(at, "an extended header without an entry")),
            };
        }
        let header = Header::from_byte_slice(&block);
        let failed = |source| LayerError::Tar { offset: at, source };
        if header.cksum().map_err(failed)? != checksum(&block) {
            return Err(broken(at, "the checksum of a header is wrong"));
        }
        let size = header.entry_size().map_err(failed)?;
        let kind = header.entry_type();
        match kind {
            EntryType::GNULongName => long_path = Some(extended(stream, at, size)?),
            EntryType::GNULongLink => long_link = Some(extended(stream, at, size)?),
            EntryType::XHeader => pax = records(&extended(stream, at, size)?, at)?,
            // Applies to all that follow; what it may hold (a comment, as git writes) is nothing to us.
            EntryType::XGlobalHeader => drop(extended(stream, at, size)?),
            kind => {
                let field = |name: &[u8], long: Option<Vec<u8>>, own: Option<Vec<u8>>| {
                    pax.get(name).cloned().or_else(|| long.map(until_zero)).or(own).unwrap_or_default()
                };
                let path = field(b"path", long_path.take(), Some(header.path_bytes().into_owned()));
                let link = field(
                    b"linkpath",
                    long_link.take(),
                    header.link_name_bytes().map(std::borrow::Cow::into_owned),
                );
                if pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
                    return Err(super::tree::refuse(&path, "sparse files in pax format are not supported"));
                }
                let stored = match pax.get(&b"size"[..]) {
                    Some(text) => number(text).ok_or_else(|| broken(at, "a size is no number"))?,
                    None => size,
                };
                let sparse = match kind {
                    EntryType::GNUSparse => Some(sparse(stream, header, at, stored)?),
                    _ => None,
                };
                let header = Box::new(header.clone());
                return Ok(Some(Entry { path, link, kind, header, pax, stored, sparse }));
            }
        }
    }
}

/// Passes over the rest of a block.
pub(crate) fn skip_padding(stream: &mut impl Stream) -> Result<(), LayerError> {
    let past = stream.position() % BLOCK;
    if past == 0 { Ok(()) } else { stream.skip(BLOCK - past) }
}

/// The sum of a header's bytes, with its own field as blanks.
fn checksum(block: &[u8]) -> u32 {
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) };
    block.iter().enumerate().map(byte).sum()
}

fn until_zero(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The contents of an extended header.
fn extended(stream: &mut impl Stream, at: u64, size: u64) -> Result<Vec<u8>, LayerError> {
    if size > EXTENDED_MAX {
        return Err(LayerError::TooLarge { what: "bytes in an extended header", limit: EXTENDED_MAX });
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    if !stream.read(&mut bytes)? {
        return Err(broken(at, "it ends in an extended header"));
    }
    skip_padding(stream)?;
    Ok(bytes)
}

/// Records of a pax header: `LENGTH KEY=VALUE\n`, LENGTH counting all of it.
pub(crate) fn records(mut bytes: &[u8], at: u64) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, LayerError> {
    let mut records = BTreeMap::new();
    // Some writers end with zeros.
    while !bytes.is_empty() && bytes.first() != Some(&0) {
        let record = split(bytes).ok_or_else(|| broken(at, "a pax record is malformed"))?;
        let (key, value, rest) = record;
        records.insert(key.to_vec(), value.to_vec());
        bytes = rest;
    }
    Ok(records)
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number(bytes.get(..blank)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, rest))
}

/// The map of an old GNU sparse file.
fn sparse(
    stream: &mut impl Stream,
    header: &Header,
    at: u64,
    stored: u64,
) -> Result<(Vec<(u64, u64)>, u64), LayerError> {
    let failed = |source| LayerError::Tar { offset: at, source };
    let gnu = header.as_gnu().ok_or_else(|| broken(at, "a sparse entry in a header that is not GNU's"))?;
    let size = gnu.real_size().map_err(failed)?;
    let (mut pieces, mut end, mut sum) = (Vec::new(), 0_u64, 0_u64);
    let mut add = |piece: &GnuSparseHeader| -> Result<(), LayerError> {
        if piece.is_empty() {
            return Ok(());
        }
        let (from, length) = (piece.offset().map_err(failed)?, piece.length().map_err(failed)?);
        if length == 0 {
            return Ok(());
        }
        let wrong = from < end || from % BLOCK != 0 || sum % BLOCK != 0;
        end = from.checked_add(length).filter(|end| *end <= size && !wrong).ok_or_else(|| {
            broken(at, "the map of a sparse file is out of order, beyond its end or not in whole blocks")
        })?;
        sum += length;
        pieces.push((from, length));
        Ok(())
    };
    gnu.sparse.iter().try_for_each(&mut add)?;
    let mut more = gnu.is_extended();
    let mut blocks = 0;
    while more {
        let mut block = GnuExtSparseHeader::new();
        blocks += BLOCK;
        if blocks > EXTENDED_MAX || !stream.read(block.as_mut_bytes())? {
            return Err(broken(at, "the map of a sparse file does not end"));
        }
        block.sparse.iter().try_for_each(&mut add)?;
        more = block.is_extended();
    }
    if sum != stored {
        return Err(broken(at, "a sparse file's map and its contents differ in length"));
    }
    Ok((pieces, size))
}
