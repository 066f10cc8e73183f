//! Images, bundles and snapshots that tests share. Each is built at its first use, once, and kept
//! in the cache under a name that changes with its inputs.

use crate::device::{COMMAND, Device, HEALTHY};
use crate::lab::Lab;
use anyhow::{Context as _, Result, bail, ensure};
use rustiot_board::{Arch, Board};
use rustiot_image::keys::{self, Signer};
use rustiot_image::{
    BuildDate, BundleRequest, DiskRequest, Image, Init, Plain, Progress, Request, Silent, Toolbox,
};
use rustiot_repository::publish::{Repository, Settings};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testbed::writelog::Random;
use testbed::{Disk, FileServer, Off, Scratch, Snapshot};

/// The medium that lab machines have: more than the image, so that `data` has room to grow. Bytes.
const MEDIUM: u64 = 2 << 30;

/// How long fixtures stay that today's inputs no longer make: another clone may use them.
const KEEP_FOR: Duration = Duration::from_secs(3 * 24 * 3600);

/// A release of the OS, good or bad in a chosen way.
#[derive(Debug, Clone, Copy)]
pub struct Release {
    /// Its name in the lab: unique, a file name.
    pub name: &'static str,
    /// Its version (semver).
    pub version: &'static str,
    /// The oldest version that a device with it may go back to.
    pub floor: Option<&'static str>,
    /// More words for the kernel's command line.
    pub cmdline: &'static [&'static str],
    /// Without `/init` in the initramfs.
    pub no_init: bool,
    /// Files laid over its root.
    pub files: &'static [File],
}

/// A file that a release has more, or instead.
#[derive(Debug, Clone, Copy)]
pub enum File {
    /// Path in the root (without the first `/`) and content.
    Text(&'static str, &'static str),
    /// The same, executable.
    Program(&'static str, &'static str),
    /// Path in the root and how many bytes: noise that no compressor makes smaller, other noise for each path.
    Noise(&'static str, usize),
    /// Path in the root and the source of a static program, a file of `conf/bench`.
    Built(&'static str, &'static str),
    /// Path and target of a symbolic link; a unit that links to `/dev/null` is masked.
    Link(&'static str, &'static str),
}

impl Release {
    /// A good release.
    pub const fn new(name: &'static str, version: &'static str) -> Self {
        Release { name, version, floor: None, cmdline: &[], no_init: false, files: &[] }
    }
}

/// The release that lab machines start with.
pub const A: Release = Release::new("a", "1.0.0");
/// A good newer one.
pub const B: Release = Release::new("b", "1.1.0");

/// Tells what is built; what the cache has would be told for every test.
struct Built;

impl Progress for Built {
    fn begin(&self, step: &str) {
        Plain.begin(step);
    }
    fn line(&self, text: &str) {
        Plain.line(text);
    }
    fn end(&self, step: &str, took: Duration, cached: bool) {
        if !cached {
            Plain.end(step, took, cached);
        }
    }
    fn gave_up(&self, step: &str) {
        Plain.gave_up(step);
    }
}

/// What tests share. One value serves all threads.
#[derive(Debug)]
pub struct Fixtures {
    verbose: bool,
    made: Mutex<BTreeMap<String, Arc<Mutex<Option<String>>>>>,
}

impl Fixtures {
    /// Nothing is built yet. `verbose` tells every build step on standard error.
    pub fn new(verbose: bool) -> Self {
        Fixtures { verbose, made: Mutex::new(BTreeMap::new()) }
    }

    /// The size of a lab machine's medium, bytes.
    pub fn medium(&self) -> u64 {
        MEDIUM
    }

    fn progress(&self) -> &'static dyn Progress {
        if self.verbose { &Built } else { &Silent }
    }

    /// What signs the lab's bundles.
    pub fn signer(&self, lab: &Lab) -> Result<Signer> {
        self.once("keys", || Ok(keys::development(&lab.toolbox, &lab.keys())?))
    }

