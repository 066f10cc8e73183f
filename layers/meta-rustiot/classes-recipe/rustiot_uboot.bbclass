#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Builds conf/uboot/boot.cmd.in into U-Boot as its default environment. Where the script lives is the board's affair and
# never an OS update's (docs/contracts/firmware.md): here it is a part of the U-Boot binary in the board area.
#
# RUSTIOT_UBOOT_BOARD_CFG   a fragment with the board's watchdog and medium

inherit rustiot_messages

FILESEXTRAPATHS:prepend := "${LAYERDIR_rustiot}/recipes-bsp/u-boot/files:"
SRC_URI:append = " file://rustiot-uboot.cfg file://rustiot-uboot-made.cfg"
SRC_URI:append = " ${@'file://' + d.getVar('RUSTIOT_UBOOT_BOARD_CFG') if d.getVar('RUSTIOT_UBOOT_BOARD_CFG') else ''}"

RUSTIOT_UBOOT_CHECKSUM = "${@rustiot_uboot_checksum(d)}"

def rustiot_uboot_files(d):
    """What the environment is made from: the board file and every template."""
    import glob

    templates = sorted(glob.glob(os.path.join(d.getVar("RUSTIOT_CONF"), "uboot", "*.cmd.in")))
    return [rustiot.adapters.board_path(d)] + templates

def rustiot_uboot_checksum(d):
    import hashlib

    digest = hashlib.sha256()
    for path in rustiot_said(d, rustiot_uboot_files):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()

python rustiot_write_environment () {
    from rustiot import adapters, uboot

    board = rustiot_try(d, adapters.board, d)
    script = rustiot_try(d, uboot.boot_script, os.path.join(d.getVar("RUSTIOT_CONF"), "uboot"), board)
    path = os.path.join(d.getVar("S"), "board", "rustiot.env")
    with open(path, "w", encoding="utf-8") as file:
        file.write(uboot.default_environment(script, board["arch"]))
    # Armed before anything else that may hang, and not stopped when the kernel starts.
    with open(os.path.join(d.getVar("UNPACKDIR"), "rustiot-uboot-made.cfg"), "w", encoding="utf-8") as file:
        file.write("CONFIG_WATCHDOG_TIMEOUT_MSECS=%d\n" % (board["watchdog"]["loader_timeout_s"] * 1000))
}
do_configure[prefuncs] += "rustiot_write_environment"
do_configure[vardeps] += "RUSTIOT_UBOOT_CHECKSUM"

python () {
    for path in rustiot_said(d, rustiot_uboot_files):
        bb.parse.mark_dependency(d, path)
}
