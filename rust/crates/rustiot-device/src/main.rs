//! The device's multi-call binary and CLI.
fn main() {}
