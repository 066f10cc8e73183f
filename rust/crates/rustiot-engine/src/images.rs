//! Images as the API shows them: `rustiot-images`' types in Docker's words.
//!
//! Called by `engine`.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use rustiot_docker_api::engine::Which;
use rustiot_docker_api::types::{
    ByteReader, GraphDriver, HistoryEntry, ImageInspect, ImageMetadata, ImageRemoved, ImageSummary,
    ImagesPruned, Items, Progress, PullRequest, RegistryAuth, RootFs,
};
use rustiot_docker_api::{Error, Timestamp};
use rustiot_images::{Auth, Event, Image, Kind, Platform, Policy, PullOptions, Reference, Removed, Status};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::create::of_image;
use crate::engine::{Inner, receive};

/// An image that came so short a time ago is not taken by itself: somebody may be about to run it.
const FRESH: Duration = Duration::from_secs(3600);

/// An image's error with the status that Docker gives it.
pub fn error(error: rustiot_images::Error) -> Error {
    let text = {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    };
    if let rustiot_images::Error::NoSuchImage { name } = &error {
        return Error::NoSuchImage(name.clone());
    }
    match error.kind() {
        Kind::Invalid => Error::Invalid(text),
        Kind::NotFound => Error::NotFound(text),
        Kind::Conflict => Error::Conflict(text),
        Kind::Unauthorized => Error::Unauthorized(text),
        _ => Error::Failed { message: text, source: None },
    }
}

fn names(list: &[Reference]) -> Vec<String> {
    list.iter().map(Reference::familiar).collect()
}

fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn created(image: &Image) -> Timestamp {
    image.config.created.as_ref().and_then(|t| t.parse().ok()).unwrap_or_default()
}

fn platform(text: Option<&str>) -> Result<Platform, Error> {
    match text.filter(|t| !t.is_empty()) {
        None => Ok(Platform::host()),
        Some(text) => text.parse().map_err(|e| Error::Invalid(format!("{text:?} is no platform: {e}"))),
    }
}

fn auth(auth: RegistryAuth) -> Auth {
    if !auth.registry_token.is_empty() {
        Auth::Bearer(auth.registry_token)
    } else if !auth.identity_token.is_empty() {
        Auth::Identity(auth.identity_token)
    } else if auth.username.is_empty() {
        Auth::Anonymous
    } else {
        Auth::Basic { user: auth.username, password: auth.password }
    }
}

fn progress(event: Event) -> Progress {
    let status = event.status.text();
    match event.status {
        Status::Downloading
        | Status::DownloadingDelta
        | Status::ApplyingDelta
        | Status::Extracting
        | Status::LoadingLayer
            if event.total > 0 =>
        {
            Progress::Transfer {
                id: event.id,
                status: status.to_owned(),
                current: event.current,
                total: event.total,
            }
        }
        Status::Digest => Progress::Status { id: None, status: format!("Digest: {}", event.id) },
        Status::Downloaded | Status::UpToDate => {
            Progress::Status { id: None, status: format!("{status} {}", event.id) }
        }
        Status::PullingFrom => Progress::Status {
            id: Some(event.id),
            status: format!("Pulling from {}", event.detail.unwrap_or_default()),
        },
        _ => {
            let status = match event.detail {
                Some(detail) => format!("{status}: {detail}"),
                None => status.to_owned(),
            };
            Progress::Status { id: Some(event.id), status }
        }
    }
}

impl Inner {
    /// The image that a client means.
    pub fn image(&self, name: &str) -> Result<Image, Error> {
        let id = self.store.resolve(name).map_err(|e| match e {
            rustiot_images::Error::NoSuchImage { .. } => Error::NoSuchImage(name.to_owned()),
            other => error(other),
        })?;
        self.store.inspect(&id).map_err(error)
    }

    /// Containers of an image, by its id.
    fn containers_of(&self, id: &str) -> i64 {
        let all = self.containers();
        i64::try_from(all.values().filter(|c| c.record().image == id).count()).unwrap_or(0)
    }

    pub fn image_summaries(&self, shared: bool) -> Vec<ImageSummary> {
        let usage = if shared { self.store.disk_usage().images } else { Vec::new() };
        let of = |image: Image| {
            let id = image.id.to_string();
            let its = usage.iter().find(|(i, _, _)| *i == image.id);
            ImageSummary {
                containers: if shared { self.containers_of(&id) } else { -1 },
                id,
                parent_id: String::new(),
                repo_tags: names(&image.tags),
                repo_digests: names(&image.repo_digests),
                created: created(&image),
                size: bytes(image.size),
                shared_size: its.map_or(-1, |(_, _, shared)| bytes(*shared)),
                labels: image.config.config.labels.clone(),
            }
        };
        self.store.images().into_iter().map(of).collect()
    }

