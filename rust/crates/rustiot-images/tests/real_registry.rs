//! Pulls from Debian's docker-registry, with images that the test makes and skopeo pushes.

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Content, Packed, Registry, noise, options, store, tar};
use rustiot_images::{Depth, Registries, RegistryConfig};

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

#[tokio::test]
async fn pulls_from_debians_docker_registry() {
    if !there("docker-registry") || !there("skopeo") {
        eprintln!("skipped: the real registry: docker-registry and skopeo are not installed");
        return;
    }
    let mut content = Content::default();
    let layers = [
        (tar(&[("etc/base", b"base"), ("big", &noise(1, 400_000))]), Packed::Gzip),
        (tar(&[("etc/.wh.base", b""), ("top", &noise(2, 40_000))]), Packed::Gzip),
    ];
    content.image("one", "amd64", &layers, false);
    let (ours, dir) = (Registry::start(content).await, tempfile::tempdir().unwrap());
    let maker = store(&dir.path().join("maker"));
    let id = maker.pull(&ours.client(), &ours.name("app:one"), options()).await.unwrap().id;
    let archive = dir.path().join("image.tar");
    let mut file = std::fs::File::create(&archive).unwrap();
    maker.save(&[id.to_string()], &mut file).unwrap();

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
        dir.path().join("registry").display()
    );
    let config_path = dir.path().join("config.yml");
    std::io::Write::write_all(&mut std::fs::File::create(&config_path).unwrap(), config.as_bytes()).unwrap();
    let registry = Command::new("docker-registry")
        .arg("serve")
        .arg(&config_path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _registry = Ended(registry);
    let start = Instant::now();
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(start.elapsed() < Duration::from_secs(30), "the registry does not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for format in ["oci", "v2s2"] {
        let pushed = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--dest-tls-verify=false",
                "--dest-compress",
                "--format",
                format,
            ])
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://{address}/team/app:{format}"))
            .output()
            .unwrap();
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        let client =
            Registries::new(RegistryConfig { insecure: vec![address.clone()], ..RegistryConfig::default() });
        let taker = store(&dir.path().join(format));
        let name = format!("{address}/team/app:{format}").parse().unwrap();
        let pulled = taker.pull(&client, &name, options()).await.unwrap();
        assert!(pulled.new && pulled.fetched > 400_000);
        assert!(taker.scrub(Depth::Full).unwrap().bad.is_empty());
        let image = taker.inspect(&pulled.id).unwrap();
        assert_eq!(image.config.config.cmd.as_deref(), Some(&["/bin/true".to_owned()][..]));
        assert_eq!(image.layers.len(), 2);
        assert!(!taker.pull(&client, &name, options()).await.unwrap().new);
    }
}
