//! The settings that every service works with: one type per section of `rustiot.toml`, each with its defaults.
//!
//! These types are the truth: the JSON schema, the list of known keys, the checks and the defaults all come from
//! them. A service reads only `/run/rustiot/settings.json` (written by `rustiot-provision`) through
//! [`Settings::load_effective`]; nothing here reads `rustiot.toml` or writes any file.

use crate::scalar::{
    AttributeName, AttributeText, Cidr, Controller, Country, Duration, FilePath, Host, Hostname, Ip, Label,
    Mac, Mirror, NetworkName, NoProxy, Passphrase, Pattern, Registry, Size, SshKey, Ssid, Tenant, Timezone,
    Unit, Url, Window,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

#[cfg(any(test, feature = "schema"))]
use schemars::JsonSchema;

/// Where `rustiot-provision` leaves the settings in force.
pub const EFFECTIVE: &str = "/run/rustiot/settings.json";

/// Everything that the owner can set. `Settings::default()` is a device that nobody has configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct Settings {
    /// The device's host name. Without one it is `rustiot-` and eight hex digits of the device's own identity.
    pub hostname: Option<Hostname>,
    /// Who may log in.
    pub ssh: SshSettings,
    /// Clock.
    pub time: TimeSettings,
    /// One section `[network.<name>]` per connection. Ethernet ports that no section matches use DHCP.
    pub network: BTreeMap<NetworkName, NetworkSettings>,
    /// The way out, where there is no direct one.
    pub proxy: ProxySettings,
    /// Where OS updates come from, and what may happen without a person.
    pub update: UpdateSettings,
    /// How much room logs may take.
    pub log: LogSettings,
    /// Containers: where images come from, and what they and their logs may take.
    pub engine: EngineSettings,
    /// When a stalled device is reset.
    pub watchdog: WatchdogSettings,
    /// What "healthy" means, and how long a new release has to show it.
    pub health: HealthSettings,
}

/// Who may log in. Keys only: there is no setting for passwords.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct SshSettings {
    /// Public keys that may log in as root, one line each, as in a `.pub` file.
    pub authorized_keys: Vec<SshKey>,
}

/// Clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct TimeSettings {
    /// NTP servers. Servers that DHCP names come first.
    pub servers: Vec<Host>,
    /// Time zone of log lines and timers.
    pub timezone: Timezone,
}

impl Default for TimeSettings {
    fn default() -> Self {
        Self { servers: text_list(&["pool.ntp.org"]), timezone: text("UTC") }
    }
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct NetworkSettings {
    /// Ethernet or Wi-Fi.
    #[serde(rename = "type")]
    pub kind: NetworkKind,
    /// Which interface: by name (with wildcards).
    pub name: Option<Pattern>,
    /// Which interface: by hardware address.
    pub mac: Option<Mac>,
    /// Which interface: by its kernel driver (with wildcards).
    pub driver: Option<Pattern>,
    /// Ask for an IPv4 address. Off needs `addresses`.
    pub dhcp: bool,
    /// Static addresses with prefix length, IPv4 and IPv6.
    pub addresses: Vec<Cidr>,
    /// Default gateway(s), at most one IPv4 and one IPv6.
    pub gateway: Vec<Ip>,
    /// Name servers. Those that DHCP names are used as well when `dhcp` is on.
    pub dns: Vec<Ip>,
    /// IPv6: by router advertisement, link-local only, or not at all.
    pub ipv6: Ipv6,
    /// Preference of this connection's default route: the lowest number wins.
    pub metric: u32,
    /// Wi-Fi: the network's name.
    pub ssid: Option<Ssid>,
    /// Wi-Fi: the passphrase (WPA2/WPA3 personal). Without one the network is joined as an open one.
    pub psk: Option<Passphrase>,
    /// Wi-Fi: the country whose radio rules apply.
    pub country: Option<Country>,
    /// Wi-Fi: the network does not announce its name.
    pub hidden: bool,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            kind: NetworkKind::Ethernet,
            name: None,
            mac: None,
            driver: None,
            dhcp: true,
            addresses: Vec::new(),
            gateway: Vec::new(),
            dns: Vec::new(),
            ipv6: Ipv6::Auto,
            metric: 1024,
            ssid: None,
            psk: None,
            country: None,
            hidden: false,
        }
    }
}

/// The kind of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// A cable.
    Ethernet,
    /// Wi-Fi, through iwd.
    Wifi,
}

/// What is done about IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6 {
    /// Link-local and by router advertisement.
    Auto,
    /// Link-local and static addresses only.
    LinkLocal,
    /// None.
    Off,
}

