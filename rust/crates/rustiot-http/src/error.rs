//! What may go wrong with a request, and what that means for the next one.
//!
//! Pure. Texts name the host and never a path, a query or a password. Called by everything in this crate.

use std::error::Error as StdError;
use std::io;
use std::ops::Range;
use std::time::Duration;

use reqwest::{StatusCode, Url};

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be made at all: a header or body of the caller's, a URL without a host.
    #[error("cannot make a request to {host}")]
    Request {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The name is not known, or nobody answers for it.
    #[error("cannot resolve {host}")]
    Dns {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// No connection: refused, unreachable, or the proxy refused.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server cannot prove who it is, or speaks no TLS that we do.
    #[error("no trusted TLS connection to {host}: {failure}")]
    Tls {
        /// Host and port.
        host: String,
        /// What is wrong.
        failure: TlsFailure,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Nothing came for too long.
    #[error("no answer from {host} in time")]
    Timeout {
        /// Host and port.
        host: String,
        /// Whether a connection stood already.
        connected: bool,
    },
    /// The connection broke.
    #[error("connection to {host} broke")]
    Broken {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The body ended early.
    #[error("{host} sent {received} bytes of {expected}")]
    Truncated {
        /// Host and port.
        host: String,
        /// Bytes that came.
        received: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// The server says no.
    #[error("{host} answered {status}")]
    Status {
        /// Host and port.
        host: String,
        /// Its code.
        status: StatusCode,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {refusal}")]
    Redirect {
        /// Host and port of the first request.
        host: String,
        /// Why not.
        refusal: RedirectRefusal,
    },
    /// More bytes than the caller allows.
    #[error("{host} sends more than {limit} bytes")]
    TooLarge {
        /// Host and port.
        host: String,
        /// What was allowed.
        limit: u64,
    },
    /// The file is not the one that was begun: another validator or another length.
    #[error("the file on {host} changed")]
    Changed {
        /// Host and port.
        host: String,
    },
    /// The server sends whole files only.
    #[error("{host} does not serve ranges")]
    NoRanges {
        /// Host and port.
        host: String,
    },
    /// The server sends other bytes than asked for.
    #[error("{host} sent another range than {}-{}: {answer:?}", asked.start, asked.end)]
    WrongRange {
        /// Host and port.
        host: String,
        /// What was asked for, half open.
        asked: Range<u64>,
        /// Its Content-Range or Content-Length.
        answer: String,
    },
    /// Not what was asked for: a page where a file should be (captive portal), a compressed body, no JSON.
    #[error("{host} sent something else: {what}")]
    NotTheFile {
        /// Host and port.
        host: String,
        /// What it is.
        what: String,
    },
}

/// What is wrong with a server's TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TlsFailure {
    /// Its certificate is past its end, or the device's clock is wrong.
    #[error("the certificate has expired")]
    Expired,
    /// Its certificate is not valid yet: nearly always the device's clock.
    #[error("the certificate is not valid yet (is the clock right?)")]
    NotYetValid,
    /// Its certificate is for another name.
    #[error("the certificate is for another name")]
    WrongName,
    /// Its certificate was signed by nobody whom we know.
    #[error("the certificate's authority is not known")]
    UnknownAuthority,
    /// Its certificate was revoked.
    #[error("the certificate was revoked")]
    Revoked,
    /// Another fault of its certificate.
    #[error("the certificate is not valid")]
    BadCertificate,
    /// No common protocol, or no TLS at all.
    #[error("the handshake failed")]
    Handshake,
}

/// Why a redirect was not followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RedirectRefusal {
    /// From https to http.
    #[error("from https to plain http")]
    ToPlainHttp,
    /// Too often, or in a circle.
    #[error("too often")]
    TooMany,
    /// To neither http nor https, or to no URL.
    #[error("to something else than http")]
    Scheme,
    /// A POST by 301 or 302: a GET would be made of it, without what it carries.
    #[error("so that what was sent would be lost (307 and 308 keep it)")]
    Drops,
}

/// What a failure means for the next attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// The way there is down; it heals by itself.
    Network,
    /// The server has a bad time; it heals by itself.
    Server,
    /// The server is not who it should be (or the clock is wrong). Other servers may be fine; this one may heal.
    Identity,
    /// The server is fine and what it has is not what we want: try another place, then start over.
    Content,
    /// The server refuses this request, and will do so again: try another place, then give up for now.
    Refused,
    /// The caller's fault.
    Local,
}

impl Error {
    /// What the failure means for the next attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Dns { .. }
            | Error::Connect { .. }
            | Error::Timeout { .. }
            | Error::Broken { .. }
            | Error::Truncated { .. } => Class::Network,
            Error::Tls { .. } => Class::Identity,
            Error::Status { status, .. } => match status.as_u16() {
                408 | 425 | 429 | 500..=599 => Class::Server,
                _ => Class::Refused,
            },
            Error::Redirect { .. }
            | Error::TooLarge { .. }
            | Error::Changed { .. }
            | Error::NoRanges { .. }
            | Error::WrongRange { .. }
            | Error::NotTheFile { .. } => Class::Content,
            Error::Request { .. } => Class::Local,
        }
    }

    /// Whether the same request may work later without anybody doing anything.
    #[must_use]
    pub fn may_heal(&self) -> bool {
        matches!(self.class(), Class::Network | Class::Server | Class::Identity)
            || matches!(self, Error::NotTheFile { .. } | Error::Redirect { .. })
    }

    /// How long the server asks to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The server's code, where it answered with one that is no success.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Error::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// What failed, without ever telling more of the URL than its host.
    pub(crate) fn from_reqwest(url: &Url, error: reqwest::Error) -> Error {
        let host = host(url);
        let error = error.without_url();
        let found = Found::look(&error);
        if let Some(refusal) = found.redirect {
            return Error::Redirect { host, refusal };
        }
        if error.is_redirect() {
            return Error::Redirect { host, refusal: RedirectRefusal::Scheme };
        }
        if error.is_timeout() {
            return Error::Timeout { host, connected: !error.is_connect() };
        }
        if found.dns {
            return Error::Dns { host, source: error.into() };
        }
        if let Some(failure) = found.tls {
            return Error::Tls { host, failure, source: error.into() };
        }
        if error.is_connect() {
            return Error::Connect { host, source: error.into() };
        }
        if error.is_builder() {
            return Error::Request { host, source: error.into() };
        }
        Error::Broken { host, source: error.into() }
    }
}

