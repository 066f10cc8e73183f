//! The Yocto layer makes the same boot artefacts from the same files: its Python and this crate are held to the same
//! bytes for every board that both build.

#![expect(clippy::expect_used, reason = "a test says why it fails")]

use rustiot_board::{Board, LoaderKind};
use rustiot_image::fit;
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
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom rustiot import boards, uboot\n\
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
