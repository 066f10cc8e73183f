//! The few file operations that durable writes are made of, as a seam: a real directory here, a model disk in tests.
//!
//! Never reads or writes outside the directory it was given. Called by [`crate::replace`] and [`crate::Ledger`].

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Files of one directory. Nothing is durable before [`Storage::sync`] (contents) and [`Storage::sync_dir`] (names).
pub trait Storage {
    /// Contents of the file, at most `max` bytes of it; `None` if there is no such file.
    ///
    /// # Errors
    /// Those of the medium.
    fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>>;

    /// Creates or truncates the file and writes `bytes`. `mode` holds for a file that is created. Not durable.
    ///
    /// # Errors
    /// Those of the medium; the file's contents are undefined then.
    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()>;

    /// Writes `bytes` over the beginning of the file, which must exist and keeps its length if it is longer: needs no
    /// space. Not durable.
    ///
    /// # Errors
    /// Those of the medium; the file's contents are undefined then.
    fn overwrite(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file's contents durable.
    ///
    /// # Errors
    /// Those of the medium; the contents may be lost then.
    fn sync(&self, name: &str) -> io::Result<()>;

    /// Gives the file another name, replacing what had it. Not durable.
    ///
    /// # Errors
    /// Those of the medium.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes the file; it need not exist. Not durable.
    ///
    /// # Errors
    /// Those of the medium.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names in the directory durable.
    ///
    /// # Errors
    /// Those of the medium.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A directory of the real file system.
#[derive(Clone, Debug)]
pub struct Dir(PathBuf);

impl Dir {
    /// The directory at `path`, which need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Dir {
        Dir(path.into())
    }

    /// Creates the directory and its parents, durably.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(&self) -> io::Result<()> {
        if self.0.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&self.0)?;
        match self.0.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Storage for Dir {
    fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.0.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(u64::try_from(max).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(self.0.join(name))?
            .write_all(bytes)
    }

    fn overwrite(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.0.join(name))?.write_all_at(bytes, 0)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.0.join(name))?.sync_all()
    }

    #[expect(clippy::disallowed_methods, reason = "this crate is where renames are made durable")]
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}