    /// A repository without a release, with all its keys; every image of the lab trusts it.
    pub fn repository(&self, lab: &Lab) -> Result<PathBuf> {
        let dir = lab.keys().join("repository");
        self.once("repository", || {
            if dir.join("repo.toml").is_file() {
                return Ok(());
            }
            std::fs::create_dir_all(lab.keys()).context("cannot make the directory of keys")?;
            let new = Scratch::new(&lab.keys(), ".new-repository")?;
            empty_repository(new.path())?;
            match std::fs::rename(new.path(), &dir) {
                // Another command has made one at the same time.
                Err(_) if dir.join("repo.toml").is_file() => Ok(()),
                moved => moved.context("cannot keep the repository"),
            }
        })?;
        Ok(dir)
    }

    /// How `release` is built for `board`, but for its files.
    pub fn request(&self, lab: &Lab, board: &Board, release: &Release) -> Result<Request> {
        let mut request = Request::new(&board.name, release.version, &self.signer(lab)?.keyring);
        request.floor = release.floor.map(String::from);
        // Not the day's: what is in the cache today is good tomorrow, and a delta's size does not depend on the day.
        request.build_date = BuildDate::FIXED;
        request.repository_root = Some(self.repository(lab)?.join("public/metadata/1.root.json"));
        request.cmdline = release.cmdline.iter().map(ToString::to_string).collect();
        if release.no_init {
            request.init = Init::Missing;
        }
        Ok(request)
    }

    /// The images of `release` for `board`.
    pub fn image(&self, lab: &Lab, board: &Board, release: &Release) -> Result<Image> {
        let request = self.request(lab, board, release)?;
        // The same twice at once would be built twice.
        self.once(&format!("image {} {}", board.name, release.name), || {
            let overlay = Scratch::new(lab.context.cache(), ".overlay")?;
            for file in release.files {
                match file {
                    File::Built(path, source) => {
                        compile(
                            lab,
                            board,
                            &lab.context.conf("bench").join(source),
                            &overlay.path().join(path),
                        )?;
                    }
                    file => place(overlay.path(), file)?,
                }
            }
            let mut request = request.clone();
            request.overlay = (!release.files.is_empty()).then(|| overlay.path().to_path_buf());
            Ok(rustiot_image::build(&lab.context, &lab.toolbox, &request, self.progress())?)
        })
    }

    /// The signed bundle of `release` for `board`.
    pub fn bundle(&self, lab: &Lab, board: &Board, release: &Release) -> Result<PathBuf> {
        let image = self.image(lab, board, release)?;
        let path = self.path(
            lab,
            board,
            release.name,
            &format!("raw 2 {} {:?}", identity(&image), release.floor),
            "raucb",
        )?;
        self.once(&path.to_string_lossy(), || {
            if !path.is_file() {
                let request = BundleRequest {
                    signer: self.signer(lab)?,
                    description: format!("lab release {}", release.name),
                    meta: Vec::new(),
                };
                rustiot_image::bundle(&lab.toolbox, &image, &request, &path, self.progress())?;
            }
            Ok(path.clone())
        })
    }

    /// The disk image of release A with the lab's configuration: what a fresh machine has.
    pub fn base(&self, lab: &Lab, board: &Board) -> Result<PathBuf> {
        self.disk(lab, board, &A, &lab.config()?)
    }

    /// The disk image of `release` with `config` as its `rustiot.toml`.
    pub fn disk(&self, lab: &Lab, board: &Board, release: &Release, config: &str) -> Result<PathBuf> {
        let image = self.image(lab, board, release)?;
        let key = format!("{}{config}", identity(&image));
        let path = self.path(lab, board, release.name, &key, "img")?;
        self.once(&path.to_string_lossy(), || {
            if !path.is_file() {
                let request = DiskRequest { config: Some(config.into()), both_slots: false };
                rustiot_image::disk(&lab.context, &lab.toolbox, &image, &request, &path, self.progress())?;
            }
            Ok(path.clone())
        })
    }

    /// A toolbox with a registry and what pushes to it.
    pub fn registry_tools(&self, lab: &Lab) -> Result<Toolbox> {
        self.once("registry", || {
            Ok(rustiot_image::registry_tools(&lab.context, &lab.toolbox, self.progress())?)
        })
    }

