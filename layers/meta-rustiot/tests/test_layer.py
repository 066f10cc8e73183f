#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""What must agree: boards, kas files, machine settings, documentation, and what the lab image does with the same files."""

import fnmatch
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
LAYER = os.path.normpath(os.path.join(HERE, ".."))
REPO = os.path.normpath(os.path.join(LAYER, "../.."))
sys.path.insert(0, os.path.join(LAYER, "lib"))

from rustiot import boards, crates, tryboot  # noqa: E402

DIRECTORIES = [os.path.join(REPO, "conf/boards")]
# The list: each has a kas file and a board file.
WANTED = """
    raspberrypi-zero-2w raspberrypi3-64 raspberrypi4-64 raspberrypi5 beaglebone-black beagleplay jetson-orin-nano
    jetson-agx-orin qemux86-64 qemuarm64 qemuarm genericx86-64 genericarm64 imx8mp-evk rock-5b visionfive2
""".split()


def read(*path):
    with open(os.path.join(REPO, *path), encoding="utf-8") as file:
        return file.read()


def kas_files(top=""):
    """Paths below kas/."""
    found = []
    for directory, _, names in os.walk(os.path.join(REPO, "kas", top)):
        found += [os.path.relpath(os.path.join(directory, n), REPO) for n in names if n.endswith(".yml")]
    return sorted(found)


def kas_boards():
    """Board to the text of its kas file."""
    names = [p for p in kas_files() if p.count("/") == 1 and not p.endswith((".lock.yml", "/base.yml"))]
    return {os.path.basename(p)[:-4]: read(p) for p in names}


def values(text):
    """Plain assignments of a BitBake file."""
    return dict(re.findall(r'^([A-Z_]+) \??= "([^"]*)"', text, re.MULTILINE))


def sources(prefix):
    """Text of the layer's files whose names end with `prefix`."""
    for directory, _, names in os.walk(LAYER):
        for name in names:
            if name.endswith(prefix):
                path = os.path.join(directory, name)
                with open(path, encoding="utf-8") as file:
                    yield path, file.read()


class Boards(unittest.TestCase):
    def test_every_wanted_board_is_there(self):
        self.assertEqual(set(WANTED) - set(kas_boards()), set())

    def test_kas_file_machine_settings_and_board_file_agree(self):
        for name, text in kas_boards().items():
            machine = re.search(r"^machine: (\S+)$", text, re.MULTILINE).group(1)
            settings = values(read("layers/meta-rustiot/conf/rustiot", machine + ".inc"))
            board = boards.load(boards.find(name, DIRECTORIES))
            self.assertEqual(settings["RUSTIOT_BOARD"], name)
            self.assertEqual(settings["RUSTIOT_LOADER"], board["boot"]["loader"])
            self.assertEqual("RUSTIOT_UBOOT_BOARD_CFG" in settings, board["boot"]["loader"] == "uboot", name)
            for key, directory in (("RUSTIOT_KERNEL_BOARD_CFG", "recipes-kernel/linux"), ("RUSTIOT_UBOOT_BOARD_CFG", "recipes-bsp/u-boot")):
                if key in settings:
                    self.assertTrue(os.path.isfile(os.path.join(LAYER, directory, "files", settings[key])), settings[key])

    def test_every_board_file_has_a_kas_file_and_the_other_way_round(self):
        files = {n[:-5] for d in DIRECTORIES for n in os.listdir(d)}
        self.assertEqual(files, set(kas_boards()))
        machines = {re.search(r"^machine: (\S+)$", t, re.MULTILINE).group(1) for t in kas_boards().values()}
        self.assertEqual({n[:-4] for n in os.listdir(os.path.join(LAYER, "conf/rustiot"))}, machines)

    def test_a_device_tree_comes_from_somewhere(self):
        for name, text in kas_boards().items():
            machine = re.search(r"^machine: (\S+)$", text, re.MULTILINE).group(1)
            board = boards.load(boards.find(name, DIRECTORIES))
            if board["boot"]["loader"] == "uboot":
                own = "RUSTIOT_FIT_DTB" in values(read("layers/meta-rustiot/conf/rustiot", machine + ".inc"))
                hook = any(h.startswith("dtb-") for h in board["boot"]["uboot"]["hooks"])
                self.assertNotEqual(own, hook, name)
            if board["boot"]["loader"] == "tryboot":
                shipped = values(read("layers/meta-rustiot/conf/rustiot", machine + ".inc"))["RPI_KERNEL_DEVICETREE_OVERLAYS"]
                for overlay in tryboot.overlays(board):
                    self.assertIn("overlays/%s.dtbo" % overlay, shipped.split(), name)
                self.assertIn("overlays/overlay_map.dtb", shipped.split(), name)

    def test_every_board_has_its_row_in_the_documentation(self):
        text = read("docs/boards.md")
        for name in kas_boards():
            self.assertIn("`%s`" % name, text)


