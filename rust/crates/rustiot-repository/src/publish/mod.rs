//! The publisher: keeps a repository in a directory, in which are the places below. Workstation only; used by `rustiot repo`, `publish`, `rollout`.
//!
//! ```text
//! repo.toml   lifetimes, thresholds, where the keys are, how many deltas
//! keys/       private keys, 0600: move the offline ones away
//! work/       what should be published: index and roll-outs as plain files, older bundles, half-signed metadata
//! public/     what is published: metadata/ and targets/. Upload this, timestamp.json last.
//! ```
//!
//! `work/` says what should be, [`Repository::sign`] makes `public/` say the same with as few new files as it takes: run
//! twice it changes nothing, cut short it goes on where it was. Files are written before what names them,
//! `timestamp.json` last; every name but that one is written once and never changes.

mod bundle;
pub mod keys;
mod metadata;
mod releases;
pub mod sample;
pub mod sbom;
mod settings;

pub use bundle::{Manifest, manifest};
pub use metadata::{Repository, RoleStatus, Signing, Status};
pub use releases::{Contents, Encoder, Published, Rdelta, Tool, WaySize, parse_waves};
pub use settings::{KeyEntry, RoleName, Settings};

use std::io;
use std::path::{Path, PathBuf};

/// Publishing failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written durably.
    #[error(transparent)]
    Write(#[from] rustiot_durable::Error),
    /// A key cannot be used.
    #[error("key {key}: {why}")]
    Key {
        /// The key.
        key: String,
        /// Why.
        why: String,
    },
    /// Metadata in the repository is damaged.
    #[error("metadata of the repository: {why}")]
    Metadata {
        /// Why.
        why: String,
    },
    /// `repo.toml` is wrong.
    #[error("{}: {why}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Why, with line and column.
        why: String,
    },
    /// An index or roll-out file in `work/` is damaged.
    #[error("{} cannot be used", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: crate::index::Error,
    },
    /// A bundle is not what it should be.
    #[error("{}: {why}", path.display())]
    Bundle {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An SPDX document beside a bundle, or a file made from one, is not what it should be.
    #[error("{}: {why}", path.display())]
    Sbom {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A delta cannot be made.
    #[error("cannot encode {what}")]
    Encode {
        /// From what to what.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was asked for breaks a rule of the files that would say it.
    #[error(transparent)]
    Request(crate::index::Error),
    /// The request cannot be carried out as it stands.
    #[error("{problem}; {hint}")]
    Refused {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
}

/// Turns an I/O error into [`Error::File`].
pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::File { what, path: path.as_ref().into(), source })
    }
}

/// Puts a finished file under its final name, durably, unless it is there already.
#[expect(
    clippy::disallowed_methods,
    reason = "synced before and after; the file is too large for atomic_write"
)]
pub(crate) fn install(from: &Path, to: &Path) -> Result<(), Error> {
    if to.exists() {
        std::fs::remove_file(from).at("remove", from)?;
        return Ok(());
    }
    std::fs::File::open(from).and_then(|file| file.sync_all()).at("sync", from)?;
    std::fs::rename(from, to).at("put into place", to)?;
    if let Some(dir) = to.parent() {
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).at("sync", dir)?;
    }
    Ok(())
}
