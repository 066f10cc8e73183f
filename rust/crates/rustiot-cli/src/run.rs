//! `run`: a board in QEMU with its console on this terminal, for scripts (`--check`), or left to
//! run (`--detach`). The first one builds and boots; later ones wake a snapshot. An image of the
//! caller's (`--image`) is booted from power-on, and never written to.

use crate::args;
use crate::fail::{Done, Fail, Why};
use crate::machines;
use anyhow::{Context as _, Result, anyhow};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rustiot_board::Board;
use rustiot_image::{Context, Plain};
use rustiot_lab::{A, B, Device, Fixtures, Lab, Release, containers};
use serde_json::json;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use testbed::{Disk, FileServer, Machine, Off, Scratch};

/// How long a machine may take to go down.
const GOES_DOWN: Duration = Duration::from_secs(180);
const NO_AGENT: &str = "an image is asked for its health through the guest agent, which production images do not have: \
    without --detach and --check it gets a console";
const CTRL_A: u8 = 1;
const CTRL_C: u8 = 3;

/// A board and what is needed to run it.
pub struct Bench {
    pub lab: Lab,
    pub board: Board,
    pub fixtures: Fixtures,
}

impl Bench {
    /// Opens the lab for one board, telling every build step.
    pub fn open(context: &Context, board: &str) -> Result<Self> {
        let board = rustiot_image::board(context, board)?;
        let lab = Lab::open(context.clone(), &Plain)?;
        Ok(Bench { lab, board, fixtures: Fixtures::new(true) })
    }

    /// A web server with the bundles of `releases`, in a directory that goes with the second value.
    pub fn serve(&self, releases: &[&Release]) -> Result<(FileServer, Scratch)> {
        let dir = self.lab.scratch("www")?;
        for release in releases {
            let bundle = self.fixtures.bundle(&self.lab, &self.board, release)?;
            std::os::unix::fs::symlink(bundle, dir.file(&format!("{}.raucb", release.name)))?;
        }
        Ok((FileServer::start(dir.path())?, dir))
    }
}

/// `rustiot run`.
pub fn run(context: &Context, args: &args::Run) -> Done {
    let json = args.json.json;
    if !args.check && !args.detach && !std::io::stdin().is_terminal() {
        return Err(Fail::usage("no terminal for a console here: use --check or --detach"));
    }
    let image = args.image.as_deref().map(image).transpose()?;
    let image = image.as_deref();
    let bench = Bench::open(context, &args.board.board)?;
    match image {
        _ if args.check => check(&bench, image, json),
        Some(image) if args.detach => detach_image(context, &bench, image, json),
        None if args.detach => detach(context, &bench, args.engine_socket.as_deref(), json),
        Some(image) => interactive_image(&bench, image),
        None => interactive(&bench),
    }
}

/// The whole path of a disk image of the caller's, if it can be one.
fn image(path: &Path) -> Result<PathBuf, Fail> {
    let shown = path.display();
    let wrong = |e| Fail::new(Why::Usage, anyhow!("cannot open the image {shown}: {e}"));
    let whole = path.canonicalize().map_err(wrong)?;
    let file = std::fs::File::open(&whole).map_err(wrong)?;
    let bytes = file.metadata().map_err(wrong)?;
    // Protective MBR (UEFI specification 2.10, 5.2.3): the boot signature that every GPT medium has.
    let mut signature = [0; 2];
    let signed = file.read_exact_at(&mut signature, 510).is_ok() && signature == [0x55, 0xaa];
    if !bytes.is_file() || !signed {
        let hint = "name the raw .img or .wic that `rustiot image build` or kas made (unpack a .zst first)";
        return Err(Fail::usage(format!("{shown} is no disk image; {hint}")));
    }
    Ok(whole)
}

