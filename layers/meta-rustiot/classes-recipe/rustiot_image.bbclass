#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# A RustIoT root and everything that is made from it: root.img (erofs and its verity tree), boot.img (unified kernel image
# or FIT, with the root's hash in its initramfs), the owner's partition, the selector, and the disk image to flash.
#
# RUSTIOT_BOTH_SLOTS      "1" writes the release into slot B too
# RUSTIOT_INITRAMFS       the image with rustiot-init
# RUSTIOT_DEVELOPMENT     "1" allows fault injection from the command line; never in a product
# RUSTIOT_BOARD_AREA_KIB, RUSTIOT_BOARD_AREA_PARTS, RUSTIOT_HYBRID_MBR
#                         what the boot ROM wants before the first partition, from conf/rustiot/<machine>.inc

inherit image python3native rustiot_board rustiot_build_date rustiot_release_keys
# EFI_ARCH, from OE-core.
# nooelint: oelint.file.requirenotfound
require conf/image-uefi.conf

RUSTIOT_INITRAMFS ?= "rustiot-initramfs"
RUSTIOT_BOTH_SLOTS ?= "0"
RUSTIOT_DEVELOPMENT ?= "0"
RUSTIOT_BOARD_AREA_KIB ??= "0"
RUSTIOT_BOARD_AREA_PARTS ??= ""
RUSTIOT_BOARD_AREA_DEPENDS ??= ""
RUSTIOT_HYBRID_MBR ??= "0"
RUSTIOT_FIT_DTB ??= ""
RUSTIOT_CONFIG_DEFAULT ?= "${RUSTIOT_CONF}/config/rustiot.toml"

# Read-only by the file system; IMAGE_FEATURES is for the checks that come with it (no first-boot scripts).
IMAGE_FEATURES += "read-only-rootfs"
# The plain disk image stays beside the compressed one: it is compared with the layout after it was made.
IMAGE_FSTYPES = "erofs wic wic.zst wic.bmap"
# rustiot-image-<machine>.root.img and so on: what the bundle looks for.
IMAGE_NAME_SUFFIX = ""
WKS_FILE = "rustiot.wks.in"
WKS_FILE_DEPENDS = "dosfstools-native gptfdisk-native mtools-native parted-native wic-native bmaptool-native erofs-utils-native"
WKS_FILE_DEPENDS += "${RUSTIOT_BOARD_AREA_DEPENDS}"
IMAGE_OVERHEAD_FACTOR = "1.0"
IMAGE_ROOTFS_EXTRA_SPACE = "0"

# One root image whatever the day: fixed time and identity. There is one in a slot, and nobody looks for it by this id.
RUSTIOT_ROOT_UUID = "52757374-496f-5400-8000-000000000001"
# nooelint: oelint.vars.specific
EXTRA_IMAGECMD:erofs = "-T${RUSTIOT_EPOCH} --mkfs-time -U${RUSTIOT_ROOT_UUID} --quiet"
# SOURCE_DATE_EPOCH would let no file be later than that time, and one is (rustiot_clock_epoch).
# nooelint: oelint.vars.specific
IMAGE_CMD:prepend:erofs = "unset SOURCE_DATE_EPOCH; "

# Last of all, when the package manager is done with the tree; the root is verified, so nothing can be generated later.
IMAGE_PREPROCESS_COMMAND += "rustiot_finish_root rustiot_check_root"

rustiot_finish_root () {
    # Mount points, and what the device binds or links over.
    for dir in state data config var run proc sys dev tmp mnt; do
        install -d ${IMAGE_ROOTFS}/$dir
    done
    # What packages put into /var would lie under a file system in memory.
    find ${IMAGE_ROOTFS}/var -mindepth 1 -delete
    rm -f ${IMAGE_ROOTFS}${sysconfdir}/fstab
    ln -sfn ../proc/self/mounts ${IMAGE_ROOTFS}${sysconfdir}/mtab
    ln -sfn ../run/systemd/resolve/stub-resolv.conf ${IMAGE_ROOTFS}${sysconfdir}/resolv.conf
    # There, so that rustiot-init can bind the device's own over it; empty, so that two devices never share one.
    : > ${IMAGE_ROOTFS}${sysconfdir}/machine-id
    : > ${IMAGE_ROOTFS}${nonarch_libdir}/clock-epoch
    # sshd reads the product's file (conf/rootfs), whatever the hooks for read-only roots think of it.
    rm -f ${IMAGE_ROOTFS}${sysconfdir}/default/ssh ${IMAGE_ROOTFS}${sysconfdir}/ssh/sshd_config_readonly
}

