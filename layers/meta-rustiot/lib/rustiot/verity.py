#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""dm-verity's hash tree without a superblock, as `veritysetup format --no-superblock` makes it (Linux:
Documentation/admin-guide/device-mapper/verity.rst, version 1: the salt comes first). A test compares both.
"""

import hashlib

from rustiot.problem import Problem

BLOCK = 4096


def _level(blocks, salt):
    """The hash blocks over `blocks`, each filled with zeros to its end."""
    seed = hashlib.sha256(salt)
    out, current = [], bytearray()
    for block in blocks:
        digest = seed.copy()
        digest.update(block)
        current += digest.digest()
        if len(current) == BLOCK:
            out.append(bytes(current))
            current = bytearray()
    if current:
        out.append(bytes(current).ljust(BLOCK, b"\0"))
    return out


def _read(file, count):
    for _ in range(count):
        block = file.read(BLOCK)
        if len(block) != BLOCK:
            raise Problem("the root image ends in the middle of a block; its size must be a multiple of %d" % BLOCK)
        yield block


def append(path, salt):
    """Writes the tree behind the file system in `path`; gives what init must know (docs/contracts/init.md)."""
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        if size == 0 or size % BLOCK:
            raise Problem("%s has %d bytes, which is no whole number of blocks of %d" % (path, size, BLOCK))
        count = size // BLOCK
        file.seek(0)
        levels = []
        blocks = _read(file, count)
        while True:
            blocks = _level(blocks, salt)
            levels.append(blocks)
            if len(blocks) == 1:
                break
        file.seek(size)
        for level in reversed(levels):
            file.writelines(level)
    root = hashlib.sha256(salt + levels[-1][0]).hexdigest()
    return {
        "data_block_size": BLOCK,
        "hash_block_size": BLOCK,
        "data_blocks": count,
        "hash_start_block": count,
        "algorithm": "sha256",
        "root_hash": root,
        "salt": salt.hex(),
    }


def salt(compatible, version):
    """From board and version, so that the same release has the same hash; the lab image uses the same."""
    return hashlib.sha256(("%s %s" % (compatible, version)).encode()).digest()
