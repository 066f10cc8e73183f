#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""The cases for testimage, against a device that is made up: each passes on one as it should be, and each fails when
what it looks at is wrong. Real ones run against a machine by OE's own code: docs/yocto-verification.md."""

import importlib
import json
import os
import re
import sys
import types
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = os.path.join(HERE, "../lib/oeqa/runtime/cases")
MODULES = sorted(name[:-3] for name in os.listdir(CASES) if name.endswith(".py"))
RELEASE = {"version": "1.2.0", "build_epoch": 1795737600}
MACHINE_ID = "0123456789abcdef0123456789abcdef"
BOOT = {"slot": "a", "boot_id": "b1", "kind": "normal", "boot_number": 2, "state": "mounted", "data": "mounted",
        "root_hash": "ab" * 32}
BOOTS = [{"number": 1, "boot_id": "b1", "slot": "a", "reset": "unknown", "healthy": True, "pstore_tail": []}]
SLOTS = {
    "running": "a", "complaints": [], "boots": BOOTS,
    "slots": [
        {"slot": "a", "running": True, "committed": True},
        {"slot": "b", "running": False, "committed": False},
    ],
}
HEALTH = {
    "boot_id": "b1", "open": True,
    "checks": [
        {"name": "units", "need": "required", "verdict": "pass"},
        {"name": "data space", "need": "advisory", "verdict": "fail"},
    ],
}
PROVISION = {"ok": True, "messages": [], "hostname": "rustiot-1", "steps": [{"name": "state", "outcome": "done"}]}
TCP = """  sl  local_address rem_address   st
   0: 00000000:0016 00000000:0000 0A
   1: 0100007F:0050 00000000:0000 0A
   2: 0F02000A:0016 0202000A:1234 01
"""
TCP6 = """  sl  local_address rem_address   st
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A
   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A
"""
UDP = """  sl  local_address rem_address   st
   0: 0F02000A:0044 00000000:0000 07
   1: 3500007F:0035 00000000:0000 07
"""
MOUNTS = {"/": "/dev/dm-0 / erofs ro 0 0", "/state": "/dev/vda7 /state ext4 rw 0 0", "/data": "/dev/vda8 /data ext4 rw 0 0",
          "/var": "tmpfs /var tmpfs rw 0 0"}
ENDED = {"phase": "idle", "ended": {"result": "failed", "spent": {"written": 0},
                                    "why": {"kind": "unreachable", "message": "cannot be reached", "hint": "check the network"}}}
# Which command gets which answer: pattern, status, output. The first that fits counts.
DEVICE = (
    (r"systemd-run .* call ", 1, "Call failed: Access denied"),
    (r"systemd-run .* get-property ", 0, 's "idle"'),
    (r"cat /run/rustiot/boot\.json", 0, json.dumps(BOOT)),
    (r"cat /usr/lib/rustiot/release\.json", 0, json.dumps(RELEASE)),
    (r"dmsetup", 0, "rustiot-root"),
    (r"watchdog0/state", 0, "active"),
    (r"grep ' / '", 0, MOUNTS["/"]),
    (r"grep ' /state '", 0, MOUNTS["/state"]),
    (r"grep ' /data '", 0, MOUNTS["/data"]),
    (r"grep ' /var '", 0, MOUNTS["/var"]),
    (r"^(touch|mount) ", 1, "Read-only file system"),
    (r"systemctl is-active", 0, "active"),
    (r"de\.pengutronix\.rauc\.conf", 0, '<policy group="rustiot">'),
    (r"rustiot status --json", 0, json.dumps({"version": "1.2.0"})),
    (r"rustiot slots --json", 0, json.dumps(SLOTS)),
    (r"rustiot boots --json", 0, json.dumps(BOOTS)),
    (r"rustiot health --json", 0, json.dumps(HEALTH)),
    (r"rustiot provision status --json", 0, json.dumps(PROVISION)),
    (r"rustiot update status --json", 0, json.dumps({"phase": "idle"})),
    (r"rustiot update install", 1, json.dumps(ENDED)),
    (r"rauc status", 0, "RAUC_SYSTEM_COMPATIBLE=rustiot-x root.0 boot.0 root.1 boot.1"),
    (r"rauc-backend set-state", 3, "refused"),
    (r"cat /proc/net/tcp$", 0, TCP),
    (r"cat /proc/net/tcp6$", 0, TCP6),
    (r"cat /proc/net/udp6?$", 0, UDP),
    (r"sshd -T", 0, "PasswordAuthentication no\nKbdInteractiveAuthentication no\npermitemptypasswords no\nport 22"),
    (r"^hostname", 0, "rustiot-1"),
    (r"cat /(state/identity|etc)/machine-id", 0, MACHINE_ID),
    (r"ls /etc/ssh/ssh_host", 1, "No such file"),
    (r"sysrq-trigger", 255, ""),
)


