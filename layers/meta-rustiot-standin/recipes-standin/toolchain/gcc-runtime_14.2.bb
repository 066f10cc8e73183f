SUMMARY = "The build machine's libgcc in the place of the release's"
DESCRIPTION = "Verification only. Empty: the library itself is in standin-base."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"

DEPENDS = "standin-base"
PROVIDES = "virtual/compilerlibs"

inherit nopackages

INHIBIT_DEFAULT_DEPS = "1"
do_install[noexec] = "1"
