//! Pulls from Debian's docker-registry, with images that the test makes and skopeo pushes; deltas go there as anybody
//! would publish them.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "for tests only"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Content, Packed, Registry, noise, options, store, tar};
use rustiot_images::publish::{Published, Request, publish};
use rustiot_images::{
    Depth, Digest, Event, ImageId, Progress, PullOptions, Pulled, Registries, RegistryConfig, Status, Store,
};

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// Debian's docker-registry on this machine.
struct Real {
    dir: tempfile::TempDir,
    address: String,
    _serves: Ended,
}

impl Real {
    /// None, and told, where the tools are not installed.
    async fn start(what: &str) -> Option<Real> {
        if !there("docker-registry") || !there("skopeo") {
            eprintln!("skipped: {what}: docker-registry and skopeo are not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.path().join("registry").display()
        );
        let config_path = dir.path().join("config.yml");
        std::fs::write(&config_path, config).unwrap();
        let serves = Command::new("docker-registry")
            .arg("serve")
            .arg(&config_path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let serves = Ended(serves);
        let start = Instant::now();
        while std::net::TcpStream::connect(&address).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "the registry does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(Real { dir, address, _serves: serves })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy(&self, options: &[&str], from: &str, to: &str) {
        let copied = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
            ])
            .args(options)
            .args([from, to])
            .output()
            .unwrap();
        assert!(copied.status.success(), "{from} {to}: {}", String::from_utf8_lossy(&copied.stderr));
    }

    fn name(&self, tag: &str) -> String {
        format!("docker://{}/team/app:{tag}", self.address)
    }
}

fn client(address: &str) -> Registries {
    Registries::new(RegistryConfig { insecure: vec![address.to_owned()], ..RegistryConfig::default() })
}

#[tokio::test]
async fn pulls_from_debians_docker_registry() {
    let Some(real) = Real::start("the real registry").await else { return };
    let mut content = Content::default();
    let layers = [
        (tar(&[("etc/base", b"base"), ("big", &noise(1, 400_000))]), Packed::Gzip),
        (tar(&[("etc/.wh.base", b""), ("top", &noise(2, 40_000))]), Packed::Gzip),
    ];
    content.image("one", "amd64", &layers, false);
    let (ours, dir) = (Registry::start(content).await, real.dir.path());
    let maker = store(&dir.join("maker"));
    let id = maker.pull(&ours.client(), &ours.name("app:one"), options()).await.unwrap().id;
    let archive = dir.join("image.tar");
    let mut file = std::fs::File::create(&archive).unwrap();
    maker.save(&[id.to_string()], &mut file).unwrap();
    for format in ["oci", "v2s2"] {
        let archive = format!("docker-archive:{}", archive.display());
        real.copy(&["--dest-compress", "--format", format], &archive, &real.name(format));
        let client = client(&real.address);
        let taker = store(&dir.join(format));
        let name = format!("{}/team/app:{format}", real.address).parse().unwrap();
        let pulled = taker.pull(&client, &name, options()).await.unwrap();
        assert!(pulled.new && pulled.fetched > 400_000);
        assert!(taker.scrub(Depth::Full).unwrap().bad.is_empty());
        let image = taker.inspect(&pulled.id).unwrap();
        assert_eq!(image.config.config.cmd.as_deref(), Some(&["/bin/true".to_owned()][..]));
        assert_eq!(image.layers.len(), 2);
        assert!(!taker.pull(&client, &name, options()).await.unwrap().new);
    }
}

/// Between a device and the registry: what comes back is counted, heads and all.
struct Wire {
    address: String,
    bytes: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    async fn to(address: &str) -> Wire {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (own, to) = (listener.local_addr().unwrap().to_string(), address.to_owned());
        let bytes = Arc::new(AtomicU64::new(0));
        let count = bytes.clone();
        let task = tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                let (to, count) = (to.clone(), count.clone());
                tokio::spawn(async move {
                    let registry = tokio::net::TcpStream::connect(to).await.unwrap();
                    let (mut up, mut send) = device.into_split();
                    let (mut answer, mut ask) = registry.into_split();
                    let asks = tokio::io::copy(&mut up, &mut ask);
                    let answers = async {
                        use tokio::io::{AsyncReadExt, AsyncWriteExt};
                        let mut buffer = vec![0; 16 << 10];
                        loop {
                            let read = answer.read(&mut buffer).await?;
                            if read == 0 {
                                return send.shutdown().await;
                            }
                            count.fetch_add(read as u64, Ordering::Relaxed);
                            send.write_all(&buffer[..read]).await?;
                        }
                    };
                    let _ = tokio::join!(asks, answers);
                });
            }
        });
        Wire { address: own, bytes, task }
    }

    /// What a pull takes, and why deltas were not used.
    async fn pull(&self, device: &Store, tag: &str, deltas: bool) -> (Pulled, u64, Vec<String>) {
        let before = self.bytes.load(Ordering::Relaxed);
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let progress = Progress::new(move |event: Event| {
            if event.status == Status::DeltaUnusable {
                sink.lock().unwrap().push(event.detail.unwrap());
            }
        });
        let name = format!("{}/team/app:{tag}", self.address).parse().unwrap();
        let asked = PullOptions { progress, deltas, ..options() };
        let pulled = device.pull(&client(&self.address), &name, asked).await.unwrap();
        let refused = std::mem::take(&mut *told.lock().unwrap());
        (pulled, self.bytes.load(Ordering::Relaxed) - before, refused)
    }
}

