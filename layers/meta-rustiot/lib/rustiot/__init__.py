#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""What the classes of meta-rustiot compute, as plain functions on plain values.

Nothing here knows BitBake's data store but adapters.py, so all of it has unit tests that need no BitBake
(layers/meta-rustiot/tests). The same files of conf/ are read by the lab image's builder (rust/crates/rustiot-image);
where both compute the same thing, a test compares the results byte for byte.
"""

BBIMPORTS = ["problem", "boards", "crates", "uboot", "tryboot", "initramfs", "verity", "disk", "signing", "dates", "adapters"]
