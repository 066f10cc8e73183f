//! A layer: taken in from a stream, kept as one file, mounted by the kernel as erofs.
//!
//! Never unpacks anything into a directory: what a tar archive names never becomes a path of this device. Called by the
//! pull, by `load` and by the scrub. The file's layout is in `docs/contracts/images.md`.

pub(crate) mod by_delta;
pub(crate) mod compression;
mod erofs;
pub(crate) mod file;
mod import;
#[cfg(test)]
mod tests;
mod tree;
pub(crate) mod walk;

use std::io;

pub(crate) use import::{Imported, Watch, import};

use crate::digest::Digest;

/// A layer is of no use, or there is no room for it.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream does not come to its end, or cannot be decompressed.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// It cannot be written.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// It is no tar archive, or a broken one.
    #[error("broken archive after {offset} bytes")]
    Tar {
        /// Where, in the uncompressed stream.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry is refused.
    #[error("entry {path:?} is refused: {why}")]
    Entry {
        /// Its name, as far as it fits a message.
        path: String,
        /// Why.
        why: &'static str,
    },
    /// Larger than allowed.
    #[error("more than {limit} {what}: refused as a bomb (the limit is the device's, not the registry's)")]
    TooLarge {
        /// Bytes, entries …
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// The space is running out.
    #[error("{free} bytes are free, and {reserve} are kept for others")]
    NoSpace {
        /// What there is.
        free: u64,
        /// What stays free.
        reserve: u64,
    },
    /// Its contents are not what the image's configuration says.
    #[error("its contents have the digest {found}, and the configuration says {expected}")]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Nobody waits for it any more.
    #[error("cancelled")]
    Cancelled,
}
