//! What flows: output, log lines, events, and the options that choose of it.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use jiff::Timestamp;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;

/// Items that arrive over time. Dropping it ends what produces them. It must not grow while nobody reads it: a slow
/// client makes its own stream wait (or lose events), never the engine's memory or a container.
pub type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Error>> + Send>>;

/// Bytes out of the engine (a tar stream).
pub type ByteReader = Pin<Box<dyn AsyncRead + Send>>;

/// Bytes into the engine (a container's standard input).
pub type ByteWriter = Pin<Box<dyn AsyncWrite + Send>>;

/// Which pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output; everything when there is a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Some output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Of which pipe.
    pub channel: Channel,
    /// Bytes as they came.
    pub bytes: Bytes,
}

/// A connection to a container's or an exec's pipes.
pub struct Attached {
    /// There is a terminal: no frames, and keys that detach.
    pub tty: bool,
    /// Output; ends when the process and all that held its pipes have ended.
    pub output: Items<Output>,
    /// Standard input, when it was asked for and is open. `shutdown` on it is the client's end of file (never with a
    /// terminal): it closes an exec's input, and a container's if it has `stdin_once`. Dropping it without `shutdown` is
    /// a detach.
    pub input: Option<ByteWriter>,
}

/// What to attach to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// What was logged so far comes first, without a gap.
    pub logs: bool,
    /// Then what comes from now on; without it the stream ends after the log.
    pub stream: bool,
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// Which log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogsOptions {
    /// Go on with new ones until the container ends.
    pub follow: bool,
    /// Of standard output.
    pub stdout: bool,
    /// Of standard error.
    pub stderr: bool,
    /// Not older than this.
    pub since: Option<Timestamp>,
    /// Not newer than this.
    pub until: Option<Timestamp>,
    /// Only the last so many of the old ones; `None` for all.
    pub tail: Option<u64>,
}

/// A container's log.
pub struct Logs {
    /// The container has a terminal: no frames.
    pub tty: bool,
    /// Lines, oldest first.
    pub lines: Items<LogLine>,
}

/// One line of a log, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub time: Timestamp,
    /// Of which pipe.
    pub channel: Channel,
    /// The line, its line end included if it had one.
    pub bytes: Bytes,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// Not running: at once if it does not run now.
    #[default]
    NotRunning,
    /// The next end, even if it does not run now.
    NextExit,
    /// Removed; with the exit code of the last run.
    Removed,
}

/// What a wait answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exited {
    /// Exit code.
    pub code: i32,
    /// Why it could not be waited for, or was not removed.
    pub error: Option<String>,
}

/// A wait that has begun: an end after [`crate::Engine::wait`] returned is not missed.
pub type Waiting = Pin<Box<dyn Future<Output = Result<Exited, Error>> + Send>>;

/// Something that happened. Filters are applied by the HTTP side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Of what.
    pub kind: EventKind,
    /// `create`, `start`, `die`, `stop`, `kill`, `destroy`, `pull`, `health_status: healthy`, `exec_create: ls` …
    pub action: String,
    /// Container's, image's, network's id; volume's name.
    pub id: String,
    /// Containers: their labels, `name`, `image`, and `exitCode` on `die`, `signal` on `kill`. Networks: `name`, `type`,
    /// and `container` on `connect`. Images: `name`. Volumes: `driver`.
    pub attributes: BTreeMap<String, String>,
    /// When.
    pub time: Timestamp,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// Containers and their execs.
    Container,
    /// Images.
    Image,
    /// Networks.
    Network,
    /// Volumes.
    Volume,
    /// The engine.
    Daemon,
}

impl EventKind {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Network => "network",
            Self::Volume => "volume",
            Self::Daemon => "daemon",
        }
    }
}
