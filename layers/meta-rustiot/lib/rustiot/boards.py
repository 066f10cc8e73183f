#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""Reads conf/boards/<board>.toml, conf/layout.toml, conf/kernel.toml and conf/kernel-modules.toml.

The full check of these files is `rustiot_board`'s (Rust), which CI runs; here only what the build uses is looked at,
so that a mistake stops the build with a remedy and not with a Python traceback.
"""

import os

from rustiot.problem import Problem

try:
    import tomllib
except ImportError:  # Python older than 3.11
    tomllib = None

UNITS = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
LOADERS = ("uefi", "uboot", "tryboot")


def read_toml(path):
    """The content of a TOML file."""
    if tomllib is None:
        raise Problem("this build needs Python 3.11 or newer on the host; install it, or the buildtools tarball")
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise Problem("cannot read %s: %s" % (path, error.strerror)) from error
    except tomllib.TOMLDecodeError as error:
        raise Problem("%s: %s; correct the file" % (path, error)) from error


def size(text, file="", key=""):
    """Bytes of a size such as "64 MiB" or "1.5 MB"."""
    number, _, unit = str(text).strip().partition(" ")
    whole, _, fraction = number.partition(".")
    if unit.strip() not in UNITS or not whole.isdigit() or (fraction and not fraction.isdigit()):
        raise Problem('%s: %s: `%s` is not a size; write a number and a unit, such as "64 MiB"' % (file, key, text))
    factor = UNITS[unit.strip()]
    return int(whole) * factor + int((fraction + "000")[:3]) * factor // 1000


def show(count):
    """Bytes for people."""
    for unit in ("GiB", "MiB", "KiB"):
        if count >= UNITS[unit] and count % UNITS[unit] == 0:
            return "%d %s" % (count // UNITS[unit], unit)
    if count >= UNITS["MiB"]:
        return "%.1f MiB" % (count / UNITS["MiB"])
    return "%d B" % count


def find(name, directories):
    """The board file of `name`, from the first of `directories` that has it."""
    for directory in directories:
        path = os.path.join(directory, name + ".toml")
        if name and os.path.isfile(path):
            return path
    known = set()
    for directory in directories:
        if os.path.isdir(directory):
            known.update(f[:-5] for f in os.listdir(directory) if f.endswith(".toml"))
    raise Problem(
        "there is no board `%s`; set RUSTIOT_BOARD to one of: %s, or add conf/boards/%s.toml"
        % (name, " ".join(sorted(known)) or "(none found)", name or "<board>")
    )


def need(table, key, file):
    """The value at the dotted `key`."""
    value = table
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise Problem("%s: the key %s is missing; docs/contracts/board.md says what it means" % (file, key))
        value = value[part]
    return value


def load(path):
    """A board file, checked as far as the build uses it."""
    board = read_toml(path)
    for key in ("name", "arch", "compatible", "boot.loader", "boot.cmdline", "watchdog", "modules", "sizes"):
        need(board, key, path)
    loader = board["boot"]["loader"]
    if loader not in LOADERS:
        raise Problem(
            "%s: boot.loader: `%s` is none that this layer builds for; use one of: %s"
            % (path, loader, " ".join(LOADERS))
        )
    need(board, "boot." + loader, path)
    if os.path.basename(path) != board["name"] + ".toml":
        raise Problem("%s: name: is `%s`; file and name must agree" % (path, board["name"]))
    for key in ("root", "boot", "initramfs", "device_binary", "init", "shim"):
        size(need(board, "sizes." + key, path), path, "sizes." + key)
    return board


def layout(path, loader):
    """(alignment in bytes, GUID of the table, the partitions that boards with `loader` have, with sizes in bytes)."""
    table = read_toml(path)
    partitions = []
    for partition in need(table, "partition", path):
        for key in ("name", "content", "type", "guid", "size"):
            need(partition, key, path)
        if loader in partition.get("loaders", LOADERS):
            partitions.append(dict(partition, bytes=size(partition["size"], path, partition["name"])))
    return size(need(table, "alignment", path), path, "alignment"), need(table, "disk_guid", path), partitions


def cmdline(kernel_file, board):
    """The kernel's command line: what is true of every board, then the board's own words."""
    return " ".join(list(need(read_toml(kernel_file), "cmdline", kernel_file)) + list(board["boot"]["cmdline"]))


def budget(board, key, measured, what, file):
    """Refuses what is larger than the board's budget `sizes.<key>`."""
    limit = size(board["sizes"][key], file, "sizes." + key)
    if measured > limit:
        raise Problem(
            "%s has %s, %s allows %s (sizes.%s); make it smaller, or raise the budget and say why"
            % (what, show(measured), file, show(limit), key)
        )
    return "%s: %s of %s (%d %%)" % (what, show(measured), show(limit), 100 * measured // limit)


def root_modules(modules_file, board):
    """Names of the kernel modules that the root carries besides those of the initramfs."""
    names = list(need(read_toml(modules_file), "modules", modules_file))
    modules = board["modules"]
    for more in (board["watchdog"].get("modules", []), modules["initramfs"], modules["rescue"], modules["root"]):
        names += [name for name in more if name not in names]
    return names


def module_package(name):
    """OE's name of the package with the module `name`."""
    return "kernel-module-" + name.replace("_", "-").lower()


def wifi_firmware(features, recommended):
    """Those of a machine's recommended packages that are firmware, if the distribution has Wi-Fi."""
    if "wifi" not in (features or "").split():
        return ""
    return " ".join(package for package in (recommended or "").split() if "firmware" in package)
