//! Docker's filters: `{"label":{"a=b":true}}`, and `{"label":["a=b"]}` of old clients.
//!
//! Pure, total on any text. Public for the fuzz target; what the filters choose is in `select`.

use std::collections::BTreeMap;

use regex_lite::Regex;
use serde::Deserialize;

use crate::Error;

/// No client sends more; a filter is compared with every row.
const MAX_VALUES: usize = 1000;

/// Filters by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Of the query parameter `filters`, of which only these names are known here.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not Docker's JSON, or names a filter that is not known.
    pub fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Values {
            Set(BTreeMap<String, Option<bool>>),
            List(Vec<String>),
        }
        let Some(text) = text.filter(|t| !t.trim().is_empty()) else { return Ok(Self::default()) };
        let parsed: Option<BTreeMap<String, Option<Values>>> = serde_json::from_str(text)
            .map_err(|error| Error::Invalid(format!("invalid filters: {error}")))?;
        let mut filters = BTreeMap::new();
        let mut count = 0_usize;
        for (name, values) in parsed.unwrap_or_default() {
            let values: Vec<String> = match values {
                None => Vec::new(),
                Some(Values::Set(set)) => set.into_keys().collect(),
                Some(Values::List(list)) => list,
            };
            if values.is_empty() {
                continue;
            }
            if !known.contains(&name.as_str()) {
                return Err(Error::Invalid(format!("invalid filter '{name}'")));
            }
            count = count.saturating_add(values.len());
            if count > MAX_VALUES {
                return Err(Error::Invalid(format!("invalid filters: more than {MAX_VALUES} values")));
            }
            filters.insert(name, values);
        }
        Ok(Self(filters))
    }

    /// Values of a filter; empty when it is not set.
    pub fn get(&self, name: &str) -> &[String] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// It is set.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Not set, or one of its values is this.
    pub fn exact(&self, name: &str, value: &str) -> bool {
        !self.has(name) || self.get(name).iter().any(|v| v == value)
    }

    /// Not set, or one of its values satisfies this.
    pub fn any(&self, name: &str, mut satisfied: impl FnMut(&str) -> bool) -> bool {
        !self.has(name) || self.get(name).iter().any(|v| satisfied(v))
    }

    /// A filter that is true or false, if set.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other values, and for both at once.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Error> {
        let mut found = None;
        for value in self.get(name) {
            let value = match value.as_str() {
                "1" | "true" | "True" | "TRUE" | "t" | "T" => true,
                "0" | "false" | "False" | "FALSE" | "f" | "F" => false,
                _ => return Err(Error::Invalid(format!("invalid filter '{name}={value}'"))),
            };
            if found.is_some_and(|f| f != value) {
                return Err(Error::Invalid(format!("invalid filter '{name}'")));
            }
            found = Some(value);
        }
        Ok(found)
    }

    /// Every `label` is there, and no `label!` is.
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |filter: &String| match filter.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|v| v == value),
            None => labels.contains_key(filter),
        };
        self.get("label").iter().all(holds) && !self.get("label!").iter().any(holds)
    }

    /// A filter whose values are regular expressions, as Docker's for names and ids are. A value that is none is
    /// compared as it is.
    pub fn patterns(&self, name: &str) -> Patterns {
        Patterns(self.has(name).then(|| {
            self.get(name)
                .iter()
                .map(|value| (value.clone(), if value.len() <= 256 { Regex::new(value).ok() } else { None }))
                .collect()
        }))
    }
}

/// A filter of regular expressions.
pub struct Patterns(Option<Vec<(String, Option<Regex>)>>);

impl Patterns {
    /// Not set, or one of them is found in the text.
    pub fn accept(&self, text: &str) -> bool {
        self.0.as_ref().is_none_or(|patterns| {
            patterns
                .iter()
                .any(|(value, regex)| value == text || regex.as_ref().is_some_and(|r| r.is_match(text)))
        })
    }
}

/// Go's `path.Match`: `*` and `?` stop at a slash, `[a-z]`, `[^a-z]`, `\` takes the next as it is. A malformed pattern
/// matches nothing.
pub fn path_match(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    // Reachable positions in the text, advanced by one element of the pattern at a time: no backtracking, whatever
    // the pattern.
    let mut here = vec![false; text.len().saturating_add(1)];
    if let Some(first) = here.first_mut() {
        *first = true;
    }
    let mut rest = pattern.as_slice();
    while let Some((&c, after)) = rest.split_first() {
        let mut next = vec![false; here.len()];
        if c == '*' {
            let mut open = false;
            for (i, slot) in next.iter_mut().enumerate() {
                open |= here.get(i).copied().unwrap_or(false);
                *slot = open;
                if text.get(i) == Some(&'/') {
                    open = false;
                }
            }
            rest = after;
        } else {
            let Some((element, after)) = Element::of(c, after) else { return false };
            for (i, from) in here.iter().enumerate() {
                if *from
                    && text.get(i).is_some_and(|t| element.accepts(*t))
                    && let Some(slot) = next.get_mut(i.saturating_add(1))
                {
                    *slot = true;
                }
            }
            rest = after;
        }
        here = next;
    }
    here.last().copied().unwrap_or(false)
}

