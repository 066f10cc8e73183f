//! One request and its answer: headers by type, bodies counted against what was announced and what is allowed.
//!
//! Never follows up by itself. Called through [`crate::Http`].

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, RETRY_AFTER,
};
use reqwest::{StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::client::Http;
use crate::error::{Error, host};
use crate::retry_after::retry_after;
use crate::setup::IS_POST;

pub use reqwest::Method;

/// What tells one version of a file on a server from another. Can be stored.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Validator {
    /// `ETag` as it was sent, quotes (and `W/`) included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// `Last-Modified` as it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
}

impl Validator {
    /// Of an answer.
    pub(crate) fn of(headers: &HeaderMap) -> Validator {
        let text =
            |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
        Validator { etag: text(ETAG), last_modified: text(LAST_MODIFIED) }
    }

    /// Whether there is nothing to compare by.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }

    /// The value for `If-Range`: a strong ETag, or else the date (RFC 9110, 13.1.5). A weak ETag cannot promise bytes.
    #[must_use]
    pub fn for_if_range(&self) -> Option<&str> {
        match self.etag.as_deref() {
            Some(etag) if etag.starts_with('"') => Some(etag),
            Some(_) => None,
            None => self.last_modified.as_deref(),
        }
    }

    /// Whether the two certainly belong to different files. What one of them does not say is no difference.
    #[must_use]
    pub fn differs(&self, other: &Validator) -> bool {
        match (&self.etag, &other.etag) {
            (Some(one), Some(other)) => one != other,
            _ => {
                matches!((&self.last_modified, &other.last_modified), (Some(one), Some(other)) if one != other)
            }
        }
    }
}

/// A request that has not been sent.
#[derive(Debug)]
#[must_use]
pub struct Request {
    http: Http,
    url: Url,
    built: reqwest::RequestBuilder,
    failed: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Request {
    pub(crate) fn new(http: &Http, method: Method, url: &Url) -> Request {
        let mut built = http.client().request(method, url.clone());
        if let Some(value) = http.authorization_for(url) {
            built = built.header(AUTHORIZATION, value.clone());
        }
        Request { http: http.clone(), url: url.clone(), built, failed: None }
    }

    /// With a header. A value that HTTP cannot carry fails on [`Request::send`].
    pub fn header(mut self, name: &str, value: &str) -> Request {
        let name = HeaderName::try_from(name).map_err(Into::into);
        let value = HeaderValue::try_from(value).map_err(Into::into);
        match (name, value) {
            (Ok(name), Ok(value)) => self.built = self.built.header(name, value),
            (Err(error), _) | (_, Err(error)) => self.failed = Some(error),
        }
        self
    }

    /// With credentials, such as `TargetToken …` or `Bearer …`. They never appear in `Debug` and do not follow a
    /// redirect to another host.
    pub fn authorization(mut self, value: &str) -> Request {
        match HeaderValue::try_from(value) {
            Ok(mut value) => {
                value.set_sensitive(true);
                self.built = self.built.header(AUTHORIZATION, value);
            }
            Err(error) => self.failed = Some(error.into()),
        }
        self
    }

    /// Only if the file is no longer the one that `have` belongs to: the answer may be 304, which is no error.
    pub fn if_changed(mut self, have: &Validator) -> Request {
        if let Some(etag) = &have.etag {
            self = self.header(IF_NONE_MATCH.as_str(), etag);
        } else if let Some(date) = &have.last_modified {
            self = self.header(IF_MODIFIED_SINCE.as_str(), date);
        }
        self
    }

    /// With a JSON body.
    pub fn json<T: Serialize + ?Sized>(mut self, body: &T) -> Request {
        match serde_json::to_vec(body) {
            Ok(body) => self.built = self.built.header(CONTENT_TYPE, "application/json").body(body),
            Err(error) => self.failed = Some(error.into()),
        }
        self
    }

    /// With any body.
    pub fn body(mut self, content_type: &str, body: impl Into<Bytes>) -> Request {
        self.built = self.built.body(body.into());
        self.header(CONTENT_TYPE.as_str(), content_type)
    }

    /// Sends it and waits for the answer's head. Success is 2xx, and 304 after [`Request::if_changed`].
    ///
    /// # Errors
    /// [`Error`]; any other code is [`Error::Status`].
    pub async fn send(self) -> Result<Response, Error> {
        let response = self.send_any().await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        Err(response.refused())
    }

    /// The same, whatever the code is.
    ///
    /// # Errors
    /// [`Error`], but never [`Error::Status`].
    pub async fn send_any(self) -> Result<Response, Error> {
        if let Some(source) = self.failed {
            return Err(Error::Request { host: host(&self.url), source });
        }
        let request = self.built.build().map_err(|error| Error::from_reqwest(&self.url, error))?;
        let is_post = *request.method() == Method::POST;
        let answer = IS_POST.scope(is_post, self.http.client().execute(request)).await;
        let inner = answer.map_err(|error| Error::from_reqwest(&self.url, error))?;
        Ok(Response { url: self.url, inner, patience: self.http.patience() })
    }
}

/// The head of an answer, with its body still to come.
#[derive(Debug)]
pub struct Response {
    url: Url,
    inner: reqwest::Response,
    patience: Duration,
}

impl Response {
    /// Its code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.inner.status()
    }

    /// Whether the file is still the one that the request named.
    #[must_use]
    pub fn not_modified(&self) -> bool {
        self.status() == StatusCode::NOT_MODIFIED
    }

