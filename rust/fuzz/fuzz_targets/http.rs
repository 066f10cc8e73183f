//! A request to the rescue page.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = rustiot_init::http::parse(bytes);
});
