//! Bundles that are made out of deltas while an imitated RAUC reads them.
#![cfg(test)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};

use common::{BIG, Rauc, file, install, limits, patient, until};
use rustiot_delta::{Options, Source, encode};
use rustiot_fetch::{Failure, Handle, Proxy, RemoteFile, State, Way};
use rustiot_http::faulty::{Fault, Server};
use sha2::{Digest, Sha256};

/// An old image on a partition that is longer than it, a bundle, and the delta between them.
struct Release {
    dir: tempfile::TempDir,
    partition: PathBuf,
    bundle: Vec<u8>,
    delta: Vec<u8>,
}

impl Release {
    /// `full`: without the old image, and smaller, because compressing takes long in a build for tests.
    fn new(full: bool) -> Release {
        let dir = tempfile::tempdir().unwrap();
        let unit = if full { 60_000 } else { 300_000 };
        let old = file(unit * 10);
        let mut bundle = b"sqsh".to_vec();
        bundle.extend(&old[..unit * 5]);
        bundle.extend(file(unit).iter().map(|byte| byte ^ 0x5a));
        bundle.extend(&old[unit * 4..]);
        for at in (0..bundle.len()).step_by(50_000) {
            bundle[at] ^= 0x11;
        }
        bundle[..4].copy_from_slice(b"sqsh");
        let partition = dir.path().join("partition");
        let mut on_disk = old.clone();
        on_disk.extend([0xee; 100_000]);
        put(&partition, &on_disk);
        let mut delta = Vec::new();
        let sources = [Source { name: "root", bytes: &old }];
        let sources = if full { &sources[..0] } else { &sources[..] };
        encode(&bundle, sources, &Options::default(), &mut delta, &|_| {}).unwrap();
        Release { dir, partition, bundle, delta }
    }

