SUMMARY = "Initramfs of the development image"
DESCRIPTION = "The product's initramfs, but faults can be asked for on the kernel's command line (docs/contracts/init.md)."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"

require rustiot-initramfs.inc

RUSTIOT_DEVELOPMENT = "1"
