//! Real release pairs from Debian's archive, and the tools that others make deltas with: what `rustiot bench delta`
//! measures. Nothing of it gets onto a device.

use crate::apt::Mirror;
use crate::cache::{Key, stage, write};
use crate::context::{Context, Progress};
use crate::error::{At, Error, content};
use crate::toolbox::{Toolbox, debian, watched};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// `conf/bench/releases.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Releases {
    suite: String,
    tools: Vec<String>,
    packages: Vec<String>,
    /// In the order in which they are told.
    pub pair: Vec<ReleasePair>,
}

/// Two releases.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleasePair {
    /// One word.
    pub name: String,
    /// For people.
    pub title: String,
    /// How many times smaller than the compressed image a delta has to be.
    pub wanted: f64,
    /// How many times smaller than casync's and RAUC's blocks it has to be.
    pub blocks: Option<f64>,
    old: Release,
    new: Release,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    suite: Option<String>,
    kernel: String,
    versions: String,
    #[serde(default)]
    except: Vec<String>,
}

impl Releases {
    /// Reads the list.
    ///
    /// # Errors
    /// It cannot be read or is wrong.
    pub fn load(ctx: &Context) -> Result<Self, Error> {
        let path = ctx.conf("bench/releases.toml");
        let text = std::fs::read_to_string(&path).at("read", &path)?;
        toml::from_str(&text).map_err(|e| content(&path, e.to_string()))
    }

    /// A chroot with the other tools.
    ///
    /// # Errors
    /// As for [`Toolbox::ensure`].
    pub fn tools(&self, ctx: &Context, toolbox: &Toolbox, progress: &dyn Progress) -> Result<Toolbox, Error> {
        let key = Key::new("delta tools 1").text(&self.suite).text(&self.tools.join(","));
        let title = ("delta-tools", "tools that others make deltas with", 1 << 30);
        let dir = stage(ctx, progress, title, &key.finish(), |work| {
            debian(&self.suite, "amd64", &self.tools, &work.join("root"), progress)?;
            for file in ["resolv.conf", "hosts"] {
                let path = work.join("root/etc").join(file);
                if std::fs::symlink_metadata(&path).is_err() {
                    write(&path, "")?;
                }
            }
            Ok(())
        })?;
        Ok(toolbox.other(dir.join("root")))
    }

    /// Both root images of `pair`, old and new, with the package versions of the day on which the cache got them.
    ///
    /// # Errors
    /// A package is not to be had, or the cache cannot be written.
    pub fn images(
        &self,
        ctx: &Context,
        toolbox: &Toolbox,
        pair: &ReleasePair,
        progress: &dyn Progress,
    ) -> Result<(PathBuf, PathBuf), Error> {
        let old = self.image(ctx, toolbox, &pair.old, progress)?;
        Ok((old, self.image(ctx, toolbox, &pair.new, progress)?))
    }

    fn image(
        &self,
        ctx: &Context,
        toolbox: &Toolbox,
        release: &Release,
        progress: &dyn Progress,
    ) -> Result<PathBuf, Error> {
        let suite = release.suite.as_deref().unwrap_or(&self.suite);
        let script = ctx.conf("bench/release-root.sh");
        let except = release.except.join(",");
        let mut key = Key::new("release 1").file(&script)?.text(suite).text(&release.kernel);
        key = key.text(&release.versions).text(&except).text(&self.packages.join(","));
        let title = format!("release of {suite}, {}, {} versions", release.kernel, release.versions);
        let dir = stage(ctx, progress, ("releases", &title, 3 << 30), &key.finish(), |work| {
            let apt = ctx.cache().join("apt").join(format!("releases-{suite}"));
            std::fs::create_dir_all(&apt).at("create", &apt)?;
            let list = work.join("sources.list");
            let lines = Mirror::discover(Path::new("/etc/apt"))?.lines(suite);
            write(&list, format!("{}\n", lines.join("\n")))?;
            let mut command = toolbox.command("bash");
            command.arg(&script).arg(&apt).arg(&list).arg(work.join("root.img"));
            command.args([&release.kernel, &release.versions, &except]).args(&self.packages);
            watched("release-root.sh", &mut command, progress)?;
            std::fs::remove_file(&list).at("remove", &list)
        })?;
        Ok(dir.join("root.img"))
    }
}