/// A machine that was never switched on, with a medium of the lab's size that begins as `base`.
fn fresh(bench: &Bench, base: &Path, dir: Scratch) -> Result<Off> {
    let tools = bench.lab.tools();
    let medium = bench.fixtures.medium();
    // A larger image keeps its size.
    let bytes = (std::fs::metadata(base)?.len() < medium).then_some(medium);
    let disk = Disk::overlay(&tools, base, &dir.file("disk.qcow2"), bytes)?;
    Ok(Off::new(bench.lab.spec(&bench.board)?, disk, dir)?)
}

/// Boots a fresh medium, says what the device says, powers off.
fn check(bench: &Bench, image: Option<&Path>, json: bool) -> Done {
    let Bench { lab, board, fixtures } = bench;
    let base = match image {
        Some(image) => image.to_owned(),
        None => fixtures.base(lab, board)?,
    };
    let off = fresh(bench, &base, lab.scratch("check")?)?;
    let began = Instant::now();
    let machine = off.power_on()?;
    let boot = machine.wait_healthy();
    let boot = if image.is_some() { boot.context(NO_AGENT)? } else { boot? };
    let healthy_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let version = machine.version()?;
    let slots = machine.wait_settled()?;
    let health = machine.sh("cat /run/rustiot/health.json").ok();
    let health: Option<serde_json::Value> = health.and_then(|text| serde_json::from_str(&text).ok());
    machine.power_off(GOES_DOWN)?;
    if json {
        let told = json!({"board": board.name, "version": version, "healthy": true,
            "power_on_to_healthy_ms": healthy_ms, "boot": boot.raw, "slots": slots, "health": health});
        println!("{told}");
    } else {
        println!("{}: release {version} in slot {}, healthy", board.name, boot.slot);
        println!("power on to healthy: {:.1} s", Duration::from_millis(healthy_ms).as_secs_f64());
        println!("boot: {}", boot.timings_ms);
        println!("powered off");
    }
    Ok(())
}

/// The longest path of a socket: `sun_path` of unix(7), less the end and what ssh adds while it makes it.
const SOCKET_PATH_MAX: usize = 90;

fn detach(context: &Context, bench: &Bench, engine: Option<&Path>, json: bool) -> Done {
    let Bench { lab, board, fixtures } = bench;
    let engine = engine.map(socket_path).transpose()?;
    let snapshot = fixtures.healthy(lab, board)?;
    let (name, dir) = machines::reserve(context, &board.name)?;
    // Until it is noted it ends with us, and its directory goes: nobody could find it.
    let machine = snapshot.restore_detached(Scratch::adopt(dir.clone())?)?;
    let key = lab.ssh_key()?.private;
    let forwarder = engine.as_ref().map(|socket| forward(&key, machine.ssh_port(), socket)).transpose()?;
    let running = machines::note(&dir, &machine, &name, &board.name, A.version, engine.clone())?;
    if let Some(forwarder) = forwarder {
        forwarder.stay();
    }
    machine.detach();
    left_running(&running, Some(&key), json)
}

/// The same with an image of the caller's, whose keys are its own.
fn detach_image(context: &Context, bench: &Bench, image: &Path, json: bool) -> Done {
    let (name, dir) = machines::reserve(context, &bench.board.name)?;
    let machine = fresh(bench, image, Scratch::adopt(dir.clone())?)?.power_on_detached()?;
    machine.wait_healthy().context(NO_AGENT)?;
    let running = machines::note(&dir, &machine, &name, &bench.board.name, &machine.version()?, None)?;
    machine.detach();
    left_running(&running, None, json)
}

/// Tells of a machine that goes on, and how to log in: with `key`, or with one that its image knows.
fn left_running(running: &machines::Running, key: Option<&Path>, json: bool) -> Done {
    let (name, port) = (&running.name, running.ssh_port);
    if json {
        let mut told = serde_json::to_value(running)?;
        if let (Some(object), Some(key)) = (told.as_object_mut(), key) {
            object.insert("ssh_key".into(), json!(key));
        }
        println!("{told}");
    } else {
        let identity = key.map(|key| format!("-i {} ", key.display())).unwrap_or_default();
        println!("{name} is healthy");
        println!("log in     ssh {identity}-p {port} root@127.0.0.1");
        if let Some(socket) = &running.engine_socket {
            println!("containers docker -H unix://{} ps", socket.display());
        }
        println!("switch off rustiot stop {name}");
    }
    Ok(())
}

