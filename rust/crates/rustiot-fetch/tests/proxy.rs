//! The proxy between an imitated RAUC and servers that misbehave. Waits on conditions, never on time.
#![cfg(test)]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustiot_fetch::{Failure, Handle, Limits, Progress, Proxy, State, Way};
use rustiot_http::faulty::{Fault, Server, TlsFault, nobody};
use rustiot_http::{Http, Settings, Url};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn http() -> Http {
    Http::new(&Settings { idle_timeout: Duration::from_millis(200), ..Settings::default() }).unwrap()
}

fn limits(cache: u64) -> Limits {
    Limits {
        rate: None,
        cache,
        backoff_base: Duration::from_millis(1),
        backoff_cap: Duration::from_millis(5),
    }
}

fn file(len: usize) -> Vec<u8> {
    let mut random = 1u64;
    (0..len)
        .map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        })
        .collect()
}

const BIG: u64 = 1 << 30;

/// A bundle whose contents are known.
fn known(urls: Vec<Url>, file: &[u8]) -> Way {
    Way::Plain { urls, len: Some(file.len() as u64), sha256: Some(Sha256::digest(file).into()) }
}

/// A bundle of which nothing is known but where it is.
fn unknown(urls: Vec<Url>) -> Way {
    Way::Plain { urls, len: None, sha256: None }
}

/// One that waits long, where the machine may be slow and no silence is tested.
fn patient() -> Http {
    Http::new(&Settings::default()).unwrap()
}

async fn start(way: Way, limits: Limits, dir: &Path) -> Handle {
    Proxy::start(way, limits, dir, http()).await.unwrap()
}

async fn until(handle: &Handle, what: impl Fn(&Progress) -> bool) -> Progress {
    handle.progress().wait_for(|progress| what(progress)).await.unwrap().clone()
}

/// What RAUC's streaming client does, as libcurl puts it on the wire.
struct Rauc {
    stream: TcpStream,
    path: String,
    host: String,
}

impl Rauc {
    async fn connect(handle: &Handle) -> Rauc {
        let url = handle.url();
        let host = format!("127.0.0.1:{}", url.port().unwrap());
        let stream = TcpStream::connect(&host).await.unwrap();
        Rauc { stream, path: url.path().to_owned(), host }
    }

