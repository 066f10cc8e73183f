//! Whether the disk still takes writes: a real one, every [`EVERY`], past the page cache and down to the medium.
//!
//! The probe runs in a thread of its own, because a stalled disk never answers; [`Patience`] decides, from outside,
//! whether a probe that takes long is stalled or only waits behind others. An error is an answer: only silence counts
//! here (the health checks judge errors). Called by [`crate::service`].
//!
//! Wear: one 4 KiB block is overwritten in place with `fdatasync`, no metadata with it. At one in 30 s that is 11.8 MB
//! a day; even if the medium rewrote a hundred times as much, a card of 8 GB that endures 1000 rewrites would last
//! 18 years of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;

/// How often the disk is probed.
pub const EVERY: Duration = Duration::from_secs(30);
/// The probe's file below the state directory.
pub const FILE: &str = "watchdog/pulse";
/// A probe may wait behind other writers for so many timeouts, as long as those get through.
pub const SLOW_TIMEOUTS: u32 = 4;

const BLOCK: usize = 4096;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The block came back as it was written.
    Good,
    /// Nothing is mounted there (yet).
    Absent,
}

/// Writes `number` to the probe's block below `state`, waits for the medium, and reads it back from there.
///
/// # Errors
/// The disk's answer, or `InvalidData` if another content came back.
pub fn probe(state: &Path, number: u64) -> io::Result<Found> {
    if !mounted(state) {
        return Ok(Found::Absent);
    }
    write_and_read(&state.join(FILE), number)?;
    Ok(Found::Good)
}

/// Whether `path` is the root of a mount.
fn mounted(path: &Path) -> bool {
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev());
    match (device(path), device(&path.join(".."))) {
        (Ok(own), Ok(parent)) => own != parent,
        _ => false,
    }
}

fn write_and_read(path: &Path, number: u64) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = open(path)?;
    let mut block = Block([0; BLOCK]);
    for (byte, value) in block.0.iter_mut().zip(number.to_le_bytes()) {
        *byte = value;
    }
    file.write_all(&block.0)?;
    file.sync_data()?;
    file.rewind()?;
    let mut back = Block([0; BLOCK]);
    file.read_exact(&mut back.0)?;
    if back.0 == block.0 { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Direct where the file system can, so that the page cache answers neither the write nor the read.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    match options.custom_flags(libc::O_DIRECT | libc::O_CLOEXEC).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            options.custom_flags(libc::O_CLOEXEC).open(path)
        }
        result => result,
    }
}

/// The statistics file of the whole disk that holds `path`.
#[must_use]
pub fn statistics_of(path: &Path) -> Option<PathBuf> {
    let device = fs::metadata(path).ok()?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let base = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let whole = if base.join("partition").exists() { base.join("..") } else { base };
    Some(whole.join("stat"))
}

/// Completed writes and flushes in the text of `/sys/block/<disk>/stat` (Documentation/block/stat.rst).
#[must_use]
pub fn completed_writes(stat: &str) -> Option<u64> {
    let mut fields = stat.split_ascii_whitespace().map(str::parse::<u64>);
    let writes = fields.nth(4)?.ok()?;
    let flushes = fields.nth(10).and_then(Result::ok).unwrap_or(0);
    Some(writes.saturating_add(flushes))
}

/// Tells a stalled disk from a busy one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    last: Option<u64>,
}

impl Patience {
    /// Whether the disk still counts as alive while a probe has been waiting for `waiting`: other writes got through
    /// since the last look, and it has not gone on for too long.
    pub fn busy(&mut self, waiting: Duration, timeout: Duration, writes: Option<u64>) -> bool {
        let advanced = match (self.last, writes) {
            (Some(last), Some(now)) => now > last,
            _ => false,
        };
        self.last = writes.or(self.last);
        advanced && waiting < timeout.saturating_mul(SLOW_TIMEOUTS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn writes_and_reads_the_same_block_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for number in [0, 1, u64::MAX] {
            write_and_read(&path, number).unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 4096, "the file does not grow");
    }

    #[test]
    fn an_error_is_an_answer_and_no_file_system_is_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(FILE)).unwrap();
        assert!(write_and_read(&dir.path().join(FILE), 1).is_err(), "a directory is in the way");
        assert_eq!(probe(dir.path(), 1).unwrap(), Found::Absent, "nothing is mounted there");
        assert!(mounted(Path::new("/proc")));
    }

    #[test]
    fn a_busy_disk_is_not_a_stalled_one() {
        // Read works, write hangs: the count of writes stands still.
        let mut stalled = Patience::default();
        assert!((1..20).all(|i| !stalled.busy(S * i * 10, S * 90, Some(7))));
        // Others get through: alive, but not for ever.
        let mut busy = Patience::default();
        let alive: Vec<bool> = (0..40).map(|i| busy.busy(S * 10 * i, S * 90, Some(u64::from(i)))).collect();
        assert!(!alive[0] && alive[1..36].iter().all(|a| *a) && alive[36..].iter().all(|a| !*a));
        // No statistics: silence counts.
        let mut blind = Patience::default();
        assert!((0..5).all(|i| !blind.busy(S * i, S * 90, None)));
    }

    #[test]
    fn reads_the_kernel_s_statistics() {
        let new = "  10 1 80 5 42 3 999 7 0 11 12 0 0 0 0 8 4\n";
        assert_eq!(completed_writes(new), Some(50));
        let old = "10 1 80 5 42 3 999 7 0 11 12";
        assert_eq!(completed_writes(old), Some(42));
        assert_eq!(completed_writes("1 2 3"), None);
    }

    proptest! {
        #[test]
        fn any_statistics_are_read_without_a_panic(text in ".{0,200}") {
            let _ = completed_writes(&text);
        }
    }
}
