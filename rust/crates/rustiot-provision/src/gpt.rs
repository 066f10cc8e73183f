//! Growing the last partition of a GPT to the end of the medium, so that power may go at any instant.
//!
//! Pure: from the bytes of both tables to the writes that are needed, in order. The order keeps a valid primary
//! table on the medium at every instant, because Linux looks for the backup only with `gpt` on its command line:
//! 1. the backup goes to the new end;
//! 2. the new entries go *beside* the primary ones, then one sector, the primary header, points there;
//! 3. the entries go to their usual place as well, then the header points back.
//!
//! Source: UEFI specification 2.10, section 5.3. Used by [`crate::growth`].

use std::ops::Range;

/// Partitions end on a multiple of this many bytes.
const ALIGN: u64 = 1 << 20;
const SIGNATURE: &[u8] = b"EFI PART";
const HEADER_MIN: usize = 92;

/// Why the table is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither the primary nor the backup table is valid.
    #[error("neither of the two partition tables is valid")]
    NoTable,
    /// The medium ends before its partitions do.
    #[error(
        "the medium has {medium} MiB, but its partitions need {needed} MiB: it is smaller than the image expects"
    )]
    TooSmall {
        /// Size of the medium.
        medium: u64,
        /// Where the last partition ends.
        needed: u64,
    },
    /// There is no partition of that name.
    #[error("there is no partition {0:?} in the table")]
    NoPartition(String),
    /// Something lies behind the partition.
    #[error("partition {0:?} is not the last one on the medium")]
    NotLast(String),
    /// The table has a form that is not handled.
    #[error("the partition table is not of a form that can be grown: {0}")]
    Unusual(&'static str),
}

/// A change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Byte offset and bytes, to be written in this order, each durable before the next.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// The partition as it is afterwards.
    pub partition: Partition,
}

/// A partition, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Number from 1, as the kernel counts.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A medium that can be read: offset and length → bytes, or `None` when that cannot be read.
pub trait Read {
    /// Reads exactly so many bytes.
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>>;
}

/// A valid header with its valid entries.
#[derive(Debug, Clone)]
struct Table {
    header: Vec<u8>,
    entries: Vec<u8>,
    entry_size: usize,
    first_usable: u64,
    last_usable: u64,
    entries_lba: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(slot) = at.checked_add(value.len()).and_then(|end| bytes.get_mut(at..end)) {
        slot.copy_from_slice(value);
    }
}

/// The header's checksum: over `header_size` bytes, with its own field as zero.
fn header_crc(header: &[u8], size: usize) -> Option<u32> {
    let mut copy = header.get(..size)?.to_vec();
    put(&mut copy, 16, &[0; 4]);
    Some(crc32fast::hash(&copy))
}

impl Table {
    fn read(medium: &impl Read, lba: u64, sector: u64, sectors: u64) -> Option<Self> {
        let sector_len = usize::try_from(sector).ok()?;
        let header = medium.read(lba.checked_mul(sector)?, sector_len)?;
        let size = usize::try_from(u32_at(&header, 12)?).ok()?;
        let valid = header.starts_with(SIGNATURE)
            && (HEADER_MIN..=header.len()).contains(&size)
            && header_crc(&header, size)? == u32_at(&header, 16)?
            && u64_at(&header, 24)? == lba;
        let (entries_lba, count, entry_size) =
            (u64_at(&header, 72)?, u32_at(&header, 80)?, usize::try_from(u32_at(&header, 84)?).ok()?);
        // 128 × 2^n bytes an entry; ours have 128 of 128, and nothing sensible has more than 1024.
        let shape = (1..=1024).contains(&count) && [128, 256, 512].contains(&entry_size);
        if !valid || !shape {
            return None;
        }
        let bytes = usize::try_from(count).ok()?.checked_mul(entry_size)?;
        let entries = medium.read(entries_lba.checked_mul(sector)?, bytes)?;
        let table = Self {
            first_usable: u64_at(&header, 40)?,
            last_usable: u64_at(&header, 48)?,
            entries_lba,
            entry_size,
            entries,
            header,
        };
        let checked = crc32fast::hash(&table.entries) == u32_at(&table.header, 88)?
            && table.first_usable <= table.last_usable
            && entries_lba < sectors;
        checked.then_some(table)
    }

