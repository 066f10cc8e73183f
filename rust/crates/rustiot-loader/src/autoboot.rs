//! `autoboot.txt`, the selector of the Raspberry Pi's firmware, and where it lies on its FAT.
//!
//! Pure: bytes come through a closure. Only finds the file and reads and writes its text; never changes a file system.
//! The text that we write has one length and one place for each digit, so a change of one selector is one byte of one
//! sector. Called by [`crate::TrybootLoader`] and by the image builder's tests. Contract: `docs/contracts/loader.md`.

use std::io;

use rustiot_boot::Slot;

/// Numbers of `boot-a` and `boot-b` in the partition table, as `conf/layout.toml` has them for these boards.
pub const BOOT_PARTITIONS: [u32; 2] = [3, 4];
/// The firmware reads no more of the file.
pub const FILE_MAX: u32 = 512;
/// `autoboot.txt` as a FAT spells it.
const NAME: &[u8; 11] = b"AUTOBOOTTXT";
/// Longest piece of the root directory that is searched, in bytes: more than any FAT12 or FAT16 has.
const DIRECTORY_MAX: u64 = 64 << 10;

/// The number of the partition that a slot boots from.
#[must_use]
pub fn partition(slot: Slot) -> u32 {
    let [a, b] = BOOT_PARTITIONS;
    match slot {
        Slot::A => a,
        Slot::B => b,
    }
}

/// The slot that boots from the partition with this number.
#[must_use]
pub fn slot(number: u32) -> Option<Slot> {
    Slot::ALL.into_iter().find(|slot| partition(*slot) == number)
}

/// What the text selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The slot that starts without the flag.
    pub default: Slot,
    /// The slot that starts once when the flag is set.
    pub tryboot: Slot,
}

impl Selection {
    /// The text, always of the same length.
    #[must_use]
    pub fn text(self) -> String {
        format!(
            "[all]\ntryboot_a_b=1\nboot_partition={}\n[tryboot]\nboot_partition={}\n",
            partition(self.default),
            partition(self.tryboot)
        )
    }

    /// Reads what the firmware would do with `text`; `None` where that is not one of our slots each time. Total.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Selection> {
        let text = std::str::from_utf8(text).ok()?;
        let (default, tryboot) =
            (value(text, "boot_partition", false)?, value(text, "boot_partition", true)?);
        // Without it the flag chooses another configuration file and not another partition.
        if value(text, "tryboot_a_b", true)? != 1 {
            return None;
        }
        Some(Selection { default: slot(default)?, tryboot: slot(tryboot)? })
    }
}

/// The value of `key`: of the lines that hold with and without the flag, the last one counts.
fn value(text: &str, key: &str, flag: bool) -> Option<u32> {
    let mut holds = true;
    let mut found = None;
    for line in text.lines().map(|line| line.trim_matches([' ', '\t', '\r', '\0'])) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(filter) => holds = filter == "all" || (flag && filter == "tryboot"),
            None if holds => {
                if let Some((name, number)) = line.split_once('=')
                    && name == key
                {
                    found = Some(number.parse().ok()?);
                }
            }
            None => {}
        }
    }
    found
}

/// Where the file's bytes lie on the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub offset: u64,
    /// Length of the file, 1 to [`FILE_MAX`]. All of it is in one sector.
    pub length: u32,
}

