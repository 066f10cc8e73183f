//! The client against a real web server: every attack that TUF is for, clocks that are wrong, disks that forget, and the
//! whole way from `init` to a plan.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests, and files of tests"
)]

use rustiot_http::faulty::{Fault, Server};
use rustiot_http::{Http, Url};
use rustiot_repository::client::{self, Checked, Client, Error};
use rustiot_repository::publish::{Encoder, Repository, Settings, Tool};
use rustiot_repository::time::{Clock, Doubt};
use rustiot_repository::{Digest, Facts, Refusal, Running, State, WayKind, plan};
use std::io::Write;
use std::path::{Path, PathBuf};
use testbed::{Faults, FileServer};
use tough::schema::{Metafile, Role, Signature, Signed, Snapshot, Timestamp};

const DAY: u64 = 24 * 3600;
/// The truth when a test begins.
const NOW: u64 = 1_800_000_000;
const BUILT: u64 = NOW - 30 * DAY;

/// Bundles of these tests are `hsqs` + root image + boot image + signature block.
struct Plain;

impl Tool for Plain {
    fn verify(&self, bundle: &Path) -> Result<(), String> {
        let text = String::from_utf8_lossy(&std::fs::read(bundle).unwrap()).into_owned();
        if text.contains("forged") { Err("signature verification failed".into()) } else { Ok(()) }
    }

    fn unpack(&self, bundle: &Path, to: &Path) -> Result<(), String> {
        let bytes = std::fs::read(bundle).unwrap();
        std::fs::write(to.join("root.img"), &bytes[4..4100]).unwrap();
        std::fs::write(to.join("boot.img"), &bytes[4100..5000]).unwrap();
        Ok(())
    }
}

/// As many bytes as differ: enough to see which way is cheaper.
struct Difference;

impl Encoder for Difference {
    fn encode(
        &self,
        target: &[u8],
        sources: &[(&str, &[u8])],
        out: &mut dyn Write,
        _: &(dyn Fn(f32) + Sync),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let old: Vec<u8> = sources.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let changed: Vec<u8> = target
            .iter()
            .enumerate()
            .filter(|(at, byte)| at.checked_sub(4).and_then(|at| old.get(at)) != Some(byte))
            .map(|(_, byte)| *byte)
            .collect();
        out.write_all(&changed)?;
        Ok(())
    }
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag, 0x82];
    out.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
    out.extend(content);
    out
}

fn bundle(dir: &Path, version: &str) -> PathBuf {
    let manifest = format!(
        "[update]\ncompatible=rustiot-x\nversion={version}\n\n[bundle]\nformat=verity\n\n[image.root]\nfilename=root.img\n\n\
         [image.boot]\nfilename=boot.img\n\n[meta.rustiot]\nroot-hash={}\n",
        Digest::of(version.as_bytes())
    );
    let encapsulated = tlv(0x30, &[vec![0x06, 1, 0], tlv(0xa0, &tlv(0x04, manifest.as_bytes()))].concat());
    let signed = tlv(0x30, &[vec![0x02, 1, 3], vec![0x31, 0], encapsulated].concat());
    let cms = tlv(0x30, &[vec![0x06, 1, 0], tlv(0xa0, &signed)].concat());
    let mut images = vec![7u8; 4996];
    images[..version.len()].copy_from_slice(version.as_bytes());
    let bytes = [b"hsqs".to_vec(), images, cms.clone(), (cms.len() as u64).to_be_bytes().to_vec()].concat();
    let path = dir.join(format!("{version}.raucb"));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A repository, a web server that shows it, a device that looks.
struct World {
    dir: tempfile::TempDir,
    server: FileServer,
}

impl World {
    fn new(settings: Settings) -> World {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repository::init(&dir.path().join("repo"), settings, NOW).unwrap();
        drop(repo);
        std::fs::create_dir(dir.path().join("web")).unwrap();
        let server = FileServer::start(&dir.path().join("web")).unwrap();
        let world = World { dir, server };
        world.publish("1.0.0", NOW);
        world
    }

    fn simple() -> World {
        World::new(Settings::default())
    }

    fn repo(&self) -> Repository {
        Repository::open(&self.dir.path().join("repo")).unwrap()
    }

    fn publish(&self, version: &str, now: u64) {
        let bundle = bundle(self.dir.path(), version);
        self.repo().publish(&[bundle], Some("notes"), &Plain, &Difference, now, &|_, _| {}).unwrap();
        self.upload();
    }

    fn refresh(&self, now: u64) {
        self.repo().sign(now, true).unwrap();
        self.upload();
    }

    /// `rsync --delete`.
    fn upload(&self) {
        let web = self.dir.path().join("web");
        for sub in ["metadata", "targets"] {
            let _ = std::fs::remove_dir_all(web.join(sub));
            copy(&self.dir.path().join("repo/public").join(sub), &web.join(sub));
        }
    }

    fn web(&self, name: &str) -> PathBuf {
        self.dir.path().join("web").join(name)
    }

    fn metadata(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.web("metadata").join(name)).unwrap()
    }

    /// The whole of what the web server shows, to be shown again later.
    fn keep(&self, name: &str) {
        copy(&self.web(""), &self.dir.path().join(name));
    }

    fn show(&self, name: &str) {
        for sub in ["metadata", "targets"] {
            std::fs::remove_dir_all(self.web(sub)).unwrap();
            copy(&self.dir.path().join(name).join(sub), &self.web(sub));
        }
    }

    /// Makes snapshot and timestamp fit what the web server has, with their real keys.
    async fn fit(&self, roles: &[&str]) {
        for role in roles {
            let (below, ending) = match *role {
                "snapshot" => ("targets.json", ".snapshot.json"),
                _ => ("snapshot.json", "timestamp.json"),
            };
            let bytes = std::fs::read(newest(&self.web("metadata"), &format!(".{below}")).1).unwrap();
            let path = newest(&self.web("metadata"), ending).1;
            let old = std::fs::read(&path).unwrap();
            let new = match *role {
                "snapshot" => {
                    let mut signed: Signed<Snapshot> = serde_json::from_slice(&old).unwrap();
                    describe(signed.signed.meta.get_mut(below).unwrap(), &bytes);
                    self.signed(role, signed).await
                }
                _ => {
                    let mut signed: Signed<Timestamp> = serde_json::from_slice(&old).unwrap();
                    describe(signed.signed.meta.get_mut(below).unwrap(), &bytes);
                    self.signed(role, signed).await
                }
            };
            std::fs::write(path, new).unwrap();
        }
    }

    /// Signs with the key of `role` and with nothing else.
    async fn signed<T: Role + serde::Serialize>(&self, role: &str, mut signed: Signed<T>) -> Vec<u8> {
        let role = match role {
            "snapshot" => rustiot_repository::publish::RoleName::Snapshot,
            _ => rustiot_repository::publish::RoleName::Timestamp,
        };
        let key = self.repo().settings().keys_of(role).next().unwrap().key.clone();
        let key = self.dir.path().join("repo").join(key);
        let signer = rustiot_repository::publish::keys::KeyPlace::File(key).open().unwrap().unwrap();
        let message = signed.signed.canonical_form().unwrap();
        let sig = signer.sign(&message, &aws_lc_rs::rand::SystemRandom::new()).await.unwrap();
        let keyid = signer.tuf_key().key_id().unwrap();
        signed.signatures = vec![Signature { keyid, sig: sig.into() }];
        serde_json::to_vec(&signed).unwrap()
    }

    fn url(&self) -> Url {
        Url::parse(&format!("http://{}/", self.server.address())).unwrap()
    }

    fn client(&self) -> Client {
        Client::open(self.settings()).unwrap()
    }

    fn settings(&self) -> client::Settings {
        client::Settings {
            dir: self.dir.path().join("state"),
            root: std::fs::read(self.dir.path().join("repo/public/metadata/1.root.json")).unwrap(),
            urls: vec![self.url()],
            compatible: "rustiot-x".into(),
            built: BUILT,
            http: Http::new(&rustiot_http::Settings::default()).unwrap(),
        }
    }
}

