SUMMARY = "What a RustIoT root consists of"
DESCRIPTION = "The product's packages. Each has its reason in docs/yocto.md, What is in the image."
HOMEPAGE = "https://rustiot.example"

# Without a board there is neither root nor update, and nothing to group.
inherit rustiot_board packagegroup

RDEPENDS:${PN} = " \
    ${MACHINE_ESSENTIAL_EXTRA_RDEPENDS} \
    ${RUSTIOT_WIFI_PACKAGES} \
    base-files \
    base-passwd \
    busybox \
    ca-certificates \
    dbus \
    libnss-myhostname \
    libnss-resolve \
    libnss-systemd \
    netbase \
    openssh-sshd \
    rauc \
    rauc-service \
    rustiot-device \
    rustiot-rootfs \
    rustiot-shim \
    systemd \
    systemd-networkd \
    systemd-udev-rules \
    tzdata-core \
    udev \
    util-linux-mount \
"
RRECOMMENDS:${PN} = "${MACHINE_ESSENTIAL_EXTRA_RRECOMMENDS}"

RUSTIOT_WIFI_PACKAGES = "${@bb.utils.contains('DISTRO_FEATURES', 'wifi', 'iwd wireless-regdb-static', '', d)}"
