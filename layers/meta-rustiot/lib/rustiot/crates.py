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
        if "name" not in package or "version" not in package:
            raise Problem("%s: a package without name or version; make it anew with: cargo update --workspace" % file)
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


def satisfies(requirement, version):
    """Whether a locked version meets a requirement of a manifest: `1.2` and `^1.2`, `~1.2`, `=1.2.3`. Others are cargo's."""
    kind = requirement[:1] if requirement[:1] in "^~=" else "^"
    wanted = requirement.lstrip("^~= ").partition("-")[0].split(".")
    have = version.partition("+")[0].partition("-")[0].split(".")
    if not all(part.isdigit() for part in wanted + have):
        return True
    wanted, have = [int(part) for part in wanted], [int(part) for part in have]
    if kind == "=":
        return have[: len(wanted)] == wanted
    if kind == "~":
        fixed = min(len(wanted), 2)
    else:
        # Up to and with the first number that is not zero.
        fixed = next((index + 1 for index, part in enumerate(wanted) if part), len(wanted))
    return have[:fixed] == wanted[:fixed] and have >= wanted


KINDS = ("dependencies", "dev-dependencies", "build-dependencies")


def declared(manifest, workspace, kinds=KINDS):
    """(name of the crate, requirement or None) of all that a manifest depends on; `workspace` is the root's manifest."""
    shared = workspace.get("workspace", {}).get("dependencies", {})
    tables = [manifest] + list(manifest.get("target", {}).values())
    for table in tables:
        for kind in kinds:
            for key, value in table.get(kind, {}).items():
                if isinstance(value, dict) and value.get("workspace"):
                    value = shared.get(key, {})
                value = {"version": value} if isinstance(value, str) else value
                yield value.get("package", key), value.get("version")


def stale(lock_text, workspace_text, manifests):
    """What the manifests of the workspace's members (name to text) want and the lock file does not have, as cargo's
    `--frozen` would find out later and say less of."""
    lock, workspace = tomllib.loads(lock_text), tomllib.loads(workspace_text)
    packages = lock.get("package", [])
    versions, members = {}, {}
    for package in packages:
        versions.setdefault(package["name"], []).append(package["version"])
        if "source" not in package:
            members[package["name"]] = {word.split()[0] for word in package.get("dependencies", [])}
    found = []
    for member, text in sorted(manifests.items()):
        if member not in members:
            found.append(member)
            continue
        try:
            manifest = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Problem("Cargo.toml of %s: %s; correct the file" % (member, error)) from error
        for name, requirement in declared(manifest, workspace):
            if name not in members[member]:
                found.append("%s of %s" % (name, member))
            elif requirement and not any(satisfies(requirement, version) for version in versions.get(name, [])):
                found.append("%s %s of %s" % (name, requirement, member))
    return found


def reached(lock_text, workspace_text, manifests, packages):
    """(name, version) of the registry's crates that these members are built from: all that the lock file leads to from
    them, without what only tests use. Some are for other processors or for the build alone: better one too many."""
    lock, workspace = tomllib.loads(lock_text), tomllib.loads(workspace_text)
    known = {}
    for package in lock.get("package", []):
        known.setdefault(package["name"], []).append(package)
    seen, found, waiting = set(), [], list(packages)
    while waiting:
        # `name` where there is one version, `name version` where there are more.
        name, _, version = waiting.pop().partition(" ")
        for package in known.get(name, []):
            key = (name, package["version"])
            if (version and version.split()[0] != package["version"]) or key in seen:
                continue
            seen.add(key)
            needed = package.get("dependencies", [])
            if "source" in package:
                found.append(key)
            elif name in manifests:
                used = {wanted for wanted, _ in declared(tomllib.loads(manifests[name]), workspace, ("dependencies", "build-dependencies"))}
                needed = [word for word in needed if word.split()[0] in used]
            waiting.extend(needed)
    return sorted(found)


def satisfied(expression, names):
    """Whether a licence expression (SPDX, or `A/B` as older manifests have it) is met by licences called `names`."""
    words = expression.replace("/", " OR ").replace("(", " ( ").replace(")", " ) ").split()

    def either():
        met = both()
        while words and words[0] == "OR":
            words.pop(0)
            met = both() or met
        return met

    def both():
        met = single()
        while words and words[0] == "AND":
            words.pop(0)
            met = single() and met
        return met

    def single():
        word = words.pop(0) if words else ""
        if word == "(":
            met = either()
            if words:
                words.pop(0)
            return met
        if words and words[0] == "WITH":
            # An exception allows more, never less.
            del words[:2]
        return word in names

    return either()


# What the licence files of crates say whose manifests name no licence; read by a person, for this version.
READ = {("rust-criu", "0.6.1"): "MIT"}


def stated(name, version, expression):
    """A crate's licence: its manifest's, or what was read in its licence file."""
    return expression or READ.get((name, version))


def check_licence(name, version, expression, names, recipe):
    """Refuses a crate whose licence the recipe does not name; gives its line of the list."""
    expression = stated(name, version, expression)
    if not expression:
        raise Problem("crate %s %s names no licence; look at its source, and replace it if there is none" % (name, version))
    if not satisfied(expression, names):
        raise Problem(
            "crate %s %s is under `%s`; %s names none of it: see that it may be shipped, and add it to RUSTIOT_CRATE_LICENSES"
            % (name, version, expression, recipe)
        )
    return "%s %s: %s" % (name, version, expression)
