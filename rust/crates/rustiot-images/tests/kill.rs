//! A program that pulls, tags, removes and collects is killed at random instants: no torn image is ever visible.

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Content, Made, Packed, Registry, limits, noise, options, store, tar};
use rustiot_images::{Depth, Digest, Policy, Registries, RegistryConfig, Store};

const ADDRESS: &str = "RUSTIOT_IMAGES_TEST_REGISTRY";
const DIRECTORY: &str = "RUSTIOT_IMAGES_TEST_STORE";

/// The program: this test binary, asked by the environment. Runs until it is killed.
#[test]
fn the_program_that_is_killed() {
    let (Ok(address), Ok(dir)) = (std::env::var(ADDRESS), std::env::var(DIRECTORY)) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = RegistryConfig { insecure: vec![address.clone()], ..RegistryConfig::default() };
    let client = Registries::new(config);
    let store = store(dir.as_ref());
    store.holds_complete();
    loop {
        for tag in ["one", "two"] {
            let name = format!("{address}/app:{tag}").parse().unwrap();
            let id = runtime.block_on(store.pull(&client, &name, options())).unwrap().id;
            store.tag(&id, &"app:latest".parse().unwrap()).unwrap();
            store.pin(&id, "now").unwrap();
        }
        store.unpin(None, "now").unwrap();
        let name = format!("{address}/app:one");
        store.remove(&name, false).unwrap();
        store.gc(&Policy { all: true, ..Policy::default() }).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_instant_leaves_only_whole_images() {
    let mut content = Content::default();
    let base = (tar(&[("base", &noise(1, 200_000))]), Packed::Gzip);
    let own = ["one", "two"].map(|name| tar(&[(name, &noise(2, 100_000))]));
    let mut image = |tag: &str, own: &[u8]| {
        content.image(tag, "amd64", &[base.clone(), (own.to_vec(), Packed::Zstd)], false)
    };
    let [one, two] = [image("one", &own[0]), image("two", &own[1])];
    // The second is made out of the first.
    let made = Made { target: &own[1], sources: &[&own[0]] };
    let layer = made.layer(&mut content, made.bytes());
    let entry = content.artifact(&one, &two, &[layer]);
    content.refer(&two, &[entry], false);
    let delta = Digest::of(&made.bytes()).to_string();
    let registry = Registry::start(content).await;
    let dir = tempfile::tempdir().unwrap();
    let mut seen = [0; 3];
    let deltas = || registry.requests().iter().any(|head| head.contains(&delta));
    // 25 rounds; more and longer ones where a busy machine lets the program get nowhere.
    for round in 0..100_u64 {
        if round >= 25 && deltas() && seen.iter().filter(|count| **count > 0).count() > 1 {
            break;
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_program_that_is_killed"])
            .env(ADDRESS, &registry.address)
            .env(DIRECTORY, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let instant = Duration::from_millis(20 + round.wrapping_mul(7919) % (300 * (1 + round / 25)));
        tokio::time::sleep(instant).await;
        assert!(child.try_wait().unwrap().is_none(), "it only ends by being killed");
        child.kill().unwrap();
        child.wait().unwrap();
        let (store, report) = Store::open(dir.path(), limits()).unwrap();
        assert_eq!((report.bad, report.damaged), (vec![], vec![]), "round {round}");
        let report = store.scrub(Depth::Full).unwrap();
        assert_eq!((report.bad, report.damaged), (vec![], vec![]), "round {round}");
        for image in store.images() {
            assert_eq!(store.rootfs(&image.id).unwrap().layers.len(), 2);
        }
        if let Some(count) = seen.get_mut(store.images().len()) {
            *count += 1;
        }
    }
    assert!(deltas(), "deltas were among it");
    // It was killed at different moments.
    assert!(seen.iter().filter(|count| **count > 0).count() > 1, "{seen:?}");
}
