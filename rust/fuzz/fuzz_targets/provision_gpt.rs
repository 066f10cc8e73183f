//! A partition table that provisioning grows: at every write the kernel still has one with `data` where it was, no
//! partition is written to, and a second run has nothing to do.
//!
//! The input: two bytes for size and sector of the medium, then what stands from the first header on, then what stands
//! at the end; of either half. Checksums are put right so that the rest is reached.
#![no_main]

use rustiot_provision::gpt::{Error, Read, grow};

struct Medium(Vec<u8>);

impl Read for Medium {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        self.0.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [size, sector, rest @ ..] = bytes else { return };
    let sector = [512, 512, 1024, 4096][usize::from(*sector % 4)];
    // 64 KiB to 2 MiB: the end of a partition is a multiple of 1 MiB.
    let size = ((128 + usize::from(*size) * 16) * 512).max(128 * sector) / sector * sector;
    let mut disk = vec![0; size];
    let (front, back) = rest.split_at(rest.len() / 2);
    let (front, back) = (&front[..front.len().min(size / 2)], &back[..back.len().min(size / 2)]);
    disk[sector..sector + front.len()].copy_from_slice(front);
    disk[size - back.len()..].copy_from_slice(back);
    for header in [sector, size - sector] {
        put_right(&mut disk, header, sector);
    }

    let medium = Medium(disk);
    let (size, sector) = (size as u64, sector as u64);
    let Ok(plan) = grow(&medium, size, sector, "data") else { return };
    let data = plan.partition.start..plan.partition.start + plan.partition.length;
    assert!(data.start < data.end && data.end <= size, "{data:?} of {size}");

    let had_primary = !primary_is_gone(&medium, size, sector);
    let mut disk = medium;
    for (offset, bytes) in &plan.writes {
        let end = offset + bytes.len() as u64;
        assert!(*offset >= sector && end <= size, "{offset}..{end} is not for tables");
        assert!(end <= data.start || data.end <= *offset, "{offset}..{end} is in {data:?}");
        disk.0[*offset as usize..end as usize].copy_from_slice(bytes);
        assert!(
            !had_primary || !primary_is_gone(&disk, size, sector),
            "no table after the write at {offset}"
        );
        if let Ok(now) = grow(&disk, size, sector, "data") {
            assert_eq!(now.partition, plan.partition);
        }
    }
    let again = grow(&disk, size, sector, "data").expect("what was grown is sound");
    assert_eq!((again.partition, again.writes.len()), (plan.partition, 0));
});

/// Whether the kernel, which looks at the primary table only, would find none.
fn primary_is_gone(disk: &Medium, size: u64, sector: u64) -> bool {
    let mut alone = Medium(disk.0.clone());
    alone.0[(size - sector) as usize..].fill(0);
    matches!(grow(&alone, size, sector, "data"), Err(Error::NoTable))
}

fn put_right(disk: &mut [u8], header: usize, sector: usize) {
    let u32_at =
        |disk: &[u8], at: usize| u32::from_le_bytes([disk[at], disk[at + 1], disk[at + 2], disk[at + 3]]);
    let lba = u64::from(u32_at(disk, header + 72));
    let length = u64::from(u32_at(disk, header + 80)).saturating_mul(u32_at(disk, header + 84).into());
    let start = lba.saturating_mul(sector as u64);
    if let Some(table) = disk.get(start as usize..start.saturating_add(length) as usize) {
        let crc = crc32fast::hash(table);
        disk[header + 88..header + 92].copy_from_slice(&crc.to_le_bytes());
    }
    let size = u32_at(disk, header + 12) as usize;
    if (92..=sector).contains(&size) {
        disk[header + 16..header + 20].fill(0);
        let crc = crc32fast::hash(&disk[header..header + size]);
        disk[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
    }
}
