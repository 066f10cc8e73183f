//! A resolver that never answers, in a network and with a `/etc/resolv.conf` of the test's own.
#![expect(clippy::disallowed_methods, reason = "a file of a test")]
#![cfg(test)]

mod common;

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{BIG, file, limits, until};
use rustiot_fetch::{Proxy, State, Way};
use rustiot_http::faulty::Server;
use rustiot_http::{Http, Settings, Url};
use sha2::{Digest, Sha256};

/// Set where the test runs inside.
const INSIDE: &str = "RUSTIOT_TEST_MUTE_RESOLVER";
const NAME: &str = "a_resolver_that_never_answers_is_passed_over_and_waited_for";
/// How long a connection may take to stand, its name included; 30 s on a device. libc waits for 10 s and more.
const PATIENCE: Duration = Duration::from_millis(500);

#[test]
fn a_resolver_that_never_answers_is_passed_over_and_waited_for() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("resolv.conf");
    std::fs::write(&conf, "nameserver 127.0.0.1\n").unwrap();
    let test = std::env::current_exe().unwrap();
    let script = format!(
        "ip link set lo up && mount --bind '{}' /etc/resolv.conf && echo inside && exec '{}' --exact {NAME} --nocapture",
        conf.display(),
        test.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "sh", "-c", &script]).env(INSIDE, "1");
    let Ok(output) = command.output() else {
        println!("skipped: there is no unshare(1) here");
        return;
    };
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !said.contains("inside") {
        println!("skipped: no network and no mounts of one's own here, root is needed: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
}

fn inside() {
    let resolver = UdpSocket::bind("127.0.0.1:53").unwrap();
    resolver.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let file = file(300_000);
        let server = Server::start(file.clone()).await;
        let mute = Url::parse("http://updates.example.com/file").unwrap();
        let way = |urls| Way::Plain { urls, len: Some(300_000), sha256: Some(Sha256::digest(&file).into()) };
        let settings = Settings { connect_timeout: PATIENCE, ..Settings::default() };
        let start = |urls| async {
            let dir = tempfile::tempdir().unwrap();
            let http = Http::new(&settings).unwrap();
            (Proxy::start(way(urls), limits(BIG), dir.path(), http).await.unwrap(), dir)
        };
        let began = Instant::now();
        let (handle, _dir) = start(vec![mute.clone(), server.url()]).await;
        handle.download().await.unwrap();
        assert!(began.elapsed() < PATIENCE * 6, "the mirror was kept waiting: {:?}", began.elapsed());
        // Alone, it is waited out like any server that is away, and the reason is told.
        let (handle, _dir) = start(vec![mute]).await;
        let download = handle.download();
        tokio::select! {
            ended = download => panic!("{ended:?}"),
            progress = until(&handle, |p| matches!(&p.state, State::Waiting { attempts, .. } if *attempts >= 2)) => {
                let State::Waiting { why, .. } = progress.state else { panic!() };
                assert!(why.contains("updates.example.com"), "{why}");
            }
        }
    });
    let mut query = [0; 512];
    let (len, _) = resolver.recv_from(&mut query).expect("nobody asked the resolver");
    assert!(query[..len].windows(7).any(|part| part == b"updates"));
    // libc goes on waiting in its thread; nobody waits for that.
    runtime.shutdown_background();
}
