//! Key files as GLib reads them: groups in brackets, `key = value`, comments with `#`.
//!
//! Pure; knows no key. The rules are those of the Desktop Entry Specification as far as GLib applies them: spaces
//! around `=` do not count, the last of two equal keys does, a value's end is kept as it stands. Called by the shim's
//! configuration.

use std::collections::BTreeMap;

/// Longest file that is read, bytes.
pub const MOST: usize = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Longer than [`MOST`].
    #[error("the file has more than {MOST} bytes")]
    TooLong,
    /// Not text.
    #[error("line {0} is not UTF-8")]
    Text(usize),
    /// Neither group, nor pair, nor comment.
    #[error("line {line} is not a key-value pair, group, or comment: {text:?}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// A pair before the first group.
    #[error("line {0}: the file does not start with a group")]
    NoGroup(usize),
    /// A key or group is missing.
    #[error("the key {key:?} in the group {group:?} is missing")]
    Missing {
        /// The group.
        group: String,
        /// The key.
        key: String,
    },
    /// A value of another type.
    #[error("the value {value:?} of {key:?} is not {expected}")]
    Value {
        /// The key.
        key: String,
        /// What stands there.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
}

/// A key file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFile {
    groups: BTreeMap<String, BTreeMap<String, String>>,
}

impl KeyFile {
    /// Reads the whole file.
    ///
    /// # Errors
    /// [`Error`] with the line.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MOST {
            return Err(Error::TooLong);
        }
        let mut file = Self::default();
        let mut group: Option<String> = None;
        for (line, bytes) in (1_usize..).zip(bytes.split(|byte| *byte == b'\n')) {
            let text = std::str::from_utf8(bytes).map_err(|_| Error::Text(line))?;
            let text = text.strip_suffix('\r').unwrap_or(text).trim_start();
            if text.trim_end().is_empty() || text.starts_with('#') {
                continue;
            }
            let bad = || Error::Line { line, text: text.chars().take(80).collect() };
            if let Some(rest) = text.strip_prefix('[') {
                let name = rest.trim_end().strip_suffix(']').ok_or_else(bad)?;
                if name.is_empty() || name.contains(['[', ']']) || name.chars().any(char::is_control) {
                    return Err(bad());
                }
                file.groups.entry(name.to_owned()).or_default();
                group = Some(name.to_owned());
                continue;
            }
            let (key, value) = text.split_once('=').ok_or_else(bad)?;
            let key = key.trim_end();
            if key.is_empty() || key.contains(['[', ']']) {
                return Err(bad());
            }
            let group = group.as_ref().ok_or(Error::NoGroup(line))?;
            let group = file.groups.entry(group.clone()).or_default();
            group.insert(key.to_owned(), value.trim_start().to_owned());
        }
        Ok(file)
    }

    /// All pairs of a group, with their ends trimmed.
    #[must_use]
    pub fn group(&self, group: &str) -> Option<BTreeMap<String, String>> {
        let pairs = self.groups.get(group)?;
        Some(pairs.iter().map(|(key, value)| (key.clone(), value.trim_end().to_owned())).collect())
    }

    /// A text with its escapes resolved and its end trimmed.
    #[must_use]
    pub fn text(&self, group: &str, key: &str) -> Option<String> {
        let raw = self.groups.get(group)?.get(key)?.trim_end();
        let mut text = String::with_capacity(raw.len());
        let mut chars = raw.chars();
        while let Some(c) = chars.next() {
            text.push(match c {
                '\\' => match chars.next()? {
                    's' => ' ',
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    '\\' => '\\',
                    _ => return None,
                },
                c => c,
            });
        }
        Some(text)
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn required(&self, group: &str, key: &str) -> Result<String, Error> {
        self.text(group, key).ok_or_else(|| Error::Missing { group: group.into(), key: key.into() })
    }

    /// A truth value: `true`/`false`, `yes`/`no`, `1`/`0`.
    ///
    /// # Errors
    /// [`Error::Value`] for anything else.
    pub fn truth(&self, group: &str, key: &str, default: bool) -> Result<bool, Error> {
        let Some(value) = self.text(group, key) else { return Ok(default) };
        match value.to_ascii_lowercase().as_str() {
            "1" | "yes" | "true" => Ok(true),
            "0" | "no" | "false" => Ok(false),
            _ => Err(Error::Value { key: key.into(), value, expected: "a boolean" }),
        }
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// [`Error::Value`] for anything else.
    pub fn number(&self, group: &str, key: &str, default: u64) -> Result<u64, Error> {
        let Some(value) = self.text(group, key) else { return Ok(default) };
        value.parse().map_err(|_| Error::Value { key: key.into(), value, expected: "a whole number" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<KeyFile, Error> {
        KeyFile::parse(text.as_bytes())
    }

    #[test]
    fn groups_pairs_and_comments_are_read() {
        let file =
            parse("# c\n\n [client]\r\na=1\n  b = x = y \t\n#a=3\n[device]\nk=\n[client]\na = 2\n").unwrap();
        assert_eq!(file.text("client", "a").as_deref(), Some("2"));
        assert_eq!(file.text("client", "b").as_deref(), Some("x = y"));
        assert_eq!(file.group("device").unwrap()["k"], "");
        assert_eq!(file.text("client", "c"), None);
        assert_eq!(file.group("none"), None);
    }

    #[test]
    fn escapes_are_resolved_in_texts() {
        let file = parse("[g]\na=\\sx\\n\\\\\nb=\\q\nc=\\").unwrap();
        assert_eq!(file.text("g", "a").as_deref(), Some(" x\n\\"));
        assert_eq!((file.text("g", "b"), file.text("g", "c")), (None, None));
    }

    #[test]
    fn values_have_types() {
        let file = parse("[g]\nt=YES\nf=0 \nx=maybe\nn=60 \nm=-1").unwrap();
        assert_eq!((file.truth("g", "t", false), file.truth("g", "f", true)), (Ok(true), Ok(false)));
        assert_eq!(file.truth("g", "none", true), Ok(true));
        assert!(file.truth("g", "x", true).is_err());
        assert_eq!((file.number("g", "n", 1), file.number("g", "none", 7)), (Ok(60), Ok(7)));
        assert!(file.number("g", "m", 1).is_err() && file.required("g", "none").is_err());
    }

    #[test]
    fn what_is_no_key_file_is_refused_with_its_line() {
        assert_eq!(parse("a=1"), Err(Error::NoGroup(1)));
        assert_eq!(KeyFile::parse(b"[g]\n\xff=1"), Err(Error::Text(2)));
        for text in ["[g]\nx", "[g", "[]", "[a[b]", "[g]\n=1", "[g]\na[de]=1", "[g]\n{"] {
            assert!(matches!(parse(text), Err(Error::Line { .. })), "{text:?}");
        }
        assert_eq!(KeyFile::parse(&vec![b'\n'; MOST + 1]), Err(Error::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_file_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = KeyFile::parse(&bytes);
        }

        #[test]
        fn any_lines_are_a_file_or_an_error(lines in proptest::collection::vec("[ \\[\\]=#a-c\\\\]{0,10}", 0..20)) {
            if let Ok(file) = parse(&lines.join("\n")) {
                for group in ["a", "b", "c"] {
                    let _ = (file.group(group), file.text(group, "a"), file.truth(group, "b", true));
                }
            }
        }

        #[test]
        fn what_is_written_is_read(key in "[a-z_]{1,10}", value in "[!-\\[\\]-~]{0,20}") {
            let file = parse(&format!("[g]\n{key} = {value}\n")).unwrap();
            prop_assert_eq!(file.text("g", &key), Some(value));
        }
    }
}
