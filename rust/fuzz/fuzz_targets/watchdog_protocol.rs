//! A datagram on the watchdog's socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = rustiot_liveness::protocol::Message::parse(bytes);
});