    /// Used entries: index, first and last sector, name.
    fn used(&self) -> impl Iterator<Item = (usize, u64, u64, String)> {
        self.entries.chunks_exact(self.entry_size).enumerate().filter_map(|(index, entry)| {
            if entry.get(..16)?.iter().all(|b| *b == 0) {
                return None;
            }
            let units = entry.get(56..128)?.chunks_exact(2).filter_map(|unit| unit.first_chunk());
            let units: Vec<u16> =
                units.map(|unit| u16::from_le_bytes(*unit)).take_while(|u| *u != 0).collect();
            Some((index, u64_at(entry, 32)?, u64_at(entry, 40)?, String::from_utf16_lossy(&units)))
        })
    }

    /// The header that stands at `lba` and has its entries at `entries_lba`.
    fn header_at(
        &self,
        lba: u64,
        alternate: u64,
        entries_lba: u64,
        last_usable: u64,
        entries: &[u8],
    ) -> Vec<u8> {
        let mut header = self.header.clone();
        for (at, value) in [(24, lba), (32, alternate), (48, last_usable), (72, entries_lba)] {
            put(&mut header, at, &value.to_le_bytes());
        }
        put(&mut header, 88, &crc32fast::hash(entries).to_le_bytes());
        let size = u32_at(&header, 12).and_then(|size| usize::try_from(size).ok()).unwrap_or(HEADER_MIN);
        if let Some(crc) = header_crc(&header, size) {
            put(&mut header, 16, &crc.to_le_bytes());
        }
        header
    }
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// What must be written so that the partition `name` reaches the end of a medium of `size` bytes with sectors of
/// `sector` bytes. No writes: it is so already, and both tables are valid.
///
/// # Errors
/// [`Error`]; nothing is to be written then.
pub fn grow(medium: &impl Read, size: u64, sector: u64, name: &str) -> Result<Plan, Error> {
    const HOME: u64 = 2;
    if ![512, 1024, 2048, 4096].contains(&sector) || size / sector < 128 {
        return Err(Error::Unusual("size or sector size of the medium"));
    }
    let overflow = || Error::Unusual("a number out of range");
    let sectors = size / sector;
    let last_lba = sectors.saturating_sub(1);
    let primary = Table::read(medium, 1, sector, sectors);
    let backup = Table::read(medium, last_lba, sector, sectors);
    let table = primary.as_ref().or(backup.as_ref()).ok_or(Error::NoTable)?;

    let length = u64::try_from(table.entries.len()).map_err(|_| overflow())?;
    let array = length.div_ceil(sector);
    let (index, first, last, _) =
        table.used().find(|(.., n)| n == name).ok_or_else(|| Error::NoPartition(name.to_owned()))?;
    let end_of_all = table.used().map(|(_, _, last, _)| last).max().unwrap_or(last);
    if end_of_all > last_lba {
        let mib = |sectors: u64| sectors.saturating_mul(sector) >> 20;
        return Err(Error::TooSmall { medium: mib(sectors), needed: mib(end_of_all.saturating_add(1)) });
    }
    if end_of_all != last || first > last {
        return Err(Error::NotLast(name.to_owned()));
    }
    let first_of_all = table.used().map(|(_, first, ..)| first).min().unwrap_or(first);

    // The backup's header is the last sector, its entries stand just before.
    let backup_entries = last_lba.checked_sub(array).ok_or_else(overflow)?;
    let last_usable = backup_entries.checked_sub(1).ok_or_else(overflow)?;
    let aligned = (last_usable.saturating_add(1)).saturating_mul(sector) / ALIGN * ALIGN / sector;
    let new_last = aligned.saturating_sub(1).max(last);
    if new_last > last_usable {
        return Err(Error::TooSmall { medium: size >> 20, needed: (size >> 20).saturating_add(1) });
    }

    let mut entries = table.entries.clone();
    let at = index.checked_mul(table.entry_size).and_then(|at| at.checked_add(40)).ok_or_else(overflow)?;
    put(&mut entries, at, &new_last.to_le_bytes());
    let number = u32::try_from(index).ok().and_then(|index| index.checked_add(1)).ok_or_else(overflow)?;
    let in_bytes = |sectors: u64| sectors.checked_mul(sector).ok_or_else(overflow);
    let partition = Partition {
        number,
        start: in_bytes(first)?,
        length: in_bytes(new_last.saturating_sub(first).saturating_add(1))?,
    };

    let place = |lba: u64| lba..lba.saturating_add(array);
    let (home, spare) = (place(HOME), place(HOME.saturating_add(array)));
    if home.end > first_of_all {
        return Err(Error::Unusual("no room for the entries before the first partition"));
    }
    // With the medium's true end such a table would be none any more: readers refuse it, the kernel among them.
    if table.first_usable > last_usable {
        return Err(Error::Unusual("the first usable sector is behind the medium's last"));
    }
    let in_use = primary.as_ref().map(|primary| place(primary.entries_lba));
    let in_use_overlaps = |range: &Range<u64>| in_use.as_ref().is_some_and(|used| overlaps(used, range));

    let mut writes = Vec::new();
    let wanted_backup = table.header_at(last_lba, 1, backup_entries, last_usable, &entries);
    let backup_is_right =
        backup.as_ref().is_some_and(|backup| backup.header == wanted_backup && backup.entries == entries);
    if !backup_is_right {
        if in_use_overlaps(&(backup_entries..sectors)) {
            return Err(Error::Unusual("the entries in use are where the backup goes"));
        }
        writes.push((in_bytes(backup_entries)?, entries.clone()));
        writes.push((in_bytes(last_lba)?, wanted_backup));
    }

    let wanted_at = |lba: u64| table.header_at(1, last_lba, lba, last_usable, &entries);
    let primary_is_right = primary
        .as_ref()
        .is_some_and(|primary| primary.header == wanted_at(HOME) && primary.entries == entries);
    if !primary_is_right {
        // The entries in use must not be written over before the header has let go of them.
        if in_use_overlaps(&home) {
            if spare.end > first_of_all {
                return Err(Error::Unusual("no room for spare entries before the first partition"));
            }
            if in_use_overlaps(&spare) {
                return Err(Error::Unusual("the entries in use are neither at their place nor beside it"));
            }
            writes.push((in_bytes(spare.start)?, entries.clone()));
            writes.push((sector, wanted_at(spare.start)));
        }
        writes.push((in_bytes(HOME)?, entries.clone()));
        writes.push((sector, wanted_at(HOME)));
    }
    Ok(Plan { writes, partition })
}

#[cfg(test)]
pub(crate) mod sample {
    //! A small disk with a GPT, for tests here and of the whole of provisioning.

