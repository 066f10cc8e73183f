# The product's configuration (conf/rootfs) in the place of the package's; the host key is made by rustiot-provision.
FILESEXTRAPATHS:prepend:rustiot := "${RUSTIOT_CONF}/rootfs/etc:"
SRC_URI:append:rustiot:class-target = " file://ssh/sshd_config;subdir=rustiot"

do_install:append:rustiot:class-target () {
    install -m 0644 ${UNPACKDIR}/rustiot/ssh/sshd_config ${D}${sysconfdir}/ssh/sshd_config
    # Nothing generates keys at run time but rustiot-provision: it knows where they outlive a release.
    sed -i -e '/sshdgenkeys.service/d' ${D}${systemd_system_unitdir}/sshd.service
    rm -f ${D}${systemd_system_unitdir}/sshdgenkeys.service ${D}${sysconfdir}/ssh/sshd_config_readonly
}
