//! The device's own programs, built in the toolbox against the C library of the release that they will run on.
//! Crates are fetched on the workstation; the build itself is offline.

use crate::cache::{Key, stage};
use crate::context::{Context, Progress};
use crate::error::{At, Error};
use crate::toolbox::{Toolbox, watched};
use rustiot_board::Arch;
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
        let mut key = Key::new("programs 3")
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
    // The same source gives the same bytes wherever the clone, the crates and the cache are.
    let mut flags = vec![
        format!("--remap-path-prefix={}=/rustiot", ctx.repo().display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        format!("--remap-path-prefix={}=/target", target.display()),
    ];
    if is_static {
        // Not relocatable and without unwind tables (it aborts on a panic): a tenth smaller.
        let small = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Cforce-unwind-tables=no"];
        flags.extend(small.map(str::to_owned));
    }
    let mut cargo = toolbox.clone().with_path(&home).command("env");
    cargo
        .current_dir(ctx.repo().join("rust"))
        .arg(format!("CARGO_HOME={}", home.display()))
        .arg(format!("CARGO_TARGET_DIR={}", target.display()))
        .arg(format!("CARGO_ENCODED_RUSTFLAGS={}", flags.join("\x1f")))
        .arg("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc")
        .arg("CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc")
        .args(["SOURCE_DATE_EPOCH=0", "cargo", "build", "--release", "--locked", "--offline"])
        .args(["--target", arch.rust_target(), "-p", package]);
    watched(&format!("cargo build -p {package}"), &mut cargo, progress)?;
    Ok(target.join(arch.rust_target()).join("release"))
}
