#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""What the classes compute, without BitBake: python3 -m unittest discover layers/meta-rustiot/tests"""

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tomllib
import unittest
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.normpath(os.path.join(HERE, "../../.."))
sys.path.insert(0, os.path.join(HERE, "../lib"))

from rustiot import boards, crates, dates, disk, initramfs, signing, tryboot, uboot, verity  # noqa: E402
from rustiot.problem import Problem  # noqa: E402

CONF = os.path.join(REPO, "conf")
BOARD_DIRS = [os.path.join(CONF, "boards")]


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def every_board():
    for directory in BOARD_DIRS:
        for name in sorted(os.listdir(directory)):
            yield boards.load(os.path.join(directory, name))


class Boards(unittest.TestCase):
    def test_every_board_file_can_be_built_for(self):
        found = [board["name"] for board in every_board()]
        self.assertGreaterEqual(len(found), 16)
        self.assertEqual(len(found), len(set(found)))

    def test_sizes_are_those_that_rust_reads(self):
        for text, wanted in (("64 MiB", 64 << 20), ("1.5 MB", 1500000), ("1.5 MiB", 1572864), ("512 B", 512)):
            self.assertEqual(boards.size(text), wanted)
        for text in ("64", "64MiB", "-1 MiB", "1.2.3 MB", "many"):
            with self.assertRaisesRegex(Problem, "64 MiB"):
                boards.size(text)

    def test_an_unknown_board_is_answered_with_those_that_are_known(self):
        with self.assertRaisesRegex(Problem, "no board `toaster`.*qemuarm64.*raspberrypi5"):
            boards.find("toaster", BOARD_DIRS)

    def test_a_missing_or_wrong_key_names_file_key_and_remedy(self):
        good = read(BOARD_DIRS[0], "qemux86-64.toml")
        for old, new, wanted in (
            ('compatible = "rustiot-qemux86-64"', "", "the key compatible is missing.*docs/contracts/board.md"),
            ('loader = "uefi"', 'loader = "lilo"', "boot.loader: `lilo`.*uefi uboot tryboot"),
            ('loader = "uefi"', 'loader = "uboot"', "the key boot.uboot is missing"),
            ('root = "150 MiB"', 'root = "much"', "sizes.root"),
            ('name = "qemux86-64"', 'name = "other"', "file and name must agree"),
            ("[boot]", "[boot", "correct the file"),
        ):
            self.assertIn(old, good)
            with tempfile.TemporaryDirectory() as work:
                path = os.path.join(work, "qemux86-64.toml")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(good.replace(old, new, 1))
                with self.assertRaisesRegex(Problem, wanted):
                    boards.load(path)

    def test_over_budget_says_by_how_much_and_what_to_do(self):
        board = boards.load(os.path.join(BOARD_DIRS[0], "qemux86-64.toml"))
        self.assertIn("100 MiB of 150 MiB", boards.budget(board, "root", 100 << 20, "the root image", "f"))
        with self.assertRaisesRegex(Problem, "the root image has 151 MiB, f allows 150 MiB .sizes.root.; make it smaller"):
            boards.budget(board, "root", 151 << 20, "the root image", "f")

    def test_modules_become_packages(self):
        board = boards.load(os.path.join(BOARD_DIRS[0], "qemux86-64.toml"))
        names = boards.root_modules(os.path.join(CONF, "kernel-modules.toml"), board)
        self.assertIn("erofs", names)
        self.assertEqual(boards.module_package("xt_MASQUERADE"), "kernel-module-xt-masquerade")