/// A base that stays, and a library of half a megabyte that differs in a few bytes.
fn app(version: u64) -> [Vec<u8>; 2] {
    let mut library = noise(2, 500_000);
    library[250_000..250_020].copy_from_slice(&noise(10 + version, 20));
    [
        tar(&[("base", &noise(1, 200_000))]),
        tar(&[("usr/lib/lib.so", &library), ("etc/version", version.to_string().as_bytes())]),
    ]
}

/// Publishes deltas from one tag of the registry to another, as the guide has it.
fn deltas(real: &Real, from: &str, to: &str, out: &Path) -> Published {
    let dirs = [from, to].map(|tag| {
        let dir = real.path(&format!("dir-{tag}"));
        real.copy(&[], &real.name(tag), &format!("dir:{}", dir.display()));
        dir
    });
    let request = Request { old: &dirs[0], new: &dirs[1], manifest: None, platform: None, out };
    let published = publish(&request, &|_, _| ()).unwrap().remove(0);
    let tag = &published.tag;
    real.copy(&["--all"], &format!("oci:{}:{tag}", out.display()), &real.name(tag));
    published
}

#[tokio::test(flavor = "multi_thread")]
async fn deltas_are_published_to_debians_docker_registry_and_pulled_from_it() {
    let Some(real) = Real::start("deltas in the real registry").await else { return };
    for version in 1..=3 {
        let mut content = Content::default();
        let layers = app(version).map(|layer| (layer, Packed::Gzip));
        content.image("it", "amd64", &layers, false);
        let (ours, tag) = (Registry::start(content).await, version.to_string());
        let from = format!("docker://{}/app:it", ours.address);
        // The registry of the tests answers on another thread.
        tokio::task::block_in_place(|| real.copy(&[], &from, &real.name(&tag)));
    }
    let published = deltas(&real, "1", "3", &real.path("out"));
    assert_eq!((published.same, published.layers.len(), published.layers[0].offered), (1, 1, true));
    // Somebody else, on another machine, adds one from another version: the first stays.
    let (other, tag) = (real.path("other"), &published.tag);
    real.copy(&["--all"], &real.name(tag), &format!("oci:{}:{tag}", other.display()));
    let second = deltas(&real, "2", "3", &other);
    assert_eq!((&second.tag, second.kept), (tag, 1));

    let wire = Wire::to(&real.address).await;
    let exact = |device: &Store, id: &ImageId| {
        assert!(device.scrub(Depth::Full).unwrap().bad.is_empty());
        let has = device.inspect(id).unwrap().layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>();
        assert_eq!(has, app(3).map(|layer| Digest::of(&layer)));
    };
    let device = store(&real.path("whole"));
    wire.pull(&device, "1", true).await;
    let (pulled, whole, _) = wire.pull(&device, "3", false).await;
    exact(&device, &pulled.id);
    assert!(whole > 500_000, "{whole}");
    for old in ["1", "2"] {
        let device = store(&real.path(&format!("device-{old}")));
        wire.pull(&device, old, true).await;
        let (pulled, bytes, refused) = wire.pull(&device, "3", true).await;
        assert!(refused.is_empty(), "{refused:?}");
        println!("from {old}: {bytes} bytes on the wire, {whole} without deltas");
        assert!(bytes * 40 < whole, "{bytes} bytes on the wire, and {whole} without deltas");
        exact(&device, &pulled.id);
    }

    // The delta rots in the registry, which does not look: the whole layer, and the reason.
    let manifest = real.path("out/blobs/sha256").join(published.artifact.unwrap().hex());
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    let digest: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let (hex, blobs) = (digest.hex(), real.path("registry/docker/registry/v2/blobs/sha256"));
    let data = blobs.join(&hex[..2]).join(&hex).join("data");
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let device = store(&real.path("rotten"));
    wire.pull(&device, "1", true).await;
    let (pulled, bytes, refused) = wire.pull(&device, "3", true).await;
    assert!(matches!(&refused[..], [why] if why.contains("digest")), "{refused:?}");
    assert!(bytes > whole && bytes < whole + 20_000, "{bytes} and {whole}");
    exact(&device, &pulled.id);
}
