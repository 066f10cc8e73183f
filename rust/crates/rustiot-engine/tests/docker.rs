//! The stock Docker command line against the real engine: the process, its shims, its runtime, its store, as root.
//!
//! Each test has an engine of its own, with its directories in a temporary place, its mounts in a mount namespace that
//! goes with the test, and a control group of its own. The machine's own docker is never spoken to. Skipped, and said
//! so, where there is no client, no root, no static busybox, or no erofs or overlay in the kernel.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a helper that panics fails the test, which is what it is for; nothing here must be durable"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustiot_images::Digest;

/// The programs, built from this tree: cargo builds only this crate's for this crate's tests.
fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let engine = PathBuf::from(env!("CARGO_BIN_EXE_rustiot-engine"));
        let release = engine.parent().unwrap().ends_with("release");
        // The shim is static as on the device: with `--init` it runs inside containers, which have no library for it.
        for (order, rest) in [
            (&["build", "-p", "rustiot-engine", "-p", "rustiot-runtime"][..], &[][..]),
            (
                &["rustc", "-p", "rustiot-shim", "--bin", "rustiot-shim"],
                &["--", "-Ctarget-feature=+crt-static"],
            ),
        ] {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(order).args(["--quiet", "--offline"]);
            cargo.args(release.then_some("--release")).args(rest);
            let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
            assert!(built.success(), "cannot build the shim and the runtime");
        }
        engine.parent().unwrap().to_owned()
    })
}

/// A static program: an ELF file of 64 bits without an interpreter.
fn is_static(elf: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        elf.get(at..at + length).map(|b| b.iter().rev().fold(0_usize, |n, b| (n << 8) | usize::from(*b)))
    };
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return false;
    };
    elf.starts_with(b"\x7fELF\x02") && (0..count).all(|n| number(table + n * size, 4) != Some(3))
}

fn busybox() -> Option<Vec<u8>> {
    ["/usr/bin/busybox", "/bin/busybox"].iter().find_map(|p| std::fs::read(p).ok().filter(|b| is_static(b)))
}

/// `ask HOST PORT PATH`: the last line of what a web server says. A static busybox cannot look up names.
const ASK: &str = r#"exec 3<>"/dev/tcp/$1/$2" || exit 1
printf 'GET %s HTTP/1.0\r\n\r\n' "$3" >&3
while read -r line <&3; do last=$line; done
echo "$last"
"#;

/// bash and the libraries that it needs, by their places.
fn bash() -> Option<Vec<(String, Vec<u8>)>> {
    let needed = Command::new("ldd").arg("/bin/bash").output().ok()?;
    let text = String::from_utf8_lossy(&needed.stdout).into_owned();
    let libraries = text.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    ["/bin/bash"]
        .into_iter()
        .chain(libraries)
        .map(|path| Some((path.trim_start_matches('/').to_owned(), std::fs::read(path).ok()?)))
        .collect()
}

/// An OCI archive of one image, `box:1`, with two layers: busybox, and a file.
fn image() -> Vec<u8> {
    let layer = |build: &dyn Fn(&mut tar::Builder<Vec<u8>>)| {
        let mut tar = tar::Builder::new(Vec::new());
        build(&mut tar);
        tar.into_inner().unwrap()
    };
    let add = |tar: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, kind: tar::EntryType, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, data).unwrap();
    };
    let program = busybox().unwrap();
    let base = layer(&|tar| {
        for (directory, mode) in [("bin/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777)] {
            add(tar, directory, mode, tar::EntryType::Directory, b"");
        }
        add(tar, "bin/busybox", 0o755, tar::EntryType::Regular, &program);
        let names = [
            "sh", "cat", "echo", "ls", "sleep", "test", "true", "false", "touch", "stat", "id", "wc", "nc",
            "timeout", "httpd", "hostname", "ip", "ping", "stty",
        ];
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            tar.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
        }
    });
    let top = layer(&|tar| {
        // Links to what is not there, as images have them.
        for (name, to) in [
            ("etc/resolv.conf", "../run/resolve/stub-resolv.conf"),
            ("data", "/srv/app/data"),
            ("round", "round"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            tar.append_link(&mut header, name, to).unwrap();
        }
        add(tar, "etc/passwd", 0o644, tar::EntryType::Regular, b"root:x:0:0:root:/root:/bin/sh\n");
        add(tar, "etc/nsswitch.conf", 0o644, tar::EntryType::Regular, b"hosts: files dns\n");
        for (path, bytes) in bash().unwrap() {
            add(tar, &path, 0o755, tar::EntryType::Regular, &bytes);
        }
        add(tar, "bin/ask", 0o755, tar::EntryType::Regular, format!("#!/bin/bash\n{ASK}").as_bytes());
        let who = b"#!/bin/sh\necho Content-Type: text/plain\necho\necho $(hostname) saw $REMOTE_ADDR\n";
        for directory in ["www/", "www/cgi-bin/"] {
            add(tar, directory, 0o755, tar::EntryType::Directory, b"");
        }
        add(tar, "www/cgi-bin/who", 0o755, tar::EntryType::Regular, who);
    });
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/sh"], "Env": ["FROM_IMAGE=yes"] },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&base).to_string(), Digest::of(&top).to_string()] },
    });
    let config = config.to_string().into_bytes();
    let described = |media: &str, bytes: &[u8]| serde_json::json!({ "mediaType": media, "digest": Digest::of(bytes).to_string(), "size": bytes.len() });
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": [described(plain, &base), described(plain, &top)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut first = described("application/vnd.oci.image.manifest.v1+json", &manifest);
    first.as_object_mut().unwrap().insert(
        "annotations".to_owned(),
        serde_json::json!({ "io.containerd.image.name": "docker.io/library/box:1", "org.opencontainers.image.ref.name": "1" }),
    );
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [first],
    });
    layer(&|tar| {
        let file = tar::EntryType::Regular;
        add(tar, "oci-layout", 0o644, file, br#"{"imageLayoutVersion":"1.0.0"}"#);
        add(tar, "index.json", 0o644, file, index.to_string().as_bytes());
        for blob in [&base, &top, &config, &manifest] {
            add(tar, &format!("blobs/sha256/{}", Digest::of(blob).hex()), 0o644, file, blob);
        }
    })
}

/// A device of its own: directories, a mount namespace, a control group, an engine.
struct Device {
    directory: tempfile::TempDir,
    group: String,
    /// Holds the mount namespace as long as its standard input is open.
    holder: Child,
    engine: Option<Child>,
}

impl Device {
    /// With the image `box:1`; `None`, and said why, where this cannot run.
    fn start() -> Option<Device> {
        let mut device = Device::bare()?;
        let archive = device.path("box.tar");
        std::fs::write(&archive, image()).unwrap();
        device.boot();
        let loaded = device.ok(&["load", "-i", archive.to_str().unwrap()]);
        assert!(loaded.contains("Loaded image: box:1"), "{loaded}");
        Some(device)
    }

