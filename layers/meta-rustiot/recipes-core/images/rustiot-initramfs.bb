SUMMARY = "Initramfs with rustiot-init and nothing else"
DESCRIPTION = "rustiot-init, what it must know about the board, and the kernel modules that the kernel has not built in. \
               The hash of the root is added per slot by rustiot_image.bbclass."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"

require rustiot-initramfs.inc
