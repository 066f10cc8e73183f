#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""What a Raspberry Pi needs whose own firmware chooses the slot: autoboot.txt, and config.txt and cmdline.txt of a slot.

autoboot.txt is written by the device too (rust/crates/rustiot-loader/src/autoboot.rs); a test holds both to the same
bytes. Contract: docs/contracts/loader.md, docs/contracts/firmware.md.
"""

import os

from rustiot.problem import Problem

KERNEL = "kernel.img"
INITRAMFS = "initramfs.img"


def check_kernel(path):
    """Refuses a kernel that the firmware cannot start: it wants the plain image (Linux: arch/arm64/booting.rst)."""
    with open(path, "rb") as file:
        header = file.read(64)
    if header[56:60] != b"ARM\x64":
        raise Problem('%s is no uncompressed arm64 kernel; set KERNEL_IMAGETYPE = "Image"' % path)


def boot_partitions(partitions):
    """Numbers of boot-a and boot-b in the table of these partitions."""
    numbers = {partition["name"]: number for number, partition in enumerate(partitions, 1)}
    for name in ("autoboot", "boot-a", "boot-b"):
        if name not in numbers:
            raise Problem("conf/layout.toml has no partition `%s` for loader \"tryboot\"; add it" % name)
    return numbers["boot-a"], numbers["boot-b"]


def autoboot(partitions):
    """autoboot.txt of a fresh medium: slot A, and B to be tried."""
    text = "[all]\ntryboot_a_b=1\nboot_partition=%d\n[tryboot]\nboot_partition=%d\n"
    return text % boot_partitions(partitions)


def config(board):
    """config.txt: the kernel and its initramfs, the watchdog from before the kernel on, then the board's own lines."""
    lines = [
        "# Made by the image build: a part of the release, the same in both slots.",
        "arm_64bit=1",
        "kernel=" + KERNEL,
        "initramfs %s followkernel" % INITRAMFS,
        "dtparam=watchdog=on",
        "kernel_watchdog_timeout=%d" % board["watchdog"]["loader_timeout_s"],
    ]
    return "\n".join(lines + list(board["boot"]["tryboot"]["config"])) + "\n"


def command_line(words):
    """cmdline.txt: the firmware reads one line."""
    if "\n" in words:
        raise Problem("the kernel's command line has more than one line; see conf/kernel.toml and the board file")
    return words + "\n"


def device_trees(names):
    """(path on the FAT, file of the deploy directory) of each name of KERNEL_DEVICETREE; overlays have a directory."""
    found = []
    for name in names.split():
        base = os.path.basename(name)
        found.append(("overlays/" + base if name.startswith("overlays/") else base, base))
    if not any(inside.endswith(".dtb") and "/" not in inside for inside, _ in found):
        raise Problem("KERNEL_DEVICETREE names no device tree of a board; the firmware starts no kernel without one")
    return found


def overlays(board):
    """Names of the overlays that config.txt loads."""
    lines = [line.partition("=")[2] for line in board["boot"]["tryboot"]["config"] if line.startswith("dtoverlay=")]
    return [line.partition(",")[0] for line in lines]
