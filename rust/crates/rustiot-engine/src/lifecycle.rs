//! Containers from their creation to their removal: start, end, restart, stop, remove, and what is found at the engine's
//! own start.
//!
//! Nothing of a container is in the engine's process: what runs is held by its shim, what was is in its record and its
//! `exit.json`. So at any instant this process may end; [`Inner::adopt`] goes on from what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustiot_docker_api::types::{EventKind, Health, HealthStatus, Status};
use rustiot_docker_api::{Error, Timestamp};
use rustiot_images::ImageId;
use rustiot_shim::protocol::{Config, Event, Exit, Log, Request};
use tokio::net::UnixListener;

use crate::beneath::Root;
use crate::container::Container;
use crate::engine::Inner;
use crate::places::Places;
use crate::record::{MountKind, Record, Run};
use crate::shim::{Shim, ask};
use crate::spec::{self, Surroundings};
use crate::volumes::{Backing, backing};
use crate::{cgroup, create, health, rootfs, users};

/// The first pause before a restart; it doubles.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A run of this length begins anew.
const RAN_WELL: Duration = Duration::from_secs(10);
/// How long a start may take before it is given up.
const START: Duration = Duration::from_secs(120);

/// A start's outcome before the program runs.
struct Prepared {
    config: Config,
    directory: PathBuf,
}

/// The number of a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
pub fn signal(name: &str) -> Result<i32, Error> {
    let bad = || Error::Invalid(format!("invalid signal: {name}"));
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    for (prefix, base, sign) in [("RTMIN", 34, 1), ("RTMAX", 64, -1)] {
        if let Some(rest) = short.strip_prefix(prefix) {
            let offset = rest.trim_start_matches(['+', '-']);
            let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().map_err(|_| bad())? };
            let number = base + sign * offset;
            return if (34..=64).contains(&number) { Ok(number) } else { Err(bad()) };
        }
    }
    format!("SIG{short}").parse::<nix::sys::signal::Signal>().map(|s| s as i32).map_err(|_| bad())
}

impl Inner {
    /// Changes a container's record: on the medium first, and in memory when it is there. A thread of its own waits for the
    /// medium, and nobody who looks at the record waits with it. What is kept later has in it what was kept before.
    ///
    /// # Errors
    /// The medium's, with `what` was to be kept in front; then nothing has changed.
    pub async fn keep(
        &self,
        container: &Arc<Container>,
        what: &'static str,
        change: impl Fn(&mut Record),
    ) -> Result<(), Error> {
        let _one = container.keeping.lock().await;
        let mut new = container.record().clone();
        change(&mut new);
        let layout = self.layout.clone();
        tokio::task::spawn_blocking(move || new.save(&layout))
            .await
            .map_err(|e| Error::failed(what, e))?
            .map_err(|e| Error::failed(what, e))?;
        change(&mut container.record());
        Ok(())
    }

    /// Starts it, with its state already checked and `change` held.
    pub async fn start(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), Error> {
        let before = container.record().clone();
        let result = self.try_start(container).await;
        if let Err(error) = &result {
            self.clean(container).await;
            {
                let mut record = container.record();
                (record.wanted, record.stopped, record.last) = (before.wanted, before.stopped, before.last);
                record.last.error = error.to_string();
                record.last.code = match error {
                    Error::CannotRun(text) if text.contains("not found") || text.contains("no such file") => {
                        127
                    }
                    Error::CannotRun(_) => 126,
                    _ => 128,
                };
            }
            let _ = self.keep(container, "cannot keep why the start failed", |_| ()).await;
        }
        // Who waited for a start that failed learns it by the end of its connection.
        container.live().waiting.clear();
        result
    }

