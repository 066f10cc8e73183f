#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""Between BitBake's data store and the plain functions of this package. Nothing is decided here."""

import os
import time

from rustiot import boards, dates, disk
from rustiot.problem import Problem


def board_path(d):
    """The board file of this build."""
    name = d.getVar("RUSTIOT_BOARD")
    if not name:
        raise Problem(
            "MACHINE %s has no RustIoT board; use a kas file of kas/, or set RUSTIOT_BOARD to a name of conf/boards"
            % d.getVar("MACHINE")
        )
    return boards.find(name, d.getVar("RUSTIOT_BOARD_DIRS").split(":"))


def board(d):
    """The board, checked."""
    return boards.load(board_path(d))


def conf(d, name):
    """A file of conf/."""
    return os.path.join(d.getVar("RUSTIOT_CONF"), name)


def cmdline(d):
    """The kernel's command line of this board."""
    return boards.cmdline(conf(d, "kernel.toml"), board(d))


def build_epoch(d):
    """When this release was built, Unix seconds."""
    date, epoch = (d.getVar(name) or "" for name in ("RUSTIOT_BUILD_DATE", "RUSTIOT_EPOCH"))
    return dates.build_epoch(date, epoch, d.getVar("RUSTIOT_PRODUCTION") == "1", time.time())


def partitions(d):
    """(alignment, GUID of the table, partitions) of this board."""
    return boards.layout(conf(d, "layout.toml"), board(d)["boot"]["loader"])


def board_area(d):
    """Bytes before the first partition of the layout."""
    return int(d.getVar("RUSTIOT_BOARD_AREA_KIB") or 0) * disk.KIB


def slot_file(d, kind):
    """A file that do_rustiot_slots makes."""
    return "%s/%s.%s" % (d.getVar("IMGDEPLOYDIR"), d.getVar("IMAGE_LINK_NAME"), kind)


def partition_files(d):
    """Which file lies in which partition of a fresh medium: slot A, both slots on request, selector and owner's file."""
    slots = ("a", "b") if d.getVar("RUSTIOT_BOTH_SLOTS") == "1" else ("a",)
    files = {}
    for partition in partitions(d)[2]:
        content = partition["content"]
        if content in ("boot", "root") and partition["slot"] in slots:
            files[partition["name"]] = slot_file(d, content + ".img")
        elif content in ("config", "uboot-env", "autoboot"):
            files[partition["name"]] = slot_file(d, content + ".img")
    return files


def wks(d):
    """The kickstart text of this image."""
    alignment, guid, found = partitions(d)
    lines = [line.strip() for line in (d.getVar("RUSTIOT_BOARD_AREA_PARTS") or "").split("\\n") if line.strip()]
    hybrid = d.getVar("RUSTIOT_HYBRID_MBR") == "1"
    return disk.wks(alignment, guid, found, partition_files(d), lines, board_area(d), hybrid)


def module_packages(d):
    """Packages with the kernel modules that the root wants."""
    names = boards.root_modules(conf(d, "kernel-modules.toml"), board(d))
    return " ".join(sorted({boards.module_package(name) for name in names}))
