//! The publisher of image deltas: what it writes is what a device takes, whatever the images come as, and what it refuses.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "for tests only"
)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Content, Packed, Registry, gzip, noise, options, store, tar};
use rustiot_images::manifest::media;
use rustiot_images::publish::{PublishError, Published, Request, publish};
use rustiot_images::{Depth, Digest};
use serde_json::{Value, json};

/// Two versions of an app, and a base that both have.
struct Versions {
    content: Content,
    dir: tempfile::TempDir,
}

fn layers(version: u64) -> Vec<Vec<u8>> {
    let mut library = noise(2, 500_000);
    library[250_000..250_020].copy_from_slice(&noise(10 + version, 20));
    vec![
        tar(&[("base", &noise(1, 100_000))]),
        tar(&[("usr/lib/lib.so", &library), ("etc/version", version.to_string().as_bytes())]),
        tar(&[("fresh", &noise(20 + version, 3000))]),
    ]
}

impl Versions {
    fn new() -> Versions {
        let mut content = Content::default();
        for version in 1..=3 {
            let packed: Vec<_> = layers(version).into_iter().map(|layer| (layer, Packed::Gzip)).collect();
            content.image(&version.to_string(), "amd64", &packed, version == 2);
        }
        Versions { content, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn manifest(&self, tag: &str) -> Value {
        serde_json::from_slice(&self.content.manifests[tag].1).unwrap()
    }

    /// An image's blobs, by the names that they have below `blobs/sha256`.
    fn blobs(&self, tag: &str) -> BTreeMap<String, Vec<u8>> {
        let manifest = self.manifest(tag);
        let named = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
        let mut blobs: BTreeMap<String, Vec<u8>> = named
            .map(|blob| blob["digest"].as_str().unwrap().parse::<Digest>().unwrap())
            .map(|digest| (digest.hex(), self.content.blobs[&digest].clone()))
            .collect();
        let bytes = self.content.manifests[tag].1.clone();
        blobs.insert(Digest::of(&bytes).hex(), bytes);
        blobs
    }

    fn index(&self, tags: &[&str]) -> Vec<u8> {
        let entries = tags.iter().map(|tag| {
            let (kind, bytes) = &self.content.manifests[*tag];
            json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len(),
                "annotations": {"org.opencontainers.image.ref.name": tag}})
        });
        json!({"schemaVersion": 2, "manifests": entries.collect::<Vec<_>>()}).to_string().into_bytes()
    }

    fn layout(&self, tag: &str) -> PathBuf {
        let dir = self.path(&format!("layout-{tag}"));
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (name, bytes) in self.blobs(tag) {
            std::fs::write(dir.join("blobs/sha256").join(name), bytes).unwrap();
        }
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(dir.join("index.json"), self.index(&[tag])).unwrap();
        dir
    }

    fn archive(&self, tag: &str) -> Vec<u8> {
        let blobs = self.blobs(tag).into_iter();
        let mut files: Vec<(String, Vec<u8>)> =
            blobs.map(|(name, bytes)| (format!("./blobs/sha256/{name}"), bytes)).collect();
        files.push(("./index.json".to_owned(), self.index(&[tag])));
        tar(&files.iter().map(|(name, bytes)| (&**name, &**bytes)).collect::<Vec<_>>())
    }

