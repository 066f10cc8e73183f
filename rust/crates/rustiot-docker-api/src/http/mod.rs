//! Everything that is HTTP or JSON text: bodies, routes, hijacked connections.
//!
//! Turns a request into one call of [`crate::Engine`] and its answer into what Docker's clients expect. Keeps nothing
//! between requests.

pub(crate) mod answer;
pub(crate) mod body;
mod containers;
pub(crate) mod decode;
mod hijack;
mod images;
mod networks;
mod route;
mod streams;
mod system;
mod volumes;

pub(crate) use route::answer;
