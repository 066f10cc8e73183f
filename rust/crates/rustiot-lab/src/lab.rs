//! Everything that machines of all boards share: repository, cache, toolbox, the key to log in.

use anyhow::{Context as _, Result, anyhow};
use rustiot_board::{Arch, Board, FirmwareKind};
use rustiot_image::keys::{self, SshKey};
use rustiot_image::{Context, Progress, Toolbox};
use std::path::{Path, PathBuf};
use testbed::{Firmware, Scratch, Spec, Tools};

/// `health.settle` of lab machines, seconds.
pub const SETTLE_S: u32 = 2;

/// The workstation's side of the lab.
#[derive(Debug, Clone)]
pub struct Lab {
    /// Repository and cache.
    pub context: Context,
    /// Where QEMU and friends live.
    pub toolbox: Toolbox,
}

impl Lab {
    /// The lab of a clone, with its toolbox (built if the cache has none).
    pub fn open(context: Context, progress: &dyn Progress) -> Result<Self> {
        let toolbox = Toolbox::ensure(&context, progress)?;
        Ok(Lab { context, toolbox })
    }

    /// All boards that QEMU can play, the workstation's own kind first: it is the quicker one.
    pub fn boards(context: &Context) -> Result<Vec<Board>> {
        let mut boards = Vec::new();
        for name in rustiot_image::boards(context)? {
            let board = rustiot_image::board(context, &name)?;
            if board.qemu.is_some() {
                boards.push(board);
            }
        }
        boards.sort_by_key(|board| !is_native(board.arch));
        Ok(boards)
    }

    /// How programs of the toolbox are started.
    pub fn tools(&self) -> Tools {
        let toolbox = self.toolbox.clone();
        let remedy = toolbox.remedy();
        Tools::new(move |program| toolbox.command(program)).with_remedy(&remedy)
    }

    /// The machine that plays `board`.
    pub fn spec(&self, board: &Board) -> Result<Spec> {
        let name = &board.name;
        let mut qemu = board.qemu.clone().ok_or_else(|| anyhow!("QEMU cannot play {name}"))?;
        let in_toolbox = |path: &str| self.toolbox.root().join(path.trim_start_matches('/'));
        let firmware = match qemu.firmware.kind {
            FirmwareKind::Pflash => {
                let vars = qemu.firmware.vars.as_deref().context("the board file names no vars")?;
                Firmware::Pflash { code: qemu.firmware.code.into(), vars: in_toolbox(vars) }
            }
            FirmwareKind::Uboot => Firmware::Bios(qemu.firmware.code.into()),
        };
        if board.boot.uboot.as_ref().is_some_and(|uboot| uboot.own_env.is_some()) {
            // The board area: the loader's own environment with the boot script, on a chip that nothing writes.
            let chip = self.context.cache().join(format!("{name}-flash.img"));
            rustiot_image::fit::write_own_env(&self.context.conf("uboot"), board, &chip)?;
            let drive = format!("if=pflash,unit=1,format=raw,readonly=on,file={}", chip.display());
            qemu.args.extend(["-drive".into(), drive]);
        }
        Ok(Spec {
            program: qemu.binary,
            machine: qemu.machine,
            cpu: qemu.cpu,
            cpus: qemu.cpus,
            memory_mib: qemu.memory_mib,
            accel: accelerator(board.arch),
            devices: qemu.devices,
            args: qemu.args,
            firmware,
            tools: self.tools(),
        })
    }

    /// Where machines' directories are. Short, for the sockets in them.
    pub fn machines(&self) -> PathBuf {
        self.context.cache().join("run")
    }

    /// A fresh directory for a machine that goes with its value.
    pub fn scratch(&self, name: &str) -> Result<Scratch> {
        Ok(Scratch::new(&self.machines(), name)?)
    }

    /// Where failed tests leave their logs.
    pub fn test_logs(&self) -> PathBuf {
        self.context.repo().join("build/test-logs")
    }

    /// Where development keys are: in the clone, outside git.
    pub fn keys(&self) -> PathBuf {
        self.context.repo().join("keys")
    }

    /// What logs in to machines of this lab.
    pub fn ssh_key(&self) -> Result<SshKey> {
        Ok(keys::ssh_key(&self.toolbox, &self.keys())?)
    }

    /// The `rustiot.toml` of lab machines: our key, and no longer to settle, soak and
    /// wait than it takes on a slow machine.
    pub fn config(&self) -> Result<String> {
        let key = self.ssh_key()?.public;
        Ok(format!(
            "[ssh]\nauthorized_keys = [\"{key}\"]\n[health]\nsettle = \"{SETTLE_S}s\"\nsoak = \"5s\"\ndeadline = \"3m\"\n"
        ))
    }

    /// Puts `config` as `rustiot.toml` on the config partition of the raw image `disk`: what a
    /// person does who puts the card in a PC and edits the file.
    pub fn configure(&self, disk: &Path, config: &[u8]) -> Result<()> {
        let start = testbed::partition_start(disk, "config")?;
        let text = disk.with_extension("toml");
        std::fs::write(&text, config).with_context(|| format!("cannot write {}", text.display()))?;
        let image = format!("{}@@{start}", disk.display());
        let args = ["-o", "-i", &image, &text.to_string_lossy(), "::rustiot.toml"];
        self.tools().run("mcopy", &args)?;
        Ok(())
    }
}

/// `RUSTIOT_ACCEL`, or emulation: what works everywhere. Hardware acceleration is opt-in because a
/// `/dev/kvm` that is there need not work.
fn accelerator(arch: Arch) -> String {
    let wanted = std::env::var("RUSTIOT_ACCEL").unwrap_or_default();
    if wanted == "kvm" && is_native(arch) { "kvm".into() } else { "tcg,thread=multi".into() }
}

/// Whether this workstation is of that architecture.
fn is_native(arch: Arch) -> bool {
    let ours = std::env::consts::ARCH;
    matches!(
        (arch, ours),
        (Arch::Amd64, "x86_64") | (Arch::Arm64, "aarch64") | (Arch::Arm, "arm") | (Arch::Riscv64, "riscv64")
    )
}
