//! `bench herd`: a fleet looks into a repository on one static web server. Real metadata of a repository with eight
//! releases, the device's own client and the device's own instants; only the six hours between two looks are shortened,
//! and the bundles are small, for nobody fetches one. What a look costs with TLS is counted by the kernel, packet by
//! packet, in a network of its own. Never installs anything.

use crate::args;
use crate::bench::{Target, aligned, put, row, told};
use crate::bench_delta::machine;
use crate::fail::Done;
use crate::tls::Tls;
use anyhow::{Context as _, Result};
use rustiot_http::{Http, Trust, Url};
use rustiot_image::Context;
use rustiot_repository::client::{Client, Settings};
use rustiot_repository::poll::{DEFAULT_INTERVAL, offset};
use rustiot_repository::publish::sample::{self, Sample};
use rustiot_repository::publish::{self, Encoder, Repository};
use rustiot_repository::time::Clock;
use rustiot_scratch::Scratch;
use serde::Serialize;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testbed::FileServer;
use testbed::relay::Relay;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

/// Bins of the plot: ten minutes each.
const BINS: usize = 36;
/// The server's count is read so often in a bin: every minute.
const READS: usize = 10;
/// Devices whose connections are looked at byte by byte.
const SAMPLE: u64 = 20;
/// Looks under way at once, at most: a machine that is too slow is late, and that is told.
const AT_ONCE: usize = 48;
/// What a month of looking may cost a device, bytes.
const MONTH: u64 = 1_000_000;
/// Seconds of a month of 30 days.
const MONTH_S: u64 = 30 * 24 * 3600;
/// The board of the made-up releases.
const BOARD: &str = "rustiot-qemux86-64";

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
    /// Bytes of all packets of one look over TLS, both ways, the packets' heads included.
    tls_bytes: u64,
    /// Requests that the server counted in each ten minutes of the interval.
    requests_by_bin: Vec<u64>,
    /// Requests a second in the busiest minute.
    busiest: f64,
    /// Requests in each ten minutes as they would have been counted had each look begun at its instant: a look's
    /// requests on average, times the devices whose instant lies there.
    due_by_bin: Vec<f64>,
    /// The latest start of a look after its instant, seconds of the shortened time.
    late_s: f64,
    /// What the round took, seconds.
    took_s: f64,
}

/// A device, as far as looking goes.
struct Device {
    identity: String,
    settings: Settings,
}

impl Device {
    fn new(number: u64, dir: &Path, root: &[u8], url: &Url, http: &Http) -> Self {
        let identity = format!("device-{number}");
        let settings = Settings {
            dir: dir.join(&identity),
            root: root.to_vec(),
            urls: vec![url.clone()],
            compatible: BOARD.to_owned(),
            built: 0,
            http: http.clone(),
        };
        Device { identity, settings }
    }

    /// As the update service looks: a new client each time, with what it remembers on its disk.
    async fn look(&self) -> Result<()> {
        self.look_with(self.settings.http.clone()).await
    }

