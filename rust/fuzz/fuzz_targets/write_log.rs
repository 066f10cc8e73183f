//! A disk's write log, as the testbed replays it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(log) = testbed::writelog::WriteLog::parse(&mut std::io::Cursor::new(bytes)) {
        for at in 0..=log.len().min(64) {
            let _ = log.cut(at, 1);
        }
    }
});