/// The console of an image of the caller's, from power-on.
fn interactive_image(bench: &Bench, image: &Path) -> Done {
    let machine = fresh(bench, image, bench.lab.scratch("run")?)?.power_on()?;
    println!("{}, from {}. This is its console:", bench.board.description, image.display());
    println!();
    println!("  log in     ssh -p {} root@127.0.0.1", machine.ssh_port());
    println!("  end it     Ctrl-A X, or Ctrl-C (Ctrl-A Ctrl-C sends one to the machine)");
    println!();
    console(&machine)?;
    println!("\r\nthe machine is off; its disk is forgotten");
    Ok(())
}

/// Where the socket is to be, as a path that holds in every directory.
fn socket_path(path: &Path) -> Result<PathBuf, Fail> {
    let path = std::path::absolute(path)
        .map_err(|error| Fail::usage(format!("--engine-socket {}: {error}", path.display())))?;
    let wrong = |what: &str| Fail::usage(format!("--engine-socket {}: {what}", path.display()));
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(wrong(&format!("a socket's path has at most {SOCKET_PATH_MAX} bytes")));
    }
    if !path.parent().is_some_and(Path::is_dir) {
        return Err(wrong("its directory is not there"));
    }
    match std::fs::symlink_metadata(&path) {
        Ok(there) if !there.file_type().is_socket() => Err(wrong("a file is there already")),
        _ => Ok(path),
    }
}

/// The ssh that forwards the engine; it is ended with this value, unless it is to stay.
struct Forwarder(Option<Child>);

fn forward(key: &Path, port: u16, socket: &Path) -> Result<Forwarder> {
    let mut ssh = containers::forward(key, port, socket);
    // A Ctrl-C at the terminal is not meant for it. It ends with the machine, whose end of the connection goes then.
    // Nobody reads what it says once we are gone.
    ssh.process_group(0).stderr(Stdio::null());
    let mut forwarder = Forwarder(Some(ssh.spawn().context("cannot run ssh")?));
    if let Some(ssh) = &mut forwarder.0 {
        containers::wait_forwarded(ssh, socket)?;
    }
    Ok(forwarder)
}

impl Forwarder {
    fn stay(mut self) {
        if let Some(ssh) = self.0.take() {
            rustiot_scratch::spare(ssh.id().cast_signed());
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(mut ssh) = self.0.take() {
            let _ = ssh.kill();
            let _ = ssh.wait();
        }
    }
}

fn interactive(bench: &Bench) -> Done {
    let Bench { lab, board, fixtures } = bench;
    let snapshot = fixtures.healthy(lab, board)?;
    let (server, _dir) = bench.serve(&[&B])?;
    let machine = snapshot.restore(lab.scratch("run")?)?;
    let (port, key) = (machine.ssh_port(), lab.ssh_key()?.private);
    let url = server.guest_url("b.raucb");
    println!();
    println!("{} runs release {}; it is healthy. This is its console:", board.description, A.version);
    println!();
    println!("  log in     ssh -i {} -p {port} root@127.0.0.1", key.display());
    println!("  update it  rustiot update install {url}");
    println!("  watch it   rustiot status; rustiot slots; journalctl -f");
    println!("  break it   echo c > /proc/sysrq-trigger            (the kernel panics)");
    println!("             systemctl kill -s STOP rustiot-watchdog (nobody feeds the watchdog)");
    println!("             dd if=/dev/urandom of=/dev/disk/by-partlabel/state bs=1M count=8; reboot -f");
    println!("  end it     Ctrl-A X, or Ctrl-C (Ctrl-A Ctrl-C sends one to the machine)");
    println!();
    machine.console().send("\n")?;
    console(&machine)?;
    println!("\r\nthe machine is off; its disk is forgotten");
    Ok(())
}

/// The terminal as it was, while it is raw.
static TERMINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Gives the terminal back as it was. Does nothing if it was never taken.
pub fn restore_terminal() {
    let before = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &before);
    }
}

