//! `bench herd`: a fleet looks into a repository on one static web server. Real metadata, the device's own client and
//! the device's own instants; only the six hours between two looks are shortened. Never installs anything.

use crate::args;
use crate::bench::{Target, aligned, put, row, told};
use crate::bench_delta::machine;
use crate::fail::Done;
use anyhow::{Context as _, Result, ensure};
use rustiot_http::{Http, Url};
use rustiot_image::{Context, Plain};
use rustiot_lab::{A, B, Ctx, Fixtures, Lab};
use rustiot_repository::client::{Client, Settings};
use rustiot_repository::poll::{DEFAULT_INTERVAL, offset};
use rustiot_repository::publish::Repository;
use rustiot_repository::time::Clock;
use serde::Serialize;
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testbed::Scratch;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

/// Bins of the plot: ten minutes each.
const BINS: usize = 36;
/// Devices whose connections are looked at byte by byte.
const SAMPLE: u64 = 20;
/// What a month of looking may cost a device, bytes.
const MONTH: u64 = 1_000_000;
/// Seconds of a month of 30 days.
const MONTH_S: u64 = 30 * 24 * 3600;

/// All devices have looked once.
#[derive(Debug, Serialize)]
struct Phase {
    what: &'static str,
    looks: u64,
    requests: u64,
    /// Bodies that the server sent.
    body_bytes: u64,
    /// Bytes on a connection for one look, both ways, heads included, TLS not.
    wire_bytes: u64,
    /// Looks in each ten minutes of the interval.
    looks_by_bin: Vec<u64>,
    /// Requests a second in the busiest minute.
    busiest: f64,
    /// The latest start of a look after its instant, shortened seconds.
    late_s: f64,
}

/// A device, as far as looking goes.
struct Device {
    identity: String,
    settings: Settings,
}

impl Device {
    fn new(number: u64, dir: &Path, root: &[u8], url: &Url, http: &Http, compatible: &str) -> Self {
        let identity = format!("device-{number}");
        let settings = Settings {
            dir: dir.join(&identity),
            root: root.to_vec(),
            urls: vec![url.clone()],
            compatible: compatible.to_owned(),
            built: 0,
            http: http.clone(),
        };
        Device { identity, settings }
    }

    /// As the update service looks: a new client each time, with what it remembers on its disk.
    async fn look(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut client = Client::open(self.settings.clone())?;
        client.check(Clock { now, synchronised: true }).await?;
        Ok(())
    }
}

