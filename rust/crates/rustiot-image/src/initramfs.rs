//! The initramfs: `rustiot-init`, the modules that lead to the root, and what init must know. Uncompressed, in two
//! archives: the second holds only the root's verity data, so that a new root changes a few hundred bytes of it.

use crate::base::Base;
use crate::cpio::Archive;
use crate::error::{At, Error, content};
use crate::module_file::{remove_signatures, remove_type_information};
use crate::modules::Index;
use crate::programs::Programs;
use crate::root::Verity;
use crate::toolbox::Toolbox;
use rustiot_board::{Board, LoaderKind};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What runs as `/init`; anything but [`Init::Built`] makes a release that must not stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// `rustiot-init`.
    #[default]
    Built,
    /// Another program, static.
    Other(PathBuf),
    /// None at all.
    Missing,
}

impl Init {
    /// The program, if there is one.
    pub(crate) fn program(&self, programs: &Programs) -> Option<PathBuf> {
        match self {
            Init::Built => Some(programs.init.clone()),
            Init::Other(path) => Some(path.clone()),
            Init::Missing => None,
        }
    }
}

/// `/rustiot/init.json`; docs/contracts/image.md.
#[derive(Debug, Serialize)]
struct InitConfig<'a> {
    board: &'a str,
    loader: LoaderKind,
    modules: Vec<String>,
    watchdog: WatchdogConfig<'a>,
    network_modules: Vec<String>,
    ramoops: Option<RamoopsConfig>,
    lab: bool,
}

#[derive(Debug, Serialize)]
struct WatchdogConfig<'a> {
    device: &'a str,
    timeout_s: u32,
    deadline_s: u32,
}

#[derive(Debug, Serialize)]
struct RamoopsConfig {
    address: u64,
    size: u64,
}

/// Builds the initramfs. `work` is a scratch directory.
pub(crate) fn build(
    toolbox: &Toolbox,
    base: &Base,
    board: &Board,
    init: Option<&Path>,
    verity: &Verity,
    lab: bool,
    work: &Path,
) -> Result<Vec<u8>, Error> {
    let index = Index::load(&base.modules()?)?;
    let file = format!("conf/boards/{}.toml", board.name);
    let needed = index.closure(board.initramfs_modules(), &file)?;
    let all = index
        .closure(board.initramfs_modules().chain(board.modules.rescue.iter().map(String::as_str)), &file)?;
    let unpacked = work.join("modules");
    let files = unpack(toolbox, &index, &all, &unpacked)?;
    remove_type_information(toolbox, board.arch, &files)?;

    let place = |path: &String| format!("/lib/modules/{}/{}", index.release(), plain(path));
    let config = InitConfig {
        board: &board.name,
        loader: board.boot.loader,
        modules: needed.iter().map(place).collect(),
        watchdog: WatchdogConfig {
            device: &board.watchdog.device,
            timeout_s: board.watchdog.timeout_s,
            deadline_s: board.watchdog.deadline_s,
        },
        network_modules: all.iter().filter(|m| !needed.contains(m)).map(place).collect(),
        // U-Boot boards describe the area in the device tree, UEFI boards keep records in variables.
        ramoops: None,
        lab,
    };
    let json = serde_json::to_vec(&config).map_err(|e| content("init.json", e.to_string()))?;

    let large = |e: crate::cpio::TooLarge| content("initramfs", e.to_string());
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "run", "rustiot"] {
        archive.directory(dir).map_err(large)?;
    }
    archive.device("dev/console", 0o600, (5, 1)).map_err(large)?;
    archive.device("dev/kmsg", 0o600, (1, 11)).map_err(large)?;
    if let Some(init) = init {
        let program = std::fs::read(init).at("read", init)?;
        archive.file("init", 0o755, &program).map_err(large)?;
    }
    archive.file("rustiot/init.json", 0o644, &json).map_err(large)?;
    for module in &all {
        let path = unpacked.join(plain(module));
        let bytes = std::fs::read(&path).at("read", path)?;
        archive.file(place(module).trim_start_matches('/'), 0o644, &bytes).map_err(large)?;
    }
    let mut whole = archive.finish().map_err(large)?;
    whole.extend(verity_segment(verity)?);
    Ok(whole)
}

/// The small second archive.
fn verity_segment(verity: &Verity) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(verity).map_err(|e| content("verity.json", e.to_string()))?;
    let mut archive = Archive::default();
    archive.file("rustiot/verity.json", 0o644, &json).map_err(|e| content("verity.json", e.to_string()))?;
    archive.finish().map_err(|e| content("verity.json", e.to_string()))
}

/// A module's path without the suffix of its compression.
pub(crate) fn plain(path: &str) -> &str {
    path.strip_suffix(".xz").or_else(|| path.strip_suffix(".zst")).unwrap_or(path)
}

/// Copies `modules` (paths of `index`) to `dir`, uncompressed and without signatures; returns the files.
pub(crate) fn unpack(
    toolbox: &Toolbox,
    index: &Index,
    modules: &[String],
    dir: &Path,
) -> Result<Vec<PathBuf>, Error> {
    let mut compressed = Vec::new();
    for module in modules {
        let (from, to) = (index.dir().join(module), dir.join(module));
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).at("create", parent)?;
        }
        std::fs::copy(&from, &to).at("copy", from)?;
        if plain(module) != module {
            compressed.push(to);
        }
    }
    let (xz, zstd): (Vec<_>, Vec<_>) =
        compressed.into_iter().partition(|p| p.extension().is_some_and(|e| e == "xz"));
    if !xz.is_empty() {
        toolbox.run("xz", [&["--decompress".into(), "--force".into()][..], &xz].concat())?;
    }
    if !zstd.is_empty() {
        toolbox.run("zstd", [&["-q".into(), "--decompress".into(), "--rm".into()][..], &zstd].concat())?;
    }
    let files: Vec<PathBuf> = modules.iter().map(|module| dir.join(plain(module))).collect();
    remove_signatures(&files)?;
    Ok(files)
}
