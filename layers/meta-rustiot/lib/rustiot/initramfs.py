#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""What the initramfs tells rustiot-init, which kernel modules it needs, and the small archive with the verity data.

Contracts: docs/contracts/init.md, docs/contracts/image.md.
"""

import json

from rustiot.problem import Problem

FILE = 0o100000
DIRECTORY = 0o040000


class Archive:
    """A "newc" archive (Linux: driver-api/early-userspace/buffer-format.rst): no times, no owners, inodes counted."""

    def __init__(self):
        self.bytes = bytearray()
        self.count = 0
        self.directories = set()

    def directory(self, path):
        """A directory, with those above it."""
        if "/" in path:
            self.directory(path.rpartition("/")[0])
        if path not in self.directories:
            self.directories.add(path)
            self._entry(path, DIRECTORY | 0o755, b"")

    def file(self, path, permissions, content):
        """A file; directories above it are made."""
        if "/" in path:
            self.directory(path.rpartition("/")[0])
        self._entry(path, FILE | permissions, content)

    def _entry(self, path, mode, content):
        self.count += 1
        links = 2 if mode & DIRECTORY == DIRECTORY else 1
        fields = (self.count, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path.encode()) + 1, 0)
        self.bytes += b"070701" + b"".join(b"%08x" % field for field in fields) + path.encode() + b"\0"
        self._pad(4)
        self.bytes += content
        self._pad(4)

    def _pad(self, to):
        self.bytes += bytes(-len(self.bytes) % to)

    def finish(self):
        """The archive. Another one may follow: the kernel unpacks one after the other."""
        self._entry("TRAILER!!!", 0, b"")
        self._pad(512)
        return bytes(self.bytes)


def verity_segment(verity):
    """The archive that changes with the root."""
    archive = Archive()
    archive.file("rustiot/verity.json", 0o644, json.dumps(verity, separators=(",", ":")).encode())
    return archive.finish()


def canonical(name):
    """A module's name as the kernel spells it, from a path or a name."""
    return name.rpartition("/")[2].split(".ko")[0].replace("-", "_")


class Modules:
    """The index of a kernel's modules, as depmod wrote it."""

    def __init__(self, dep, softdep="", builtin="", alias="", release=""):
        self.release = release
        self.modules, self.soft, self.aliases = {}, {}, {}
        for line in dep.splitlines():
            path, colon, needs = line.partition(":")
            if colon:
                self.modules[canonical(path)] = (path, [canonical(n) for n in needs.split()])
        for line in softdep.splitlines():
            words = line.split()
            if len(words) > 2 and words[0] == "softdep" and "pre:" in words:
                pre = words[words.index("pre:") + 1 :]
                pre = pre[: pre.index("post:")] if "post:" in pre else pre
                self.soft.setdefault(canonical(words[1]), []).extend(pre)
        self.builtin = {canonical(line) for line in builtin.splitlines() if line.strip()}
        for line in alias.splitlines():
            words = line.split()
            if len(words) >= 3 and words[0] == "alias" and not set("*?[") & set(words[1]):
                self.aliases.setdefault(words[1].replace("-", "_"), []).append(canonical(words[2]))

    def closure(self, names, file):
        """Paths of `names` and of what they need, in an order in which they load, without what is built in."""
        done, order = set(), []

        def visit(name):
            if name in done:
                return
            done.add(name)
            if name not in self.modules:
                return
            path, needs = self.modules[name]
            for need in reversed(needs):
                visit(need)
            for soft in self.soft.get(name, []):
                for provider in self._providers(soft):
                    visit(provider)
            order.append(path)

        for name in map(canonical, names):
            if name not in self.modules and name not in self.builtin:
                raise Problem(
                    "%s: kernel %s has no module `%s`; correct the name, or turn the driver on in a kernel fragment"
                    % (file, self.release, name)
                )
            visit(name)
        return order

    def _providers(self, name):
        """The modules that a soft dependency may mean; of several implementations of an algorithm all count."""
        module = canonical(name)
        if module in self.builtin:
            return []
        if module in self.modules:
            return [module]
        # `softdep x pre: crc32c` means the alias crypto-crc32c of the crypto API.
        return [p for alias in (module, "crypto_" + module) for p in self.aliases.get(alias, [])]


def configuration(board, needed, network, development, place):
    """/rustiot/init.json. `needed` and `network` are paths of the index, `place` puts them into the initramfs."""
    watchdog = board["watchdog"]
    return {
        "board": board["name"],
        "loader": board["boot"]["loader"],
        "modules": [place(path) for path in needed],
        "watchdog": {key: watchdog[key] for key in ("device", "timeout_s", "deadline_s")},
        "network_modules": [place(path) for path in network if path not in needed],
        # U-Boot boards describe the area in the device tree, UEFI boards keep records in variables.
        "ramoops": None,
        "lab": development,
    }


def unexpected(paths, release):
    """What has no business in an initramfs that holds rustiot-init and nothing else."""
    allowed = ("init", "rustiot/init.json", "dev/console", "dev/kmsg")
    directories = ("dev", "proc", "sys", "run", "rustiot", "lib", "lib/modules", "lib/modules/" + release)
    return sorted(
        path
        for path in paths
        if path not in allowed and path not in directories and not path.startswith("lib/modules/%s/" % release)
    )
