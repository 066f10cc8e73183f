SUMMARY = "Debian's RAUC in the place of ours"
DESCRIPTION = "Verification only. Bears the release's version so that the appends to rauc are applied."
HOMEPAGE = "https://rauc.io"
LICENSE = "CLOSED"

INHIBIT_DEFAULT_DEPS = "1"
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INHIBIT_SYSROOT_STRIP = "1"
S = "${UNPACKDIR}"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
PACKAGE_ARCH = "${MACHINE_ARCH}"

do_install () {
    for pattern in usr/bin/rauc 'usr/lib/systemd/system/rauc*' 'usr/share/dbus-1/*/de.pengutronix*' usr/share/rauc; do
        for path in ${RUSTIOT_STANDIN}/root/$pattern; do
            [ -e "$path" ] || continue
            install -d ${D}/$(dirname ${path#${RUSTIOT_STANDIN}/root/})
            cp -r --no-dereference $path ${D}/$(dirname ${path#${RUSTIOT_STANDIN}/root/})/
        done
    done
    chown -R root:root ${D}
}

PACKAGES = "${PN}-service ${PN}"
FILES:${PN}-service = "${systemd_system_unitdir} ${datadir}/dbus-1"
FILES:${PN} = "${bindir} ${datadir}"
RDEPENDS:${PN} = "standin-base virtual-rauc-conf"
RDEPENDS:${PN}-service = "${PN}"
SKIP_FILEDEPS = "1"
INSANE_SKIP:${PN} = "already-stripped arch build-deps file-rdeps ldflags"