    /// As skopeo writes it.
    fn dir(&self, tag: &str) -> PathBuf {
        let dir = self.path(&format!("dir-{tag}"));
        std::fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in self.blobs(tag) {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        std::fs::write(dir.join("manifest.json"), &self.content.manifests[tag].1).unwrap();
        std::fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
        dir
    }

    /// As `docker save` did it for ten years: no manifest, layers not compressed, one of them by a link.
    fn saved(&self, tag: &str, version: u64) -> Vec<u8> {
        let config: Digest = self.manifest(tag)["config"]["digest"].as_str().unwrap().parse().unwrap();
        let name = format!("{}.json", config.hex());
        let all = layers(version);
        let paths = ["a/layer.tar", "b/layer.tar", "c/layer.tar"];
        let manifest = json!([{"Config": name, "RepoTags": ["app:1"], "Layers": paths}]).to_string();
        let mut files: Vec<(&str, &[u8])> = paths.iter().copied().zip(all.iter().map(|l| &**l)).collect();
        files[0].0 = "real.tar";
        files.push((&name, &self.content.blobs[&config]));
        files.push(("manifest.json", manifest.as_bytes()));
        let mut archive = tar(&files);
        let mut link = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        link.append_link(&mut header, "a/layer.tar", "../real.tar").unwrap();
        // In front, so that nothing is said of the order.
        let mut all = link.into_inner().unwrap();
        all.truncate(512);
        all.append(&mut archive);
        all
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn request<'a>(old: &'a Path, new: &'a Path, out: &'a Path) -> Request<'a> {
    Request { old, new, manifest: None, platform: None, out }
}

fn made(old: &Path, new: &Path, out: &Path) -> Published {
    let mut published = publish(&request(old, new, out), &|_, _| ()).unwrap();
    assert_eq!(published.len(), 1);
    published.remove(0)
}

/// All files of a directory.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => all.extend(files(&entry)),
            false => drop(all.insert(entry.clone(), std::fs::read(entry).unwrap())),
        }
    }
    all
}

fn blob(out: &Path, digest: &str) -> Vec<u8> {
    std::fs::read(out.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())).unwrap()
}

/// The list under a tag of a layout.
fn list(out: &Path, tag: &str) -> Vec<Value> {
    let index: Value = serde_json::from_slice(&std::fs::read(out.join("index.json")).unwrap()).unwrap();
    let named = index["manifests"].as_array().unwrap().iter();
    let found: Vec<&Value> =
        named.filter(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == tag).collect();
    assert_eq!(found.len(), 1, "one entry a tag");
    let list: Value = serde_json::from_slice(&blob(out, found[0]["digest"].as_str().unwrap())).unwrap();
    list["manifests"].as_array().unwrap().clone()
}

/// What a tool does that copies the layout to the registry.
fn copied(out: &Path, tag: &str, to: &mut Content) {
    for bytes in files(&out.join("blobs")).into_values() {
        to.blobs.insert(Digest::of(&bytes), bytes);
    }
    let entries = list(out, tag);
    for entry in &entries {
        let digest = entry["digest"].as_str().unwrap();
        to.manifests.insert(digest.to_owned(), (media::OCI_MANIFEST.to_owned(), blob(out, digest)));
    }
    let list = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
    to.manifest(tag, media::OCI_INDEX, &list);
}

#[tokio::test]
async fn a_device_takes_what_is_published() {
    let versions = Versions::new();
    let out = versions.path("out");
    let published = made(&versions.dir("1"), &versions.dir("2"), &out);
    assert_eq!((published.same, published.layers.len(), published.kept), (1, 2, 0));
    let [library, fresh] = &published.layers[..] else { panic!("two layers") };
    assert!(library.offered && library.delta_bytes.unwrap() < 2000, "{library:?}");
    // 3000 bytes of noise compress to no less, and have nothing in common with what is there.
    assert!(!fresh.offered && fresh.delta_bytes.is_some(), "{fresh:?}");
    let mut content = versions.content.clone();
    copied(&out, &published.tag, &mut content);
    let registry = Registry::start(content).await;
    let device = store(&versions.path("device"));
    let old = device.pull(&registry.client(), &registry.name("app:1"), options()).await.unwrap();
    let new = device.pull(&registry.client(), &registry.name("app:2"), options()).await.unwrap();
    assert_eq!((old.id, new.id), (published.from, published.to));
    let whole: u64 = published.layers.iter().map(|layer| layer.layer_bytes).sum();
    assert!(whole > 500_000 && new.fetched < 20_000, "{} of {whole}", new.fetched);
    assert!(device.scrub(Depth::Full).unwrap().bad.is_empty());
    let has: Vec<Digest> =
        device.inspect(&new.id).unwrap().layers.iter().map(|layer| layer.diff_id).collect();
    assert_eq!(has, layers(2).iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>());
    for layer in device.rootfs(&new.id).unwrap().layers {
        let archive = layers(2).into_iter().find(|archive| Digest::of(archive) == layer.diff_id).unwrap();
        assert_eq!(std::fs::read(layer.file).unwrap()[4096..][..archive.len()], archive);
    }
}

