//! Layers out of older ones: what a delta saves, and what a bad one costs.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::type_complexity,
    reason = "for tests only"
)]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{Content, Fault, Made, Packed, Registry, limits, noise, options, store, tar};
use rustiot_images::{Depth, Digest, Event, Progress, PullOptions, Pulled, Status, Store};
use serde_json::{Value, json};

/// A base, libraries of which a few bytes change, an app that moves to another layer; two images of them.
struct World {
    old: [Vec<u8>; 3],
    new: [Vec<u8>; 3],
}

impl World {
    fn new() -> World {
        let libraries = noise(2, 600_000);
        let mut changed = libraries.clone();
        changed.splice(300_000..300_100, noise(3, 160));
        changed[500_000] ^= 1;
        let app = noise(4, 80_000);
        World {
            old: [
                tar(&[("base", &noise(1, 100_000))]),
                tar(&[("usr/lib/lib.so", &libraries), ("etc/version", b"1")]),
                tar(&[("app", &app)]),
            ],
            new: [
                tar(&[("base", &noise(1, 100_000))]),
                tar(&[("etc/version", b"2"), ("usr/lib/lib.so", &changed), ("opt/app", &app)]),
                tar(&[("app", &[&app[..40_000], b"a new function", &app[40_000..]].concat())]),
            ],
        }
    }

    fn images(&self) -> (Content, Value, Value) {
        let mut content = Content::default();
        let packed = |layers: &[Vec<u8>; 3]| layers.clone().map(|layer| (layer, Packed::Gzip));
        let old = content.image("old", "amd64", &packed(&self.old), false);
        let new = content.image("new", "amd64", &packed(&self.new), true);
        (content, old, new)
    }

    /// What makes the second and the third layer.
    fn deltas(&self) -> [Made<'_>; 2] {
        let [base, libraries, app] = &self.old;
        let _ = base;
        [(1, [&libraries[..], app]), (2, [&libraries[..], app])]
            .map(|(number, sources)| Made { target: &self.new[number], sources: Vec::leak(sources.to_vec()) })
    }

    /// As it should be.
    fn offered(&self, by_tag: bool) -> Content {
        let (mut content, old, new) = self.images();
        let layers: Vec<Value> = (self.deltas().iter())
            .map(|made| {
                let bytes = made.bytes();
                made.layer(&mut content, bytes)
            })
            .collect();
        let entry = content.artifact(&old, &new, &layers);
        let signature = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 10,
            "digest": Digest::of(b"signature").to_string(), "artifactType": "application/vnd.signature"});
        content.refer(&new, &[signature, entry], by_tag);
        content
    }
}

type Told = Arc<Mutex<Vec<Event>>>;

async fn pull(store: &Store, registry: &Registry, tag: &str) -> (Pulled, Vec<Event>) {
    let told: Told = Told::default();
    let sink = told.clone();
    let progress = Progress::new(move |event| sink.lock().unwrap().push(event));
    let name = registry.name(&format!("app:{tag}"));
    let pulled = store.pull(&registry.client(), &name, PullOptions { progress, ..options() }).await.unwrap();
    (pulled, std::mem::take(&mut *told.lock().unwrap()))
}

/// Why deltas were not used.
fn refused(events: &[Event]) -> Vec<String> {
    let refused = events.iter().filter(|event| event.status == Status::DeltaUnusable);
    refused.map(|event| event.detail.clone().unwrap()).collect()
}

fn files(dir: &Path) -> Vec<(String, Digest)> {
    let mut files: Vec<(String, Digest)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (entry.file_name().into_string().unwrap(), Digest::of(&std::fs::read(entry.path()).unwrap()))
        })
        .filter(|(name, _)| !["lock", "table.json"].contains(&&**name))
        .collect();
    files.sort();
    files
}

