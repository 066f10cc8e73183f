//! The engine as a process: arguments, the socket, the Docker API's server over it, an orderly end.
//!
//! Decides nothing about containers; they outlive this process. Called by `rustiot-device` (as `rustiot-engine`, started
//! by systemd) and by this crate's own program for tests.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

use tokio::signal::unix::{SignalKind, signal};

use crate::{Layout, Settings};

/// What every call is answered on a device whose owner wants no containers.
const OFF: &str = "containers are off on this device: [engine] enabled = false in rustiot.toml";

/// The container engine: serves the Docker Engine API on a unix socket.
///
/// Containers are held by their shims: they run on when the engine ends, and the next one takes them over.
#[derive(Parser)]
#[command(name = "rustiot-engine", version)]
struct Arguments {
    /// Images, containers and volumes.
    #[arg(long, value_name = "DIR", default_value = "/data/engine")]
    data: PathBuf,
    /// Sockets and mounts of this boot. Short: a shim's socket is below it, and socket paths have 107 bytes.
    #[arg(long, value_name = "DIR", default_value = "/run/rustiot/engine")]
    run: PathBuf,
    /// The API's socket; a socket that systemd hands over is taken instead.
    #[arg(long, value_name = "PATH", default_value = "/run/docker.sock")]
    socket: PathBuf,
    /// The containers' control group below /sys/fs/cgroup.
    #[arg(
        long,
        value_name = "GROUP",
        default_value = "rustiot.slice/rustiot-apps.slice/rustiot-apps.service"
    )]
    cgroup: PathBuf,
    /// The program that holds a container.
    #[arg(long, value_name = "PATH", default_value = "/usr/lib/rustiot/rustiot-shim")]
    shim: PathBuf,
    /// The OCI runtime.
    #[arg(long, value_name = "PATH", default_value = "/usr/lib/rustiot/rustiot-runtime")]
    runtime: PathBuf,
    /// The owner's settings in force, of which `[engine]` and `[proxy]` count; without the file the defaults do.
    #[arg(long, value_name = "FILE", default_value = rustiot_config::EFFECTIVE)]
    settings: PathBuf,
    /// One more registry (HOST or HOST:PORT) that may be asked without a valid certificate, or without TLS; may be repeated.
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
}

/// Runs the engine until it is told to end; returns the exit code. `arguments` without the program's name.
pub fn main(arguments: &[String]) -> u8 {
    let named = std::iter::once("rustiot-engine".to_owned()).chain(arguments.iter().cloned());
    let arguments = match Arguments::try_parse_from(named) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done about a terminal that has gone.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    match run(arguments) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rustiot-engine: {error:#}");
            1
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let absolute =
        |path: PathBuf| std::path::absolute(&path).with_context(|| format!("no path: {}", path.display()));
    let data = absolute(arguments.data)?;
    let owner = rustiot_config::Settings::load_from(&arguments.settings).unwrap_or_else(|error| {
        eprintln!("rustiot-engine: {:#}: the defaults count", anyhow::Error::from(error));
        rustiot_config::Settings::default()
    });
    let mut settings = Settings { credentials: data.join("registry.json"), ..Settings::of(&owner) };
    settings.registries.insecure.extend(arguments.insecure);
    let layout = Layout {
        data,
        run: absolute(arguments.run)?,
        socket: absolute(arguments.socket)?,
        cgroup: arguments.cgroup,
        shim: absolute(arguments.shim)?,
        runtime: vec![absolute(arguments.runtime)?.to_string_lossy().into_owned()],
        init: None,
    };
    std::fs::create_dir_all(&layout.data)
        .with_context(|| format!("cannot make {}", layout.data.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime of tasks")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        let mut int = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        let server = rustiot_docker_api::server::Settings {
            closed: (!settings.enabled).then_some(OFF),
            quiet: Some(rustiot_memory::give_back),
            ..rustiot_docker_api::server::Settings::default()
        };
        crate::run(layout, settings, |listener, engine| {
            let stop = async move {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
            };
            rustiot_docker_api::server::serve(listener, engine, server, stop)
        })
        .await?;
        anyhow::Ok(())
    })?;
    // A thread that reads for a client that has gone would hold the end up.
    runtime.shutdown_background();
    Ok(())
}