/// Length and hash of a file that metadata names.
fn describe(meta: &mut Metafile, bytes: &[u8]) {
    meta.length = Some(bytes.len() as u64);
    meta.hashes.as_mut().unwrap().sha256 = Digest::of(bytes).bytes().to_vec().into();
}

/// Leaves one signature.
fn cut(path: &Path) {
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    value["signatures"].as_array_mut().unwrap().truncate(1);
    std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

/// The file of the highest version that ends so, and the version; 0 where names have none.
fn newest(dir: &Path, ending: &str) -> (u64, PathBuf) {
    let files = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let version = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(ending)?;
        if name.is_empty() { Some(0) } else { name.parse().ok() }
    };
    files.filter_map(|path| Some((version(&path)?, path))).max().unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
            // The server knows no ETag, and tells times in whole seconds.
            static SECONDS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1_600_000_000);
            let seconds = SECONDS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            std::fs::File::options().write(true).open(&to).unwrap().set_modified(time).unwrap();
        }
    }
}

fn right(now: u64) -> Clock {
    Clock { now, synchronised: true }
}

fn versions(checked: &Checked) -> Vec<String> {
    checked.index.releases.iter().map(|release| release.version.to_string()).collect()
}

async fn refused(client: &mut Client, clock: Clock) -> Error {
    client.check(clock).await.expect_err("it must be refused")
}

#[tokio::test]
async fn from_init_to_a_plan() {
    let world = World::simple();
    world.publish("1.1.0", NOW);
    world.publish("1.2.0", NOW);
    let checked = world.client().check(right(NOW)).await.unwrap();
    assert_eq!(versions(&checked), ["1.2.0", "1.1.0", "1.0.0"]);
    assert!(checked.changed && checked.doubt.is_none() && checked.unsaved.is_none());
    let old = checked.index.releases[2].manifest_hash;
    let facts = Facts {
        identity: "a".into(),
        compatible: "rustiot-x".into(),
        running: Running { version: "1.0.0".parse().ok(), manifest_hash: Some(old), root_hash: None },
        readable: true,
        now: checked.now,
        ..Facts::default()
    };
    let plan = plan(&checked.index, &facts).unwrap();
    assert_eq!(plan.version.to_string(), "1.2.0");
    assert_eq!(plan.ways.iter().map(|way| way.kind).collect::<Vec<_>>(), [WayKind::Delta, WayKind::Full]);
    // Every way is really there, with exactly the bytes that were signed.
    for way in &plan.ways {
        let client = world.client();
        let bytes = client.fetch(&way.file, 1 << 20).await.unwrap();
        assert_eq!((bytes.len() as u64, Digest::of(&bytes)), (way.file.len, way.file.sha256));
    }
}

