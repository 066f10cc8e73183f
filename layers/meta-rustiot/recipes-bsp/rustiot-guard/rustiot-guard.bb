SUMMARY = "What stands between UEFI firmware and the kernel"
DESCRIPTION = "Checks that the kernel is whole and arms the hardware watchdog before it starts, neither of which the \
               firmware does (docs/contracts/firmware.md). x86-64 only."
HOMEPAGE = "https://rustiot.example"
SECTION = "bootloaders"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = " \
    file://${COREBASE}/meta/files/common-licenses/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302 \
    file://${COREBASE}/meta/files/common-licenses/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10 \
"
DEPENDS = "gnu-efi"
PV = "${RUSTIOT_VERSION}"

inherit rustiot_board deploy

COMPATIBLE_HOST = "x86_64.*-linux"

FILESEXTRAPATHS:prepend := "${RUSTIOT_CONF}/efi-guard:"
SRC_URI = "file://guard.c"
S = "${UNPACKDIR}"

# Firmware has no vector registers set up for whoever it starts, and no runtime for hardened calls.
TUNE_CCARGS = "-m64"
SECURITY_CFLAGS = ""

# The same flags as the lab image's (rust/crates/rustiot-image/src/guard.rs): no runtime, the firmware's calling
# convention in plain calls, no red zone. A test compares them.
GUARD_CFLAGS = " \
    -std=c11 -Os -Wall -Wextra -Werror -ffreestanding -fpic -fshort-wchar -fno-strict-aliasing -fno-stack-protector \
    -fno-asynchronous-unwind-tables -fcf-protection=none -mno-red-zone -maccumulate-outgoing-args -DGNU_EFI_USE_MS_ABI \
"
GUARD_LDFLAGS = "-nostdlib -znocombreloc -znoexecstack -shared -Bsymbolic --no-undefined --build-id=none"
GUARD_SECTIONS = ".text .data .dynamic .dynsym .rodata .reloc"

# What the source is told about the board. Backslashes are doubled for C, and again for the shell.
GUARD_TIMEOUT = "${@rustiot_said(d, lambda d: rustiot.adapters.board(d)['watchdog']['loader_timeout_s'])}"
GUARD_KERNEL = "${@rustiot_said(d, rustiot_guard_kernel)}"

def rustiot_guard_kernel(d):
    path = rustiot.adapters.board(d)["boot"].get("uefi", {}).get("uki_path", "")
    return "".join("\\\\\\\\" + part for part in path.split("/"))

do_compile () {
    ${CC} ${GUARD_CFLAGS} -isystem ${STAGING_INCDIR}/efi -DTIMEOUT_S=${GUARD_TIMEOUT} "-DKERNEL=L\"${GUARD_KERNEL}\"" \
        -c -o guard.o ${S}/guard.c
    ${LD} ${GUARD_LDFLAGS} -T ${STAGING_LIBDIR}/elf_x86_64_efi.lds ${STAGING_LIBDIR}/crt0-efi-x86_64.o guard.o \
        ${STAGING_LIBDIR}/libgnuefi.a -o guard.so
    # Subsystem 10: EFI application. The date is what makes the file reproducible.
    SOURCE_DATE_EPOCH=0 ${OBJCOPY} --target=efi-app-x86_64 --subsystem=10 \
        ${@' '.join('--only-section=' + s for s in d.getVar('GUARD_SECTIONS').split())} guard.so rustiot-guard.efi
}
do_compile[vardeps] += "RUSTIOT_BOARD_CHECKSUM"

do_deploy () {
    install -m 0644 ${B}/rustiot-guard.efi ${DEPLOYDIR}/rustiot-guard.efi
}
addtask deploy after do_compile before do_build

do_install[noexec] = "1"