    pub fn image_details(&self, name: &str) -> Result<ImageInspect, Error> {
        let image = self.image(name)?;
        Ok(ImageInspect {
            id: image.id.to_string(),
            repo_tags: names(&image.tags),
            repo_digests: names(&image.repo_digests),
            parent: String::new(),
            comment: image.config.history.last().map(|h| h.comment.clone()).unwrap_or_default(),
            created: image.config.created.as_ref().and_then(|t| t.parse().ok()),
            author: image.config.author.clone(),
            config: of_image(&image.config.config),
            architecture: image.config.architecture.clone(),
            variant: image.config.variant.clone(),
            os: image.config.os.clone(),
            size: bytes(image.size),
            graph_driver: GraphDriver { name: "erofs".to_owned(), data: BTreeMap::new() },
            root_fs: RootFs {
                kind: "layers".to_owned(),
                layers: image.layers.iter().map(|l| l.diff_id.to_string()).collect(),
            },
            metadata: ImageMetadata {
                last_tag_time: i64::try_from(image.since).ok().and_then(|s| Timestamp::from_second(s).ok()),
            },
        })
    }

    pub fn history(&self, name: &str) -> Result<Vec<HistoryEntry>, Error> {
        let image = self.image(name)?;
        let mut layers = image.layers.iter();
        let mut out: Vec<HistoryEntry> = image
            .config
            .history
            .iter()
            .map(|step| HistoryEntry {
                id: "<missing>".to_owned(),
                created: step.created.as_ref().and_then(|t| t.parse().ok()).unwrap_or_default(),
                created_by: step.created_by.clone(),
                tags: Vec::new(),
                size: if step.empty_layer { 0 } else { layers.next().map_or(0, |l| bytes(l.size)) },
                comment: step.comment.clone(),
            })
            .collect();
        out.reverse();
        if let Some(first) = out.first_mut() {
            first.id = image.id.to_string();
            first.tags = names(&image.tags);
        }
        Ok(out)
    }

