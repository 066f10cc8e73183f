//! The device's own programs, built in the toolbox against the C library of the release that they will run on.
//! Crates are fetched on the workstation; the build itself is offline.

use crate::cache::{Key, stage};
use crate::context::{Context, Progress};
use crate::error::{At, Error};
use crate::toolbox::{Toolbox, watched};
use rustiot_board::Arch;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that only a workstation runs: they are no input of the device's programs.
const WORKSTATION: [&str; 4] = ["rustiot-image", "rustiot-lab", "rustiot-cli", "rustiot-scratch"];

/// The device's programs, stripped: [`Programs::build`].
#[derive(Clone, Debug)]
pub struct Programs {
    /// The multi-call binary.
    pub device: PathBuf,
    /// The static program of the initramfs.
    pub init: PathBuf,
    /// The static program beside each container.
    pub shim: PathBuf,
}

impl Programs {
    /// Builds the device's programs for `arch`, or takes them from the cache.
    ///
    /// # Errors
    /// Crates cannot be fetched, or the build fails.
    pub fn build(
        ctx: &Context,
        toolbox: &Toolbox,
        arch: Arch,
        progress: &dyn Progress,
    ) -> Result<Programs, Error> {
        let rust = ctx.repo().join("rust");
        let mut key = Key::new("programs 4")
            .text(&toolbox.root().display().to_string())
            .text(arch.debian())
            .file(&rust.join("Cargo.toml"))?
            .file(&rust.join("Cargo.lock"))?;
        for (name, path) in crate::cache::sorted(&rust.join("crates"))? {
            if WORKSTATION.iter().all(|w| name != **w) {
                key = key
                    .text(&name.to_string_lossy())
                    .file(&path.join("Cargo.toml"))?
                    .tree(&path.join("src"))?;
                let build = path.join("build.rs");
                if build.exists() {
                    key = key.file(&build)?;
                }
            }
        }
        let title = format!("device programs ({})", arch.debian());
        let dir = stage(ctx, progress, ("programs", &title, 2 << 30), &key.finish(), |work| {
            fetch(&rust, arch, progress)?;
            for (package, binary, is_static) in [
                ("rustiot-device", "rustiot", false),
                ("rustiot-init", "rustiot-init", true),
                ("rustiot-shim", "rustiot-shim", true),
            ] {
                let built = compile(ctx, toolbox, arch, package, is_static, progress)?;
                let from = built.join(binary);
                std::fs::copy(&from, work.join(binary)).at("copy", &from)?;
            }
            Ok(())
        })?;
        Ok(Programs {
            device: dir.join("rustiot"),
            init: dir.join("rustiot-init"),
            shim: dir.join("rustiot-shim"),
        })
    }
}

fn cargo_home() -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

fn fetch(rust: &Path, arch: Arch, progress: &dyn Progress) -> Result<(), Error> {
    let mut cargo = Command::new("cargo");
    cargo.args(["fetch", "--locked", "--target", arch.rust_target()]).current_dir(rust);
    watched("cargo fetch", &mut cargo, progress)
}

/// Builds `package` and returns the directory with its binaries.
fn compile(
    ctx: &Context,
    toolbox: &Toolbox,
    arch: Arch,
    package: &str,
    is_static: bool,
    progress: &dyn Progress,
) -> Result<PathBuf, Error> {
    let home = cargo_home();
    let kind = if is_static { "static" } else { "dynamic" };
    let target = ctx.cache().join("target").join(format!("{}-{kind}", arch.debian()));
    std::fs::create_dir_all(&target).at("create", &target)?;
    // The same source gives the same bytes wherever the clone, the crates and the cache are, and what one clone compiled
    // of the crates another one need not.
    let places = [(ctx.repo(), "/rustiot"), (&home, "/cargo"), (&target, "/target")];
    let toolbox = places.iter().fold(toolbox.clone(), |t, (path, at)| t.with_path_at(path, Path::new(at)));
    // Held to the end: two clones that build at once take turns.
    let _turn = take_turn(ctx, &toolbox, &target, arch)?;
    // Not relocatable and without unwind tables (it aborts on a panic): a tenth smaller.
    let small = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Cforce-unwind-tables=no"];
    let flags = if is_static { small.join("\x1f") } else { String::new() };
    let mut cargo = toolbox.command("env");
    cargo
        .args(PLACES)
        .arg(format!("CARGO_ENCODED_RUSTFLAGS={flags}"))
        .arg("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc")
        .arg("CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc")
        .args(["SOURCE_DATE_EPOCH=0", "cargo", "build", "--release", "--locked", "--offline"])
        .args(["--target", arch.rust_target(), "-p", package]);
    watched(&format!("cargo build -p {package}"), &mut cargo, progress)?;
    Ok(target.join(arch.rust_target()).join("release"))
}

/// Where Cargo finds everything in the toolbox.
const PLACES: [&str; 4] = ["-C", "/rustiot/rust", "CARGO_HOME=/cargo", "CARGO_TARGET_DIR=/target"];

/// Cargo takes a file for unchanged that is older than what was compiled, which says nothing of another clone's files:
/// our own crates are compiled again when the clone is another one than the last time. Other clones wait until the
/// file that comes back is closed.
fn take_turn(ctx: &Context, toolbox: &Toolbox, target: &Path, arch: Arch) -> Result<File, Error> {
    let lock_path = target.join("turn");
    let lock = File::create(&lock_path).at("create", &lock_path)?;
    lock.lock().at("lock", &lock_path)?;
    let (last, clone) = (target.join("clone"), ctx.repo().display().to_string());
    if std::fs::read_to_string(&last).is_ok_and(|last| last == clone) {
        return Ok(lock);
    }
    let mut clean: Vec<String> = PLACES.map(str::to_owned).into();
    clean.extend(
        ["cargo", "clean", "--release", "--offline", "--target", arch.rust_target()].map(str::to_owned),
    );
    for (name, _) in crate::cache::sorted(&ctx.repo().join("rust/crates"))? {
        clean.extend(["-p".to_owned(), name.to_string_lossy().into_owned()]);
    }
    toolbox.run("env", clean)?;
    crate::cache::write(&last, clone)?;
    Ok(lock)
}
