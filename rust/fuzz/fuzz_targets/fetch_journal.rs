//! The journal of a download: whole frames are found again, and anything after them is not read.
#![no_main]

use rustiot_fetch::journal::{frame, parse};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (entries, used) = parse(bytes);
    assert!(used <= bytes.len());
    let again: Vec<u8> = entries.iter().filter_map(frame).flatten().collect();
    assert_eq!(parse(&again).0, entries);
});
