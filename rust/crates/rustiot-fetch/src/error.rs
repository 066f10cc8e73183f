//! Why a bundle cannot be had this way, for good.
//!
//! What may heal by itself never appears here. Called by everything in this crate; the update service takes the next
//! way.

use std::sync::Arc;

/// A job ended without its bundle. Cheap to clone: everybody who waits gets one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The caller cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// No address has the file, again and again.
    #[error("no server has the file")]
    Refused(#[source] Arc<rustiot_http::Error>),
    /// The file on the server changed after parts of it were handed out.
    #[error("the file on the server changed while it was in use")]
    Changed,
    /// All bytes came and their SHA-256 is wrong, from every address.
    #[error("what the servers send has another checksum than the index says")]
    Corrupt,
    /// The job names no address.
    #[error("no address to fetch from")]
    NoAddress,
    /// The whole file does not fit into the cache.
    #[error("{need} bytes do not fit into a cache of {limit}")]
    TooLarge {
        /// Length of the file, bytes.
        need: u64,
        /// What the limits allow, bytes.
        limit: u64,
    },
    /// The cache's medium failed.
    #[error("the cache failed")]
    Cache(#[source] Arc<crate::CacheError>),
    /// A file or directory of the cache failed.
    #[error("cannot use {path}")]
    File {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A file of this machine cannot be read: it is not there, or its medium is gone.
    #[error("cannot read {path}")]
    Local {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The delta is of no use: damaged, or not made for this.
    #[error("the delta cannot be used")]
    Delta(#[source] Arc<rustiot_delta::Error>),
    /// An old image is not the one that the delta was made from.
    #[error("source {name}: {what}")]
    Source {
        /// Its name in the delta.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The proxy itself failed.
    #[error("the proxy failed: {0}")]
    Proxy(&'static str),
}

impl From<crate::CacheError> for Failure {
    fn from(error: crate::CacheError) -> Failure {
        Failure::Cache(Arc::new(error))
    }
}
