# conf/rootfs has /etc/localtime as a link to what rustiot-provision renders from rustiot.toml.
do_install:append:rustiot () {
    rm -f ${D}${sysconfdir}/localtime ${D}${sysconfdir}/timezone
}
