//! The two files of a download and the few operations on them, as a seam: real files here, a model that loses power in
//! tests.
//!
//! Nothing is durable before [`Medium::sync`]. Called by the cache.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustiot_durable::Dir;

/// One of the two files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    /// The bytes of the download, where they belong; zeros where there are none yet.
    Data,
    /// What of them counts.
    Journal,
}

/// The two files of a download.
pub trait Medium: Send + 'static {
    /// Writes at an offset. Not durable.
    ///
    /// # Errors
    /// Those of the medium.
    fn write_at(&mut self, which: Which, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads as many bytes as there are, up to the buffer's length.
    ///
    /// # Errors
    /// Those of the medium.
    fn read_at(&self, which: Which, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// How long the file is, bytes.
    ///
    /// # Errors
    /// Those of the medium.
    fn len(&self, which: Which) -> io::Result<u64>;

    /// Cuts the file. Not durable.
    ///
    /// # Errors
    /// Those of the medium.
    fn truncate(&mut self, which: Which, len: u64) -> io::Result<()>;

    /// Takes the room that the download will need, so that each part of it costs the medium no more than itself, and a
    /// medium that is full says so before anything came. Its length may be that from now on, its contents zeros.
    ///
    /// # Errors
    /// Those of the medium, and part of the room may be taken then; a file system that knows no such thing is none.
    fn reserve(&mut self, len: u64) -> io::Result<()>;

    /// Makes contents and length durable.
    ///
    /// # Errors
    /// Those of the medium.
    fn sync(&mut self, which: Which) -> io::Result<()>;
}

/// Two files of a directory.
#[derive(Debug)]
pub struct Files {
    data: File,
    journal: File,
}

/// Names of the two files.
const DATA: &str = "download.data";
const JOURNAL: &str = "download.journal";

impl Files {
    /// Opens or creates the two files in `dir`, which is created as well; names are durable when it returns.
    ///
    /// # Errors
    /// The path and why.
    pub fn open(dir: &Path) -> Result<Files, (PathBuf, io::Error)> {
        Dir::new(dir).create().map_err(|error| (dir.to_owned(), error))?;
        let open = |name| {
            let path = dir.join(name);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            file.map_err(|error| (path, error))
        };
        let files = Files { data: open(DATA)?, journal: open(JOURNAL)? };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| (dir.to_owned(), error))?;
        Ok(files)
    }

    /// Removes what [`Files::open`] made in `dir`; nothing there is fine.
    ///
    /// # Errors
    /// The path and why.
    pub fn remove(dir: &Path) -> Result<(), (PathBuf, io::Error)> {
        // The journal first: without it the data is nothing.
        for name in [JOURNAL, DATA] {
            let path = dir.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err((path, error)),
                _ => {}
            }
        }
        match File::open(dir).and_then(|dir| dir.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err((dir.to_owned(), error)),
            _ => Ok(()),
        }
    }

    fn file(&self, which: Which) -> &File {
        match which {
            Which::Data => &self.data,
            Which::Journal => &self.journal,
        }
    }
}

impl Medium for Files {
    fn write_at(&mut self, which: Which, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(which).write_all_at(bytes, offset)
    }

    fn read_at(&self, which: Which, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        read_some(self.file(which), offset, buf)
    }

    fn len(&self, which: Which) -> io::Result<u64> {
        Ok(self.file(which).metadata()?.len())
    }

    fn truncate(&mut self, which: Which, len: u64) -> io::Result<()> {
        self.file(which).set_len(len)
    }

    fn reserve(&mut self, len: u64) -> io::Result<()> {
        use nix::errno::Errno;
        let Ok(len) = i64::try_from(len) else { return Err(io::ErrorKind::FileTooLarge.into()) };
        match nix::fcntl::fallocate(&self.data, nix::fcntl::FallocateFlags::empty(), 0, len) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(Errno::EINVAL) if len == 0 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&mut self, which: Which) -> io::Result<()> {
        // Contents and length, not times.
        self.file(which).sync_data()
    }
}