# When OE-core has given every file the same time: the one file that bears the build's. systemd sets a clock that is
# earlier to the time of this file, before anything else starts.
rustiot_clock_epoch () {
    touch --date=@${RUSTIOT_BUILD_EPOCH} ${IMAGE_ROOTFS}${nonarch_libdir}/clock-epoch
}
do_image[postfuncs] += "rustiot_clock_epoch"

# nooelint: oelint.vars.pathhardcode.sysconfdir
python rustiot_check_root () {
    import filecmp

    root = d.getVar("IMAGE_ROOTFS")
    source = os.path.join(d.getVar("RUSTIOT_CONF"), "rootfs")
    for directory, directories, names in os.walk(source):
        for name in names + [name for name in directories if os.path.islink(os.path.join(directory, name))]:
            wanted = os.path.join(directory, name)
            path = os.path.relpath(wanted, source)
            there = os.path.join(root, path)
            if os.path.islink(wanted):
                same = os.path.islink(there) and os.readlink(there) == os.readlink(wanted)
            else:
                same = os.path.isfile(there) and filecmp.cmp(wanted, there, shallow=False)
            if not same:
                oe.qa.handle_error("rustiot-rootfs", "/%s is not conf/rootfs/%s: a package replaced it" % (path, path), d)
    shadow = os.path.join(root, "etc/shadow")
    if os.path.exists(shadow):
        with open(shadow, encoding="utf-8") as file:
            for line in file:
                user, password = line.split(":")[:2]
                if not password or password[0] not in "*!x":
                    oe.qa.handle_error("rustiot-password", "user %s has a password: the product has none" % user, d)
    path = os.path.join(root, "etc/machine-id")
    if not os.path.exists(path) or os.path.getsize(path):
        oe.qa.handle_error("rustiot-identity", "/etc/machine-id must be there and empty: each device has its own", d)
    oe.qa.exit_if_errors(d)
}
ERROR_QA:append = " rustiot-rootfs rustiot-password rustiot-identity"

def rustiot_run(d, command, **more):
    import subprocess

    environment = dict(os.environ, SOURCE_DATE_EPOCH=d.getVar("RUSTIOT_EPOCH"))
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if result.returncode:
        bb.fatal("%s failed (%d):\n%s" % (command[0], result.returncode, result.stdout))
    return result.stdout

