//! The datagrams that children send to `/run/rustiot/watchdog.sock`: a total parser and its inverse.
//!
//! Never trusts the bytes: length, character set and numbers are bounded here, who may say what is decided by
//! the kernel's credentials by the watchdog. Contract: `docs/contracts/watchdog.md`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest datagram that is looked at, in bytes.
pub const MAX_DATAGRAM: usize = 512;
/// Longest name of a child, in bytes.
pub const MAX_NAME: usize = 48;
/// Longest unit name (systemd's own limit is 255).
pub const MAX_UNIT: usize = 255;
/// Shortest and longest time of silence that a child may ask for, in seconds.
pub const TIMEOUT_S: std::ops::RangeInclusive<u64> = 5..=3600;
/// Longest reason that is kept, in bytes.
pub const MAX_REASON: usize = 300;

/// Name of a child: 1 to [`MAX_NAME`] of `a-z A-Z 0-9 - _ . / @`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Name of a systemd unit that can be restarted: it ends in `.service` and does not start with `-` or `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Watch me: act when I am silent for longer than `timeout`.
    Hello {
        /// Under which name.
        name: Name,
        /// Longest silence.
        timeout: Duration,
        /// Unit to restart; the sender's own when left out.
        unit: Option<UnitName>,
    },
    /// I make progress.
    Alive(Name),
    /// I end in order; stop watching me.
    Bye(Name),
    /// I make progress, but the device is unfit and I cannot mend it: please reboot when that is allowed.
    Fail {
        /// Who says so.
        name: Name,
        /// Why, for people.
        reason: String,
    },
    /// The system shuts down in order: silence is to be expected from now on.
    Stopping,
}

/// Why a datagram was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than [`MAX_DATAGRAM`].
    #[error("datagram is longer than {MAX_DATAGRAM} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("datagram is not UTF-8")]
    NotText,
    /// The first word is none of ours.
    #[error("unknown verb, expected HELLO, ALIVE, BYE, FAIL or STOPPING")]
    Verb,
    /// The name is missing or has other characters.
    #[error("bad name, expected 1 to {MAX_NAME} of a-z A-Z 0-9 - _ . / @")]
    Name,
    /// The time of silence is missing, not a number or out of range.
    #[error("bad timeout, expected whole seconds from 5 to 3600")]
    Timeout,
    /// The unit's name is not one.
    #[error("bad unit, expected a name that ends in .service")]
    Unit,
    /// More words than the verb takes.
    #[error("too many words")]
    Extra,
}

impl Name {
    /// # Errors
    /// [`Malformed::Name`].
    pub fn new(text: &str) -> Result<Self, Malformed> {
        let first = text.bytes().next().ok_or(Malformed::Name)?;
        let fits = text.len() <= MAX_NAME
            && first.is_ascii_alphanumeric()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./@".contains(&b));
        if fits { Ok(Self(text.to_owned())) } else { Err(Malformed::Name) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl UnitName {
    /// # Errors
    /// [`Malformed::Unit`].
    pub fn new(text: &str) -> Result<Self, Malformed> {
        let stem = text.strip_suffix(".service");
        let fits = text.len() <= MAX_UNIT
            && stem.is_some_and(|s| !s.is_empty() && !s.starts_with('-') && !s.starts_with('.'))
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b));
        if fits { Ok(Self(text.to_owned())) } else { Err(Malformed::Unit) }
    }

    /// The unit as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for UnitName {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        Self::new(&text)
    }
}

impl From<UnitName> for String {
    fn from(unit: UnitName) -> String {
        unit.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Message {
    /// Reads one datagram. Any bytes give a message or an error; one newline at the end is forgiven, so that
    /// a shell script can be a child too.
    ///
    /// # Errors
    /// [`Malformed`], which says what was expected.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(Malformed::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed::NotText)?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        match verb {
            "HELLO" => {
                let mut words = rest.split(' ');
                let name = Name::new(words.next().unwrap_or_default())?;
                let timeout = words.next().and_then(|w| w.parse().ok()).filter(|s| TIMEOUT_S.contains(s));
                let timeout = Duration::from_secs(timeout.ok_or(Malformed::Timeout)?);
                let unit = words.next().map(UnitName::new).transpose()?;
                if words.next().is_some() {
                    return Err(Malformed::Extra);
                }
                Ok(Self::Hello { name, timeout, unit })
            }
            "ALIVE" => Name::new(rest).map(Self::Alive),
            "BYE" => Name::new(rest).map(Self::Bye),
            "FAIL" => {
                let (name, reason) = rest.split_once(' ').unwrap_or((rest, "no reason given"));
                Ok(Self::Fail { name: Name::new(name)?, reason: printable(reason) })
            }
            "STOPPING" if rest.is_empty() => Ok(Self::Stopping),
            "STOPPING" => Err(Malformed::Extra),
            _ => Err(Malformed::Verb),
        }
    }
}

