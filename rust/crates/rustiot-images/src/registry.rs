//! Registries: where they are, how they are asked, what they are shown.
//!
//! Stores nothing. Called by the pull.

use std::collections::BTreeMap;

use rustiot_http::Settings;

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// Proxy, authorities, timeouts.
    pub http: Settings,
    /// Mirrors by registry, asked first and in this order: `docker.io` → `https://mirror.example`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries (`host` or `host:port`) that may be asked without a valid certificate, and by plain HTTP where they
    /// speak no TLS. Nothing is insecure by itself, not even this machine.
    pub insecure: Vec<String>,
}

/// The registries' client: connections and tokens. Cheap to clone; all clones share them.
#[derive(Clone, Debug)]
pub struct Registries {
    pub(crate) config: RegistryConfig,
}

impl Registries {
    /// A client.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Registries {
        Registries { config }
    }
}
