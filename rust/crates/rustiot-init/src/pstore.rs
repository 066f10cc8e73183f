//! What the kernel left in pstore when it died, and from it and other traces: why the machine was reset.
//!
//! Reads `/sys/fs/pstore`; the text is outside data. The records are removed only by [`Crash::forget`], after the
//! ledger has the verdict. Called by [`crate::boot`]. Source: Linux `fs/pstore/platform.c`, where each record begins
//! with a line such as `Panic#1 Part2`; parts count from the end of the log.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use rustiot_boot::ResetReason;

use crate::files;

/// Most bytes that are read of one record, and of all.
const MAX_RECORD: u64 = 512 * 1024;
const MAX_TOTAL: usize = 2 * 1024 * 1024;

/// Lines of the kernel log that go into the ledger and the status files.
const TAIL_LINES: usize = 40;
/// Most bytes of such a line.
const LINE_BYTES: usize = 200;

/// The kernel's last words, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crash {
    /// All parts in the order in which the kernel wrote its log.
    pub text: String,
    /// The kernel panicked (an oops alone is not the end of a boot).
    pub panic: bool,
    /// The panic was over a dm-verity mismatch.
    pub verity: bool,
    files: Vec<PathBuf>,
}

/// One crash record.
struct Record {
    panic: bool,
    /// Oops counter of its boot; the larger, the later.
    count: u32,
    /// From 1 for the end of the log upwards.
    part: u32,
    text: String,
}

impl Crash {
    /// Reads the crash records. A directory that is not there is an empty one.
    #[must_use]
    pub fn read(pstore: &Path) -> Crash {
        let mut files = files::entries(pstore);
        files.retain(|path| files::name_starts_with(path, "dmesg-"));
        let mut left = MAX_TOTAL;
        let mut texts = Vec::new();
        for path in &files {
            let mut bytes = Vec::new();
            // a record that cannot be read is forgotten with the others
            let _ = fs::File::open(path).and_then(|file| file.take(MAX_RECORD).read_to_end(&mut bytes));
            bytes.truncate(left);
            left = left.saturating_sub(bytes.len());
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        Crash { files, ..Crash::from_texts(texts) }
    }

    /// The crash that the texts of all records tell of. Total: any text may come.
    #[must_use]
    pub fn from_texts(texts: Vec<String>) -> Crash {
        let mut records: Vec<Record> = Vec::new();
        for record in texts.into_iter().filter_map(|text| Record::parse(&text)) {
            let later = |other: &Record| (other.count, record.part) <= (record.count, other.part);
            records.insert(records.partition_point(later), record);
        }
        let panic = records.iter().any(|record| record.panic);
        let text: String = records.into_iter().map(|record| record.text).collect();
        // drivers/md/dm-verity-target.c: "dm-verity device corrupted", "dm-verity device has I/O error"
        let verity = panic
            && text.lines().any(|line| line.contains("Kernel panic") && line.contains("dm-verity device"));
        Crash { text, panic, verity, files: Vec::new() }
    }

    /// The last lines, bounded in number and length.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        let lines: Vec<&str> = self.text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines.into_iter().rev().take(TAIL_LINES).rev().map(|line| printable(line, LINE_BYTES)).collect()
    }

