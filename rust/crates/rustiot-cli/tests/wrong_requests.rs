//! What a person gets who asks for something that cannot be: the real command, its exit code and
//! the words that say what, where and what to do. Nothing is built for a wrong request.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use rustiot_images::Digest;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A clone with its own `conf` and an empty cache.
struct Clone(tempfile::TempDir);

impl Clone {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../conf");
        copy(&conf, &dir.path().join("clone/conf"));
        Clone(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn board(&self) -> PathBuf {
        self.path("clone/conf/boards/qemux86-64.toml")
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_rustiot-cli"))
            .args(args)
            .current_dir(self.0.path())
            .env_clear()
            .env("PATH", "/nonexistent")
            .env("HOME", self.0.path())
            .env("RUSTIOT_ROOT", self.path("clone"))
            .env("RUSTIOT_CACHE", self.path("cache"))
            .output()
            .unwrap()
    }

    /// Runs a request that must end with `code` and say all `words`; nothing may be left in the cache.
    #[track_caller]
    fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: no `{word}` in: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
        let built = fs::read_dir(self.path("cache")).map_or(0, |dir| {
            dir.flatten().filter(|kind| fs::read_dir(kind.path()).is_ok_and(|mut d| d.any(is_result))).count()
        });
        assert_eq!(built, 0, "something was built for {args:?}");
    }
}

