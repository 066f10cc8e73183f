//! A board file: everything that differs between boards.

use crate::{Error, Finding, Size, parse, read};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One board, as `conf/boards/<name>.toml` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// Name: lower-case letters, digits and dashes; the file is called `<name>.toml`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Processor architecture.
    pub arch: Arch,
    /// RAUC's `compatible`: a bundle for another board is refused by it.
    pub compatible: String,
    /// How the board starts.
    pub boot: Boot,
    /// The hardware watchdog.
    pub watchdog: Watchdog,
    /// Kernel modules.
    pub modules: Modules,
    /// The medium.
    pub storage: Storage,
    /// Budgets; a build over one of them fails.
    pub sizes: Sizes,
    /// How QEMU plays this board; absent on boards that exist as hardware only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<Qemu>,
}

/// Processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit Arm.
    Arm64,
    /// 32-bit Arm, version 7 with hardware floating point.
    Arm,
    /// 64-bit RISC-V with the extensions `gc`.
    Riscv64,
}

impl Arch {
    /// Debian's name of the architecture.
    pub fn debian(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
            Arch::Arm => "armhf",
            Arch::Riscv64 => "riscv64",
        }
    }

    /// U-Boot's name of the architecture in a FIT (boot/image.c).
    pub fn uboot(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64",
            Arch::Arm64 => "arm64",
            Arch::Arm => "arm",
            Arch::Riscv64 => "riscv",
        }
    }

    /// Rust's target triple for dynamically linked programs.
    pub fn rust_target(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64-unknown-linux-gnu",
            Arch::Arm64 => "aarch64-unknown-linux-gnu",
            Arch::Arm => "armv7-unknown-linux-gnueabihf",
            Arch::Riscv64 => "riscv64gc-unknown-linux-gnu",
        }
    }

    /// Debian's multiarch directory.
    pub fn multiarch(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64-linux-gnu",
            Arch::Arm64 => "aarch64-linux-gnu",
            Arch::Arm => "arm-linux-gnueabihf",
            Arch::Riscv64 => "riscv64-linux-gnu",
        }
    }
}

/// How the board starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Which firmware interface carries the selector.
    pub loader: LoaderKind,
    /// Words of the kernel's command line after those of `conf/kernel.toml`.
    pub cmdline: Vec<String>,
    /// Details for `loader = "uefi"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uefi: Option<Uefi>,
    /// Details for `loader = "uboot"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uboot: Option<Uboot>,
    /// Details for `loader = "tryboot"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tryboot: Option<Tryboot>,
}

/// The firmware interface that holds the selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoaderKind {
    /// `BootOrder` and `BootNext`.
    Uefi,
    /// Two CRC'd copies of an environment on the partition `uboot-env`.
    Uboot,
    /// `autoboot.txt` on the partition `autoboot`, and a flag of the Raspberry Pi's firmware.
    Tryboot,
}

impl LoaderKind {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            LoaderKind::Uefi => "uefi",
            LoaderKind::Uboot => "uboot",
            LoaderKind::Tryboot => "tryboot",
        }
    }
}

/// Files of a UEFI boot partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uefi {
    /// What the firmware starts, with `/` between the parts.
    pub removable_path: String,
    /// Where the unified kernel image lies when the watchdog guard stands at `removable_path`.
    pub uki_path: String,
    /// systemd's stub in the toolbox.
    pub stub: String,
}

/// What U-Boot's boot script needs to know (`conf/uboot/boot.cmd.in`). Addresses are physical.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uboot {
    /// The medium's bus, as U-Boot's commands call it: `virtio`, `mmc`, `nvme` ...
    pub interface: String,
    /// The medium's number on that bus.
    pub device: u32,
    /// Commands that make the medium usable.
    pub prepare: Vec<String>,
    /// Parts of the boot script that only some boards need: `conf/uboot/<hook>.cmd.in`.
    pub hooks: Vec<String>,
    /// Where the FIT is loaded. The initramfs stays in it.
    pub fit_load: u64,
    /// Where the kernel goes from there.
    pub kernel_load: u64,
    /// 64 KiB for the script's own work.
    pub scratch: u64,
    /// Where the firmware leaves its device tree; absent when the FIT carries one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_dtb: Option<u64>,
    /// PCI configuration space of bus 0, memory-mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_config: Option<u64>,
    /// Memory that keeps the kernel's crash log over a reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramoops: Option<Ramoops>,
    /// Offsets of the selector's two copies in the partition `uboot-env`, bytes.
    pub env_offsets: [u64; 2],
    /// Size of one copy, bytes.
    pub env_size: u64,
    /// U-Boot's own environment, when the boot script lives there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_env: Option<OwnEnv>,
}

