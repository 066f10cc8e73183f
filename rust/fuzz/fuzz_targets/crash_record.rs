//! What a kernel that died left in pstore: as many records as there are zero bytes.
#![no_main]

use rustiot_init::pstore::Crash;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let records = bytes.split(|byte| *byte == 0).map(|record| String::from_utf8_lossy(record).into_owned());
    let crash = Crash::from_texts(records.collect());
    assert!(crash.panic || !crash.verity);
    for line in crash.tail() {
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
});
