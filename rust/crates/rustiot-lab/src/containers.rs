//! The device's container engine from the workstation: its socket forwarded by ssh, the stock Docker client, the image that
//! tests run, and a registry. Decides nothing about containers. Used by the tests of containers and by `rustiot run`.

use crate::ctx::Ctx;
use crate::device::Device as _;
use crate::fixtures::compile;
use anyhow::{Context as _, Result, bail, ensure};
use rustiot_images::publish::{Published, Request, publish};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testbed::relay::Link;
use testbed::{Machine, Output, Tools};

/// Where the engine listens on a device.
pub const SOCKET: &str = "/run/docker.sock";
/// The image of [`image`].
pub const IMAGE: &str = "app:1";
/// How long the forwarded socket may take to be there, emulated.
const FORWARDED: Duration = Duration::from_secs(120);
/// How long one call of the client may take, emulated; it is ended then.
const CALL: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// An `ssh` that forwards the engine's socket of the machine behind `port` to the file `socket`, until it is ended or
/// the machine is off. A file that is there is replaced.
pub fn forward(key: &Path, port: u16, socket: &Path) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(testbed::ssh_options(key, port)).args(["-N", "-o", "ExitOnForwardFailure=yes"]);
    ssh.args(["-o", "StreamLocalBindUnlink=yes", "-o", "StreamLocalBindMask=0177"]);
    ssh.args(["-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=10"]);
    ssh.arg("-L").arg(format!("{}:{SOCKET}", socket.display())).arg("root@127.0.0.1");
    ssh.stdin(Stdio::null()).stdout(Stdio::null());
    ssh
}

