//! The proxy over links that are bad for all their length, as opposed to servers that do one thing wrong: slow, lossy,
//! without names, with somebody in between, cut again and again. Where a link is slow, it is so on a scale of 1 to 20:
//! the link's times and the client's timeouts are twenty times shorter than theirs.
#![cfg(test)]

mod common;

use std::time::{Duration, Instant};

use common::{BIG, Rauc, file, http, install, limits, start, until};
use rustiot_fetch::{Limits, Progress, Proxy, State, Way};
use rustiot_http::faulty::{Fault, Link, Quality, Server};
use rustiot_http::{Http, Settings, Url};
use sha2::{Digest, Sha256};

const SCALE: u32 = 20;

fn known(urls: Vec<Url>, file: &[u8]) -> Way {
    Way::Plain { urls, len: Some(file.len() as u64), sha256: Some(Sha256::digest(file).into()) }
}

/// The device's own client and delays, on the scale.
fn device() -> (Http, Limits) {
    let own = Settings::default();
    let http = Http::new(&Settings {
        connect_timeout: own.connect_timeout / SCALE,
        idle_timeout: own.idle_timeout / SCALE,
        ..own
    });
    let own = Limits::default();
    let limits = Limits {
        cache: BIG,
        backoff_base: own.backoff_base / SCALE,
        backoff_cap: own.backoff_cap / SCALE,
        ..own
    };
    (http.unwrap(), limits)
}

/// A test that hangs has failed.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), what).await.expect("it hangs")
}

/// Downloads over the link; what came over it for each byte that the file has. What was still under way when the client
/// gave a connection up never came.
async fn over(link: &Link, server: &Server, file: &[u8]) -> f64 {
    let ((http, limits), dir) = (device(), tempfile::tempdir().unwrap());
    let way = known(vec![link.url(&server.url())], file);
    let handle = Proxy::start(way, limits, dir.path(), http).await.unwrap();
    soon(handle.download()).await.unwrap();
    assert_eq!(soon(install(&handle, file.len() as u64)).await, file);
    link.arrived() as f64 / file.len() as f64
}

/// GPRS: 40 kbit/s, 700 ms there and back.
#[tokio::test]
async fn at_the_speed_of_2g_it_takes_long_and_costs_nothing() {
    let file = file(300_000);
    let server = Server::start(file.clone()).await;
    let quality = Quality {
        rate: 5_000 * u64::from(SCALE),
        latency: Duration::from_millis(350) / SCALE,
        ..Quality::default()
    };
    let (link, began) = (Link::to(&server.url(), quality).await, Instant::now());
    let ratio = over(&link, &server, &file).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(60) / SCALE * 95 / 100, "faster than the link: {took:?}");
    assert!(ratio <= 1.05, "{ratio}");
    assert!(server.requests().len() <= 3, "{:?}", server.requests());
}

/// Every third segment is lost, each waits for its copy, and 2 s pass there and back.
#[tokio::test]
async fn thirty_percent_of_loss_and_two_seconds_of_latency_are_got_through() {
    let file = file(100_000);
    let server = Server::start(file.clone()).await;
    let quality = Quality {
        latency: Duration::from_secs(1) / SCALE,
        loss: 30,
        again: Duration::from_secs(3) / SCALE,
        ..Quality::default()
    };
    let link = Link::to(&server.url(), quality).await;
    let ratio = over(&link, &server, &file).await;
    assert!(link.lost() >= 10, "{} segments were lost", link.lost());
    println!("30 % loss: {} segments lost, {} requests, {ratio:.3} x", link.lost(), server.requests().len());
    assert!(ratio <= 1.05, "{ratio}");
}

