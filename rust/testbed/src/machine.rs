//! The machine itself. [`Off`] is one without power: its disk and firmware variables can be
//! changed, damaged, copied. [`Machine`] is one that runs. `power_on` and `power_cut` turn one into
//! the other, so a test cannot flip a bit of what is not there or talk to what does not run.

use crate::agent::Agent;
use crate::disk::{self, Disk};
use crate::host::{Process, Tools, start};
use crate::{Console, Error, Event, Output, Qmp, Result, gdb};
use rustiot_scratch::Scratch;
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Longest path of a unix socket, bytes, without the closing zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// QEMU itself has to come up, on a machine that is busy with others.
const QEMU_STARTS: Duration = Duration::from_secs(60);
/// A guest's memory has to be written or read.
const MEMORY_MOVES: Duration = Duration::from_secs(180);
/// How long a guest agent that is there takes to answer.
const AGENT_ANSWERS: Duration = Duration::from_secs(15);
/// Between two looks at what has no event.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

const QEMU_LOG: &str = "qemu.log";
const SERIAL_LOG: &str = "serial.log";
const VARS: &str = "vars.fd";
const MEMORY: &str = "memory";
const SNAPSHOT_DISK: &str = "disk.qcow2";

/// What kind of machine: everything that does not change while it lives.
#[derive(Debug, Clone)]
pub struct Spec {
    /// QEMU's program in the toolbox.
    pub program: String,
    /// `-machine`.
    pub machine: String,
    /// `-cpu`.
    pub cpu: String,
    /// `-smp`.
    pub cpus: u32,
    /// `-m`, MiB.
    pub memory_mib: u32,
    /// `-accel`; `tcg` works everywhere.
    pub accel: String,
    /// One `-device` each; a watchdog belongs here.
    pub devices: Vec<String>,
    /// Further arguments.
    pub args: Vec<String>,
    /// What runs before the loader.
    pub firmware: Firmware,
    /// Where QEMU comes from.
    pub tools: Tools,
}

/// What runs before the loader. Code paths are those inside the toolbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// Two flash chips: code, and the variables, of which each machine has its own copy.
    Pflash {
        /// The code, read-only.
        code: PathBuf,
        /// The variables' first content, as a path of the host.
        vars: PathBuf,
    },
    /// `-bios`.
    Bios(PathBuf),
}

/// A machine without power.
#[derive(Debug)]
pub struct Off {
    spec: Spec,
    dir: Scratch,
    /// Its medium; put another one in its place to swap it.
    pub disk: Disk,
    /// Watchdog resets so far, of all its lives.
    watchdog_resets: usize,
}

/// A machine that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Machine {
    off: Off,
    process: Process,
    qmp: Qmp,
    console: Console,
    agent: Agent,
    ssh_port: u16,
}

/// A running machine on disk: what [`Machine::save`] wrote and [`Snapshot::restore`] wakes again,
/// any number of times.
#[derive(Debug, Clone)]
pub struct Snapshot {
    spec: Spec,
    dir: PathBuf,
}

impl Spec {
    /// One more disk, the raw image `path`, which the guest finds as `/dev/disk/by-id/virtio-NAME`. `fixed`: it cannot be
    /// written to. The path must be one that QEMU sees too.
    pub fn add_disk(&mut self, name: &str, path: &Path, fixed: bool) {
        let file = json!({"driver": "file", "filename": path, "read-only": fixed});
        let node = json!({"driver": "raw", "node-name": name, "read-only": fixed, "file": file});
        self.args.extend(["-blockdev".into(), node.to_string()]);
        self.devices.push(format!("virtio-blk-pci,drive={name},serial={name}"));
    }
}

impl Off {
    /// A new machine that has never run. `dir` takes its logs, sockets and firmware variables.
    pub fn new(spec: Spec, disk: Disk, dir: Scratch) -> Result<Self> {
        if let Firmware::Pflash { vars, .. } = &spec.firmware {
            let own = dir.file(VARS);
            std::fs::copy(vars, &own).map_err(Error::io("copy", vars))?;
        }
        Ok(Off { spec, dir, disk, watchdog_resets: 0 })
    }

