#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""The device says what it is and how it is, and its commands agree with each other (docs/contracts/device-cli.md)."""

import json

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase

# Steps of the first boot that may end in nothing else.
GOOD = ("unchanged", "done")


class RustiotStatusTest(OERuntimeTestCase):
    """What the owner sees."""

    def json(self, command):
        """What a command prints as JSON."""
        status, output = self.target.run(command)
        self.assertEqual(status, 0, output)
        return json.loads(output)

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_the_gate_opens"])
    def test_the_commands_agree(self):
        """Status, slots, boots and health tell of one boot, one slot and one release."""
        status, slots = self.json("rustiot status --json"), self.json("rustiot slots --json")
        boots, health = self.json("rustiot boots --json"), self.json("rustiot health --json")
        boot = self.json("cat /run/rustiot/boot.json")
        self.assertEqual(status["version"], self.json("cat /usr/lib/rustiot/release.json")["version"])
        self.assertEqual((slots["running"], boots[-1]["slot"]), (boot["slot"], boot["slot"]))
        self.assertEqual((boots[-1]["boot_id"], health["boot_id"]), (boot["boot_id"], boot["boot_id"]))
        self.assertEqual([s["slot"] for s in slots["slots"] if s["running"]], [boot["slot"]])
        self.assertEqual([s["slot"] for s in slots["slots"] if s["committed"]], [boot["slot"]])
        self.assertEqual(slots["complaints"], [])

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_the_gate_opens"])
    def test_every_required_check_passes(self):
        """Nothing that a boot needs fails; what only warns may."""
        checks = self.json("rustiot health --json")["checks"]
        self.assertIn("units", [check["name"] for check in checks])
        bad = [c for c in checks if c["need"] != "advisory" and c["verdict"] in ("fail", "pending")]
        self.assertEqual(bad, [])

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_services_are_active"])
    def test_the_first_boot_is_done(self):
        """Disk, state, data, identity and configuration are in place."""
        found = self.json("rustiot provision status --json")
        self.assertTrue(found["ok"], found["messages"])
        self.assertEqual([s for s in found["steps"] if s["outcome"] not in GOOD], [])
        status, host = self.target.run("hostname")
        self.assertEqual((status, host.strip()), (0, found["hostname"]))

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_services_are_active"])
    def test_identity_is_this_devices_own(self):
        """Machine id and host key are on the state partition, not in the image."""
        status, kept = self.target.run("cat /state/identity/machine-id")
        self.assertEqual(status, 0, kept)
        self.assertRegex(kept.strip(), "^[0-9a-f]{32}$")
        self.assertEqual(self.target.run("cat /etc/machine-id")[1].strip(), kept.strip())
        self.assertNotEqual(self.target.run("ls /etc/ssh/ssh_host_ed25519_key")[0], 0)

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_the_gate_opens"])
    def test_a_bundle_that_cannot_be_had_is_refused_with_a_remedy(self):
        """An error names what to do, and nothing is under way afterwards."""
        status, output = self.target.run("rustiot update install --json http://127.0.0.1:9/none.raucb 2>/dev/null")
        self.assertEqual(status, 1, output)
        ended = json.loads(output)["ended"]
        self.assertEqual((ended["result"], ended["spent"]["written"]), ("failed", 0), output)
        self.assertTrue(ended["why"]["message"] and ended["why"]["hint"], output)
        self.assertEqual(self.json("rustiot update status --json")["phase"], "idle")
