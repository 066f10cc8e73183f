//! A board file or a disk layout: any text gives a board or a message.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = rustiot_board::Board::parse("fuzz.toml", text);
        let _ = rustiot_board::Layout::parse("fuzz.toml", text);
    }
});
