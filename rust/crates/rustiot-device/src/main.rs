//! The device's one binary: every RustIoT service of the host OS, RAUC's boot backend, and the command `rustiot`.
//!
//! A shim: the program's name (or `rustiot daemon NAME`) says which part runs; each part is a crate of its own and its
//! own process. Never does anything itself. Started by systemd, RAUC and people.

mod args;
mod client;
mod commands;
#[cfg(feature = "engine")]
mod containers;
mod files;
mod show;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    match name.parse() {
        Ok(daemon) => commands::daemon(daemon, arguments.collect()),
        Err(_) => commands::run(args::Cli::parse()),
    }
}