class Crates(unittest.TestCase):
    GOOD = (
        'version = 4\n[[package]]\nname = "ours"\nversion = "0.1.0"\n'
        '[[package]]\nname = "a"\nversion = "1.2.3+x"\nsource = "registry+https://github.com/rust-lang/crates.io-index"\n'
        'checksum = "%s"\n' % ("0" * 64)
    )

    def test_the_lock_file_of_the_workspace(self):
        text = read(REPO, "rust/Cargo.lock")
        found = crates.parse(text)
        lock = tomllib.loads(text)
        self.assertEqual(len(found), sum("source" in p for p in lock["package"]))
        self.assertTrue(all(uri.startswith("crate://crates.io/") for uri in crates.uris(found)))
        self.assertEqual(len(crates.checksums(found)), len(found))

    def test_members_are_no_crates_of_the_registry(self):
        self.assertEqual(crates.parse(self.GOOD), [("a", "1.2.3+x", "0" * 64)])
        self.assertEqual(crates.checksums(crates.parse(self.GOOD)), {"a-1.2.3+x.sha256sum": "0" * 64})

    def test_what_cannot_be_built_from_is_refused_with_a_remedy(self):
        for old, new, wanted in (
            ("registry+https", "git+https", "comes from git.*publish or replace"),
            ("0" * 64, "", "no checksum.*generate-lockfile"),
            ("version = 4", "version = 99", "format version 99"),
            ("[[package]]", "[[package", "cargo update"),
            ('name = "ours"\n', "", "without name or version; make it anew"),
        ):
            with self.assertRaisesRegex(Problem, wanted):
                crates.parse(self.GOOD.replace(old, new))
        with self.assertRaisesRegex(Problem, "names no crate"):
            crates.parse("version = 4\n")

    ROOT = '[workspace.dependencies]\na = "1.2"\nb = { package = "a", version = "=1.0.0" }\n'

    def test_a_stale_lock_file_is_noticed(self):
        self.assertEqual(crates.stale(self.GOOD, self.ROOT, {"ours": "", "new": ""}), ["new"])
        for where in ("dependencies", "dev-dependencies", "build-dependencies", 'target."cfg(unix)".dependencies'):
            for wish in ("a.workspace = true", 'c = { package = "a", version = "1" }', 'a = "1"'):
                text = "[%s]\n%s\n" % (where, wish)
                self.assertEqual(crates.stale(self.GOOD, self.ROOT, {"ours": text}), ["a of ours"], text)

    def test_a_lock_file_with_another_version_is_noticed(self):
        lock = self.GOOD.replace('"0.1.0"\n', '"0.1.0"\ndependencies = ["a 1.2.3+x"]\n')
        for wish, wanted in (
            ("a.workspace = true", []), ('a = "1.2.3"', []), ('a = "1.3"', ["a 1.3 of ours"]), ('a = "2"', ["a 2 of ours"]),
            ("b.workspace = true", ["a =1.0.0 of ours"]),
        ):
            self.assertEqual(crates.stale(lock, self.ROOT, {"ours": "[dependencies]\n%s\n" % wish}), wanted, wish)

    def test_a_manifest_that_cannot_be_read_is_named(self):
        with self.assertRaisesRegex(Problem, "Cargo.toml of ours: .*; correct the file"):
            crates.stale(self.GOOD, self.ROOT, {"ours": "[dependencies"})

    def test_what_is_built_is_what_the_lock_file_leads_to(self):
        registry = 'source = "registry+https://example.org"\nchecksum = "%s"\n' % ("0" * 64)
        lock = 'version = 4\n'
        for name, version, needs, more in (
            ("ours", "0.1.0", ["other", "tests"], ""), ("other", "0.1.0", ["a 1.0.0"], ""), ("a", "1.0.0", ["b"], registry),
            ("a", "2.0.0", ["c"], registry), ("b", "1.0.0", [], registry), ("c", "1.0.0", [], registry), ("tests", "1.0.0", ["c"], registry),
        ):
            lock += '[[package]]\nname = "%s"\nversion = "%s"\n%sdependencies = %s\n' % (name, version, more, str(needs).replace("'", '"'))
        manifests = {
            "ours": '[dependencies]\nother.workspace = true\n[dev-dependencies]\ntests = "1"\n',
            "other": '[target."cfg(unix)".dependencies]\na = "1"\n',
        }
        root = '[workspace.dependencies]\nother = { path = "other" }\n'
        self.assertEqual(crates.reached(lock, root, manifests, ["ours"]), [("a", "1.0.0"), ("b", "1.0.0")])

    def test_licence_expressions(self):
        for expression, good, bad in (
            ("MIT OR Apache-2.0", "MIT", "ISC"), ("MIT/Apache-2.0", "Apache-2.0", "ISC"), ("Apache-2.0 AND ISC", "Apache-2.0 ISC", "ISC"),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", "MIT Unicode-3.0", "MIT Apache-2.0"), ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", "Apache-2.0", "MIT"),
            ("ISC AND (Apache-2.0 OR ISC) AND MIT", "ISC MIT", "ISC Apache-2.0"), ("A OR B AND C", "A", "B"), ("MIT", "MIT", ""),
        ):
            self.assertTrue(crates.satisfied(expression, good.split()), expression)
            self.assertFalse(crates.satisfied(expression, bad.split()), expression)
        self.assertEqual(crates.check_licence("a", "1.0.0", "MIT OR ISC", ["MIT"], "r"), "a 1.0.0: MIT OR ISC")
        self.assertEqual(crates.check_licence("rust-criu", "0.6.1", None, ["MIT"], "r"), "rust-criu 0.6.1: MIT")
        with self.assertRaisesRegex(Problem, "a 1.0.0 is under `GPL-3.0`; r names none of it: .* RUSTIOT_CRATE_LICENSES"):
            crates.check_licence("a", "1.0.0", "GPL-3.0", ["MIT"], "r")
        with self.assertRaisesRegex(Problem, "a 1.0.0 names no licence"):
            crates.check_licence("a", "1.0.0", None, ["MIT"], "r")

    def test_requirements_are_cargos(self):
        for requirement, good, bad in (
            ("1.2", "1.2.0 1.9.1", "1.1.9 2.0.0"), ("^0.8", "0.8.0 0.8.9", "0.7.9 0.9.0"), ("0", "0.1.0 0.9.9", "1.0.0"),
            ("0.0.3", "0.0.3", "0.0.4 0.1.3"), ("~1.2", "1.2.9", "1.3.0"), ("=1.2.3", "1.2.3", "1.2.4"), ("1", "1.0.0+b1", "0.9.0"),
        ):
            for version in good.split():
                self.assertTrue(crates.satisfies(requirement, version), (requirement, version))
            for version in bad.split():
                self.assertFalse(crates.satisfies(requirement, version), (requirement, version))
        self.assertTrue(crates.satisfies(">=1, <3", "2.0.0"))

    def test_the_lock_file_of_this_tree_is_up_to_date(self):
        top = os.path.join(REPO, "rust")
        texts = {name: read(top, "crates", name, "Cargo.toml") for name in os.listdir(os.path.join(top, "crates"))}
        texts["testbed"] = read(top, "testbed/Cargo.toml")
        self.assertEqual(crates.stale(read(top, "Cargo.lock"), read(top, "Cargo.toml"), texts), [])


