//! A boot option, a partition id and a command line, as firmware hands them over.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = rustiot_loader::load_option::parse(bytes);
    let _ = rustiot_init::cmdline::uuid_variable(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = rustiot_init::cmdline::Cmdline::parse(text);
    }
});