    fn bare() -> Option<Device> {
        let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let without = if !nix::unistd::geteuid().is_root() {
            "containers need root"
        } else if Command::new("docker").arg("--version").output().is_err() {
            "no docker command on this machine"
        } else if Command::new("ip").arg("-V").output().is_err() {
            "no ip command (iproute2) on this machine"
        } else if bash().is_none() {
            "no bash on this machine"
        } else if busybox().is_none() {
            "no static busybox on this machine"
        } else if !["overlay", "erofs"].iter().all(|f| filesystems.lines().any(|l| l.ends_with(f))) {
            "no overlay or no erofs in this kernel"
        } else {
            programs();
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let group = format!("rustiot-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
            let directory = tempfile::Builder::new().prefix("re").tempdir().unwrap();
            std::fs::write(directory.path().join("resolv.conf"), "").unwrap();
            let mut holder = Command::new("unshare")
                .args(["--mount", "--net", "--propagation", "private", "sh", "-c"])
                .arg("test -f /sys/fs/cgroup/cgroup.procs || { umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; } || exit 1; mount --bind $0 /etc/resolv.conf && busybox ip link set lo up; echo; exec cat")
                .arg(directory.path().join("resolv.conf"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .unwrap();
            let mut line = [0];
            let ready = std::io::Read::read(holder.stdout.as_mut().unwrap(), &mut line).unwrap_or(0);
            let device = Device { directory, group, holder, engine: None };
            if ready == 1 {
                return Some(device);
            }
            "no control groups of version 2 on this machine"
        };
        eprintln!("skipped: {without}");
        None
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the engine and waits until it answers.
    fn boot(&mut self) {
        let bin = programs();
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path("engine.log")).unwrap();
        let engine = Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .arg(bin.join("rustiot-engine"))
            .arg("--data")
            .arg(self.path("data"))
            .arg("--run")
            .arg(self.path("run"))
            .arg("--socket")
            .arg(self.path("s"))
            .args(["--cgroup", &self.group])
            .arg("--shim")
            .arg(bin.join("rustiot-shim"))
            .arg("--runtime")
            .arg(bin.join("rustiot-runtime"))
            .arg("--settings")
            .arg(self.path("settings.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.engine = Some(engine);
        // One that is off refuses, which is an answer.
        until("the engine answers", || {
            let output = self.docker(&["version"], b"");
            output.status.success() || String::from_utf8_lossy(&output.stderr).contains("containers are off")
        });
    }

    /// The engine goes without a word.
    fn kill_engine(&mut self) {
        let mut engine = self.engine.take().unwrap();
        engine.kill().unwrap();
        engine.wait().unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "2", "40", "docker"]).args(arguments);
        self.at_home(&mut command);
        command
    }

    /// A client that speaks to this engine and to no other.
    fn at_home<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("DOCKER_")) {
            command.env_remove(name);
        }
        command.env("DOCKER_HOST", format!("unix://{}", self.path("s").display()));
        command.env("DOCKER_CONFIG", self.path("config"))
    }

    /// The client, with this input and then its end.
    fn docker(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut client = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut to = client.stdin.take().unwrap();
        let input = input.to_owned();
        let writer = std::thread::spawn(move || to.write_all(&input));
        let output = client.wait_with_output().unwrap();
        // A client that does not want its input closes it.
        let _ = writer.join().unwrap();
        output
    }

    /// What it printed, of a call that must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, b"")
    }

    fn ok_with(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = self.docker(arguments, input);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "docker {arguments:?}: {} {text} {}\nengine: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            std::fs::read_to_string(self.path("engine.log")).unwrap_or_default(),
        );
        text
    }

    /// Its exit code and what it said on standard error.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.docker(arguments, b"");
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut all = vec!["run", "--rm", "--network", "none", "box:1"];
        all.extend(arguments);
        self.docker(&all, b"")
    }

    /// A container in the background that runs until it is stopped.
    fn sleeper(&self, name: &str, more: &[&str]) {
        let mut all = vec!["run", "-d", "--network", "none", "--name", name];
        all.extend(more);
        all.extend(["box:1", "sh", "-c", "trap 'exit 3' TERM; echo begun; while :; do sleep 0.1; done"]);
        self.ok(&all);
    }

    fn inspect(&self, what: &str, name: &str) -> String {
        self.ok(&["inspect", "--format", &format!("{{{{{what}}}}}"), name]).trim().to_owned()
    }

    /// Which of our links there are.
    fn links(&self) -> Vec<String> {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .args(["ip", "-o", "link"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names =
            text.lines().filter_map(|line| line.split([':', '@']).nth(1)).map(|n| n.trim().to_owned());
        names.filter(|name| name.starts_with("riv-") || name.starts_with("rib-")).collect()
    }

    /// A container that tells who asks at port 9000.
    fn web(&self, name: &str, more: &[&str]) {
        let mut all = vec!["run", "-d", "--name", name, "--hostname", name];
        all.extend(more);
        all.extend(["box:1", "httpd", "-f", "-p", "0.0.0.0:9000", "-h", "/www"]);
        self.ok(&all);
    }

    /// What a container in this network is told there; `None` when it cannot get there.
    fn asks(&self, network: &str, host: &str) -> Option<String> {
        let (host, port) = host.split_once(':').unwrap();
        // A shell first: signals do not end what has number 1.
        let ask = ["sh", "-c", "timeout 3 ask $@; exit $?", "sh", host, port, "/cgi-bin/who"];
        let all = [&["run", "--rm", "--network", network, "box:1"][..], &ask].concat();
        let output = self.docker(&all, b"");
        eprintln!("{network} asks {host}: {output:?}");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The control group as the engine's mount namespace sees it.
    fn groups(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/sys/fs/cgroup/{}", self.holder.id(), self.group))
    }

    /// The mount points below its directories.
    fn mounts(&self) -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap();
        let here = self.directory.path().to_str().unwrap();
        text.lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|p| p.starts_with(here))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("engine: {}", std::fs::read_to_string(self.path("engine.log")).unwrap_or_default());
        }
        if let Some(mut engine) = self.engine.take() {
            let _ = engine.kill();
            let _ = engine.wait();
        }
        let groups = self.groups();
        let _ = std::fs::write(groups.join("cgroup.kill"), "1");
        let end = Instant::now() + Duration::from_secs(10);
        while groups.exists() && Instant::now() < end {
            for entry in std::fs::read_dir(&groups).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(entry.path());
            }
            if std::fs::remove_dir(&groups).is_err() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// What somebody in the network namespace of a process is told by a web server.
fn told(pid: u32, host: &str, port: u16, path: &str) -> Option<String> {
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .args(["timeout", "3", "bash", "-c", ASK, "ask", host, &port.to_string(), path])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The client at a terminal of its own: it is the session's leader there, as a shell's child at a console would be.
struct Terminal {
    screen: std::fs::File,
    client: Child,
    shown: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Terminal {
    fn open(device: &Device, (rows, columns): (u16, u16), arguments: &[&str]) -> Terminal {
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size), None).unwrap();
        let side = || Stdio::from(pair.slave.try_clone().unwrap());
        let mut command = Command::new("setsid");
        command.args(["--ctty", "docker"]).args(arguments);
        device.at_home(&mut command).env("TERM", "xterm");
        let client = command.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        drop((command, pair.slave));
        let screen = std::fs::File::from(pair.master);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut from, to) = (screen.try_clone().unwrap(), Arc::clone(&shown));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // EIO: the last one that had the other side open has gone.
            while let Ok(n @ 1..) = std::io::Read::read(&mut from, &mut bytes) {
                to.lock().unwrap().push_str(&String::from_utf8_lossy(bytes.get(..n).unwrap()));
            }
        });
        Terminal { screen, client, shown, reader: Some(reader) }
    }

    /// Whether this was shown within the time; forgets it with all before it.
    fn showed(&self, text: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let mut shown = self.shown.lock().unwrap();
            if let Some(at) = shown.find(text) {
                shown.drain(..at + text.len());
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            drop(shown);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn shows(&self, text: &str) {
        let showed = self.showed(text, Duration::from_secs(30));
        assert!(showed, "{text:?} is not within 30 s in {:?}", self.shown.lock().unwrap());
    }

    /// Does this until the text is shown: the stock client begins to look at the size at some time after the program runs.
    fn shows_after(&mut self, text: &str, mut again: impl FnMut(&mut Terminal)) {
        let mut left = 20;
        loop {
            again(self);
            if self.showed(text, Duration::from_secs(3)) {
                return;
            }
            left -= 1;
            assert!(left > 0, "{text:?} is not in {:?}", self.shown.lock().unwrap());
        }
    }

    /// Gets this size, and the program tells it.
    fn grows(&mut self, (rows, columns): (u16, u16)) {
        self.shows_after(&format!("now {rows} {columns}"), |terminal| {
            // A size that stays the same is no news.
            terminal.resize((rows + 1, columns));
            terminal.resize((rows, columns));
        });
    }

    fn types(&mut self, keys: &str) {
        self.screen.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, (rows, columns): (u16, u16)) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.screen, size).unwrap();
    }

    /// The client's exit code, and what else it showed.
    fn ends(mut self) -> (Option<i32>, String) {
        let mut code = None;
        until("the client ends", || {
            code = self.client.try_wait().unwrap();
            code.is_some()
        });
        self.reader.take().unwrap().join().unwrap();
        (code.unwrap().code(), self.shown.lock().unwrap().clone())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
        if std::thread::panicking() {
            eprintln!("terminal: {:?}", self.shown);
        }
    }
}

/// A process that goes with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine outside, 203.0.113.2, with a cable to the device, which is 203.0.113.1.
struct Outside {
    holder: Child,
}

