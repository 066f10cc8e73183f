//! A file on servers as something to read from: what is missing is fetched, for as long as it takes. A file of this
//! machine (a `file:` address) is read where it is: nothing of it is copied, and what cannot be read is no outage.
//!
//! One transfer at a time. Whoever wants bytes says so and waits; wants that lie close together become one request,
//! and reading on ahead is cheap. Failures that may heal are waited out without limit; only what cannot heal reaches
//! those who wait. Called by the proxy, which serves from it, and by the delta's reader.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustiot_http::{Backoff, Bytes, Class, Error, Http, Ranged, Url, Validator};
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, Instant, sleep};

use crate::cache::{Cache, CacheError};
use crate::error::Failure;
use crate::journal::Identity;
use crate::medium::Files;
use crate::ranges::RangeSet;
use crate::throttle::Bucket;
use crate::types::{Limits, Progress, State};
use crate::window::Window;

/// Wants that are no further apart become one request: an answer's head costs as much.
const GAP: u64 = 64 << 10;
/// Read at least this far, where nothing else is known.
const AHEAD_MIN: u64 = 256 << 10;
/// Read at most this far ahead of somebody who reads in order.
const AHEAD_MAX: u64 = 8 << 20;
/// The same without a cache: what is ahead has to stay in memory.
const AHEAD_WINDOW: u64 = 1 << 20;
/// Most that is kept in memory without a cache: for several readers at once, in any order.
const WINDOW: usize = 4 << 20;
/// The same for one reader that goes upwards, whose decoder takes most of what there is: what is ahead of it, and what it is
/// about to read.
const AHEAD_IN_ORDER: u64 = 512 << 10;
const WINDOW_IN_ORDER: usize = 640 << 10;
/// Somebody who waits for something this close ahead of a transfer waits for the transfer.
const SOON: u64 = 2 << 20;
/// How much is written and synced at once: a 256th of the file, between these. A power cut costs half of it on average, and
/// each sync costs the medium some 20 KiB of the file system's own.
const COMMIT: (u64, u64) = (16 << 10, 1 << 20);
/// What came longer ago is written even if it is less.
const COMMIT_AFTER: Duration = Duration::from_secs(2);
/// Most that one request asks for. What is under way when a link dies lies in buffers between here and the server, and
/// was paid for; a server sends no more than was asked for. So a link that has died once, or a job that was cut off, asks
/// for a sixteenth of what has come since, and one that never has for a half.
const REQUEST: (u64, u64) = (1 << 20, 2);
const REQUEST_ROUGH: (u64, u64) = (256 << 10, 16);
/// Seconds of its rate that one request of a limited download asks for at the most: the server sends faster, and what a
/// window's end finds in buffers was paid for.
const REQUEST_SECONDS: u64 = 2;
/// Rounds in which every address fails in a way that does not heal, before that is the result.
const HOPELESS: u32 = 3;
/// A transfer that brought this much may be begun again at once.
const WORTH: u64 = 16 << 10;

/// What the caller may change while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    pub paused: bool,
    pub limits: Limits,
}

/// What the file is, and who reads it.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub urls: Vec<Url>,
    pub len: Option<u64>,
    pub sha256: Option<[u8; 32]>,
    /// One reader goes upwards through it, and nobody else reads: a decoder.
    pub in_order: bool,
}

/// How much of a file of this machine is read at once.
const LOCAL_BLOCK: usize = 256 << 10;

/// A file of this machine in the place of one on servers.
#[derive(Debug)]
struct Local {
    path: String,
    file: std::fs::File,
    len: u64,
}

impl Local {
    /// Opens the file at a `file:` address; it must have the length that is told. Blocks.
    fn open(url: &Url, len: Option<u64>) -> Result<Local, Failure> {
        let failed = |path: &str| {
            let path = path.to_owned();
            move |source| Failure::Local { path, source: Arc::new(source) }
        };
        let path = url.to_file_path().map_err(|()| failed(url.path())(io::ErrorKind::InvalidInput.into()))?;
        let name = path.display().to_string();
        let file = std::fs::File::open(&path).map_err(failed(&name))?;
        let meta = file.metadata().map_err(failed(&name))?;
        if !meta.is_file() {
            return Err(failed(&name)(io::ErrorKind::InvalidInput.into()));
        }
        if len.is_some_and(|len| len != meta.len()) {
            return Err(Failure::Corrupt);
        }
        Ok(Local { path: name, file, len: meta.len() })
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        use std::os::unix::fs::FileExt;
        let read = self.file.read_exact_at(buf, offset);
        read.map_err(|source| Failure::Local { path: self.path.clone(), source: Arc::new(source) })
    }
}

