//! The pull's short way: layers out of older ones, where the registry has deltas and the image that they start from is
//! here.
//!
//! Never fails a pull and never makes it dearer than the layer by more than the delta's bytes: whatever goes wrong is
//! told, and the layer is fetched as a whole. Called by the pull.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustiot_durable::Storage;

use super::{Arriving, Context, Fetch, Guard, TELL_EVERY, blocking};
use crate::core;
use crate::delta::{self, DOCUMENT_MAX, DeltaError, Offer};
use crate::digest::{Digest, ImageId};
use crate::error::{Error, disk};
use crate::layer::by_delta::{Wanted, make};
use crate::layer::file;
use crate::manifest::Descriptor;
use crate::progress::Status;
use crate::store::Claim;

/// How long a registry may take to say what it has.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most artifacts that are read for one image.
const ARTIFACTS: usize = 3;

/// Ends the work on another thread when nobody waits for it any more.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An error with its causes, on one line.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text.chars().filter(|char| !char.is_control()).take(400).collect()
}

impl Context {
    /// Deltas for layers that are missing, by `diff_id`; those that cost no less than the layer are left out. Asks the
    /// registry only where a delta could be of use.
    pub(super) async fn offers(
        &self,
        manifest: &Digest,
        missing: &[&(Descriptor, Digest)],
    ) -> BTreeMap<Digest, Offer> {
        let have = self.inner.ids();
        if !self.options.deltas || missing.is_empty() || have.is_empty() {
            return BTreeMap::new();
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask(manifest, missing, &have)).await;
        match asked.unwrap_or(Err(DeltaError::Slow(PATIENCE.as_secs()))) {
            Ok(offers) => offers,
            Err(error) => {
                self.options.progress.detail(manifest.short(), Status::DeltaUnusable, words(&error));
                BTreeMap::new()
            }
        }
    }

    async fn ask(
        &self,
        manifest: &Digest,
        missing: &[&(Descriptor, Digest)],
        have: &BTreeSet<ImageId>,
    ) -> Result<BTreeMap<Digest, Offer>, DeltaError> {
        let mut last = None;
        for at in self.endpoints.iter() {
            let list =
                self.registries.referrers(at, &self.reference, manifest, &self.options.auth, DOCUMENT_MAX);
            let list = match list.await {
                Ok(Some(list)) => list,
                Ok(None) => continue,
                Err(error) => {
                    last = Some(error.into());
                    continue;
                }
            };
            self.count(&list);
            let mut found = BTreeMap::new();
            for artifact in delta::artifacts(&list, have)?.into_iter().take(ARTIFACTS) {
                let wanted = artifact.digest.to_string();
                let raw =
                    self.registries.manifest(at, &self.reference, &wanted, &self.options.auth, DOCUMENT_MAX);
                let raw = raw.await?;
                self.count(&raw.bytes);
                for (target, offer) in delta::offers(&raw.bytes, manifest)? {
                    delta::cheaper(&mut found, target, offer);
                }
                if missing.iter().all(|(_, diff_id)| found.contains_key(diff_id)) {
                    break;
                }
            }
            found.retain(|target, offer| {
                let layer = missing.iter().find(|(_, diff_id)| diff_id == target);
                layer.is_some_and(|(descriptor, _)| offer.size < descriptor.size)
                    && offer.sources.iter().all(|source| self.inner.has_layer(source).is_some())
            });
            return Ok(found);
        }
        last.map_or(Ok(BTreeMap::new()), Err)
    }