/// The name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the name cannot be resolved")]
pub(crate) struct DnsFailure {
    #[source]
    pub source: io::Error,
}

/// What the chain of an error is made of.
#[derive(Default)]
struct Found {
    redirect: Option<RedirectRefusal>,
    tls: Option<TlsFailure>,
    dns: bool,
}

impl Found {
    fn look(error: &(dyn StdError + 'static)) -> Found {
        let mut found = Found::default();
        let mut next = Some(error);
        while let Some(error) = next {
            found.one(error);
            // An I/O error hides what it wraps from `source`, and may wrap another one.
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        found
    }

    fn one(&mut self, error: &(dyn StdError + 'static)) {
        if let Some(refusal) = error.downcast_ref::<RedirectRefusal>() {
            self.redirect = Some(*refusal);
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            self.tls = Some(tls_failure(tls));
        }
        self.dns |= error.is::<DnsFailure>();
    }
}

fn tls_failure(error: &rustls::Error) -> TlsFailure {
    use rustls::CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => TlsFailure::Expired,
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => TlsFailure::NotYetValid,
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => TlsFailure::WrongName,
            Bad::UnknownIssuer => TlsFailure::UnknownAuthority,
            Bad::Revoked => TlsFailure::Revoked,
            _ => TlsFailure::BadCertificate,
        },
        rustls::Error::NoCertificatesPresented => TlsFailure::BadCertificate,
        _ => TlsFailure::Handshake,
    }
}

/// Host and port, for messages.
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or("no host");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
