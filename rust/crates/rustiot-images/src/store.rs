//! The store: images by their digests, their names, and who needs them.
//!
//! Never talks to a registry (see `pull`) and never deletes an image that somebody needs. Called by the engine.
//! Contract: `docs/contracts/images.md`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use rustiot_durable::{Dir, Storage};
use serde::{Deserialize, Serialize};

use crate::auth::Auth;
use crate::core::{self, Failed, Known, LoadError, PARTIAL, Place, TABLE, TEMPORARY, Table, VERSION};
use crate::digest::{Digest, ImageId};
use crate::error::{Error, disk};
use crate::layer::file;
use crate::limits::Limits;
use crate::manifest::{Document, ImageConfig};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;

/// Largest record that is read: a manifest and a configuration as text in JSON.
const RECORD_MAX: usize = 32 << 20;

/// How long what a pull has fetched is kept for the next one.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The store of a device. Cheap to clone; all clones are the same store. One process has it at a time.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) place: Dir,
    pub(crate) limits: Limits,
    state: Mutex<State>,
    /// One download of a blob at a time.
    downloads: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    numbers: AtomicU64,
    /// One layer is made by a delta at a time.
    pub(crate) deltas: Arc<tokio::sync::Semaphore>,
    _lock: Flock<File>,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    /// Layers that cannot be used: found at the start or by a scrub.
    bad: BTreeMap<Digest, &'static str>,
    /// Images whose records cannot be used.
    lost: BTreeSet<ImageId>,
    holds: BTreeMap<String, ImageId>,
    holds_complete: bool,
    /// Files that no image needs yet, and how many operations made them.
    making: BTreeMap<String, usize>,
}

/// A file in the making: kept from the sweep as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    inner: Arc<Inner>,
    name: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if let Some(count) = state.making.get_mut(&self.name) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.making.remove(&self.name);
            }
        }
        drop(state);
        if self.name.starts_with(TEMPORARY) {
            // It has its own name by now, or nobody wants it. What cannot be removed goes at the next start.
            let _ = self.inner.place.remove(&self.name);
        }
    }
}

/// An image's record: what its digests are about, to the byte.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    pub config: String,
    pub manifest: String,
    /// For the day on which the table is lost.
    #[serde(default)]
    pub names: Vec<Reference>,
    #[serde(default)]
    pub layers: Vec<LayerInfo>,
}

/// An image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: ImageId,
    /// Its names with tags.
    pub tags: Vec<Reference>,
    /// Its names with the digests that the registries gave (`name@sha256:…`).
    pub repo_digests: Vec<Reference>,
    /// Its configuration.
    pub config: ImageConfig,
    /// The configuration's bytes.
    pub config_json: Vec<u8>,
    /// The manifest's bytes.
    pub manifest_json: Vec<u8>,
    /// The manifest's digest.
    pub manifest: Digest,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerInfo>,
    /// Sum of the layers' files, shared ones counted in full.
    pub size: u64,
    /// When it came here, in seconds since 1970.
    pub since: u64,
    /// Who needs it: containers (`hold`) and pins.
    pub needed_by: Vec<String>,
    /// Layers that are missing or bad, by their `diff_id`: it must be pulled again before it can be used.
    pub damaged: Vec<Digest>,
}

/// A layer of an image.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LayerInfo {
    /// The digest of its tar archive.
    pub diff_id: Digest,
    /// The digest of what was fetched.
    pub digest: Digest,
    /// Bytes that were fetched.
    pub fetched: u64,
    /// Its file, in bytes.
    pub size: u64,
}

/// What a container's root is made of: read-only layers, each an erofs file, the **lowest first**.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rootfs {
    /// The layers.
    pub layers: Vec<RootfsLayer>,
}

/// A layer to mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootfsLayer {
    /// Names the layer for ever: mount it once for all containers, in a directory of this name.
    pub diff_id: Digest,
    /// The erofs file. See [`crate::mount`].
    pub file: PathBuf,
}

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Which image of several.
    pub platform: Platform,
    /// What the registry is shown.
    pub auth: Auth,
    /// What happens, as it happens.
    pub progress: Progress,
    /// Most attempts in a row without a byte of progress, for each blob.
    pub attempts: u32,
    /// Longest time that a registry may ask to wait.
    pub patience: Duration,
    /// Layers fetched at the same time.
    pub concurrency: usize,
    /// Shortest and longest wait before another attempt, where the registry asks for none.
    pub backoff: (Duration, Duration),
    /// Whether to ask for deltas from images that are here.
    pub deltas: bool,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        PullOptions {
            platform: Platform::host(),
            auth: Auth::Anonymous,
            progress: Progress::none(),
            attempts: 5,
            patience: Duration::from_secs(300),
            concurrency: 3,
            backoff: (Duration::from_millis(500), Duration::from_secs(30)),
            deltas: true,
        }
    }
}