/// The way out, where there is no direct one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct ProxySettings {
    /// Proxy for `http://`.
    pub http: Option<Url>,
    /// Proxy for `https://`.
    pub https: Option<Url>,
    /// What goes around the proxy.
    pub no_proxy: Vec<NoProxy>,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self { http: None, https: None, no_proxy: text_list(&["localhost", "127.0.0.1", "::1"]) }
    }
}

/// Where OS updates come from, and what may happen without a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct UpdateSettings {
    /// The repository in which to look for updates. Without one the device only installs what it is told to.
    pub source: Option<Url>,
    /// More servers with the same content, asked in order when the first one does not answer.
    pub mirrors: Vec<Url>,
    /// How far an update goes without a person.
    pub policy: UpdatePolicy,
    /// When the device restarts into an installed release.
    pub reboot: UpdateReboot,
    /// How often to look, when there is a source.
    pub check_every: Duration,
    /// When the device may install and restart by itself. Empty: at any time.
    pub windows: Vec<Window>,
    /// When the device may download by itself: at any time, or in a window only.
    pub download: UpdateDownload,
    /// Most bytes a second that downloads take. Without one there is no limit.
    pub rate_limit: Option<Size>,
    /// The way out costs money by the byte: updates larger than `metered_limit` wait for a person.
    pub metered: bool,
    /// Largest download that the device starts by itself on a metered link.
    pub metered_limit: Size,
    /// What the device does by itself while it runs on a battery.
    pub on_battery: UpdateOnBattery,
    /// For so long can applications put off the restart into an installed release.
    pub max_deferral: Duration,
    /// Most room on the data partition for downloads. What does not fit goes straight to the other slot; 0: all of it.
    pub cache: Size,
    /// Look for releases on USB media that are plugged in (directory `rustiot-repository`), under the same policy.
    pub media: bool,
    /// Labels of this device, which roll-outs can name.
    pub labels: Vec<Label>,
    /// Where the outcome of each update is posted (JSON over HTTPS).
    pub report_url: Option<Url>,
    /// Eclipse hawkBit instead of a repository.
    pub hawkbit: HawkbitSettings,
}

impl Default for UpdateSettings {
    fn default() -> Self {
        Self {
            source: None,
            mirrors: Vec::new(),
            policy: UpdatePolicy::Manual,
            reboot: UpdateReboot::Now,
            check_every: Duration::secs(6 * 3600),
            windows: Vec::new(),
            download: UpdateDownload::Anytime,
            rate_limit: None,
            metered: false,
            metered_limit: Size::mib(20),
            on_battery: UpdateOnBattery::GoOn,
            max_deferral: Duration::secs(86_400),
            cache: Size::mib(512),
            media: true,
            labels: Vec::new(),
            report_url: None,
            hawkbit: HawkbitSettings::default(),
        }
    }
}

/// Eclipse hawkBit, for those who run it. Off without `url`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct HawkbitSettings {
    /// The server, with a path if hawkBit lies below one. Instead of `update.source`.
    pub url: Option<Url>,
    /// For a laboratory: the server may be an `http://` address, where everybody on the way can read the token.
    pub allow_http: bool,
    /// The tenant.
    pub tenant: Tenant,
    /// This device's name at hawkBit (controller id). Without one: the SHA-256 of the device's public key.
    pub controller: Option<Controller>,
    /// The file that holds this device's own token. Only root may read it.
    pub target_token_file: Option<FilePath>,
    /// The file that holds the tenant's gateway token. Only root may read it.
    pub gateway_token_file: Option<FilePath>,
    /// Instead of a token: the client certificate (PEM), checked by the proxy in front of hawkBit.
    pub certificate: Option<FilePath>,
    /// The key that belongs to `certificate` (PEM, PKCS#8). Only root may read it.
    pub key: Option<FilePath>,
    /// Authorities (PEM) that are believed besides the system's, for a hawkBit with a certificate of one's own.
    pub ca: Option<FilePath>,
    /// Who consents where hawkBit wants a confirmation.
    pub consent: HawkbitConsent,
    /// What a soft deployment leaves to a person.
    pub soft: HawkbitSoft,
    /// How often to ask. Without one as often as hawkBit says.
    pub poll: Option<Duration>,
    /// Most progress messages of one action in a minute.
    pub progress_per_minute: u32,
    /// What hawkBit is told about this device, besides its id, board and version.
    pub attributes: BTreeMap<AttributeName, AttributeText>,
}

