//! Where GPT partitions lie and their unique ids. Kernels before 6.13 do not tell the ids in `uevent`, so the table is
//! read here.
//!
//! Pure over a read function; the bytes are outside data, so every offset is checked. Never writes. Called by
//! [`crate::disk`]. Source: UEFI specification 2.10, section 5.3.

use rustiot_loader::{BootPartition, Guid};

/// Most bytes of entries that are read: 128 entries of 128 bytes are usual.
const MAX_TABLE: u64 = 256 * 1024;

/// Neither the first nor the last sector of the disk leads to a sound table.
#[derive(Debug, thiserror::Error)]
#[error("no sound GPT ({primary}; backup: {backup})")]
pub struct GptError {
    primary: String,
    backup: String,
}

/// Reads `length` bytes at `offset`.
pub type ReadAt<'a> = dyn FnMut(u64, usize) -> std::io::Result<Vec<u8>> + 'a;

/// All used partitions, from the primary table or, when that is unsound, from the backup. Sizes in
/// bytes; `sector` is the logical block size.
///
/// # Errors
/// [`GptError`] says what is wrong with both.
pub fn partitions(read: &mut ReadAt, disk_bytes: u64, sector: u64) -> Result<Vec<BootPartition>, GptError> {
    let last = disk_bytes.checked_div(sector).unwrap_or(0).saturating_sub(1);
    table_at(read, 1, sector)
        .or_else(|primary| table_at(read, last, sector).map_err(|backup| GptError { primary, backup }))
}

fn table_at(read: &mut ReadAt, lba: u64, sector: u64) -> Result<Vec<BootPartition>, String> {
    let mut at = |lba: u64, length: usize| {
        let offset = lba.checked_mul(sector).ok_or("position out of range")?;
        read(offset, length).map_err(|error| format!("cannot read byte {offset}: {error}"))
    };
    let header = Header::parse(&at(lba, 512)?, lba)?;
    Ok(header.entries(&at(header.entries_lba, header.table_bytes)?)?)
}

struct Header {
    entries_lba: u64,
    entry_bytes: usize,
    table_bytes: usize,
    table_crc: u32,
}