    /// Where its logs are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its kind.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its kind, to be changed for the next time that it is switched on.
    pub fn spec_mut(&mut self) -> &mut Spec {
        &mut self.spec
    }

    /// The firmware's variables (a UEFI store), if it has any.
    pub fn vars(&self) -> PathBuf {
        self.dir.file(VARS)
    }

    /// Watchdog resets in all its lives so far.
    pub fn watchdog_resets(&self) -> usize {
        self.watchdog_resets
    }

    /// Forgets the firmware's variables, as a board with a dead battery does.
    pub fn clear_vars(&self) -> Result<()> {
        if let Firmware::Pflash { vars, .. } = &self.spec.firmware {
            std::fs::copy(vars, self.vars()).map_err(Error::io("copy", vars))?;
        }
        Ok(())
    }

    /// Turns bit `bit` (0–7) of the byte at `offset` of the disk over. Find a partition's start
    /// with [`crate::partition_start`] on the image that the disk was made from.
    pub fn flip_bit(&self, offset: u64, bit: u8) -> Result<()> {
        let (format, path) = match &self.disk {
            Disk::Overlay { path } => ("qcow2", path),
            Disk::Logged { image, .. } => ("raw", image),
        };
        let path = path.to_string_lossy();
        flip(&self.spec.tools, &["-f", format, &path], offset, bit)
    }

    /// The disk's content as a raw image with holes, at `path`.
    pub fn export_disk(&self, path: &Path) -> Result<()> {
        disk::flatten(&self.spec.tools, self.disk.path(), path)
    }

    /// Switches it on.
    pub fn power_on(self) -> Result<Machine> {
        self.launch(None, false)
    }

    /// The same, ready to go on when this process ends: from [`Machine::detach`] on.
    pub fn power_on_detached(self) -> Result<Machine> {
        self.launch(None, true)
    }

    fn launch(self, memory: Option<&Path>, outlives: bool) -> Result<Machine> {
        self.disk.prepare()?;
        let sockets = ["qmp", "con", "qga"].map(|name| self.dir.file(name));
        for socket in &sockets {
            if socket.as_os_str().len() > SOCKET_PATH_MAX {
                return Err(Error::PathTooLong { path: socket.clone() });
            }
            match std::fs::remove_file(socket) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", socket)(e));
                }
                _ => {}
            }
        }
        let [qmp, con, qga] = sockets;
        let log = self.dir.file(QEMU_LOG);
        let output = File::options().create(true).append(true).open(&log);
        let output = output.map_err(Error::io("open", &log))?;
        let errors = output.try_clone().map_err(Error::io("open", &log))?;
        let mut command = self.spec.tools.command(&self.spec.program);
        command.args(arguments(&self.spec, &self.disk, self.dir.path(), memory.is_some()));
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut process = start(&self.spec.program, command, outlives)?;
        let qmp = connect(&mut process, &self.spec, &log, || Qmp::connect(&qmp))?;
        let console = connect(&mut process, &self.spec, &log, || Console::connect(&con))?;
        let agent = connect(&mut process, &self.spec, &log, || Agent::connect(&qga))?;
        if let Some(memory) = memory {
            let uri = format!("file:{}", memory.display());
            qmp.run("migrate-incoming", json!({"uri": uri}))?;
            migrated(&qmp)?;
        }
        let ssh_port = forwarded_port(&qmp.human("info usernet")?, 22);
        qmp.run("cont", json!({}))?;
        let ssh_port = ssh_port
            .ok_or(Error::Protocol { from: "QEMU", text: "no forwarded port in info usernet".into() })?;
        Ok(Machine { off: self, process, qmp, console, agent, ssh_port })
    }
}

impl Machine {
    /// Runs `script` with the machine's `/bin/sh` as root and waits for its end.
    pub fn run(&self, script: &str, within: Duration) -> Result<Output> {
        self.agent.run(script, within)
    }

    /// Starts `script` inside and does not wait: for what hangs, reboots or never ends.
    pub fn start(&self, script: &str, within: Duration) -> Result<()> {
        self.agent.start(script, within)
    }

    /// Waits until commands can be run inside.
    pub fn wait_agent(&self, within: Duration) -> Result<()> {
        self.agent.ready(within)
    }

