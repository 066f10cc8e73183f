//! What a board that starts by U-Boot needs besides its root: the boot script, the FIT of a slot, the first content of
//! the partition `uboot-env`, and the flash chip with U-Boot's own environment. docs/contracts/firmware.md has the
//! formats.
//!
//! Everything here is a pure function of its arguments (same inputs, same bytes), but for [`build_fit`], which runs
//! `mkimage` in the toolbox. It never writes to a device. The image builder calls it.

use rustiot_board::{Arch, Board, Uboot};
use rustiot_loader::env::Env;
use rustiot_scratch::Scratch;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The configuration that U-Boot is told to start.
const FIT_CONFIGURATION: &str = "slot";
/// U-Boot counts the medium in blocks of this size.
const BLOCK: u64 = 512;
/// What the kernel's own header says about the memory that it wants lies here.
/// Linux: Documentation/arch/arm64/booting.rst.
const ARM64_HEADER: usize = 64;

/// Why a boot artefact could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The board file has no section `[boot.uboot]`.
    #[error("board {board} does not start by U-Boot")]
    NotUboot {
        /// The board.
        board: String,
    },
    /// A file could not be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A script asks for a value that the board file does not give.
    #[error("{template} needs `@{name}@`, which board {board} does not state")]
    Missing {
        /// The script.
        template: String,
        /// The placeholder.
        name: String,
        /// The board.
        board: String,
    },
    /// A name or value cannot stand in an environment block.
    #[error("`{0}` cannot be stored in a U-Boot environment")]
    Variable(String),
    /// The variables need more room than the block has.
    #[error("a U-Boot environment of {size} bytes is too small, {needed} are needed")]
    EnvFull {
        /// Size of the block, bytes.
        size: u64,
        /// What it would need, bytes.
        needed: usize,
    },
    /// The selector's copies do not fit into their partition.
    #[error("the partition uboot-env of {size} bytes is too small for the selector's copies")]
    PartitionSmall {
        /// Size of the partition, bytes.
        size: u64,
    },
    /// Not the kind of kernel that U-Boot starts on this board.
    #[error("{path} is not an uncompressed arm64 kernel image")]
    Kernel {
        /// The kernel.
        path: PathBuf,
    },
    /// The unpacked kernel would lie over what the loader still needs.
    #[error("{path} needs {needed} bytes of memory from {load:#x}, the board leaves it {room}")]
    KernelLarge {
        /// The kernel.
        path: PathBuf,
        /// Where it goes.
        load: u64,
        /// Memory that it needs, bytes.
        needed: u64,
        /// Memory that it has, bytes.
        room: u64,
    },
    /// `mkimage` failed.
    #[error("mkimage failed ({status}): {output}")]
    Mkimage {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        output: String,
    },
}

/// What goes into the FIT of a slot.
#[derive(Clone, Copy, Debug)]
pub struct FitParts<'a> {
    /// Uncompressed arm64 `Image`.
    pub kernel: &'a Path,
    /// The whole initramfs: base and the segment with the verity data.
    pub initramfs: &'a Path,
    /// The kernel's command line, without `rustiot.boot=`, which the boot script adds.
    pub cmdline: &'a str,
}

/// Builds the FIT of a slot at `out`; the same for both slots. `tool` makes a command that runs a program in the
/// toolbox, where `work` and the parts' paths must be visible. Files are left in `work`.
///
/// # Errors
/// The kernel is none or too large for the board, a file cannot be used, or `mkimage` fails.
pub fn build_fit(
    tool: &dyn Fn(&str) -> Command,
    board: &Board,
    parts: FitParts<'_>,
    work: &Path,
    out: &Path,
) -> Result<(), Error> {
    let uboot = uboot(board)?;
    check_kernel(parts.kernel, uboot)?;
    let args = work.join("bootargs.txt");
    write(&args, cmdline_variable(parts.cmdline)?.as_bytes())?;
    let source = work.join("fit.its");
    write(&source, fit_source(board.arch, uboot, parts, &args).as_bytes())?;
    // `env`, because the toolbox may clear the environment; the date is what makes the file reproducible.
    let output = tool("env")
        .args([OsStr::new("SOURCE_DATE_EPOCH=0"), "mkimage".as_ref(), "-f".as_ref()])
        .arg(&source)
        .arg(out)
        .output()
        .map_err(|source| Error::File { path: "mkimage".into(), source })?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::Mkimage { status: output.status, output: said })
    }
}

