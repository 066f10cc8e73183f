//! What the owner is told about a configuration file: where, what was expected, and what happens now.
//!
//! Never holds a secret: a value of a secret key is not part of any text. Made by [`crate::fragment`] and
//! [`crate::resolve`]; shown by `rustiot provision status`, the console and the journal.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing is lost: an unknown key, a reserved one.
    Warning,
    /// Something that was written is not in force.
    Error,
}

/// A place in a file. Line and column count from 1, the column in characters; both are 0 for "the file itself".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Path of the file on the device.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Place {
    /// The file as a whole.
    pub fn file(file: &str) -> Self {
        Self { file: file.to_owned(), line: 0, column: 0 }
    }
}

/// Bytes of a line whose characters are counted for the column; what lies behind counts in bytes.
const MAX_COUNTED: usize = 4096;

/// Finds places in the text of one file, in logarithmic time (a hostile file has a hundred thousand keys).
pub(crate) struct Lines<'a> {
    file: &'a str,
    text: &'a str,
    /// Byte offset of each line's first character.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Indexes the lines of a file's text.
    pub fn new(file: &'a str, text: &'a str) -> Self {
        let first = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let next = text.match_indices('\n').map(|(at, _)| at.saturating_add(1));
        Self { file, text, starts: [first].into_iter().chain(next).collect() }
    }

    /// The text that was indexed.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The place of a byte offset. An offset past the end is the end.
    pub fn place(&self, offset: usize) -> Place {
        let offset = (0..=offset.min(self.text.len())).rev().find(|o| self.text.is_char_boundary(*o));
        let offset = offset.unwrap_or(0);
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        // Far into a line no person counts characters, and counting them for every value would take minutes.
        let near = (start..=offset.min(start.saturating_add(MAX_COUNTED))).rev();
        let near = near.into_iter().find(|o| self.text.is_char_boundary(*o)).unwrap_or(start);
        let counted = self.text.get(start..near).unwrap_or("").chars().count();
        let column = counted.saturating_add(offset.saturating_sub(near));
        Place {
            file: self.file.to_owned(),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column.saturating_add(1)).unwrap_or(u32::MAX),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// One thing to tell the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// How much it matters.
    pub severity: Severity,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// The key it is about, such as `network.lan.gateway`; empty when it is about the file.
    pub key: String,
    /// What is wrong, with what was expected.
    pub what: String,
    /// What happens now.
    pub now: String,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{}: {severity}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.what, self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_from_one_in_characters() {
        let text = "\u{feff}a = 1\r\nü = x\n";
        let at = |offset| {
            let place = Lines::new("f", text).place(offset);
            (place.line, place.column)
        };
        assert_eq!(at(0), (1, 1));
        assert_eq!(at(3), (1, 1), "the BOM has no column");
        assert_eq!(at(7), (1, 5));
        assert_eq!(at(text.find('x').unwrap()), (2, 5), "ü is one character");
        assert_eq!(at(text.find('ü').unwrap() + 1), (2, 1), "in the middle of a character");
        assert_eq!(at(usize::MAX), (3, 1));
    }
}
