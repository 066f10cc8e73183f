//! Archives: what is saved is loaded as the same image, by us and by others; what is broken is refused as a whole.
#![expect(clippy::unwrap_used, reason = "for tests only")]

mod common;

use std::process::Command;

use common::{Content, Packed, Registry, gzip, noise, options, store, tar};
use rustiot_images::{Depth, Platform, Progress, Store};

async fn saved() -> (Vec<u8>, rustiot_images::ImageId, String) {
    let mut content = Content::default();
    let layers = [
        (tar(&[("a", b"a"), ("big", &noise(3, 300_000))]), Packed::Gzip),
        (tar(&[("b", b"b")]), Packed::Zstd),
    ];
    content.image("one", "amd64", &layers, false);
    let (registry, dir) = (Registry::start(content).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    let name = registry.name("app:one");
    let id = store.pull(&registry.client(), &name, options()).await.unwrap().id;
    let mut archive = Vec::new();
    store.save(&[name.to_string()], &mut archive).unwrap();
    (archive, id, name.to_string())
}

fn load(store: &Store, archive: &[u8]) -> Result<Vec<rustiot_images::Loaded>, rustiot_images::Error> {
    let platform: Platform = "linux/amd64".parse().unwrap();
    store.load(&mut &*archive, &platform, &Progress::none())
}

#[tokio::test]
async fn what_is_saved_is_loaded_as_the_same_image() {
    let (archive, id, name) = saved().await;
    for packed in [archive.clone(), gzip(&archive)] {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let loaded = load(&store, &packed).unwrap();
        assert_eq!((loaded.len(), loaded[0].id, loaded[0].names[0].to_string()), (1, id, name.clone()));
        assert_eq!(store.resolve(&name).unwrap(), id);
        assert!(store.scrub(Depth::Full).unwrap().bad.is_empty());
        let mut again = Vec::new();
        store.save(std::slice::from_ref(&name), &mut again).unwrap();
        assert!(archive == again, "the same archive to the byte");
    }
}

#[tokio::test]
async fn a_broken_archive_leaves_nothing() {
    let (archive, ..) = saved().await;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for cut in (0..archive.len() - 1024).step_by(archive.len() / 11) {
        assert!(load(&store, &archive[..cut]).is_err(), "{cut}");
    }
    for at in (0..archive.len() - 1024).step_by(archive.len() / 13) {
        let mut bad = archive.clone();
        bad[at] ^= 0x10;
        // A flipped bit in padding or in a note changes nothing that counts.
        if load(&store, &bad).is_ok() {
            assert!(store.scrub(Depth::Full).unwrap().bad.is_empty());
            let id = store.images()[0].id.to_string();
            store.remove(&id, true).unwrap();
        }
    }
    assert_eq!(store.images(), []);
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "lock" || name == "table.json"), "{left:?}");
}

/// skopeo reads what we write, and we read its two kinds of archives and what it copies to and from Debian's registry.
#[tokio::test]
async fn others_read_it_and_we_read_theirs() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("skipped: archives of others: no skopeo here");
        return;
    }
    let (archive, id, _) = saved().await;
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours.tar");
    std::fs::File::create(&ours).and_then(|mut file| std::io::Write::write_all(&mut file, &archive)).unwrap();
    for (from, to) in [
        ("docker-archive", "docker-archive:theirs-docker.tar:app:docker"),
        ("oci-archive", "oci-archive:theirs-oci.tar:app:oci"),
    ] {
        let from = format!("{from}:{}", ours.display());
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", &from, to])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let file = to.split(':').nth(1).unwrap();
        let store_dir = tempfile::tempdir().unwrap();
        let store = store(store_dir.path());
        let loaded = load(&store, &std::fs::read(dir.path().join(file)).unwrap()).unwrap();
        assert_eq!(loaded[0].id, id, "{to}");
        assert!(store.scrub(Depth::Full).unwrap().bad.is_empty());
    }
}
