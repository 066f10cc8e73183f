//! The UEFI guard (`conf/efi-guard/guard.c`): the small program between the firmware and the kernel that checks the
//! kernel and arms the hardware watchdog. docs/contracts/firmware.md says what lies where on a slot's boot partition.
//!
//! Builds it with the toolbox's compiler, the same bytes for the same board, and makes the checksum that it looks for.
//! It never writes to a device. The image builder calls it.

use rustiot_board::{Arch, Board, Uefi};
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The board does not start by UEFI on x86-64.
    #[error("there is no UEFI guard for board {board}: it needs boot.loader \"uefi\" and arch \"amd64\"")]
    Unsupported {
        /// The board.
        board: String,
    },
    /// A program of the toolbox could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program of the toolbox failed.
    #[error("{program} failed ({status}): {output}")]
    Tool {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
}

/// For the compiler. The firmware's calling convention in plain calls, no red zone (interrupts use the stack), nothing
/// that would need a runtime.
const CFLAGS: [&str; 16] = [
    "-std=c11",
    "-Os",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fpic",
    "-fshort-wchar",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mno-red-zone",
    "-maccumulate-outgoing-args",
    "-DGNU_EFI_USE_MS_ABI",
    "-isystem/usr/include/efi",
];
/// Sections that a UEFI program consists of; the rest is for debuggers.
const SECTIONS: [&str; 6] = [".text", ".data", ".dynamic", ".dynsym", ".rodata", ".reloc"];

/// Builds the guard of `board` at `out` from the sources in `sources` (`conf/efi-guard`). `tool` makes a command that
/// runs a program in the toolbox, where all paths must be visible. Intermediate files are left in `work`.
///
/// # Errors
/// The board is none that a guard exists for, or a program of the toolbox fails.
pub fn build_guard(
    tool: &dyn Fn(&str) -> Command,
    sources: &Path,
    board: &Board,
    work: &Path,
    out: &Path,
) -> Result<(), Error> {
    let uefi = uefi(board)?;
    let (object, linked) = (work.join("guard.o"), work.join("guard.so"));
    run(
        "gcc",
        tool("gcc")
            .args(CFLAGS)
            .args(defines(board, uefi))
            .arg("-c")
            .arg("-o")
            .args([&object, &sources.join("guard.c")]),
    )?;
    run(
        "ld",
        tool("ld")
            .args(["-nostdlib", "-znocombreloc", "-znoexecstack", "-shared", "-Bsymbolic", "--no-undefined"])
            .args(["--build-id=none", "-T", "/usr/lib/elf_x86_64_efi.lds", "/usr/lib/crt0-efi-x86_64.o"])
            .arg(&object)
            .args(["/usr/lib/libgnuefi.a", "-o"])
            .arg(&linked),
    )?;
    // Subsystem 10: EFI application. The date is what makes the file reproducible.
    run(
        "objcopy",
        tool("env")
            .args(["SOURCE_DATE_EPOCH=0", "objcopy", "--target=efi-app-x86_64", "--subsystem=10"])
            .args(SECTIONS.map(|name| format!("--only-section={name}")))
            .args([&linked, out]),
    )
}

/// What the source is told about the board.
fn defines(board: &Board, uefi: &Uefi) -> [String; 2] {
    [
        format!("-DTIMEOUT_S={}", board.watchdog.loader_timeout_s),
        format!("-DKERNEL=L\"\\\\{}\"", uefi.uki_path.replace('/', "\\\\")),
    ]
}

/// Where the checksum of the unified kernel image lies on the boot partition, with `/` between the parts.
///
/// # Errors
/// The board is none that a guard exists for.
pub fn checksum_path(board: &Board) -> Result<String, Error> {
    Ok(format!("{}.crc", uefi(board)?.uki_path))
}

/// The content of that file: CRC-32 of the unified kernel image as UEFI's `CalculateCrc32` counts it, little endian.
pub fn checksum(kernel: &[u8]) -> [u8; 4] {
    crc32fast::hash(kernel).to_le_bytes()
}

fn uefi(board: &Board) -> Result<&Uefi, Error> {
    board
        .boot
        .uefi
        .as_ref()
        .filter(|_| board.arch == Arch::Amd64)
        .ok_or_else(|| Error::Unsupported { board: board.name.clone() })
}

fn run(program: &'static str, command: &mut Command) -> Result<(), Error> {
    let output = command.output().map_err(|source| Error::Start { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Tool { program, status: output.status, output: said })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(name: &str) -> Board {
        let boards = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../conf/boards");
        Board::load(&boards.join(format!("{name}.toml"))).expect(name)
    }

    #[test]
    fn the_source_is_told_about_the_board() {
        let board = board("qemux86-64");
        assert_eq!(
            defines(&board, uefi(&board).expect("uefi")),
            ["-DTIMEOUT_S=120", r#"-DKERNEL=L"\\EFI\\rustiot\\linux.efi""#]
        );
        assert_eq!(checksum_path(&board).expect("path"), "EFI/rustiot/linux.efi.crc");
    }

    #[test]
    fn the_checksum_is_the_one_of_the_specification() {
        // The check value of CRC-32 (ISO 3309), which UEFI 2.10, section 7.5.9 names.
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926_u32.to_le_bytes());
    }

    #[test]
    fn a_board_without_uefi_has_no_guard() {
        let nothing = Path::new("/nonexistent");
        let never = |_: &str| -> Command { unreachable!() };
        let error = build_guard(&never, nothing, &board("qemuarm64"), nothing, nothing).expect_err("no UEFI");
        assert!(error.to_string().contains("qemuarm64"), "{error}");
    }

    #[test]
    fn a_failing_compiler_is_reported_with_its_words() {
        let fails = |program: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo \"$0: bad flag\" >&2; exit 1", program]);
            command
        };
        let here = Path::new(".");
        let error =
            build_guard(&fails, here, &board("qemux86-64"), here, here).expect_err("fails").to_string();
        assert!(error.contains("gcc: bad flag"), "{error}");
    }
}
