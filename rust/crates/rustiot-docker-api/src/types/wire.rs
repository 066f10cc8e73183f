//! How Docker's JSON differs from what serde would write: year-1 times, `{}` as a value, strings that are also lists.
//!
//! Used only by the types beside it.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `{}`: the value in maps that Docker uses as sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Docker's "never".
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// For `serde(with)`: a time, or Docker's year 1 for none.
pub mod zero_time {
    use super::{Deserialize, Deserializer, Serializer, Timestamp, ZERO_TIME};

    /// Writes the time in RFC 3339, nanoseconds included.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.collect_str(time),
            None => serializer.serialize_str(ZERO_TIME),
        }
    }

    /// Reads it back; anything of year 1 is `None`.
    ///
    /// # Errors
    /// When the text is no time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || text.starts_with("0001-") {
            return Ok(None);
        }
        text.parse().map(Some).map_err(serde::de::Error::custom)
    }
}

/// A command as a list, or as one string that stands for a list of one.
pub fn list_or_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        List(Vec<String>),
    }
    Ok(Option::<Either>::deserialize(deserializer)?.map(|either| match either {
        Either::One(one) => vec![one],
        Either::List(list) => list,
    }))
}

/// `skip_serializing_if` for zero.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub fn is_zero(value: &i64) -> bool {
    *value == 0
}
