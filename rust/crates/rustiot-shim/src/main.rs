//! The process. Started by `rustiot-engine` with a listening socket as its standard input, or by systemd as the holder
//! of the apps' control group.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    // Mounted into containers under this name by `--init`.
    if arguments.next().is_some_and(|name| name.ends_with("docker-init")) {
        return rustiot_shim::init::main(&mut arguments);
    }
    let result = match (arguments.next().as_deref(), arguments.next()) {
        (Some("run"), Some(directory)) => rustiot_shim::shim::run(directory.as_ref()),
        (Some("hold"), Some(shims)) => rustiot_shim::shim::hold(shims.as_ref()),
        _ => {
            eprintln!(
                "usage: rustiot-shim run DIR   (started by rustiot-engine)\n       rustiot-shim hold CGROUP"
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rustiot-shim: {error}");
            ExitCode::FAILURE
        }
    }
}
