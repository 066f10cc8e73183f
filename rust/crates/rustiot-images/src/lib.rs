//! OCI and Docker images on a device: references, registries, the content-addressed store, what a container mounts.
//!
//! A library: no daemon, no API. Nothing is visible before it is durable; what is damaged is marked and fetched again,
//! never wiped; what a container or a rollback needs is never collected; and what an image's archive names never becomes
//! a path of this device. Called by `rustiot-engine`; its
//! publisher of deltas (feature `publish`) by the workstation's command line. Contract: `docs/contracts/images.md`.

mod archive;
mod auth;
mod core;
mod delta;
mod digest;
mod error;
mod layer;
mod limits;
pub mod manifest;
pub mod mount;
mod platform;
mod progress;
#[cfg(feature = "publish")]
pub mod publish;
mod pull;
mod reference;
mod registry;
mod store;
mod sys;

pub use auth::{Auth, AuthError, Challenge, Credentials};
pub use digest::{Digest, DigestError, Hasher, ImageId};
pub use error::{Error, Kind};
pub use layer::LayerError;
pub use limits::Limits;
pub use platform::{Platform, PlatformError};
pub use progress::{Event, Progress, Status};
pub use reference::{DEFAULT_REGISTRY, DEFAULT_TAG, Reference, ReferenceError};
pub use registry::{Registries, RegistryConfig};
pub use store::{
    Depth, DiskUsage, Image, LayerInfo, Loaded, Policy, PullOptions, Pulled, Removed, Rootfs, RootfsLayer,
    ScrubReport, Store,
};
