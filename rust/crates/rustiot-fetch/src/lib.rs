//! What stands between RAUC and the world: an HTTP server on loopback that always has the bundle, sooner or later.
//!
//! RAUC streams from it as from a perfect server. Behind it: servers that fail, links that break, limits, a cache that
//! survives power cuts, and deltas from which the bundle is made as it is read. Adds no trust: RAUC verifies every
//! byte. Never decides which way is taken. Called by the update service. Contract: `docs/contracts/proxy.md`.

mod cache;
mod error;
mod job;
pub mod journal;
mod medium;
mod proxy;
mod ranges;
mod server;
mod store;
mod throttle;
mod types;
mod window;
mod worker;

pub use cache::CacheError;
pub use error::Failure;
pub use proxy::{Handle, Proxy};
pub use types::{Limits, Progress, RemoteFile, State, Way};
