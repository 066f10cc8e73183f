//! Sizes as people write them: `"64 MiB"`, `"14 MB"`, `"512 B"`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// A size of `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Size(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

const UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a size: write a number and a unit, such as \"64 MiB\" or \"1.5 MB\"");
        let (number, unit) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let factor =
            UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, f)| *f).ok_or_else(wrong)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 3 {
            return Err(wrong());
        }
        let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
        whole
            .parse::<u64>()
            .ok()
            .and_then(|w| w.checked_mul(factor))
            .and_then(|w| w.checked_add(thousandths.checked_mul(factor)? / 1000))
            .map(Size)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1u64 << 10)] {
            if name == "KiB" && self.0 >= 1 << 20 {
                break;
            }
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{} {name}", self.0 / factor);
            }
        }
        // A whole number of MiB reads better than bytes; one decimal is enough for people.
        if self.0 >= 1 << 20 {
            let tenths = self.0.saturating_mul(10) >> 20;
            return write!(f, "{}.{} MiB", tenths / 10, tenths % 10);
        }
        write!(f, "{} B", self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{} B", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0 B", 0),
            ("64 MiB", 64 << 20),
            ("14 MB", 14_000_000),
            ("1.5 MB", 1_500_000),
            ("1.5 MiB", 1_572_864),
            ("2 GiB", 2 << 30),
            ("3 kB", 3000),
        ] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_and_shows_how() {
        for text in [
            "",
            "64",
            "MiB",
            "64MiB",
            "-1 MiB",
            "1.2.3 MB",
            "1.2345 MB",
            "64 mib",
            "99999999999999999999 GiB",
            "1e3 B",
        ] {
            let message = text.parse::<Size>().expect_err(text);
            assert!(message.contains("64 MiB"), "{message}");
        }
    }

    #[test]
    fn reads_well() {
        for (bytes, text) in [
            (96 << 20, "96 MiB"),
            (1 << 30, "1 GiB"),
            (224_395_264, "214 MiB"),
            (190_918_656, "182.0 MiB"),
            (8 << 10, "8 KiB"),
            (1_500_000, "1.4 MiB"),
            (17, "17 B"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<Size>();
        }

        #[test]
        fn what_is_written_is_read_back(bytes: u64) {
            let text = toml::Value::try_from(Size(bytes)).unwrap();
            prop_assert_eq!(text.try_into::<Size>().unwrap(), Size(bytes));
        }
    }
}
