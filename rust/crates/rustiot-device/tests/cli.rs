//! The real binary in a temporary root: `--help` and `--json` as committed, bad usage, a reader that goes away, and no
//! bus. `RUSTIOT_BLESS=1 cargo test -p rustiot-device` writes the snapshots anew.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_rustiot");

fn rustiot(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(args)
        .arg("--root")
        .arg(root)
        .env("COLUMNS", "100")
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        .stdin(Stdio::null());
    command
}

fn run(root: &Path, args: &[&str]) -> Output {
    rustiot(root, args).output().unwrap()
}

/// Compares with `tests/snapshots/<name>`.
fn snapshot(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("RUSTIOT_BLESS").is_some() {
        put(&path, actual);
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(expected, actual, "{name}: RUSTIOT_BLESS=1 writes it anew");
}

#[expect(clippy::disallowed_methods, reason = "a test's own files need no durability")]
fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A device in the middle of its life: a bad release was tried, and one is installed and waits.
fn device() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let file = |path: &str, text: &str| put(&root.join(path), text);
    file("proc/uptime", "3725.11 7000.00\n");
    file("proc/sys/kernel/hostname", "rustiot-0badcafe\n");
    file("proc/sys/kernel/random/boot_id", "b2\n");
    file(
        "usr/lib/rustiot/release.json",
        r#"{"version":"1.0.0","compatible":"rustiot-qemux86-64","floor":null,"build_epoch":1}"#,
    );
    file(
        "run/rustiot/boot.json",
        r#"{"slot":"a","boot_id":"b2","reset":{"reason":"watchdog","pstore_tail":[]}}"#,
    );
    file(
        "run/rustiot/provision.json",
        r#"{"hostname":"rustiot-0badcafe","ok":true,"steps":[{"name":"state","outcome":"unchanged","detail":"","ms":3}],
            "messages":[],"origins":{}}"#,
    );
    file("run/rustiot/health.json", include_str!("health.json"));
    file("run/rustiot/update.json", include_str!("update.json"));
    ledger(root);
    dir
}

/// The boot ledger of such a device, made by the policy itself.
fn ledger(root: &Path) {
    use rustiot_slots::{Event, LoaderConfig, Paths, Release, ResetReason, Slot, SlotShell};
    let env = root.join("env");
    put(&env, &"\0".repeat(128 << 10));
    let loader = LoaderConfig::Uboot { device: env, layout: Default::default() }.open();
    let release =
        |version: &str, digit: &str| Release { version: version.into(), manifest_hash: digit.repeat(64) };
    let boot = |slot, boot_id: &str, reset| Event::Booted {
        slot,
        boot_id: boot_id.into(),
        reset,
        pstore_tail: vec![],
    };
    let mut shell = SlotShell::for_boot(Paths::below(root), loader, Slot::A, true).unwrap();
    let install = |id: &str, release| {
        vec![
            Event::Announce { id: id.into(), release, force: false },
            Event::WriteStarted { slot: Slot::B },
            Event::WriteFinished { ok: true },
        ]
    };
    let mut life = vec![
        boot(Slot::A, "b0", ResetReason::Unknown),
        Event::GatePassed { boot_id: "b0".into() },
        Event::Soaked { boot_id: "b0".into(), floor: Some("1.0.0".into()) },
    ];
    life.extend(install("t1", release("2.0.0", "2")));
    life.extend([
        Event::Activate { slot: Slot::B },
        Event::ShuttingDown { boot_id: "b0".into() },
        boot(Slot::B, "b1", ResetReason::Clean),
        Event::GateFailed { boot_id: "b1".into(), reason: "sshd.service failed".into(), log: vec![] },
        boot(Slot::A, "b2", ResetReason::Watchdog),
        Event::GatePassed { boot_id: "b2".into() },
        Event::Soaked { boot_id: "b2".into(), floor: None },
    ]);
    life.extend(install("t2", release("3.0.0", "3")));
    for event in life {
        shell.apply(event).unwrap();
    }
}

