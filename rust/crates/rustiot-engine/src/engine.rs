//! The engine as the API's trait wants it, over containers, images, networks and volumes.
//!
//! Never speaks HTTP. Called by `rustiot_docker_api`'s server.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use rustiot_docker_api::engine::Which;
use rustiot_docker_api::types::*;
use rustiot_docker_api::{Bytes, Engine, Error, Timestamp, async_trait, lookup};
use rustiot_images::{Auth, Credentials, Registries, Store};
use rustiot_shim::protocol::{Event as ShimEvent, Kind, Request, frame};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

use crate::beneath::Root;
use crate::container::{Container, Waiting as Attaching};
use crate::create::NewVolume;
use crate::events::Events;
use crate::layout::Layout;
use crate::lifecycle::{command, signal, stop_signal};
use crate::networks::Networks;
use crate::record::{MountKind, Record, Run};
use crate::settings::Settings;
use crate::shim::{Shim, ask, next_frame};
use crate::volumes::{Backing, InMemory, backing};
use crate::{archive, cgroup, create, images, logs, networks, rootfs, spec, users};

/// A program that was entered, or is to be.
pub struct Exec {
    pub container: String,
    config: ExecConfig,
    state: Mutex<ExecState>,
}

#[derive(Clone, Debug, Default)]
struct ExecState {
    started: bool,
    running: bool,
    pid: i32,
    code: Option<i32>,
}

/// See the module.
pub struct Inner {
    pub layout: Layout,
    pub settings: Settings,
    pub store: Store,
    pub registries: Registries,
    pub networks: Networks,
    pub events: Events,
    pub in_memory: InMemory,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    /// One creation of a name at a time, and none of who uses a volume while one is removed.
    naming: tokio::sync::Mutex<()>,
}

/// The engine; clones are the same one.
#[derive(Clone)]
pub struct RustiotEngine(pub Arc<Inner>);

/// 64 hexadecimal digits.
pub fn random_id() -> String {
    let mut bytes = [0_u8; 32];
    random(&mut bytes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn random(bytes: &mut [u8]) {
    // The kernel's generator does not fail once it is seeded, and at this time of a boot it is.
    let _ = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(bytes));
}

/// What a channel brings, as a stream.
pub fn receive<T: Send + 'static>(from: mpsc::Receiver<Result<T, Error>>) -> Items<T> {
    Box::pin(futures_util::stream::unfold(from, |mut from| async move {
        let item = from.recv().await?;
        Some((item, from))
    }))
}

impl Inner {
    /// # Errors
    /// The store cannot be opened.
    pub fn open(layout: Layout, settings: Settings) -> Result<Inner, crate::StartError> {
        let (store, report) = Store::open(&layout.images(), settings.limits.clone())
            .map_err(|e| crate::StartError::Store(Box::new(e)))?;
        for (digest, why) in &report.bad {
            eprintln!("rustiot-engine: layer {digest} is bad ({why}): pull its images again");
        }
        let networks = Networks::open(&layout);
        let registries = Registries::new(settings.registries.clone());
        Ok(Inner {
            layout,
            settings,
            store,
            registries,
            networks,
            events: Events::new(),
            in_memory: InMemory::default(),
            containers: Mutex::default(),
            execs: Mutex::default(),
            naming: tokio::sync::Mutex::default(),
        })
    }

    pub fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container that a client means.
    pub fn find(&self, reference: &str) -> Result<Arc<Container>, Error> {
        let all = self.containers();
        let names: Vec<(String, String)> = all.values().map(|c| (c.id.clone(), c.name())).collect();
        let id = lookup::find(names.iter().map(|(i, n)| (i.as_str(), n.as_str())), reference)?;
        id.and_then(|id| all.get(id).cloned()).ok_or_else(|| Error::NoSuchContainer(reference.to_owned()))
    }

    fn find_running(&self, reference: &str) -> Result<Arc<Container>, Error> {
        let container = self.find(reference)?;
        if container.runs() { Ok(container) } else { Err(Error::NotRunning(container.id.clone())) }
    }

    pub fn credentials(&self, registry: &str) -> Auth {
        let found = Credentials::read(&self.settings.credentials).and_then(|c| c.of(registry));
        found.unwrap_or_else(|error| {
            eprintln!("rustiot-engine: {error}");
            Auth::Anonymous
        })
    }

    // Volumes.

    pub fn volume_in_use(&self, name: &str) -> bool {
        self.containers().values().any(|c| c.record().mounts.iter().any(|m| m.name == name))
    }

