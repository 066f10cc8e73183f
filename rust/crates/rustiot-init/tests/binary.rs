//! The built program: what it is linked from, how large it is, and that it does nothing where it is not PID 1.

use std::{fs, path::Path, process::Command};

/// Every crate that may end up in the program. A new one is a decision: its size is paid on every board.
const ALLOWED: [&str; 24] = [
    "bitflags",
    "cfg-if",
    "crc32fast",
    "itoa",
    "libc",
    "memchr",
    "memoffset",
    "nix",
    "proc-macro2",
    "quote",
    "rustiot-boot",
    "rustiot-durable",
    "rustiot-init",
    "rustiot-loader",
    "rustiot-slots",
    "semver",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "syn",
    "thiserror",
    "thiserror-impl",
    "unicode-ident",
];
/// Build-time helpers and serde_json's number formatting, whose names change between releases.
const ALSO: [&str; 2] = ["ryu", "zmij"];

/// Bytes of the stripped static program (design: below 1.5 MB).
const SIZE_BUDGET: u64 = 1_500_000;

#[test]
fn links_only_what_the_list_allows() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--manifest-path"])
        .arg(manifest)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let names: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"nix"), "{text}");
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        assert!(ALLOWED.contains(&name) || ALSO.contains(&name), "{name} is not on the list");
    }
}

/// The shipped program is given by whoever built it with the flags of `docs/contracts/init.md`: `./rustiot test` does,
/// by this test's name.
#[test]
fn the_shipped_program_is_small_and_static() {
    let Some(path) = std::env::var_os("RUSTIOT_INIT_BINARY") else {
        println!("skipped: RUSTIOT_INIT_BINARY does not name the program that ships");
        return;
    };
    let bytes = fs::read(&path).expect("the program");
    assert!(bytes.len() as u64 <= SIZE_BUDGET, "{} bytes, budget {SIZE_BUDGET}", bytes.len());
    assert_eq!(bytes.get(..4), Some(&b"\x7fELF"[..]));
    assert!(!has_interpreter(&bytes), "needs a dynamic loader");
}

/// A program header of type `PT_INTERP` (3) in a 64-bit little-endian ELF file.
fn has_interpreter(elf: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        elf.get(at..at + length)
            .unwrap_or_default()
            .iter()
            .rev()
            .fold(0usize, |value, byte| value << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|n| number(table + n * size, 4) == 3)
}

#[test]
fn refuses_to_run_as_anything_but_pid_1() {
    let output = Command::new(env!("CARGO_BIN_EXE_rustiot-init")).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stderr, b"rustiot-init: runs as PID 1 of an initramfs only\n");
    // and a program that is linked dynamically shows that the test above can fail
    assert!(has_interpreter(&fs::read(env!("CARGO_BIN_EXE_rustiot-init")).expect("the program")));
}
