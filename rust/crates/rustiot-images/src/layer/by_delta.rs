//! A layer out of an older one: its archive is made by the delta codec and taken in like one that was fetched.
//!
//! Trusts nothing that a delta says: what comes out is measured against the layer's `diff_id` by whoever called. In
//! order, in the codec's bounded memory. Called by the pull, on a thread of its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rustiot_delta::{Delta, FileAt, ReadAt, Target};

use super::erofs::HEAD;
use super::{Imported, Watch, file, import};
use crate::delta::DeltaError;
use crate::digest::Digest;
use crate::limits::Limits;

/// What is known of the layer besides the delta.
pub(crate) struct Wanted<'a> {
    pub diff_id: &'a Digest,
    /// Its length as the image's manifest has it: the layer may unpack to as much as if it were fetched.
    pub compressed: u64,
    pub limits: &'a Limits,
    pub cancelled: &'a AtomicBool,
    /// Called now and then with the bytes that are made, and with all of them.
    pub progress: &'a dyn Fn(u64, u64),
}

/// The archive in an older layer's file.
struct Archive {
    file: File,
    length: u64,
}

impl ReadAt for Archive {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.length);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.read_exact_at(buf, HEAD + offset)
    }
}

/// The new archive, in order.
struct Made<'a> {
    target: Target<FileAt>,
    at: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl Read for Made<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.target.len();
        let most = into.len().min(usize::try_from(length.saturating_sub(self.at)).unwrap_or(usize::MAX));
        let part = into.get_mut(..most).unwrap_or_default();
        self.target.read_at(self.at, part).map_err(io::Error::other)?;
        self.at += part.len() as u64;
        (self.progress)(self.at, length);
        Ok(part.len())
    }
}

/// Makes the layer's file. `sources` are older layers' files in the order in which the artifact names them. The file is
/// synced, and not named.
pub(crate) fn make(
    delta: File,
    sources: Vec<(Digest, File)>,
    to: &File,
    wanted: &Wanted<'_>,
) -> Result<Imported, DeltaError> {
    let unread = |source| rustiot_delta::Error::ReadDelta { offset: 0, source };
    let delta = Delta::open(FileAt::new(delta).map_err(unread)?)?;
    let header = delta.header();
    if header.target_sha256 != *wanted.diff_id.bytes() {
        return Err(DeltaError::Other("it makes another layer"));
    }
    if !header.sources.iter().map(|source| &source.sha256).eq(sources.iter().map(|(layer, _)| layer.bytes()))
    {
        return Err(DeltaError::Other("it is made from other layers"));
    }
    let mut archives: Vec<Box<dyn ReadAt + Send>> = Vec::new();
    for ((layer, file), named) in sources.into_iter().zip(&header.sources) {
        let end = file::quick(&file, &layer).map_err(|why| DeltaError::Source { layer, why })?;
        if end.archive != named.len {
            return Err(DeltaError::Source { layer, why: "has another length" });
        }
        archives.push(Box::new(Archive { file, length: end.archive }));
    }
    let target = delta.target(archives)?;
    let consumed = AtomicU64::new(wanted.compressed);
    let watch = Watch { consumed: &consumed, cancelled: wanted.cancelled, progress: &|_| () };
    let imported = import(Made { target, at: 0, progress: wanted.progress }, to, wanted.limits, &watch)?;
    if imported.diff_id != *wanted.diff_id {
        let (expected, found) = (*wanted.diff_id, imported.diff_id);
        return Err(super::LayerError::DiffId { expected, found }.into());
    }
    to.sync_all().map_err(super::LayerError::Write)?;
    Ok(imported)
}
