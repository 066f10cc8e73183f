//! Pulls from a registry that is well, and from one that misbehaves in every way: the right image or a clear error, and
//! nothing left behind.
#![expect(clippy::unwrap_used, reason = "for tests only")]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Content, Fault, Packed, Registry, limits, noise, options, store, tar};
use rustiot_images::manifest::media;
use rustiot_images::{
    Auth, Depth, Error, Image, Kind, Limits, Policy, Progress, PullOptions, Registries, RegistryConfig,
    Status, Store,
};
use serde_json::json;

type Damage<'a> = &'a dyn Fn(&Path);

/// Three layers of different compression, one of them larger than a few pieces.
fn content() -> Content {
    let mut content = Content::default();
    let big = noise(1, 900_000);
    let layers = [
        (tar(&[("base", b"base"), ("big", &big)]), Packed::Gzip),
        (tar(&[("middle", &noise(2, 50_000))]), Packed::Zstd),
        (tar(&[("top", b"top")]), Packed::Plain),
    ];
    content.image("one", "amd64", &layers, false);
    content
}

fn names(dir: &Path, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Every byte of every image is right, and there is nothing else.
fn whole(store: &Store, dir: &Path) -> Vec<Image> {
    let report = store.scrub(Depth::Full).unwrap();
    assert_eq!((report.bad, report.damaged), (Vec::new(), Vec::new()));
    assert_eq!(names(dir, "tmp-"), [""; 0]);
    store.images()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

#[tokio::test]
async fn an_image_of_three_layers_in_three_compressions() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let progress = Progress::new(move |event| sink.lock().unwrap().push(event));
    let name = registry.name("app:one");
    let options = || PullOptions { progress: progress.clone(), ..options() };
    let pulled = store.pull(&registry.client(), &name, options()).await.unwrap();
    assert!(pulled.new && pulled.fetched > 900_000);
    let images = whole(&store, dir.path());
    assert_eq!((images.len(), images[0].id, images[0].layers.len()), (1, pulled.id, 3));
    assert_eq!(images[0].tags, std::slice::from_ref(&name));
    assert_eq!(images[0].repo_digests, [name.with_digest(pulled.digest)]);
    assert_eq!(images[0].config.config.cmd.as_deref(), Some(&["/bin/true".to_owned()][..]));
    assert_eq!(store.rootfs(&pulled.id).unwrap().layers.len(), 3);
    assert_eq!(names(dir.path(), "partial-"), [""; 0]);
    let statuses: Vec<Status> = events.lock().unwrap().iter().map(|event| event.status).collect();
    for wanted in [
        Status::PullingFrom,
        Status::PullingFsLayer,
        Status::DownloadComplete,
        Status::PullComplete,
        Status::Downloaded,
    ] {
        assert!(statuses.contains(&wanted), "{wanted:?} in {statuses:?}");
    }
    // Again: a manifest, no blob.
    let sent = registry.sent();
    let again = store.pull(&registry.client(), &name, options()).await.unwrap();
    assert!(!again.new && again.id == pulled.id && registry.sent() - sent < 3000);
    // By digest, and after a restart.
    drop(store);
    let (store, report) = Store::open(dir.path(), limits()).unwrap();
    assert_eq!((report.layers, report.bad.len(), report.leftovers), (3, 0, (0, 0)));
    let by_digest = registry.name(&format!("app@{}", pulled.digest));
    assert!(!store.pull(&registry.client(), &by_digest, options()).await.unwrap().new);
    for text in [name.to_string(), by_digest.to_string(), pulled.id.to_string(), pulled.id.0.short()] {
        assert_eq!(store.resolve(&text).unwrap(), pulled.id, "{text}");
    }
    assert!(matches!(Store::open(dir.path(), limits()), Err(Error::Locked { .. })));
}

#[tokio::test]
async fn an_index_gives_the_image_of_the_platform() {
    let mut content = Content::default();
    let mut manifests = Vec::new();
    for (architecture, docker) in [("arm64", false), ("amd64", true)] {
        let layer = tar(&[("arch", architecture.as_bytes())]);
        let mut descriptor = content.image(architecture, architecture, &[(layer, Packed::Gzip)], docker);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        manifests.push(descriptor);
    }
    content.manifest("multi", media::OCI_INDEX, &json!({"schemaVersion": 2, "manifests": manifests}));
    let (registry, dir) = (Registry::start(content).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    for platform in ["linux/amd64", "linux/arm64/v8"] {
        let options = PullOptions { platform: platform.parse().unwrap(), ..options() };
        let pulled = store.pull(&registry.client(), &registry.name("app:multi"), options).await.unwrap();
        let image = store.inspect(&pulled.id).unwrap();
        assert!(platform.contains(&image.config.architecture), "{platform}");
        assert_eq!(image.tags.len(), 1);
    }
    assert_eq!(store.images().len(), 2, "the first has lost its name and stays");
    let options = PullOptions { platform: "linux/riscv64".parse().unwrap(), ..options() };
    let error = store.pull(&registry.client(), &registry.name("app:multi"), options).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(chain(&error).contains("linux/arm64"), "{}", chain(&error));
    // One image that is for another machine.
    let error =
        store.pull(&registry.client(), &registry.name("app:arm64"), common::options()).await.unwrap_err();
    assert!(chain(&error).contains("no image for linux/amd64"), "{}", chain(&error));
}

/// Cut at every blob, each time a little later, and never the whole again.
#[tokio::test]
async fn resumes_where_it_was_cut() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    registry.always(Some(Fault::Cut(200_000)));
    let pulled = store.pull(&registry.client(), &registry.name("app:one"), options()).await.unwrap();
    whole(&store, dir.path());
    assert!(registry.sent() < 1_020_000, "{} bytes for {}", registry.sent(), pulled.fetched);
}

/// The process ends after each piece; the next one goes on.
#[tokio::test]
async fn resumes_after_a_restart() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    registry.always(Some(Fault::Cut(300_000)));
    let mut pulls = 0;
    let id = loop {
        pulls += 1;
        let store = common::reopen(dir.path()).await;
        let once = PullOptions { attempts: 1, ..options() };
        // One attempt makes progress, and so has another; each of ours ends with its process.
        let (client, name) = (registry.client(), registry.name("app:one"));
        let pull = store.pull(&client, &name, once);
        match tokio::time::timeout(Duration::from_millis(30 * pulls), pull).await {
            Ok(Ok(pulled)) => break pulled.id,
            Ok(Err(error)) => {
                assert_eq!(error.kind(), Kind::Unavailable, "{}", chain(&error));
                assert_eq!(store.images(), []);
            }
            // Its time may have been over between the moment when it was there and the one when it would have said so.
            Err(_) => {
                if let [image] = store.images().as_slice() {
                    break image.id;
                }
            }
        }
        assert!(pulls < 50);
    };
    let store = common::reopen(dir.path()).await;
    assert_eq!(whole(&store, dir.path())[0].id, id);
    assert!(registry.sent() < 2_500_000, "{} bytes in {pulls} pulls", registry.sent());
}

