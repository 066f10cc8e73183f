//! Headers with byte ranges, and Retry-After: what is read fits.
#![no_main]

use rustiot_http::range::{parse_content_range, parse_range};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Some(found) = parse_content_range(text) {
        if let Some(range) = found.range {
            assert!(range.start < range.end);
            assert!(found.total.is_none_or(|total| range.end <= total));
        }
    }
    if let Some(wanted) = parse_range(text) {
        for total in [0, 1, 1000, u64::MAX] {
            if let Some(range) = wanted.within(total) {
                assert!(range.start < range.end && range.end <= total);
            }
        }
    }
    let _ = rustiot_http::retry_after(text, Some(text));
});
