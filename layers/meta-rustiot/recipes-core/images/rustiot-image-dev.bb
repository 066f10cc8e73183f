SUMMARY = "RustIoT OS for development"
DESCRIPTION = "The product with a console login without password, tools to look around, and fault injection by the \
               command line. Its root is as read-only and verified as the product's. Never sold."
HOMEPAGE = "https://rustiot.example"
LICENSE = "MIT"

require rustiot-image.inc

RUSTIOT_DEVELOPMENT = "1"
RUSTIOT_INITRAMFS = "rustiot-initramfs-dev"

IMAGE_INSTALL += "packagegroup-rustiot-dev"
IMAGE_FEATURES += "allow-empty-password allow-root-login empty-root-password"
# The one check of the product that this image is made to fail.
ERROR_QA:remove = "rustiot-password"
