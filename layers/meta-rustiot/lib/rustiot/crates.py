#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""Turns Cargo.lock into what BitBake fetches. The lock file is the only list of crates that there is."""

from rustiot.problem import Problem

try:
    import tomllib
except ImportError:  # Python older than 3.11
    tomllib = None

REGISTRY = "registry+"
VERSIONS = (3, 4)


def parse(text, file="Cargo.lock"):
    """(name, version, SHA-256) of each crate from the registry, in the file's order."""
    if tomllib is None:
        raise Problem("this build needs Python 3.11 or newer on the host; install it, or the buildtools tarball")
    try:
        lock = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Problem("%s: %s; make it anew with: cargo update --workspace" % (file, error)) from error
    if lock.get("version") not in VERSIONS:
        raise Problem(
            "%s: format version %s is none that this layer reads (%s)"
            % (file, lock.get("version"), ", ".join(map(str, VERSIONS)))
        )
    crates = []
    for package in lock.get("package", []):
        source = package.get("source")
        if source is None:  # a member of the workspace
            continue
        name, version = package["name"], package["version"]
        if not source.startswith(REGISTRY):
            raise Problem(
                "%s: %s %s comes from %s; only crates of the registry can be built, publish or replace it"
                % (file, name, version, source)
            )
        checksum = package.get("checksum", "")
        if len(checksum) != 64:
            raise Problem("%s: %s %s has no checksum; make it anew with: cargo generate-lockfile" % (file, name, version))
        crates.append((name, version, checksum))
    if not crates:
        raise Problem("%s: names no crate; is it the workspace's lock file?" % file)
    return crates


def uris(crates):
    """What goes into SRC_URI."""
    return ["crate://crates.io/%s/%s" % (name, version) for name, version, _ in crates]


def checksums(crates):
    """Flags of SRC_URI: name to SHA-256."""
    return {"%s-%s.sha256sum" % (name, version): checksum for name, version, checksum in crates}


def workspace_members(text):
    """(name, version) of the lock file's own packages."""
    return [(p["name"], p["version"]) for p in tomllib.loads(text).get("package", []) if "source" not in p]


def stale(lock_text, manifests):
    """Names of workspace members (`manifests`: name to Cargo.toml's text) that the lock file does not know."""
    known = {name for name, _ in workspace_members(lock_text)}
    return sorted(set(manifests) - known)
