//! What the image builder left in the initramfs for rustiot-init.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = rustiot_init::config::InitConfig::parse(bytes);
    let _ = rustiot_init::config::Verity::parse(bytes);
});
