//! `conf/lab/packages.toml`: what the toolbox and the lab image are made of.

use crate::error::{At, Error, content};
use rustiot_board::Arch;
use serde::Deserialize;
use std::path::Path;

/// `conf/lab/packages.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Packages {
    /// Debian suite of both.
    pub(crate) suite: String,
    pub(crate) toolbox: ToolboxPackages,
    pub(crate) target: TargetPackages,
    pub(crate) strip: Strip,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolboxPackages {
    pub(crate) packages: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetPackages {
    pub(crate) packages: Vec<String>,
    pub(crate) dev: Vec<String>,
    pub(crate) kernel: Kernels,
    pub(crate) without: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernels {
    amd64: String,
    arm64: String,
}

impl Kernels {
    /// The kernel's package; none where the lab image is not built for the architecture.
    pub(crate) fn of(&self, arch: Arch) -> Option<&str> {
        match arch {
            Arch::Amd64 => Some(&self.amd64),
            Arch::Arm64 => Some(&self.arm64),
            Arch::Arm | Arch::Riscv64 => None,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Strip {
    pub(crate) paths: Vec<String>,
}

impl Packages {
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).at("read", path)?;
        toml::from_str(&text).map_err(|e| content(path, e.to_string()))
    }
}