class Uboot(unittest.TestCase):
    def script(self, name):
        return uboot.boot_script(os.path.join(CONF, "uboot"), boards.load(boards.find(name, BOARD_DIRS)))

    def test_every_uboot_board_has_a_script_without_placeholders(self):
        for board in every_board():
            if board["boot"]["loader"] == "uboot":
                script = uboot.boot_script(os.path.join(CONF, "uboot"), board)
                self.assertNotRegex(script, r"(?<![\w/])@[a-z_]+@")
                self.assertLess(script.index("run arm_watchdog"), script.index("bootm"))

    def test_a_hook_that_needs_more_than_the_board_states(self):
        board = boards.load(boards.find("rock-5b", BOARD_DIRS))
        board["boot"]["uboot"]["hooks"] = ["dtb-firmware"]
        with self.assertRaisesRegex(Problem, "dtb-firmware.cmd.in needs `@firmware_dtb@`, which board rock-5b"):
            uboot.boot_script(os.path.join(CONF, "uboot"), board)
        board["boot"]["uboot"]["hooks"] = ["none"]
        with self.assertRaisesRegex(Problem, "boot.uboot.hooks"):
            uboot.boot_script(os.path.join(CONF, "uboot"), board)

    def test_one_line_keeps_every_command(self):
        for board in every_board():
            if board["boot"]["loader"] != "uboot":
                continue
            script = uboot.boot_script(os.path.join(CONF, "uboot"), board)
            line = uboot.one_line(script)
            self.assertNotIn("\n", line)
            self.assertNotRegex(line, r"\b(do|then|else) *;|; *;|setenv \w+ ';")
            self.assertEqual(line.count("'"), script.count("'"))
            words = [w for w in script.replace(";", " ").split()]
            self.assertEqual([w for w in line.replace(";", " ").replace("' ", "' ").split()], self.joined(words))

    @staticmethod
    def joined(words):
        """A quote that opens a script stands before its first command."""
        out = []
        for word in words:
            if out and out[-1] == "'":
                out[-1] = "'" + word
            else:
                out.append(word)
        return out

    def test_the_selector_partition_is_valid_twice(self):
        board = boards.load(boards.find("qemuarm64", BOARD_DIRS))
        partition = uboot.selector_partition(board, 1 << 20)
        self.assertEqual(len(partition), 1 << 20)
        for offset, generation in ((0, b"2"), (0x10000, b"1")):
            copy = partition[offset : offset + 0x4000]
            self.assertEqual(struct.unpack("<I", copy[:4])[0], zlib.crc32(copy[4:]))
            self.assertTrue(copy[4:].startswith(b"slot_default=a\0slot_gen=" + generation + b"\0\0"))
        with self.assertRaisesRegex(Problem, "too small"):
            uboot.selector_partition(board, 0x4000)

    def test_the_environment_is_u_boots(self):
        # The example of docs/contracts/firmware.md, as U-Boot 2025.01 wrote it.
        block = uboot.env_block(0x4000, {"slot_default": "a", "slot_gen": "10"})
        self.assertEqual(block[:4].hex(), "aada9c9d")

    def test_the_fit_carries_a_device_tree_where_the_firmware_has_none(self):
        board = boards.load(boards.find("rock-5b", BOARD_DIRS))
        text = uboot.fit_source(board, "Image", "initramfs", "args", "board.dtb")
        self.assertIn('fdt = "fdt";', text)
        self.assertNotIn("flat_dt", uboot.fit_source(board, "Image", "initramfs", "args"))
        overlay = uboot.reservation_overlay(board)
        self.assertIn("ramoops@1000000", overlay)

    def test_reservations_compile_and_apply(self):
        if not shutil.which("dtc") or not shutil.which("fdtoverlay"):
            self.skipTest("dtc is not installed")
        for board in every_board():
            overlay = uboot.reservation_overlay(board) if board["boot"]["loader"] == "uboot" else None
            if overlay is None:
                continue
            cells = 1 if board["arch"] == "arm" else 2
            base = "/dts-v1/;\n/ { #address-cells = <%d>; #size-cells = <%d>; };\n" % (cells, cells)
            with tempfile.TemporaryDirectory() as work:
                for name, text in (("base", base), ("overlay", overlay)):
                    with open("%s/%s.dts" % (work, name), "w", encoding="utf-8") as file:
                        file.write(text)
                    subprocess.run(["dtc", "-q", "-o", "%s/%s.dtb" % (work, name), "%s/%s.dts" % (work, name)], check=True)
                subprocess.run(
                    ["fdtoverlay", "-i", work + "/base.dtb", "-o", work + "/out.dtb", work + "/overlay.dtb"], check=True
                )

    def test_a_kernel_that_does_not_fit_is_refused(self):
        board = boards.load(boards.find("qemuarm64", BOARD_DIRS))
        with tempfile.NamedTemporaryFile() as kernel:
            header = bytearray(64)
            header[56:60] = b"ARM\x64"
            for size, wanted in ((1 << 20, None), (1 << 30, "leaves it")):
                header[16:24] = struct.pack("<Q", size)
                kernel.seek(0)
                kernel.write(header)
                kernel.flush()
                if wanted:
                    with self.assertRaisesRegex(Problem, wanted):
                        uboot.check_kernel(kernel.name, board)
                else:
                    uboot.check_kernel(kernel.name, board)
            kernel.seek(0)
            kernel.write(b"\x1f\x8b" + bytes(62))
            kernel.flush()
            with self.assertRaisesRegex(Problem, "uncompressed"):
                uboot.check_kernel(kernel.name, board)

    def test_memory_of_a_board_does_not_overlap(self):
        for board in every_board():
            if board["boot"]["loader"] != "uboot":
                continue
            memory = board["boot"]["uboot"]
            boot = boards.size(board["sizes"]["boot"])
            kernel = 16 << 20 if board["arch"] == "arm" else 48 << 20
            areas = [
                (memory["kernel_load"], kernel, "kernel"),
                (memory["scratch"], 1 << 16, "scratch"),
                (memory["fit_load"], boot, "FIT"),
                (memory["ramoops"]["address"], memory["ramoops"]["size"], "ramoops"),
            ]
            areas.sort()
            for (start, size, what), (after, _, other) in zip(areas, areas[1:]):
                self.assertLessEqual(start + size, after, "%s: %s reaches into %s" % (board["name"], what, other))


