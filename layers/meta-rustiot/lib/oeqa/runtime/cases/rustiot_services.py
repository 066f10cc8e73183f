#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""The services run, health is reached, and the gate opens."""

import json
import time

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase

# The gate's deadline in a normal boot on an emulated processor, seconds.
PATIENCE = 300
UNITS = ("rustiot-watchdog", "rustiot-health", "rustiot-update", "rustiot-provision", "rustiot-shutdown", "dbus")


class RustiotServicesTest(OERuntimeTestCase):
    """What a healthy device shows."""

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_services_are_active(self):
        """Each required unit."""
        for unit in UNITS:
            status, output = self.target.run("systemctl is-active %s.service" % unit)
            self.assertEqual((status, output.strip()), (0, "active"), unit)

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_only_our_policy_speaks_to_rauc(self):
        """RAUC's own policy lets every user install; ours is in its place."""
        status, output = self.target.run("cat /usr/share/dbus-1/system.d/de.pengutronix.rauc.conf")
        self.assertEqual(status, 0)
        self.assertIn('<policy group="rustiot">', output)

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_services_are_active"])
    def test_the_gate_opens(self):
        """Health is reached in time, and boot-complete.target with it."""
        end = time.monotonic() + PATIENCE
        while True:
            status, output = self.target.run("rustiot health --json")
            if status == 0 and json.loads(output).get("open"):
                break
            self.assertLess(time.monotonic(), end, output)
            time.sleep(5)
        self.assertEqual(self.target.run("systemctl is-active boot-complete.target")[0], 0)
