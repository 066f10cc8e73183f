#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""A kernel that panics is back by itself, healthy, in the slot that it left, and says why: as the lab's tests, without a
second release. It restarts the device, so it is no part of TEST_SUITES by itself (kas/features/testimage.yml)."""

import json
import time

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase

# A reboot and the gate on an emulated processor, seconds.
PATIENCE = 600
PAUSE = 5


class RustiotResetTest(OERuntimeTestCase):
    """What outlives a restart."""

    def back(self, before):
        """The boots that the device knows once a new one is healthy."""
        end = time.monotonic() + PATIENCE
        output = ""
        while time.monotonic() < end:
            status, output = self.target.run("rustiot boots --json", timeout=60, ignore_ssh_fails=True)
            if status == 0:
                boots = json.loads(output)
                if boots[-1]["boot_id"] != before and boots[-1]["healthy"]:
                    return boots
            time.sleep(PAUSE)
        self.fail("not back and healthy after %d s: %s" % (PATIENCE, output))
        return []

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_the_gate_opens"])
    def test_a_panic_is_survived_and_told(self):
        """The reset's reason and the kernel's last lines are kept."""
        status, output = self.target.run("rustiot boots --json")
        self.assertEqual(status, 0, output)
        last = json.loads(output)[-1]
        # It never answers.
        self.target.run("sync; echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger", timeout=10, ignore_ssh_fails=True)
        boots = self.back(last["boot_id"])
        self.assertEqual(boots[-1]["slot"], last["slot"])
        self.assertEqual(boots[-1]["reset"], "panic")
        self.assertTrue(any("panic" in line.lower() for line in boots[-1]["pstore_tail"]), boots[-1]["pstore_tail"])
        self.assertEqual(boots[-1]["number"], last["number"] + 1)