    pub fn remove_volume_files(&self, name: &str) -> std::io::Result<()> {
        let directory = self.layout.volume(name);
        // Nothing is mounted there any more, and of what is by mistake only the mount is to go.
        while nix::mount::umount2(&directory.join("_data"), nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        // Its description first: a volume without one is a torn removal or creation, and goes at the next start.
        let _ = std::fs::remove_file(directory.join("volume.json"));
        std::fs::remove_dir_all(&directory)
    }

    pub fn load_volume(&self, name: &str) -> Option<Volume> {
        let directory = self.layout.volume(name);
        let text = std::fs::read(directory.join("volume.json")).ok()?;
        let kept: KeptVolume = serde_json::from_slice(&text).ok()?;
        Some(Volume {
            name: name.to_owned(),
            driver: "local".to_owned(),
            mountpoint: directory.join("_data").to_string_lossy().into_owned(),
            created_at: Some(kept.created),
            labels: kept.labels,
            scope: "local".to_owned(),
            options: kept.options,
            usage_data: None,
            anonymous: kept.anonymous,
            in_use: self.volume_in_use(name),
        })
    }

    fn make_volume(&self, name: &str, new: NewVolume, anonymous: bool) -> Result<Volume, Error> {
        let NewVolume { labels, options } = new;
        backing(&options)?;
        if let Some(there) = self.load_volume(name) {
            return Ok(there);
        }
        let directory = self.layout.volume(name);
        let failed = |e: std::io::Error| Error::failed(format!("cannot make the volume {name}"), e);
        std::fs::create_dir_all(directory.join("_data")).map_err(failed)?;
        let kept = KeptVolume { created: Timestamp::now(), labels, options, anonymous };
        rustiot_durable::atomic_write(
            &directory.join("volume.json"),
            &serde_json::to_vec(&kept).unwrap_or_default(),
        )
        .map_err(|e| Error::failed(format!("cannot keep the volume {name}"), e))?;
        sync_directory(&self.layout.volumes()).map_err(failed)?;
        let driver = [("driver".to_owned(), "local".to_owned())].into();
        self.events.say(EventKind::Volume, "create", name, driver);
        self.load_volume(name).ok_or_else(|| Error::NoSuchVolume(name.to_owned()))
    }

    fn volumes(&self) -> Vec<Volume> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.layout.volumes()).into_iter().flatten().flatten() {
            all.extend(self.load_volume(&entry.file_name().to_string_lossy()));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The directories and the record of a container that is new; durable when it returns.
    fn keep_new(&self, record: &Record) -> Result<(), Error> {
        let failed = |e: std::io::Error| Error::failed("cannot make the container's directory", e);
        let (upper, work) = (self.layout.upper(&record.id), self.layout.work(&record.id));
        for part in [&upper, &work] {
            std::fs::create_dir_all(part).map_err(failed)?;
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(upper, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        // The record last: a directory without one was never a container.
        record.save(&self.layout).map_err(|e| Error::failed("cannot keep the container", e))?;
        if record.is_transient() {
            return Ok(());
        }
        sync_directory(&self.layout.containers()).map_err(failed)
    }

    // Execs.

    pub fn exec_ended(&self, id: &str, code: i32) {
        if let Some(exec) = self.execs().get(id) {
            let mut state = exec.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = false;
            state.code = Some(code);
        }
    }

    /// Enters a program: the connection that carries its streams.
    pub async fn enter(
        &self,
        container: &Arc<Container>,
        id: &str,
        config: &ExecConfig,
        size: Option<(u16, u16)>,
    ) -> Result<Shim, Error> {
        let record = container.record().clone();
        let pid = container.live().pid;
        let root = Root::open(Path::new(&format!("/proc/{pid}/root"))).ok();
        let wanted = if config.user.is_empty() { &record.config.user } else { &config.user };
        let user = users::resolve(root.as_ref(), wanted, &record.host.group_add)?;
        let mut host = record.host.clone();
        host.privileged |= config.privileged;
        let confinement = spec::confinement(&host)?;
        let (wide, mask) = confinement.handed_over();
        let mut environment = vec![
            create::PATH.to_owned(),
            format!("HOSTNAME={}", crate::lifecycle::hostname(&record)),
            format!("HOME={}", user.home),
        ];
        if config.tty {
            environment.push("TERM=xterm".to_owned());
        }
        environment = create::environment(&environment, &record.config.env);
        environment = create::environment(&environment, &config.env);
        let directory =
            if config.working_dir.is_empty() { &record.config.working_dir } else { &config.working_dir };
        let mut process =
            spec::process(&config.cmd, &environment, directory, &user, config.tty, &confinement, &wide);
        if let Some(process) = process.as_object_mut() {
            process.insert("oomScoreAdj".to_owned(), spec::oom_score(&host).into());
            if let Some((rows, columns)) = size.filter(|_| config.tty) {
                let size = serde_json::json!({ "height": rows, "width": columns });
                process.insert("consoleSize".to_owned(), size);
            }
        }
        let path = self.layout.running(&container.id).join(format!("{}.json", id.get(..16).unwrap_or(id)));
        rustiot_durable::atomic_write_volatile(&path, &serde_json::to_vec(&process).unwrap_or_default())
            .map_err(|e| Error::failed("cannot write the process", e))?;
        let lost = |_| Error::NotRunning(container.id.clone());
        let mut shim = Shim::connect(&self.layout.socket_of(&container.id)).await.map_err(lost)?;
        let request = Request::Exec {
            id: id.to_owned(),
            process: path.clone(),
            capabilities: mask,
            unfiltered: confinement.seccomp.is_none(),
            tty: config.tty,
            stdin: config.attach_stdin,
            size,
            owner: (user.uid, user.gid),
        };
        shim.send(&request).await.map_err(lost)?;
        // Output may come before the answer: it is kept for the caller, in its order.
        let mut early = Vec::new();
        let answer: rustiot_shim::protocol::Answer = loop {
            match shim.next().await.map_err(lost)? {
                Some((Kind::Json, bytes)) => {
                    break serde_json::from_slice(&bytes)
                        .map_err(|e| Error::failed("the shim's answer", e))?;
                }
                Some((kind, bytes)) => early.extend(frame(kind, &bytes)),
                None => return Err(Error::NotRunning(container.id.clone())),
            }
        };
        let _ = std::fs::remove_file(path);
        if let Some(error) = answer.error {
            let text =
                format!("OCI runtime exec failed: exec failed: unable to start container process: {error}");
            return Err(if answer.errno.is_some() {
                Error::CannotRun(text)
            } else {
                Error::Failed { message: text, source: None }
            });
        }
        early.append(&mut shim.buffer);
        shim.buffer = early;
        if let Some(exec) = self.execs().get(id) {
            let mut state = exec.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = true;
            state.pid = answer.pid.unwrap_or_default();
        }
        Ok(shim)
    }

    fn find_exec(&self, id: &str) -> Result<Arc<Exec>, Error> {
        self.execs().get(id).cloned().ok_or_else(|| Error::NoSuchExec(id.to_owned()))
    }

    async fn begin_exec(&self, id: &str, size: Option<(u16, u16)>) -> Result<(Arc<Exec>, Shim), Error> {
        let exec = self.find_exec(id)?;
        let container = self.find_running(&exec.container)?;
        {
            let mut state = exec.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.started {
                return Err(Error::Conflict(format!("exec {id} has already been started")));
            }
            state.started = true;
        }
        let name = exec.config.cmd.join(" ");
        self.say(&container, &format!("exec_start: {name}"), &[("execID", id.to_owned())]);
        let size = size.or_else(|| {
            let [rows, columns] = exec.config.console_size?;
            Some((u16::try_from(rows).ok()?, u16::try_from(columns).ok()?))
        });
        match self.enter(&container, id, &exec.config, size).await {
            Ok(shim) => Ok((exec, shim)),
            Err(error) => {
                let code = match &error {
                    Error::CannotRun(text) if text.contains("not found") || text.contains("no such file") => {
                        127
                    }
                    _ => 126,
                };
                self.exec_ended(id, code);
                Err(error)
            }
        }
    }

    /// The file system of a container for `cp`, and the path in it.
    fn files_of(&self, id: &str, path: &str) -> Result<(Files, PathBuf), Error> {
        let container = self.find(id)?;
        let failed = |e: std::io::Error| Error::failed("cannot open the container's files", e);
        if container.runs() {
            let pid = container.live().pid;
            let root = Root::open(Path::new(&format!("/proc/{pid}/root"))).map_err(failed)?;
            return Ok((Files { root, _mounted: None }, path.into()));
        }
        let record = container.record().clone();
        // Its volumes are not mounted now: a path in one is looked for there.
        let inside = |target: &str| {
            let rest = path.strip_prefix(target)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
        };
        let place = record
            .mounts
            .iter()
            .filter(|m| m.kind != MountKind::Tmpfs)
            .filter_map(|m| Some((m, inside(&m.target)?)))
            .max_by_key(|(m, _)| m.target.len());
        if let Some((mount, rest)) = place {
            let root = Root::open(Path::new(&mount.source)).map_err(failed)?;
            return Ok((
                Files { root, _mounted: None },
                if rest.is_empty() { "/".into() } else { rest.into() },
            ));
        }
        let image = record.image.parse().map_err(|_| Error::NoSuchImage(record.image.clone()))?;
        let layers = self.store.rootfs(&image).map_err(images::error)?;
        let at = rootfs::mount_root(&self.layout, &record, &layers)
            .map_err(|e| Error::failed("cannot mount the container's root", e))?;
        let root = Root::open(&at).map_err(failed)?;
        Ok((Files { root, _mounted: Some(Mounted { layout: self.layout.clone(), container }) }, path.into()))
    }

    fn summary(&self, container: &Container) -> ContainerSummary {
        let state = container.state();
        let settings = self.networks.settings(container);
        let record = container.record();
        let mut command_line = record.config.entrypoint.clone().unwrap_or_default();
        command_line.extend(record.config.cmd.clone().unwrap_or_default());
        ContainerSummary {
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.config.image.clone(),
            image_id: record.image.clone(),
            command: command_line,
            created: record.created,
            ports: ports(&settings.ports),
            labels: record.config.labels.clone(),
            network_mode: Networks::mode(&record).to_owned(),
            networks: settings.networks,
            mounts: mount_points(&record),
            size_rw: None,
            size_root_fs: None,
            state,
        }
    }

    fn sizes(&self, record: &Record) -> (i64, i64) {
        let own = space(&self.layout.upper(&record.id));
        let image =
            record.image.parse().ok().and_then(|id| self.store.inspect(&id).ok()).map_or(0, |i| i.size);
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        (number(own), number(own.saturating_add(image)))
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Inner>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&this))
            .await
            .map_err(|e| Error::failed("the engine's own work ended", e))?
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct KeptVolume {
    created: Timestamp,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    options: BTreeMap<String, String>,
    anonymous: bool,
}

/// A root that is mounted for `cp` alone goes away with it, unless the container was started meanwhile.
struct Mounted {
    layout: Layout,
    container: Arc<Container>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Ok(_guard) = self.container.change.try_lock()
            && !self.container.runs()
        {
            rootfs::unmount_root(&self.layout, &self.container.id);
        }
    }
}

struct Files {
    root: Root,
    _mounted: Option<Mounted>,
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

/// Bytes below a directory, links not followed.
fn space(path: &Path) -> u64 {
    let mut sum = 0_u64;
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        sum = sum.saturating_add(if meta.is_dir() { space(&entry.path()) } else { meta.len() });
    }
    sum
}

fn ports(bindings: &BTreeMap<String, Option<Vec<PortBinding>>>) -> Vec<Port> {
    let mut out = Vec::new();
    for (port, bound) in bindings {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let private_port = number.parse().unwrap_or(0);
        let one = |binding: Option<&PortBinding>| Port {
            ip: binding.and_then(|b| b.host_ip.parse().ok()),
            private_port,
            public_port: binding.and_then(|b| b.host_port.parse().ok()),
            protocol: protocol.to_owned(),
        };
        match bound.as_deref() {
            Some(list) if !list.is_empty() => out.extend(list.iter().map(|b| one(Some(b)))),
            _ => out.push(one(None)),
        }
    }
    out
}

fn mount_points(record: &Record) -> Vec<MountPoint> {
    let of = |m: &crate::record::Mount| MountPoint {
        kind: m.kind.as_str().to_owned(),
        name: m.name.clone(),
        source: m.source.clone(),
        destination: m.target.clone(),
        driver: if m.kind == MountKind::Volume { "local".to_owned() } else { String::new() },
        mode: m.mode.clone(),
        rw: !m.read_only,
        propagation: if m.kind == MountKind::Bind && m.propagation.is_empty() {
            "rprivate".to_owned()
        } else {
            m.propagation.clone()
        },
    };
    record.mounts.iter().map(of).collect()
}

/// A client's input on its way to a shim. Shut down is the end of the input; dropped is a client that went.
struct Input {
    pipe: DuplexStream,
    ended: Arc<AtomicBool>,
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.ended.store(true, Ordering::SeqCst);
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// Joins a client to a shim's connection: both directions, each at the other's pace.
fn join(
    shim: impl Future<Output = Option<Shim>> + Send + 'static,
    tty: bool,
    stdin: bool,
    ended: impl FnOnce(i32) + Send + 'static,
) -> Attached {
    let (to, from) = mpsc::channel::<Result<Output, Error>>(8);
    let (ours, pipe) = tokio::io::duplex(64 * 1024);
    let flag = Arc::new(AtomicBool::new(false));
    let input = stdin.then(|| Box::pin(Input { pipe, ended: Arc::clone(&flag) }) as ByteWriter);
    tokio::spawn(async move {
        let shim = tokio::select! {
            shim = shim => shim,
            () = to.closed() => None,
        };
        let Some(Shim { stream, mut buffer }) = shim else { return };
        let (mut read, write) = stream.into_split();
        // The shim takes the end of our half for the end of us: it is kept as long as output is read.
        let mut write = Some(write);
        let feeding = write.take_if(|_| stdin).map(|mut write| {
            tokio::spawn(async move {
                let mut ours = ours;
                let mut bytes = vec![0_u8; 16 * 1024];
                loop {
                    match ours.read(&mut bytes).await {
                        Ok(n) if n > 0 => {
                            if write
                                .write_all(&frame(Kind::Stdin, bytes.get(..n).unwrap_or_default()))
                                .await
                                .is_err()
                            {
                                break;
                            }
                        }
                        _ => {
                            if flag.load(Ordering::SeqCst) {
                                let _ = write.write_all(&frame(Kind::Stdin, &[])).await;
                            }
                            // The connection must stay for the output: the write half is kept until the task ends.
                            std::future::pending::<()>().await;
                        }
                    }
                }
            })
        });
        let code = carry(&mut read, &mut buffer, &to).await;
        drop(write);
        if let Some(feeding) = feeding {
            feeding.abort();
        }
        if let Some(code) = code {
            ended(code);
        }
    });
    Attached { tty, output: receive(from), input }
}

/// Output until the end; the code if the shim told one.
async fn carry(
    read: &mut OwnedReadHalf,
    buffer: &mut Vec<u8>,
    to: &mpsc::Sender<Result<Output, Error>>,
) -> Option<i32> {
    let mut code = None;
    loop {
        let next = tokio::select! {
            next = next_frame(read, buffer) => next,
            () = to.closed() => return code,
        };
        let Ok(Some((kind, bytes))) = next else { return code };
        let channel = match kind {
            Kind::Stdout => Channel::Stdout,
            Kind::Stderr => Channel::Stderr,
            Kind::Json => {
                if let Ok(ShimEvent::Exited { code: its, .. }) = serde_json::from_slice(&bytes) {
                    code = Some(its);
                }
                continue;
            }
            Kind::Stdin => continue,
        };
        if to.send(Ok(Output { channel, bytes: Bytes::from(bytes) })).await.is_err() {
            return code;
        }
    }
}

#[async_trait]
impl Engine for RustiotEngine {
    async fn version(&self) -> Result<Version, Error> {
        Ok(Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_commit: String::new(),
            os: "linux".to_owned(),
            arch: rustiot_images::Platform::host().architecture,
            kernel_version: kernel(),
            build_time: String::new(),
        })
    }

    async fn info(&self) -> Result<Info, Error> {
        let engine = &self.0;
        let states: Vec<Status> = engine.containers().values().map(|c| c.live().status).collect();
        let count = |wanted: &[Status]| {
            u32::try_from(states.iter().filter(|s| wanted.contains(s)).count()).unwrap_or(0)
        };
        let controllers =
            std::fs::read_to_string(engine.layout.apps().join("cgroup.controllers")).unwrap_or_default();
        let has = |name: &str| controllers.split_whitespace().any(|c| c == name);
        let release = os_release();
        let of = |key: &str| release.get(key).cloned().unwrap_or_default();
        let mut warnings = Vec::new();
        for (name, what) in [("memory", "memory"), ("pids", "pids"), ("cpu", "CPU"), ("io", "I/O")] {
            if !has(name) {
                warnings.push(format!("WARNING: No {what} limit support"));
            }
        }
        Ok(Info {
            id: std::fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned(),
            containers: u32::try_from(states.len()).unwrap_or(0),
            containers_running: count(&[Status::Running]),
            containers_paused: count(&[Status::Paused]),
            containers_stopped: count(&[Status::Created, Status::Exited, Status::Dead, Status::Restarting]),
            images: u32::try_from(engine.store.images().len()).unwrap_or(0),
            driver: "erofs".to_owned(),
            driver_status: vec![("Backing Filesystem".to_owned(), "overlay on erofs layers".to_owned())],
            docker_root_dir: engine.layout.data.to_string_lossy().into_owned(),
            plugins: Plugins {
                volume: vec!["local".to_owned()],
                network: vec!["bridge".to_owned(), "host".to_owned(), "null".to_owned()],
                authorization: None,
                log: vec!["json-file".to_owned(), "journald".to_owned(), "none".to_owned()],
            },
            memory_limit: has("memory"),
            swap_limit: has("memory"),
            cpu_cfs_period: has("cpu"),
            cpu_cfs_quota: has("cpu"),
            cpu_shares: has("cpu"),
            cpu_set: has("cpuset"),
            pids_limit: has("pids"),
            ipv4_forwarding: true,
            system_time: Timestamp::now().to_string(),
            logging_driver: "json-file".to_owned(),
            cgroup_driver: "cgroupfs".to_owned(),
            cgroup_version: "2".to_owned(),
            kernel_version: kernel(),
            operating_system: of("PRETTY_NAME"),
            os_version: of("VERSION_ID"),
            os_type: "linux".to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            ncpu: u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1),
            mem_total: memory_total(),
            name: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            index_server_address: "https://index.docker.io/v1/".to_owned(),
            runtimes: [("rustiot".to_owned(), Runtime { path: engine.layout.runtime.join(" ") })].into(),
            default_runtime: "rustiot".to_owned(),
            live_restore_enabled: true,
            security_options: vec!["name=seccomp,profile=builtin".to_owned(), "name=cgroupns".to_owned()],
            init_binary: "docker-init".to_owned(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            warnings,
            ..Info::default()
        })
    }

    async fn disk_usage(&self) -> Result<DiskUsage, Error> {
        let containers = self.list_containers(true).await?;
        self.0
            .blocking(move |engine| {
                let usage = engine.store.disk_usage();
                let mut volumes = engine.volumes();
                for volume in &mut volumes {
                    let size = i64::try_from(space(Path::new(&volume.mountpoint))).unwrap_or(-1);
                    let users = engine
                        .containers()
                        .values()
                        .filter(|c| c.record().mounts.iter().any(|m| m.name == volume.name))
                        .count();
                    volume.usage_data =
                        Some(VolumeUsage { size, ref_count: i64::try_from(users).unwrap_or(-1) });
                }
                Ok(DiskUsage {
                    layers_size: i64::try_from(usage.layers).unwrap_or(i64::MAX),
                    images: engine.image_summaries(true),
                    containers,
                    volumes,
                })
            })
            .await
    }

    async fn events(&self, since: Option<Timestamp>) -> Result<Items<Event>, Error> {
        Ok(self.0.events.listen(since))
    }

    async fn list_containers(&self, sizes: bool) -> Result<Vec<ContainerSummary>, Error> {
        let all: Vec<Arc<Container>> = self.0.containers().values().cloned().collect();
        self.0
            .blocking(move |engine| {
                let of = |container: &Arc<Container>| {
                    let mut summary = engine.summary(container);
                    if sizes {
                        let record = container.record().clone();
                        let (rw, all) = engine.sizes(&record);
                        (summary.size_rw, summary.size_root_fs) = (Some(rw), Some(all));
                    }
                    summary
                };
                Ok(all.iter().map(of).collect())
            })
            .await
    }

    async fn create_container(&self, request: CreateContainer) -> Result<Created, Error> {
        let engine = &self.0;
        let _naming = engine.naming.lock().await;
        let image = engine.image(&request.config.image)?;
        if !image.damaged.is_empty() {
            return Err(Error::NoSuchImage(request.config.image.clone()));
        }
        let mut bytes = [0_u8; 3];
        random(&mut bytes);
        let name = match &request.name {
            Some(name) if !name.is_empty() => name.trim_start_matches('/').to_owned(),
            _ => create::name(&bytes),
        };
        if let Some(other) = engine.containers().values().find(|c| c.name() == name) {
            return Err(Error::NameInUse { name, id: other.id.clone() });
        }
        let config = create::merge(&request.config, &image.config.config);
        let mut host = request.host_config.clone();
        spec::confinement(&host)?;
        spec::check_sysctls(&host)?;
        if !["", "host"].contains(&host.userns_mode.as_str()) {
            return Err(Error::Unsupported("user namespaces (--userns) are not supported".to_owned()));
        }
        if !config.stop_signal.is_empty() {
            signal(&config.stop_signal)?;
        }
        if host.auto_remove && !["", "no"].contains(&host.restart_policy.name.as_str()) {
            return Err(Error::Invalid("can't create 'AutoRemove' container with restart policy".to_owned()));
        }
        if host.network_mode.is_empty() || host.network_mode == "default" {
            host.network_mode = "bridge".to_owned();
        }
        if host.restart_policy.name.is_empty() {
            host.restart_policy.name = "no".to_owned();
        }
        if host.log_config.kind.is_empty() {
            host.log_config.kind = "json-file".to_owned();
        }
        let (mut mounts, make, mut new) = create::mounts(&request, &config)?;
        for from in &host.volumes_from {
            let (other, mode) = from.split_once(':').unwrap_or((from, "rw"));
            let other = engine.find(other)?;
            for mut mount in other.record().mounts.clone() {
                if mount.kind != MountKind::Tmpfs && mounts.iter().all(|m| m.target != mount.target) {
                    mount.read_only |= mode == "ro";
                    mounts.push(mount);
                }
            }
        }
        let id = random_id();
        let mounts = engine
            .blocking(move |engine| {
                for path in make {
                    std::fs::create_dir_all(&path)
                        .or_else(|e| if Path::new(&path).exists() { Ok(()) } else { Err(e) })
                        .map_err(|e| Error::failed(format!("cannot make {path}"), e))?;
                }
                for mount in mounts.iter_mut().filter(|m| m.kind == MountKind::Volume) {
                    if mount.name.is_empty() {
                        mount.name = random_id();
                    }
                    let new = new.remove(&mount.target).unwrap_or_default();
                    let volume = engine.make_volume(&mount.name, new, mount.anonymous)?;
                    mount.source = match backing(&volume.options)? {
                        Backing::Bind { device, read_only } => {
                            mount.read_only |= read_only;
                            device.to_string_lossy().into_owned()
                        }
                        Backing::Own | Backing::Memory { .. } => volume.mountpoint,
                    };
                }
                Ok(mounts)
            })
            .await?;
        let mut wanted = request.networking_config.endpoints_config.clone();
        if !config.mac_address.is_empty() {
            // Where clients before 1.44 wrote it.
            let first = wanted.entry(host.network_mode.clone()).or_default();
            if first.mac_address.is_empty() {
                first.mac_address.clone_from(&config.mac_address);
            }
        }
        let networks = engine.resolve_networks(&host, wanted).await?;
        let record = Record {
            id: id.clone(),
            name,
            created: Timestamp::now(),
            image: image.id.to_string(),
            config,
            host,
            networks,
            mounts,
            wanted: false,
            stopped: false,
            removing: false,
            restarts: 0,
            last: Run::default(),
        };
        command(&record)?;
        let warnings = networks::check(&record)?;
        engine.store.hold(&image.id, &id).map_err(images::error)?;
        // The medium is waited for elsewhere: this thread answers all clients.
        let record = engine
            .blocking(move |engine| {
                let kept = engine.keep_new(&record);
                if kept.is_err() {
                    engine.store.release(&record.id);
                    let _ = std::fs::remove_dir_all(engine.layout.container(&record.id));
                    let _ = std::fs::remove_dir_all(engine.layout.transient(&record.id));
                }
                kept.map(|()| record)
            })
            .await?;
        let container = Arc::new(Container::new(record));
        engine.containers().insert(id.clone(), Arc::clone(&container));
        engine.say(&container, "create", &[]);
        Ok(Created { id, warnings })
    }

    async fn inspect_container(&self, id: &str, sizes: bool) -> Result<ContainerInspect, Error> {
        let engine = &self.0;
        let container = engine.find(id)?;
        let state = container.state();
        let network_settings = engine.networks.settings(&container);
        let record = container.record().clone();
        let (path, args) = command(&record)?;
        let running = engine.layout.running(&record.id);
        let file = |name: &str| running.join(name).to_string_lossy().into_owned();
        let (size_rw, size_root_fs) = if sizes {
            let its = record.clone();
            let (rw, all) = engine.blocking(move |engine| Ok(engine.sizes(&its))).await?;
            (Some(rw), Some(all))
        } else {
            (None, None)
        };
        let exec_ids: Vec<String> = engine
            .execs()
            .iter()
            .filter(|(_, e)| e.container == record.id)
            .map(|(id, _)| id.clone())
            .collect();
        Ok(ContainerInspect {
            id: record.id.clone(),
            created: Some(record.created),
            path,
            args,
            state,
            image: record.image.clone(),
            resolv_conf_path: file("resolv.conf"),
            hostname_path: file("hostname"),
            hosts_path: file("hosts"),
            log_path: engine.layout.log(&record.id).to_string_lossy().into_owned(),
            name: format!("/{}", record.name),
            restart_count: record.restarts,
            driver: "erofs".to_owned(),
            platform: "linux".to_owned(),
            exec_ids: (!exec_ids.is_empty()).then_some(exec_ids),
            graph_driver: GraphDriver { name: "erofs".to_owned(), data: BTreeMap::new() },
            size_rw,
            size_root_fs,
            mounts: mount_points(&record),
            host_config: record.host,
            config: record.config,
            network_settings,
            ..ContainerInspect::default()
        })
    }

    async fn start_container(&self, id: &str) -> Result<(), Error> {
        let container = self.0.find(id)?;
        let _guard = container.change.lock().await;
        let status = container.live().status;
        match status {
            Status::Running => Err(Error::Unchanged),
            Status::Paused => {
                Err(Error::Conflict("cannot start a paused container, try unpause instead".to_owned()))
            }
            Status::Removing | Status::Dead => {
                Err(Error::Conflict("container is marked for removal and cannot be started".to_owned()))
            }
            Status::Created | Status::Exited | Status::Restarting => {
                container.live().status = if status == Status::Restarting { Status::Exited } else { status };
                container.record().restarts = 0;
                let result = self.0.start(&container).await;
                if result.is_err() && container.record().host.auto_remove {
                    drop(_guard);
                    let _ = self.0.remove(&container, true, true).await;
                }
                result
            }
        }
    }

    async fn stop_container(&self, id: &str, sent: Option<&str>, timeout: Option<i64>) -> Result<(), Error> {
        let container = self.0.find(id)?;
        let number = match sent {
            Some(name) => signal(name)?,
            None => stop_signal(&container.record()),
        };
        let _guard = container.change.lock().await;
        let was_restarting = container.live().status == Status::Restarting;
        let timeout = timeout.or(container.record().config.stop_timeout).unwrap_or(10);
        let what = "cannot keep that the container is stopped";
        self.0.keep(&container, what, |record| (record.stopped, record.wanted) = (true, false)).await?;
        if was_restarting {
            container.live().status = Status::Exited;
            container.no_restart.notify_waiters();
            return Ok(());
        }
        if !container.runs() {
            return Err(Error::Unchanged);
        }
        self.0.stop(&container, number, timeout).await;
        self.0.say(&container, "stop", &[]);
        Ok(())
    }

    async fn restart_container(
        &self,
        id: &str,
        sent: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<(), Error> {
        match self.stop_container(id, sent, timeout).await {
            Ok(()) | Err(Error::Unchanged) => {}
            Err(error) => return Err(error),
        }
        match self.start_container(id).await {
            Err(Error::Unchanged) => {}
            other => other?,
        }
        let container = self.0.find(id)?;
        self.0.say(&container, "restart", &[]);
        Ok(())
    }

    async fn kill_container(&self, id: &str, sent: Option<&str>) -> Result<(), Error> {
        let container = self.0.find_running(id)?;
        let number = signal(sent.filter(|s| !s.is_empty()).unwrap_or("KILL"))?;
        if number == nix::libc::SIGKILL {
            // As Docker has it: who kills does not want it back.
            container.live().stopping = true;
            let _ = cgroup::freeze(&self.0.layout.group(&container.id), false);
        }
        self.0.signal(&container, number).await?;
        self.0.say(&container, "kill", &[("signal", number.to_string())]);
        Ok(())
    }

    async fn pause_container(&self, id: &str) -> Result<(), Error> {
        let container = self.0.find_running(id)?;
        let _guard = container.change.lock().await;
        if container.live().status == Status::Paused {
            return Err(Error::Conflict(format!("Container {id} is already paused")));
        }
        cgroup::freeze(&self.0.layout.group(&container.id), true)
            .map_err(|e| Error::failed("cannot pause", e))?;
        container.live().status = Status::Paused;
        self.0.say(&container, "pause", &[]);
        Ok(())
    }

    async fn unpause_container(&self, id: &str) -> Result<(), Error> {
        let container = self.0.find(id)?;
        let _guard = container.change.lock().await;
        if container.live().status != Status::Paused {
            return Err(Error::Conflict(format!("Container {id} is not paused")));
        }
        cgroup::freeze(&self.0.layout.group(&container.id), false)
            .map_err(|e| Error::failed("cannot go on", e))?;
        container.live().status = Status::Running;
        self.0.say(&container, "unpause", &[]);
        Ok(())
    }

    async fn rename_container(&self, id: &str, name: &str) -> Result<(), Error> {
        let _naming = self.0.naming.lock().await;
        let container = self.0.find(id)?;
        if let Some(other) = self.0.containers().values().find(|c| c.name() == name) {
            return Err(Error::NameInUse { name: name.to_owned(), id: other.id.clone() });
        }
        let old = container.name();
        let what = "cannot keep the container's name";
        self.0.keep(&container, what, |record| name.clone_into(&mut record.name)).await?;
        self.0.rename_in_networks(&container).await;
        self.0.say(&container, "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    async fn remove_container(&self, id: &str, force: bool, volumes: bool) -> Result<(), Error> {
        let container = self.0.find(id)?;
        self.0.remove(&container, force, volumes).await
    }

    async fn wait_container(&self, id: &str, condition: WaitCondition) -> Result<Waiting, Error> {
        let container = self.0.find(id)?;
        let mut ends = container.ends.subscribe();
        let before = ends.borrow_and_update().clone();
        let runs = matches!(container.live().status, Status::Running | Status::Paused | Status::Restarting);
        Ok(Box::pin(async move {
            loop {
                let now = ends.borrow_and_update().clone();
                let done = match condition {
                    WaitCondition::NotRunning => !runs || now.count > before.count,
                    WaitCondition::NextExit => now.count > before.count,
                    WaitCondition::Removed => now.removed,
                };
                if done || (now.removed && condition != WaitCondition::Removed) {
                    return Ok(Exited { code: now.code, error: None });
                }
                if ends.changed().await.is_err() {
                    return Ok(Exited { code: now.code, error: None });
                }
            }
        }))
    }

    async fn update_container(&self, id: &str, update: UpdateContainer) -> Result<Vec<String>, Error> {
        let container = self.0.find(id)?;
        let _guard = container.change.lock().await;
        if container.runs() {
            cgroup::update(&self.0.layout.group(&container.id), &update.resources)
                .map_err(|e| Error::failed("cannot change the limits", e))?;
        }
        let (new, mut host) = (update.resources, container.record().host.clone());
        let own = &mut host.resources;
        for (own, new) in [
            (&mut own.memory, new.memory),
            (&mut own.memory_swap, new.memory_swap),
            (&mut own.memory_reservation, new.memory_reservation),
            (&mut own.nano_cpus, new.nano_cpus),
            (&mut own.cpu_shares, new.cpu_shares),
            (&mut own.cpu_period, new.cpu_period),
            (&mut own.cpu_quota, new.cpu_quota),
        ] {
            if new != 0 {
                *own = new;
            }
        }
        for (own, new) in [(&mut own.cpuset_cpus, new.cpuset_cpus), (&mut own.cpuset_mems, new.cpuset_mems)] {
            if !new.is_empty() {
                *own = new;
            }
        }
        own.pids_limit = new.pids_limit.or(own.pids_limit);
        if new.blkio_weight != 0 {
            own.blkio_weight = new.blkio_weight;
        }
        if !update.restart_policy.name.is_empty() {
            if host.auto_remove && update.restart_policy.name != "no" {
                return Err(Error::Invalid(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                        .to_owned(),
                ));
            }
            host.restart_policy = update.restart_policy;
        }
        let what = "cannot keep the new limits";
        self.0.keep(&container, what, |record| record.host.clone_from(&host)).await?;
        self.0.say(&container, "update", &[]);
        Ok(Vec::new())
    }

    async fn top(&self, id: &str, arguments: &str) -> Result<Top, Error> {
        let container = self.0.find_running(id)?;
        if !["", "-ef"].contains(&arguments.trim()) {
            return Err(Error::Unsupported(
                "`top` takes no arguments for ps here: the columns are those of `ps -ef`".to_owned(),
            ));
        }
        let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned).into();
        let processes = cgroup::processes(&self.0.layout.group(&container.id))
            .into_iter()
            .filter_map(process_row)
            .collect();
        Ok(Top { titles, processes })
    }

    async fn sample(&self, id: &str) -> Result<(String, String, Option<Sample>), Error> {
        let container = self.0.find(id)?;
        let name = container.name();
        let sample =
            container.runs().then(|| sample(&self.0.layout.group(&container.id), container.live().pid));
        Ok((container.id.clone(), name, sample))
    }

    async fn logs(&self, id: &str, options: LogsOptions) -> Result<Logs, Error> {
        let container = self.0.find(id)?;
        let (tty, driver) = {
            let record = container.record();
            (record.config.tty, record.host.log_config.kind.clone())
        };
        match driver.as_str() {
            "none" => {
                return Err(Error::Unsupported(
                    "configured logging driver does not support reading".to_owned(),
                ));
            }
            "journald" => {
                return Err(Error::Unsupported(format!(
                    "this container logs to the journal: journalctl CONTAINER_NAME={}",
                    container.name()
                )));
            }
            _ => {}
        }
        let (to, from) = mpsc::channel(64);
        tokio::spawn(logs::send(self.0.layout.log(&container.id), options, move || container.runs(), to));
        Ok(Logs { tty, lines: receive(from) })
    }

    async fn attach(&self, id: &str, options: AttachOptions) -> Result<Attached, Error> {
        let container = self.0.find(id)?;
        let (tty, open) = {
            let record = container.record();
            (record.config.tty, record.config.open_stdin)
        };
        if container.live().status == Status::Paused {
            return Err(Error::Conflict(format!(
                "container {id} is paused, unpause the container before attach"
            )));
        }
        let stdin = options.stdin && open && options.stream;
        let socket = self.0.layout.socket_of(&container.id);
        let request = Request::Attach { stdin, stdout: options.stdout, stderr: options.stderr };
        let shim = if !options.stream {
            None
        } else if container.runs() {
            let mut shim =
                Shim::connect(&socket).await.map_err(|_| Error::NotRunning(container.id.clone()))?;
            shim.call(&request).await.map_err(|_| Error::NotRunning(container.id.clone()))?;
            Some(Ok(shim))
        } else {
            let (connected, later) = oneshot::channel();
            container
                .live()
                .waiting
                .push(Attaching { options: AttachOptions { stdin, ..options }, connected });
            Some(Err(later))
        };
        let mut attached = join(
            async move {
                match shim? {
                    Ok(shim) => Some(shim),
                    Err(later) => later.await.ok(),
                }
            },
            tty,
            stdin,
            drop,
        );
        if options.logs {
            let options =
                LogsOptions { stdout: options.stdout, stderr: options.stderr, ..LogsOptions::default() };
            let mut old = self.logs(id, options).await?.lines;
            let mut live = attached.output;
            let (to, from) = mpsc::channel(8);
            tokio::spawn(async move {
                use futures_util::StreamExt;
                while let Some(Ok(line)) = old.next().await {
                    if to.send(Ok(Output { channel: line.channel, bytes: line.bytes })).await.is_err() {
                        return;
                    }
                }
                while let Some(item) = live.next().await {
                    if to.send(item).await.is_err() {
                        return;
                    }
                }
            });
            attached.output = receive(from);
        }
        self.0.say(&container, "attach", &[]);
        Ok(attached)
    }

    async fn resize_container(&self, id: &str, rows: u16, columns: u16) -> Result<(), Error> {
        let container = self.0.find_running(id)?;
        let request = Request::Resize { exec: None, size: (rows, columns) };
        ask(&self.0.layout.socket_of(&container.id), &request)
            .await
            .map_err(|_| Error::NotRunning(container.id.clone()))?;
        Ok(())
    }

    async fn stat_path(&self, id: &str, path: &str) -> Result<PathStat, Error> {
        let (id, path) = (id.to_owned(), path.to_owned());
        self.0
            .blocking(move |engine| {
                let (files, inside) = engine.files_of(&id, &path)?;
                stat(&files.root, &inside, &path, &id).map(|(stat, _)| stat)
            })
            .await
    }

    async fn get_archive(&self, id: &str, path: &str) -> Result<(PathStat, ByteReader), Error> {
        let (id, path) = (id.to_owned(), path.to_owned());
        let (reader, writer) = images::pair()?;
        let stat = self
            .0
            .blocking(move |engine| {
                let (files, inside) = engine.files_of(&id, &path)?;
                let (stat, parent) = stat(&files.root, &inside, &path, &id)?;
                let name = archive::base_name(&path);
                let resolved = archive::base_name(&inside.to_string_lossy());
                let contents = resolved == "/" || path.ends_with('/') || path.ends_with("/.");
                std::thread::spawn(move || {
                    let result = if contents {
                        files.root.directory(&inside).and_then(|d| archive::pack(&d, &name, writer))
                    } else {
                        archive::pack_entry(parent.as_fd(), &resolved, writer)
                    };
                    // The client went: nothing to be told to anybody.
                    drop(result);
                    drop(files);
                });
                Ok(stat)
            })
            .await?;
        Ok((stat, reader))
    }

    async fn put_archive(
        &self,
        id: &str,
        path: &str,
        _options: PutArchive,
        tar: ByteReader,
    ) -> Result<(), Error> {
        let (theirs, feeding) = images::fed(tar)?;
        let container = self.0.find(id)?;
        if container.record().host.readonly_rootfs
            && !container.record().mounts.iter().any(|m| path.starts_with(&m.target))
        {
            return Err(Error::Forbidden("container rootfs is marked read-only".to_owned()));
        }
        let (id, path) = (id.to_owned(), path.to_owned());
        let result = self
            .0
            .blocking(move |engine| {
                let (files, inside) = engine.files_of(&id, &path)?;
                let no_path = || Error::NoSuchPath { path: path.clone(), container: id.clone() };
                files.root.directory(&inside).map_err(|_| no_path())?;
                let mut from = std::io::BufReader::new(theirs);
                let unpacked = archive::unpack(&files.root, &inside, &mut from, true);
                unpacked.map_err(|e| Error::Invalid(format!("cannot unpack into {path}: {e}")))?;
                // What comes after the archive's end is read, so that the client can finish.
                let _ = std::io::copy(&mut from, &mut std::io::sink());
                Ok(())
            })
            .await;
        feeding.abort();
        result
    }

    async fn prune_containers(&self, which: Which<ContainerSummary>) -> Result<Pruned, Error> {
        let mut pruned = Pruned::default();
        let all: Vec<Arc<Container>> = self.0.containers().values().cloned().collect();
        for container in all {
            let stopped = matches!(container.live().status, Status::Created | Status::Exited | Status::Dead);
            if stopped && which(&self.0.summary(&container)) {
                let its = container.record().clone();
                let (size, _) = self.0.blocking(move |engine| Ok(engine.sizes(&its))).await?;
                if self.0.remove(&container, false, false).await.is_ok() {
                    pruned.space_reclaimed += u64::try_from(size).unwrap_or(0);
                    pruned.deleted.push(container.id.clone());
                }
            }
        }
        Ok(pruned)
    }

    async fn create_exec(&self, container: &str, config: ExecConfig) -> Result<String, Error> {
        let its = self.0.find_running(container)?;
        if its.live().status == Status::Paused {
            return Err(Error::Conflict(format!(
                "container {container} is paused, unpause the container before exec"
            )));
        }
        if config.cmd.first().is_none_or(String::is_empty) {
            return Err(Error::Invalid("No exec command specified".to_owned()));
        }
        let id = random_id();
        let action = format!("exec_create: {}", config.cmd.join(" "));
        let exec = Exec { container: its.id.clone(), config, state: Mutex::default() };
        {
            let mut all = self.0.execs();
            // What has ended is remembered for a while, not for ever.
            if all.len() >= 512 {
                all.retain(|_, e| e.state.lock().unwrap_or_else(PoisonError::into_inner).code.is_none());
            }
            all.insert(id.clone(), Arc::new(exec));
        }
        self.0.say(&its, &action, &[("execID", id.clone())]);
        Ok(id)
    }

    async fn start_exec(&self, id: &str, tty: bool, size: Option<(u16, u16)>) -> Result<Attached, Error> {
        let (exec, shim) = self.0.begin_exec(id, size).await?;
        let engine = Arc::clone(&self.0);
        let name = id.to_owned();
        let ended = move |code| engine.exec_ended(&name, code);
        Ok(join(async move { Some(shim) }, tty || exec.config.tty, exec.config.attach_stdin, ended))
    }

    async fn start_exec_detached(&self, id: &str) -> Result<(), Error> {
        let (_, mut shim) = self.0.begin_exec(id, None).await?;
        let engine = Arc::clone(&self.0);
        let name = id.to_owned();
        tokio::spawn(async move {
            while let Ok(Some((kind, bytes))) = shim.next().await {
                if kind == Kind::Json
                    && let Ok(ShimEvent::Exited { code, .. }) = serde_json::from_slice(&bytes)
                {
                    engine.exec_ended(&name, code);
                }
            }
        });
        Ok(())
    }

    async fn inspect_exec(&self, id: &str) -> Result<ExecInspect, Error> {
        let exec = self.0.find_exec(id)?;
        let state = exec.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(ExecInspect {
            id: id.to_owned(),
            container_id: exec.container.clone(),
            running: state.running,
            exit_code: state.code,
            pid: u32::try_from(state.pid).unwrap_or(0),
            config: exec.config.clone(),
        })
    }

    async fn resize_exec(&self, id: &str, rows: u16, columns: u16) -> Result<(), Error> {
        let exec = self.0.find_exec(id)?;
        let request = Request::Resize { exec: Some(id.to_owned()), size: (rows, columns) };
        ask(&self.0.layout.socket_of(&exec.container), &request)
            .await
            .map_err(|_| Error::NotRunning(exec.container.clone()))?;
        Ok(())
    }

    async fn list_images(&self, shared: bool) -> Result<Vec<ImageSummary>, Error> {
        self.0.blocking(move |engine| Ok(engine.image_summaries(shared))).await
    }

    async fn inspect_image(&self, name: &str) -> Result<ImageInspect, Error> {
        self.0.image_details(name)
    }

    async fn image_history(&self, name: &str) -> Result<Vec<HistoryEntry>, Error> {
        self.0.history(name)
    }

    async fn pull(&self, request: PullRequest) -> Result<Items<Progress>, Error> {
        self.0.pull_image(request)
    }

    async fn tag_image(&self, name: &str, repository: &str, tag: &str) -> Result<(), Error> {
        let image = self.0.image(name)?;
        let wanted = format!("{repository}:{tag}");
        let reference =
            wanted.parse().map_err(|e: rustiot_images::ReferenceError| Error::Invalid(e.to_string()))?;
        self.0.blocking(move |engine| engine.store.tag(&image.id, &reference).map_err(images::error)).await
    }

    async fn remove_image(
        &self,
        name: &str,
        force: bool,
        _no_prune: bool,
    ) -> Result<Vec<ImageRemoved>, Error> {
        self.0.remove_names(name, force).await
    }

    async fn prune_images(&self, which: Which<ImageSummary>) -> Result<ImagesPruned, Error> {
        self.0.prune_unused(which).await
    }

    async fn save(&self, names: Vec<String>) -> Result<ByteReader, Error> {
        self.0.save_images(names)
    }

    async fn load(&self, archive: ByteReader, _quiet: bool) -> Result<Items<Progress>, Error> {
        self.0.load_images(archive)
    }

    async fn list_networks(&self) -> Result<Vec<Network>, Error> {
        Ok(self.0.networks.list().await)
    }

    async fn inspect_network(&self, id: &str) -> Result<Network, Error> {
        self.0.show_network(id).await
    }

    async fn create_network(&self, request: CreateNetwork) -> Result<Created, Error> {
        self.0.make_network(request).await
    }

    async fn remove_network(&self, id: &str) -> Result<(), Error> {
        self.0.drop_network(id).await
    }

    async fn connect_network(
        &self,
        id: &str,
        container: &str,
        endpoint: EndpointSettings,
    ) -> Result<(), Error> {
        let container = self.0.find(container)?;
        let _guard = container.change.lock().await;
        self.0.connect(id, &container, endpoint).await
    }

    async fn disconnect_network(&self, id: &str, container: &str, _force: bool) -> Result<(), Error> {
        let container = self.0.find(container)?;
        let _guard = container.change.lock().await;
        self.0.disconnect(id, &container).await
    }

    async fn prune_networks(&self, which: Which<Network>) -> Result<Pruned, Error> {
        let mut pruned = Pruned::default();
        let used: BTreeSet<String> = self
            .0
            .containers()
            .values()
            .flat_map(|c| c.record().networks.keys().cloned().collect::<Vec<_>>())
            .collect();
        for network in self.0.networks.list().await {
            let free = !used.contains(&network.name) && !used.contains(&network.id);
            if free && which(&network) && self.0.drop_network(&network.id).await.is_ok() {
                pruned.deleted.push(network.name);
            }
        }
        Ok(pruned)
    }

    async fn list_volumes(&self) -> Result<Vec<Volume>, Error> {
        Ok(self.0.volumes())
    }

    async fn inspect_volume(&self, name: &str) -> Result<Volume, Error> {
        self.0.load_volume(name).ok_or_else(|| Error::NoSuchVolume(name.to_owned()))
    }

    async fn create_volume(&self, request: CreateVolume) -> Result<Volume, Error> {
        if !["", "local"].contains(&request.driver.as_str()) {
            return Err(Error::NotFound(format!(
                "error looking up volume plugin {0}: plugin \"{0}\" not found",
                request.driver
            )));
        }
        let anonymous = request.name.is_empty();
        let name = if anonymous { random_id() } else { request.name };
        if !create::is_volume_name(&name) {
            return Err(Error::Invalid(format!(
                "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
            )));
        }
        let new = NewVolume { labels: request.labels, options: request.driver_opts };
        let _naming = self.0.naming.lock().await;
        self.0.blocking(move |engine| engine.make_volume(&name, new, anonymous)).await
    }

    async fn remove_volume(&self, name: &str, force: bool) -> Result<(), Error> {
        let _naming = self.0.naming.lock().await;
        if !create::is_volume_name(name) || self.0.load_volume(name).is_none() {
            return if force { Ok(()) } else { Err(Error::NoSuchVolume(name.to_owned())) };
        }
        let users: Vec<String> = self
            .0
            .containers()
            .values()
            .filter(|c| c.record().mounts.iter().any(|m| m.name == name))
            .map(|c| c.id.clone())
            .collect();
        if !users.is_empty() {
            return Err(Error::Conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
        }
        let owned = name.to_owned();
        self.0
            .blocking(move |engine| {
                engine
                    .remove_volume_files(&owned)
                    .map_err(|e| Error::failed(format!("cannot remove the volume {owned}"), e))
            })
            .await?;
        self.0.events.say(
            EventKind::Volume,
            "destroy",
            name,
            [("driver".to_owned(), "local".to_owned())].into(),
        );
        Ok(())
    }

    async fn prune_volumes(&self, which: Which<Volume>) -> Result<Pruned, Error> {
        let mut pruned = Pruned::default();
        for volume in self.0.volumes() {
            if !volume.in_use && which(&volume) {
                let size = space(Path::new(&volume.mountpoint));
                if self.remove_volume(&volume.name, false).await.is_ok() {
                    pruned.space_reclaimed += size;
                    pruned.deleted.push(volume.name);
                }
            }
        }
        Ok(pruned)
    }
}

/// About a path of a container, and the directory that holds it.
fn stat(
    root: &Root,
    inside: &Path,
    asked: &str,
    id: &str,
) -> Result<(PathStat, std::os::fd::OwnedFd), Error> {
    let no_path = || Error::NoSuchPath { path: asked.to_owned(), container: id.to_owned() };
    let must_be_directory = asked.ends_with('/') || asked.ends_with("/.");
    let clean: PathBuf = inside.components().collect();
    if must_be_directory {
        root.directory(&clean).map_err(|_| no_path())?;
    }
    let (parent, stat) = root.entry(&clean).map_err(|_| no_path())?;
    let name = archive::base_name(asked);
    let link_target = clean.file_name().map(|n| archive::link_target(parent.as_fd(), n)).unwrap_or_default();
    let modified =
        Timestamp::new(stat.st_mtime, i32::try_from(stat.st_mtime_nsec).unwrap_or(0)).unwrap_or_default();
    let stat = PathStat {
        name: name.to_string_lossy().into_owned(),
        size: stat.st_size,
        mode: stat.st_mode,
        modified,
        link_target,
    };
    Ok((stat, parent))
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn os_release() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned()));
    text.lines().filter_map(pair).collect()
}

fn memory_total() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// A line of `ps -ef`.
fn process_row(pid: i32) -> Option<Vec<String>> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let stat = read("stat")?;
    // The name may contain anything, parentheses too.
    let rest = stat.rsplit_once(") ")?.1;
    let field = |n: usize| rest.split(' ').nth(n).unwrap_or_default();
    let ticks = field(11).parse::<u64>().unwrap_or(0) + field(12).parse::<u64>().unwrap_or(0);
    let seconds = ticks / 100;
    let status = read("status")?;
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().next()?.to_owned();
    let line = read("cmdline").unwrap_or_default().replace('\0', " ");
    let line =
        if line.trim().is_empty() { format!("[{}]", read("comm")?.trim()) } else { line.trim().to_owned() };
    let began =
        Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(age(field(19)))).unwrap_or_default();
    let began = began.to_string().get(11..16).unwrap_or_default().to_owned();
    let tty = if field(4) == "0" { "?" } else { "pts/0" };
    let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(vec![uid, pid.to_string(), field(1).to_owned(), "0".to_owned(), began, tty.to_owned(), time, line])
}

