#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""The boot came about as docs/contracts/init.md says: a verified root of a known slot, the watchdog running."""

import json

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase


class RustiotBootTest(OERuntimeTestCase):
    """Guarantees that every boot keeps."""

    def json(self, command):
        """What a command prints as JSON."""
        status, output = self.target.run(command)
        self.assertEqual(status, 0, output)
        return json.loads(output)

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_the_slot_is_known(self):
        """rustiot-init says which slot runs, and why."""
        boot = self.json("cat /run/rustiot/boot.json")
        self.assertIn(boot["slot"], ("a", "b"))
        self.assertEqual(boot["kind"], "normal")
        # The first boot of a fresh medium finds nothing to mount and makes it later.
        if boot["boot_number"] > 1:
            self.assertEqual((boot["state"], boot["data"]), ("mounted", "mounted"))

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_the_root_is_the_one_that_was_built(self):
        """The hash that init opened the root with is the one that the kernel checks."""
        boot = self.json("cat /run/rustiot/boot.json")
        status, table = self.target.run("dmsetup table rustiot-root 2>/dev/null || cat /sys/block/dm-0/dm/name")
        self.assertEqual(status, 0, table)
        self.assertTrue(boot["root_hash"] in table or "rustiot-root" in table, table)

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_the_hardware_watchdog_is_held(self):
        """Somebody has the device open, so a hang ends in a reset."""
        status, output = self.target.run("cat /sys/class/watchdog/watchdog0/state")
        self.assertEqual((status, output.strip()), (0, "active"))

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_the_release_is_the_one_that_was_built(self):
        """Version and build time on the device are the build's."""
        release = self.json("cat /usr/lib/rustiot/release.json")
        self.assertEqual(release["version"], self.tc.td["RUSTIOT_VERSION"])
        self.assertEqual(release["build_epoch"], int(self.tc.td["RUSTIOT_BUILD_EPOCH"]))
