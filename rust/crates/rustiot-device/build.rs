//! How the device's binary is linked. Never makes code. Run by Cargo.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // 26,000 addresses are set right when the program begins, which each needs 24 bytes in the file (and in the memory of
    // each process) without this. glibc knows it since 2.36, binutils since 2.38.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
