#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""Who may do what, over the network and at the bus: as the lab's tests `only_ssh_listens_and_takes_no_password` and
`local_users_give_no_orders`."""

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase

UPDATE = "org.rustiot.Update1 /org/rustiot/Update1 org.rustiot.Update1"
RAUC = "de.pengutronix.rauc / de.pengutronix.rauc.Installer"
SYSTEMD = "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
ORDERS = (
    UPDATE + " Install 'a{sv}' 1 source s /data/x.raucb",
    UPDATE + " Activate",
    UPDATE + " Reboot",
    RAUC + " InstallBundle 'sa{sv}' /data/x.raucb 0",
    RAUC + " Mark ss bad booted",
    SYSTEMD + " StopUnit ss rustiot-watchdog.service replace",
)
REFUSALS = ("Access denied", "not authorized", "authentication required", "AccessDenied")
# ssh; the clients of DHCP hear answers at ports of their own.
KNOWN = {("tcp", 22), ("udp", 68), ("udp", 546)}
# States of /proc/net/tcp and udp (Linux: include/net/tcp_states.h): listening, and unconnected.
WAITING = {"tcp": "0A", "udp": "07"}


def listening(protocol, table):
    """(protocol, port) of each socket in /proc/net/<protocol> that others than this machine reach."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) < 4 or words[3] != WAITING[protocol[:3]]:
            continue
        address, port = words[1].split(":")
        # 127.0.0.0/8 in the machine's little-endian order, ::1, and both as mapped addresses.
        home = address.endswith("7F") if len(address) == 8 else address in ("0" * 24 + "01000000",)
        home = home or (address.startswith("0" * 16 + "FFFF0000") and address.endswith("7F"))
        if not home:
            yield protocol[:3], int(port, 16)


class RustiotAccessTest(OERuntimeTestCase):
    """Guarantees about who gets in."""

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_only_ssh_listens(self):
        """Nothing else can be reached from outside."""
        open_ports = set()
        for protocol in ("tcp", "tcp6", "udp", "udp6"):
            status, table = self.target.run("cat /proc/net/%s" % protocol)
            self.assertEqual(status, 0, table)
            open_ports.update(listening(protocol, table))
        self.assertIn(("tcp", 22), open_ports)
        self.assertEqual(open_ports - KNOWN, set())

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_ssh_takes_keys_only(self):
        """As the server itself says."""
        status, output = self.target.run("sshd -T 2>/dev/null || /usr/sbin/sshd -T")
        self.assertEqual(status, 0, output)
        settings = dict(line.partition(" ")[::2] for line in output.lower().splitlines())
        self.assertEqual(settings.get("passwordauthentication"), "no")
        self.assertEqual(settings.get("kbdinteractiveauthentication"), "no")
        self.assertEqual(settings.get("permitemptypasswords"), "no")

    @OETestDepends(["rustiot_services.RustiotServicesTest.test_services_are_active"])
    def test_local_users_give_no_orders(self):
        """Who is not root reads the update service's state and is refused everything else."""
        as_nobody = "systemd-run --quiet --wait --pipe --uid=65534 busctl "
        for order in ORDERS:
            status, output = self.target.run("%s call %s 2>&1" % (as_nobody, order))
            self.assertNotEqual(status, 0, order)
            self.assertTrue(any(words in output for words in REFUSALS), "%s: %s" % (order, output))
        status, output = self.target.run("%s get-property %s Phase" % (as_nobody, UPDATE))
        self.assertEqual((status, output.strip()), (0, 's "idle"'), output)