/// What a power cut made of a download: it has its length and not its bytes.
#[tokio::test]
async fn a_torn_download_is_fetched_again() {
    let content = content();
    let big = content
        .blobs
        .iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .map(|(digest, bytes)| (*digest, bytes.len()))
        .unwrap();
    let (registry, dir) = (Registry::start(content).await, tempfile::tempdir().unwrap());
    for torn in [big.1 / 2, big.1, big.1 + 5] {
        let file = std::fs::File::create(dir.path().join(format!("partial-{}", big.0.hex()))).unwrap();
        file.set_len(torn as u64).unwrap();
        let store = store(dir.path());
        let pulled = store.pull(&registry.client(), &registry.name("app:one"), options()).await.unwrap();
        whole(&store, dir.path());
        store.remove(&pulled.id.to_string(), true).unwrap();
        assert_eq!(names(dir.path(), "layer-"), [""; 0]);
    }
}

#[tokio::test]
async fn every_fault_is_a_clear_error_and_leaves_nothing() {
    let registry = Registry::start(content()).await;
    let bomb = {
        let mut content = Content::default();
        let zeros = vec![0; 80 << 20];
        content.image("bomb", "amd64", &[(tar(&[("zeros", &zeros)]), Packed::Gzip)], false);
        content.image("traversal", "amd64", &[(evil(), Packed::Gzip)], false);
        content.image("cut", "amd64", &[(tar(&[("x", b"x")])[..700].to_vec(), Packed::Gzip)], false);
        // A configuration that lists another layer than the manifest brings.
        let mut descriptor = content.image("diff", "amd64", &[(tar(&[("x", b"y")]), Packed::Gzip)], false);
        let other = content.image("other", "amd64", &[(tar(&[("x", b"z")]), Packed::Gzip)], false);
        let read = |content: &Content, descriptor: &serde_json::Value| -> serde_json::Value {
            serde_json::from_slice(&content.manifests[descriptor["digest"].as_str().unwrap()].1).unwrap()
        };
        let mut mixed = read(&content, &descriptor);
        mixed["layers"] = read(&content, &other)["layers"].clone();
        descriptor = content.manifest("diff", media::OCI_MANIFEST, &mixed);
        let _ = descriptor;
        content
    };
    registry.change(|content| {
        content.blobs.extend(bomb.blobs);
        content.manifests.extend(bomb.manifests);
        content.manifests.insert("page".into(), ("text/html".into(), b"<html>".to_vec()));
        content.manifests.insert("huge".into(), (media::OCI_MANIFEST.into(), vec![b' '; 5 << 20]));
        let helm = json!({"schemaVersion": 2, "layers": [], "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json",
            "digest": rustiot_images::Digest::of(b"").to_string(), "size": 0}});
        content.manifests.insert("chart".into(), (media::OCI_MANIFEST.into(), helm.to_string().into_bytes()));
    });
    let two = |fault: Fault| vec![fault.clone(), fault];
    let many = |fault: Fault| vec![fault; 40];
    for (tag, manifests, blobs, kind, word) in [
        ("none", vec![], vec![], Kind::NotFound, "manifest unknown"),
        ("one", many(Fault::Status(500, None)), vec![], Kind::Unavailable, "500"),
        ("one", vec![Fault::Status(403, None)], vec![], Kind::Unauthorized, "403"),
        ("one", two(Fault::Status(429, Some(3600))), vec![], Kind::Busy, "3600 s"),
        ("one", vec![Fault::Flip], vec![], Kind::Corrupt, ""),
        ("one", vec![], many(Fault::Status(503, None)), Kind::Unavailable, "503"),
        ("one", vec![], vec![Fault::None, Fault::Status(404, None)], Kind::NotFound, "404"),
        ("one", vec![], vec![Fault::None, Fault::Flip, Fault::Flip, Fault::Flip], Kind::Corrupt, "digest"),
        ("one", vec![], vec![Fault::Flip], Kind::Corrupt, "configuration"),
        (
            "one",
            vec![],
            vec![
                Fault::None,
                Fault::Instead(b"tiny".to_vec()),
                Fault::Instead(b"tiny".to_vec()),
                Fault::Instead(b"tiny".to_vec()),
            ],
            Kind::Corrupt,
            "4",
        ),
        (
            "one",
            vec![],
            vec![Fault::None, Fault::LongerBy(7), Fault::LongerBy(7), Fault::LongerBy(7)],
            Kind::Corrupt,
            "manifest says",
        ),
        ("bomb", vec![], vec![], Kind::Corrupt, "bomb"),
        ("traversal", vec![], vec![], Kind::Corrupt, "leads out"),
        ("cut", vec![], vec![], Kind::Corrupt, "broken archive"),
        ("diff", vec![], vec![], Kind::Corrupt, "configuration says"),
        ("page", vec![], vec![], Kind::Corrupt, "malformed"),
        ("huge", vec![], vec![], Kind::Unavailable, "more than"),
        ("chart", vec![], vec![], Kind::Corrupt, "another artifact"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        registry.manifests(manifests);
        registry.blobs(blobs);
        let case = format!("{tag} {word}");
        let pull = store.pull(&registry.client(), &registry.name(&format!("app:{tag}")), options()).await;
        let error = pull.expect_err(&case);
        assert_eq!(error.kind(), kind, "{case}: {}", chain(&error));
        assert!(chain(&error).contains(word), "{case}: {}", chain(&error));
        assert_eq!(store.images(), [], "{case}");
        drop(store);
        let store = common::reopen(dir.path()).await;
        assert_eq!(names(dir.path(), "tmp-"), [""; 0], "{case}");
        // And once the registry is well, the same pull works, or fails for the same reason.
        registry.manifests([]);
        registry.blobs([]);
        if tag == "one" {
            store.pull(&registry.client(), &registry.name("app:one"), options()).await.unwrap();
            whole(&store, dir.path());
        }
    }
}

