//! The workstation's command line. Parses, dispatches, turns errors into exit codes; every command
//! is a module of its own. Started by the launcher `./rustiot`, as root.

#![expect(clippy::disallowed_methods, reason = "files of the workstation, where a lost one is made again")]

mod args;
mod bench;
mod bench_containers;
mod bench_delta;
mod bench_guest;
mod bench_herd;
mod bench_pull;
mod bench_rauc;
mod bench_resume;
mod build;
mod checks;
mod demo;
mod fail;
mod flash;
mod image_delta;
mod machines;
mod power_cut;
mod push_os;
mod repo;
mod run;
mod serve;
mod sys;
mod test;
mod tls;

use args::{BenchWhat, Cli, Command, Image, Lab};
use clap::Parser;
use fail::{Done, Fail};
use nix::sys::signal::{SigSet, Signal};
use rustiot_image::Context;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    rustiot_scratch::watch_over_children();
    leave_nothing_behind();
    let done = dispatch(Cli::parse().command);
    rustiot_scratch::not_ending();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(),
    }
}

fn dispatch(command: Command) -> Done {
    match command {
        Command::Run(args) => run::run(&context()?, &args),
        Command::Ps(json) => machines::ps(&context()?, json.json),
        Command::Stop { name } => machines::stop(&context()?, &name),
        Command::Image(Image::Build(args)) => build::image(&context()?, &args),
        Command::Bundle(args) => build::bundle(&context()?, &args),
        Command::Keys { out, json } => build::keys(&context()?, out, json.json),
        Command::Flash { image, device, yes, json } => flash::run(&image, &device, yes, json.json),
        Command::Serve { dir, port } => serve::run(&dir, port),
        Command::Test(args) => test::run(&context()?, &args),
        Command::Bench(args) => match &args.what {
            Some(BenchWhat::Containers(args)) => bench_containers::run(&context()?, args),
            Some(BenchWhat::Delta(args)) => bench_delta::run(&context()?, args),
            Some(BenchWhat::Herd(args)) => bench_herd::run(&context()?, args),
            Some(BenchWhat::Pull(args)) => bench_pull::run(&context()?, args),
            Some(BenchWhat::Resume(args)) => bench_resume::run(&context()?, args),
            None => bench::run(&context()?, &args),
        },
        Command::FetchInstall(args) => bench_resume::child(&args),
        Command::Lab(Lab::PowerCut { board, runs, seed, json }) => {
            power_cut::run(&context()?, &board.board, runs, seed, json.json)
        }
        Command::Repo(command) => repo::repo(command),
        Command::Publish(args) => repo::publish(&context()?, &args),
        Command::ImageDelta(args) => image_delta::run(&args),
        Command::PushOs(args) => push_os::run(&args),
        Command::Rollout(args) => repo::rollout(&args),
        Command::Demo(board) => demo::run(&context()?, &board.board),
    }
}

/// The clone that we belong to: the launcher says where, else the current directory or one above.
fn context() -> Result<Context, Fail> {
    if let Some(root) = std::env::var_os("RUSTIOT_ROOT") {
        return Ok(Context::new(&PathBuf::from(root))?);
    }
    let here = std::env::current_dir()?;
    let root = here.ancestors().find(|dir| dir.join("conf/layout.toml").is_file());
    Ok(Context::new(root.unwrap_or(&here))?)
}

/// Ctrl-C and its like end all machines and tools and remove what they were making before they end us. The
/// signals are blocked in every thread and waited for in one, so nothing runs in a handler.
fn leave_nothing_behind() {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            rustiot_scratch::cleanup();
            run::restore_terminal();
            std::process::exit(128 + signal as i32);
        }
    });
}