    pub fn pull_image(self: &Arc<Self>, request: PullRequest) -> Result<Items<Progress>, Error> {
        let name = match &request.tag {
            Some(tag) if tag.contains(':') => format!("{}@{tag}", request.image),
            Some(tag) if !tag.is_empty() => format!("{}:{tag}", request.image),
            _ => request.image.clone(),
        };
        let reference: Reference = name.parse().map_err(|e: rustiot_images::ReferenceError| {
            Error::Invalid(format!("invalid reference format: {e}"))
        })?;
        let platform = platform(request.platform.as_deref())?;
        let shown = match request.auth {
            Some(given) => auth(given),
            None => self.credentials(reference.registry()),
        };
        let (to, from) = mpsc::channel(64);
        let (say, of) = (to.clone(), name.clone());
        let options = PullOptions {
            platform,
            auth: shown,
            // A reader that is slow loses steps of a bar, never the end.
            progress: rustiot_images::Progress::new(move |event| {
                if event.status == Status::DeltaUnusable {
                    let (status, why) = (event.status.text(), event.detail.as_deref().unwrap_or_default());
                    eprintln!("rustiot-engine: {of}: {}: {status}: {why}", event.id);
                }
                let _ = say.try_send(Ok(progress(event)));
            }),
            ..PullOptions::default()
        };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let pull = this.store.pull(&this.registries, &reference, options);
            let result = tokio::select! {
                result = pull => result,
                // The client went: what was fetched is resumed by the next pull.
                () = to.closed() => return,
            };
            match result {
                Ok(_) => {
                    this.collect_later(Some(reference.clone()));
                    let name = reference.familiar();
                    let kind = rustiot_docker_api::types::EventKind::Image;
                    this.events.say(kind, "pull", &name, [("name".to_owned(), name.clone())].into());
                }
                Err(failure) => {
                    let _ = to.send(Err(error(failure))).await;
                }
            }
        });
        Ok(receive(from))
    }

    pub async fn remove_names(self: &Arc<Self>, name: &str, force: bool) -> Result<Vec<ImageRemoved>, Error> {
        let this = Arc::clone(self);
        let wanted = name.to_owned();
        let removed = tokio::task::spawn_blocking(move || this.store.remove(&wanted, force).map_err(error))
            .await
            .map_err(|e| Error::failed("cannot remove the image", e))??;
        let kind = rustiot_docker_api::types::EventKind::Image;
        self.events.say(kind, "delete", name, BTreeMap::new());
        Ok(list(&removed))
    }

    pub async fn prune_unused(self: &Arc<Self>, which: Which<ImageSummary>) -> Result<ImagesPruned, Error> {
        let mut all = ImagesPruned::default();
        for image in self.image_summaries(false) {
            if !which(&image) || self.containers_of(&image.id) > 0 {
                continue;
            }
            let this = Arc::clone(self);
            let id = image.id.clone();
            let removed =
                tokio::task::spawn_blocking(move || this.store.remove(&id, true).map_err(error)).await;
            if let Ok(Ok(removed)) = removed {
                all.images_deleted.extend(list(&removed));
                all.space_reclaimed += removed.freed;
            }
        }
        // What no image needs any more goes with it.
        let this = Arc::clone(self);
        let policy = Policy { all: false, ..Policy::default() };
        if let Ok(Ok(removed)) =
            tokio::task::spawn_blocking(move || this.store.gc(&policy).map_err(error)).await
        {
            all.images_deleted.extend(list(&removed));
            all.space_reclaimed += removed.freed;
        }
        Ok(all)
    }

    /// Where images take more than their share, those go that nobody needs: not what has just come, nor what came within
    /// the hour, which somebody may be about to run.
    pub fn collect_later(self: &Arc<Self>, came: Option<Reference>) {
        let share = u64::from(self.settings.image_share);
        if share == 0 {
            return;
        }
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let size = match nix::sys::statvfs::statvfs(&this.layout.images()) {
                Ok(stat) => stat.blocks().saturating_mul(stat.fragment_size()),
                Err(error) => {
                    eprintln!("rustiot-engine: cannot ask for the size of the medium: {error}");
                    return;
                }
            };
            let policy = Policy {
                all: true,
                older_than: Some(FRESH),
                until_used: Some(size / 100 * share),
                keep: came.into_iter().collect(),
                ..Policy::default()
            };
            match this.store.gc(&policy) {
                Ok(removed) => {
                    let kind = rustiot_docker_api::types::EventKind::Image;
                    for name in &removed.untagged {
                        this.events.say(kind, "untag", &name.familiar(), BTreeMap::new());
                    }
                    for image in &removed.images {
                        eprintln!(
                            "rustiot-engine: image {image} went: images take more than {share} % of the medium"
                        );
                        this.events.say(kind, "delete", &image.to_string(), BTreeMap::new());
                    }
                }
                Err(error) => eprintln!("rustiot-engine: cannot remove unneeded images: {error}"),
            }
        });
    }

    pub fn save_images(self: &Arc<Self>, wanted: Vec<String>) -> Result<ByteReader, Error> {
        for name in &wanted {
            self.image(name)?;
        }
        let (reader, mut writer) = pair()?;
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Err(failure) = this.store.save(&wanted, &mut writer) {
                eprintln!("rustiot-engine: saving images: {failure}");
            }
            let _ = writer.flush();
        });
        Ok(reader)
    }

    pub fn load_images(self: &Arc<Self>, archive: ByteReader) -> Result<Items<Progress>, Error> {
        let (theirs, feeding) = fed(archive)?;
        let (to, from) = mpsc::channel(64);
        let (this, again) = (Arc::clone(self), Arc::clone(self));
        tokio::spawn(async move {
            let say = to.clone();
            let loading = tokio::task::spawn_blocking(move || {
                let mut theirs = theirs;
                let shown = rustiot_images::Progress::new(move |event| {
                    let _ = say.try_send(Ok(progress(event)));
                });
                this.store.load(&mut theirs, &Platform::host(), &shown).map_err(error)
            });
            let result = loading.await;
            feeding.abort();
            again.collect_later(None);
            match result {
                Ok(Ok(loaded)) => {
                    for image in loaded {
                        let mut lines: Vec<String> =
                            image.names.iter().map(|n| format!("Loaded image: {}\n", n.familiar())).collect();
                        if lines.is_empty() {
                            lines.push(format!("Loaded image ID: {}\n", image.id));
                        }
                        for line in lines {
                            let _ = to.send(Ok(Progress::Stream(line))).await;
                        }
                    }
                }
                Ok(Err(failure)) => {
                    let _ = to.send(Err(failure)).await;
                }
                Err(failure) => {
                    let _ = to.send(Err(Error::failed("loading ended", failure))).await;
                }
            }
        });
        Ok(receive(from))
    }
}

fn list(removed: &Removed) -> Vec<ImageRemoved> {
    let untagged = removed.untagged.iter().map(|n| ImageRemoved::Untagged(n.familiar()));
    let images = removed.images.iter().map(|i| ImageRemoved::Deleted(i.to_string()));
    let layers = removed.layers.iter().map(|l| ImageRemoved::Deleted(l.to_string()));
    untagged.chain(images).chain(layers).collect()
}

/// A pipe from a thread to the API.
pub fn pair() -> Result<(ByteReader, std::os::unix::net::UnixStream), Error> {
    let failed = |e| Error::failed("cannot make a pipe", e);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
    Ok((Box::pin(ours.take(u64::MAX)), theirs))
}

/// The other way round: what comes over the API, for code that blocks. The task that feeds it is to be ended by who no
/// longer reads.
pub fn fed(
    mut reader: ByteReader,
) -> Result<(std::os::unix::net::UnixStream, tokio::task::JoinHandle<()>), Error> {
    let failed = |e| Error::failed("cannot make a pipe", e);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let mut ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
    let feeding = tokio::spawn(async move {
        // Its end, whatever the reason, is the end of what is read.
        let _ = tokio::io::copy(&mut reader, &mut ours).await;
    });
    Ok((theirs, feeding))
}
