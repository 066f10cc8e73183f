//! Credentials for registries: those of a request, those of Docker's `config.json`, and what a registry asks for.
//!
//! Reads the file it is given and runs the helpers that the file names; opens no connection. Called by the registries'
//! client, and by whoever turns an API request into a pull.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::reference::DEFAULT_REGISTRY;

/// Largest credentials file, and largest answer of a helper.
const FILE_MAX: u64 = 1 << 20;

/// What a registry is shown.
#[derive(Clone, Default, Eq, PartialEq)]
pub enum Auth {
    /// Nothing.
    #[default]
    Anonymous,
    /// User and password (or access token).
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token, exchanged for access tokens by OAuth 2.
    Identity(String),
    /// A token that is shown as it is.
    Bearer(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::Anonymous => "Anonymous",
            Auth::Basic { .. } => "Basic(…)",
            Auth::Identity(_) => "Identity(…)",
            Auth::Bearer(_) => "Bearer(…)",
        })
    }
}

/// Credentials cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file cannot be read.
    #[error("cannot read the credentials in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not Docker's `config.json`.
    #[error("{} is no file of Docker's credentials", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// An entry is of no use.
    #[error("the credentials for {registry} in {} are malformed: `auth` is base64 of user:password", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Whose.
        registry: String,
    },
    /// A helper does not help.
    #[error("the credentials helper docker-credential-{helper} failed for {registry}: {why}")]
    Helper {
        /// Its name.
        helper: String,
        /// Whose.
        registry: String,
        /// Its words, or why it cannot be run.
        why: String,
    },
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl Entry {
    /// `None` when `auth` is malformed.
    fn auth(&self) -> Option<Auth> {
        if !self.registrytoken.is_empty() {
            return Some(Auth::Bearer(self.registrytoken.clone()));
        }
        if !self.identitytoken.is_empty() {
            return Some(Auth::Identity(self.identitytoken.clone()));
        }
        if !self.auth.is_empty() {
            let text = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
            let (user, password) = text.split_once(':')?;
            let password = password.trim_end_matches('\0');
            return Some(Auth::Basic { user: user.to_owned(), password: password.to_owned() });
        }
        if !self.username.is_empty() {
            return Some(Auth::Basic { user: self.username.clone(), password: self.password.clone() });
        }
        Some(Auth::Anonymous)
    }
}

/// Docker's `config.json`, as far as it is about credentials.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    creds_store: String,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(skip)]
    path: PathBuf,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("path", &self.path).field("of", &self.auths.keys()).finish()
    }
}

impl Credentials {
    /// Reads a file; one that does not exist has no credentials.
    ///
    /// # Errors
    /// [`AuthError::Read`], [`AuthError::Parse`].
    pub fn read(path: &Path) -> Result<Credentials, AuthError> {
        use std::io::Read as _;
        let read = |source| AuthError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        match std::fs::File::open(path) {
            Ok(file) => file.take(FILE_MAX).read_to_end(&mut bytes).map_err(read)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Credentials::default()),
            Err(error) => return Err(read(error)),
        };
        Credentials::parse(&bytes, path)
    }

    /// From the file's contents; `path` is for messages.
    ///
    /// # Errors
    /// [`AuthError::Parse`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Credentials, AuthError> {
        let parsed: Credentials = serde_json::from_slice(bytes)
            .map_err(|source| AuthError::Parse { path: path.to_owned(), source })?;
        Ok(Credentials { path: path.to_owned(), ..parsed })
    }

    /// What to show to this registry. May run a helper, and waits for it.
    ///
    /// # Errors
    /// [`AuthError::Entry`], [`AuthError::Helper`].
    pub fn of(&self, registry: &str) -> Result<Auth, AuthError> {
        let same = |key: &str| server(key) == server(registry);
        let helper = self.cred_helpers.iter().find(|(key, _)| same(key)).map(|(_, helper)| helper);
        if let Some(helper) = helper.or(Some(&self.creds_store).filter(|store| !store.is_empty())) {
            let asked = match server(registry) {
                DEFAULT_REGISTRY => "https://index.docker.io/v1/",
                other => other,
            };
            if let Some(auth) = run_helper(helper, asked)? {
                return Ok(auth);
            }
        }
        match self.auths.iter().find(|(key, _)| same(key)) {
            None => Ok(Auth::Anonymous),
            Some((key, entry)) => entry
                .auth()
                .ok_or_else(|| AuthError::Entry { path: self.path.clone(), registry: key.clone() }),
        }
    }
}

/// Keys are hosts, and URLs of older tools; Docker's own registry goes by several names.
fn server(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match key.split('/').next().unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    }
}

