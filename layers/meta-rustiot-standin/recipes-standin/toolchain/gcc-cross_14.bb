SUMMARY = "The build machine's gcc and binutils as the cross toolchain"
DESCRIPTION = "Verification only. Wrappers under the names of a cross toolchain; the target has the build machine's \
               architecture and C library."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"

PN = "gcc-cross-${TARGET_ARCH}"
PROVIDES = "virtual/cross-cc virtual/cross-c++"
COMPATIBLE_HOST = "x86_64.*-linux"

inherit cross

INHIBIT_DEFAULT_DEPS = "1"

STANDIN_TOOLS = "addr2line ar as c++filt cpp g++ gcc gcc-ar gcc-nm gcc-ranlib ld ld.bfd nm objcopy objdump ranlib readelf size strings strip"

do_install () {
    install -d ${D}${bindir}
    for tool in ${STANDIN_TOOLS}; do
        # There is no other C library than the build machine's, so the compiler must not look into the target's tree.
        printf '#!/bin/bash\nargs=()\nfor a in "$@"; do case $a in --sysroot=*) ;; *) args+=("$a") ;; esac; done\nexec /usr/bin/%s "${args[@]}"\n' \
            $tool > ${D}${bindir}/${TARGET_PREFIX}$tool
        chmod 0755 ${D}${bindir}/${TARGET_PREFIX}$tool
    done
}