/// A file on servers, or of this machine. All clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    http: Http,
    remote: Remote,
    /// The file itself, where it lies on this machine: nothing is fetched or kept then.
    local: Option<Local>,
    cache_dir: PathBuf,
    cache_limit: u64,
    inner: Mutex<Inner>,
    /// Somebody wants something.
    work: Notify,
    /// Counts up when anything changed for those who wait.
    version: watch::Sender<u64>,
    control: watch::Sender<Control>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
struct Inner {
    len: Option<u64>,
    learn: bool,
    whole: usize,
    wants: BTreeMap<u64, Range<u64>>,
    next_want: u64,
    failure: Option<Failure>,
    validators: Vec<Validator>,
    /// What is in the cache.
    have: RangeSet,
    verified: bool,
    cache: Option<Arc<Mutex<Cache<Files>>>>,
    window: Window,
    handed_out: bool,
    /// The address that worked last, modulo their number.
    mirror: usize,
}

impl Inner {
    fn new(remote: &Remote) -> Inner {
        Inner {
            len: None,
            learn: false,
            whole: 0,
            wants: BTreeMap::new(),
            next_want: 0,
            failure: None,
            validators: vec![Validator::default(); remote.urls.len()],
            have: RangeSet::default(),
            verified: false,
            cache: None,
            window: Window::new(if remote.in_order { WINDOW_IN_ORDER } else { WINDOW }),
            handed_out: false,
            mirror: 0,
        }
    }

    fn missing(&self, range: Range<u64>) -> Option<Range<u64>> {
        match self.cache {
            Some(_) => self.have.missing(range).into_iter().next(),
            None => self.window.missing(range),
        }
    }
}

/// One transfer.
#[derive(Debug)]
struct Run {
    range: Range<u64>,
    /// Up to here somebody waits; beyond is reading ahead, and may be broken off.
    needed: u64,
}

