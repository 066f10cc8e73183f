//! One bundle by one way: what the server asks for, whatever the way is.
//!
//! Called by the server and the handle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustiot_http::Bytes;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::error::Failure;
use crate::store::Store;
use crate::types::Progress;
use crate::worker::Worker;

/// How many stretches of the bundle are in memory at once.
const AT_ONCE: usize = 2;

/// One bundle by one way.
pub(crate) struct Job {
    pub store: Store,
    /// Old images, if the way is a delta.
    sources: Option<Vec<(String, PathBuf)>>,
    worker: OnceCell<Worker>,
    /// Places of stretches in memory.
    places: Arc<Semaphore>,
    progress: watch::Sender<Progress>,
    held: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

impl Job {
    pub fn new(
        store: Store,
        sources: Option<Vec<(String, PathBuf)>>,
        progress: watch::Sender<Progress>,
    ) -> Job {
        Job {
            store,
            sources,
            worker: OnceCell::new(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            progress,
            held: Mutex::default(),
        }
    }

    /// The delta's decoder, made when first needed. A failure ends the job: the next way is the planner's.
    pub async fn worker(&self) -> Result<Option<&Worker>, Failure> {
        let Some(sources) = &self.sources else { return Ok(None) };
        let start = || async {
            let len = self.store.len().await?;
            let progress = self.progress.clone();
            let reused = move |bytes| {
                progress.send_if_modified(|progress| std::mem::replace(&mut progress.reused, bytes) != bytes);
            };
            let places = self.places.clone();
            let worker = Worker::start(self.store.clone(), len, sources.clone(), places, reused).await?;
            let bundle = worker.header().target_len;
            self.progress.send_modify(|progress| progress.bundle = bundle);
            Ok(worker)
        };
        match self.worker.get_or_try_init(start).await {
            Ok(worker) => Ok(Some(worker)),
            Err(failure) => Err(self.ended(failure)),
        }
    }

    /// Length of the bundle.
    pub async fn bundle_len(&self) -> Result<u64, Failure> {
        if let Some(failure) = self.store.failure() {
            return Err(failure);
        }
        if let Some(worker) = self.worker().await? {
            return Ok(worker.header().target_len);
        }
        let len = self.store.len().await?;
        self.progress.send_if_modified(|progress| std::mem::replace(&mut progress.bundle, len) != len);
        Ok(len)
    }

    /// A stretch of the bundle, once what it needs is here and there is a place for it in memory.
    pub async fn make(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        let made = match self.worker().await? {
            Some(worker) => {
                self.store.prefetch(&worker.needs(range.clone())).await?;
                worker.make(range).await
            }
            None => self.read(range).await,
        };
        let bytes = made.map_err(|failure| self.ended(failure))?;
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.progress.send_modify(|progress| progress.served = progress.served.saturating_add(len));
        Ok(bytes)
    }

    /// The same of a bundle that is fetched as it is.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        // What comes from the servers is waited for without holding anything up.
        self.store.prefetch(std::slice::from_ref(&range)).await?;
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|_| Failure::Proxy("the server ended"))?;
        let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or_default()];
        self.store.fill(range.start, &mut bytes).await?;
        Ok(Stretch { bytes, _place: place }.into())
    }

    fn ended(&self, failure: Failure) -> Failure {
        self.store.fail(failure.clone());
        self.store.failure().unwrap_or(failure)
    }

    /// A request is held until this is dropped.
    pub fn hold(&self) -> Held<'_> {
        let id = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            let id = held.0;
            held.0 = id.wrapping_add(1);
            held.1.insert(id, Instant::now());
            id
        };
        self.show_held();
        Held { job: self, id }
    }

    fn show_held(&self) {
        let since = self.held.lock().unwrap_or_else(PoisonError::into_inner).1.values().min().copied();
        self.progress
            .send_if_modified(|progress| std::mem::replace(&mut progress.held_since, since) != since);
    }
}

/// Bytes of the bundle in memory. Their place is free again when the last of them is on its way, which only they know: the
/// server's connections take them long before.
pub(crate) struct Stretch {
    pub bytes: Vec<u8>,
    pub _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Stretch {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Stretch> for Bytes {
    fn from(stretch: Stretch) -> Bytes {
        Bytes::from_owner(stretch)
    }
}

/// A request that is being held.
pub(crate) struct Held<'a> {
    job: &'a Job,
    id: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.job.held.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.id);
        self.job.show_held();
    }
}
