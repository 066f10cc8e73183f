//! The pull: from a name to an image in the store.
//!
//! Layers are fetched a few at a time; each is taken in while it arrives, and what has arrived is kept for the next
//! attempt, also one after a restart. Where the registry has deltas from an image that is here, layers are made by them
//! (`by_delta`). Nothing is visible before everything is here, checked and durable. Called by whoever wants an image.

mod by_delta;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustiot_durable::Storage;
use rustiot_http::{Backoff, Class};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::core;
use crate::delta::Offer;
use crate::digest::{Digest, Hasher, ImageId};
use crate::error::{Error, disk};
use crate::layer::{self, LayerError, Watch};
use crate::manifest::{Descriptor, Document, ImageConfig, ManifestError};
use crate::progress::Status;
use crate::reference::Reference;
use crate::registry::{Blob, Endpoint, Registries};
use crate::store::{Claim, Inner, LayerInfo, NewImage, PullOptions, Pulled, Store};

/// Bytes that are written at once.
const PIECE: usize = 256 << 10;
/// What has arrived is made durable this often, so that a power cut costs no more of a slow link's time.
const SYNC_EVERY: Duration = Duration::from_secs(5);
/// The same in bytes, for fast links.
const SYNC_BYTES: u64 = 64 << 20;
/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What all parts of a pull know.
#[derive(Clone)]
struct Context {
    inner: Arc<Inner>,
    registries: Registries,
    reference: Reference,
    endpoints: Arc<Vec<Endpoint>>,
    options: Arc<PullOptions>,
    fetched: Arc<AtomicU64>,
    /// Sum of unpacked layers, against the limit of an image.
    unpacked: Arc<AtomicU64>,
    /// Layers that were made by deltas.
    made: Arc<AtomicUsize>,
}

/// A blob to fetch.
struct Fetch<'a> {
    digest: Digest,
    size: u64,
    /// What progress is told about.
    id: &'a str,
    /// Layer or delta.
    what: &'static str,
    /// How progress is called.
    status: Status,
}

impl Store {
    /// Pulls an image; what is here already is not fetched again. Dropping the future cancels it (its threads let go of
    /// the store within moments); what was fetched is resumed by the next pull, also after a restart. Needs a tokio runtime with its I/O and time drivers.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pull(
        &self,
        registries: &Registries,
        reference: &Reference,
        options: PullOptions,
    ) -> Result<Pulled, Error> {
        let endpoints = registries.endpoints(reference.registry()).await?;
        let context = Context {
            inner: self.inner.clone(),
            registries: registries.clone(),
            reference: reference.clone(),
            endpoints: Arc::new(endpoints),
            options: Arc::new(options),
            fetched: Arc::default(),
            unpacked: Arc::default(),
            made: Arc::default(),
        };
        context.pull(self).await
    }
}

impl Context {
    fn name(&self) -> String {
        self.reference.familiar()
    }

    fn unusable(&self, source: ManifestError) -> Error {
        Error::Manifest { name: self.name(), source }
    }

    async fn pull(&self, store: &Store) -> Result<Pulled, Error> {
        let (limits, progress) = (&self.inner.limits, &self.options.progress);
        let wanted = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or(crate::reference::DEFAULT_TAG).to_owned(),
        };
        progress.detail(wanted.clone(), Status::PullingFrom, self.reference.familiar_name());
        let top = self.manifest(&wanted).await?;
        let digest = Digest::of(&top.bytes);
        let document = Document::parse(&top.bytes, &top.media_type).map_err(|e| self.unusable(e))?;
        let (manifest, manifest_bytes) = match document {
            Document::Manifest(manifest) => (manifest, top.bytes),
            Document::Index(index) => {
                let chosen = index.select(&self.options.platform).map_err(|e| self.unusable(e))?;
                let raw = self.manifest(&chosen.digest.to_string()).await?;
                match Document::parse(&raw.bytes, &raw.media_type).map_err(|e| self.unusable(e))? {
                    Document::Manifest(manifest) => (manifest, raw.bytes),
                    Document::Index(_) => {
                        let why = "an index in an index".to_owned();
                        return Err(self.unusable(ManifestError::Nonsense { what: "index", why }));
                    }
                }
            }
        };
        manifest.check(limits.layers).map_err(|e| self.unusable(e))?;
        let id = ImageId(manifest.config.digest);
        let config_bytes = match store.record(&id) {
            Ok((record, _)) => record.config.into_bytes(),
            Err(_) => self.config(&manifest.config).await?,
        };
        let config =
            ImageConfig::parse(&config_bytes, manifest.layers.len()).map_err(|e| self.unusable(e))?;
        self.check_platform(&config)?;
        let new = !store.is_whole(&id);
        let layers: Vec<(Descriptor, Digest)> =
            manifest.layers.iter().cloned().zip(config.rootfs.diff_ids.iter().copied()).collect();
        let (layers, claims) = self.layers(&Digest::of(&manifest_bytes), layers).await?;

