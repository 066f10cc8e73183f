//! The fetch proxy as the engine uses it: from a way of a plan to a running job, and from its failures to ours.
//!
//! Never decides which way is gone. What lies in a directory of this device is read where it is: a bundle by RAUC
//! itself, a delta by the proxy. The cache is `/data/rustiot-update/cache`; where that cannot be used the job runs
//! without one. Called by the engine.

use std::cell::Cell;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustiot_boot::Slot;
use rustiot_fetch::{Handle, Proxy, RemoteFile, State};
use rustiot_http::Url;

use crate::failure::{Failure, Kind};
use crate::plan::{Way, WayKind};
use crate::ports::{Fetcher, Limits, Session};
use crate::status::Transfer;

/// Downloads on the data partition.
pub(crate) const CACHE: &str = "/data/rustiot-update/cache";
/// A place for jobs without a cache.
const NO_CACHE: &str = "/run/rustiot/update/fetch";
/// Bytes of the data partition that downloads leave alone.
const RESERVE: u64 = 16 << 20;
/// Failures in a row after which an outage is told.
const TELL_AFTER: u64 = 2;

/// The proxy of this device.
#[derive(Debug)]
pub(crate) struct Fetch {
    cache: PathBuf,
    /// The running slot: the old images.
    slot: Slot,
}

impl Fetch {
    /// With the cache of the device.
    pub(crate) fn new(slot: Slot) -> Self {
        Self { cache: CACHE.into(), slot }
    }

    fn way(&self, way: &Way) -> Result<rustiot_fetch::Way, Failure> {
        let bad =
            |what: &str| Failure::new(Kind::NoWay, format!("the {} has no usable {what}", way.kind.as_str()));
        let urls: Vec<Url> = way.urls.iter().filter_map(|url| url.parse().ok()).collect();
        if urls.is_empty() {
            return Err(bad("address"));
        }
        let sha256 =
            way.sha256.as_deref().map(|text| digest(text).ok_or_else(|| bad("checksum"))).transpose()?;
        match way.kind {
            WayKind::Delta | WayKind::Full => {
                let (Some(len), Some(sha256)) = (way.len, sha256) else {
                    return Err(bad("length or checksum"));
                };
                let partition = |name: &String| {
                    let path = format!("/dev/disk/by-partlabel/{name}-{}", self.slot);
                    (name.clone(), PathBuf::from(path))
                };
                let sources = way.sources.iter().map(partition).collect();
                Ok(rustiot_fetch::Way::Delta { file: RemoteFile { urls, len, sha256 }, sources })
            }
            WayKind::Bundle | WayKind::Plain => Ok(rustiot_fetch::Way::Plain { urls, len: way.len, sha256 }),
        }
    }
}

/// The path of a `file:` address.
fn local_path(address: &str) -> Option<String> {
    let url = address.parse::<Url>().ok().filter(|url| url.scheme() == "file")?;
    Some(url.to_file_path().ok()?.to_str()?.to_owned())
}

fn digest(text: &str) -> Option<[u8; 32]> {
    text.parse::<rustiot_repository::Digest>().ok().map(|digest| digest.0)
}

fn limits(limits: Limits) -> rustiot_fetch::Limits {
    rustiot_fetch::Limits { rate: limits.rate, cache: limits.cache, ..rustiot_fetch::Limits::default() }
}

/// One way that is being gone.
#[derive(Debug)]
pub(crate) enum Going {
    /// Over the proxy.
    Proxy {
        /// The job.
        handle: Handle,
        /// Where the file is, for people.
        from: String,
        /// The limits that the job was started with.
        limits: Cell<Limits>,
    },
    /// A bundle in a directory of this device: RAUC reads it itself.
    File(String),
}

impl Fetcher for Fetch {
    type Session = Going;

