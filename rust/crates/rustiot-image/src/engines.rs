//! A root with other container engines, for comparisons, and with a registry: Debian's packages, nothing configured. Never
//! runs any of them. Called by the CLI's `bench containers`, and by tests that need a registry.

use crate::cache::{Key, stage};
use crate::context::{Context, Progress};
use crate::error::{At, Error, content};
use crate::toolbox::{Toolbox, debian};
use serde::Deserialize;
use std::path::PathBuf;

/// `conf/bench/containers.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Engines {
    suite: String,
    packages: Vec<String>,
}

/// The root's directory, made if the cache has none (a few minutes and 1 GB).
///
/// # Errors
/// The list is wrong, a package is not to be had, or the cache cannot be written.
pub fn other_engines(ctx: &Context, progress: &dyn Progress) -> Result<PathBuf, Error> {
    let path = ctx.conf("bench/containers.toml");
    let text = std::fs::read_to_string(&path).at("read", &path)?;
    let list: Engines = toml::from_str(&text).map_err(|e| content(&path, e.to_string()))?;
    let key = Key::new("container engines 1").text(&list.suite).text(&list.packages.join(","));
    let title = ("container-engines", "other container engines", 2 << 30);
    let dir = stage(ctx, progress, title, &key.finish(), |work| {
        debian(&list.suite, "amd64", &list.packages, &work.join("root"), progress)
    })?;
    Ok(dir.join("root"))
}

/// A toolbox with `docker-registry` and `skopeo`: the same paths as in `toolbox`, in the root of [`other_engines`].
///
/// # Errors
/// As [`other_engines`].
pub fn registry_tools(ctx: &Context, toolbox: &Toolbox, progress: &dyn Progress) -> Result<Toolbox, Error> {
    Ok(toolbox.other(other_engines(ctx, progress)?))
}