/// Asks a helper; `None` when it has nothing for this registry.
fn run_helper(helper: &str, registry: &str) -> Result<Option<Auth>, AuthError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let fail =
        |why: String| AuthError::Helper { helper: helper.to_owned(), registry: registry.to_owned(), why };
    if helper.is_empty() || helper.contains(['/', '\0']) {
        return Err(fail("its name must not hold a slash".to_owned()));
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read will not answer either.
        let _ = input.write_all(registry.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| fail(error.to_string()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stdout);
        if words.contains("credentials not found") {
            return Ok(None);
        }
        return Err(fail(words.trim().chars().take(200).collect()));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|error| fail(error.to_string()))?;
    Ok(Some(match &*answer.username {
        "<token>" => Auth::Identity(answer.secret),
        _ => Auth::Basic { user: answer.username, password: answer.secret },
    }))
}

/// What a registry asks for (`WWW-Authenticate`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Challenge {
    /// User and password.
    Basic,
    /// A token of this server.
    Bearer {
        /// Where tokens are made.
        realm: String,
        /// For whom.
        service: String,
        /// For what, where the registry says.
        scope: String,
    },
}

impl Challenge {
    /// Reads the header; the first challenge that we can meet, Bearer before Basic.
    #[must_use]
    pub fn parse(header: &str) -> Option<Challenge> {
        let mut basic = false;
        let mut bearer: Option<BTreeMap<String, String>> = None;
        let mut in_bearer = false;
        let mut rest = header.trim_start_matches([' ', '\t', ',']);
        while !rest.is_empty() {
            let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
            let (word, after) = rest.split_at_checked(end)?;
            let after = after.trim_start_matches([' ', '\t']);
            if let Some(value) = after.strip_prefix('=').filter(|_| !word.is_empty()) {
                let (value, after) = parameter(value.trim_start_matches([' ', '\t']))?;
                if in_bearer {
                    bearer.get_or_insert_default().entry(word.to_ascii_lowercase()).or_insert(value);
                }
                rest = after;
            } else if word.is_empty() {
                return None;
            } else {
                basic |= word.eq_ignore_ascii_case("basic");
                in_bearer = word.eq_ignore_ascii_case("bearer") && bearer.is_none();
                if in_bearer {
                    bearer = Some(BTreeMap::new());
                }
                rest = after;
            }
            rest = rest.trim_start_matches([' ', '\t', ',']);
        }
        let mut found = bearer.unwrap_or_default();
        let mut take = |name| found.remove(name).unwrap_or_default();
        let (realm, service, scope) = (take("realm"), take("service"), take("scope"));
        match realm.is_empty() {
            false => Some(Challenge::Bearer { realm, service, scope }),
            true => basic.then_some(Challenge::Basic),
        }
    }
}

/// A token or a quoted string, and what follows.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        let (value, rest) = text.split_at_checked(end)?;
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_as_registries_write_them() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() })
        };
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#,
                bearer("https://auth.example/token", "r.example", "repository:a/b:pull,push"),
            ),
            (r#"bearer  realm = "x" , service=y"#, bearer("x", "y", "")),
            (r#"Basic realm="a, b=c", Bearer realm="x\"y""#, bearer("x\"y", "", "")),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            ("Negotiate", None),
            (r#"Bearer realm="never ends"#, None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
    }

    #[test]
    fn dockers_file() {
        let text = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
            "r.example:5000": {"username": "u", "password": "p"},
            "i.example": {"identitytoken": "t"},
            "bad.example": {"auth": "%"}}, "HttpHeaders": {}}"#;
        let credentials = Credentials::parse(text, Path::new("config.json")).unwrap();
        let basic = |user: &str, password: &str| Auth::Basic { user: user.into(), password: password.into() };
        assert_eq!(credentials.of("docker.io").unwrap(), basic("user", "pa:ss"));
        assert_eq!(credentials.of("r.example:5000").unwrap(), basic("u", "p"));
        assert_eq!(credentials.of("i.example").unwrap(), Auth::Identity("t".into()));
        assert_eq!(credentials.of("r.example").unwrap(), Auth::Anonymous);
        assert!(matches!(credentials.of("bad.example"), Err(AuthError::Entry { .. })));
        assert!(!format!("{credentials:?} {:?}", basic("user", "pass")).contains("pass"));
        assert!(Credentials::parse(b"{", Path::new("x")).is_err());
        assert_eq!(Credentials::read(Path::new("/nonexistent")).unwrap().of("a").unwrap(), Auth::Anonymous);
    }

    #[test]
    fn a_helper_that_is_missing_is_named() {
        let text = br#"{"credHelpers": {"r.example": "rustiot-none"}}"#;
        let credentials = Credentials::parse(text, Path::new("config.json")).unwrap();
        let error = credentials.of("r.example").unwrap_err().to_string();
        assert!(error.contains("docker-credential-rustiot-none"), "{error}");
        assert!(run_helper("../x", "r").is_err());
    }

    proptest! {
        #[test]
        fn total(header: String, like in r#"(Bearer|Basic)?[ ,]*([a-z]{0,5}=?"?[a-z\\]{0,4}"?[ ,]?){0,6}"#) {
            let _ = Challenge::parse(&header);
            let _ = Challenge::parse(&like);
        }
    }
}