/// What a pull brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pulled {
    /// The image.
    pub id: ImageId,
    /// The digest of the name: of the index, where there are several images.
    pub digest: Digest,
    /// Whether it was not here before.
    pub new: bool,
    /// Bytes fetched, attempts that failed included.
    pub fetched: u64,
    /// Layers that were made out of older ones by deltas.
    pub by_delta: usize,
}

/// What a removal did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// Images that are gone.
    pub images: Vec<ImageId>,
    /// Layers that are gone, by `diff_id`.
    pub layers: Vec<Digest>,
    /// Bytes that are free again.
    pub freed: u64,
}

/// What a collection takes. An image that a container or a pin needs is never taken.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policy {
    /// Also images with names (`docker image prune --all`); without it, only those without.
    pub all: bool,
    /// Only images that came here longer ago than this.
    pub older_than: Option<Duration>,
    /// Stop as soon as so many bytes are free on the file system; the oldest images go first.
    pub until_free: Option<u64>,
    /// Stop as soon as layers take no more than so many bytes; the oldest images go first.
    pub until_used: Option<u64>,
    /// Only images whose labels fit: `(name, value)`, any value where it is `None`.
    pub labels: Vec<(String, Option<String>)>,
    /// Images that stay although nobody needs them, by name.
    pub keep: BTreeSet<Reference>,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Depth {
    /// Records, lengths and the layers' ends: milliseconds; done at each start.
    Quick,
    /// Every byte, against the digests.
    Full,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ScrubReport {
    /// Layers looked at.
    pub layers: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Bad layers, by `diff_id`, with the reason. They are marked; the next pull of an image fetches them again.
    pub bad: Vec<(Digest, &'static str)>,
    /// Images that cannot be used until they are pulled again.
    pub damaged: Vec<ImageId>,
    /// Leftovers of operations that were cut off, now gone: files and bytes.
    pub leftovers: (usize, u64),
}

/// What takes space.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DiskUsage {
    /// All layers, each counted once.
    pub layers: u64,
    /// Downloads that were begun.
    pub partial: u64,
    /// Manifests, configurations and the table.
    pub records: u64,
    /// Each image: bytes in all, and bytes that it shares with others.
    pub images: Vec<(ImageId, u64, u64)>,
}

/// An image that came out of an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Loaded {
    /// The image.
    pub id: ImageId,
    /// The names that the archive gave it.
    pub names: Vec<Reference>,
}

fn disk_error(place: &Dir) -> impl Fn(Failed) -> Error + '_ {
    |failed| Error::Disk { step: failed.step, path: place.path().join(failed.name), source: failed.source }
}