    use super::*;

    impl Read for Vec<u8> {
        fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
            let start = usize::try_from(offset).ok()?;
            self.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
        }
    }

    /// Sector size of the samples.
    pub const SECTOR: u64 = 512;
    pub const MIB: u64 = 1 << 20;

    /// A table for a medium of `size` bytes, with partitions `(name, start, length)` in bytes; written into a
    /// medium of `medium` bytes.
    pub fn disk(medium: u64, size: u64, partitions: &[(&str, u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(medium).unwrap()];
        let last = size / SECTOR - 1;
        let mut entries = vec![0; 128 * 128];
        for (n, (name, start, length)) in partitions.iter().enumerate() {
            let at = n * 128;
            put(&mut entries, at, &[n as u8 + 1; 32]);
            put(&mut entries, at + 32, &(start / SECTOR).to_le_bytes());
            put(&mut entries, at + 40, &((start + length) / SECTOR - 1).to_le_bytes());
            for (i, unit) in name.encode_utf16().enumerate() {
                put(&mut entries, at + 56 + 2 * i, &unit.to_le_bytes());
            }
        }
        let mut header = vec![0; SECTOR as usize];
        put(&mut header, 0, SIGNATURE);
        put(&mut header, 8, &[0, 0, 1, 0, 92, 0, 0, 0]);
        put(&mut header, 40, &34_u64.to_le_bytes());
        put(&mut header, 80, &128_u32.to_le_bytes());
        put(&mut header, 84, &128_u32.to_le_bytes());
        let table = Table {
            header,
            entries: entries.clone(),
            entry_size: 128,
            first_usable: 34,
            last_usable: last - 33,
            entries_lba: 2,
        };
        let primary = table.header_at(1, last, 2, last - 33, &entries);
        let backup = table.header_at(last, 1, last - 32, last - 33, &entries);
        for (lba, part) in [(1, &primary), (2, &entries), (last - 32, &entries), (last, &backup)] {
            if lba * SECTOR < medium {
                let end = (medium as usize - (lba * SECTOR) as usize).min(part.len());
                put(&mut bytes, (lba * SECTOR) as usize, &part[..end]);
            }
        }
        bytes
    }

    /// Only the primary table, as the kernel reads it: name → (start, length) in bytes.
    pub fn kernel_view(bytes: &Vec<u8>) -> Option<Vec<(String, u64, u64)>> {
        let sectors = bytes.len() as u64 / SECTOR;
        let table = Table::read(bytes, 1, SECTOR, sectors)?;
        Some(
            table
                .used()
                .map(|(_, first, last, name)| {
                    let sectors = last.saturating_sub(first).saturating_add(1);
                    (name, first.saturating_mul(SECTOR), sectors.saturating_mul(SECTOR))
                })
                .collect(),
        )
    }

    pub fn apply(bytes: &mut [u8], (offset, data): &(u64, Vec<u8>)) {
        put(bytes, usize::try_from(*offset).unwrap(), data);
    }
}

#[cfg(test)]
mod tests {
    use super::sample::*;
    use super::*;
    use proptest::prelude::*;

