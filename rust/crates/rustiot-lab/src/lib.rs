//! RustIoT machines in QEMU, and the guarantees that are tested on them.
