# conf/rootfs has the product's own settings; the package's network file would take every wired port first.
PACKAGECONFIG:rustiot = ""

do_install:append:rustiot () {
    rm -rf ${D}${systemd_unitdir}/journald.conf.d ${D}${systemd_unitdir}/logind.conf.d ${D}${systemd_unitdir}/system.conf.d
}
ALLOW_EMPTY:${PN}:rustiot = "1"
