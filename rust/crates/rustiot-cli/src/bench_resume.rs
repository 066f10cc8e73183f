//! `bench resume`: what an update costs in bytes that is cut again and again, against one that is left alone.
//!
//! The fetch proxy of the device runs in a process of its own, with its cache on an ext4 of its own, behind a link that
//! counts; an imitated RAUC reads the bundle from it into a file. Cuts are real: SIGKILL, connections that are reset or
//! fall silent, and a file system that is stopped with all that was not written yet. Never runs RAUC itself and writes
//! no slot: `a_download_that_is_cut_again_and_again_costs_no_byte_twice` does, in QEMU.

use crate::args::{self, Cut};
use crate::bench::{Target, aligned, put, row, told};
use crate::bench_delta::machine;
use crate::fail::Done;
use crate::sys;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustiot_fetch::{Limits, Proxy, RemoteFile, Way};
use rustiot_http::{Http, Url};
use rustiot_image::Context;
use rustiot_repository::Digest;
use rustiot_scratch::Scratch;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use testbed::FileServer;
use testbed::relay::{Link, State as LinkState};
use testbed::writelog::Random;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What may be fetched with all cuts, against once without.
const WANTED: f64 = 1.05;
/// The old image, and what of the bundle is new; bytes.
const OLD: usize = 24 << 20;
const NEW: usize = 16 << 20;
/// How fast the link is, bytes a second: slower than the device, so that no buffer fills.
const RATE: u64 = 4_000_000;
/// How long an outage of the network is.
const OUTAGE: Duration = Duration::from_millis(2500);
/// After so long a silence the proxy gives a connection up; 60 s on a device.
const SILENCE: Duration = Duration::from_secs(1);
/// What RAUC's kernel part asks for at once, bytes.
const READ: u64 = 128_000;
/// What the child tells no more often than.
const TELL_EVERY: Duration = Duration::from_millis(4);
/// No step takes longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// A line of the child's.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Told {
    /// Of the file, in the cache.
    have: u64,
    /// Of the bundle, written.
    written: u64,
    done: bool,
}

/// What is fetched.
struct Case<'a> {
    what: &'static str,
    cut: Cut,
    /// The file on the server.
    file: &'a Path,
    /// What comes out.
    bundle: &'a Path,
    /// The old image, where the file is a delta.
    old: Option<&'a Path>,
    /// Without a cache: straight into the slot.
    stream: bool,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    cut: Cut,
    /// Cuts while something was to be fetched.
    in_download: usize,
    in_install: usize,
    /// Bytes of the file.
    file: u64,
    /// Bytes on the link without cuts, both ways, all heads.
    once: u64,
    /// The same with cuts.
    cut_bytes: u64,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.cut_bytes as f64 / self.once.max(1) as f64
    }
}

