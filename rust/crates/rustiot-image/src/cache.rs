//! Build results under the key of their inputs. A result is built in a directory of its own and then renamed into
//! place: what is there is complete, and a build that was cut short leaves nothing but a directory that the next one
//! removes.

use crate::context::{Context, Progress};
use crate::error::{At, Error, refused};
use rustiot_board::Size;
use rustiot_scratch::Scratch;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How many results of a kind stay, and for how long one stays after its last use whatever their number.
const KEEP: usize = 40;
const KEEP_FOR: Duration = Duration::from_secs(2 * 3600);

/// Collects the inputs of a build step.
pub(crate) struct Key(Sha256);

impl Key {
    /// `recipe` names the step and changes whenever its code makes other results from the same inputs.
    pub(crate) fn new(recipe: &str) -> Self {
        Key(Sha256::new()).text(recipe)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// A file's content.
    pub(crate) fn file(self, path: &Path) -> Result<Self, Error> {
        let content = fs::read(path).at("read", path)?;
        Ok(self.bytes(&content))
    }

    /// Everything below `dir`: names, kinds, permissions, contents.
    pub(crate) fn tree(self, dir: &Path) -> Result<Self, Error> {
        let mut key = self;
        for (name, path) in sorted(dir)? {
            let meta = fs::symlink_metadata(&path).at("read", &path)?;
            key = key.bytes(name.as_bytes()).bytes(&meta.permissions().mode().to_le_bytes());
            key = if meta.is_symlink() {
                let target = fs::read_link(&path).at("read", &path)?;
                key.bytes(target.as_os_str().as_bytes())
            } else if meta.is_dir() {
                key.tree(&path)?
            } else {
                key.file(&path)?
            };
        }
        Ok(key.text("end"))
    }

    pub(crate) fn finish(self) -> String {
        let hash = self.0.finalize();
        hash.iter().take(16).map(|b| format!("{b:02x}")).collect()
    }
}

/// The entries of a directory by name.
pub(crate) fn sorted(dir: &Path) -> Result<Vec<(std::ffi::OsString, PathBuf)>, Error> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        entries.push((entry.file_name(), entry.path()));
    }
    entries.sort();
    Ok(entries)
}

/// The result of the step `kind` for `key`: from the cache, or made by `build` in the directory that it is given.
/// Two processes that want the same result build it once.
pub(crate) fn stage(
    ctx: &Context,
    progress: &dyn Progress,
    (kind, title, room): (&str, &str, u64),
    key: &str,
    build: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let shelf = ctx.cache().join(kind);
    fs::create_dir_all(&shelf).at("create", &shelf)?;
    let done = shelf.join(key);
    let started = Instant::now();
    let lock_path = shelf.join(format!(".{key}.lock"));
    let lock = File::create(&lock_path).at("create", &lock_path)?;
    lock.lock().at("lock", &lock_path)?;
    if done.is_dir() {
        // The time of the last use decides what is thrown away first; a cache on a read-only medium still serves.
        if let Ok(dir) = File::open(&done) {
            let _ = dir.set_modified(SystemTime::now());
        }
        progress.end(title, started.elapsed(), true);
        return Ok(done);
    }
    progress.begin(title);
    let work = shelf.join(format!(".{key}.work"));
    remove(&work)?;
    require_room(&shelf, room, title)?;
    let work = Scratch::adopt(work)?;
    build(work.path()).inspect_err(|_| progress.gave_up(title))?;
    publish(work.path(), &done)?;
    drop(work);
    prune(&shelf, &done)?;
    progress.end(title, started.elapsed(), false);
    Ok(done)
}

/// Says before a long build what would end it: less than `room` bytes free where it puts its result.
fn require_room(shelf: &Path, room: u64, title: &str) -> Result<(), Error> {
    let stat = nix::sys::statvfs::statvfs(shelf)
        .map_err(std::io::Error::from)
        .at("read the free space of", shelf)?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free >= room {
        return Ok(());
    }
    let (needs, has) = (Size::from_bytes(room), Size::from_bytes(free));
    Err(refused(
        format!("{title} needs {needs} of free space, {} has {has}", shelf.display()),
        "remove something, or name another place for the cache in RUSTIOT_CACHE",
    ))
}

