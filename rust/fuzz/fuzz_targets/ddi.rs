//! hawkBit's answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = rustiot_hawkbit::ddi::Base::parse(bytes);
    let _ = rustiot_hawkbit::ddi::Order::parse(bytes);
    let _ = rustiot_hawkbit::ddi::parse_cancel(bytes);
});