    const PARTITIONS: &[(&str, u64, u64)] = &[("state", MIB, MIB), ("data", 2 * MIB, MIB)];

    fn larger() -> Vec<u8> {
        disk(8 * MIB, 4 * MIB, PARTITIONS)
    }

    fn run(bytes: &Vec<u8>) -> Result<Plan, Error> {
        grow(bytes, bytes.len() as u64, SECTOR, "data")
    }

    #[test]
    fn grows_to_the_end_and_then_has_nothing_to_do() {
        let mut bytes = larger();
        let plan = run(&bytes).unwrap();
        assert_eq!(plan.partition, Partition { number: 2, start: 2 * MIB, length: 5 * MIB });
        for write in &plan.writes {
            apply(&mut bytes, write);
        }
        assert_eq!(
            kernel_view(&bytes).unwrap(),
            [("state".to_owned(), MIB, MIB), ("data".to_owned(), 2 * MIB, 5 * MIB)]
        );
        let again = run(&bytes).unwrap();
        assert_eq!((again.writes.len(), again.partition), (0, plan.partition));
        // The backup alone brings the same table back.
        bytes[512..1024].fill(0);
        assert_eq!(run(&bytes).unwrap().partition, plan.partition);
        let table = Table::read(&bytes, bytes.len() as u64 / SECTOR - 1, SECTOR, bytes.len() as u64 / SECTOR);
        assert_eq!(u64_at(&table.unwrap().header, 32), Some(1));
    }

    /// Cut after every sector: the kernel's table (the primary alone) is always valid, names the same partitions
    /// at the same places, and a second run from there ends where an uninterrupted one does.
    #[test]
    fn a_cut_at_any_sector_leaves_a_valid_primary_table_and_finishes_by_itself() {
        let mut whole = larger();
        let plan = run(&whole).unwrap();
        let sectors: Vec<(u64, Vec<u8>)> = plan
            .writes
            .iter()
            .flat_map(|(offset, data)| {
                let chunks = data.chunks(SECTOR as usize).enumerate();
                chunks.map(|(n, chunk)| (offset + n as u64 * SECTOR, chunk.to_vec())).collect::<Vec<_>>()
            })
            .collect();
        for write in &sectors {
            apply(&mut whole, write);
        }
        for cut in 0..=sectors.len() {
            let mut bytes = larger();
            for write in &sectors[..cut] {
                apply(&mut bytes, write);
            }
            let seen = kernel_view(&bytes).unwrap_or_else(|| panic!("no table after {cut} sectors"));
            assert_eq!((seen[0].1, seen[1].1), (MIB, 2 * MIB));
            assert!(seen[1].2 == MIB || seen[1].2 == 5 * MIB);
            for write in run(&bytes).unwrap().writes {
                apply(&mut bytes, &write);
            }
            assert_eq!(kernel_view(&bytes), kernel_view(&whole), "{cut}");
            assert!(run(&bytes).unwrap().writes.is_empty(), "{cut}");
        }
    }