impl Default for HawkbitSettings {
    fn default() -> Self {
        Self {
            url: None,
            allow_http: false,
            tenant: text("DEFAULT"),
            controller: None,
            target_token_file: None,
            gateway_token_file: None,
            certificate: None,
            key: None,
            ca: None,
            consent: HawkbitConsent::Automatic,
            soft: HawkbitSoft::None,
            poll: None,
            progress_per_minute: 3,
            attributes: BTreeMap::new(),
        }
    }
}

/// Who consents where hawkBit wants a confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HawkbitConsent {
    /// The device, at once.
    Automatic,
    /// A person at the device (`rustiot update consent`), or hawkBit's own operator.
    Ask,
}

/// What a soft deployment leaves to a person. A forced one leaves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HawkbitSoft {
    /// Nothing; the device's windows count.
    None,
    /// The activation, and so the restart.
    Activate,
    /// The restart.
    Reboot,
}

/// How far an update goes without a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpdatePolicy {
    /// Look, install and (by `reboot`) restart. `automatic` is the same.
    #[serde(alias = "automatic")]
    Auto,
    /// Look and say what is there. `notify` is the same.
    #[serde(alias = "notify")]
    Check,
    /// Do nothing until told.
    Manual,
}

/// When the device restarts into an installed release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpdateReboot {
    /// As soon as it is installed.
    Now,
    /// When somebody says so.
    Manual,
}

/// When the device may download by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpdateDownload {
    /// As soon as there is something.
    Anytime,
    /// While one of `windows` is open.
    Window,
}

/// What the device does by itself while it runs on a battery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOnBattery {
    /// The same as always: an update survives a power cut.
    GoOn,
    /// It begins no install and no restart before there is external power.
    Wait,
}

/// How much room logs may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct LogSettings {
    /// Keep logs over a restart (on the data partition).
    pub persistent: bool,
    /// Most room on the data partition.
    pub max_size: Size,
    /// Most memory for logs that are not kept.
    pub max_memory: Size,
    /// Oldest entry that is kept.
    pub max_age: Duration,
    /// Most messages that one service may log in 30 seconds; further ones are dropped and counted.
    pub rate: u32,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            persistent: true,
            max_size: Size::mib(64),
            max_memory: Size::mib(16),
            max_age: Duration::secs(30 * 86_400),
            rate: 10_000,
        }
    }
}

/// Containers: where images come from, and what they and their logs may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct EngineSettings {
    /// Off: no container runs on this device, and the engine refuses every call.
    pub enabled: bool,
    /// Asked before the registry itself, in this order: which registry, "=", the mirror's address.
    pub mirrors: Vec<Mirror>,
    /// Registries and mirrors that are asked without a valid certificate, and by plain HTTP where they speak no TLS.
    pub insecure_registries: Vec<Registry>,
    /// Largest file of a container's log, where the container does not say.
    pub log_size: Size,
    /// Most files of a container's log, where the container does not say.
    pub log_files: u32,
    /// Most bytes that a container may log in a second on average, where it does not say; 0: no limit.
    pub log_rate: Size,
    /// Share of the data partition in percent that images may take before those go that no container needs, the oldest
    /// first; 0: none goes by itself.
    pub image_share: u8,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            mirrors: Vec::new(),
            insecure_registries: Vec::new(),
            log_size: Size::mib(4),
            log_files: 3,
            log_rate: Size::kib(256),
            image_share: 0,
        }
    }
}

/// When a stalled device is reset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct WatchdogSettings {
    /// The hardware resets the device when nobody feeds it for so long.
    pub timeout: Duration,
    /// How often the liveness tree is looked at and the hardware fed. Must be less than half of `timeout`.
    pub interval: Duration,
    /// PID 1 must have answered within so long.
    pub pid1_timeout: Duration,
    /// A real write and read of the disk must have ended within so long.
    pub disk_timeout: Duration,
    /// A service is restarted so often within `restart_window` before the next step (its group, then a reboot).
    pub restarts: u32,
    /// See `restarts`.
    pub restart_window: Duration,
    /// So many reboots for the same reason within `reboot_window` before the other slot is tried.
    pub reboots: u32,
    /// See `reboots`.
    pub reboot_window: Duration,
    /// Time beyond `health.deadline` + `health.soak` after which a trial that is not committed is ended.
    pub trial_margin: Duration,
}

impl Default for WatchdogSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::secs(60),
            interval: Duration::secs(10),
            pid1_timeout: Duration::secs(60),
            disk_timeout: Duration::secs(90),
            restarts: 3,
            restart_window: Duration::secs(600),
            reboots: 3,
            reboot_window: Duration::secs(86_400),
            trial_margin: Duration::secs(60),
        }
    }
}

