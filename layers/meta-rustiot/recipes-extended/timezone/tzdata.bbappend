# conf/rootfs has the empty /etc/localtime that rustiot-init's successors mount the device's own over.
do_install:append:rustiot () {
	rm -f ${D}${sysconfdir}/localtime ${D}${sysconfdir}/timezone
}
