//! Which Debian mirror this machine uses: read from apt's own configuration, so that a build downloads from where the
//! machine already does. Never writes apt's files.

use crate::error::{Error, refused};
use std::path::Path;

/// The archives to build from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// URI of the main archive.
    pub main: String,
    /// URI of the security archive, if the machine uses one.
    pub security: Option<String>,
}

/// One archive of apt's configuration.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
}

/// Debian's releases by code name, as far as a build machine may run one, and the names that move.
const SUITES: [&str; 9] =
    ["bullseye", "bookworm", "trixie", "forky", "duke", "sid", "oldstable", "stable", "testing"];

impl Mirror {
    /// From `$RUSTIOT_MIRROR` (URI of the main archive), or from the files below `etc_apt` (usually `/etc/apt`).
    ///
    /// # Errors
    /// No Debian archive is configured.
    pub fn discover(etc_apt: &Path) -> Result<Self, Error> {
        if let Ok(uri) = std::env::var("RUSTIOT_MIRROR")
            && !uri.is_empty()
        {
            return Ok(Mirror { main: uri, security: None });
        }
        let mut sources = Vec::new();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        sources.extend(parse_lines(&read(&etc_apt.join("sources.list"))));
        for (_, path) in crate::cache::sorted(&etc_apt.join("sources.list.d")).unwrap_or_default() {
            match path.extension().and_then(|e| e.to_str()) {
                Some("list") => sources.extend(parse_lines(&read(&path))),
                Some("sources") => sources.extend(parse_deb822(&read(&path))),
                _ => {}
            }
        }
        Mirror::choose(&sources).ok_or_else(|| {
            refused(
                format!("no Debian archive is configured in {}", etc_apt.display()),
                "set RUSTIOT_MIRROR to the URI of a Debian mirror",
            )
        })
    }

    fn choose(sources: &[Source]) -> Option<Self> {
        let main = |s: &&Source| s.components.iter().any(|c| c == "main");
        let plain =
            sources.iter().filter(main).find(|s| s.suites.iter().any(|x| SUITES.contains(&x.as_str())))?;
        let security = sources.iter().filter(main).find(|s| {
            s.suites.iter().any(|x| x.strip_suffix("-security").is_some_and(|base| SUITES.contains(&base)))
        });
        Some(Mirror { main: plain.uri.clone(), security: security.map(|s| s.uri.clone()) })
    }

    /// Lines for `sources.list` with the updates and security suites of `suite`.
    pub fn lines(&self, suite: &str) -> Vec<String> {
        let mut lines = vec![
            format!("deb {} {suite} main", self.main),
            format!("deb {} {suite}-updates main", self.main),
        ];
        if let Some(security) = &self.security {
            lines.push(format!("deb {security} {suite}-security main"));
        }
        lines
    }
}

/// One-line format (sources.list(5)).
fn parse_lines(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((_, after)) => after,
            None => rest,
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            sources.push(Source { uri, suites: vec![suite], components: words.collect() });
        }
    }
    sources
}

/// deb822 format (sources.list(5)): stanzas of `Key: values`, a line that starts with white space continues.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(from_stanza(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, values)) = stanza.last_mut() {
                values.extend(line.split_whitespace().map(str::to_owned));
            }
        } else if let Some((key, values)) = line.split_once(':') {
            let values = values.split_whitespace().map(str::to_owned).collect();
            stanza.push((key.trim().to_ascii_lowercase(), values));
        }
    }
    sources
}

fn from_stanza(stanza: &[(String, Vec<String>)]) -> Vec<Source> {
    let get = |key: &str| stanza.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()).unwrap_or_default();
    let off = get("enabled").first().is_some_and(|v| v.eq_ignore_ascii_case("no"));
    if off || !get("types").iter().any(|t| t == "deb") {
        return Vec::new();
    }
    let source = |uri: String| Source { uri, suites: get("suites"), components: get("components") };
    get("uris").into_iter().map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_both_formats() {
        let list = "# c\ndeb-src http://a/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/x] http://other/apt stable-x main\n\
                    deb [trusted=yes] http://a/debian bookworm main contrib # here\n\
                    deb http://s/debian-security bookworm-security main\n";
        let deb822 = "Types: deb deb-src\nURIs: http://a/debian\nSuites: bookworm\n bookworm-updates\n# c\n\
                      Components: main\nSigned-By:\n -----BEGIN\n .\n abc\n\n\
                      Types: deb\nEnabled: no\nURIs: http://off/debian\nSuites: trixie\nComponents: main\n\n\
                      Types: deb\nURIs: http://s/debian-security\nSuites: bookworm-security\nComponents: main\n";
        let wanted =
            Mirror { main: "http://a/debian".into(), security: Some("http://s/debian-security".into()) };
        assert_eq!(Mirror::choose(&parse_lines(list)), Some(wanted.clone()));
        assert_eq!(Mirror::choose(&parse_deb822(deb822)), Some(wanted));
    }

    #[test]
    fn another_distribution_is_not_taken_for_debian() {
        assert_eq!(Mirror::choose(&parse_lines("deb http://x/ubuntu noble main\n")), None);
        let dir = tempfile::tempdir().unwrap();
        let error = Mirror::discover(dir.path()).unwrap_err().to_string();
        assert!(error.contains("RUSTIOT_MIRROR"), "{error}");
    }

    #[test]
    fn a_suite_brings_its_updates() {
        let mirror = Mirror { main: "http://a/d".into(), security: None };
        assert_eq!(
            mirror.lines("trixie"),
            ["deb http://a/d trixie main", "deb http://a/d trixie-updates main"]
        );
    }

    proptest! {
        #[test]
        fn outside_text_never_panics(text in "([a-zA-Z:\\[\\] #\n\t-]|deb ){0,80}") {
            let _ = Mirror::choose(&parse_lines(&text));
            let _ = Mirror::choose(&parse_deb822(&text));
        }
    }
}
