//! Every way in which a machine can disappoint its owner. Never formats a cause into a message.

use std::path::PathBuf;
use std::time::Duration;

/// What went wrong with a machine, its disk or its guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or socket operation of ours failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The verb, as in "cannot read".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("{program} failed ({status}): {stderr}")]
    Program {
        /// Its name.
        program: String,
        /// Exit status.
        status: std::process::ExitStatus,
        /// Its last words.
        stderr: String,
    },
    /// A condition did not come true in time.
    #[error("waited {} s for {what}; last seen: {tail}", waited.as_secs())]
    Timeout {
        /// The condition.
        what: String,
        /// How long was waited.
        waited: Duration,
        /// The newest output that there was instead.
        tail: String,
    },
    /// The machine is gone (QEMU ended) while something was expected of it.
    #[error("the machine ended while {what}: {tail}")]
    Ended {
        /// What was going on.
        what: String,
        /// QEMU's or the console's last words.
        tail: String,
    },
    /// The guest, and its agent with it, was restarted in the middle of a command.
    #[error("the guest agent was started again before it answered {command}")]
    Restarted {
        /// The command.
        command: String,
    },
    /// QEMU or the guest agent refused a command.
    #[error("{command} was refused: {message}")]
    Refused {
        /// The command.
        command: String,
        /// Its message.
        message: String,
    },
    /// QEMU or the guest agent said something that is not its protocol.
    #[error("{from} sent what cannot be understood: {text}")]
    Protocol {
        /// Who.
        from: &'static str,
        /// The start of it.
        text: String,
    },
    /// A write log that is not one.
    #[error("write log, byte {offset}: {problem}")]
    WriteLog {
        /// Where in the log, bytes from its start.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// No such partition on the disk.
    #[error("{} has no partition {name}", disk.display())]
    NoPartition {
        /// The disk image.
        disk: PathBuf,
        /// The name that was looked for.
        name: String,
    },
    /// A pattern that is not a regular expression.
    #[error("not a regular expression")]
    Pattern(#[source] regex::Error),
    /// A unix socket's path would be longer than the kernel takes (108 bytes, unix(7)).
    #[error("{} is too long for a socket: choose a shorter RUSTIOT_CACHE", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
}

impl Error {
    /// For `map_err`: an IO error with the operation and the path.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }

    /// Whether this is a wait that ran out (and may be tried again).
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::Timeout { .. })
    }
}