    fn way(&self, server: &Server) -> Way {
        let file = RemoteFile {
            urls: vec![server.url()],
            len: self.delta.len() as u64,
            sha256: Sha256::digest(&self.delta).into(),
        };
        Way::Delta { file, sources: vec![("root".into(), self.partition.clone())] }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn len(&self) -> u64 {
        self.bundle.len() as u64
    }
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::File::create(path).unwrap().write_all(bytes).unwrap();
}

async fn begin(release: &Release, server: &Server, cache: u64) -> Handle {
    Proxy::start(release.way(server), limits(cache), &release.cache(), patient()).await.unwrap()
}

#[tokio::test]
async fn a_delta_is_downloaded_first_and_then_needs_no_server() {
    let release = Release::new(false);
    let server = Server::start(release.delta.clone()).await;
    let handle = begin(&release, &server, BIG).await;
    handle.download().await.unwrap();
    assert_eq!(server.sent(), release.delta.len() as u64);
    assert!(release.delta.len() < 600_000, "{}", release.delta.len());
    server.set(Fault::HangUp);
    assert_eq!(handle.prepare().await.unwrap(), release.len());
    assert_eq!(install(&handle, release.len()).await, release.bundle);
    let progress = handle.progress().borrow().clone();
    assert!(progress.reused > 2_000_000, "{progress:?}");
    assert_eq!((progress.total, progress.bundle), (release.delta.len() as u64, release.len()));
}

#[tokio::test]
async fn every_way_streams_with_and_without_a_cache() {
    for full in [false, true] {
        let release = Release::new(full);
        for cache in [BIG, 0] {
            let server = Server::start(release.delta.clone()).await;
            let handle = begin(&release, &server, cache).await;
            assert_eq!(install(&handle, release.len()).await, release.bundle);
            let (sent, once) = (server.sent(), release.delta.len() as u64);
            println!(
                "full {full}, cache {cache}: {sent} of {once} bytes sent in {} requests",
                server.requests().len()
            );
            assert!(sent <= once * 105 / 100 + (64 << 10), "full {full}, cache {cache}: {sent} of {once}");
        }
    }
}

#[tokio::test]
async fn a_delta_that_does_not_fit_fails_with_its_type_before_rauc_is_asked() {
    let mut release = Release::new(false);
    let server = Server::start(release.delta.clone()).await;
    let source = |failure: Result<u64, Failure>| match failure {
        Err(Failure::Source { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let mut on_disk = std::fs::read(&release.partition).unwrap();
    on_disk[1_234_567] ^= 1;
    put(&release.partition, &on_disk);
    let handle = begin(&release, &server, BIG).await;
    assert!(source(handle.prepare().await).contains("not the image"));
    assert_eq!(Rauc::connect(&handle).await.read(0..4).await, Err(404));
    assert!(matches!(until(&handle, |_| true).await.state, State::Failed(Failure::Source { .. })));
    put(&release.partition, &on_disk[..1_000]);
    assert!(source(begin(&release, &server, BIG).await.prepare().await).contains("shorter"));
    release.partition = release.dir.path().join("missing");
    assert!(source(begin(&release, &server, BIG).await.prepare().await).contains("opened"));
    let Way::Delta { file, .. } = release.way(&server) else { panic!() };
    let way = Way::Delta { file, sources: vec![("boot".into(), release.partition.clone())] };
    let handle = Proxy::start(way, limits(BIG), &release.cache(), patient()).await.unwrap();
    assert!(source(handle.prepare().await).contains("no such image"));
}

#[tokio::test]
async fn a_damaged_delta_ends_the_job_with_its_type() {
    let mut release = Release::new(false);
    // Damaged before it was published: the checksum of the file is right.
    let middle = release.delta.len() / 2;
    release.delta[middle] ^= 0x40;
    let server = Server::start(release.delta.clone()).await;
    let handle = begin(&release, &server, BIG).await;
    handle.download().await.unwrap();
    let total = handle.prepare().await.unwrap();
    let mut rauc = Rauc::connect(&handle).await;
    let mut at = 0;
    let code = loop {
        match rauc.read(at..(at + 128_000).min(total)).await {
            Ok(_) => at += 128_000,
            Err(code) => break code,
        }
    };
    assert_eq!(code, 404);
    assert!(matches!(until(&handle, |_| true).await.state, State::Failed(Failure::Delta(_))));
    // No delta at all.
    release.delta = b"<html>".repeat(1_000);
    server.replace(release.delta.clone(), None);
    let handle = begin(&release, &server, BIG).await;
    assert!(matches!(handle.prepare().await, Err(Failure::Delta(_))));
    // Damaged on the way, by the only server.
    let release = Release::new(false);
    server.replace(release.delta.clone(), None);
    server.set(Fault::Corrupt);
    let handle = begin(&release, &server, BIG).await;
    assert!(matches!(handle.download().await, Err(Failure::Corrupt)));
}

#[tokio::test]
async fn a_delta_of_this_machine_is_read_where_it_is_and_its_loss_is_told_at_once() {
    let release = Release::new(false);
    let file = release.dir.path().join("x.rdelta");
    put(&file, &release.delta);
    let way = |len: u64| {
        let url = rustiot_http::Url::from_file_path(&file).unwrap();
        let file = RemoteFile { urls: vec![url], len, sha256: Sha256::digest(&release.delta).into() };
        Way::Delta { file, sources: vec![("root".into(), release.partition.clone())] }
    };
    let len = release.delta.len() as u64;
    let start = |way| async { Proxy::start(way, limits(0), &release.cache(), patient()).await };
    let handle = start(way(len)).await.unwrap();
    handle.download().await.unwrap();
    assert_eq!(install(&handle, release.len()).await, release.bundle);
    let progress = handle.progress().borrow().clone();
    assert_eq!((progress.fetched, progress.cached, progress.total), (0, len, len));
    assert!(!release.cache().exists(), "nothing of it is kept");
    drop(handle);

    assert!(
        matches!(start(way(len + 1)).await, Err(Failure::Corrupt)),
        "another length is told at the start"
    );
    let handle = start(way(len)).await.unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_len(len / 2).unwrap();
    match handle.download().await {
        Err(Failure::Local { path, .. }) => assert_eq!(path, file.display().to_string()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(handle.prepare().await, Err(Failure::Local { .. })), "and stays the reason");
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(start(way(len)).await, Err(Failure::Local { .. })));
}