#[test]
fn images_come_in_many_ways_and_give_the_same_bytes() {
    let versions = Versions::new();
    let first = versions.path("first");
    made(&versions.dir("1"), &versions.dir("2"), &first);
    let expected: Vec<Vec<u8>> = files(&first).into_values().collect();
    let (old, new) = (versions.archive("1"), versions.archive("2"));
    let manifest = versions.write("2.json", &versions.content.manifests["2"].1);
    let saved = (
        versions.write("1.saved", &versions.saved("1", 1)),
        versions.write("2.saved", &versions.saved("2", 2)),
    );
    let ways = [
        (versions.layout("1"), versions.layout("2"), None),
        (versions.write("1.tar", &old), versions.write("2.tar", &new), None),
        (versions.write("1.tar.gz", &gzip(&old)), versions.write("2.tar.gz", &gzip(&new)), None),
        (saved.0, versions.dir("2"), None),
        (versions.dir("1"), saved.1, Some(&*manifest)),
    ];
    for (number, (old, new, manifest)) in ways.iter().enumerate() {
        let out = versions.path(&format!("out-{number}"));
        publish(&Request { manifest: *manifest, ..request(old, new, &out) }, &|_, _| ()).unwrap();
        assert_eq!(files(&out).into_values().collect::<Vec<_>>(), expected, "{old:?} {new:?}");
    }
}

#[test]
fn a_second_run_changes_nothing_and_what_others_put_there_stays() {
    let versions = Versions::new();
    let (out, new) = (versions.path("out"), versions.dir("3"));
    // What somebody signed, in a list that has lost its types on the way.
    let first = made(&versions.dir("1"), &new, &out);
    assert!(first.changed);
    let signature = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": "application/x.signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2},
        "layers": []});
    let signature = signature.to_string();
    let foreign = json!({"mediaType": media::OCI_MANIFEST, "digest": Digest::of(signature.as_bytes()),
        "size": signature.len(), "annotations": {"who": "somebody"}});
    let mut entries = list(&out, &first.tag);
    entries[0].as_object_mut().unwrap().remove("artifactType");
    let both = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [foreign, entries[0]]});
    let both = both.to_string();
    for bytes in [signature.as_bytes(), both.as_bytes()] {
        std::fs::write(out.join("blobs/sha256").join(Digest::of(bytes).hex()), bytes).unwrap();
    }
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media::OCI_INDEX, "digest": Digest::of(both.as_bytes()), "size": both.len(),
            "annotations": {"org.opencontainers.image.ref.name": first.tag}},
        {"mediaType": media::OCI_INDEX, "digest": Digest::of(b"another"), "size": 7,
            "annotations": {"org.opencontainers.image.ref.name": "sha256-another"}},
    ]});
    std::fs::write(out.join("index.json"), index.to_string()).unwrap();

    let again = made(&versions.dir("1"), &new, &out);
    assert_eq!((again.artifact, again.changed, again.kept), (first.artifact, true, 1));
    let entries = list(&out, &first.tag);
    assert_eq!(entries[0]["artifactType"], "application/x.signature");
    assert_eq!(entries[0]["annotations"]["who"], "somebody");
    assert_eq!(entries[1]["artifactType"], "application/vnd.rustiot.image-delta.v1");
    assert_eq!(entries.len(), 2);
    let before = files(&out);
    assert!(String::from_utf8_lossy(&before[&out.join("index.json")]).contains("sha256-another"));
    let same = made(&versions.dir("1"), &new, &out);
    assert!(!same.changed);
    assert_eq!(files(&out), before);

    // From another old image: a second artifact, and the first stays.
    let second = made(&versions.dir("2"), &new, &out);
    assert_eq!((second.tag, second.kept), (first.tag.clone(), 2));
    assert_ne!(second.artifact, first.artifact);
    assert_eq!(list(&out, &first.tag).len(), 3);
    // A list that names what is not there could not be copied, so it is not added to.
    std::fs::remove_file(out.join("blobs/sha256").join(Digest::of(signature.as_bytes()).hex())).unwrap();
    let error = publish(&request(&versions.dir("1"), &new, &out), &|_, _| ()).unwrap_err();
    assert!(
        matches!(error, PublishError::BadLayout { .. }) && error.to_string().contains("--all"),
        "{error}"
    );
}