fn evil() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.as_mut_bytes()[..9].copy_from_slice(b"../../etc");
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn waits_as_long_as_the_registry_asks() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    registry.manifests([Fault::Status(429, Some(1))]);
    let start = std::time::Instant::now();
    store.pull(&registry.client(), &registry.name("app:one"), options()).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn tokens_and_passwords() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    registry.password("me:secret");
    let store = store(dir.path());
    let name = registry.name("app:one");
    let error = store.pull(&registry.client(), &name, options()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized, "{}", chain(&error));
    assert!(chain(&error).contains("incorrect username"), "{}", chain(&error));
    let auth = Auth::Basic { user: "me".into(), password: "secret".into() };
    registry.blobs([Fault::None, Fault::Cut(1000), Fault::Cut(1000)]);
    store.pull(&registry.client(), &name, PullOptions { auth, ..options() }).await.unwrap();
    whole(&store, dir.path());
    let wrong = Auth::Basic { user: "me".into(), password: "wrong".into() };
    let error =
        store.pull(&registry.client(), &name, PullOptions { auth: wrong, ..options() }).await.unwrap_err();
    assert!(!chain(&error).contains("wrong:") && error.kind() == Kind::Unauthorized, "{}", chain(&error));
}

/// Registries send blobs from storage elsewhere; it never sees the token.
#[tokio::test]
async fn a_redirect_does_not_leak_credentials() {
    let (registry, storage) = (Registry::start(content()).await, Registry::start(content()).await);
    let dir = tempfile::tempdir().unwrap();
    registry.password("me:secret");
    registry.always(Some(Fault::Redirect(format!("http://{}", storage.address))));
    storage.blobs([Fault::None, Fault::Cut(100_000), Fault::Cut(100), Fault::Cut(100_000)]);
    let auth = Auth::Basic { user: "me".into(), password: "secret".into() };
    let store = store(dir.path());
    store
        .pull(&registry.client(), &registry.name("app:one"), PullOptions { auth, ..options() })
        .await
        .unwrap();
    whole(&store, dir.path());
    let seen = storage.requests();
    assert!(seen.len() >= 5, "{}", seen.len());
    assert!(seen.iter().all(|head| !head.to_lowercase().contains("authorization")), "{seen:?}");
    assert!(registry.requests().iter().any(|head| head.contains("Bearer let-me-in")));
}

