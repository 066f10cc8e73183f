#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# For recipes that are made for one board: reads its file of conf/boards, rebuilds when that or the layout changes, and
# stops with a remedy where the board is unknown.
#
# RUSTIOT_COMPATIBLE   what RAUC compares
# RUSTIOT_BOARD_FILE   the board file

inherit rustiot_messages

PACKAGE_ARCH = "${MACHINE_ARCH}"

RUSTIOT_BOARD_FILE = "${@rustiot_said(d, rustiot.adapters.board_path)}"
RUSTIOT_COMPATIBLE = "${@rustiot_said(d, lambda d: rustiot.adapters.board(d)['compatible'])}"
# In signatures, so that a changed file rebuilds; the files' paths are not, so that a build cache can be shared.
RUSTIOT_BOARD_CHECKSUM = "${@rustiot_conf_checksum(d)}"
RUSTIOT_BOARD_CHECKSUM[vardepvalue] = "${RUSTIOT_BOARD_CHECKSUM}"

def rustiot_conf_files(d):
    """What every board's artefacts are made from."""
    files = [d.getVar("RUSTIOT_BOARD_FILE")]
    files += [rustiot.adapters.conf(d, name) for name in ("layout.toml", "kernel.toml", "kernel-modules.toml")]
    return [path for path in files if path]

def rustiot_conf_checksum(d):
    import hashlib

    digest = hashlib.sha256()
    for path in rustiot_conf_files(d):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()

python () {
    if not rustiot_skip_without_board(d):
        for path in rustiot_conf_files(d):
            bb.parse.mark_dependency(d, path)
}