impl Outside {
    fn new(device: &Device) -> Outside {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "busybox ip link set lo up; echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = std::io::Read::read(holder.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let (here, there) = (device.holder.id(), holder.id());
        for (pid, command) in [
            (here, format!("ip link add uplink type veth peer name eth0 netns {there}")),
            (here, "ip addr add 203.0.113.1/24 dev uplink".to_owned()),
            (here, "ip link set uplink up".to_owned()),
            (there, "ip addr add 203.0.113.2/24 dev eth0".to_owned()),
            (there, "ip link set eth0 up".to_owned()),
        ] {
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--net=/proc/{pid}/ns/net")).args(command.split(' '));
            let done = enter.output().unwrap();
            assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Outside { holder }
    }

    /// What it is told at a port of the device.
    fn asks(&self, port: u16) -> Option<String> {
        told(self.holder.id(), "203.0.113.1", port, "/cgi-bin/who")
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < end, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn run_brings_output_and_exit_codes_and_leaves_nothing() {
    let Some(device) = Device::start() else { return };
    let output = device.run(&["sh", "-c", "echo out; echo err >&2; echo $FROM_IMAGE; exit 7"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\nyes\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(7));
    let output = device.run(&["no-such-program"]);
    assert_eq!(output.status.code(), Some(127), "{}", String::from_utf8_lossy(&output.stderr));
    let output = device.run(&["/etc/passwd"]);
    assert_eq!(output.status.code(), Some(126), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(device.ok(&["ps", "-aq"]), "");
    // Layers stay mounted for the next container, roots go.
    until("no root is mounted", || device.mounts().iter().all(|m| m.contains("/layers/")));
}

#[test]
fn input_reaches_a_program_and_so_does_its_end() {
    let Some(device) = Device::start() else { return };
    for _ in 0..5 {
        let said = device.ok_with(&["run", "--rm", "-i", "--network", "none", "box:1", "cat"], b"x\n");
        assert_eq!(said, "x\n");
    }
    let none = device.ok_with(&["run", "--rm", "-i", "--network", "none", "box:1", "wc", "-c"], b"");
    assert_eq!(none.trim(), "0");
    // More than all buffers on the way.
    let much = vec![b'a'; 3 << 20];
    let said = device.ok_with(&["run", "--rm", "-i", "--network", "none", "box:1", "wc", "-c"], &much);
    assert_eq!(said.trim(), much.len().to_string());
    let back = device.ok_with(&["run", "--rm", "-i", "--network", "none", "box:1", "cat"], &much);
    assert_eq!(back.len(), much.len());
    device.sleeper("app", &[]);
    assert_eq!(device.ok_with(&["exec", "-i", "app", "cat"], b"to exec\n"), "to exec\n");
    device.ok(&["rm", "-f", "app"]);
}

#[test]
fn a_terminal_has_its_size_from_the_first_instant_and_its_changes() {
    let Some(device) = Device::start() else { return };
    let none = ["run", "--rm", "-t", "--network", "none", "box:1"];
    for _ in 0..5 {
        let term = Terminal::open(&device, (33, 77), &[&none[..], &["stty", "size"]].concat());
        let (code, shown) = term.ends();
        assert_eq!((code, shown.trim_end()), (Some(0), "33 77"));
    }
    let tells = "trap 'echo now $(stty size)' WINCH; echo begun; while :; do sleep 0.05; done";
    let run = ["run", "-it", "--network", "none", "--name", "app", "box:1", "sh", "-c", tells];
    let mut term = Terminal::open(&device, (33, 77), &run);
    term.shows("begun");
    term.grows((44, 99));
    // So has one that is entered.
    for _ in 0..5 {
        let entered = Terminal::open(&device, (21, 61), &["exec", "-t", "app", "stty", "size"]);
        let (code, shown) = entered.ends();
        assert_eq!((code, shown.trim_end()), (Some(0), "21 61"));
    }
    let mut entered = Terminal::open(&device, (22, 62), &["exec", "-it", "app", "sh", "-c", tells]);
    entered.shows("begun");
    entered.grows((55, 111));
    // The other's terminal is another one.
    term.grows((45, 98));
    drop(entered);
    device.ok(&["rm", "-f", "app"]);
    assert_eq!(term.ends().0, Some(137));
}

#[test]
fn keys_reach_what_is_in_front_and_a_terminal_is_left_and_entered_again() {
    let Some(device) = Device::start() else { return };
    let run = ["run", "-it", "--network", "none", "--name", "app", "box:1", "sh"];
    let mut term = Terminal::open(&device, (24, 80), &run);
    term.shows("# ");
    // Ctrl-C ends what is in front, and not the shell, which has number 1.
    term.types("echo cat $((40+2)) $(tty); cat\r");
    term.shows("cat 42 /dev/");
    term.types("heard\r");
    term.shows("heard\r\nheard\r\n");
    term.types("\x03");
    term.shows("# ");
    term.types("echo code $?\r");
    term.shows("code 130");
    term.types("\x10\x11");
    let (code, shown) = term.ends();
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!(device.inspect(".State.Running", "app"), "true");

    let mut again = Terminal::open(&device, (20, 60), &["attach", "app"]);
    again.shows_after("back 43\r\n20 60\r\n", |t| t.types("echo back $((40+3)); stty size\r"));
    // Other keys, as the client asks for them; the first ones are plain input then.
    let mut other = Terminal::open(&device, (20, 60), &["attach", "--detach-keys", "ctrl-x", "app"]);
    other.types("echo second $((40+4))\r");
    other.shows("second 44");
    again.shows("second 44");
    other.types("\x18");
    // (The stock client calls that a failure, and says why.)
    let (code, shown) = other.ends();
    assert!(code == Some(1) && shown.contains("read escape sequence"), "{shown}");

    let mut entered = Terminal::open(&device, (24, 80), &["exec", "-it", "app", "sh"]);
    entered.shows("# ");
    entered.types("sleep 1000\r");
    until("it sleeps", || device.ok(&["top", "app"]).contains("sleep 1000"));
    entered.types("\x03");
    entered.shows("# ");
    entered.types("exit 4\r");
    assert_eq!(entered.ends().0, Some(4));

    again.types("exit 9\r");
    assert_eq!(again.ends().0, Some(9));
    until("it ended", || device.inspect(".State.Running", "app") == "false");
    assert_eq!(device.inspect(".State.ExitCode", "app"), "9");
    // And a client that starts it itself.
    let mut start = Terminal::open(&device, (30, 70), &["start", "-ai", "app"]);
    start.shows_after("\n30 70\r\n", |t| t.types("stty size\r"));
    start.types("exit 6\r");
    assert_eq!(start.ends().0, Some(6));
    device.ok(&["rm", "app"]);
}

#[test]
fn an_init_reaps_hands_signals_on_and_passes_the_exit_code() {
    let Some(device) = Device::start() else { return };
    // What is left by a parent that ended goes to the first process; `sleep` never asks for it. It ends only when that is
    // asleep: the shell before it would ask.
    let orphan = "(sh -c 'until [ -e /go ]; do sleep 0.05; done' &); echo begun; exec sleep 1000";
    for (name, init) in [("with", &["--init"][..]), ("without", &[])] {
        let run = [&["run", "-d", "--network", "none", "--name", name][..], init].concat();
        device.ok(&[&run[..], &["box:1", "sh", "-c", orphan]].concat());
    }
    let zombies = |name: &str| {
        let all = device.ok(&["exec", name, "sh", "-c", "cat /proc/[0-9]*/stat"]);
        all.lines().filter(|line| line.contains(") Z ")).count()
    };
    let programs = |name: &str| {
        let named = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
        device.ok(&["exec", name, "sh", "-c", named])
    };
    for name in ["with", "without"] {
        until("it sleeps", || programs(name).lines().any(|line| line.trim_end() == "sleep 1000"));
        let waits = || programs(name).lines().any(|line| line.starts_with("sh -c until "));
        assert!(waits(), "the orphan has ended before its time");
        device.ok(&["exec", name, "touch", "/go"]);
        // A dead one that nobody reaped has no words any more.
        until("the orphan ends", || !waits());
    }
    until("an orphan is left dead where nobody reaps", || zombies("without") == 1);
    until("it is reaped", || device.ok(&["logs", "with"]) == "begun\n" && zombies("with") == 0);
    assert!(
        device.ok(&["exec", "with", "cat", "/proc/1/cmdline"]).starts_with("/sbin/docker-init\0--\0sh\0")
    );
    // It is not the first process, which a signal without a handler does not end.
    let began = Instant::now();
    device.ok(&["stop", "-t", "30", "with"]);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(device.inspect(".State.ExitCode", "with"), "143");
    device.ok(&["rm", "-f", "with", "without"]);

    let run = ["run", "--rm", "--init", "--network", "none", "box:1"];
    let code = |program: &[&str]| device.fails(&[&run[..], program].concat());
    assert_eq!(code(&["sh", "-c", "exit 7"]).0, 7);
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]).0, 137);
    let (none, said) = code(&["no-such-program"]);
    assert!(none == 127 && said.contains("no-such-program"), "{said}");
    assert_eq!(code(&["/etc/passwd"]).0, 126);

    // A real-time signal, which Rust's libraries have no name for.
    let traps = "trap 'echo heard' 37; echo begun; while :; do sleep 0.05; done";
    device.ok(&["run", "-d", "--init", "--network", "none", "--name", "rt", "box:1", "sh", "-c", traps]);
    until("it listens", || device.ok(&["logs", "rt"]) == "begun\n");
    device.ok(&["kill", "-s", "RTMIN+3", "rt"]);
    until("it heard", || device.ok(&["logs", "rt"]) == "begun\nheard\n");
    device.ok(&["rm", "-f", "rt"]);

    // At a terminal the program is in front.
    let mut term =
        Terminal::open(&device, (24, 80), &["run", "-it", "--init", "--network", "none", "box:1", "sh"]);
    term.shows("# ");
    term.types("echo cat $((40+2)); cat\r");
    term.shows("cat 42");
    term.types("heard\r");
    term.shows("heard\r\nheard\r\n");
    term.types("\x03");
    term.shows("# ");
    term.types("echo code $?; exit 8\r");
    term.shows("code 130");
    assert_eq!(term.ends().0, Some(8));
}

#[test]
fn a_container_in_the_background_is_logged_entered_stopped_and_removed() {
    let Some(device) = Device::start() else { return };
    device.sleeper("app", &[]);
    until("the log has it", || device.ok(&["logs", "app"]) == "begun\n");
    assert_eq!(device.ok(&["exec", "app", "echo", "inside"]), "inside\n");
    assert_eq!(device.fails(&["exec", "app", "sh", "-c", "exit 5"]).0, 5);
    let none = device.docker(&["exec", "app", "no-such-program"], b"");
    assert_eq!(none.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&none.stdout).contains("exec failed"), "{none:?}");
    assert!(device.ok(&["top", "app"]).contains("sleep"));
    let (code, said) = device.fails(&["rm", "app"]);
    assert!(code == 1 && said.contains("container is running"), "{said}");
    device.ok(&["stop", "app"]);
    assert_eq!(device.inspect(".State.Status", "app"), "exited");
    assert_eq!(device.inspect(".State.ExitCode", "app"), "3");
    assert_eq!(device.ok(&["logs", "app"]), "begun\n");
    device.ok(&["start", "app"]);
    assert_eq!(device.inspect(".State.Running", "app"), "true");
    device.ok(&["kill", "app"]);
    until("killed", || device.inspect(".State.ExitCode", "app") == "137");
    device.ok(&["rm", "app"]);
    assert_eq!(device.ok(&["ps", "-aq"]), "");
}

#[test]
fn a_running_container_outlives_the_engine_and_is_taken_over() {
    let Some(mut device) = Device::start() else { return };
    device.sleeper("app", &[]);
    device.sleeper("ends-meanwhile", &[]);
    let pid = device.inspect(".State.Pid", "app");
    let other: i32 = device.inspect(".State.Pid", "ends-meanwhile").parse().unwrap();
    device.kill_engine();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(other), nix::sys::signal::Signal::SIGTERM).unwrap();
    until("it ended", || !Path::new(&format!("/proc/{other}")).exists());
    device.boot();
    assert_eq!(device.inspect(".State.Pid", "app"), pid);
    assert_eq!(device.inspect(".State.Status", "app"), "running");
    assert_eq!(device.inspect(".State.Status", "ends-meanwhile"), "exited");
    assert_eq!(device.inspect(".State.ExitCode", "ends-meanwhile"), "3");
    assert_eq!(device.ok(&["exec", "app", "echo", "still"]), "still\n");
    // Its image is needed again, and its end is seen.
    let (_, said) = device.fails(&["rmi", "box:1"]);
    assert!(said.contains("is needed"), "{said}");
    device.ok(&["stop", "app"]);
    assert_eq!(device.inspect(".State.ExitCode", "app"), "3");
    device.ok(&["rm", "app", "ends-meanwhile"]);
}