#[tokio::test]
async fn mirrors_first_and_nothing_insecure_by_itself() {
    let (registry, mirror) = (Registry::start(content()).await, Registry::start(content()).await);
    let config = |mirrors: &str, insecure: &[&Registry]| {
        Registries::new(RegistryConfig {
            mirrors: [(registry.address.clone(), vec![mirrors.to_owned()])].into(),
            insecure: insecure.iter().map(|registry| registry.address.clone()).collect(),
            ..RegistryConfig::default()
        })
    };
    let there = format!("http://{}", mirror.address);
    let pull = async |registries: Registries| {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path()).pull(&registries, &registry.name("app:one"), options()).await
    };
    pull(config(&there, &[&registry, &mirror])).await.unwrap();
    assert_eq!(registry.sent(), 0, "all from the mirror");
    // A mirror that has only some of it, or lies, costs nothing but time.
    mirror.change(|content| content.blobs.clear());
    pull(config(&there, &[&registry, &mirror])).await.unwrap();
    assert!(registry.sent() > 900_000);
    assert!(pull(config(&there, &[&registry])).await.is_err(), "a plain mirror must be listed");
    let error = pull(Registries::new(RegistryConfig::default())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", chain(&error));
}

#[tokio::test]
async fn a_server_without_ranges_sends_it_again() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    registry.blobs([
        Fault::None,
        Fault::Cut(400),
        Fault::Cut(400),
        Fault::Cut(400),
        Fault::NoRanges,
        Fault::NoRanges,
        Fault::NoRanges,
    ]);
    store.pull(&registry.client(), &registry.name("app:one"), options()).await.unwrap();
    whole(&store, dir.path());
}

