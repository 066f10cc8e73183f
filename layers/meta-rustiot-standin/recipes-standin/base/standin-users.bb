SUMMARY = "Users of Debian's services, with our numbers"
DESCRIPTION = "Verification only. What the recipes of systemd and D-Bus would add (files/rustiot-passwd)."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"

inherit useradd

INHIBIT_DEFAULT_DEPS = "1"
USERADDDEPENDS = "base-passwd shadow-sysroot"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"
ALLOW_EMPTY:${PN} = "1"
PACKAGE_ARCH = "${MACHINE_ARCH}"
PACKAGES = "${PN}"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system systemd-journal; --system input; --system sgx; --system kvm; --system render; --system clock; --system netdev; --system empower"
USERADD_PARAM:${PN} = " \
    --system --no-create-home --home-dir / --shell /sbin/nologin --user-group messagebus; \
    --system --no-create-home --home-dir / --shell /sbin/nologin --user-group systemd-network; \
    --system --no-create-home --home-dir / --shell /sbin/nologin --user-group systemd-resolve; \
    --system --no-create-home --home-dir / --shell /sbin/nologin --user-group systemd-timesync \
"

