//! The first bytes of a partition, which decide whether it is formatted.
#![no_main]

use rustiot_provision::superblock::{Found, PROBE, look};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    bytes.truncate(PROBE);
    match look(&bytes) {
        Found::Blank => {
            assert!(bytes.iter().all(|byte| *byte == 0) || bytes.iter().all(|byte| *byte == 0xff))
        }
        Found::Ext4 { unfinished, .. } => {
            assert_eq!(bytes[1080..1082], [0x53, 0xef]);
            let label = bytes.get(1144..1160).unwrap_or_default();
            assert!(!unfinished || label.windows(4).any(|part| part == b"-new"), "{label:?}");
            // Nothing outside the superblock changes the answer, and without its magic it is no ext4.
            assert_eq!(look(&bytes[..bytes.len().min(2048)]), look(&bytes));
            bytes[1080] = 0;
            assert!(!matches!(look(&bytes), Found::Ext4 { .. }));
        }
        Found::Other => {
            bytes.fill(0);
            assert_eq!(look(&bytes), Found::Blank);
        }
    }
});
