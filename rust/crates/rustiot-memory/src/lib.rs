//! What a service needed for a while goes back to the system: pages of its program, which the kernel maps in sixteens
//! around each one that is used, and freed memory that the allocator has kept.
//!
//! The program's pages stay in the system's cache as long as there is room; mapped, executable ones are the last that the
//! kernel takes back, used or not. What is needed again is mapped again. Never touches a page that was written to.
//! Called by the engine's API when it has had no client for a while, and by the update service before an install, whose
//! peak is a promise.

use std::ops::Range;

/// See the module.
pub fn give_back() {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for range in unmodified(&text) {
        sys::forget(range);
    }
    sys::trim();
}

/// Mappings of files that cannot be written to and in which nothing ever was: all in them is in the file. (What the
/// loader relocated is not writable either, and is not in the file.)
fn unmodified(smaps: &str) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "Anonymous:" {
            // Taken out: a second value for the same mapping would be none of this format.
            let range = Option::take(&mut current);
            if words.next() == Some("0") {
                all.extend(range);
            }
        } else if !first.ends_with(':') {
            current = mapping(first, &mut words);
        }
    }
    all
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE [NAME]`, if it is a private one of a file and read-only.
fn mapping<'a>(addresses: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Range<usize>> {
    let permissions = words.next()?;
    let inode = words.nth(2)?;
    let (start, end) = addresses.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    (matches!(permissions, "r-xp" | "r--p") && inode != "0" && !range.is_empty()).then_some(range)
}

mod sys {
    //! Memory of this process by its address.
    #![allow(unsafe_code, reason = "madvise takes addresses")]

    use std::ops::Range;
    use std::ptr::NonNull;

    use nix::sys::mman::{MmapAdvise, madvise};

    /// Takes the pages out of this process's page table. The caller has seen that all in them is in their file.
    pub fn forget(range: Range<usize>) {
        let Some(start) = NonNull::new(std::ptr::without_provenance_mut(range.start)) else { return };
        // SAFETY: the range is a private mapping of a file that is not writable and has no page of its own, so the next
        // access finds the same bytes there, from the file.
        let _ = unsafe { madvise(start, range.len(), MmapAdvise::MADV_DONTNEED) };
    }

    /// Gives the allocator's free pages back.
    pub fn trim() {
        #[cfg(target_env = "gnu")]
        // SAFETY: takes no pointer, and may be called at any time by any thread (malloc_trim(3): MT-Safe).
        let _ = unsafe { nix::libc::malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_all_in_its_file_is_forgotten() {
        let of = |permissions: &str, inode: &str, anonymous: &str| {
            let smaps = format!(
                "7f12ce007000-7f12ceb91000 {permissions} 00007000 fe:00 {inode}   /usr/lib/rustiot/rustiot\n\
                 Size:              11816 kB\nRss:                7796 kB\nAnonymous:         {anonymous:>8} kB\n\
                 LazyFree:              0 kB\nVmFlags: rd ex mr mw me\n"
            );
            !unmodified(&smaps).is_empty()
        };
        assert!(of("r-xp", "5", "0") && of("r--p", "5", "0"));
        for (permissions, inode, anonymous) in [
            ("r--p", "5", "456"),
            ("rw-p", "5", "0"),
            ("r-xs", "5", "0"),
            ("---p", "5", "0"),
            ("r-xp", "0", "0"),
        ] {
            assert!(!of(permissions, inode, anonymous), "{permissions} {inode} {anonymous}");
        }
        let two =
            "1000-2000 r-xp 0 0:0 1 /a b\nAnonymous: 0 kB\n3000-5000 r--p 0 0:0 1 /a b\nAnonymous: 0 kB\n";
        assert_eq!(unmodified(two), [0x1000..0x2000, 0x3000..0x5000]);
        for odd in
            ["", "Anonymous: 0 kB\n", "x-y r-xp 0 0:0 1\nAnonymous: 0 kB\n", "1000 r-xp\nAnonymous: 0\n"]
        {
            assert!(unmodified(odd).is_empty(), "{odd:?}");
        }
    }

    #[test]
    fn this_program_goes_on_without_its_pages() {
        let rss = || {
            let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = rss();
        give_back();
        let after = rss();
        assert!(after < before, "{after} KiB of {before}");
        assert_eq!(format!("{:?}", Some(1.5)), "Some(1.5)");
    }
}