#[test]
fn a_container_that_goes_when_it_ends_goes_with_an_engine_and_with_the_boot() {
    let Some(mut device) = Device::start() else { return };
    let ids = |device: &Device| -> Vec<String> {
        let all =
            ["data/containers", "run/t"].iter().flat_map(|d| std::fs::read_dir(device.path(d)).unwrap());
        all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    let ends = |device: &Device, name: &str| {
        let pid: i32 = device.inspect(".State.Pid", name).parse().unwrap();
        move || {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            until("it ended", || !Path::new(&format!("/proc/{pid}")).exists());
        }
    };
    // One whose volume goes with it is known as long as the volume is there.
    device.sleeper("passing", &["--rm"]);
    device.sleeper("kept", &["--rm", "-v", "/volume"]);
    let id = |name: &str| device.inspect(".Id", name);
    let (passing, kept) = (id("passing"), id("kept"));
    let record = |directory: &str, id: &str| device.path(directory).join(id).join("container.json").exists();
    assert!(record("run/t", &passing) && !record("data/containers", &passing));
    assert!(record("data/containers", &kept) && !record("run/t", &kept));
    // It is changed, copied to and started as any other; but it does not start again by itself.
    device.ok(&["rename", "passing", "renamed"]);
    let (_, said) = device.fails(&["update", "--restart", "always", "renamed"]);
    assert!(said.contains("AutoRemove"), "{said}");
    let file = device.path("file");
    std::fs::write(&file, "copied").unwrap();
    device.ok(&["create", "--rm", "--network", "none", "--name", "later", "box:1", "cat", "/file"]);
    device.ok(&["cp", file.to_str().unwrap(), "later:/file"]);
    assert_eq!(device.ok(&["start", "-a", "later"]), "copied");
    until("it is removed", || ids(&device).len() == 3);

    let (end_passing, end_kept) = (ends(&device, "renamed"), ends(&device, "kept"));
    device.kill_engine();
    device.boot();
    assert_eq!(device.inspect(".State.Status", "renamed"), "running");
    device.kill_engine();
    end_passing();
    end_kept();
    device.boot();
    assert_eq!(device.ok(&["ps", "-aq"]), "");
    assert_eq!(device.ok(&["volume", "ls", "-q"]), "");
    assert!(ids(&device).is_empty(), "{:?}", ids(&device));

    // What a power cut leaves: what is on the medium.
    device.sleeper("passing", &["--rm"]);
    let end = ends(&device, "passing");
    device.kill_engine();
    end();
    std::fs::remove_dir_all(device.path("run/t")).unwrap();
    device.boot();
    assert_eq!(device.ok(&["ps", "-aq"]), "");
    assert!(ids(&device).is_empty(), "{:?}", ids(&device));
}

#[test]
fn an_image_is_saved_removed_and_loaded_again() {
    let Some(device) = Device::start() else { return };
    let archive = device.path("saved.tar");
    let archive = archive.to_str().unwrap();
    let id = device.inspect(".Id", "box:1");
    device.ok(&["save", "-o", archive, "box:1"]);
    device.ok(&["rmi", "box:1"]);
    assert_eq!(device.ok(&["images", "-q"]), "");
    let loaded = device.ok(&["load", "-i", archive]);
    assert!(loaded.contains("Loaded image: box:1"), "{loaded}");
    assert_eq!(device.inspect(".Id", "box:1"), id);
    assert_eq!(device.run(&["echo", "again"]).stdout, b"again\n");
}

#[test]
fn files_are_copied_in_and_out() {
    let Some(device) = Device::start() else { return };
    let file = device.path("file");
    std::fs::write(&file, "content\n").unwrap();
    let file = file.to_str().unwrap();
    device.sleeper("app", &[]);
    device.ok(&["create", "--network", "none", "--name", "never-ran", "box:1"]);
    for name in ["app", "never-ran"] {
        // Into a directory, under a new name, and over a file.
        device.ok(&["cp", file, &format!("{name}:/tmp/")]);
        device.ok(&["cp", file, &format!("{name}:/tmp/other")]);
        device.ok(&["cp", file, &format!("{name}:/tmp/file")]);
        for there in ["file", "other"] {
            let back = device.path("back");
            device.ok(&["cp", &format!("{name}:/tmp/{there}"), back.to_str().unwrap()]);
            assert_eq!(std::fs::read_to_string(&back).unwrap(), "content\n");
        }
        let (code, said) = device.fails(&["cp", file, &format!("{name}:/no/such/")]);
        assert!(code == 1, "{said}");
        let tree = device.path(&format!("tree-{name}"));
        device.ok(&["cp", &format!("{name}:/tmp/."), tree.to_str().unwrap()]);
        assert!(tree.join("other").is_file());
        std::fs::create_dir(device.path(&format!("etc-{name}"))).unwrap();
        let into = device.path(&format!("etc-{name}"));
        device.ok(&["cp", &format!("{name}:/etc/"), into.to_str().unwrap()]);
        assert!(into.join("etc/passwd").is_file());
    }
    assert_eq!(device.ok(&["exec", "app", "cat", "/tmp/file", "/tmp/other"]), "content\ncontent\n");
    assert_eq!(device.ok(&["exec", "app", "stat", "-c", "%a %F", "/tmp"]), "1777 directory\n");
    device.ok(&["rm", "-f", "app", "never-ran"]);
}

#[test]
fn a_container_is_paused_watched_and_measured() {
    let Some(device) = Device::start() else { return };
    device.sleeper(
        "app",
        &["--health-cmd", "test ! -e /tmp/sick", "--health-interval", "300ms", "--health-retries", "2"],
    );
    let health = || device.inspect(".State.Health.Status", "app");
    until("healthy", || health() == "healthy");
    device.ok(&["exec", "app", "touch", "/tmp/sick"]);
    until("unhealthy", || health() == "unhealthy");
    device.ok(&["pause", "app"]);
    assert_eq!(device.inspect(".State.Status", "app"), "paused");
    let (code, said) = device.fails(&["exec", "app", "true"]);
    assert!(code == 1 && said.contains("paused"), "{said}");
    device.ok(&["unpause", "app"]);
    assert_eq!(device.ok(&["exec", "app", "echo", "awake"]), "awake\n");
    let stats =
        device.ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}}", "app"]);
    assert!(stats.starts_with("app ") && stats.contains('%'), "{stats}");
    device.ok(&["update", "--restart", "on-failure", "app"]);
    assert_eq!(device.inspect(".HostConfig.RestartPolicy.Name", "app"), "on-failure");
    // A limit is set where the kernel gives the controller; else the refusal says which file is missing.
    let controllers = std::fs::read_to_string(device.groups().join("cgroup.controllers")).unwrap();
    let update = device.docker(&["update", "--pids-limit", "77", "app"], b"");
    if controllers.split_whitespace().any(|c| c == "pids") {
        assert!(update.status.success(), "{}", String::from_utf8_lossy(&update.stderr));
        let id = device.inspect(".Id", "app");
        assert_eq!(std::fs::read_to_string(device.groups().join(id).join("pids.max")).unwrap(), "77\n");
    } else {
        eprintln!("skipped: no pids controller here, so only the refusal of a limit is seen");
        assert!(String::from_utf8_lossy(&update.stderr).contains("pids.max"));
    }
    device.ok(&["rm", "-f", "app"]);
}

