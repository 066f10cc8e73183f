//! Tests that what is published about `rustiot.toml` is what the types say: the JSON schema, the owner's page,
//! the image's own defaults and the files that the image holds statically.

use crate::{Content, Fragment, LastGood, Settings, resolve};
use std::path::{Path, PathBuf};

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repo(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn whole(text: &str) -> Settings {
    let fragment = Fragment { file: "example".into(), content: Content::Bytes(text.as_bytes().to_vec()) };
    let outcome = resolve(None, &[fragment], &LastGood::default());
    let messages: Vec<String> = outcome.messages.iter().map(ToString::to_string).collect();
    assert_eq!(messages, [""; 0]);
    outcome.settings
}

/// `RUSTIOT_UPDATE=1 cargo test -p rustiot-config` writes the file anew.
#[test]
fn the_schema_is_the_one_of_the_types() {
    let mut schema = schemars::schema_for!(Settings);
    schema.insert("title".into(), "rustiot.toml".into());
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let path = "docs/config.schema.json";
    if std::env::var_os("RUSTIOT_UPDATE").is_some() {
        std::io::Write::write_all(&mut std::fs::File::create(repo(path)).unwrap(), text.as_bytes()).unwrap();
    }
    assert!(read(path) == text, "{path} is not what the types say; run with RUSTIOT_UPDATE=1 and commit it");
}

/// The full example on the owner's page: valid, and it names every key that there is.
#[test]
fn the_example_is_valid_and_complete() {
    let page = read("docs/configuration.md");
    let example = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .find(|block| block.starts_with("# rustiot.toml: every setting"))
        .expect("docs/configuration.md has the full example");
    whole(example);
    let shape = serde_json::to_value(Settings::default()).unwrap();
    let network = serde_json::to_value(crate::NetworkSettings::default()).unwrap();
    let keys_of = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
    };
    let mut missing = Vec::new();
    for section in keys_of(&shape) {
        let value = if section == "network" { &network } else { &shape[&section] };
        let mut keys: Vec<String> = Vec::new();
        for key in keys_of(value) {
            let inner = keys_of(&value[&key]);
            keys.extend(if inner.is_empty() { vec![key] } else { inner });
        }
        for key in if keys.is_empty() { vec![section] } else { keys } {
            let named = |line: &str| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key} = "));
            if !example.lines().any(named) {
                missing.push(key);
            }
        }
    }
    assert_eq!(missing, [""; 0], "the example does not show these keys");
    // Commented-out settings are examples as well: they must be valid when somebody takes the # away.
    let uncommented: String = example
        .lines()
        .map(|line| match line.strip_prefix("#") {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    whole(&uncommented);
}

/// hawkBit's settings exclude the repository's, so they have an example of their own.
#[test]
fn the_example_for_hawkbit_is_valid() {
    let page = read("docs/configuration.md");
    let example = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .find(|block| block.starts_with("[update.hawkbit]"))
        .expect("docs/configuration.md has an example for hawkBit");
    assert!(whole(example).update.hawkbit.url.is_some());
}

#[test]
fn the_image_defaults_are_valid() {
    whole(&read("conf/rootfs/usr/lib/rustiot/defaults.toml"));
}

/// The journal starts before provisioning: what it reads then must be what provisioning renders by default.
#[test]
fn the_journal_starts_with_the_default_limits() {
    let settings = whole(&read("conf/rootfs/usr/lib/rustiot/defaults.toml"));
    let lines = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    assert_eq!(
        lines(&read("conf/rootfs/usr/lib/systemd/journald.conf.d/50-rustiot.conf")),
        lines(&crate::render::journald(&settings.log)),
    );
}

/// Ports that no section matches behave like a section that says nothing but its name.
#[test]
fn a_port_without_a_section_behaves_like_one_with_an_empty_one() {
    let lines = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    assert_eq!(
        lines(&read("conf/rootfs/usr/lib/systemd/network/80-rustiot-ethernet.network")),
        lines(&crate::render::networkd(&crate::NetworkSettings::default())),
    );
}