/// The link dies without a word, again and again, with two megabytes of buffers on the way: what the server pushes into
/// them while nobody listens has been paid for. The first time costs what it costs; after that, little is asked for at
/// once.
#[tokio::test]
async fn a_link_that_dies_in_silence_costs_its_buffers_once() {
    let file = file(24_000_000);
    let server = Server::start(file.clone()).await;
    server.pace(Duration::from_millis(1));
    let link = Link::to(&server.url(), Quality { buffer: 2 << 20, ..Quality::default() }).await;
    let dir = tempfile::tempdir().unwrap();
    let way = known(vec![link.url(&server.url())], &file);
    let handle = std::sync::Arc::new(start(way, limits(BIG), dir.path()).await);
    let download = tokio::spawn({
        let handle = handle.clone();
        async move { handle.download().await }
    });
    for part in 1..8 {
        soon(until(&handle, |progress| progress.have >= part * 3_000_000)).await;
        link.set_up(false);
        let requests = server.requests().len();
        soon(until(&handle, |progress| matches!(progress.state, State::Waiting { .. }))).await;
        link.set_up(true);
        assert!(server.requests().len() >= requests);
    }
    soon(download).await.unwrap().unwrap();
    assert_eq!(soon(install(&handle, 24_000_000)).await, file);
    let ratio = server.sent() as f64 / file.len() as f64;
    println!("7 silent ends: {} requests, {ratio:.3} x", server.requests().len());
    assert!(ratio <= 1.1, "{ratio}");
}

/// A connection that never lives for long makes progress all the same, and no byte comes twice.
#[tokio::test]
async fn a_connection_that_is_reset_every_so_many_bytes_costs_no_byte_twice() {
    let file = file(300_000);
    for every in [1, 100, 1_460, 20_000, 65_536] {
        let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
        server.set(Fault::ResetAfter(every));
        // One byte at a time takes 300,000 connections: only so much of it.
        let some = (every * 200).min(300_000);
        let handle = start(known(vec![server.url()], &file), limits(BIG), dir.path()).await;
        let mut rauc = Rauc::connect(&handle).await;
        assert_eq!(rauc.read(0..some).await.unwrap(), file[..some as usize], "every {every}");
        assert!(server.requests().len() as u64 >= some / every, "every {every}: nothing was reset");
        assert!(
            server.sent() <= some.max(every) * 105 / 100 + 256 * 1024,
            "every {every}: {}",
            server.sent()
        );
        let before = server.sent();
        server.set(Fault::None);
        handle.download().await.unwrap();
        assert_eq!(install(&handle, 300_000).await, file);
        let all = server.sent();
        assert!(all <= 300_000 * 105 / 100, "every {every}: {before} and then {}", all - before);
    }
}

/// Slow loris: the next address is asked, and with none it is waited out.
#[tokio::test]
async fn a_server_that_drips_is_left_for_the_next_and_waited_out_where_there_is_none() {
    let file = file(300_000);
    let drip = [Fault::Drip(1, Duration::from_millis(20)), Fault::DripHead(Duration::from_millis(20))];
    for fault in drip {
        let (bad, good) = (Server::start(file.clone()).await, Server::start(file.clone()).await);
        bad.set(fault.clone());
        let dir = tempfile::tempdir().unwrap();
        let handle = start(known(vec![bad.url(), good.url()], &file), limits(BIG), dir.path()).await;
        handle.download().await.unwrap();
        assert_eq!(install(&handle, 300_000).await, file, "{fault:?}");
        assert!(bad.sent() < 1_000 && good.sent() >= 299_000, "{} and {}", bad.sent(), good.sent());
        let dir = tempfile::tempdir().unwrap();
        let handle = start(known(vec![bad.url()], &file), limits(BIG), dir.path()).await;
        let mut rauc = Rauc::connect(&handle).await;
        rauc.send("0-299999", "").await;
        until(&handle, |progress| matches!(progress.state, State::Waiting { .. })).await;
        bad.set(Fault::None);
        assert_eq!(rauc.answer().await.2, file);
    }
}

#[tokio::test]
async fn a_name_that_nobody_resolves_is_passed_over_and_waited_for() {
    let file = file(50_000);
    let dead = Url::parse("http://no-such-name.invalid/file").unwrap();
    let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
    let handle = start(known(vec![dead.clone(), server.url()], &file), limits(BIG), dir.path()).await;
    assert_eq!(install(&handle, 50_000).await, file);
    let dir = tempfile::tempdir().unwrap();
    let handle = start(known(vec![dead], &file), limits(BIG), dir.path()).await;
    let mut rauc = Rauc::connect(&handle).await;
    rauc.send("0-3", "").await;
    let progress =
        until(&handle, |progress| matches!(progress.state, State::Waiting { attempts: 4.., .. })).await;
    let State::Waiting { why, .. } = &progress.state else { panic!() };
    assert!(why.contains("cannot resolve no-such-name.invalid"), "{why}");
    assert!(progress.held_since.is_some(), "RAUC was not held");
}

