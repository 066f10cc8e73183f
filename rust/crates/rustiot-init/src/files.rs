//! Directory listings in a fixed order. Called by everything here that looks into `/sys`, `/proc` or `state`.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is in the directory, by name. A directory that cannot be read is an empty one.
#[must_use]
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    let listing = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = listing.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}

/// Whether the last part of the path begins with `prefix`.
#[must_use]
pub fn name_starts_with(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
}
