//! Registries: where they are, how they are asked, what they are shown.
//!
//! The distribution protocol over `rustiot-http`: manifests whole and bounded, blobs by range. One attempt each; waiting
//! and trying again is the pull's. Stores nothing, logs nothing. Called by the pull.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustiot_http::{
    Class, Http, Method, Ranged, Request, Response, Settings, StatusCode, Trust, Url, Validator,
};
use serde::Deserialize;

use crate::auth::{Auth, Challenge};
use crate::delta;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::media;
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// Largest answer with a token, or with words about an error.
const ANSWER_MAX: u64 = 64 << 10;
/// What a token lasts that does not say so, by the protocol.
const TOKEN_SECONDS: u64 = 60;
/// How long a server that does not know the referrers API is not asked for it again.
const WITHOUT_REFERRERS: Duration = Duration::from_secs(24 * 3600);

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// Proxy, authorities, timeouts.
    pub http: Settings,
    /// Mirrors by registry, asked first and in this order: `docker.io` → `https://mirror.example`. A mirror is shown no
    /// credentials of the registry; what it has is held to the same digests.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries (`host` or `host:port`) that may be asked without a valid certificate, and by plain HTTP where they
    /// speak no TLS. Nothing is insecure by itself, not even this machine.
    pub insecure: Vec<String>,
}

/// The registries' client: connections and tokens. Cheap to clone; all clones share them.
#[derive(Clone, Debug)]
pub struct Registries {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: RegistryConfig,
    secure: Mutex<Option<Http>>,
    insecure: Mutex<Option<Http>>,
    /// Scheme of insecure registries, once it is known.
    schemes: Mutex<HashMap<String, &'static str>>,
    tokens: Mutex<HashMap<TokenKey, Token>>,
    /// Servers that do not know the referrers API, and until when that is believed.
    without_referrers: Mutex<HashMap<String, Instant>>,
}

#[derive(Debug, Eq, Hash, PartialEq)]
struct TokenKey {
    server: String,
    repository: String,
    /// Not to show one user's token for another.
    shown: Digest,
}

#[derive(Clone)]
struct Token {
    /// The header's value.
    value: String,
    until: Instant,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// One place where an image may be.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// For messages.
    pub name: String,
    base: Url,
    http: Http,
    /// Whether it is the registry itself, and may see credentials.
    own: bool,
}

/// A manifest or an index as it came.
#[derive(Debug)]
pub(crate) struct Raw {
    pub bytes: Vec<u8>,
    pub media_type: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registries {
    /// A client.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Registries {
        Registries {
            inner: Arc::new(Inner {
                config,
                secure: Mutex::default(),
                insecure: Mutex::default(),
                schemes: Mutex::default(),
                tokens: Mutex::default(),
                without_referrers: Mutex::default(),
            }),
        }
    }

    fn http(&self, registry: &str, insecure: bool) -> Result<Http, Error> {
        let mut slot = lock(if insecure { &self.inner.insecure } else { &self.inner.secure });
        if let Some(http) = &*slot {
            return Ok(http.clone());
        }
        let mut settings = self.inner.config.http.clone();
        if insecure {
            settings.trust = Trust::Anybody;
        }
        let made =
            Http::new(&settings).map_err(|source| Error::Client { registry: registry.to_owned(), source })?;
        Ok(slot.insert(made).clone())
    }

