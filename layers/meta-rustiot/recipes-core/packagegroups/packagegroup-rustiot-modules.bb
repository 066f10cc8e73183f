SUMMARY = "Kernel modules and firmware of a RustIoT root"
DESCRIPTION = "The modules of conf/kernel-modules.toml and of the board file. What the kernel has built in has no package, \
               so they are recommended and not required; those that the way to the root needs are checked by the initramfs."
HOMEPAGE = "https://rustiot.example"

inherit rustiot_board packagegroup

RRECOMMENDS:${PN} = "${@rustiot_said(d, rustiot.adapters.module_packages)}"
# What drivers of this board load (conf/rustiot). To BitBake a recommendation must be there as a dependency must, so
# firmware whose licence has to be accepted first is named only with the feature that wants it.
RRECOMMENDS:${PN} += "${RUSTIOT_BOARD_FIRMWARE}"