/// Why a transfer ended early.
enum Stop {
    Control,
    Http(Error, u64),
    Failure(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failure(failure)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make bytes wrong: the cache checks them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was the matter with a blocking task: it panicked, or the process ends.
fn gone(_: tokio::task::JoinError) -> Failure {
    Failure::Proxy("a task of the proxy ended")
}

impl Store {
    /// Opens the cache of the file, if its length is known, and starts to wait for wants.
    pub async fn open(
        http: Http,
        remote: Remote,
        cache_dir: &Path,
        control: watch::Sender<Control>,
        progress: watch::Sender<Progress>,
    ) -> Result<Store, Failure> {
        if remote.urls.is_empty() {
            return Err(Failure::NoAddress);
        }
        let cache_limit = control.borrow().limits.cache;
        let local = match remote.urls.first().filter(|url| url.scheme() == "file").cloned() {
            Some(url) => {
                let len = remote.len;
                Some(tokio::task::spawn_blocking(move || Local::open(&url, len)).await.map_err(gone)??)
            }
            None => None,
        };
        let here = local.as_ref().map(|local| local.len);
        let store = Store(Arc::new(Shared {
            http,
            local,
            cache_dir: cache_dir.to_owned(),
            cache_limit,
            inner: Mutex::new(Inner::new(&remote)),
            remote,
            work: Notify::new(),
            version: watch::Sender::new(0),
            control,
            progress,
        }));
        if let Some(len) = here {
            lock(&store.0.inner).len = Some(len);
            store.0.progress.send_modify(|progress| (progress.total, progress.have) = (len, len));
            return Ok(store);
        }
        if let Some(len) = store.0.remote.len {
            begin(&store.0, len, None).await?;
        }
        tokio::spawn(Fetcher::new(store.0.clone()).run());
        Ok(store)
    }

    /// The file's length; asks a server if nobody has told it.
    pub async fn len(&self) -> Result<u64, Failure> {
        let mut version = self.0.version.subscribe();
        loop {
            {
                let mut inner = lock(&self.0.inner);
                if let Some(failure) = &inner.failure {
                    return Err(failure.clone());
                }
                if let Some(len) = inner.len {
                    return Ok(len);
                }
                inner.learn = true;
            }
            self.0.work.notify_one();
            if version.changed().await.is_err() {
                return Err(Failure::Cancelled);
            }
        }
    }

    /// Waits until the bytes are here.
    async fn ensure(&self, range: Range<u64>) -> Result<(), Failure> {
        let mut version = self.0.version.subscribe();
        let _want = Want::new(&self.0, range.clone());
        loop {
            {
                let inner = lock(&self.0.inner);
                if let Some(failure) = &inner.failure {
                    return Err(failure.clone());
                }
                let here = self.0.local.is_some() || inner.missing(range.clone()).is_none();
                if inner.len.is_some() && here {
                    return Ok(());
                }
            }
            self.0.work.notify_one();
            if version.changed().await.is_err() {
                return Err(Failure::Cancelled);
            }
        }
    }

    /// Says what will be wanted soon, and waits until it is here, as far as it can be kept.
    pub async fn prefetch(&self, ranges: &[Range<u64>]) -> Result<(), Failure> {
        if self.0.local.is_some() {
            return self.failure().map_or(Ok(()), Err);
        }
        let room = match self.cached() {
            true => u64::MAX,
            // It fetches what it reads: several stretches ahead of it would push each other out of the window.
            false if self.0.remote.in_order => 0,
            false => AHEAD_WINDOW,
        };
        let mut sum = 0u64;
        let wants: Vec<_> = ranges
            .iter()
            .take_while(|range| {
                sum = sum.saturating_add(range.end.saturating_sub(range.start));
                sum <= room
            })
            .map(|range| (Want::new(&self.0, range.clone()), range.clone()))
            .collect();
        for (_want, range) in &wants {
            self.ensure(range.clone()).await?;
        }
        Ok(())
    }

    /// Whether there is a cache.
    pub fn cached(&self) -> bool {
        lock(&self.0.inner).cache.is_some()
    }

    /// Fills `buf` if it is here already.
    fn fill_now(&self, offset: u64, buf: &mut [u8]) -> Result<bool, Failure> {
        let end = offset.saturating_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
        let cache = {
            let mut inner = lock(&self.0.inner);
            if let Some(failure) = &inner.failure {
                return Err(failure.clone());
            }
            inner.handed_out = true;
            if let Some(local) = &self.0.local {
                drop(inner);
                return match local.read(offset, buf) {
                    Ok(()) => Ok(true),
                    Err(failure) => {
                        // The decoder hands on an error of its own; whoever asks why finds this one.
                        self.fail(failure.clone());
                        Err(failure)
                    }
                };
            }
            match &inner.cache {
                None => return Ok(inner.window.read(offset, buf)),
                Some(_) if !inner.have.contains(&(offset..end)) => return Ok(false),
                Some(cache) => cache.clone(),
            }
        };
        let read = lock(&cache).read(offset, buf);
        read.map(|()| true)
            .map_err(|source| Failure::Cache(Arc::new(CacheError { step: "read the download", source })))
    }

    /// Fills `buf`, for as long as it takes.
    pub async fn fill(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let mut at = offset;
        // Piece by piece: without a cache, only so much stays here.
        for piece in buf.chunks_mut(GAP.try_into().unwrap_or(1)) {
            let end = at.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            while !self.fill_now(at, piece)? {
                self.ensure(at..end).await?;
            }
            at = end;
        }
        Ok(())
    }

    /// The same for a thread that may block.
    pub fn fill_blocking(
        &self,
        runtime: &tokio::runtime::Handle,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Failure> {
        if self.fill_now(offset, buf)? {
            return Ok(());
        }
        runtime.block_on(self.fill(offset, buf))
    }

    /// Fetches the whole file into the cache and compares its SHA-256, where one is known.
    pub async fn download(&self) -> Result<(), Failure> {
        if self.0.local.is_some() {
            let store = self.clone();
            return tokio::task::spawn_blocking(move || store.compare()).await.map_err(gone)?;
        }
        let _whole = Whole::new(&self.0);
        let mut len = self.len().await?;
        let mut corrupt = 0;
        loop {
            let Some(cache) = lock(&self.0.inner).cache.clone() else {
                return Err(Failure::TooLarge { need: len, limit: self.0.cache_limit });
            };
            self.ensure(0..len).await?;
            if lock(&self.0.inner).len != Some(len) {
                // The file is another one now.
                len = self.len().await?;
                continue;
            }
            let Some(sha256) = self.0.remote.sha256 else { return Ok(()) };
            if lock(&self.0.inner).verified {
                return Ok(());
            }
            let verified = {
                let cache = cache.clone();
                tokio::task::spawn_blocking(move || lock(&cache).verify(&sha256)).await.map_err(gone)??
            };
            if verified {
                lock(&self.0.inner).verified = true;
                return Ok(());
            }
            corrupt += 1;
            let handed_out = lock(&self.0.inner).handed_out;
            if corrupt > self.0.remote.urls.len() || handed_out {
                let failure = Failure::Corrupt;
                self.fail(failure.clone());
                return Err(failure);
            }
            // Another address may have the right bytes.
            {
                let mut inner = lock(&self.0.inner);
                inner.mirror = inner.mirror.wrapping_add(1);
            }
            discard(&self.0, &cache).await?;
        }
    }

    /// Reads the whole file of this machine and compares its SHA-256, where one is known. Blocks.
    fn compare(&self) -> Result<(), Failure> {
        use sha2::{Digest, Sha256};
        let (Some(local), Some(sha256)) = (&self.0.local, self.0.remote.sha256) else { return Ok(()) };
        if lock(&self.0.inner).verified {
            return Ok(());
        }
        let (mut at, mut hash, mut buf) = (0, Sha256::new(), vec![0; LOCAL_BLOCK]);
        while at < local.len {
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            let left = usize::try_from(local.len.saturating_sub(at)).unwrap_or(usize::MAX);
            let count = buf.len().min(left);
            let block = buf.get_mut(..count).unwrap_or_default();
            local.read(at, block).inspect_err(|failure| self.fail(failure.clone()))?;
            hash.update(&*block);
            at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            // It was on this machine, as what an earlier run left in a cache.
            self.0.progress.send_modify(|progress| progress.cached = at);
        }
        if hash.finalize().as_slice() != sha256 {
            self.fail(Failure::Corrupt);
            return Err(Failure::Corrupt);
        }
        lock(&self.0.inner).verified = true;
        Ok(())
    }

    /// Ends everything, for good; the first failure counts.
    pub fn fail(&self, failure: Failure) {
        fail(&self.0, failure);
    }

    /// How it ended, if it did.
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.0.inner).failure.clone()
    }
}

fn fail(shared: &Shared, failure: Failure) {
    lock(&shared.inner).failure.get_or_insert_with(|| failure.clone());
    shared.progress.send_modify(|progress| progress.state = State::Failed(failure));
    bump(shared);
    shared.work.notify_one();
}

fn bump(shared: &Shared) {
    shared.version.send_modify(|version| *version = version.wrapping_add(1));
}

/// The length is known now: opens the cache. `said` is what an address said of a file that is known by nothing else:
/// what an earlier run left belongs to it only if it said the same then.
async fn begin(shared: &Arc<Shared>, len: u64, said: Option<(usize, Validator)>) -> Result<(), Failure> {
    let mut found = None;
    let dir = shared.cache_dir.clone();
    let failed = |(path, source): (PathBuf, io::Error)| Failure::File {
        path: path.display().to_string(),
        source: Arc::new(source),
    };
    if len <= shared.cache_limit {
        let identity = Identity { key: key(&shared.remote), len };
        let said = said.filter(|_| shared.remote.sha256.is_none());
        let open = move || {
            let mut cache = Cache::open(Files::open(&dir).map_err(failed)?, identity)?;
            let same = said.is_none_or(|(mirror, said)| {
                said.for_if_range().is_some() && cache.validators().get(mirror) == Some(&said)
            });
            if !same && cache.have().bytes() > 0 {
                cache.discard()?;
            }
            Ok::<_, Failure>(cache)
        };
        found = Some(tokio::task::spawn_blocking(open).await.map_err(gone)??);
    } else {
        // What an earlier job left would only take space.
        tokio::task::spawn_blocking(move || Files::remove(&dir).map_err(failed)).await.map_err(gone)??;
    }
    let cached = {
        let mut inner = lock(&shared.inner);
        inner.len = Some(len);
        inner.have = RangeSet::default();
        inner.verified = false;
        inner.window.clear();
        if let Some(cache) = found {
            inner.have = cache.have().clone();
            inner.verified = cache.verified();
            if cache.validators().len() == inner.validators.len() {
                inner.validators = cache.validators().to_vec();
            }
            inner.cache = Some(Arc::new(Mutex::new(cache)));
        }
        inner.have.bytes()
    };
    shared.progress.send_modify(|progress| {
        progress.total = len;
        progress.cached = cached;
        progress.have = cached;
    });
    bump(shared);
    Ok(())
}

/// Throws away what is in the cache.
async fn discard(shared: &Arc<Shared>, cache: &Arc<Mutex<Cache<Files>>>) -> Result<(), Failure> {
    let cache = cache.clone();
    tokio::task::spawn_blocking(move || lock(&cache).discard()).await.map_err(gone)??;
    {
        let mut inner = lock(&shared.inner);
        inner.have = RangeSet::default();
        inner.verified = false;
        inner.window.clear();
        inner.validators.fill(Validator::default());
    }
    shared.progress.send_modify(|progress| progress.have = 0);
    bump(shared);
    Ok(())
}

/// What a download is known by over restarts.
fn key(remote: &Remote) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write as _;
    let digest = match remote.sha256 {
        Some(sha256) => sha256.to_vec(),
        None => {
            let mut hash = Sha256::new();
            for url in &remote.urls {
                hash.update(url.as_str().as_bytes());
                hash.update([0]);
            }
            hash.finalize().to_vec()
        }
    };
    let mut text = String::from(if remote.sha256.is_some() { "sha256:" } else { "url:" });
    for byte in digest {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Somebody waits for bytes, until this is dropped.
struct Want<'a> {
    shared: &'a Shared,
    id: u64,
}

impl<'a> Want<'a> {
    fn new(shared: &'a Shared, range: Range<u64>) -> Want<'a> {
        let mut inner = lock(&shared.inner);
        let id = inner.next_want;
        inner.next_want = id.wrapping_add(1);
        inner.wants.insert(id, range);
        drop(inner);
        shared.work.notify_one();
        Want { shared, id }
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        lock(&self.shared.inner).wants.remove(&self.id);
    }
}

/// Somebody waits for the whole file, until this is dropped.
struct Whole<'a>(&'a Shared);

impl<'a> Whole<'a> {
    fn new(shared: &'a Shared) -> Whole<'a> {
        let mut inner = lock(&shared.inner);
        inner.whole = inner.whole.saturating_add(1);
        Whole(shared)
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        let mut inner = lock(&self.0.inner);
        inner.whole = inner.whole.saturating_sub(1);
    }
}

/// Fetches what is wanted, one transfer at a time, until the job ends.
struct Fetcher {
    shared: Arc<Shared>,
    control: watch::Receiver<Control>,
    backoff: Backoff,
    bucket: Bucket,
    /// Addresses that failed since something came, and whether one of the failures may heal.
    tried: usize,
    may_heal: bool,
    asked: Option<Duration>,
    hopeless: u32,
    changed: u32,
    /// Where the last transfer ended, and how far the next one reads ahead if it goes on there.
    last_end: u64,
    ahead: u64,
    meter: Meter,
    idle_since: Instant,
    /// A transfer broke, or the job goes on with what an earlier run left.
    rough: bool,
    /// Bytes that came since.
    since: u64,
}

impl Fetcher {
    fn new(shared: Arc<Shared>) -> Fetcher {
        let control = shared.control.subscribe();
        let limits = control.borrow().limits.clone();
        let now = Instant::now();
        let rough = lock(&shared.inner).have.bytes() > 0;
        Fetcher {
            shared,
            rough,
            since: 0,
            control,
            backoff: Backoff::new(limits.backoff_base, limits.backoff_cap),
            bucket: Bucket::new(now, limits.rate),
            tried: 0,
            may_heal: false,
            asked: None,
            hopeless: 0,
            changed: 0,
            last_end: 0,
            ahead: AHEAD_MIN,
            meter: Meter::new(now),
            idle_since: now,
        }
    }