/// What the Raspberry Pi's firmware reads on a slot's own FAT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tryboot {
    /// Lines of `config.txt` after those that every such board has.
    pub config: Vec<String>,
    /// The firmware that lies beside the kernel and belongs to the slot like it; none where it is in the EEPROM.
    pub firmware: Vec<String>,
}

/// Memory that keeps the kernel's crash log (Linux: Documentation/admin-guide/ramoops.rst).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ramoops {
    /// Physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes of one crash record.
    pub record: u64,
}

/// U-Boot's own environment on a flash chip: board area, never written by an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnEnv {
    /// Its size, bytes (`CONFIG_ENV_SIZE` of the U-Boot binary). It lies at the start of the chip.
    pub size: u64,
    /// Size of the chip.
    pub chip: Size,
}

/// The hardware watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watchdog {
    /// Its device node.
    pub device: String,
    /// Drivers, loaded before everything else.
    pub modules: Vec<String>,
    /// Timeout that the loader sets, seconds: covers the time from there to `rustiot-init`'s first feed.
    pub loader_timeout_s: u32,
    /// Timeout that is set from then on, seconds.
    pub timeout_s: u32,
    /// How long `rustiot-init` feeds it before it lets the board reset, seconds from its start.
    pub deadline_s: u32,
}

/// Kernel modules by where they are needed. Dependencies follow by themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Modules {
    /// Loaded by the initramfs, besides the watchdog's, in this order.
    pub initramfs: Vec<String>,
    /// In the initramfs, loaded in rescue only.
    pub rescue: Vec<String>,
    /// In the root, besides `conf/kernel-modules.toml` and all of the above.
    pub root: Vec<String>,
}

/// The medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// The smallest medium that the image may be written to.
    pub min_medium: Size,
}

/// Budgets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Root image: erofs and verity tree.
    pub root: Size,
    /// What lies in the boot partition.
    pub boot: Size,
    /// Uncompressed initramfs.
    pub initramfs: Size,
    /// The multi-call binary, stripped.
    pub device_binary: Size,
    /// `rustiot-init`, stripped.
    pub init: Size,
    /// `rustiot-shim`, stripped.
    pub shim: Size,
}

/// How QEMU plays the board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// Program in the toolbox.
    pub binary: String,
    /// `-machine`.
    pub machine: String,
    /// `-cpu`.
    pub cpu: String,
    /// `-smp`.
    pub cpus: u32,
    /// `-m`, MiB.
    pub memory_mib: u32,
    /// One `-device` each, besides disk, network and console.
    pub devices: Vec<String>,
    /// Further arguments.
    pub args: Vec<String>,
    /// What runs before the loader.
    pub firmware: Firmware,
}

/// QEMU's firmware files, as paths in the toolbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    /// How it is attached.
    pub kind: FirmwareKind,
    /// The code.
    pub code: String,
    /// Template of the variable store; each machine gets its own copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vars: Option<String>,
}

/// How QEMU's firmware is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// Two flash chips: code and variables.
    Pflash,
    /// `-bios` with U-Boot.
    Uboot,
}