    async fn try_start(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), Error> {
        let network = self.join_networks(container).await?;
        let this = Arc::clone(self);
        let its = Arc::clone(container);
        let prepared = tokio::task::spawn_blocking(move || this.prepare(&its, network))
            .await
            .map_err(|e| Error::failed("cannot prepare the container", e))??;
        // What an earlier run left is not to be taken for this one's.
        let _ = std::fs::remove_file(&prepared.config.exit);
        // The medium takes the record while the program is being started. Nobody is told before both are done; the
        // process's number is only of use to this engine, and the next one asks the shim.
        let run = Run { started: Some(Timestamp::now()), ..Run::default() };
        let kept = self.keep(container, "cannot keep the container's state", |record| {
            record.wanted = true;
            record.stopped = false;
            record.last = run.clone();
        });
        let (kept, started) = tokio::join!(kept, self.run_shim(container, &prepared));
        let (pid, watch) = started?;
        kept?;
        {
            let mut record = container.record();
            record.last.pid = pid;
            record.last.started = Some(Timestamp::now());
        }
        {
            let mut live = container.live();
            live.status = Status::Running;
            live.pid = pid;
            live.stopping = false;
        }
        self.say(container, "start", &[]);
        self.watch(container, watch);
        Ok(())
    }

    /// Starts the shim, and through it the program: its process, and a connection that hears of its end.
    async fn run_shim(&self, container: &Container, prepared: &Prepared) -> Result<(i32, Shim), Error> {
        let socket = self.layout.socket_of(&container.id);
        let _ = std::fs::remove_file(&socket);
        let failed = |what: &'static str| move |e: std::io::Error| Error::failed(what, e);
        let listener = UnixListener::bind(&socket)
            .and_then(UnixListener::into_std)
            .map_err(failed("cannot make the shim's socket"))?;
        let text = serde_json::to_vec(&prepared.config).unwrap_or_default();
        rustiot_durable::atomic_write_volatile(&prepared.directory.join("shim.json"), &text)
            .map_err(|e| Error::failed("cannot write the shim's configuration", e))?;
        let mut child = tokio::process::Command::new(&self.layout.shim)
            .arg("run")
            .arg(&prepared.directory)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed("cannot start the container's shim"))?;
        // Out of the engine's own group. What the kernel waits for in that passes while the shim and the runtime begin;
        // libcontainer's own move, of the program into its group, then finds it done.
        let (shims, process) = (cgroup::shims(&self.layout.apps()), child.id().unwrap_or_default());
        let moved = tokio::task::spawn_blocking(move || cgroup::join(&shims, process));
        tokio::spawn(async move { child.wait().await });
        let lost = |e: std::io::Error| Error::failed("the container's shim has gone", e);
        let mut watch = Shim::connect(&socket).await.map_err(lost)?;
        watch.send(&Request::Watch).await.map_err(lost)?;
        let waiting = std::mem::take(&mut container.live().waiting);
        for waiting in waiting {
            let mut shim = Shim::connect(&socket).await.map_err(lost)?;
            let o = waiting.options;
            let request = Request::Attach { stdin: o.stdin, stdout: o.stdout, stderr: o.stderr };
            shim.call(&request).await.map_err(lost)?;
            let _ = waiting.connected.send(shim);
        }
        let answer = tokio::time::timeout(START, ask(&socket, &Request::Start))
            .await
            .map_err(|_| Error::Unavailable(format!("the container did not start in {} s", START.as_secs())))?
            .map_err(lost)?;
        if let Some(error) = answer.error {
            let text = format!("failed to create task for container: failed to create shim task: {error}");
            return Err(match answer.errno {
                Some(_) => Error::CannotRun(text),
                None => Error::Failed { message: text, source: None },
            });
        }
        let moved = moved.await.map_err(|e| Error::failed("cannot move the container's shim", e))?;
        moved.map_err(|e| Error::failed("cannot move the container's shim out of the engine's group", e))?;
        Ok((answer.pid.unwrap_or_default(), watch))
    }

    /// All that must be there before its program: root, volumes, files, limits, bundle.
    fn prepare(
        &self,
        container: &Container,
        network: crate::networks::Attachment,
    ) -> Result<Prepared, Error> {
        let record = container.record().clone();
        let layout = &self.layout;
        let id = &record.id;
        let image: ImageId = record.image.parse().map_err(|_| Error::NoSuchImage(record.image.clone()))?;
        let layers = self.store.rootfs(&image).map_err(crate::images::error)?;
        let root_path = rootfs::mount_root(layout, &record, &layers)
            .map_err(|e| Error::failed("cannot mount the container's root", e))?;
        let io = |what: &'static str| move |e: std::io::Error| Error::failed(what, e);
        let root = Root::open(&root_path).map_err(io("cannot open the container's root"))?;
        for mount in &record.mounts {
            match mount.kind {
                MountKind::Volume => {
                    let volume = self.load_volume(&mount.name);
                    let volume = volume.ok_or_else(|| Error::NoSuchVolume(mount.name.clone()))?;
                    let data = PathBuf::from(&mount.source);
                    if !data.is_dir() {
                        return Err(Error::Failed {
                            message: format!(
                                "error while mounting volume '{}': {} is no directory of this device",
                                mount.name,
                                data.display()
                            ),
                            source: None,
                        });
                    }
                    if let Backing::Memory { flags, data: options } = backing(&volume.options)? {
                        self.in_memory
                            .enter(&data, flags, &options, id)
                            .map_err(io("cannot mount a volume in memory"))?;
                    }
                    if mount.copy_up {
                        rootfs::copy_up(&root, Path::new(&mount.target), &data)
                            .map_err(io("cannot fill the volume from the image"))?;
                    }
                }
                MountKind::Bind if !Path::new(&mount.source).exists() => {
                    return Err(Error::Invalid(format!("bind source path does not exist: {}", mount.source)));
                }
                MountKind::Bind | MountKind::Tmpfs => {}
            }
        }
        let directory = layout.running(id);
        let hostname = hostname(&record);
        for (name, text) in network.files(&record, &hostname) {
            rustiot_durable::atomic_write_volatile(&directory.join(name), text.as_bytes())
                .map_err(|e| Error::failed("cannot write the container's files", e))?;
        }
        let user = users::resolve(Some(&root), &record.config.user, &record.host.group_add)?;
        let confinement = spec::confinement(&record.host)?;
        let (path, arguments) = command(&record)?;
        let mut all = vec![path];
        all.extend(arguments);
        let mut environment = vec![create::PATH.to_owned(), format!("HOSTNAME={hostname}")];
        if record.config.tty {
            environment.push("TERM=xterm".to_owned());
        }
        environment = create::environment(&environment, &record.config.env);
        if !environment.iter().any(|e| e.starts_with("HOME=")) {
            environment.push(format!("HOME={}", user.home));
        }
        let mut joined = Vec::new();
        for (kind, mode, namespace) in
            [("pid", &record.host.pid_mode, "pid"), ("ipc", &record.host.ipc_mode, "ipc")]
        {
            if let Some(other) = mode.strip_prefix("container:") {
                let other = self.find(other)?;
                let pid = other.live().pid;
                if !other.runs() {
                    return Err(Error::NotRunning(other.id.clone()));
                }
                joined.push((kind, PathBuf::from(format!("/proc/{pid}/ns/{namespace}"))));
            }
        }
        let init = if record.host.init.unwrap_or(false) {
            layout.init.as_deref().or(Some(&layout.shim))
        } else {
            None
        };
        let group = layout.cgroup.join(id).to_string_lossy().into_owned();
        let around = Surroundings {
            root: &root_path,
            group,
            network: network.namespace.clone(),
            user: &user,
            files: &directory,
            joined,
            hostname,
            init,
            arguments: all,
            environment,
        };
        let spec = spec::build(&record, &confinement, &around, Places::new(root))?;
        let write = |name: &str, bytes: &[u8]| {
            rustiot_durable::atomic_write_volatile(&directory.join(name), bytes)
                .map_err(|e| Error::failed("cannot write the container's bundle", e))
        };
        write("config.json", &serde_json::to_vec(&spec).unwrap_or_default())?;
        cgroup::create(&layout.group(id), &record.host.resources, &self.settings.defaults)
            .map_err(|e| Error::failed("cannot limit the container", e))?;
        let rows = record.host.console_size;
        let size = |n: u32| u16::try_from(n).unwrap_or(0);
        let [height, width] = rows;
        let config = Config {
            id: id.clone(),
            runtime: layout.runtime.clone(),
            runtime_root: layout.runtime_root(),
            bundle: directory.clone(),
            capabilities: confinement.handed_over().1,
            tty: record.config.tty,
            stdin: record.config.open_stdin,
            stdin_once: record.config.stdin_once,
            size: (height > 0).then(|| (size(height), size(width))),
            owner: (user.uid, user.gid),
            log: self.log_of(&record)?,
            sync_log: !record.is_transient(),
            exit: record.exit(layout),
            cgroup: layout.group(id),
            stop_signal: stop_signal(&record),
            stop_timeout: u64::try_from(record.config.stop_timeout.unwrap_or(10)).unwrap_or(10),
        };
        Ok(Prepared { config, directory })
    }

    fn log_of(&self, record: &Record) -> Result<Log, Error> {
        let options = &record.host.log_config.config;
        let number = |name: &str, default: u64| -> Result<u64, Error> {
            match options.get(name) {
                None => Ok(default),
                Some(text) => size_of(text)
                    .ok_or_else(|| Error::Invalid(format!("invalid value for {name} of the log: {text:?}"))),
            }
        };
        let rate = number("max-rate", self.settings.log_rate)?;
        match record.host.log_config.kind.as_str() {
            "none" => Ok(Log::None),
            "" | "json-file" | "local" => Ok(Log::JsonFile {
                path: self.layout.log(&record.id),
                max_size: number("max-size", self.settings.log_size)?,
                max_files: u32::try_from(number("max-file", u64::from(self.settings.log_files))?)
                    .unwrap_or(100)
                    .min(100),
                rate,
            }),
            "journald" => Ok(Log::Journald { name: record.name.clone(), rate }),
            other => Err(Error::Unsupported(format!(
                "the log driver {other:?} is not supported: use json-file, journald or none"
            ))),
        }
    }

    /// Says that something happened to a container.
    pub fn say(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let mut attributes: BTreeMap<String, String> = {
            let record = container.record();
            let mut all = record.config.labels.clone();
            all.insert("name".to_owned(), record.name.clone());
            all.insert("image".to_owned(), record.config.image.clone());
            all
        };
        attributes.extend(more.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        self.events.say(EventKind::Container, action, &container.id, attributes);
    }

    /// Follows a shim until its container has ended, and does what follows.
    fn watch(self: &Arc<Self>, container: &Arc<Container>, mut shim: Shim) {
        let health = health::begin(self, container);
        let this = Arc::clone(self);
        let container = Arc::clone(container);
        tokio::spawn(async move {
            let exit = loop {
                match shim.value::<Event>().await {
                    Ok(Event::Ended(exit)) => break Some(exit),
                    Ok(Event::Exited { id, code }) => this.exec_ended(&id, code),
                    Ok(Event::Status { .. }) => {}
                    Err(_) => break None,
                }
            };
            drop(shim);
            if let Some(health) = health {
                health.abort();
            }
            this.ended(&container, exit).await;
        });
    }

    /// What a shim that is gone has left, or what is to be thought of one that was killed.
    fn exit_of(&self, record: &Record) -> Exit {
        let read = std::fs::read(record.exit(&self.layout)).ok();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Exit {
            code: 137,
            oom: false,
            at: rustiot_shim::clock::now(),
            pid: 0,
        })
    }

    async fn ended(self: &Arc<Self>, container: &Arc<Container>, exit: Option<Exit>) {
        let exit = exit.unwrap_or_else(|| self.exit_of(&container.record()));
        let ran = {
            let mut record = container.record();
            record.last.code = exit.code;
            record.last.oom = exit.oom;
            record.last.finished = exit.at.parse().ok().or_else(|| Some(Timestamp::now()));
            let started = record.last.started.unwrap_or_else(Timestamp::now);
            Duration::try_from(Timestamp::now().duration_since(started)).unwrap_or_default()
        };
        // How it ended is durable already, by the shim: the record follows while the rest is cleaned up.
        let kept = self.keep(container, "cannot keep how it ended", |_| ());
        let (kept, ()) = tokio::join!(kept, self.clean(container));
        if let Err(error) = kept {
            eprintln!("rustiot-engine: {}: {error}", container.name());
        }
        let (restart, remove, pause) = {
            let record = container.record();
            let mut live = container.live();
            live.pid = 0;
            let policy = &record.host.restart_policy;
            let again = match policy.name.as_str() {
                "always" | "unless-stopped" => true,
                "on-failure" => {
                    exit.code != 0
                        && (policy.maximum_retry_count == 0
                            || i64::from(record.restarts) < policy.maximum_retry_count)
                }
                _ => false,
            };
            let restart = again && !live.stopping && !record.removing;
            if ran >= RAN_WELL || live.backoff.is_zero() {
                live.backoff = BACKOFF;
            }
            let pause = live.backoff;
            live.backoff = (pause * 2).min(BACKOFF_MAX);
            live.status = if restart { Status::Restarting } else { Status::Exited };
            live.health = None;
            (restart, record.host.auto_remove && !restart, pause)
        };
        self.say(container, "die", &[("exitCode", exit.code.to_string())]);
        if exit.oom {
            self.say(container, "oom", &[]);
        }
        container.ends.send_modify(|ends| {
            ends.count += 1;
            ends.code = exit.code;
        });
        if remove {
            let _ = self.remove(container, true, true).await;
        } else if restart {
            self.restart_later(container, pause);
        }
    }

    /// Starts it again after a pause, unless somebody decides otherwise meanwhile.
    fn restart_later(self: &Arc<Self>, container: &Arc<Container>, pause: Duration) {
        let this = Arc::clone(self);
        let container = Arc::clone(container);
        // Boxed: a start leads to an end, which leads here.
        let task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = container.no_restart.notified() => {}
            }
            let guard = container.change.lock().await;
            if container.live().status != Status::Restarting {
                return;
            }
            container.record().restarts += 1;
            if let Err(error) = this.start(&container).await {
                eprintln!("rustiot-engine: cannot restart {}: {error}", container.name());
                drop(guard);
                // It may come to work: a volume's disk, a device that is plugged in.
                let again = {
                    let mut live = container.live();
                    let pause = live.backoff.max(BACKOFF);
                    live.backoff = (pause * 2).min(BACKOFF_MAX);
                    live.status = Status::Restarting;
                    pause
                };
                this.restart_later(&container, again);
            }
        });
        tokio::spawn(task);
    }

    /// What is of a run goes: mounts, group, network, bundle.
    async fn clean(self: &Arc<Self>, container: &Container) {
        let id = &container.id;
        cgroup::remove(&self.layout.group(id)).await;
        self.leave_networks(container).await;
        let (this, layout, id) = (Arc::clone(self), self.layout.clone(), id.clone());
        // The kernel writes out what the root's file system has not yet: nobody else is to wait for that.
        let _ = tokio::task::spawn_blocking(move || {
            rootfs::unmount_root(&layout, &id);
            this.in_memory.leave(&id);
            let _ = std::fs::remove_dir_all(layout.runtime_root().join(&id));
            let _ = std::fs::remove_dir_all(layout.running(&id));
        })
        .await;
    }

    /// Sends a signal to its program.
    pub async fn signal(&self, container: &Container, number: i32) -> Result<(), Error> {
        let request = Request::Kill { exec: None, signal: number };
        let answer = ask(&self.layout.socket_of(&container.id), &request)
            .await
            .map_err(|_| Error::NotRunning(container.id.clone()))?;
        match answer.error {
            None => Ok(()),
            Some(_) => Err(Error::NotRunning(container.id.clone())),
        }
    }

    /// Ends it: the signal, then after the time SIGKILL to all that is in it. With `change` held.
    pub async fn stop(&self, container: &Container, signal: i32, timeout: i64) {
        let mut ends = container.ends.subscribe();
        let before = ends.borrow_and_update().count;
        container.live().stopping = true;
        if cgroup::is_frozen(&self.layout.group(&container.id)) {
            let _ = cgroup::freeze(&self.layout.group(&container.id), false);
        }
        if signal == nix::libc::SIGKILL || self.signal(container, signal).await.is_err() {
            cgroup::kill(&self.layout.group(&container.id));
        }
        let ended = async {
            while container.runs() && ends.borrow_and_update().count == before {
                if ends.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::pin!(ended);
        let wait = u64::try_from(timeout).map(Duration::from_secs).unwrap_or(Duration::MAX);
        if tokio::time::timeout(wait, &mut ended).await.is_err() {
            cgroup::kill(&self.layout.group(&container.id));
            let _ = self.signal(container, nix::libc::SIGKILL).await;
            ended.await;
        }
    }

    /// Removes it for good. Once the record says so, a power cut only delays it.
    pub async fn remove(
        self: &Arc<Self>,
        container: &Arc<Container>,
        force: bool,
        volumes: bool,
    ) -> Result<(), Error> {
        let _guard = container.change.lock().await;
        if !self.containers().contains_key(&container.id) {
            return Err(Error::NoSuchContainer(container.id.clone()));
        }
        if container.runs() {
            if !force {
                return Err(Error::Conflict(format!(
                    "cannot remove container \"/{}\": container is running: stop the container before removing or force remove",
                    container.name()
                )));
            }
            self.stop(container, nix::libc::SIGKILL, 10).await;
        }
        let what = "cannot keep that the container is being removed";
        self.keep(container, what, |record| record.removing = true).await?;
        container.live().status = Status::Removing;
        container.no_restart.notify_waiters();
        self.clean(container).await;
        self.finish_removal(container).await;
        if volumes {
            let anonymous: Vec<String> = {
                let record = container.record();
                record.mounts.iter().filter(|m| m.anonymous).map(|m| m.name.clone()).collect()
            };
            let this = Arc::clone(self);
            let _ = tokio::task::spawn_blocking(move || {
                for name in anonymous {
                    if !this.volume_in_use(&name) {
                        let _ = this.remove_volume_files(&name);
                    }
                }
            })
            .await;
        }
        self.say(container, "destroy", &[]);
        let code = container.record().last.code;
        container.ends.send_modify(|ends| {
            ends.code = code;
            ends.removed = true;
        });
        Ok(())
    }

    async fn finish_removal(&self, container: &Container) {
        let id = container.id.clone();
        let (directory, transient) = (self.layout.container(&id), self.layout.transient(&id));
        let _ = tokio::task::spawn_blocking(move || {
            remove_directory(&directory).and_then(|()| std::fs::remove_dir_all(transient))
        })
        .await;
        self.containers().remove(&id);
        self.execs().retain(|_, exec| exec.container != id);
        self.store.release(&id);
    }

    /// At the engine's start: torn creations and removals are finished, running containers are taken over, and those
    /// that should run are started if any may.
    ///
    /// # Errors
    /// The directories cannot be read.
    pub async fn adopt(self: &Arc<Self>, may_start: bool) -> std::io::Result<()> {
        let layout = &self.layout;
        for directory in [
            layout.containers(),
            layout.volumes(),
            layout.transients(),
            layout.run.join("c"),
            layout.layers(),
            layout.runtime_root(),
        ] {
            std::fs::create_dir_all(directory)?;
        }
        let mut doomed = Vec::new();
        for entry in std::fs::read_dir(layout.containers())?.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            match Record::load(layout, &id) {
                Ok(record) if record.removing => doomed.push(id),
                Ok(record) => {
                    if let Ok(image) = record.image.parse::<ImageId>() {
                        // A container whose image is damaged is kept: a pull heals it.
                        let _ = self.store.hold(&image, &id);
                    }
                    self.containers().insert(id, Arc::new(Container::new(record)));
                }
                // Its creation was cut off before it was told to anybody. A record that cannot be read is kept for a person.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => doomed.push(id),
                Err(error) => eprintln!(
                    "rustiot-engine: the record of container {id} cannot be read, it is left alone: {error}"
                ),
            }
        }
        self.store.holds_complete();
        for id in doomed {
            cgroup::remove(&layout.group(&id)).await;
            rootfs::unmount_root(layout, &id);
            let _ = std::fs::remove_dir_all(layout.running(&id));
            let directory = layout.container(&id);
            let _ = tokio::task::spawn_blocking(move || remove_directory(&directory)).await;
        }
        let all: Vec<Arc<Container>> = self.containers().values().cloned().collect();
        for entry in std::fs::read_dir(layout.transients())?.flatten() {
            if !self.containers().contains_key(&*entry.file_name().to_string_lossy()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let mut layers = BTreeSet::new();
        for container in &all {
            if !self.take_over(container).await {
                self.found_ended(container).await;
            } else if let Ok(image) = container.record().image.parse::<ImageId>()
                && let Ok(root) = self.store.rootfs(&image)
            {
                layers.extend(root.layers.iter().map(|l| l.diff_id.hex()));
            }
        }
        rootfs::unmount_layers(layout, &layers);
        self.begin_networks().await;
        self.collect_later(None);
        for container in all.into_iter().filter(|_| may_start) {
            let due = {
                let record = container.record();
                match record.host.restart_policy.name.as_str() {
                    "always" => true,
                    "unless-stopped" => !record.stopped && record.last.started.is_some(),
                    "on-failure" => record.wanted && record.last.code != 0,
                    _ => false,
                }
            };
            let (ran, goes) = {
                let record = container.record();
                (record.last.started.is_some(), record.host.auto_remove)
            };
            if container.runs() || !ran {
                continue;
            }
            if due {
                container.live().status = Status::Restarting;
                self.restart_later(&container, Duration::ZERO);
            } else if goes {
                // It ended while no engine was there to remove it.
                let _ = self.remove(&container, true, true).await;
            }
        }
        Ok(())
    }

    /// Ends all that run, each as its record says. What should run is not forgotten by it.
    pub async fn end_all(&self) {
        let all: Vec<Arc<Container>> = self.containers().values().filter(|c| c.runs()).cloned().collect();
        let ends = all.iter().map(|container| async move {
            let _guard = container.change.lock().await;
            let (number, timeout) = {
                let record = container.record();
                (stop_signal(&record), record.config.stop_timeout.unwrap_or(10))
            };
            self.stop(container, number, timeout).await;
        });
        futures_util::future::join_all(ends).await;
    }

    /// Takes a running container over from an engine that is gone.
    async fn take_over(self: &Arc<Self>, container: &Arc<Container>) -> bool {
        let Ok(mut shim) = Shim::connect(&self.layout.socket_of(&container.id)).await else { return false };
        let hello = async {
            shim.send(&Request::Watch).await?;
            shim.value::<Event>().await
        };
        let Ok(Ok(Event::Status { pid: Some(pid), started_at, .. })) =
            tokio::time::timeout(Duration::from_secs(5), hello).await
        else {
            // It was begun and never started, or it is just ending: its own end is near.
            cgroup::kill(&self.layout.group(&container.id));
            return false;
        };
        {
            let mut record = container.record();
            if record.last.pid != pid {
                // The engine ended between the start and its record.
                record.wanted = true;
                record.last = Run { pid, started: started_at.and_then(|t| t.parse().ok()), ..Run::default() };
                let _ = record.save(&self.layout);
            }
            let mut live = container.live();
            live.pid = pid;
            live.status = if cgroup::is_frozen(&self.layout.group(&container.id)) {
                Status::Paused
            } else {
                Status::Running
            };
        }
        let mounts = container.record().mounts.clone();
        for mount in mounts.iter().filter(|m| m.kind == MountKind::Volume) {
            let options = self.load_volume(&mount.name).map(|v| v.options).unwrap_or_default();
            if let Ok(Backing::Memory { flags, data }) = backing(&options) {
                let _ = self.in_memory.enter(Path::new(&mount.source), flags, &data, &container.id);
            }
        }
        self.watch(container, shim);
        true
    }

    /// It is not running: if its record thinks so, the end is written down now.
    async fn found_ended(self: &Arc<Self>, container: &Arc<Container>) {
        self.clean(container).await;
        let mut record = container.record();
        if record.last.started.is_some() && record.last.finished.is_none() {
            let exit = self.exit_of(&record);
            record.last.code = exit.code;
            record.last.oom = exit.oom;
            record.last.finished = exit.at.parse().ok();
            let _ = record.save(&self.layout);
            let mut live = container.live();
            live.status = Status::Exited;
        }
    }
}

/// The record goes last: as long as it is there, the removal is not forgotten.
fn remove_directory(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_name() == "container.json" {
            continue;
        }
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(entry.path()),
            _ => std::fs::remove_file(entry.path()),
        };
    }
    std::fs::remove_dir_all(directory)
}

