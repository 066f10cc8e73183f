//! The owner's `rustiot.toml`: from the text of its files to settings that services can rely on.
//!
//! Pure apart from [`Settings::load_effective`]: no clock, no network, writes nothing. `rustiot-provision` reads
//! the files, calls this crate and writes what it renders; every service reads only the result.
//! Contract: `docs/contracts/config.md`; the owner's page: `docs/configuration.md`.

mod fragment;
mod message;
#[cfg(test)]
mod published;
pub mod render;
mod resolve;
pub mod scalar;
pub mod settings;

pub use fragment::{Content, Fragment};
pub use message::{Message, Place, Severity};
pub use resolve::{Good, LastGood, Origin, Outcome, fuzz, resolve};
pub use settings::{
    EFFECTIVE, EngineSettings, HawkbitConsent, HawkbitSettings, HawkbitSoft, HealthSettings, Ipv6, LoadError,
    LogSettings, NetworkCheck, NetworkKind, NetworkSettings, ProxySettings, Settings, SshSettings,
    TimeSettings, UpdateDownload, UpdateOnBattery, UpdatePolicy, UpdateReboot, UpdateSettings,
    WatchdogSettings,
};

/// The largest configuration file that is read, in bytes.
pub const MAX_FILE: u64 = 1 << 20;
