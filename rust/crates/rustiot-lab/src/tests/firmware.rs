//! What runs before Linux, without Linux: U-Boot's boot script on media in every state, with a kernel that does nothing.
//! UEFI's side is firmware that we did not write; the tests of trials and damage cover it with real releases.

use crate::ctx::Ctx;
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, ensure};
use rustiot_image::fit::{self, FitParts};
use rustiot_loader::env::Env;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;
use testbed::{Disk, Machine, Off, partition_start};

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "uboot_spends_the_one_shot_before_the_kernel",
        boards: &["qemuarm64"],
        promise: "A kernel that hangs at its first instruction is reset by the watchdog, and the default slot starts.",
        tags: &[Tag::QuickOnFirst],
        run: uboot_spends_the_one_shot_before_the_kernel,
    },
    LabTest {
        name: "uboot_starts_a_whole_slot_whatever_the_medium_holds",
        boards: &["qemuarm64"],
        promise: "Whatever is damaged, the boot script starts a whole slot, or says that there is none.",
        tags: &[Tag::QuickOnFirst],
        run: uboot_starts_a_whole_slot_whatever_the_medium_holds,
    },
];

/// For one start of U-Boot on a busy workstation.
const SOON: Duration = Duration::from_secs(90);
/// The loader's watchdog in the first test, seconds.
const WATCHDOG_S: u32 = 15;

/// A selector's copy: default, next, generation.
type Stored = (&'static str, &'static str, &'static str);

/// What is done to a slot's FIT.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Whole,
    Empty,
    /// Only its first third is there.
    CutOff,
    /// Claims to be larger than the partition.
    Oversized,
    /// One bit of the kernel.
    Kernel,
    /// One letter of the command line.
    Cmdline,
}

struct Case {
    what: &'static str,
    copies: [Option<Stored>; 2],
    /// The second copy has a flipped bit.
    torn: bool,
    slots: [Slot; 2],
    /// Regular expressions, in the order in which the console says them.
    says: &'static [&'static str],
}

const STARTS: &str = "Starting kernel";
const WHOLE: Case = Case {
    what: "nothing",
    copies: [Some(("a", "", "2")), Some(("a", "", "1"))],
    torn: false,
    slots: [Slot::Whole, Slot::Whole],
    says: &[r"slot a \(default a, next , generation 2\)", STARTS],
};

const CASES: &[Case] = &[
    Case {
        what: "no copy",
        copies: [None, None],
        says: &["no valid selector, taking slot a", STARTS],
        ..WHOLE
    },
    Case {
        what: "the newest copy",
        copies: [Some(("a", "", "5")), Some(("b", "", "6"))],
        torn: true,
        says: &[r"slot a \(default a, next , generation 5\)", STARTS],
        ..WHOLE
    },
    Case {
        what: "a copy without a number",
        copies: [Some(("b", "", "x y; reset")), Some(("a", "", "1"))],
        says: &[r"slot a \(default a, next , generation 1\)", STARTS],
        ..WHOLE
    },
    Case {
        what: "nothing; generations are decimal",
        copies: [Some(("a", "", "99")), Some(("b", "", "100"))],
        says: &[r"slot b \(default b, next , generation 100\)", STARTS],
        ..WHOLE
    },
    Case {
        what: "the one-shot's value",
        copies: [Some(("a", "b; reset", "1")), None],
        says: &[r"slot a \(default a", STARTS],
        ..WHOLE
    },
    Case {
        what: "the trial's kernel",
        copies: [Some(("a", "b", "1")), None],
        slots: [Slot::Whole, Slot::Kernel],
        says: &[r"slot b \(default a, next b, generation 1\)", "slot b cannot", "trying slot a", STARTS],
        ..WHOLE
    },
    Case {
        what: "the default's command line",
        slots: [Slot::Cmdline, Slot::Whole],
        says: &["slot a cannot", "trying slot b", STARTS],
        ..WHOLE
    },
    Case {
        what: "the default's end",
        slots: [Slot::CutOff, Slot::Whole],
        says: &["slot a cannot", "trying slot b", STARTS],
        ..WHOLE
    },
    Case {
        what: "the default's size",
        slots: [Slot::Oversized, Slot::Whole],
        says: &["slot a cannot", "trying slot b", STARTS],
        ..WHOLE
    },
    Case {
        what: "both slots",
        slots: [Slot::Empty, Slot::Kernel],
        says: &[
            "slot a cannot",
            "trying slot b",
            "slot b cannot",
            "no slot can be started; next try in 60 s",
        ],
        ..WHOLE
    },
];

fn uboot_spends_the_one_shot_before_the_kernel(ctx: &mut Ctx) -> Result<()> {
    let case = Case { copies: [Some(("a", "b", "199")), Some(("a", "", "198"))], ..WHOLE };
    let machine = machine(ctx, &case, &boot_image(ctx)?)?.power_on()?;
    expect(&machine, &[r"slot b \(default a, next b, generation 199\)", STARTS])?;
    let mark = machine.mark();
    machine.wait_watchdog(mark, SOON)?;
    expect(&machine, &[r"slot a \(default a, next , generation 200\)", STARTS])?;
    ensure!(machine.watchdog_resets() == 1, "the watchdog fired {} times", machine.watchdog_resets());
    Ok(())
}

fn uboot_starts_a_whole_slot_whatever_the_medium_holds(ctx: &mut Ctx) -> Result<()> {
    let whole = boot_image(ctx)?;
    for case in CASES {
        let machine = machine(ctx, case, &whole)?.power_on()?;
        expect(&machine, case.says).with_context(|| format!("damaged: {}", case.what))?;
    }
    Ok(())
}

