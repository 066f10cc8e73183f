//! An engine in memory: containers are tasks that play small programs, images are names, volumes are names.
//!
//! Only for the tests, which drive it with the stock clients. It keeps the trait's promises (waits miss nothing, attach
//! before start, changes to the end), so that what a client does wrong against it is the server's fault.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use rustiot_docker_api::engine::Which;
use rustiot_docker_api::types::*;
use rustiot_docker_api::{Bytes, Engine, Error, Timestamp, async_trait, lookup};
use tokio::io::{AsyncReadExt, AsyncWrite, DuplexStream};
use tokio::sync::{broadcast, watch};

pub struct Fake {
    me: std::sync::Weak<Fake>,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
    /// Lines that the tests look at: what the engine was asked for.
    pub seen: Mutex<Vec<String>>,
}

struct State {
    containers: Vec<Container>,
    execs: Vec<(ExecInspect, Program)>,
    images: Vec<ImageSummary>,
    networks: Vec<Network>,
    volumes: Vec<Volume>,
    past: Vec<Event>,
    next: u64,
}

struct Container {
    id: String,
    name: String,
    created: Timestamp,
    request: CreateContainer,
    state: ContainerState,
    networks: BTreeMap<String, EndpointSettings>,
    program: Program,
    archives: BTreeMap<String, Vec<u8>>,
    /// Ends so far, and removed.
    ends: watch::Sender<(u32, i32, bool)>,
}

/// A process that is played.
#[derive(Clone)]
struct Program {
    output: broadcast::Sender<Option<Output>>,
    log: Arc<Mutex<Vec<LogLine>>>,
    input: Arc<tokio::sync::Mutex<DuplexStream>>,
    input_end: Arc<Mutex<DuplexStream>>,
    size: watch::Sender<(u16, u16)>,
    signal: watch::Sender<Option<i32>>,
}

/// Standard input that stays open when a client lets go of it.
struct Input(Arc<Mutex<DuplexStream>>);

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_shutdown(cx)
    }
}

impl Program {
    fn new() -> Self {
        let (a, b) = tokio::io::duplex(4096);
        Self {
            output: broadcast::channel(4096).0,
            log: Arc::default(),
            input: Arc::new(tokio::sync::Mutex::new(b)),
            input_end: Arc::new(Mutex::new(a)),
            size: watch::channel((0, 0)).0,
            signal: watch::channel(None).0,
        }
    }

    fn say(&self, channel: Channel, text: &[u8]) {
        let bytes = Bytes::copy_from_slice(text);
        self.log.lock().unwrap().push(LogLine { time: Timestamp::now(), channel, bytes: bytes.clone() });
        let _ = self.output.send(Some(Output { channel, bytes }));
    }

    fn attach(&self, tty: bool, logs: bool, stream: bool, input: bool) -> Attached {
        let log = self.log.lock().unwrap();
        let old: Vec<_> = if logs { log.clone() } else { Vec::new() };
        let receiver = self.output.subscribe();
        drop(log);
        let old = stream::iter(old.into_iter().map(|l| Ok(Output { channel: l.channel, bytes: l.bytes })));
        let new = stream::unfold(receiver, async |mut r| match r.recv().await {
            Ok(Some(output)) => Some((Ok(output), r)),
            _ => None,
        });
        Attached {
            tty,
            output: if stream { old.chain(new).boxed() } else { old.boxed() },
            input: input.then(|| Box::pin(Input(Arc::clone(&self.input_end))) as ByteWriter),
        }
    }