#[tokio::test]
async fn when_nothing_is_new_one_small_request_tells_so() {
    let world = World::simple();
    let mut client = world.client();
    client.check(right(NOW)).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            client = world.client();
        }
        let (requests, bytes) = (world.server.requests(), world.server.bytes());
        let checked = client.check(right(NOW + 1)).await.unwrap();
        assert!(!checked.changed);
        assert_eq!(versions(&checked), ["1.0.0"]);
        assert_eq!(world.server.requests() - requests, 1);
        assert_eq!(world.server.bytes() - bytes, 0, "304 has no body");
    }
    // A new timestamp alone: the immutable rest comes from the disk; one request finds that there is no newer root.
    world.refresh(NOW + 60);
    let requests = world.server.requests();
    let checked = client.check(right(NOW + 61)).await.unwrap();
    assert!(checked.traffic.bytes < 2000, "{:?}", checked.traffic);
    assert_eq!(world.server.requests() - requests, 2);
}

#[tokio::test]
async fn a_roll_out_is_paused_and_halted_without_the_offline_keys() {
    let world = World::simple();
    world.publish("1.1.0", NOW);
    let mut client = world.client();
    client.check(right(NOW)).await.unwrap();
    for key in ["root-1", "targets-1"] {
        std::fs::remove_file(world.dir.path().join(format!("repo/keys/{key}.pem"))).unwrap();
    }
    let version = "1.1.0".parse().unwrap();
    world
        .repo()
        .change_rollout(
            "rustiot-x",
            &version,
            &|rollout| (rollout.state, rollout.reason) = (State::Halted, "too hot".into()),
            NOW + 5,
        )
        .unwrap();
    world.upload();
    let checked = client.check(right(NOW + 6)).await.unwrap();
    assert!(checked.changed);
    let facts = Facts {
        compatible: "rustiot-x".into(),
        running: Running { version: "1.0.0".parse().ok(), ..Running::default() },
        now: checked.now,
        ..Facts::default()
    };
    assert!(matches!(plan(&checked.index, &facts), Err(Refusal::Halted { .. })));
}

#[tokio::test]
async fn waves_are_set_and_a_pause_ends_by_resuming() {
    let world = World::simple();
    world.publish("1.1.0", NOW);
    let mut client = world.client();
    let version = "1.1.0".parse().unwrap();
    let change = |change: &dyn Fn(&mut rustiot_repository::Rollout), now| {
        world.repo().change_rollout("rustiot-x", &version, change, now).unwrap();
        world.upload();
    };
    let look = |checked: Checked| {
        let facts = Facts {
            compatible: "rustiot-x".into(),
            running: Running { version: "1.0.0".parse().ok(), ..Running::default() },
            readable: true,
            now: checked.now,
            ..Facts::default()
        };
        plan(&checked.index, &facts).map(|plan| plan.version.to_string())
    };
    assert_eq!(look(client.check(right(NOW)).await.unwrap()).unwrap(), "1.1.0");
    let waves = rustiot_repository::publish::parse_waves("100%+1d", NOW + 1).unwrap();
    change(&|rollout| rollout.waves = waves.clone(), NOW + 1);
    let told = look(client.check(right(NOW + 2)).await.unwrap());
    assert!(matches!(told, Err(Refusal::Later { .. })), "{told:?}");
    assert_eq!(look(client.check(right(NOW + 1 + DAY)).await.unwrap()).unwrap(), "1.1.0");
    change(&|rollout| rollout.state = State::Paused, NOW + DAY + 2);
    let told = look(client.check(right(NOW + DAY + 3)).await.unwrap());
    assert!(matches!(told, Err(Refusal::Paused { .. })), "{told:?}");
    // Resumed, it goes on with its waves.
    change(&|rollout| rollout.state = State::Running, NOW + DAY + 4);
    assert_eq!(look(client.check(right(NOW + DAY + 5)).await.unwrap()).unwrap(), "1.1.0");
    let missing = world.repo().change_rollout("rustiot-x", &"9.9.9".parse().unwrap(), &|_| {}, NOW);
    assert!(missing.unwrap_err().to_string().contains("no release 9.9.9"));
}

#[tokio::test]
async fn expired_metadata_is_refused_and_refreshed_metadata_is_taken() {
    let world = World::simple();
    let mut client = world.client();
    client.check(right(NOW)).await.unwrap();
    // The freeze attack: the same answer for ever.
    client.check(right(NOW + 13 * DAY)).await.unwrap();
    let error = refused(&mut client, right(NOW + 15 * DAY)).await;
    assert_eq!((error.kind(), error.is_verification()), ("expired", true));
    assert!(error.hint().contains("refresh"), "{}", error.hint());
    world.refresh(NOW + 15 * DAY);
    client.check(right(NOW + 15 * DAY)).await.unwrap();
    // A device that has never seen anything refuses it as well.
    std::fs::remove_dir_all(world.dir.path().join("state")).unwrap();
    assert_eq!(refused(&mut world.client(), right(NOW + 60 * DAY)).await.kind(), "expired");
}

#[tokio::test]
async fn an_old_repository_is_refused() {
    let world = World::simple();
    world.keep("old");
    world.publish("1.1.0", NOW);
    let mut client = world.client();
    client.check(right(NOW)).await.unwrap();
    world.show("old");
    let error = refused(&mut client, right(NOW)).await;
    assert!(matches!(error, Error::Rollback { .. }), "{error:?}");
    // And by a device that was restarted, and by one whose files are damaged, because the ledger stands.
    assert!(matches!(refused(&mut world.client(), right(NOW)).await, Error::Rollback { .. }));
    for name in ["timestamp.json", "snapshot.json", "targets.json", "root.json"] {
        let path = world.dir.path().join("state").join(name);
        if path.exists() {
            std::fs::write(path, b"torn").unwrap();
        }
    }
    assert!(matches!(refused(&mut world.client(), right(NOW)).await, Error::Rollback { .. }));
}