/// Names with a dot are locks and work that was begun.
fn is_result(entry: std::io::Result<fs::DirEntry>) -> bool {
    entry.is_ok_and(|e| e.path().is_dir() && !e.file_name().to_string_lossy().starts_with('.'))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn an_unknown_flag_or_command_names_itself() {
    let clone = Clone::new();
    clone.refused(&["run", "--fast"], 2, &["--fast", "--help"]);
    clone.refused(&["lunch"], 2, &["lunch"]);
    clone.refused(&["run", "--check", "--detach"], 2, &["--check", "--detach"]);
}

#[test]
fn a_directory_that_is_no_clone_is_named() {
    let clone = Clone::new();
    fs::remove_file(clone.path("clone/conf/layout.toml")).unwrap();
    clone.refused(&["image", "build"], 3, &["no clone of RustIoT OS", "layout.toml"]);
}

#[test]
fn an_unknown_board_is_answered_with_those_that_are() {
    let clone = Clone::new();
    for command in [&["run", "--check"][..], &["image", "build"], &["bundle"], &["demo"]] {
        let args = [command, &["--board", "toaster"]].concat();
        clone.refused(&args, 2, &["`toaster`", "qemuarm64", "qemux86-64"]);
    }
}

#[test]
fn a_board_that_only_yocto_builds_for_says_so() {
    let clone = Clone::new();
    for board in ["beaglebone-black", "qemuarm", "visionfive2", "genericarm64"] {
        let yocto = format!("kas build kas/{board}.yml");
        for command in [&["image", "build"][..], &["bundle"]] {
            let args = [command, &["--board", board]].concat();
            clone.refused(&args, 2, &["no lab image for", board, &yocto]);
        }
    }
}

#[test]
fn a_board_file_that_lacks_a_key_is_named_with_the_key() {
    let clone = Clone::new();
    let text = fs::read_to_string(clone.board()).unwrap();
    let without: String =
        text.lines().filter(|l| !l.starts_with("arch ")).map(|l| format!("{l}\n")).collect();
    assert_ne!(text, without);
    fs::write(clone.board(), without).unwrap();
    clone.refused(&["image", "build"], 2, &["conf/boards/qemux86-64.toml", "missing field `arch`"]);
}

#[test]
fn a_board_file_with_a_typo_is_named_with_its_line() {
    let clone = Clone::new();
    let text = fs::read_to_string(clone.board()).unwrap();
    fs::write(clone.board(), text.replacen("arch ", "arhc ", 1)).unwrap();
    clone.refused(&["image", "build"], 2, &["qemux86-64.toml", "arhc", "line "]);
}

#[test]
fn versions_files_and_keys_that_are_not_there_are_wrong_requests() {
    let clone = Clone::new();
    clone.refused(&["image", "build", "--version", "one"], 2, &["`one` is no version", "1.4.0"]);
    clone.refused(&["bundle", "--floor", "old"], 2, &["`old` is no version"]);
    clone.refused(&["image", "build", "--overlay", "none"], 2, &["none is no directory"]);
    clone.refused(&["image", "build", "--config", "none.toml"], 2, &["cannot read none.toml"]);
    clone.refused(&["bundle", "--cert", "c.pem"], 2, &["--key", "--keyring"]);
    let keys = ["--cert", "c.pem", "--key", "k.pem", "--keyring", "none.pem"];
    clone.refused(&[&["bundle"][..], &keys].concat(), 2, &["no keyring none.pem"]);
    let repo = ["--repo", "repo"];
    assert!(clone.run(&[&["repo", "init"][..], &repo].concat()).status.success());
    fs::write(clone.path("b.raucb"), "").unwrap();
    for (bundle, option, words) in [
        ("none.raucb", &[][..], "no bundle none.raucb"),
        ("b.raucb", &["--notes", "NEWS"], "cannot read NEWS"),
        ("b.raucb", &["--keyring", "none.pem"], "cannot find the keyring none.pem"),
    ] {
        clone.refused(&[&["publish", bundle][..], &repo, option].concat(), 2, &[words]);
    }
}

#[test]
fn a_date_that_no_release_can_have_is_a_wrong_request() {
    let clone = Clone::new();
    for command in [&["image", "build"][..], &["bundle"]] {
        for (date, words) in [
            ("--build-date=-1", &["--build-date is \"-1\"", "no date", "2026-11-27"][..]),
            ("--build-date=today", &["--build-date is \"today\"", "no date", "2026-11-27"]),
            ("--build-date=2024-12-31", &["--build-date is 2024-12-31", "older than 2025"]),
            ("--build-date=4102444800", &["--build-date is 2100-01-01", "this machine's clock"]),
        ] {
            clone.refused(&[command, &[date]].concat(), 2, words);
        }
        // Here is no clone with commits, and a release for customers is dated.
        clone.refused(&[command, &["--production"]].concat(), 2, &["no git clone", "--build-date"]);
    }
}

#[test]
fn a_wave_that_holds_no_device_is_a_wrong_request() {
    let clone = Clone::new();
    for share in ["0.04%", "canary:0%+1d"] {
        let waves = format!("canary:100%,{share}");
        let words = [&*format!("{share:?} holds no device"), "write 0.1% or more", "canary:100%"];
        clone.refused(&["rollout", "set", "1.2.0", &waves, "--repo", "none"], 2, &words);
    }
}

#[test]
fn a_missing_package_is_named_with_the_way_to_get_it() {
    let clone = Clone::new();
    // Without root the namespaces come first; the launcher asks for sudo.
    let words: &[&str] = match nix::unistd::geteuid().is_root() {
        true => &["mmdebstrap is not installed", "apt-get install mmdebstrap"],
        false => &["need root", "sudo"],
    };
    clone.refused(&["image", "build"], 3, words);
}

#[test]
fn an_output_that_cannot_be_is_refused_before_anything_is_built_and_nothing_in_it_is_touched() {
    let clone = Clone::new();
    let precious = clone.path("out/precious");
    fs::create_dir(clone.path("out")).unwrap();
    fs::write(&precious, "mine").unwrap();
    clone.refused(&["bundle", "--out", "out"], 2, &["out is a directory", "name the file"]);
    let words = &["out/precious is no directory"];
    clone.refused(&["bundle", "--out", "out/precious/x.raucb"], 2, words);
    clone.refused(&["image", "build", "--out", "out/precious"], 2, words);
    clone.refused(&["keys", "--out", "out/precious"], 2, words);
    fs::create_dir(clone.path("out/rustiot-qemux86-64-0.1.0.img")).unwrap();
    clone.refused(&["image", "build", "--out", "out"], 2, &["0.1.0.img is a directory"]);
    clone.refused(&["repo", "keys", "--out", "out"], 3, &["out exists"]);
    clone.refused(&["repo", "init", "--repo", "out/precious"], 1, &["out/precious"]);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
    assert!(!clone.path("out/keys").exists());
}

#[test]
fn a_medium_that_cannot_be_flashed_says_why() {
    let clone = Clone::new();
    let (image, small) = (clone.path("image.img"), clone.path("small.img"));
    image_with_a_table(&image);
    fs::write(&small, vec![0u8; 1000]).unwrap();
    let image = image.to_string_lossy().into_owned();
    clone.refused(&["flash", &image, "none.img", "--yes"], 2, &["no medium at none.img"]);
    clone.refused(&["flash", "none.img", "small.img", "--yes"], 2, &["cannot open none.img"]);
    clone.refused(&["flash", "small.img", "small.img", "--yes"], 2, &["no disk image"]);
    clone.refused(&["flash", &image, "/dev/null", "--yes"], 2, &["neither a block device nor a file"]);
}

#[test]
fn a_medium_that_is_too_small_is_told_before_anything_is_written() {
    let clone = Clone::new();
    let (image, small) = (clone.path("image.img"), clone.path("small.img"));
    image_with_a_table(&image);
    fs::write(&small, vec![7u8; 4 << 20]).unwrap();
    let attached = Command::new("losetup").args(["--find", "--show"]).arg(&small).output();
    let device = match attached {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap().trim().to_owned(),
        other => return println!("skipped: no loop device here: {other:?}"),
    };
    let image = image.to_string_lossy().into_owned();
    let result = std::panic::catch_unwind(|| {
        clone.refused(&["flash", &image, &device, "--yes"], 3, &[&device, "has 4 MB", "needs 8 MB"]);
        fs::write(clone.path("tiny.json"), r#"{"board": "toaster", "min_medium": 8000000}"#).unwrap();
        fs::File::create(clone.path("tiny.img")).unwrap().set_len(2 << 20).unwrap();
        clone.refused(&["flash", "tiny.img", &device, "--yes"], 3, &["toaster needs at least 8 MB"]);
        clone.refused(&["flash", "small.img", &device, "--yes"], 2, &[&device, "is the image itself"]);
    });
    let detached = Command::new("losetup").args(["--detach", &device]).status().unwrap();
    assert!(result.is_ok() && detached.success());
    assert_eq!(fs::read(&small).unwrap(), vec![7u8; 4 << 20], "something was written");
}

/// An image of 8 MB with an empty partition table.
fn image_with_a_table(path: &Path) {
    fs::File::create(path).unwrap().set_len(8 << 20).unwrap();
    let disk = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut table = gpt::GptConfig::new().writable(true).create_from_device(disk, None).unwrap();
    table.add_partition("root", 1 << 20, gpt::partition_types::LINUX_FS, 0, None).unwrap();
    table.write().unwrap();
}

#[test]
fn machines_and_promises_that_do_not_exist_are_said_to() {
    let clone = Clone::new();
    clone.refused(&["stop", "nobody"], 3, &["no machine nobody"]);
    clone.refused(&["test", "--only", "world-peace"], 2, &["no such promise", "--list"]);
    clone.refused(&["serve", "none"], 2, &["none is no directory"]);
}

#[test]
fn images_that_are_none_are_named_and_nothing_is_made() {
    let clone = Clone::new();
    let odd = clone.path("notes.txt");
    fs::write(&odd, "no image").unwrap();
    let odd = odd.to_str().unwrap();
    let out = clone.path("deltas");
    let delta = |old, new| ["image-delta", old, new, "--out", out.to_str().unwrap()];
    clone.refused(&delta("nowhere", odd), 2, &["cannot open nowhere"]);
    clone.refused(&delta(odd, odd), 2, &["notes.txt is no container image", "docker save"]);
    let strange = [&delta(odd, odd)[..], &["--platform", "toaster"]].concat();
    clone.refused(&strange, 2, &["toaster", "linux/arm64"]);
    assert!(!out.exists());
}

#[test]
fn an_image_without_a_new_layer_makes_no_layout() {
    let clone = Clone::new();
    let (config, layer) =
        (br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["D"]}}"#, [0; 1024]);
    let digest = |bytes: &[u8]| Digest::of(bytes);
    let config = String::from_utf8_lossy(config).replace("\"D\"", &format!("\"{}\"", digest(&layer)));
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(),
            "digest": digest(config.as_bytes())},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": layer.len(), "digest": digest(&layer)}]});
    // As `skopeo copy … dir:image` leaves it.
    let image = clone.path("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
    fs::write(image.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    for bytes in [config.as_bytes(), &layer] {
        fs::write(image.join(digest(bytes).hex()), bytes).unwrap();
    }
    let (image, out) = (image.to_str().unwrap(), clone.path("new/deltas"));
    let words = ["nothing to publish", "has every layer", "was not made into a layout"];
    clone.refused(&["image-delta", image, image, "--out", out.to_str().unwrap()], 3, &words);
    assert!(!clone.path("new").exists());
}
