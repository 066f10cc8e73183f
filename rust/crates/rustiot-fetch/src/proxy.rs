//! Starts a job and steers it.
//!
//! Called by the update service.

use std::path::Path;
use std::sync::Arc;

use rustiot_http::{Http, Url};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::Failure;
use crate::job::Job;
use crate::store::{Control, Remote, Store};
use crate::types::{Limits, Progress, RemoteFile, Way};

/// The proxy. One job at a time for each cache directory.
#[derive(Debug)]
pub struct Proxy;

/// A running job. Dropping it cancels the job; the cache stays for the next one.
pub struct Handle {
    job: Arc<Job>,
    url: Url,
    control: watch::Sender<Control>,
    progress: watch::Receiver<Progress>,
    server: JoinHandle<()>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL is a secret: whoever knows it may read the bundle.
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Proxy {
    /// Opens the cache in `cache_dir` (created if need be; the proxy's own) and listens. Nothing is fetched before
    /// somebody asks for it.
    ///
    /// # Errors
    /// [`Failure`]: no address, or cache or socket are of no use.
    pub async fn start(way: Way, limits: Limits, cache_dir: &Path, http: Http) -> Result<Handle, Failure> {
        let (remote, sources) = match way {
            Way::Delta { file: RemoteFile { urls, len, sha256 }, sources } => {
                (Remote { urls, len: Some(len), sha256: Some(sha256), in_order: true }, Some(sources))
            }
            Way::Plain { urls, len, sha256 } => (Remote { urls, len, sha256, in_order: false }, None),
        };
        let failed = |source| Failure::File { path: "127.0.0.1".to_owned(), source: Arc::new(source) };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        // 244 random bits: other users of the machine cannot guess it.
        let secret =
            [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|uuid| uuid.simple().to_string()).concat();
        let path: Arc<str> = format!("/{secret}/bundle.raucb").into();
        let url = Url::parse(&format!("http://127.0.0.1:{port}{path}"));
        let url = url.map_err(|_| Failure::Proxy("its own address is no URL"))?;
        let control = watch::Sender::new(Control { paused: false, limits });
        let progress = watch::Sender::new(Progress::default());
        let receiver = progress.subscribe();
        let store = Store::open(http, remote, cache_dir, control.clone(), progress.clone()).await?;
        let job = Arc::new(Job::new(store, sources, progress));
        let server = tokio::spawn(crate::server::serve(listener, path, job.clone()));
        Ok(Handle { job, url, control, progress: receiver, server })
    }
}

impl Handle {
    /// What RAUC is told to install.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Fetches the whole file into the cache and verifies it, as a phase of its own: afterwards RAUC needs no server.
    /// Can be called again, and dropped at any time.
    ///
    /// # Errors
    /// [`Failure`]; the job has ended then, unless it is [`Failure::TooLarge`].
    pub async fn download(&self) -> Result<(), Failure> {
        self.job.store.download().await
    }

    /// Reads the delta's index and compares the old images with what it was made from (their whole contents), so that
    /// a way that cannot work fails before RAUC is asked. Length of the bundle.
    ///
    /// # Errors
    /// [`Failure`]; the job has ended then.
    pub async fn prepare(&self) -> Result<u64, Failure> {
        self.job.bundle_len().await
    }

    /// Where the job is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Stops fetching until [`Handle::resume`]; what came is kept. RAUC is held meanwhile (not longer than its 300 s).
    pub fn pause(&self) {
        self.control.send_modify(|control| control.paused = true);
    }

    /// Goes on.
    pub fn resume(&self) {
        self.control.send_modify(|control| control.paused = false);
    }

    /// Other limits from now on. The size of the cache stays.
    pub fn set_limits(&self, limits: Limits) {
        self.control.send_modify(|control| control.limits = limits);
    }

    /// Ends the job: whoever waits is told, RAUC's requests are answered 404, which makes it give up at once. What came
    /// stays in the cache.
    pub fn cancel(&self) {
        self.job.store.fail(Failure::Cancelled);
    }

    /// Removes what jobs left in `cache_dir`. Not while one runs.
    ///
    /// # Errors
    /// [`Failure::File`].
    pub fn clean(cache_dir: &Path) -> Result<(), Failure> {
        crate::medium::Files::remove(cache_dir).map_err(|(path, source)| Failure::File {
            path: path.display().to_string(),
            source: Arc::new(source),
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel();
        self.server.abort();
    }
}