#[tokio::test]
async fn a_torn_datastore_heals_by_fetching_again() {
    let world = World::simple();
    world.publish("1.1.0", NOW);
    world.client().check(right(NOW)).await.unwrap();
    let state = world.dir.path().join("state");
    let files: Vec<PathBuf> = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 5, "{files:?}");
    let whole = world.dir.path().join("whole");
    copy(&state, &whole);
    for file in files {
        for damage in ["gone", "empty", "flipped"] {
            std::fs::remove_dir_all(&state).unwrap();
            copy(&whole, &state);
            match damage {
                "gone" => std::fs::remove_file(&file).unwrap(),
                "empty" => std::fs::write(&file, b"").unwrap(),
                _ => {
                    let mut bytes = std::fs::read(&file).unwrap();
                    for byte in bytes.iter_mut().take(200) {
                        *byte ^= 0x20;
                    }
                    std::fs::write(&file, bytes).unwrap();
                }
            }
            let checked = world.client().check(right(NOW)).await;
            let checked = checked.unwrap_or_else(|error| panic!("{} {damage}: {error:?}", file.display()));
            assert_eq!(versions(&checked), ["1.1.0", "1.0.0"]);
            // The damage is mended.
            assert_eq!(versions(&world.client().check(right(NOW)).await.unwrap()), ["1.1.0", "1.0.0"]);
        }
    }
}

#[tokio::test]
async fn pieces_of_two_states_are_refused() {
    let world = World::simple();
    world.keep("old");
    let old_targets = std::fs::read_dir(world.web("metadata")).unwrap().flatten();
    let old_targets: Vec<String> =
        old_targets.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    world.publish("1.1.0", NOW);
    // The newest targets metadata is replaced by the older one, both rightly signed.
    let newest = |suffix: &str| {
        let names = std::fs::read_dir(world.web("metadata")).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(suffix)).max().unwrap()
    };
    for suffix in [".targets.json", ".snapshot.json", ".rollout.json"] {
        let name = newest(suffix);
        let older = old_targets.iter().filter(|name| name.ends_with(suffix)).max().unwrap();
        let good = world.metadata(&name);
        std::fs::write(world.web("metadata").join(&name), world.metadata(older)).unwrap();
        let error = refused(&mut world.client(), right(NOW)).await;
        assert!(matches!(error, Error::Mismatch { .. } | Error::TooLarge { .. }), "{suffix}: {error:?}");
        std::fs::write(world.web("metadata").join(&name), good).unwrap();
    }
    // The same with an index.
    for entry in std::fs::read_dir(world.web("targets")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with("index.json") {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            *bytes.last_mut().unwrap() = b' ';
            std::fs::write(entry.path(), bytes).unwrap();
        }
    }
    assert!(matches!(refused(&mut world.client(), right(NOW)).await, Error::Mismatch { .. }));
}

#[tokio::test]
async fn a_wrong_signature_is_refused() {
    let world = World::simple();
    let stranger = World::simple();
    world.keep("ours");
    // The timestamp of somebody else's; then a snapshot of theirs that our timestamp names, as a thief of its key could.
    std::fs::write(world.web("metadata/timestamp.json"), stranger.metadata("timestamp.json")).unwrap();
    let error = refused(&mut world.client(), right(NOW)).await;
    assert!(matches!(&error, Error::Signature { role, .. } if role == "timestamp"), "{error:?}");
    world.show("ours");
    std::fs::write(world.web("metadata/2.snapshot.json"), stranger.metadata("2.snapshot.json")).unwrap();
    world.fit(&["timestamp"]).await;
    let error = refused(&mut world.client(), right(NOW)).await;
    assert!(matches!(&error, Error::Signature { role, .. } if role == "snapshot"), "{error:?}");
    // A whole repository of somebody else's.
    stranger.keep("theirs");
    copy(&stranger.dir.path().join("theirs"), &world.dir.path().join("theirs"));
    world.show("theirs");
    assert!(matches!(refused(&mut world.client(), right(NOW)).await, Error::Signature { .. }));
}

