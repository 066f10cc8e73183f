//! The Raspberry Pi's selector: any FAT, any text. What is found lies inside, what is selected is read back from ours.
#![no_main]

use rustiot_loader::autoboot::{FILE_MAX, Selection, find};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(selection) = Selection::parse(bytes) {
        assert_eq!(Selection::parse(selection.text().as_bytes()), Some(selection));
    }
    // A boot sector with its signature, then whatever comes.
    let mut disk = vec![0; bytes.len().max(512)];
    disk[..bytes.len()].copy_from_slice(bytes);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut read = |offset: u64, length: usize| {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(length);
        disk.get(start..end).map(<[u8]>::to_vec).ok_or(std::io::ErrorKind::UnexpectedEof.into())
    };
    if let Ok(place) = find(&mut read) {
        assert!((1..=FILE_MAX).contains(&place.length));
    }
});
