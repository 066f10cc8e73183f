SUMMARY = "Debian's packages in the place of the base system"
DESCRIPTION = "Verification only. The C library, systemd, D-Bus, file system tools and what they need: the lab image's root \
               before anything of ours is added, as one package that provides the names of many."
HOMEPAGE = "https://rustiot.example"
LICENSE = "CLOSED"

PROVIDES += "\
    busybox ca-certificates dbus e2fsprogs glibc libgcc ${STANDIN_LIBC} shadow systemd tzdata udev update-rc.d util-linux virtual/update-alternatives \
"
STANDIN_LIBC = "virtual/libc virtual/libintl virtual/libiconv virtual/crypt virtual/libdb"

INHIBIT_DEFAULT_DEPS = "1"
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INHIBIT_SYSROOT_STRIP = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
# Nothing compiles against it: the compiler has the build machine's own (standin-cross).
SYSROOT_DIRS = ""

# What other recipes, ours among them, bring.
STANDIN_NOT = " \
    etc/debian_version etc/host.conf etc/issue etc/os-release etc/profile.d etc/ssh etc/systemd/system usr/lib/os-release \
    etc/login.defs usr/bin/rauc usr/bin/ssh* usr/bin/scp usr/bin/sftp usr/lib/openssh usr/lib/sftp-server usr/lib/systemd/system/rauc* \
    usr/lib/systemd/system/ssh* usr/sbin/sshd usr/share/base-files usr/share/base-passwd usr/share/dbus-1/*/de.pengutronix* \
    usr/share/openssh usr/share/rauc usr/lib/tmpfiles.d/sshd.conf usr/lib/sysusers.d usr/lib/lsb etc/bash.bashrc \
    usr/lib/systemd/system/rescue-ssh.target usr/lib/tmpfiles.d/openssh* \
"

do_install () {
    [ -d "${RUSTIOT_STANDIN}/root/usr" ] || bbfatal "RUSTIOT_STANDIN must name what the lab unpacked of Debian (README.md)"
    install -d ${D}
    cp -r --no-dereference --preserve=mode,timestamps,links ${RUSTIOT_STANDIN}/root/usr ${RUSTIOT_STANDIN}/root/etc ${D}/
    cd ${D}
    for pattern in ${STANDIN_NOT}; do
        rm -rf $pattern
    done
    # One library directory, as here; Debian's own name for it leads there, because paths are compiled in.
    cp -r --no-dereference --preserve=mode,timestamps,links usr/lib/x86_64-linux-gnu/. usr/lib/
    rm -rf usr/lib/x86_64-linux-gnu
    ln -s . usr/lib/x86_64-linux-gnu
    ln -s usr/lib64 lib64
    chown -R root:root ${D}
    find usr etc -type d -empty -delete
}

PACKAGE_ARCH = "${MACHINE_ARCH}"
PACKAGES = "${PN}"
FILES:${PN} = "/usr ${sysconfdir} /lib64"
STANDIN_RUNTIME = " \
    busybox ca-certificates dbus e2fsprogs e2fsprogs-e2fsck e2fsprogs-mke2fs e2fsprogs-resize2fs e2fsprogs-tune2fs glibc libc6 \
    libgcc-s1 libgcc libnss-myhostname libnss-resolve libnss-systemd shadow systemd systemd-networkd systemd-udev-rules tzdata-core udev \
    util-linux-flock util-linux-mount base-passwd-shell \
"
RDEPENDS:${PN} = "standin-users"
RRECOMMENDS:${PN} = "systemd-conf"
RPROVIDES:${PN} = "${STANDIN_RUNTIME}"
# As Debian has them.
INSANE_SKIP:${PN} = " \
    already-stripped arch build-deps buildpaths debug-files dev-elf dev-so file-rdeps host-user-contaminated infodir \
    installed-vs-shipped ldflags libdir rpaths staticdev symlink-to-sysroot textrel unlisted-pkg-lics useless-rpaths usrmerge \
"
SKIP_FILEDEPS:${PN} = "1"
