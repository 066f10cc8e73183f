#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Verification only: a native recipe that puts programs of the build machine where classes look for them by their path, in
# the sysroot, as small scripts that run the real ones.
#
# STANDIN_TOOLS   name:path pairs; a name with a slash is below libdir, one without in bindir

inherit native

LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"
INHIBIT_DEFAULT_DEPS = "1"
STANDIN_TOOLS ?= ""
do_configure[noexec] = "1"
do_compile[noexec] = "1"

standin_script () {
    # $1: where, $2: what runs
    install -d $(dirname $1)
    printf '#!/bin/sh\n%s\n' "$2" > $1
    chmod 0755 $1
}

do_install () {
    for pair in ${STANDIN_TOOLS}; do
        name=${pair%%:*}
        program=${pair#*:}
        [ -e "$program" ] || bbfatal "$program is missing on the build machine (README.md of this layer lists what must be there)"
        case $name in
            */*) where=${D}${libdir}/$name ;;
            *) where=${D}${bindir}/$name ;;
        esac
        standin_script $where "exec $program \"\$@\""
    done
}