class Kas(unittest.TestCase):
    def test_every_layer_is_locked_to_a_commit(self):
        locked = {}
        for path in kas_files():
            if path.endswith(".lock.yml"):
                self.assertTrue(os.path.exists(os.path.join(REPO, path.replace(".lock.yml", ".yml"))), path)
                locked[path] = dict(re.findall(r"^    (\S+):\n      commit: ([0-9a-f]{40})$", read(path), re.MULTILINE))
        known = {}
        for commits in locked.values():
            for repo, commit in commits.items():
                self.assertEqual(known.setdefault(repo, commit), commit, repo)
        for path in kas_files():
            for repo in re.findall(r"^  (\S+):\n    url:", read(path), re.MULTILINE):
                self.assertIn(repo, locked.get(path.replace(".yml", ".lock.yml"), {}), path)

    def test_includes_exist(self):
        for path in kas_files():
            for include in re.findall(r"^    - (kas/\S+\.yml)$", read(path), re.MULTILINE):
                self.assertTrue(os.path.exists(os.path.join(REPO, include)), "%s: %s" % (path, include))

    def test_licences_are_accepted_by_people_only(self):
        for path in kas_files():
            if not path.startswith("kas/eula/"):
                self.assertNotRegex(read(path), "ACCEPT_FSL_EULA|LICENSE_FLAGS_ACCEPTED", path)
        for path, text in sources((".conf", ".inc", ".bbclass", ".bb")):
            self.assertNotRegex(text, "ACCEPT_FSL_EULA|LICENSE_FLAGS_ACCEPTED", path)

    def test_the_menu_offers_every_board_by_its_name_and_every_feature(self):
        text = read("Kconfig")
        for name in kas_boards():
            symbol = "BOARD_" + name.upper().replace("-", "_")
            described = boards.load(boards.find(name, DIRECTORIES))["description"]
            self.assertIn('config %s\n\tbool "%s"\n' % (symbol, described), text)
            self.assertIn('default "kas/%s.yml" if %s\n' % (name, symbol), text)
        # Verification alone, and no product: it is not to be chosen by accident.
        hidden = "kas/features/standin.yml"
        self.assertNotIn(hidden, text)
        for path in kas_files("features") + kas_files("eula"):
            if not path.endswith(".lock.yml") and path != hidden:
                self.assertIn('default "%s"\n' % path, text)


