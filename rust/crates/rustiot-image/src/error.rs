//! Why a build step failed. Every variant says what was being done; where a person can do something, what.

use rustiot_board::Size;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why a build step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("cannot {what} {path}")]
    File {
        /// What was to be done with it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}):\n{output}")]
    Program {
        /// The program with its first arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The tail of what it said.
        output: String,
    },
    /// A file in `conf/` is wrong.
    #[error(transparent)]
    Board(#[from] rustiot_board::Error),
    /// The boot files of a U-Boot board could not be made.
    #[error(transparent)]
    Fit(#[from] crate::fit::Error),
    /// The UEFI guard could not be made.
    #[error(transparent)]
    Guard(#[from] crate::guard::Error),
    /// Something is larger than it may be.
    #[error("{what} is {size} ({} bytes), {limit_name} is {limit} ({}): {remedy}", size.bytes(), limit.bytes())]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size.
        size: Size,
        /// What limits it.
        limit_name: String,
        /// The limit.
        limit: Size,
        /// What to do.
        remedy: String,
    },
    /// A request that is wrong in itself.
    #[error("{problem}; {remedy}")]
    Request {
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A request that cannot be carried out as it stands.
    #[error("{problem}; {remedy}")]
    Refused {
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A file is not what it should be.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Turns an I/O error into [`Error::File`].
pub(crate) trait At<T> {
    /// `what` is a verb: "read", "write".
    fn at(self, what: &'static str, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::File { what, path: path.as_ref().into(), source })
    }
}

pub(crate) fn refused(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Refused { problem: problem.into(), remedy: remedy.into() }
}

pub(crate) fn wrong(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Request { problem: problem.into(), remedy: remedy.into() }
}

/// Whether a build's result may become the file `out`: what is no file is never replaced. Ask before building.
///
/// # Errors
/// A directory (or a device) is there.
pub fn output_file(out: &Path) -> Result<(), Error> {
    match std::fs::metadata(out) {
        Ok(there) if there.is_dir() => {
            Err(wrong(format!("{} is a directory", out.display()), "name the file to write, in it or elsewhere"))
        }
        Ok(there) if !there.is_file() => {
            Err(wrong(format!("{} is no file", out.display()), "name the file to write"))
        }
        _ => Ok(()),
    }
}

/// Whether results may be put into the directory `out`, which need not be there. Ask before building.
///
/// # Errors
/// Something else is there, or in the place of a directory above it.
pub fn output_dir(out: &Path) -> Result<(), Error> {
    match out.ancestors().find(|dir| std::fs::symlink_metadata(dir).is_ok()) {
        Some(there) if !there.is_dir() => {
            Err(wrong(format!("{} is no directory", there.display()), "name a directory, there or to be made"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn content(path: impl AsRef<Path>, problem: impl Into<String>) -> Error {
    Error::Content { path: path.as_ref().into(), problem: problem.into() }
}