#[test]
fn containers_of_a_network_know_each_other_by_name_and_others_do_not() {
    let Some(device) = Device::start() else { return };
    let listed = device.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]);
    for network in ["bridge bridge local", "host host local", "none null local"] {
        assert!(listed.contains(network), "{listed}");
    }
    let id = device.ok(&["network", "create", "--label", "of=test", "shop"]);
    device.ok(&["network", "create", "--subnet", "10.77.0.0/24", "other"]);
    assert_eq!(
        device.ok(&["network", "inspect", "-f", "{{.Id}} {{.Labels.of}}", "shop"]),
        format!("{} test\n", id.trim())
    );
    device.web("db", &["--network", "shop", "--network-alias", "store"]);
    let address = device.inspect(".NetworkSettings.Networks.shop.IPAddress", "db");
    let gateway = device.inspect(".NetworkSettings.Networks.shop.Gateway", "db");
    assert_eq!(device.inspect(".NetworkSettings.Networks.shop.NetworkID", "db"), id.trim());
    assert!(device.ok(&["network", "inspect", "shop"]).contains(&format!("{address}/16")));

    until("the server answers by its name", || device.asks("shop", "db:9000").is_some());
    for host in ["db", "store", "db.shop", &address] {
        let told = device.asks("shop", &format!("{host}:9000")).unwrap_or_else(|| panic!("{host}"));
        assert!(told.starts_with("db saw "), "{told}");
    }
    for network in ["other", "bridge"] {
        assert_eq!(device.asks(network, "db:9000"), None);
        assert_eq!(device.asks(network, &format!("{address}:9000")), None);
    }
    let files = device.ok(&["exec", "db", "cat", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"]);
    assert!(files.starts_with(&format!("nameserver {gateway}\noptions ndots:0\n")), "{files}");
    assert!(files.contains(&format!("{address}\tdb\n")) && files.ends_with("db\n"), "{files}");

    // Another network while it runs, and out of it again.
    device.ok(&["network", "connect", "--ip", "10.77.0.9", "--alias", "second", "other", "db"]);
    let (_, said) = device.fails(&["network", "connect", "other", "db"]);
    assert!(said.contains("already exists in network other"), "{said}");
    for host in ["db", "second", "10.77.0.9"] {
        assert!(device.asks("other", &format!("{host}:9000")).is_some(), "{host}");
    }
    assert!(device.ok(&["exec", "db", "cat", "/etc/hosts"]).contains("10.77.0.9\tdb\n"));
    device.ok(&["rename", "db", "renamed"]);
    assert!(device.asks("shop", "renamed:9000").is_some());
    assert_eq!(device.asks("shop", "db.shop:9000").map(|_| ()), Some(()), "the host name stays a name");
    device.ok(&["network", "disconnect", "other", "renamed"]);
    assert_eq!(device.asks("other", "second:9000"), None);
    assert!(!device.ok(&["exec", "renamed", "cat", "/etc/hosts"]).contains("10.77.0.9"));
    let (_, said) = device.fails(&["network", "disconnect", "other", "renamed"]);
    assert!(said.contains("is not connected to network other"), "{said}");

    // What shares its network with it.
    assert_eq!(device.asks("container:renamed", "127.0.0.1:9000").as_deref(), Some("db saw 127.0.0.1"));

    // Refusals in Docker's words.
    for (arguments, text) in [
        (&["network", "rm", "shop"][..], "has active endpoints"),
        (&["network", "rm", "bridge"], "is a pre-defined network and cannot be removed"),
        (&["network", "create", "shop"], "network with name shop already exists"),
        (
            &["network", "create", "--subnet", "10.77.0.0/16", "x"],
            "Pool overlaps with other one on this address space",
        ),
        (&["network", "create", "-d", "macvlan", "x"], "is not supported by this engine"),
        (&["network", "inspect", "nope"], "network nope not found"),
        (&["network", "connect", "host", "renamed"], "connected to host network"),
        (&["run", "--rm", "--network", "nope", "box:1", "true"], "network nope not found"),
        (
            &["run", "--rm", "--network", "other", "--ip", "10.9.9.9", "box:1", "true"],
            "no configured subnet contains IP address 10.9.9.9",
        ),
        (&["run", "--rm", "--ip", "172.17.0.9", "box:1", "true"], "supported on user defined networks only"),
    ] {
        let (code, said) = device.fails(arguments);
        assert!(code != 0 && said.contains(text), "{arguments:?}: {said}");
    }
    device.ok(&["create", "--name", "kept", "--network", "other", "box:1"]);
    device.ok(&["network", "create", "unused"]);
    let pruned = device.ok(&["network", "prune", "-f"]);
    assert!(pruned.contains("unused") && !pruned.contains("other") && !pruned.contains("shop"), "{pruned}");
    device.ok(&["rm", "-f", "renamed", "kept"]);
    device.ok(&["network", "rm", "shop", "other"]);
    assert_eq!(device.links().len(), 1, "{:?}", device.links());
}

#[test]
fn a_network_that_asks_for_ipv6_has_both_and_another_one_has_none() {
    let Some(device) = Device::start() else { return };
    device.ok(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "10.78.0.0/24",
        "--subnet",
        "fd00:78::/64",
        "six",
    ]);
    device.ok(&["network", "create", "--ipv6", "chosen"]);
    let chosen = device.ok(&[
        "network",
        "inspect",
        "-f",
        "{{.EnableIPv6}} {{range .IPAM.Config}}{{.Subnet}} {{end}}",
        "chosen",
    ]);
    assert!(chosen.starts_with("true ") && chosen.contains("::/64"), "{chosen}");
    let place = ["--network", "six", "--ip6", "fd00:78::9", "-p", "8080:9000"];
    let web = ["box:1", "httpd", "-f", "-p", "[::]:9000", "-h", "/www"];
    device.ok(&[&["run", "-d", "--name", "db", "--hostname", "db"][..], &place, &web].concat());
    let field = |field: &str| device.inspect(&format!(".NetworkSettings.Networks.six.{field}"), "db");
    assert_eq!(field("GlobalIPv6Address"), "fd00:78::9");
    assert_eq!(field("GlobalIPv6PrefixLen"), "64");
    assert_eq!(field("IPv6Gateway"), "fd00:78::1");

    let says = |network: &str, script: &str| {
        let output = device.docker(&["run", "--rm", "--network", network, "box:1", "sh", "-c", script], b"");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let ask = "timeout 3 ask fd00:78::9 9000 /cgi-bin/who; exit $?";
    until("it answers by IPv6", || says("six", ask).is_some());
    let told = says("six", ask).unwrap();
    assert!(told.contains("db saw") && told.contains("fd00:78::"), "{told}");
    for name in ["db", "db.six"] {
        let found = says("six", &format!("nslookup -type=aaaa {name}")).unwrap_or_default();
        assert!(found.contains("fd00:78::9"), "{name}: {found}");
    }
    for network in ["chosen", "bridge"] {
        assert_eq!(says(network, ask), None, "{network}");
    }
    let none = says("bridge", "cat /proc/net/if_inet6").unwrap();
    assert!(none.lines().all(|line| line.ends_with(" lo")), "{none}");
    assert!(device.ok(&["port", "db"]).contains("[::]:8080"), "{}", device.ok(&["port", "db"]));

    let (code, said) = device.fails(&[
        "run",
        "-d",
        "--name",
        "own",
        "--network",
        "six",
        "-p",
        "[::1]:8081:9000",
        "box:1",
        "true",
    ]);
    assert!(code == 125 && said.contains("publish it at 127.0.0.1"), "{said}");
    let (_, said) =
        device.fails(&["run", "--rm", "--network", "chosen", "--ip6", "fd00:78::8", "box:1", "true"]);
    assert!(said.contains("fd00:78::8"), "{said}");
    device.ok(&["rm", "-f", "db", "own"]);
    device.ok(&["network", "rm", "six", "chosen"]);
    assert_eq!(device.links().len(), 1, "{:?}", device.links());
}

#[test]
fn a_published_port_shows_who_asks_and_stays_while_the_engine_is_away() {
    let Some(mut device) = Device::start() else { return };
    let outside = Outside::new(&device);
    assert_eq!(outside.asks(8080), None);
    device.web("web", &["-p", "8080:9000"]);
    until("it answers outside", || outside.asks(8080).is_some());
    let seen = Some("web saw 203.0.113.2".to_owned());
    assert_eq!(outside.asks(8080), seen);
    assert_eq!(device.ok(&["port", "web"]), "9000/tcp -> 0.0.0.0:8080\n");
    assert!(device.ok(&["ps"]).contains("0.0.0.0:8080->9000/tcp"));
    // By the host's own loopback it sees its gateway, and a neighbour gets there by the host's address.
    let local = told(device.holder.id(), "127.0.0.1", 8080, "/cgi-bin/who").unwrap();
    assert!(local.starts_with("web saw 172."), "{local}");
    assert!(device.asks("bridge", "203.0.113.1:8080").is_some());
    let (code, said) = device.fails(&["run", "-d", "--name", "late", "-p", "8080:9000", "box:1", "true"]);
    assert!(code == 125 && said.contains("port is already allocated"), "{said}");
    device.ok(&["rm", "late"]);
    device.web("next", &["-p", "8080-8090:9000", "-p", "127.0.0.1::9000"]);
    assert!(device.ok(&["port", "next", "9000/tcp"]).contains("0.0.0.0:8081\n"));
    until("the next answers outside", || outside.asks(8081).is_some());

    device.kill_engine();
    assert_eq!(outside.asks(8080), seen);
    device.boot();
    assert_eq!(outside.asks(8080), seen);
    assert_eq!(device.ok(&["port", "web"]), "9000/tcp -> 0.0.0.0:8080\n");
    let address = device.inspect(".NetworkSettings.IPAddress", "web");
    device.ok(&["restart", "-t", "0", "web"]);
    assert_eq!(device.inspect(".NetworkSettings.IPAddress", "web"), address);
    until("it answers again", || outside.asks(8080) == seen);
    device.ok(&["stop", "-t", "0", "web"]);
    assert_eq!(outside.asks(8080), None);
    assert_eq!(device.inspect(".NetworkSettings.IPAddress", "web"), "");
    device.ok(&["rm", "-f", "web", "next"]);
    assert_eq!(device.links().len(), 1, "{:?}", device.links());
}

#[test]
fn what_an_engine_that_is_gone_left_behind_goes() {
    let Some(mut device) = Device::start() else { return };
    device.ok(&["network", "create", "shop"]);
    device.web("stays", &["--network", "shop", "-p", "8080:9000"]);
    device.web("ends", &["--network", "shop", "-p", "8081:9000"]);
    let pid: i32 = device.inspect(".State.Pid", "ends").parse().unwrap();
    assert_eq!(device.links().len(), 4, "{:?}", device.links());
    device.kill_engine();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("it ended", || !Path::new(&format!("/proc/{pid}")).exists());
    for command in [
        "ip link add riv-left type bridge",
        "ip link add riv-leftover type veth peer name x",
        "ip link add rib-leftover type bridge",
    ] {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--net=/proc/{}/ns/net", device.holder.id())).args(command.split(' '));
        assert!(enter.status().unwrap().success(), "{command}");
    }
    device.boot();
    assert_eq!(device.inspect(".State.Status", "ends"), "exited");
    let left = device.links();
    // What has our prefix and is none of ours in kind is somebody else's.
    assert_eq!(left.iter().filter(|link| *link != "riv-left").count(), 3, "{left:?}");
    assert_eq!(std::fs::read_dir(device.path("run/n")).unwrap().count(), 1);
    assert!(device.asks("shop", "stays:9000").is_some());
    // The port of the one that ended is free.
    device.web("other", &["--network", "shop", "-p", "8081:9000"]);
    device.ok(&["rm", "-f", "stays", "ends", "other"]);
    device.ok(&["network", "rm", "shop"]);
}

#[test]
fn the_hosts_services_are_closed_to_containers_unless_a_network_opens_them() {
    let Some(device) = Device::start() else { return };
    device.ok(&["network", "create", "-o", "rustiot.host-ports=7000/tcp", "open"]);
    let www = device.path("www");
    std::fs::create_dir_all(&www).unwrap();
    std::fs::write(www.join("index.html"), "the host\n").unwrap();
    let service = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", device.holder.id()))
        .args(["busybox", "httpd", "-f", "-p", "7000", "-h"])
        .arg(&www)
        .spawn()
        .unwrap();
    let _service = Service(service);
    until("the host's service answers the host", || {
        told(device.holder.id(), "127.0.0.1", 7000, "/index.html").as_deref() == Some("the host")
    });
    let gets = |network: &str| {
        let add = "host.docker.internal:host-gateway";
        let ask =
            ["sh", "-c", "timeout 3 ask $@; exit $?", "sh", "host.docker.internal", "7000", "/index.html"];
        let all = [&["run", "--rm", "--network", network, "--add-host", add, "box:1"][..], &ask].concat();
        let output = device.docker(&all, b"");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    assert_eq!(gets("bridge"), None);
    assert_eq!(gets("open").as_deref(), Some("the host"));
    // Rules that somebody flushes come back by themselves, and are wanted: without them the service is open.
    if Command::new("nft").arg("--version").output().is_ok() {
        let nft = |arguments: &[&str]| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{}/ns/net", device.holder.id())).arg("nft").args(arguments);
            String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
        };
        nft(&["flush", "ruleset"]);
        until("the rules are back", || nft(&["list", "tables"]).contains("rustiot-networks"));
        assert_eq!(gets("bridge"), None);
    } else {
        eprintln!("skipped: no nft on this machine to flush rules with");
    }
}

#[test]
fn compose_brings_up_services_that_know_each_other() {
    let compose = std::env::var("RUSTIOT_COMPOSE").unwrap_or_else(|_| "docker-compose".to_owned());
    let version =
        Command::new(&compose).args(["version", "--short"]).output().map(|o| o.stdout).unwrap_or_default();
    if !version.starts_with(b"2") && !version.starts_with(b"v2") {
        eprintln!("skipped: no docker-compose of version 2 on this machine");
        return;
    }
    let Some(device) = Device::start() else { return };
    let outside = Outside::new(&device);
    let file = device.path("compose.yaml");
    std::fs::write(
        &file,
        r#"
name: shop
services:
  front:
    image: box:1
    command: ["sh", "-c", "until timeout 3 ask back 9000 /cgi-bin/who > /tmp/told; do sleep 0.2; done; cat /tmp/told; exec httpd -f -p 0.0.0.0:9000 -h /www"]
    hostname: front
    ports: ["8080:9000"]
    networks: [outer, inner]
    depends_on: [back]
  back:
    image: box:1
    command: ["httpd", "-f", "-p", "0.0.0.0:9000", "-h", "/www"]
    hostname: back
    networks: [inner]
networks:
  outer: {}
  inner:
    internal: true
"#,
    )
    .unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(["-k", "2", "60", &compose, "-f"]).arg(&file).args(arguments);
        command.env("DOCKER_HOST", format!("unix://{}", device.path("s").display()));
        command.env("DOCKER_CONFIG", device.path("config"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "compose {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(&["up", "-d"]);
    until("the front has asked the back", || {
        run(&["logs", "--no-log-prefix", "front"]).contains("back saw ")
    });
    until("it answers outside", || outside.asks(8080).is_some());
    assert_eq!(outside.asks(8080).as_deref(), Some("front saw 203.0.113.2"));
    let before = device.ok(&["ps", "-q"]);
    run(&["up", "-d"]);
    assert_eq!(device.ok(&["ps", "-q"]), before);
    run(&["down"]);
    assert_eq!(device.ok(&["ps", "-aq"]), "");
    assert_eq!(device.links().len(), 1, "{:?}", device.links());
    assert_eq!(outside.asks(8080), None);
}

#[test]
fn a_volume_over_a_link_in_another_volume_stays_inside() {
    let Some(device) = Device::start() else { return };
    let host = device.path("owner");
    std::fs::create_dir_all(&host).unwrap();
    let host = host.to_str().unwrap();
    let make = format!("mkdir /v/inside; busybox ln -s /v/inside /v/good; busybox ln -s {host} /v/bad");
    let none = ["run", "--rm", "--network", "none", "-v", "outer:/v"];
    device.ok(&[&none[..], &["box:1", "sh", "-c", &make.replace("mkdir", "busybox mkdir")]].concat());
    // A link to what is in the container is followed, as Docker does.
    let seen =
        [&none[..], &["-v", "inner:/v/good/x", "box:1", "sh", "-c", "echo in > /v/inside/x/file"]].concat();
    device.ok(&seen);
    let file = device.path("data/volumes/inner/_data/file");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "in\n");
    // To what is not there in the container, too: it is made there, and the host's directory stays as it is.
    let reads = format!("cat {host}/x/file /v/bad/x/file");
    let seen = [&none[..], &["-v", "inner:/v/bad/x", "box:1", "sh", "-c", &reads]].concat();
    assert_eq!(device.ok(&seen), "in\nin\n");
    assert_eq!(std::fs::read_dir(host).unwrap().count(), 0);
    assert!(device.mounts().iter().all(|m| !m.starts_with(host)), "{:?}", device.mounts());
}

#[test]
fn a_mount_over_a_link_of_the_image_goes_where_the_link_leads() {
    let Some(device) = Device::start() else { return };
    let own = device.path("own");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("file"), "of the host\n").unwrap();
    let bind = format!("{}:/data/bound", own.display());
    let none = ["run", "--rm", "--network", "none"];
    for (mount, place, reads) in [
        (["-v", "kept:/data"], "/srv/app/data", ""),
        (["-v", "kept:/data/in/it"], "/srv/app/data/in/it", ""),
        (["--tmpfs", "/data/tmp"], "/srv/app/data/tmp", ""),
        (["-v", &bind], "/srv/app/data/bound", "of the host\n"),
    ] {
        let shows = format!("cat {place}/file 2>/dev/null; busybox grep -o ' {place} ' /proc/self/mountinfo");
        let seen = device.ok(&[&none[..], &mount, &["box:1", "sh", "-c", &shows]].concat());
        assert_eq!(seen, format!("{reads} {place} \n"), "{mount:?}");
    }
    // The engine's own files are seen over a volume, and hidden by one that has no place for them.
    let shows = |volume: &str| {
        let named = ["--hostname", "named", "-v", volume, "box:1", "sh", "-c", "cat /etc/hostname || true"];
        device.ok(&[&none[..], &named].concat())
    };
    assert_eq!(shows("etc:/etc"), "named\n");
    let read_only = format!("{}:/etc:ro", own.display());
    assert_eq!(shows(&read_only), "");
    // They go the same way.
    let seen =
        device.ok(&["run", "--rm", "box:1", "cat", "/run/resolve/stub-resolv.conf", "/etc/resolv.conf"]);
    assert!(seen.matches("nameserver ").count() >= 2, "{seen}");
    let (code, said) = device.fails(&[&none[..], &["-v", "kept:/round/x", "box:1", "true"]].concat());
    assert!(code == 125 && said.contains("cannot follow the links to /round/x"), "{said}");
    assert_eq!(device.ok(&["ps", "-aq"]), "");
}

/// A file system that takes no write until this goes.
struct Frozen {
    holder: u32,
    at: PathBuf,
}

impl Frozen {
    fn fsfreeze(&self, way: &str) -> bool {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--mount=/proc/{}/ns/mnt", self.holder)).args(["fsfreeze", way]).arg(&self.at);
        enter.status().unwrap().success()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.fsfreeze("--unfreeze");
    }
}

#[test]
fn the_api_answers_while_the_medium_takes_its_time() {
    let Some(mut device) = Device::bare() else { return };
    let (data, medium) = (device.path("data"), device.path("medium"));
    std::fs::create_dir(&data).unwrap();
    std::fs::File::create(&medium).unwrap().set_len(256 << 20).unwrap();
    let mount = format!(
        "mkfs.ext4 -q {0} && mount -o loop {0} {1} && command -v fsfreeze >/dev/null",
        medium.display(),
        data.display()
    );
    let mut enter = Command::new("nsenter");
    enter.arg(format!("--mount=/proc/{}/ns/mnt", device.holder.id())).args(["sh", "-c", &mount]);
    if !enter.status().unwrap().success() {
        eprintln!("skipped: no loop device, mkfs.ext4 or fsfreeze on this machine");
        return;
    }
    let archive = device.path("box.tar");
    std::fs::write(&archive, image()).unwrap();
    device.boot();
    device.ok(&["load", "-i", archive.to_str().unwrap()]);
    device.sleeper("runs", &[]);
    device.ok(&["create", "--network", "none", "--name", "old", "box:1"]);
    let engine = device.engine.as_ref().unwrap().id();
    // A thread that waits for a frozen file system cannot be interrupted.
    let waiting = || {
        let tasks = std::fs::read_dir(format!("/proc/{engine}/task")).unwrap().flatten();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        stats.filter(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('D'))).count()
    };
    let names = || device.ok(&["ps", "-a", "--format", "{{.Names}}"]);
    let changes = [
        (&["rename", "old", "new"][..], "old"),
        (&["create", "--network", "none", "--name", "made", "-v", "vol:/v", "box:1"], "new"),
        (&["update", "--restart", "always", "new"], "made"),
        (&["volume", "create", "other"], "made"),
    ];
    for (change, there) in changes {
        let before = names();
        assert!(before.contains(there), "{before}");
        let frozen = Frozen { holder: device.holder.id(), at: data.clone() };
        assert!(frozen.fsfreeze("--freeze"));
        let mut client = Service(device.command(change).stdout(Stdio::null()).spawn().unwrap());
        until("a thread waits for the medium", || waiting() > 0);
        let began = Instant::now();
        device.ok(&["version"]);
        assert_eq!(names(), before, "nobody is told before the medium has it");
        assert_eq!(device.ok(&["exec", "runs", "echo", "inside"]), "inside\n");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert!(client.0.try_wait().unwrap().is_none(), "{change:?} has not waited");
        drop(frozen);
        assert!(client.0.wait().unwrap().success(), "{change:?}");
    }
    let kept = names();
    device.kill_engine();
    device.boot();
    assert_eq!(device.ok(&["ps", "-a", "--format", "{{.Names}}"]), kept);
    assert_eq!(device.inspect(".HostConfig.RestartPolicy.Name", "new"), "always");
    assert_eq!(device.ok(&["volume", "ls", "-q"]), "other\nvol\n");
    device.ok(&["rm", "-f", "runs", "new", "made"]);
}