class SameAsTheLab(unittest.TestCase):
    def test_users_have_the_lab_images_numbers(self):
        lab = {}
        for line in read("conf/lab/sysusers.conf").splitlines():
            words = line.split()
            if words and words[0] in ("u", "g"):
                lab[words[1]] = int(words[2].split(":")[0])
        for table, index in (("rustiot-passwd", 2), ("rustiot-group", 2)):
            seen = {}
            for line in read("layers/meta-rustiot/files", table).splitlines():
                if line.startswith("#"):
                    continue
                fields = line.split(":")
                number = int(fields[index])
                self.assertNotIn(number, seen.values(), line)
                seen[fields[0]] = number
                if fields[0] in lab:
                    self.assertEqual(number, lab[fields[0]], line)
                else:
                    self.assertGreaterEqual(number, 930, "%s: %s is not in conf/lab/sysusers.conf" % (table, fields[0]))
            if table == "rustiot-group":
                self.assertEqual(set(lab) - set(seen), set())

    def test_what_another_package_owns_is_replaced_there(self):
        recipe = read("layers/meta-rustiot/recipes-core/rustiot/rustiot-rootfs.bb")
        owned = re.search(r'RUSTIOT_OWNED_ELSEWHERE = "(.*?)"', recipe, re.DOTALL).group(1).replace("\\", "").split()
        appends = "".join(text for _, text in sources(".bbappend"))
        for path in owned:
            self.assertTrue(os.path.isfile(os.path.join(REPO, "conf/rootfs", path)), path)
            self.assertIn("file://" + path.split("/", 1)[1] if path.startswith("etc/") else path.rpartition("/")[2], appends)

    def test_services_have_the_lab_images_links(self):
        recipe = read("layers/meta-rustiot/recipes-core/rustiot/rustiot-device.bb")
        ours = values(recipe)["RUSTIOT_SERVICES"].replace("\\", "").split()
        source = read("rust/crates/rustiot-image/src/root.rs")
        block = re.search(r'for name in\s*\[\s*("rustiot-provision".*?)\]', source, re.DOTALL).group(1)
        self.assertEqual(ours, re.findall(r'"([^"]+)"', block))

    def test_the_guard_is_compiled_with_the_same_flags(self):
        recipe = read("layers/meta-rustiot/recipes-bsp/rustiot-guard/rustiot-guard.bb")
        source = read("rust/crates/rustiot-image/src/guard.rs")
        block = re.search(r"const CFLAGS[^=]*= \[(.*?)\];", source, re.DOTALL).group(1)
        lab = [flag for flag in re.findall(r'"([^"]+)"', block) if not flag.startswith("-isystem")]
        ours = re.search(r'GUARD_CFLAGS = "(.*?)"', recipe, re.DOTALL).group(1).replace("\\", "").split()
        self.assertEqual(ours, lab)
        sections = re.search(r"const SECTIONS[^=]*= \[(.*?)\];", source, re.DOTALL).group(1)
        self.assertEqual(values(recipe)["GUARD_SECTIONS"].split(), re.findall(r'"([^"]+)"', sections))

    def test_constants_of_the_images_are_the_labs(self):
        root = read("rust/crates/rustiot-image/src/root.rs")
        image = read("layers/meta-rustiot/classes-recipe/rustiot_image.bbclass")
        self.assertIn(re.search(r'ROOT_UUID: &str = "([^"]+)"', root).group(1), image)
        epoch = re.search(r"EPOCH: u64 = ([0-9_]+);", root).group(1).replace("_", "")
        self.assertIn('RUSTIOT_EPOCH ?= "%s"' % epoch, read("layers/meta-rustiot/conf/distro/include/rustiot-paths.inc"))
        # Files have that time; the release's own is one file's alone.
        self.assertIn('"--mkfs-time"', root)
        self.assertIn('"-T${RUSTIOT_EPOCH} --mkfs-time ', image)
        self.assertIn(re.search(r'CLOCK_EPOCH: &str = "usr/lib(/[^"]+)"', root).group(1), image)
        boot = read("rust/crates/rustiot-image/src/boot.rs")
        self.assertIn(re.search(r'VOLUME_ID: &str = "([^"]+)"', boot).group(1), image)

    def test_the_version_is_the_workspaces(self):
        version = re.search(r'^version = "([^"]+)"', read("rust/Cargo.toml"), re.MULTILINE).group(1)
        self.assertIn('RUSTIOT_VERSION ?= "%s"' % version, read("layers/meta-rustiot/conf/distro/include/rustiot-paths.inc"))

    def test_programs_come_to_do_package_with_their_symbols(self):
        # A stripped program is an error there, and the shipping profile strips.
        self.assertIn('strip = "symbols"', read("rust/Cargo.toml"))
        self.assertIn('export CARGO_PROFILE_RELEASE_STRIP = "none"', read("layers/meta-rustiot/classes-recipe/rustiot_workspace.bbclass"))

    def test_modules_are_unpacked_without_pseudo(self):
        text = read("layers/meta-rustiot/recipes-core/images/rustiot-initramfs.inc")
        self.assertRegex(text, r"alone = dict\(os\.environ, PSEUDO_UNLOAD=\"1\"\)")
        self.assertIn("stdout=file, env=alone, check=True", text)

    def test_rauc_gets_what_its_contract_says(self):
        recipe = read("layers/meta-rustiot/dynamic-layers/rauc/recipes-core/bundles/rustiot-bundle.bb")
        self.assertEqual(values(recipe)["RAUC_BUNDLE_FORMAT"], "verity")
        self.assertIn("check-purpose=codesign", recipe)
        self.assertIn("check-purpose=codesign", read("conf/rauc/system.conf.in"))
        config = read("layers/meta-rustiot/dynamic-layers/rauc/recipes-core/rauc/rauc-conf-rustiot.inc")
        self.assertEqual(set(re.findall(r"@([A-Z]+)@", read("conf/rauc/system.conf.in"))) - {"COMPATIBLE"}, set())
        self.assertIn("@COMPATIBLE@", config)


