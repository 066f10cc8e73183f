//! Reads Retry-After (RFC 9110, 10.2.3): seconds, or a date.
//!
//! Pure. A date is taken relative to the answer's own Date, because the device's clock may be wrong. Called by
//! [`crate::Http`]; public for a fuzz target.

use std::time::Duration;

/// How long the server asks to wait. `date` is the answer's own Date header; without it a date in Retry-After says
/// nothing. Nonsense is no wish.
#[must_use]
pub fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = httpdate::parse_http_date(date?.trim()).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seconds_dates_and_nonsense() {
        let now = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        let seconds = |text| retry_after(text, now).map(|wish| wish.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:37 GMT", None), None);
        for text in ["", "-1", "soon", "1.5", "1s"] {
            assert_eq!(seconds(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn total(value: String, date: Option<String>) {
            let _ = retry_after(&value, date.as_deref());
        }
    }
}