    /// Plays to its end: the exit code.
    async fn run(&self, words: Vec<String>, tty: bool) -> i32 {
        let nl = if tty { "\r\n" } else { "\n" };
        let program = words.first().cloned().unwrap_or_default();
        let rest = words.get(1..).unwrap_or_default().join(" ");
        let mut signal = self.signal.subscribe();
        let body = async {
            match program.as_str() {
                "echo" => self.say(Channel::Stdout, format!("{rest}{nl}").as_bytes()),
                "both" => {
                    self.say(Channel::Stdout, format!("out{nl}").as_bytes());
                    self.say(Channel::Stderr, format!("err{nl}").as_bytes());
                }
                "exit" => return rest.parse().unwrap(),
                "cat" => {
                    let mut input = self.input.lock().await;
                    let mut buffer = vec![0; 1000];
                    while let Ok(n @ 1..) = input.read(&mut buffer).await {
                        self.say(Channel::Stdout, &buffer[..n]);
                    }
                }
                "ticks" => {
                    for i in 0.. {
                        self.say(Channel::Stdout, format!("tick {i}{nl}").as_bytes());
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                // A shell on a terminal: echoes, tells its size, ends at "exit N".
                "shell" => {
                    let mut size = self.size.subscribe();
                    let _ = tokio::time::timeout(Duration::from_secs(5), size.wait_for(|s| s.0 > 0)).await;
                    let (rows, columns) = *size.borrow();
                    self.say(Channel::Stdout, format!("size {rows}x{columns}{nl}$ ").as_bytes());
                    let mut input = self.input.lock().await;
                    let mut line = Vec::new();
                    while let Ok(byte) = input.read_u8().await {
                        if byte != b'\r' && byte != b'\n' {
                            line.push(byte);
                            continue;
                        }
                        let text = String::from_utf8(std::mem::take(&mut line)).unwrap();
                        if let Some(code) = text.strip_prefix("exit ") {
                            return code.parse().unwrap();
                        }
                        self.say(Channel::Stdout, format!("you said {text}{nl}$ ").as_bytes());
                    }
                }
                _ => std::future::pending().await,
            }
            0
        };
        let code = tokio::select! {
            code = body => code,
            Ok(number) = async { signal.wait_for(Option::is_some).await.map(|s| s.unwrap_or(9)) } => 128 + number,
        };
        let _ = self.output.send(None);
        code
    }
}

fn number_of(signal: Option<&str>) -> i32 {
    match signal.unwrap_or("KILL").trim_start_matches("SIG") {
        "KILL" => 9,
        "TERM" => 15,
        "HUP" => 1,
        other => other.parse().unwrap_or(15),
    }
}

impl Fake {
    pub fn new() -> Arc<Self> {
        let network = |name: &str, driver: &str| Network {
            name: name.to_owned(),
            id: format!("{:0>64}", name.len() * 7919),
            created: Some(Timestamp::now()),
            scope: "local".to_owned(),
            driver: driver.to_owned(),
            enable_ipv4: true,
            ..Network::default()
        };
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            state: Mutex::new(State {
                containers: Vec::new(),
                execs: Vec::new(),
                images: Vec::new(),
                networks: vec![network("bridge", "bridge"), network("host", "host"), network("none", "null")],
                volumes: Vec::new(),
                past: Vec::new(),
                next: 1,
            }),
            events: broadcast::channel(1000).0,
            seen: Mutex::default(),
        })
    }

    fn this(&self) -> Arc<Self> {
        self.me.upgrade().unwrap()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn note(&self, line: String) {
        self.seen.lock().unwrap().push(line);
    }

    fn event(&self, state: &mut State, kind: EventKind, action: &str, id: &str, attributes: &[(&str, &str)]) {
        let mut all: BTreeMap<String, String> =
            attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        if let Some(c) = state.containers.iter().find(|c| c.id == id) {
            all.insert("name".to_owned(), c.name.clone());
            all.insert("image".to_owned(), c.request.config.image.clone());
            all.extend(c.request.config.labels.clone());
        }
        let event = Event {
            kind,
            action: action.to_owned(),
            id: id.to_owned(),
            attributes: all,
            time: Timestamp::now(),
        };
        state.past.push(event.clone());
        let _ = self.events.send(event);
    }

    fn add_image(state: &mut State, name: &str) {
        if state.images.iter().any(|i| i.repo_tags.iter().any(|t| t == name)) {
            return;
        }
        let digest =
            format!("{:0>64x}", name.bytes().fold(7_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into())));
        state.images.push(ImageSummary {
            id: format!("sha256:{digest}"),
            repo_tags: vec![name.to_owned()],
            repo_digests: vec![format!("{}@sha256:{digest}", name.split(':').next().unwrap())],
            created: "2024-01-01T00:00:00Z".parse().unwrap(),
            size: 4_500_000,
            shared_size: -1,
            containers: -1,
            ..ImageSummary::default()
        });
    }

    fn image(state: &State, name: &str) -> Result<ImageSummary, Error> {
        let name = name.trim_start_matches("docker.io/").trim_start_matches("library/");
        let full = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
        let short = name.trim_start_matches("sha256:");
        state
            .images
            .iter()
            .find(|i| {
                i.repo_tags.contains(&full) || (short.len() > 3 && i.id["sha256:".len()..].starts_with(short))
            })
            .cloned()
            .ok_or_else(|| Error::NoSuchImage(full))
    }
}

fn container<'a>(state: &'a mut State, reference: &str) -> Result<&'a mut Container, Error> {
    let id = lookup::find(state.containers.iter().map(|c| (c.id.as_str(), c.name.as_str())), reference)?
        .ok_or_else(|| Error::NoSuchContainer(reference.to_owned()))?
        .to_owned();
    Ok(state.containers.iter_mut().find(|c| c.id == id).unwrap())
}

fn network<'a>(state: &'a mut State, reference: &str) -> Result<&'a mut Network, Error> {
    let reference = if reference == "default" { "bridge" } else { reference };
    let id = lookup::find(state.networks.iter().map(|n| (n.id.as_str(), n.name.as_str())), reference)?
        .ok_or_else(|| Error::NoSuchNetwork(reference.to_owned()))?
        .to_owned();
    Ok(state.networks.iter_mut().find(|n| n.id == id).unwrap())
}

