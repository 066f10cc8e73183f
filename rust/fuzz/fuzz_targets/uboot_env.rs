//! A copy of U-Boot's environment, with its checksum put right: what is read can be written and read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut block = crc32fast::hash(bytes).to_le_bytes().to_vec();
    block.extend_from_slice(bytes);
    let _ = rustiot_loader::env::parse(bytes);
    if let Ok(env) = rustiot_loader::env::parse(&block)
        && let Ok(again) = env.to_bytes(block.len())
    {
        assert_eq!(rustiot_loader::env::parse(&again), Ok(env));
    }
});
