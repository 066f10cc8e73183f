SUMMARY = "Units, policies and configuration of a RustIoT root"
DESCRIPTION = "conf/rootfs verbatim, as the lab image has it, and what is made for the board: its file and the disk \
               layout, the release, the trust anchors and RAUC's configuration."
HOMEPAGE = "https://rustiot.example"
SECTION = "base"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = " \
    file://${COREBASE}/meta/files/common-licenses/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302 \
    file://${COREBASE}/meta/files/common-licenses/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10 \
"
PV = "${RUSTIOT_VERSION}"

inherit rustiot_board rustiot_build_date rustiot_release_keys useradd

FILESEXTRAPATHS:prepend := "${RUSTIOT_CONF}:"
# The files of conf/rootfs are added one by one below: links there lead to where only a device has something.
SRC_URI = "file://layout.toml"
RUSTIOT_ROOTFS_LINKS = ""
S = "${UNPACKDIR}"

# Files of conf/rootfs that another recipe's package owns; that recipe is told to take ours (test_layer.py knows both).
RUSTIOT_OWNED_ELSEWHERE = " \
    etc/ssh/sshd_config \
    usr/share/dbus-1/system.d/de.pengutronix.rauc.conf \
"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

python () {
    top = os.path.join(d.getVar("RUSTIOT_CONF"), "rootfs")
    elsewhere = d.getVar("RUSTIOT_OWNED_ELSEWHERE").split()
    uris, links = [], []
    for directory, directories, names in os.walk(top):
        # A new file is noticed by its directory.
        bb.parse.mark_dependency(d, directory)
        for name in sorted(names + directories):
            path = os.path.join(directory, name)
            inside = os.path.relpath(path, top)
            if os.path.islink(path):
                links.append("%s>%s" % (inside, os.readlink(path)))
            elif os.path.isfile(path) and inside not in elsewhere:
                uris.append("file://rootfs/" + inside)
    d.appendVar("SRC_URI", " " + " ".join(sorted(uris)))
    d.setVar("RUSTIOT_ROOTFS_LINKS", " ".join(sorted(links)))
}

python do_install () {
    import json
    import shutil

    destination = d.getVar("D")
    source = os.path.join(d.getVar("UNPACKDIR"), "rootfs")
    for directory, _, names in os.walk(source):
        for name in names:
            path = os.path.join(directory, name)
            target = os.path.join(destination, os.path.relpath(path, source))
            bb.utils.mkdirhier(os.path.dirname(target))
            shutil.copyfile(path, target)
            os.chmod(target, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)
    for link in d.getVar("RUSTIOT_ROOTFS_LINKS").split():
        inside, target = link.split(">")
        bb.utils.mkdirhier(os.path.dirname(os.path.join(destination, inside)))
        os.symlink(target, os.path.join(destination, inside))

    own = os.path.join(destination, "usr/lib/rustiot")
    bb.utils.mkdirhier(own)
    release = {
        "version": d.getVar("RUSTIOT_VERSION"),
        "compatible": d.getVar("RUSTIOT_COMPATIBLE"),
        "floor": d.getVar("RUSTIOT_FLOOR") or None,
        "build_epoch": int(d.getVar("RUSTIOT_BUILD_EPOCH")),
    }
    with open(os.path.join(own, "release.json"), "w", encoding="utf-8") as file:
        json.dump(release, file, indent=2)
    for path, name in (
        (d.getVar("RUSTIOT_BOARD_FILE"), "board.toml"),
        (os.path.join(d.getVar("UNPACKDIR"), "layout.toml"), "layout.toml"),
        (d.getVar("RUSTIOT_KEYRING"), "keyring.pem"),
        (d.getVar("RUSTIOT_REPOSITORY_ROOT"), "repository-root.json"),
    ):
        if not path:
            continue
        shutil.copyfile(path, os.path.join(own, name))
        os.chmod(os.path.join(own, name), 0o644)
}
do_install[vardeps] += "RUSTIOT_ROOTFS_LINKS RUSTIOT_VERSION RUSTIOT_FLOOR RUSTIOT_BUILD_EPOCH RUSTIOT_BOARD_CHECKSUM"
do_install[file-checksums] += "${RUSTIOT_KEYRING}:True ${@':'.join([d.getVar('RUSTIOT_REPOSITORY_ROOT'), 'True']) if d.getVar('RUSTIOT_REPOSITORY_ROOT') else ''}"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system rustiot; --system docker"
USERADD_PARAM:${PN} = "--system --no-create-home --home-dir / --shell /sbin/nologin --user-group rustiot-stream"

FILES:${PN} += "${nonarch_libdir} ${datadir}"
RDEPENDS:${PN} = "rustiot-device"