fn words(c: &Container) -> Vec<String> {
    let mut words = c.request.config.entrypoint.clone().unwrap_or_default();
    words.extend(c.request.config.cmd.clone().unwrap_or_default());
    words
}

fn summary(c: &Container, sizes: bool) -> ContainerSummary {
    ContainerSummary {
        id: c.id.clone(),
        name: c.name.clone(),
        image: c.request.config.image.clone(),
        image_id: "sha256:00".to_owned(),
        command: words(c),
        created: c.created,
        ports: c
            .request
            .host_config
            .port_bindings
            .iter()
            .flat_map(|(port, bindings)| {
                let (number, protocol) = port.split_once('/').unwrap();
                bindings.iter().flatten().map(move |b| Port {
                    ip: Some("0.0.0.0".parse().unwrap()),
                    private_port: number.parse().unwrap(),
                    public_port: b.host_port.parse().ok(),
                    protocol: protocol.to_owned(),
                })
            })
            .collect(),
        labels: c.request.config.labels.clone(),
        state: c.state.clone(),
        network_mode: c.request.host_config.network_mode.clone(),
        networks: c.networks.clone(),
        mounts: Vec::new(),
        size_rw: sizes.then_some(12),
        size_root_fs: sizes.then_some(4_500_012),
    }
}

#[async_trait]
impl Engine for Fake {
    async fn version(&self) -> Result<Version, Error> {
        Ok(Version {
            version: "0.1.0".to_owned(),
            git_commit: "abc".to_owned(),
            os: "linux".to_owned(),
            arch: "amd64".to_owned(),
            kernel_version: "6.18".to_owned(),
            build_time: String::new(),
        })
    }

    async fn info(&self) -> Result<Info, Error> {
        let state = self.lock();
        Ok(Info {
            id: "fake".to_owned(),
            containers: state.containers.len() as u32,
            images: state.images.len() as u32,
            driver: "memory".to_owned(),
            cgroup_version: "2".to_owned(),
            cgroup_driver: "systemd".to_owned(),
            name: "device".to_owned(),
            server_version: "0.1.0".to_owned(),
            os_type: "linux".to_owned(),
            operating_system: "RustIoT OS".to_owned(),
            ncpu: 2,
            mem_total: 1 << 30,
            warnings: vec!["WARNING: this one is a fake".to_owned()],
            ..Info::default()
        })
    }

    async fn disk_usage(&self) -> Result<DiskUsage, Error> {
        let state = self.lock();
        Ok(DiskUsage {
            layers_size: 4_500_000,
            images: state
                .images
                .iter()
                .map(|i| ImageSummary { containers: 1, shared_size: 0, ..i.clone() })
                .collect(),
            containers: state.containers.iter().map(|c| summary(c, true)).collect(),
            volumes: state
                .volumes
                .iter()
                .map(|v| Volume { usage_data: Some(VolumeUsage { size: 1000, ref_count: 0 }), ..v.clone() })
                .collect(),
        })
    }

