//! A DHCP reply in rescue: any packet at any time leaves the client alive and asking.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut client = rustiot_init::dhcp::Client::new([2, 0, 0, 0, 0, 1], 0x5249_4f54);
    let mut now = 0u64;
    for packet in bytes.chunks(600) {
        let _ = client.due(now);
        let _ = client.receive(now, packet);
        now = now.saturating_add(60_000);
    }
    assert!(client.due(u64::MAX).is_some(), "a client never falls silent for ever");
});
