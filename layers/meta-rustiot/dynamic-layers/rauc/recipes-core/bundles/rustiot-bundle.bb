# nooelint: oelint.var.mandatoryvar.SRC_URI - it is made of images
SUMMARY = "RustIoT OS as a RAUC bundle"
DESCRIPTION = "A signed release in format verity: root and boot image of one slot, in one bundle (docs/contracts/rauc.md)."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"
PV = "${RUSTIOT_VERSION}"

inherit bundle rustiot_board rustiot_build_date rustiot_release_keys

RUSTIOT_BUNDLE_IMAGE ?= "rustiot-image"

RAUC_BUNDLE_FORMAT = "verity"
RAUC_BUNDLE_COMPATIBLE = "${RUSTIOT_COMPATIBLE}"
RAUC_BUNDLE_VERSION = "${RUSTIOT_VERSION}"
RAUC_BUNDLE_DESCRIPTION = "RustIoT OS ${RUSTIOT_VERSION} for ${RUSTIOT_BOARD}"
RAUC_BUNDLE_BUILD = "${RUSTIOT_BUILD_EPOCH}"
RAUC_BUNDLE_SLOTS = "root boot"
RAUC_SLOT_root = "${RUSTIOT_BUNDLE_IMAGE}"
RAUC_SLOT_root[file] = "${RUSTIOT_BUNDLE_IMAGE}-${MACHINE}.root.img"
RAUC_SLOT_root[rename] = "root.img"
RAUC_SLOT_boot = "${RUSTIOT_BUNDLE_IMAGE}"
RAUC_SLOT_boot[file] = "${RUSTIOT_BUNDLE_IMAGE}-${MACHINE}.boot.img"
RAUC_SLOT_boot[rename] = "boot.img"
BUNDLE_NAME = "${BUNDLE_BASENAME}-${MACHINE}-${RUSTIOT_VERSION}"

RAUC_CERT_FILE = "${RUSTIOT_SIGNING_CERT}"
RAUC_KEY_FILE = "${RUSTIOT_SIGNING_KEY}"
RAUC_KEYRING_FILE = "${RUSTIOT_KEYRING}"

# The signature is checked as a device will check it (conf/rauc/system.conf.in).
BUNDLE_ARGS = " \
    --conf=${WORKDIR}/signing.conf \
    --signing-keyring=${RUSTIOT_KEYRING} \
    ${@' '.join('--intermediate=' + i for i in d.getVar('RUSTIOT_SIGNING_INTERMEDIATES').split())} \
    --mksquashfs-args='-noI -noD -noF -noX -no-fragments -no-sparse -quiet -no-progress' \
"

# The root's hash stands in the manifest, so that a release can be matched with what a device says it runs; the other two
# are for the repository's index.
python rustiot_prepare_bundle () {
    import json

    name = "%s-%s.verity.json" % (d.getVar("RUSTIOT_BUNDLE_IMAGE"), d.getVar("MACHINE"))
    with open(os.path.join(d.getVar("DEPLOY_DIR_IMAGE"), name), encoding="utf-8") as file:
        d.setVarFlag("RAUC_META_rustiot", "root-hash", json.load(file)["root_hash"])
    d.setVarFlag("RAUC_META_rustiot", "build-epoch", d.getVar("RUSTIOT_BUILD_EPOCH"))
    if d.getVar("RUSTIOT_FLOOR"):
        d.setVarFlag("RAUC_META_rustiot", "floor", d.getVar("RUSTIOT_FLOOR"))
    d.setVar("RAUC_META_SECTIONS", "rustiot")
    with open(d.expand("${WORKDIR}/signing.conf"), "w", encoding="utf-8") as file:
        file.write(
            "[system]\ncompatible=%s\nbootloader=noop\n\n[keyring]\npath=%s\ncheck-purpose=codesign\n"
            "allow-partial-chain=true\n" % (d.getVar("RUSTIOT_COMPATIBLE"), d.getVar("RUSTIOT_KEYRING"))
        )
}
do_configure[prefuncs] += "rustiot_prepare_bundle"
