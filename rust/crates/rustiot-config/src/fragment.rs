//! Stage one, a fragment: one file's bytes → the keys it gives, each with its place.
//!
//! Knows TOML and nothing of settings. Takes any bytes and never fails as a whole: a file with a syntax error
//! still gives every statement that is whole by itself, and is marked *damaged*, so that the keys it no longer
//! gives keep their last good values. Used by [`crate::resolve`].

use crate::MAX_FILE;
use crate::message::{Lines, Message, Place, Severity};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// More messages about one file than are ever shown.
const MAX_MESSAGES: usize = 200;

/// What a configuration file was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// There is no such file.
    Missing,
    /// It is larger than [`MAX_FILE`]; it was not read.
    TooLarge(u64),
    /// It could not be read; the text says why.
    Unreadable(String),
}

/// One file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Its path as the owner knows it.
    pub file: String,
    /// What was found there.
    pub content: Content,
}

impl Fragment {
    /// Reads a file, at most [`MAX_FILE`] bytes of it. What goes wrong becomes part of the result.
    pub fn read(path: &Path) -> Self {
        Self { file: path.display().to_string(), content: read(path) }
    }
}

fn read(path: &Path) -> Content {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Content::Missing,
        Err(error) => return Content::Unreadable(error.to_string()),
    };
    let mut bytes = Vec::new();
    let limit = MAX_FILE.saturating_add(1);
    if let Err(error) = file.by_ref().take(limit).read_to_end(&mut bytes) {
        return Content::Unreadable(error.to_string());
    }
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if length <= MAX_FILE {
        return Content::Bytes(bytes);
    }
    Content::TooLarge(file.metadata().map_or(length, |meta| meta.len().max(length)))
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub place: Place,
    pub value: NodeValue,
}

/// A TOML value, reduced to what settings can be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NodeValue {
    /// A string, number or boolean.
    Scalar(Value),
    /// Something that no setting is: the text names it ("a date").
    Unfit(&'static str),
    List(Vec<Node>),
    Table(BTreeMap<String, (Place, Node)>),
}

/// What one file gives.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// Top-level keys with the place of the key and the value.
    pub root: BTreeMap<String, (Place, Node)>,
    /// The file is not what its owner wrote: keys that it does not give keep their last good values.
    pub damaged: bool,
    /// What to tell. `now` is still empty.
    pub messages: Vec<Message>,
}

/// Parses one file. Never fails and never panics, whatever the bytes.
pub(crate) fn parse(fragment: &Fragment) -> Parsed {
    let mut parsed = Parsed { root: BTreeMap::new(), damaged: true, messages: Vec::new() };
    let file = fragment.file.as_str();
    let whole_file = |what: String| error(Place::file(file), what);
    match &fragment.content {
        Content::Missing => {
            let what =
                "there is no such file (to go back to the defaults, leave one that only has a comment)";
            parsed.messages.push(whole_file(what.into()));
        }
        Content::TooLarge(length) => parsed
            .messages
            .push(whole_file(format!("the file has {length} bytes; expected at most {MAX_FILE} bytes"))),
        Content::Unreadable(why) => parsed.messages.push(whole_file(format!("cannot be read: {why}"))),
        Content::Bytes(bytes) if bytes.iter().all(|b| b.is_ascii_whitespace() || *b == 0) => {
            let what = "the file is empty (to go back to the defaults, leave one that only has a comment)";
            parsed.messages.push(whole_file(what.into()));
        }
        Content::Bytes(bytes) => parse_bytes(file, bytes, &mut parsed),
    }
    parsed
}

fn error(place: Place, what: String) -> Message {
    Message { severity: Severity::Error, place, key: String::new(), what, now: String::new() }
}