/// `rustiot bench resume`.
pub fn run(context: &Context, args: &args::BenchResume) -> Done {
    // Mounts of ours end with us, whatever ends us.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot have mounts of my own: root is needed")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot have mounts of my own")?;
    let dir = Scratch::new(&std::env::temp_dir(), "rustiot-resume")?;
    let www = dir.file("www");
    std::fs::create_dir_all(&www).context("cannot make a directory")?;
    let (old, bundle, delta) = (dir.file("old.img"), www.join("x.raucb"), www.join("x.rdelta"));
    let mut random = Random(args.seed.max(1));
    write_release(&mut random, &old, &bundle, &delta)?;
    let server = FileServer::start(&www)?;
    let mut rows = Vec::new();
    for cut in Cut::ALL.into_iter().filter(|cut| args.only.is_empty() || args.only.contains(cut)) {
        let ways = [
            ("delta", &delta, Some(&old), false),
            ("bundle as it is", &bundle, None, false),
            ("bundle, streamed without a cache", &bundle, None, true),
        ];
        for (what, file, old, stream) in ways {
            // Without a cache nothing outlives the process.
            if (args.delta && old.is_none()) || (stream && cut != Cut::Network) {
                continue;
            }
            let case = Case { what, cut, file, bundle: &bundle, old: old.map(PathBuf::as_path), stream };
            eprintln!("  … {what}: {} cuts, {}", args.cuts, cut.words());
            rows.push(try_case(&case, args.cuts.into(), &mut random, &server, dir.path())?);
        }
    }
    let worst = rows.iter().map(Row::ratio).fold(0.0, f64::max);
    let targets = [Target {
        what: format!("bytes of a download and install with {} cuts, the worst of all", args.cuts),
        figure: format!("{worst:.3}×"),
        wanted: format!("at most {WANTED:.2}× of one without"),
        met: worst <= WANTED && !rows.is_empty(),
    }];
    if args.json.json {
        println!("{}", json!({"rows": rows, "targets": targets}));
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let place = format!("{}; `./rustiot {}`", machine(), words.join(" "));
    let text = format!("{}\n{place}\n", text(&rows, &targets));
    println!("{text}");
    if args.write {
        let path = context.repo().join("docs/figures.md");
        let page =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        std::fs::write(&path, put(&page, "bench resume", "An update that is cut again and again", &text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn text(rows: &[Row], targets: &[Target]) -> String {
    let mut table = vec![row([
        "what is cut",
        "way",
        "cuts in the download",
        "in the install",
        "bytes on the link, no cut",
        "with cuts",
        "times",
    ])];
    for each in rows {
        table.push(vec![
            each.cut.words().into(),
            each.what.into(),
            each.in_download.to_string(),
            each.in_install.to_string(),
            each.once.to_string(),
            each.cut_bytes.to_string(),
            format!("{:.4}×", each.ratio()),
        ]);
    }
    let notes = [format!(
        "The device's fetch proxy in a process of its own, its cache on an ext4 in a file, a static web server, a link of \
         {} MB/s between them that counts both ways with all heads. Download, then install: an imitated RAUC reads the \
         whole bundle; each time it was exact. The points are random, in the download as often as in the install, which \
         needs no network any more: of the network only the download is cut. Process: SIGKILL. Network: connections are \
         reset, or fall silent, in turn, for {:.1} s (silence is noticed after {} s here, 60 s on a device). Power: the \
         process is frozen, the file system stopped without its log (FS_IOC_SHUTDOWN), the process killed, the file \
         system mounted again: what was not written yet is gone. All three: in turn.",
        RATE / 1_000_000,
        OUTAGE.as_secs_f64(),
        SILENCE.as_secs()
    )];
    aligned(&table) + "\n" + &told(targets, &notes)
}

/// An old image, a bundle that has much of it and much that is new, and the delta between them.
fn write_release(random: &mut Random, old: &Path, bundle: &Path, delta: &Path) -> Result<()> {
    let mut noise =
        |len: usize| -> Vec<u8> { (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect() };
    let image = noise(OLD);
    let mut new = image.clone();
    new.splice(OLD / 2..OLD / 2, noise(NEW));
    let put = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    put(old, &image)?;
    put(bundle, &new)?;
    let mut out = Vec::new();
    let sources = [rustiot_delta::Source { name: "root", bytes: &image }];
    rustiot_delta::encode(&new, &sources, &rustiot_delta::Options::default(), &mut out, &|_| {})
        .context("cannot make a delta")?;
    put(delta, &out)
}

/// One clean run, and one with cuts.
fn try_case(
    case: &Case<'_>,
    cuts: usize,
    random: &mut Random,
    server: &FileServer,
    dir: &Path,
) -> Result<Row> {
    let once = go(case, &[], server, dir)?.0;
    // Where nothing comes over the network, there is nothing to cut of it.
    let end = if case.cut == Cut::Network && !case.stream { 0.5 } else { 1.0 };
    let mut points: Vec<f64> = (0..cuts).map(|_| random.below(10_000) as f64 / 10_000.0 * end).collect();
    points.sort_by(f64::total_cmp);
    let (cut_bytes, in_download) = go(case, &points, server, dir)?;
    let file = std::fs::metadata(case.file).context("no file")?.len();
    let in_install = cuts.saturating_sub(in_download);
    Ok(Row { what: case.what, cut: case.cut, in_download, in_install, file, once, cut_bytes })
}

/// Download and install with cuts at these points (below 0.5: of the download). Bytes on the link, cuts of the download.
fn go(case: &Case<'_>, points: &[f64], server: &FileServer, dir: &Path) -> Result<(u64, usize)> {
    let link = Link::new(server.address(), Some(RATE))?;
    let relay = link.relay();
    let len = std::fs::metadata(case.file).context("no file")?.len();
    let whole = std::fs::metadata(case.bundle).context("no bundle")?.len();
    let mut medium = Medium::new(dir, len)?;
    let out = dir.join("slot");
    let mut device = Device::start(case, relay.address(), &medium.dir, &out)?;
    let mut in_download = 0;
    for (number, point) in points.iter().enumerate() {
        let there = |told: &Told| {
            let share = |part: u64, all: u64| part as f64 / all.max(1) as f64 / 2.0;
            // What is streamed is fetched as it is written: its half of the way is all of it.
            let have = if case.stream { share(told.written, whole) } else { share(told.have, len) };
            told.done || have + share(told.written, whole) >= *point
        };
        let told = device.wait(there)?;
        in_download += usize::from(told.have < len || (case.stream && told.written < whole));
        let what = match case.cut {
            Cut::All => Cut::ALL.get(number % 3).copied().unwrap_or(Cut::Process),
            one => one,
        };
        match what {
            Cut::Process | Cut::All => {
                device.kill()?;
                device = Device::start(case, relay.address(), &medium.dir, &out)?;
            }
            Cut::Network => {
                relay.set(if number % 2 == 0 { LinkState::Reset } else { LinkState::Silent });
                std::thread::sleep(OUTAGE);
                relay.set(LinkState::Up);
            }
            Cut::Power => {
                device.freeze()?;
                medium.stop()?;
                device.kill()?;
                medium.again()?;
                device = Device::start(case, relay.address(), &medium.dir, &out)?;
            }
        }
    }
    device.wait(|told| told.done)?;
    device.kill()?;
    let same = std::fs::read(&out).context("no slot")? == std::fs::read(case.bundle).context("no bundle")?;
    ensure!(same, "what was installed is not the bundle");
    medium.unmount()?;
    Ok((relay.bytes(), in_download))
}

/// An ext4 in a file.
struct Medium {
    image: PathBuf,
    dir: PathBuf,
}

impl Medium {
    fn new(dir: &Path, room: u64) -> Result<Medium> {
        let medium = Medium { image: dir.join("data.img"), dir: dir.join("data") };
        std::fs::create_dir_all(&medium.dir).context("cannot make a directory")?;
        let file = File::create(&medium.image).context("cannot make a medium")?;
        file.set_len(room.saturating_mul(2).saturating_add(64 << 20)).context("cannot make a medium")?;
        tool("mkfs.ext4", &["-q", "-F", &medium.image.to_string_lossy()])?;
        medium.mount()?;
        Ok(medium)
    }

    fn mount(&self) -> Result<()> {
        tool("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.dir.to_string_lossy()])
    }

    fn unmount(&self) -> Result<()> {
        tool("umount", &[&self.dir.to_string_lossy()])
    }

    /// The power goes.
    fn stop(&self) -> Result<()> {
        let dir = File::open(&self.dir).context("no medium")?;
        sys::stop_file_system(&dir).context("cannot stop the file system")
    }

    /// And comes back.
    fn again(&mut self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }
}

fn tool(name: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(name).args(args).output().with_context(|| format!("cannot run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {}: {}", args.join(" "), said.trim());
    Ok(())
}

/// The process with the proxy in it.
struct Device {
    child: Child,
    lines: mpsc::Receiver<Told>,
    last: Told,
}

impl Device {
    fn start(case: &Case<'_>, relay: SocketAddr, data: &Path, out: &Path) -> Result<Device> {
        let name = case.file.file_name().and_then(|name| name.to_str()).context("no name")?;
        let bytes = std::fs::read(case.file).context("cannot read the file")?;
        let mut command = Command::new(std::env::current_exe().context("cannot find myself")?);
        command.arg("fetch-install").arg(format!("http://{relay}/{name}")).arg(bytes.len().to_string());
        command.arg(Digest::of(&bytes).to_string()).arg(data.join("cache")).arg(out);
        if let Some(old) = case.old {
            command.arg("--old").arg(old);
        }
        if case.stream {
            command.arg("--stream");
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run myself")?;
        let stdout = child.stdout.take().context("no output")?;
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(told) = serde_json::from_str(&line)
                    && send.send(told).is_err()
                {
                    return;
                }
            }
        });
        Ok(Device { child, lines, last: Told::default() })
    }

    /// Waits until what it tells is so.
    fn wait(&mut self, there: impl Fn(&Told) -> bool) -> Result<Told> {
        while !there(&self.last) {
            self.last =
                self.lines.recv_timeout(PATIENCE).map_err(|e| anyhow!("the fetching process: {e}"))?;
        }
        Ok(self.last)
    }

    /// It does nothing from now on, as if the power were gone.
    fn freeze(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("no process")?;
        kill(Pid::from_raw(pid), Signal::SIGSTOP).context("cannot stop the process")
    }

    /// At once, as the kernel does it.
    fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill")?;
        self.child.wait().context("cannot wait").map(drop)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The hidden command: the device's part.
pub fn child(args: &args::FetchInstall) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(fetch_and_install(args))?)
}

async fn fetch_and_install(args: &args::FetchInstall) -> Result<()> {
    let url: Url = args.url.parse().context("no address")?;
    let sha256 = args.sha256.parse::<Digest>().map_err(|_| anyhow!("no digest"))?.0;
    let way = match &args.old {
        Some(old) => Way::Delta {
            file: RemoteFile { urls: vec![url], len: args.len, sha256 },
            sources: vec![("root".to_owned(), old.clone())],
        },
        None => Way::Plain { urls: vec![url], len: Some(args.len), sha256: Some(sha256) },
    };
    let http = rustiot_http::Settings { idle_timeout: SILENCE, ..rustiot_http::Settings::default() };
    let limits = Limits {
        backoff_base: Duration::from_millis(50),
        backoff_cap: Duration::from_millis(500),
        cache: if args.stream { 0 } else { u64::MAX },
        ..Limits::default()
    };
    let handle = Proxy::start(way, limits, &args.cache, Http::new(&http)?).await?;
    let tell = |told: Told| -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&told)?)?;
        Ok(out.flush()?)
    };
    let mut progress = handle.progress();
    let download = async { if args.stream { Ok(()) } else { handle.download().await } };
    tokio::pin!(download);
    loop {
        tokio::select! {
            biased;
            done = &mut download => {
                done?;
                break;
            }
            () = tokio::time::sleep(TELL_EVERY) => {
                let have = progress.borrow_and_update().have;
                tell(Told { have, ..Told::default() })?;
            }
        }
    }
    let whole = handle.prepare().await?;
    let mut out = File::create(&args.out).context("cannot write the slot")?;
    let port = handle.url().port().context("no port")?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.context("cannot reach the proxy")?;
    let have = if args.stream { 0 } else { args.len };
    let mut at = 0u64;
    let mut last = tokio::time::Instant::now();
    while at < whole {
        let end = at.saturating_add(READ).min(whole);
        let bytes = read(&mut stream, handle.url(), at, end).await?;
        out.write_all(&bytes).context("cannot write the slot")?;
        at = end;
        if last.elapsed() >= TELL_EVERY {
            last = tokio::time::Instant::now();
            tell(Told { have, written: at, done: false })?;
        }
    }
    tell(Told { have, written: at, done: true })?;
    // Until it is killed.
    std::future::pending().await
}

/// One read as RAUC's streaming client puts it on the wire.
async fn read(stream: &mut TcpStream, url: &Url, start: u64, end: u64) -> Result<Vec<u8>> {
    let last = end.saturating_sub(1);
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes={start}-{last}\r\nAccept: */*\r\n\r\n",
        url.path()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("the proxy hung up")?);
        ensure!(head.len() < 16 << 10, "no end of the answer's head");
    }
    if !head.starts_with(b"HTTP/1.1 206") {
        bail!("the proxy answered {}", String::from_utf8_lossy(&head));
    }
    let mut body = vec![0; usize::try_from(end.saturating_sub(start))?];
    stream.read_exact(&mut body).await.context("the proxy hung up")?;
    Ok(body)
}
