//! The configuration of rauc-hawkbit-updater, read from its own file format.
//!
//! Keys, defaults and refusals are those that its reference describes, so that an existing file works unchanged. Pure
//! after the file has been read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::client::Auth;
use crate::shim::keyfile::{self, KeyFile};
use crate::shim::log::Level;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error(transparent)]
    File(#[from] keyfile::Error),
    /// Values that do not fit together. The texts are those that scripts around the original know.
    #[error("{0}")]
    Combination(String),
}

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host[:port]`.
    pub server: String,
    /// https instead of http.
    pub ssl: bool,
    /// Certificates are checked.
    pub ssl_verify: bool,
    /// Client certificate and key, PEM.
    pub ssl_files: Option<(PathBuf, PathBuf)>,
    /// How the device shows who it is.
    pub auth: Auth,
    /// This device's name at hawkBit.
    pub target: String,
    /// The tenant.
    pub tenant: String,
    /// Where bundles are downloaded to.
    pub location: Option<PathBuf>,
    /// RAUC streams instead.
    pub stream: bool,
    /// Interrupted downloads go on.
    pub resume: bool,
    /// Credentials go along with downloads.
    pub send_auth: bool,
    /// The machine restarts after an install.
    pub reboot: bool,
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// For a request as a whole.
    pub timeout: Duration,
    /// After a failed poll.
    pub retry_wait: Duration,
    /// Slower than this …
    pub low_speed_rate: u64,
    /// … for so long ends a download; never when zero.
    pub low_speed_time: Duration,
    /// Bytes per second, 0 without limit.
    pub speed_limit: u64,
    /// What is printed.
    pub level: Level,
    /// The device's attributes.
    pub device: BTreeMap<String, String>,
}

fn wrong(text: &str) -> Error {
    Error::Combination(text.to_owned())
}

impl Config {
    /// Reads the file's content.
    ///
    /// # Errors
    /// [`Error`]; its text is for people.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let file = KeyFile::parse(bytes)?;
        let text = |key| file.text("client", key);
        let truth = |key, default| file.truth("client", key, default);
        let number = |key, default| file.number("client", key, default);
        let seconds = |key, default| number(key, default).map(Duration::from_secs);

        let server = file.required("client", "hawkbit_server")?;
        let (ssl, ssl_verify) = (truth("ssl", true)?, truth("ssl_verify", true)?);
        let ssl_files =
            match (ssl.then(|| text("ssl_cert")).flatten(), ssl.then(|| text("ssl_key")).flatten()) {
                (Some(cert), Some(key)) => Some((PathBuf::from(cert), PathBuf::from(key))),
                (None, None) => None,
                _ => return Err(wrong("Only one of 'ssl_key' and 'ssl_cert' is set")),
            };
        if ssl && text("ssl_engine").is_some() {
            return Err(wrong("'ssl_engine' is not supported: keys are read from PEM files"));
        }
        let auth = match (text("auth_token"), text("gateway_token"), &ssl_files) {
            (None, None, None) => return Err(wrong("Neither token nor ssl authentication set")),
            (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                return Err(wrong("Both token and ssl authentication set"));
            }
            (Some(_), Some(_), None) => return Err(wrong("Both 'auth_token' and 'gateway_token' set")),
            (Some(token), None, None) => Auth::TargetToken(token),
            (None, Some(token), None) => Auth::GatewayToken(token),
            (None, None, Some(_)) => Auth::Certificate,
        };
        let device = file.group("device").filter(|pairs| !pairs.is_empty());
        let config = Self {
            server,
            ssl,
            ssl_verify,
            ssl_files,
            auth,
            target: file.required("client", "target_name")?,
            tenant: text("tenant_id").unwrap_or_else(|| "DEFAULT".into()),
            location: text("bundle_download_location").map(PathBuf::from),
            device: device.ok_or_else(|| wrong("Group 'device' has no keys set"))?,
            connect_timeout: seconds("connect_timeout", 20)?,
            timeout: seconds("timeout", 60)?,
            retry_wait: seconds("retry_wait", 300)?,
            low_speed_rate: number("low_speed_rate", 100)?,
            low_speed_time: seconds("low_speed_time", 60)?,
            speed_limit: number("download_speed_limit", 0)?,
            resume: truth("resume_downloads", false)?,
            stream: truth("stream_bundle", false)?,
            level: text("log_level").and_then(|word| Level::parse(&word)).unwrap_or(Level::Message),
            reboot: truth("post_update_reboot", false)?,
            send_auth: truth("send_download_authentication", true)?,
        };
        let (timeout, connect) = (config.timeout.as_secs(), config.connect_timeout.as_secs());
        if timeout > 0 && connect > 0 && timeout < connect {
            return Err(Error::Combination(format!(
                "'timeout' ({timeout}) must be greater than 'connect_timeout' ({connect})"
            )));
        }
        if config.location.is_none() && !config.stream {
            return Err(wrong("'bundle_download_location' is required if 'stream_bundle' is disabled"));
        }
        Ok(config)
    }

    /// The server's address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}/", if self.ssl { "https" } else { "http" }, self.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[client]\nhawkbit_server = h:1\ntarget_name = t\nauth_token = s\nssl = false\n\
        bundle_download_location = /tmp/b\n[device]\nproduct = x \n";

    fn refusal(text: &str) -> String {
        Config::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_small_file_has_the_documented_defaults() {
        let config = Config::parse(FILE.as_bytes()).unwrap();
        assert_eq!((config.url().as_str(), config.tenant.as_str()), ("http://h:1/", "DEFAULT"));
        assert_eq!((config.connect_timeout.as_secs(), config.timeout.as_secs()), (20, 60));
        assert_eq!((config.retry_wait.as_secs(), config.low_speed_time.as_secs()), (300, 60));
        assert_eq!((config.low_speed_rate, config.speed_limit, config.level), (100, 0, Level::Message));
        assert!(!config.stream && !config.resume && !config.reboot && config.send_auth && config.ssl_verify);
        assert_eq!(config.device["product"], "x");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for (from, to, why) in [
            ("auth_token = s\n", "", "Neither token nor ssl authentication set"),
            (
                "auth_token = s",
                "auth_token = s\ngateway_token = g",
                "Both 'auth_token' and 'gateway_token' set",
            ),
            ("ssl = false", "ssl = true\nssl_key = k\nssl_cert = c", "Both token and ssl authentication set"),
            ("ssl = false", "ssl_key = k", "Only one of 'ssl_key' and 'ssl_cert' is set"),
            ("product = x \n", "", "Group 'device' has no keys set"),
            (
                "ssl = false",
                "ssl = false\ntimeout = 5",
                "'timeout' (5) must be greater than 'connect_timeout' (20)",
            ),
            (
                "bundle_download_location = /tmp/b\n",
                "",
                "'bundle_download_location' is required if 'stream_bundle' is disabled",
            ),
            ("target_name = t\n", "", "the key \"target_name\" in the group \"client\" is missing"),
        ] {
            assert_eq!(refusal(&FILE.replace(from, to)), why);
        }
    }
}
