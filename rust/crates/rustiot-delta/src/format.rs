//! The file format, as bytes. See `docs/contracts/delta-format.md`.

/// An old image that a delta refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceInfo {
    /// `root`, `boot` or another name.
    pub name: String,
    /// Length in bytes; what is given to the decoder may be longer.
    pub len: u64,
    /// SHA-256 of these bytes.
    pub sha256: [u8; 32],
}

/// What a delta says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of what it makes, bytes.
    pub target_len: u64,
    /// SHA-256 of what it makes.
    pub target_sha256: [u8; 32],
    /// What it is made from, in the order in which [`crate::Delta::target`] wants them; none for a full download.
    pub sources: Vec<SourceInfo>,
}