#[tokio::test]
async fn fewer_signatures_than_the_threshold_are_refused_and_enough_are_taken() {
    let mut settings = Settings::default();
    (settings.threshold.root, settings.threshold.targets) = (2, 2);
    let world = World::new(settings);
    let mut client = world.client();
    client.check(right(NOW)).await.unwrap();
    let repo = world.dir.path().join("repo");
    // With one key away the publisher waits.
    let (version, targets) = newest(&repo.join("public/metadata"), ".targets.json");
    cut(&targets);
    std::fs::rename(repo.join("keys/targets-2.pem"), world.dir.path().join("away.pem")).unwrap();
    let done = world.repo().sign(NOW + 1, true);
    assert!(done.is_err() || done.unwrap().waiting.contains_key("targets"));
    let value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(repo.join("work/staged.targets.json")).unwrap()).unwrap();
    assert_eq!(value["signatures"].as_array().unwrap().len(), 1);
    assert_eq!(value["signed"]["version"].as_u64().unwrap(), version + 1);
    // The second signature comes from another machine.
    let place = rustiot_repository::publish::keys::KeyPlace::File(world.dir.path().join("away.pem"));
    let done = world.repo().add_signatures(&[place], NOW + 2).unwrap();
    assert!(
        done.waiting.is_empty() && done.written.last().is_some_and(|name| name == "timestamp.json"),
        "{done:?}"
    );
    world.upload();
    client.check(right(NOW + 3)).await.unwrap();
    // What a thief of the online keys would serve: one of the two signatures is gone, snapshot and timestamp fit.
    let forget = || std::fs::remove_dir_all(world.dir.path().join("state")).unwrap();
    world.keep("good");
    world.fit(&["snapshot", "timestamp"]).await;
    forget();
    world.client().check(right(NOW + 3)).await.expect("what was made to fit is taken");
    cut(&newest(&world.web("metadata"), ".targets.json").1);
    world.fit(&["snapshot", "timestamp"]).await;
    forget();
    let error = refused(&mut world.client(), right(NOW + 3)).await;
    assert!(matches!(&error, Error::Signature { role, .. } if role == "targets"), "{error:?}");
    // The same for the next root: nothing names its length or hash, only signatures speak for it.
    world.show("good");
    let new = "keys/timestamp-new.pem";
    rustiot_repository::publish::keys::generate(&repo.join(new)).unwrap();
    let role = rustiot_repository::publish::RoleName::Timestamp;
    let place = rustiot_repository::publish::keys::KeyPlace::File(world.dir.path().join("away.pem"));
    std::fs::rename(world.dir.path().join("away.pem"), repo.join("keys/targets-2.pem")).unwrap();
    assert!(place.open().unwrap().is_none());
    let old = world.repo().settings().keys_of(role).next().unwrap().id.clone();
    world.repo().rotate(role, &[new.into()], &[old], NOW + 4).unwrap();
    world.upload();
    world.keep("rotated");
    cut(&newest(&world.web("metadata"), ".root.json").1);
    let error = refused(&mut world.client(), right(NOW + 4)).await;
    assert!(matches!(&error, Error::Signature { role, .. } if role == "root"), "{error:?}");
    world.show("rotated");
    assert_eq!(world.client().check(right(NOW + 4)).await.unwrap().versions.root, 2);
}

#[tokio::test]
async fn the_release_of_the_factory_gets_deltas_for_ever() {
    let settings =
        Settings { deltas: 1, releases: 3, factory: vec!["1.0.0".to_owned()], ..Settings::default() };
    let world = World::new(settings);
    for number in 1..=20 {
        world.publish(&format!("1.{number}.0"), NOW + number);
    }
    let checked = world.client().check(right(NOW + 30)).await.unwrap();
    assert_eq!(versions(&checked), ["1.20.0", "1.19.0", "1.18.0", "1.0.0"]);
    let newest = checked.index.releases.first().unwrap();
    let mut from: Vec<String> =
        newest.ways.iter().filter_map(|way| way.from_version.as_ref()).map(ToString::to_string).collect();
    from.sort();
    assert_eq!(from, ["1.0.0", "1.19.0"]);
}

#[tokio::test]
async fn every_key_can_be_rotated_and_devices_follow() {
    let world = World::simple();
    let mut client = world.client();
    client.check(right(NOW)).await.unwrap();
    for (number, role) in rustiot_repository::publish::RoleName::ALL.into_iter().enumerate() {
        let old = world.repo().settings().keys_of(role).next().unwrap().clone();
        let new = format!("keys/{}-new.pem", role.as_str());
        rustiot_repository::publish::keys::generate(&world.dir.path().join("repo").join(&new)).unwrap();
        let now = NOW + 10 + number as u64;
        let done = world.repo().rotate(role, &[new], std::slice::from_ref(&old.id), now).unwrap();
        assert!(done.waiting.is_empty(), "{role:?}: {done:?}");
        world.upload();
        let checked = client.check(right(now)).await.unwrap_or_else(|error| panic!("{role:?}: {error:?}"));
        assert_eq!(versions(&checked), ["1.0.0"]);
        // The old key is worth nothing any more.
        std::fs::remove_file(world.dir.path().join("repo").join(old.key)).unwrap();
    }
    assert_eq!(client.check(right(NOW + 20)).await.unwrap().versions.root, 5);
    // A device with the first root follows the chain.
    std::fs::remove_dir_all(world.dir.path().join("state")).unwrap();
    assert_eq!(world.client().check(right(NOW + 20)).await.unwrap().versions.root, 5);
    world.publish("1.1.0", NOW + 30);
    assert_eq!(versions(&client.check(right(NOW + 30)).await.unwrap()), ["1.1.0", "1.0.0"]);
}

#[tokio::test]
async fn a_root_that_the_old_keys_did_not_sign_is_refused() {
    let (world, stranger) = (World::simple(), World::simple());
    let new = "keys/root-new.pem";
    rustiot_repository::publish::keys::generate(&stranger.dir.path().join("repo").join(new)).unwrap();
    let old = stranger
        .repo()
        .settings()
        .keys_of(rustiot_repository::publish::RoleName::Root)
        .next()
        .unwrap()
        .id
        .clone();
    stranger.repo().rotate(rustiot_repository::publish::RoleName::Root, &[new.into()], &[old], NOW).unwrap();
    stranger.upload();
    std::fs::write(world.web("metadata/2.root.json"), stranger.metadata("2.root.json")).unwrap();
    let error = refused(&mut world.client(), right(NOW)).await;
    assert!(matches!(&error, Error::Signature { role, .. } if role == "root"), "{error:?}");
}

