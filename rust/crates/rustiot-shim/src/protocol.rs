//! What the engine and a shim say to each other, and the files that they share.
//!
//! Frames on a stream socket: a byte of kind, three of zero, the length in four (big-endian), the bytes. Pure.
//! Used by `rustiot-shim` and `rustiot-engine`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Bytes before a frame's contents.
pub const HEADER: usize = 8;
/// The longest frame that is taken.
pub const FRAME_MAX: usize = 1 << 20;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the process. Empty: the end of it.
    Stdin,
    /// From the process.
    Stdout,
    /// From the process.
    Stderr,
    /// A [`Request`], [`Answer`] or [`Event`].
    Json,
}

impl Kind {
    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Kind::Stdin => 0,
            Kind::Stdout => 1,
            Kind::Stderr => 2,
            Kind::Json => 3,
        }
    }

    fn of(byte: u8) -> Option<Kind> {
        [Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Json].into_iter().find(|k| k.byte() == byte)
    }
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Not one of [`Kind`].
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// Longer than [`FRAME_MAX`].
    #[error("a frame of {0} bytes is too long")]
    Length(usize),
}

/// One frame as bytes.
pub fn frame(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + bytes.len());
    out.extend([kind.byte(), 0, 0, 0]);
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
    out
}

/// A value as a frame.
pub fn json_frame(value: &impl Serialize) -> Vec<u8> {
    // What is sent has only string keys, the one thing that could go wrong here.
    frame(Kind::Json, &serde_json::to_vec(value).unwrap_or_default())
}

/// Takes the first whole frame off `buffer`; `None` when there is none yet.
///
/// # Errors
/// [`FrameError`]: the connection is of no more use.
pub fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<(Kind, Vec<u8>)>, FrameError> {
    let Some(&[kind, _, _, _, a, b, c, d]) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let kind = Kind::of(kind).ok_or(FrameError::Kind(kind))?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > FRAME_MAX {
        return Err(FrameError::Length(length));
    }
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    let rest = buffer.split_off(HEADER + length);
    let mut whole = std::mem::replace(buffer, rest);
    Ok(Some((kind, whole.split_off(HEADER))))
}

/// The first frame of each connection.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Creates the container and starts its program. One [`Answer`], when the program runs or cannot.
    Start,
    /// One [`Event::Status`] now, and one event for each thing that happens.
    Watch,
    /// The streams of the container's program from now on. [`Answer`] first.
    Attach {
        /// Takes what the client sends.
        stdin: bool,
        /// Wanted.
        stdout: bool,
        /// Wanted.
        stderr: bool,
    },
    /// Another program in the container; its streams on this connection, [`Event::Exited`] at its end.
    Exec {
        /// The engine's name for it.
        id: String,
        /// The OCI process, a file.
        process: PathBuf,
        /// Its capabilities in the end, in base 16, when they are not those of the process file.
        capabilities: Option<String>,
        /// Without the container's system call filter.
        unfiltered: bool,
        /// A terminal.
        tty: bool,
        /// Takes what the client sends.
        stdin: bool,
        /// Rows and columns of the terminal.
        size: Option<(u16, u16)>,
        /// Owner of its pipes.
        owner: (u32, u32),
    },
    /// The terminal's size.
    Resize {
        /// An exec's name, or the container's program.
        exec: Option<String>,
        /// Rows and columns.
        size: (u16, u16),
    },
    /// A signal. [`Answer`].
    Kill {
        /// An exec's name, or the container's program.
        exec: Option<String>,
        /// Its number.
        signal: i32,
    },
}

/// What comes back for a request.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Answer {
    /// What went wrong, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The number of the failed `execve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// The process that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}

/// What a watcher hears.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How things stand.
    Status {
        /// The container's program, once it runs.
        pid: Option<i32>,
        /// Since when.
        started_at: Option<String>,
        /// The programs that were entered and run.
        execs: Vec<String>,
    },
    /// The container's program ended and its log is written.
    Ended(Exit),
    /// An entered program ended.
    Exited {
        /// The engine's name for it.
        id: String,
        /// Its code, or 128 and the signal.
        code: i32,
    },
}

/// How a container ended: `exit.json`, durable before anybody hears of it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exit {
    /// Its code, or 128 and the signal.
    pub code: i32,
    /// The kernel ended something in it for want of memory.
    pub oom: bool,
    /// When, in RFC 3339.
    pub at: String,
    /// The program that ended.
    pub pid: i32,
}

/// `shim.json`: all that a shim is told.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Config {
    /// The container.
    pub id: String,
    /// The OCI runtime's program and first arguments.
    pub runtime: Vec<String>,
    /// Where it keeps its state.
    pub runtime_root: PathBuf,
    /// The OCI bundle.
    pub bundle: PathBuf,
    /// The program's capabilities in the end, in base 16, when they are not those of the bundle.
    pub capabilities: Option<String>,
    /// A terminal.
    pub tty: bool,
    /// The program has an input.
    pub stdin: bool,
    /// The input ends when the first client that sent some goes.
    pub stdin_once: bool,
    /// Rows and columns of the terminal.
    pub size: Option<(u16, u16)>,
    /// Owner of the pipes.
    pub owner: (u32, u32),
    /// Where output goes.
    pub log: Log,
    /// The log is made durable at the end of the run.
    pub sync_log: bool,
    /// [`Exit`].
    pub exit: PathBuf,
    /// The container's control group.
    pub cgroup: PathBuf,
    /// Ends the program when the shim is asked to end.
    pub stop_signal: i32,
    /// Seconds from there to SIGKILL.
    pub stop_timeout: u64,
}

/// Where output goes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum Log {
    /// Nowhere.
    #[default]
    None,
    /// JSON lines in files of bounded size and number.
    JsonFile {
        /// The newest; older ones have `.1`, `.2`, … behind.
        path: PathBuf,
        /// Bytes of each.
        max_size: u64,
        /// How many.
        max_files: u32,
        /// Bytes in a second on average, 0 for no limit; what is more is dropped and counted.
        rate: u64,
    },
    /// The system's journal.
    Journald {
        /// For `CONTAINER_NAME` and the identifier.
        name: String,
        /// Bytes in a second on average, 0 for no limit.
        rate: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_whole_and_in_order() {
        let mut buffer = frame(Kind::Stdout, b"abc");
        buffer.extend(json_frame(&Request::Watch));
        buffer.extend(&frame(Kind::Stdin, b"")[..5]);
        assert_eq!(take_frame(&mut buffer), Ok(Some((Kind::Stdout, b"abc".to_vec()))));
        let (kind, bytes) = take_frame(&mut buffer).unwrap().unwrap();
        assert_eq!((kind, serde_json::from_slice(&bytes).unwrap()), (Kind::Json, Request::Watch));
        assert_eq!(take_frame(&mut buffer), Ok(None));
        buffer.extend([0, 0, 0]);
        assert_eq!(take_frame(&mut buffer), Ok(Some((Kind::Stdin, Vec::new()))));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(take_frame(&mut vec![9, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::Kind(9)));
        assert_eq!(take_frame(&mut vec![1, 0, 0, 0, 255, 0, 0, 0]), Err(FrameError::Length(0xff00_0000)));
    }
}