    async fn run(mut self) {
        loop {
            if lock(&self.shared.inner).failure.is_some() {
                return;
            }
            if self.control.borrow_and_update().paused {
                self.state(State::Paused);
                tokio::select! {
                    changed = self.control.changed() => if changed.is_err() { return },
                    () = self.shared.work.notified() => {}
                }
                continue;
            }
            let Some(run) = self.next() else {
                self.state(State::Idle);
                self.idle_since = Instant::now();
                tokio::select! {
                    changed = self.control.changed() => if changed.is_err() { return },
                    () = self.shared.work.notified() => {}
                }
                continue;
            };
            if self.tried == 0 && self.backoff.attempts() == 0 {
                self.state(State::Fetching);
            }
            match self.transfer(run).await {
                Ok(()) => self.worked(),
                Err(Stop::Control) => {}
                Err(Stop::Failure(failure)) => return fail(&self.shared, failure),
                Err(Stop::Http(error, came)) => {
                    if error.class() == Class::Network {
                        (self.rough, self.since) = (true, 0);
                    }
                    match self.failed(error, came).await {
                        Ok(delay) => self.pause(delay).await,
                        Err(failure) => return fail(&self.shared, failure),
                    }
                }
            }
        }
    }

    fn state(&self, state: State) {
        self.shared.progress.send_if_modified(|progress| {
            let same = matches!(
                (&progress.state, &state),
                (State::Idle, State::Idle)
                    | (State::Fetching, State::Fetching)
                    | (State::Paused, State::Paused)
            );
            // An end stays.
            if same || matches!(progress.state, State::Failed(_)) {
                return false;
            }
            progress.state = state;
            true
        });
    }

