//! Deltas between releases: one file format for every way to get a bundle. The decoder gives a seekable view of the
//! target in bounded memory and runs on the device; the encoder (feature `encode`) runs on a workstation. Pure: no
//! network, no clock, no threads on the device; bytes come through [`ReadAt`]. Called by the fetch proxy, by the
//! pull of container images and by the publisher. Contract: `docs/contracts/delta-format.md`.

mod code;
mod error;
mod format;
mod lzma;
mod read;
mod reference;
mod segment;
mod target;
mod tree;

#[cfg(feature = "encode")]
mod encode;

#[cfg(feature = "encode")]
pub use encode::{EncodeError, Options, Source, Summary, TreeHint, encode};
pub use error::{Error, Part};
pub use format::{Header, SourceInfo};
pub use read::{FileAt, ReadAt};
pub use target::{Delta, Target, apply};
pub use tree::hash_tree;
