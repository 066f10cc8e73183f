//! The first process of a container that was asked for one (`--init`): starts the program, hands signals on, reaps.
//!
//! The program has a process group of its own, in front of the terminal if there is one: what is typed there reaches it
//! once. Never does anything else. The shim's own file, mounted into the container as `/sbin/docker-init`.

use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, Signal};

use crate::sys;

/// Runs the program after `--` until it ends; its exit code, or 128 and the signal.
pub fn main(arguments: &mut dyn Iterator<Item = String>) -> ExitCode {
    let mut words = arguments.skip_while(|word| word == "--");
    let Some(program) = words.next() else {
        eprintln!("docker-init: no program");
        return ExitCode::from(2);
    };
    // Blocked, so that each is taken up below; the program starts with none blocked.
    let mut all = SigSet::all();
    for fault in
        [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGABRT, Signal::SIGTRAP]
    {
        all.remove(fault);
    }
    if all.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    let mut command = Command::new(&program);
    command.args(words);
    sys::in_front(&mut command);
    let child = match command.spawn() {
        Ok(child) => i32::try_from(child.id()).unwrap_or(-1),
        Err(error) => {
            eprintln!("docker-init: {program}: {error}");
            return ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    loop {
        match sys::wait(&all) {
            Ok(nix::libc::SIGCHLD) => {
                while let Some((pid, code)) = sys::reap() {
                    if pid == child {
                        return ExitCode::from(u8::try_from(code).unwrap_or(255));
                    }
                }
            }
            Ok(signal) => {
                let _ = sys::kill(child, signal);
            }
            Err(_) => {}
        }
    }
}