#[test]
fn what_the_engine_needed_for_a_while_is_given_back() {
    let Some(device) = Device::start() else { return };
    let engine = device.engine.as_ref().unwrap().id();
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{engine}/smaps_rollup")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    for _ in 0..2 {
        device.sleeper("app", &[]);
        device.ok(&["rm", "-f", "app"]);
        let busy = resident();
        until("most of it is given back", || resident() < busy / 2);
        eprintln!("{busy} KiB, and idle {} KiB", resident());
    }
}

#[test]
fn volumes_are_directories_of_the_host_or_memory_if_they_are_told_so() {
    let Some(mut device) = Device::start() else { return };
    let own = device.path("own");
    std::fs::create_dir_all(&own).unwrap();
    let to = format!("device={}", own.display());
    let none = ["run", "--rm", "--network", "none"];
    let create = |name: &str, options: &[&str]| {
        let options: Vec<&str> = options.iter().flat_map(|o| ["-o", o]).collect();
        device.docker(&[&["volume", "create"][..], &options, &[name]].concat(), b"")
    };
    assert!(create("bound", &["type=none", "o=bind", &to]).status.success());
    assert!(create("shown", &["type=none", "o=bind,ro", &to]).status.success());
    assert!(create("memory", &["type=tmpfs", "device=tmpfs", "o=size=1m,mode=0700"]).status.success());
    assert_eq!(
        device.ok(&["volume", "inspect", "-f", "{{.Options.o}} {{.Options.type}}", "memory"]),
        "size=1m,mode=0700 tmpfs\n"
    );
    // The host's directory, filled from the image as any empty volume.
    let all = ["-v", "bound:/etc", "-v", "shown:/v", "box:1", "sh", "-c"];
    let write = "echo in > /etc/new; cat /v/new; echo x > /v/other || echo refused";
    assert_eq!(device.ok(&[&none[..], &all, &[write]].concat()), "in\nrefused\n");
    assert!(own.join("new").is_file() && own.join("passwd").is_file() && !own.join("other").exists());
    let nfs =
        ["--mount", "type=volume,src=odd,dst=/x,volume-opt=type=nfs,volume-opt=device=:/x", "box:1", "true"];
    let (code, said) = device.fails(&[&none[..], &nfs].concat());
    assert!(code == 125 && said.contains("mount it on the host"), "{said}");
    let by_mount = format!(
        "type=volume,src=made,dst=/x,volume-opt=type=none,volume-opt=o=bind,volume-opt=device={}",
        own.display()
    );
    let seen = device.ok(&[&none[..], &["--mount", &by_mount, "box:1", "cat", "/x/new"]].concat());
    assert_eq!(seen, "in\n");
    // Memory is shared as long as one runs with it, whatever the engine does meanwhile.
    let memory = || device.mounts().iter().any(|m| m.ends_with("volumes/memory/_data"));
    device.sleeper("one", &["-v", "memory:/v"]);
    device.sleeper("two", &["-v", "memory:/v"]);
    device.ok(&["exec", "one", "sh", "-c", "echo shared > /v/file"]);
    assert_eq!(device.ok(&["exec", "two", "cat", "/v/file"]), "shared\n");
    assert_eq!(device.ok(&["exec", "two", "stat", "-f", "-c", "%T", "/v"]), "tmpfs\n");
    let full =
        device.docker(&["exec", "one", "sh", "-c", "echo $(cat /bin/busybox /bin/busybox) > /v/x"], b"");
    assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"), "{full:?}");
    device.ok(&["rm", "-f", "one"]);
    assert!(memory());
    device.kill_engine();
    device.boot();
    assert_eq!(device.ok(&["exec", "two", "cat", "/v/file"]), "shared\n");
    let memory = || device.mounts().iter().any(|m| m.ends_with("volumes/memory/_data"));
    device.ok(&["rm", "-f", "two"]);
    until("memory goes with the last that has it", || !memory());
    let gone = device.ok(&[&none[..], &["-v", "memory:/v", "box:1", "ls", "/v"]].concat());
    assert_eq!(gone, "");
    // What is removed is the volume, and not the host's directory.
    device.ok(&["volume", "rm", "bound", "shown", "memory", "made"]);
    assert!(own.join("new").is_file());
    for (options, said) in [
        (&["type=nfs", "o=addr=h", "device=:/x"][..], "mount it on the host"),
        (&["o=bind"], "missing required option"),
        (&["size=1g"], "no quota"),
    ] {
        let options: Vec<&str> = options.iter().flat_map(|o| ["-o", o]).collect();
        let (code, text) = device.fails(&[&["volume", "create"][..], &options, &["odd"]].concat());
        assert!(code == 1 && text.contains(said), "{text}");
    }
    assert_eq!(device.ok(&["volume", "ls", "-q"]), "");
}

