#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""RAUC knows the slots by our backend, and refuses what was not announced."""

import json

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase


class RustiotUpdateTest(OERuntimeTestCase):
    """What can be seen of updates without a second release; the lab's tests install real ones."""

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_the_gate_opens"])
    def test_both_slots_are_known(self):
        """As RAUC lists them."""
        status, output = self.target.run("rauc status --output-format=shell")
        self.assertEqual(status, 0, output)
        for wanted in ("rustiot", "root.0", "boot.0", "root.1", "boot.1"):
            self.assertIn(wanted, output)

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_the_gate_opens"])
    def test_the_running_slot_is_the_committed_one(self):
        """As the ledger has it."""
        status, output = self.target.run("rustiot slots --json")
        self.assertEqual(status, 0, output)
        slots = json.loads(output)
        running = json.loads(self.target.run("cat /run/rustiot/boot.json")[1])["slot"]
        self.assertEqual(slots["boots"][-1]["slot"], running)

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_the_gate_opens"])
    def test_a_write_that_nobody_announced_is_refused(self):
        """The backend lets no slot be touched that the update service did not name."""
        running = json.loads(self.target.run("cat /run/rustiot/boot.json")[1])["slot"]
        other = {"a": "B", "b": "A"}[running]
        status, output = self.target.run("/usr/lib/rustiot/rauc-backend set-state %s bad" % other)
        self.assertNotEqual(status, 0, output)
