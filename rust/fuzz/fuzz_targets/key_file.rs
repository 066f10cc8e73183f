//! The configuration of the stand-in for rauc-hawkbit-updater.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = rustiot_hawkbit::shim::config::Config::parse(bytes);
});