fn parse_bytes(file: &str, bytes: &[u8], parsed: &mut Parsed) {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => std::borrow::Cow::Borrowed(text),
        Err(bad) => {
            let good = bytes.get(..bad.valid_up_to()).unwrap_or(&[]);
            let good = String::from_utf8_lossy(good);
            let hint = match bytes {
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => " (this one is UTF-16)",
                _ => "",
            };
            let what = format!("expected text in UTF-8{hint}: save the file with the encoding UTF-8");
            parsed.messages.push(error(Lines::new(file, &good).place(good.len()), what));
            // Each broken byte becomes U+FFFD, which is fine in a comment and drops the statement elsewhere.
            String::from_utf8_lossy(bytes)
        }
    };
    let lines = Lines::new(file, &text);
    match DeTable::parse(&text) {
        Ok(table) if parsed.messages.is_empty() => {
            parsed.damaged = false;
            parsed.root = convert_table(&Locator { lines: &lines, offset: 0 }, table.get_ref());
        }
        outcome => salvage(&lines, outcome.err().as_ref(), parsed),
    }
}

/// Turns spans into places. `offset` is where the parsed piece starts in the file.
struct Locator<'a> {
    lines: &'a Lines<'a>,
    offset: usize,
}

impl Locator<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        self.lines.place(self.offset.saturating_add(span.start))
    }
}

fn convert_table(at: &Locator<'_>, table: &DeTable<'_>) -> BTreeMap<String, (Place, Node)> {
    let entries = table.iter().map(|(key, value)| {
        let node = convert(at, &value.span(), value.get_ref());
        (key.get_ref().to_string(), (at.place(&key.span()), node))
    });
    entries.collect()
}

/// The depth is bounded by the parser's own recursion limit.
fn convert(at: &Locator<'_>, span: &Range<usize>, value: &DeValue<'_>) -> Node {
    let value = match value {
        DeValue::String(text) if text.contains('\u{fffd}') => {
            NodeValue::Unfit("a text with broken characters")
        }
        DeValue::String(text) => NodeValue::Scalar(Value::from(text.as_ref())),
        DeValue::Boolean(value) => NodeValue::Scalar(Value::from(*value)),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => NodeValue::Scalar(Value::from(number)),
            Err(_) => NodeValue::Unfit("a number out of range"),
        },
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => NodeValue::Scalar(Value::from(number)),
            _ => NodeValue::Unfit("a number out of range"),
        },
        DeValue::Datetime(_) => NodeValue::Unfit("a date"),
        DeValue::Array(items) => {
            NodeValue::List(items.iter().map(|item| convert(at, &item.span(), item.get_ref())).collect())
        }
        DeValue::Table(table) => NodeValue::Table(convert_table(at, table)),
    };
    Node { place: at.place(span), value }
}

/// Takes a text that does not parse as a whole apart into statements, and uses each that parses by itself.
///
/// A statement starts at a line that looks like a section (`[name`) or a key (`name = …`, or a bare word), and
/// runs to the next such line; so one that is not closed costs itself, not the rest of the file. What stands
/// below a section header that does not parse is dropped with it: it would land in the wrong section.
fn salvage(lines: &Lines<'_>, whole: Option<&toml::de::Error>, parsed: &mut Parsed) {
    let text = lines.text();
    let before = parsed.messages.len();
    let mut section: Option<Vec<(String, Place)>> = Some(Vec::new());
    for range in statements(text) {
        let Some(piece) = text.get(range.clone()) else { continue };
        let at = Locator { lines, offset: range.start };
        let table = match DeTable::parse(piece) {
            Ok(table) => table,
            Err(bad) => {
                let header = piece.trim_start().starts_with('[');
                // Once in a section that is dropped as a whole, its statements are not worth a message each.
                if (section.is_some() || header) && parsed.messages.len() < MAX_MESSAGES {
                    // What is not closed is missed at the end of the statement, not on the line after it.
                    let end = piece.trim_end().len();
                    let span = bad.span().map_or(0..0, |span| span.start.min(end)..span.end);
                    let scope = if header { " (the whole section is left out)" } else { "" };
                    parsed.messages.push(error(at.place(&span), format!("{}{scope}", syntax(&bad))));
                }
                if header {
                    section = None;
                }
                continue;
            }
        };
        let table = convert_table(&at, table.get_ref());
        if piece.trim_start().starts_with('[') {
            section = header_path(&table);
        } else if let Some(section) = &section {
            insert(&mut parsed.root, section, table);
        }
    }
    if parsed.messages.len() == before
        && let Some(bad) = whole
    {
        let span = bad.span().unwrap_or(0..0);
        let at = Locator { lines, offset: 0 };
        parsed.messages.push(error(at.place(&span), syntax(bad)));
    }
}

