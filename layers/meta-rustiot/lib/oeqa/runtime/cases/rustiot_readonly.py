#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""Nothing on the device can change the system: the root is verified and read-only, and no account has a password."""

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase


class RustiotReadonlyTest(OERuntimeTestCase):
    """Guarantees about the root."""

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_the_root_is_erofs_and_read_only(self):
        """As mounted."""
        status, output = self.target.run("grep ' / ' /proc/mounts")
        self.assertEqual(status, 0, output)
        self.assertIn(" erofs ro", output)

    @OETestDepends(["rustiot_readonly.RustiotReadonlyTest.test_the_root_is_erofs_and_read_only"])
    def test_nothing_can_be_written_there(self):
        """As tried."""
        for path in ("/usr/bin/x", "/etc/x", "/x"):
            self.assertNotEqual(self.target.run("touch %s" % path)[0], 0, path)
        self.assertNotEqual(self.target.run("mount -o remount,rw /")[0], 0)

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_what_outlives_a_release_is_elsewhere(self):
        """State and data are ext4 on partitions of their own, /var is memory."""
        for path, kind in (("/state", "ext4"), ("/data", "ext4"), ("/var", "tmpfs")):
            status, output = self.target.run("grep ' %s ' /proc/mounts" % path)
            self.assertEqual(status, 0, path)
            self.assertIn(" %s " % kind, output)