class Target:
    """A device that answers by the table; `changed` answers come first, `after_reset` once it has been crashed."""

    def __init__(self, changed=(), after_reset=()):
        self.answers = list(changed) + list(DEVICE)
        self.after_reset = list(after_reset)

    def run(self, command, timeout=None, ignore_ssh_fails=False):
        del timeout, ignore_ssh_fails
        for pattern, status, output in self.answers:
            if re.search(pattern, command):
                if "sysrq-trigger" in command:
                    self.answers = self.after_reset + self.answers
                return status, output
        raise AssertionError("no answer for: %s" % command)


def modules():
    """The cases, with OE's own modules played by these few lines."""
    depends = []

    def depends_on(names):
        depends.extend(names)
        return lambda test: test

    case = types.ModuleType("oeqa.runtime.case")
    case.OERuntimeTestCase = type("OERuntimeTestCase", (unittest.TestCase,), {})
    decorator = types.ModuleType("oeqa.core.decorator.depends")
    decorator.OETestDepends = depends_on
    stubs = {name: types.ModuleType(name) for name in ("oeqa", "oeqa.core", "oeqa.core.decorator", "oeqa.runtime")}
    stubs.update({"oeqa.runtime.case": case, "oeqa.core.decorator.depends": decorator})
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    sys.path.insert(0, CASES)
    try:
        found = {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(CASES)
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return found, depends


FOUND, DEPENDS = modules()


def tests():
    """(module.Class.test, class, method) of every case."""
    for name, module in FOUND.items():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == name:
                for method in unittest.defaultTestLoader.getTestCaseNames(value):
                    yield "%s.%s.%s" % (name, value.__name__, method), value, method


AFTER = [dict(BOOTS[0]), {"number": 2, "boot_id": "b2", "slot": "a", "reset": "panic", "healthy": True,
                          "pstore_tail": ["Kernel panic - not syncing: sysrq triggered crash"]}]


def run(kind, method, changed=(), after=None):
    """What is wrong, or nothing."""
    case = kind(method)
    reset = [(r"rustiot boots --json", 0, json.dumps(AFTER if after is None else after))]
    case.target = Target(changed, reset)
    case.tc = types.SimpleNamespace(td={"RUSTIOT_VERSION": "1.2.0", "RUSTIOT_BUILD_EPOCH": "1795737600"})
    result = unittest.TestResult()
    case.run(result)
    return [text.strip().splitlines()[-1] for _, text in result.failures + result.errors]


def with_(value, **changes):
    return json.dumps(dict(value, **changes))


# For every case at least one thing that it must notice.
WRONG = {
    "test_the_slot_is_known": (r"boot\.json", 0, with_(BOOT, kind="rescue")),
    "test_the_root_is_the_one_that_was_built": (r"dmsetup", 0, "somebody-else"),
    "test_the_hardware_watchdog_is_held": (r"watchdog0/state", 0, "inactive"),
    "test_the_release_is_the_one_that_was_built": (r"release\.json", 0, with_(RELEASE, version="1.1.0")),
    "test_the_root_is_erofs_and_read_only": (r"grep ' / '", 0, "/dev/vda5 / ext4 rw 0 0"),
    "test_nothing_can_be_written_there": (r"^touch /etc/x", 0, ""),
    "test_what_outlives_a_release_is_elsewhere": (r"grep ' /data '", 1, ""),
    "test_services_are_active": (r"is-active rustiot-update", 3, "failed"),
    "test_only_our_policy_speaks_to_rauc": (r"rauc\.conf", 0, '<policy context="default">'),
    "test_the_gate_opens": (r"is-active boot-complete", 3, "inactive"),
    "test_both_slots_are_known": (r"rauc status", 0, "root.0 boot.0"),
    "test_the_running_slot_is_the_committed_one": (r"rustiot slots", 0, with_(SLOTS, boots=[dict(BOOTS[0], slot="b")])),
    "test_a_write_that_nobody_announced_is_refused": (r"rauc-backend", 0, ""),
    "test_only_ssh_listens": (r"net/tcp$", 0, TCP.replace("0100007F:0050", "00000000:0050")),
    "test_ssh_takes_keys_only": (r"sshd -T", 0, "passwordauthentication yes"),
    "test_local_users_give_no_orders": (r"systemd-run .* Reboot", 0, ""),
    "test_the_commands_agree": (r"rustiot boots", 0, json.dumps([dict(BOOTS[0], boot_id="b0")])),
    "test_every_required_check_passes": (
        r"rustiot health", 0, with_(HEALTH, checks=[{"name": "units", "need": "required", "verdict": "fail"}])),
    "test_the_first_boot_is_done": (
        r"provision status", 0, with_(PROVISION, steps=[{"name": "data", "outcome": "failed"}])),
    "test_identity_is_this_devices_own": (r"/etc/machine-id", 0, "f" * 32),
    "test_a_bundle_that_cannot_be_had_is_refused_with_a_remedy": (r"update install", 0, ""),
    "test_a_panic_is_survived_and_told": None,
}
ALSO_WRONG = (
    ("test_the_release_is_the_one_that_was_built", (r"release\.json", 0, with_(RELEASE, build_epoch=1750000000))),
    ("test_the_slot_is_known", (r"boot\.json", 0, with_(BOOT, state="unmountable"))),
    ("test_a_bundle_that_cannot_be_had_is_refused_with_a_remedy", (
        r"update install", 1, with_(ENDED, ended=dict(ENDED["ended"], why={"message": "no", "hint": ""})))),
)


class Cases(unittest.TestCase):
    def test_each_passes_on_a_device_as_it_should_be(self):
        names = [name for name, kind, method in tests() if self.assertEqual(run(kind, method), [], name) is None]
        self.assertGreaterEqual(len(names), 22)

    def test_each_fails_on_one_that_is_not(self):
        self.assertEqual({method for _, _, method in tests()}, set(WRONG))
        for name, kind, method in tests():
            if WRONG[method]:
                self.assertNotEqual(run(kind, method, [WRONG[method]]), [], name)
            for other, wrong in ALSO_WRONG:
                if other == method:
                    self.assertNotEqual(run(kind, method, [wrong]), [], name)

    def test_the_first_boot_may_find_nothing_to_mount(self):
        first = (r"boot\.json", 0, with_(BOOT, boot_number=1, state="unmountable", data="unmountable"))
        kind = FOUND["rustiot_boot"].RustiotBootTest
        self.assertEqual(run(kind, "test_the_slot_is_known", [first]), [])

    def test_a_reset_that_is_not_told_or_does_not_end_is_noticed(self):
        reset = FOUND["rustiot_reset"]
        patience, reset.PATIENCE, reset.PAUSE = (reset.PATIENCE, reset.PAUSE), 0.05, 0.01
        try:
            for after in (AFTER[:1], AFTER[:1] + [dict(AFTER[1], reset="power")], AFTER[:1] + [dict(AFTER[1], slot="b")],
                          AFTER[:1] + [dict(AFTER[1], healthy=False)], AFTER[:1] + [dict(AFTER[1], pstore_tail=[])]):
                self.assertNotEqual(run(reset.RustiotResetTest, "test_a_panic_is_survived_and_told", (), after), [], after)
        finally:
            reset.PATIENCE, reset.PAUSE = patience

    def test_dependencies_exist(self):
        known = {name for name, _, _ in tests()} | {"ssh.SSHTest.test_ssh"}
        self.assertEqual(set(DEPENDS) - known, set())

    def test_testimage_runs_every_module_that_leaves_the_device_alone(self):
        with open(os.path.join(HERE, "../../../kas/features/testimage.yml"), encoding="utf-8") as file:
            suites = re.search(r'TEST_SUITES = "(.*)"', file.read()).group(1).split()
        self.assertEqual(set(suites), set(MODULES) - {"rustiot_reset"} | {"ping", "ssh"})

    def test_addresses_of_the_kernels_tables(self):
        access = FOUND["rustiot_access"]
        mapped = "0000000000000000FFFF00000100007F"
        for address, home in (("0100007F", True), ("00000000", False), ("0F02000A", False), ("3500007F", True),
                              ("0" * 24 + "01000000", True), ("0" * 32, False), (mapped, True)):
            table = "header\n 0: %s:0050 0:0 0A\n" % address
            self.assertEqual(list(access.listening("tcp", table)), [] if home else [("tcp", 80)], address)


if __name__ == "__main__":
    unittest.main()