/// The FIT's source text (U-Boot: doc/usage/fit/source_file_format.rst).
///
/// The command line is an image of its own, so that a hash covers it, and part of the configuration, so that a
/// signature would.
fn fit_source(arch: Arch, uboot: &Uboot, parts: FitParts<'_>, cmdline: &Path) -> String {
    let arch = arch.uboot();
    let load = format!("<{:#x} {:#x}>", uboot.kernel_load >> 32, uboot.kernel_load & 0xffff_ffff);
    let image = |name: &str, kind: &str, data: &Path, rest: &str| {
        format!(
            "\t\t{name} {{\n\t\t\tdata = /incbin/(\"{data}\");\n\t\t\ttype = \"{kind}\";\n\t\t\tarch = \"{arch}\";\n\
             \t\t\tos = \"linux\";\n\t\t\tcompression = \"none\";\n{rest}\t\t\thash {{ algo = \"sha256\"; }};\n\t\t}};\n",
            data = data.display(),
        )
    };
    let at = format!("\t\t\tload = {load};\n\t\t\tentry = {load};\n");
    format!(
        "/dts-v1/;\n\n/ {{\n\tdescription = \"RustIoT OS boot slot\";\n\t#address-cells = <2>;\n\n\timages {{\n{}{}{}\t}};\n\n\
         \tconfigurations {{\n\t\tdefault = \"{FIT_CONFIGURATION}\";\n\t\t{FIT_CONFIGURATION} {{\n\t\t\tkernel = \"kernel\";\n\
         \t\t\tramdisk = \"ramdisk\";\n\t\t\tloadables = \"bootargs\";\n\t\t}};\n\t}};\n}};\n",
        image("kernel", "kernel", parts.kernel, &at),
        image("ramdisk", "ramdisk", parts.initramfs, ""),
        image("bootargs", "firmware", cmdline, ""),
    )
}

/// The command line as the one variable that the boot script imports.
fn cmdline_variable(cmdline: &str) -> Result<String, Error> {
    if cmdline.contains(['\n', '\0']) {
        return Err(Error::Variable(cmdline.into()));
    }
    Ok(format!("bootargs={cmdline}\n"))
}

fn check_kernel(path: &Path, uboot: &Uboot) -> Result<(), Error> {
    let mut header = [0; ARM64_HEADER];
    fs::File::open(path)
        .and_then(|mut f| f.read_exact(&mut header))
        .map_err(|source| Error::File { path: path.into(), source })?;
    let needed = image_size(&header).ok_or_else(|| Error::Kernel { path: path.into() })?;
    let room = uboot.scratch.min(uboot.fit_load).saturating_sub(uboot.kernel_load);
    if needed > room {
        return Err(Error::KernelLarge { path: path.into(), load: uboot.kernel_load, needed, room });
    }
    Ok(())
}

/// Memory that an arm64 kernel needs from its load address on, bytes; `None` if this is no such header.
fn image_size(header: &[u8; ARM64_HEADER]) -> Option<u64> {
    let magic = header.get(56..60)?;
    let size = header.get(16..24)?.try_into().ok()?;
    (magic == b"ARM\x64").then(|| u64::from_le_bytes(size))
}

/// The boot script of `board`, made from `conf/uboot/boot.cmd.in` and the board's hooks. `templates` is `conf/uboot`.
///
/// # Errors
/// The board does not start by U-Boot, a template cannot be read, or it needs a value that the board file lacks.
pub fn boot_script(templates: &Path, board: &Board) -> Result<String, Error> {
    let uboot = uboot(board)?;
    let read = |name: &str| {
        let path = templates.join(format!("{name}.cmd.in"));
        fs::read_to_string(&path).map_err(|source| Error::File { path, source })
    };
    let mut hooks = Vec::new();
    for hook in &uboot.hooks {
        hooks.push(fill(hook, &read(hook)?, board, |name| board_value(board, uboot, name))?);
    }
    let hooks = hooks.concat();
    fill("boot", &read("boot")?, board, |name| match name {
        "hooks" => Some(hooks.trim_end().to_owned()),
        _ => board_value(board, uboot, name),
    })
}

