//! The workstation's command line.
fn main() {}
