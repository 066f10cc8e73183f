//! Takes a layer in: decompresses, checks, and writes one file that the kernel mounts.
//!
//! One pass, in a few hundred kilobytes and the layer's tree. The archive goes into the file as it is; behind it comes
//! the erofs metadata that points into it, and an end that says what is where. Nothing is synced or named here. Called
//! by the pull and by `load`, on a thread of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tar::EntryType;

use super::LayerError;
use super::erofs::{self, HEAD, Written, Xattr, XattrSets};
use super::file::End;
use super::tree::{Attributes, Kind, Tree, refuse};
use super::walk::{Entry, Stream, next, skip_padding};
use crate::digest::{Digest, Hasher};
use crate::limits::Limits;

const PIECE: usize = 128 << 10;
/// How often space is looked at.
const SPACE_EVERY: u64 = 8 << 20;

/// What the import looks at from time to time.
pub(crate) struct Watch<'a> {
    /// Compressed bytes that were read so far, counted by whoever reads them.
    pub consumed: &'a AtomicU64,
    /// Nobody waits any more.
    pub cancelled: &'a AtomicBool,
    /// Called now and then with the compressed bytes read so far.
    pub progress: &'a dyn Fn(u64),
}

/// A layer that has been taken in, and is not named yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Imported {
    pub diff_id: Digest,
    /// Of the whole file.
    pub size: u64,
    /// Inodes in it.
    pub entries: u64,
    /// Entries that were left out: device nodes.
    pub left_out: u64,
}

/// Reads `from` (not compressed) to its end and writes the layer's file. What `from` says about its own integrity is
/// the caller's: the file is not to be named before that is checked.
pub(crate) fn import(
    from: impl Read,
    to: &File,
    limits: &Limits,
    watch: &Watch<'_>,
) -> Result<Imported, LayerError> {
    let mut source = Source {
        from,
        to,
        buffer: vec![0; PIECE],
        start: 0,
        end: 0,
        taken: 0,
        hasher: Hasher::default(),
        limits,
        watch,
        space_at: 0,
    };
    let mut tree = Tree::new(limits.layer_entries);
    let mut xattrs = XattrSets::default();
    let mut left_out = 0;
    while let Some(entry) = next(&mut source)? {
        let at = HEAD + source.position();
        place(&mut tree, &mut xattrs, &entry, at, &mut left_out)?;
        source.skip(entry.stored)?;
        skip_padding(&mut source)?;
    }
    source.only_zeros()?;
    let length = source.taken;
    let diff_id = source.hasher.finish();
    let metadata_at = HEAD + length.next_multiple_of(erofs::BLOCK);
    let (written, head) = write_metadata(&tree, &xattrs, metadata_at, to)?;
    let end = End { diff_id, archive: length, metadata: written, entries: tree.nodes.len() as u64 };
    to.write_all_at(&head, 0).map_err(LayerError::Write)?;
    let end_at = written.at + written.length;
    let bytes = end.encode();
    to.write_all_at(&bytes, end_at).map_err(LayerError::Write)?;
    let size = end_at + bytes.len() as u64;
    (watch.progress)(watch.consumed.load(Ordering::Relaxed));
    Ok(Imported { diff_id, size, entries: end.entries, left_out })
}

fn write_metadata(
    tree: &Tree,
    xattrs: &XattrSets,
    at: u64,
    to: &File,
) -> Result<(Written, Vec<u8>), LayerError> {
    let mut out = BufWriter::with_capacity(PIECE, At { file: to, offset: at });
    match erofs::write(tree, xattrs, at, &mut out) {
        Ok(written) => {
            out.flush().map_err(LayerError::Write)?;
            Ok(written)
        }
        Err(erofs::WriteError::Disk(error)) => Err(LayerError::Write(error)),
        Err(erofs::WriteError::Tree(why)) => Err(refuse(b"/", why)),
    }
}

