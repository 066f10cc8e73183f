//! What differs between boards, and what the disk of all of them looks like: the types behind `conf/boards/*.toml`,
//! `conf/layout.toml`, `conf/kernel.toml` and `conf/kernel-modules.toml`, with their checks.
//!
//! It reads text that it is given and never touches a disk of a device. The image builder, the testbed and the device's
//! services use it; an image carries its own copies as `/usr/lib/rustiot/{board,layout}.toml`.

mod board;
mod kernel;
mod layout;
mod size;

pub use board::{
    Arch, Board, Boot, Firmware, FirmwareKind, LoaderKind, Modules, OwnEnv, Qemu, Ramoops, Sizes, Storage,
    Tryboot, Uboot, Uefi, Watchdog,
};
pub use kernel::{Kernel, KernelModules};
pub use layout::{Content, Guid, Layout, Partition, SlotName};
pub use size::Size;

use serde::de::DeserializeOwned;

/// Why a board, layout or kernel file cannot be used. The text names the file, the key and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing key or a wrong type; line and column are in the text.
    #[error("{file}: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// Line, column, the offending line and what was expected.
        message: String,
    },
    /// Every key is well formed, but they do not fit together.
    #[error("{file}: {key}: {problem}; {remedy}")]
    Invalid {
        /// The file.
        file: String,
        /// The key, as a dotted path.
        key: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

/// A check's finding, before it knows the file it came from.
pub(crate) struct Finding {
    pub(crate) key: String,
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

impl Finding {
    pub(crate) fn new(key: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { key: key.into(), problem: problem.into(), remedy: remedy.into() }
    }

    fn within(self, file: &str) -> Error {
        Error::Invalid { file: file.into(), key: self.key, problem: self.problem, remedy: self.remedy }
    }
}

pub(crate) fn parse<T: DeserializeOwned>(
    file: &str,
    text: &str,
    check: impl Fn(&T) -> Result<(), Finding>,
) -> Result<T, Error> {
    let value: T = toml::from_str(text)
        .map_err(|e| Error::Syntax { file: file.into(), message: e.to_string().trim_end().into() })?;
    check(&value).map_err(|f| f.within(file))?;
    Ok(value)
}

pub(crate) fn read(path: &std::path::Path) -> Result<(String, String), Error> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { file: file.clone(), source })?;
    Ok((file, text))
}
