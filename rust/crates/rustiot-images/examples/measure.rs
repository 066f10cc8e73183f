//! Measures a pull: `measure REGISTRY/NAME:TAG DIRECTORY [--unpack]`; time, bytes, peak memory, mount time.
//!
//! With `--unpack` it also unpacks the same layers into directories, as engines with overlay directories do, and makes
//! them durable. For figures in `docs/decisions/0040-layers-as-erofs-files.md`; ships nowhere.
#![expect(clippy::unwrap_used, reason = "a program for figures")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use rustiot_images::{Limits, PullOptions, Reference, Registries, RegistryConfig, Store};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let reference: Reference = arguments.next().unwrap().parse().unwrap();
    let dir = PathBuf::from(arguments.next().unwrap());
    let unpack = arguments.next().as_deref() == Some("--unpack");
    let insecure = vec![reference.registry().to_owned()];
    let registries = Registries::new(RegistryConfig { insecure, ..RegistryConfig::default() });
    let (store, _) = Store::open(&dir.join("store"), Limits::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let start = Instant::now();
    let pulled = runtime.block_on(store.pull(&registries, &reference, PullOptions::default())).unwrap();
    println!("pull: {} ms, durable; {} bytes fetched", start.elapsed().as_millis(), pulled.fetched);
    println!("peak memory: {}", status("VmHWM"));
    let usage = store.disk_usage();
    println!("layers: {} bytes, {} files", usage.layers, store.inspect(&pulled.id).unwrap().layers.len());

    let layers = store.rootfs(&pulled.id).unwrap().layers;
    let at = dir.join("mounts");
    let places: Vec<PathBuf> = (0..layers.len()).map(|n| at.join(n.to_string())).collect();
    places.iter().for_each(|place| std::fs::create_dir_all(place).unwrap());
    let start = Instant::now();
    for (layer, place) in layers.iter().zip(&places) {
        rustiot_images::mount::layer(&layer.file, place).unwrap();
    }
    println!("mount of all layers: {} µs", start.elapsed().as_micros());
    let start = Instant::now();
    let (files, bytes) =
        places.iter().map(|place| read_all(place)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!(
        "read of all files from the mounts: {} ms, {files} files, {bytes} bytes",
        start.elapsed().as_millis()
    );

    if unpack {
        let trees = dir.join("trees");
        let start = Instant::now();
        for (number, layer) in layers.iter().enumerate() {
            // The archive lies behind the file's head.
            let mut file = std::fs::File::open(&layer.file).unwrap();
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(4096)).unwrap();
            let mut archive = tar::Archive::new(file);
            archive.set_preserve_permissions(true);
            archive.unpack(trees.join(number.to_string())).unwrap();
        }
        println!("unpack into directories: {} ms", start.elapsed().as_millis());
        nix::unistd::sync();
        println!("the same, durable: {} ms", start.elapsed().as_millis());
        let start = Instant::now();
        let (files, bytes) = read_all(&trees);
        println!(
            "read of all files from the directories: {} ms, {files} files, {bytes} bytes",
            start.elapsed().as_millis()
        );
        let start = Instant::now();
        std::fs::remove_dir_all(&trees).unwrap();
        println!("removal of the directories: {} ms", start.elapsed().as_millis());
    }
    places.iter().for_each(|place| rustiot_images::mount::unmount(place).unwrap());
    let start = Instant::now();
    store.remove(&pulled.id.to_string(), true).unwrap();
    println!("removal of the image: {} ms", start.elapsed().as_millis());
}

fn read_all(dir: &Path) -> (usize, u64) {
    let mut sum = (0, 0);
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            let inside = read_all(&entry.path());
            sum = (sum.0 + inside.0, sum.1 + inside.1);
        } else if kind.is_file() {
            sum = (sum.0 + 1, sum.1 + std::fs::read(entry.path()).unwrap().len() as u64);
        }
    }
    sum
}

fn status(field: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    text.lines().find(|line| line.starts_with(field)).unwrap_or_default().to_owned()
}
