//! The decoder: a seekable view of the target.

use crate::{Error, Header, ReadAt};
use std::ops::Range;

/// A delta whose header and index have been read and checked.
pub struct Delta<D> {
    delta: D,
    header: Header,
}

impl<D: ReadAt> Delta<D> {
    /// Reads and checks header and index, nothing else.
    ///
    /// # Errors
    /// It is no delta, damaged, too large, or cannot be read.
    pub fn open(delta: D) -> Result<Self, Error> {
        let _ = delta;
        Err(Error::NotADelta)
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Byte ranges of the delta that are needed for `range` of the target, in order, not touching each other.
    pub fn needs(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let _ = range;
        Vec::new()
    }

    /// The target. `sources` in the header's order; each may be longer than the header says.
    ///
    /// # Errors
    /// Other sources than the header says, by number or length.
    pub fn target(self, sources: Vec<Box<dyn ReadAt + Send>>) -> Result<Target<D>, Error> {
        Ok(Target { delta: self, sources })
    }
}

/// A seekable view of what a delta makes.
pub struct Target<D> {
    delta: Delta<D>,
    sources: Vec<Box<dyn ReadAt + Send>>,
}

impl<D: ReadAt> Target<D> {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.delta.header.target_len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset` of the target on. Cheapest in order; going back decodes a segment again.
    ///
    /// # Errors
    /// Beyond the end, the delta is damaged, or something cannot be read.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let _ = (offset, buf, &self.sources);
        Err(Error::NotADelta)
    }

    /// Bytes of the target that came from the sources so far.
    pub fn reused_bytes(&self) -> u64 {
        0
    }

    /// Makes the whole target once, in order, and compares its checksum; `each` gets every part.
    ///
    /// # Errors
    /// As [`Target::read_at`], and when the checksum differs.
    pub fn verify(&mut self, each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> Result<(), Error> {
        let _ = each;
        Err(Error::NotADelta)
    }
}
