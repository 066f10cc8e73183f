//! Image references as people type them, normalised as Docker does: `alpine` is `docker.io/library/alpine:latest`.
//!
//! Pure. The grammar is that of the `distribution` project (`reference`). Called by the store, the registries' client,
//! and whoever takes a name from a person.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// The registry that a name without one means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag that a name without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

/// Longest name (registry and repository).
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A normalised reference: registry, repository, and a tag, a digest or both. With both, the digest counts.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Not a reference.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("invalid reference format: {text:?}: {why}")]
pub struct ReferenceError {
    /// What was typed, cut to a length that fits a message.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Reference {
    /// Of its parts; for a pull by digest, `tag` may be `None`. Without both, the tag is `latest`.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn new(
        registry: &str,
        repository: &str,
        tag: Option<&str>,
        digest: Option<Digest>,
    ) -> Result<Reference, ReferenceError> {
        let mut text = format!("{registry}/{repository}");
        if let Some(tag) = tag {
            text = format!("{text}:{tag}");
        }
        if let Some(digest) = digest {
            text = format!("{text}@{digest}");
        }
        text.parse()
    }

    /// Host and, where not the scheme's own, port: `docker.io`, `registry.example:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry: `library/alpine`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if any.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if any.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and repository: `docker.io/library/alpine`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// As Docker shows it: without `docker.io/library/`.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        match self.repository.strip_prefix("library/") {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// As Docker shows it, with tag and digest.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The same repository with this tag and no digest.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn with_tag(&self, tag: &str) -> Result<Reference, ReferenceError> {
        check_tag(tag).map_err(|why| ReferenceError { text: cut(tag), why })?;
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository with this digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        parse(text).map_err(|why| ReferenceError { text: cut(text), why })
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn cut(text: &str) -> String {
    text.chars().take(120).collect()
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Err("64 hexadecimal digits are an image's id, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse().map_err(|_| "after @ comes sha256: and 64 hexadecimal digits")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (registry, rest) = match rest.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, rest),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    check_registry(registry)?;
    let repository = match registry == DEFAULT_REGISTRY && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    for component in path.split('/') {
        check_component(component)?;
    }
    if registry.len() + 1 + repository.len() > NAME_MAX {
        return Err("the name is longer than 255 characters");
    }
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let tag = match (tag, digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
}

/// Whether the first component of a name is a registry, and not the beginning of a repository.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            address.parse::<std::net::Ipv6Addr>().map_err(|_| "between [ and ] comes an IPv6 address")?;
            (None, port.strip_prefix(':').or_else(|| (!port.is_empty()).then_some("")))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    if host.is_some_and(|host| !host.split('.').all(label)) {
        return Err("the registry is no host name");
    }
    if port
        .is_some_and(|port| port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err("after the registry's colon comes a port");
    }
    Ok(())
}

/// `[a-z0-9]+`, joined by one `.`, one or two `_`, or any number of `-`.
fn check_component(component: &str) -> Result<(), &'static str> {
    if component.is_empty() {
        return Err("a part of the repository's name is empty");
    }
    if component.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository's name must be in lower case");
    }
    let mut bytes = component.bytes().peekable();
    let mut separator = true;
    while let Some(byte) = bytes.next() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => separator = false,
            b'.' | b'_' | b'-' if !separator => {
                separator = true;
                match byte {
                    b'_' if bytes.peek() == Some(&b'_') => drop(bytes.next()),
                    b'-' => while bytes.next_if_eq(&b'-').is_some() {},
                    _ => {}
                }
            }
            b'.' | b'_' | b'-' => return Err("a part of the repository's name has a separator too many"),
            _ => return Err("the repository's name has a character that is not allowed"),
        }
    }
    if separator { Err("a part of the repository's name ends in a separator") } else { Ok(()) }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    match tag.as_bytes() {
        [] => Err("the tag is empty"),
        all if all.len() > TAG_MAX => Err("the tag is longer than 128 characters"),
        [first, rest @ ..] if word(*first) && rest.iter().all(|byte| word(*byte) || b".-".contains(byte)) => {
            Ok(())
        }
        _ => Err("the tag has a character that is not allowed"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normalised_as_docker_does() {
        let digest = Digest::of(b"").to_string();
        for (text, full, familiar) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3", "alpine:3"),
            ("me/app", "docker.io/me/app:latest", "me/app:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
            (
                "r.example/a/b/c__d-e--f.g:V_1.2-x",
                "r.example/a/b/c__d-e--f.g:V_1.2-x",
                "r.example/a/b/c__d-e--f.g:V_1.2-x",
            ),
            ("[2001:db8::1]:5000/app", "[2001:db8::1]:5000/app:latest", "[2001:db8::1]:5000/app:latest"),
            ("HOST/app", "HOST/app:latest", "HOST/app:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((&*reference.to_string(), &*reference.familiar()), (full, familiar), "{text}");
        }
        let by_digest: Reference = format!("alpine@{digest}").parse().unwrap();
        assert_eq!(
            (by_digest.tag(), by_digest.to_string()),
            (None, format!("docker.io/library/alpine@{digest}"))
        );
        let both: Reference = format!("alpine:3@{digest}").parse().unwrap();
        assert_eq!((both.tag(), both.digest()), (Some("3"), Some(Digest::of(b""))));
    }

    #[test]
    fn what_is_none_says_why() {
        let long = format!("a/{}", "b".repeat(300));
        let id = Digest::of(b"").hex();
        let tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            ":",
            "@",
            "/",
            "a/",
            "/a",
            "a//b",
            "Alpine",
            "a/B",
            "a:",
            "a:-x",
            "a:x/y",
            "a@sha256:0",
            "a@",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a b",
            "ä",
            "host.:x/a",
            "h.example:99999/a",
            "h.example:+1/a",
            "[::1/a",
            "[zz]:1/a",
            "[::1]x/a",
            "http://h.example/a",
            "../../etc/passwd",
            &long,
            &id,
            &tag,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        let error = "Alpine".parse::<Reference>().unwrap_err().to_string();
        assert!(error.contains("lower case"), "{error}");
    }

    proptest! {
        #[test]
        fn total(text: String) {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn what_it_prints_it_reads(text in "([a-z.:0-9A-Z]{1,12}/)?[a-z0-9._/-]{1,20}(:[a-z0-9._-]{1,9})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
                // Nothing that gets into a URL or a path of ours has another meaning there.
                prop_assert!(!reference.repository().split('/').any(|part| part.is_empty() || part.starts_with('.')));
            }
        }
    }
}
