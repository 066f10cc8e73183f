//! Writes an image to a card or disk: only what the image holds, read back and compared, and with
//! the partition table last, so that a medium whose writing was cut short is blank instead of half
//! a system; writing it again starts over. Never touches a medium that is in use.

use crate::fail::{Done, Fail, Why};
use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek64};
use serde::Serialize;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{IsTerminal, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes moved at once.
const CHUNK: u64 = 4 << 20;
/// The partition table and what stands before the first partition, and as much at the end, where
/// its backup is: written last.
const HEAD: u64 = 1 << 20;
/// What is blanked at the start of a partition that the image leaves empty, so that an old file
/// system there is not taken for a new one. Past the ext4 superblock and blkid's other signatures.
const BLANK: u64 = 1 << 20;

/// What was done, for `--json`.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Report {
    image: PathBuf,
    device: PathBuf,
    bytes_written: u64,
    bytes_skipped: u64,
    milliseconds: u64,
    verified: bool,
}

/// A stretch of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    start: u64,
    end: u64,
    /// Zeroes to be written whatever the image says: it holds nothing there.
    blank: bool,
}

impl Extent {
    fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// `rustiot flash`.
pub fn run(image: &Path, device: &Path, yes: bool, json: bool) -> Done {
    let source = File::open(image)
        .map_err(|e| Fail::new(Why::Usage, anyhow!(e).context(format!("cannot open {}", image.display()))))?;
    let meta = source.metadata().context("cannot read the image's size")?;
    let size = meta.len();
    if size < HEAD {
        return Err(Fail::usage(format!("{} is no disk image: it is too small", image.display())));
    }
    let target = open(device, &meta)?;
    let extents = plan(&source, image, size)?;
    let written: u64 = extents.iter().map(|extent| extent.len()).sum();
    if !yes {
        confirm(device, written)?;
    }
    // Only a file can still be too small here, and only now may it be changed.
    if (&target).seek(SeekFrom::End(0)).context("no size")? < size {
        target.set_len(size).context("cannot make the file large enough")?;
    }
    let started = Instant::now();
    let bar = progress(written.saturating_mul(2));
    write(&source, &target, size, &extents, &bar)?;
    bar.finish_and_clear();
    let report = Report {
        image: image.into(),
        device: device.into(),
        bytes_written: written,
        bytes_skipped: size.saturating_sub(written),
        milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        verified: true,
    };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        let (done, left) = (mb(report.bytes_written), mb(report.bytes_skipped));
        println!("{}: {done} MB written and read back, {left} MB empty", device.display());
    }
    Ok(())
}

fn mb(bytes: u64) -> u64 {
    bytes / 1_000_000
}