class Initramfs(unittest.TestCase):
    def test_the_archive_is_one_that_cpio_reads(self):
        archive = initramfs.Archive()
        archive.file("a/b", 0o755, b"hello")
        data = archive.finish()
        self.assertEqual(len(data) % 512, 0)
        self.assertEqual(data[:6], b"070701")
        if not shutil.which("cpio"):
            self.skipTest("cpio is not installed")
        with tempfile.TemporaryDirectory() as work:
            subprocess.run(["cpio", "-i", "--quiet"], input=data, cwd=work, check=True)
            self.assertEqual(read(work, "a/b"), "hello")

    def test_modules_come_with_what_they_need_and_in_order(self):
        index = initramfs.Modules(
            "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz\n"
            "kernel/fs/jbd2/jbd2.ko.xz:\nkernel/fs/mbcache.ko.xz:\nkernel/crypto/crc32c_generic.ko.xz:\n"
            "kernel/crypto/crc32c-intel.ko.xz:\nkernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\n"
            "kernel/c.ko:\n",
            "# soft\nsoftdep ext4 pre: crc32c post: other\n",
            "kernel/drivers/virtio/virtio_pci.ko\n",
            "alias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\nalias pci:v*d* a\n",
            "6.18",
        )
        self.assertEqual(index.closure(["a"], "f"), ["kernel/c.ko", "kernel/b.ko", "kernel/a.ko"])
        self.assertEqual(
            index.closure(["virtio-pci", "ext4"], "f"),
            [
                "kernel/fs/mbcache.ko.xz",
                "kernel/fs/jbd2/jbd2.ko.xz",
                "kernel/crypto/crc32c_generic.ko.xz",
                "kernel/crypto/crc32c-intel.ko.xz",
                "kernel/fs/ext4/ext4.ko.xz",
            ],
        )
        with self.assertRaisesRegex(Problem, "f: kernel 6.18 has no module `erofs`; .*kernel fragment"):
            index.closure(["erofs"], "f")

    def test_nothing_but_init_is_in_there(self):
        self.assertEqual(initramfs.unexpected(["init", "rustiot/init.json", "lib/modules/6/a.ko"], "6"), [])
        self.assertEqual(initramfs.unexpected(["init", "bin/sh", "lib/libc.so"], "6"), ["bin/sh", "lib/libc.so"])

    def test_the_configuration_is_what_init_reads(self):
        board = boards.load(boards.find("qemux86-64", BOARD_DIRS))
        text = initramfs.configuration(board, ["a.ko"], ["a.ko", "net.ko"], False, lambda m: "/lib/" + m)
        self.assertEqual(text["modules"], ["/lib/a.ko"])
        self.assertEqual(text["network_modules"], ["/lib/net.ko"])
        self.assertEqual(text["watchdog"], {"device": "/dev/watchdog", "timeout_s": 60, "deadline_s": 180})
        self.assertFalse(text["lab"])
        # The keys that docs/contracts/init.md names.
        for key in text:
            self.assertIn("`%s`" % key, read(REPO, "docs/contracts/init.md"))