enum Element {
    Any,
    Char(char),
    Class(bool, Vec<(char, char)>),
}

impl Element {
    fn of(c: char, after: &[char]) -> Option<(Self, &[char])> {
        match c {
            '?' => Some((Self::Any, after)),
            '\\' => after.split_first().map(|(c, after)| (Self::Char(*c), after)),
            '[' => {
                let (negated, mut rest) = match after.split_first() {
                    Some(('^', after)) => (true, after),
                    _ => (false, after),
                };
                let mut ranges = Vec::new();
                loop {
                    let (&low, after) = rest.split_first()?;
                    if low == ']' && !ranges.is_empty() {
                        return Some((Self::Class(negated, ranges), after));
                    }
                    let (low, after) = Self::one(low, after)?;
                    (rest, ranges) = match after.split_first() {
                        Some(('-', after)) => {
                            let (&high, after) = after.split_first()?;
                            let (high, after) = Self::one(high, after)?;
                            ranges.push((low, high));
                            (after, ranges)
                        }
                        _ => {
                            ranges.push((low, low));
                            (after, ranges)
                        }
                    };
                }
            }
            c => Some((Self::Char(c), after)),
        }
    }

    fn one(c: char, after: &[char]) -> Option<(char, &[char])> {
        match c {
            '\\' => after.split_first().map(|(c, after)| (*c, after)),
            '-' | ']' => None,
            c => Some((c, after)),
        }
    }

    fn accepts(&self, c: char) -> bool {
        match self {
            Self::Any => c != '/',
            Self::Char(own) => *own == c,
            Self::Class(negated, ranges) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Filters, String> {
        Filters::parse(Some(text), &["label", "name", "dangling"]).map_err(|e| e.to_string())
    }

    #[test]
    fn both_forms_mean_the_same() {
        let new = parse(r#"{"label":{"a=b":true,"c":true},"name":{"x":false}}"#).unwrap();
        let old = parse(r#"{"label":["a=b","c"],"name":["x"]}"#).unwrap();
        assert_eq!(new, old);
        assert_eq!(new.get("label"), ["a=b", "c"]);
        assert_eq!(parse("{}").unwrap(), Filters::default());
        assert_eq!(parse("null").unwrap(), Filters::default());
        assert_eq!(parse(r#"{"label":null,"other":{}}"#).unwrap(), Filters::default());
        assert_eq!(Filters::parse(None, &[]).unwrap(), Filters::default());
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        assert_eq!(parse(r#"{"size":{"1":true}}"#), Err("invalid filter 'size'".to_owned()));
        for bad in ["[]", "x", r#"{"label":"a"}"#, r#"{"label":{"a":1}}"#, r#"{"label":[1]}"#] {
            assert!(parse(bad).unwrap_err().starts_with("invalid filters: "), "{bad}");
        }
        let many: Vec<String> = (0..1001).map(|i| format!("\"l{i}\"")).collect();
        assert!(parse(&format!("{{\"label\":[{}]}}", many.join(","))).is_err());
    }

    #[test]
    fn labels_flags_and_patterns() {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())]);
        for (text, holds) in [
            (r#"{"label":["a"]}"#, true),
            (r#"{"label":["a=b","c"]}"#, true),
            (r#"{"label":["a=x"]}"#, false),
            (r#"{"label":["a","z"]}"#, false),
        ] {
            assert_eq!(parse(text).unwrap().labels(&labels), holds, "{text}");
        }
        let not = Filters::parse(Some(r#"{"label!":["a=b"]}"#), &["label!"]).unwrap();
        assert!(!not.labels(&labels));
        assert!(not.labels(&BTreeMap::new()));
        assert_eq!(parse(r#"{"dangling":["true"]}"#).unwrap().flag("dangling").unwrap(), Some(true));
        assert_eq!(parse(r#"{"dangling":{"0":true}}"#).unwrap().flag("dangling").unwrap(), Some(false));
        assert!(parse(r#"{"dangling":["true","false"]}"#).unwrap().flag("dangling").is_err());
        assert!(parse(r#"{"dangling":["maybe"]}"#).unwrap().flag("dangling").is_err());
        let names = parse(r#"{"name":["^/?web$","(broken"]}"#).unwrap().patterns("name");
        assert!(names.accept("/web") && names.accept("web") && names.accept("(broken"));
        assert!(!names.accept("webs"));
    }

    #[test]
    fn path_match_is_gos() {
        for (pattern, text, expected) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox", true),
            ("*", "library/busybox", false),
            ("*/*", "library/busybox", true),
            ("b?sy*:la[a-u]est", "busybox:latest", true),
            ("b?sy*:la[^a-u]est", "busybox:latest", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("[", "[", false),
            ("[]a]", "]", false),
            ("[a-", "a", false),
            ("", "", true),
            ("**********b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(path_match(pattern, text), expected, "{pattern} {text}");
        }
    }
}
