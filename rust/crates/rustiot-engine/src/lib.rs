//! The container engine: records, lifecycle, limits, restarts, health, logs, events, `cp`; the Docker Engine API on a
//! socket.
//!
//! A container is never in this process: its shim holds it, and this process may end at any instant. Never pulls, never
//! removes, never starts anything by itself but what a restart policy says. Started by systemd.
//! Contract: `docs/contracts/engine.md`.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests make files in scratch directories"))]

mod archive;
mod beneath;
mod cgroup;
mod container;
mod create;
mod engine;
mod events;
mod health;
mod images;
mod layout;
mod lifecycle;
mod logs;
mod networks;
mod notify;
mod places;
mod process;
mod record;
mod rootfs;
mod seccomp;
mod settings;
mod shim;
mod spec;
mod users;
mod volumes;

use std::os::fd::FromRawFd;
use std::path::Path;
use std::sync::Arc;

use engine::{Inner, RustiotEngine};
pub use layout::Layout;
pub use process::main;
pub use settings::Settings;

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The images.
    #[error("cannot open the images")]
    Store(#[source] Box<rustiot_images::Error>),
    /// A directory or the socket.
    #[error("cannot start")]
    Io(#[source] std::io::Error),
}

/// Runs the engine until `serve` returns; containers stay, their shims have them. `serve` answers the API on the
/// listener: `rustiot_docker_api`'s server.
///
/// # Errors
/// The images cannot be opened, or a directory or the socket cannot be made.
pub async fn run<F>(
    layout: Layout,
    settings: Settings,
    serve: impl FnOnce(tokio::net::UnixListener, Arc<dyn rustiot_docker_api::Engine>) -> F,
) -> Result<(), StartError>
where
    F: Future<Output = std::io::Result<()>>,
{
    std::fs::create_dir_all(&layout.run).map_err(StartError::Io)?;
    cgroup::prepare(&layout.apps()).map_err(StartError::Io)?;
    let listener = listen(&layout.socket).map_err(StartError::Io)?;
    let enabled = settings.enabled;
    let inner = Arc::new(Inner::open(layout, settings)?);
    inner.adopt(enabled).await.map_err(StartError::Io)?;
    if !enabled {
        inner.end_all().await;
    }
    notify::ready();
    let beat = tokio::spawn(notify::beat());
    let ended = serve(listener, Arc::new(RustiotEngine(inner))).await.map_err(StartError::Io);
    beat.abort();
    ended
}

/// systemd's socket if it hands one over, else one of our own.
fn listen(path: &Path) -> std::io::Result<tokio::net::UnixListener> {
    let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let listener = if ours && std::env::var("LISTEN_FDS").is_ok_and(|n| n == "1") {
        sys::handed_over()
    } else {
        let _ = std::fs::remove_file(path);
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        listener
    };
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

mod sys {
    //! The descriptor that systemd hands over.
    #![allow(unsafe_code, reason = "a descriptor by its number")]

    use super::FromRawFd;

    /// Descriptor 3.
    pub fn handed_over() -> std::os::unix::net::UnixListener {
        // SAFETY: the caller has seen that systemd passed exactly one descriptor to this process, which is number 3.
        unsafe { std::os::unix::net::UnixListener::from_raw_fd(3) }
    }
}
