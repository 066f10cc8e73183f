//! `rustiot-hawkbit-updater`: rauc-hawkbit-updater's command line over our DDI client. Only a shim.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(rustiot_hawkbit::shim::main(std::env::args_os().skip(1)))
}