/// Writes from an offset on.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.offset)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts one entry into the tree; its contents lie at `at`.
fn place(
    tree: &mut Tree,
    xattrs: &mut XattrSets,
    entry: &Entry,
    at: u64,
    left_out: &mut u64,
) -> Result<(), LayerError> {
    let path = &*entry.path;
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let (directory, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => trimmed.split_at(slash),
        None => (&b""[..], trimmed),
    };
    let name = name.strip_prefix(b"/").unwrap_or(name);
    if let Some(hidden) = name.strip_prefix(b".wh.") {
        return match hidden {
            b".wh..opq" => tree.opaque(directory),
            // What aufs kept for itself.
            other if other.starts_with(b".wh.") => Ok(()),
            other => tree.whiteout(directory, other),
        };
    }
    let header = &entry.header;
    let kind = match entry.kind {
        // An old header with a slash at the end of its name is a directory.
        EntryType::Regular if path.ends_with(b"/") => Kind::Dir(BTreeMap::new()),
        EntryType::Regular | EntryType::Continuous => Kind::File { at, size: entry.stored },
        EntryType::GNUSparse => {
            let Some((pieces, size)) = &entry.sparse else { return Ok(()) };
            let mut place = at;
            let pieces = pieces.iter().map(|(from, length)| {
                let piece = (*from, place, *length);
                place += length;
                piece
            });
            Kind::Sparse { pieces: pieces.collect(), size: *size }
        }
        EntryType::Directory => Kind::Dir(BTreeMap::new()),
        EntryType::Symlink => {
            if entry.link.is_empty() || entry.link.len() > 4095 || entry.link.contains(&0) {
                return Err(refuse(path, "a symbolic link to nowhere"));
            }
            Kind::Symlink(entry.link.clone().into())
        }
        EntryType::Link => return tree.link(path, &entry.link),
        EntryType::Fifo => Kind::Fifo,
        // A container gets its devices from the engine. One in a layer is a way around the device rules, and number
        // 0 would be taken for a whiteout.
        EntryType::Char | EntryType::Block => {
            *left_out += 1;
            return Ok(());
        }
        _ => return Err(refuse(path, "an entry of an unknown type")),
    };
    let failed = |source| LayerError::Tar { offset: at.saturating_sub(HEAD), source };
    let id = |value: u64| u32::try_from(value).map_err(|_| refuse(path, "its owner is out of range"));
    let number = |name: &[u8]| {
        entry.pax.get(name).and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok())
    };
    // An empty field is 0, as other readers have it.
    let old = header.as_old();
    let empty = |field: &[u8]| field.iter().all(|byte| matches!(byte, 0 | b' '));
    let or_zero = |field: &[u8], value: io::Result<u64>| if empty(field) { Ok(0) } else { value };
    let uid = number(b"uid").map_or_else(|| or_zero(&old.uid, header.uid()), Ok).map_err(failed)?;
    let gid = number(b"gid").map_or_else(|| or_zero(&old.gid, header.gid()), Ok).map_err(failed)?;
    let (mtime, nanoseconds) = match entry.pax.get(&b"mtime"[..]).and_then(|text| time(text)) {
        Some(time) => time,
        None => (i64::try_from(or_zero(&old.mtime, header.mtime()).map_err(failed)?).unwrap_or(0), 0),
    };
    let set = entry.pax.iter().filter_map(|(key, value)| xattr(key, value)).collect();
    let xattrs = xattrs.number(set).ok_or_else(|| refuse(path, "its extended attributes are too large"))?;
    let mode = u16::try_from(or_zero(&old.mode, header.mode().map(u64::from)).map_err(failed)? & 0o7777)
        .unwrap_or(0);
    let attributes =
        Attributes { mode, uid: id(uid)?, gid: id(gid)?, mtime, nanoseconds, xattrs, opaque: false };
    tree.insert(path, kind, attributes)
}

/// Seconds and nanoseconds of a pax time.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (text.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000_u32.checked_sub(nanoseconds)?)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// An extended attribute that an image may bring. Those of overlayfs would let a layer point anywhere; those of security
/// modules are of another machine's policy.
fn xattr(key: &[u8], value: &[u8]) -> Option<Xattr> {
    let name = key.strip_prefix(b"SCHILY.xattr.")?;
    let (index, rest): (u8, &[u8]) = match name {
        b"security.capability" => (6, b"capability"),
        b"system.posix_acl_access" => (2, b""),
        b"system.posix_acl_default" => (3, b""),
        name => (1, name.strip_prefix(b"user.")?),
    };
    if index == 1 && (rest.is_empty() || rest.starts_with(b"overlay.") || rest.contains(&0)) {
        return None;
    }
    Some(Xattr { index, name: rest.into(), value: value.into() })
}

