//! Deltas: any bytes are an error or a target; checksums count as right here, so that what is behind them is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustiot_delta::{Delta, ReadAt};

fuzz_target!(|data: &[u8]| {
    let Ok(delta) = Delta::open(data) else { return };
    let header = delta.header().clone();
    let _ = delta.needs(0..header.target_len);
    if header.target_len > 1 << 22 || header.sources.iter().any(|source| source.len > 1 << 20) {
        return;
    }
    let sources =
        header.sources.iter().map(|source| Box::new(old(source.len as usize)) as Box<dyn ReadAt + Send>);
    let Ok(mut target) = delta.target(sources.collect()) else { return };
    let mut part = [0; 300];
    for at in [header.target_len / 2, 0, header.target_len.saturating_sub(300)] {
        let len = 300.min(header.target_len - at) as usize;
        let _ = target.read_at(at, &mut part[..len]);
    }
    let _ = target.verify(&mut |_| Ok(()));
});

/// Old data in which references are found: CALL, RIP-relative, ADRP with its LDR, BL, a pointer.
fn old(len: usize) -> Vec<u8> {
    let words: [u32; 8] = [0xe800_0010, 0x058b_4800, 0x20, 0xb000_0000, 0xf940_0400, 0x9400_0010, 0x1040, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).cycle().take(len).collect()
}