fn expect(machine: &Machine, says: &[&str]) -> Result<()> {
    for pattern in says {
        machine.console().expect(pattern, SOON)?;
    }
    Ok(())
}

/// A FIT whose kernel is an endless loop.
fn boot_image(ctx: &Ctx) -> Result<Vec<u8>> {
    // Linux, Documentation/arch/arm64/booting.rst: `b .`, text offset, size, flags (may lie anywhere), magic.
    let mut kernel = vec![0; 4096];
    for (at, bytes) in
        [(0, &0x1400_0000_u32.to_le_bytes()[..]), (16, &4096_u64.to_le_bytes()), (24, &[8]), (56, b"ARM\x64")]
    {
        kernel.splice(at..at + bytes.len(), bytes.iter().copied());
    }
    let file = |name: &str| ctx.dir().join(name);
    std::fs::write(file("kernel"), kernel).context("cannot write the kernel")?;
    std::fs::write(file("initramfs"), vec![b'i'; 64 << 10]).context("cannot write the initramfs")?;
    let tools = ctx.lab.tools();
    fit::build_fit(
        &|program| tools.command(program),
        ctx.board,
        FitParts { kernel: &file("kernel"), initramfs: &file("initramfs"), cmdline: "console=ttyAMA0" },
        ctx.dir(),
        &file("fit"),
    )?;
    std::fs::read(file("fit")).context("cannot read the FIT")
}

/// A machine with the selector and the two slots of `case` and nothing else, and a quick watchdog.
fn machine(ctx: &Ctx, case: &Case, whole: &[u8]) -> Result<Off> {
    let dir = ctx.machine_dir()?;
    let disk = dir.file("disk.img");
    partition(ctx, &disk)?;
    let uboot = ctx.board.boot.uboot.as_ref().context("the board does not start by U-Boot")?;
    let selector = partition_start(&disk, "uboot-env")?;
    for (copy, offset) in case.copies.iter().zip(uboot.env_offsets) {
        if let Some(copy) = copy {
            let mut bytes = selector_copy(copy, usize::try_from(uboot.env_size)?)?;
            if case.torn && offset != 0 {
                bytes.splice(8..9, [b'?']);
            }
            put(&disk, selector.saturating_add(offset), &bytes)?;
        }
    }
    for (slot, name) in case.slots.iter().zip(["boot-a", "boot-b"]) {
        put(&disk, partition_start(&disk, name)?, &damaged(whole, *slot)?)?;
    }
    let mut board = ctx.board.clone();
    board.watchdog.loader_timeout_s = WATCHDOG_S;
    let chip = dir.file("chip.img");
    fit::write_own_env(&ctx.lab.context.conf("uboot"), &board, &chip)?;
    let mut spec = ctx.lab.spec(ctx.board)?;
    for arg in &mut spec.args {
        if arg.starts_with("if=pflash,unit=1") {
            *arg = format!("if=pflash,unit=1,format=raw,readonly=on,file={}", chip.display());
        }
    }
    let overlay = Disk::overlay(&ctx.lab.tools(), &disk, &dir.file("disk.qcow2"), None)?;
    Ok(Off::new(spec, overlay, dir)?)
}

fn partition(ctx: &Ctx, disk: &PathBuf) -> Result<()> {
    std::fs::File::create(disk).and_then(|file| file.set_len(16 << 20)).context("cannot make the medium")?;
    let table = r"label: gpt\nsize=1MiB,name=uboot-env\nsize=4MiB,name=boot-a\nsize=4MiB,name=boot-b\n";
    let script = format!("printf '{table}' | sfdisk -q {}", disk.display());
    ctx.lab.tools().run("sh", &["-c", &script])?;
    Ok(())
}

fn selector_copy((default, next, generation): &Stored, size: usize) -> Result<Vec<u8>> {
    let mut env = Env::default();
    for (name, value) in [("slot_default", default), ("slot_next", next), ("slot_gen", generation)] {
        if !value.is_empty() {
            env.set(name, value);
        }
    }
    env.to_bytes(size).map_err(|needed| anyhow::anyhow!("the selector needs {needed} bytes"))
}

fn damaged(whole: &[u8], how: Slot) -> Result<Vec<u8>> {
    let mut fit = whole.to_vec();
    let at = |what: &[u8]| {
        whole.windows(what.len()).position(|w| w == what).context("the FIT lacks what it should hold")
    };
    match how {
        Slot::Whole => {}
        Slot::Empty => fit.fill(0),
        Slot::CutOff => {
            let keep = fit.len() / 3;
            fit.iter_mut().skip(keep).for_each(|byte| *byte = 0);
        }
        // Total size, big endian (Devicetree Specification 0.4, section 5.2).
        Slot::Oversized => drop(fit.splice(4..8, 0x7fff_ffff_u32.to_be_bytes())),
        Slot::Kernel => {
            let magic = at(b"ARM\x64")?;
            fit.iter_mut().skip(magic.saturating_add(100)).take(1).for_each(|byte| *byte ^= 1);
        }
        Slot::Cmdline => {
            let letter = at(b"bootargs=console")?.saturating_add(10);
            fit.iter_mut().skip(letter).take(1).for_each(|byte| *byte ^= 1);
        }
    }
    Ok(fit)
}

fn put(disk: &PathBuf, offset: u64, bytes: &[u8]) -> Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(disk)
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(bytes)
        })
        .context("cannot fill the medium")
}