#[test]
fn help_is_as_committed() {
    for (name, args) in [
        ("help.txt", &["--help"][..]),
        ("help-update.txt", &["update", "--help"]),
        ("help-update-install.txt", &["update", "install", "--help"]),
        ("help-update-activate.txt", &["update", "activate", "--help"]),
        ("help-update-plan.txt", &["update", "plan", "--help"]),
        ("help-update-hold.txt", &["update", "hold", "--help"]),
        ("help-update-schedule.txt", &["update", "schedule", "--help"]),
        ("help-provision.txt", &["provision", "--help"]),
        ("help-daemon.txt", &["daemon", "--help"]),
    ] {
        let output = Command::new(BINARY).args(args).env("COLUMNS", "100").output().unwrap();
        assert!(output.status.success());
        snapshot(name, &String::from_utf8(output.stdout).unwrap());
    }
}

#[test]
fn json_and_text_are_as_committed() {
    let device = device();
    for (name, args) in [
        ("status", &["status"][..]),
        ("health", &["health"]),
        ("slots", &["slots"]),
        ("boots", &["boots"]),
        ("provision-status", &["provision", "status"]),
        ("update-status", &["update", "status"]),
        ("update-why", &["update", "why"]),
        ("update-history", &["update", "history"]),
    ] {
        let text = run(device.path(), args);
        assert_eq!(text.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&text.stderr));
        snapshot(&format!("{name}.txt"), &without_root(&text.stdout, device.path()));
        let json = run(device.path(), &[args, &["--json"]].concat());
        let json = without_root(&json.stdout, device.path());
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
        snapshot(&format!("{name}.json"), &json);
    }
}

fn without_root(text: &[u8], root: &Path) -> String {
    String::from_utf8(text.to_vec()).unwrap().replace(root.to_str().unwrap(), "")
}

#[test]
fn a_device_that_knows_nothing_still_answers() {
    let empty = tempfile::tempdir().unwrap();
    for args in [&["status"][..], &["slots"], &["boots"], &["status", "--json"], &["slots", "--json"]] {
        assert_eq!(run(empty.path(), args).status.code(), Some(0), "{args:?}");
    }
    for args in [
        &["health"][..],
        &["provision", "status"],
        &["update", "status"],
        &["update", "why"],
        &["update", "history"],
    ] {
        let output = run(empty.path(), args);
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("rustiot: ") && text.contains("\nhint: "), "{args:?}: {text}");
    }
}

#[test]
fn damaged_files_are_as_good_as_none() {
    let device = device();
    for name in ["update.json", "provision.json", "boot.json", "health.json"] {
        put(&device.path().join("run/rustiot").join(name), "{\"slot\": \u{0}");
    }
    assert_eq!(run(device.path(), &["status", "--json"]).status.code(), Some(0));
    assert_eq!(run(device.path(), &["health"]).status.code(), Some(3));
}

#[test]
fn wrong_usage_is_2() {
    let empty = tempfile::tempdir().unwrap();
    for args in [
        &["--frobnicate"][..],
        &["update"],
        &["update", "install", "/x", "--hold", "never"],
        &["daemon", "sshd"],
        &["status", "now"],
    ] {
        let output = run(empty.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn without_a_bus_an_order_fails_with_a_hint() {
    let empty = tempfile::tempdir().unwrap();
    for args in [&["update", "install", "/x.raucb"][..], &["update", "cancel"], &["update", "activate"]] {
        let output = run(empty.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("bus does not answer") && text.contains("\nhint: "), "{text}");
    }
    let output = run(empty.path(), &["update", "cancel", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["kind"], "unreachable");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let device = device();
    for args in [&["status"][..], &["boots", "--json"], &["--help"], &["update", "history"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = rustiot(device.path(), args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!text.contains("panicked"), "{args:?}: {text}");
        assert!(output.status.code().is_some(), "{args:?} died of a signal");
    }
}

#[test]
fn the_programs_name_says_which_part_runs() {
    let dir = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        let path = dir.path().join(name);
        std::os::unix::fs::symlink(BINARY, &path).unwrap();
        path
    };
    // Each fails for want of a device, with its own words.
    let output = Command::new(link("rauc-backend")).arg("get-primary").output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("rauc-backend: "));
    let output = Command::new(link("rustiot-update")).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("rustiot-update: "));
    let output = Command::new(link("rustiot-provision")).arg("nonsense").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
