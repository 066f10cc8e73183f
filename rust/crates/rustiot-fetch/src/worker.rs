//! Makes a bundle out of a delta and old images, off the main thread, one stretch at a time.
//!
//! RAUC's kernel part asks for several stretches at once and in any order; going back costs a decoder work and, without a
//! cache, bytes, so all who wait are known here, and are served like a lift serves floors. Called by the proxy.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

use rustiot_delta::{Delta, FileAt, Header, ReadAt, Target};
use rustiot_http::Bytes;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::Failure;
use crate::job::Stretch;
use crate::store::Store;

/// The delta's own bytes: from the cache, or fetched while somebody waits. Blocks.
#[derive(Clone, Debug)]
pub(crate) struct RemoteAt {
    store: Store,
    runtime: Handle,
    len: u64,
}

impl ReadAt for RemoteAt {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The store keeps why it failed; whoever asked looks there first.
        self.store.fill_blocking(&self.runtime, offset, buf).map_err(io::Error::other)
    }
}

/// A stretch of the bundle that somebody waits for.
struct Job {
    range: Range<u64>,
    answer: oneshot::Sender<Result<Bytes, Failure>>,
}

/// Makes a bundle. Ends when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Worker {
    jobs: mpsc::Sender<Job>,
    index: Arc<Delta<RemoteAt>>,
}

impl Worker {
    /// Reads the delta's index, looks at the old images, and waits for jobs. A stretch is made once there is one of `places`
    /// for it; `reused` is told after each one.
    pub async fn start(
        store: Store,
        len: u64,
        sources: Vec<(String, PathBuf)>,
        places: Arc<Semaphore>,
        reused: impl Fn(u64) + Send + 'static,
    ) -> Result<Worker, Failure> {
        let delta = RemoteAt { store: store.clone(), runtime: Handle::current(), len };
        let opened = tokio::task::spawn_blocking(move || {
            let open = || Delta::open(delta.clone()).map_err(|error| delta_failure(&delta.store, error));
            let (index, target) = (open()?, open()?);
            let images = images(index.header(), &sources)?;
            let target = target.target(images).map_err(|error| delta_failure(&delta.store, error))?;
            Ok::<_, Failure>((index, target))
        });
        let (index, target) = opened.await.map_err(|_| Failure::Proxy("a task of the proxy ended"))??;
        let (jobs, waiting) = mpsc::channel();
        let runtime = Handle::current();
        let place = move || runtime.block_on(places.clone().acquire_owned()).ok();
        tokio::task::spawn_blocking(move || work(&store, target, &waiting, &place, &reused));
        Ok(Worker { jobs, index: Arc::new(index) })
    }

    /// What the delta says of itself.
    pub fn header(&self) -> &Header {
        self.index.header()
    }

    /// What of the delta is needed for a stretch of the bundle.
    pub fn needs(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.index.needs(range)
    }

    /// Makes a stretch of the bundle.
    pub async fn make(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        let (answer, made) = oneshot::channel();
        let gone = Failure::Proxy("the delta's decoder ended");
        self.jobs.send(Job { range, answer }).map_err(|_| gone.clone())?;
        made.await.unwrap_or(Err(gone))
    }
}

/// What a decoder's error means, unless the job ended for a reason of its own.
fn delta_failure(store: &Store, error: rustiot_delta::Error) -> Failure {
    store.failure().unwrap_or_else(|| Failure::Delta(Arc::new(error)))
}

/// Opens old images in the header's order, for reading only, and compares them with what the header says.
fn images(header: &Header, sources: &[(String, PathBuf)]) -> Result<Vec<Box<dyn ReadAt + Send>>, Failure> {
    let mut images: Vec<Box<dyn ReadAt + Send>> = Vec::new();
    for wanted in &header.sources {
        let wrong = |what| Failure::Source { name: wanted.name.clone(), what };
        let Some((_, path)) = sources.iter().find(|(name, _)| *name == wanted.name) else {
            return Err(wrong("there is no such image here"));
        };
        let mut file = File::open(path).map_err(|_| wrong("cannot be opened"))?;
        // A block device has no length of a file; its end can be sought.
        let len = file.seek(SeekFrom::End(0)).map_err(|_| wrong("its length cannot be found"))?;
        if len < wanted.len {
            return Err(wrong("shorter than the image that the delta was made from"));
        }
        file.seek(SeekFrom::Start(0)).map_err(|_| wrong("cannot be read"))?;
        let mut hash = Sha256::new();
        let copied = io::copy(&mut io::Read::take(&file, wanted.len), &mut hash)
            .map_err(|_| wrong("cannot be read"))?;
        if copied != wanted.len || hash.finalize().as_slice() != wanted.sha256 {
            return Err(wrong("not the image that the delta was made from"));
        }
        images.push(Box::new(FileAt::new(file).map_err(|_| wrong("cannot be read"))?));
    }
    Ok(images)
}

/// Those who wait, like those who wait for a lift: upwards from where it is, then from the bottom again.
#[derive(Default)]
struct Queue {
    /// By where they begin, and by when they came.
    jobs: BTreeMap<(u64, u64), Job>,
    came: u64,
    at: u64,
}

impl Queue {
    fn add(&mut self, job: Job) {
        self.came = self.came.wrapping_add(1);
        self.jobs.insert((job.range.start, self.came), job);
    }

    /// Whom to serve now. Nobody goes there for one who has given up.
    fn next(&mut self) -> Option<Job> {
        loop {
            let key = self.jobs.range((self.at, 0)..).next().or_else(|| self.jobs.iter().next());
            let key = key.map(|(key, _)| *key)?;
            let job = self.jobs.remove(&key)?;
            if !job.answer.is_closed() {
                self.at = job.range.end;
                return Some(job);
            }
        }
    }
}

/// Serves jobs until nobody can send one.
fn work(
    store: &Store,
    mut target: Target<RemoteAt>,
    waiting: &mpsc::Receiver<Job>,
    place: &impl Fn() -> Option<OwnedSemaphorePermit>,
    reused: &impl Fn(u64),
) {
    let mut queue = Queue::default();
    loop {
        if queue.jobs.is_empty() {
            let Ok(job) = waiting.recv() else { return };
            queue.add(job);
        }
        // Who comes while it waits for a place is in the queue before the next one is chosen.
        let Some(place) = place() else { return };
        waiting.try_iter().for_each(|job| queue.add(job));
        let Some(job) = queue.next() else { continue };
        let made = make(&mut target, &job.range).map_err(|error| delta_failure(store, error));
        reused(target.reused_bytes());
        let _ = job.answer.send(made.map(|bytes| Stretch { bytes, _place: place }.into()));
    }
}

fn make(target: &mut Target<RemoteAt>, range: &Range<u64>) -> Result<Vec<u8>, rustiot_delta::Error> {
    let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or_default();
    let mut bytes = vec![0; len];
    target.read_at(range.start, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_wait_are_served_upwards_and_who_has_gone_is_passed() {
        let mut queue = Queue::default();
        let mut answers = Vec::new();
        let mut add = |queue: &mut Queue, start: u64| {
            let (answer, made) = oneshot::channel();
            queue.add(Job { range: start..start + 10, answer });
            answers.push(made);
        };
        for start in [50, 10, 90, 30] {
            add(&mut queue, start);
        }
        let next = |queue: &mut Queue| queue.next().map(|job| job.range.start);
        assert_eq!(next(&mut queue), Some(10));
        // One that came late and lies behind waits for the next round.
        add(&mut queue, 0);
        add(&mut queue, 20);
        answers.remove(3);
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(order, [20, 50, 90, 0], "30 had gone");
    }
}