        let text = |bytes: Vec<u8>, what| {
            String::from_utf8(bytes).map_err(|_| {
                self.unusable(ManifestError::Nonsense { what, why: "it is no UTF-8".to_owned() })
            })
        };
        let by_tag = self.reference.digest().is_none();
        let image = NewImage {
            id,
            config: text(config_bytes, "configuration")?,
            manifest: text(manifest_bytes, "manifest")?,
            layers,
            tags: if by_tag { vec![self.reference.clone()] } else { Vec::new() },
            repo_digest: Some(self.reference.with_digest(digest)),
        };
        let inner = self.inner.clone();
        blocking(move || inner.publish(vec![image])).await?;
        drop(claims);
        progress.say(digest.to_string(), Status::Digest);
        progress.say(self.name(), if new { Status::Downloaded } else { Status::UpToDate });
        let (fetched, by_delta) = (self.fetched.load(Ordering::Relaxed), self.made.load(Ordering::Relaxed));
        Ok(Pulled { id, digest, new, fetched, by_delta })
    }

    fn check_platform(&self, config: &ImageConfig) -> Result<(), Error> {
        let is = config.platform();
        let wanted = &self.options.platform;
        if is.architecture.is_empty() || wanted.rank(&is).is_some() {
            return Ok(());
        }
        Err(self.unusable(ManifestError::Platform { wanted: wanted.clone(), offered: is.to_string() }))
    }

    /// A manifest, with as many attempts as it takes.
    async fn manifest(&self, wanted: &str) -> Result<crate::registry::Raw, Error> {
        let mut tries = Tries::new(&self.options);
        loop {
            let mut last = None;
            for at in self.endpoints.iter() {
                let limit = self.inner.limits.manifest;
                let auth = &self.options.auth;
                match self.registries.manifest(at, &self.reference, wanted, auth, limit).await {
                    Ok(raw) => {
                        self.fetched.fetch_add(raw.bytes.len() as u64, Ordering::Relaxed);
                        return Ok(raw);
                    }
                    Err(error) => last = Some(error),
                }
            }
            tries.wait(self, wanted, last).await?;
        }
    }

    /// The configuration: a small blob, whole.
    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let limit = self.inner.limits.config;
        if descriptor.size > limit {
            let why = format!("it has {} bytes, and {limit} are allowed", descriptor.size);
            return Err(self.unusable(ManifestError::Nonsense { what: "configuration", why }));
        }
        let mut tries = Tries::new(&self.options);
        loop {
            let mut last = None;
            for at in self.endpoints.iter() {
                match self.small_blob(at, descriptor).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => last = Some(error),
                }
            }
            tries.wait(self, &descriptor.digest.short(), last).await?;
        }
    }

    async fn small_blob(&self, at: &Endpoint, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        let what = "configuration";
        let Blob { body, .. } =
            self.registries.blob(at, &self.reference, digest, 0..size, &self.options.auth).await?;
        let mut body = body.limited(size);
        let failed = |source| Error::Http { what: what.into(), name: self.name().into(), source };
        let mut bytes = Vec::new();
        while let Some(piece) = body.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&piece);
        }
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(Error::DigestMismatch { name: self.name(), what, expected: *digest, found });
        }
        Ok(bytes)
    }

    /// All layers, a few at a time.
    async fn layers(
        &self,
        manifest: &Digest,
        layers: Vec<(Descriptor, Digest)>,
    ) -> Result<(Vec<LayerInfo>, Vec<Claim>), Error> {
        // From here on nothing that is here already may go.
        let mut claims: Vec<Claim> =
            layers.iter().map(|(_, diff_id)| self.inner.claim(core::layer_name(diff_id))).collect();
        let missing: Vec<&(Descriptor, Digest)> =
            layers.iter().filter(|(_, diff_id)| self.inner.has_layer(diff_id).is_none()).collect();
        let bytes: u64 = missing.iter().map(|(descriptor, _)| descriptor.size).fold(0, u64::saturating_add);
        self.inner.check_space(&self.name(), bytes, missing.len() as u64 + 4)?;
        let progress = &self.options.progress;
        for (descriptor, diff_id) in &layers {
            if self.inner.has_layer(diff_id).is_none() {
                progress.say(descriptor.digest.short(), Status::PullingFsLayer);
            }
        }
        let offers = Arc::new(self.offers(manifest, &missing).await);
        let permits = Arc::new(Semaphore::new(self.options.concurrency.max(1)));
        let mut running = JoinSet::new();
        for (number, (descriptor, diff_id)) in layers.iter().cloned().enumerate() {
            let (context, permits, offers) = (self.clone(), permits.clone(), offers.clone());
            running.spawn(async move {
                let _permit = permits.acquire_owned().await.map_err(|_| Error::Cancelled)?;
                let offer = offers.get(&diff_id);
                Ok::<_, Error>((number, context.layer(&descriptor, &diff_id, offer).await?))
            });
        }
        let mut done: Vec<Option<LayerInfo>> = vec![None; layers.len()];
        while let Some(finished) = running.join_next().await {
            match finished.map_err(|_| Error::Cancelled).and_then(|finished| finished) {
                Ok((number, (info, claim))) => {
                    if let Some(slot) = done.get_mut(number) {
                        *slot = Some(info);
                    }
                    claims.extend(claim);
                }
                Err(error) => {
                    running.shutdown().await;
                    return Err(error);
                }
            }
        }
        Ok((done.into_iter().flatten().collect(), claims))
    }

    /// One layer: here already, or fetched and taken in.
    async fn layer(
        &self,
        descriptor: &Descriptor,
        diff_id: &Digest,
        offer: Option<&Offer>,
    ) -> Result<(LayerInfo, Option<Claim>), Error> {
        let short = descriptor.digest.short();
        let progress = &self.options.progress;
        let info =
            |size| LayerInfo { diff_id: *diff_id, digest: descriptor.digest, fetched: descriptor.size, size };
        let lock = self.inner.download_lock(&descriptor.digest);
        let _only = lock.lock().await;
        if let Some(size) = self.inner.has_layer(diff_id) {
            progress.say(short, Status::AlreadyExists);
            return Ok((info(size), None));
        }
        if let Some(offer) = offer {
            match self.by_delta(descriptor, diff_id, offer).await {
                Ok((size, claim)) => {
                    self.made.fetch_add(1, Ordering::Relaxed);
                    // What an earlier attempt fetched of the whole layer is of no more use.
                    let _ = std::fs::remove_file(self.inner.path(&core::partial_name(&descriptor.digest)));
                    progress.say(short, Status::PullComplete);
                    return Ok((info(size), Some(claim)));
                }
                Err(error) => {
                    progress.detail(short.clone(), Status::DeltaUnusable, by_delta::words(&error));
                }
            }
        }
        let mut resumed = self.attempt(descriptor, diff_id).await;
        if let Err((error, true)) = &resumed {
            // What an earlier process left may have been torn by a power cut. Once more, from the beginning.
            progress.detail(short.clone(), Status::Retrying, error.to_string());
            resumed = self.attempt(descriptor, diff_id).await;
        }
        let (size, claim) = resumed.map_err(|(error, _)| error)?;
        progress.say(short, Status::PullComplete);
        Ok((info(size), Some(claim)))
    }

    /// Downloads a layer, from where an earlier attempt stopped, and takes it in. With an error comes whether it may be
    /// due to what the earlier attempt left.
    async fn attempt(
        &self,
        descriptor: &Descriptor,
        diff_id: &Digest,
    ) -> Result<(u64, Claim), (Error, bool)> {
        let sure = |error| (error, false);
        let name = core::partial_name(&descriptor.digest);
        let _partial = self.inner.claim(name.clone());
        let path = self.inner.path(&name);
        let open =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = Arc::new(open.map_err(disk("open", &path)).map_err(sure)?);
        let mut have = file.metadata().map_err(disk("look at", &path)).map_err(sure)?.len();
        if have > descriptor.size {
            file.set_len(0).map_err(disk("cut", &path)).map_err(sure)?;
            have = 0;
        }
        let resumed = have > 0;
        let arriving = Arc::new(Arriving::new(file.clone(), have));
        // Dropped in whatever way: nobody waits for bytes that do not come.
        let guard = Guard(arriving.clone());
        let (temporary, temporary_claim) = self.inner.temporary().map_err(sure)?;
        let import = {
            let (context, arriving) = (self.clone(), arriving.clone());
            let (size, short) = (descriptor.size, descriptor.digest.short());
            tokio::task::spawn_blocking(move || context.take_in(&arriving, &temporary, size, &short))
        };
        let short = descriptor.digest.short();
        let fetch = Fetch {
            digest: descriptor.digest,
            size: descriptor.size,
            id: &short,
            what: "layer",
            status: Status::Downloading,
        };
        let downloaded = self.download(&fetch, &file, &arriving, have).await;
        drop(guard);
        let taken = import.await.map_err(|_| sure(Error::Cancelled))?;
        let _ = self.inner.place.sync_dir();
        let outcome = match (downloaded, taken) {
            (Err(error), _) => Err((error, false)),
            (Ok(()), taken) => self.judge(descriptor, diff_id, taken).map_err(|error| {
                let torn = matches!(error, Error::DigestMismatch { .. });
                (error, resumed && torn)
            }),
        };
        let keep = matches!(&outcome, Err((Error::Http { .. } | Error::TooManyRequests { .. }, _)));
        if !keep {
            let _ = self.inner.place.remove(&name);
        }
        match outcome {
            Ok(size) => self.inner.settle(&temporary_claim, diff_id).map(|claim| (size, claim)).map_err(sure),
            Err(error) => Err(error),
        }
    }

    /// What the import and the digests say.
    fn judge(&self, descriptor: &Descriptor, diff_id: &Digest, taken: Taken) -> Result<u64, Error> {
        let layer = descriptor.digest.short();
        if let Some(found) = taken.digest.filter(|found| *found != descriptor.digest) {
            let (name, expected) = (self.name(), descriptor.digest);
            return Err(Error::DigestMismatch { name, what: "layer", expected, found });
        }
        let fail = |source| Error::Layer { name: self.name(), layer: layer.as_str().into(), source };
        let imported = taken.result.map_err(&fail)?;
        if taken.digest.is_none() {
            return Err(fail(LayerError::Cancelled));
        }
        if imported.diff_id != *diff_id {
            return Err(fail(LayerError::DiffId { expected: *diff_id, found: imported.diff_id }));
        }
        self.count_unpacked(imported.size).map_err(fail)?;
        Ok(imported.size)
    }

    /// Another layer of the image, against what an image may have.
    fn count_unpacked(&self, size: u64) -> Result<(), LayerError> {
        let all = self.unpacked.fetch_add(size, Ordering::Relaxed).saturating_add(size);
        let limit = self.inner.limits.image_size;
        if all > limit { Err(LayerError::TooLarge { what: "bytes in an image", limit }) } else { Ok(()) }
    }

    /// On a thread of its own: decompresses and takes in what arrives.
    fn take_in(&self, arriving: &Arc<Arriving>, to: &File, size: u64, short: &str) -> Taken {
        let progress = &self.options.progress;
        let (consumed, told) = (AtomicU64::new(0), Mutex::new(None::<Instant>));
        let mut from = Arrived { arriving, at: 0, hasher: Hasher::default(), consumed: &consumed };
        let tell = |now: u64| {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if now == size || told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                *told = Some(Instant::now());
                progress.count(short, Status::Extracting, now, size);
            }
        };
        let watch = Watch { consumed: &consumed, cancelled: &arriving.cancelled, progress: &tell };
        let result = layer::compression::decompress(&mut from)
            .map_err(LayerError::Read)
            .and_then(|plain| layer::import(plain, to, &self.inner.limits, &watch));
        // A broken stream may be a wrong blob: its digest tells. A bomb is not worth the rest of it.
        let rest = matches!(result, Ok(_) | Err(LayerError::Read(_) | LayerError::Tar { .. }));
        let digest = match rest {
            true => io::copy(&mut from, &mut io::sink()).ok().map(|_| from.hasher.finish()),
            false => {
                arriving.give_up();
                None
            }
        };
        // Here, where it does not stop the downloads.
        let result = result.and_then(|imported| {
            to.sync_all().map_err(LayerError::Write)?;
            Ok(imported)
        });
        Taken { result, digest }
    }

    /// Fetches a blob into its file, with as many attempts as it takes.
    async fn download(
        &self,
        fetch: &Fetch<'_>,
        file: &Arc<File>,
        arriving: &Arc<Arriving>,
        mut have: u64,
    ) -> Result<(), Error> {
        let (size, short) = (fetch.size, fetch.id);
        let progress = &self.options.progress;
        let mut tries = Tries::new(&self.options);
        while have < size {
            let mut last = None;
            let before = have;
            for at in self.endpoints.iter() {
                let result = self.stream(at, fetch, file, arriving, &mut have).await;
                if arriving.is_given_up() {
                    // The import knows why.
                    return Ok(());
                }
                match result {
                    Ok(()) if have >= size => break,
                    Ok(()) => {}
                    Err(error) => last = Some(error),
                }
            }
            if have > before {
                tries.progress();
            }
            if have < size {
                tries.wait(self, short, last).await?;
            }
        }
        progress.count(short, fetch.status, size, size);
        progress.say(short, Status::VerifyingChecksum);
        progress.say(short, Status::DownloadComplete);
        arriving.finish();
        Ok(())
    }

    /// One answer's bytes.
    async fn stream(
        &self,
        at: &Endpoint,
        fetch: &Fetch<'_>,
        file: &Arc<File>,
        arriving: &Arc<Arriving>,
        have: &mut u64,
    ) -> Result<(), Error> {
        let Fetch { digest, size, id, what, status } = *fetch;
        let range = *have..size;
        let Blob { body, total, from } =
            self.registries.blob(at, &self.reference, &digest, range, &self.options.auth).await?;
        if let Some(found) = total.filter(|total| *total != size) {
            let name = self.name();
            return Err(Error::WrongSize { name, what, digest, expected: size, found });
        }
        // A server without ranges sends it all again.
        let mut skip = have.saturating_sub(from);
        let mut body = body.limited(size.saturating_sub(from));
        let mut buffer = Vec::with_capacity(PIECE);
        let mut synced = (Instant::now(), *have);
        let mut told = Instant::now();
        let failed = |source| Error::Http {
            what: format!("{what} {}", digest.short()).into(),
            name: self.name().into(),
            source,
        };
        loop {
            if arriving.is_given_up() {
                return Ok(());
            }
            let piece = body.chunk().await.map_err(failed);
            let ended = match piece {
                Ok(Some(piece)) => {
                    self.fetched.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    let drop = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
                    skip -= drop as u64;
                    buffer.extend_from_slice(piece.get(drop..).unwrap_or_default());
                    None
                }
                Ok(None) => Some(Ok(())),
                Err(error) => Some(Err(error)),
            };
            if buffer.len() >= PIECE || (ended.is_some() && !buffer.is_empty()) {
                let sync = synced.0.elapsed() >= SYNC_EVERY || *have - synced.1 >= SYNC_BYTES;
                let (file, offset) = (file.clone(), *have);
                let bytes = std::mem::replace(&mut buffer, Vec::with_capacity(PIECE));
                let count = bytes.len() as u64;
                let path = self.inner.path(&core::partial_name(&digest));
                blocking(move || {
                    file.write_all_at(&bytes, offset).map_err(disk("write", &path))?;
                    if sync { file.sync_data().map_err(disk("sync", &path)) } else { Ok(()) }
                })
                .await?;
                *have += count;
                if sync {
                    synced = (Instant::now(), *have);
                }
                arriving.more(*have);
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    self.options.progress.count(id, status, *have, size);
                }
            }
            if let Some(ended) = ended {
                return ended;
            }
        }
    }
}