    /// Writes a file inside.
    pub fn put(&self, path: &str, content: &[u8], within: Duration) -> Result<()> {
        self.agent.put(path, content, within)
    }

    /// Reads a file inside.
    pub fn get(&self, path: &str, within: Duration) -> Result<Vec<u8>> {
        self.agent.get(path, within)
    }

    /// Runs `script` by ssh with the private key in the file `key`: the way a person comes in.
    pub fn ssh(&self, key: &Path, script: &str) -> Result<Output> {
        let mut command = std::process::Command::new("ssh");
        command.args(ssh_options(key, self.ssh_port)).arg("root@127.0.0.1").arg(script);
        let spawn = |source| Error::Spawn { program: "ssh".into(), source };
        let output = command.stdin(Stdio::null()).output().map_err(spawn)?;
        Ok(Output {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The port on 127.0.0.1 that leads to the machine's ssh.
    pub fn ssh_port(&self) -> u16 {
        self.ssh_port
    }

    /// The serial console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// QEMU's control socket.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Where its logs are.
    pub fn dir(&self) -> &Path {
        self.off.dir()
    }

    /// QEMU's process.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Pulls the plug: QEMU is killed, and with it everything the guest had not flushed and QEMU
    /// not yet written. For a cut at a chosen instant with a volatile cache see
    /// [`crate::writelog`].
    pub fn power_cut(mut self) -> Off {
        self.process.kill();
        self.into_off()
    }

    /// Asks the machine to go down and waits until it has: through the guest agent, or by the power
    /// button where nobody answers.
    pub fn power_off(mut self, within: Duration) -> Result<Off> {
        ask_to_go_down(&self.agent, &self.qmp)?;
        self.wait_end(within)?;
        Ok(self.into_off())
    }

    /// Waits until the machine has gone down by itself, for whatever reason.
    pub fn wait_off(mut self, within: Duration) -> Result<Off> {
        self.wait_end(within)?;
        Ok(self.into_off())
    }

    fn wait_end(&mut self, within: Duration) -> Result<()> {
        if let Err(error) = self.qmp.wait_closed(within) {
            return Err(match error {
                Error::Timeout { what, waited, .. } => {
                    Error::Timeout { what, waited, tail: self.console.tail() }
                }
                other => other,
            });
        }
        // The socket closes a moment before the process ends.
        self.process.kill();
        Ok(())
    }

    fn into_off(self) -> Off {
        let resets = self.watchdog_resets();
        let Machine { mut off, .. } = self;
        off.watchdog_resets = resets;
        off
    }

    /// Presses the reset button.
    pub fn reset(&self) -> Result<()> {
        self.qmp.run("system_reset", json!({})).map(|_| ())
    }

    /// Sends a non-maskable interrupt; with `kernel.unknown_nmi_panic` the kernel panics.
    pub fn nmi(&self) -> Result<()> {
        self.qmp.run("inject-nmi", json!({})).map(|_| ())
    }

    /// Hangs the guest's kernel for good, with interrupts off and without the guest's help; only
    /// the watchdog (or a reset) ends it. Waits until all processors are in the kernel.
    pub fn hang(&self, within: Duration) -> Result<()> {
        let arch = match self.off.spec.program.ends_with("aarch64") {
            true => gdb::Arch::AARCH64,
            false => gdb::Arch::X86_64,
        };
        let socket = self.off.dir.file("gdb");
        self.qmp.human(&format!("gdbserver unix:{},server=on,wait=off", socket.display()))?;
        let hung = gdb::hang(&socket, arch, within);
        self.qmp.human("gdbserver none")?;
        hung
    }

    /// Makes the guest's TCP port `guest` reachable; the port of 127.0.0.1 that leads to it.
    pub fn forward(&self, guest: u16) -> Result<u16> {
        self.qmp.human(&format!("hostfwd_add net0 tcp:127.0.0.1:0-:{guest}"))?;
        forwarded_port(&self.qmp.human("info usernet")?, guest)
            .ok_or(Error::Protocol { from: "QEMU", text: format!("port {guest} is not forwarded") })
    }

    /// Plugs the network cable in or pulls it out.
    pub fn set_link(&self, up: bool) -> Result<()> {
        self.qmp.run("set_link", json!({"name": "net0", "up": up})).map(|_| ())
    }

    /// Turns one bit of the running machine's medium over, behind the guest's back. What the
    /// guest has in its page cache stays there.
    pub fn flip_bit(&self, offset: u64, bit: u8) -> Result<()> {
        let socket = self.off.dir.file("nbd");
        let address = json!({"type": "unix", "data": {"path": socket.to_string_lossy()}});
        self.qmp.run("nbd-server-start", json!({"addr": address}))?;
        let export = json!({"type": "nbd", "id": "flip", "node-name": "disk", "writable": true});
        let url = format!("nbd+unix:///disk?socket={}", socket.display());
        let flipped = self
            .qmp
            .run("block-export-add", export)
            .and_then(|_| flip(&self.off.spec.tools, &["-f", "raw", &url], offset, bit));
        self.qmp.run("nbd-server-stop", json!({}))?;
        flipped
    }

    /// A mark in the machine's life: pass it to the waits below.
    pub fn mark(&self) -> usize {
        self.qmp.mark()
    }

    /// What QEMU told since `mark`.
    pub fn events(&self, mark: usize) -> Vec<Event> {
        self.qmp.events(mark)
    }

    /// Waits until the watchdog fired after `mark`.
    pub fn wait_watchdog(&self, mark: usize, within: Duration) -> Result<Event> {
        self.with_console_tail(self.qmp.wait("WATCHDOG", mark, within))
    }

    fn with_console_tail<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            Error::Timeout { what, waited, .. } => Error::Timeout { what, waited, tail: self.console.tail() },
            Error::Ended { what, .. } => Error::Ended { what, tail: self.console.tail() },
            other => other,
        })
    }

