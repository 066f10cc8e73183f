#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""Real wic on every board's kickstart file: the table it makes is conf/layout.toml's, and the same bytes each time.

Needs RUSTIOT_STANDIN_WIC (layers/meta-rustiot-standin/README.md says what it names) and the programs that wic runs; skipped
otherwise. What lies in the partitions is made up.
"""

import glob
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
LAYER = os.path.normpath(os.path.join(HERE, ".."))
REPO = os.path.normpath(os.path.join(LAYER, "../.."))
sys.path.insert(0, os.path.join(LAYER, "lib"))

from rustiot import boards, disk  # noqa: E402

WIC = os.environ.get("RUSTIOT_STANDIN_WIC", "")
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
TOOLS = ("parted", "sgdisk", "mkdosfs", "mcopy", "dosfsck", "mtype")


def machine_files():
    """conf/rustiot: a file for each MACHINE that is a board."""
    return sorted(glob.glob(os.path.join(LAYER, "conf/rustiot/*.inc")))


def variables(path):
    """A machine file's assignments, with names of files in the place of what other layers know."""
    with open(path, encoding="utf-8") as file:
        text = file.read().replace("\\\n", "")
    found = dict(re.findall(r'^([A-Z_]+) \??= "([^"]*)"', text, re.MULTILINE))
    return {name: re.sub(r"\$\{([A-Z_]+)\}", lambda m: m.group(1).lower(), value) for name, value in found.items()}


def area_lines(found):
    """As adapters.wks reads them."""
    return [line.strip() for line in found.get("RUSTIOT_BOARD_AREA_PARTS", "").split("\\n") if line.strip()]


class Kickstart(unittest.TestCase):
    def test_nothing_in_the_board_area_is_left_to_chance(self):
        # wic draws what it is not told: two builds of one release would differ.
        for path in machine_files():
            for line in area_lines(variables(path)):
                if "--part-name" in line:
                    self.assertRegex(line, r"--uuid [0-9a-f-]{36}", path)
                if "--fstype=vfat" in line:
                    self.assertRegex(line, r"--fsuuid 0x[0-9a-f]{8}", path)


@unittest.skipUnless(os.path.exists(os.path.join(WIC, "scripts/wic")), "RUSTIOT_STANDIN_WIC names no checkout with wic")
@unittest.skipUnless(importlib.util.find_spec("bb"), "BitBake's lib is not in PYTHONPATH")
@unittest.skipIf([tool for tool in TOOLS if not shutil.which(tool, path=PATH)], "wic's programs are not installed")
class RealWic(unittest.TestCase):
    def make(self, path, directory):
        """The image of a board with made-up contents, and what must be in it: (image, GUID, places, contents)."""
        found = variables(path)
        board = boards.load(boards.find(found["RUSTIOT_BOARD"], [os.path.join(REPO, "conf/boards")]))
        area = int(found.get("RUSTIOT_BOARD_AREA_KIB", "0")) * disk.KIB
        layout = os.path.join(REPO, "conf/layout.toml")
        alignment, guid, partitions = boards.layout(layout, board["boot"]["loader"])
        files, contents = {}, {}
        for partition in partitions:
            if partition["content"] in ("config", "uboot-env", "autoboot") or partition.get("slot") == "a":
                name = partition["name"]
                files[name] = os.path.join(directory, name + ".img")
                contents[name] = (name.encode() * 4096)[:4096]
                with open(files[name], "wb") as file:
                    file.write(contents[name])
        lines = area_lines(found)
        for name in re.findall(r"file=(\S+)", " ".join(lines)) + found.get("IMAGE_BOOT_FILES", "").split():
            with open(os.path.join(directory, name), "wb") as file:
                file.write(b"firmware" * 512)
        kickstart = os.path.join(directory, "rustiot.wks")
        with open(kickstart, "w", encoding="utf-8") as file:
            file.write(disk.wks(alignment, guid, partitions, files, lines, area, found.get("RUSTIOT_HYBRID_MBR") == "1"))
        known = dict.fromkeys(("DEPLOY_DIR_IMAGE", "STAGING_DATADIR", "STAGING_DIR", "STAGING_LIBDIR", "IMAGE_ROOTFS"), directory)
        known.update(RECIPE_SYSROOT_NATIVE="/usr", HOSTTOOLS_DIR="/usr/bin", IMAGE_BASENAME="image", ASSUME_PROVIDED="")
        known["IMAGE_BOOT_FILES"] = found.get("IMAGE_BOOT_FILES", "firmware.bin")
        with open(os.path.join(directory, "image.env"), "w", encoding="utf-8") as file:
            file.writelines('%s="%s"\n' % pair for pair in known.items())
        with open(os.path.join(directory, "firmware.bin"), "wb") as file:
            file.write(b"firmware" * 512)
        environment = dict(os.environ, PATH=PATH, BUILDDIR=directory, SOURCE_DATE_EPOCH="1750000000")
        environment["PYTHONPATH"] = ":".join([os.path.join(WIC, "meta/lib")] + sys.path)
        out = os.path.join(directory, "out")
        command = [sys.executable, os.path.join(WIC, "scripts/wic"), "create", kickstart, "--vars", directory, "-e", "image", "-o", out]
        result = subprocess.run(
            command + ["-w", os.path.join(directory, "work")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.assertEqual(result.returncode, 0, "%s: %s" % (path, result.stdout[-2000:]))
        return glob.glob(os.path.join(out, "*.direct"))[0], guid, disk.places(alignment, partitions, area)[0], contents

    def test_the_table_is_the_layout(self):
        for path in machine_files():
            with self.subTest(os.path.basename(path)), tempfile.TemporaryDirectory() as directory:
                image, guid, found, contents = self.make(path, directory)
                with open(image, "rb") as file:

                    def read(offset, count):
                        file.seek(offset)
                        return file.read(count)

                    disk.check_table(read(0, 34 * 512), guid, found)
                    for partition, start in found:
                        expected = contents.get(partition["name"], bytes(4096))
                        self.assertEqual(read(start, 4096), expected, partition["name"])

    def test_two_runs_make_the_same_bytes(self):
        with_area = [path for path in machine_files() if "--fstype=vfat" in variables(path).get("RUSTIOT_BOARD_AREA_PARTS", "")]
        sums = set()
        for _ in range(2):
            with tempfile.TemporaryDirectory() as directory:
                with open(self.make(with_area[0], directory)[0], "rb") as file:
                    sums.add(hashlib.file_digest(file, "sha256").hexdigest())
        self.assertEqual(len(sums), 1)


if __name__ == "__main__":
    unittest.main()
