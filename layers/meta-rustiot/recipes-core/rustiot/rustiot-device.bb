SUMMARY = "The device's services and command line"
DESCRIPTION = "One multi-call binary that carries provisioning, watchdog, health, update service, RAUC's boot backend and \
               the command line of a RustIoT device."
HOMEPAGE = "https://rustiot.example"
SECTION = "base"

inherit rustiot_workspace

RUSTIOT_CRATE_LICENSES = "Apache-2.0 BSD-2-Clause BSD-3-Clause ISC MIT MPL-2.0 Unicode-3.0 Zlib"
RUSTIOT_CRATES_ELSEWHERE = "webpki-root-certs"
RUSTIOT_BUDGETS = "${bindir}/rustiot:device_binary"

# The services are links: what the binary is called is what it does (docs/map.md).
RUSTIOT_SERVICES = " \
    rustiot-provision rustiot-watchdog rustiot-health rustiot-update rustiot-media rustiot-engine rustiot-runtime \
    rauc-backend \
"

do_install:append () {
    install -d ${D}${nonarch_libdir}/rustiot
    for service in ${RUSTIOT_SERVICES}; do
        ln -s ../../bin/rustiot ${D}${nonarch_libdir}/rustiot/$service
    done
}

FILES:${PN} += "${nonarch_libdir}/rustiot"

# What the services run: mkfs.ext4, e2fsck, resize2fs and tune2fs at the first boot, ssh-keygen for the host key.
RDEPENDS:${PN} = " \
    e2fsprogs-e2fsck \
    e2fsprogs-mke2fs \
    e2fsprogs-resize2fs \
    e2fsprogs-tune2fs \
    openssh-keygen \
"