/// `rustiot bench herd`.
pub fn run(context: &Context, args: &args::BenchHerd) -> Done {
    let board = rustiot_image::board(context, &args.board.board)?;
    let lab = Lab::open(context.clone(), &Plain)?;
    let fixtures = Fixtures::new(true);
    let ctx = Ctx::new(&lab, &board, &fixtures)?;
    let server = ctx.publish(&[&A])?;
    let root = ctx.published().join("metadata/1.root.json");
    let root = std::fs::read(&root).with_context(|| format!("cannot read {}", root.display()))?;
    // What devices remember is written durably; in memory that costs nothing here.
    let memory = Path::new("/dev/shm");
    let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = Scratch::new(&memory, "rustiot-herd")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let http = Http::new(&rustiot_http::Settings::default())?;
    let url: Url = format!("http://{}/", server.address()).parse()?;
    let (relay, wire) = runtime.block_on(relay(server.address()))?;
    let relayed: Url = format!("http://{relay}/").parse()?;
    let device =
        |number, url: &Url, http: &Http| Device::new(number, dir.path(), &root, url, http, &board.compatible);
    let herd: Vec<Arc<Device>> = (0..args.devices).map(|n| Arc::new(device(n, &url, &http))).collect();
    let sample: Vec<Device> = (0..SAMPLE)
        .map(|n| Ok(device(args.devices + n, &relayed, &Http::new(&rustiot_http::Settings::default())?)))
        .collect::<Result<_>>()?;
    let repository = ctx.published();
    let repository = repository.parent().context("no repository")?;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut phases = Vec::new();
    for what in ["first look", "nothing new", "daily refresh", "a new release"] {
        match what {
            "daily refresh" => drop(Repository::open(repository)?.sign(now(), true)?),
            "a new release" => drop(ctx.publish(&[&B])?),
            _ => {}
        }
        eprintln!("  … {what}: {} devices in {} s", args.devices, args.seconds);
        let before = (server.requests(), server.bytes());
        let (bins, busiest, late) = runtime.block_on(all_look(&herd, args.seconds))?;
        let (requests, body_bytes) = (server.requests() - before.0, server.bytes() - before.1);
        let counted = wire.load(Ordering::Relaxed);
        for device in &sample {
            runtime.block_on(device.look())?;
        }
        let wire_bytes = wire.load(Ordering::Relaxed).saturating_sub(counted) / SAMPLE;
        let looks = args.devices;
        let busiest = busiest as f64 / 60.0 * requests as f64 / looks.max(1) as f64;
        phases.push(Phase {
            what,
            looks,
            requests,
            body_bytes,
            wire_bytes,
            looks_by_bin: bins,
            busiest,
            late_s: late.as_secs_f64(),
        });
    }
    let month = month(&phases);
    let targets = [
        Target {
            what: "a month of looking four times a day, with a refresh a day, without TLS".into(),
            figure: format!("{:.1} kB", month as f64 / 1e3),
            wanted: format!("at most {:.0} kB", MONTH as f64 / 1e3),
            met: month <= MONTH,
        },
        herd_target(&phases),
    ];
    let words: Vec<String> = std::env::args().skip(1).collect();
    if args.json.json {
        println!("{}", json!({"phases": phases, "month_bytes": month, "targets": targets}));
        return Ok(());
    }
    let place = format!("{}; `./rustiot {}`", machine(), words.join(" "));
    let text = format!("{}\n{place}\n", text(&phases, &targets, args));
    println!("{text}");
    if args.write {
        let path: PathBuf = context.repo().join("docs/figures.md");
        let page =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        std::fs::write(&path, put(&page, "bench herd", "A fleet that looks for updates", &text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Every device looks once, at its own instant of an interval that takes `seconds`. Looks in each bin, looks in the
/// busiest minute, the longest delay.
async fn all_look(herd: &[Arc<Device>], seconds: u64) -> Result<(Vec<u64>, u64, Duration)> {
    let shorter = DEFAULT_INTERVAL.as_secs_f64() / seconds.max(1) as f64;
    let began = Instant::now();
    let mut looks = tokio::task::JoinSet::new();
    for device in herd {
        let device = Arc::clone(device);
        let due = offset(&device.identity, DEFAULT_INTERVAL).as_secs_f64();
        looks.spawn(async move {
            sleep_until(began + Duration::from_secs_f64(due / shorter)).await;
            let late = began.elapsed().saturating_sub(Duration::from_secs_f64(due / shorter));
            device.look().await.map(|()| (due, late))
        });
    }
    let minutes = usize::try_from(DEFAULT_INTERVAL.as_secs() / 60).unwrap_or(BINS);
    let mut by_minute = vec![0u64; minutes];
    let mut longest = Duration::ZERO;
    while let Some(look) = looks.join_next().await {
        let (due, late) = look.context("a look panicked")??;
        if let Some(minute) = by_minute.get_mut((due / 60.0) as usize) {
            *minute += 1;
        }
        longest = longest.max(late);
    }
    let bins = by_minute.chunks(minutes.div_ceil(BINS)).map(|chunk| chunk.iter().sum()).collect();
    Ok((bins, by_minute.iter().copied().max().unwrap_or_default(), longest))
}

/// Bytes of a month: a refresh of the metadata a day, all other looks find nothing new.
fn month(phases: &[Phase]) -> u64 {
    let of = |what: &str| phases.iter().find(|phase| phase.what == what).map_or(0, |phase| phase.wire_bytes);
    let looks = MONTH_S / DEFAULT_INTERVAL.as_secs();
    let refreshes = MONTH_S / (24 * 3600);
    refreshes * of("daily refresh") + looks.saturating_sub(refreshes) * of("nothing new")
}

/// The busiest ten minutes against the mean of all.
fn herd_target(phases: &[Phase]) -> Target {
    let worst = phases.iter().map(|phase| {
        let mean = phase.looks as f64 / BINS as f64;
        let most = phase.looks_by_bin.iter().copied().max().unwrap_or_default();
        most as f64 / mean.max(f64::MIN_POSITIVE)
    });
    let worst = worst.fold(0.0, f64::max);
    Target {
        what: "the busiest ten minutes against the mean".into(),
        figure: format!("{worst:.2}×"),
        wanted: "at most 1.50×".into(),
        met: worst <= 1.5,
    }
}

fn text(phases: &[Phase], targets: &[Target], args: &args::BenchHerd) -> String {
    let mut table = vec![row([
        "what",
        "requests a look",
        "bodies a look",
        "on the wire a look",
        "requests/s, mean",
        "requests/s, busiest minute",
        "looks in each ten minutes",
    ])];
    for phase in phases {
        let looks = phase.looks.max(1) as f64;
        let each = phase.requests as f64 / looks;
        table.push(vec![
            phase.what.into(),
            format!("{each:.2}"),
            format!("{:.0} B", phase.body_bytes as f64 / looks),
            format!("{} B", phase.wire_bytes),
            format!("{:.2}", phase.requests as f64 / DEFAULT_INTERVAL.as_secs_f64()),
            format!("{:.2}", phase.busiest),
            plot(&phase.looks_by_bin),
        ]);
    }
    let late = phases.iter().map(|phase| phase.late_s).fold(0.0, f64::max);
    let notes = [format!(
        "{} devices, each with its own memory and its own instant in six hours, which took {} s here; the latest look \
         began {late:.1} s after its instant. Requests a second are those of the six hours. On the wire: both \
         directions of {SAMPLE} further devices' connections with all heads, without TLS and without the packets' own \
         heads.",
        args.devices, args.seconds
    )];
    aligned(&table) + "\n" + &told(targets, &notes)
}

/// A line of bars, the highest for the largest.
fn plot(bins: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = bins.iter().copied().max().unwrap_or_default().max(1);
    let bar = |bin: &u64| {
        let height = usize::try_from(bin.saturating_mul(7) / most).unwrap_or_default();
        BARS.get(height).copied().unwrap_or('█')
    };
    bins.iter().map(bar).collect()
}

/// Passes connections on to `server` and counts what goes through, both ways.
async fn relay(server: SocketAddr) -> Result<(SocketAddr, Arc<AtomicU64>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("cannot listen")?;
    let address = listener.local_addr().context("no address")?;
    ensure!(address != server, "the relay would pass on to itself");
    let counted = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&counted);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(server).await else { return };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::join!(
                    pass(from_client, to_server, Arc::clone(&count)),
                    pass(from_server, to_client, count)
                );
            });
        }
    });
    Ok((address, counted))
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, count: Arc<AtomicU64>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(read as u64, Ordering::Relaxed);
        let Some(bytes) = buffer.get(..read) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn phase(what: &'static str, wire_bytes: u64, looks_by_bin: Vec<u64>) -> Phase {
        let looks = looks_by_bin.iter().sum();
        let (requests, body_bytes, busiest, late_s) = (looks, 0, 0.0, 0.0);
        Phase { what, looks, requests, body_bytes, wire_bytes, looks_by_bin, busiest, late_s }
    }

    #[test]
    fn a_month_is_thirty_refreshes_and_ninety_other_looks() {
        let phases = [phase("nothing new", 10, vec![]), phase("daily refresh", 1000, vec![])];
        assert_eq!(month(&phases), 30 * 1000 + 90 * 10);
    }

    #[test]
    fn a_herd_is_seen() {
        assert!(herd_target(&[phase("x", 0, vec![10; BINS])]).met);
        let mut all_at_once = vec![0; BINS];
        all_at_once[0] = 360;
        assert!(!herd_target(&[phase("x", 0, all_at_once)]).met);
    }

    #[test]
    fn bars_grow_with_their_numbers() {
        assert_eq!(plot(&[0, 7, 14]), "▁▄█");
        assert_eq!(plot(&[0, 0]), "▁▁");
    }

    #[tokio::test]
    async fn the_relay_counts_both_ways() {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (address, counted) = relay(server.local_addr().unwrap()).await.unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let (mut end, _) = server.accept().await.unwrap();
        let mut got = [0; 5];
        end.read_exact(&mut got).await.unwrap();
        end.write_all(b"hi").await.unwrap();
        client.read_exact(&mut got[..2]).await.unwrap();
        assert_eq!(counted.load(Ordering::Relaxed), 7);
    }
}