    /// What tells this version of the file from others.
    #[must_use]
    pub fn validator(&self) -> Validator {
        Validator::of(self.inner.headers())
    }

    /// A header, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// Length of the body, where announced.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The URL that answered in the end, after redirects.
    #[must_use]
    pub fn url(&self) -> &Url {
        self.inner.url()
    }

    /// Host and port that was asked, for messages.
    pub(crate) fn host(&self) -> String {
        host(&self.url)
    }

    /// The answer as a refusal.
    #[must_use]
    pub fn refused(self) -> Error {
        let asked = self.header(RETRY_AFTER.as_str());
        let retry_after = asked.and_then(|value| retry_after(value, self.header(DATE.as_str())));
        Error::Status { host: self.host(), status: self.status(), retry_after }
    }

    /// The body in pieces.
    ///
    /// # Errors
    /// [`Error::NotTheFile`] when it is compressed: nobody asked for that.
    pub fn into_body(self) -> Result<Body, Error> {
        match self.header(CONTENT_ENCODING.as_str()) {
            None | Some("" | "identity") => {}
            Some(encoding) => {
                return Err(Error::NotTheFile { host: self.host(), what: format!("a body in {encoding:?}") });
            }
        }
        let expected = self.content_length();
        let pace = Pace { patience: self.patience, since: None, waited: Duration::ZERO, bytes: 0 };
        Ok(Body { url: self.url, inner: self.inner, expected, received: 0, limit: u64::MAX, pace })
    }

    /// The whole body, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] before a byte more is read, and what [`Body::chunk`] may say.
    pub async fn bytes(self, limit: u64) -> Result<Vec<u8>, Error> {
        let mut body = self.into_body()?.limited(limit);
        if body.expected.is_some_and(|expected| expected > limit) {
            return Err(body.too_large());
        }
        let mut all = Vec::new();
        while let Some(chunk) = body.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// The whole body as JSON, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::NotTheFile`] when it is none, and what [`Response::bytes`] may say.
    pub async fn json<T: DeserializeOwned>(self, limit: u64) -> Result<T, Error> {
        let host = self.host();
        let bytes = self.bytes(limit).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::NotTheFile { host, what: format!("no such JSON ({error})") })
    }
}

/// A body that comes in pieces.
#[derive(Debug)]
pub struct Body {
    url: Url,
    inner: reqwest::Response,
    expected: Option<u64>,
    received: u64,
    limit: u64,
    pace: Pace,
}

/// Slower than this many bytes in [`crate::Settings::idle_timeout`] of waiting is as good as silent.
const SLOW_BYTES: u64 = 1 << 10;

/// How long was waited for how much, lately. Time in which nobody asked for more is not the server's.
#[derive(Debug)]
struct Pace {
    patience: Duration,
    /// Since when a piece is waited for, over calls that were given up.
    since: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn waits(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Counts a piece; whether it comes too slowly.
    fn came(&mut self, now: Instant, bytes: u64) -> bool {
        let wait = self.since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.waited = self.waited.saturating_add(wait);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= SLOW_BYTES {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        self.waited > self.patience
    }
}

impl Body {
    /// Fails as [`Error::TooLarge`] beyond `limit` bytes.
    #[must_use]
    pub fn limited(mut self, limit: u64) -> Body {
        self.limit = limit;
        self
    }

    /// Fails as [`Error::Truncated`] when it ends before `expected` bytes, whatever was announced.
    pub(crate) fn exactly(mut self, expected: u64) -> Body {
        self.expected = Some(expected);
        self.limit = expected;
        self
    }

    /// Length, where announced.
    #[must_use]
    pub fn expected(&self) -> Option<u64> {
        self.expected
    }

    /// Bytes so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Broken`], [`Error::Timeout`], [`Error::TooLarge`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.pace.waits(Instant::now());
        match self.inner.chunk().await {
            Ok(Some(chunk)) => {
                let bytes = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                self.received = self.received.saturating_add(bytes);
                if self.received > self.limit {
                    return Err(self.too_large());
                }
                let slow = self.pace.came(Instant::now(), bytes);
                if slow && self.expected != Some(self.received) {
                    return Err(Error::Timeout { host: host(&self.url), connected: true });
                }
                Ok(Some(chunk))
            }
            Ok(None) => match self.expected {
                Some(expected) if self.received < expected => Err(self.truncated(expected)),
                _ => Ok(None),
            },
            Err(error) => Err(match (Error::from_reqwest(&self.url, error), self.expected) {
                (Error::Broken { source, .. }, Some(expected)) if ended(&*source) => self.truncated(expected),
                (error, _) => error,
            }),
        }
    }

    fn truncated(&self, expected: u64) -> Error {
        Error::Truncated { host: host(&self.url), received: self.received, expected }
    }

    fn too_large(&self) -> Error {
        Error::TooLarge { host: host(&self.url), limit: self.limit }
    }
}

/// Whether a broken body was an orderly end that came too early, rather than a reset.
fn ended(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::UnexpectedEof;
        }
        next = error.source();
    }
    true
}

/// A file that was asked for conditionally.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fetched {
    /// Still the one that the caller has.
    NotModified,
    /// Another one.
    New {
        /// Its contents.
        bytes: Vec<u8>,
        /// What tells it from others, for the next time.
        validator: Validator,
    },
}