#[tokio::test]
async fn space_is_looked_at_first() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    for (limits, word) in [
        (Limits { reserve_bytes: u64::MAX / 2, ..limits() }, "bytes"),
        (Limits { reserve_inodes: u64::MAX / 2, ..limits() }, "inodes"),
    ] {
        let store = Store::open(dir.path(), limits).unwrap().0;
        let error = store.pull(&registry.client(), &registry.name("app:one"), options()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(registry.sent() < 10_000, "no layer was asked for");
}

#[tokio::test]
async fn dropping_a_pull_cancels_it() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    registry.always(Some(Fault::Status(503, Some(60))));
    let (client, name) = (registry.client(), registry.name("app:one"));
    let pull = store.pull(&client, &name, options());
    assert!(tokio::time::timeout(Duration::from_millis(100), pull).await.is_err());
    registry.always(None);
    store.pull(&registry.client(), &registry.name("app:one"), options()).await.unwrap();
    whole(&store, dir.path());
}

#[tokio::test]
async fn two_pulls_of_the_same_at_once_fetch_it_once() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    let client = registry.client();
    let (one, two) = (registry.name("app:one"), registry.name("again:one"));
    let both = tokio::join!(store.pull(&client, &one, options()), store.pull(&client, &two, options()));
    assert_eq!(both.0.unwrap().id, both.1.unwrap().id);
    assert_eq!(whole(&store, dir.path())[0].tags.len(), 2);
    assert!(registry.sent() < 1_100_000, "{}", registry.sent());
}

