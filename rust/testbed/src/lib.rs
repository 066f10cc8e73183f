//! A QEMU machine as a value.
