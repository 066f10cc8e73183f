SUMMARY = "The build machine's binutils as the cross binutils"
DESCRIPTION = "Verification only. The wrappers are in gcc-cross of this layer."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"

PN = "binutils-cross-${TARGET_ARCH}"
DEPENDS = "gcc-cross-${TARGET_ARCH}"
PROVIDES = "virtual/cross-binutils"

inherit cross

INHIBIT_DEFAULT_DEPS = "1"
do_install[noexec] = "1"
