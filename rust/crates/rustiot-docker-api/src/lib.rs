//! The Docker Engine API (version 1.47) on a unix socket, over the trait [`Engine`] that knows nothing of HTTP.
//!
//! What the stock `docker` command line and `docker compose` send is read here (versions, queries, filters, JSON
//! bodies, tar streams, hijacked connections), bounded, turned into typed calls, and the answers are turned back into
//! Docker's JSON, status codes, texts and stream formats. It runs no container, keeps no state, opens no file but the
//! socket that it is handed. `rustiot-engine` implements the trait and calls [`server::serve`]. What is supported,
//! what differs and what is not there stands in `docs/contracts/engine.md`.

pub mod auth;
pub mod engine;
mod error;
pub mod filters;
mod http;
mod human;
pub mod lookup;
pub mod path;
pub mod query;
mod select;
pub mod server;
pub mod types;

pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use engine::Engine;
pub use error::Error;
pub use jiff::Timestamp;

/// The version of the API that is spoken when a client names none.
pub const API_VERSION: &str = "1.47";
/// The oldest version that is answered.
pub const MIN_API_VERSION: &str = "1.24";