    fn worked(&mut self) {
        self.backoff.reset();
        self.tried = 0;
        self.may_heal = false;
        self.asked = None;
        self.hopeless = 0;
        self.idle_since = Instant::now();
    }

    /// Most that the next request asks for.
    fn most(&self) -> u64 {
        let (least, part) = if self.rough { REQUEST_ROUGH } else { REQUEST };
        let most = self.since.checked_div(part).unwrap_or_default().max(least);
        let rate = self.control.borrow().limits.rate;
        rate.map_or(most, |rate| most.min(rate.saturating_mul(REQUEST_SECONDS).max(GAP)))
    }

    /// What to fetch next.
    fn next(&mut self) -> Option<Run> {
        let request = self.most();
        let inner = lock(&self.shared.inner);
        let Some(len) = inner.len else {
            let wanted = inner.learn || inner.whole > 0 || !inner.wants.is_empty();
            return wanted.then_some(Run { range: 0..GAP, needed: GAP });
        };
        let gaps: Vec<Range<u64>> =
            inner.wants.values().filter_map(|want| inner.missing(want.start..want.end.min(len))).collect();
        if let Some(first) = gaps.first().cloned() {
            let mut range = first;
            // What others want close by comes with it.
            let mut grown = true;
            while grown {
                grown = false;
                for gap in &gaps {
                    let near = gap.start <= range.end.saturating_add(GAP)
                        && gap.end.saturating_add(GAP) >= range.start;
                    let wider = range.start.min(gap.start)..range.end.max(gap.end);
                    if near && wider != range {
                        range = wider;
                        grown = true;
                    }
                }
            }
            range.end = range.end.min(range.start.saturating_add(request));
            let cached = inner.cache.is_some();
            let most = match (cached, self.shared.remote.in_order) {
                (true, _) => AHEAD_MAX,
                (false, true) => AHEAD_IN_ORDER,
                (false, false) => AHEAD_WINDOW,
            };
            self.ahead =
                if range.start == self.last_end { self.ahead.saturating_mul(2).min(most) } else { AHEAD_MIN };
            let far = range.start.saturating_add(self.ahead.min(request)).min(len).max(range.end);
            let needed = range.end;
            // Never ahead into what is here already.
            let end = inner
                .missing(range.end..far)
                .map_or(range.end, |gap| if gap.start == range.end { gap.end } else { range.end });
            return Some(Run { range: range.start..end, needed });
        }
        if inner.whole == 0 || inner.cache.is_none() {
            return None;
        }
        let gap = inner.missing(0..len)?;
        let end = gap.end.min(gap.start.saturating_add(request));
        Some(Run { needed: gap.start, range: gap.start..end })
    }

