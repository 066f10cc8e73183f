//! Measures image deltas: `deltas NAME OLD NEW …`; of each pair a row for `docs/figures.md`.
//!
//! OLD and NEW are directories; each directory in one is a layer, in the order of the names. Both become images with gzip
//! layers, the publisher makes deltas, and a store pulls the old image and then the new one by them from a registry of
//! the tests. Needs `zstd`. Ships nowhere.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a program for figures"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{Content, Packed, Registry, options, store};
use rustiot_images::manifest::media;
use rustiot_images::publish::{Published, Request, publish};
use rustiot_images::{Depth, Digest};
use serde_json::{Value, json};

fn main() {
    println!(
        "| image | new layers, unpacked | gzip | `zstd -19` | deltas | gzip, times | zstd, times | pull | made in | peak |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for pair in arguments.chunks_exact(3) {
        row(&pair[0], Path::new(&pair[1]), Path::new(&pair[2]));
    }
}

fn row(name: &str, old: &Path, new: &Path) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let (old_image, _) = image(old, &dir.path().join("old"));
    let (mut content, sizes) = image(new, &dir.path().join("new"));
    let out = dir.path().join("out");
    // The peak from here on (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let began = Instant::now();
    let (old_dir, new_dir) = (dir.path().join("old"), dir.path().join("new"));
    let request = Request { old: &old_dir, new: &new_dir, manifest: None, platform: None, out: &out };
    let published = publish(&request, &|_, _| ()).unwrap().remove(0);
    let (made_in, peak) = (began.elapsed(), status("VmHWM") - before);

    content.blobs.extend(old_image.blobs);
    for (tag, manifest) in old_image.manifests {
        content.manifests.insert(if tag == "it" { "old".to_owned() } else { tag }, manifest);
    }
    offer(&published, &out, &mut content);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let fetched = runtime.block_on(async {
        let registry = Registry::start(content).await;
        let device = store(&dir.path().join("device"));
        device.pull(&registry.client(), &registry.name("app:old"), options()).await.unwrap();
        let pulled = device.pull(&registry.client(), &registry.name("app:it"), options()).await.unwrap();
        assert!(device.scrub(Depth::Full).unwrap().bad.is_empty());
        pulled.fetched
    });
    let sum =
        |of: &dyn Fn(&rustiot_images::publish::Delta) -> u64| published.layers.iter().map(of).sum::<u64>();
    let size = |diff_id: &Digest| sizes.iter().find(|(layer, ..)| layer == diff_id).unwrap();
    let (plain, zstd) = (sum(&|layer| size(&layer.diff_id).1), sum(&|layer| size(&layer.diff_id).2));
    let gzip = sum(&|layer| layer.layer_bytes);
    let delta = sum(&|layer| layer.delta_bytes.filter(|_| layer.offered).unwrap_or(layer.layer_bytes));
    let times = |whole: u64| whole as f64 / delta as f64;
    println!(
        "| {name} | {} | {} | {} | {} | {:.1}× | {:.1}× | {} | {:.1} s | {} |",
        mb(plain),
        mb(gzip),
        mb(zstd),
        mb(delta),
        times(gzip),
        times(zstd),
        mb(fetched),
        made_in.as_secs_f64(),
        mb(peak)
    );
}

fn mb(bytes: u64) -> String {
    format!("{:.3} MB", bytes as f64 / 1e6)
}

/// Of /proc/self/status, bytes.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// An image as skopeo would write it for `dir:`, and of each layer its length and what `zstd -19` makes of it.
fn image(from: &Path, to: &Path) -> (Content, Vec<(Digest, u64, u64)>) {
    let mut places: Vec<PathBuf> =
        std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
    places.sort();
    let mut content = Content::default();
    let layers: Vec<Vec<u8>> = places.iter().map(|place| archive(place)).collect();
    let sizes = layers.iter().map(|layer| (Digest::of(layer), layer.len() as u64, zstd(layer))).collect();
    let layers: Vec<_> = layers.into_iter().map(|layer| (layer, Packed::Gzip)).collect();
    content.image("it", "amd64", &layers, false);
    std::fs::create_dir(to).unwrap();
    for (digest, bytes) in &content.blobs {
        std::fs::write(to.join(digest.hex()), bytes).unwrap();
    }
    std::fs::write(to.join("manifest.json"), &content.manifests["it"].1).unwrap();
    std::fs::write(to.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    (content, sizes)
}

fn archive(place: &Path) -> Vec<u8> {
    let mut files = Vec::new();
    walk(place, &mut files);
    files.sort();
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    for file in files {
        builder.append_path_with_name(&file, file.strip_prefix(place).unwrap()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        files.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), files);
        }
    }
}

fn zstd(bytes: &[u8]) -> u64 {
    let file = tempfile::NamedTempFile::new_in(".").unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let done = Command::new("zstd").args(["-19", "-q", "-c"]).arg(file.path()).output().unwrap();
    assert!(done.status.success());
    done.stdout.len() as u64
}

/// What a tool does that copies the layout to a registry.
fn offer(published: &Published, out: &Path, to: &mut Content) {
    for entry in std::fs::read_dir(out.join("blobs/sha256")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        to.blobs.insert(Digest::of(&bytes), bytes);
    }
    let Some(artifact) = published.artifact else { return };
    to.manifests.insert(artifact.to_string(), (media::OCI_MANIFEST.to_owned(), to.blobs[&artifact].clone()));
    let list = to.blobs.values().filter_map(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let list = list.into_iter().find(|value| value["manifests"].is_array()).unwrap();
    to.manifest(&published.tag, media::OCI_INDEX, &json!(list));
}