    /// Whether the kernel left anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Removes the records from pstore, so that the next boot does not count them again and there is room.
    pub fn forget(&self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

impl Record {
    /// A record of a panic or an oops; the other kinds (shutdown, emergency restart) say nothing about a crash.
    fn parse(text: &str) -> Option<Record> {
        let (header, body) = text.split_once('\n')?;
        let (kind, rest) = header.split_once('#')?;
        let (count, part) = rest.split_once(" Part")?;
        Some(Record {
            panic: match kind {
                "Panic" => true,
                "Oops" => false,
                _ => return None,
            },
            count: count.trim().parse().ok()?,
            part: part.trim().parse().ok()?,
            text: body.to_string(),
        })
    }
}

/// The line without control characters, cut to `bytes`.
#[must_use]
pub fn printable(line: &str, bytes: usize) -> String {
    let mut out = String::new();
    for c in line.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len().saturating_add(c.len_utf8()) > bytes {
            break;
        }
        out.push(c);
    }
    out
}

/// Why the machine was reset. The kernel's own record says most; a watchdog that fired after a panic was only its
/// executor. `last_clean` is whether the boot before ended in order, where one is known.
#[must_use]
pub fn reset_reason(crash: &Crash, card_reset: bool, last_clean: Option<bool>) -> ResetReason {
    match (crash.verity, crash.panic, card_reset, last_clean) {
        (true, ..) => ResetReason::Verity,
        (_, true, ..) => ResetReason::Panic,
        (_, _, true, _) => ResetReason::Watchdog,
        (_, _, _, Some(true)) => ResetReason::Clean,
        (_, _, _, Some(false)) => ResetReason::Power,
        (_, _, _, None) => ResetReason::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn crash(texts: &[&str]) -> Crash {
        Crash::from_texts(texts.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn puts_the_parts_in_the_order_of_the_log() {
        let crash = crash(&[
            "Panic#2 Part1\n<0>[3.0] Kernel panic - not syncing: x\nlast\n",
            "Oops#1 Part1\n<1>[1.0] oops\n",
            "Panic#2 Part2\n<1>[2.0] before\n",
        ]);
        assert_eq!(
            crash.text,
            "<1>[1.0] oops\n<1>[2.0] before\n<0>[3.0] Kernel panic - not syncing: x\nlast\n"
        );
        assert!(crash.panic && !crash.verity);
    }

    #[test]
    fn tells_a_verity_panic_from_others() {
        let line = "<0>[ 3.1] Kernel panic - not syncing: dm-verity device corrupted\n";
        assert!(crash(&[&format!("Panic#1 Part1\n{line}")]).verity);
        assert!(!crash(&[&format!("Oops#1 Part1\n{line}")]).verity, "an oops is no panic");
        assert!(!crash(&["Panic#1 Part1\ndm-verity device\nKernel panic - not syncing: VFS\n"]).verity);
    }

    #[test]
    fn an_oops_or_a_shutdown_record_is_no_panic() {
        assert!(!crash(&["Oops#1 Part1\nBUG\n"]).panic);
        assert_eq!(crash(&["Shutdown#1 Part1\nreboot\n", "garbage", ""]), Crash::default());
    }

    #[test]
    fn keeps_a_bounded_printable_tail() {
        let long = format!("Panic#1 Part1\n{}", "é\u{1b}x\u{0}\n".repeat(500));
        let tail = crash(&[&long]).tail();
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail[0], "é x ");
        assert_eq!(printable("ééé", 5), "éé");
    }

    #[test]
    fn reads_only_crash_records_and_forgets_just_those() {
        let dir = tempfile::tempdir().unwrap();
        crate::disk::sample::put(&dir.path().join("dmesg-efi_pstore-1"), "Panic#1 Part1\nx\n");
        crate::disk::sample::put(&dir.path().join("console-ramoops-0"), "Panic#1 Part1\ny\n");
        let crash = Crash::read(dir.path());
        assert_eq!((crash.text.as_str(), crash.is_empty()), ("x\n", false));
        crash.forget();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["console-ramoops-0"]);
        assert!(Crash::read(&dir.path().join("absent")).is_empty());
    }

    #[test]
    fn weighs_the_traces() {
        let none = Crash::default();
        let panic = Crash { panic: true, ..Crash::default() };
        let verity = Crash { verity: true, ..panic.clone() };
        for (crash, card, clean, reason) in [
            (&none, false, None, ResetReason::Unknown),
            (&none, false, Some(false), ResetReason::Power),
            (&none, false, Some(true), ResetReason::Clean),
            (&none, true, Some(true), ResetReason::Watchdog),
            (&panic, true, Some(true), ResetReason::Panic),
            (&verity, true, None, ResetReason::Verity),
        ] {
            assert_eq!(reset_reason(crash, card, clean), reason);
        }
    }

    proptest! {
        #[test]
        fn records_are_total(texts in proptest::collection::vec("(Panic|Oops|x)?#?[0-9]{0,11}( Part)?[0-9]{0,11}\n?.{0,20}", 0..6)) {
            let crash = Crash::from_texts(texts);
            prop_assert!(crash.tail().len() <= TAIL_LINES);
            prop_assert!(!crash.verity || crash.panic);
        }
    }
}
