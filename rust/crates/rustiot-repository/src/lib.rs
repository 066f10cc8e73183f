//! Releases on a plain web server: what a board's signed index says ([`index`]), which devices may take a release and
//! when ([`rollout`]), what this device should do ([`plan`]), when it looks ([`poll`]) and what time it may believe it
//! is ([`time`]).
//!
//! These modules are pure: no clock, no disk, no network. The client (feature `client`) brings the index here through
//! TUF and is used by `rustiot-update`; the publisher (feature `publish`) writes the repository on a workstation and is
//! used by `rustiot-cli`. Contract: `docs/contracts/repository.md`.

#[cfg(feature = "client")]
pub mod client;
pub mod details;
mod digest;
pub mod index;
pub mod plan;
pub mod poll;
#[cfg(feature = "publish")]
pub mod publish;
pub mod rollout;
pub mod time;

pub use digest::{BadDigest, Digest};
pub use index::{File, Index, Release, Source, Way, WayKind};
pub use plan::{Facts, Plan, PlannedWay, Refusal, Retry, Running, Space, Wanted, plan};
pub use rollout::{Rollout, Rollouts, State, Wave, place};