/// Seconds since a process began, of its start in ticks since the boot.
fn age(ticks: &str) -> i64 {
    let up = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let up: i64 = up.split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0);
    up - ticks.parse::<i64>().unwrap_or(0) / 100
}

fn sample(group: &Path, pid: i32) -> Sample {
    let cpu = cgroup::table(group, "cpu.stat");
    let micros = |name: &str| cpu.get(name).copied().unwrap_or(0).saturating_mul(1000);
    let memory_stats = cgroup::table(group, "memory.stat");
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let ticks: u64 = first.split_whitespace().skip(1).take(8).filter_map(|n| n.parse::<u64>().ok()).sum();
    let online =
        u32::try_from(stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count())
            .unwrap_or(1);
    let mut block: Vec<BlockSample> = Vec::new();
    for line in std::fs::read_to_string(group.join("io.stat")).unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|d| d.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        let values: BTreeMap<&str, u64> =
            words.filter_map(|w| w.split_once('=')).filter_map(|(k, v)| Some((k, v.parse().ok()?))).collect();
        let of = |key: &str| values.get(key).copied().unwrap_or(0);
        block.push(BlockSample {
            major,
            minor,
            read_bytes: of("rbytes"),
            write_bytes: of("wbytes"),
            reads: of("rios"),
            writes: of("wios"),
        });
    }
    let mut interfaces = BTreeMap::new();
    for line in std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default().lines().skip(2) {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let numbers: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let of = |n: usize| numbers.get(n).copied().unwrap_or(0);
        if name.trim() != "lo" {
            let sample = InterfaceSample {
                rx_bytes: of(0),
                rx_packets: of(1),
                rx_errors: of(2),
                rx_dropped: of(3),
                tx_bytes: of(8),
                tx_packets: of(9),
                tx_errors: of(10),
                tx_dropped: of(11),
            };
            interfaces.insert(name.trim().to_owned(), sample);
        }
    }
    Sample {
        read: Timestamp::now(),
        cpu_total: micros("usage_usec"),
        cpu_user: micros("user_usec"),
        cpu_system: micros("system_usec"),
        system_total: ticks.saturating_mul(10_000_000),
        online_cpus: online,
        throttling_periods: cpu.get("nr_periods").copied().unwrap_or(0),
        throttled_periods: cpu.get("nr_throttled").copied().unwrap_or(0),
        throttled_time: micros("throttled_usec"),
        memory_usage: cgroup::number(group, "memory.current").unwrap_or(0),
        memory_limit: cgroup::number(group, "memory.max").unwrap_or_else(memory_total),
        memory_failcnt: cgroup::table(group, "memory.events").get("max").copied().unwrap_or(0),
        memory_stats,
        pids: cgroup::number(group, "pids.current").unwrap_or(0),
        pids_limit: cgroup::number(group, "pids.max").unwrap_or(0),
        block,
        interfaces,
    }
}