    /// Whether somebody waits for something that this transfer does not bring soon. Breaking it off wastes what is on its
    /// way, so a transfer that is nearly done goes on.
    /// `kept` is where what came and is not in the cache yet begins.
    fn wanted_elsewhere(&self, kept: u64, at: u64, end: u64) -> bool {
        if end.saturating_sub(at) <= AHEAD_MIN {
            return false;
        }
        let soon = kept..at.saturating_add(SOON).min(end);
        let inner = lock(&self.shared.inner);
        let len = inner.len.unwrap_or(u64::MAX);
        inner.wants.values().any(|want| {
            let gap = inner.missing(want.start..want.end.min(len));
            gap.is_some_and(|gap| !soon.contains(&gap.start))
        })
    }

    async fn transfer(&mut self, run: Run) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let count = shared.remote.urls.len().max(1);
        let (mirror, len, known) = {
            let inner = lock(&shared.inner);
            let mirror = inner.mirror.checked_rem(count).unwrap_or_default();
            // Contents known by their hash need no validator; many servers disagree about it among themselves.
            let known = match shared.remote.sha256 {
                Some(_) => Validator::default(),
                None => inner.validators.get(mirror).cloned().unwrap_or_default(),
            };
            (mirror, inner.len, known)
        };
        let Some(url) = shared.remote.urls.get(mirror) else { return Err(Failure::NoAddress.into()) };
        let asked = shared.http.get_range(url, run.range.clone(), len, &known);
        let answer = tokio::select! {
            biased;
            () = stopped(&shared, &mut self.control) => return Err(Stop::Control),
            answer = asked => answer.map_err(|error| Stop::Http(error, 0))?,
        };
        let (mut part, whole) = match answer {
            Ranged::Part(part) => (part, false),
            Ranged::Whole(part) => (part, true),
        };
        let host = || url.host_str().unwrap_or_default().to_owned();
        if len.is_none() {
            let Some(total) = part.total else {
                return Err(Stop::Http(Error::NoRanges { host: host() }, 0));
            };
            begin(&shared, total, Some((mirror, part.validator.clone()))).await?;
        }
        if shared.remote.sha256.is_none() {
            self.remember(mirror, &part.validator).await?;
        }
        let cache = lock(&shared.inner).cache.clone();
        if whole && cache.is_none() {
            return Err(Stop::Http(Error::NoRanges { host: host() }, 0));
        }
        let mut pending = Pending::new(&shared, cache);
        let (mut at, mut came) = (part.range.start, 0u64);
        let ended = loop {
            let chunk = tokio::select! {
                biased;
                () = stopped(&shared, &mut self.control) => break Err(Stop::Control),
                () = sleep(COMMIT_AFTER), if !pending.is_empty() => {
                    pending.commit().await?;
                    continue;
                }
                chunk = part.body.chunk() => chunk,
            };
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                Err(error) => break Err(Stop::Http(error, came)),
            };
            let now = Instant::now();
            let bytes = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            came = came.saturating_add(bytes);
            if came == bytes && came > 0 {
                self.state(State::Fetching);
            }
            self.count(now, bytes);
            pending.add(at, &chunk).await?;
            at = at.saturating_add(bytes);
            let enough = at >= run.needed && self.wanted_elsewhere(pending.begins(at), at, run.range.end);
            if pending.due() || enough || pending.serves_somebody() {
                pending.commit().await?;
            }
            // A whole file goes on to the last byte that is not here yet.
            let total = part.total.unwrap_or(u64::MAX);
            if if whole { lock(&shared.inner).missing(at..total).is_none() } else { enough } {
                break Ok(());
            }
            self.pay().await;
        };
        pending.commit().await?;
        if !whole {
            self.last_end = at;
        }
        ended
    }