    /// How often the watchdog has fired in all its lives.
    pub fn watchdog_resets(&self) -> usize {
        let now = self.qmp.events(0).iter().filter(|event| event.name == "WATCHDOG").count();
        self.off.watchdog_resets.saturating_add(now)
    }

    /// Freezes the machine into `dir` and ends it. Only for machines with an overlay disk.
    pub fn save(mut self, dir: &Path) -> Result<Snapshot> {
        let part = dir.with_extension("part");
        let _ = std::fs::remove_dir_all(&part);
        let part = Scratch::adopt(part)?;
        let fresh = part.path();
        self.qmp.run("stop", json!({}))?;
        let uri = format!("file:{}", fresh.join(MEMORY).display());
        self.qmp.run("migrate", json!({"uri": uri}))?;
        migrated(&self.qmp)?;
        self.qmp.run("quit", json!({}))?;
        self.wait_end(MEMORY_MOVES)?;
        let spec = self.off.spec.clone();
        let disk = fresh.join(SNAPSHOT_DISK);
        std::fs::copy(self.off.disk.path(), &disk).map_err(Error::io("copy", &disk))?;
        if matches!(spec.firmware, Firmware::Pflash { .. }) {
            let vars = self.off.vars();
            std::fs::copy(&vars, fresh.join(VARS)).map_err(Error::io("copy", &vars))?;
        }
        // Whoever finds the directory under its final name finds all of it.
        let _ = std::fs::remove_dir_all(dir);
        std::fs::rename(fresh, dir).map_err(Error::io("rename", fresh))?;
        Ok(Snapshot { spec, dir: dir.to_path_buf() })
    }

    /// Lets it live on after this process, and its directory with it. Only for machines of
    /// [`Snapshot::restore_detached`].
    pub fn detach(mut self) {
        self.off.dir.keep();
        self.process.detach();
    }
}

impl Snapshot {
    /// The snapshot that an earlier [`Machine::save`] of the same `spec` left in `dir`, if it did.
    pub fn open(spec: Spec, dir: &Path) -> Option<Self> {
        dir.join(MEMORY).is_file().then(|| Snapshot { spec, dir: dir.to_path_buf() })
    }