class Verity(unittest.TestCase):
    def tree(self, blocks, salt=b"salt"):
        work = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, work)
        path = os.path.join(work, "root")
        with open(path, "wb") as file:
            for index in range(blocks):
                file.write(struct.pack("<I", index) * 1024)
        return path, verity.append(path, salt)

    def test_it_is_what_veritysetup_makes(self):
        tool = shutil.which("veritysetup") or "/usr/sbin/veritysetup"
        if not os.path.exists(tool):
            self.skipTest("veritysetup (cryptsetup-bin) is not installed")
        for blocks in (2, 128, 129, 16385):
            path, made = self.tree(blocks)
            size = blocks * 4096
            command = [tool, "verify", "--no-superblock", "--data-block-size=4096", "--hash-block-size=4096"]
            command += ["--data-blocks=%d" % blocks, "--hash-offset=%d" % size, "--hash=sha256", "--salt=" + made["salt"]]
            subprocess.run(command + [path, path, made["root_hash"]], check=True)
            with open(path, "r+b") as file:
                file.seek(size // 2)
                file.write(b"!")
            self.assertNotEqual(
                subprocess.run(command + [path, path, made["root_hash"]], check=False, stderr=subprocess.DEVNULL).returncode, 0
            )

    def test_what_is_no_whole_number_of_blocks_is_refused(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 5000)
            file.flush()
            with self.assertRaisesRegex(Problem, "whole number of blocks"):
                verity.append(file.name, b"")


class Tryboot(unittest.TestCase):
    def partitions(self):
        return boards.layout(os.path.join(CONF, "layout.toml"), "tryboot")[2]

    def boards(self):
        return [board for board in every_board() if board["boot"]["loader"] == "tryboot"]

    def test_the_selector_comes_first_and_names_both_slots(self):
        partitions = self.partitions()
        self.assertEqual(partitions[0]["name"], "autoboot")
        # The firmware numbers partitions like an MBR, which has four.
        self.assertEqual(tryboot.boot_partitions(partitions), (3, 4))
        text = tryboot.autoboot(partitions)
        self.assertEqual(text, "[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=4\n")
        self.assertLessEqual(len(text), 512)
        with self.assertRaisesRegex(Problem, "no partition `boot-b`"):
            tryboot.autoboot(partitions[:3])

    def test_the_settings_start_our_kernel_with_the_watchdog_running(self):
        self.assertGreaterEqual(len(self.boards()), 2)
        for board in self.boards():
            text = tryboot.config(board)
            for line in ("kernel=kernel.img", "initramfs initramfs.img followkernel", "dtparam=watchdog=on"):
                self.assertIn(line, text.splitlines())
            self.assertIn("kernel_watchdog_timeout=%d" % board["watchdog"]["loader_timeout_s"], text.splitlines())
            # Its longest: the firmware and the driver refuse more (drivers/watchdog/bcm2835_wdt.c).
            self.assertLessEqual(board["watchdog"]["loader_timeout_s"], 15)
            self.assertNotIn("[", text)
            self.assertTrue(all(len(line) < 99 for line in text.splitlines()))
            self.assertIn("ramoops", tryboot.overlays(board))

    def test_one_command_line(self):
        self.assertEqual(tryboot.command_line("a b"), "a b\n")
        with self.assertRaisesRegex(Problem, "more than one line"):
            tryboot.command_line("a\nb")

    def test_device_trees_lie_where_the_firmware_looks(self):
        self.assertEqual(
            tryboot.device_trees("broadcom/bcm2712-rpi-5-b.dtb overlays/overlay_map.dtb overlays/x.dtbo"),
            [("bcm2712-rpi-5-b.dtb", "bcm2712-rpi-5-b.dtb"), ("overlays/overlay_map.dtb", "overlay_map.dtb"),
             ("overlays/x.dtbo", "x.dtbo")],
        )
        with self.assertRaisesRegex(Problem, "KERNEL_DEVICETREE"):
            tryboot.device_trees("overlays/overlay_map.dtb")

    def test_only_a_plain_kernel(self):
        with tempfile.NamedTemporaryFile() as kernel:
            kernel.write(bytes(56) + b"ARM\x64" + bytes(4))
            kernel.flush()
            tryboot.check_kernel(kernel.name)
            kernel.seek(0)
            kernel.write(b"\x1f\x8b")
            kernel.truncate(40)
            kernel.flush()
            with self.assertRaisesRegex(Problem, "uncompressed"):
                tryboot.check_kernel(kernel.name)


class Disk(unittest.TestCase):
    def layout(self, loader="uboot"):
        return boards.layout(os.path.join(CONF, "layout.toml"), loader)

    def test_the_kickstart_file_is_the_layout(self):
        for loader in boards.LOADERS:
            alignment, guid, partitions = self.layout(loader)
            text = disk.wks(alignment, guid, partitions, {"boot-a": "/b.img"})
            parts = [line for line in text.splitlines() if line.startswith("part ")]
            self.assertEqual(len(parts), len(partitions))
            for line, partition in zip(parts, partitions):
                for wanted in (partition["name"], partition["type"], partition["guid"], "%dK" % (partition["bytes"] // 1024)):
                    self.assertIn(wanted, line.split())
            self.assertIn('file=/b.img"', text)
            self.assertIn("--diskid " + guid, text)

    def test_a_board_area_comes_first(self):
        alignment, guid, partitions = self.layout()
        text = disk.wks(alignment, guid, partitions, {}, ["part --source rawcopy"], 8 << 20, True)
        lines = text.splitlines()
        self.assertEqual(lines[1], "part --source rawcopy")
        self.assertIn("--offset 8192K", lines[2])
        self.assertIn("gpt-hybrid", text)
        with self.assertRaisesRegex(Problem, "RUSTIOT_BOARD_AREA"):
            disk.wks(alignment, guid, partitions, {}, ["part x"])

    def image(self, name="boot-a"):
        """A GPT as sfdisk writes it, from our own list of places."""
        tool = shutil.which("sfdisk") or "/usr/sbin/sfdisk"
        if not os.path.exists(tool):
            self.skipTest("sfdisk is not installed")
        alignment, guid, partitions = self.layout()
        found, total = disk.places(alignment, partitions, 0)
        work = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, work)
        path = os.path.join(work, "disk")
        with open(path, "wb") as file:
            file.truncate(total)
        script = "label: gpt\nlabel-id: %s\nunit: sectors\n" % guid
        for partition, start in found:
            script += "start=%d, size=%d, type=%s, uuid=%s, name=\"%s\"\n" % (
                start // 512, partition["bytes"] // 512, partition["type"], partition["guid"], partition["name"]
            )
        subprocess.run([tool, "--quiet", "--no-reread", path], input=script, text=True, check=True)
        return path, guid, found

    def test_a_finished_image_is_compared_with_the_layout(self):
        path, guid, found = self.image()
        with open(path, "rb") as file:
            data = file.read(34 * 512)
        disk.check_table(data, guid, found)
        moved = [(p, start + 4096) for p, start in found]
        with self.assertRaisesRegex(Problem, "conf/layout.toml says"):
            disk.check_table(data, guid, moved)
        with self.assertRaisesRegex(Problem, "the image's table"):
            disk.check_table(data, "00000000-0000-0000-0000-000000000000", found)
        with self.assertRaisesRegex(Problem, "no GPT"):
            disk.check_table(bytes(34 * 512), guid, found)

    def test_a_kernel_where_both_slots_use_it_is_found(self):
        path, _, found = self.image()
        with open(path, "r+b") as file:

            def reader(offset, count):
                file.seek(offset)
                return file.read(count)

            self.assertIsNone(disk.shared(reader, found))
            start = next(start for p, start in found if p["name"] == "state")
            for offset, mark, what in disk.MARKS:
                file.seek(start + (3 << 16) + offset)
                file.write(mark)
                self.assertEqual(disk.shared(reader, found), ("state", what))
                file.seek(start + (3 << 16) + offset)
                file.write(bytes(len(mark)))

    def test_the_smallest_medium_holds_every_board(self):
        for board in every_board():
            alignment, _, partitions = self.layout(board["boot"]["loader"])
            # The largest board area of any board.
            _, total = disk.places(alignment, partitions, 66560 * 1024)
            disk.check_medium(board, total, board["name"])
        with self.assertRaisesRegex(Problem, "shrink partitions"):
            disk.check_medium({"storage": {"min_medium": "1 MiB"}}, total, "f")


class Dates(unittest.TestCase):
    NOW = 1795780800  # 2026-11-27T12:00:00Z
    TODAY = 1795737600

    def seconds(self, text):
        return dates.seconds("RUSTIOT_BUILD_DATE", text, self.NOW)

    def test_a_day_and_seconds_are_read(self):
        for text, wanted in (("2026-11-27", self.TODAY), ("2025-01-01", dates.EARLIEST), ("1750000000", 1750000000),
                             ("2026-11-28", self.TODAY + dates.DAY)):
            self.assertEqual(self.seconds(text), wanted)

    def test_a_bad_date_is_refused_with_the_variable_and_what_to_write(self):
        for text, wanted in (
            ("-1", 'is "-1", which is no date; write a day such as'),
            ("tomorrow", "no date; write a day such as"),
            ("2026-02-30", "no date; write a day such as"),
            ("2026-11-27T12:00", "no date; write a day such as"),
            ("0", "is 1970-01-01T00:00:00Z; no release is older than 2025"),
            ("2024-12-31", "older than 2025"),
            ("2026-11-29", r"later than this machine's clock \(2026-11-27T12:00:00Z\); devices would"),
            ("18446744073709551615", "s after 1970, later than this machine's clock"),
        ):
            with self.assertRaisesRegex(Problem, "^RUSTIOT_BUILD_DATE is .*" + wanted.removeprefix("is ")):
                self.seconds(text)

    def test_rules_are_the_lab_images(self):
        source = read(REPO, "rust/crates/rustiot-image/src/date.rs")
        number = re.search(r"EARLIEST: u64 = ([0-9_]+);", source).group(1).replace("_", "")
        self.assertEqual(int(number), dates.EARLIEST)
        self.assertIn("AHEAD: u64 = DAY;", source)
        self.assertEqual(dates.AHEAD, dates.DAY)

    def test_a_release_for_customers_needs_a_date_of_its_own(self):
        build = lambda text, production: dates.build_epoch(text, "1750000000", production, self.NOW)  # noqa: E731
        self.assertEqual(build("2026-11-27", True), self.TODAY)
        self.assertEqual(build("", False), 1750000000)
        with self.assertRaisesRegex(Problem, "RUSTIOT_PRODUCTION is set, RUSTIOT_BUILD_DATE is not.*2026-11-27"):
            build("", True)
        with self.assertRaisesRegex(Problem, 'RUSTIOT_EPOCH is "soon"'):
            dates.build_epoch("", "soon", False, self.NOW)

    def test_without_a_date_it_is_the_last_commits_day(self):
        if not shutil.which("git"):
            self.skipTest("git is not installed")
        work = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, work)
        self.assertEqual(dates.of_last_commit(work), "")
        when = "2026-11-20T23:59:59Z"
        environment = dict(os.environ, GIT_COMMITTER_DATE=when, GIT_AUTHOR_DATE=when)
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        for command in (["init", "--quiet"], who + ["commit", "--allow-empty", "--quiet", "-m", "x"]):
            subprocess.run(["git", "-C", work] + command, env=environment, check=True)
        self.assertEqual(dates.of_last_commit(work), "2026-11-20")
        # What was unpacked in there is none of its.
        inside = os.path.join(work, "unpacked")
        os.mkdir(inside)
        self.assertEqual(dates.of_last_commit(inside), "")


class Signing(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.work)

    def certificate(self, name, subject):
        if not shutil.which("openssl"):
            self.skipTest("openssl is not installed")
        path = os.path.join(self.work, name)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
             "-subj", subject, "-keyout", path + ".key", "-out", path],
            check=True, stderr=subprocess.DEVNULL,
        )
        return path

    def test_production_refuses_the_development_ca(self):
        ours = self.certificate("dev-ca.pem", "/O=RustIoT development/CN=RustIoT development CA")
        theirs = self.certificate("ca.pem", "/O=Example/CN=Example release CA")
        key = theirs + ".key"
        self.assertEqual(signing.check(False, ours, ours, key), [ours, ours, key])
        self.assertEqual(signing.check(True, theirs, theirs, key), [theirs, theirs, key])
        self.assertEqual(signing.check(True, theirs, "pkcs11:object=c", "pkcs11:object=k"), [theirs])
        for arguments in ((ours, theirs, key), (theirs, ours, key)):
            with self.assertRaisesRegex(Problem, "RUSTIOT_PRODUCTION is set.*development CA"):
                signing.check(True, *arguments)
        both = os.path.join(self.work, "both.pem")
        with open(both, "w", encoding="utf-8") as file:
            file.write(read(theirs) + read(ours))
        with self.assertRaisesRegex(Problem, "development CA"):
            signing.check(True, both, theirs, key)

    def test_the_subject_is_the_one_that_the_keys_are_made_with(self):
        source = read(REPO, "rust/crates/rustiot-image/src/keys.rs")
        self.assertIn("/O=%s/CN=" % signing.DEVELOPMENT.decode(), source)

    def test_what_is_missing_says_how_to_make_it(self):
        for arguments, wanted in (
            (("", "x", "x"), "RUSTIOT_KEYRING is not set.*make-dev-keys"),
            (("/nonexistent", "x", "x"), "there is no file /nonexistent"),
        ):
            with self.assertRaisesRegex(Problem, wanted):
                signing.check(False, *arguments)
        empty = os.path.join(self.work, "empty")
        with open(empty, "w", encoding="utf-8"):
            pass
        with self.assertRaisesRegex(Problem, "no certificate in PEM format"):
            signing.check(False, empty, empty, empty)

    def test_the_root_of_a_repository_is_one_or_none(self):
        signing.check_repository_root("")
        for text, wanted in (
            ('{"signed": {"_type": "root", "version": 1}, "signatures": []}', None),
            ('{"signed": {"_type": "targets"}}', "is no root metadata.*guide-rollout"),
            ('{"signed": []}', "is no root metadata"),
            ("[]", "cannot be read as JSON"),
            ("<html>", "cannot be read as JSON"),
        ):
            name = os.path.join(self.work, "root.json")
            with open(name, "w", encoding="utf-8") as file:
                file.write(text)
            if wanted is None:
                signing.check_repository_root(name)
                continue
            with self.assertRaisesRegex(Problem, wanted):
                signing.check_repository_root(name)
        with self.assertRaisesRegex(Problem, "cannot be read"):
            signing.check_repository_root("/nonexistent")


if __name__ == "__main__":
    unittest.main()
