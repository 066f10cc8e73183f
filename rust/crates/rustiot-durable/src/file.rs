//! Replacing a whole file: whoever looks, at any time and after any power cut, finds the old contents or the new.
//!
//! A file has one writer: the temporary name is fixed, so that a later write cleans up after one that was cut off.
//! Called by everything that keeps a file.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::storage::{Dir, Storage};

/// A file could not be replaced. The old contents are still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub struct Error {
    /// What failed.
    pub step: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Replaces the file at `path` (mode 0644 less umask), durably: it returns after the medium has it.
///
/// # Errors
/// [`Error`]; the old contents stay.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, bytes, 0o644, true)
}

/// Like [`atomic_write`], readable by its owner only (mode 0600).
///
/// # Errors
/// [`Error`]; the old contents stay.
pub fn atomic_write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, bytes, 0o600, true)
}

/// Replaces the file at `path` (mode 0644 less umask) without waiting for a medium: for status files below `/run`.
///
/// # Errors
/// [`Error`]; the old contents stay.
pub fn atomic_write_volatile(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, bytes, 0o644, false)
}

fn write(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> Result<(), Error> {
    let fail = |step, source| Error { step, path: path.to_owned(), source };
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| fail("name", io::Error::from(io::ErrorKind::InvalidInput)))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    replace(&Dir::new(parent), name, bytes, mode, durable).map_err(|(step, source)| fail(step, source))
}

/// Replaces the file `name` in `storage`; with `durable`, it returns after the medium has it.
///
/// # Errors
/// The step that failed and why. The old contents stay, unless only the last step (`sync the directory of`) failed:
/// then the new ones are there and may be lost in a power cut.
pub fn replace(
    storage: &impl Storage,
    name: &str,
    bytes: &[u8],
    mode: u32,
    durable: bool,
) -> Result<(), (&'static str, io::Error)> {
    let temporary = format!(".{name}.tmp");
    let prepare = || {
        // A leftover of a write that was cut off may have another mode.
        storage.remove(&temporary).map_err(|error| ("clean up before writing", error))?;
        storage.write(&temporary, bytes, mode).map_err(|error| ("write", error))?;
        if durable {
            storage.sync(&temporary).map_err(|error| ("sync", error))?;
        }
        storage.rename(&temporary, name).map_err(|error| ("replace", error))
    };
    prepare().inspect_err(|_| {
        // The first error is the one that counts; the next write cleans up as well.
        let _ = storage.remove(&temporary);
    })?;
    if durable {
        storage.sync_dir().map_err(|error| ("sync the directory of", error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::model::{ModelDisk, Remount};

    #[test]
    fn replaces_and_leaves_nothing_else_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["one", "", "three"] {
            atomic_write(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        atomic_write_volatile(&path, b"four").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"four");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_private_file_is_private_even_over_a_public_leftover() {
        let dir = tempfile::tempdir().unwrap();
        atomic_write(&dir.path().join(".key.tmp"), b"leftover").unwrap();
        let path = dir.path().join("key");
        atomic_write_private(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failure_keeps_the_old_file_and_says_what_and_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("by")).unwrap();
        let error = atomic_write(&path, b"new").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot replace {}", path.display()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        assert!(atomic_write(Path::new("/"), b"").is_err());
        assert!(atomic_write(&dir.path().join("missing/file"), b"").is_err());
    }

    /// For every operation at which the power may go, and every way in which the medium may come back.
    #[test]
    fn power_cut_at_any_operation_leaves_old_or_new() {
        let prepare = || {
            let disk = ModelDisk::default();
            replace(&disk, "file", b"the old contents", 0o644, true).unwrap();
            disk
        };
        let total = {
            let disk = prepare();
            let before = disk.operations();
            replace(&disk, "file", b"new", 0o644, true).unwrap();
            disk.operations() - before
        };
        for cut in 0..=total {
            for remount in Remount::some(64) {
                let disk = prepare();
                disk.cut_after(cut);
                let result = replace(&disk, "file", b"new", 0o644, true);
                assert_eq!(result.is_ok(), cut == total);
                disk.remount(remount);
                let found = disk.read("file", 100).unwrap().unwrap();
                let new = found == b"new";
                assert!(new || found == b"the old contents", "cut {cut}, {remount:?}: {found:?}");
                assert!(new || result.is_err(), "cut {cut}, {remount:?}: reported as written, but lost");
                // And the next write works, whatever was left behind.
                replace(&disk, "file", b"next", 0o644, true).unwrap();
                disk.remount(Remount::Lost);
                assert_eq!(disk.read("file", 100).unwrap().unwrap(), b"next");
                assert_eq!(disk.names(), ["file"]);
            }
        }
    }
}
