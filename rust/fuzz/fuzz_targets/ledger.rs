//! A copy of the boot ledger: a sound frame is found again, and what it holds is a record or nothing.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = rustiot_durable::parse(bytes);
    if let Some(frame) = rustiot_durable::frame(7, bytes) {
        assert_eq!(rustiot_durable::parse(&frame), Ok((7, bytes)));
    }
    if let Ok(record) = serde_json::from_slice::<rustiot_boot::Record>(bytes) {
        let booted = rustiot_boot::Event::Booted {
            slot: rustiot_boot::Slot::A,
            boot_id: "fuzz".into(),
            reset: rustiot_boot::ResetReason::Power,
            pstore_tail: Vec::new(),
        };
        let _ = rustiot_boot::step(&record, booted);
    }
});
