//! The client, and what is built from a request: whole small files, conditional ones, ranges of large ones.
//!
//! Checks every answer against what was asked; never retries. Called by everything on the device that talks to a
//! server.

use std::ops::Range;
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;

use crate::error::Error;
use crate::range::{ContentRange, parse_content_range};
use crate::request::{Body, Fetched, Request, Response, Validator};

/// An HTTP client. Cheap to clone; all clones share connections.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    /// [`crate::Settings::idle_timeout`].
    patience: Duration,
    /// For one server only. Marked as sensitive, so that `Debug` does not show the value.
    authorization: Option<(Url, HeaderValue)>,
}

/// An answer to a request for a range.
#[derive(Debug)]
pub enum Ranged {
    /// The bytes that were asked for.
    Part(Part),
    /// The whole file: the server does not serve ranges. Its body starts at offset 0.
    Whole(Part),
}

/// A stretch of a file.
#[derive(Debug)]
pub struct Part {
    /// The bytes of the file that the body holds; the end of a whole file of unknown length is `u64::MAX`.
    pub range: Range<u64>,
    /// Length of the whole file, where the server knows it.
    pub total: Option<u64>,
    /// What tells this version of the file from others.
    pub validator: Validator,
    /// The bytes.
    pub body: Body,
}

impl Http {
    pub(crate) fn from_client(client: reqwest::Client, patience: Duration) -> Http {
        Http { client, patience, authorization: None }
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// The same client, which shows these credentials (such as `TargetToken …`) with every request to the server of
    /// `server` (scheme, host and port), and to no other. A value that HTTP cannot carry is an error.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn with_authorization(mut self, server: &Url, value: &str) -> Result<Http, Error> {
        let host = server.host_str().unwrap_or_default().to_owned();
        let mut value =
            HeaderValue::try_from(value).map_err(|e| Error::Request { host, source: e.into() })?;
        value.set_sensitive(true);
        self.authorization = Some((server.clone(), value));
        Ok(self)
    }

    /// The credentials that belong to `url`.
    pub(crate) fn authorization_for(&self, url: &Url) -> Option<&HeaderValue> {
        self.authorization
            .as_ref()
            .filter(|(server, _)| server.origin() == url.origin())
            .map(|(_, value)| value)
    }

    /// A request of any kind.
    pub fn request(&self, method: Method, url: &Url) -> Request {
        Request::new(self, method, url)
    }

    /// A GET.
    pub fn get(&self, url: &Url) -> Request {
        self.request(Method::GET, url)
    }

    /// A POST with a JSON body.
    pub fn post_json<T: Serialize + ?Sized>(&self, url: &Url, body: &T) -> Request {
        self.request(Method::POST, url).json(body)
    }

    /// A PUT with a JSON body.
    pub fn put_json<T: Serialize + ?Sized>(&self, url: &Url, body: &T) -> Request {
        self.request(Method::PUT, url).json(body)
    }

    /// A whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get_bytes(&self, url: &Url, limit: u64) -> Result<Vec<u8>, Error> {
        self.get(url).send().await?.bytes(limit).await
    }

    /// A whole file of at most `limit` bytes, unless it is still the one that `have` belongs to.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get_if_changed(&self, url: &Url, have: &Validator, limit: u64) -> Result<Fetched, Error> {
        let response = self.get(url).if_changed(have).send().await?;
        if response.not_modified() {
            return Ok(Fetched::NotModified);
        }
        let validator = response.validator();
        Ok(Fetched::New { bytes: response.bytes(limit).await?, validator })
    }

    /// A stretch of a file. `total` and `validator` are what is known of the file from before: an answer that belongs to
    /// another file is [`Error::Changed`], whatever its code.
    ///
    /// # Errors
    /// [`Error`]: [`Error::WrongRange`] for anything but exactly the bytes asked for (or as many of them as the file
    /// has), [`Error::NotTheFile`] for a page of a captive portal.
    pub async fn get_range(
        &self,
        url: &Url,
        asked: Range<u64>,
        total: Option<u64>,
        validator: &Validator,
    ) -> Result<Ranged, Error> {
        let last = asked.end.saturating_sub(1);
        let mut request = self.get(url).header(RANGE.as_str(), &format!("bytes={}-{last}", asked.start));
        if let Some(value) = validator.for_if_range() {
            request = request.header(IF_RANGE.as_str(), value);
        }
        let response = request.send_any().await?;
        let host = response.host();
        match response.status() {
            StatusCode::PARTIAL_CONTENT => part(response, asked, total, validator).map(Ranged::Part),
            StatusCode::OK => whole(response, total, validator).map(Ranged::Whole),
            StatusCode::PRECONDITION_FAILED => Err(Error::Changed { host }),
            // We never ask beyond a length that we know.
            StatusCode::RANGE_NOT_SATISFIABLE if total.is_some() => Err(Error::Changed { host }),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let answer = response.header(CONTENT_RANGE.as_str()).unwrap_or("416").to_owned();
                Err(Error::WrongRange { host, asked, answer })
            }
            status if status.is_success() => {
                Err(Error::NotTheFile { host, what: format!("an answer {}", status.as_u16()) })
            }
            _ => Err(response.refused()),
        }
    }
}

/// Checks an answer 206.
fn part(response: Response, asked: Range<u64>, total: Option<u64>, known: &Validator) -> Result<Part, Error> {
    let host = response.host();
    let text = response.header(CONTENT_RANGE.as_str()).unwrap_or("no Content-Range").to_owned();
    let wrong = |answer: String| Error::WrongRange { host: host.clone(), asked: asked.clone(), answer };
    let Some(ContentRange { range: Some(range), total: says }) = parse_content_range(&text) else {
        return Err(wrong(text));
    };
    let validator = response.validator();
    let other_length = matches!((total, says), (Some(known), Some(says)) if known != says);
    if other_length || validator.differs(known) {
        return Err(Error::Changed { host });
    }
    let end = total.or(says).map_or(asked.end, |total| asked.end.min(total));
    if range != (asked.start..end) {
        return Err(wrong(text));
    }
    let len = range.end.saturating_sub(range.start);
    if let Some(length) = response.content_length().filter(|length| *length != len) {
        return Err(wrong(format!("{text}, {CONTENT_LENGTH}: {length}")));
    }
    Ok(Part { range, total: says.or(total), validator, body: response.into_body()?.exactly(len) })
}

/// Checks an answer 200 to a request for a range: another file, or a server that cannot do ranges, or neither.
fn whole(response: Response, total: Option<u64>, known: &Validator) -> Result<Part, Error> {
    let host = response.host();
    let kind = response.header(CONTENT_TYPE.as_str()).unwrap_or_default();
    if kind.to_ascii_lowercase().starts_with("text/html") {
        // No file of ours is a page: somebody is in between.
        return Err(Error::NotTheFile { host, what: "a page".to_owned() });
    }
    let (validator, says) = (response.validator(), response.content_length());
    let other_length = matches!((total, says), (Some(known), Some(says)) if known != says);
    if other_length || validator.differs(known) {
        return Err(Error::Changed { host });
    }
    let total = says.or(total);
    let body = response.into_body()?;
    let body = match total {
        Some(total) => body.exactly(total),
        None => body,
    };
    Ok(Part { range: 0..total.unwrap_or(u64::MAX), total, validator, body })
}