    /// Counts bytes that came.
    fn count(&mut self, now: Instant, bytes: u64) {
        let limits_rate = self.control.borrow().limits.rate;
        self.bucket.set_rate(now, limits_rate);
        self.bucket.take(now, bytes);
        self.idle_since = now;
        self.since = self.since.saturating_add(bytes);
        let rate = self.meter.add(now, bytes);
        self.shared.progress.send_modify(|progress| {
            progress.fetched = progress.fetched.saturating_add(bytes);
            progress.rate = rate;
        });
    }

    /// Waits until what came is paid for; limits may change meanwhile.
    async fn pay(&mut self) {
        loop {
            let now = Instant::now();
            let rate = self.control.borrow().limits.rate;
            self.bucket.set_rate(now, rate);
            let wait = self.bucket.wait(now);
            if wait.is_zero() {
                return;
            }
            let shared = self.shared.clone();
            tokio::select! {
                biased;
                () = stopped(&shared, &mut self.control) => return,
                // Limits may change meanwhile: reckon again.
                () = sleep(wait.min(Duration::from_millis(500))) => {}
            }
        }
    }

    async fn remember(&self, mirror: usize, validator: &Validator) -> Result<(), Failure> {
        let (cache, validators) = {
            let mut inner = lock(&self.shared.inner);
            match inner.validators.get_mut(mirror) {
                Some(known) if known != validator && !validator.is_empty() => *known = validator.clone(),
                _ => return Ok(()),
            }
            (inner.cache.clone(), inner.validators.clone())
        };
        if let Some(cache) = cache {
            tokio::task::spawn_blocking(move || lock(&cache).set_validators(&validators))
                .await
                .map_err(gone)??;
        }
        Ok(())
    }

    /// What a failure means: how long to wait before the next attempt, or the end.
    async fn failed(&mut self, error: Error, came: u64) -> Result<Duration, Failure> {
        let count = self.shared.remote.urls.len().max(1);
        if came >= WORTH {
            self.worked();
            return Ok(Duration::ZERO);
        }
        if came > 0 {
            self.worked();
        }
        {
            let mut inner = lock(&self.shared.inner);
            inner.mirror = inner.mirror.wrapping_add(1);
        }
        self.tried = self.tried.saturating_add(1);
        self.may_heal |= error.may_heal();
        self.asked = self.asked.max(error.retry_after());
        if self.tried < count {
            return Ok(Duration::ZERO);
        }
        let may_heal = std::mem::take(&mut self.may_heal);
        self.tried = 0;
        if !may_heal {
            if matches!(error, Error::Changed { .. }) && self.shared.remote.sha256.is_none() {
                self.begin_again().await?;
            } else {
                self.hopeless = self.hopeless.saturating_add(1);
            }
            if self.hopeless >= HOPELESS {
                return Err(Failure::Refused(Arc::new(error)));
            }
        }
        let delay = self.backoff.after_answer(self.asked.take());
        let (since, attempts, why) = (self.idle_since, self.backoff.attempts(), chain(&error));
        self.state(State::Waiting { since, why, attempts });
        Ok(delay)
    }

    /// The file is another one now. If nobody has seen the old one, nothing is lost but bytes.
    async fn begin_again(&mut self) -> Result<(), Failure> {
        self.changed = self.changed.saturating_add(1);
        let cache = {
            let mut inner = lock(&self.shared.inner);
            if inner.handed_out || self.changed > HOPELESS {
                return Err(Failure::Changed);
            }
            // The length may be another one as well.
            inner.len = self.shared.remote.len;
            inner.learn = true;
            match inner.len {
                Some(_) => inner.cache.clone(),
                None => inner.cache.take(),
            }
        };
        if let Some(cache) = cache {
            discard(&self.shared, &cache).await?;
        }
        lock(&self.shared.inner).validators.fill(Validator::default());
        Ok(())
    }

    /// Waits, unless the caller pauses or ends it.
    async fn pause(&mut self, delay: Duration) {
        if delay.is_zero() {
            return;
        }
        let shared = self.shared.clone();
        tokio::select! {
            () = sleep(delay) => {}
            () = stopped(&shared, &mut self.control) => {}
        }
    }
}