/// At most [`MAX_REASON`] bytes, without control characters: the reason goes to the console and to the ledger.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len().saturating_add(c.len_utf8()) > MAX_REASON {
            break;
        }
        out.push(c);
    }
    out
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { name, timeout, unit: None } => write!(f, "HELLO {name} {}", timeout.as_secs()),
            Self::Hello { name, timeout, unit: Some(unit) } => {
                write!(f, "HELLO {name} {} {unit}", timeout.as_secs())
            }
            Self::Alive(name) => write!(f, "ALIVE {name}"),
            Self::Bye(name) => write!(f, "BYE {name}"),
            Self::Fail { name, reason } => write!(f, "FAIL {name} {}", printable(reason)),
            Self::Stopping => f.write_str("STOPPING"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn reads_what_the_contract_lists() {
        let table = [
            (
                "HELLO engine 30",
                Message::Hello { name: name("engine"), timeout: Duration::from_secs(30), unit: None },
            ),
            (
                "HELLO apps/web 5 web.service\n",
                Message::Hello {
                    name: name("apps/web"),
                    timeout: Duration::from_secs(5),
                    unit: Some(UnitName::new("web.service").unwrap()),
                },
            ),
            ("ALIVE engine", Message::Alive(name("engine"))),
            ("BYE engine", Message::Bye(name("engine"))),
            (
                "FAIL health disk: read-only\u{7}",
                Message::Fail { name: name("health"), reason: "disk: read-only ".into() },
            ),
            ("STOPPING", Message::Stopping),
        ];
        for (text, expected) in table {
            assert_eq!(Message::parse(text.as_bytes()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else_and_says_what_was_expected() {
        let table: &[(&[u8], Malformed)] = &[
            (b"", Malformed::Verb),
            (b"hello engine 30", Malformed::Verb),
            (b"HELLO", Malformed::Name),
            (b"HELLO  30", Malformed::Name),
            (b"HELLO -x 30", Malformed::Name),
            (b"HELLO engine", Malformed::Timeout),
            (b"HELLO engine 4", Malformed::Timeout),
            (b"HELLO engine 3601", Malformed::Timeout),
            (b"HELLO engine -5", Malformed::Timeout),
            (b"HELLO engine 99999999999999999999", Malformed::Timeout),
            (b"HELLO engine 30 --force.service", Malformed::Unit),
            (b"HELLO engine 30 a.target", Malformed::Unit),
            (b"HELLO engine 30 session-1.scope", Malformed::Unit),
            (b"HELLO engine 30 .service", Malformed::Unit),
            (b"HELLO engine 30 a.service b.service", Malformed::Extra),
            (b"ALIVE", Malformed::Name),
            (b"ALIVE a b", Malformed::Name),
            (b"BYE \xff", Malformed::NotText),
            (b"STOPPING now", Malformed::Extra),
            (&[b'A'; MAX_DATAGRAM + 1], Malformed::TooLong),
        ];
        for (bytes, expected) in table {
            assert_eq!(Message::parse(bytes), Err(*expected), "{}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            let _ = Message::parse(&bytes);
        }

        #[test]
        fn what_is_understood_says_the_same_when_it_is_written_again(
            text in "(HELLO|ALIVE|BYE|FAIL|STOPPING)( [a-zA-Z0-9._/@-]{0,50}){0,3}( .{0,40})?"
        ) {
            if let Ok(message) = Message::parse(text.as_bytes()) {
                prop_assert_eq!(Message::parse(message.to_string().as_bytes()), Ok(message));
            }
        }
    }
}
