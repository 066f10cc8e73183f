SUMMARY = "Kernel modules and firmware of a RustIoT root"
DESCRIPTION = "The modules of conf/kernel-modules.toml and of the board file. What the kernel has built in has no package, \
               so they are recommended and not required; those that the way to the root needs are checked by the initramfs."
HOMEPAGE = "https://rustiot.org"

inherit packagegroup rustiot_board

RRECOMMENDS:${PN} = "${@rustiot_said(d, rustiot.adapters.module_packages)}"
# What drivers of this board load, as far as its licence was accepted (kas/eula).
RRECOMMENDS:${PN} += "${@' '.join(p for p in (d.getVar('MACHINE_EXTRA_RRECOMMENDS') or '').split() if 'firmware' in p)}"
