//! What happens during a pull or a load, in the words of Docker's JSON stream.
//!
//! Pure. Sent by the store to whoever asked; an API server turns it into lines.

use std::fmt;
use std::sync::Arc;

/// What happens to a layer, or to the image as a whole.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Status {
    /// The image's name and where it comes from (`id` is the tag).
    PullingFrom,
    /// The layer is going to be fetched.
    PullingFsLayer,
    /// The layer waits for its turn.
    Waiting,
    /// Bytes of the layer have arrived: `current` of `total`.
    Downloading,
    /// Bytes of a delta have arrived, by which the layer is made out of older ones: `current` of `total`.
    DownloadingDelta,
    /// Bytes of the layer have been made by its delta: `current` of `total`.
    ApplyingDelta,
    /// A delta that the registry offers is of no use, for the reason in `detail`; the layer is fetched as a whole.
    DeltaUnusable,
    /// A server or the network failed; the next attempt follows.
    Retrying,
    /// All bytes of the layer are here.
    DownloadComplete,
    /// The layer's digest is being checked.
    VerifyingChecksum,
    /// Bytes of the layer have been taken in: `current` of `total` compressed ones.
    Extracting,
    /// The layer is in the store.
    PullComplete,
    /// The layer was in the store already.
    AlreadyExists,
    /// A layer of an archive is being taken in.
    LoadingLayer,
    /// The digest of what was pulled (`id` is the digest).
    Digest,
    /// The image is new here.
    Downloaded,
    /// The image was here already.
    UpToDate,
}

impl Status {
    /// Docker's words for it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Status::PullingFrom => "Pulling from",
            Status::PullingFsLayer => "Pulling fs layer",
            Status::Waiting => "Waiting",
            Status::Downloading => "Downloading",
            Status::DownloadingDelta => "Downloading delta",
            Status::ApplyingDelta => "Applying delta",
            Status::DeltaUnusable => "Delta not used, fetching the whole layer",
            Status::Retrying => "Retrying",
            Status::DownloadComplete => "Download complete",
            Status::VerifyingChecksum => "Verifying Checksum",
            Status::Extracting => "Extracting",
            Status::PullComplete => "Pull complete",
            Status::AlreadyExists => "Already exists",
            Status::LoadingLayer => "Loading layer",
            Status::Digest => "Digest",
            Status::Downloaded => "Status: Downloaded newer image for",
            Status::UpToDate => "Status: Image is up to date for",
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// The layer's short id (twelve digits of its digest), the tag, the digest or the name, as [`Status`] says.
    pub id: String,
    /// What happened.
    pub status: Status,
    /// Bytes so far; 0 where there is nothing to count.
    pub current: u64,
    /// Bytes in all; 0 where it is not known.
    pub total: u64,
    /// Words for a person, such as the reason of a retry.
    pub detail: Option<String>,
}

/// Where events go. Called from several threads; must not block for long.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Event) + Send + Sync>);

impl Progress {
    /// To this function.
    pub fn new(sink: impl Fn(Event) + Send + Sync + 'static) -> Progress {
        Progress(Arc::new(sink))
    }

    /// Nowhere.
    #[must_use]
    pub fn none() -> Progress {
        Progress::new(drop)
    }

    pub(crate) fn say(&self, id: impl Into<String>, status: Status) {
        self.count(id, status, 0, 0);
    }

    pub(crate) fn count(&self, id: impl Into<String>, status: Status, current: u64, total: u64) {
        (self.0)(Event { id: id.into(), status, current, total, detail: None });
    }

    pub(crate) fn detail(&self, id: impl Into<String>, status: Status, detail: String) {
        (self.0)(Event { id: id.into(), status, current: 0, total: 0, detail: Some(detail) });
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