    /// Where to ask for an image of this registry, in order.
    pub(crate) async fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = Vec::new();
        for mirror in self.inner.config.mirrors.get(registry).into_iter().flatten() {
            let wrong = || Error::Registry {
                registry: registry.to_owned(),
                what: format!("its mirror {mirror:?} is no URL such as https://mirror.example"),
            };
            let with_scheme =
                if mirror.contains("://") { mirror.clone() } else { format!("https://{mirror}") };
            let base = Url::parse(&with_scheme).map_err(|_| wrong())?;
            let name = authority(&base).ok_or_else(wrong)?;
            let insecure = self.inner.config.insecure.contains(&name);
            if !insecure && base.scheme() != "https" {
                let what = format!("its mirror {name} speaks plain HTTP, and is not listed as insecure");
                return Err(Error::Registry { registry: registry.to_owned(), what });
            }
            endpoints.push(Endpoint { http: self.http(&name, insecure)?, name, base, own: false });
        }
        let host = if registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { registry };
        let insecure = self.inner.config.insecure.iter().any(|entry| entry == registry);
        let http = self.http(registry, insecure)?;
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}")).map_err(|_| Error::Registry {
                registry: registry.to_owned(),
                what: "it is no host name".to_owned(),
            })
        };
        let scheme = if insecure { self.scheme(registry, &http, &url("https")?).await } else { "https" };
        endpoints.push(Endpoint { name: registry.to_owned(), base: url(scheme)?, http, own: true });
        Ok(endpoints)
    }

    /// Whether an insecure registry speaks TLS at all.
    async fn scheme(&self, registry: &str, http: &Http, base: &Url) -> &'static str {
        if let Some(scheme) = lock(&self.inner.schemes).get(registry) {
            return scheme;
        }
        let Ok(ping) = base.join("/v2/") else { return "https" };
        let scheme = match http.get(&ping).send_any().await {
            Ok(_) => "https",
            Err(error) if error.class() == Class::Identity => "http",
            // Nobody there: the plain attempt will say so, and the next pull finds out anew.
            Err(_) => return "http",
        };
        lock(&self.inner.schemes).insert(registry.to_owned(), scheme);
        scheme
    }

    /// A manifest or an index, by tag or digest.
    pub(crate) async fn manifest(
        &self,
        at: &Endpoint,
        reference: &Reference,
        wanted: &str,
        auth: &Auth,
        limit: u64,
    ) -> Result<Raw, Error> {
        let url = self.url(at, reference, "manifests", wanted)?;
        let accept =
            [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST].join(", ");
        let response = self
            .send(at, reference, auth, "manifest", |http, shown| {
                let request = with(http.request(Method::GET, &url), shown);
                async { request.header("accept", &accept).send_any().await }
            })
            .await?;
        let media_type = response.header("content-type").unwrap_or_default().to_owned();
        let said = response.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let bytes =
            response.bytes(limit).await.map_err(|source| http_error("manifest", reference, source))?;
        let found = Digest::of(&bytes);
        let expected = wanted.parse::<Digest>().ok().or(said);
        match expected {
            Some(expected) if expected != found => {
                Err(Error::DigestMismatch { name: reference.familiar(), what: "manifest", expected, found })
            }
            _ => Ok(Raw { bytes, media_type }),
        }
    }

    /// The list of what refers to a manifest, as far as it is of this kind: by the referrers API, or under the tag that
    /// stands in for it. `None` where there is no list.
    pub(crate) async fn referrers(
        &self,
        at: &Endpoint,
        reference: &Reference,
        manifest: &Digest,
        auth: &Auth,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        let server = at.base.to_string();
        let known =
            lock(&self.inner.without_referrers).get(&server).is_some_and(|until| *until > Instant::now());
        if !known {
            let mut url = self.url(at, reference, "referrers", &manifest.to_string())?;
            url.query_pairs_mut().append_pair("artifactType", delta::ARTIFACT);
            let answer = self.send(at, reference, auth, "list of deltas", |http, shown| {
                let request = with(http.request(Method::GET, &url), shown);
                async { request.header("accept", media::OCI_INDEX).send_any().await }
            });
            match answer.await {
                Ok(response) => {
                    let bytes = response.bytes(limit).await;
                    return bytes.map(Some).map_err(|source| http_error("list of deltas", reference, source));
                }
                Err(error) if unknown(&error) => {
                    let until = Instant::now() + WITHOUT_REFERRERS;
                    lock(&self.inner.without_referrers).insert(server, until);
                }
                Err(error) => return Err(error),
            }
        }
        match self.manifest(at, reference, &delta::referrers_tag(manifest), auth, limit).await {
            Ok(raw) => Ok(Some(raw.bytes)),
            Err(Error::NotInRegistry { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A blob from an offset on. The body may begin at 0 nevertheless ([`Ranged::Whole`]).
    pub(crate) async fn blob(
        &self,
        at: &Endpoint,
        reference: &Reference,
        digest: &Digest,
        range: std::ops::Range<u64>,
        auth: &Auth,
    ) -> Result<Blob, Error> {
        let url = self.url(at, reference, "blobs", &digest.to_string())?;
        let what = format!("layer {}", digest.short());
        if range.start == 0 {
            let response = self
                .send(at, reference, auth, &what, |http, shown| {
                    let request = with(http.request(Method::GET, &url), shown);
                    async { request.send_any().await }
                })
                .await?;
            let total = response.content_length();
            let body = response.into_body().map_err(|source| http_error(&what, reference, source))?;
            return Ok(Blob { body, total, from: 0 });
        }
        let part = self
            .authorised(at, reference, auth, &what, |http, shown| {
                let (url, range) = (&url, range.clone());
                async move {
                    let http = match shown {
                        Some(shown) => http.with_authorization(url, &shown)?,
                        None => http,
                    };
                    http.get_range(url, range, None, &Validator::default()).await
                }
            })
            .await?;
        let (part, from) = match part {
            Ranged::Part(part) => {
                let from = part.range.start;
                (part, from)
            }
            Ranged::Whole(part) => (part, 0),
        };
        Ok(Blob { total: part.total, from, body: part.body })
    }

    fn url(&self, at: &Endpoint, reference: &Reference, kind: &str, name: &str) -> Result<Url, Error> {
        let prefix = at.base.path().trim_end_matches('/');
        at.base
            .join(&format!("{prefix}/v2/{}/{kind}/{name}", reference.repository()))
            .map_err(|_| Error::Registry { registry: at.name.clone(), what: "it is no host name".to_owned() })
    }

    /// A request whose answer is looked at here.
    async fn send<F>(
        &self,
        at: &Endpoint,
        reference: &Reference,
        auth: &Auth,
        what: &str,
        send: impl Fn(Http, Option<String>) -> F,
    ) -> Result<Response, Error>
    where
        F: Future<Output = Result<Response, rustiot_http::Error>>,
    {
        let shown = self.remembered(at, reference, auth);
        let mut response =
            send(at.http.clone(), shown).await.map_err(|source| http_error(what, reference, source))?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(challenge) = challenge(&response)
            && let Some(shown) = self.answer(at, reference, auth, &challenge).await?
        {
            response = send(at.http.clone(), Some(shown))
                .await
                .map_err(|source| http_error(what, reference, source))?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(at, reference, what, response).await)
    }

    /// A request that `rustiot-http` judges by itself; a 401 is met with a token and the request made once more.
    async fn authorised<T, F>(
        &self,
        at: &Endpoint,
        reference: &Reference,
        auth: &Auth,
        what: &str,
        send: impl Fn(Http, Option<String>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, rustiot_http::Error>>,
    {
        let shown = self.remembered(at, reference, auth);
        match send(at.http.clone(), shown).await {
            Err(error) if error.status() == Some(StatusCode::UNAUTHORIZED) => {
                // The token is too old, or there was none: the challenge is in an answer that is gone; ask for it.
                let ping = at.base.join("/v2/").map_err(|_| Error::Registry {
                    registry: at.name.clone(),
                    what: "it is no host name".to_owned(),
                })?;
                lock(&self.inner.tokens).remove(&key(at, reference, auth));
                let response = at.http.get(&ping).send_any().await;
                let response = response.map_err(|source| http_error(what, reference, source))?;
                let shown = match challenge(&response) {
                    Some(challenge) => self.answer(at, reference, auth, &challenge).await?,
                    None => None,
                };
                send(at.http.clone(), shown).await.map_err(|source| http_error(what, reference, source))
            }
            other => other.map_err(|source| http_error(what, reference, source)),
        }
    }

    fn remembered(&self, at: &Endpoint, reference: &Reference, auth: &Auth) -> Option<String> {
        let tokens = lock(&self.inner.tokens);
        let token = tokens.get(&key(at, reference, auth))?;
        (token.until > Instant::now()).then(|| token.value.clone())
    }

    /// What to show for a challenge; `None` when there is nothing to show.
    async fn answer(
        &self,
        at: &Endpoint,
        reference: &Reference,
        auth: &Auth,
        challenge: &Challenge,
    ) -> Result<Option<String>, Error> {
        let auth = if at.own { auth } else { &Auth::Anonymous };
        let (value, seconds) = match (challenge, auth) {
            (_, Auth::Bearer(token)) => (format!("Bearer {token}"), u64::from(u32::MAX)),
            (Challenge::Basic, Auth::Basic { user, password }) => {
                (basic(user, password), u64::from(u32::MAX))
            }
            (Challenge::Basic, _) => return Ok(None),
            (Challenge::Bearer { realm, service, scope }, auth) => {
                self.token(at, reference, auth, realm, service, scope).await?
            }
        };
        let until = Instant::now() + Duration::from_secs(seconds.min(24 * 3600));
        let token = Token { value: value.clone(), until };
        let mut tokens = lock(&self.inner.tokens);
        tokens.retain(|_, token| token.until > Instant::now());
        let auth = if at.own { auth } else { &Auth::Anonymous };
        tokens.insert(key(at, reference, auth), token);
        Ok(Some(value))
    }

    /// Asks the token server. Its scope is what we need, whatever the registry said.
    async fn token(
        &self,
        at: &Endpoint,
        reference: &Reference,
        auth: &Auth,
        realm: &str,
        service: &str,
        scope: &str,
    ) -> Result<(String, u64), Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
            expires_in: Option<u64>,
        }
        let wrong = |what: &str| Error::Registry { registry: at.name.clone(), what: what.to_owned() };
        let mut url = Url::parse(realm).map_err(|_| wrong("it names a token server that is no URL"))?;
        if url.scheme() != "https" && (at.base.scheme() == "https" || url.scheme() != "http") {
            return Err(wrong(
                "it wants a token of a server without TLS, which would show the password to all",
            ));
        }
        let own = format!("repository:{}:pull", reference.repository());
        let scope = if scope.starts_with("repository:") && scope.ends_with(":pull") { scope } else { &own };
        let request = match auth {
            Auth::Identity(token) => {
                let mut form = url.clone();
                form.set_query(None);
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("service", service)
                    .append_pair("client_id", "rustiot")
                    .append_pair("scope", scope)
                    .append_pair("refresh_token", token);
                let body = form.query().unwrap_or_default().to_owned();
                at.http.request(Method::POST, &url).body("application/x-www-form-urlencoded", body)
            }
            auth => {
                {
                    let mut query = url.query_pairs_mut();
                    if !service.is_empty() {
                        query.append_pair("service", service);
                    }
                    query.append_pair("scope", scope);
                }
                let request = at.http.get(&url);
                match auth {
                    Auth::Basic { user, password } => request.authorization(&basic(user, password)),
                    _ => request,
                }
            }
        };
        let response = request.send_any().await.map_err(|source| http_error("token", reference, source))?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = words(response).await;
                Err(Error::Unauthorized {
                    registry: at.name.clone(),
                    reference: Box::new(reference.clone()),
                    message,
                })
            }
            status if status.is_success() => {
                let answer: Answer = response
                    .json(ANSWER_MAX)
                    .await
                    .map_err(|source| http_error("token", reference, source))?;
                let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
                if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(wrong("its token server answers without a token"));
                }
                // A token is asked for anew a little before its end.
                let seconds = answer.expires_in.unwrap_or(TOKEN_SECONDS).max(TOKEN_SECONDS) - 10;
                Ok((format!("Bearer {token}"), seconds))
            }
            _ => Err(http_error("token", reference, response.refused())),
        }
    }

    /// An answer that is no success, in our words.
    async fn refusal(&self, at: &Endpoint, reference: &Reference, what: &str, response: Response) -> Error {
        match response.status() {
            StatusCode::NOT_FOUND => Error::NotInRegistry {
                reference: Box::new(reference.clone()),
                message: words(response).await,
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                lock(&self.inner.tokens).clear();
                let message = words(response).await;
                Error::Unauthorized {
                    registry: at.name.clone(),
                    reference: Box::new(reference.clone()),
                    message,
                }
            }
            _ => http_error(what, reference, response.refused()),
        }
    }
}

