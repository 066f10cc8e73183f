//! What the owner of a device may choose for its apps: `[engine]` and `[proxy]` of `rustiot.toml`, over the engine's own
//! defaults.
//!
//! Pure: the file is read by who starts the engine. Called at the engine's start.

use std::path::PathBuf;

use rustiot_docker_api::types::Resources;
use rustiot_images::{Limits, RegistryConfig};

/// See the module.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Off: containers are ended and none is started, and every call is refused.
    pub enabled: bool,
    /// What a container gets that asks for nothing.
    pub defaults: Resources,
    /// Bytes of one log file.
    pub log_size: u64,
    /// Log files of a container.
    pub log_files: u32,
    /// Bytes that a container may log in a second on average.
    pub log_rate: u64,
    /// Percent of the medium that images may take before unneeded ones go; 0: none goes by itself.
    pub image_share: u8,
    /// What images may cost.
    pub limits: Limits,
    /// How registries are reached.
    pub registries: RegistryConfig,
    /// Docker's `config.json` with credentials.
    pub credentials: PathBuf,
}

/// A fork bomb must find an end; Docker has none.
const PIDS: i64 = 4096;

impl Default for Settings {
    fn default() -> Self {
        Self::of(&rustiot_config::Settings::default())
    }
}

impl Settings {
    /// As the owner wants it.
    pub fn of(owner: &rustiot_config::Settings) -> Self {
        let (engine, proxy) = (&owner.engine, &owner.proxy);
        let mut registries = RegistryConfig::default();
        for mirror in &engine.mirrors {
            let (registry, address) = mirror.parts();
            registries.mirrors.entry(registry.to_owned()).or_default().push(address.to_owned());
        }
        registries.insecure = engine.insecure_registries.iter().map(ToString::to_string).collect();
        registries.http.proxy.http = proxy.http.as_ref().and_then(|url| url.as_str().parse().ok());
        registries.http.proxy.https = proxy.https.as_ref().and_then(|url| url.as_str().parse().ok());
        registries.http.proxy.no_proxy = proxy.no_proxy.iter().map(ToString::to_string).collect();
        Self {
            enabled: engine.enabled,
            defaults: Resources { pids_limit: Some(PIDS), ..Resources::default() },
            log_size: engine.log_size.bytes(),
            log_files: engine.log_files,
            log_rate: engine.log_rate.bytes(),
            image_share: engine.image_share,
            limits: Limits::default(),
            registries,
            credentials: "/data/engine/registry.json".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_owner_wants_is_what_the_engine_does() {
        let owner: rustiot_config::Settings = serde_json::from_value(serde_json::json!({
            "engine": {
                "mirrors": ["docker.io=https://one.example", "ghcr.io=https://other.example", "docker.io=https://two.example"],
                "insecure_registries": ["10.0.0.1:5000"], "log_size": "1M", "log_files": 2, "log_rate": "0",
                "image_share": 60, "enabled": false,
            },
            "proxy": { "https": "http://proxy.example:3128", "no_proxy": ["10.0.0.0/8"] },
        }))
        .unwrap();
        let settings = Settings::of(&owner);
        assert_eq!(settings.registries.mirrors["docker.io"], ["https://one.example", "https://two.example"]);
        assert_eq!(settings.registries.mirrors["ghcr.io"], ["https://other.example"]);
        assert_eq!(settings.registries.insecure, ["10.0.0.1:5000"]);
        assert_eq!((settings.log_size, settings.log_files, settings.log_rate), (1 << 20, 2, 0));
        assert_eq!((settings.image_share, settings.enabled), (60, false));
        let proxy = &settings.registries.http.proxy;
        assert_eq!(proxy.https.as_ref().map(|url| url.host_str()), Some(Some("proxy.example")));
        assert_eq!((&proxy.http, proxy.no_proxy.as_slice()), (&None, &["10.0.0.0/8".to_owned()][..]));
        assert!(Settings::default().enabled);
    }
}
