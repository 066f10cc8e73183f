//! A request's query string in Go's manner: what counts as true, numbers, times, durations.
//!
//! Pure, total on any bytes. Used by the HTTP side only; public for the fuzz target.

use jiff::Timestamp;

use crate::Error;

/// The pairs of a query string, decoded.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Of the part after the question mark.
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).map(|(k, v)| (k.into_owned(), v.into_owned())).collect())
    }

    /// The first value of this name that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// All values of this name that are not empty.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.clone()).collect()
    }

    /// Docker's truth: anything but nothing, `0`, `no`, `false`, `none`.
    pub fn is(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| {
            !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
        })
    }

    /// The same with a default for what was not sent.
    pub fn is_or(&self, name: &str, default: bool) -> bool {
        if self.get(name).is_some() { self.is(name) } else { default }
    }

    /// A number, if one was sent.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is none.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.trim().parse().map(Some).map_err(|_| {
                Error::Invalid(format!(
                    "invalid value \"{value}\" for parameter {name}: not a number in range"
                ))
            }),
        }
    }

    /// A point in time as `seconds[.fraction]` since 1970 or in RFC 3339; nothing and `0` are none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is neither.
    pub fn time(&self, name: &str) -> Result<Option<Timestamp>, Error> {
        match self.get(name) {
            None | Some("0") => Ok(None),
            Some(value) => match unix_time(value).or_else(|| value.parse().ok()) {
                Some(time) => Ok(Some(time)),
                None => {
                    Err(Error::Invalid(format!("invalid value \"{value}\" for parameter {name}: not a time")))
                }
            },
        }
    }
}

/// `seconds[.fraction]` since 1970.
pub fn unix_time(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: i32 = digits.parse().ok()?;
    Timestamp::new(seconds, if seconds < 0 || whole.starts_with('-') { -nanos } else { nanos }).ok()
}

/// A duration as Go writes it (`1h30m`, `1.5s`, `-10ms`), in nanoseconds.
pub fn go_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at_checked(digits)?;
        let number: f64 = number.parse().ok()?;
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(letters)?;
        total += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = after;
    }
    // The largest duration of Go is 292 years; beyond it is no duration.
    if !(0.0..9.2e18).contains(&total) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let nanos = total as i64;
    Some(if negative { nanos.checked_neg()? } else { nanos })
}

/// A moment as prune's `until` takes it: Unix seconds, a Go duration before `now`, RFC 3339, or a local date and time
/// (which is UTC here: devices have no other).
pub fn moment(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Some(time) = unix_time(text) {
        return Some(time);
    }
    if let Some(nanos) = go_duration(text) {
        return now.checked_sub(jiff::SignedDuration::from_nanos(nanos)).ok();
    }
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        13 => format!("{text}:00:00Z"),
        16 => format!("{text}:00Z"),
        _ => format!("{text}Z"),
    };
    full.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truth_is_dockers() {
        let q = Query::parse("a=1&b=True&c=0&d=No&e=false&f=none&g=&h&i=anything&x=%2Ftmp%2F+y");
        for yes in ["a", "b", "i"] {
            assert!(q.is(yes), "{yes}");
        }
        for no in ["c", "d", "e", "f", "g", "h", "missing"] {
            assert!(!q.is(no), "{no}");
        }
        assert!(q.is_or("missing", true));
        assert!(!q.is_or("c", true));
        assert_eq!(q.get("x"), Some("/tmp/ y"));
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let q = Query::parse("h=70000&w=80&t=-1");
        assert_eq!(q.number::<u16>("w").unwrap(), Some(80));
        assert_eq!(q.number::<i64>("t").unwrap(), Some(-1));
        assert_eq!(q.number::<u16>("none").unwrap(), None);
        assert!(q.number::<u16>("h").unwrap_err().to_string().contains("\"70000\" for parameter h"));
    }

    #[test]
    fn times_and_durations() {
        let q = Query::parse("a=1700000000.5&b=2023-11-14T22:13:20.5Z&c=0&d=yesterday");
        assert_eq!(q.time("a").unwrap(), q.time("b").unwrap());
        assert_eq!(q.time("c").unwrap(), None);
        assert!(q.time("d").is_err());
        assert_eq!(go_duration("1h30m"), Some(5_400_000_000_000));
        assert_eq!(go_duration("1.5s"), Some(1_500_000_000));
        assert_eq!(go_duration("-10ms"), Some(-10_000_000));
        assert_eq!(go_duration("0"), Some(0));
        for bad in ["", "-", "1", "h", "1x", "1.2.3s", "1h 2m", "99999999999999h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
        let now: Timestamp = "2024-01-02T00:00:00Z".parse().unwrap();
        let expected: Option<Timestamp> = "2024-01-01T00:00:00Z".parse().ok();
        for text in
            ["24h", "2024-01-01", "2024-01-01T00", "2024-01-01T00:00", "2024-01-01T00:00:00", "1704067200"]
        {
            assert_eq!(moment(text, now), expected, "{text}");
        }
        assert_eq!(moment("soon", now), None);
    }
}