impl Board {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is malformed, has an unknown or missing key, or its keys contradict each other.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let (file, text) = read(path)?;
        Board::parse(&file, &text)
    }

    /// Checks `text`, calling it `file` in messages.
    ///
    /// # Errors
    /// As for [`Board::load`].
    pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
        parse(file, text, Board::check)
    }

    /// Every module that the initramfs loads on the way to the root, watchdog first, without dependencies.
    pub fn initramfs_modules(&self) -> impl Iterator<Item = &str> {
        self.watchdog.modules.iter().chain(&self.modules.initramfs).map(String::as_str)
    }

    fn check(&self) -> Result<(), Finding> {
        if !plain(&self.name) {
            return Err(Finding::new(
                "name",
                format!("`{}` is not a board name", self.name),
                "use lower-case letters, digits and dashes",
            ));
        }
        if !plain(&self.compatible) {
            return Err(Finding::new(
                "compatible",
                format!("`{}` is not usable as RAUC's compatible", self.compatible),
                "use lower-case letters, digits and dashes",
            ));
        }
        self.check_boot()?;
        self.check_watchdog()?;
        for (key, size) in [
            ("sizes.root", self.sizes.root),
            ("sizes.boot", self.sizes.boot),
            ("sizes.initramfs", self.sizes.initramfs),
            ("sizes.device_binary", self.sizes.device_binary),
            ("sizes.init", self.sizes.init),
            ("sizes.shim", self.sizes.shim),
            ("storage.min_medium", self.storage.min_medium),
        ] {
            if size.bytes() == 0 {
                return Err(Finding::new(key, "is zero", "state a size such as \"64 MiB\""));
            }
        }
        if let Some(qemu) = &self.qemu
            && qemu.firmware.kind == FirmwareKind::Pflash
            && qemu.firmware.vars.is_none()
        {
            return Err(Finding::new(
                "qemu.firmware.vars",
                "is missing",
                "name the template of the variable store, or use another kind",
            ));
        }
        Ok(())
    }

    fn check_boot(&self) -> Result<(), Finding> {
        let boot = &self.boot;
        let sections = [
            (LoaderKind::Uefi, boot.uefi.is_some()),
            (LoaderKind::Uboot, boot.uboot.is_some()),
            (LoaderKind::Tryboot, boot.tryboot.is_some()),
        ];
        let needed = sections.contains(&(boot.loader, true));
        let other = sections.iter().any(|(loader, there)| *loader != boot.loader && *there);
        let key = format!("boot.{}", boot.loader.name());
        if !needed {
            return Err(Finding::new(
                key,
                "the section is missing",
                format!("add it, or change boot.loader from \"{}\"", self.boot.loader.name()),
            ));
        }
        if other {
            return Err(Finding::new(
                "boot",
                format!("has a section that loader \"{}\" does not use", self.boot.loader.name()),
                format!("keep {key} only"),
            ));
        }
        if let Some(bad) =
            self.boot.cmdline.iter().find(|w| w.is_empty() || w.chars().any(char::is_whitespace))
        {
            return Err(Finding::new(
                "boot.cmdline",
                format!("`{bad}` is not one word"),
                "write each word as an entry of its own",
            ));
        }
        if let Some(uefi) = &self.boot.uefi {
            for (key, path) in
                [("boot.uefi.removable_path", &uefi.removable_path), ("boot.uefi.uki_path", &uefi.uki_path)]
            {
                relative_path(key, path)?;
            }
            if uefi.removable_path.eq_ignore_ascii_case(&uefi.uki_path) {
                return Err(Finding::new(
                    "boot.uefi.uki_path",
                    "is the same file as removable_path",
                    "choose another name",
                ));
            }
        }
        if let Some(tryboot) = &self.boot.tryboot {
            if let Some(bad) = tryboot.config.iter().find(|line| line.contains(['\n', '\r', '['])) {
                return Err(Finding::new(
                    "boot.tryboot.config",
                    format!("`{bad}` is not one line that holds on every start"),
                    "write one setting an entry, without filters",
                ));
            }
            for file in &tryboot.firmware {
                relative_path("boot.tryboot.firmware", file)?;
            }
        }
        if let Some(uboot) = &self.boot.uboot {
            if let Some(bad) = uboot.hooks.iter().find(|h| !plain(h)) {
                return Err(Finding::new(
                    "boot.uboot.hooks",
                    format!("`{bad}` is not a hook's name"),
                    "name a file conf/uboot/<hook>.cmd.in",
                ));
            }
            let [a, b] = uboot.env_offsets;
            if uboot.env_size == 0 || a.abs_diff(b) < uboot.env_size {
                return Err(Finding::new(
                    "boot.uboot.env_offsets",
                    format!("the two copies of {} bytes overlap", uboot.env_size),
                    "move them at least boot.uboot.env_size apart",
                ));
            }
        }
        Ok(())
    }

    fn check_watchdog(&self) -> Result<(), Finding> {
        for (key, seconds) in [
            ("watchdog.loader_timeout_s", self.watchdog.loader_timeout_s),
            ("watchdog.timeout_s", self.watchdog.timeout_s),
        ] {
            if seconds == 0 {
                return Err(Finding::new(key, "is zero", "state seconds that the hardware can count"));
            }
        }
        if self.watchdog.deadline_s < self.watchdog.timeout_s {
            return Err(Finding::new(
                "watchdog.deadline_s",
                format!(
                    "{} s is shorter than one timeout of {} s",
                    self.watchdog.deadline_s, self.watchdog.timeout_s
                ),
                "make it at least as long",
            ));
        }
        if !self.watchdog.device.starts_with("/dev/") {
            return Err(Finding::new(
                "watchdog.device",
                format!("`{}` is no device node", self.watchdog.device),
                "name a file below /dev",
            ));
        }
        Ok(())
    }
}

fn plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn relative_path(key: &str, path: &str) -> Result<(), Finding> {
    let bad = path.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if bad {
        Err(Finding::new(
            key,
            format!("`{path}` is not a plain relative path"),
            "write it like EFI/BOOT/BOOTX64.EFI",
        ))
    } else {
        Ok(())
    }
}
