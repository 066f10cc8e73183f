SUMMARY = "The process beside each container"
DESCRIPTION = "Holds a container's streams, its log and its exit status, and outlives the engine. A static program: one \
               runs for each container, and --init mounts it into containers that have no libraries of this system."
HOMEPAGE = "https://rustiot.example"
SECTION = "base"

inherit rustiot_workspace

RUSTIOT_BUDGETS = "${nonarch_libdir}/rustiot/rustiot-shim:shim"

# Static and at a fixed place: less memory for each container (docs/contracts/containers.md).
RUSTFLAGS += "-C target-feature=+crt-static -C relocation-model=static"

do_install () {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/rustiot-shim ${D}${nonarch_libdir}/rustiot/rustiot-shim
}

FILES:${PN} += "${nonarch_libdir}/rustiot"
