SUMMARY = "PID 1 of the initramfs"
DESCRIPTION = "Takes the watchdog, finds the slot, opens the verified root and hands over to it, or stays reachable and \
               says why it cannot. A static program, the only one of the initramfs."
HOMEPAGE = "https://rustiot.example"
SECTION = "base"

inherit rustiot_workspace

RUSTIOT_BUDGETS = "/init:init"

# Static, because the initramfs has no libraries; at a fixed place, because it lives for a second (docs/contracts/init.md).
RUSTFLAGS += "-C target-feature=+crt-static -C relocation-model=static"

do_install () {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/rustiot-init ${D}/init
}

FILES:${PN} += "/init"