    /// The disk as it was, for copies and overlays of it.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(SNAPSHOT_DISK)
    }

    /// A machine without power that has this snapshot's disk and firmware variables.
    pub fn off(&self, dir: Scratch) -> Result<Off> {
        let path = dir.file("disk.qcow2");
        let disk = Disk::overlay(&self.spec.tools, &self.disk(), &path, None)?;
        self.off_with(disk, dir)
    }

    fn off_with(&self, disk: Disk, dir: Scratch) -> Result<Off> {
        let off = Off::new(self.spec.clone(), disk, dir)?;
        if matches!(self.spec.firmware, Firmware::Pflash { .. }) {
            let vars = self.dir.join(VARS);
            std::fs::copy(&vars, off.vars()).map_err(Error::io("copy", &vars))?;
        }
        Ok(off)
    }

    /// Wakes a machine that is just where the saved one was, with the clock set right.
    pub fn restore(&self, dir: Scratch) -> Result<Machine> {
        self.wake(self.off(dir)?, false)
    }

    /// The same, ready to go on when this process ends: from [`Machine::detach`] on.
    pub fn restore_detached(&self, dir: Scratch) -> Result<Machine> {
        self.wake(self.off(dir)?, true)
    }

    /// The same with a raw disk whose every write is logged from here on.
    pub fn restore_logged(&self, dir: Scratch) -> Result<Machine> {
        let (image, log) = (dir.file("disk.raw"), dir.file("writes.log"));
        let disk = Disk::logged(&self.spec.tools, &self.disk(), &image, &log)?;
        self.wake(self.off_with(disk, dir)?, false)
    }

    fn wake(&self, off: Off, outlives: bool) -> Result<Machine> {
        let machine = off.launch(Some(&self.dir.join(MEMORY)), outlives)?;
        machine.agent.set_time(QEMU_STARTS)?;
        Ok(machine)
    }
}

fn ask_to_go_down(agent: &Agent, qmp: &Qmp) -> Result<()> {
    match agent.start("systemctl poweroff", AGENT_ANSWERS) {
        Ok(()) => Ok(()),
        Err(_) => qmp.run("system_powerdown", json!({})).map(|_| ()),
    }
}

/// Asks the detached machine whose directory is `dir` to go down, and waits until it has.
pub fn power_off_detached(dir: &Path, within: Duration) -> Result<()> {
    let qmp = Qmp::connect(&dir.join("qmp"))?;
    ask_to_go_down(&Agent::connect(&dir.join("qga"))?, &qmp)?;
    qmp.wait_closed(within)
}

/// Options that make ssh come in without asking or remembering anything.
pub fn ssh_options(key: &Path, port: u16) -> Vec<String> {
    let mut options = vec!["-i".into(), key.to_string_lossy().into_owned()];
    options.extend(["-p".into(), port.to_string()]);
    for option in [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "ConnectTimeout=60",
        "LogLevel=ERROR",
    ] {
        options.extend(["-o".into(), option.into()]);
    }
    options
}

/// QEMU's command line.
fn arguments(spec: &Spec, disk: &Disk, dir: &Path, incoming: bool) -> Vec<String> {
    let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(ToString::to_string));
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    // It starts paused, so that nothing is said before anyone listens.
    add(&["-S", "-machine", &spec.machine, "-cpu", &spec.cpu, "-accel", &spec.accel]);
    add(&["-smp", &spec.cpus.to_string(), "-m", &spec.memory_mib.to_string()]);
    match &spec.firmware {
        Firmware::Pflash { code, .. } => {
            let code = format!("if=pflash,format=raw,readonly=on,file={}", code.display());
            add(&["-drive", &code]);
            add(&["-drive", &format!("if=pflash,format=raw,file={}", file(VARS))]);
        }
        Firmware::Bios(code) => add(&["-bios", &code.to_string_lossy()]),
    }
    add(&["-blockdev", &disk.blockdev()]);
    // Shared, so that a bit can be flipped behind the guest's back.
    add(&["-device", "virtio-blk-pci,drive=disk,write-cache=on,share-rw=on"]);
    add(&["-netdev", "user,id=net0,hostfwd=tcp:127.0.0.1:0-:22"]);
    // No option ROM: the firmware would try to boot from the network.
    add(&["-device", "virtio-net-pci,netdev=net0,id=nic0,romfile="]);
    add(&["-object", "rng-random,id=rng0,filename=/dev/urandom"]);
    add(&["-device", "virtio-rng-pci,rng=rng0"]);
    let con = file("con");
    let log = file(SERIAL_LOG);
    add(&["-chardev"]);
    add(&[&format!("socket,id=con,path={con},server=on,wait=off,logfile={log},logappend=on")]);
    add(&["-serial", "chardev:con"]);
    add(&["-device", "virtio-serial-pci"]);
    add(&["-chardev", &format!("socket,id=qga,path={},server=on,wait=off", file("qga"))]);
    add(&["-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"]);
    add(&["-chardev", &format!("socket,id=qmp,path={},server=on,wait=off", file("qmp"))]);
    add(&["-mon", "chardev=qmp,mode=control"]);
    for device in &spec.devices {
        add(&["-device", device]);
    }
    for arg in &spec.args {
        add(&[arg]);
    }
    if incoming {
        add(&["-incoming", "defer"]);
    }
    args
}