    async fn events(&self, since: Option<Timestamp>) -> Result<Items<Event>, Error> {
        let state = self.lock();
        let receiver = self.events.subscribe();
        let past: Vec<_> = match since {
            Some(since) => state.past.iter().filter(|e| e.time >= since).cloned().map(Ok).collect(),
            None => Vec::new(),
        };
        let live = stream::unfold(receiver, async |mut r| {
            loop {
                match r.recv().await {
                    Ok(event) => return Some((Ok(event), r)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Ok(stream::iter(past).chain(live).boxed())
    }

    async fn auth(&self, auth: RegistryAuth) -> Result<(String, Option<String>), Error> {
        if auth.password == "right" {
            Ok(("Login Succeeded".to_owned(), None))
        } else {
            Err(Error::Unauthorized(format!(
                "{}: unauthorized: incorrect username or password",
                auth.server_address
            )))
        }
    }

    async fn list_containers(&self, sizes: bool) -> Result<Vec<ContainerSummary>, Error> {
        Ok(self.lock().containers.iter().map(|c| summary(c, sizes)).collect())
    }

    async fn create_container(&self, request: CreateContainer) -> Result<Created, Error> {
        let mut state = self.lock();
        Self::image(&state, &request.config.image)?;
        let number = state.next;
        state.next += 1;
        let id = format!("{:0<64x}", 0xc0_0000 + number);
        let name = request.name.clone().unwrap_or_else(|| format!("brave_pike{number}"));
        if let Some(other) = state.containers.iter().find(|c| c.name == name) {
            return Err(Error::NameInUse { name, id: other.id.clone() });
        }
        let mut networks = request.networking_config.endpoints_config.clone();
        if networks.is_empty() {
            let mode = request.host_config.network_mode.clone();
            let mode = if mode.is_empty() || mode == "default" { "bridge".to_owned() } else { mode };
            networks.insert(mode, EndpointSettings::default());
        }
        for (name, end) in &mut networks {
            let network = network(&mut state, name)?;
            end.network_id = network.id.clone();
            end.ip_address = "172.18.0.2".to_owned();
        }
        state.containers.push(Container {
            id: id.clone(),
            name,
            created: Timestamp::now(),
            request,
            state: ContainerState::default(),
            networks,
            program: Program::new(),
            archives: BTreeMap::new(),
            ends: watch::channel((0, 0, false)).0,
        });
        self.event(&mut state, EventKind::Container, "create", &id, &[]);
        Ok(Created { id, warnings: Vec::new() })
    }

    async fn inspect_container(&self, id: &str, _sizes: bool) -> Result<ContainerInspect, Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        let words = words(c);
        Ok(ContainerInspect {
            id: c.id.clone(),
            created: Some(c.created),
            path: words.first().cloned().unwrap_or_default(),
            args: words.get(1..).unwrap_or_default().to_vec(),
            state: c.state.clone(),
            image: "sha256:00".to_owned(),
            name: format!("/{}", c.name),
            host_config: c.request.host_config.clone(),
            config: c.request.config.clone(),
            network_settings: NetworkSettings { networks: c.networks.clone(), ..NetworkSettings::default() },
            ..ContainerInspect::default()
        })
    }

    async fn start_container(&self, id: &str) -> Result<(), Error> {
        let (id, program, words, tty, auto_remove, ends) = {
            let mut state = self.lock();
            let c = container(&mut state, id)?;
            if c.state.status == Status::Running {
                return Err(Error::Unchanged);
            }
            let words = words(c);
            if words.first().is_some_and(|w| w == "missing") {
                c.state.exit_code = 127;
                if c.request.host_config.auto_remove {
                    c.ends.send_modify(|e| *e = (e.0 + 1, 127, true));
                    let id = c.id.clone();
                    state.containers.retain(|c| c.id != id);
                }
                return Err(Error::CannotRun(
                    "exec: \"missing\": executable file not found in $PATH".to_owned(),
                ));
            }
            if c.state.status == Status::Exited {
                c.program = Program::new();
            }
            c.state = ContainerState {
                status: Status::Running,
                pid: 4242,
                started_at: Some(Timestamp::now()),
                ..ContainerState::default()
            };
            let all = (
                c.id.clone(),
                c.program.clone(),
                words,
                c.request.config.tty,
                c.request.host_config.auto_remove,
                c.ends.clone(),
            );
            let id = c.id.clone();
            self.event(&mut state, EventKind::Container, "start", &id, &[]);
            all
        };
        let fake = self.this();
        tokio::spawn(async move {
            let code = program.run(words, tty).await;
            let mut state = fake.lock();
            if let Ok(c) = container(&mut state, &id) {
                c.state.status = Status::Exited;
                c.state.exit_code = code;
                c.state.pid = 0;
                c.state.finished_at = Some(Timestamp::now());
            }
            fake.event(&mut state, EventKind::Container, "die", &id, &[("exitCode", &code.to_string())]);
            if auto_remove {
                fake.event(&mut state, EventKind::Container, "destroy", &id, &[]);
                state.containers.retain(|c| c.id != id);
            }
            ends.send_modify(|e| *e = (e.0 + 1, code, auto_remove));
        });
        Ok(())
    }

    async fn stop_container(
        &self,
        id: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<(), Error> {
        self.note(format!("stop {signal:?} {timeout:?}"));
        let mut ends = {
            let mut state = self.lock();
            let c = container(&mut state, id)?;
            if c.state.status != Status::Running && c.state.status != Status::Paused {
                return Err(Error::Unchanged);
            }
            let ends = c.ends.subscribe();
            c.program.signal.send_replace(Some(number_of(Some(signal.unwrap_or("TERM")))));
            let id = c.id.clone();
            self.event(&mut state, EventKind::Container, "stop", &id, &[]);
            ends
        };
        let _ = ends.changed().await;
        Ok(())
    }

    async fn restart_container(
        &self,
        id: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<(), Error> {
        match self.stop_container(id, signal, timeout).await {
            Ok(()) | Err(Error::Unchanged) => self.start_container(id).await,
            Err(error) => Err(error),
        }
    }

    async fn kill_container(&self, id: &str, signal: Option<&str>) -> Result<(), Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        if c.state.status != Status::Running {
            return Err(Error::NotRunning(c.id.clone()));
        }
        c.program.signal.send_replace(Some(number_of(signal)));
        Ok(())
    }

    async fn pause_container(&self, id: &str) -> Result<(), Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        match c.state.status {
            Status::Running => c.state.status = Status::Paused,
            Status::Paused => return Err(Error::Conflict(format!("Container {id} is already paused"))),
            _ => return Err(Error::NotRunning(c.id.clone())),
        }
        Ok(())
    }

    async fn unpause_container(&self, id: &str) -> Result<(), Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        if c.state.status != Status::Paused {
            return Err(Error::Conflict(format!("Container {id} is not paused")));
        }
        c.state.status = Status::Running;
        Ok(())
    }

    async fn rename_container(&self, id: &str, name: &str) -> Result<(), Error> {
        let mut state = self.lock();
        if let Some(other) = state.containers.iter().find(|c| c.name == name) {
            return Err(Error::NameInUse { name: name.to_owned(), id: other.id.clone() });
        }
        container(&mut state, id)?.name = name.to_owned();
        Ok(())
    }

    async fn remove_container(&self, id: &str, force: bool, _volumes: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        if c.state.status == Status::Running {
            if !force {
                return Err(Error::Conflict(format!(
                    "cannot remove container \"/{}\": container is running: stop the container before removing or force remove",
                    c.name
                )));
            }
            c.program.signal.send_replace(Some(9));
        }
        c.ends.send_modify(|e| e.2 = true);
        let id = c.id.clone();
        self.event(&mut state, EventKind::Container, "destroy", &id, &[]);
        state.containers.retain(|c| c.id != id);
        Ok(())
    }

    async fn wait_container(&self, id: &str, condition: WaitCondition) -> Result<Waiting, Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        let mut ends = c.ends.subscribe();
        let begun = ends.borrow().0;
        let code = c.state.exit_code;
        let running = c.state.status == Status::Running;
        Ok(Box::pin(async move {
            if condition == WaitCondition::NotRunning && !running {
                return Ok(Exited { code, error: None });
            }
            let end = match condition {
                WaitCondition::Removed => ends.wait_for(|e| e.2).await.map(|e| e.1),
                _ => ends.wait_for(|e| e.0 > begun || e.2).await.map(|e| e.1),
            };
            Ok(Exited { code: end.unwrap_or(code), error: None })
        }))
    }

    async fn top(&self, id: &str, arguments: &str) -> Result<Top, Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        if c.state.status != Status::Running {
            return Err(Error::NotRunning(c.id.clone()));
        }
        Ok(Top {
            titles: vec!["PID".to_owned(), "CMD".to_owned()],
            processes: vec![vec!["4242".to_owned(), format!("{} ({arguments})", words(c).join(" "))]],
        })
    }

    async fn sample(&self, id: &str) -> Result<(String, String, Option<Sample>), Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        let now = Timestamp::now();
        let nanos = now.as_nanosecond() as u64;
        let sample = Sample {
            read: now,
            // Half of one of two CPUs.
            cpu_total: nanos / 2,
            system_total: nanos * 2,
            online_cpus: 2,
            memory_usage: 20 << 20,
            memory_limit: 1 << 30,
            memory_stats: BTreeMap::from([("inactive_file".to_owned(), 10 << 20)]),
            pids: 3,
            interfaces: BTreeMap::from([(
                "eth0".to_owned(),
                InterfaceSample { rx_bytes: 1000, tx_bytes: 2000, ..InterfaceSample::default() },
            )]),
            ..Sample::default()
        };
        Ok((c.id.clone(), c.name.clone(), (c.state.status == Status::Running).then_some(sample)))
    }