    fn count(&self, bytes: &[u8]) {
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// A layer by its delta, settled like one that was fetched.
    pub(super) async fn by_delta(
        &self,
        descriptor: &Descriptor,
        diff_id: &Digest,
        offer: &Offer,
    ) -> Result<(u64, Claim), DeltaError> {
        let lock = self.inner.download_lock(&offer.digest);
        // Waiting could be for somebody who waits for us.
        let Ok(_only) = lock.try_lock() else { return Err(DeltaError::Busy) };
        let name = core::partial_name(&offer.digest);
        let _partial = self.inner.claim(name.clone());
        let outcome = match self.fetch_delta(descriptor, offer, &name).await {
            Ok(file) => self.apply(descriptor, diff_id, offer, file).await,
            Err(error) => Err(error),
        };
        // What has arrived over a bad network is of use to the next pull.
        let network = |error: &Error| matches!(error, Error::Http { .. } | Error::TooManyRequests { .. });
        if !matches!(&outcome, Err(DeltaError::Fetch(error)) if network(error)) {
            let _ = self.inner.place.remove(&name);
        }
        outcome
    }

    /// The delta's file, whole and as its digest says.
    async fn fetch_delta(
        &self,
        descriptor: &Descriptor,
        offer: &Offer,
        name: &str,
    ) -> Result<Arc<File>, DeltaError> {
        let path = self.inner.path(name);
        let short = descriptor.digest.short();
        let mut again = false;
        loop {
            let open =
                std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = Arc::new(open.map_err(disk("open", &path))?);
            let mut have = file.metadata().map_err(disk("look at", &path))?.len();
            if have > offer.size || again {
                file.set_len(0).map_err(disk("cut", &path))?;
                have = 0;
            }
            let resumed = have > 0;
            let arriving = Arc::new(Arriving::new(file.clone(), have));
            let _guard = Guard(arriving.clone());
            let fetch = Fetch {
                digest: offer.digest,
                size: offer.size,
                id: &short,
                what: "delta",
                status: Status::DownloadingDelta,
            };
            self.download(&fetch, &file, &arriving, have).await?;
            let (hashed, place) = (file.clone(), path.clone());
            let found = blocking(move || file::digest(&hashed).map_err(disk("read", place))).await?;
            if found == offer.digest {
                return Ok(file);
            }
            if !resumed {
                let (name, expected) = (self.name(), offer.digest);
                return Err(Error::DigestMismatch { name, what: "delta", expected, found }.into());
            }
            // What an earlier process left may have been torn by a power cut. Once more, from the beginning.
            again = true;
        }
    }

    /// Makes the layer and gives it its name.
    async fn apply(
        &self,
        descriptor: &Descriptor,
        diff_id: &Digest,
        offer: &Offer,
        delta: Arc<File>,
    ) -> Result<(u64, Claim), DeltaError> {
        // One at a time: each needs the codec's memory.
        let turn = self.inner.deltas.clone().acquire_owned().await.map_err(|_| Error::Cancelled)?;
        let mut sources = Vec::new();
        for layer in &offer.sources {
            // Once more: somebody may have removed it, or found it bad, meanwhile.
            let missing = || DeltaError::Source { layer: *layer, why: "is not here any more" };
            self.inner.has_layer(layer).ok_or_else(missing)?;
            let file = File::open(self.inner.path(&core::layer_name(layer))).map_err(|_| missing())?;
            sources.push((*layer, file));
        }
        let (temporary, temporary_claim) = self.inner.temporary()?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = Cancel(cancelled.clone());
        let work = {
            let (context, diff_id, compressed) = (self.clone(), *diff_id, descriptor.size);
            let (short, delta) = (descriptor.digest.short(), delta.try_clone());
            move || {
                let _turn = turn;
                let told = std::cell::Cell::new(None::<Instant>);
                let tell = |made: u64, all: u64| {
                    if made == all || told.get().is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                        told.set(Some(Instant::now()));
                        context.options.progress.count(short.clone(), Status::ApplyingDelta, made, all);
                    }
                };
                let wanted = Wanted {
                    diff_id: &diff_id,
                    compressed,
                    limits: &context.inner.limits,
                    cancelled: &cancelled,
                    progress: &tell,
                };
                let unread = |source| rustiot_delta::Error::ReadDelta { offset: 0, source };
                make(delta.map_err(unread)?, sources, &temporary, &wanted)
            }
        };
        let imported = tokio::task::spawn_blocking(work).await.map_err(|_| Error::Cancelled)??;
        self.count_unpacked(imported.size)?;
        let claim = self.inner.settle(&temporary_claim, diff_id)?;
        Ok((imported.size, claim))
    }
}