#[test]
fn an_owner_turns_containers_off_and_on_again() {
    let Some(mut device) = Device::start() else { return };
    device.sleeper("app", &["--restart", "always"]);
    let pid = device.inspect(".State.Pid", "app");
    device.kill_engine();
    std::fs::write(device.path("settings.json"), r#"{"engine":{"enabled":false}}"#).unwrap();
    device.boot();
    let (code, said) = device.fails(&["ps"]);
    assert!(code == 1 && said.contains("[engine] enabled = false in rustiot.toml"), "{said}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the container runs on");
    device.kill_engine();
    std::fs::write(device.path("settings.json"), r#"{"engine":{"log_size":"64K"}}"#).unwrap();
    device.boot();
    until("it runs again", || device.inspect(".State.Running", "app") == "true");
    device.ok(&["rm", "-f", "app"]);
}

#[test]
fn events_are_told_as_they_happen() {
    let Some(device) = Device::start() else { return };
    let mut watch = device.command(&["events", "--filter", "container=seen", "--format", "{{.Action}}"]);
    let shown = device.path("events");
    let file = std::fs::File::create(&shown).unwrap();
    let _watch = Service(watch.stdin(Stdio::null()).stdout(file).spawn().unwrap());
    let read = || std::fs::read_to_string(&shown).unwrap();
    // Until the first is heard: the client takes its time to listen.
    until("events are heard", || {
        device.sleeper("seen", &[]);
        device.ok(&["rm", "-f", "seen"]);
        read().contains("destroy")
    });
    device.ok(&["run", "--rm", "--network", "none", "--name", "other", "box:1", "true"]);
    let before = read().len();
    device.sleeper("seen", &[]);
    device.ok(&["stop", "seen"]);
    device.ok(&["rm", "seen"]);
    until("the end is told", || read().get(before..).is_some_and(|new| new.contains("destroy")));
    let told: Vec<String> = read().get(before..).unwrap().lines().map(str::to_owned).collect();
    let place =
        |action: &str| told.iter().position(|t| t == action).unwrap_or_else(|| panic!("{action}: {told:?}"));
    assert!(
        place("create") < place("start") && place("start") < place("die") && place("die") < place("destroy")
    );
}