#[test]
fn what_is_the_same_or_has_nothing_in_common_is_not_published() {
    let mut versions = Versions::new();
    let out = versions.path("out");
    let same = made(&versions.dir("1"), &versions.layout("1"), &out);
    assert_eq!((same.artifact, same.layers.len(), same.same), (None, 0, 3));
    let foreign = [(tar(&[("other", &noise(99, 50_000))]), Packed::Gzip)];
    versions.content.image("foreign", "amd64", &foreign, false);
    let foreign = made(&versions.dir("1"), &versions.dir("foreign"), &out);
    assert_eq!(foreign.artifact, None);
    assert!(foreign.layers.iter().all(|layer| !layer.offered));
    assert!(!out.exists());

    // Nor is anything left of the way there, and nothing more of what was there before.
    made(&versions.dir("1"), &versions.dir("foreign"), &out.join("deep/down"));
    assert!(!out.exists());
    std::fs::create_dir_all(out.join("there")).unwrap();
    made(&versions.dir("1"), &versions.dir("foreign"), &out.join("there/down"));
    made(&versions.dir("1"), &versions.dir("foreign"), &out.join("there"));
    assert!(out.join("there").is_dir() && std::fs::read_dir(out.join("there")).unwrap().next().is_none());
    let full = versions.path("full");
    made(&versions.dir("1"), &versions.dir("2"), &full);
    let before = files(&full);
    made(&versions.dir("1"), &versions.dir("foreign"), &full);
    assert_eq!(files(&full), before);
}

