//! HTTP(S) as a device needs it: every body is bounded, every download can be resumed, every error says what to do next.
//!
//! A thin layer over reqwest and rustls: proxy, extra authorities, timeouts that bound silence and not the whole
//! transfer, conditional and range requests checked to the byte, and delays between attempts as pure values. Never
//! sleeps, never retries, never logs; the caller decides. Called by everything on the device that talks to a server:
//! the metadata client, the fetch proxy, hawkBit, reports. Contract: `docs/contracts/http.md`.

mod backoff;
mod client;
mod dates;
mod error;
#[cfg(feature = "faulty")]
pub mod faulty;
pub mod range;
mod request;
mod retry_after;
mod setup;

pub use backoff::Backoff;
pub use bytes::Bytes;
pub use client::{Http, Part, Ranged};
pub use dates::Dates;
pub use error::{Class, Error, RedirectRefusal, TlsFailure};
pub use request::{Body, Fetched, Method, Request, Response, Validator};
pub use reqwest::{StatusCode, Url};
pub use retry_after::retry_after;
pub use setup::{BuildError, Identity, Proxy, Settings, Trust};