    async fn open(&self, way: &Way, limit: Limits) -> Result<Going, Failure> {
        let from = way.urls.first().cloned().unwrap_or_default();
        if let (Some(path), WayKind::Bundle | WayKind::Plain) = (local_path(&from), way.kind) {
            return Ok(Going::File(path));
        }
        let urls: Vec<Url> = way.urls.iter().filter_map(|url| url.parse().ok()).collect();
        let (job, http) = (self.way(way)?, crate::web::client_for(&urls)?);
        let started = Proxy::start(job.clone(), limits(limit), &self.cache, http.clone()).await;
        let handle = match started {
            Err(error @ (rustiot_fetch::Failure::Cache(_) | rustiot_fetch::Failure::File { .. })) => {
                eprintln!("{}", without_cache(&self.cache, &error));
                let none = Limits { cache: 0, ..limit };
                Proxy::start(job, limits(none), Path::new(NO_CACHE), http).await
            }
            other => other,
        };
        let handle = handle.map_err(|e| failure(&e, &from))?;
        Ok(Going::Proxy { handle, from, limits: Cell::new(limit) })
    }

    fn room(&self) -> u64 {
        // The file system that is there: the cache is made with the first job.
        let there = self.cache.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let Ok(stat) = nix::sys::statvfs::statvfs(there) else { return 0 };
        #[allow(clippy::useless_conversion, reason = "32 bits wide on 32-bit boards")]
        let free = u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()));
        free.saturating_add(taken(&self.cache)).saturating_sub(RESERVE)
    }

    fn forget(&self) {
        if let Err(error) = Handle::clean(&self.cache) {
            eprintln!("the cache {} cannot be emptied: {error}", self.cache.display());
        }
    }
}

/// What is said when a download goes on without the cache.
fn without_cache(cache: &Path, error: &rustiot_fetch::Failure) -> String {
    let failure = Failure::from_error(Kind::NoSpace, "going on without one", error);
    format!("the cache {} cannot be used, {failure}: {}", cache.display(), failure.chain.join(": "))
}

/// Bytes of the files in `dir`.
fn taken(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries
        .filter_map(|entry| entry.ok().filter(|e| !e.file_name().as_bytes().is_empty())?.metadata().ok());
    sizes.fold(0, |sum, meta| {
        // Blocks of 512 bytes that are really there: a file has holes where its room could not be taken beforehand.
        sum.saturating_add(std::os::unix::fs::MetadataExt::blocks(&meta).saturating_mul(512))
    })
}

impl Session for Going {
    fn url(&self) -> String {
        match self {
            Self::Proxy { handle, .. } => handle.url().to_string(),
            Self::File(path) => path.clone(),
        }
    }

    async fn prepare(&self) -> Result<(), Failure> {
        match self {
            Self::Proxy { handle, from, .. } => {
                handle.prepare().await.map_err(|e| failure(&e, from))?;
                // What the way here took makes room for the decoder.
                rustiot_memory::give_back();
                Ok(())
            }
            Self::File(_) => Ok(()),
        }
    }

    async fn download(&self) -> Result<(), Failure> {
        match self {
            Self::Proxy { handle, from, .. } => handle.download().await.map_err(|e| failure(&e, from)),
            Self::File(_) => Ok(()),
        }
    }

    fn progress(&self) -> Transfer {
        let Self::Proxy { handle, .. } = self else { return Transfer::default() };
        let receiver = handle.progress();
        let p = receiver.borrow();
        Transfer {
            fetched: p.fetched,
            reused: p.reused.saturating_add(p.cached),
            total: p.total,
            rate: p.rate,
            eta: p.eta.map_or(0, |eta| eta.as_secs()),
        }
    }

    fn limit(&self, new: Limits) {
        if let Self::Proxy { handle, limits: old, .. } = self {
            old.set(new);
            handle.set_limits(limits(new));
        }
    }