/// Opens the medium if nothing uses it and the image fits; a file grows later. Changes nothing.
fn open(device: &Path, image: &Metadata) -> Result<File, Fail> {
    let (shown, size) = (device.display(), image.len());
    let meta = std::fs::metadata(device)
        .map_err(|e| Fail::new(Why::Usage, anyhow!(e).context(format!("no medium at {shown}"))))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if meta.file_type().is_block_device() {
        let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
        let sys = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        if sys.join("partition").exists() {
            let text = format!("{shown} is one partition; name the whole medium");
            return Err(Fail::usage(text));
        }
        // A loop device over the image is the image; one that holds it is mounted, which is refused below.
        let backing = std::fs::read_to_string(sys.join("loop/backing_file")).unwrap_or_default();
        if std::fs::metadata(backing.trim_end_matches('\n')).is_ok_and(|file| same(&file, image)) {
            return Err(itself(device));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot see mounts")?;
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        if let Some(user) = in_use(&sys, &mounts, &swaps) {
            return Err(Fail::refused(format!("{shown} is in use: {user}; unmount it first")));
        }
        // The kernel refuses this where something has the device that we do not know of.
        options.custom_flags(nix::libc::O_EXCL);
    } else if !meta.is_file() {
        return Err(Fail::usage(format!("{shown} is neither a block device nor a file")));
    } else if same(&meta, image) {
        return Err(itself(device));
    }
    let target = options.open(device).map_err(|e| {
        let why = match e.raw_os_error() {
            Some(nix::libc::EBUSY) => Why::Busy,
            _ => Why::Failed,
        };
        Fail::new(why, anyhow!(e).context(format!("cannot open {shown} for writing")))
    })?;
    let room = (&target).seek(SeekFrom::End(0)).context("no size")?;
    if room < size && meta.file_type().is_block_device() {
        let (room, size) = (mb(room), mb(size));
        return Err(Fail::refused(format!("{shown} has {room} MB; the image needs {size} MB")));
    }
    Ok(target)
}

/// Whether both are one file, whatever their names.
fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn itself(device: &Path) -> Fail {
    Fail::usage(format!("{} is the image itself: name the medium to write it to", device.display()))
}

/// Who uses the disk at `sys` (below `/sys/dev/block`) or one of its partitions.
fn in_use(sys: &Path, mountinfo: &str, swaps: &str) -> Option<String> {
    let mut parts = vec![sys.to_path_buf()];
    let entries = std::fs::read_dir(sys).into_iter().flatten().flatten();
    parts.extend(entries.map(|entry| entry.path()).filter(|path| path.join("partition").exists()));
    for part in parts {
        let number = std::fs::read_to_string(part.join("dev")).unwrap_or_default();
        let number = number.trim();
        if let Some(place) = mounted_at(mountinfo, number) {
            return Some(format!("mounted at {place}"));
        }
        let name = std::fs::canonicalize(&part).ok();
        let name = name.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        let swap = |line: &str| line.split(' ').next() == name.map(|n| format!("/dev/{n}")).as_deref();
        if name.is_some() && swaps.lines().any(swap) {
            return Some("swap space".into());
        }
        let mut holders = std::fs::read_dir(part.join("holders")).into_iter().flatten().flatten();
        if let Some(holder) = holders.next() {
            return Some(format!("part of {}", holder.file_name().to_string_lossy()));
        }
    }
    None
}

/// Where the device `number` (`major:minor`) is mounted (proc(5), mountinfo).
fn mounted_at<'a>(mountinfo: &'a str, number: &str) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        (words.next() == Some(number)).then(|| words.nth(1)).flatten()
    })
}

/// What is to be written: the image's data, and blanks where partitions begin in its holes.
fn plan(source: &File, image: &Path, size: u64) -> Result<Vec<Extent>, Fail> {
    let mut extents = vec![Extent { start: 0, end: HEAD, blank: false }];
    let tail = size.saturating_sub(HEAD).max(HEAD);
    for extent in data(source, size)? {
        let middle = Extent { start: extent.start.max(HEAD), end: extent.end.min(tail), ..extent };
        let end = Extent { start: extent.start.max(tail), ..extent };
        extents.extend([middle, end].into_iter().filter(|part| part.start < part.end));
    }
    let table = gpt::GptConfig::new().writable(false).open(image);
    let table = table
        .map_err(|e| Fail::usage(format!("{} is no disk image: {e} (is it compressed?)", image.display())))?;
    let block = u64::from(*table.logical_block_size());
    let starts = table.partitions().values().map(|part| part.first_lba.saturating_mul(block));
    for start in starts.filter(|start| *start < size) {
        let blank = Extent { start, end: start.saturating_add(BLANK).min(size), blank: true };
        extents.extend(without(blank, &extents));
    }
    extents.sort_by_key(|extent| extent.start);
    Ok(extents)
}

/// The parts of `extent` that none of `others` covers.
fn without(extent: Extent, others: &[Extent]) -> Vec<Extent> {
    let mut left = vec![extent];
    for other in others {
        left = left
            .into_iter()
            .flat_map(|part| {
                let before = Extent { end: part.end.min(other.start), ..part };
                let after = Extent { start: part.start.max(other.end), ..part };
                [before, after].into_iter().filter(|part| part.start < part.end)
            })
            .collect();
        left.dedup();
    }
    left
}