#[test]
fn what_was_made_here_and_is_replaced_does_not_stay() {
    let versions = Versions::new();
    let (out, new) = (versions.path("out"), versions.dir("3"));
    let first = made(&versions.dir("1"), &new, &out);
    let other = made(&versions.dir("1"), &versions.dir("2"), &out);
    let good = files(&out);
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(out.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    };
    // As an older version of this tool might have made it, with deltas in more bytes; and what a run left that was cut off.
    let artifact = first.artifact.unwrap();
    let mut older: Value = serde_json::from_slice(&blob(&out, &artifact.to_string())).unwrap();
    let delta = put(b"RDELTA\r\x01 a longer one");
    older["layers"][0]["digest"] = json!(delta);
    let older = older.to_string();
    let older_digest = put(older.as_bytes());
    let torn = put(b"RDELTA\r\x02 of a run that was cut off");
    let mut entries = list(&out, &first.tag);
    entries[0]["digest"] = json!(older_digest);
    entries[0]["size"] = json!(older.len());
    let signature = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": "application/x.signature",
        "config": {"mediaType": "x/y", "digest": put(b"named"), "size": 5}, "layers": []});
    let signature = signature.to_string();
    entries.push(json!({"mediaType": media::OCI_MANIFEST, "digest": put(signature.as_bytes()), "size": signature.len()}));
    let list = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries}).to_string();
    let mut index: Value = serde_json::from_slice(&good[&out.join("index.json")]).unwrap();
    let at = |index: &Value| {
        let named = index["manifests"].as_array().unwrap();
        named.iter().position(|e| e["annotations"]["org.opencontainers.image.ref.name"] == first.tag).unwrap()
    };
    let (place, replaced) =
        (at(&index), index["manifests"][at(&index)]["digest"].as_str().unwrap().to_owned());
    index["manifests"][place]["digest"] = json!(put(list.as_bytes()));
    index["manifests"][place]["size"] = json!(list.len());
    std::fs::write(out.join("index.json"), index.to_string()).unwrap();
    // The other one's deltas are in use, and what somebody else put there is not ours to judge.
    let foreign = put(b"whose is this?");

    let again = made(&versions.dir("1"), &new, &out);
    assert_eq!((again.artifact, again.changed, again.kept), (first.artifact, true, 1));
    let there = |digest: &Digest| out.join("blobs/sha256").join(digest.hex()).exists();
    for (gone, what) in [(delta, "its delta"), (older_digest, "the artifact"), (torn, "the torn run's delta")]
    {
        assert!(!there(&gone), "{what} is still there");
    }
    for stays in [foreign, Digest::of(b"named"), Digest::of(signature.as_bytes())] {
        assert!(there(&stays), "{stays}");
    }
    let now = files(&out);
    let name = replaced.strip_prefix("sha256:").unwrap();
    let used = good.iter().filter(|(path, _)| !path.ends_with("index.json") && !path.ends_with(name));
    used.for_each(|(path, bytes)| assert_eq!(now.get(path), Some(bytes), "{path:?}"));
    assert!(!made(&versions.dir("1"), &versions.dir("2"), &out).changed, "{}", other.tag);
    assert_eq!(files(&out), now);

    // What a list names that cannot be read is not known: nothing goes.
    std::fs::remove_file(out.join("blobs/sha256").join(Digest::of(signature.as_bytes()).hex())).unwrap();
    put(b"RDELTA\r\x02 of a run that was cut off");
    assert!(!made(&versions.dir("1"), &versions.dir("2"), &out).changed);
    assert!(there(&torn));
}

#[test]
fn each_platform_gets_its_own() {
    let mut versions = Versions::new();
    let dir = |versions: &Versions, name: &str, tags: &[&str]| {
        let dir = versions.path(name);
        for tag in tags {
            let from = versions.layout(tag);
            let copied = files(&from.join("blobs"));
            std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
            for (path, bytes) in copied {
                std::fs::write(dir.join("blobs/sha256").join(path.file_name().unwrap()), bytes).unwrap();
            }
        }
        std::fs::write(dir.join("index.json"), versions.index(tags)).unwrap();
        dir
    };
    for version in [1, 3] {
        let packed: Vec<_> = layers(version).into_iter().map(|layer| (layer, Packed::Zstd)).collect();
        versions.content.image(&format!("arm{version}"), "arm64", &packed, false);
    }
    let (old, new) = (dir(&versions, "old", &["1", "arm1"]), dir(&versions, "new", &["3", "arm3"]));
    let out = versions.path("out");
    let published = publish(&request(&old, &new, &out), &|_, _| ()).unwrap();
    let platforms: Vec<&str> = published.iter().map(|image| &*image.platform).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64/v8"]);
    for image in &published {
        assert_eq!(list(&out, &image.tag).len(), 1);
    }
    let one = Request { platform: Some("linux/arm64".parse().unwrap()), ..request(&old, &new, &out) };
    assert_eq!(publish(&one, &|_, _| ()).unwrap().len(), 1);
    let none = Request { platform: Some("linux/riscv64".parse().unwrap()), ..request(&old, &new, &out) };
    let error = publish(&none, &|_, _| ()).unwrap_err();
    assert!(error.to_string().contains("no platform is in both"), "{error}");
    // Two images for one platform: which one is meant?
    let both = dir(&versions, "both", &["1", "2"]);
    let error = publish(&request(&both, &new, &out), &|_, _| ()).unwrap_err();
    assert!(error.to_string().contains("several images for linux/amd64"), "{error}");
}