#[tokio::test]
async fn what_is_needed_stays() {
    let mut content = content();
    let shared = (tar(&[("base", b"base"), ("big", &noise(1, 900_000))]), Packed::Gzip);
    content.image("two", "amd64", &[shared, (tar(&[("new", b"new")]), Packed::Gzip)], true);
    let (registry, dir) = (Registry::start(content).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    let client = registry.client();
    let pull = async |tag: &str| {
        store.pull(&client, &registry.name(&format!("app:{tag}")), options()).await.unwrap().id
    };
    let (one, two) = (pull("one").await, pull("two").await);
    assert_eq!(names(dir.path(), "layer-").len(), 4, "a shared layer is there once");
    let usage = store.disk_usage();
    assert!(usage.images.iter().all(|(_, size, shared)| *shared > 900_000 && size > shared));
    assert!(matches!(store.gc(&Policy { all: true, ..Policy::default() }), Err(Error::HoldsUnknown)));
    store.holds_complete();
    store.hold(&one, "container").unwrap();
    store.pin(&two, "rollback").unwrap();
    let removed = store.gc(&Policy { all: true, ..Policy::default() }).unwrap();
    assert_eq!(removed.images, []);
    assert!(matches!(store.remove(&one.to_string(), true), Err(Error::InUse { .. })));
    assert!(matches!(store.remove(&registry.name("app:two").to_string(), false), Err(Error::InUse { .. })));
    // A pin outlives a restart, a hold is said again.
    drop(store);
    let store = common::store(dir.path());
    store.holds_complete();
    let removed = store.gc(&Policy { all: true, ..Policy::default() }).unwrap();
    assert_eq!((removed.images, removed.layers.len()), (vec![one], 2));
    assert!(store.rootfs(&two).is_ok() && store.scrub(Depth::Full).unwrap().bad.is_empty());
    store.unpin(None, "rollback").unwrap();
    let tag = registry.name("app:two");
    let other = registry.name("mine:1");
    store.tag(&two, &other).unwrap();
    assert!(matches!(store.remove(&two.0.short(), false), Err(Error::SeveralNames { .. })));
    assert_eq!(store.remove(&tag.to_string(), false).unwrap().images, []);
    assert_eq!(store.gc(&Policy::default()).unwrap().images, [], "it has a name");
    let labels = vec![("kind".to_owned(), Some("other".to_owned()))];
    assert_eq!(store.gc(&Policy { all: true, labels, ..Policy::default() }).unwrap().images, []);
    let keep = [other.clone()].into();
    assert_eq!(store.gc(&Policy { all: true, keep, ..Policy::default() }).unwrap().images, []);
    let young = Some(Duration::from_secs(3600));
    assert_eq!(store.gc(&Policy { all: true, older_than: young, ..Policy::default() }).unwrap().images, []);
    assert_eq!(store.untag(&other).unwrap(), two);
    assert_eq!(store.gc(&Policy::default()).unwrap().images, [two]);
    assert_eq!((names(dir.path(), "layer-"), names(dir.path(), "image-")), (vec![], vec![]));
}

/// Images go one by one until layers take no more than they may, a shared layer counted once.
#[tokio::test]
async fn images_go_until_their_layers_take_no_more_than_they_may() {
    let mut content = content();
    let shared = (tar(&[("base", b"base"), ("big", &noise(1, 900_000))]), Packed::Gzip);
    content.image("two", "amd64", &[shared, (tar(&[("new", b"new")]), Packed::Gzip)], true);
    let (registry, dir) = (Registry::start(content).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    for tag in ["app:one", "app:two"] {
        store.pull(&registry.client(), &registry.name(tag), options()).await.unwrap();
    }
    store.holds_complete();
    let all = store.disk_usage().layers;
    let left = |until_used: u64| {
        let policy = Policy { all: true, until_used: Some(until_used), ..Policy::default() };
        let removed = store.gc(&policy).unwrap().images.len();
        (removed, store.disk_usage().layers)
    };
    assert_eq!(left(all), (0, all));
    let (removed, used) = left(all - 1);
    assert!(removed == 1 && used > 900_000 && used < all, "{removed} gone, {used} of {all}");
    assert_eq!(left(0), (1, 0));
}

#[tokio::test]
async fn what_is_bad_is_found_and_only_that_is_fetched_again() {
    let (registry, dir) = (Registry::start(content()).await, tempfile::tempdir().unwrap());
    let name = registry.name("app:one");
    let id = store(dir.path()).pull(&registry.client(), &name, options()).await.unwrap().id;
    let damage: [(&str, Damage<'_>); 5] = [
        ("cut short", &|path| {
            std::fs::File::options().write(true).open(path).unwrap().set_len(5000).unwrap()
        }),
        ("empty", &|path| std::fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap()),
        ("missing", &|path| std::fs::remove_file(path).unwrap()),
        ("one bit", &|path| {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 5000).unwrap();
            file.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
        }),
        ("record", &|path| {
            let dir = path.parent().unwrap();
            let record = dir.join(&names(dir, "image-")[0]);
            std::fs::File::options().write(true).open(record).unwrap().set_len(10).unwrap();
        }),
    ];
    for (what, damage) in damage {
        let layer = store(dir.path()).rootfs(&id).unwrap().layers[2].file.clone();
        damage(&layer);
        let (store, report) = Store::open(dir.path(), limits()).unwrap();
        let damaged = if what == "one bit" {
            assert_eq!(report.damaged, [], "only a full scrub sees it");
            let found = store.scrub(Depth::Full).unwrap();
            drop(store);
            // And it is known after a restart.
            assert_eq!(Store::open(dir.path(), limits()).unwrap().1.damaged, [id]);
            found.damaged
        } else {
            drop(store);
            report.damaged
        };
        assert_eq!(damaged, [id], "{what}");
        let store = common::store(dir.path());
        if what != "record" {
            assert!(matches!(store.rootfs(&id), Err(Error::Damaged { .. })), "{what}");
        }
        let before = registry.sent();
        let pulled = store.pull(&registry.client(), &name, options()).await.unwrap();
        assert!(pulled.new && pulled.id == id);
        assert!(registry.sent() - before < 10_000, "{what}: {} bytes", registry.sent() - before);
        whole(&store, dir.path());
        assert!(store.rootfs(&id).is_ok());
    }
    // The table itself: images come back with their names.
    std::fs::File::options().write(true).open(dir.path().join("table.json")).unwrap().set_len(7).unwrap();
    let store = store(dir.path());
    assert_eq!(store.resolve(&name.to_string()).unwrap(), id);
    whole(&store, dir.path());
}
