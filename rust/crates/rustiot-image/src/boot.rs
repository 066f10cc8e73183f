//! The boot image of a slot, the same for both slots: on UEFI a FAT with the guard, the unified kernel image that it
//! starts and that image's checksum, on U-Boot a FIT.

use crate::cache::{Key, write};
use crate::context::Context;
use crate::error::{At, Error, content};
use crate::fit;
use crate::guard;
use crate::root::EPOCH;
use crate::toolbox::Toolbox;
use rustiot_board::{Board, LoaderKind, Uefi};
use std::path::{Path, PathBuf};

/// Volume id of every boot FAT; nothing looks for it.
const VOLUME_ID: &str = "52490b00";
const SECTOR: u64 = 512;

/// What goes into a boot image.
pub(crate) struct Parts<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) cmdline: &'a str,
    pub(crate) version: &'a str,
}

/// Adds to `key` what this step reads besides its parts.
pub(crate) fn key(ctx: &Context, board: &Board, key: Key) -> Result<Key, Error> {
    match board.boot.loader {
        LoaderKind::Uefi => key.tree(&ctx.conf("efi-guard")),
        LoaderKind::Uboot | LoaderKind::Tryboot => Ok(key),
    }
}

/// Builds the boot image at `out`.
pub(crate) fn build(
    ctx: &Context,
    toolbox: &Toolbox,
    board: &Board,
    parts: &Parts<'_>,
    work: &Path,
    out: &Path,
) -> Result<(), Error> {
    match (&board.boot.loader, &board.boot.uefi) {
        (LoaderKind::Uefi, Some(uefi)) => {
            let uki = unified_image(toolbox, uefi, parts, work)?;
            let (guard, checksum) = (work.join("guard.efi"), work.join("linux.efi.crc"));
            let tool = |program: &str| toolbox.command(program);
            guard::build_guard(&tool, &ctx.conf("efi-guard"), board, work, &guard)?;
            write(&checksum, guard::checksum(&std::fs::read(&uki).at("read", &uki)?))?;
            let files = [
                (uefi.removable_path.as_str(), guard.as_path()),
                (&uefi.uki_path, &uki),
                (&guard::checksum_path(board)?, &checksum),
            ];
            fat(toolbox, &files, "BOOT", None, out)
        }
        (LoaderKind::Uefi, None) => Err(content("board", "no section boot.uefi")),
        // The firmware's files are Yocto's to build; `image::check` has said so.
        (LoaderKind::Tryboot, _) => Err(content("board", "there is no lab image for loader \"tryboot\"")),
        (LoaderKind::Uboot, _) => {
            let fit =
                fit::FitParts { kernel: parts.kernel, initramfs: parts.initramfs, cmdline: parts.cmdline };
            Ok(fit::build_fit(&|program| toolbox.command(program), board, fit, work, out)?)
        }
    }
}

/// A unified kernel image in `work`.
pub(crate) fn unified_image(
    toolbox: &Toolbox,
    uefi: &Uefi,
    parts: &Parts<'_>,
    work: &Path,
) -> Result<PathBuf, Error> {
    let (uki, cmdline, release) = (work.join("linux.efi"), work.join("cmdline"), work.join("os-release"));
    write(&cmdline, parts.cmdline)?;
    write(&release, format!("ID=rustiot\nNAME=\"RustIoT OS\"\nVERSION_ID={}\n", parts.version))?;
    toolbox.run_at(
        EPOCH,
        "ukify",
        [
            "build".to_owned(),
            format!("--linux={}", parts.kernel.display()),
            format!("--initrd={}", parts.initramfs.display()),
            format!("--cmdline=@{}", cmdline.display()),
            format!("--os-release=@{}", release.display()),
            format!("--stub={}", uefi.stub),
            format!("--output={}", uki.display()),
        ],
    )?;
    Ok(uki)
}

/// Makes a FAT with `files` (path inside, file) at `out`: as small as they allow, or of `size` bytes. The same files
/// give the same bytes.
pub(crate) fn fat(
    toolbox: &Toolbox,
    files: &[(&str, &Path)],
    label: &str,
    size: Option<u64>,
    out: &Path,
) -> Result<(), Error> {
    let mut needed: u64 = 0;
    for (_, file) in files {
        needed = needed.saturating_add(std::fs::metadata(file).at("read", file)?.len());
    }
    // Tables, directories and the last cluster of each file; then whole MiB.
    let smallest = needed.saturating_add(needed / 100).saturating_add(512 * 1024).next_multiple_of(1 << 20);
    let bytes = size.unwrap_or(smallest);
    let sectors = bytes / SECTOR;
    std::fs::File::create(out).and_then(|f| f.set_len(bytes)).at("create", out)?;
    let image = out.to_string_lossy().into_owned();
    toolbox.run_at(
        EPOCH,
        "mkfs.fat",
        ["--invariant", "-F", "16", "-s", cluster(sectors), "-i", VOLUME_ID, "-n", label, &image],
    )?;
    let mut made: Vec<String> = Vec::new();
    for (inside, file) in files {
        let mut above = String::new();
        for part in inside.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
            above = if above.is_empty() { part.to_owned() } else { format!("{above}/{part}") };
            if !made.contains(&above) {
                toolbox.run_at(EPOCH, "mmd", ["-i", &image, &format!("::{above}")])?;
                made.push(above.clone());
            }
        }
        let file = file.to_string_lossy();
        toolbox.run_at(EPOCH, "mcopy", ["-i", &image, &*file, &format!("::{inside}")])?;
    }
    Ok(())
}

/// Sectors per cluster so that the number of clusters is one that FAT16 can have (4085 to 65524).
fn cluster(sectors: u64) -> &'static str {
    for (text, per) in [("1", 1), ("2", 2), ("4", 4), ("8", 8), ("16", 16), ("32", 32)] {
        if sectors / per < 65_000 {
            return text;
        }
    }
    "64"
}
