//! The shim's installer: downloads the bundle itself and hands it to RAUC over D-Bus.
//!
//! Not for RustIoT devices, where only the update service may drive RAUC. Success is reported when RAUC has installed:
//! that is what rauc-hawkbit-updater does. A job runs as a task of its own; it can be taken back until RAUC begins.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::rauc::{InstallBundleArgs, InstallationResult, InstallerProxy};
use futures_lite::StreamExt;
use rustiot_http::Http;
use tokio::sync::mpsc;
use zbus::proxy::CacheProperties;
use zbus::zvariant::{OwnedValue, Value};
use zbus::{Connection, fdo};

use crate::client::Auth;
use crate::ddi::{ActionId, Handling, Order};
use crate::driver::Installer;
use crate::machine::{End, JobId, News, Refusal};
use crate::shim::config::Config;
use crate::shim::download::{self, reason};
use crate::shim::log::{Level, Log};

/// Pause before a download goes on.
const RESUME_AFTER: Duration = Duration::from_millis(500);

const FAILED: &str = "Failed to install software bundle.";
const INSTALLED: &str = "Software bundle installed successfully.";

/// Where a job is.
const FETCHING: u8 = 0;
const INSTALLING: u8 = 1;
const ENDED: u8 = 2;

/// What a job needs.
#[derive(Debug)]
struct Task {
    config: Arc<Config>,
    http: Http,
    log: Log,
    order: Order,
    news: mpsc::UnboundedSender<News>,
    place: Arc<AtomicU8>,
}

/// RAUC as an installer.
#[derive(Debug)]
pub struct Rauc {
    config: Arc<Config>,
    http: Http,
    log: Log,
    /// The last action: its file is kept while it is the same.
    action: Option<ActionId>,
    order: Option<Order>,
    running: Option<tokio::task::JoinHandle<()>>,
    place: Arc<AtomicU8>,
    sender: mpsc::UnboundedSender<News>,
    receiver: Arc<Mutex<mpsc::UnboundedReceiver<News>>>,
}

impl Rauc {
    /// With the client for downloads.
    #[must_use]
    pub fn new(config: Arc<Config>, http: Http, log: Log) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            config,
            http,
            log,
            action: None,
            order: None,
            running: None,
            place: Arc::new(AtomicU8::new(ENDED)),
            sender,
            receiver: Arc::new(Mutex::new(receiver)),
        }
    }

    fn run(&mut self, hold: bool) {
        let Some(order) = self.order.clone() else { return };
        self.place = Arc::new(AtomicU8::new(FETCHING));
        let task = Task {
            config: Arc::clone(&self.config),
            http: self.http.clone(),
            log: self.log,
            order,
            news: self.sender.clone(),
            place: Arc::clone(&self.place),
        };
        self.running = Some(tokio::spawn(async move {
            if let Some(end) = task.run(hold).await {
                task.place.store(ENDED, Ordering::Relaxed);
                task.clean();
                let _ = task.news.send(News::Ended(end));
            }
        }));
    }
}

impl Installer for Rauc {
    async fn start(&mut self, order: &Order, hold: bool) -> Result<JobId, Refusal> {
        if let Some(location) = self.config.location.as_ref().filter(|_| !self.config.stream) {
            if self.action.as_ref() != Some(&order.action) {
                remove(location, self.log);
            }
            let parent = location.parent().unwrap_or(std::path::Path::new("/"));
            let space = nix::sys::statvfs::statvfs(parent).map_err(|errno| {
                let why = reason(&std::io::Error::from(errno));
                Refusal::Failed(vec![format!(
                    "Failed to calculate free space for {}: {why}",
                    location.display()
                )])
            })?;
            #[allow(clippy::useless_conversion, reason = "32 bits on small machines")]
            let free = u64::from(space.block_size()).saturating_mul(u64::from(space.blocks_available()));
            if free < order.size {
                let size = order.size;
                return Err(Refusal::Failed(vec![format!(
                    "File size {size} exceeds available space {free}"
                )]));
            }
        }
        self.action = Some(order.action.clone());
        self.order = Some(order.clone());
        self.run(hold);
        Ok(JobId(order.action.to_string()))
    }

