//! The Yocto layer makes the same boot artefacts from the same files: its Python and this crate are held to the same
//! bytes for every board that both build.

#![expect(clippy::expect_used, reason = "a test says why it fails")]

use rustiot_board::{Board, Layout, LoaderKind};
use rustiot_image::fit;
use rustiot_loader::autoboot::{self, Selection};
use std::path::{Path, PathBuf};
use std::process::Command;

const SELECTOR_BYTES: u64 = 1 << 20;

fn repo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// What `expression` of the layer's package gives for `board`.
fn layer(board: &Path, expression: &str) -> Vec<u8> {
    let repo = repo();
    let program = format!(
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom rustiot import boards, tryboot, uboot\n\
         board = boards.load(sys.argv[2])\nresult = {expression}\n\
         sys.stdout.buffer.write(result if isinstance(result, bytes) else result.encode())\n"
    );
    let output = Command::new("python3")
        .args(["-B", "-c", &program])
        .args([&repo.join("layers/meta-rustiot/lib"), board, &repo.join("conf/uboot")])
        .output()
        .expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The device changes in place what the layer wrote, and both take the partitions' numbers from the layout.
#[test]
fn the_raspberry_pis_selector_is_the_same() {
    let conf = repo().join("conf");
    let layout = Layout::load(&conf.join("layout.toml")).expect("layout");
    let names: Vec<&str> = layout.for_loader(LoaderKind::Tryboot).map(|p| p.name.as_str()).collect();
    let number = |name: &str| names.iter().position(|n| *n == name).map(|at| at as u32 + 1).expect(name);
    assert_eq!(autoboot::BOOT_PARTITIONS, [number("boot-a"), number("boot-b")]);
    let board = conf.join("boards/raspberrypi5.toml");
    let theirs =
        layer(&board, "tryboot.autoboot(boards.layout(sys.argv[3] + '/../layout.toml', 'tryboot')[2])");
    let selection = Selection::parse(&theirs).expect("a selection");
    assert_ne!(selection.default, selection.tryboot);
    assert_eq!(String::from_utf8_lossy(&theirs), selection.text());
}

#[test]
fn boot_scripts_and_selectors_are_the_same() {
    if !Command::new("python3").args(["-c", "import tomllib"]).output().is_ok_and(|o| o.status.success()) {
        println!("skipped: no Python 3.11");
        return;
    }
    let mut compared = 0;
    for entry in std::fs::read_dir(repo().join("conf/boards")).expect("conf/boards") {
        let path = entry.expect("entry").path();
        let board = Board::load(&path).expect("board");
        if board.boot.loader != LoaderKind::Uboot {
            continue;
        }
        let script = fit::boot_script(&repo().join("conf/uboot"), &board).expect("script");
        let theirs = layer(&path, "uboot.boot_script(sys.argv[3], board)");
        assert_eq!(String::from_utf8_lossy(&theirs), script, "{}", board.name);
        let selector = fit::selector_partition(&board, SELECTOR_BYTES).expect("selector");
        let theirs = layer(&path, &format!("uboot.selector_partition(board, {SELECTOR_BYTES})"));
        assert!(theirs == selector, "{}: the selector's partition differs", board.name);
        compared += 1;
    }
    assert!(compared >= 2);
}