    async fn send(&mut self, range: &str, agent: &str) {
        let (path, host) = (&self.path, &self.host);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={range}\r\n{agent}Accept: */*\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
    }

    /// Code, headers by lower-case name, body.
    async fn answer(&mut self) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 "), "{head}");
        let code = head[9..12].parse().unwrap();
        let headers: Vec<(String, String)> = head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length").unwrap().1.parse().unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.unwrap();
        (code, headers, body)
    }

    /// The first request: it has to be answered 206 with exactly this Content-Range.
    async fn configure(&mut self) -> u64 {
        self.send("0-3", "User-Agent: rauc/1.15\r\n").await;
        let (code, headers, body) = self.answer().await;
        assert_eq!((code, body.len()), (206, 4));
        let range = &headers.iter().find(|(name, _)| name == "content-range").unwrap().1;
        let (unit, rest) = range.split_once(' ').unwrap();
        let (range, total) = rest.split_once('/').unwrap();
        assert_eq!((unit, range), ("bytes", "0-3"));
        total.parse().unwrap()
    }

    async fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>, u16> {
        self.send(&format!("{}-{}", range.start, range.end - 1), "").await;
        match self.answer().await {
            (206, _, body) => Ok(body),
            (code, ..) => Err(code),
        }
    }
}

/// All of the bundle, in the kernel's pieces, over several connections at once as curl's multi interface has them.
async fn install(handle: &Handle, total: u64) -> Vec<u8> {
    assert_eq!(Rauc::connect(handle).await.configure().await, total);
    let mut tasks = Vec::new();
    for lane in 0..4u64 {
        let mut rauc = Rauc::connect(handle).await;
        tasks.push(tokio::spawn(async move {
            let mut pieces = Vec::new();
            let mut at = lane * 128_000;
            while at < total {
                let end = (at + 128_000).min(total);
                pieces.push((at, rauc.read(at..end).await.unwrap()));
                at += 4 * 128_000;
            }
            pieces
        }));
    }
    let mut all = vec![0; total as usize];
    for task in tasks {
        for (at, piece) in task.await.unwrap() {
            all[at as usize..at as usize + piece.len()].copy_from_slice(&piece);
        }
    }
    all
}

#[tokio::test]
async fn serves_rauc_with_and_without_a_cache() {
    let file = file(3_000_001);
    for cache in [BIG, 0] {
        for way in [known, |urls: Vec<Url>, _: &[u8]| unknown(urls)] {
            let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
            let handle = start(way(vec![server.url()], &file), limits(cache), dir.path()).await;
            assert_eq!(install(&handle, 3_000_001).await, file);
            let progress = handle.progress().borrow().clone();
            assert_eq!((progress.total, progress.bundle), (3_000_001, 3_000_001));
            assert_eq!(progress.served, 3_000_005);
            assert!(progress.held_since.is_none() && progress.rate > 0, "{progress:?}");
            assert!(server.sent() <= 3_000_001 * 105 / 100, "{} with a cache of {cache}", server.sent());
            assert!(server.requests().len() < 40, "{}", server.requests().len());
        }
    }
}

#[tokio::test]
async fn the_server_on_loopback_keeps_to_http() {
    let file = file(10_000);
    let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
    let handle = start(known(vec![server.url()], &file), limits(BIG), dir.path()).await;
    let http = http();
    let other = handle.url().join("/guess/bundle.raucb").unwrap();
    assert_eq!(http.get(&other).send_any().await.unwrap().status(), 404);
    assert_eq!(http.post_json(handle.url(), &1).send_any().await.unwrap().status(), 405);
    let head = http.request(rustiot_http::Method::HEAD, handle.url()).send().await.unwrap();
    assert_eq!((head.content_length(), head.header("accept-ranges")), (Some(10_000), Some("bytes")));
    assert_eq!(http.get_bytes(handle.url(), BIG).await.unwrap(), file);
    let mut rauc = Rauc::connect(&handle).await;
    assert_eq!(rauc.read(9_990..20_000).await.unwrap(), file[9_990..]);
    assert_eq!(rauc.read(10_000..20_000).await, Err(416));
    rauc.send("-5", "").await;
    assert_eq!(rauc.answer().await.2, file[9_995..]);
    // Several ranges at once are not offered: the whole file, as RFC 9110 allows.
    rauc.send("0-1,5-6", "").await;
    assert_eq!(rauc.answer().await.0, 200);
    assert_ne!(
        handle.url().path().len(),
        start(unknown(vec![server.url()]), limits(0), dir.path()).await.url().path().len() + 1
    );
}

#[tokio::test]
async fn rauc_never_sees_a_failure_that_heals() {
    let file = file(400_000);
    let faults = [
        Fault::ResetAfter(20_000),
        Fault::CloseAfter(20_000),
        Fault::SilentAfter(20_000),
        Fault::Silent,
        Fault::HangUp,
        Fault::Status(503, None),
        Fault::Status(429, Some(0)),
        Fault::Page,
        Fault::RedirectLoop,
    ];
    for fault in faults {
        let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
        server.set(fault.clone());
        let handle = start(known(vec![server.url()], &file), limits(BIG), dir.path()).await;
        let mut rauc = Rauc::connect(&handle).await;
        assert_eq!(rauc.configure_while(&handle, &server, &fault).await, 400_000);
        assert_eq!(install(&handle, 400_000).await, file, "{fault:?}");
    }
}

impl Rauc {
    /// Waits until the fault has been met more than once, then lets the server heal.
    async fn configure_while(&mut self, handle: &Handle, server: &Server, fault: &Fault) -> u64 {
        let heal = async {
            match fault {
                // These make progress by themselves.
                Fault::ResetAfter(_) | Fault::CloseAfter(_) | Fault::SilentAfter(_) => {}
                _ => {
                    until(handle, |progress| matches!(progress.state, State::Waiting { attempts: 4.., .. }))
                        .await;
                    server.set(Fault::None);
                }
            }
        };
        tokio::join!(self.configure(), heal).0
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for_and_the_hold_is_shown() {
    let file = file(50_000);
    let dir = tempfile::tempdir().unwrap();
    let away = nobody().await;
    let handle = start(known(vec![away], &file), limits(BIG), dir.path()).await;
    let mut rauc = Rauc::connect(&handle).await;
    rauc.send("0-3", "").await;
    let progress =
        until(&handle, |progress| matches!(progress.state, State::Waiting { attempts: 10.., .. })).await;
    let State::Waiting { why, .. } = &progress.state else { panic!() };
    assert!(why.contains("cannot connect"), "{why}");
    assert!(progress.held_since.is_some());
    // RAUC goes away: nobody is held, nothing is fetched any more.
    drop(rauc);
    until(&handle, |progress| progress.held_since.is_none()).await;
}

#[tokio::test]
async fn what_cannot_heal_ends_the_job_with_its_type() {
    let file = file(50_000);
    let other = self::file(50_001);
    type Check = fn(&Failure) -> bool;
    let cases: Vec<(Fault, Check)> = vec![
        (Fault::Status(404, None), |failure| matches!(failure, Failure::Refused(_))),
        (Fault::WrongTotal, |failure| matches!(failure, Failure::Refused(_))),
        (Fault::WrongLength, |failure| matches!(failure, Failure::Refused(_))),
        (Fault::WrongRange, |failure| matches!(failure, Failure::Refused(_))),
        (Fault::Corrupt, |failure| matches!(failure, Failure::Corrupt)),
    ];
    for (fault, check) in cases {
        let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
        server.set(fault.clone());
        let handle = start(known(vec![server.url()], &file), limits(BIG), dir.path()).await;
        let failure = handle.download().await.unwrap_err();
        assert!(check(&failure), "{fault:?}: {failure:?}");
        assert!(matches!(until(&handle, |_| true).await.state, State::Failed(_)));
        // RAUC gives up at once on 404, and only on that.
        assert_eq!(Rauc::connect(&handle).await.read(0..4).await, Err(404));
    }
    let (server, dir) = (Server::start(other).await, tempfile::tempdir().unwrap());
    let handle = start(known(vec![server.url()], &file), limits(BIG), dir.path()).await;
    assert!(matches!(handle.download().await, Err(Failure::Refused(_))));
    let failure = Proxy::start(known(vec![], &file), limits(BIG), dir.path(), http()).await.unwrap_err();
    assert!(matches!(failure, Failure::NoAddress));
    let handle = start(known(vec![server.url()], &file), limits(49_999), dir.path()).await;
    assert!(matches!(handle.download().await, Err(Failure::TooLarge { need: 50_000, limit: 49_999 })));
}

#[tokio::test]
async fn a_server_without_ranges_does_for_a_download() {
    let file = file(400_000);
    let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
    server.set(Fault::NoRanges);
    let handle = start(known(vec![server.url()], &file), limits(BIG), dir.path()).await;
    handle.download().await.unwrap();
    assert_eq!(server.sent(), 400_000);
    assert_eq!(install(&handle, 400_000).await, file);
    // Without a cache it does not.
    let handle = start(known(vec![server.url()], &file), limits(0), dir.path()).await;
    assert_eq!(Rauc::connect(&handle).await.read(1_000..2_000).await, Err(404));
}

#[tokio::test]
async fn mirrors_take_over_and_the_good_one_is_remembered() {
    let file = file(3_000_000);
    let bad =
        [Fault::Status(500, None), Fault::Status(404, None), Fault::Page, Fault::WrongTotal, Fault::HangUp];
    for fault in bad {
        let (first, second) = (Server::start(file.clone()).await, Server::start(file.clone()).await);
        first.set(fault.clone());
        let dir = tempfile::tempdir().unwrap();
        let urls = vec![nobody().await, first.url(), second.url()];
        let handle = start(known(urls, &file), limits(BIG), dir.path()).await;
        assert_eq!(install(&handle, 3_000_000).await, file, "{fault:?}");
        assert_eq!(first.requests().len(), 1, "{fault:?}: asked once, then left alone");
        // The good one goes away, and the other is fine now.
        first.set(Fault::None);
    }
}

#[tokio::test]
async fn a_mirror_with_wrong_bytes_is_found_out_and_left() {
    let file = file(300_000);
    let (first, second) = (Server::start(file.clone()).await, Server::start(file.clone()).await);
    first.set(Fault::Corrupt);
    let dir = tempfile::tempdir().unwrap();
    let handle = start(known(vec![first.url(), second.url()], &file), limits(BIG), dir.path()).await;
    handle.download().await.unwrap();
    assert_eq!(install(&handle, 300_000).await, file);
    assert_eq!((first.sent(), second.sent()), (300_000, 300_000));
}

#[tokio::test]
async fn a_file_that_changed_is_begun_again_or_ends_the_job() {
    let (old, new) = (file(500_000), file(600_000));
    let (server, dir) = (Server::start(old.clone()).await, tempfile::tempdir().unwrap());
    // Over a restart: the cache knows the old one.
    let handle = start(unknown(vec![server.url()]), limits(BIG), dir.path()).await;
    handle.download().await.unwrap();
    drop(handle);
    let handle = start(unknown(vec![server.url()]), limits(BIG), dir.path()).await;
    handle.download().await.unwrap();
    assert!(server.sent() < 600_000, "reused");
    drop(handle);
    // The same length under another name: not the same file.
    let mut other = old.clone();
    other[77] ^= 1;
    server.replace(other.clone(), Some("\"2\""));
    let handle = start(unknown(vec![server.url()]), limits(BIG), dir.path()).await;
    assert_eq!(install(&handle, 500_000).await, other);
    drop(handle);
    // In the middle of a download, before anybody has seen a byte.
    server.set(Fault::SilentAfter(100_000));
    let dir = tempfile::tempdir().unwrap();
    let handle = Arc::new(start(unknown(vec![server.url()]), limits(BIG), dir.path()).await);
    let download = tokio::spawn({
        let handle = handle.clone();
        async move { handle.download().await }
    });
    until(&handle, |progress| progress.have > 0).await;
    server.replace(new.clone(), Some("\"3\""));
    server.set(Fault::None);
    download.await.unwrap().unwrap();
    assert_eq!(install(&handle, 600_000).await, new);
    // And after RAUC has seen some of it.
    let dir = tempfile::tempdir().unwrap();
    let handle = start(unknown(vec![server.url()]), limits(BIG), dir.path()).await;
    let mut rauc = Rauc::connect(&handle).await;
    assert_eq!(rauc.read(0..1_000).await.unwrap(), new[..1_000]);
    server.replace(old, Some("\"4\""));
    assert_eq!(rauc.read(590_000..600_000).await, Err(404));
    assert!(matches!(handle.download().await, Err(Failure::Changed)));
}

#[tokio::test]
async fn tls_that_cannot_be_trusted_is_waited_out_and_never_gone_around() {
    let file = file(10_000);
    for fault in [TlsFault::Expired, TlsFault::WrongName, TlsFault::None] {
        let (server, dir) = (Server::start_tls(file.clone(), fault).await, tempfile::tempdir().unwrap());
        let handle = Arc::new(start(known(vec![server.url()], &file), limits(BIG), dir.path()).await);
        let download = tokio::spawn({
            let handle = handle.clone();
            async move { handle.download().await }
        });
        let progress =
            until(&handle, |progress| matches!(progress.state, State::Waiting { attempts: 3.., .. })).await;
        let State::Waiting { why, .. } = progress.state else { panic!() };
        assert!(why.contains("no trusted TLS connection"), "{why}");
        assert_eq!(server.sent(), 0);
        handle.cancel();
        assert!(matches!(download.await.unwrap(), Err(Failure::Cancelled)));
    }
}

#[tokio::test]
async fn pause_and_resume_at_each_phase() {
    let file = file(2_000_000);
    let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
    let handle = Arc::new(start(known(vec![server.url()], &file), limits(BIG), dir.path()).await);
    let download = |handle: &Arc<Handle>| {
        let handle = handle.clone();
        tokio::spawn(async move { handle.download().await })
    };
    // Before the first byte.
    handle.pause();
    let task = download(&handle);
    until(&handle, |progress| matches!(progress.state, State::Paused)).await;
    assert!(server.requests().is_empty());
    handle.resume();
    // While bytes come, and while the server is silent.
    server.set(Fault::SilentAfter(300_000));
    until(&handle, |progress| progress.have > 0).await;
    handle.pause();
    let paused = until(&handle, |progress| matches!(progress.state, State::Paused)).await;
    assert!(paused.have > 0 && paused.have < 2_000_000, "{paused:?}");
    // While it waits for a server that is away.
    server.set(Fault::HangUp);
    handle.resume();
    until(&handle, |progress| matches!(progress.state, State::Waiting { .. })).await;
    handle.pause();
    until(&handle, |progress| matches!(progress.state, State::Paused)).await;
    server.set(Fault::None);
    handle.resume();
    task.await.unwrap().unwrap();
    // While RAUC reads: what is in the cache is served, paused or not.
    handle.pause();
    assert_eq!(install(&handle, 2_000_000).await, file);
    assert!(server.sent() <= 2_100_000, "{}", server.sent());
    // And without a cache, RAUC is held.
    let handle = start(known(vec![server.url()], &file), limits(0), dir.path()).await;
    handle.pause();
    let mut rauc = Rauc::connect(&handle).await;
    rauc.send("0-3", "").await;
    until(&handle, |progress| progress.held_since.is_some()).await;
    handle.resume();
    assert_eq!(rauc.answer().await.2, file[..4]);
}

#[tokio::test]
async fn cancel_at_each_phase() {
    let file = file(2_000_000);
    let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
    type Phase = fn(&Progress) -> bool;
    let phases: [(Fault, bool, Phase); 4] = [
        (Fault::None, true, |progress| matches!(progress.state, State::Paused)),
        (Fault::Silent, false, |progress| matches!(progress.state, State::Fetching)),
        (Fault::SilentAfter(200_000), false, |progress| progress.have > 0),
        (Fault::HangUp, false, |progress| matches!(progress.state, State::Waiting { .. })),
    ];
    for (fault, paused, phase) in phases {
        server.set(fault.clone());
        let handle = Arc::new(start(known(vec![server.url()], &file), limits(BIG), dir.path()).await);
        if paused {
            handle.pause();
        }
        let task = tokio::spawn({
            let handle = handle.clone();
            async move { handle.download().await }
        });
        let mut rauc = Rauc::connect(&handle).await;
        rauc.send("1999000-1999999", "").await;
        until(&handle, |progress| phase(progress) && progress.held_since.is_some()).await;
        handle.cancel();
        assert!(matches!(task.await.unwrap(), Err(Failure::Cancelled)), "{fault:?}");
        assert_eq!(rauc.answer().await.0, 404, "{fault:?}");
        assert!(matches!(handle.download().await, Err(Failure::Cancelled)));
    }
    // The cache is there for the next job.
    server.set(Fault::None);
    let handle = start(known(vec![server.url()], &file), limits(BIG), dir.path()).await;
    assert!(handle.progress().borrow().cached > 0);
    handle.download().await.unwrap();
    drop(handle);
    Handle::clean(dir.path()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Killed at twenty points of one download, as a process is: everything in memory is gone at once.
#[test]
fn killed_twenty_times_it_fetches_hardly_more_than_once() {
    const LEN: usize = 64 << 20;
    let file = Arc::new(file(LEN));
    // In memory where there is such a place: the syncs are not what is looked at here.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    // The server is another process's: a thread with a runtime of its own, until the test ends.
    let (send, receive) = std::sync::mpsc::channel();
    let contents = file.to_vec();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            send.send(Arc::new(Server::start(contents).await)).unwrap();
            ended.await
        })
    });
    let server = receive.recv().unwrap();
    let way = known(vec![server.url()], &file);
    let mut random = 7u64;
    for kill in 1..=20u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let jitter = (random >> 40) % (LEN as u64 / 40);
        let point = kill * (LEN as u64 / 21) + jitter;
        let device = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        device.block_on(async {
            let handle =
                Arc::new(Proxy::start(way.clone(), limits(BIG), dir.path(), patient()).await.unwrap());
            let download = tokio::spawn({
                let handle = handle.clone();
                async move { handle.download().await }
            });
            until(&handle, |progress| progress.have >= point).await;
            drop(download);
        });
        drop(device);
    }
    let device = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    device.block_on(async {
        let handle = Proxy::start(way, limits(BIG), dir.path(), patient()).await.unwrap();
        handle.download().await.unwrap();
        assert_eq!(install(&handle, LEN as u64).await, *file);
    });
    let ratio = server.sent() as f64 / LEN as f64;
    println!("20 kills: {} of {LEN} bytes sent, {ratio:.4} x", server.sent());
    assert!(ratio <= 1.05, "{ratio}");
    drop(end);
    thread.join().unwrap().unwrap_err();
}