/// A store that got both images whole, for comparison.
async fn whole() -> (tempfile::TempDir, Store) {
    let (registry, dir) = (Registry::start(World::new().images().0).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    for tag in ["old", "new"] {
        pull(&store, &registry, tag).await;
    }
    (dir, store)
}

/// Both stores hold the same, to the byte.
fn same(one: (&Path, &Store), other: (&Path, &Store)) {
    let images = |store: &Store| {
        let mut images = store.images();
        images.sort_by_key(|image| image.id);
        images
            .into_iter()
            .map(|i| (i.id, i.layers, i.size, i.config_json, i.manifest_json))
            .collect::<Vec<_>>()
    };
    assert_eq!(images(one.1), images(other.1));
    let layers =
        |dir| files(dir).into_iter().filter(|(name, _)| !name.starts_with("image-")).collect::<Vec<_>>();
    assert_eq!(layers(one.0), layers(other.0));
    assert!(one.1.scrub(Depth::Full).unwrap().bad.is_empty());
}

#[tokio::test]
async fn a_new_version_costs_its_difference_and_is_the_same_image() {
    let reference = whole().await;
    for by_tag in [false, true] {
        let (registry, dir) =
            (Registry::start(World::new().offered(by_tag)).await, tempfile::tempdir().unwrap());
        let store = store(dir.path());
        pull(&store, &registry, "old").await;
        let before = registry.sent();
        let (pulled, events) = pull(&store, &registry, "new").await;
        assert_eq!((pulled.by_delta, refused(&events)), (2, vec![]), "by tag: {by_tag}");
        let bytes = registry.sent() - before;
        assert!(bytes < 6_000, "{bytes} of 780,000");
        let words = bytes - pulled.fetched;
        assert!(words < 100, "all of it is counted, but for the {words} bytes of a 404");
        for status in [Status::DownloadingDelta, Status::ApplyingDelta, Status::PullComplete] {
            assert!(events.iter().any(|event| event.status == status), "{status:?}");
        }
        same((dir.path(), &store), (reference.0.path(), &reference.1));
    }
}

/// A registry is asked for deltas only where they may be of use, and at most twice.
#[tokio::test]
async fn what_asking_costs() {
    let world = World::new();
    let (registry, dir) = (Registry::start(world.images().0).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    let asked = || {
        let asks = |head: &&String| head.contains("/referrers/") || head.contains("/manifests/sha256-");
        registry.requests().iter().filter(asks).count()
    };
    pull(&store, &registry, "old").await;
    assert_eq!(asked(), 0, "nothing is here that a delta could start from");
    pull(&store, &registry, "old").await;
    assert_eq!(asked(), 0, "nothing is missing");
    let name = registry.name("app:new");
    store.pull(&registry.client(), &name, PullOptions { deltas: false, ..options() }).await.unwrap();
    assert_eq!(asked(), 0, "nobody wants deltas");
    store.remove(&name.to_string(), false).unwrap();
    // One client: it remembers that the server does not know the API.
    let client = registry.client();
    let (pulled, before) = (store.pull(&client, &name, options()).await.unwrap(), asked());
    assert_eq!((pulled.by_delta, before), (0, 2));
    store.remove(&name.to_string(), false).unwrap();
    store.pull(&client, &name, options()).await.unwrap();
    assert_eq!(asked() - before, 1);
}

/// The delta of a whole image that makes something else and says that it makes this.
fn lying(made: &Made<'_>, instead: &[u8]) -> Vec<u8> {
    let mut bytes = Made { target: instead, sources: made.sources }.bytes();
    let index = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let at = bytes.windows(32).position(|window| window == Digest::of(instead).bytes()).unwrap();
    bytes[at..at + 32].copy_from_slice(Digest::of(made.target).bytes());
    let seal = *Digest::of(&bytes[..12 + index]).bytes();
    bytes[12 + index..12 + index + 32].copy_from_slice(&seal);
    bytes
}

/// Whatever is offered, the pull ends well, with the same image, and nothing is left behind.
#[tokio::test]
async fn a_bad_offer_costs_the_whole_layer_and_nothing_else() {
    type Change = Box<dyn Fn(&World, &mut Content)>;
    /// Another artifact than the good one: the delta's bytes, then the layer, then the artifact's entry are changed.
    fn offer(
        bytes: impl Fn(&Made<'_>, Vec<u8>) -> Vec<u8> + 'static,
        layer: impl Fn(&mut Value) + 'static,
        entry: impl Fn(&mut Value) + 'static,
    ) -> Change {
        Box::new(move |world, content| {
            let (mut own, old, new) = world.images();
            let layers: Vec<Value> = (world.deltas().iter())
                .map(|made| {
                    let bytes = bytes(made, made.bytes());
                    let mut one = made.layer(&mut own, bytes);
                    layer(&mut one);
                    one
                })
                .collect();
            let mut one = own.artifact(&old, &new, &layers);
            entry(&mut one);
            own.refer(&new, &[one], false);
            *content = own;
        })
    }
    fn list(bytes: impl Fn(&Value, Vec<u8>) -> Vec<u8> + 'static) -> Change {
        Box::new(move |world, content| {
            let new = world.images().2;
            let subject = new["digest"].as_str().unwrap().to_owned();
            let good = content.referrers.get(&subject).unwrap().clone();
            content.referrers.insert(subject, bytes(&new, good));
        })
    }
    let same_bytes = |_: &Made<'_>, bytes| bytes;
    let nothing = |_: &mut Value| ();
    let many = |fault: Fault| vec![fault; 30];
    let none = Vec::new;
    let note = |what: &'static str, value: String| {
        move |layer: &mut Value| layer["annotations"][what] = json!(value)
    };
    let elsewhere = Digest::of(b"elsewhere").to_string();
    // What is offered; what goes wrong with lists and with blobs; how many layers are made nevertheless; what is said.
    let cases: Vec<(&str, Change, Vec<Fault>, Vec<Fault>, usize, &str)> = vec![
        (
            "makes another layer",
            offer(|made, _| Made { target: b"other", sources: made.sources }.bytes(), nothing, nothing),
            none(),
            none(),
            0,
            "it makes another layer",
        ),
        (
            "makes other bytes than it says",
            offer(|made, _| lying(made, &tar(&[("app", &made.sources[1][512..])])), nothing, nothing),
            none(),
            none(),
            0,
            "configuration says",
        ),
        (
            "makes no archive",
            offer(|made, _| lying(made, &made.sources[0][100..50_000]), nothing, nothing),
            none(),
            none(),
            0,
            "broken archive",
        ),
        (
            "a bomb",
            offer(|made, _| lying(made, &[made.sources[1], &vec![0; 80 << 20]].concat()), nothing, nothing),
            none(),
            none(),
            0,
            // The libraries' layer may unpack to so much by its length in the manifest, the app's may not.
            "bomb",
        ),
        (
            "made from other layers than it says",
            offer(
                |made, _| Made { target: made.target, sources: &made.sources[..1] }.bytes(),
                nothing,
                nothing,
            ),
            none(),
            none(),
            0,
            "it is made from other layers",
        ),
        (
            "made from the right layers in the wrong order",
            offer(
                |made, _| Made { target: made.target, sources: &[made.sources[1], made.sources[0]] }.bytes(),
                nothing,
                nothing,
            ),
            none(),
            none(),
            0,
            "it is made from other layers",
        ),
        (
            "made from a layer that is not here",
            offer(same_bytes, note("org.rustiot.delta.sources", elsewhere), nothing),
            none(),
            none(),
            0,
            "",
        ),
        (
            "damaged, under the damage's digest",
            offer(
                |_, mut bytes| {
                    let last = bytes.len() - 9;
                    bytes[last] ^= 1;
                    bytes
                },
                nothing,
                nothing,
            ),
            none(),
            none(),
            0,
            "damaged",
        ),
        (
            "cut short, under the rest's digest",
            offer(|_, bytes| bytes[..bytes.len() - 5].to_vec(), nothing, nothing),
            none(),
            none(),
            0,
            "length",
        ),
        (
            "no delta at all",
            offer(|_, _| b"<html>not found</html>".to_vec(), nothing, nothing),
            none(),
            none(),
            0,
            "decoded",
        ),
        ("empty", offer(|_, _| Vec::new(), nothing, nothing), none(), none(), 0, "decoded"),
        (
            "dearer than the layer",
            offer(
                |_, mut bytes| {
                    bytes.resize(700_000, 7);
                    bytes
                },
                nothing,
                nothing,
            ),
            none(),
            none(),
            0,
            "",
        ),
        (
            "says that it is larger",
            offer(same_bytes, |layer| layer["size"] = json!(70_000), nothing),
            none(),
            none(),
            0,
            "bytes",
        ),
        (
            "says that it is smaller",
            offer(same_bytes, |layer| layer["size"] = json!(30), nothing),
            none(),
            none(),
            0,
            "bytes",
        ),
        (
            "of another version of the codec",
            offer(
                same_bytes,
                |layer| layer["mediaType"] = json!("application/vnd.rustiot.rdelta.v9"),
                nothing,
            ),
            none(),
            none(),
            0,
            "",
        ),
        (
            "an artifact that is not there",
            offer(same_bytes, nothing, |entry| entry["digest"] = json!(Digest::of(b"gone").to_string())),
            none(),
            none(),
            0,
            "not in the registry",
        ),
        (
            "an artifact that is an image",
            Box::new(|world, content| {
                let (_, old, new) = world.images();
                let mut entry = new.clone();
                entry["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
                entry["artifactType"] = json!("application/vnd.rustiot.image-delta.v1");
                entry["annotations"] = json!({"org.rustiot.delta.from": content.id(&old)});
                content.refer(&new, &[entry], false);
            }),
            none(),
            none(),
            0,
            "something else than image deltas",
        ),
        (
            "an artifact about another image",
            Box::new(|world, content| {
                let (_, old, new) = world.images();
                let entry = content.artifact(&old, &old, &[]);
                content.refer(&new, &[entry], false);
            }),
            none(),
            none(),
            0,
            "about another image",
        ),
        ("a list that is a page", list(|_, _| b"<html>".to_vec()), none(), none(), 0, "malformed"),
        (
            "a list of another kind",
            list(|_, good| {
                String::from_utf8(good)
                    .unwrap()
                    .replace("application/vnd.oci.image.index.v1+json", "text/x")
                    .into_bytes()
            }),
            none(),
            none(),
            0,
            "no OCI index",
        ),
        (
            "a huge list",
            list(|_, good| [good, vec![b' '; 300 << 10]].concat()),
            none(),
            none(),
            0,
            "more than",
        ),
        (
            "a list of lists",
            list(|new, good| {
                let mut list: Value = serde_json::from_slice(&good).unwrap();
                let mut itself = list["manifests"][1].clone();
                itself["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
                itself["digest"] = new["digest"].clone();
                list["manifests"] = json!(vec![itself; 300]);
                list.to_string().into_bytes()
            }),
            none(),
            none(),
            0,
            "",
        ),
        ("no answer", list(|_, good| good), vec![Fault::Status(500, None)], none(), 0, "500"),
        ("a busy registry", list(|_, good| good), vec![Fault::Status(429, Some(3600))], none(), 0, "429"),
        (
            "a changed delta",
            list(|_, good| good),
            none(),
            vec![Fault::None, Fault::Flip, Fault::Flip],
            0,
            "digest",
        ),
        (
            "a delta that is gone",
            list(|_, good| good),
            none(),
            vec![Fault::None, Fault::Status(404, None), Fault::Status(404, None)],
            0,
            "404",
        ),
        (
            "a bad line",
            list(|_, good| good),
            none(),
            vec![Fault::None, Fault::Cut(300), Fault::Cut(300)],
            2,
            "",
        ),
        (
            "no ranges",
            list(|_, good| good),
            none(),
            vec![Fault::None, Fault::Cut(300), Fault::Cut(300), Fault::NoRanges, Fault::NoRanges],
            2,
            "",
        ),
        ("nobody forbids it", list(|_, good| good), many(Fault::None), none(), 2, ""),
    ];
    let (reference, world) = (whole().await, World::new());
    for (case, change, lists, blobs, made, word) in cases {
        let mut content = world.offered(false);
        change(&world, &mut content);
        let (registry, dir) = (Registry::start(content).await, tempfile::tempdir().unwrap());
        let store = store(dir.path());
        pull(&store, &registry, "old").await;
        registry.referrers(lists);
        registry.blobs(blobs);
        let (pulled, events) = pull(&store, &registry, "new").await;
        let said = refused(&events);
        assert_eq!(pulled.by_delta, made, "{case}: {said:?}");
        match word {
            "" => assert_eq!(said, [""; 0], "{case}"),
            word => {
                assert!(said.iter().any(|why| why.contains(word)), "{case}: {said:?}");
                assert!(said.iter().all(|why| why.chars().count() <= 400), "{case}");
            }
        }
        same((dir.path(), &store), (reference.0.path(), &reference.1));
        let left = |name: &str| files(dir.path()).iter().any(|(file, _)| file.starts_with(name));
        assert!(!left("tmp-") && !left("partial-"), "{case}: {:?}", files(dir.path()));
    }
}

/// What has arrived of a delta is not fetched again, neither within a pull nor after a restart.
#[tokio::test]
async fn a_delta_is_resumed() {
    let world = World::new();
    let (registry, dir) = (Registry::start(world.offered(false)).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    pull(&store, &registry, "old").await;
    // Some bytes of deltas, and then nothing more, of the layers either.
    registry.blobs([Fault::None, Fault::Cut(150), Fault::Cut(150)]);
    registry.always(Some(Fault::Status(503, None)));
    store.pull(&registry.client(), &registry.name("app:new"), options()).await.unwrap_err();
    drop(store);
    registry.always(None);
    let store = common::reopen(dir.path()).await;
    let before = registry.requests().len();
    let (pulled, events) = pull(&store, &registry, "new").await;
    assert_eq!((pulled.by_delta, refused(&events)), (2, vec![]));
    let requests = registry.requests();
    let resumed = requests[before..].iter().filter(|head| head.to_lowercase().contains("range: bytes=150-"));
    assert!(resumed.count() > 0, "{requests:?}");

    // A power cut may leave a file of the right length with the wrong bytes.
    store.remove(&registry.name("app:new").to_string(), false).unwrap();
    let deltas: Vec<Digest> = world.deltas().iter().map(|made| Digest::of(&made.bytes())).collect();
    std::fs::write(dir.path().join(format!("partial-{}", deltas[0].hex())), vec![0; 500]).unwrap();
    std::fs::write(dir.path().join(format!("partial-{}", deltas[1].hex())), vec![0; 1 << 20]).unwrap();
    let (pulled, events) = pull(&store, &registry, "new").await;
    assert_eq!((pulled.by_delta, refused(&events)), (2, vec![]));
    assert!(files(dir.path()).iter().all(|(name, _)| !name.starts_with("partial-")));
}

/// A layer that is wrong on this device's disk makes a wrong layer, and that is seen.
#[tokio::test]
async fn a_source_that_has_rotted_is_seen() {
    use std::os::unix::fs::FileExt;
    let (registry, dir) = (Registry::start(World::new().offered(false)).await, tempfile::tempdir().unwrap());
    let store = store(dir.path());
    let (old, _) = pull(&store, &registry, "old").await;
    let layer = store.rootfs(&old.id).unwrap().layers[1].file.clone();
    let file = std::fs::File::options().read(true).write(true).open(layer).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 200_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 200_000).unwrap();
    let (pulled, events) = pull(&store, &registry, "new").await;
    assert_eq!(pulled.by_delta, 1, "the app's does not need that byte");
    assert!(refused(&events)[0].contains("configuration says"), "{:?}", refused(&events));
    let bad = store.scrub(Depth::Full).unwrap();
    assert_eq!((bad.bad.len(), bad.damaged), (1, vec![old.id]), "the new image is whole");
    // Now it is known to be bad, and no delta is made from it.
    store.remove(&registry.name("app:new").to_string(), false).unwrap();
    let (pulled, events) = pull(&store, &registry, "new").await;
    assert_eq!((pulled.by_delta, refused(&events)), (0, vec![]));
}

/// Limits are the same as for a layer that is fetched.
#[tokio::test]
async fn limits_hold_for_what_is_made() {
    let (registry, dir) = (Registry::start(World::new().offered(false)).await, tempfile::tempdir().unwrap());
    pull(&store(dir.path()), &registry, "old").await;
    let limits = rustiot_images::Limits { image_size: 700_000, ..limits() };
    let (store, _) = Store::open(dir.path(), limits).unwrap();
    let error = store.pull(&registry.client(), &registry.name("app:new"), options()).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("bytes in an image"), "{error}: {source}");
    assert_eq!(store.images().len(), 1);
}