    async fn logs(&self, id: &str, options: LogsOptions) -> Result<Logs, Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        let log = c.program.log.lock().unwrap();
        let running = c.state.status == Status::Running;
        let receiver = c.program.output.subscribe();
        let wanted = move |channel: Channel| match channel {
            Channel::Stdout => options.stdout,
            Channel::Stderr => options.stderr,
        };
        let old: Vec<LogLine> = log
            .iter()
            .filter(|l| wanted(l.channel) && options.since.is_none_or(|s| l.time >= s))
            .cloned()
            .collect();
        drop(log);
        let skip = options.tail.map_or(0, |tail| old.len().saturating_sub(tail as usize));
        let old = stream::iter(old.into_iter().skip(skip).map(Ok));
        let new = stream::unfold(receiver, async |mut r| match r.recv().await {
            Ok(Some(o)) => {
                Some((Ok(LogLine { time: Timestamp::now(), channel: o.channel, bytes: o.bytes }), r))
            }
            _ => None,
        })
        .filter(move |l: &Result<LogLine, Error>| {
            std::future::ready(l.as_ref().is_ok_and(|l| wanted(l.channel)))
        });
        Ok(Logs {
            tty: c.request.config.tty,
            lines: if options.follow && running { old.chain(new).boxed() } else { old.boxed() },
        })
    }

    async fn attach(&self, id: &str, options: AttachOptions) -> Result<Attached, Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        let input = options.stdin && c.request.config.open_stdin;
        Ok(c.program.attach(c.request.config.tty, options.logs, options.stream, input))
    }

    async fn resize_container(&self, id: &str, rows: u16, columns: u16) -> Result<(), Error> {
        let mut state = self.lock();
        container(&mut state, id)?.program.size.send_replace((rows, columns));
        Ok(())
    }

    async fn stat_path(&self, id: &str, path: &str) -> Result<PathStat, Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        let modified = "2024-05-06T07:08:09Z".parse().unwrap();
        match path.trim_end_matches('/') {
            "" | "/data" => Ok(PathStat { name, mode: 0o040_755, modified, ..PathStat::default() }),
            file if c.archives.contains_key(file) => {
                Ok(PathStat { name, mode: 0o100_644, size: 5, modified, ..PathStat::default() })
            }
            _ => Err(Error::NoSuchPath { path: path.to_owned(), container: id.to_owned() }),
        }
    }

    async fn get_archive(&self, id: &str, path: &str) -> Result<(PathStat, ByteReader), Error> {
        let stat = self.stat_path(id, path).await?;
        let mut state = self.lock();
        let tar = container(&mut state, id)?.archives.get(path).cloned().unwrap_or_default();
        Ok((stat, Box::pin(std::io::Cursor::new(tar))))
    }

    async fn put_archive(
        &self,
        id: &str,
        path: &str,
        options: PutArchive,
        mut tar: ByteReader,
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes).await.map_err(|e| Error::failed("reading the archive", e))?;
        let name: Vec<u8> = bytes.iter().take(100).take_while(|b| **b != 0).copied().collect();
        let name = String::from_utf8(name).unwrap();
        self.note(format!("put {path} {name} {options:?}"));
        let mut state = self.lock();
        container(&mut state, id)?.archives.insert(format!("{}/{name}", path.trim_end_matches('/')), bytes);
        Ok(())
    }

    async fn prune_containers(&self, which: Which<ContainerSummary>) -> Result<Pruned, Error> {
        let mut state = self.lock();
        let (gone, kept) = std::mem::take(&mut state.containers)
            .into_iter()
            .partition(|c| c.state.status != Status::Running && which(&summary(c, false)));
        state.containers = kept;
        let gone: Vec<Container> = gone;
        Ok(Pruned {
            space_reclaimed: 12 * gone.len() as u64,
            deleted: gone.into_iter().map(|c| c.id).collect(),
        })
    }

    async fn create_exec(&self, id: &str, config: ExecConfig) -> Result<String, Error> {
        let mut state = self.lock();
        let c = container(&mut state, id)?;
        if c.state.status != Status::Running {
            return Err(Error::NotRunning(c.id.clone()));
        }
        let container_id = c.id.clone();
        let number = state.next;
        state.next += 1;
        let exec = format!("{:0<64x}", 0xe0_0000 + number);
        state.execs.push((
            ExecInspect { id: exec.clone(), container_id, config, ..ExecInspect::default() },
            Program::new(),
        ));
        Ok(exec)
    }

    async fn start_exec(&self, id: &str, _tty: bool, size: Option<(u16, u16)>) -> Result<Attached, Error> {
        let (program, words, tty, input) = {
            let mut state = self.lock();
            let (exec, program) = state
                .execs
                .iter_mut()
                .find(|(e, _)| e.id == id)
                .ok_or_else(|| Error::NoSuchExec(id.to_owned()))?;
            exec.running = true;
            (program.clone(), exec.config.cmd.clone(), exec.config.tty, exec.config.attach_stdin)
        };
        if let Some(size) = size {
            program.size.send_replace(size);
        }
        let attached = program.attach(tty, false, true, input);
        let (fake, id) = (self.this(), id.to_owned());
        tokio::spawn(async move {
            // As a process that takes its time to end after it closed its pipes would be seen.
            let code = program.run(words, tty).await;
            let mut state = fake.lock();
            if let Some((exec, _)) = state.execs.iter_mut().find(|(e, _)| e.id == id) {
                exec.running = false;
                exec.exit_code = Some(code);
            }
        });
        Ok(attached)
    }

    async fn start_exec_detached(&self, id: &str) -> Result<(), Error> {
        self.start_exec(id, false, None).await.map(drop)
    }

    async fn inspect_exec(&self, id: &str) -> Result<ExecInspect, Error> {
        // The runtime is single-threaded here: the end of the output is sent before the code is set.
        tokio::task::yield_now().await;
        self.lock()
            .execs
            .iter()
            .find(|(e, _)| e.id == id)
            .map(|(e, _)| e.clone())
            .ok_or_else(|| Error::NoSuchExec(id.to_owned()))
    }

    async fn resize_exec(&self, id: &str, rows: u16, columns: u16) -> Result<(), Error> {
        if let Some((_, program)) = self.lock().execs.iter().find(|(e, _)| e.id == id) {
            program.size.send_replace((rows, columns));
        }
        Ok(())
    }

    async fn list_images(&self, _shared: bool) -> Result<Vec<ImageSummary>, Error> {
        Ok(self.lock().images.clone())
    }

    async fn inspect_image(&self, name: &str) -> Result<ImageInspect, Error> {
        let image = Self::image(&self.lock(), name)?;
        Ok(ImageInspect {
            id: image.id,
            repo_tags: image.repo_tags,
            repo_digests: image.repo_digests,
            created: Some(image.created),
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            size: image.size,
            ..ImageInspect::default()
        })
    }

    async fn image_history(&self, name: &str) -> Result<Vec<HistoryEntry>, Error> {
        let image = Self::image(&self.lock(), name)?;
        Ok(vec![HistoryEntry {
            id: image.id,
            created: image.created,
            created_by: "ADD rootfs.tar".to_owned(),
            size: image.size,
            ..HistoryEntry::default()
        }])
    }

    async fn pull(&self, request: PullRequest) -> Result<Items<Progress>, Error> {
        self.note(format!("pull {request:?}"));
        let image = request.image.trim_start_matches("docker.io/").trim_start_matches("library/").to_owned();
        let tag = request.tag.unwrap_or_else(|| "latest".to_owned());
        let status =
            |id: Option<&str>, text: String| Ok(Progress::Status { id: id.map(str::to_owned), status: text });
        if image == "secret" {
            return Ok(stream::iter([Err(Error::NotFound(
                "pull access denied for secret, repository does not exist or may require 'docker login'"
                    .to_owned(),
            ))])
            .boxed());
        }
        let mut items = vec![
            status(Some(&tag), format!("Pulling from library/{image}")),
            status(Some("aabbccddeeff"), "Pulling fs layer".to_owned()),
            Ok(Progress::Transfer {
                id: "aabbccddeeff".to_owned(),
                status: "Downloading".to_owned(),
                current: 100,
                total: 1000,
            }),
        ];
        if image == "broken" {
            items.push(Err(Error::Failed {
                message: "layer aabbccddeeff: digest mismatch".to_owned(),
                source: None,
            }));
        } else {
            items.push(status(Some("aabbccddeeff"), "Pull complete".to_owned()));
            items.push(status(None, format!("Status: Downloaded newer image for {image}:{tag}")));
            Self::add_image(&mut self.lock(), &format!("{image}:{tag}"));
        }
        Ok(stream::iter(items).boxed())
    }

    async fn tag_image(&self, name: &str, repository: &str, tag: &str) -> Result<(), Error> {
        let mut state = self.lock();
        let id = Self::image(&state, name)?.id;
        let repository = repository.trim_start_matches("docker.io/").trim_start_matches("library/");
        state.images.iter_mut().find(|i| i.id == id).unwrap().repo_tags.push(format!("{repository}:{tag}"));
        Ok(())
    }

    async fn remove_image(
        &self,
        name: &str,
        _force: bool,
        _no_prune: bool,
    ) -> Result<Vec<ImageRemoved>, Error> {
        let mut state = self.lock();
        let image = Self::image(&state, name)?;
        if state
            .containers
            .iter()
            .any(|c| image.repo_tags.contains(&format!("{}:latest", c.request.config.image)))
        {
            return Err(Error::Conflict(format!(
                "conflict: unable to remove repository reference \"{name}\""
            )));
        }
        state.images.retain(|i| i.id != image.id);
        let mut removed: Vec<_> = image.repo_tags.into_iter().map(ImageRemoved::Untagged).collect();
        removed.push(ImageRemoved::Deleted(image.id));
        Ok(removed)
    }

    async fn prune_images(&self, which: Which<ImageSummary>) -> Result<ImagesPruned, Error> {
        let mut state = self.lock();
        let mut pruned = ImagesPruned::default();
        state.images.retain(|i| {
            let goes = which(i);
            if goes {
                pruned.images_deleted.push(ImageRemoved::Deleted(i.id.clone()));
                pruned.space_reclaimed += i.size as u64;
            }
            !goes
        });
        Ok(pruned)
    }

    async fn save(&self, names: Vec<String>) -> Result<ByteReader, Error> {
        for name in &names {
            Self::image(&self.lock(), name)?;
        }
        // Larger than any buffer on the way.
        let mut archive = names.join(",").into_bytes();
        archive.resize(3_000_000, b'.');
        Ok(Box::pin(std::io::Cursor::new(archive)))
    }

    async fn load(&self, mut archive: ByteReader, quiet: bool) -> Result<Items<Progress>, Error> {
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).await.map_err(|e| Error::failed("reading the archive", e))?;
        let name: Vec<u8> = bytes.iter().copied().take_while(|b| *b != b'.').collect();
        let name = String::from_utf8(name).unwrap();
        Self::add_image(&mut self.lock(), &name);
        self.note(format!("load {} {quiet}", bytes.len()));
        Ok(stream::iter([Ok(Progress::Stream(format!("Loaded image: {name}\n")))]).boxed())
    }

    async fn list_networks(&self) -> Result<Vec<Network>, Error> {
        Ok(self.lock().networks.clone())
    }

    async fn inspect_network(&self, id: &str) -> Result<Network, Error> {
        let mut state = self.lock();
        let mut found = network(&mut state, id)?.clone();
        for c in &state.containers {
            if c.networks.contains_key(&found.name) {
                found.containers.insert(
                    c.id.clone(),
                    NetworkContainer { name: c.name.clone(), ..NetworkContainer::default() },
                );
            }
        }
        Ok(found)
    }

    async fn create_network(&self, request: CreateNetwork) -> Result<Created, Error> {
        let mut state = self.lock();
        if state.networks.iter().any(|n| n.name == request.name) {
            return Err(Error::Conflict(format!("network with name {} already exists", request.name)));
        }
        let number = state.next;
        state.next += 1;
        let id = format!("{:0<64x}", 0xa0_0000 + number);
        state.networks.push(Network {
            name: request.name,
            id: id.clone(),
            created: Some(Timestamp::now()),
            scope: "local".to_owned(),
            driver: if request.driver.is_empty() { "bridge".to_owned() } else { request.driver },
            enable_ipv4: true,
            ipam: request.ipam,
            internal: request.internal,
            options: request.options,
            labels: request.labels,
            ..Network::default()
        });
        self.event(&mut state, EventKind::Network, "create", &id, &[("type", "bridge")]);
        Ok(Created { id, warnings: Vec::new() })
    }

    async fn remove_network(&self, id: &str) -> Result<(), Error> {
        let mut state = self.lock();
        let network = network(&mut state, id)?.clone();
        if ["bridge", "host", "none"].contains(&network.name.as_str()) {
            return Err(Error::Forbidden(format!(
                "{} is a pre-defined network and cannot be removed",
                network.name
            )));
        }
        state.networks.retain(|n| n.id != network.id);
        Ok(())
    }

    async fn connect_network(&self, id: &str, c: &str, mut endpoint: EndpointSettings) -> Result<(), Error> {
        let mut state = self.lock();
        let network = network(&mut state, id)?.clone();
        endpoint.network_id = network.id;
        container(&mut state, c)?.networks.insert(network.name, endpoint);
        Ok(())
    }

    async fn disconnect_network(&self, id: &str, c: &str, _force: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let name = network(&mut state, id)?.name.clone();
        match container(&mut state, c)?.networks.remove(&name) {
            Some(_) => Ok(()),
            None => Err(Error::Conflict(format!("container {c} is not connected to network {name}"))),
        }
    }

    async fn prune_networks(&self, which: Which<Network>) -> Result<Pruned, Error> {
        let mut state = self.lock();
        let used: Vec<String> = state.containers.iter().flat_map(|c| c.networks.keys().cloned()).collect();
        let mut deleted = Vec::new();
        state.networks.retain(|n| {
            let goes =
                !["bridge", "host", "none"].contains(&n.name.as_str()) && !used.contains(&n.name) && which(n);
            if goes {
                deleted.push(n.name.clone());
            }
            !goes
        });
        Ok(Pruned { deleted, space_reclaimed: 0 })
    }

    async fn list_volumes(&self) -> Result<Vec<Volume>, Error> {
        Ok(self.lock().volumes.clone())
    }

    async fn inspect_volume(&self, name: &str) -> Result<Volume, Error> {
        let state = self.lock();
        state
            .volumes
            .iter()
            .find(|v| v.name == name)
            .cloned()
            .ok_or_else(|| Error::NoSuchVolume(name.to_owned()))
    }

    async fn create_volume(&self, request: CreateVolume) -> Result<Volume, Error> {
        let mut state = self.lock();
        let anonymous = request.name.is_empty();
        let name = if anonymous { "f".repeat(64) } else { request.name };
        if let Some(volume) = state.volumes.iter().find(|v| v.name == name) {
            return Ok(volume.clone());
        }
        let volume = Volume {
            mountpoint: format!("/data/volumes/{name}"),
            name,
            driver: "local".to_owned(),
            created_at: Some(Timestamp::now()),
            labels: request.labels,
            scope: "local".to_owned(),
            options: request.driver_opts,
            anonymous,
            ..Volume::default()
        };
        state.volumes.push(volume.clone());
        Ok(volume)
    }

    async fn remove_volume(&self, name: &str, force: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let before = state.volumes.len();
        state.volumes.retain(|v| v.name != name);
        if before == state.volumes.len() && !force {
            return Err(Error::NoSuchVolume(name.to_owned()));
        }
        Ok(())
    }

    async fn prune_volumes(&self, which: Which<Volume>) -> Result<Pruned, Error> {
        let mut state = self.lock();
        let mut deleted = Vec::new();
        state.volumes.retain(|v| {
            let goes = which(v);
            if goes {
                deleted.push(v.name.clone());
            }
            !goes
        });
        Ok(Pruned { space_reclaimed: 1000 * deleted.len() as u64, deleted })
    }
}
