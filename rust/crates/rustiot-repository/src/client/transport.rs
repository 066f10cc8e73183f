//! Where `tough` gets its files: the timestamp that was fetched already, immutable files that are here already, and
//! everything else from one mirror. Bodies are bounded before they are in memory.
//!
//! Every failure but "no such file" is told inside the stream: `tough` takes a failed request for the next root as "there
//! is none", and a network that fails at the right moment must not mean that.

use super::{Answer, MAX_METADATA, MAX_TIMESTAMP, Traffic};
use crate::index::MAX_BYTES;
use bytes::Bytes;
use futures_util::stream;
use rustiot_http::{Fetched, Http, StatusCode, Url, Validator};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use tough::{TransportError, TransportErrorKind, TransportStream};

/// A file cannot be fetched.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// Over the network.
    #[error(transparent)]
    Http(Arc<rustiot_http::Error>),
    /// From a disk.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Neither `http`, `https` nor `file`.
    #[error("{0:?} addresses are not supported: use https, http or file")]
    Scheme(String),
    /// It is larger than it may be.
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
}

impl FetchError {
    /// The file is not there, as opposed to: nobody could be asked. Some stores answer 403 for a missing file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            FetchError::Http(error) => matches!(
                error.status(),
                Some(StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN)
            ),
            FetchError::File { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// What the network said.
    #[must_use]
    pub fn http(&self) -> Option<&rustiot_http::Error> {
        match self {
            FetchError::Http(error) => Some(error),
            _ => None,
        }
    }
}

/// A whole file of at most `limit` bytes.
pub(super) async fn get(http: &Http, url: &Url, limit: u64) -> Result<Vec<u8>, FetchError> {
    Ok(get_if_changed(http, url, &Validator::default(), limit)
        .await?
        .map(|(bytes, _)| bytes)
        .unwrap_or_default())
}

/// A whole file, unless it is still the one that `have` belongs to.
pub(super) async fn get_if_changed(
    http: &Http,
    url: &Url,
    have: &Validator,
    limit: u64,
) -> Result<Answer, FetchError> {
    match url.scheme() {
        "http" | "https" => match http.get_if_changed(url, have, limit).await {
            Ok(Fetched::NotModified) => Ok(None),
            Ok(Fetched::New { bytes, validator }) => Ok(Some((bytes, validator))),
            Err(rustiot_http::Error::TooLarge { limit, .. }) => Err(FetchError::TooLarge(limit)),
            Err(error) => Err(FetchError::Http(Arc::new(error))),
        },
        "file" => {
            let failed = |source: std::io::Error| FetchError::File {
                path: url.path().to_owned(),
                source: Arc::new(source),
            };
            let path = url.to_file_path().map_err(|()| failed(std::io::ErrorKind::InvalidInput.into()))?;
            let mut bytes = Vec::new();
            let file = std::fs::File::open(path).map_err(failed)?;
            file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
            if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
                return Err(FetchError::TooLarge(limit));
            }
            Ok(Some((bytes, Validator::default())))
        }
        other => Err(FetchError::Scheme(other.to_owned())),
    }
}

/// Whether the network may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// For what is not here already.
    Network,
    /// For everything: what is here did not fit.
    OnlyNetwork,
    /// Not at all.
    Disk,
}

#[derive(Debug, Default)]
struct Log {
    seen: BTreeMap<String, Vec<u8>>,
    traffic: Traffic,
}

/// One check's files.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    http: Http,
    origin: Origin,
    timestamp: Arc<Vec<u8>>,
    files: Arc<BTreeMap<String, Vec<u8>>>,
    log: Arc<Mutex<Log>>,
}

impl Transport {
    pub fn new(http: Http, origin: Origin, timestamp: Vec<u8>, files: BTreeMap<String, Vec<u8>>) -> Self {
        Transport {
            http,
            origin,
            timestamp: Arc::new(timestamp),
            files: Arc::new(files),
            log: Arc::default(),
        }
    }

    /// Adds what was fetched since the last call.
    pub fn add_to(&self, traffic: &mut Traffic) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = std::mem::take(&mut log.traffic);
        traffic.requests = traffic.requests.saturating_add(spent.requests);
        traffic.bytes = traffic.bytes.saturating_add(spent.bytes);
    }

    /// The metadata that `tough` has seen, by the names under which it is kept.
    pub fn seen(&self) -> BTreeMap<String, Vec<u8>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).seen.clone()
    }

    async fn bytes(&self, url: &Url) -> Result<Vec<u8>, FetchError> {
        let name = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
        if name == "timestamp.json" {
            return Ok(self.timestamp.to_vec());
        }
        let is_root = name.ends_with(".root.json");
        let (key, limit) = kept_as(name);
        // Immutable by name; `tough` checks version, length and hash against what signs them. Kept for later only if
        // it is a part of the set: roots are kept elsewhere.
        if let Some(bytes) = self
            .files
            .get(&key)
            .filter(|bytes| self.origin != Origin::OnlyNetwork && !is_root && fits(name, bytes))
        {
            self.keep(key, bytes, false);
            return Ok(bytes.clone());
        }
        if self.origin == Origin::Disk {
            return Err(FetchError::File {
                path: name.to_owned(),
                source: Arc::new(std::io::ErrorKind::NotFound.into()),
            });
        }
        let fetched = get(&self.http, url, limit).await;
        let none = Vec::new();
        let bytes = fetched.as_ref().unwrap_or(&none);
        self.keep(if is_root { String::new() } else { key }, bytes, true);
        fetched
    }

    fn keep(&self, key: String, bytes: &[u8], fetched: bool) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if fetched {
            log.traffic.requests = log.traffic.requests.saturating_add(1);
            log.traffic.bytes =
                log.traffic.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
        // A file that is none of the metadata is kept by whoever asked for it.
        if matches!(key.as_str(), "snapshot.json" | "targets.json" | "rollout.json") {
            log.seen.insert(key, bytes.to_vec());
        }
    }
}

/// `7.targets.json` is kept as `targets.json`, `<sha256>.NAME` as `NAME`; and how large it may be.
fn kept_as(name: &str) -> (String, u64) {
    let rest = name.split_once('.').map_or(name, |(_, rest)| rest);
    let limit = match rest {
        "timestamp.json" => MAX_TIMESTAMP,
        "root.json" | "snapshot.json" | "targets.json" | "rollout.json" => MAX_METADATA,
        _ => u64::try_from(MAX_BYTES).unwrap_or(u64::MAX),
    };
    (rest.to_owned(), limit)
}

/// Whether a kept file is the one that is asked for: by its version, or by its hash.
fn fits(name: &str, bytes: &[u8]) -> bool {
    let prefix = name.split_once('.').map_or("", |(prefix, _)| prefix);
    if prefix.len() == 64 {
        return prefix == crate::Digest::of(bytes).to_string();
    }
    #[derive(serde::Deserialize)]
    struct Probe {
        signed: Version,
    }
    #[derive(serde::Deserialize)]
    struct Version {
        version: u64,
    }
    serde_json::from_slice::<Probe>(bytes).is_ok_and(|probe| probe.signed.version.to_string() == prefix)
}

#[async_trait::async_trait]
impl tough::Transport for Transport {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        match self.bytes(&url).await {
            Ok(bytes) => Ok(Box::pin(stream::iter([Ok(Bytes::from(bytes))]))),
            Err(error) => {
                let kind = if error.is_missing() {
                    TransportErrorKind::FileNotFound
                } else {
                    TransportErrorKind::Other
                };
                Ok(Box::pin(stream::iter([Err(TransportError::new_with_cause(kind, url, error))])))
            }
        }
    }
}
