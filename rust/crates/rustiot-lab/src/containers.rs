//! The device's container engine from the workstation: its socket forwarded by ssh, the stock Docker client, the image that
//! tests run, and a registry. Decides nothing about containers. Used by the tests of containers and by `rustiot run`.

use crate::ctx::Ctx;
use crate::device::Device as _;
use crate::fixtures::compile;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
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

/// Debian's docker-registry at a port of this machine, which a machine of ours reaches at 10.0.2.2. It ends with its value.
pub struct Registry {
    serves: Child,
    port: u16,
}

impl Registry {
    /// With the images `team/app:1` and `team/app:2`: the program of [`IMAGE`] and as many bytes that do not compress as
    /// it takes to be cut off in the middle. They share two of their three layers.
    pub fn start(ctx: &Ctx) -> Result<Self> {
        let tools = ctx.fixtures.registry_tools(ctx.lab)?;
        let dir = ctx.dir().join("registry");
        std::fs::create_dir_all(&dir).context("cannot make the registry's directory")?;
        // Free now; whoever takes it in between makes the registry end, which is told.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
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
        let serves = testbed::spawn(command).context("cannot run docker-registry")?;
        let mut registry = Registry { serves, port };
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = registry.serves.try_wait().context("cannot ask for the registry")?;
            ensure!(ended.is_none(), "docker-registry ended: see registry.log");
            ensure!(began.elapsed() < FORWARDED, "docker-registry does not listen");
            std::thread::sleep(LOOK_AGAIN);
        }
        image(ctx)?;
        let program = std::fs::read(ctx.dir().join("app")).context("cannot read the program of the image")?;
        for (tag, own) in [("1", 1), ("2", 2)] {
            let more = [noise(0, 3 << 20), noise(own, 2 << 20)];
            let path = dir.join(format!("{tag}.tar"));
            std::fs::write(&path, archive(ctx.board.arch.debian(), &program, &more)?)
                .context("cannot write an image")?;
            let mut push = tools.command("skopeo");
            push.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--dest-compress"]);
            push.arg(format!("oci-archive:{}", path.display()));
            push.arg(format!("docker://127.0.0.1:{port}/team/app:{tag}"));
            let output = push.stdin(Stdio::null()).output().context("cannot run skopeo")?;
            ensure!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(registry)
    }

    /// An image's name for a machine of ours.
    pub fn name(&self, tag: &str) -> String {
        format!("10.0.2.2:{}/team/app:{tag}", self.port)
    }

    /// Lets a machine ask it, as an owner does: by a file on the config partition. It needs no restart.
    pub fn allow(&self, machine: &Machine) -> Result<()> {
        machine.sh(&format!(
            "mount -o remount,rw /config && mkdir -p /config/rustiot.d && \
             printf '[engine]\ninsecure_registries = [\"10.0.2.2:{}\"]\n' > /config/rustiot.d/registry.toml && \
             sync && mount -o remount,ro /config && rustiot provision apply && \
             grep -q 10.0.2.2:{} /run/rustiot/settings.json",
            self.port, self.port
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

/// Bytes that do not compress, the same for the same seed (xorshift64).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(length).collect()
}

/// The archive's bytes; each of `more` is a file in a layer of its own.
fn archive(architecture: &str, program: &[u8], more: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for directory in ["etc/", "tmp/", "v/"] {
        add(&mut layer, directory, tar::EntryType::Directory, &[])?;
    }
    add(&mut layer, "app", tar::EntryType::Regular, program)?;
    add(&mut layer, "etc/passwd", tar::EntryType::Regular, b"root:x:0:0:root:/:/app\n")?;
    let mut layers = vec![layer.into_inner().context("cannot make a layer")?];
    for (number, bytes) in more.iter().enumerate() {
        let mut layer = tar::Builder::new(Vec::new());
        add(&mut layer, &format!("more-{number}"), tar::EntryType::Regular, bytes)?;
        layers.push(layer.into_inner().context("cannot make a layer")?);
    }
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
        let bytes = archive("amd64", b"program", &[noise(1, 5000)]).unwrap();
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