/// What "healthy" means, and how long a new release has to show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema), schemars(deny_unknown_fields))]
#[serde(default)]
pub struct HealthSettings {
    /// All required checks must have passed without a break for so long before the gate opens.
    pub settle: Duration,
    /// After the gate: so long must the device stay healthy before a release is committed.
    pub soak: Duration,
    /// The gate must have opened so long after the start of user space, else the release has failed its trial.
    pub deadline: Duration,
    /// How often checks are repeated.
    pub interval: Duration,
    /// One check may take so long.
    pub check_timeout: Duration,
    /// Network: must be as good as it was before the update, or is not looked at.
    pub network: NetworkCheck,
    /// Write and read back a file on the state and data partitions.
    pub disk: bool,
    /// Least free room on the data partition.
    pub disk_free: Size,
    /// Most memory pressure (PSI `some avg60`), in percent. 0 turns the check off.
    pub memory_pressure: u8,
    /// Units that must be active.
    pub required_units: Vec<Unit>,
    /// Units that should be active; a failed one is a warning.
    pub advisory_units: Vec<Unit>,
    /// Must the clock be synchronised? A device that has no time source needs this off.
    pub clock: bool,
    /// RAUC must answer on D-Bus.
    pub rauc: bool,
    /// One executable in a checks directory may take so long.
    pub script_timeout: Duration,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            settle: Duration::secs(20),
            soak: Duration::secs(120),
            deadline: Duration::secs(300),
            interval: Duration::secs(5),
            check_timeout: Duration::secs(10),
            network: NetworkCheck::Relative,
            disk: true,
            disk_free: Size::mib(16),
            memory_pressure: 60,
            required_units: Vec::new(),
            advisory_units: Vec::new(),
            clock: false,
            rauc: true,
            script_timeout: Duration::secs(30),
        }
    }
}

/// How the network is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "schema"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NetworkCheck {
    /// What worked before the update must work now; what did not is no reason for a fallback.
    Relative,
    /// Not at all.
    Off,
}

/// `/run/rustiot/settings.json` cannot be used; the caller goes on with `Settings::default()` and says so.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what provisioning writes.
    #[error("{} does not hold settings", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Settings {
    /// The settings in force, from [`EFFECTIVE`]. Services call this at start and fall back to the defaults.
    ///
    /// # Errors
    /// [`LoadError`] when provisioning has not run or its file is damaged.
    pub fn load_effective() -> Result<Self, LoadError> {
        Self::load_from(Path::new(EFFECTIVE))
    }

    /// As [`Self::load_effective`], from any path.
    ///
    /// # Errors
    /// [`LoadError`] when the file is missing or damaged.
    pub fn load_from(path: &Path) -> Result<Self, LoadError> {
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(4 * crate::MAX_FILE).read_to_string(&mut text))
            .map_err(|source| LoadError::Read { path: path.into(), source })?;
        serde_json::from_str(&text).map_err(|source| LoadError::Parse { path: path.into(), source })
    }

    /// Without secrets: what goes into the world-readable [`EFFECTIVE`].
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        for network in self.network.values_mut() {
            network.psk = None;
        }
        self
    }
}

/// A default: a text that a unit test parses, so it always is valid; `text_list` drops what is not.
#[expect(clippy::expect_used, reason = "compile-time texts of this file, parsed by the test of the defaults")]
fn text<T: std::str::FromStr<Err = crate::scalar::Invalid>>(text: &str) -> T {
    text.parse().expect("a default is valid")
}

fn text_list<T: std::str::FromStr<Err = crate::scalar::Invalid>>(texts: &[&str]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_survive_json() {
        let defaults = Settings::default();
        assert_eq!(defaults.time.servers.len(), 1);
        assert_eq!(defaults.proxy.no_proxy.len(), 3);
        let text = serde_json::to_string(&defaults).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), defaults);
        assert!(defaults.watchdog.interval.get() * 2 < defaults.watchdog.timeout.get());
        assert!(defaults.health.settle < defaults.health.deadline);
    }

    #[test]
    fn a_service_survives_a_missing_or_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.json");
        assert!(matches!(Settings::load_from(&path), Err(LoadError::Read { .. })));
        std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), b"{\"health\":").unwrap();
        assert!(matches!(Settings::load_from(&path), Err(LoadError::Parse { .. })));
    }

    #[test]
    fn a_file_of_another_release_is_read() {
        // Newer provisioning, older service (or the reverse): unknown keys are ignored, missing ones default.
        let settings: Settings =
            serde_json::from_str(r#"{"health":{"settle":"7s","future":1},"later":{}}"#).unwrap();
        assert_eq!(settings.health.settle, Duration::secs(7));
        assert_eq!(settings.health.soak, HealthSettings::default().soak);
    }
}
