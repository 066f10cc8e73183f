//! The owner's rustiot.toml: any bytes give settings, and the kept values bring them back.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rustiot_config::fuzz(bytes));
