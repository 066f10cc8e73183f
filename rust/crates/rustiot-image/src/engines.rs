//! A root with other container engines, for comparisons, and a smaller one with a registry: Debian's packages, nothing
//! configured. Never runs any of them. Called by the CLI's `bench containers` and `test`, and by the lab's tests that need a
//! registry.

use crate::cache::{Key, stage};
use crate::context::{Context, Progress};
use crate::error::{At, Error, content};
use crate::packages::Packages;
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

/// What a registry and those who fill it need: a few packages that nobody else has to download.
const REGISTRY: [&str; 3] = ["ca-certificates", "docker-registry", "skopeo"];

/// A toolbox with `docker-registry` and `skopeo`: the same paths as in `toolbox`, in a small root of its own, made if the
/// cache has none (a minute and 200 MB).
///
/// # Errors
/// As [`other_engines`].
pub fn registry_tools(ctx: &Context, toolbox: &Toolbox, progress: &dyn Progress) -> Result<Toolbox, Error> {
    let suite = Packages::load(&ctx.conf("lab/packages.toml"))?.suite;
    let packages = REGISTRY.map(str::to_owned);
    let key = Key::new("registry 1").text(&suite).text(&packages.join(","));
    let title = ("registry", "Debian's docker-registry and skopeo", 1 << 30);
    let dir = stage(ctx, progress, title, &key.finish(), |work| {
        debian(&suite, "amd64", &packages, &work.join("root"), progress)
    })?;
    Ok(toolbox.other(dir.join("root")))
}