fn read_some(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
pub(crate) mod model {
    //! Two files in memory that lose power during the n-th operation.

    use super::*;

    #[derive(Clone, Default)]
    struct One {
        now: Vec<u8>,
        durable: Vec<u8>,
        /// Writes since the last sync, in order.
        pending: Vec<Write>,
    }

    #[derive(Clone)]
    enum Write {
        At(usize, Vec<u8>),
        Cut(usize),
    }

    impl Write {
        fn apply(&self, to: &mut Vec<u8>, bytes: usize) {
            match self {
                Write::At(at, data) => {
                    let data = &data[..bytes.min(data.len())];
                    to.resize(to.len().max(at + data.len()), 0);
                    to[*at..at + data.len()].copy_from_slice(data);
                }
                Write::Cut(len) => to.resize(*len, 0),
            }
        }
    }

    #[derive(Clone, Default)]
    pub struct Model {
        data: One,
        journal: One,
        pub operations: usize,
        pub cut_after: Option<usize>,
        /// A sync that does nothing, to see that the tests would notice.
        pub lies: Option<Which>,
        /// Bytes that there are for the download; none: as many as it wants.
        pub room: Option<u64>,
    }

    impl Model {
        fn one(&mut self, which: Which) -> &mut One {
            match which {
                Which::Data => &mut self.data,
                Which::Journal => &mut self.journal,
            }
        }

        fn step(&mut self) -> io::Result<()> {
            if self.cut_after.is_some_and(|cut| self.operations >= cut) {
                return Err(io::Error::other("no power"));
            }
            self.operations += 1;
            Ok(())
        }

        /// Power is back. Of what was not synced, the seed says what stays.
        pub fn remount(&mut self, seed: u64) {
            for (number, one) in [&mut self.data, &mut self.journal].into_iter().enumerate() {
                let mut state = one.durable.clone();
                for (at, write) in one.pending.iter().enumerate() {
                    match (seed >> ((at + number * 7) % 31)) & 3 {
                        0 => {}
                        1 => write.apply(&mut state, 3),
                        _ => write.apply(&mut state, usize::MAX),
                    }
                }
                *one = One { now: state.clone(), durable: state, pending: vec![] };
            }
            self.cut_after = None;
        }
    }

    impl Medium for Model {
        fn write_at(&mut self, which: Which, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let write = Write::At(offset as usize, bytes.to_vec());
            let failed = self.step().err();
            // A write that the power cut interrupts may have begun.
            let one = self.one(which);
            write.apply(&mut one.now, usize::MAX);
            one.pending.push(write);
            failed.map_or(Ok(()), Err)
        }

        fn read_at(&self, which: Which, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            let one = if which == Which::Data { &self.data } else { &self.journal };
            let rest = one.now.get(offset as usize..).unwrap_or_default();
            let count = rest.len().min(buf.len());
            buf[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }

        fn len(&self, which: Which) -> io::Result<u64> {
            Ok(if which == Which::Data { &self.data } else { &self.journal }.now.len() as u64)
        }

        fn truncate(&mut self, which: Which, len: u64) -> io::Result<()> {
            self.step()?;
            let one = self.one(which);
            one.now.resize(len as usize, 0);
            one.pending.push(Write::Cut(len as usize));
            Ok(())
        }

        fn reserve(&mut self, len: u64) -> io::Result<()> {
            // As ext4 does: what there is is taken, also where it is not enough.
            let found = self.room.map_or(len, |room| room.min(len));
            self.truncate(Which::Data, found)?;
            if found < len { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }

        fn sync(&mut self, which: Which) -> io::Result<()> {
            self.step()?;
            if self.lies == Some(which) {
                return Ok(());
            }
            let one = self.one(which);
            one.durable = one.now.clone();
            one.pending.clear();
            Ok(())
        }
    }

    impl Medium for std::sync::Arc<std::sync::Mutex<Model>> {
        fn write_at(&mut self, which: Which, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.lock().unwrap().write_at(which, offset, bytes)
        }

        fn read_at(&self, which: Which, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            self.lock().unwrap().read_at(which, offset, buf)
        }

        fn len(&self, which: Which) -> io::Result<u64> {
            self.lock().unwrap().len(which)
        }

        fn truncate(&mut self, which: Which, len: u64) -> io::Result<()> {
            self.lock().unwrap().truncate(which, len)
        }

        fn reserve(&mut self, len: u64) -> io::Result<()> {
            self.lock().unwrap().reserve(len)
        }

        fn sync(&mut self, which: Which) -> io::Result<()> {
            self.lock().unwrap().sync(which)
        }
    }
}
