//! `conf/kernel.toml` and `conf/kernel-modules.toml`: what is true of the kernel on every board.

use crate::{Error, parse, read};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `conf/kernel.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Words of the kernel's command line that stand before the board's own.
    pub cmdline: Vec<String>,
}

/// `conf/kernel-modules.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelModules {
    /// Modules that every root carries; dependencies follow by themselves.
    pub modules: Vec<String>,
}

impl Kernel {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is malformed or has an unknown key.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let (file, text) = read(path)?;
        parse(&file, &text, |_| Ok(()))
    }
}

impl KernelModules {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is malformed or has an unknown key.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let (file, text) = read(path)?;
        parse(&file, &text, |_| Ok(()))
    }
}