/// The parser's message; its first line is enough, the place is told separately.
fn syntax(bad: &toml::de::Error) -> String {
    format!("not valid TOML: {}", bad.message().lines().next().unwrap_or("syntax error"))
}

/// Splits a text into ranges that each start at a line which looks like the start of a statement.
fn statements(text: &str) -> Vec<Range<usize>> {
    let mut starts = Vec::new();
    let mut offset = 0_usize;
    for line in text.split_inclusive('\n') {
        let content = line.strip_prefix('\u{feff}').unwrap_or(line).trim_start();
        let word = content.trim_start_matches('[');
        let starts_word =
            word.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '=');
        if starts_word && !content.trim_end().ends_with(',') {
            starts.push(offset);
        }
        offset = offset.saturating_add(line.len());
    }
    let ends = starts.iter().copied().skip(1).chain([text.len()]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// The path of a section header that was parsed alone. `None` for `[[lists of sections]]`.
fn header_path(table: &BTreeMap<String, (Place, Node)>) -> Option<Vec<(String, Place)>> {
    let mut path = Vec::new();
    let mut level = table;
    while let Some((name, (place, node))) = level.first_key_value() {
        path.push((name.clone(), place.clone()));
        let NodeValue::Table(next) = &node.value else { return None };
        level = next;
    }
    Some(path)
}

/// Puts keys below a section. A key that is there already stays: the first one counts.
fn insert(
    root: &mut BTreeMap<String, (Place, Node)>,
    section: &[(String, Place)],
    keys: BTreeMap<String, (Place, Node)>,
) {
    let mut level = root;
    for (name, place) in section {
        let (_, node) = level.entry(name.clone()).or_insert_with(|| {
            (place.clone(), Node { place: place.clone(), value: NodeValue::Table(BTreeMap::new()) })
        });
        let NodeValue::Table(next) = &mut node.value else { return };
        level = next;
    }
    for (name, value) in keys {
        level.entry(name).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_text(bytes: impl AsRef<[u8]>) -> Parsed {
        parse(&Fragment { file: "f".into(), content: Content::Bytes(bytes.as_ref().to_vec()) })
    }

    /// The keys that are given, dotted, in order.
    fn keys(parsed: &Parsed) -> Vec<String> {
        fn walk(prefix: &str, level: &BTreeMap<String, (Place, Node)>, out: &mut Vec<String>) {
            for (name, (_, node)) in level {
                match &node.value {
                    NodeValue::Table(next) => walk(&format!("{prefix}{name}."), next, out),
                    _ => out.push(format!("{prefix}{name}")),
                }
            }
        }
        let mut out = Vec::new();
        walk("", &parsed.root, &mut out);
        out
    }

    #[test]
    fn a_whole_file_gives_all_its_keys() {
        let parsed = parse_text("\u{feff}hostname = 'a'\r\n[ssh]\r\nkeys = [\r\n  'k',\r\n]\r\n");
        assert!(!parsed.damaged && parsed.messages.is_empty());
        assert_eq!(keys(&parsed), ["hostname", "ssh.keys"]);
        assert_eq!(parsed.root["ssh"].0.line, 2);
    }

    #[test]
    fn one_broken_statement_costs_only_itself() {
        let tables: &[(&str, &[&str], &str)] = &[
            ("hostname = my host\n[ssh]\nkeys=['a']\n", &["ssh.keys"], "f:1:12"),
            ("hostname\n[ssh]\nkeys=['a']\n", &["ssh.keys"], "f:1:9"),
            ("hostname = \"abc\n[ssh]\nkeys=['a']\n", &["ssh.keys"], "f:1:16"),
            ("hostname =\n[ssh]\nkeys=['a']\n", &["ssh.keys"], "f:1:11"),
            ("[ssh]\nkeys=['a',\n'b'\n[time]\nservers=['x']\n", &["time.servers"], "f:3:4"),
            ("[ssh\nkeys=['a']\n[time]\nservers=['x']\n", &["time.servers"], "f:1:5"),
            ("a = \"\"\"\n[time]\nservers=['x']\n", &["time.servers"], "f:1:8"),
            ("= 5\n[x]\ny=1\n", &["x.y"], "f:1:1"),
            ("[a]\nb=1\n[a]\nc=2\n", &["a.b", "a.c"], "f:3:2"),
            ("[[a]]\nb=1\n[a]\nc=2\n", &["a.c"], "f:3:2"),
            ("h='x'\nh='y'\n", &["h"], "f:2:1"),
            // half a file
            ("h='x'\n[ssh]\nkeys = ['ssh-ed255", &["h"], "f:3:19"),
        ];
        for (text, expected, place) in tables {
            let parsed = parse_text(text);
            assert!(parsed.damaged, "{text:?}");
            assert_eq!(keys(&parsed), *expected, "{text:?}");
            let first = parsed.messages.first().unwrap();
            assert_eq!(first.place.to_string(), *place, "{text:?}: {first}");
        }
    }

    #[test]
    fn broken_characters_cost_their_statement_and_nothing_else() {
        let parsed = parse_text(b"# gr\xfc\xdfe\nhostname = 'a'\nname = '\xfc'\n[time]\nservers = ['x']\n");
        assert!(parsed.damaged);
        assert_eq!(parsed.messages.len(), 1);
        assert_eq!((parsed.messages[0].place.line, parsed.messages[0].place.column), (1, 5));
        assert_eq!(keys(&parsed), ["hostname", "name", "time.servers"]);
        assert!(matches!(parsed.root["name"].1.value, NodeValue::Unfit(_)));
    }

    #[test]
    fn files_that_give_nothing_are_damaged() {
        for content in [
            Content::Missing,
            Content::TooLarge(10 << 20),
            Content::Unreadable("Input/output error".into()),
            Content::Bytes(vec![]),
            Content::Bytes(b" \r\n\n".to_vec()),
            Content::Bytes(vec![0; 4096]),
        ] {
            let parsed = parse(&Fragment { file: "f".into(), content });
            assert!(parsed.damaged && parsed.root.is_empty());
            assert_eq!(parsed.messages.len(), 1);
        }
        let comment = parse_text("# nothing to say\n");
        assert!(!comment.damaged && comment.root.is_empty());
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rustiot.toml");
        assert_eq!(Fragment::read(&path).content, Content::Missing);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(MAX_FILE).unwrap();
        assert!(matches!(Fragment::read(&path).content, Content::Bytes(_)));
        file.set_len(10 << 20).unwrap();
        assert_eq!(Fragment::read(&path).content, Content::TooLarge(10 << 20));
        assert!(matches!(Fragment::read(dir.path()).content, Content::Unreadable(_)));
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_crash() {
        for (open, close) in [("[", "]"), ("{a=", "}"), ("a.", "a=1")] {
            let text = format!("x = {}{}", open.repeat(100_000), close.repeat(100_000));
            assert!(parse_text(&text).damaged);
            assert!(parse_text(open.repeat(300_000)).damaged);
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_text(bytes);
        }

        #[test]
        fn any_toml_like_text(text in "([a-z]{1,3}|[\\[\\]{}='\",.#\n\r\t ]|\"\"\"|'''|[0-9]|\u{e9}){0,80}") {
            let _ = parse_text(text);
        }

        /// However a good file is cut, what is left gives no other value than the good file.
        #[test]
        fn half_a_file_gives_only_true_values(cut in 0..100_usize) {
            let text = "hostname = 'kitchen'\n[ssh]\nkeys = [\n 'k1',\n 'k2',\n]\n[time]\nservers = ['a', 'b']\n";
            let whole = parse_text(text);
            let half = parse_text(text.get(..cut).unwrap_or(text));
            for key in keys(&half) {
                let mut parts = key.split('.');
                let find = |parsed: &Parsed, parts: &mut dyn Iterator<Item = &str>| {
                    let (_, mut node) = parsed.root[parts.next().unwrap()].clone();
                    for part in parts {
                        let NodeValue::Table(mut table) = node.value else { panic!() };
                        (_, node) = table.remove(part).unwrap();
                    }
                    node.value
                };
                prop_assert_eq!(find(&half, &mut parts), find(&whole, &mut key.split('.')));
            }
        }
    }
}