/// Whether nobody has touched a file for so long.
fn older(path: &Path, age: Duration) -> bool {
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // What the mutex guards is replaced in one step; a panic elsewhere does not make it wrong.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Changes the table: on disk first, then here. Nothing changes on an error.
    fn change<T>(
        &self,
        state: &mut State,
        change: impl FnOnce(&mut Table) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut next = state.table.clone();
        let result = change(&mut next)?;
        if next != state.table {
            next.store(&self.place).map_err(disk_error(&self.place))?;
            state.table = next;
        }
        Ok(result)
    }

    /// The record of an image, checked.
    fn record(&self, id: &ImageId) -> Option<Record> {
        let bytes = self.place.read(&core::record_name(id), RECORD_MAX).ok()??;
        let record: Record = serde_json::from_slice(&bytes).ok()?;
        (Digest::of(record.config.as_bytes()) == id.0).then_some(record)
    }

    /// What is wrong with a layer's file.
    fn look(&self, diff_id: &Digest, depth: Depth) -> Result<u64, &'static str> {
        let file = File::open(self.path(&core::layer_name(diff_id))).map_err(|_| "is missing")?;
        match depth {
            Depth::Quick => file::quick(&file, diff_id)?,
            Depth::Full => file::full(&file, diff_id)?,
        };
        Ok(file.metadata().map_err(|_| "cannot be read")?.len())
    }

    /// Removes what no image needs; gives the layers that went, and the bytes.
    fn sweep(&self, state: &State) -> Result<(Vec<Digest>, u64), Error> {
        let making = state.making.keys().cloned().collect();
        let size = |name: &str| std::fs::metadata(self.path(name)).map_or(0, |meta| meta.len());
        let before: BTreeMap<String, u64> = (self.place.names().map_err(disk("list", self.place.path()))?)
            .into_iter()
            .filter(|name| name.starts_with("layer-") || name.starts_with("image-"))
            .map(|name| (name.clone(), size(&name)))
            .collect();
        let gone = core::sweep(&self.place, &state.table, &making, false).map_err(disk_error(&self.place))?;
        let freed = gone.iter().filter_map(|name| before.get(name)).sum();
        let layers = gone
            .iter()
            .filter_map(|name| Digest::from_hex(name.strip_prefix("layer-")?.strip_suffix(".erofs")?).ok());
        Ok((layers.collect(), freed))
    }

    /// The images that are here.
    pub(crate) fn ids(&self) -> BTreeSet<ImageId> {
        self.state().table.images.keys().copied().collect()
    }

    /// A layer that can be used as it is.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> Option<u64> {
        if self.state().bad.contains_key(diff_id) {
            return None;
        }
        self.look(diff_id, Depth::Quick).ok()
    }

    /// A new file in the making.
    pub(crate) fn temporary(self: &Arc<Inner>) -> Result<(File, Claim), Error> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let claim = self.claim(format!("{TEMPORARY}{}-{number}", std::process::id()));
        let path = self.path(&claim.name);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        Ok((file.map_err(disk("create", path))?, claim))
    }

    pub(crate) fn claim(self: &Arc<Inner>, name: String) -> Claim {
        *self.state().making.entry(name.clone()).or_default() += 1;
        Claim { inner: self.clone(), name }
    }

    pub(crate) fn download_lock(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(*digest).or_default().clone()
    }

    /// A layer that was taken in gets its name, if it is the one that it should be. Durable only after
    /// [`Inner::publish`]; kept as long as the claim.
    pub(crate) fn settle(self: &Arc<Inner>, temporary: &Claim, diff_id: &Digest) -> Result<Claim, Error> {
        let claim = self.claim(core::layer_name(diff_id));
        core::settle_layer(&self.place, &temporary.name, diff_id).map_err(disk_error(&self.place))?;
        self.state().bad.remove(diff_id);
        Ok(claim)
    }

    /// Makes images real.
    pub(crate) fn publish(&self, images: Vec<NewImage>) -> Result<(), Error> {
        let mut state = self.state();
        let mut next = state.table.clone();
        let mut records = Vec::new();
        for image in images {
            let size = |layer: &LayerInfo| LayerInfo {
                size: std::fs::metadata(self.path(&core::layer_name(&layer.diff_id)))
                    .map_or(layer.size, |meta| meta.len()),
                ..layer.clone()
            };
            let layers: Vec<LayerInfo> = image.layers.iter().map(size).collect();
            let old = next.images.get(&image.id).cloned();
            let old = old.as_ref();
            let known = Known {
                manifest: Digest::of(image.manifest.as_bytes()),
                layers: layers.clone(),
                since: old.map_or_else(now, |old| old.since),
                repo_digests: old
                    .map(|old| old.repo_digests.clone())
                    .unwrap_or_default()
                    .into_iter()
                    .chain(image.repo_digest.clone())
                    .collect(),
                pins: old.map(|old| old.pins.clone()).unwrap_or_default(),
            };
            for layer in &layers {
                next.bad.remove(&layer.diff_id);
            }
            if let Some(digest) = &image.repo_digest {
                for (_, other) in next.images.iter_mut().filter(|(id, _)| **id != image.id) {
                    other.repo_digests.remove(digest);
                }
            }
            if old != Some(&known) || state.lost.contains(&image.id) {
                let names = image.tags.iter().chain(&image.repo_digest).cloned().collect();
                let record = Record { config: image.config, manifest: image.manifest, names, layers };
                let bytes = serde_json::to_vec(&record)
                    .map_err(|error| disk("write", self.path(&core::record_name(&image.id)))(error.into()))?;
                records.push((image.id, bytes));
            }
            next.images.insert(image.id, known);
            for tag in image.tags {
                next.tags.insert(tag, image.id);
            }
        }
        if records.is_empty() && next == state.table {
            return Ok(());
        }
        core::publish(&self.place, &records, &next).map_err(disk_error(&self.place))?;
        for (id, _) in &records {
            state.lost.remove(id);
        }
        state.table = next;
        Ok(())
    }

    /// Whether so many bytes in so many files fit.
    pub(crate) fn check_space(&self, name: &str, bytes: u64, files: u64) -> Result<(), Error> {
        let stat = nix::sys::statvfs::statvfs(self.place.path())
            .map_err(|error| disk("look at the space of", self.place.path())(error.into()))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let (reserve, inodes) = (self.limits.reserve_bytes, self.limits.reserve_inodes);
        if free < bytes.saturating_add(reserve) {
            return Err(Error::NoSpace { name: name.to_owned(), needed: bytes, free, reserve });
        }
        // File systems without a fixed number of inodes say 0 of 0.
        let have = stat.files_available();
        if stat.files() > 0 && have < files.saturating_add(inodes) {
            let name = name.to_owned();
            return Err(Error::NoInodes { name, needed: files, free: have, reserve: inodes });
        }
        Ok(())
    }
}

