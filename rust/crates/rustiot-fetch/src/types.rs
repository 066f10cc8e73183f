//! What a caller hands in and sees: the job, its limits, its progress.
//!
//! Values only. Called by the update service.

use std::path::PathBuf;
use std::time::Duration;

use rustiot_http::Url;
use tokio::time::Instant;

/// A file on servers, known by contents.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteFile {
    /// Where it is; the first is tried first. A `file:` address stands alone: the file is read where it lies.
    pub urls: Vec<Url>,
    /// Its length, bytes.
    pub len: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

/// How to get a bundle.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Way {
    /// Out of a delta (or a full download in the same format) and old images.
    Delta {
        /// The `.rdelta`.
        file: RemoteFile,
        /// Old images by the names that the delta uses: files or partitions, opened for reading only. May be longer than
        /// what the delta was made from.
        sources: Vec<(String, PathBuf)>,
    },
    /// A bundle as it is.
    Plain {
        /// Where it is; the first is tried first.
        urls: Vec<Url>,
        /// Its length, where known.
        len: Option<u64>,
        /// Its SHA-256, where known.
        sha256: Option<[u8; 32]>,
    },
}

/// What a job may use. Can be changed while it runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes per second from the servers.
    pub rate: Option<u64>,
    /// Most bytes on the medium; a file that is larger is not kept at all. 0 is no cache. Looked at on start only.
    pub cache: u64,
    /// Shortest delay after a failure.
    pub backoff_base: Duration,
    /// Longest delay after a failure, unless a server asks for more.
    pub backoff_cap: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            rate: None,
            cache: 256 << 20,
            backoff_base: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(300),
        }
    }
}

/// What a job is doing.
#[derive(Clone, Debug, Default)]
pub enum State {
    /// Nobody wants anything that is not there.
    #[default]
    Idle,
    /// Bytes come.
    Fetching,
    /// The servers are away; it goes on by itself.
    Waiting {
        /// Since when nothing came.
        since: Instant,
        /// The last failure, for people.
        why: String,
        /// Attempts since something came.
        attempts: u64,
    },
    /// Held by the caller.
    Paused,
    /// Ended for good.
    Failed(crate::Failure),
}

/// Where a job is. All in bytes; counted since the job was started in this process.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// What it is doing.
    pub state: State,
    /// Length of the file on the servers; 0 while unknown.
    pub total: u64,
    /// Found in the cache when the job started. Of a file of this machine: what has been compared with its hash.
    pub cached: u64,
    /// Came from the servers, thrown away or not.
    pub fetched: u64,
    /// Of the file, in the cache now (with no cache: fetched and counted once).
    pub have: u64,
    /// Of the bundle, taken from old images.
    pub reused: u64,
    /// Length of the bundle; 0 while unknown.
    pub bundle: u64,
    /// Handed to RAUC.
    pub served: u64,
    /// Bytes per second from the servers, lately.
    pub rate: u64,
    /// Until the file is complete, at that rate.
    pub eta: Option<Duration>,
    /// The longest that a request of RAUC's is being held now. RAUC's kernel part gives up at 300 s.
    pub held_since: Option<Instant>,
}