    /// A machine with release A, provisioned, healthy and settled, frozen.
    pub fn healthy(&self, lab: &Lab, board: &Board) -> Result<Snapshot> {
        let base = self.base(lab, board)?;
        let spec = lab.spec(board)?;
        let kind = format!("{:?}{:?}{}{}", board.qemu, spec.firmware, spec.accel, base.display());
        self.snapshot(lab, board, "healthy", &kind, || {
            let scratch = lab.scratch("snapshot")?;
            let disk = Disk::overlay(&lab.tools(), &base, &scratch.file("disk.qcow2"), Some(MEDIUM))?;
            let machine = Off::new(spec, disk, scratch)?.power_on()?;
            settle(&machine).with_context(|| {
                let logs = lab.test_logs().join(&board.name).join("first-boot");
                let kept = std::fs::create_dir_all(&logs).is_ok()
                    && std::fs::copy(machine.dir().join("serial.log"), logs.join("serial.log")).is_ok();
                let place = if kept { logs.display().to_string() } else { "lost".into() };
                format!("release A never became healthy on {} (log: {place})", board.name)
            })?;
            Ok(machine)
        })
    }

    /// A machine with release A that has installed B and waits for the word to restart into it; frozen.
    pub fn installed(&self, lab: &Lab, board: &Board) -> Result<Snapshot> {
        let (healthy, bundle) = (self.healthy(lab, board)?, self.bundle(lab, board, &B)?);
        let kind = format!("{}{}", healthy.disk().display(), bundle.display());
        self.snapshot(lab, board, "installed", &kind, || {
            let www = lab.scratch("www")?;
            std::os::unix::fs::symlink(&bundle, www.file("b.raucb")).context("cannot link a bundle")?;
            let server = FileServer::start(www.path())?;
            let machine = healthy.restore(lab.scratch("snapshot")?)?;
            let install = format!("rustiot update install --hold reboot {}", server.guest_url("b.raucb"));
            let output = machine.run(&install, HEALTHY)?;
            ensure!(output.ok(), "the install ended with {}: {}", output.status, output.stderr);
            machine.sh("sync")?;
            Ok(machine)
        })
    }

    /// A machine that went from A to B: both slots hold a release, B is committed; frozen.
    pub fn updated(&self, lab: &Lab, board: &Board) -> Result<Snapshot> {
        let installed = self.installed(lab, board)?;
        self.snapshot(lab, board, "updated", &installed.disk().to_string_lossy(), || {
            let machine = installed.restore(lab.scratch("snapshot")?)?;
            let before = machine.boot()?;
            machine.start("rustiot update reboot", COMMAND)?;
            machine.wait_next_healthy(&before)?;
            settle(&machine)?;
            Ok(machine)
        })
    }

    /// The snapshot `name` of what `key` tells; `make` brings a machine there when there is none.
    fn snapshot(
        &self,
        lab: &Lab,
        board: &Board,
        name: &str,
        key: &str,
        make: impl FnOnce() -> Result<testbed::Machine>,
    ) -> Result<Snapshot> {
        let dir = self.path(lab, board, name, key, "snapshot")?;
        self.once(&dir.to_string_lossy(), || match Snapshot::open(lab.spec(board)?, &dir) {
            Some(snapshot) => Ok(snapshot),
            None => Ok(make()?.save(&dir)?),
        })
    }