/// Whether a server does not know what it was asked for: 404, and what others answer in its place.
fn unknown(error: &Error) -> bool {
    match error {
        Error::NotInRegistry { .. } => true,
        Error::Http { source, .. } => {
            source.status().is_some_and(|status| matches!(status.as_u16(), 400 | 405 | 501))
        }
        _ => false,
    }
}

/// A blob on its way.
#[derive(Debug)]
pub(crate) struct Blob {
    pub body: rustiot_http::Body,
    /// Length of the whole blob, where the server says.
    pub total: Option<u64>,
    /// Where the body begins.
    pub from: u64,
}

fn with(request: Request, shown: Option<String>) -> Request {
    match shown {
        Some(shown) => request.authorization(&shown),
        None => request,
    }
}

fn http_error(what: &str, reference: &Reference, source: rustiot_http::Error) -> Error {
    Error::Http { what: what.into(), name: reference.familiar().into(), source }
}

fn challenge(response: &Response) -> Option<Challenge> {
    Challenge::parse(response.header("www-authenticate")?)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn key(at: &Endpoint, reference: &Reference, auth: &Auth) -> TokenKey {
    let auth = if at.own { auth } else { &Auth::Anonymous };
    let shown = match auth {
        Auth::Anonymous => String::new(),
        Auth::Basic { user, password } => format!("b{}:{user}:{password}", user.len()),
        Auth::Identity(token) => format!("i{token}"),
        Auth::Bearer(token) => format!("t{token}"),
    };
    let server = at.base.to_string();
    TokenKey { server, repository: reference.repository().to_owned(), shown: Digest::of(shown.as_bytes()) }
}

fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// The registry's own words about an error.
async fn words(response: Response) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<One>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        message: String,
        #[serde(default)]
        code: String,
    }
    let status = response.status();
    let bytes = response.bytes(ANSWER_MAX).await.unwrap_or_default();
    let text = match serde_json::from_slice::<Errors>(&bytes) {
        Ok(Errors { errors, details }) => errors
            .first()
            .map(|one| if one.message.is_empty() { one.code.clone() } else { one.message.clone() })
            .unwrap_or(details),
        Err(_) => String::new(),
    };
    let text: String = text.chars().filter(|char| !char.is_control()).take(300).collect();
    if text.is_empty() { status.to_string() } else { text }
}