/// The stretches of a file that are no holes (lseek(2), `SEEK_DATA`).
fn data(source: &File, size: u64) -> Result<Vec<Extent>, Fail> {
    let mut extents = Vec::new();
    let mut at = 0u64;
    while at < size {
        let from = i64::try_from(at).context("an image beyond any file")?;
        let start = match lseek64(source, from, Whence::SeekData) {
            Ok(start) => start,
            Err(nix::errno::Errno::ENXIO) => break,
            Err(e) => return Err(anyhow!(e).context("cannot find the image's holes").into()),
        };
        let end = lseek64(source, start, Whence::SeekHole).context("cannot find a hole's end")?;
        let (start, end) = (u64::try_from(start)?, u64::try_from(end)?.min(size));
        extents.push(Extent { start, end, blank: false });
        at = end;
    }
    Ok(extents)
}

fn confirm(device: &Path, bytes: u64) -> Result<(), Fail> {
    let shown = device.display();
    if !std::io::stdin().is_terminal() {
        return Err(Fail::usage(format!("this erases {shown}: say --yes to mean it")));
    }
    eprint!("This erases {shown} and writes {} MB. Type yes to go on: ", mb(bytes));
    std::io::stderr().flush().context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Fail::refused("nothing was written")) }
}

fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let style = "{bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {wide_bar} {msg}";
    bar.with_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()))
}

