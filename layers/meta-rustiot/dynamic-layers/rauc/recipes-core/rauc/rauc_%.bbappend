# The D-Bus policy is ours: RAUC's lets every local user install, and D-Bus has no order between two files of one
# directory, so it is replaced and not added to (docs/contracts/rauc.md).
FILESEXTRAPATHS:prepend:rustiot := "${RUSTIOT_CONF}/rootfs/usr/share/dbus-1/system.d:"
SRC_URI:append:rustiot:class-target = " file://de.pengutronix.rauc.conf"

do_install:append:rustiot:class-target () {
    install -m 0644 ${UNPACKDIR}/de.pengutronix.rauc.conf ${D}${datadir}/dbus-1/system.d/de.pengutronix.rauc.conf
}
