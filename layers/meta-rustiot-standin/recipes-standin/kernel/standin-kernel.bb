SUMMARY = "Debian's kernel in the place of the board's"
DESCRIPTION = "Verification only: image, modules archive and packages as a kernel recipe has them, without what the root does \
               not ask for."
HOMEPAGE = "https://kernel.org"
LICENSE = "CLOSED"

DEPENDS = "gcc-cross-${TARGET_ARCH}"
PROVIDES = "virtual/kernel"
KERNEL_PACKAGE_NAME = "kernel"
KERNEL_VERSION = "${@next(iter(sorted(os.listdir(d.getVar('RUSTIOT_STANDIN') + '/modules/lib/modules'))), '') if os.path.isdir(d.getVar('RUSTIOT_STANDIN') + '/modules/lib/modules') else 'none'}"

inherit deploy kernel-module-split

INHIBIT_DEFAULT_DEPS = "1"
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INHIBIT_SYSROOT_STRIP = "1"
PACKAGE_ARCH = "${MACHINE_ARCH}"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
SYSROOT_DIRS = ""

inherit rustiot_board

# The modules that the root and the initramfs ask for, with what they need: four thousand packages would be of no use.
python do_install () {
    import shutil
    from rustiot import adapters, boards, initramfs

    release = d.getVar("KERNEL_VERSION")
    source = os.path.join(d.getVar("RUSTIOT_STANDIN"), "modules/lib/modules", release)
    target = d.expand("${D}${nonarch_base_libdir}/modules/") + release
    board = adapters.board(d)
    names = set(boards.root_modules(adapters.conf(d, "kernel-modules.toml"), board))
    names |= set(board["watchdog"].get("modules", [])) | set(board["modules"]["initramfs"]) | set(board["modules"]["rescue"])
    index = {}
    for name in ("dep", "softdep", "builtin", "alias"):
        with open(os.path.join(d.getVar("WORKDIR"), "modules." + name), encoding="utf-8") as file:
            index[name] = file.read()
    modules = initramfs.Modules(index["dep"], index["softdep"], index["builtin"], index["alias"], release)
    # What is asked for and is no module is built in, or the initramfs says so.
    known = [name for name in names if initramfs.canonical(name) in modules.modules]
    for path in modules.closure(known, source):
        bb.utils.mkdirhier(os.path.dirname(os.path.join(target, path)))
        shutil.copyfile(os.path.join(source, path), os.path.join(target, path))
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if os.path.exists(os.path.join(source, name)):
            shutil.copyfile(os.path.join(source, name), os.path.join(target, name))
}
standin_index () {
    rm -rf ${WORKDIR}/index
    mkdir -p ${WORKDIR}/index/lib
    cp -r ${RUSTIOT_STANDIN}/modules/lib/modules ${WORKDIR}/index/lib/
    depmod -b ${WORKDIR}/index ${KERNEL_VERSION}
    for name in dep softdep builtin alias; do
        cp ${WORKDIR}/index/lib/modules/${KERNEL_VERSION}/modules.$name ${WORKDIR}/
    done
    rm -rf ${WORKDIR}/index
}
do_install[prefuncs] += "standin_index"

do_deploy () {
    install -m 0644 ${RUSTIOT_STANDIN}/vmlinuz ${DEPLOYDIR}/${KERNEL_IMAGETYPE}
    tar -C ${D}${base_prefix} -czf ${DEPLOYDIR}/modules-${MACHINE}.tgz $(cd ${D} && [ -d lib/modules ] && echo lib/modules || echo usr/lib/modules)
}
addtask deploy after do_install before do_build

python do_packagedata:append () {
    bb.utils.mkdirhier(d.expand("${PKGDESTWORK}/kernel-depmod"))
    with open(d.expand("${PKGDESTWORK}/kernel-depmod/kernel-abiversion"), "w") as file:
        file.write(d.getVar("KERNEL_VERSION"))
}

PACKAGES = "kernel-modules kernel-base"
PACKAGES_DYNAMIC += "^kernel-module-.*"
ALLOW_EMPTY:kernel-modules = "1"
ALLOW_EMPTY:kernel-base = "1"
FILES:kernel-base = "${nonarch_base_libdir}/modules/${KERNEL_VERSION}/modules.*"
RPROVIDES:kernel-base = "kernel-${KERNEL_VERSION}"
SKIP_FILEDEPS = "1"
INSANE_SKIP = "arch file-rdeps buildpaths already-stripped"
