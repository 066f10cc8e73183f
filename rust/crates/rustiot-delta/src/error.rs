//! What can be wrong with a delta.

use std::io;

/// Where in a delta something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The header with its index.
    Header,
    /// A segment, by number.
    Segment(usize),
    /// A hash tree, by number.
    Tree(usize),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Header => f.write_str("header"),
            Part::Segment(number) => write!(f, "segment {number}"),
            Part::Tree(number) => write!(f, "hash tree {number}"),
        }
    }
}

/// Why a delta cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a delta, or one of a version that is not known here.
    #[error("no delta of a known version")]
    NotADelta,
    /// Its bytes are not what the encoder wrote.
    #[error("the delta's {part} is damaged: {what}")]
    Damaged {
        /// Where.
        part: Part,
        /// What is wrong.
        what: &'static str,
    },
    /// It asks for more memory than a decoder gives.
    #[error("the delta's {part} is too large: {what}")]
    TooLarge {
        /// Where.
        part: Part,
        /// What is too large.
        what: &'static str,
    },
    /// The delta itself cannot be read.
    #[error("cannot read the delta at {offset}")]
    ReadDelta {
        /// Offset in the delta, bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The old data cannot be read.
    #[error("cannot read source {name} at {offset}")]
    ReadSource {
        /// The source's name.
        name: String,
        /// Offset in the source, bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Whoever got the target's bytes did not take them.
    #[error("cannot write the target")]
    Write(#[source] io::Error),
    /// Other sources were given than the header names.
    #[error("the delta needs {wanted} sources, {given} were given")]
    Sources {
        /// By the header.
        wanted: usize,
        /// By the caller.
        given: usize,
    },
    /// A source is shorter than what the delta was made from.
    #[error("source {name} has {given} bytes, the delta was made from {wanted}")]
    SourceLength {
        /// The source's name.
        name: String,
        /// By the header.
        wanted: u64,
        /// What was given.
        given: u64,
    },
    /// The caller asked for bytes beyond the target.
    #[error("{len} bytes at {offset} are not within the target of {target_len}")]
    OutOfRange {
        /// Asked for.
        offset: u64,
        /// Asked for.
        len: u64,
        /// The target's length.
        target_len: u64,
    },
    /// The whole target came out other than the header says: other sources than the delta was made from.
    #[error("the target that came out has another checksum than the delta says")]
    Mismatch,
}
