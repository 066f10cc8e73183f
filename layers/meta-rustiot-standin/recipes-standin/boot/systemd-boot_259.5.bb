SUMMARY = "Debian's EFI stub in the place of ours"
DESCRIPTION = "Verification only: linuxx64.efi.stub of the build machine's systemd-boot-efi."
HOMEPAGE = "https://systemd.io"
LICENSE = "CLOSED"

inherit deploy nopackages

INHIBIT_DEFAULT_DEPS = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"

do_deploy () {
    install -m 0644 /usr/lib/systemd/boot/efi/linuxx64.efi.stub ${DEPLOYDIR}/
}
addtask deploy before do_build after do_compile