    /// `cache/lab/<board>/<name>-<hash>.<kind>`.
    fn path(&self, lab: &Lab, board: &Board, name: &str, key: &str, kind: &str) -> Result<PathBuf> {
        let dir = lab.context.cache().join("lab").join(&board.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let path = dir.join(format!("{name}-{:016x}.{kind}", hasher.finish()));
        forget_old(&dir, &format!("{name}-"), &format!(".{kind}"), &path);
        // A bundle has its list of packages beside it.
        forget_old(&dir, &format!("{name}-"), ".spdx.json", &path.with_extension("spdx.json"));
        Ok(path)
    }

    /// Runs `make` while no other thread does for the same `name`. What failed once is not tried
    /// again: a machine that never gets healthy would cost every test the whole wait.
    fn once<T>(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let lock = {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(made.entry(name.to_string()).or_default())
        };
        let mut failed = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &*failed {
            bail!("as before: {why}");
        }
        make().inspect_err(|error| *failed = Some(format!("{error:#}")))
    }
}

/// Makes a repository without a release at `dir`, with keys of its own.
pub(crate) fn empty_repository(dir: &Path) -> Result<()> {
    // Devices of the lab have the bundle itself for the other way: it need not be compressed.
    let settings = Settings { full_way: false, bundle_way: true, ..Settings::default() };
    drop(Repository::init(dir, settings, now())?);
    Ok(())
}

/// Removes what earlier inputs made, when it is old: a cache must not fill the disk. What cannot be
/// removed is left for the next time.
fn forget_old(dir: &Path, prefix: &str, suffix: &str, keep: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let ours = name.to_str().is_some_and(|n| n.starts_with(prefix) && n.ends_with(suffix));
        let made = entry.metadata().and_then(|meta| meta.modified()).ok();
        let old = made.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > KEEP_FOR);
        if ours && old && path != keep {
            let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn settle(machine: &testbed::Machine) -> Result<()> {
    machine.wait_healthy()?;
    machine.wait_settled()?;
    // What the guest still holds back would be lost with each copy that is cut off.
    machine.sh("sync")?;
    Ok(())
}

/// What tells one image from another.
fn identity(image: &Image) -> String {
    format!("{} {}", image.boot.display(), image.root.display())
}

fn make_parent(file: &Path) -> Result<()> {
    let Some(dir) = file.parent() else { return Ok(()) };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// Builds a static program for `board` of the file `source` at `to`.
pub(crate) fn compile(lab: &Lab, board: &Board, source: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    let compiler = match board.arch {
        Arch::Amd64 => "gcc".to_owned(),
        foreign => format!("{}-gcc", foreign.multiarch()),
    };
    let mut gcc = lab.toolbox.command(&compiler);
    let output = gcc.args(["-Wall", "-Werror", "-Os", "-static", "-s", "-o"]).args([to, source]).output();
    let output = output.with_context(|| format!("cannot run {compiler}"))?;
    ensure!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// `bytes` of noise, the same for the same seed.
fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let mut random = Random(hasher.finish());
    let mut noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    noise.truncate(bytes);
    noise
}

fn place(root: &Path, file: &File) -> Result<()> {
    let (File::Text(path, _)
    | File::Program(path, _)
    | File::Noise(path, _)
    | File::Link(path, _)
    | File::Built(path, _)) = file;
    let target = root.join(path);
    make_parent(&target)?;
    let made = match file {
        File::Built(_, source) => bail!("{source} must be compiled"),
        File::Text(_, text) => std::fs::write(&target, text),
        File::Noise(path, bytes) => std::fs::write(&target, noise(path, *bytes)),
        File::Link(_, to) => std::os::unix::fs::symlink(to, &target),
        File::Program(_, text) => std::fs::write(&target, text)
            .and_then(|()| std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755))),
    };
    made.with_context(|| format!("cannot make {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_release_are_laid_out() {
        let dir = tempfile::tempdir().unwrap();
        place(dir.path(), &File::Text("usr/lib/a.conf", "x")).unwrap();
        place(dir.path(), &File::Program("usr/bin/p", "#!/bin/sh\n")).unwrap();
        place(dir.path(), &File::Link("usr/lib/systemd/system/sshd.service", "/dev/null")).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("usr/lib/a.conf")).unwrap(), "x");
        let mode = std::fs::metadata(dir.path().join("usr/bin/p")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        let link = dir.path().join("usr/lib/systemd/system/sshd.service");
        assert_eq!(std::fs::read_link(link).unwrap(), Path::new("/dev/null"));
    }

    #[test]
    fn only_old_fixtures_of_the_same_kind_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let long_ago = std::time::SystemTime::now() - KEEP_FOR * 2;
        for name in ["a-1.img", "a-2.img", "a-3.raucb", "ab-1.img"] {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        std::fs::write(dir.path().join("a-4.img"), "young").unwrap();
        forget_old(dir.path(), "a-", ".img", &dir.path().join("a-1.img"));
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a-1.img", "a-3.raucb", "a-4.img", "ab-1.img"]);
    }

    #[test]
    fn what_failed_once_fails_at_once() {
        let fixtures = Fixtures::new(false);
        assert!(fixtures.once("x", || -> Result<()> { bail!("no boot") }).is_err());
        let error = fixtures.once("x", || Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "as before: no boot");
        assert!(fixtures.once("y", || Ok(())).is_ok());
    }

    #[test]
    fn two_threads_build_the_same_thing_one_after_the_other() {
        let fixtures = Fixtures::new(false);
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    fixtures.once("x", || {
                        let before = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(before, 0);
                        Ok(())
                    })
                });
            }
        });
    }
}