/// Waits until `ssh` listens at `socket`.
///
/// # Errors
/// It ended, or does not listen in time.
pub fn wait_forwarded(ssh: &mut Child, socket: &Path) -> Result<()> {
    let began = Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        if let Some(status) = ssh.try_wait().context("cannot ask for ssh")? {
            bail!("ssh cannot forward {SOCKET} to {}: it ended with {status}", socket.display());
        }
        ensure!(began.elapsed() < FORWARDED, "ssh did not forward {SOCKET} in {} s", FORWARDED.as_secs());
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// The engine of one machine, reached as a person at a workstation reaches it. A reboot of the machine ends it.
pub struct Engine {
    socket: PathBuf,
    tools: Tools,
    ssh: Child,
}

impl Engine {
    /// Forwards the machine's engine into the test's directory.
    pub fn of(ctx: &Ctx, machine: &Machine) -> Result<Self> {
        let socket = machine.dir().join("docker.sock");
        let _ = std::fs::remove_file(&socket);
        let ssh = forward(&ctx.lab.ssh_key()?.private, machine.ssh_port(), &socket);
        let mut engine =
            Engine { socket, tools: ctx.lab.tools(), ssh: testbed::spawn(ssh).context("cannot run ssh")? };
        wait_forwarded(&mut engine.ssh, &engine.socket)?;
        Ok(engine)
    }

    /// Forwards it and loads [`IMAGE`].
    pub fn with_image(ctx: &Ctx, machine: &Machine) -> Result<Self> {
        let engine = Engine::of(ctx, machine)?;
        let archive = image(ctx)?;
        let said = engine.ok(&["load", "-i", &archive.to_string_lossy()])?;
        ensure!(said.contains(&format!("Loaded image: {IMAGE}")), "load: {said}");
        Ok(engine)
    }

    /// The stock client with these arguments.
    pub fn docker(&self, arguments: &[&str]) -> Result<Output> {
        docker(&self.tools, &self.socket, arguments)
    }

    /// What it prints, of a call that must succeed; without the last line end.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.docker(arguments)?;
        ensure!(
            output.ok(),
            "docker {} ended with {}: {}{}",
            arguments.join(" "),
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout.trim_end().to_owned())
    }

    /// Starts a container of the image in the background, without a network; `more` are options of `run`.
    pub fn start(&self, name: &str, more: &[&str], mode: &[&str]) -> Result<()> {
        let mut all = vec!["run", "-d", "--network", "none", "--name", name];
        all.extend(more);
        all.push(IMAGE);
        all.extend(mode);
        self.ok(&all)?;
        Ok(())
    }

    /// A field of `docker inspect`, as its template says it.
    pub fn inspect(&self, field: &str, name: &str) -> Result<String> {
        self.ok(&["inspect", "--format", &format!("{{{{{field}}}}}"), name])
    }

    /// Waits until a field has a value.
    pub fn wait_for(&self, name: &str, field: &str, wanted: &str, within: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            let found = self.inspect(field, name)?;
            if found == wanted {
                return Ok(());
            }
            let seconds = within.as_secs();
            ensure!(began.elapsed() < within, "{name}: {field} is {found}, not {wanted}, after {seconds} s");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until a container's log contains a text.
    pub fn wait_log(&self, name: &str, text: &str, within: Duration) -> Result<String> {
        let began = Instant::now();
        loop {
            let log = self.ok(&["logs", "--tail", "200", name])?;
            if log.contains(text) {
                return Ok(log);
            }
            ensure!(
                began.elapsed() < within,
                "{name} does not say {text:?} in {} s: {log}",
                within.as_secs()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// The stock client at the socket of an engine.
pub fn docker(tools: &Tools, socket: &Path, arguments: &[&str]) -> Result<Output> {
    let seconds = CALL.as_secs().to_string();
    let mut command = tools.command("timeout");
    command.args(["-k", "5", &seconds, "docker", "-H", &format!("unix://{}", socket.display())]);
    let output = command.args(arguments).stdin(Stdio::null()).output().context("cannot run docker")?;
    Ok(Output {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

/// An OCI archive with [`IMAGE`]: one static program, `conf/lab/app/app.c`, and `/etc/passwd`.
pub fn image(ctx: &Ctx) -> Result<PathBuf> {
    let path = ctx.dir().join("app.tar");
    if !path.is_file() {
        let program = ctx.dir().join("app");
        compile(ctx.lab, ctx.board, &ctx.lab.context.conf("lab/app/app.c"), &program)?;
        let program = std::fs::read(&program).context("cannot read the program of the image")?;
        std::fs::write(&path, archive(ctx.board.arch.debian(), &program, &[])?)
            .context("cannot write the image")?;
    }
    Ok(path)
}

/// A layer of an image, as an archive, of files with these names.
pub fn layer(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        add(&mut layer, name, tar::EntryType::Regular, bytes)?;
    }
    layer.into_inner().context("cannot make a layer")
}

/// Debian's docker-registry at a port of this machine, and between it and machines of ours, which reach it at 10.0.2.2, a
/// link that counts. It ends with its value.
pub struct Registry {
    serves: Child,
    tools: Tools,
    dir: PathBuf,
    architecture: &'static str,
    /// The program of [`IMAGE`].
    program: Vec<u8>,
    port: u16,
    link: Link,
}

impl Registry {
    /// With the images `team/app:1` and `team/app:2`: the program of [`IMAGE`] and as many bytes that do not compress as
    /// it takes to be cut off in the middle. They share two of their three layers.
    pub fn start(ctx: &Ctx) -> Result<Self> {
        let registry = Registry::empty(ctx)?;
        for (tag, own) in [("1", 1), ("2", 2)] {
            let file = |name: &str, bytes| layer(&[(name.to_owned(), bytes)]);
            let more = [file("more-0", noise(0, 3 << 20))?, file("more-1", noise(own, 2 << 20))?];
            registry.push(tag, &more)?;
        }
        Ok(registry)
    }

    /// Without an image.
    pub fn empty(ctx: &Ctx) -> Result<Self> {
        let toolbox = ctx.fixtures.registry_tools(ctx.lab)?;
        let remedy = toolbox.remedy();
        let tools = Tools::new(move |program| toolbox.command(program)).with_remedy(&remedy);
        let dir = ctx.dir().join("registry");
        std::fs::create_dir_all(&dir).context("cannot make the registry's directory")?;
        image(ctx)?;
        let program = std::fs::read(ctx.dir().join("app")).context("cannot read the program of the image")?;
        // Free now; whoever takes it in between makes the registry end, which is told.
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
        let port = port.context("no free port")?.port();
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            dir.join("data").display()
        );
        std::fs::write(&config, text).context("cannot write the registry's configuration")?;
        let log = std::fs::File::create(ctx.dir().join("registry.log")).context("cannot make a log")?;
        let mut command = tools.command("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let link = Link::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), None)?;
        let serves = testbed::spawn(command).context("cannot run docker-registry")?;
        let architecture = ctx.board.arch.debian();
        let mut registry = Registry { serves, tools, dir, architecture, program, port, link };
        let began = Instant::now();
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = registry.serves.try_wait().context("cannot ask for the registry")?;
            ensure!(ended.is_none(), "docker-registry ended: see registry.log");
            ensure!(began.elapsed() < FORWARDED, "docker-registry does not listen");
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(registry)
    }

    /// Puts an image into it: the program of [`IMAGE`], and `more` layers above.
    pub fn push(&self, tag: &str, more: &[Vec<u8>]) -> Result<()> {
        let path = self.dir.join(format!("{tag}.tar"));
        std::fs::write(&path, archive(self.architecture, &self.program, more)?)
            .context("cannot write an image")?;
        self.copy(&["--dest-compress"], &format!("oci-archive:{}", path.display()), &self.here(tag))?;
        std::fs::remove_file(&path).context("cannot remove an image's file")
    }

    fn copy(&self, options: &[&str], from: &str, to: &str) -> Result<()> {
        let common =
            ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"];
        self.tools.run("skopeo", &[&common, options, &[from, to]].concat())?;
        Ok(())
    }

    /// Publishes deltas from one image to another, as an owner does (docs/guide-containers.md).
    pub fn publish_deltas(&self, from: &str, to: &str) -> Result<Published> {
        let dirs = [from, to].map(|tag| self.dir.join(format!("dir-{tag}")));
        for (tag, dir) in [from, to].into_iter().zip(&dirs) {
            self.copy(&[], &self.here(tag), &format!("dir:{}", dir.display()))?;
        }
        let [old, new] = &dirs;
        let out = self.dir.join("deltas");
        let request = Request { old, new, manifest: None, platform: None, out: &out };
        let published = publish(&request, &|_, _| ()).context("no deltas")?;
        let [published] = <[Published; 1]>::try_from(published)
            .map_err(|all| anyhow::anyhow!("deltas for {} platforms", all.len()))?;
        let tag = &published.tag;
        self.copy(&["--all"], &format!("oci:{}:{tag}", out.display()), &self.here(tag))?;
        Ok(published)
    }

    /// Changes a bit in the middle of each delta of an artifact, where the registry keeps it. It does not look.
    pub fn spoil(&self, published: &Published) -> Result<()> {
        let data = |digest: &str| {
            let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
            let two = hex.get(..2).unwrap_or_default();
            self.dir.join("data/docker/registry/v2/blobs/sha256").join(two).join(hex).join("data")
        };
        let artifact = published.artifact.context("there is no artifact")?.to_string();
        let artifact = std::fs::read(data(&artifact)).context("cannot read the artifact")?;
        let artifact: Value = serde_json::from_slice(&artifact).context("the artifact is no JSON")?;
        let blobs = artifact.pointer("/layers").and_then(Value::as_array).context("no layers")?;
        for blob in blobs {
            let path = data(blob.pointer("/digest").and_then(Value::as_str).context("no digest")?);
            let size = std::fs::metadata(&path).context("there is no delta")?.len();
            testbed::flip_bit_in_file(&path, size / 2, 0)?;
        }
        Ok(())
    }

    /// Bytes that went between it and machines, both ways, all heads with them.
    pub fn bytes(&self) -> u64 {
        self.link.relay().bytes()
    }

    /// An image's name for skopeo.
    fn here(&self, tag: &str) -> String {
        format!("docker://127.0.0.1:{}/team/app:{tag}", self.port)
    }

    /// An image's name for a machine of ours.
    pub fn name(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.host())
    }

    fn host(&self) -> String {
        format!("10.0.2.2:{}", self.link.relay().address().port())
    }

    /// Lets a machine ask it, as an owner does: by a file on the config partition. It needs no restart.
    pub fn allow(&self, machine: &Machine) -> Result<()> {
        let host = self.host();
        machine.sh(&format!(
            "mount -o remount,rw /config && mkdir -p /config/rustiot.d && \
             printf '[engine]\ninsecure_registries = [\"{host}\"]\n' > /config/rustiot.d/registry.toml && \
             sync && mount -o remount,ro /config && rustiot provision apply && \
             grep -q {host} /run/rustiot/settings.json",
        ))?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.serves.kill();
        let _ = self.serves.wait();
    }
}

/// What a pull cost.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// What the client printed.
    #[serde(skip)]
    pub said: String,
    /// Bytes on the wire, both ways.
    pub wire: u64,
    /// Processor time of the engine, milliseconds.
    pub processor_ms: u64,
    /// How long it took, milliseconds.
    pub took_ms: u64,
    /// Most memory that the engine had meanwhile (RSS), KiB.
    pub peak_kib: u64,
    /// The same before it began.
    pub before_kib: u64,
}

impl Engine {
    /// Pulls an image by the stock client and looks what that costs the device. The engine is started anew before it, so
    /// that it has nothing left of an earlier pull.
    pub fn pull(&self, machine: &Machine, registry: &Registry, tag: &str) -> Result<Cost> {
        let number = |script: &str| -> Result<u64> {
            let text = machine.sh(script)?;
            text.parse().with_context(|| format!("{script}: {text}"))
        };
        machine.sh("systemctl restart rustiot-engine.service")?;
        let pid = number("systemctl show -P MainPID rustiot-engine.service")?;
        let processor = || number("systemctl show -P CPUUsageNSec rustiot-engine.service");
        // proc_pid_clear_refs(5): the peak is counted from now on.
        machine.sh(&format!("echo 5 > /proc/{pid}/clear_refs"))?;
        let peak = || number(&format!("awk '/^VmHWM:/ {{ print $2 }}' /proc/{pid}/status"));
        let (before_kib, wire, spent, began) = (peak()?, registry.bytes(), processor()?, Instant::now());
        let said = self.ok(&["pull", &registry.name(tag)])?;
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (processor_ms, peak_kib) = (processor()?.saturating_sub(spent) / 1_000_000, peak()?);
        let wire = registry.bytes().saturating_sub(wire);
        Ok(Cost { said, wire, processor_ms, took_ms, peak_kib, before_kib })
    }
}

/// Bytes that do not compress, the same for the same seed (xorshift64).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(length).collect()
}

/// The archive's bytes; each of `more` is a layer.
fn archive(architecture: &str, program: &[u8], more: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut own = tar::Builder::new(Vec::new());
    for directory in ["etc/", "tmp/", "v/"] {
        add(&mut own, directory, tar::EntryType::Directory, &[])?;
    }
    add(&mut own, "app", tar::EntryType::Regular, program)?;
    add(&mut own, "etc/passwd", tar::EntryType::Regular, b"root:x:0:0:root:/:/app\n")?;
    let mut layers = vec![own.into_inner().context("cannot make a layer")?];
    layers.extend_from_slice(more);
    let digests: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Entrypoint": ["/app"], "Cmd": ["idle"]},
        "rootfs": {"type": "layers", "diff_ids": digests},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|l| described("application/vnd.oci.image.layer.v1.tar", l)).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = described("application/vnd.oci.image.manifest.v1+json", &manifest);
    if let Some(entry) = entry.as_object_mut() {
        let name = format!("docker.io/library/{IMAGE}");
        entry.insert("annotations".into(), json!({"io.containerd.image.name": name}));
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry],
    });
    let mut all = tar::Builder::new(Vec::new());
    add(&mut all, "oci-layout", tar::EntryType::Regular, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut all, "index.json", tar::EntryType::Regular, index.to_string().as_bytes())?;
    for blob in layers.iter().chain([&config, &manifest]) {
        let name = format!("blobs/{}", digest(blob).replace(':', "/"));
        add(&mut all, &name, tar::EntryType::Regular, blob)?;
    }
    all.into_inner().context("cannot make an archive")
}

fn add(tar: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, data: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if name == "tmp/" { 0o1777 } else { 0o755 });
    header.set_size(u64::try_from(data.len())?);
    tar.append_data(&mut header, name, data).with_context(|| format!("cannot add {name}"))
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn described(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_names_every_blob_by_its_digest() {
        let bytes =
            archive("amd64", b"program", &[layer(&[("more".to_owned(), noise(1, 5000))]).unwrap()]).unwrap();
        let mut blobs = 0;
        for entry in tar::Archive::new(&*bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(&content), format!("sha256:{hex}"));
                blobs += 1;
            }
        }
        assert_eq!(blobs, 4);
    }

    #[test]
    fn the_engine_is_forwarded_to_the_file_that_was_named() {
        let ssh = forward(Path::new("/k"), 2222, Path::new("/tmp/e.sock"));
        let arguments: Vec<_> = ssh.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        assert!(
            arguments.windows(2).any(|pair| pair == ["-L", "/tmp/e.sock:/run/docker.sock"]),
            "{arguments:?}"
        );
        assert!(arguments.windows(2).any(|pair| pair == ["-p", "2222"]), "{arguments:?}");
    }
}
