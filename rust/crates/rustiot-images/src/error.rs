//! What may go wrong with images, and what that means for whoever asked.
//!
//! Pure. Called by everything in this crate.

use std::io;
use std::path::PathBuf;

use crate::auth::AuthError;
use crate::digest::{Digest, ImageId};
use crate::layer::LayerError;
use crate::manifest::ManifestError;
use crate::reference::{Reference, ReferenceError};

/// An operation on images failed. Nothing of it is left behind that anybody could see.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// There is no such image here.
    #[error("no such image: {name}")]
    NoSuchImage {
        /// What was asked for.
        name: String,
    },
    /// An id was shortened too much.
    #[error("{prefix:?} is the beginning of {count} images' ids")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// The image is needed.
    #[error("image {id} is needed: {}", by.join(", "))]
    InUse {
        /// The image.
        id: ImageId,
        /// Containers and pins.
        by: Vec<String>,
    },
    /// The image has more names than one, and the caller named it by its id.
    #[error("image {id} has several names ({}); remove them one by one, or force it", names.join(", "))]
    SeveralNames {
        /// The image.
        id: ImageId,
        /// Its names.
        names: Vec<String>,
    },
    /// Layers of the image are missing or bad.
    #[error("image {id} is damaged: layer {layer} {why}; pull it again, only what is bad is fetched")]
    Damaged {
        /// The image.
        id: ImageId,
        /// The first bad layer.
        layer: Digest,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A manifest or a configuration is of no use.
    #[error("{name}: unusable image")]
    Manifest {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A layer is of no use.
    #[error("{name}: layer {layer} cannot be taken in")]
    Layer {
        /// The image.
        name: String,
        /// The layer, by the digest of what was fetched.
        layer: Box<str>,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// A blob is not what its digest says.
    #[error(
        "{name}: {what} {expected} has the digest {found}: the registry or somebody in between changed it"
    )]
    DigestMismatch {
        /// The image.
        name: String,
        /// Manifest, configuration or layer.
        what: &'static str,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A blob has another length than its manifest says.
    #[error("{name}: {what} {digest} has {found} bytes, and the manifest says {expected}")]
    WrongSize {
        /// The image.
        name: String,
        /// Configuration or layer.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// What the manifest says.
        expected: u64,
        /// What the server has.
        found: u64,
    },
    /// The registry does not have it, or does not say that it has.
    #[error("{reference} is not in the registry: {message}")]
    NotInRegistry {
        /// What was asked for.
        reference: Box<Reference>,
        /// The registry's words.
        message: String,
    },
    /// The registry wants other credentials.
    #[error("{registry} refuses access to {reference}: {message}")]
    Unauthorized {
        /// Whose.
        registry: String,
        /// What was asked for.
        reference: Box<Reference>,
        /// The registry's words.
        message: String,
    },
    /// The registry asks to come back later, and later is too late for this pull.
    #[error("{registry} has had too many requests; it asks to wait{}", seconds.map(|s| format!(" {s} s")).unwrap_or_default())]
    TooManyRequests {
        /// Whose.
        registry: String,
        /// For how long, where it says.
        seconds: Option<u64>,
    },
    /// The registry answers something that is not in the protocol.
    #[error("{registry}: {what}")]
    Registry {
        /// Which.
        registry: String,
        /// What.
        what: String,
    },
    /// A request failed.
    #[error("cannot fetch {what} of {name}")]
    Http {
        /// Manifest, layer …
        what: Box<str>,
        /// The image.
        name: Box<str>,
        /// Why, and what to do.
        #[source]
        source: rustiot_http::Error,
    },
    /// A registry's client cannot be made.
    #[error("cannot prepare requests to {registry}")]
    Client {
        /// Which.
        registry: String,
        /// Why.
        #[source]
        source: rustiot_http::BuildError,
    },
    /// No credentials.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Too little space.
    #[error(
        "{name} needs {needed} bytes and {} are free ({reserve} are kept for others); remove images or grow the data partition",
        free
    )]
    NoSpace {
        /// The image.
        name: String,
        /// What it needs at least.
        needed: u64,
        /// What there is.
        free: u64,
        /// What stays free.
        reserve: u64,
    },
    /// Too few inodes.
    #[error("{name} needs {needed} inodes and {free} are free ({reserve} are kept for others)")]
    NoInodes {
        /// The image.
        name: String,
        /// What it needs.
        needed: u64,
        /// What there is.
        free: u64,
        /// What stays free.
        reserve: u64,
    },
    /// An archive is of no use.
    #[error("the archive is of no use: {why}")]
    Archive {
        /// Why.
        why: String,
    },
    /// An archive cannot be read to its end, or not be written.
    #[error("cannot {step} the archive")]
    ArchiveIo {
        /// Read or write.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk.
    #[error("cannot {step} {}", path.display())]
    Disk {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has the store.
    #[error("{} belongs to another process; stop it first", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
    },
    /// The store was made by a newer release.
    #[error("{} is of version {found}, and this release knows {known}", path.display())]
    Version {
        /// The store.
        path: PathBuf,
        /// What it is.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// Collection before the containers are known.
    #[error("nothing is collected before the containers of this device are known (`holds_complete`)")]
    HoldsUnknown,
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

/// What an error means for whoever asked, as an API server needs it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The request is wrong (400).
    Invalid,
    /// Not here, not there (404).
    NotFound,
    /// Not while something needs it (409).
    Conflict,
    /// No access (401, 403).
    Unauthorized,
    /// Later (429).
    Busy,
    /// The network or the registry is down: later (500).
    Unavailable,
    /// What came is bad (500).
    Corrupt,
    /// No space (500; 507).
    NoSpace,
    /// The device (500).
    Internal,
}

impl Error {
    /// What it means for whoever asked.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Error::Reference(_) | Error::Archive { .. } | Error::Ambiguous { .. } | Error::Auth(_) => {
                Kind::Invalid
            }
            Error::NoSuchImage { .. } | Error::NotInRegistry { .. } => Kind::NotFound,
            Error::InUse { .. } | Error::SeveralNames { .. } | Error::HoldsUnknown | Error::Cancelled => {
                Kind::Conflict
            }
            Error::Unauthorized { .. } => Kind::Unauthorized,
            Error::TooManyRequests { .. } => Kind::Busy,
            Error::Http { source, .. } if source.may_heal() => Kind::Unavailable,
            Error::Registry { .. } | Error::Http { .. } | Error::Client { .. } => Kind::Unavailable,
            Error::Manifest { source: ManifestError::Platform { .. }, .. } => Kind::NotFound,
            Error::NoSpace { .. } | Error::NoInodes { .. } => Kind::NoSpace,
            Error::Layer { source: LayerError::NoSpace { .. }, .. } => Kind::NoSpace,
            Error::Damaged { .. }
            | Error::Manifest { .. }
            | Error::Layer { .. }
            | Error::DigestMismatch { .. }
            | Error::WrongSize { .. } => Kind::Corrupt,
            Error::ArchiveIo { .. } | Error::Disk { .. } | Error::Locked { .. } | Error::Version { .. } => {
                Kind::Internal
            }
        }
    }
}

/// A disk error with its place.
pub(crate) fn disk(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Disk { step, path, source }
}
