SUMMARY = "Debian's OpenSSH in the place of ours"
DESCRIPTION = "Verification only. Our append to openssh is applied to it."
HOMEPAGE = "https://www.openssh.com"
LICENSE = "CLOSED"

inherit useradd

INHIBIT_DEFAULT_DEPS = "1"
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INHIBIT_SYSROOT_STRIP = "1"
USERADDDEPENDS = ""
DEPENDS += "base-passwd shadow-sysroot"
S = "${UNPACKDIR}"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
PACKAGE_ARCH = "${MACHINE_ARCH}"

do_install () {
    for pattern in etc/ssh 'usr/bin/ssh*' usr/bin/scp usr/bin/sftp usr/lib/openssh usr/lib/sftp-server 'usr/lib/systemd/system/ssh*' \
                   usr/sbin/sshd 'usr/lib/tmpfiles.d/openssh*' usr/lib/tmpfiles.d/sshd.conf; do
        for path in ${RUSTIOT_STANDIN}/root/$pattern; do
            [ -e "$path" ] || [ -L "$path" ] || continue
            install -d ${D}/$(dirname ${path#${RUSTIOT_STANDIN}/root/})
            cp -r --no-dereference $path ${D}/$(dirname ${path#${RUSTIOT_STANDIN}/root/})/
        done
    done
    install -d ${D}${sysconfdir}/ssh
    # The name that OE-core's recipe gives the service.
    [ -e ${D}${systemd_system_unitdir}/sshd.service ] || mv ${D}${systemd_system_unitdir}/ssh.service ${D}${systemd_system_unitdir}/sshd.service
    chown -R root:root ${D}
}

USERADD_PACKAGES = "${PN}-sshd"
USERADD_PARAM:${PN}-sshd = "--system --no-create-home --home-dir /run/sshd --shell /sbin/nologin --user-group sshd"

PACKAGES = "${PN}-keygen ${PN}-sftp-server ${PN}-sshd ${PN}"
FILES:${PN}-keygen = "${bindir}/ssh-keygen"
FILES:${PN}-sftp-server = "${libdir}/openssh/sftp-server ${libdir}/sftp-server"
FILES:${PN}-sshd = "${sbindir} ${sysconfdir} ${nonarch_libdir}/systemd ${nonarch_libdir}/tmpfiles.d ${libdir}/openssh"
FILES:${PN} = "${bindir}"
RDEPENDS:${PN}-sshd = "${PN}-keygen standin-base"
RDEPENDS:${PN}-keygen = "standin-base"
SKIP_FILEDEPS = "1"
INSANE_SKIP:${PN} = "already-stripped arch build-deps file-rdeps ldflags"
INSANE_SKIP:${PN}-sshd = "${INSANE_SKIP:openssh}"
INSANE_SKIP:${PN}-keygen = "${INSANE_SKIP:openssh}"
INSANE_SKIP:${PN}-sftp-server = "${INSANE_SKIP:openssh}"