/// An image that is complete but for its publication.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub id: ImageId,
    pub config: String,
    pub manifest: String,
    pub layers: Vec<LayerInfo>,
    pub tags: Vec<Reference>,
    pub repo_digest: Option<Reference>,
}

impl Store {
    /// Opens the store, makes it if there is none, removes what operations that were cut off have left, and scrubs
    /// quickly. Never removes an image.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Version`], [`Error::Disk`].
    pub fn open(dir: &Path, limits: Limits) -> Result<(Store, ScrubReport), Error> {
        let place = Dir::new(dir);
        place.create().map_err(disk("create", dir))?;
        let lock_path = dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let file = file.map_err(disk("open", &lock_path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Error::Locked { path: dir.to_owned() })?;
        let mut recovered = false;
        let table = match Table::load(&place) {
            Ok(table) => table,
            Err(LoadError::Version(found)) => {
                return Err(Error::Version { path: dir.to_owned(), found, known: VERSION });
            }
            Err(LoadError::Failed(failed)) if failed.step == "read" => {
                return Err(disk_error(&place)(failed));
            }
            Err(LoadError::Failed(_)) => {
                recovered = true;
                Table { version: VERSION, ..Table::default() }
            }
        };
        let inner = Inner {
            place,
            limits,
            state: Mutex::default(),
            downloads: Mutex::default(),
            numbers: AtomicU64::new(0),
            deltas: Arc::new(tokio::sync::Semaphore::new(1)),
            _lock: lock,
        };
        let store = Store { inner: Arc::new(inner) };
        let table = if recovered { store.recover(table)? } else { table };
        let mut state = store.inner.state();
        state.table = table;
        let mut report = ScrubReport::default();
        let sizes: BTreeMap<String, u64> = (store.inner.place.names().map_err(disk("list", dir))?)
            .into_iter()
            .map(|name| (name.clone(), std::fs::metadata(dir.join(&name)).map_or(0, |meta| meta.len())))
            .collect();
        // Layers of a pull that was cut off are whole, or they would not have their names: the next one takes them.
        let recent = |name: &&String| {
            let diff_id = name.strip_prefix("layer-").and_then(|name| name.strip_suffix(".erofs"));
            let diff_id = diff_id.and_then(|hex| Digest::from_hex(hex).ok());
            diff_id.is_some_and(|diff_id| store.inner.look(&diff_id, Depth::Quick).is_ok())
                && !older(&store.inner.path(name), KEPT)
        };
        let making = sizes.keys().filter(recent).cloned().collect();
        let gone = core::sweep(&store.inner.place, &state.table, &making, true)
            .map_err(disk_error(&store.inner.place))?;
        report.leftovers = (gone.len(), gone.iter().filter_map(|name| sizes.get(name)).sum());
        store.scrub_into(&mut state, Depth::Quick, &mut report);
        drop(state);
        Ok((store, report))
    }

    /// A table out of the records, for the day on which the table itself is lost. The bad one stays beside it.
    fn recover(&self, mut table: Table) -> Result<Table, Error> {
        let place = &self.inner.place;
        for name in place.names().map_err(disk("list", place.path()))? {
            let id = name.strip_prefix("image-").and_then(|name| name.strip_suffix(".json"));
            let Some(id) = id.and_then(|hex| Digest::from_hex(hex).ok()).map(ImageId) else { continue };
            let Some(record) = self.inner.record(&id) else { continue };
            let (digests, tags): (BTreeSet<Reference>, BTreeSet<Reference>) =
                record.names.into_iter().partition(|name| name.digest().is_some());
            let manifest = Digest::of(record.manifest.as_bytes());
            let pins = BTreeSet::new();
            let known = Known { manifest, layers: record.layers, since: now(), repo_digests: digests, pins };
            table.images.insert(id, known);
            for tag in tags {
                table.tags.entry(tag).or_insert(id);
            }
        }
        place.rename(TABLE, "table.bad").map_err(disk("put aside", self.inner.path(TABLE)))?;
        table.store(place).map_err(disk_error(place))?;
        Ok(table)
    }

    fn image(&self, state: &State, id: &ImageId, known: &Known) -> Image {
        let record = self.inner.record(id);
        let config = record
            .as_ref()
            .and_then(|record| ImageConfig::parse(record.config.as_bytes(), known.layers.len()).ok())
            .unwrap_or_default();
        let (config_json, manifest_json) = record
            .map(|record| (record.config.into_bytes(), record.manifest.into_bytes()))
            .unwrap_or_default();
        let bad = |layer: &&LayerInfo| state.bad.contains_key(&layer.diff_id);
        let mut damaged: Vec<Digest> = known.layers.iter().filter(bad).map(|layer| layer.diff_id).collect();
        if config_json.is_empty() {
            damaged.push(id.0);
        }
        Image {
            id: *id,
            tags: state.table.tags.iter().filter(|(_, of)| *of == id).map(|(tag, _)| tag.clone()).collect(),
            repo_digests: known.repo_digests.iter().cloned().collect(),
            config,
            config_json,
            manifest_json,
            manifest: known.manifest,
            layers: known.layers.clone(),
            size: known.layers.iter().map(|layer| layer.size).sum(),
            since: known.since,
            needed_by: needed_by(state, id),
            damaged,
        }
    }

    /// All images, the newest first.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        let state = self.inner.state();
        let mut images: Vec<Image> =
            state.table.images.iter().map(|(id, known)| self.image(&state, id, known)).collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.since));
        images
    }

    /// The image that a person means: a name, an id, or the beginning of an id.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Ambiguous`].
    pub fn resolve(&self, name: &str) -> Result<ImageId, Error> {
        resolve(&self.inner.state(), name).map(|(id, _)| id)
    }

    /// One image.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`].
    pub fn inspect(&self, id: &ImageId) -> Result<Image, Error> {
        let state = self.inner.state();
        let known = known(&state, id)?;
        Ok(self.image(&state, id, known))
    }

    /// Gives an image a name; another image that had it loses it. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Disk`].
    pub fn tag(&self, id: &ImageId, name: &Reference) -> Result<(), Error> {
        let mut state = self.inner.state();
        known(&state, id)?;
        let tag = match name.tag() {
            Some(tag) => name.with_tag(tag)?,
            None => name.with_tag(crate::reference::DEFAULT_TAG)?,
        };
        self.inner.change(&mut state, |table| {
            table.tags.insert(tag, *id);
            Ok(())
        })
    }

    /// Takes a name away. The image stays, without a name if that was the last. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Disk`].
    pub fn untag(&self, name: &Reference) -> Result<ImageId, Error> {
        let mut state = self.inner.state();
        self.inner.change(&mut state, |table| {
            table.tags.remove(name).ok_or_else(|| Error::NoSuchImage { name: name.familiar() })
        })
    }

    /// As `docker rmi`: takes the name away, and the image with it if that was its last name and nobody needs it. By
    /// id, `force` is needed where there are several names. An image that somebody needs stays: without `force` that
    /// is an error, with it only its name goes.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::InUse`], [`Error::SeveralNames`], [`Error::Disk`].
    pub fn remove(&self, name: &str, force: bool) -> Result<Removed, Error> {
        let mut state = self.inner.state();
        let (id, by_name) = resolve(&state, name)?;
        let tags: Vec<Reference> =
            state.table.tags.iter().filter(|(_, of)| **of == id).map(|(tag, _)| tag.clone()).collect();
        let (gone, last) = match &by_name {
            Some(name) if name.digest().is_none() => (vec![name.clone()], tags.iter().all(|tag| tag == name)),
            // By digest, or by id: all of it.
            _ => (tags.clone(), true),
        };
        if by_name.is_none() && tags.len() > 1 && !force {
            let names = tags.iter().map(Reference::familiar).collect();
            return Err(Error::SeveralNames { id, names });
        }
        let by = needed_by(&state, &id);
        let needed = last && !by.is_empty();
        if needed && !(force && by_name.is_some()) {
            return Err(Error::InUse { id, by });
        }
        let mut removed = Removed { untagged: gone.clone(), ..Removed::default() };
        self.inner.change(&mut state, |table| {
            table.tags.retain(|tag, _| !gone.contains(tag));
            if last && !needed {
                if let Some(known) = table.images.remove(&id) {
                    removed.untagged.extend(known.repo_digests);
                }
                removed.images.push(id);
            }
            forget_bad(table);
            Ok(())
        })?;
        (removed.layers, removed.freed) = self.inner.sweep(&state)?;
        for layer in &removed.layers {
            state.bad.remove(layer);
        }
        Ok(removed)
    }

    /// What a container's root is made of.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Damaged`].
    pub fn rootfs(&self, id: &ImageId) -> Result<Rootfs, Error> {
        let state = self.inner.state();
        let known = known(&state, id)?;
        let layers = known.layers.iter().map(|layer| {
            let diff_id = layer.diff_id;
            if let Some(why) = state.bad.get(&diff_id).copied() {
                return Err(Error::Damaged { id: *id, layer: diff_id, why });
            }
            Ok(RootfsLayer { diff_id, file: self.inner.path(&core::layer_name(&diff_id)) })
        });
        Ok(Rootfs { layers: layers.collect::<Result<_, _>>()? })
    }

    /// A container needs the image from now on. Not kept over a restart: the engine says it again for all its
    /// containers, then [`Store::holds_complete`].
    ///
    /// # Errors
    /// [`Error::NoSuchImage`].
    pub fn hold(&self, id: &ImageId, container: &str) -> Result<(), Error> {
        let mut state = self.inner.state();
        known(&state, id)?;
        state.holds.insert(container.to_owned(), *id);
        Ok(())
    }

    /// The container no longer needs any image.
    pub fn release(&self, container: &str) {
        self.inner.state().holds.remove(container);
    }

    /// All containers of the device have said what they need: collection may begin.
    pub fn holds_complete(&self) {
        self.inner.state().holds_complete = true;
    }

    /// Keeps an image for a reason that outlives a restart, such as a rollback. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Disk`].
    pub fn pin(&self, id: &ImageId, reason: &str) -> Result<(), Error> {
        let mut state = self.inner.state();
        self.inner.change(&mut state, |table| match table.images.get_mut(id) {
            Some(known) => {
                known.pins.insert(reason.to_owned());
                Ok(())
            }
            None => Err(Error::NoSuchImage { name: id.to_string() }),
        })
    }

    /// The reason is gone, for all images or for one. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn unpin(&self, id: Option<&ImageId>, reason: &str) -> Result<(), Error> {
        let mut state = self.inner.state();
        self.inner.change(&mut state, |table| {
            for (_, known) in table.images.iter_mut().filter(|(of, _)| id.is_none_or(|id| id == *of)) {
                known.pins.remove(reason);
            }
            Ok(())
        })
    }

    /// Removes what nobody needs, as far as the policy says; the oldest first. Also downloads that nobody has touched
    /// for a week.
    ///
    /// # Errors
    /// [`Error::HoldsUnknown`], [`Error::Disk`].
    pub fn gc(&self, policy: &Policy) -> Result<Removed, Error> {
        let mut state = self.inner.state();
        if !state.holds_complete {
            return Err(Error::HoldsUnknown);
        }
        let mut candidates: Vec<(u64, ImageId)> = state
            .table
            .images
            .iter()
            .filter(|(id, known)| self.may_go(&state, id, known, policy))
            .map(|(id, known)| (known.since, *id))
            .collect();
        candidates.sort();
        let mut removed = Removed::default();
        let enough = |state: &State| {
            policy.until_free.is_some_and(|wanted| self.inner.check_space("", wanted, 0).is_ok())
                || policy.until_used.is_some_and(|most| layers_size(&state.table) <= most)
        };
        // Images that wait for space go one by one, to stop as soon as there is enough; all others in one write.
        let groups: Vec<Vec<ImageId>> = if policy.until_free.is_some() || policy.until_used.is_some() {
            candidates.iter().map(|(_, id)| vec![*id]).collect()
        } else {
            vec![candidates.iter().map(|(_, id)| *id).collect()]
        };
        for group in groups {
            if enough(&state) {
                break;
            }
            self.inner.change(&mut state, |table| {
                for id in &group {
                    removed
                        .untagged
                        .extend(table.tags.iter().filter(|(_, of)| *of == id).map(|(tag, _)| tag.clone()));
                    table.tags.retain(|_, of| of != id);
                    if let Some(known) = table.images.remove(id) {
                        removed.untagged.extend(known.repo_digests);
                        removed.images.push(*id);
                    }
                }
                forget_bad(table);
                Ok(())
            })?;
            let (layers, freed) = self.inner.sweep(&state)?;
            for layer in &layers {
                state.bad.remove(layer);
            }
            removed.layers.extend(layers);
            removed.freed += freed;
        }
        removed.freed += self.sweep_partial(&state, KEPT)?;
        Ok(removed)
    }

    fn may_go(&self, state: &State, id: &ImageId, known: &Known, policy: &Policy) -> bool {
        let tags: Vec<&Reference> =
            state.table.tags.iter().filter(|(_, of)| *of == id).map(|(tag, _)| tag).collect();
        if !needed_by(state, id).is_empty() || (!policy.all && !tags.is_empty()) {
            return false;
        }
        if tags.iter().any(|tag| policy.keep.contains(*tag))
            || known.repo_digests.iter().any(|name| policy.keep.contains(name))
        {
            return false;
        }
        if policy.older_than.is_some_and(|age| known.since.saturating_add(age.as_secs()) > now()) {
            return false;
        }
        policy.labels.is_empty() || {
            let record = self.inner.record(id);
            let config = record
                .and_then(|record| ImageConfig::parse(record.config.as_bytes(), known.layers.len()).ok());
            let labels = config.map(|config| config.config.labels).unwrap_or_default();
            policy.labels.iter().all(|(name, value)| match (labels.get(name), value) {
                (None, _) => false,
                (Some(has), Some(value)) => has == value,
                (Some(_), None) => true,
            })
        }
    }

    fn sweep_partial(&self, state: &State, age: Duration) -> Result<u64, Error> {
        let mut freed = 0;
        for name in self.inner.place.names().map_err(disk("list", self.inner.place.path()))? {
            if !name.starts_with(PARTIAL) || state.making.contains_key(&name) {
                continue;
            }
            if older(&self.inner.path(&name), age) {
                freed += std::fs::metadata(self.inner.path(&name)).map_or(0, |meta| meta.len());
                self.inner.place.remove(&name).map_err(disk("remove", self.inner.path(&name)))?;
            }
        }
        Ok(freed)
    }

    /// Looks for what is bad, and marks it. [`Depth::Full`] reads everything and takes its time; images can be used
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn scrub(&self, depth: Depth) -> Result<ScrubReport, Error> {
        let mut report = ScrubReport::default();
        if depth == Depth::Quick {
            self.scrub_into(&mut self.inner.state(), depth, &mut report);
            return Ok(report);
        }
        let all: BTreeSet<Digest> = {
            let state = self.inner.state();
            state.table.images.values().flat_map(|known| &known.layers).map(|layer| layer.diff_id).collect()
        };
        // Without the lock: reading everything takes minutes.
        let mut found = Vec::new();
        for diff_id in all {
            report.layers += 1;
            match self.inner.look(&diff_id, depth) {
                Ok(bytes) => report.bytes += bytes,
                Err(why) => found.push((diff_id, why)),
            }
        }
        let mut state = self.inner.state();
        // One that was removed or fetched anew meanwhile is not bad.
        found.retain(|(diff_id, _)| {
            state.table.users(diff_id).next().is_some() && self.inner.look(diff_id, depth).is_err()
        });
        self.inner.change(&mut state, |table| {
            table.bad = found.iter().map(|(diff_id, why)| (*diff_id, (*why).to_owned())).collect();
            Ok(())
        })?;
        state.bad = found.iter().copied().collect();
        report.damaged = damaged(&state);
        report.bad = found;
        Ok(report)
    }

    fn scrub_into(&self, state: &mut State, depth: Depth, report: &mut ScrubReport) {
        let all: BTreeSet<Digest> =
            state.table.images.values().flat_map(|known| &known.layers).map(|layer| layer.diff_id).collect();
        let marked: BTreeSet<Digest> = state.table.bad.keys().copied().collect();
        state.bad.clear();
        for diff_id in all {
            report.layers += 1;
            match self.inner.look(&diff_id, depth) {
                Ok(_) if marked.contains(&diff_id) => {
                    state.bad.insert(diff_id, "did not pass an earlier scrub");
                }
                Ok(_) => {}
                Err(why) => {
                    state.bad.insert(diff_id, why);
                }
            }
        }
        state.lost =
            state.table.images.keys().filter(|id| self.inner.record(id).is_none()).copied().collect();
        report.bad = state.bad.iter().map(|(diff_id, why)| (*diff_id, *why)).collect();
        report.damaged = damaged(state);
    }

    /// What takes space.
    #[must_use]
    pub fn disk_usage(&self) -> DiskUsage {
        let state = self.inner.state();
        let mut usage = DiskUsage::default();
        let mut users: BTreeMap<Digest, u64> = BTreeMap::new();
        for layer in state.table.images.values().flat_map(|known| &known.layers) {
            *users.entry(layer.diff_id).or_default() += 1;
        }
        usage.layers = layers_size(&state.table);
        for (id, known) in &state.table.images {
            let shared = known
                .layers
                .iter()
                .filter(|layer| users.get(&layer.diff_id).is_some_and(|count| *count > 1))
                .map(|layer| layer.size)
                .sum();
            usage.images.push((*id, known.layers.iter().map(|layer| layer.size).sum(), shared));
        }
        for name in self.inner.place.names().unwrap_or_default() {
            let size = std::fs::metadata(self.inner.path(&name)).map_or(0, |meta| meta.len());
            match () {
                () if name.starts_with(PARTIAL) || name.starts_with(TEMPORARY) => usage.partial += size,
                () if name.starts_with("layer-") => {}
                () => usage.records += size,
            }
        }
        usage
    }

    /// The manifest of an image, parsed.
    pub(crate) fn record(&self, id: &ImageId) -> Result<(Record, Known), Error> {
        let known = known(&self.inner.state(), id)?.clone();
        let record = self.inner.record(id).ok_or(Error::Damaged {
            id: *id,
            layer: id.0,
            why: "is only a record, and that is unreadable",
        })?;
        Ok((record, known))
    }

    /// Removes what an operation that failed has left.
    pub(crate) fn sweep_now(&self) {
        let state = self.inner.state();
        // What cannot be removed now goes with the next collection.
        let _ = self.inner.sweep(&state);
    }

    /// Whether an image is here and whole.
    pub(crate) fn is_whole(&self, id: &ImageId) -> bool {
        let state = self.inner.state();
        state.table.images.get(id).is_some_and(|known| {
            !state.lost.contains(id)
                && !known.layers.iter().any(|layer| state.bad.contains_key(&layer.diff_id))
        })
    }

    /// What an image's manifest says, where the record has one that can be read.
    #[must_use]
    pub fn manifest(&self, id: &ImageId) -> Option<crate::manifest::Manifest> {
        match Document::parse(self.inner.record(id)?.manifest.as_bytes(), "").ok()? {
            Document::Manifest(manifest) => Some(manifest),
            Document::Index(_) => None,
        }
    }
}