#[tokio::test]
async fn a_network_that_fails_at_the_right_moment_does_not_hide_a_new_root() {
    let world = World::simple();
    let mut client = world.client();
    client.check(right(NOW)).await.unwrap();
    world.refresh(NOW + 1);
    // `2.root.json` is a directory: the server answers with neither a file nor "not found".
    std::fs::create_dir(world.web("metadata/2.root.json")).unwrap();
    std::fs::write(world.web("metadata/2.root.json/index.html"), b"<html>").unwrap();
    let error = refused(&mut client, right(NOW + 1)).await;
    assert!(matches!(error, Error::Malformed { .. } | Error::Fetch { .. }), "{error:?}");
}

#[tokio::test]
async fn a_clock_at_1970_takes_what_is_fresh_and_refuses_what_is_older_than_the_image() {
    let world = World::simple();
    let epoch = Clock { now: 3, synchronised: false };
    let checked = world.client().check(epoch).await.unwrap();
    assert_eq!(checked.now, BUILT);
    assert!(matches!(checked.doubt, Some(Doubt::Behind { .. })));
    // What was accepted raises the floor.
    let checked = world.client().check(epoch).await.unwrap();
    assert_eq!(checked.now, NOW);
    // An image that was built after the metadata expired refuses it without any clock.
    let mut settings = world.settings();
    (settings.built, settings.dir) = (NOW + 15 * DAY, world.dir.path().join("later"));
    assert_eq!(refused(&mut Client::open(settings).unwrap(), epoch).await.kind(), "expired");
}

#[tokio::test]
async fn a_clock_far_ahead_does_not_lock_the_device_out() {
    let world = World::simple();
    let ahead = Clock { now: NOW + 70 * 365 * DAY, synchronised: false };
    let mut client = world.client();
    let checked = client.check(ahead).await.unwrap();
    assert_eq!((checked.now, checked.doubt), (NOW, Some(Doubt::Ahead)));
    // Nothing new: it cannot know whether the repository is frozen, and says that its clock is not to be trusted.
    let error = refused(&mut client, ahead).await;
    assert!(matches!(&error, Error::Expired { stale, .. } if !stale.certain), "{error:?}");
    assert!(error.hint().contains("clock"));
    // Something new is taken, and then the clock is set right.
    world.publish("1.1.0", NOW + DAY);
    assert_eq!(versions(&client.check(ahead).await.unwrap()).len(), 2);
    client.check(right(NOW + DAY)).await.unwrap();
}

#[tokio::test]
async fn endless_and_odd_answers_are_refused() {
    let world = World::simple();
    let good = world.metadata("timestamp.json");
    for (bytes, kinds) in [
        (vec![b' '; 1 << 20], ["unreachable", "oversized"]),
        (b"<html>Please log in".to_vec(), ["malformed", "malformed"]),
        (good[..good.len() / 2].to_vec(), ["malformed", "malformed"]),
        (Vec::new(), ["malformed", "malformed"]),
    ] {
        std::fs::write(world.web("metadata/timestamp.json"), bytes).unwrap();
        let error = refused(&mut world.client(), right(NOW)).await;
        assert!(kinds.contains(&error.kind()), "{error:?}");
    }
    std::fs::remove_file(world.web("metadata/timestamp.json")).unwrap();
    assert_eq!(refused(&mut world.client(), right(NOW)).await.kind(), "unreachable");
    world.server.set_faults(Faults { status: Some(503), ..Faults::default() });
    let error = refused(&mut world.client(), right(NOW)).await;
    assert_eq!((error.kind(), error.is_verification()), ("unreachable", false));
}

