#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""The disk image's partitions from conf/layout.toml, as wic reads them, and the rule that nothing that boots is shared."""

from rustiot.boards import show, size
from rustiot.problem import Problem

KIB = 1024
# Room for the backup table at the end.
GPT_TAIL = 1 << 20
# What starts a file that boots: (offset, bytes, what it is). The lab image's builder looks for the same.
MARKS = (
    (0, b"\xd0\x0d\xfe\xed", "a FIT or device tree"),
    (56, b"ARM\x64", "an arm64 kernel"),
    (514, b"HdrS", "an x86 kernel"),
    (0, b"070701", "an initramfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "an erofs root"),
)


def places(alignment, partitions, board_area):
    """[(partition, first byte)] and the size of the image, bytes. Below `board_area` lies what the boot ROM wants."""
    start = max(alignment, board_area)
    if start % alignment:
        raise Problem("RUSTIOT_BOARD_AREA of %d bytes is no multiple of the alignment %s" % (start, show(alignment)))
    found = []
    for partition in partitions:
        found.append((partition, start))
        start += partition["bytes"]
        start += -start % alignment
    return found, start + GPT_TAIL


def wks(alignment, guid, partitions, files, board_lines=(), board_area=0, hybrid=False):
    """A kickstart file for wic.

    `files` maps a partition's name to what it holds; the others are left empty for the device's first boot.
    `board_lines` describe the board area and come first.
    """
    lines = ["# Made from conf/layout.toml; do not edit."]
    lines += list(board_lines)
    if board_lines and board_area < alignment:
        raise Problem("the board area has parts but no size; set RUSTIOT_BOARD_AREA")
    first = True
    for partition, start in places(alignment, partitions, board_area)[0]:
        name = partition["name"]
        source = '--source rawcopy --sourceparams="file=%s"' % files[name] if name in files else "--source empty"
        offset = "--offset %dK" % (start // KIB) if first else "--align %d" % (alignment // KIB)
        first = False
        lines.append(
            "part --fixed-size %dK %s --part-name %s --part-type %s --uuid %s %s"
            % (partition["bytes"] // KIB, offset, name, partition["type"], partition["guid"], source)
        )
    lines.append("bootloader --ptable %s --diskid %s" % ("gpt-hybrid" if hybrid else "gpt", guid))
    return "\n".join(lines) + "\n"


def check_medium(board, total, file):
    """Refuses an image that the board's smallest medium does not hold."""
    limit = size(board["storage"]["min_medium"], file, "storage.min_medium")
    if total > limit:
        raise Problem(
            "the disk image has %s, the smallest medium of %s has %s; shrink partitions in conf/layout.toml or raise"
            " storage.min_medium" % (show(total), file, show(limit))
        )


def check_fits(partition, measured):
    """Refuses what is larger than its partition."""
    if measured > partition["bytes"]:
        raise Problem(
            "what goes into `%s` has %s, the partition %s; shrink it, or raise the partition in conf/layout.toml"
            " (devices in the field keep theirs)" % (partition["name"], show(measured), show(partition["bytes"]))
        )


def shared(read, found):
    """The first partition that both slots use and that holds something that boots: (name, what) or None.

    `read(offset, count)` gives bytes of the image; `found` is what `places` gave.
    """
    piece = 1 << 16
    for partition, start in found:
        if partition.get("slot"):
            continue
        for at in range(start, start + partition["bytes"], piece):
            data = read(at, piece + 2048)
            if not data.strip(b"\0"):
                continue
            for sector in range(0, min(piece, len(data)), 512):
                for offset, mark, what in MARKS:
                    if data[sector + offset : sector + offset + len(mark)] == mark:
                        return partition["name"], what
    return None


def read_table(data):
    """Partitions of a GPT: [(name, type, guid, first byte, bytes)] and the table's GUID, from an image's first 34 sectors."""
    import struct
    import uuid

    if data[512:520] != b"EFI PART":
        raise Problem("the image has no GPT")
    first, count, length = struct.unpack("<QII", data[512 + 72 : 512 + 88])
    partitions = []
    for index in range(count):
        entry = data[first * 512 + index * length :][:length]
        if len(entry) < 128 or not entry[:16].strip(b"\0"):
            continue
        start, end = struct.unpack("<QQ", entry[32:48])
        name = entry[56:128].decode("utf-16-le").rstrip("\0")
        partitions.append(
            (name, str(uuid.UUID(bytes_le=entry[:16])), str(uuid.UUID(bytes_le=entry[16:32])), start * 512, (end - start + 1) * 512)
        )
    return partitions, str(uuid.UUID(bytes_le=data[512 + 56 : 512 + 72]))


def check_table(data, guid, found):
    """Refuses an image whose table is not the one of conf/layout.toml: names, types, ids, places and sizes."""
    partitions, disk = read_table(data)
    names = {p["name"] for p, _ in found}
    have = [p for p in partitions if p[0] in names]
    want = [(p["name"], p["type"].lower(), p["guid"].lower(), start, p["bytes"]) for p, start in found]
    if disk != guid.lower():
        raise Problem("the image's table is %s, conf/layout.toml says %s" % (disk, guid))
    for got, wanted in zip(have, want):
        if got != wanted:
            raise Problem("the image has %s, conf/layout.toml says %s" % (got, wanted))
    if len(have) != len(want):
        raise Problem("the image has %d of the %d partitions of conf/layout.toml" % (len(have), len(want)))