    async fn proceed(&mut self, _job: &JobId, _update: Handling) -> Result<(), Refusal> {
        // The file is looked at again: days may lie between the download and its window.
        self.run(false);
        Ok(())
    }

    async fn cancel(&mut self, _job: &JobId) -> Result<(), String> {
        match self.place.load(Ordering::Relaxed) {
            INSTALLING => return Err("installation started already.".into()),
            ENDED if self.running.as_ref().is_some_and(tokio::task::JoinHandle::is_finished) => {
                return Err("the update has ended already.".into());
            }
            _ => {}
        }
        if let Some(running) = self.running.take() {
            running.abort();
            let _ = running.await;
        }
        if let Some(location) = &self.config.location {
            remove(location, self.log);
        }
        Ok(())
    }

    async fn news(&mut self, _job: &JobId) -> News {
        std::future::poll_fn(|cx| {
            let mut receiver = match self.receiver.lock() {
                Ok(receiver) => receiver,
                Err(poisoned) => poisoned.into_inner(),
            };
            match receiver.poll_recv(cx) {
                std::task::Poll::Ready(Some(news)) => std::task::Poll::Ready(news),
                _ => std::task::Poll::Pending,
            }
        })
        .await
    }
}

fn remove(location: &PathBuf, log: Log) {
    match std::fs::remove_file(location) {
        Ok(()) => {}
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::NotADirectory
            ) => {}
        Err(_) => log.say(Level::Warning, &format!("Failed to delete file: {}", location.display())),
    }
}

impl Task {
    fn step(&self, line: impl Into<String>) {
        let _ = self.news.send(News::Step { lines: vec![line.into()], percent: None });
    }

    fn clean(&self) {
        if let Some(location) = &self.config.location {
            remove(location, self.log);
        }
    }

    /// The whole job; nothing while it is held.
    async fn run(&self, hold: bool) -> Option<End> {
        let source = match (&self.config.location, self.config.stream) {
            (Some(location), false) => {
                if let Err(text) = self.download(location).await {
                    return Some(End::Failure(vec![text]));
                }
                if hold {
                    let _ = self.news.send(News::Downloaded { line: "File checksum OK.".into() });
                    return None;
                }
                self.step("File checksum OK.");
                location.display().to_string()
            }
            _ => self.order.url.clone(),
        };
        self.place.store(INSTALLING, Ordering::Relaxed);
        Some(match self.install(&source).await {
            Ok(InstallationResult::Success) => End::Success(vec![INSTALLED.into()]),
            Ok(InstallationResult::Failure(_)) => End::Failure(vec![FAILED.into()]),
            Err(error) => {
                let text = match &error {
                    zbus::Error::MethodError(name, text, _) => {
                        format!("GDBus.Error:{name}: {}", text.as_deref().unwrap_or_default())
                    }
                    other => other.to_string(),
                };
                self.log.say(Level::Warning, &text);
                End::Failure(vec![FAILED.into(), text])
            }
        })
    }