/// Why the file cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// The medium.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// No FAT that the firmware would read either.
    #[error("is no FAT: {0}")]
    NotFat(&'static str),
    /// The root directory does not name the file.
    #[error("has no autoboot.txt in its root directory")]
    Missing,
    /// The file is empty, too long for the firmware, or lies outside.
    #[error("has an autoboot.txt that cannot be used: {0}")]
    Unusable(&'static str),
}

/// Reads `length` bytes at an offset.
pub type ReadAt<'a> = dyn FnMut(u64, usize) -> io::Result<Vec<u8>> + 'a;

/// Finds `autoboot.txt` in the root directory of the FAT that `read` reads (Microsoft: FAT specification, version 1.03).
///
/// # Errors
/// [`FatError`].
pub fn find(read: &mut ReadAt) -> Result<Place, FatError> {
    let boot = read(0, 512).map_err(FatError::Read)?;
    let fat = Fat::parse(&boot)?;
    let length = usize::try_from(fat.root_bytes.min(DIRECTORY_MAX)).unwrap_or(0);
    let directory = read(fat.root, length).map_err(FatError::Read)?;
    let mut entries = directory.as_chunks::<32>().0.iter();
    let entry = entries
        // A zero ends the directory.
        .by_ref()
        .take_while(|entry| entry.first() != Some(&0))
        // Volume label, long name and directory have one of these bits (attributes at byte 11).
        .find(|entry| entry.starts_with(NAME) && entry.get(11).is_some_and(|bits| bits & 0x18 == 0))
        .ok_or(FatError::Missing)?;
    let high = if fat.wide { le16(entry, 20) } else { 0 };
    let cluster = (u64::from(high) << 16) | u64::from(le16(entry, 26));
    let size = le32(entry, 28);
    if size == 0 {
        return Err(FatError::Unusable("it is empty"));
    }
    if size > FILE_MAX {
        return Err(FatError::Unusable("it is longer than 512 bytes"));
    }
    let inside = || FatError::Unusable("it lies outside of the file system");
    let offset = cluster
        .checked_sub(2)
        .and_then(|index| index.checked_mul(fat.cluster_bytes))
        .and_then(|bytes| bytes.checked_add(fat.data))
        .ok_or_else(inside)?;
    if offset.checked_add(fat.cluster_bytes).is_none_or(|end| end > fat.bytes) {
        return Err(inside());
    }
    Ok(Place { offset, length: size })
}

/// A FAT's geometry, in bytes.
struct Fat {
    bytes: u64,
    cluster_bytes: u64,
    /// First byte of cluster 2.
    data: u64,
    root: u64,
    root_bytes: u64,
    /// FAT32: cluster numbers have their upper half elsewhere.
    wide: bool,
}

impl Fat {
    fn parse(boot: &[u8]) -> Result<Fat, FatError> {
        if boot.get(510..512) != Some(&[0x55, 0xaa][..]) {
            return Err(FatError::NotFat("the signature 55 aa is missing"));
        }
        let sector = u64::from(le16(boot, 11));
        if !(512..=4096).contains(&sector) || !sector.is_power_of_two() {
            return Err(FatError::NotFat("the size of a sector is impossible"));
        }
        let per_cluster = u64::from(byte(boot, 13));
        if !per_cluster.is_power_of_two() {
            return Err(FatError::NotFat("the size of a cluster is impossible"));
        }
        let either = |short: u16, long: u32| if short == 0 { u64::from(long) } else { u64::from(short) };
        let wide = le16(boot, 22) == 0;
        // None of these products can overflow: 8 and 32 bits, then 12 bits.
        let tables = u64::from(byte(boot, 16)) * either(le16(boot, 22), le32(boot, 36));
        let root = (u64::from(le16(boot, 14)) + tables) * sector;
        let entries = u64::from(le16(boot, 17)) * 32;
        let data = root + entries.next_multiple_of(sector);
        let cluster_bytes = per_cluster * sector;
        let bytes = either(le16(boot, 19), le32(boot, 32)) * sector;
        let (root, root_bytes) = if wide {
            // Its first cluster: the image build puts the file there.
            let first = u64::from(le32(boot, 44));
            let first = first.checked_sub(2).ok_or(FatError::NotFat("the root directory has no cluster"))?;
            (data + first * cluster_bytes, cluster_bytes)
        } else {
            (root, entries)
        };
        if root.checked_add(root_bytes).is_none_or(|end| end > bytes) {
            return Err(FatError::NotFat("the root directory lies outside"));
        }
        Ok(Fat { bytes, cluster_bytes, data, root, root_bytes, wide })
    }
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
pub(crate) mod sample {
    //! A FAT16 with one file, as `mkfs.fat -F 16 -s 1` and `mcopy` make it.

    /// Where the file's bytes begin: reserved sector, two tables of 32 sectors, 512 entries, cluster 2.
    pub const OFFSET: u64 = (1 + 64 + 32) * 512;

    pub fn fat16(text: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; 8192 * 512];
        disk[11..13].copy_from_slice(&512u16.to_le_bytes());
        disk[13] = 1;
        disk[14..16].copy_from_slice(&1u16.to_le_bytes());
        disk[16] = 2;
        disk[17..19].copy_from_slice(&512u16.to_le_bytes());
        disk[19..21].copy_from_slice(&8192u16.to_le_bytes());
        disk[22..24].copy_from_slice(&32u16.to_le_bytes());
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let root = 65 * 512;
        disk[root..root + 12].copy_from_slice(b"BOOTSELECT \x08");
        let entry = root + 32;
        disk[entry..entry + 12].copy_from_slice(b"AUTOBOOTTXT\x20");
        disk[entry + 26..entry + 28].copy_from_slice(&2u16.to_le_bytes());
        disk[entry + 28..entry + 32].copy_from_slice(&(text.len() as u32).to_le_bytes());
        let at = OFFSET as usize;
        disk[at..at + text.len()].copy_from_slice(text);
        disk
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn find_in(disk: &[u8]) -> Result<Place, FatError> {
        find(&mut |offset, length| {
            let start = usize::try_from(offset).unwrap();
            disk.get(start..start + length).map(<[u8]>::to_vec).ok_or(io::ErrorKind::UnexpectedEof.into())
        })
    }

    fn selections() -> impl Iterator<Item = Selection> {
        Slot::ALL.into_iter().flat_map(|default| Slot::ALL.map(|tryboot| Selection { default, tryboot }))
    }

    #[test]
    fn the_text_is_read_back_and_each_selector_is_one_byte() {
        let texts: Vec<String> = selections().map(Selection::text).collect();
        for (selection, text) in selections().zip(&texts) {
            assert_eq!(Selection::parse(text.as_bytes()), Some(selection));
            assert_eq!(text.len(), 64);
        }
        let differing = |a: &str, b: &str| a.bytes().zip(b.bytes()).filter(|(a, b)| a != b).count();
        let [aa, ab, ba, _] = &texts[..] else { panic!() };
        assert_eq!((differing(aa, ab), differing(aa, ba)), (1, 1));
    }

    /// The example of the firmware's own documentation, with our partitions; and what would start something else.
    #[test]
    fn reads_as_the_firmware_does() {
        let selected = |text: &str| Selection::parse(text.as_bytes()).map(|s| (s.default, s.tryboot));
        let example = "[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=4\n";
        assert_eq!(selected(example), Some((Slot::A, Slot::B)));
        let dressed = "# ours\r\ntryboot_a_b=1\r\n boot_partition=4 \r\n[none]\r\nboot_partition=9\r\n[tryboot]\r\nboot_partition=3\r\n\n\n";
        assert_eq!(selected(dressed), Some((Slot::B, Slot::A)));
        assert_eq!(selected("tryboot_a_b=1\nboot_partition=3\n"), Some((Slot::A, Slot::A)));
        assert_eq!(
            selected("[tryboot]\nboot_partition=4\n[all]\ntryboot_a_b=1\nboot_partition=3\n"),
            Some((Slot::A, Slot::A))
        );
        for wrong in [
            "",
            "[all]\nboot_partition=3\n[tryboot]\nboot_partition=4\n",
            "[all]\ntryboot_a_b=0\nboot_partition=3\n[tryboot]\nboot_partition=4\n",
            "[all]\ntryboot_a_b=1\nboot_partition=1\n[tryboot]\nboot_partition=4\n",
            "[all]\ntryboot_a_b=1\nboot_partition=x\n",
            "[tryboot]\ntryboot_a_b=1\nboot_partition=4\n",
        ] {
            assert_eq!(selected(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn finds_the_file_and_says_what_is_in_the_way() {
        let good = sample::fat16(b"0123");
        assert_eq!(find_in(&good).unwrap(), Place { offset: sample::OFFSET, length: 4 });
        let entry = 65 * 512 + 32;
        let damaged: [(usize, &[u8], &str); 8] = [
            (510, &[0], "is no FAT: the signature 55 aa is missing"),
            (11, &[0, 3], "is no FAT: the size of a sector is impossible"),
            (13, &[3], "is no FAT: the size of a cluster is impossible"),
            (16, &[255], "is no FAT: the root directory lies outside"),
            (entry, &[0xe5], "has no autoboot.txt in its root directory"),
            (entry + 11, &[0x10], "has no autoboot.txt in its root directory"),
            (
                entry + 26,
                &[0, 0],
                "has an autoboot.txt that cannot be used: it lies outside of the file system",
            ),
            (entry + 28, &[1, 2], "has an autoboot.txt that cannot be used: it is longer than 512 bytes"),
        ];
        for (at, bytes, says) in damaged {
            let mut disk = good.clone();
            disk[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(find_in(&disk).unwrap_err().to_string(), says);
        }
        assert_eq!(find_in(&good[..100]).unwrap_err().to_string(), "cannot be read");
    }

    /// Against the tools that the image build uses, in every size of FAT that the firmware reads.
    #[test]
    fn finds_the_file_where_mtools_put_it() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("autoboot.txt");
        #[expect(clippy::disallowed_methods, reason = "a test")]
        std::fs::write(&text, selections().next().unwrap().text()).unwrap();
        for (bits, cluster, mib) in [("12", "4", 4), ("16", "1", 16), ("16", "4", 32), ("32", "1", 64)] {
            let image = dir.path().join(format!("fat{bits}-{cluster}"));
            std::fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).unwrap();
            let run = |program: &str, args: &[&str]| {
                let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
                Command::new(program).args(args).env("PATH", path).output().is_ok_and(|o| o.status.success())
            };
            let file = image.to_str().unwrap();
            if !run("mkfs.fat", &["-F", bits, "-s", cluster, "-n", "AUTOBOOT", file]) {
                println!("skipped: no mkfs.fat");
                return;
            }
            if !run("mcopy", &["-i", file, text.to_str().unwrap(), "::autoboot.txt"]) {
                println!("skipped: no mcopy");
                return;
            }
            let disk = std::fs::read(&image).unwrap();
            let place = find_in(&disk).unwrap();
            let start = usize::try_from(place.offset).unwrap();
            let found = &disk[start..start + place.length as usize];
            assert_eq!(Selection::parse(found), selections().next(), "FAT{bits}, {cluster} sectors");
        }
    }

    proptest! {
        #[test]
        fn any_text_selects_or_not(text in "(\\[(all|tryboot|none|x)\\]\n|boot_partition=[0-9]{0,11}\n|tryboot_a_b=1\n|.*\n){0,9}") {
            if let Some(selection) = Selection::parse(text.as_bytes()) {
                prop_assert_eq!(Selection::parse(selection.text().as_bytes()), Some(selection));
            }
        }

        #[test]
        fn any_boot_sector_is_a_fat_or_not(
            bytes in proptest::collection::vec(any::<u8>(), 0..80), entry in any::<[u8; 20]>(),
        ) {
            let mut disk = sample::fat16(b"x");
            disk[11..11 + bytes.len()].copy_from_slice(&bytes);
            disk[65 * 512 + 44..65 * 512 + 64].copy_from_slice(&entry);
            if let Ok(place) = find_in(&disk) {
                prop_assert!((1..=FILE_MAX).contains(&place.length));
            }
        }
    }
}
