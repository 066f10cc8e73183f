SUMMARY = "RustIoT OS: the product"
DESCRIPTION = "A read-only verified root with the RustIoT services and RAUC, the boot image of its slot, and the disk \
               image to flash. No password, no debug shell, nothing that no part of it uses."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"

require rustiot-image.inc
