#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""What a board that starts by U-Boot needs: boot script, selector partition, FIT. Formats: docs/contracts/firmware.md.

The lab image's builder makes the same from the same templates (rust/crates/rustiot-image/src/fit.rs); a test holds both
to the same bytes for the boards that both build.
"""

import os
import re
import struct
import zlib

from rustiot.problem import Problem

BLOCK = 512
CONFIGURATION = "slot"
PLACEHOLDER = re.compile(r"@([a-z0-9_]+)@")
# U-Boot's names of the architectures in a FIT (boot/image.c).
FIT_ARCH = {"arm": "arm", "arm64": "arm64", "riscv64": "riscv", "amd64": "x86_64"}


def _values(board):
    """Placeholders and their text. U-Boot reads numbers as hexadecimal; the device's number is decimal."""
    uboot = board["boot"]["uboot"]
    values = {
        "interface": uboot["interface"],
        "device": str(uboot["device"]),
        "prepare": "\n".join(uboot["prepare"]),
        "env_blocks": "%x" % (uboot["env_size"] // BLOCK),
        "copies": " ".join("%x" % (at // BLOCK) for at in uboot["env_offsets"]),
        # Two stages of half the time each, in ticks of 1/1024 s.
        "i6300esb_ticks": "%x" % (board["watchdog"]["loader_timeout_s"] * 512),
    }
    for name in ("fit_load", "scratch", "env_size", "firmware_dtb", "pci_config"):
        if name in uboot:
            values[name] = "%x" % uboot[name]
    if "ramoops" in uboot:
        ramoops = uboot["ramoops"]
        values["ramoops"] = "%x" % ramoops["address"]
        values["ramoops_size"] = "%x" % ramoops["size"]
        values["ramoops_record"] = "%x" % ramoops["record"]
    return values


def _fill(template, text, board, values):
    def value(match):
        if match.group(1) not in values:
            raise Problem(
                "conf/uboot/%s.cmd.in needs `@%s@`, which board %s does not state; add it to [boot.uboot]"
                % (template, match.group(1), board["name"])
            )
        return values[match.group(1)]

    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    # A hook ends a line of its own; one that is empty leaves none.
    return "".join(filled + "\n" for filled in (PLACEHOLDER.sub(value, line) for line in lines) if filled)


def boot_script(templates, board):
    """The boot script of `board`, from conf/uboot (`templates`) and the board's hooks."""

    def read(name):
        path = os.path.join(templates, name + ".cmd.in")
        try:
            with open(path, encoding="utf-8") as file:
                return file.read()
        except OSError as error:
            raise Problem("cannot read %s: %s; boot.uboot.hooks names it" % (path, error.strerror)) from error

    values = _values(board)
    hooks = "".join(_fill(hook, read(hook), board, values) for hook in board["boot"]["uboot"]["hooks"])
    return _fill("boot", read("boot"), board, dict(values, hooks=hooks.rstrip()))


def one_line(script):
    """`script` without line ends, for a text environment whose values have one line (U-Boot: DEFAULT_ENV_FILE).

    A line end separates commands as `;` does, but for after the words that open a body, after a `;`, and at the edges
    of a quoted script.
    """
    lines = [line.strip() for line in script.splitlines() if line.strip()]
    out = ""
    quoted = False
    for line in lines:
        opens = out.endswith("'") and quoted
        glue = "" if not out or opens else " " if re.search(r"(^|[\s;])(do|then|else)$|;$", out) else "; "
        out += glue + line
        quoted ^= line.count("'") % 2 == 1
    # The closing quote of a script follows its last command directly.
    return out


def env_block(size, variables):
    """A U-Boot environment of `size` bytes: CRC-32 of the rest, then name=value strings, sorted by name."""
    data = b"".join(b"%s=%s\0" % (k.encode(), v.encode()) for k, v in sorted(variables.items())) + b"\0"
    if len(data) > size - 4:
        raise Problem("a U-Boot environment of %d bytes is too small, %d are needed" % (size, len(data) + 4))
    data = data.ljust(size - 4, b"\0")
    return struct.pack("<I", zlib.crc32(data)) + data


def selector_partition(board, size):
    """The first content of the partition `uboot-env`: both copies valid, slot a the default."""
    uboot = board["boot"]["uboot"]
    partition = bytearray(size)
    for offset, generation in zip(uboot["env_offsets"], ("2", "1")):
        copy = env_block(uboot["env_size"], {"slot_default": "a", "slot_gen": generation})
        if offset + len(copy) > size:
            raise Problem("the partition uboot-env of %d bytes is too small for the selector's copies" % size)
        partition[offset : offset + len(copy)] = copy
    return bytes(partition)


def default_environment(script, arch):
    """The text of the environment that is built into U-Boot."""
    variables = [("bootcmd", one_line(script)), ("bootdelay", "-2")]
    if arch != "arm":
        # Device tree and initramfs stay where they are. 32-bit Arm wants both in low memory, where U-Boot puts them.
        variables += [("fdt_high", "ffffffffffffffff"), ("initrd_high", "ffffffffffffffff")]
    return "".join("%s=%s\n" % pair for pair in variables)


def bootargs(cmdline):
    """The command line as the one variable that the boot script imports."""
    if "\n" in cmdline or "\0" in cmdline:
        raise Problem("the kernel's command line has more than one line; correct conf/kernel.toml or the board file")
    return "bootargs=%s\n" % cmdline


def fit_source(board, kernel, initramfs, bootargs_file, dtb=None):
    """The FIT's source text (U-Boot: doc/usage/fit/source_file_format.rst), the same for both slots."""
    arch = FIT_ARCH[board["arch"]]
    load = board["boot"]["uboot"]["kernel_load"]
    at = "<%#x %#x>" % (load >> 32, load & 0xFFFFFFFF)

    def image(name, kind, data, rest=""):
        return (
            "\t\t%s {\n\t\t\tdata = /incbin/(\"%s\");\n\t\t\ttype = \"%s\";\n\t\t\tarch = \"%s\";\n"
            "\t\t\tos = \"linux\";\n\t\t\tcompression = \"none\";\n%s\t\t\thash { algo = \"sha256\"; };\n\t\t};\n"
            % (name, data, kind, arch, rest)
        )

    images = image("kernel", "kernel", kernel, "\t\t\tload = %s;\n\t\t\tentry = %s;\n" % (at, at))
    images += image("ramdisk", "ramdisk", initramfs)
    images += image("bootargs", "firmware", bootargs_file)
    tree = ""
    if dtb:
        images += image("fdt", "flat_dt", dtb)
        tree = '\t\t\tfdt = "fdt";\n'
    return (
        '/dts-v1/;\n\n/ {\n\tdescription = "RustIoT OS boot slot";\n\t#address-cells = <2>;\n\n\timages {\n%s\t};\n\n'
        '\tconfigurations {\n\t\tdefault = "%s";\n\t\t%s {\n\t\t\tkernel = "kernel";\n'
        '\t\t\tramdisk = "ramdisk";\n%s\t\t\tloadables = "bootargs";\n\t\t};\n\t};\n};\n'
        % (images, CONFIGURATION, CONFIGURATION, tree)
    )


def reservation_overlay(board):
    """A device tree overlay that reserves the memory for the crash log (Linux: reserved-memory/ramoops.yaml)."""
    ramoops = board["boot"]["uboot"].get("ramoops")
    if ramoops is None:
        return None
    # Numbers are as wide as those of the board's own root: two cells where there may be memory above 4 GiB.
    cells = 1 if board["arch"] == "arm" else 2

    def words(number):
        return " ".join("%#x" % (number >> 32 * i & 0xFFFFFFFF) for i in reversed(range(cells)))

    return (
        "/dts-v1/;\n/plugin/;\n\n&{/} {\n\treserved-memory {\n\t\t#address-cells = <%d>;\n\t\t#size-cells = <%d>;\n"
        "\t\tranges;\n\t\tramoops@%x {\n\t\t\tcompatible = \"ramoops\";\n"
        "\t\t\treg = <%s %s>;\n\t\t\trecord-size = <%#x>;\n\t\t};\n\t};\n};\n"
        % (cells, cells, ramoops["address"], words(ramoops["address"]), words(ramoops["size"]), ramoops["record"])
    )


def check_kernel(path, board):
    """Refuses a kernel that U-Boot would not start on this board, or that would lie over what the loader needs."""
    uboot = board["boot"]["uboot"]
    with open(path, "rb") as file:
        header = file.read(64)
    if board["arch"] in ("arm64", "riscv64"):
        # Linux: Documentation/arch/{arm64/booting,riscv/boot-image-header}.rst; both have the size at 16.
        if len(header) < 64 or header[56:60] not in (b"ARM\x64", b"RSC\x05"):
            raise Problem("%s is no uncompressed kernel image; set KERNEL_IMAGETYPE = \"Image\"" % path)
        needed = struct.unpack("<Q", header[16:24])[0]
        room = min(uboot["scratch"], uboot["fit_load"]) - uboot["kernel_load"]
        if needed > room:
            raise Problem(
                "%s needs %d bytes of memory from %#x, board %s leaves it %d; move boot.uboot.scratch or fit_load"
                % (path, needed, uboot["kernel_load"], board["name"], room)
            )
    elif board["arch"] == "arm" and header[36:40] != b"\x18\x28\x6f\x01":
        raise Problem('%s is no zImage; set KERNEL_IMAGETYPE = "zImage"' % path)