class Layer(unittest.TestCase):
    def test_nothing_of_another_layer_changes_without_our_distribution(self):
        for path, text in sources(".bbappend"):
            for line in text.splitlines():
                if re.match(r"^[A-Z_]+[a-zA-Z_:${}-]* *[:+.?]*=", line):
                    self.assertIn(":rustiot", line.split("=")[0], "%s: %s" % (path, line))
                if re.match(r"^do_\w+\S* *\(\)", line):
                    self.assertIn(":rustiot", line.split("(")[0], "%s: %s" % (path, line))
                if line.startswith(("require", "inherit")):
                    self.assertIn("d.getVar('DISTRO')", line, "%s: %s" % (path, line))

    def test_every_package_of_the_root_has_its_reason_in_the_documentation(self):
        text = read("docs/yocto.md").partition("### What is in the image")[2].partition("\n## ")[0]
        # `name-{a,b}` and `name`, `-a` are what they look like.
        named = set()
        for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE):
            first = ""
            for word in re.findall(r"`([^`]+)`", cell):
                name = first.rpartition("-")[0] + word if word.startswith("-") else word
                first = first or word
                head, brace, rest = name.partition("{")
                named.update(head + part for part in rest.rstrip("}").split(",")) if brace else named.add(name)
        recipes = {"recipes-core/packagegroups/packagegroup-rustiot-base.bb": r"RDEPENDS:|_PACKAGES =", "recipes-core/rustiot/rustiot-device.bb": r"RDEPENDS:"}
        for path, start in recipes.items():
            body = read("layers/meta-rustiot", path)
            wanted = set()
            for value in re.findall(r"^\w*(?:%s)[^\n]*?\"(.*?)\"\n" % start, body, re.DOTALL | re.MULTILINE):
                inside = re.sub(r"\$\{@.*?'\w+', '[\w-]+', '([^']*)'.*?\}", r"\1", value)
                wanted.update(word for word in inside.split() if re.fullmatch(r"[a-z][a-z0-9+-]*", word))
            self.assertTrue(wanted, path)
            for package in wanted:
                self.assertTrue(any(fnmatch.fnmatchcase(package, pattern) for pattern in named), "%s of %s" % (package, path))

    def test_recipes_name_the_licences_of_the_crates_that_they_link(self):
        cargo = shutil.which("cargo")
        if not cargo:
            self.skipTest("there is no cargo")
        command = [cargo, "metadata", "--format-version", "1", "--locked", "--offline", "--manifest-path", os.path.join(REPO, "rust/Cargo.toml")]
        for system in ("x86_64", "aarch64"):
            command += ["--filter-platform", system + "-unknown-linux-gnu"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            self.skipTest("cargo has not fetched all crates")
        found = json.loads(result.stdout)
        packages = {p["id"]: p for p in found["packages"]}
        needs = {n["id"]: [d["pkg"] for d in n["deps"] if any(k["kind"] != "dev" for k in d["dep_kinds"])] for n in found["resolve"]["nodes"]}
        manifests = {p["name"]: read(os.path.relpath(p["manifest_path"], REPO)) for p in packages.values() if not p["source"]}
        common = values(next(text for path, text in sources("rustiot_workspace.bbclass")))["RUSTIOT_CRATE_LICENSES"]
        for path, text in sources(".bb"):
            if "inherit rustiot_workspace" not in text:
                continue
            recipe = os.path.basename(path)[:-3]
            names = values(text).get("RUSTIOT_CRATE_LICENSES", common).split()
            members = values(text).get("RUSTIOT_PACKAGES", recipe).split()
            elsewhere = values(text).get("RUSTIOT_CRATES_ELSEWHERE", "").split()
            # What cargo builds on Linux, ...
            built, waiting = set(), [p["id"] for p in packages.values() if p["name"] in members]
            while waiting:
                package = waiting.pop()
                if package not in built:
                    built.add(package)
                    waiting += needs[package]
            linked = {(packages[p]["name"], packages[p]["version"]): packages[p]["license"] for p in built if packages[p]["source"]}
            self.assertGreater(len(linked), 5, recipe)
            # ... is among what the class lists, each under a licence that the recipe names, and it names no other.
            listed = crates.reached(read("rust/Cargo.lock"), read("rust/Cargo.toml"), manifests, members)
            self.assertEqual(set(linked) - set(listed), set(), recipe)
            for name, version in linked:
                crates.check_licence(name, version, linked[name, version], names, recipe)
                self.assertNotIn(name, elsewhere)
            named = [crates.stated(name, version, linked[name, version]) for name, version in linked]
            for name in names:
                less = [n for n in names if n != name]
                self.assertTrue(any(not crates.satisfied(stated, less) for stated in named), "%s of %s" % (name, recipe))
            for name in elsewhere:
                self.assertIn(name, [crate for crate, _ in listed], recipe)

    def test_no_recipe_bears_the_name_of_the_override(self):
        # `FILES:rustiot` would be a variable of the distribution, not of the package.
        self.assertEqual([p for p, _ in sources(".bb") if os.path.basename(p).split("_")[0] == "rustiot.bb"], [])

class TheTableOfVerifiedBoards(unittest.TestCase):
    """`scripts/verify-yocto --write` adds what passed and forgets nothing else."""

    def setUp(self):
        path = os.path.join(REPO, "scripts/verify-yocto")
        loader = importlib.machinery.SourceFileLoader("verify_yocto", path)
        self.script = importlib.util.module_from_spec(importlib.util.spec_from_loader("verify_yocto", loader))
        loader.exec_module(self.script)
        self.before = "Text.\n\n%s\n\n| board | MACHINE |\n|---|---|\n| `gone` | x |\n| `old` | m |\n" % self.script.MARK
        self.row = ("`new`", "machine", "uefi", "linux bzImage", 973, "0, 0", "3748 (graph)")

    def test_rows_of_boards_that_were_not_run_stay_and_those_of_boards_that_are_gone_go(self):
        text = self.script.write(self.before, [self.row], ["new", "old"])
        self.assertTrue(text.startswith("Text.\n"))
        self.assertIn("| `old` | m |", text)
        self.assertIn("| `new` | machine | uefi | linux bzImage | 973 | 0, 0 | 3748 (graph) |", text)
        self.assertNotIn("gone", text)

    def test_writing_twice_changes_nothing(self):
        once = self.script.write(self.before, [self.row], ["new", "old"])
        self.assertEqual(self.script.write(once, [self.row], ["new", "old"]), once)

    def test_a_later_run_replaces_the_row(self):
        once = self.script.write(self.before, [self.row], ["new"])
        again = self.script.write(once, [self.row[:4] + (980, "0, 0", "3750 (graph)")], ["new"])
        self.assertIn("| 980 |", again)
        self.assertNotIn("| 973 |", again)

    def test_layers_stand_below_with_the_commits_of_the_lock_files(self):
        text = self.script.write(self.before, [], [])
        for name_and_commit in self.script.layers():
            self.assertIn("| %s | `%s` |" % name_and_commit, text)
        self.assertIn("openembedded-core", dict(self.script.layers()))

    def test_the_line_about_the_layer_stays_until_the_next_one(self):
        ended = "INFO: Ran 2 tests in 9.1s\nINFO: OK\nINFO:  (skipped=1)\nINFO: meta-rustiot ... PASS\n"
        line = self.script.layer_result(2 * "INFO: test_x (y)\nINFO:  ... ok\n" + ended)
        self.assertIn("all 2 checks passed", line)
        with self.assertRaisesRegex(self.script.Failed, "1 of 2 checks passed"):
            self.script.layer_result("INFO:  ... ok\nINFO:  ... skipped 'why'\n" + ended)
        text = self.script.write(self.before, [], ["old"], line)
        self.assertIn(line, text)
        self.assertEqual(self.script.write(text, [], ["old"]), text)
        again = self.script.write(text, [], ["old"], line.replace("2 checks", "10 checks"))
        self.assertNotIn("2 checks", again)
        self.assertIn("10 checks", again)

    def test_a_layer_that_does_not_pass_is_no_line(self):
        for said, wanted in (
            ("INFO: FAIL: test_world (common.CommonCheckLayer.test_world)\nINFO: Ran 11 tests in 9s\nINFO: meta-rustiot ... FAIL\n", "FAIL, test_world"),
            ("INFO: Ran 0 tests in 0s\nINFO: meta-rustiot ... SKIPPED (Missing dependencies)\n", "SKIPPED .Missing"),
            ("ERROR: no such layer\n", "did not come to an end"),
        ):
            with self.assertRaisesRegex(self.script.Failed, wanted):
                self.script.layer_result(said)

    def test_variables_are_read_from_what_the_questions_print(self):
        text = "NOTE: Reconnecting\n@MACHINE=qemuarm\n@PREFERRED_PROVIDER_virtual/kernel=linux-yocto\n@WKS_FILE=ERROR\n"
        found = self.script.variables(text)
        self.assertEqual(found["PREFERRED_PROVIDER_virtual/kernel"], "linux-yocto")
        self.script.expect(found, "MACHINE", "qemuarm")
        for name in ("WKS_FILE", "DISTRO"):
            with self.assertRaises(self.script.Failed):
                self.script.expect(found, name, "rustiot.wks.in")
        asked = [name for _, name in self.script.ASKED]
        self.assertEqual(len(asked), len(set(asked)))

    def test_a_page_without_the_mark_is_not_touched(self):
        with self.assertRaises(self.script.Failed):
            self.script.write("no table here", [self.row], ["new"])


if __name__ == "__main__":
    unittest.main()
