//! The files in `conf/` are valid, and what is wrong in a file is said with file, key and remedy.

#![expect(clippy::expect_used, reason = "a test says why it fails")]

use proptest::prelude::*;
use rustiot_board::{Board, Content, Kernel, KernelModules, Layout, LoaderKind, SlotName};
use std::path::PathBuf;

fn conf(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../conf").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(conf(name)).expect(name)
}

#[test]
fn every_committed_file_is_valid() {
    Layout::load(&conf("layout.toml")).expect("layout");
    Kernel::load(&conf("kernel.toml")).expect("kernel");
    KernelModules::load(&conf("kernel-modules.toml")).expect("kernel modules");
    let mut boards = 0;
    for entry in std::fs::read_dir(conf("boards")).expect("conf/boards") {
        let path = entry.expect("entry").path();
        let board = Board::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(path.file_stem().and_then(|s| s.to_str()), Some(board.name.as_str()));
        boards += 1;
    }
    assert!(boards >= 2);
}

#[test]
fn a_board_has_the_selector_of_its_loader_and_no_other() {
    let layout = Layout::load(&conf("layout.toml")).expect("layout");
    for (loader, selector) in [
        (LoaderKind::Uefi, None),
        (LoaderKind::Uboot, Some(Content::UbootEnv)),
        (LoaderKind::Tryboot, Some(Content::Autoboot)),
    ] {
        let selectors = [Content::UbootEnv, Content::Autoboot];
        let found: Vec<_> =
            layout.for_loader(loader).map(|p| p.content).filter(|c| selectors.contains(c)).collect();
        assert_eq!(found, Vec::from_iter(selector), "{loader:?}");
    }
    assert_ne!(layout.find(Content::Root, Some(SlotName::A)), layout.find(Content::Root, Some(SlotName::B)));
}

/// (what is replaced, by what, what the message must hold)
const WRONG_BOARDS: [(&str, &str, &[&str]); 12] = [
    ("name = \"qemux86-64\"", "name = \"Qemu X86\"", &["b.toml: name:", "dashes"]),
    ("arch = \"amd64\"", "", &["b.toml", "missing field `arch`"]),
    ("arch = \"amd64\"", "arch = \"riscv\"", &["b.toml", "line", "amd64", "arm64"]),
    ("timeout_s = 60", "timeout_s = 60\nfeed = true", &["b.toml", "unknown field `feed`"]),
    ("deadline_s = 180", "deadline_s = 10", &["watchdog.deadline_s", "at least as long"]),
    ("loader = \"uefi\"", "loader = \"uboot\"", &["boot.uboot", "missing"]),
    ("loader = \"uefi\"", "loader = \"tryboot\"", &["boot.tryboot", "missing"]),
    (
        "[watchdog]",
        "[boot.tryboot]\nconfig = []\nfirmware = []\n[watchdog]",
        &["boot", "does not use", "keep boot.uefi only"],
    ),
    ("\"console=ttyS0,115200\"", "\"a b\"", &["boot.cmdline", "one word"]),
    ("boot = \"40 MiB\"", "boot = \"forty\"", &["b.toml", "64 MiB"]),
    ("EFI/rustiot/linux.efi", "EFI/../linux.efi", &["boot.uefi.uki_path", "plain relative path"]),
    ("/dev/watchdog", "watchdog", &["watchdog.device", "below /dev"]),
];

#[test]
fn a_wrong_board_file_says_what_and_how() {
    let good = text("boards/qemux86-64.toml");
    Board::parse("b.toml", &good).expect("the committed file");
    for (from, to, wanted) in WRONG_BOARDS {
        assert!(good.contains(from), "{from}");
        let error = Board::parse("b.toml", &good.replacen(from, to, 1)).expect_err(to).to_string();
        for w in wanted {
            assert!(error.contains(w), "`{to}` gave: {error}");
        }
    }
}

#[test]
fn a_tryboot_board_names_settings_and_files_only() {
    let good = text("boards/raspberrypi4-64.toml");
    for (from, to, wanted) in [
        ("\"enable_uart=1\"", "\"[pi4]\"", "not one line that holds on every start"),
        ("\"start4.elf\"", "\"../start4.elf\"", "not a plain relative path"),
    ] {
        assert!(good.contains(from), "{from}");
        let error = Board::parse("b.toml", &good.replacen(from, to, 1)).expect_err(to).to_string();
        assert!(error.contains("boot.tryboot.") && error.contains(wanted), "{error}");
    }
}

const WRONG_LAYOUTS: [(&str, &str, &[&str]); 7] = [
    (
        "content = \"boot\"              # kernel + initramfs + device trees of slot A as one file\nslot = \"a\"",
        "content = \"boot\"",
        &["boot-a", "both slots use it"],
    ),
    ("name = \"boot-b\"", "name = \"boot-a\"", &["boot-a", "used twice"]),
    (
        "8f4c5d0e-6b1a-4d3f-9d1e-00000000001b",
        "8F4C5D0E-6B1A-4D3F-9D1E-00000000001A",
        &["root-b", "used twice"],
    ),
    ("size = \"32 MiB\"", "size = \"32.5 MiB\"", &["config", "alignment"]),
    (
        "grow = true",
        "grow = true\n[[partition]]\nname = \"x\"\ncontent = \"data\"\ntype = \"0fc63daf-8483-4772-8e79-3d69d8477de4\"\nguid = \"8f4c5d0e-6b1a-4d3f-9d1e-000000000009\"\nsize = \"1 MiB\"",
        &["data", "last partition"],
    ),
    ("disk_guid = \"8f4c", "disk_guid = \"xyz", &["l.toml", "GUID"]),
    ("alignment = \"1 MiB\"", "alignment = \"3 MiB\"", &["alignment", "power of two"]),
];

#[test]
fn a_wrong_layout_says_what_and_how() {
    let good = text("layout.toml");
    Layout::parse("l.toml", &good).expect("the committed file");
    for (from, to, wanted) in WRONG_LAYOUTS {
        assert!(good.contains(from), "{from}");
        let error = Layout::parse("l.toml", &good.replacen(from, to, 1)).expect_err(to).to_string();
        for w in wanted {
            assert!(error.contains(w), "`{to}` gave: {error}");
        }
    }
}

#[test]
fn slots_must_have_equal_sizes() {
    let good = text("layout.toml");
    let mut cut = good.rsplitn(2, "size = \"256 MiB\"\n\n[[partition]]\nname = \"state\"");
    let (tail, head) = (cut.next().expect("tail"), cut.next().expect("head"));
    let wrong = format!("{head}size = \"300 MiB\"\n\n[[partition]]\nname = \"state\"{tail}");
    let error = Layout::parse("l.toml", &wrong).expect_err("differs").to_string();
    assert!(error.contains("root partitions differ"), "{error}");
}

proptest! {
    #[test]
    fn outside_text_never_panics(text in ".*") {
        let _ = Board::parse("b", &text);
        let _ = Layout::parse("l", &text);
    }

    #[test]
    fn a_guid_reads_what_it_writes(bytes: [u8; 16]) {
        let n = u128::from_be_bytes(bytes);
        let h = format!("{n:032X}");
        let text = format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..]);
        let guid: rustiot_board::Guid = text.parse().expect("guid");
        prop_assert_eq!(guid.to_string(), text.to_lowercase());
        prop_assert_eq!(guid.bytes(), bytes);
    }

    #[test]
    fn what_is_not_a_guid_never_panics(text in "[-+0-9a-fé]{30,40}") {
        let _ = text.parse::<rustiot_board::Guid>();
    }
}
