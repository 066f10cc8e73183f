#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""oe-selftest -r rustiot: what the layer refuses, and that image and bundle resolve. Nothing is compiled."""

import glob
import os

from oeqa.selftest.case import OESelftestTestCase
from oeqa.utils.commands import bitbake, get_bb_var, get_bb_vars


class RustiotLayer(OESelftestTestCase):
    """The build's refusals and its lists."""

    def refused(self, config, recipe, wanted):
        """`recipe` cannot be built with `config`, and BitBake says why. Only that file is read: seconds, not minutes."""
        self.write_config(config)
        found = glob.glob(os.path.join(get_bb_var("LAYERDIR_rustiot"), "**", recipe + ".bb"), recursive=True)
        self.assertEqual(len(found), 1, recipe)
        result = bitbake("-n -b " + found[0], ignore_status=True)
        self.assertNotEqual(result.status, 0)
        self.assertIn(wanted, result.output)

    def test_an_unknown_board_is_answered_with_those_that_are_known(self):
        """RUSTIOT_BOARD misspelt."""
        self.refused('RUSTIOT_BOARD:forcevariable = "toaster"', "rustiot-image", "there is no board `toaster`")

    def test_a_machine_without_a_board_says_so(self):
        """A MACHINE that OE-core has and the product has not."""
        self.refused('MACHINE = "qemuppc"', "rustiot-image", "MACHINE qemuppc has no RustIoT board")

    def test_production_refuses_the_development_ca(self):
        """RUSTIOT_PRODUCTION with the keys of scripts/make-dev-keys."""
        for recipe in ("rustiot-bundle", "rustiot-rootfs", "rustiot-image-dev"):
            self.refused('RUSTIOT_PRODUCTION = "1"', recipe, "RUSTIOT_PRODUCTION is set, and")

    def test_missing_keys_say_how_to_make_them(self):
        """No keys at all."""
        for recipe in ("rustiot-bundle", "rustiot-rootfs"):
            self.refused('RUSTIOT_KEYS = "/nonexistent"', recipe, "make-dev-keys")

    def test_a_date_that_no_release_can_have_is_refused(self):
        """RUSTIOT_BUILD_DATE that is none, before 2025 or in the future."""
        for date, wanted in (("soon", "which is no date"), ("2024-12-31", "older than 2025"), ("2100-01-01", "clock")):
            for recipe in ("rustiot-bundle", "rustiot-rootfs", "rustiot-image"):
                self.refused('RUSTIOT_BUILD_DATE = "%s"' % date, recipe, wanted)

    def test_every_crate_of_the_lock_file_is_fetched(self):
        """SRC_URI has one entry with a checksum for each."""
        uris = get_bb_var("SRC_URI", "rustiot-device").split()
        lock = os.path.join(get_bb_var("RUSTIOT_WORKSPACE"), "Cargo.lock")
        with open(lock, encoding="utf-8") as file:
            count = sum(line.startswith("source = ") for line in file)
        self.assertEqual(sum(uri.startswith("crate://") for uri in uris), count)

    def test_a_lock_file_that_cannot_be_right_says_what_to_do(self):
        """A member of the workspace that it does not know; a crate that comes from elsewhere; none at all."""
        head = "version = 4\n"
        serde = (
            '[[package]]\nname = "serde"\nversion = "1.0.0"\nsource = "registry+https://example.org/index"\n'
            'checksum = "%s"\n' % ("0" * 64)
        )
        member = '[[package]]\nname = "rustiot-device"\nversion = "0.1.0"\n'
        foreign = member + serde.replace("registry+", "git+")
        damaged = '[[package]]\nversion = "0.1.0"\n'
        for text, wanted in (
            (serde, "run: cargo check"),
            (foreign, "only crates of the registry"),
            (damaged, "without name or version"),
            (None, "cannot read"),
        ):
            path = os.path.join(self.builddir, "stale-Cargo.lock")
            if text is None:
                os.unlink(path)
            else:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(head + text)
            self.refused('RUSTIOT_CARGO_LOCK:forcevariable = "%s"' % path, "rustiot-device", wanted)

    def test_the_loader_is_the_board_files(self):
        """A MACHINE whose settings contradict its board file builds no image."""
        self.refused('RUSTIOT_LOADER:forcevariable = "tryboot"', "rustiot-image", "make them agree")

    def test_the_bundle_has_both_images_in_format_verity(self):
        """What the update service accepts (docs/contracts/rauc.md)."""
        names = ["RAUC_BUNDLE_FORMAT", "RAUC_BUNDLE_SLOTS", "RAUC_BUNDLE_COMPATIBLE", "RUSTIOT_BOARD"]
        found = get_bb_vars(names, "rustiot-bundle")
        self.assertEqual(found["RAUC_BUNDLE_FORMAT"], "verity")
        self.assertEqual(found["RAUC_BUNDLE_SLOTS"].split(), ["root", "boot"])
        self.assertEqual(found["RAUC_BUNDLE_COMPATIBLE"], "rustiot-" + found["RUSTIOT_BOARD"])

    def test_image_and_bundle_resolve(self):
        """Every provider is there."""
        bitbake("-g rustiot-image rustiot-image-dev rustiot-bundle")
