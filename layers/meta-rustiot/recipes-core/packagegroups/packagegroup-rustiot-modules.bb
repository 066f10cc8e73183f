SUMMARY = "Kernel modules of a RustIoT root"
DESCRIPTION = "The modules of conf/kernel-modules.toml and of the board file. What the kernel has built in has no package, \
               so they are recommended and not required; those that the way to the root needs are checked by the initramfs."
HOMEPAGE = "https://rustiot.org"

inherit packagegroup rustiot_board

RRECOMMENDS:${PN} = "${@rustiot_said(d, rustiot.adapters.module_packages)}"
