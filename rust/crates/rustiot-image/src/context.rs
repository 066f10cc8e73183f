//! Where a build reads from and keeps things, and how it tells what it is doing.

use crate::error::{At, Error, refused};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The repository and the cache.
#[derive(Clone, Debug)]
pub struct Context {
    repo: PathBuf,
    cache: PathBuf,
}

impl Context {
    /// The repository at `repo`; the cache at `$RUSTIOT_CACHE` or `~/.cache/rustiot`.
    ///
    /// # Errors
    /// `repo` is no clone of RustIoT OS, or the cache cannot be made.
    pub fn new(repo: &Path) -> Result<Self, Error> {
        let cache = match std::env::var_os("RUSTIOT_CACHE") {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => {
                let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
                Path::new(&home).join(".cache/rustiot")
            }
        };
        Context::with_cache(repo, &cache)
    }

    /// The repository at `repo` with the cache at `cache`.
    ///
    /// # Errors
    /// As for [`Context::new`].
    pub fn with_cache(repo: &Path, cache: &Path) -> Result<Self, Error> {
        if !repo.join("conf/layout.toml").is_file() {
            return Err(refused(
                format!("{} is no clone of RustIoT OS (conf/layout.toml is missing)", repo.display()),
                "run it inside one",
            ));
        }
        std::fs::create_dir_all(cache).at("create", cache)?;
        Ok(Context {
            repo: repo.canonicalize().at("find", repo)?,
            cache: cache.canonicalize().at("find", cache)?,
        })
    }

    /// The repository.
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// The cache; everything in it can be built again.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A file below `conf/`.
    pub fn conf(&self, name: &str) -> PathBuf {
        self.repo.join("conf").join(name)
    }
}

/// Is told what a build does. All methods may be called from one thread only.
pub trait Progress {
    /// A step begins that may take more than a moment.
    fn begin(&self, step: &str);
    /// A line of output of the running step, for those who want to see it.
    fn line(&self, text: &str);
    /// The step is done, or was found in the cache.
    fn end(&self, step: &str, took: Duration, cached: bool);
}

/// Says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn end(&self, _: &str, _: Duration, _: bool) {}
}

/// Writes one line a step to standard error.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Progress for Plain {
    fn begin(&self, step: &str) {
        eprintln!("  … {step}");
    }
    fn line(&self, _: &str) {}
    fn end(&self, step: &str, took: Duration, cached: bool) {
        let how = if cached { "from cache" } else { "built" };
        eprintln!("  ✓ {step}: {how}, {:.1} s", took.as_secs_f64());
    }
}

/// Runs `work` as a step.
pub(crate) fn step<T>(
    progress: &dyn Progress,
    name: &str,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let start = Instant::now();
    progress.begin(name);
    let value = work()?;
    progress.end(name, start.elapsed(), false);
    Ok(value)
}
