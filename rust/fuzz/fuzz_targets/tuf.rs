//! A repository in the hands of somebody without its keys: whatever he does to a file of it, the device's client
//! believes what was signed or nothing.
//!
//! The repository is made when the process starts. The input is an edit: which file, where (two bytes), how many bytes
//! go (two bytes), then what comes in their place. A file number beyond the last one makes a new root.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustiot_http::{Http, Url};
use rustiot_repository::client::{Client, Settings, Versions};
use rustiot_repository::index::FORMAT;
use rustiot_repository::publish::{self, Repository};
use rustiot_repository::time::Clock;
use rustiot_repository::{Index, Rollouts};

const NOW: u64 = 1_800_000_000;
const BOARD: &str = "rustiot-x";

struct World {
    dir: tempfile::TempDir,
    /// Names below `public/`, with what is in them.
    files: Vec<(PathBuf, Vec<u8>)>,
    root: Vec<u8>,
    http: Http,
    runtime: tokio::runtime::Runtime,
    honest: (Index, Versions),
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let repository =
        Repository::init(&dir.path().join("repo"), publish::Settings::default(), NOW).expect("keys");
    let index = Index { format: FORMAT, compatible: BOARD.into(), published: NOW, releases: Vec::new() };
    repository.set_index(&index).expect("an index");
    let rollouts = Rollouts { format: FORMAT, compatible: BOARD.into(), rollouts: Vec::new() };
    repository.set_rollouts(&rollouts).expect("roll-outs");
    repository.sign(NOW, true).expect("signatures");
    let public = dir.path().join("repo/public");
    let mut files = Vec::new();
    for sub in ["metadata", "targets"] {
        for entry in std::fs::read_dir(public.join(sub)).expect("what was published") {
            let path = entry.expect("a file").path();
            let name = path.strip_prefix(&public).expect("below it").to_owned();
            files.push((name, std::fs::read(path).expect("a file")));
        }
    }
    files.sort();
    let root = std::fs::read(public.join("metadata/1.root.json")).expect("a root");
    let mut world = World {
        dir,
        files,
        root,
        http: Http::new(&rustiot_http::Settings::default()).expect("a client"),
        runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        honest: (index, Versions::default()),
    };
    world.honest = look(&world, &public, &world.root).expect("an untouched repository is believed");
    world
});

/// What a new device believes of the repository in `public`.
fn look(world: &World, public: &Path, root: &[u8]) -> Option<(Index, Versions)> {
    let state = tempfile::tempdir_in(world.dir.path()).expect("a directory");
    let settings = Settings {
        dir: state.path().into(),
        root: root.to_vec(),
        urls: vec![Url::from_directory_path(public).expect("an address")],
        compatible: BOARD.into(),
        built: NOW,
        http: world.http.clone(),
    };
    let clock = Clock { now: NOW + 60, synchronised: true };
    let checked = world.runtime.block_on(Client::open(settings).ok()?.check(clock)).ok()?;
    Some((checked.index, checked.versions))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [file, a, b, c, d, new @ ..] = bytes else { return };
    let world = &*WORLD;
    let new_root = (PathBuf::from("metadata/2.root.json"), world.root.clone());
    let (name, old) = world.files.get(usize::from(*file)).unwrap_or(&new_root);
    let start = usize::from(u16::from_le_bytes([*a, *b])).min(old.len());
    let end = start.saturating_add(u16::from_le_bytes([*c, *d]).into()).min(old.len());
    let edited = [&old[..start], new, &old[end..]].concat();

    let public = tempfile::tempdir_in(world.dir.path()).expect("a directory");
    for sub in ["metadata", "targets"] {
        std::fs::create_dir(public.path().join(sub)).expect("a directory");
    }
    for (other, bytes) in world.files.iter().filter(|(other, _)| other != name) {
        std::fs::write(public.path().join(other), bytes).expect("a file");
    }
    std::fs::write(public.path().join(name), &edited).expect("a file");
    if let Some(believed) = look(world, public.path(), &world.root) {
        assert_eq!(believed, world.honest, "{} was changed, and believed", name.display());
    }
    if name == Path::new("metadata/1.root.json")
        && let Some(believed) = look(world, public.path(), &edited)
    {
        assert_eq!(believed, world.honest, "an image with a damaged root believes something else");
    }
});
