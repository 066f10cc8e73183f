//! A partition table, damaged in any way, with its checksums put right so that the rest is reached.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut disk = bytes.to_vec();
    disk.resize(disk.len().max(64 * 512), 0);
    for header in [512usize, disk.len() / 512 * 512 - 512] {
        let u32_at = |at: usize| u32::from_le_bytes([disk[at], disk[at + 1], disk[at + 2], disk[at + 3]]);
        let table = u64::from(u32_at(header + 72)) * 512;
        let length = u64::from(u32_at(header + 80)).saturating_mul(u32_at(header + 84).into());
        if let Some(table) = disk.get(table as usize..table.saturating_add(length) as usize) {
            let crc = crc32fast::hash(table);
            disk[header + 88..header + 92].copy_from_slice(&crc.to_le_bytes());
        }
        let size = usize::from(u16::from_le_bytes([disk[header + 12], disk[header + 13]]));
        if (92..=512).contains(&size) {
            disk[header + 16..header + 20].fill(0);
            let crc = crc32fast::hash(&disk[header..header + size]);
            disk[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let mut read = |offset: u64, length: usize| {
        let start = usize::try_from(offset).map_err(std::io::Error::other)?;
        let end = start.checked_add(length).ok_or(std::io::ErrorKind::InvalidInput)?;
        disk.get(start..end).map(<[u8]>::to_vec).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    };
    let _ = rustiot_init::gpt::partitions(&mut read, disk.len() as u64, 512);
});