    fn held(&self) -> Duration {
        let Self::Proxy { handle, .. } = self else { return Duration::ZERO };
        handle.progress().borrow().held_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn complaint(&self) -> Option<Failure> {
        let (handle, from) = match self {
            Self::Proxy { handle, from, .. } => (handle, from),
            Self::File(path) => return gone(Path::new(path)).then(|| removed(path)),
        };
        let receiver = handle.progress();
        let progress = receiver.borrow();
        match &progress.state {
            State::Waiting { why, attempts, .. } if *attempts >= TELL_AFTER => {
                Some(unreachable(from).because(why.clone()))
            }
            State::Failed(rustiot_fetch::Failure::Cancelled) => None,
            State::Failed(error) => Some(failure(error, from)),
            _ => None,
        }
    }

    fn end(&self) -> bool {
        let Self::Proxy { handle, .. } = self else { return false };
        handle.cancel();
        true
    }
}

/// Whether the directory that a file was in is gone, or the medium below it: pulled out, or unmounted.
fn gone(file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Some(meta) = file.parent().and_then(|dir| dir.metadata().ok()) else { return true };
    let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
    // A file system that is mounted stays visible for a moment after its medium is gone; its device does not. What
    // has no device (tmpfs, overlay) cannot be pulled out.
    major != 0 && !Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists()
}

fn removed(path: &str) -> Failure {
    Failure::new(Kind::Removed, format!("the medium with {path} is gone: it was pulled out"))
        .hint("plug it in again and leave it in until the release is installed")
}

fn unreachable(from: &str) -> Failure {
    Failure::new(Kind::Unreachable, format!("the server of {from} cannot be reached"))
        .hint("check the network (`rustiot health`), the name and the port")
}

fn failure(error: &rustiot_fetch::Failure, from: &str) -> Failure {
    use rustiot_fetch::Failure as F;
    let of = |kind, what: String| Failure::from_error(kind, what, error);
    match error {
        F::Cancelled => of(Kind::Cancelled, "the download was stopped".into()),
        F::Refused(http) => match (http.as_ref(), http.status().map(|status| status.as_u16())) {
            (_, Some(401 | 403 | 407)) => {
                of(Kind::Unauthorized, format!("the server refuses to hand out {from} without credentials"))
            }
            (rustiot_http::Error::NoRanges { .. }, _) => of(
                Kind::NoRanges,
                format!("the server of {from} does not serve parts of files (HTTP range requests)"),
            )
            .hint("use a web server that does (nginx, caddy, any CDN), or copy the file to the device"),
            _ => of(Kind::NotFound, format!("there is nothing to fetch at {from}"))
                .hint("check the path or the URL"),
        },
        F::NoAddress => of(Kind::NotFound, "there is no address to fetch from".into()),
        F::Changed => of(Kind::Corrupt, format!("{from} changed on the server while it was fetched")),
        F::Corrupt => of(Kind::Corrupt, format!("{from} is damaged on every server"))
            .hint("compare the files on the servers with the index: `rustiot repo status`"),
        F::Local { path, source } if gone(Path::new(path)) => removed(path).because(source.to_string()),
        F::Local { path, .. } => of(Kind::NotFound, format!("{path} cannot be read")),
        F::TooLarge { .. } | F::Cache(_) | F::File { .. } => {
            of(Kind::NoSpace, format!("there is no place for {from}"))
                .hint("make room on the data partition (`df /data`), or raise update.cache")
        }
        F::Delta(_) => of(Kind::Corrupt, format!("the delta {from} cannot be used")),
        F::Source { .. } => of(Kind::Corrupt, format!("the running system is not what {from} was made for")),
        F::Proxy(_) => of(Kind::Installer, "the fetch proxy failed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(dir: &Path) -> Fetch {
        Fetch { cache: dir.join("cache"), slot: Slot::A }
    }

    fn way(kind: WayKind) -> Way {
        Way {
            kind,
            urls: vec!["https://h/x".into(), "not a url".into()],
            bytes: 5,
            exact: true,
            len: Some(5),
            sha256: Some("ab".repeat(32)),
            sources: vec!["root".into()],
        }
    }

    #[tokio::test]
    async fn a_cache_that_cannot_be_used_is_told_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (fetch, http) = (fetch(dir.path()), rustiot_http::Http::new(&rustiot_http::Settings::default()));
        rustiot_durable::atomic_write(&fetch.cache, b"a file").unwrap();
        let job = fetch.way(&way(WayKind::Full)).unwrap();
        let limits = limits(Limits { rate: None, cache: 5 });
        let error = Proxy::start(job, limits, &fetch.cache, http.unwrap()).await.err().unwrap();
        let told = without_cache(&fetch.cache, &error);
        let path = fetch.cache.display();
        assert!(
            told.starts_with(&format!("the cache {path} cannot be used, going on without one: ")),
            "{told}"
        );
        assert!(told.ends_with("(os error 17)") || told.ends_with("(os error 20)"), "{told}");
    }

    #[test]
    fn ways_become_jobs_and_senseless_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let fetch = fetch(dir.path());
        let Ok(rustiot_fetch::Way::Delta { file, sources }) = fetch.way(&way(WayKind::Delta)) else {
            panic!("no delta")
        };
        assert_eq!((file.urls.len(), file.len, file.sha256), (1, 5, [0xab; 32]));
        assert_eq!(sources, [("root".to_owned(), PathBuf::from("/dev/disk/by-partlabel/root-a"))]);
        for broken in [
            Way { urls: vec!["::".into()], ..way(WayKind::Plain) },
            Way { sha256: Some("xyz".into()), ..way(WayKind::Delta) },
            Way { len: None, ..way(WayKind::Full) },
        ] {
            assert_eq!(fetch.way(&broken).unwrap_err().kind, Kind::NoWay);
        }
    }