#[expect(clippy::disallowed_methods, reason = "a cache: what a power cut takes is built again")]
fn publish(work: &Path, done: &Path) -> Result<(), Error> {
    fs::rename(work, done).at("publish", done)
}

fn prune(shelf: &Path, keep: &Path) -> Result<(), Error> {
    let mut old = Vec::new();
    for (name, path) in sorted(shelf)? {
        if let Some(key) = name.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(".work")) {
            // Left by a build that was cut short, unless its lock is held.
            let lock = shelf.join(format!(".{key}.lock"));
            let lock = File::create(&lock).at("create", &lock)?;
            if lock.try_lock().is_ok() {
                remove(&path)?;
            }
            continue;
        }
        let meta = fs::symlink_metadata(&path).at("read", &path)?;
        if meta.is_dir() && path != keep && !name.as_bytes().starts_with(b".") {
            old.push((meta.modified().at("read", &path)?, path));
        }
    }
    old.sort();
    let surplus = old.len().saturating_sub(KEEP.saturating_sub(1));
    for (used, path) in old.into_iter().take(surplus) {
        if used.elapsed().is_ok_and(|age| age > KEEP_FOR) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a tree that may not exist.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).at("remove", path),
        Ok(_) => fs::remove_file(path).at("remove", path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).at("remove", path),
    }
}

/// Writes a build product. Not durable: a build that is cut short starts over.
#[expect(clippy::disallowed_methods, reason = "a build product: a build that is cut short starts over")]
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
    fs::write(path, bytes).at("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    fn context(dir: &Path) -> Context {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        Context::with_cache(&repo, dir).unwrap()
    }

    #[test]
    fn a_result_is_built_once_and_a_failed_build_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        let ctx = context(dir.path());
        let fails = stage(&ctx, &Silent, ("kind", "title", 0), "k", |work| {
            write(&work.join("half"), "x")?;
            Err(crate::error::refused("no", "yes"))
        });
        assert!(fails.is_err());
        assert!(!dir.path().join("kind/k").exists() && !dir.path().join("kind/.k.work").exists());
        // As one leaves it that was killed hard.
        fs::create_dir(dir.path().join("kind/.k.work")).unwrap();
        write(&dir.path().join("kind/.k.work/half"), "x").unwrap();
        let made = stage(&ctx, &Silent, ("kind", "title", 0), "k", |work| {
            assert!(!work.join("half").exists(), "leftovers are gone");
            write(&work.join("whole"), "x")
        });
        let made = made.unwrap();
        assert!(made.join("whole").is_file());
        let again = stage(&ctx, &Silent, ("kind", "title", 0), "k", |_| panic!("built twice")).unwrap();
        assert_eq!(made, again);
    }

    #[test]
    fn a_build_that_finds_no_room_is_refused_before_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let ctx = context(dir.path());
        let error =
            stage(&ctx, &Silent, ("kind", "a big thing", u64::MAX), "k", |_| panic!("began")).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Refused { .. }), "{text}");
        for words in ["a big thing needs", "free space", &dir.path().display().to_string(), "RUSTIOT_CACHE"] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn leftovers_of_a_build_that_was_cut_short_go_and_those_of_a_running_one_stay() {
        let dir = tempfile::tempdir().unwrap();
        let ctx = context(dir.path());
        let shelf = dir.path().join("kind");
        for key in ["cut", "running"] {
            fs::create_dir_all(shelf.join(format!(".{key}.work"))).unwrap();
        }
        let lock = File::create(shelf.join(".running.lock")).unwrap();
        lock.lock().unwrap();
        stage(&ctx, &Silent, ("kind", "title", 0), "k", |_| Ok(())).unwrap();
        assert!(!shelf.join(".cut.work").exists());
        assert!(shelf.join(".running.work").exists());
    }

    #[test]
    fn a_key_sees_names_contents_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        let key = || Key::new("t").tree(dir.path()).unwrap().finish();
        write(&file, "1").unwrap();
        let first = key();
        assert_eq!(first, key());
        write(&file, "2").unwrap();
        let second = key();
        assert_ne!(first, second);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(second, key());
        write(&dir.path().join("b"), "").unwrap();
        assert_ne!(first, key());
    }

    #[test]
    fn key_parts_do_not_run_together() {
        assert_ne!(Key::new("t").text("ab").text("c").finish(), Key::new("t").text("a").text("bc").finish());
    }
}
