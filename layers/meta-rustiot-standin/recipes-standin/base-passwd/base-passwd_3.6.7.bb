# The recipe of OE-core, with the lists of Debian's binary package: its source archive of that version is not to be had.
SUMMARY = "OE-core's base-passwd without its program"
DESCRIPTION = "Verification only. The users and groups of Debian's package; update-passwd, which no image runs, is empty."
HOMEPAGE = "https://launchpad.net/base-passwd"

# nooelint: oelint.file.requirenotfound - in OE-core
require recipes-core/base-passwd/base-passwd_3.6.8.bb

FILESEXTRAPATHS:prepend := "${COREBASE}/meta/recipes-core/base-passwd/base-passwd:"
# nooelint: oelint.vars.srcurichecksum - it is taken away
SRC_URI:remove = "https://launchpad.net/debian/+archive/primary/+files/${BPN}_${PV}.tar.xz"
INHIBIT_DEFAULT_DEPS = "1"
# nooelint: oelint.var.order.LICENSE - it replaces that of the recipe above
LICENSE = "CLOSED"
LIC_FILES_CHKSUM = ""

python do_unpack:append () {
    import shutil

    top = d.getVar("S")
    for name in ("man", "debian"):
        bb.utils.mkdirhier(os.path.join(top, name))
    for name in ("passwd.master", "group.master"):
        shutil.copyfile(d.expand("${RUSTIOT_STANDIN}/root/usr/share/base-passwd/") + name, os.path.join(top, name))
    for name in ("README", "man/update-passwd.8", "man/update-passwd.pl.8", "debian/changelog", "debian/copyright"):
        open(os.path.join(top, name), "w").close()
}
do_configure[noexec] = "1"
do_compile () {
    : > ${B}/update-passwd
}