/// Returns when the caller pauses the job or it has ended.
async fn stopped(shared: &Shared, control: &mut watch::Receiver<Control>) {
    let mut version = shared.version.subscribe();
    loop {
        if control.borrow().paused || lock(&shared.inner).failure.is_some() {
            return;
        }
        tokio::select! {
            changed = control.changed() => if changed.is_err() { return },
            _ = version.changed() => {}
        }
    }
}

/// An error with all its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Bytes that came and are not kept yet.
struct Pending<'a> {
    shared: &'a Shared,
    cache: Option<Arc<Mutex<Cache<Files>>>>,
    start: u64,
    bytes: Vec<u8>,
    commit: u64,
    since: Instant,
}

impl<'a> Pending<'a> {
    fn new(shared: &'a Shared, cache: Option<Arc<Mutex<Cache<Files>>>>) -> Pending<'a> {
        let len = lock(&shared.inner).len.unwrap_or_default();
        let (least, most) = COMMIT;
        let commit = (len >> 8).clamp(least, most);
        Pending { shared, cache, start: 0, bytes: Vec::new(), commit, since: Instant::now() }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Where what is not kept yet begins; `at` if there is nothing.
    fn begins(&self, at: u64) -> u64 {
        if self.bytes.is_empty() { at } else { self.start }
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(u64::try_from(self.bytes.len()).unwrap_or(u64::MAX))
    }

    /// Keeps what of a piece is not here yet.
    async fn add(&mut self, offset: u64, piece: &Bytes) -> Result<(), Failure> {
        let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        if self.cache.is_none() {
            lock(&self.shared.inner).window.insert(offset, piece.clone());
            self.shared.progress.send_modify(|progress| progress.have = progress.have.saturating_add(len));
            bump(self.shared);
            return Ok(());
        }
        let gaps = lock(&self.shared.inner).have.missing(offset..offset.saturating_add(len));
        for gap in gaps {
            let from = usize::try_from(gap.start.saturating_sub(offset)).unwrap_or(usize::MAX);
            let to = usize::try_from(gap.end.saturating_sub(offset)).unwrap_or(usize::MAX);
            let Some(bytes) = piece.get(from..to) else { continue };
            if !self.bytes.is_empty() && self.end() != gap.start {
                self.commit().await?;
            }
            if self.bytes.is_empty() {
                self.start = gap.start;
                self.since = Instant::now();
            }
            self.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Whether it is enough, or old enough, to be written.
    fn due(&self) -> bool {
        self.end().saturating_sub(self.start) >= self.commit
            || (!self.is_empty() && self.since.elapsed() >= COMMIT_AFTER)
    }

    /// Whether somebody waits for just this.
    fn serves_somebody(&self) -> bool {
        if self.is_empty() {
            return false;
        }
        let here = self.start..self.end();
        let inner = lock(&self.shared.inner);
        let len = inner.len.unwrap_or(u64::MAX);
        inner.wants.values().any(|want| {
            let gap = inner.missing(want.start..want.end.min(len));
            gap.is_some_and(|gap| here.start <= gap.start && gap.end <= here.end)
        })
    }

    /// Writes it. When it returns, it is on the medium and whoever waits is told.
    async fn commit(&mut self) -> Result<(), Failure> {
        let Some(cache) = self.cache.clone().filter(|_| !self.bytes.is_empty()) else { return Ok(()) };
        let (start, bytes) = (self.start, std::mem::take(&mut self.bytes));
        let end = start.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let written = tokio::task::spawn_blocking(move || lock(&cache).write(start, &bytes)).await;
        written.map_err(gone)??;
        let have = {
            let mut inner = lock(&self.shared.inner);
            inner.have.insert(start..end);
            inner.have.bytes()
        };
        self.shared.progress.send_modify(|progress| {
            progress.have = have;
            let left = progress.total.saturating_sub(have);
            progress.eta = left.checked_div(progress.rate).map(Duration::from_secs);
        });
        bump(self.shared);
        Ok(())
    }
}

/// Bytes per second, lately.
#[derive(Debug)]
struct Meter {
    since: Instant,
    bytes: u64,
    rate: Option<u64>,
}

impl Meter {
    fn new(now: Instant) -> Meter {
        Meter { since: now, bytes: 0, rate: None }
    }

    /// Counts bytes; the rate now. Older seconds count less and less.
    fn add(&mut self, now: Instant, bytes: u64) -> u64 {
        self.bytes = self.bytes.saturating_add(bytes);
        let passed = u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        let lately = self.bytes.saturating_mul(1000).checked_div(passed).unwrap_or_default();
        if passed >= 1000 {
            let rate = self.rate.map_or(lately, |rate| (rate.saturating_mul(3).saturating_add(lately)) / 4);
            self.rate = Some(rate);
            self.since = now;
            self.bytes = 0;
        }
        self.rate.unwrap_or(lately)
    }
}