/// The value of a placeholder. U-Boot reads numbers as hexadecimal, without a prefix; the device's number is decimal.
fn board_value(board: &Board, uboot: &Uboot, name: &str) -> Option<String> {
    let hex = |n: u64| Some(format!("{n:x}"));
    match name {
        "interface" => Some(uboot.interface.clone()),
        "device" => Some(uboot.device.to_string()),
        "prepare" => Some(uboot.prepare.join("\n")),
        "fit_load" => hex(uboot.fit_load),
        "scratch" => hex(uboot.scratch),
        "env_size" => hex(uboot.env_size),
        "env_blocks" => hex(uboot.env_size / BLOCK),
        "copies" => Some(uboot.env_offsets.map(|at| format!("{:x}", at / BLOCK)).join(" ")),
        "firmware_dtb" => uboot.firmware_dtb.and_then(hex),
        "pci_config" => uboot.pci_config.and_then(hex),
        "ramoops" => uboot.ramoops.as_ref().and_then(|r| hex(r.address)),
        "ramoops_size" => uboot.ramoops.as_ref().and_then(|r| hex(r.size)),
        "ramoops_record" => uboot.ramoops.as_ref().and_then(|r| hex(r.record)),
        // Two stages of half the time each, in ticks of 1/1024 s.
        "i6300esb_ticks" => hex(u64::from(board.watchdog.loader_timeout_s) * 512),
        _ => None,
    }
}

/// Replaces each `@name@` and drops comments and empty lines: U-Boot's own environment is small.
fn fill(
    template: &str,
    text: &str,
    board: &Board,
    value: impl Fn(&str) -> Option<String>,
) -> Result<String, Error> {
    let mut out = String::new();
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')) {
        let start = out.len();
        let mut rest = line;
        while let Some((before, after)) = rest.split_once('@') {
            out.push_str(before);
            match after.split_once('@') {
                Some((name, tail)) if is_placeholder(name) => {
                    out.push_str(&value(name).ok_or_else(|| Error::Missing {
                        template: template.into(),
                        name: name.into(),
                        board: board.name.clone(),
                    })?);
                    rest = tail;
                }
                _ => {
                    out.push('@');
                    rest = after;
                }
            }
        }
        out.push_str(rest);
        if out.len() > start {
            out.push('\n');
        }
    }
    Ok(out)
}

fn is_placeholder(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// A U-Boot environment of `size` bytes.
fn env_block(size: u64, variables: &[(&str, &str)]) -> Result<Vec<u8>, Error> {
    let mut env = Env::default();
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) || value.is_empty() || value.contains('\0') {
            return Err(Error::Variable(format!("{name}={value}")));
        }
        env.set(name, value);
    }
    // A size that is no usize is too large for any machine that builds this.
    env.to_bytes(usize::try_from(size).unwrap_or(usize::MAX))
        .map_err(|needed| Error::EnvFull { size, needed })
}

/// The first content of the partition `uboot-env`, `size` bytes: both copies valid, slot a the default.
///
/// # Errors
/// The board does not start by U-Boot, or the copies do not fit.
pub fn selector_partition(board: &Board, size: u64) -> Result<Vec<u8>, Error> {
    let uboot = uboot(board)?;
    let small = || Error::PartitionSmall { size };
    let mut partition = vec![0; usize::try_from(size).map_err(|_| small())?];
    for (offset, generation) in uboot.env_offsets.into_iter().zip(["2", "1"]) {
        let copy = env_block(uboot.env_size, &[("slot_default", "a"), ("slot_gen", generation)])?;
        usize::try_from(offset)
            .ok()
            .and_then(|start| partition.get_mut(start..start.checked_add(copy.len())?))
            .ok_or_else(small)?
            .copy_from_slice(&copy);
    }
    Ok(partition)
}

/// Writes the flash chip that holds U-Boot's own environment, with the boot script in it, to `out` (a sparse file).
/// Without a delay and without a key that stops it: the board's console is no way in.
///
/// # Errors
/// The board has no such chip, the script cannot be made or is too long, or the file cannot be written.
pub fn write_own_env(templates: &Path, board: &Board, out: &Path) -> Result<(), Error> {
    let own = uboot(board)?.own_env.as_ref().ok_or_else(|| Error::NotUboot { board: board.name.clone() })?;
    let script = boot_script(templates, board)?;
    let block = env_block(
        own.size,
        &[
            ("baudrate", "115200"),
            ("bootcmd", script.trim_end()),
            ("bootdelay", "-2"),
            // Device tree and initramfs stay where they are.
            ("fdt_high", "ffffffffffffffff"),
            ("initrd_high", "ffffffffffffffff"),
            ("stderr", "serial"),
            ("stdin", "serial"),
            ("stdout", "serial"),
        ],
    )?;
    // In one step: machines that run have the old file open.
    let dir = out.parent().unwrap_or(Path::new("."));
    let failed = |source| Error::File { path: out.into(), source };
    let work = Scratch::new(dir, ".flash").map_err(|error| failed(error.source))?;
    let made = work.file("flash.img");
    let file = std::fs::File::create(&made).and_then(|mut file| {
        file.write_all(&block)?;
        file.set_len(own.chip.bytes())
    });
    file.and_then(|()| publish(&made, out)).map_err(failed)
}