/// Marks of layers that no image needs any more.
fn forget_bad(table: &mut Table) {
    let bad: Vec<Digest> =
        table.bad.keys().filter(|layer| table.users(layer).next().is_none()).copied().collect();
    for layer in bad {
        table.bad.remove(&layer);
    }
}

/// Bytes of all layers that images have, each counted once.
fn layers_size(table: &Table) -> u64 {
    let layers = table.images.values().flat_map(|known| &known.layers);
    layers.map(|layer| (layer.diff_id, layer.size)).collect::<BTreeMap<_, _>>().values().sum()
}

fn damaged(state: &State) -> Vec<ImageId> {
    let bad = |known: &Known| known.layers.iter().any(|layer| state.bad.contains_key(&layer.diff_id));
    state
        .table
        .images
        .iter()
        .filter(|(id, known)| state.lost.contains(id) || bad(known))
        .map(|(id, _)| *id)
        .collect()
}

fn needed_by(state: &State, id: &ImageId) -> Vec<String> {
    let holds = state.holds.iter().filter(|(_, of)| *of == id).map(|(container, _)| container.clone());
    let pins = state.table.images.get(id).into_iter().flat_map(|known| known.pins.iter().cloned());
    holds.chain(pins).collect()
}

fn known<'a>(state: &'a State, id: &ImageId) -> Result<&'a Known, Error> {
    state.table.images.get(id).ok_or_else(|| Error::NoSuchImage { name: id.to_string() })
}

/// The image, and the name by which it was found if it was one.
fn resolve(state: &State, name: &str) -> Result<(ImageId, Option<Reference>), Error> {
    let missing = || Error::NoSuchImage { name: name.chars().take(200).collect() };
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let digits = (4..=64).contains(&hex.len())
        && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if let Ok(reference) = name.parse::<Reference>()
        && !name.starts_with("sha256:")
    {
        let found = match reference.digest() {
            None => state.table.tags.get(&reference).copied(),
            Some(digest) => {
                let wanted = reference.with_digest(digest);
                let fits = |known: &Known| known.repo_digests.contains(&wanted);
                state.table.images.iter().find(|(_, known)| fits(known)).map(|(id, _)| *id)
            }
        };
        match found {
            Some(id) => return Ok((id, Some(reference))),
            None if !digits => return Err(missing()),
            None => {}
        }
    }
    if !digits {
        return Err(missing());
    }
    let fits: Vec<ImageId> =
        state.table.images.keys().filter(|id| id.0.hex().starts_with(hex)).copied().collect();
    match *fits {
        [] => Err(missing()),
        [id] => Ok((id, None)),
        _ => Err(Error::Ambiguous { prefix: hex.to_owned(), count: fits.len() }),
    }
}
