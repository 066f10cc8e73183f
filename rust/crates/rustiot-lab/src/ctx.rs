//! What a test gets: machines in the state that it needs, bundles, a web server, its own
//! directory. Everything in it is gone after the test; only a failed one leaves its logs.

use crate::fixtures::{self, Fixtures, Release};
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use rustiot_board::Board;
use rustiot_image::BundleTools;
use rustiot_repository::publish::{Rdelta, Repository};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use testbed::{Disk, FileServer, Machine, Off, Scratch, partition_start};

/// A test's surroundings.
pub struct Ctx<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// The board that is tested.
    pub board: &'a Board,
    /// Images, bundles and snapshots.
    pub fixtures: &'a Fixtures,
    /// What the test counts besides its promise.
    pub figures: Figures,
    /// This is the short run: what a test does many times it does less often.
    pub short: bool,
    dir: Scratch,
    machines: AtomicU32,
}

/// What a test counted, by name; its report carries it.
#[derive(Debug, Clone, Default)]
pub struct Figures(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Figures {
    /// Keeps `value`; the first one of a name stays.
    pub fn note(&self, name: &'static str, value: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_insert(value);
    }

    /// Everything that was noted.
    pub fn all(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The error of a test that this machine cannot run; it is counted as skipped.
#[derive(Debug)]
pub struct Skip(
    /// What is lacking.
    pub String,
);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}

impl<'a> Ctx<'a> {
    /// A test's surroundings with a directory of their own.
    pub fn new(lab: &'a Lab, board: &'a Board, fixtures: &'a Fixtures) -> Result<Self> {
        let dir = lab.scratch("t")?;
        let (figures, machines) = (Figures::default(), AtomicU32::new(0));
        Ok(Ctx { lab, board, fixtures, figures, short: false, dir, machines })
    }

    /// The test's own directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of a further machine of this test.
    pub fn machine_dir(&self) -> Result<Scratch> {
        let number = self.machines.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        // It goes with the test's directory, so that its logs are still there when the test fails.
        Ok(Scratch::lasting(self.dir.file(&format!("m{number}")))?)
    }

    /// A machine with image A that has never been on, its medium of `bytes` (or as small as the
    /// image).
    pub fn fresh(&self, bytes: Option<u64>) -> Result<Off> {
        let base = self.fixtures.base(self.lab, self.board)?;
        self.with_disk(&base, bytes)
    }

    /// The same with `config` as its `rustiot.toml`, whatever these bytes are.
    pub fn fresh_with_config(&self, config: &[u8]) -> Result<Off> {
        let base = self.fixtures.base(self.lab, self.board)?;
        let own = self.dir.file("configured.img");
        let (from, to) = (base.to_string_lossy(), own.to_string_lossy());
        self.lab.tools().run("cp", &["--sparse=always", "--reflink=auto", &from, &to])?;
        self.lab.configure(&own, config)?;
        self.with_disk(&own, Some(self.fixtures.medium()))
    }

    /// Image A as a raw disk of a lab medium's size.
    pub fn fresh_raw(&self) -> Result<PathBuf> {
        let base = self.fixtures.base(self.lab, self.board)?;
        let raw = self.dir.file("fresh.raw");
        let (from, to) = (base.to_string_lossy(), raw.to_string_lossy());
        self.lab.tools().run("cp", &["--sparse=always", "--reflink=auto", &from, &to])?;
        let file = std::fs::File::options().write(true).open(&raw).context("cannot open the copy")?;
        file.set_len(self.fixtures.medium()).context("cannot enlarge the copy")?;
        Ok(raw)
    }

    /// A machine with a copy of the raw disk `base`, every write to which will be logged.
    pub fn fresh_logged(&self, base: &Path) -> Result<Off> {
        let dir = self.machine_dir()?;
        let disk = Disk::logged(&self.lab.tools(), base, &dir.file("disk.raw"), &dir.file("writes.log"))?;
        Ok(Off::new(self.lab.spec(self.board)?, disk, dir)?)
    }

    /// A machine with an overlay over the disk image `base`.
    pub fn with_disk(&self, base: &Path, bytes: Option<u64>) -> Result<Off> {
        let dir = self.machine_dir()?;
        let disk = Disk::overlay(&self.lab.tools(), base, &dir.file("disk.qcow2"), bytes)?;
        Ok(Off::new(self.lab.spec(self.board)?, disk, dir)?)
    }

    /// A machine that runs release A, is provisioned, healthy and settled. Takes about a second:
    /// it is woken from a snapshot that all tests share.
    pub fn healthy(&self) -> Result<Machine> {
        let snapshot = self.fixtures.healthy(self.lab, self.board)?;
        Ok(snapshot.restore(self.machine_dir()?)?)
    }

    /// A machine with release A that has installed B and waits for `rustiot update reboot`. As quickly.
    pub fn installed(&self) -> Result<Machine> {
        let snapshot = self.fixtures.installed(self.lab, self.board)?;
        Ok(snapshot.restore(self.machine_dir()?)?)
    }

    /// A machine that went from release A to B, settled. As quickly.
    pub fn updated(&self) -> Result<Machine> {
        let snapshot = self.fixtures.updated(self.lab, self.board)?;
        Ok(snapshot.restore(self.machine_dir()?)?)
    }

    /// A healthy one, and every write to its disk is logged from now on.
    pub fn healthy_logged(&self) -> Result<Machine> {
        let snapshot = self.fixtures.healthy(self.lab, self.board)?;
        Ok(snapshot.restore_logged(self.machine_dir()?)?)
    }

    /// The bundle of a release for this board.
    pub fn bundle(&self, release: &Release) -> Result<PathBuf> {
        self.fixtures.bundle(self.lab, self.board, release)
    }

    /// A web server that has the bundles of `releases` under their names plus `.raucb`.
    pub fn serve(&self, releases: &[&Release]) -> Result<FileServer> {
        let dir = self.dir.file("www");
        std::fs::create_dir_all(&dir).context("cannot make the server's directory")?;
        for release in releases {
            let link = dir.join(format!("{}.raucb", release.name));
            if !link.exists() {
                std::os::unix::fs::symlink(self.bundle(release)?, &link).context("cannot link a bundle")?;
            }
        }
        Ok(FileServer::start(&dir)?)
    }

    /// A web server with a repository that has published `releases`, with deltas between them, for this board. The
    /// lab's devices trust it. Its files are in [`Ctx::published`].
    pub fn publish(&self, releases: &[&Release]) -> Result<FileServer> {
        let repository = self.own_repository()?;
        let bundles: Vec<PathBuf> = releases.iter().map(|r| self.bundle(r)).collect::<Result<_>>()?;
        let keyring = self.fixtures.signer(self.lab)?.keyring;
        let tools = BundleTools { toolbox: self.lab.toolbox.clone(), keyring };
        Repository::open(&repository)?.publish(
            &bundles,
            None,
            &tools,
            &Rdelta,
            fixtures::now(),
            &|_, _| {},
        )?;
        Ok(FileServer::start(&self.published())?)
    }

    /// This test's copy of the lab's empty repository.
    fn own_repository(&self) -> Result<PathBuf> {
        let repository = self.dir.file("repository");
        if !repository.exists() {
            let empty = self.fixtures.repository(self.lab)?;
            let (from, to) = (empty.to_string_lossy(), repository.to_string_lossy());
            self.lab.tools().run("cp", &["--archive", &from, &to])?;
        }
        Ok(repository)
    }

    /// From now on [`Ctx::publish`] publishes by the product's own settings: the whole release compressed, and no bundle
    /// as it is.
    pub fn publish_compressed(&self) -> Result<()> {
        let settings = self.own_repository()?.join("repo.toml");
        let text = std::fs::read_to_string(&settings).context("no settings")?;
        let product = text.replace("full_way = false", "full_way = true");
        let product = product.replace("bundle_way = true", "bundle_way = false");
        ensure!(product != text, "the lab's settings are the product's already: {text}");
        std::fs::write(&settings, product).context("cannot write the settings")
    }

    /// From now on [`Ctx::publish`] publishes in a repository that no device trusts: its keys are nobody's.
    pub fn untrusted(&self) -> Result<()> {
        fixtures::empty_repository(&self.dir.file("repository"))
    }

    /// What the web server of [`Ctx::publish`] shows: `metadata/` and `targets/`.
    pub fn published(&self) -> PathBuf {
        self.dir.file("repository").join("public")
    }

    /// Where partition `name` begins on this board's disk, bytes.
    pub fn partition(&self, name: &str) -> Result<u64> {
        Ok(partition_start(&self.fixtures.base(self.lab, self.board)?, name)?)
    }

    /// Copies the logs of all machines of this test to `to`.
    pub(crate) fn keep_logs(&self, to: &Path) -> Result<()> {
        let _ = std::fs::remove_dir_all(to);
        std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        for machine in
            std::fs::read_dir(self.dir.path()).context("cannot list the test's machines")?.flatten()
        {
            for file in std::fs::read_dir(machine.path()).into_iter().flatten().flatten() {
                if file.path().extension().is_some_and(|e| e == "log") && !is_write_log(&file.path()) {
                    let (machine, file_name) = (machine.file_name(), file.file_name());
                    let name = format!("{}-{}", machine.to_string_lossy(), file_name.to_string_lossy());
                    std::fs::copy(file.path(), to.join(name)).context("cannot keep a log")?;
                }
            }
        }
        Ok(())
    }
}

fn is_write_log(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "writes.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_figure_of_a_name_stays() {
        let figures = Figures::default();
        figures.clone().note("failed_boots", 1);
        figures.note("failed_boots", 3);
        assert_eq!(figures.all().get("failed_boots"), Some(&1));
    }
}
