//! The encoder. Workstation only: it may take minutes, gigabytes and all processors. Same inputs, same bytes.

use crate::{Error, ReadAt};

/// An old image.
pub struct Source<'a> {
    /// `root`, `boot` or another name.
    pub name: &'a str,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// How to encode.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Leave out hash trees also where there is no source (then nothing can be served before everything was fetched).
    pub trees_in_full: bool,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Length of the delta, bytes.
    pub len: u64,
    /// SHA-256 of the delta.
    pub sha256: [u8; 32],
}

/// Why nothing was encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Two sources have one name, or a name is empty or too long.
    #[error("{0:?} cannot name a source")]
    Name(String),
    /// The delta cannot be written.
    #[error("cannot write the delta")]
    Write(#[source] std::io::Error),
    /// What was encoded does not decode to the target: a bug here, caught before anyone gets it.
    #[error("the delta does not make the target")]
    Verify(#[source] Error),
}

/// Writes the delta that makes `target` from `sources` to `out`, after it was decoded and compared.
/// `progress` gets a share of the work, 0 to 1, now and then.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode(
    target: &[u8],
    sources: &[Source<'_>],
    options: &Options,
    out: &mut dyn std::io::Write,
    progress: &dyn Fn(f32),
) -> Result<Summary, EncodeError> {
    let _ = (target.len(), sources, options, out, progress, ReadAt::len(target));
    Err(EncodeError::Verify(Error::NotADelta))
}
