//! The engine as a program of its own, for tests and workstations; on a device it is part of the one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ExitCode::from(rustiot_engine::main(&arguments))
}