    async fn download(&self, location: &PathBuf) -> Result<(), String> {
        let order = &self.order;
        self.log.say(Level::Message, &format!("Start downloading: {}", order.url));
        let job = download::Job {
            http: self.http.clone(),
            url: order.url.clone(),
            authorization: self.config.auth.header().filter(|_| self.config.send_auth),
            path: location.clone(),
            low_speed: (self.config.low_speed_rate, self.config.low_speed_time),
            speed_limit: self.config.speed_limit,
        };
        let speed = loop {
            let from =
                std::fs::metadata(location).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
            if from > 0 {
                self.log.say(Level::Debug, &format!("Resuming download from offset {from}"));
            }
            match job.fetch(from, order.size).await {
                Ok(speed) => break speed,
                Err(error) if self.config.resume && error.resumable() => {
                    self.log.say(Level::Debug, &format!("{error}, resuming download.."));
                    tokio::time::sleep(RESUME_AFTER).await;
                }
                Err(error) => return Err(format!("Download failed: {error}")),
            }
        };
        self.step(format!("Download complete. {:.2} MB/s", speed / 1_048_576.0));
        let (path, hashes) = (location.clone(), order.hashes.clone());
        let verified = tokio::task::spawn_blocking(move || download::verify(&path, &hashes)).await;
        match verified {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err((is, should)))) => Err(format!(
                "Software: {} V{}. Invalid checksum: {is} expected {should}",
                order.name, order.version
            )),
            Ok(Err(error)) => Err(format!("Failed to read {}: {}", location.display(), reason(&error))),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What RAUC needs to fetch the bundle itself; nothing for a file.
    fn arguments(&self) -> InstallBundleArgs {
        let mut args = InstallBundleArgs::default();
        if !self.config.stream || !self.config.send_auth {
            return args;
        }
        args.tls_no_verify = Some(!self.config.ssl_verify);
        match (&self.config.auth, &self.config.ssl_files) {
            (Auth::Certificate, Some((cert, key))) => {
                args.tls_cert = Some(cert.display().to_string());
                args.tls_key = Some(key.display().to_string());
            }
            (auth, _) => {
                args.http_headers = auth.header().map(|value| vec![format!("Authorization: {value}")]);
            }
        }
        args
    }

    async fn install(&self, source: &str) -> zbus::Result<InstallationResult> {
        self.log.say(Level::Debug, "Creating RAUC DBUS proxy");
        // As GLib does: the variable is set where the session's bus stands in for the system's.
        let session = std::env::var("DBUS_STARTER_BUS_TYPE").is_ok_and(|kind| kind == "session");
        let bus = if session { Connection::session().await? } else { Connection::system().await? };
        let rauc = InstallerProxy::builder(&bus).cache_properties(CacheProperties::No).build().await?;
        let properties = fdo::PropertiesProxy::builder(&bus)
            .destination("de.pengutronix.rauc")?
            .path("/")?
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let mut completed = rauc.receive_completed().await?;
        let mut changes = properties.receive_properties_changed().await?;
        self.log.say(Level::Debug, "Trying to contact RAUC DBUS service");
        rauc.install_bundle(source, self.arguments()).await?;
        let mut owners = rauc.inner().receive_owner_changed().await?;
        loop {
            tokio::select! {
                biased;
                Some(change) = changes.next() => {
                    if let Ok(args) = change.args() {
                        for (name, value) in args.changed_properties() {
                            self.progress(source, name, value);
                        }
                    }
                }
                Some(signal) = completed.next() => return Ok(signal.args()?.result),
                Some(None) = owners.next() => {
                    self.log.say(Level::Warning, "RAUC DBUS service disappeared");
                    return Ok(InstallationResult::Failure(2));
                }
            }
        }
    }

    fn progress(&self, source: &str, name: &str, value: &Value<'_>) {
        let Some(line) = progress_line(name, value) else { return };
        self.log.say(Level::Message, &format!("Installing: {source} : {line}"));
        self.step(line);
    }
}

fn progress_line(name: &str, value: &Value<'_>) -> Option<String> {
    let value = value.try_clone().ok().and_then(|value| OwnedValue::try_from(value).ok())?;
    match name {
        "Operation" => String::try_from(value).ok(),
        "LastError" => {
            String::try_from(value).ok().filter(|t| !t.is_empty()).map(|t| format!("LastError: {t}"))
        }
        "Progress" => {
            let (percent, message, _depth) = <(i32, String, i32)>::try_from(value).ok()?;
            Some(format!("{percent:3}% {message}"))
        }
        _ => None,
    }
}
