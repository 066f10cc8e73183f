//! A real write and read back on a file system, past the page cache where it can be told so.
//!
//! Full is not broken: it is a warning, because no release and no reboot mends it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use nix::sys::statvfs::statvfs;

use crate::check::Verdict;

const BLOCK: usize = 4096;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Writes `file` below the mount point `mount` and reads it back. Blocks as long as the disk does.
#[must_use]
pub fn write_and_read(mount: &Path, file: &str, number: u64) -> Verdict {
    if !is_mounted(mount) {
        return Verdict::Fail(format!("{} is not mounted", mount.display()));
    }
    verdict(mount, probe(&mount.join(file), number))
}

fn verdict(mount: &Path, result: io::Result<()>) -> Verdict {
    let mount = mount.display();
    match result {
        Ok(()) => Verdict::Pass,
        Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            Verdict::Warn(format!("{mount} is full"))
        }
        Err(e) => Verdict::Fail(format!("{mount}: {e}")),
    }
}

/// Warns when fewer than `bytes` are free on `mount`.
#[must_use]
pub fn free(mount: &Path, bytes: u64) -> Verdict {
    match statvfs(mount) {
        Ok(stat) => {
            #[expect(clippy::useless_conversion, reason = "both are 32 bits wide on 32-bit targets")]
            let free = u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()));
            if free >= bytes {
                Verdict::Pass
            } else {
                let (free, wanted) = (free / (1 << 20), bytes / (1 << 20));
                Verdict::Warn(format!("{} has {free} MiB free, {wanted} MiB are wanted", mount.display()))
            }
        }
        Err(error) => Verdict::Warn(format!("{}: {error}", mount.display())),
    }
}

/// Whether `path` is the root of a mount.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev());
    matches!((device(path), device(&path.join(".."))), (Ok(own), Ok(parent)) if own != parent)
}

fn probe(path: &Path, number: u64) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)
    };
    let mut file = match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0)?,
        result => result?,
    };
    let mut block = Block([0; BLOCK]);
    for (byte, value) in block.0.iter_mut().zip(number.to_le_bytes()) {
        *byte = value;
    }
    file.write_all(&block.0)?;
    file.sync_data()?;
    file.rewind()?;
    let mut back = Block([0; BLOCK]);
    file.read_exact(&mut back.0)?;
    if back.0 == block.0 {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "what was written is not what is read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        probe(&dir.path().join("health/probe"), 1).unwrap();
        probe(&dir.path().join("health/probe"), 2).unwrap();
        assert_eq!(fs::metadata(dir.path().join("health/probe")).unwrap().len(), 4096);
        assert!(probe(dir.path(), 1).is_err());
    }

    #[test]
    fn full_is_a_warning_and_broken_a_failure() {
        let mount = Path::new("/state");
        assert_eq!(verdict(mount, Ok(())), Verdict::Pass);
        let full = verdict(mount, Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        assert_eq!(full, Verdict::Warn("/state is full".into()));
        for errno in [libc::EIO, libc::EROFS] {
            let verdict = verdict(mount, Err(io::Error::from_raw_os_error(errno)));
            assert!(matches!(verdict, Verdict::Fail(_)), "{verdict:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(
            matches!(write_and_read(dir.path(), "x", 1), Verdict::Fail(why) if why.contains("not mounted"))
        );
        assert!(is_mounted(Path::new("/proc")));
    }

    #[test]
    fn little_room_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(free(dir.path(), 1), Verdict::Pass);
        assert!(matches!(free(dir.path(), u64::MAX), Verdict::Warn(_)));
        assert!(matches!(free(Path::new("/nonexistent"), 1), Verdict::Warn(_)));
    }
}