/// Blank both partition tables, write the rest, read it back, then write the tables and read them
/// back. `size` is the image's; an older table's backup is at the end of the medium itself.
fn write(source: &File, target: &File, size: u64, extents: &[Extent], bar: &ProgressBar) -> Done {
    let tail = size.saturating_sub(HEAD);
    let is_table = |extent: &&Extent| extent.start < HEAD || extent.start >= tail;
    let (tables, rest): (Vec<Extent>, Vec<Extent>) = extents.iter().partition(is_table);
    let blank = vec![0u8; usize::try_from(HEAD)?];
    let end = { target }.seek(SeekFrom::End(0)).context("no size")?;
    for at in [0, tail, end.saturating_sub(HEAD)] {
        target.write_all_at(&blank, at).context("cannot blank the partition table")?;
    }
    target.sync_all().context("cannot flush the medium")?;
    for part in [&rest, &tables] {
        bar.set_message("writing");
        for extent in part {
            each_chunk(source, *extent, bar, |chunk, at| {
                target.write_all_at(chunk, at).with_context(|| format!("cannot write at byte {at}"))?;
                Ok(())
            })?;
        }
        target.sync_all().context("cannot flush the medium")?;
        // What is compared must come from the medium, not from memory.
        posix_fadvise(target, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .context("cannot drop the cache")?;
        bar.set_message("reading back");
        let mut found = Vec::new();
        for extent in part {
            each_chunk(source, *extent, bar, |chunk, at| {
                found.resize(chunk.len(), 0);
                target.read_exact_at(&mut found, at).with_context(|| format!("cannot read at byte {at}"))?;
                if found == chunk {
                    return Ok(());
                }
                let first = chunk.iter().zip(&found).position(|(a, b)| a != b).unwrap_or(0);
                let at = at.saturating_add(u64::try_from(first).unwrap_or(0));
                let text = format!("the medium did not keep what was written at byte {at}: throw it away");
                Err(Fail::new(Why::Verification, anyhow!(text)))
            })?;
        }
    }
    Ok(())
}

fn each_chunk(
    source: &File,
    extent: Extent,
    bar: &ProgressBar,
    mut each: impl FnMut(&[u8], u64) -> Done,
) -> Done {
    let mut buffer = Vec::new();
    let mut at = extent.start;
    while at < extent.end {
        let n = CHUNK.min(extent.end.saturating_sub(at));
        buffer.clear();
        buffer.resize(usize::try_from(n)?, 0);
        if !extent.blank {
            source.read_exact_at(&mut buffer, at).context("cannot read the image")?;
        }
        each(&buffer, at)?;
        bar.inc(n);
        at = at.saturating_add(n);
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MB: u64 = 1 << 20;

    /// 16 MB with a table, a partition with data, and one without.
    fn image(dir: &Path) -> PathBuf {
        let path = dir.join("image");
        File::create(&path).unwrap().set_len(16 * MB).unwrap();
        let mut table = gpt::GptConfig::new().writable(true).create(&path).unwrap();
        for name in ["root-a", "state"] {
            table.add_partition(name, 4 * MB, gpt::partition_types::LINUX_FS, 0, Some(2048)).unwrap();
        }
        let first = table.partitions().values().find(|p| p.name == "root-a").unwrap().first_lba;
        table.write().unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[7; 3 << 20], first * 512).unwrap();
        path
    }

    fn partition(image: &Path, name: &str) -> u64 {
        testbed::partition_start(image, name).unwrap()
    }

    #[test]
    fn the_medium_holds_the_image_and_old_file_systems_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let device = dir.path().join("card");
        std::fs::write(&device, vec![0xff; 20 << 20]).unwrap();
        run(&image, &device, true, true).unwrap();
        let (want, got) = (std::fs::read(&image).unwrap(), std::fs::read(&device).unwrap());
        let (root, state) = (partition(&image, "root-a") as usize, partition(&image, "state") as usize);
        assert_eq!(got[..MB as usize], want[..MB as usize], "the table");
        assert_eq!(got[root..root + (3 << 20)], want[root..root + (3 << 20)], "the data");
        assert!(got[state..state + MB as usize].iter().all(|b| *b == 0), "no old file system");
        assert_eq!(got[state + (2 << 20)], 0xff, "holes are skipped");
        assert_eq!(got.len(), 20 << 20);
        assert_eq!(got[17 << 20], 0xff, "the rest of the medium is left alone");
        assert!(got[19 << 20..].iter().all(|b| *b == 0), "but for an older table's backup");
    }

    #[test]
    fn a_cut_leaves_a_blank_medium_and_a_second_run_finishes() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let device = dir.path().join("card");
        std::fs::write(&device, std::fs::read(&image).unwrap()).unwrap();
        // A stretch that the image does not have fails in the middle, as a pulled card does.
        let source = File::open(&image).unwrap();
        let target = OpenOptions::new().read(true).write(true).open(&device).unwrap();
        let mut extents = plan(&source, &image, 16 * MB).unwrap();
        extents.insert(1, Extent { start: 14 * MB, end: 18 * MB, blank: false });
        assert!(write(&source, &target, 16 * MB, &extents, &ProgressBar::hidden()).is_err());
        assert!(testbed::partition_start(&device, "root-a").is_err(), "no table, so nothing boots");
        run(&image, &device, true, true).unwrap();
        assert!(testbed::partition_start(&device, "root-a").is_ok());
    }

    #[test]
    fn what_is_no_image_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (image, device) = (dir.path().join("image.xz"), dir.path().join("card"));
        std::fs::write(&image, vec![1; 4 << 20]).unwrap();
        std::fs::write(&device, vec![2; 8 << 20]).unwrap();
        let fail = run(&image, &device, true, false).unwrap_err();
        assert_eq!(fail.why(), Why::Usage);
        assert!(std::fs::read(&device).unwrap().iter().all(|b| *b == 2));
    }

    #[test]
    fn an_image_is_never_written_to_itself_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let before = std::fs::read(&image).unwrap();
        let (link, hard) = (dir.path().join("link"), dir.path().join("hard"));
        std::os::unix::fs::symlink(&image, &link).unwrap();
        std::fs::hard_link(&image, &hard).unwrap();
        for device in [&image, &link, &hard] {
            let fail = run(&image, device, true, false).unwrap_err();
            assert_eq!(fail.why(), Why::Usage);
            assert!(fail.to_string().contains("is the image itself"), "{fail}");
            assert_eq!(run(device, &image, true, false).unwrap_err().why(), Why::Usage);
        }
        assert!(std::fs::read(&image).unwrap() == before, "it was changed");
    }

    #[test]
    fn a_file_grows_only_after_all_questions() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let (device, other) = (dir.path().join("card"), dir.path().join("other"));
        std::fs::write(&device, "short").unwrap();
        std::fs::write(&other, vec![1; 4 << 20]).unwrap();
        assert_eq!(run(&other, &device, true, false).unwrap_err().why(), Why::Usage, "no image");
        assert_eq!(std::fs::read(&device).unwrap(), b"short");
        // The question itself needs a terminal; without one it is refused.
        if !std::io::stdin().is_terminal() {
            assert_eq!(run(&image, &device, false, false).unwrap_err().why(), Why::Usage);
            assert_eq!(std::fs::read(&device).unwrap(), b"short");
        }
        run(&image, &device, true, false).unwrap();
        assert_eq!(std::fs::metadata(&device).unwrap().len(), 16 * MB);
    }

    #[test]
    fn without_yes_and_without_a_terminal_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let device = dir.path().join("card");
        std::fs::write(&device, vec![2; 8 << 20]).unwrap();
        if !std::io::stdin().is_terminal() {
            assert_eq!(run(&image, &device, false, false).unwrap_err().why(), Why::Usage);
        }
        let nowhere = dir.path().join("nowhere");
        assert_eq!(run(&image, &nowhere, true, false).unwrap_err().why(), Why::Usage);
        assert_eq!(run(&image, dir.path(), true, false).unwrap_err().why(), Why::Usage);
    }

    #[test]
    fn a_disk_in_use_is_known_by_its_partitions_too() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path().join("sda");
        let part = sys.join("sda1");
        std::fs::create_dir_all(part.join("holders")).unwrap();
        std::fs::write(sys.join("dev"), "8:0\n").unwrap();
        std::fs::write(part.join("dev"), "8:1\n").unwrap();
        std::fs::write(part.join("partition"), "1\n").unwrap();
        let mounts = "22 1 8:1 / /boot/efi rw,relatime shared:1 - vfat /dev/sda1 rw\n";
        assert_eq!(in_use(&sys, mounts, "").unwrap(), "mounted at /boot/efi");
        assert_eq!(in_use(&sys, "", "Filename Type\n/dev/sda1 partition 1\n").unwrap(), "swap space");
        assert_eq!(in_use(&sys, "22 1 8:10 / / rw - ext4 /dev/sda10 rw\n", ""), None);
        std::fs::write(part.join("holders/dm-0"), "").unwrap();
        assert_eq!(in_use(&sys, "", "").unwrap(), "part of dm-0");
    }

    #[test]
    fn the_system_disk_of_this_machine_is_never_a_target() {
        let root = std::fs::metadata("/").unwrap().dev();
        let number = format!("{}:{}", nix::sys::stat::major(root), nix::sys::stat::minor(root));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        // Where / is on a block device at all.
        if Path::new("/sys/dev/block").join(&number).exists() {
            assert_eq!(mounted_at(&mounts, &number), Some("/"));
        }
    }

    proptest! {
        #[test]
        fn blanks_never_overlap_data(
            blank in (0u64..50, 1u64..20), data in proptest::collection::vec((0u64..60, 1u64..10), 0..6),
        ) {
            let extent = |(start, len): (u64, u64), blank| Extent { start, end: start + len, blank };
            let data: Vec<Extent> = data.into_iter().map(|d| extent(d, false)).collect();
            let blank = extent(blank, true);
            let parts = without(blank, &data);
            for byte in 0u64..80 {
                let covers = |e: &Extent| (e.start..e.end).contains(&byte);
                let wanted = covers(&blank) && !data.iter().any(covers);
                prop_assert_eq!(parts.iter().any(covers), wanted);
            }
        }

        #[test]
        fn any_mountinfo_is_read(text in "([0-9:/ a-z]*\n)*", number in "[0-9]:[0-9]") {
            let _ = mounted_at(&text, &number);
        }
    }
}
