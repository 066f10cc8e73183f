#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Builds programs of the Cargo workspace in this repository: sources from the tree itself, crates from its Cargo.lock,
# which is the one list of them (docs/decisions/0021-crates-from-the-lock-file.md).
#
# RUSTIOT_PACKAGES   members of the workspace to build
# RUSTIOT_BUDGETS    program:key pairs; a stripped program over the board's budget sizes.<key> fails the build
# RUSTIOT_CRATE_LICENSES
#                    licences of the crates that are linked in: with these, each crate's own expression must be met
# RUSTIOT_CRATES_ELSEWHERE
#                    crates that the lock file leads to and that only other systems than Linux build

inherit cargo pkgconfig rustiot_board

RUSTIOT_CRATE_LICENSES ?= "MIT Unicode-3.0"
RUSTIOT_CRATES_ELSEWHERE ?= ""
LICENSE = "(MIT | Apache-2.0) & ${@' & '.join(d.getVar('RUSTIOT_CRATE_LICENSES').split())}"
LIC_FILES_CHKSUM = " \
    file://${COREBASE}/meta/files/common-licenses/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302 \
    file://${COREBASE}/meta/files/common-licenses/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10 \
"
PV = "${RUSTIOT_VERSION}"

RUSTIOT_PACKAGES ?= "${PN}"
RUSTIOT_BUDGETS ?= ""
RUSTIOT_CARGO_LOCK ?= "${RUSTIOT_WORKSPACE}/Cargo.lock"

# Named one by one: a build directory of cargo beside them must not become a source.
FILESEXTRAPATHS:prepend := "${RUSTIOT_WORKSPACE}:"
SRC_URI = " \
    file://Cargo.toml;subdir=rust \
    file://Cargo.lock;subdir=rust \
    file://crates;subdir=rust \
    file://testbed;subdir=rust \
"
S = "${UNPACKDIR}/rust"

# The shipping profile strips; here do_package does, which keeps the symbols in a package of their own and refuses a program
# that comes to it without.
export CARGO_PROFILE_RELEASE_STRIP = "none"

CARGO_BUILD_FLAGS += "${@' '.join('--package ' + p for p in d.getVar('RUSTIOT_PACKAGES').split())}"

def rustiot_manifests(d):
    """The manifest of every member of the workspace, by name: cargo looks at all of them, whichever is built."""
    workspace = d.getVar("RUSTIOT_WORKSPACE")
    # A new member is noticed by its directory.
    bb.parse.mark_dependency(d, os.path.join(workspace, "crates"))
    paths = {name: os.path.join(workspace, "crates", name) for name in os.listdir(os.path.join(workspace, "crates"))}
    paths["testbed"] = os.path.join(workspace, "testbed")
    found = {}
    for name, path in paths.items():
        manifest = os.path.join(path, "Cargo.toml")
        if os.path.isfile(manifest):
            bb.parse.mark_dependency(d, manifest)
            with open(manifest, encoding="utf-8") as file:
                found[name] = file.read()
    return found

python () {
    lock, workspace = d.getVar("RUSTIOT_CARGO_LOCK"), d.expand("${RUSTIOT_WORKSPACE}/Cargo.toml")
    for path in (lock, workspace):
        bb.parse.mark_dependency(d, path)
    try:
        with open(lock, encoding="utf-8") as file:
            text = file.read()
        with open(workspace, encoding="utf-8") as file:
            root = file.read()
        crates = rustiot.crates.parse(text, lock)
        members = rustiot_manifests(d)
        for package in d.getVar("RUSTIOT_PACKAGES").split():
            if package not in members:
                raise rustiot.problem.Problem("RUSTIOT_PACKAGES: the workspace has no crate `%s`" % package)
        stale = rustiot.crates.stale(text, root, members)
        if stale:
            raise rustiot.problem.Problem(
                "%s is older than the workspace, it does not know %s; run: cargo check, and commit it" % (lock, ", ".join(stale))
            )
    except OSError as error:
        raise bb.parse.SkipRecipe("cannot read %s: %s; it is part of the repository" % (error.filename, error.strerror))
    except rustiot.problem.Problem as problem:
        raise bb.parse.SkipRecipe(str(problem))
    d.appendVar("SRC_URI", " " + " ".join(rustiot.crates.uris(crates)))
    for name, checksum in rustiot.crates.checksums(crates).items():
        d.setVarFlag("SRC_URI", name, checksum)
}

python rustiot_check_budgets () {
    import subprocess
    import tempfile

    board = rustiot.adapters.board(d)
    path = d.getVar("RUSTIOT_BOARD_FILE")
    for budget in d.getVar("RUSTIOT_BUDGETS").split():
        program, key = budget.split(":")
        with tempfile.NamedTemporaryFile() as stripped:
            installed = d.getVar("D") + program
            subprocess.run([d.getVar("STRIP"), "--strip-all", "-o", stripped.name, installed], check=True)
            size = os.stat(stripped.name).st_size
        bb.note(rustiot_try(d, rustiot.boards.budget, board, key, size, program, path))
}
do_install[postfuncs] += "rustiot_check_budgets"
do_install[vardeps] += "RUSTIOT_BUDGETS RUSTIOT_BOARD_CHECKSUM"

# deploy/licenses/…/crates.txt: every crate that is linked in, with the licence that it states.
python rustiot_list_crates () {
    import tomllib

    texts = []
    for path in (d.getVar("RUSTIOT_CARGO_LOCK"), d.expand("${RUSTIOT_WORKSPACE}/Cargo.toml")):
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    packages, names = d.getVar("RUSTIOT_PACKAGES").split(), d.getVar("RUSTIOT_CRATE_LICENSES").split()
    lines = []
    for name, version in rustiot.crates.reached(texts[0], texts[1], rustiot_manifests(d), packages):
        if name in d.getVar("RUSTIOT_CRATES_ELSEWHERE").split():
            continue
        manifest = os.path.join(d.getVar("CARGO_VENDORING_DIRECTORY"), "%s-%s" % (name, version), "Cargo.toml")
        with open(manifest, "rb") as file:
            stated = tomllib.load(file)["package"].get("license")
        lines.append(rustiot_try(d, rustiot.crates.check_licence, name, version, stated, names, d.getVar("PN")))
    with open(os.path.join(d.getVar("LICSSTATEDIR"), d.getVar("PN"), "crates.txt"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
}
do_populate_lic[postfuncs] += "rustiot_list_crates"
do_populate_lic[vardeps] += "RUSTIOT_PACKAGES RUSTIOT_CRATE_LICENSES RUSTIOT_CRATES_ELSEWHERE"
do_populate_lic[file-checksums] += "${RUSTIOT_CARGO_LOCK}:True"