impl Header {
    fn parse(bytes: &[u8], lba: u64) -> Result<Header, &'static str> {
        if bytes.get(..8) != Some(b"EFI PART") {
            return Err("no signature");
        }
        let size = u32_at(bytes, 12).ok_or("short header")? as usize;
        let mut covered = bytes.get(..size).filter(|_| size >= 92).ok_or("bad header size")?.to_vec();
        let crc = u32_at(bytes, 16).ok_or("short header")?;
        covered.get_mut(16..20).ok_or("short header")?.fill(0);
        if crc32fast::hash(&covered) != crc {
            return Err("header checksum");
        }
        if u64_at(bytes, 24) != Some(lba) {
            return Err("header of another place");
        }
        let entries_lba = u64_at(bytes, 72).ok_or("short header")?;
        let count = u32_at(bytes, 80).ok_or("short header")?;
        let entry_bytes = u32_at(bytes, 84).ok_or("short header")?;
        let table_bytes = u64::from(count).checked_mul(entry_bytes.into()).filter(|n| *n <= MAX_TABLE);
        if entry_bytes < 128 {
            return Err("entry size");
        }
        Ok(Header {
            entries_lba,
            entry_bytes: entry_bytes as usize,
            table_bytes: table_bytes.and_then(|n| usize::try_from(n).ok()).ok_or("table too large")?,
            table_crc: u32_at(bytes, 88).ok_or("short header")?,
        })
    }

    fn entries(&self, table: &[u8]) -> Result<Vec<BootPartition>, &'static str> {
        if table.len() != self.table_bytes || crc32fast::hash(table) != self.table_crc {
            return Err("table checksum");
        }
        Ok((1u32..)
            .zip(table.chunks(self.entry_bytes))
            .filter(|(_, entry)| entry.get(..16).is_some_and(|kind| kind.iter().any(|b| *b != 0)))
            .filter_map(|(number, entry)| {
                let (start, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
                Some(BootPartition {
                    number,
                    start,
                    blocks: last.checked_sub(start)?.checked_add(1)?,
                    guid: Guid(entry.get(16..32)?.try_into().ok()?),
                })
            })
            .collect())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// A disk with a GPT, for the tests of this crate.
#[cfg(test)]
pub(crate) mod sample {
    /// 64 sectors of 512 bytes: both tables, with the given unique ids (on-disk byte order) as partitions 1, 2, …
    pub fn disk(ids: &[[u8; 16]]) -> Vec<u8> {
        let mut table = vec![0; 16 * 128];
        for (entry, id) in table.chunks_mut(128).zip(ids) {
            entry[..16].fill(0xaa);
            entry[16..32].copy_from_slice(id);
            entry[32..40].copy_from_slice(&34u64.to_le_bytes());
            entry[40..48].copy_from_slice(&41u64.to_le_bytes());
        }
        let mut disk = vec![0; 64 * 512];
        for (lba, entries) in [(1u64, 2u64), (63, 59)] {
            let mut header = [0; 92];
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92u32.to_le_bytes());
            header[24..32].copy_from_slice(&lba.to_le_bytes());
            header[72..80].copy_from_slice(&entries.to_le_bytes());
            header[80..84].copy_from_slice(&16u32.to_le_bytes());
            header[84..88].copy_from_slice(&128u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
            let crc = crc32fast::hash(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            let (at, to) = (lba as usize * 512, entries as usize * 512);
            disk[at..at + 92].copy_from_slice(&header);
            disk[to..to + table.len()].copy_from_slice(&table);
        }
        disk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: [u8; 16] = [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 1, 2, 3, 4, 5, 6];
    const TEXT: &str = "00112233-4455-6677-8899-010203040506";

    fn partition(number: u32, id: [u8; 16]) -> BootPartition {
        BootPartition { number, start: 34, blocks: 8, guid: Guid(id) }
    }

    fn ids(disk: &[u8]) -> Result<Vec<BootPartition>, GptError> {
        let mut read = |offset: u64, length: usize| {
            let offset = usize::try_from(offset).map_err(std::io::Error::other)?;
            let end = offset.checked_add(length).ok_or_else(|| std::io::Error::other("range"))?;
            disk.get(offset..end).map(<[u8]>::to_vec).ok_or_else(|| std::io::Error::other("end"))
        };
        partitions(&mut read, disk.len() as u64, 512)
    }

    #[test]
    fn reads_the_primary_table_and_the_backup_when_a_bit_flips() {
        let disk = sample::disk(&[ID, [9; 16]]);
        let expected = vec![partition(1, ID), partition(2, [9; 16])];
        assert_eq!(expected[0].guid.to_string(), TEXT);
        assert_eq!(ids(&disk).unwrap(), expected);
        for at in [512, 512 + 80, 1024 + 20] {
            let mut flipped = disk.clone();
            flipped[at] ^= 1;
            assert_eq!(ids(&flipped).unwrap(), expected, "byte {at}");
        }
    }

    #[test]
    fn says_what_is_wrong_when_both_are_gone() {
        let mut disk = sample::disk(&[ID]);
        disk[512] ^= 1;
        disk[63 * 512 + 30] ^= 1;
        assert_eq!(
            ids(&disk).unwrap_err().to_string(),
            "no sound GPT (no signature; backup: header checksum)"
        );
        assert!(ids(&[]).is_err());
    }

    proptest! {
        #[test]
        fn headers_are_total(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), lba: u64) {
            let _ = Header::parse(&bytes, lba);
            // and with a right signature and checksum, so that the fields behind them are reached
            if bytes.len() >= 92 {
                bytes[..8].copy_from_slice(b"EFI PART");
                bytes[12..16].copy_from_slice(&92u32.to_le_bytes());
                bytes[24..32].copy_from_slice(&lba.to_le_bytes());
                bytes[16..20].fill(0);
                let crc = crc32fast::hash(&bytes[..92]);
                bytes[16..20].copy_from_slice(&crc.to_le_bytes());
                if let Ok(header) = Header::parse(&bytes, lba) {
                    prop_assert!(header.table_bytes as u64 <= MAX_TABLE);
                    let _ = header.entries(&bytes);
                }
            }
        }

        #[test]
        fn disks_are_total(flips in proptest::collection::vec((0..64usize * 512, any::<u8>()), 0..8)) {
            let mut disk = sample::disk(&[ID]);
            for (at, value) in flips {
                disk[at] = value;
            }
            let _ = ids(&disk);
        }
    }
}