/// Runs on a thread for blocking work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Cancelled)?
}

/// Attempts and the waits between them.
struct Tries {
    backoff: Backoff,
    left: u32,
    most: u32,
    patience: Duration,
}

impl Tries {
    fn new(options: &PullOptions) -> Tries {
        let most = options.attempts.max(1);
        let (base, cap) = options.backoff;
        Tries { backoff: Backoff::new(base, cap), left: most, most, patience: options.patience }
    }

    fn progress(&mut self) {
        self.left = self.most;
        self.backoff.reset();
    }

    /// Waits for the next attempt, or gives the error back when there is none.
    async fn wait(&mut self, context: &Context, id: &str, error: Option<Error>) -> Result<(), Error> {
        let Some(error) = error else { return Ok(()) };
        self.left = self.left.saturating_sub(1);
        let Error::Http { source, .. } = &error else { return Err(error) };
        // A page, a foreign certificate: with TLS to registries that is no captive portal that goes away.
        let heals = matches!(source.class(), Class::Network | Class::Server);
        let busy = source.status().is_some_and(|status| status.as_u16() == 429);
        let asked = source.retry_after();
        let wait = self.backoff.after_answer(asked);
        if busy && (self.left == 0 || asked.is_some_and(|asked| asked > self.patience)) {
            let registry = context.reference.registry().to_owned();
            return Err(Error::TooManyRequests { registry, seconds: asked.map(|asked| asked.as_secs()) });
        }
        if !heals || self.left == 0 || wait > self.patience.saturating_mul(2) {
            return Err(error);
        }
        context.options.progress.detail(id, Status::Retrying, source.to_string());
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What the import made of a blob.
struct Taken {
    result: Result<layer::Imported, LayerError>,
    /// Of the whole blob, where it came to its end.
    digest: Option<Digest>,
}

/// A blob that arrives: how much of its file is there.
#[derive(Debug)]
struct Arriving {
    file: Arc<File>,
    state: Mutex<ArrivingState>,
    changed: Condvar,
    cancelled: AtomicBool,
    given_up: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
struct ArrivingState {
    have: u64,
    finished: bool,
    broken: bool,
}

impl Arriving {
    fn new(file: Arc<File>, have: u64) -> Arriving {
        Arriving {
            file,
            state: Mutex::new(ArrivingState { have, ..ArrivingState::default() }),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, ArrivingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn more(&self, have: u64) {
        self.state().have = have;
        self.changed.notify_all();
    }

    fn finish(&self) {
        self.state().finished = true;
        self.changed.notify_all();
    }

    /// The import needs no more: the download may end.
    fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// Ends the import when the download ends, however.
struct Guard(Arc<Arriving>);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if !state.finished {
            state.broken = true;
            self.0.cancelled.store(true, Ordering::Relaxed);
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// Reads a blob while it arrives, and hashes it.
struct Arrived<'a> {
    arriving: &'a Arriving,
    at: u64,
    hasher: Hasher,
    consumed: &'a AtomicU64,
}

impl Read for Arrived<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let have = {
            let mut state = self.arriving.state();
            loop {
                if state.have > self.at {
                    break state.have;
                }
                if state.broken {
                    return Err(io::Error::other("the download has ended"));
                }
                if state.finished {
                    return Ok(0);
                }
                state = self.arriving.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let most = into.len().min(usize::try_from(have - self.at).unwrap_or(usize::MAX));
        let read = self.arriving.file.read_at(into.get_mut(..most).unwrap_or_default(), self.at)?;
        self.hasher.update(into.get(..read).unwrap_or_default());
        self.at += read as u64;
        self.consumed.store(self.at, Ordering::Relaxed);
        Ok(read)
    }
}