/// Connects the terminal to the machine's console until the person or the machine ends it.
fn console(machine: &Machine) -> Result<()> {
    let stdin = std::io::stdin();
    let before = tcgetattr(stdin.as_fd()).context("cannot read the terminal's settings")?;
    let mut raw = before.clone();
    *TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    cfmakeraw(&mut raw);
    tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).context("cannot set the terminal")?;
    let bytes = machine.console().tap();
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let machine_ended = ended.clone();
        scope.spawn(move || {
            let mut out = std::io::stdout();
            for chunk in bytes {
                if out.write_all(&chunk).and_then(|()| out.flush()).is_err() {
                    break;
                }
            }
            let _ = machine_ended.send(());
        });
        // Reading the keyboard cannot be interrupted, so its thread is not waited for.
        let keys = machine.console().sender();
        std::thread::spawn(move || {
            let mut keyboard = Keyboard::default();
            let mut buffer = [0u8; 256];
            while let Ok(n) = std::io::stdin().read(&mut buffer) {
                let typed = keyboard.feed(buffer.get(..n).unwrap_or_default());
                if n == 0 || typed.end || keys.send_bytes(&typed.bytes).is_err() {
                    break;
                }
            }
            let _ = ended.send(());
        });
        let _ = end.recv();
        // The machine's end also ends the thread that prints.
        let _ = machine.qmp().run("quit", json!({}));
    });
    restore_terminal();
    Ok(())
}

/// What was typed: bytes for the machine, and whether it is the end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Typed {
    bytes: Vec<u8>,
    end: bool,
}

/// Knows `Ctrl-A X`, `Ctrl-C`, and that `Ctrl-A` before another key sends that key.
#[derive(Debug, Default)]
struct Keyboard {
    escaped: bool,
}

impl Keyboard {
    fn feed(&mut self, keys: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &key in keys {
            match (std::mem::take(&mut self.escaped), key) {
                (false, CTRL_C) | (true, b'x' | b'X') => {
                    typed.end = true;
                    break;
                }
                (false, CTRL_A) => self.escaped = true,
                (_, key) => typed.bytes.push(key),
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_reach_the_machine_and_two_of_them_end_it() {
        let feed = |keys: &[u8]| Keyboard::default().feed(keys);
        assert_eq!(feed(b"ls\r"), Typed { bytes: b"ls\r".to_vec(), end: false });
        assert!(feed(&[b'a', CTRL_C]).end);
        assert!(feed(&[CTRL_A, b'x']).end);
        assert_eq!(feed(&[CTRL_A, CTRL_C]), Typed { bytes: vec![CTRL_C], end: false });
        assert_eq!(feed(&[CTRL_A, CTRL_A]), Typed { bytes: vec![CTRL_A], end: false });
    }

    #[test]
    fn a_socket_takes_nobodys_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        assert_eq!(socket_path(&path).unwrap(), path);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(socket_path(&path).is_ok(), "one that another machine left");
        let file = dir.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert!(socket_path(&file).is_err());
        assert!(socket_path(&dir.path().join("no/such")).is_err());
        assert!(socket_path(&dir.path().join("x".repeat(100))).is_err());
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("short.img");
        std::fs::write(&file, [0; 1024]).unwrap();
        for wrong in [&dir.path().join("absent.img"), &file, &dir.path().to_owned()] {
            let refused = image(wrong).unwrap_err();
            assert_eq!(refused.why(), Why::Usage);
            assert!(format!("{refused:?}").contains(&*wrong.to_string_lossy()), "{refused:?}");
        }
        let mut medium = vec![0; 1024];
        medium[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&file, medium).unwrap();
        assert!(image(&file).unwrap().is_absolute());
    }

    #[test]
    fn an_escape_holds_over_two_reads() {
        let mut keyboard = Keyboard::default();
        assert!(!keyboard.feed(&[CTRL_A]).end);
        assert!(keyboard.feed(b"X").end);
    }
}