#[tokio::test]
async fn no_file_is_read_beyond_its_limit() {
    let world = World::simple();
    // Blanks at the end change nothing of what was signed: a root is refused for its length alone.
    let mut repo = world.repo();
    repo.rotate(rustiot_repository::publish::RoleName::Root, &[], &[], NOW + 1).unwrap();
    world.upload();
    let find = |dir: &str, suffix: &str| {
        let names = std::fs::read_dir(world.web(dir)).unwrap().flatten().map(|entry| entry.path());
        names.filter(|path| path.to_string_lossy().ends_with(suffix)).max().unwrap()
    };
    world.client().check(right(NOW + 1)).await.unwrap();
    for (dir, suffix) in [
        ("metadata", "2.root.json"),
        ("metadata", "snapshot.json"),
        ("metadata", ".targets.json"),
        ("targets", ".index.json"),
    ] {
        std::fs::remove_dir_all(world.dir.path().join("state")).unwrap();
        let path = find(dir, suffix);
        let good = std::fs::read(&path).unwrap();
        let mut long = good.clone();
        long.resize(8 << 20, b' ');
        std::fs::write(&path, long).unwrap();
        let error = refused(&mut world.client(), right(NOW + 1)).await;
        let text = format!("{error:?}");
        assert!(text.contains("TooLarge") || error.kind() == "oversized", "{suffix}: {text}");
        std::fs::write(&path, good).unwrap();
        world.client().check(right(NOW + 1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_mirror_that_is_down_or_lies_is_passed_over() {
    let world = World::simple();
    world.keep("old");
    world.publish("1.1.0", NOW);
    let stale = FileServer::start(&world.dir.path().join("old")).unwrap();
    let mut settings = world.settings();
    let stale = Url::parse(&format!("http://{}/", stale.address())).unwrap();
    settings.urls = vec![Url::parse("http://127.0.0.1:9/").unwrap(), world.url(), stale];
    let mut client = Client::open(settings).unwrap();
    assert_eq!(client.check(right(NOW)).await.unwrap().url, world.url());
    let file = &client.last().await.unwrap().releases[0].ways[0].file;
    assert_eq!(client.urls(file).len(), 3);
}

#[tokio::test]
async fn a_mirror_without_a_name_or_that_drips_holds_nobody_up() {
    let world = World::simple();
    let dripping = Server::start(world.metadata("timestamp.json")).await;
    let patience = std::time::Duration::from_millis(300);
    let http = rustiot_http::Settings { idle_timeout: patience, ..rustiot_http::Settings::default() };
    let at_root = |url: &Url| url.join("/").unwrap();
    for fault in [Fault::Drip(1, patience / 15), Fault::DripHead(patience / 15), Fault::Silent] {
        dripping.set(fault.clone());
        let mut settings = world.settings();
        settings.http = Http::new(&http).unwrap();
        settings.urls =
            vec![Url::parse("http://no-such-name.invalid/").unwrap(), at_root(&dripping.url()), world.url()];
        let asked = dripping.requests().len();
        let mut client = Client::open(settings).unwrap();
        let checked = tokio::time::timeout(patience * 100, client.check(right(NOW))).await;
        assert_eq!(checked.expect("it hangs").unwrap().url, world.url(), "{fault:?}");
        assert!(dripping.requests().len() > asked, "{fault:?}: it was not asked");
    }
}

#[tokio::test]
async fn the_same_files_on_a_stick_are_the_same_repository() {
    let world = World::simple();
    let mut settings = world.settings();
    settings.urls = vec![Url::from_directory_path(world.web("")).unwrap()];
    let mut client = Client::open(settings).unwrap();
    assert_eq!(versions(&client.check(right(NOW)).await.unwrap()), ["1.0.0"]);
    assert!(!client.check(right(NOW)).await.unwrap().changed);
}

#[tokio::test]
async fn a_board_that_the_repository_does_not_know_is_told_so() {
    let world = World::simple();
    let mut settings = world.settings();
    settings.compatible = "rustiot-y".into();
    let error = refused(&mut Client::open(settings).unwrap(), right(NOW)).await;
    assert_eq!(error.kind(), "no-index");
}

#[test]
fn publishing_twice_changes_nothing_and_a_cut_run_is_finished_by_the_next() {
    let world = World::simple();
    let list = || {
        let mut all: Vec<(String, Vec<u8>)> = ["metadata", "targets"]
            .iter()
            .flat_map(|sub| {
                std::fs::read_dir(world.dir.path().join("repo/public").join(sub)).unwrap().flatten()
            })
            .map(|entry| {
                (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())
            })
            .collect();
        all.sort();
        all
    };
    world.publish("1.1.0", NOW);
    let before = list();
    world.publish("1.1.0", NOW + 60);
    assert_eq!(list(), before);

    /// Gives up at its n-th file.
    struct Cut(std::cell::Cell<u32>);
    impl Encoder for Cut {
        fn encode(
            &self,
            target: &[u8],
            sources: &[(&str, &[u8])],
            out: &mut dyn Write,
            progress: &(dyn Fn(f32) + Sync),
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let left = self.0.get();
            self.0.set(left.saturating_sub(1));
            if left == 0 { Err("cut".into()) } else { Difference.encode(target, sources, out, progress) }
        }
    }
    let path = bundle(world.dir.path(), "1.2.0");
    for cut in 0..3 {
        let encoder = Cut(std::cell::Cell::new(cut.min(1)));
        let result =
            world.repo().publish(std::slice::from_ref(&path), None, &Plain, &encoder, NOW + 90, &|_, _| {});
        assert!(result.is_err(), "cut {cut}");
        // What is published is still the old state.
        let after: Vec<_> = list().into_iter().filter(|(name, _)| name.ends_with("timestamp.json")).collect();
        assert!(before.contains(&after[0]));
        if cut == 2 {
            break;
        }
    }
    world.publish("1.2.0", NOW + 100);
    let index = world.repo().index("rustiot-x").unwrap();
    assert_eq!(index.releases[0].ways.len(), 3, "full, from 1.1.0, from 1.0.0");
}

#[test]
fn a_bundle_that_is_none_is_refused_before_anything_is_written() {
    let world = World::simple();
    let path = world.dir.path().join("x.raucb");
    for (bytes, words) in [
        (b"PK\x03\x04 and so on, longer than eight bytes".to_vec(), "squashfs"),
        ([b"hsqs".to_vec(), vec![0; 100]].concat(), "signature"),
        ([b"hsqs".to_vec(), vec![0xff; 100]].concat(), "signature"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = world
            .repo()
            .publish(std::slice::from_ref(&path), None, &Plain, &Difference, NOW, &|_, _| {})
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    // The same version with other contents.
    let other = bundle(world.dir.path(), "1.0.0");
    let mut bytes = std::fs::read(&other).unwrap();
    let at = bytes.windows(9).position(|w| w == b"root-hash").unwrap();
    bytes[at + 10] = if bytes[at + 10] == b'0' { b'1' } else { b'0' };
    std::fs::write(&other, bytes).unwrap();
    let error = world.repo().publish(&[other], None, &Plain, &Difference, NOW, &|_, _| {}).unwrap_err();
    assert!(error.to_string().contains("version is given once"), "{error}");
    // A forged one.
    let forged = bundle(world.dir.path(), "2.0.0");
    let mut bytes = std::fs::read(&forged).unwrap();
    bytes[10..16].copy_from_slice(b"forged");
    std::fs::write(&forged, bytes).unwrap();
    let error = world.repo().publish(&[forged], None, &Plain, &Difference, NOW, &|_, _| {}).unwrap_err();
    assert!(error.to_string().contains("signature is refused"), "{error}");
}

/// The SPDX document of `bundle`, in the form of Yocto's.
fn spdx(bundle: &Path, packages: &[(&str, &str)]) {
    let package = |(name, version): &(&str, &str)| {
        serde_json::json!({"type": "software_Package", "name": name, "software_packageVersion": version,
                           "software_primaryPurpose": "install"})
    };
    let graph: Vec<_> = packages.iter().map(package).collect();
    let document =
        serde_json::json!({"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": graph});
    std::fs::write(bundle.with_extension("spdx.json"), document.to_string()).unwrap();
}

#[test]
fn what_is_in_a_release_is_published_with_what_differs_from_those_that_a_delta_starts_from() {
    let world = World::simple();
    let publish = |path: &PathBuf, now| {
        let repo = world.repo();
        let result = repo.publish(std::slice::from_ref(path), None, &Plain, &Difference, now, &|_, _| {});
        result.map(|(mut published, signing)| (published.remove(0), signing))
    };
    // 1.0.0 is published without a list: nothing to compare with.
    let first = bundle(world.dir.path(), "1.0.0");
    let second = bundle(world.dir.path(), "1.1.0");
    spdx(&second, &[("openssl", "3.5.1"), ("zlib", "1.3"), ("old", "1")]);
    let (told, _) = publish(&second, NOW + 1).unwrap();
    let contents = told.contents.unwrap();
    assert_eq!((contents.packages, contents.differences.len()), (3, 0));
    // It gets one later.
    spdx(&first, &[("openssl", "3.5.0"), ("zlib", "1.3")]);
    let (told, _) = publish(&first, NOW + 2).unwrap();
    assert!(told.known && told.contents.unwrap().packages == 2);

    let third = bundle(world.dir.path(), "1.2.0");
    spdx(&third, &[("openssl", "3.5.4"), ("zlib", "1.3"), ("new", "2")]);
    let (told, signing) = publish(&third, NOW + 3).unwrap();
    assert!(signing.written.iter().any(|name| name.ends_with("targets.json")), "{signing:?}");
    let contents = told.contents.unwrap();
    let told: Vec<String> = contents
        .differences
        .iter()
        .map(|d| {
            let changed: Vec<_> =
                d.changed.iter().map(|c| format!("{} {}>{}", c.name, c.from, c.to)).collect();
            let names = |list: &[rustiot_repository::publish::sbom::Package]| {
                list.iter().map(|p| p.name.clone()).collect::<Vec<_>>().join(" ")
            };
            format!("{}: {} +{} -{}", d.from_version, changed.join(" "), names(&d.added), names(&d.removed))
        })
        .collect();
    assert_eq!(told, ["1.1.0: openssl 3.5.1>3.5.4 +new -old", "1.0.0: openssl 3.5.0>3.5.4 +new -"]);

    // The index names the details, the details the document; names are hashes of contents.
    let index = world.repo().index("rustiot-x").unwrap();
    let details = index.releases[0].details.clone().unwrap();
    let read = |file: &rustiot_repository::File| {
        let bytes = std::fs::read(world.dir.path().join("repo/public/targets").join(file.path())).unwrap();
        assert_eq!((Digest::of(&bytes), bytes.len() as u64), (file.sha256, file.len));
        bytes
    };
    let details: rustiot_repository::publish::sbom::Details =
        serde_json::from_slice(&read(&details)).unwrap();
    assert_eq!((details.format, details.packages.len()), (1, 3));
    assert_eq!(read(&details.sbom), std::fs::read(world.dir.path().join("1.2.0.spdx.json")).unwrap());

    // Once more: nothing is written. Without the document, what is published stays.
    assert!(publish(&third, NOW + 4).unwrap().1.written.is_empty());
    std::fs::remove_file(world.dir.path().join("1.2.0.spdx.json")).unwrap();
    let (told, signing) = publish(&third, NOW + 5).unwrap();
    assert!(signing.written.is_empty());
    assert_eq!(told.contents.unwrap(), contents);
}

#[test]
fn a_damaged_package_list_is_refused_before_anything_is_published() {
    let world = World::simple();
    let path = bundle(world.dir.path(), "1.1.0");
    let publish =
        || world.repo().publish(std::slice::from_ref(&path), None, &Plain, &Difference, NOW, &|_, _| {});
    std::fs::write(path.with_extension("spdx.json"), r#"{"spdxVersion": "SPDX-2.3"}"#).unwrap();
    let error = publish().unwrap_err().to_string();
    for words in ["1.1.0.spdx.json: ", "SPDX-2.3", "remove the file"] {
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(world.repo().index("rustiot-x").unwrap().releases.len(), 1);

    // A list of an older release that was damaged afterwards.
    spdx(&path, &[("a", "1")]);
    publish().unwrap();
    let details = world.repo().index("rustiot-x").unwrap().releases[0].details.clone().unwrap();
    let details = world.dir.path().join("repo/public/targets").join(details.path());
    std::fs::write(&details, "{}").unwrap();
    let newer = bundle(world.dir.path(), "1.2.0");
    spdx(&newer, &[("a", "2")]);
    let again =
        || world.repo().publish(std::slice::from_ref(&newer), None, &Plain, &Difference, NOW, &|_, _| {});
    let error = again().unwrap_err().to_string();
    assert!(error.contains("details.json: it is damaged") && error.contains("remove it"), "{error}");
    std::fs::remove_file(&details).unwrap();
    publish().unwrap();
    assert_eq!(again().unwrap().0[0].contents.as_ref().unwrap().differences[0].changed.len(), 1);
}
