//! `rustiot rollout` as people type it, on a repository on the disk; and after each change what a device does, by the
//! client and the plan that devices have.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "files of tests, where a lost one is made again")]

use rustiot_http::{Http, Url};
use rustiot_repository::client::{self, Client};
use rustiot_repository::publish::sample::{self, Sample};
use rustiot_repository::publish::{Rdelta, Repository};
use rustiot_repository::time::Clock;
use rustiot_repository::{Digest, Facts, Plan, Refusal, Running, Wanted, place, plan};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

const BOARD: &str = "rustiot-x";
const DAY: u64 = 24 * 3600;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A device that runs 1.0.0.
struct Device {
    identity: String,
    labels: Vec<String>,
    /// A person at it asks for 1.1.0.
    wanted: Option<Wanted>,
}

impl Device {
    fn asked(self, force: bool) -> Device {
        Device { wanted: Some(Wanted { version: "1.1.0".parse().ok(), force }), ..self }
    }
}

/// A directory with a repository in it.
struct World(tempfile::TempDir);

impl World {
    /// A repository with the releases 1.0.0 and 1.1.0.
    fn new() -> World {
        let world = World::empty();
        world.publish(BOARD, "1.0.0");
        world.publish(BOARD, "1.1.0");
        world
    }

    fn empty() -> World {
        let world = World(tempfile::tempdir().unwrap());
        world.done(&["repo", "init"]);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn repository(&self) -> Repository {
        Repository::open(&self.path("repo")).unwrap()
    }

    /// `rustiot publish` without RAUC, which would check a signature that these bundles do not have.
    fn publish(&self, board: &str, version: &str) {
        let path = self.path(&format!("{board}-{version}.raucb"));
        std::fs::write(&path, sample::bundle(board, version)).unwrap();
        self.repository().publish(&[path], None, &Sample, &Rdelta, now(), &|_, _| {}).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rustiot-cli"));
        command.args(args).arg("--repo").arg(self.path("repo")).current_dir(self.0.path());
        command.env_clear().env("PATH", "/nonexistent").output().unwrap()
    }

    /// The one JSON document of a command that must succeed.
    #[track_caller]
    fn done(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A command that must end with `code` and say all `words`, with `--json` as without, and change nothing.
    #[track_caller]
    fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let before = self.files();
        for json in [&[][..], &["--json"]] {
            let output = self.run(&[args, json].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
            assert!(output.stdout.is_empty(), "{args:?}: an error is no document");
            for word in words {
                assert!(said.contains(word), "{args:?}: no `{word}` in: {said}");
            }
        }
        assert!(self.files() == before, "{args:?} changed something");
    }

    /// All files of the repository.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![self.path("repo")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => dirs.push(path),
                    false => drop(files.insert(path.clone(), std::fs::read(path).unwrap())),
                }
            }
        }
        files
    }

    fn hash(&self, version: &str) -> Digest {
        let index = self.repository().index(BOARD).unwrap();
        index.releases.iter().find(|release| release.version.to_string() == version).unwrap().manifest_hash
    }

    /// A device whose place in 1.1.0 is one of these.
    fn device(&self, places: Range<u32>, labels: &[&str]) -> Device {
        let hash = self.hash("1.1.0");
        let identity =
            (0..).map(|n| format!("{n:032x}")).find(|id| places.contains(&place(id, &hash))).unwrap();
        Device { identity, labels: labels.iter().map(|label| (*label).to_owned()).collect(), wanted: None }
    }

    /// What the device does at a time, when it has looked at what is published now. It remembers what it has seen.
    fn look(&self, device: &Device, at: u64) -> Result<Plan, Refusal> {
        let public = self.path("repo/public");
        let settings = client::Settings {
            dir: self.path(&format!("device-{}", device.identity)),
            root: std::fs::read(public.join("metadata/1.root.json")).unwrap(),
            urls: vec![Url::from_directory_path(&public).unwrap()],
            compatible: BOARD.into(),
            built: 0,
            http: Http::new(&rustiot_http::Settings::default()).unwrap(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut client = Client::open(settings).unwrap();
        let checked = runtime.block_on(client.check(Clock { now: at, synchronised: true })).unwrap();
        let facts = Facts {
            identity: device.identity.clone(),
            compatible: BOARD.into(),
            labels: device.labels.iter().cloned().collect(),
            running: Running {
                version: "1.0.0".parse().ok(),
                manifest_hash: Some(self.hash("1.0.0")),
                root_hash: None,
            },
            readable: true,
            now: checked.now,
            wanted: device.wanted.clone(),
            ..Facts::default()
        };
        plan(&checked.index, &facts)
    }

    /// The same in a word: the wave that lets it, or the refusal.
    fn told(&self, device: &Device, at: u64) -> String {
        match self.look(device, at) {
            Ok(plan) => format!("{} by {}", plan.version, plan.wave.as_deref().unwrap_or("a person")),
            Err(Refusal::Later { time, wave, .. }) => format!("{wave} from {time}"),
            Err(refusal) => refusal.kind().to_owned(),
        }
    }
}

fn not_before(told: &Value, wave: usize) -> u64 {
    told["rollout"]["waves"][wave]["not_before"].as_u64().unwrap()
}

#[test]
fn a_device_takes_a_release_in_its_wave_and_not_before() {
    let world = World::new();
    let devices = [world.device(0..50, &[]), world.device(50..500, &[]), world.device(500..1000, &[])];
    let [early, middle, late] = &devices;
    for device in &devices {
        assert_eq!(world.told(device, now()), "1.1.0 by everyone", "before the waves are set");
    }
    let began = now();
    let set = world.done(&["rollout", "set", "1.1.0", "canary:100%,5%+1d,50%+2d,100%+3d"]);
    let took = now() - began;
    assert_eq!((set["compatible"].as_str(), set["version"].as_str()), (Some(BOARD), Some("1.1.0")));
    for (wave, days) in [(1, 1), (2, 2), (3, 3)] {
        let due = began + days * DAY;
        assert!((due..=due + took).contains(&not_before(&set, wave)), "{set}");
    }
    for (device, wave, name) in [(early, 1, "5%+1d"), (middle, 2, "50%+2d"), (late, 3, "100%+3d")] {
        let opens = not_before(&set, wave);
        for at in [now(), opens - 1] {
            assert_eq!(world.told(device, at), format!("{name} from {opens}"));
        }
        assert_eq!(world.told(device, opens), format!("1.1.0 by {name}"));
    }
    // A label goes before all, wherever its device stands; another one does not.
    let canary = world.device(900..1000, &["lab", "canary"]);
    assert_eq!(world.told(&canary, now()), "1.1.0 by canary:100%");
    let other = world.device(900..1000, &["canary-2"]);
    assert_eq!(world.told(&other, now()), format!("100%+3d from {}", not_before(&set, 3)));
    // A label that nobody carries holds nobody, at no time.
    world.done(&["rollout", "set", "1.1.0", "canray:100%,5%"]);
    assert_eq!(world.told(early, now()), "1.1.0 by 5%");
    for device in [&canary, middle, late] {
        assert_eq!(world.told(device, now() + 10 * DAY), "not-yet");
    }
}

#[test]
fn a_pause_holds_everyone_and_resuming_goes_on_by_the_same_waves() {
    let world = World::new();
    let (canary, late) = (world.device(500..1000, &["canary"]), world.device(500..1000, &[]));
    let set = world.done(&["rollout", "set", "1.1.0", "canary:100%,100%+3d"]);
    let opens = not_before(&set, 1);
    let paused = world.done(&["rollout", "pause", "1.1.0", "--reason", "a look at the reports"]);
    assert_eq!(paused["rollout"]["waves"], set["rollout"]["waves"]);
    for device in [&canary, &late] {
        for at in [now(), opens] {
            assert_eq!(world.told(device, at), "paused");
        }
    }
    let refusal = world.look(&canary, now()).unwrap_err().to_string();
    assert!(refusal.ends_with("paused: a look at the reports"), "{refusal}");
    assert_eq!(world.told(&world.device(0..1000, &[]).asked(false), now()), "1.1.0 by a person");

    // Other waves end no pause.
    let set = world.done(&["rollout", "set", "1.1.0", "canary:100%,50%,100%+5d"]);
    assert_eq!(set["rollout"]["state"], "paused");
    assert_eq!(world.told(&canary, now()), "paused");
    let resumed = world.done(&["rollout", "resume", "1.1.0"]);
    assert_eq!(resumed["rollout"]["reason"], Value::Null);
    assert_eq!(world.told(&canary, now()), "1.1.0 by canary:100%");
    let opens = not_before(&set, 2);
    assert_eq!(world.told(&late, now()), format!("100%+5d from {opens}"));
    assert_eq!(world.told(&late, opens), "1.1.0 by 100%+5d");
}

#[test]
fn what_is_withdrawn_is_started_nowhere_and_the_release_before_it_is_offered() {
    let world = World::new();
    let device = world.device(0..1000, &[]);
    world.done(&["rollout", "halt", "1.1.0", "--reason", "eats batteries"]);
    let refusal = world.look(&device, now()).unwrap_err();
    assert_eq!(refusal.to_string(), "1.1.0 has been withdrawn: eats batteries");
    assert_eq!(world.told(&world.device(0..1000, &[]).asked(false), now() + 30 * 60), "halted");
    assert_eq!(world.told(&world.device(0..1000, &[]).asked(true), now()), "1.1.0 by a person");
    // Each release has a roll-out of its own.
    world.publish(BOARD, "1.2.0");
    world.publish(BOARD, "1.0.5");
    assert_eq!(world.told(&device, now()), "1.2.0 by everyone");
    world.done(&["rollout", "halt", "1.2.0"]);
    assert_eq!(world.told(&device, now()), "1.0.5 by everyone");
    world.done(&["rollout", "pause", "1.0.5"]);
    assert_eq!(world.told(&device, now()), "halted", "of several refusals the newest release's");
    // Taken back: it is a state like others.
    world.done(&["rollout", "resume", "1.2.0"]);
    assert_eq!(world.told(&device, now()), "1.2.0 by everyone");
}

#[test]
fn the_same_command_twice_writes_nothing_and_each_writes_only_what_the_roll_out_is_in() {
    let world = World::new();
    let offline: Vec<_> = world.files().into_iter().filter(|(path, _)| is_offline(path)).collect();
    assert_eq!(
        offline.len(),
        6,
        "a root, an index after each release, and what names them from the first on"
    );
    for command in [
        &["rollout", "set", "1.1.0", "canary:100%,5%"][..],
        &["rollout", "pause", "1.1.0", "--reason", "wait"],
        &["rollout", "halt", "1.1.0"],
        &["rollout", "resume", "1.1.0"],
    ] {
        let before = world.files();
        let first = world.done(command);
        let written = first["signing"]["written"].as_array().unwrap();
        let kinds: Vec<_> = written.iter().map(|name| name.as_str().unwrap().rsplit('.').nth(1)).collect();
        assert_eq!(kinds, [Some("rollout"), Some("snapshot"), Some("timestamp")], "{command:?}: {first}");
        assert_eq!(first["signing"]["waiting"], serde_json::json!({}));
        // Beside the timestamp nothing that was published changes: what is cached on the way stays true.
        let after = world.files();
        let public = before.iter().filter(|(path, _)| path.starts_with(world.path("repo/public")));
        let changed: Vec<_> = public.filter(|(path, bytes)| after.get(*path) != Some(bytes)).collect();
        assert!(changed.iter().all(|(path, _)| path.ends_with("metadata/timestamp.json")), "{command:?}");
        let second = world.done(command);
        assert_eq!(second["rollout"], first["rollout"]);
        assert_eq!(second["signing"]["written"], serde_json::json!([]), "{command:?}");
        assert!(world.files() == after, "{command:?} wrote the second time");
    }
    let now: Vec<_> = world.files().into_iter().filter(|(path, _)| is_offline(path)).collect();
    assert!(now == offline, "what offline keys sign was touched");
}

/// What root and targets keys sign.
fn is_offline(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/public/")
        && [".root.json", ".targets.json", ".index.json"].iter().any(|ending| text.ends_with(ending))
}

#[test]
fn wrong_requests_are_refused_by_what_is_wrong_and_change_nothing() {
    let world = World::new();
    let set = |waves: &'static str| ["rollout", "set", "1.1.0", waves];
    for (waves, words) in [
        ("5%,0%", "\"0%\" holds no device"),
        ("0.04%", "\"0.04%\" holds no device"),
        ("120%", "\"120%\" is no share of all devices"),
        ("-5%", "'-5'"),
        ("canary:5", "\"canary:5\" is no wave"),
        ("canary;100%", "\"canary;100%\" is no wave"),
        ("canary :100%", "\"canary\" is no wave"),
        ("canäry:100%", "no device can carry the label \"canäry\""),
        ("5%+tomorrow", "\"5%+tomorrow\" is no wave"),
        ("", "no wave is named"),
    ] {
        world.refused(&set(waves), 2, &[words]);
    }
    let many = ["1%"; 33].join(",");
    world.refused(&["rollout", "set", "1.1.0", &many], 2, &["roll-out of 1.1.0: too many waves"]);
    let long = "x".repeat(5000);
    for change in ["pause", "halt"] {
        world.refused(&["rollout", change, "1.1.0", "--reason", &long], 2, &["the reason is too long"]);
    }
    for change in ["pause", "halt", "resume"] {
        world.refused(&["rollout", change, "tuesday"], 2, &["\"tuesday\" is no version"]);
        world.refused(
            &["rollout", change, "9.9.9"],
            3,
            &["no release 9.9.9 for rustiot-x", "rustiot rollout"],
        );
        world.refused(&["rollout", change, "1.1.0", "--board", "toaster"], 3, &["for toaster"]);
        world.refused(&["rollout", change], 2, &["<VERSION>"]);
    }
    world.refused(&["rollout", "set", "9.9.9", "5%"], 3, &["no release 9.9.9"]);
    world.refused(&["rollout", "set", "1.1.0"], 2, &["<WAVES>"]);
    world.refused(&["rollout", "resume", "1.1.0", "--reason", "why not"], 2, &["--reason"]);
    world.refused(&["rollout", "stop", "1.1.0"], 2, &["'stop'"]);

    let held = world.repository();
    world.refused(&["rollout", "pause", "1.1.0"], 4, &["somebody else is at work", "wait"]);
    drop(held);
    world.publish("rustiot-y", "1.1.0");
    world.refused(&["rollout", "pause", "1.1.0"], 2, &["--board", "rustiot-x, rustiot-y"]);
    world.done(&["rollout", "pause", "1.1.0", "--board", "rustiot-y"]);
    assert_eq!(world.told(&world.device(0..1000, &[]), now()), "1.1.0 by everyone", "the other board's");
}

#[test]
fn without_a_repository_or_a_release_it_says_what_comes_first() {
    let world = World::empty();
    world.refused(&["rollout", "pause", "1.1.0"], 3, &["nothing is published yet", "rustiot publish"]);
    assert_eq!(world.done(&["rollout"]), serde_json::json!([]));
    let shown = world.run(&["rollout"]);
    assert!(shown.status.success() && shown.stdout.is_empty());
    assert!(String::from_utf8_lossy(&shown.stderr).contains("nothing is published yet: rustiot publish"));
    std::fs::remove_dir_all(world.path("repo")).unwrap();
    std::fs::create_dir(world.path("repo")).unwrap();
    world.refused(&["rollout", "pause", "1.1.0"], 3, &["repo.toml is not there", "rustiot repo init"]);
    world.refused(&["rollout"], 3, &["repo.toml is not there"]);
}

#[test]
fn a_roll_out_needs_no_offline_key() {
    let world = World::new();
    for key in ["root-1.pem", "targets-1.pem"] {
        std::fs::remove_file(world.path("repo/keys").join(key)).unwrap();
    }
    let device = world.device(0..1000, &[]);
    for (command, told) in [("pause", "paused"), ("halt", "halted"), ("resume", "1.1.0 by everyone")] {
        world.done(&["rollout", command, "1.1.0"]);
        assert_eq!(world.told(&device, now()), told);
    }
}

#[test]
fn a_missing_key_holds_the_change_back_and_the_same_command_ends_it_when_the_key_is_there() {
    let world = World::new();
    let device = world.device(0..1000, &[]);
    for role in ["rollout", "snapshot", "timestamp"] {
        let (key, away) = (world.path(&format!("repo/keys/{role}-1.pem")), world.path("away.pem"));
        std::fs::rename(&key, &away).unwrap();
        for _ in 0..2 {
            let output = world.run(&["rollout", "pause", "1.1.0", "--json"]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{said}");
            assert!(
                output.stdout.is_empty() && said.contains(&format!("no {role} key is at hand")),
                "{said}"
            );
            // Whatever was written already fits together: devices go on by what was published before.
            assert_eq!(world.told(&device, now()), "1.1.0 by everyone", "{role}");
        }
        std::fs::write(&key, "no key").unwrap();
        let output = world.run(&["rollout", "pause", "1.1.0"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("{role}-1.pem")), "{said}");
        std::fs::rename(&away, &key).unwrap();
        let done = world.done(&["rollout", "pause", "1.1.0"]);
        assert_eq!(world.told(&device, now()), "paused", "{role}: {done}");
        world.done(&["rollout", "resume", "1.1.0"]);
    }
}

#[test]
fn alone_it_shows_who_gets_what_and_when() {
    let world = World::new();
    world.done(&["rollout", "set", "1.1.0", "canary|lab:100%,0.5%+90m,100%+3d"]);
    world.done(&["rollout", "pause", "1.1.0", "--reason", "wait"]);
    let list = world.done(&["rollout"]);
    let told: Vec<_> =
        list.as_array().unwrap().iter().map(|r| (&r["version"], &r["rollout"]["state"])).collect();
    assert_eq!(told, [(&"1.1.0".into(), &"paused".into()), (&"1.0.0".into(), &"running".into())]);
    assert_eq!(list[0]["rollout"]["waves"][1]["permille"], 5);
    let output = world.run(&["rollout"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let wanted = [
        "rustiot-x",
        "  1.1.0        paused (wait)",
        "    100.0 % of canary, lab: open",
        "      0.5 %: opens in 2 h",
        "    100.0 %: opens in 72 h",
        "  1.0.0        running",
        "    100.0 %: open",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
}