    #[tokio::test]
    async fn a_bundle_in_a_directory_goes_to_rauc_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut local = way(WayKind::Bundle);
        local.urls = vec!["file:///media/stick/targets/x.raucb".into()];
        let session = fetch(dir.path()).open(&local, Limits::default()).await.unwrap();
        assert_eq!(session.url(), "/media/stick/targets/x.raucb");
        assert!(session.download().await.is_ok());
        let met = session.complaint().unwrap();
        assert!(met.kind == Kind::Removed && met.to_string().contains("pulled out"), "{met}");
    }

    #[tokio::test]
    async fn a_delta_in_a_directory_is_read_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.rdelta");
        rustiot_durable::atomic_write(&file, b"not a delta").unwrap();
        let mut local = way(WayKind::Full);
        local.urls = vec![format!("file://{}", file.display())];
        (local.len, local.sources) = (Some(11), Vec::new());
        let none = Limits { rate: None, cache: 0 };
        let failure = fetch(dir.path()).open(&local, none).await.unwrap().download().await.unwrap_err();
        assert_eq!(failure.kind, Kind::Corrupt, "{failure}");
        let digest = rustiot_repository::Digest::of(b"not a delta");
        local.sha256 = Some(digest.to_string());
        let session = fetch(dir.path()).open(&local, none).await.unwrap();
        session.download().await.unwrap();
        assert_eq!((session.progress().fetched, session.progress().reused), (0, 11));
        assert_eq!(session.prepare().await.unwrap_err().kind, Kind::Corrupt, "it is none");
        assert!(!dir.path().join("cache").exists(), "nothing is copied");
    }

    #[tokio::test]
    async fn a_file_that_is_missing_is_of_the_way_and_a_medium_that_is_gone_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut local = way(WayKind::Delta);
        local.urls = vec![format!("file://{}/none.rdelta", dir.path().display())];
        let open = async |way: &Way| fetch(dir.path()).open(way, Limits::default()).await.unwrap_err();
        assert!(open(&local).await.kind.is_of_the_way());
        local.urls = vec![format!("file://{}/unmounted/targets/none.rdelta", dir.path().display())];
        let failure = open(&local).await;
        assert_eq!(failure.kind, Kind::Removed);
        assert!(!failure.kind.is_of_the_way() && !failure.kind.is_transient());
    }

    #[test]
    fn room_counts_what_is_there_and_nothing_is_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let fetch = fetch(dir.path());
        assert!(fetch.room() > 0);
        fetch.forget();
        assert_eq!(taken(&dir.path().join("none")), 0);
    }

    #[test]
    fn the_proxys_failures_lead_to_the_next_way_or_are_told() {
        use rustiot_fetch::Failure as F;
        for (error, of_the_way) in [
            (F::Corrupt, true),
            (F::Changed, true),
            (F::NoAddress, true),
            (F::TooLarge { need: 2, limit: 1 }, true),
            (F::Source { name: "root".into(), what: "differs" }, true),
            (F::Cancelled, false),
            (F::Proxy("x"), false),
        ] {
            let failure = failure(&error, "https://h/x");
            assert_eq!(failure.kind.is_of_the_way(), of_the_way, "{failure}");
            assert!(!failure.kind.is_transient() && !failure.chain.is_empty());
        }
    }
}