    async fn look_with(&self, http: Http) -> Result<()> {
        let mut client = Client::open(Settings { http, ..self.settings.clone() })?;
        client.check(Clock { now: now(), synchronised: true }).await?;
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `rustiot bench herd`.
pub fn run(context: &Context, args: &args::BenchHerd) -> Done {
    // What devices remember is written durably; in memory that costs nothing here.
    let memory = Path::new("/dev/shm");
    let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = Scratch::new(&memory, "rustiot-herd")?;
    let repository = Repository::init(&dir.file("repository"), publish::Settings::default(), now())?;
    for version in 0..8 {
        release(&repository, dir.path(), &format!("1.{version}.0"))?;
    }
    let public = dir.file("repository").join("public");
    let server = FileServer::start(&public)?;
    let root = std::fs::read(public.join("metadata/1.root.json")).context("no root metadata")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let http = || Http::new(&rustiot_http::Settings::default());
    let url: Url = format!("http://{}/", server.address()).parse()?;
    let relay = runtime.block_on(Relay::new(server.address(), None))?;
    let relayed: Url = format!("http://{}/", relay.address()).parse()?;
    let tls = Tls::new(server.address(), &dir.file("authority.pem"))?;
    let (secure, trust) = (tls.url().parse::<Url>()?, Trust::Only(vec![dir.file("authority.pem")]));
    let device = |number, url: &Url, http: &Http| Device::new(number, dir.path(), &root, url, http);
    let shared = http()?;
    let herd: Vec<Arc<Device>> = (0..args.devices).map(|n| Arc::new(device(n, &url, &shared))).collect();
    let plain: Vec<Device> =
        (0..SAMPLE).map(|n| Ok(device(args.devices + n, &relayed, &http()?))).collect::<Result<_>>()?;
    let secured: Arc<Vec<Device>> =
        Arc::new((SAMPLE..2 * SAMPLE).map(|n| device(args.devices + n, &secure, &shared)).collect());
    let mut phases = Vec::new();
    for what in ["first look", "nothing new", "daily refresh", "a new release"] {
        match what {
            "daily refresh" => drop(repository.sign(now(), true)?),
            "a new release" => release(&repository, dir.path(), "1.8.0")?,
            _ => {}
        }
        eprintln!("  … {what}: {} devices in {} s", args.devices, args.seconds);
        let before = (server.requests(), server.bytes());
        let began = Instant::now();
        let (by_minute, late) =
            counted(&server, args.seconds, || runtime.block_on(all_look(&herd, args.seconds, began)))?;
        let took_s = began.elapsed().as_secs_f64();
        let (requests, body_bytes) = (server.requests() - before.0, server.bytes() - before.1);
        let counted = relay.bytes();
        for device in &plain {
            runtime.block_on(device.look())?;
        }
        let wire_bytes = relay.bytes().saturating_sub(counted) / SAMPLE;
        let (devices, trust) = (Arc::clone(&secured), trust.clone());
        let tls_bytes = tls.packets_of(move |runtime| {
            for device in devices.iter() {
                // The update service makes a client for each look: nothing of a connection outlives it.
                let settings = rustiot_http::Settings { trust: trust.clone(), ..Default::default() };
                runtime.block_on(device.look_with(Http::new(&settings)?))?;
            }
            Ok(())
        })? / SAMPLE;
        phases.push(Phase {
            what,
            looks: args.devices,
            requests,
            body_bytes,
            wire_bytes,
            tls_bytes,
            busiest: by_minute.iter().copied().max().unwrap_or_default() as f64 / 60.0,
            requests_by_bin: by_minute.chunks(READS).map(|chunk| chunk.iter().sum()).collect(),
            due_by_bin: due(&herd, requests),
            late_s: late.as_secs_f64(),
            took_s,
        });
    }
    let month = month(&phases);
    let targets = [
        Target {
            what:
                "a month of looking four times a day over TLS, with a refresh a day, packets' heads included"
                    .into(),
            figure: format!("{:.0} kB", month as f64 / 1e3),
            wanted: format!("at most {:.0} kB", MONTH as f64 / 1e3),
            met: month <= MONTH,
        },
        herd_target(&phases),
    ]
    .into_iter()
    .chain(server_target(&phases, args.seconds))
    .collect::<Vec<_>>();
    if args.json.json {
        println!(
            "{}",
            json!({"phases": phases, "month_bytes": month, "chain_bytes": tls.chain, "targets": targets})
        );
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let place = format!("{}; `./rustiot {}`", machine(), words.join(" "));
    let text = format!("{}\n{place}\n", text(&phases, &targets, args, tls.chain));
    println!("{text}");
    if args.write {
        let path: PathBuf = context.repo().join("docs/figures.md");
        let page =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        std::fs::write(&path, put(&page, "bench herd", "A fleet that looks for updates", &text))
            .with_context(|| format!("cannot write {}", path.display()))?;
        let path: PathBuf = context.repo().join("docs/herd.svg");
        std::fs::write(&path, drawing(&phases))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Reads the server's count of requests at each minute of the shortened six hours while `work` runs; what comes later
/// goes to the last minute.
fn counted<T>(server: &FileServer, seconds: u64, work: impl FnOnce() -> Result<T>) -> Result<(Vec<u64>, T)> {
    let done = &AtomicBool::new(false);
    let minute = Duration::from_secs(seconds.max(1)) / u32::try_from(BINS * READS).unwrap_or(u32::MAX);
    // Taken here: a thread that starts late would miss the first requests.
    let (began, mut last) = (std::time::Instant::now(), server.requests());
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut counts: Vec<u64> = Vec::new();
            let mut ended = false;
            while !ended {
                // Looked at before the count: what came until then is in it.
                ended = done.load(Ordering::Acquire);
                let minutes = u32::try_from(counts.len()).unwrap_or(u32::MAX).saturating_add(1);
                let due = minute.saturating_mul(minutes);
                if !ended {
                    std::thread::sleep(due.saturating_sub(began.elapsed()).min(Duration::from_millis(200)));
                    if began.elapsed() < due {
                        continue;
                    }
                }
                let now = server.requests();
                match counts.last_mut() {
                    Some(end) if minutes as usize > BINS * READS => *end += now.saturating_sub(last),
                    _ => counts.push(now.saturating_sub(last)),
                }
                last = now;
            }
            counts.resize(BINS * READS, 0);
            counts
        });
        let result = work();
        done.store(true, Ordering::Release);
        let counts = reader.join().map_err(|_| anyhow::anyhow!("the count panicked"))?;
        Ok((counts, result?))
    })
}

/// Every device looks once, at its own instant of an interval that takes `seconds`. The longest delay.
async fn all_look(herd: &[Arc<Device>], seconds: u64, began: Instant) -> Result<Duration> {
    let shorter = DEFAULT_INTERVAL.as_secs_f64() / seconds.max(1) as f64;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut looks = tokio::task::JoinSet::new();
    for device in herd {
        let (device, places) = (Arc::clone(device), Arc::clone(&places));
        let due = Duration::from_secs_f64(offset(&device.identity, DEFAULT_INTERVAL).as_secs_f64() / shorter);
        looks.spawn(async move {
            sleep_until(began + due).await;
            let _place = places.acquire().await.context("no place")?;
            let late = began.elapsed().saturating_sub(due);
            device.look().await.map(|()| late)
        });
    }
    let mut longest = Duration::ZERO;
    while let Some(look) = looks.join_next().await {
        longest = longest.max(look.context("a look panicked")??);
    }
    Ok(longest)
}

/// Deltas of nothing: what counts is that the index names one for each release that devices may run.
struct Small;

impl Encoder for Small {
    fn encode(
        &self,
        target: &[u8],
        _: &[(&str, &[u8])],
        out: &mut dyn Write,
        _: &(dyn Fn(f32) + Sync),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(out.write_all(target)?)
    }
}

fn release(repository: &Repository, dir: &Path, version: &str) -> Result<()> {
    let path = dir.join(format!("{version}.raucb"));
    std::fs::write(&path, sample::bundle(BOARD, version)).context("cannot write a bundle")?;
    let notes = "Security fixes of the month. No change for applications; the restart takes half a minute.";
    repository.publish(&[path], Some(notes), &Sample, &Small, now(), &|_, _| {})?;
    Ok(())
}

/// Bytes of a month: a refresh of the metadata a day, all other looks find nothing new.
fn month(phases: &[Phase]) -> u64 {
    let of = |what: &str| phases.iter().find(|phase| phase.what == what).map_or(0, |phase| phase.tls_bytes);
    let looks = MONTH_S / DEFAULT_INTERVAL.as_secs();
    let refreshes = MONTH_S / (24 * 3600);
    refreshes * of("daily refresh") + looks.saturating_sub(refreshes) * of("nothing new")
}

/// What a look asks for on average, by the devices' own instants.
fn due(herd: &[Arc<Device>], requests: u64) -> Vec<f64> {
    let each = requests as f64 / herd.len().max(1) as f64;
    let bin_s = DEFAULT_INTERVAL.as_secs_f64() / BINS as f64;
    let mut bins = vec![0.0; BINS];
    for device in herd {
        let bin = (offset(&device.identity, DEFAULT_INTERVAL).as_secs_f64() / bin_s) as usize;
        if let Some(bin) = bins.get_mut(bin) {
            *bin += each;
        }
    }
    bins
}

/// The most that a bin may have, times the mean.
const EVEN: f64 = 1.5;

/// The worst round's busiest ten minutes against the mean of all.
fn busiest(rounds: impl Iterator<Item = Vec<f64>>) -> f64 {
    let of = |bins: Vec<f64>| {
        let mean = bins.iter().sum::<f64>() / BINS as f64;
        bins.iter().copied().fold(0.0, f64::max) / mean.max(f64::MIN_POSITIVE)
    };
    rounds.map(of).fold(0.0, f64::max)
}

fn even(what: &str, times: f64) -> Target {
    Target {
        what: format!("the busiest ten minutes against the mean, {what}"),
        figure: format!("{times:.2}×"),
        wanted: format!("at most {EVEN:.2}×"),
        met: times <= EVEN,
    }
}

/// What the devices are to blame for: their instants.
fn herd_target(phases: &[Phase]) -> Target {
    even("by the devices' instants", busiest(phases.iter().map(|phase| phase.due_by_bin.clone())))
}

/// What the server saw of it. A machine that began looks ten minutes late, or later, has measured itself: then this
/// tells nothing of the devices, and is not judged.
fn server_target(phases: &[Phase], seconds: u64) -> Option<Target> {
    let late = phases.iter().map(|phase| minutes_late(phase.late_s, seconds)).fold(0.0, f64::max);
    let seen = phases.iter().map(|phase| phase.requests_by_bin.iter().map(|count| *count as f64).collect());
    (late < 10.0).then(|| even("as the server counted", busiest(seen)))
}

/// Minutes of the six hours for seconds of the shortened time.
fn minutes_late(late_s: f64, seconds: u64) -> f64 {
    late_s * DEFAULT_INTERVAL.as_secs_f64() / seconds.max(1) as f64 / 60.0
}

fn text(phases: &[Phase], targets: &[Target], args: &args::BenchHerd, chain: usize) -> String {
    let mut table = vec![row([
        "what",
        "requests a look",
        "bodies a look",
        "a look, without TLS",
        "a look, TLS and packets",
        "requests/s, mean",
        "requests/s, busiest minute",
        "requests in each ten minutes",
    ])];
    for phase in phases {
        let looks = phase.looks.max(1) as f64;
        let each = phase.requests as f64 / looks;
        table.push(vec![
            phase.what.into(),
            format!("{each:.2}"),
            format!("{:.0} B", phase.body_bytes as f64 / looks),
            format!("{} B", phase.wire_bytes),
            format!("{} B", phase.tls_bytes),
            format!("{:.2}", phase.requests as f64 / DEFAULT_INTERVAL.as_secs_f64()),
            format!("{:.2}", phase.busiest),
            plot(&phase.requests_by_bin),
        ]);
    }
    let late = phases.iter().map(|phase| phase.late_s).fold(0.0, f64::max);
    let really =
        phases.iter().map(|phase| phase.requests as f64 / phase.took_s.max(0.001)).fold(0.0, f64::max);
    let minutes = minutes_late(late, args.seconds);
    let judged = match minutes < 10.0 {
        true => "",
        false => " That is too late to judge by the server's count: what was late came at once.",
    };
    let notes = [format!(
        "{} devices, each with its own memory and its own instant in six hours, which took {} s here: up to {really:.0} \
         requests a second by this machine's clock, server and devices on the same processors, {AT_ONCE} looks under way \
         at most. The latest look began {late:.1} s after its instant, {minutes:.0} minutes of the six hours.{judged} Requests a \
         second are those of the six hours, as the server counted them. The repository has eight releases, each with \
         three deltas. A look without TLS: both directions of {SAMPLE} further devices' connections with all heads. With \
         TLS: as many, all packets that the kernel counted in a network of their own (MTU 1500, IP and TCP heads \
         included, DNS not), a full handshake each, with a chain of {chain} bytes.",
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

/// Requests a second over the six hours, a curve for each round, as SVG.
fn drawing(phases: &[Phase]) -> String {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 300.0;
    const COLOURS: [&str; 4] = ["#1b6ca8", "#3c9d4e", "#d08700", "#b3352c"];
    let rate = |count: u64| count as f64 / 600.0;
    let counts = phases.iter().flat_map(|phase| phase.requests_by_bin.iter().copied());
    let top = counts.map(rate).fold(0.1, f64::max) * 1.1;
    let x = |bin: f64| 60.0 + bin / BINS as f64 * WIDTH;
    let y = |rate: f64| 20.0 + HEIGHT - rate / top * HEIGHT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Requests a second over the six hours between two looks</title>\n",
        WIDTH + 80.0,
        HEIGHT + 100.0
    );
    for step in 0..=4 {
        let at = top * f64::from(step) / 4.0;
        out.push_str(&format!(
            "<path d=\"M60 {0:.1}H{1:.0}\" stroke=\"#ccc\"/><text x=\"55\" y=\"{2:.1}\" text-anchor=\"end\">{at:.1}</text>\n",
            y(at),
            60.0 + WIDTH,
            y(at) + 4.0
        ));
    }
    for hour in 0..=6 {
        let at = x(f64::from(hour) * 6.0);
        out.push_str(&format!(
            "<text x=\"{at:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{hour} h</text>\n",
            HEIGHT + 38.0
        ));
    }
    for (number, phase) in phases.iter().enumerate() {
        let colour = COLOURS.get(number % COLOURS.len()).copied().unwrap_or("#000");
        let mut path = String::new();
        for (bin, count) in phase.requests_by_bin.iter().enumerate() {
            let letter = if bin == 0 { 'M' } else { 'L' };
            path.push_str(&format!("{letter}{:.1} {:.1}", x(bin as f64 + 0.5), y(rate(*count))));
        }
        out.push_str(&format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n"
        ));
        let at = 60.0 + number as f64 * 180.0;
        out.push_str(&format!(
            "<path d=\"M{at:.0} {0:.0}h20\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{1:.0}\" y=\"{2:.0}\">{3}</text>\n",
            HEIGHT + 66.0,
            at + 26.0,
            HEIGHT + 70.0,
            phase.what
        ));
    }
    out.push_str("<text x=\"60\" y=\"14\">requests a second, mean of ten minutes</text>\n</svg>\n");
    out
}

#[cfg(test)]
mod unit {
    use super::*;

    fn phase(what: &'static str, tls_bytes: u64, requests_by_bin: Vec<u64>) -> Phase {
        let requests = requests_by_bin.iter().sum();
        let due_by_bin = requests_by_bin.iter().map(|count| *count as f64).collect();
        let (looks, body_bytes, wire_bytes, busiest, late_s, took_s) = (requests, 0, 0, 0.0, 0.0, 1.0);
        Phase {
            what,
            looks,
            requests,
            body_bytes,
            wire_bytes,
            tls_bytes,
            requests_by_bin,
            busiest,
            due_by_bin,
            late_s,
            took_s,
        }
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
        let mut thundering = phase("x", 0, all_at_once);
        assert!(!herd_target(std::slice::from_ref(&thundering)).met);
        assert!(!server_target(std::slice::from_ref(&thundering), 360).unwrap().met);
        // Late looks pile up at the server, and the devices' instants stay what they were.
        thundering.due_by_bin = vec![10.0; BINS];
        thundering.late_s = 11.0;
        assert!(herd_target(std::slice::from_ref(&thundering)).met);
        assert!(server_target(std::slice::from_ref(&thundering), 360).is_none());
        // Ten minutes are 10 s where six hours take 360.
        thundering.late_s = 9.0;
        assert!(!server_target(&[thundering], 360).unwrap().met);
    }

    #[test]
    fn instants_of_many_devices_are_even_and_none_is_lost() {
        let http = Http::new(&rustiot_http::Settings::default()).unwrap();
        let url: Url = "http://127.0.0.1:9/".parse().unwrap();
        let device = |n| Arc::new(Device::new(n, Path::new("/nowhere"), b"", &url, &http));
        let herd: Vec<_> = (0..10_000).map(device).collect();
        let bins = due(&herd, 20_000);
        assert!((bins.iter().sum::<f64>() - 20_000.0).abs() < 1.0, "{bins:?}");
        let most = busiest([bins].into_iter());
        assert!(most > 1.0 && most < 1.25, "{most}");
    }

    #[test]
    fn bars_grow_with_their_numbers() {
        assert_eq!(plot(&[0, 7, 14]), "▁▄█");
        assert_eq!(plot(&[0, 0]), "▁▁");
    }

    #[test]
    fn the_drawing_has_a_curve_for_each_round() {
        let svg = drawing(&[phase("a", 0, vec![1; BINS]), phase("b", 0, vec![600; BINS])]);
        assert_eq!(svg.matches("fill=\"none\"").count(), 2, "{svg}");
        assert!(!svg.contains("NaN") && svg.trim_end().ends_with("</svg>"), "{svg}");
    }

    #[test]
    fn the_servers_count_goes_to_the_minutes_and_what_is_late_to_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let server = FileServer::start(dir.path()).unwrap();
        let get = || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
            stream.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        };
        // All of it is late where the interval is over before the first request.
        let (counts, ()) = counted(&server, 1, || {
            std::thread::sleep(Duration::from_millis(1100));
            get();
            get();
            Ok(())
        })
        .unwrap();
        assert_eq!((counts.len(), counts.last()), (BINS * READS, Some(&2)), "{counts:?}");
        // None is, where the interval is long.
        let (counts, ()) = counted(&server, 100_000, || {
            get();
            Ok(())
        })
        .unwrap();
        assert_eq!((counts.len(), counts.first()), (BINS * READS, Some(&1)), "{counts:?}");
    }
}