/// The archive as it goes by: hashed and written as it is.
struct Source<'a, R> {
    from: R,
    to: &'a File,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that were read from `from`.
    taken: u64,
    hasher: Hasher,
    limits: &'a Limits,
    watch: &'a Watch<'a>,
    space_at: u64,
}

impl<R: Read> Source<'_, R> {
    /// Reads on; `false` at the end.
    fn fill(&mut self) -> Result<bool, LayerError> {
        if self.watch.cancelled.load(Ordering::Relaxed) {
            return Err(LayerError::Cancelled);
        }
        let read = loop {
            match self.from.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if self.watch.cancelled.load(Ordering::Relaxed) => return Err(LayerError::Cancelled),
                Err(error) => return Err(LayerError::Read(error)),
                Ok(read) => break read,
            }
        };
        (self.start, self.end) = (0, read);
        let Some(bytes @ [_, ..]) = self.buffer.get(..read) else { return Ok(false) };
        let after = self.taken + read as u64;
        let limits = self.limits;
        if after > limits.layer_size {
            return Err(LayerError::TooLarge { what: "bytes in a layer", limit: limits.layer_size });
        }
        let consumed = self.watch.consumed.load(Ordering::Relaxed).max(1);
        if after > limits.ratio_from && after / consumed > limits.ratio {
            return Err(LayerError::TooLarge { what: "times its compressed size", limit: limits.ratio });
        }
        if after >= self.space_at {
            self.space_at = after + SPACE_EVERY;
            let free = free_bytes(self.to).map_err(LayerError::Write)?;
            if free < limits.reserve_bytes + SPACE_EVERY {
                return Err(LayerError::NoSpace { free, reserve: limits.reserve_bytes });
            }
            (self.watch.progress)(consumed);
        }
        self.hasher.update(bytes);
        self.to.write_all_at(bytes, HEAD + self.taken).map_err(LayerError::Write)?;
        self.taken = after;
        Ok(true)
    }

    /// Reads to the end of the stream. Bytes behind the end of the archive could be another archive for another reader.
    fn only_zeros(&mut self) -> Result<(), LayerError> {
        loop {
            let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
            if rest.iter().any(|byte| *byte != 0) {
                let source = io::Error::other("there is something behind its end");
                return Err(LayerError::Tar { offset: self.position(), source });
            }
            if !self.fill()? {
                return Ok(());
            }
        }
    }

    fn truncated(&self) -> LayerError {
        LayerError::Tar { offset: self.taken, source: io::ErrorKind::UnexpectedEof.into() }
    }
}

impl<R: Read> Stream for Source<'_, R> {
    fn position(&self) -> u64 {
        self.taken - (self.end - self.start) as u64
    }

    fn read(&mut self, into: &mut [u8]) -> Result<bool, LayerError> {
        let mut done = 0;
        while let Some(rest @ [_, ..]) = into.get_mut(done..) {
            if self.start == self.end && !self.fill()? {
                return if done == 0 { Ok(false) } else { Err(self.truncated()) };
            }
            let have = self.buffer.get(self.start..self.end).unwrap_or_default();
            let count = have.len().min(rest.len());
            rest.iter_mut().zip(have).for_each(|(to, from)| *to = *from);
            self.start += count;
            done += count;
        }
        Ok(true)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), LayerError> {
        while count > 0 {
            if self.start == self.end && !self.fill()? {
                return Err(self.truncated());
            }
            let step = (self.end - self.start).min(usize::try_from(count).unwrap_or(usize::MAX));
            self.start += step;
            count -= step as u64;
        }
        Ok(())
    }
}

/// Free bytes of the file system that a file is on.
pub(crate) fn free_bytes(file: &File) -> io::Result<u64> {
    let stat = nix::sys::statvfs::fstatvfs(file)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