def rustiot_fat(d, files, label, out, size=0):
    """A FAT with `files` (path inside, file): as small as they allow, or of `size` bytes. Same files, same bytes."""
    needed = sum(os.path.getsize(path) for _, path in files)
    # Tables, directories and the last cluster of each file; then whole MiB.
    size = size or -(-(needed + needed // 100 + 512 * 1024) // (1 << 20)) * (1 << 20)
    sectors = size // 512
    cluster = next((n for n in (1, 2, 4, 8, 16, 32) if sectors // n < 65000), 64)
    with open(out, "wb") as file:
        file.truncate(size)
    rustiot_run(d, ["mkfs.fat", "--invariant", "-F", "16", "-s", str(cluster), "-i", "52490b00", "-n", label, out])
    made = set()
    for inside, path in files:
        parts = inside.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            above = "/".join(parts[:count])
            if above not in made:
                made.add(above)
                rustiot_run(d, ["mmd", "-i", out, "::" + above])
        rustiot_run(d, ["mcopy", "-i", out, path, "::" + inside])

def rustiot_uefi_boot(d, board, kernel, initramfs, cmdline, work, out):
    """The boot partition of a board that starts by UEFI: guard, unified kernel image, its checksum."""
    import struct
    import zlib

    uefi = board["boot"]["uefi"]
    deploy = d.getVar("DEPLOY_DIR_IMAGE")
    uki, args, release = (os.path.join(work, name) for name in ("linux.efi", "cmdline", "os-release"))
    with open(args, "w", encoding="utf-8") as file:
        file.write(cmdline)
    with open(release, "w", encoding="utf-8") as file:
        file.write('ID=rustiot\nNAME="RustIoT OS"\nVERSION_ID=%s\n' % d.getVar("RUSTIOT_VERSION"))
    command = [
        "ukify", "build", "--linux=" + kernel, "--initrd=" + initramfs, "--cmdline=@" + args, "--os-release=@" + release,
        "--efi-arch=" + d.getVar("EFI_ARCH"), "--stub=%s/linux%s.efi.stub" % (deploy, d.getVar("EFI_ARCH")),
        "--output=" + uki,
    ]
    key, certificate = d.getVar("RUSTIOT_SB_KEY"), d.getVar("RUSTIOT_SB_CERT")
    if key:
        command += ["--secureboot-private-key=" + key, "--secureboot-certificate=" + certificate]
    rustiot_run(d, command)
    files = []
    if d.getVar("RUSTIOT_EFI_GUARD"):
        guard = os.path.join(deploy, "rustiot-guard.efi")
        checksum = os.path.join(work, "linux.efi.crc")
        with open(uki, "rb") as file, open(checksum, "wb") as crc:
            crc.write(struct.pack("<I", zlib.crc32(file.read())))
        if key:
            signed = os.path.join(work, "guard.efi")
            rustiot_run(d, ["sbsign", "--key", key, "--cert", certificate, "--output", signed, guard])
            guard = signed
        files = [(uefi["removable_path"], guard), (uefi["uki_path"], uki), (uefi["uki_path"] + ".crc", checksum)]
    else:
        # Without a guard the firmware starts the kernel itself.
        files = [(uefi["removable_path"], uki)]
    rustiot_fat(d, files, "BOOT", out)

def rustiot_uboot_boot(d, board, kernel, initramfs, cmdline, work, out):
    """The boot partition of a board that starts by U-Boot: a FIT, raw."""
    from rustiot import uboot

    rustiot_try(d, uboot.check_kernel, kernel, board)
    args, source = os.path.join(work, "bootargs.txt"), os.path.join(work, "fit.its")
    with open(args, "w", encoding="utf-8") as file:
        file.write(rustiot_try(d, uboot.bootargs, cmdline))
    tree = None
    if d.getVar("RUSTIOT_FIT_DTB"):
        tree = os.path.join(work, "board.dtb")
        original = os.path.join(d.getVar("DEPLOY_DIR_IMAGE"), os.path.basename(d.getVar("RUSTIOT_FIT_DTB")))
        overlay = uboot.reservation_overlay(board)
        if overlay is None:
            bb.utils.copyfile(original, tree)
        else:
            text, binary = os.path.join(work, "ramoops.dts"), os.path.join(work, "ramoops.dtbo")
            with open(text, "w", encoding="utf-8") as file:
                file.write(overlay)
            rustiot_run(d, ["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", binary, text])
            rustiot_run(d, ["fdtoverlay", "-i", original, "-o", tree, binary])
    elif "dtb-" not in " ".join(board["boot"]["uboot"]["hooks"]):
        bb.fatal("%s: no hook finds a device tree and RUSTIOT_FIT_DTB names none; set it in conf/rustiot/%s.inc"
                 % (d.getVar("RUSTIOT_BOARD_FILE"), d.getVar("MACHINE")))
    with open(source, "w", encoding="utf-8") as file:
        file.write(uboot.fit_source(board, kernel, initramfs, args, tree))
    rustiot_run(d, ["uboot-mkimage", "-f", source, out])

def rustiot_tryboot_boot(d, board, kernel, initramfs, cmdline, work, out):
    """The boot partition of a Raspberry Pi whose firmware chooses the slot: kernel, initramfs, device trees, settings."""
    from rustiot import tryboot

    rustiot_try(d, tryboot.check_kernel, kernel)
    deploy = d.getVar("DEPLOY_DIR_IMAGE")
    config, args = os.path.join(work, "config.txt"), os.path.join(work, "cmdline.txt")
    with open(config, "w", encoding="utf-8") as file:
        file.write(tryboot.config(board))
    with open(args, "w", encoding="utf-8") as file:
        file.write(rustiot_try(d, tryboot.command_line, cmdline))
    files = [("config.txt", config), ("cmdline.txt", args), (tryboot.KERNEL, kernel), (tryboot.INITRAMFS, initramfs)]
    for inside, name in rustiot_try(d, tryboot.device_trees, d.getVar("KERNEL_DEVICETREE")):
        files.append((inside, os.path.join(deploy, name)))
    for name in board["boot"]["tryboot"]["firmware"]:
        files.append((name, os.path.join(deploy, d.getVar("BOOTFILES_DIR_NAME"), name)))
    for inside, path in files:
        if not os.path.exists(path):
            bb.fatal("there is no %s for %s of the boot partition; conf/rustiot/%s.inc says what the board needs"
                     % (path, inside, d.getVar("MACHINE")))
    rustiot_fat(d, files, "BOOT", out)

python do_rustiot_slots () {
    import json

    from rustiot import adapters, boards, disk, initramfs, tryboot, uboot, verity

    board = rustiot_try(d, adapters.board, d)
    path = d.getVar("RUSTIOT_BOARD_FILE")
    work = d.getVar("RUSTIOT_SLOT_WORK")
    alignment, _, partitions = rustiot_try(d, adapters.partitions, d)
    found, total = rustiot_try(d, disk.places, alignment, partitions, adapters.board_area(d))
    rustiot_try(d, disk.check_medium, board, total, path)

    # The root and its hash.
    root = adapters.slot_file(d, "root.img")
    bb.utils.copyfile(os.path.join(d.getVar("IMGDEPLOYDIR"), d.getVar("IMAGE_NAME") + ".erofs"), root)
    salt = verity.salt(d.getVar("RUSTIOT_COMPATIBLE"), d.getVar("RUSTIOT_VERSION"))
    tree = rustiot_try(d, verity.append, root, salt)
    with open(adapters.slot_file(d, "verity.json"), "w", encoding="utf-8") as file:
        json.dump(tree, file, indent=1)

    # The initramfs of this very root: the common one, then a small archive with the hash.
    deploy = d.getVar("DEPLOY_DIR_IMAGE")
    common = os.path.join(deploy, "%s-%s.cpio" % (d.getVar("RUSTIOT_INITRAMFS"), d.getVar("MACHINE")))
    whole = os.path.join(work, "initramfs.cpio")
    with open(common, "rb") as file:
        archive = file.read()
    archive += bytes(-len(archive) % 512) + initramfs.verity_segment(tree)
    with open(whole, "wb") as file:
        file.write(archive)
    bb.note(rustiot_try(d, boards.budget, board, "initramfs", len(archive), "the initramfs", path))

    # The boot image.
    kernel = os.path.join(deploy, d.getVar("KERNEL_IMAGETYPE"))
    boot = adapters.slot_file(d, "boot.img")
    build = {"uefi": rustiot_uefi_boot, "uboot": rustiot_uboot_boot, "tryboot": rustiot_tryboot_boot}[board["boot"]["loader"]]
    build(d, board, kernel, whole, adapters.cmdline(d), work, boot)

    # What is not a slot's.
    for partition in partitions:
        content = partition["content"]
        if content == "config":
            conf = d.getVar("RUSTIOT_CONF")
            files = [("rustiot.toml", d.getVar("RUSTIOT_CONFIG_DEFAULT")), ("README.txt", conf + "/config/README.txt")]
            rustiot_fat(d, files, "CONFIG", adapters.slot_file(d, "config.img"), partition["bytes"])
        elif content == "uboot-env":
            with open(adapters.slot_file(d, "uboot-env.img"), "wb") as file:
                file.write(rustiot_try(d, uboot.selector_partition, board, partition["bytes"]))
        elif content == "autoboot":
            selector = os.path.join(work, "autoboot.txt")
            with open(selector, "w", encoding="utf-8") as file:
                file.write(rustiot_try(d, tryboot.autoboot, partitions))
            # Nothing but this file: the device finds it and changes it where it lies.
            rustiot_fat(d, [("autoboot.txt", selector)], "AUTOBOOT", adapters.slot_file(d, "autoboot.img"), partition["bytes"])
        elif content in ("boot", "root"):
            size = os.path.getsize(adapters.slot_file(d, content + ".img"))
            rustiot_try(d, disk.check_fits, partition, size)
            if partition["slot"] == "a":
                bb.note(rustiot_try(d, boards.budget, board, content, size, "the %s image" % content, path))
}
RUSTIOT_SLOT_WORK = "${WORKDIR}/rustiot-slots"
do_rustiot_slots[cleandirs] = "${RUSTIOT_SLOT_WORK}"
do_rustiot_slots[vardeps] += "RUSTIOT_BOARD_CHECKSUM RUSTIOT_VERSION RUSTIOT_EPOCH"
do_rustiot_slots[file-checksums] += "${RUSTIOT_CONFIG_DEFAULT}:True ${RUSTIOT_CONF}/config/README.txt:True"
do_rustiot_slots[depends] += " \
    ${RUSTIOT_INITRAMFS}:do_image_complete virtual/kernel:do_deploy \
    dosfstools-native:do_populate_sysroot mtools-native:do_populate_sysroot \
    ${RUSTIOT_LOADER_DEPENDS} \
"
RUSTIOT_LOADER_DEPENDS = "${@rustiot_loader_depends(d)}"
addtask rustiot_slots after do_image_erofs before do_image_wic do_image_complete

RUSTIOT_EFI_GUARD ??= "${@'1' if d.getVar('TARGET_ARCH') == 'x86_64' else ''}"
RUSTIOT_SB_KEY ??= ""
RUSTIOT_SB_CERT ??= ""
RUSTIOT_SECURE_BOOT ??= "0"

def rustiot_loader_depends(d):
    if d.getVar("RUSTIOT_LOADER") == "uefi":
        found = ["systemd-boot:do_deploy", "systemd-boot-native:do_populate_sysroot"]
        found += ["rustiot-guard:do_deploy"] if d.getVar("RUSTIOT_EFI_GUARD") else []
        # From the layer that has it (docs/yocto.md, Secure Boot).
        found += ["sbsigntool-native:do_populate_sysroot"] if d.getVar("RUSTIOT_SB_KEY") else []
        return " ".join(found)
    if d.getVar("RUSTIOT_LOADER") == "tryboot":
        return "rpi-bootfiles:do_deploy"
    return "u-boot-tools-native:do_populate_sysroot dtc-native:do_populate_sysroot"

# The finished disk image: the table is the layout's, and nothing that boots lies where both slots use it.
python rustiot_check_disk () {
    from rustiot import adapters, disk

    image = os.path.join(d.getVar("IMGDEPLOYDIR"), d.getVar("IMAGE_NAME") + ".wic")
    if not os.path.exists(image):
        return
    alignment, guid, partitions = rustiot_try(d, adapters.partitions, d)
    found, _ = disk.places(alignment, partitions, adapters.board_area(d))
    with open(image, "rb") as file:

        def read(offset, count):
            file.seek(offset)
            return file.read(count)

        rustiot_try(d, disk.check_table, read(0, 34 * 512), guid, found)
        shared = disk.shared(read, found)
    if shared:
        bb.fatal("`%s`, which both slots use, holds %s: move it to the slots' own partitions" % shared)
}
do_image_wic[postfuncs] += "rustiot_check_disk"

python () {
    # The loader is known to the distribution before recipes are read, and again from the board file: they must agree.
    loader = rustiot.adapters.board(d)["boot"]["loader"]
    if loader != d.getVar("RUSTIOT_LOADER"):
        raise bb.parse.SkipRecipe(
            "conf/rustiot/%s.inc has RUSTIOT_LOADER = \"%s\", %s has boot.loader = \"%s\"; make them agree"
            % (d.getVar("MACHINE"), d.getVar("RUSTIOT_LOADER"), d.getVar("RUSTIOT_BOARD_FILE"), loader)
        )
    if d.getVar("RUSTIOT_SECURE_BOOT") == "1":
        if loader != "uefi":
            raise bb.parse.SkipRecipe("RUSTIOT_SECURE_BOOT: FITs cannot be signed yet (docs/yocto.md, Secure Boot)")
        if not d.getVar("RUSTIOT_SB_KEY") or not d.getVar("RUSTIOT_SB_CERT"):
            raise bb.parse.SkipRecipe("RUSTIOT_SECURE_BOOT is set; name the keys by RUSTIOT_SB_KEY and RUSTIOT_SB_CERT")
    if d.getVar("RUSTIOT_PRODUCTION") == "1" and d.getVar("RUSTIOT_DEVELOPMENT") == "1":
        raise bb.parse.SkipRecipe("RUSTIOT_PRODUCTION is set, and %s is for development; build rustiot-image" % d.getVar("PN"))
}