#[test]
fn what_cannot_be_right_is_refused() {
    let versions = Versions::new();
    let (old, new, out) = (versions.dir("1"), versions.dir("2"), versions.path("out"));
    let refused = |old: &Path, new: &Path, manifest: Option<&Path>| {
        publish(&Request { manifest, ..request(old, new, &out) }, &|_, _| ()).unwrap_err()
    };
    // The registry's manifest is not known.
    let saved = versions.write("2.saved", &versions.saved("2", 2));
    let error = refused(&old, &saved, None);
    assert!(matches!(error, PublishError::Request(_)) && error.to_string().contains("--manifest"), "{error}");
    let mut plain = Versions::new();
    let packed: Vec<_> = layers(2).into_iter().map(|layer| (layer, Packed::Plain)).collect();
    plain.content.image("plain", "amd64", &packed, false);
    let error = refused(&old, &plain.layout("plain"), None);
    assert!(error.to_string().contains("not compressed"), "{error}");
    // It is known from skopeo's dir:, whatever it is.
    made(&old, &plain.dir("plain"), &versions.path("plain-out"));
    // Another image's manifest, an index, no JSON.
    for (name, bytes, words) in [
        ("3.json", &versions.content.manifests["3"].1[..], "which is not in"),
        ("index.json", br#"{"schemaVersion":2,"manifests":[]}"#, "index of several images"),
        ("none.json", b"<html>", "cannot be used"),
    ] {
        let error = refused(&old, &saved, Some(&versions.write(name, bytes)));
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    // Not there, not an image.
    assert!(matches!(refused(&versions.path("nowhere"), &new, None), PublishError::Io { .. }));
    for odd in [
        versions.write("odd", b"hello"),
        versions.write("odd.tar", &tar(&[("x", b"y")])),
        std::env::temp_dir(),
    ] {
        assert!(matches!(refused(&odd, &new, None), PublishError::NoImage { .. }), "{odd:?}");
    }
    // Cut off in the last layer.
    let whole = versions.saved("1", 1);
    let cut = versions.write("cut.tar", &whole[..whole.len() / 2]);
    assert!(matches!(refused(&cut, &new, None), PublishError::NoImage { .. }));
    // A changed byte in each of its files.
    for (name, bytes) in versions.blobs("1") {
        let odd = versions.layout("1");
        let mut bytes = bytes;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(odd.join("blobs/sha256").join(name), bytes).unwrap();
        let error = refused(&odd, &new, None);
        assert!(matches!(error, PublishError::Damaged { .. } | PublishError::Layer { .. }), "{error}");
    }
    assert!(!out.exists(), "nothing was published");
}

#[test]
fn a_directory_of_others_is_left_alone() {
    let versions = Versions::new();
    let (old, new) = (versions.dir("1"), versions.dir("2"));
    let refused = |out: &Path| publish(&request(&old, &new, out), &|_, _| ()).unwrap_err();
    let full = versions.path("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("thesis.tex"), "…").unwrap();
    assert!(matches!(refused(&full), PublishError::NotALayout { .. }));
    assert_eq!(files(&full).len(), 1);
    let out = versions.path("out");
    made(&old, &new, &out);
    let lock = std::fs::File::open(out.join("oci-layout")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(refused(&out), PublishError::Busy { .. }));
    drop(lock);
    // As `skopeo copy … oci:out` leaves it, without a tag.
    let unnamed = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media::OCI_INDEX, "digest": Digest::of(b"x"), "size": 1}]});
    std::fs::write(out.join("index.json"), unnamed.to_string()).unwrap();
    assert!(matches!(refused(&out), PublishError::Unnamed { .. }));
    std::fs::write(out.join("index.json"), "{").unwrap();
    assert!(matches!(refused(&out), PublishError::BadLayout { .. }));
}