/// `10m`, `4096`.
fn size_of(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.char_indices().last()? {
        (at, 'k') => (lower.get(..at)?, 10),
        (at, 'm') => (lower.get(..at)?, 20),
        (at, 'g') => (lower.get(..at)?, 30),
        _ => (lower, 0),
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

/// The name that the container has for itself.
pub fn hostname(record: &Record) -> String {
    if !record.config.hostname.is_empty() {
        return record.config.hostname.clone();
    }
    if record.host.network_mode == "host" || record.host.uts_mode == "host" {
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        return own.trim().to_owned();
    }
    record.id.get(..12).unwrap_or(&record.id).to_owned()
}

/// What it runs: the program and its arguments.
///
/// # Errors
/// Nobody says.
pub fn command(record: &Record) -> Result<(String, Vec<String>), Error> {
    let parts = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut all = parts(&record.config.entrypoint);
    all.extend(parts(&record.config.cmd));
    let mut all = all.into_iter();
    match all.next() {
        Some(first) => Ok((first, all.collect())),
        None => Err(Error::Invalid("no command specified".to_owned())),
    }
}

/// What ends it politely.
pub fn stop_signal(record: &Record) -> i32 {
    signal(&record.config.stop_signal).unwrap_or(nix::libc::SIGTERM)
}

/// The first state of a health check.
pub fn starting() -> Health {
    Health { status: HealthStatus::Starting, ..Health::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (name, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("15", 15),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("SIGRTMIN", 34),
        ] {
            assert_eq!(signal(name).unwrap(), number, "{name}");
        }
        for bad in ["", "SIG", "0", "65", "NOPE", "RTMIN+99"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_of_logs() {
        for (text, size) in
            [("4096", Some(4096)), ("10m", Some(10 << 20)), ("1GB", Some(1 << 30)), ("x", None), ("", None)]
        {
            assert_eq!(size_of(text), size, "{text}");
        }
    }
}