#[cfg(test)]
mod tests {
    const FIGURES: &str = include_str!("../../../../docs/figures.md");
    const SCALE: &str = include_str!("../../../../docs/scale.md");

    /// The numbers of a row of the herd's table: requests of a look, bodies, bytes without and with TLS.
    fn figures(what: &str) -> Vec<f64> {
        let table = FIGURES.split("<!-- bench herd -->").nth(1).unwrap();
        let line = table.lines().find(|line| line.starts_with(&format!("| {what} "))).unwrap();
        let cells = line.split('|').skip(2).take(4).map(|cell| cell.trim().trim_end_matches(" B"));
        cells.map(|cell| cell.parse().unwrap()).collect()
    }

    fn size(bytes: f64) -> String {
        if bytes < 1000.0 { format!("{bytes:.0} B") } else { format!("{:.1} kB", bytes / 1e3) }
    }

    /// With commas between thousands.
    fn grouped(number: u64) -> String {
        let digits = number.to_string();
        let places = digits.chars().enumerate();
        let comma = |at: usize| at > 0 && (digits.len() - at).is_multiple_of(3);
        places.flat_map(|(at, digit)| comma(at).then_some(',').into_iter().chain([digit])).collect()
    }

    /// The cells of the row that begins so, of the page on scale.
    fn row(begins: &str) -> Vec<&'static str> {
        let line = SCALE.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("{begins}"));
        line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn the_page_on_scale_reckons_with_what_was_measured() {
        for (what, shown) in [
            ("first look", "a repository for the first time"),
            ("a new release", "one with a new release"),
            ("daily refresh", "one that was refreshed (once a day)"),
            ("nothing new", "one with nothing new"),
        ] {
            let measured = figures(what);
            let wanted = [shown.to_owned(), measured[0].to_string(), size(measured[2]), size(measured[3])];
            assert_eq!(row(&format!("| {shown} ")), wanted);
        }
        let (nothing, refresh) = (figures("nothing new"), figures("daily refresh"));
        let month = |column: usize| 90.0 * nothing[column] + 30.0 * refresh[column];
        let idle = format!("**{:.0} kB a month**", month(3) / 1e3);
        assert!(SCALE.contains(&idle), "no {idle}");
        assert!(FIGURES.contains(&format!("heads included: {:.0} kB", month(3) / 1e3)));
        let looking = month(0);
        for devices in [10_000.0, 100_000.0, 1_000_000.0] {
            let cells = row(&format!("| {} ", grouped(devices as u64)));
            let a_second = devices * looking / (30.0 * 86_400.0);
            let near = |cell: &str, value: f64| (cell.parse::<f64>().unwrap() / value - 1.0).abs() < 0.05;
            let shown = [a_second, month(2) * devices / 1e9, month(3) * devices / 1e9];
            for (cell, value) in cells[1..].iter().zip(shown) {
                assert!(near(cell, value), "{devices} devices: {cell} for {value}");
            }
        }
        let release = (figures("a new release")[3] - nothing[3]) / 1e3;
        assert!(SCALE.contains(&format!("A release in that month adds {release:.0} kB")));
    }

    #[test]
    fn the_example_of_costs_is_what_its_own_prices_make_of_it() {
        let (a_gigabyte, ten_thousand) = (0.05, 0.01);
        assert!(SCALE.contains("p = 0.05 and q = 0.01"));
        let (nothing, refresh) = (figures("nothing new"), figures("daily refresh"));
        let found = figures("a new release");
        let looking = [0, 3].map(|column| 90.0 * nothing[column] + 30.0 * refresh[column]);
        let adds = [0, 3].map(|column| found[column] - nothing[column]);
        let mut sum = [0.0; 2];
        for (begins, [requests, bytes]) in
            [("| looking", looking), ("| what the look", adds), ("| the delta", [3.0, 3e6])]
        {
            // Of a million devices.
            let (requests, gigabytes) = (requests * 1e6, (bytes / 1e3).round());
            let money = [gigabytes * a_gigabyte, requests / 1e4 * ten_thousand];
            let shown = [
                grouped(requests as u64),
                grouped(gigabytes as u64),
                format!("{:.2}", money[0]),
                format!("{:.2}", money[1]),
            ];
            assert_eq!(row(begins)[1..], shown);
            sum = [sum[0] + money[0], sum[1] + money[1]];
        }
        assert_eq!(row("| **together**")[3..], sum.map(|money| format!("{money:.2}")));
        let whole = format!(
            "{:.2} for a million devices, {:.2} for a thousand",
            sum[0] + sum[1],
            (sum[0] + sum[1]) / 1e3
        );
        assert!(SCALE.contains(&whole), "no {whole}");
    }
}
