SUMMARY = "Debian's gnu-efi in the place of OE-core's"
DESCRIPTION = "Verification only: what the guard is compiled and linked against."
HOMEPAGE = "https://sourceforge.net/projects/gnu-efi/"
LICENSE = "CLOSED"

inherit nopackages

INHIBIT_DEFAULT_DEPS = "1"
INHIBIT_SYSROOT_STRIP = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install () {
    install -d ${D}${includedir} ${D}${libdir}
    cp -r /usr/include/efi ${D}${includedir}/
    cp /usr/lib/crt0-efi-x86_64.o /usr/lib/elf_x86_64_efi.lds /usr/lib/libgnuefi.a /usr/lib/libefi.a ${D}${libdir}/
}