    #[test]
    fn what_cannot_be_grown_is_said() {
        let message = |bytes: &Vec<u8>| run(bytes).unwrap_err().to_string();
        let too_small = disk(3 * MIB - SECTOR, 8 * MIB, &[("data", MIB, 3 * MIB)]);
        assert_eq!(
            message(&too_small),
            "the medium has 2 MiB, but its partitions need 4 MiB: it is smaller than the image expects"
        );
        assert_eq!(message(&vec![0; 1 << 20]), "neither of the two partition tables is valid");
        let other = disk(4 * MIB, 4 * MIB, &[("data", MIB, MIB), ("more", 2 * MIB, MIB)]);
        assert_eq!(message(&other), "partition \"data\" is not the last one on the medium");
        let none = disk(4 * MIB, 4 * MIB, &[("state", MIB, MIB)]);
        assert_eq!(message(&none), "there is no partition \"data\" in the table");
        let early = disk(8 * MIB, 4 * MIB, &[("data", 40 * SECTOR, MIB)]);
        assert!(message(&early).contains("no room for spare entries"));
        // Ends exactly where the backup should be.
        let tight = disk(4 * MIB, 4 * MIB, &[("data", MIB, 3 * MIB)]);
        assert!(matches!(run(&tight), Err(Error::TooSmall { .. })));
    }

    #[test]
    fn a_lost_primary_is_repaired_from_the_backup_at_the_end() {
        let mut bytes = disk(4 * MIB, 4 * MIB, PARTITIONS);
        let good = kernel_view(&bytes).unwrap();
        bytes[512..1024].fill(0xff);
        for write in run(&bytes).unwrap().writes {
            apply(&mut bytes, &write);
        }
        assert_eq!(kernel_view(&bytes).unwrap()[1].1, good[1].1);
    }

    /// Whether the kernel still has a table after each write, with `data` where it was.
    fn holds_at_every_write(mut bytes: Vec<u8>, plan: &Plan) -> bool {
        plan.writes.iter().all(|write| {
            apply(&mut bytes, write);
            let data =
                kernel_view(&bytes).and_then(|table| table.into_iter().find(|(name, ..)| name == "data"));
            data.is_some_and(|(_, start, _)| start == plan.partition.start)
        })
    }

    #[test]
    fn entries_at_an_odd_place_are_not_written_over_while_they_are_in_use() {
        // Other tools put them anywhere (`sgdisk --move-main-table`).
        let moved = |lba: u64| {
            let mut bytes = larger();
            let table = Table::read(&bytes, 1, SECTOR, bytes.len() as u64 / SECTOR).unwrap();
            let header = table.header_at(1, 8191, lba, table.last_usable, &table.entries);
            put(&mut bytes, 512, &header);
            put(&mut bytes, usize::try_from(lba * SECTOR).unwrap(), &table.entries);
            bytes
        };
        let last = 8 * MIB / SECTOR - 1;
        for lba in [10, last - 40] {
            assert!(matches!(run(&moved(lba)), Err(Error::Unusual(_))), "{lba}");
        }
        for lba in [SPARE, 100] {
            let bytes = moved(lba);
            assert!(holds_at_every_write(bytes.clone(), &run(&bytes).unwrap()), "{lba}");
        }
    }

    #[test]
    fn a_table_whose_usable_sectors_begin_behind_the_medium_is_left_alone() {
        let mut bytes = larger();
        let mut table = Table::read(&bytes, 1, SECTOR, bytes.len() as u64 / SECTOR).unwrap();
        put(&mut table.header, 40, &(8 * MIB / SECTOR).to_le_bytes());
        let header = table.header_at(1, 8191, 2, u64::MAX, &table.entries);
        put(&mut bytes, 512, &header);
        assert!(kernel_view(&bytes).is_some());
        assert!(matches!(run(&bytes), Err(Error::Unusual(_))));
    }

    /// Where a run that was cut leaves them.
    const SPARE: u64 = 34;

    proptest! {
        #[test]
        fn any_bytes(noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
                     fix in any::<bool>()) {
            let mut bytes = larger();
            for (at, byte) in noise {
                let at = 512 + at.index(512 + 256);
                bytes[at] = byte;
            }
            if fix {
                // Past the checksums, so that the values themselves are looked at.
                let entries = crc32fast::hash(&bytes[1024..1024 + 128 * 128]);
                put(&mut bytes, 512 + 88, &entries.to_le_bytes());
                put(&mut bytes, 512, SIGNATURE);
                put(&mut bytes, 512 + 12, &92_u32.to_le_bytes());
                let crc = header_crc(&bytes[512..1024], 92).unwrap();
                put(&mut bytes, 512 + 16, &crc.to_le_bytes());
            }
            if let Ok(plan) = run(&bytes) {
                if kernel_view(&bytes).is_some() {
                    prop_assert!(holds_at_every_write(bytes.clone(), &plan));
                }
                for (offset, data) in plan.writes {
                    prop_assert!(offset >= 512 && offset + data.len() as u64 <= bytes.len() as u64);
                }
            }
        }
    }
}
