//! Byte ranges in headers: `Range: bytes=…` as a client may send it, `Content-Range` as a server may answer it
//! (RFC 9110, 14).
//!
//! Pure and total; property-tested and fuzzed. Ranges here are half open, in bytes from the start of the file. Called
//! by [`crate::Http`] on one side and by the fetch proxy on the other.

use std::ops::Range;

/// What a `Content-Range` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContentRange {
    /// The bytes that are sent; `None` in an answer 416.
    pub range: Option<Range<u64>>,
    /// Length of the whole file, where the server knows it.
    pub total: Option<u64>,
}

/// Reads the value of a `Content-Range`. `None` is anything that RFC 9110 does not allow.
#[must_use]
pub fn parse_content_range(value: &str) -> Option<ContentRange> {
    let (unit, rest) = value.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim_start().split_once('/')?;
    let total = match total {
        "*" => None,
        digits => Some(number(digits)?),
    };
    if range == "*" {
        // Only an answer 416 says so, and it has to know the length.
        return total.map(|total| ContentRange { range: None, total: Some(total) });
    }
    let (first, last) = range.split_once('-')?;
    let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
    let fits = first < end && total.is_none_or(|total| end <= total);
    fits.then_some(ContentRange { range: Some(first..end), total })
}

/// What a `Range` asks for, before the length of the file is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// `bytes=first-last`; the last byte is included.
    FromTo(u64, u64),
    /// `bytes=first-`.
    From(u64),
    /// `bytes=-count`: the last bytes of the file.
    Last(u64),
}

impl Wanted {
    /// The bytes of a file of `total` bytes; `None` cannot be satisfied (416).
    #[must_use]
    pub fn within(self, total: u64) -> Option<Range<u64>> {
        let range = match self {
            Wanted::FromTo(first, last) => first..last.saturating_add(1).min(total),
            Wanted::From(first) => first..total,
            Wanted::Last(count) => total.saturating_sub(count)..total,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Reads the value of a `Range` with one range of bytes. `None` is everything else: such a header is ignored, as
/// RFC 9110 allows, and several ranges at once are not offered.
#[must_use]
pub fn parse_range(value: &str) -> Option<Wanted> {
    let (unit, range) = value.trim().split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    match (first, last) {
        ("", count) => Some(Wanted::Last(number(count)?)),
        (first, "") => Some(Wanted::From(number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Wanted::FromTo(first, last))
        }
    }
}

/// Digits and nothing else: no sign, no space, as the grammar has it.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_ranges() {
        let read = parse_content_range;
        assert_eq!(read("bytes 0-3/10"), Some(ContentRange { range: Some(0..4), total: Some(10) }));
        assert_eq!(read("Bytes 4-9/*"), Some(ContentRange { range: Some(4..10), total: None }));
        assert_eq!(read("bytes */10"), Some(ContentRange { range: None, total: Some(10) }));
        for wrong in [
            "",
            "bytes",
            "bytes */*",
            "bytes 0-3",
            "bytes 3-0/10",
            "bytes 0-10/10",
            "bytes +0-3/10",
            "bytes 0 - 3/10",
            "bytes 0-3/10, 4-5/10",
            "items 0-3/10",
            "bytes=0-3/10",
            "bytes 0-18446744073709551615/*",
            "bytes 0-3/99999999999999999999",
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes=0-3"), Some(Wanted::FromTo(0, 3)));
        assert_eq!(parse_range("bytes=5-"), Some(Wanted::From(5)));
        assert_eq!(parse_range("bytes=-5"), Some(Wanted::Last(5)));
        for other in ["bytes=3-0", "bytes=0-3,5-6", "bytes=-", "bytes=a-b", "lines=0-3", "bytes 0-3", ""] {
            assert_eq!(parse_range(other), None, "{other:?}");
        }
        assert_eq!(Wanted::FromTo(0, 3).within(10), Some(0..4));
        assert_eq!(Wanted::FromTo(8, 30).within(10), Some(8..10));
        assert_eq!(Wanted::FromTo(10, 30).within(10), None);
        assert_eq!(Wanted::From(10).within(10), None);
        assert_eq!(Wanted::Last(30).within(10), Some(0..10));
        assert_eq!(Wanted::Last(0).within(10), None);
        assert_eq!(Wanted::FromTo(0, u64::MAX).within(u64::MAX), Some(0..u64::MAX));
    }

    proptest! {
        #[test]
        fn total_on_any_text(text: String) {
            let _ = parse_content_range(&text);
            let _ = parse_range(&text);
        }

        #[test]
        fn round_trip(start in 0u64..u64::MAX - 1, len in 1u64..1_000_000, more in 0u64..1_000_000) {
            let end = start.saturating_add(len).min(u64::MAX - 1);
            prop_assume!(start < end);
            let total = end.saturating_add(more);
            let text = format!("bytes {start}-{}/{total}", end - 1);
            let expected = ContentRange { range: Some(start..end), total: Some(total) };
            prop_assert_eq!(parse_content_range(&text), Some(expected));
            let wanted = parse_range(&format!("bytes={start}-{}", end - 1));
            prop_assert_eq!(wanted.and_then(|wanted| wanted.within(total)), Some(start..end));
        }

        #[test]
        fn what_is_read_fits(text in "bytes [0-9*]{1,20}-?[0-9]{0,20}/[0-9*]{1,20}", total: u64) {
            if let Some(ContentRange { range: Some(range), total }) = parse_content_range(&text) {
                prop_assert!(range.start < range.end);
                prop_assert!(total.is_none_or(|total| range.end <= total));
            }
            if let Some(range) = parse_range(&text.replacen(' ', "=", 1)).and_then(|wanted| wanted.within(total)) {
                prop_assert!(range.start < range.end && range.end <= total);
            }
        }
    }
}
