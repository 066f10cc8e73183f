//! The proxy between an imitated RAUC and servers that misbehave. Waits on conditions, never on time.
#![cfg(test)]

mod common;

use std::sync::Arc;

use common::{BIG, Rauc, file, http, install, limits, patient, start, until};
use rustiot_fetch::{Failure, Handle, Progress, Proxy, State, Way};
use rustiot_http::Url;
use rustiot_http::faulty::{Fault, Server, TlsFault, nobody};
use sha2::{Digest, Sha256};

/// A bundle whose contents are known.
fn known(urls: Vec<Url>, file: &[u8]) -> Way {
    Way::Plain { urls, len: Some(file.len() as u64), sha256: Some(Sha256::digest(file).into()) }
}

/// A bundle of which nothing is known but where it is.
fn unknown(urls: Vec<Url>) -> Way {
    Way::Plain { urls, len: None, sha256: None }
}

#[tokio::test]
async fn serves_rauc_with_and_without_a_cache() {
    let file = file(9_000_001);
    for cache in [BIG, 0] {
        for way in [known, |urls: Vec<Url>, _: &[u8]| unknown(urls)] {
            let (server, dir) = (Server::start(file.clone()).await, tempfile::tempdir().unwrap());
            let handle = start(way(vec![server.url()], &file), limits(cache), dir.path()).await;
            assert_eq!(install(&handle, 9_000_001).await, file);
            let progress = handle.progress().borrow().clone();
            assert_eq!((progress.total, progress.bundle), (9_000_001, 9_000_001));
            assert_eq!(progress.served, 9_000_005);
            assert!(progress.held_since.is_none() && progress.rate > 0, "{progress:?}");
            assert!(server.sent() <= 9_000_001 * 105 / 100, "{} with a cache of {cache}", server.sent());
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
        assert_eq!(configure_while(&mut rauc, &handle, &server, &fault).await, 400_000);
        assert_eq!(install(&handle, 400_000).await, file, "{fault:?}");
    }
}

/// Waits until the fault has been met more than once, then lets the server heal.
async fn configure_while(rauc: &mut Rauc, handle: &Handle, server: &Server, fault: &Fault) -> u64 {
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
    tokio::join!(rauc.configure(), heal).0
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
    let (server, end) = server_of_another_process(file.to_vec());
    // The link is slower than the device: what lies in socket buffers on loopback is no update traffic.
    server.pace(std::time::Duration::from_millis(1));
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
            // In turn: during the download, and while RAUC streams.
            let task = tokio::spawn({
                let handle = handle.clone();
                async move {
                    if kill % 2 == 0 {
                        return handle.download().await;
                    }
                    let mut rauc = Rauc::connect(&handle).await;
                    let mut at = 0;
                    loop {
                        rauc.read(at..at + 128_000).await.unwrap();
                        at += 128_000;
                    }
                }
            });
            until(&handle, |progress| progress.have >= point).await;
            drop(task);
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
    end();
}

/// Killed in the middle of an install that keeps nothing: RAUC begins anew, and so does the download. The contract says
/// so; what must not happen is that half a file is left, or believed.
#[test]
fn without_a_cache_a_killed_process_begins_anew_and_leaves_nothing() {
    const LEN: usize = 8 << 20;
    let file = Arc::new(file(LEN));
    let dir = tempfile::tempdir().unwrap();
    let (server, end) = server_of_another_process(file.to_vec());
    server.pace(std::time::Duration::from_millis(1));
    let way = known(vec![server.url()], &file);
    let device = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    device.block_on(async {
        let handle = Proxy::start(way.clone(), limits(0), dir.path(), patient()).await.unwrap();
        let mut rauc = Rauc::connect(&handle).await;
        for at in (0..LEN as u64 / 2).step_by(128 << 10) {
            rauc.read(at..at + (128 << 10)).await.unwrap();
        }
    });
    drop(device);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is kept");
    let before = server.sent();
    assert!(before >= LEN as u64 / 2, "{before}");
    let device = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    device.block_on(async {
        let handle = Proxy::start(way, limits(0), dir.path(), patient()).await.unwrap();
        assert_eq!(handle.progress().borrow().cached, 0);
        assert_eq!(install(&handle, LEN as u64).await, *file);
    });
    let again = server.sent() - before;
    assert!((LEN as u64..LEN as u64 * 105 / 100).contains(&again), "{again} of {LEN}");
    end();
}

/// A server that no end of the device's runtime touches: a thread with a runtime of its own, until it is ended.
fn server_of_another_process(contents: Vec<u8>) -> (Arc<Server>, impl FnOnce()) {
    let (send, receive) = std::sync::mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            send.send(Arc::new(Server::start(contents).await)).unwrap();
            ended.await
        })
    });
    let server = receive.recv().unwrap();
    (server, move || {
        drop(end);
        thread.join().unwrap().unwrap_err();
    })
}