/// A portal sends every request to its own page until somebody has logged in. Nothing of the page gets into the file.
#[tokio::test]
async fn a_captive_portal_is_waited_out_whatever_it_answers() {
    let file = file(3_000_000);
    let portal = Server::start(file.clone()).await;
    portal.set(Fault::Page);
    for fault in [Fault::RedirectTo(portal.url().into()), Fault::Page, Fault::Status(511, None)] {
        let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
        let handle = start(known(vec![server.url()], &file), limits(BIG), dir.path()).await;
        let mut rauc = Rauc::connect(&handle).await;
        // In the middle of a download.
        assert_eq!(rauc.read(0..1_000).await.unwrap(), file[..1_000]);
        server.set(fault.clone());
        rauc.send("2990000-2999999", "").await;
        let progress =
            soon(until(&handle, |progress| matches!(progress.state, State::Waiting { attempts: 4.., .. })))
                .await;
        let have = progress.have;
        server.set(Fault::None);
        assert_eq!(rauc.answer().await.2, file[2_990_000..], "{fault:?}");
        assert!(have < 2_990_000, "{fault:?}: nothing was left to fetch");
        handle.download().await.unwrap();
        assert_eq!(install(&handle, 3_000_000).await, file, "{fault:?}");
    }
}

/// Bytes that a request's head asks for.
fn asked(head: &str) -> Option<u64> {
    let head = head.to_ascii_lowercase();
    let (from, to) =
        head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.trim().split_once('-'))?;
    Some(to.parse::<u64>().ok()? + 1 - from.parse::<u64>().ok()?)
}

/// The rate as a whole transfer has it, with real connections. A busy machine only makes it slower, and not three
/// times in a row; what the limit itself does over any second is measured on a held clock (`throttle.rs`), here with the
/// largest piece that comes from the socket.
#[tokio::test]
async fn the_rate_limit_is_kept_within_a_tenth_on_the_wire() {
    const RATE: u64 = 400_000;
    let file = file(1_000_000);
    let mut rates = Vec::new();
    for _ in 0..3 {
        let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
        let limits = Limits { rate: Some(RATE), ..limits(BIG) };
        let handle =
            Proxy::start(known(vec![server.url()], &file), limits, dir.path(), http()).await.unwrap();
        let mut seen = handle.progress();
        let watched = tokio::spawn(async move {
            let mut all: Vec<(Instant, u64)> = Vec::new();
            while seen.changed().await.is_ok() {
                let now: Progress = seen.borrow_and_update().clone();
                all.push((Instant::now(), now.fetched));
                if now.fetched >= 1_000_000 {
                    break;
                }
            }
            all
        });
        let began = Instant::now();
        handle.download().await.unwrap();
        rates.push(1_000_000.0 / began.elapsed().as_secs_f64());
        // What a pause would find in buffers is bounded: no request asks for more than two seconds of the rate.
        let asked: Vec<u64> = server.requests().iter().filter_map(|head| asked(head)).collect();
        assert!(asked.len() > 1 && asked.iter().all(|len| *len <= 2 * RATE), "{asked:?}");
        // And within: no second of it brings more than a tenth too much and one piece.
        let all = watched.await.unwrap();
        for (at, (from, before)) in all.iter().enumerate() {
            let within = all.iter().skip(at).take_while(|(now, _)| *now - *from <= Duration::from_secs(1));
            let came = within.last().map_or(0, |(_, now)| now - before);
            assert!(came <= RATE * 110 / 100 + (64 << 10), "{came} bytes in a second");
        }
        let best = rates.iter().copied().fold(0.0, f64::max);
        assert!(best <= RATE as f64 * 1.1, "{rates:?}");
        if best >= RATE as f64 * 0.9 {
            return;
        }
    }
    panic!("too slow three times: {rates:?}");
}