/// Tries until QEMU has made its socket, or has ended instead.
fn connect<T>(process: &mut Process, spec: &Spec, log: &Path, open: impl Fn() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        let error = match open() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if let Some(status) = process.ended() {
            spec.tools.found(&spec.program, status)?;
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let tail = said.trim().to_string();
            return Err(Error::Ended { what: "starting QEMU".into(), tail });
        }
        if began.elapsed() > QEMU_STARTS {
            return Err(error);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Waits for a migration, to or from a file, to end.
fn migrated(qmp: &Qmp) -> Result<()> {
    let began = Instant::now();
    loop {
        let state = qmp.run("query-migrate", json!({}))?;
        let text = |key: &str| state.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        match text("status") {
            "completed" => return Ok(()),
            "failed" | "cancelled" => {
                let message = text("error-desc").to_string();
                return Err(Error::Refused { command: "migrate".into(), message });
            }
            status if began.elapsed() > MEMORY_MOVES => {
                return Err(Error::Timeout {
                    what: "the machine's memory".into(),
                    waited: MEMORY_MOVES,
                    tail: status.to_string(),
                });
            }
            _ => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

/// The host port in a line like `TCP[HOST_FORWARD]  12  127.0.0.1 40123  10.0.2.15  22 …`.
fn forwarded_port(usernet: &str, guest: u16) -> Option<u16> {
    usernet.lines().filter(|line| line.contains("HOST_FORWARD")).find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "127.0.0.1").skip(1);
        let host = words.next()?.parse().ok()?;
        (words.nth(1)?.parse() == Ok(guest)).then_some(host)
    })
}

fn flip(tools: &Tools, target: &[&str], offset: u64, bit: u8) -> Result<()> {
    let byte = disk::read_byte(tools, target, offset)?;
    disk::write_byte(tools, target, offset, byte ^ (1 << (bit & 7)))
}

/// Turns one bit of a plain file over: for bundles and raw images.
pub fn flip_bit_in_file(path: &Path, offset: u64, bit: u8) -> Result<()> {
    let file = File::options().read(true).write(true).open(path).map_err(Error::io("open", path))?;
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset).map_err(Error::io("read", path))?;
    byte = byte.map(|byte| byte ^ (1 << (bit & 7)));
    file.write_all_at(&byte, offset).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec() -> Spec {
        Spec {
            program: "qemu-system-x86_64".into(),
            machine: "q35".into(),
            cpu: "max".into(),
            cpus: 2,
            memory_mib: 512,
            accel: "tcg".into(),
            devices: vec!["i6300esb".into()],
            args: vec!["-action".into(), "watchdog=reset".into()],
            firmware: Firmware::Pflash { code: "/fw/code".into(), vars: "/fw/vars".into() },
            tools: Tools::host(),
        }
    }

    #[test]
    fn the_command_line_has_what_the_spec_says() {
        let disk = Disk::Overlay { path: "/m/disk.qcow2".into() };
        let args = arguments(&spec(), &disk, Path::new("/m"), true).join(" ");
        for part in [
            "-machine q35 -cpu max -accel tcg -smp 2 -m 512",
            "file=/fw/code",
            "file=/m/vars.fd",
            "-device i6300esb -action watchdog=reset -incoming defer",
            r#""filename":"/m/disk.qcow2""#,
        ] {
            assert!(args.contains(part), "{part} is not in {args}");
        }
    }

    #[test]
    fn a_logged_disk_has_its_log_in_the_block_graph() {
        let disk = Disk::Logged { image: "/m/i".into(), log: "/m/l".into() };
        let node: serde_json::Value = serde_json::from_str(&disk.blockdev()).unwrap();
        assert_eq!(node.pointer("/driver").unwrap(), "blklogwrites");
        assert_eq!(node.pointer("/log/file/filename").unwrap(), "/m/l");
    }

    #[test]
    fn the_forwarded_port_is_found() {
        let text = "Hub -1 (net0):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  \
            Port RecvQ SendQ\n  TCP[HOST_FORWARD]  15       127.0.0.1 37145       10.0.2.15    22 \
            0     0\n";
        assert_eq!(forwarded_port(text, 22), Some(37145));
        assert_eq!(forwarded_port("nothing", 22), None);
    }

    #[test]
    fn a_qemu_that_cannot_start_says_why() {
        let scratch = Scratch::new(&std::env::temp_dir(), "testbed-machine").unwrap();
        let vars = scratch.file("template");
        std::fs::write(&vars, "").unwrap();
        let mut spec = spec();
        spec.firmware = Firmware::Pflash { code: "/fw/code".into(), vars };
        spec.tools = Tools::new(|_| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "echo no such machine >&2; exit 1", "sh"]);
            command
        });
        let disk = Disk::Overlay { path: scratch.file("disk") };
        let error = Off::new(spec, disk, scratch).unwrap().power_on().unwrap_err();
        assert!(error.to_string().contains("no such machine"), "{error}");
    }

    #[test]
    fn a_machine_boots_the_medium_that_was_put_in_last() {
        let scratch = Scratch::new(&std::env::temp_dir(), "testbed-machine").unwrap();
        let vars = scratch.file("template");
        std::fs::write(&vars, "").unwrap();
        let firmware = Firmware::Pflash { code: "/fw/code".into(), vars };
        // It says what it was started with, and is gone.
        let tools = Tools::new(|_| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "echo \"$@\"; exit 1", "sh"]);
            command
        });
        let (first, second) = (scratch.file("first.qcow2"), scratch.file("second.qcow2"));
        let disk = Disk::Overlay { path: first.clone() };
        let mut off = Off::new(Spec { firmware, tools, ..spec() }, disk, scratch).unwrap();
        off.disk = Disk::Overlay { path: second.clone() };
        let said = off.power_on().unwrap_err().to_string();
        assert!(said.contains(&*second.to_string_lossy()), "{said}");
        assert!(!said.contains(&*first.to_string_lossy()), "{said}");
    }

    #[test]
    fn a_qemu_that_is_not_there_is_named_with_the_remedy() {
        let scratch = Scratch::new(&std::env::temp_dir(), "testbed-machine").unwrap();
        let vars = scratch.file("template");
        std::fs::write(&vars, "").unwrap();
        let firmware = Firmware::Pflash { code: "/fw/code".into(), vars };
        // What the toolbox does in the end.
        let tools = Tools::new(|program| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "exec env -C / \"$@\"", "sh", program]);
            command
        });
        let tools = tools.with_remedy("remove the toolbox, it is built again");
        let spec = Spec { program: "qemu-system-nowhere".into(), firmware, tools, ..spec() };
        let disk = Disk::Overlay { path: scratch.file("disk") };
        let error = Off::new(spec, disk, scratch).unwrap().power_on().unwrap_err();
        let said = "there is no program qemu-system-nowhere: remove the toolbox, it is built again";
        assert_eq!(error.to_string(), said);
    }

    #[test]
    fn a_bit_flipped_twice_is_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"abc").unwrap();
        flip_bit_in_file(&path, 1, 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"acc");
        flip_bit_in_file(&path, 1, 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    }

    proptest! {
        #[test]
        fn any_usernet_text_is_parsed_or_refused(text in "(.*HOST_FORWARD.*127.0.0.1 .*)|.*") {
            let _ = forwarded_port(&text, 22);
        }
    }
}