#[expect(clippy::disallowed_methods, reason = "a build product: a build that is cut short starts over")]
fn publish(made: &Path, out: &Path) -> std::io::Result<()> {
    std::fs::rename(made, out)
}

fn uboot(board: &Board) -> Result<&Uboot, Error> {
    board.boot.uboot.as_ref().ok_or_else(|| Error::NotUboot { board: board.name.clone() })
}

#[expect(clippy::disallowed_methods, reason = "a build product: a build that is cut short starts over")]
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(|source| Error::File { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn conf() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../conf")
    }

    fn board(name: &str) -> Board {
        Board::load(&conf().join("boards").join(format!("{name}.toml"))).expect(name)
    }

    fn arm() -> Board {
        board("qemuarm64")
    }

    /// What Debian's U-Boot 2025.01 wrote with `env export -c -s 4000` for these two variables.
    #[test]
    fn an_environment_block_is_what_uboot_writes() {
        let block = env_block(0x4000, &[("slot_default", "a"), ("slot_gen", "10")]).expect("fits");
        assert_eq!(block.len(), 0x4000);
        assert_eq!(block[..4], [0xaa, 0xda, 0x9c, 0x9d]);
        assert_eq!(&block[4..32], b"slot_default=a\0slot_gen=10\0\0");
        assert!(block[32..].iter().all(|b| *b == 0));
    }

    #[test]
    fn an_environment_block_is_full_to_the_last_byte() {
        // Checksum, "a=", value, two zeros.
        let value = "x".repeat(64 - 4 - 2 - 2);
        assert_eq!(env_block(64, &[("a", &value)]).expect("fits").len(), 64);
        let long = format!("{value}x");
        assert!(matches!(env_block(64, &[("a", &long)]), Err(Error::EnvFull { size: 64, needed: 65 })));
    }

    #[test]
    fn what_an_environment_cannot_hold_is_refused() {
        for bad in [("", "a"), ("a=b", "c"), ("a\0b", "c"), ("a", "b\0c"), ("a", "")] {
            assert!(matches!(env_block(64, &[bad]), Err(Error::Variable(_))), "{bad:?}");
        }
    }

    #[test]
    fn the_first_selector_has_two_valid_copies_and_slot_a() {
        let partition = selector_partition(&arm(), 1 << 20).expect("fits");
        assert_eq!(partition.len(), 1 << 20);
        for (at, generation) in [(0, "2"), (0x10000, "1")] {
            let wanted = env_block(0x4000, &[("slot_default", "a"), ("slot_gen", generation)]).expect("fits");
            assert_eq!(partition[at..at + 0x4000], wanted);
        }
        assert!(matches!(selector_partition(&arm(), 0x12000), Err(Error::PartitionSmall { size: 0x12000 })));
        assert!(matches!(selector_partition(&board("qemux86-64"), 1 << 20), Err(Error::NotUboot { .. })));
    }

    #[test]
    fn the_boot_script_is_complete() {
        let script = boot_script(&conf().join("uboot"), &arm()).expect("script");
        assert!(!script.lines().any(|l| l.is_empty() || l.starts_with('#')));
        assert!(script.contains("setenv fit 50000000\n"));
        assert!(script.contains("for at in 0 80; do\n"));
        assert!(script.contains("/reserved-memory/ramoops@40200000 reg <0 0x40200000 0 0x100000>"));
        assert!(script.contains("mw.l ${timer1} f000\n"), "120 s in two stages");
        // The one-shot choice is spent before the first attempt to start a slot.
        let at = |what: &str| script.find(what).expect(what);
        assert!(at("\nif run write_copy; then setenv slot ${next}") < at("\nrun boot_slot"));
        assert!(at("\nrun arm_watchdog\nvirtio scan\n") < at("\nif part start"));
    }

    #[test]
    fn a_board_without_a_needed_value_is_refused() {
        let mut board = arm();
        board.boot.uboot.as_mut().expect("section").pci_config = None;
        let error = boot_script(&conf().join("uboot"), &board).expect_err("missing").to_string();
        assert_eq!(error, "watchdog-i6300esb needs `@pci_config@`, which board qemuarm64 does not state");
    }

    #[test]
    fn a_board_without_hooks_has_a_script() {
        let mut board = arm();
        board.boot.uboot.as_mut().expect("section").hooks.clear();
        let script = boot_script(&conf().join("uboot"), &board).expect("script");
        assert!(script.contains("setenv devicetree\nrun arm_watchdog\n"));
    }

    #[test]
    fn the_flash_chip_is_the_environment_and_nothing_else() {
        let dir = tempfile::tempdir().expect("dir");
        let chip = dir.path().join("chip");
        write_own_env(&conf().join("uboot"), &arm(), &chip).expect("chip");
        let bytes = fs::read(&chip).expect("chip");
        assert_eq!(bytes.len(), 64 << 20);
        assert_eq!(bytes[..4], crc32fast::hash(&bytes[4..0x40000]).to_le_bytes());
        assert!(bytes[0x40000..].iter().all(|b| *b == 0));
    }

    #[test]
    fn memory_areas_of_the_board_do_not_overlap() {
        let board = arm();
        let uboot = board.boot.uboot.as_ref().expect("section");
        let ramoops = uboot.ramoops.as_ref().expect("ramoops");
        let dtb = uboot.firmware_dtb.expect("dtb");
        assert!(dtb + 0x10_0000 <= ramoops.address);
        assert!(ramoops.address + ramoops.size <= uboot.kernel_load);
        assert!(uboot.scratch + 2 * uboot.env_size <= uboot.fit_load);
        assert_eq!(uboot.kernel_load % (2 << 20), 0, "arm64 kernels start at a multiple of 2 MiB");
    }

    fn kernel(size: u64) -> Vec<u8> {
        let mut header = vec![0; ARM64_HEADER];
        header[16..24].copy_from_slice(&size.to_le_bytes());
        header[56..60].copy_from_slice(b"ARM\x64");
        header
    }

    #[test]
    fn the_wrong_kernel_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("kernel");
        let parts = FitParts { kernel: &path, initramfs: &path, cmdline: "quiet" };
        let build = || build_fit(&|_| unreachable!(), &arm(), parts, dir.path(), &dir.path().join("fit"));
        write(&path, &[0x1f; 100]).expect("gzip");
        assert!(matches!(build(), Err(Error::Kernel { .. })));
        write(&path, b"short").expect("short");
        assert!(matches!(build(), Err(Error::File { .. })));
        write(&path, &kernel(1 << 30)).expect("large");
        assert!(matches!(build(), Err(Error::KernelLarge { needed: 0x4000_0000, .. })));
    }

    #[test]
    fn mkimage_is_asked_for_a_reproducible_file() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("kernel");
        write(&path, &kernel(1 << 20)).expect("kernel");
        let parts = FitParts { kernel: &path, initramfs: &path, cmdline: "console=ttyAMA0 quiet" };
        let echo = |program: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo \"$@\" > \"$0\""]).arg(dir.path().join("asked")).arg(program);
            command
        };
        build_fit(&echo, &arm(), parts, dir.path(), Path::new("/out/fit")).expect("runs");
        let asked = fs::read_to_string(dir.path().join("asked")).expect("asked");
        let source = dir.path().join("fit.its");
        assert_eq!(asked, format!("env SOURCE_DATE_EPOCH=0 mkimage -f {} /out/fit\n", source.display()));
        let source = fs::read_to_string(source).expect("source");
        assert!(source.contains("load = <0x0 0x40400000>;"));
        assert_eq!(source.matches("sha256").count(), 3);
        let args = fs::read_to_string(dir.path().join("bootargs.txt")).expect("args");
        assert_eq!(args, "bootargs=console=ttyAMA0 quiet\n");
    }

    #[test]
    fn a_failed_mkimage_is_reported_with_its_words() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("kernel");
        write(&path, &kernel(1 << 20)).expect("kernel");
        let parts = FitParts { kernel: &path, initramfs: &path, cmdline: "quiet" };
        let fails = |_: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo no space >&2; exit 1"]);
            command
        };
        let error = build_fit(&fails, &arm(), parts, dir.path(), &dir.path().join("fit")).expect_err("fails");
        assert!(error.to_string().contains("no space"), "{error}");
    }

    #[test]
    fn a_command_line_is_one_line() {
        assert!(cmdline_variable("a\nbootcmd=reset").is_err());
    }

    proptest! {
        #[test]
        fn filling_a_template_never_panics_and_leaves_no_known_placeholder(text in ".{0,200}") {
            let board = arm();
            if let Ok(out) = fill("t", &text, &board, |n| (n == "x").then(|| "1".into())) {
                prop_assert!(!out.contains("@x@"));
            }
        }
    }
}
