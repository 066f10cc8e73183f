//! What the API's requests and answers say, as Rust types: Docker's names and JSON, no more fields than are supported.
//!
//! Request types have a default for every field, so that a client may leave out what it likes; what Docker knows and
//! this engine does not is refused before these types are filled (see `docs/contracts/engine.md`). Times are
//! [`jiff::Timestamp`]s; "never" is `None` and goes over the wire as Docker's year 1. Pure data, no I/O. Used by
//! implementations of [`crate::Engine`] and by the HTTP side.

mod config;
mod container;
mod image;
mod network;
mod stream;
mod system;
mod volume;
mod wire;

pub use config::*;
pub use container::*;
pub use image::*;
pub use network::*;
pub use stream::*;
pub use system::*;
pub use volume::*;
pub use wire::{Empty, ZERO_TIME, zero_time};
