//! The values that a person types into `rustiot.toml`: durations, sizes, host names, addresses, ssh keys…
//!
//! Each is a newtype that can only hold a valid value; its error text says what was expected, and is what the
//! owner reads next to file, line and column. Never touches a file. Used by [`crate::settings`] and by every
//! service that reads a setting.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Why a text is not the value that its key wants. The text completes "expected …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct Invalid {
    /// What the key wants, with an example.
    pub expected: String,
}

impl Invalid {
    fn new(expected: impl Into<String>) -> Self {
        Self { expected: expected.into() }
    }
}

/// Serde, `Display` and JSON schema of a newtype that is a string in the file.
macro_rules! string_value {
    ($name:ident, $example:expr, $pattern:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($name::EXPECTED)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse::<$name>().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
        #[cfg(any(test, feature = "schema"))]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "description": $name::EXPECTED,
                    "pattern": $pattern,
                    "examples": [$example],
                })
            }
        }
    };
}

/// A text newtype: its rule is a function from text to "is it valid".
macro_rules! text_value {
    ($(#[$doc:meta])* $name:ident, $expected:expr, $example:expr, $pattern:expr, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// What a valid text looks like; completes "expected …".
            pub const EXPECTED: &'static str = $expected;

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(Invalid::new(Self::EXPECTED)) }
            }
        }
        string_value!($name, $example, $pattern);
    };
}

/// A span of time, as "20s", "5m", "1h30m", "2d" or "500ms"; at most 366 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);

impl Duration {
    /// What a valid text looks like; completes "expected …".
    pub const EXPECTED: &'static str = r#"a duration such as "20s", "5m", "1h30m" or "2d""#;
    const MAX_MS: u64 = 366 * 86_400_000;
    /// Longest unit first, so that `Display` is the shortest text. Names and milliseconds.
    const UNITS: [(&'static str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

    /// A span of whole seconds (for defaults; longer than 366 days is cut to that).
    pub const fn secs(secs: u64) -> Self {
        let max = Self::MAX_MS / 1000;
        Self(std::time::Duration::from_secs(if secs > max { max } else { secs }))
    }

    /// The span as the standard library's type.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// Whole seconds, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(Self::MAX_MS);
        if left == 0 {
            return f.write_str("0s");
        }
        for (name, ms) in Self::UNITS {
            if left >= ms {
                write!(f, "{}{name}", left / ms)?;
                left %= ms;
            }
        }
        Ok(())
    }
}

impl FromStr for Duration {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new(Self::EXPECTED);
        let mut rest = text;
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let (number, tail) = rest.split_at_checked(digits).ok_or_else(bad)?;
            let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at_checked(unit_len).ok_or_else(bad)?;
            let (_, ms) = Self::UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
            let number: u64 = number.parse().map_err(|_| bad())?;
            total = number.checked_mul(*ms).and_then(|n| n.checked_add(total)).ok_or_else(bad)?;
            rest = tail;
        }
        if total > Self::MAX_MS {
            return Err(Invalid::new("a duration of at most 366 days"));
        }
        Ok(Self(std::time::Duration::from_millis(total)))
    }
}
string_value!(Duration, "5m", "^([0-9]+(ms|s|m|h|d))+$");

/// A number of bytes, as "512K", "64M" or "2G" (powers of 1024); at most 1 PiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// What a valid text looks like; completes "expected …".
    pub const EXPECTED: &'static str = r#"a size such as "512K", "64M" or "2G""#;
    const MAX: u64 = 1 << 50;
    const UNITS: [(&'static str, u64); 3] = [("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

    /// So many KiB (for defaults).
    pub const fn kib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 10))
    }

    /// So many MiB (for defaults).
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::UNITS.iter().find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new(Self::EXPECTED);
        let (number, unit) = Self::UNITS
            .iter()
            .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number, *unit)))
            .unwrap_or((text, 1));
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = number.parse().map_err(|_| bad())?;
        match number.checked_mul(unit) {
            Some(bytes) if bytes <= Self::MAX => Ok(Self(bytes)),
            _ => Err(Invalid::new("a size of at most 1048576G")),
        }
    }
}
string_value!(Size, "64M", "^[0-9]+[KMG]?$");

/// Days of the week and a time of day during which something may happen, as "mon-fri 22:00-04:00", "sat,sun
/// 00:00-24:00 Europe/Berlin" or, for every day, "02:00-05:00". A window over midnight belongs to the day on which
/// it opens. Without a time zone that of `time.timezone` counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    /// The days on which it opens, Monday first.
    days: [bool; 7],
    /// Minutes after midnight at which it opens, 0 to 1439.
    from: u16,
    /// Minutes after midnight at which it closes, 1 to 1440; not after `from`: on the next day.
    to: u16,
    zone: Option<Timezone>,
}

impl Window {
    /// What a valid text looks like; completes "expected …".
    pub const EXPECTED: &'static str =
        r#"a window such as "02:00-05:00", "mon-fri 22:00-04:00" or "sat,sun 00:00-24:00 Europe/Berlin""#;
    const DAYS: [&'static str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

    /// The days on which it opens, Monday first.
    pub const fn days(&self) -> [bool; 7] {
        self.days
    }

    /// Minutes after midnight at which it opens, 0 to 1439.
    pub const fn from(&self) -> u16 {
        self.from
    }

    /// Minutes after midnight at which it closes, 1 to 1440; on the next day when it is not after [`Self::from`].
    pub const fn to(&self) -> u16 {
        self.to
    }

    /// The time zone, if it names one.
    pub const fn zone(&self) -> Option<&Timezone> {
        self.zone.as_ref()
    }

    fn day(name: &str) -> Option<usize> {
        Self::DAYS.iter().position(|day| *day == name)
    }

    fn parse_days(text: &str) -> Option<[bool; 7]> {
        let mut days = [false; 7];
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (mut day, last) = (Self::day(first)?, Self::day(last)?);
            // "sat-mon" goes over the end of the week.
            loop {
                *days.get_mut(day)? = true;
                if day == last {
                    break;
                }
                day = if day >= 6 { 0 } else { day.saturating_add(1) };
            }
        }
        Some(days)
    }

    /// Minutes after midnight of "hh:mm".
    fn parse_time(text: &str) -> Option<u16> {
        let (hours, minutes) = text.split_once(':')?;
        let digits = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(hours) || !digits(minutes) {
            return None;
        }
        let (hours, minutes) = (hours.parse::<u16>().ok()?, minutes.parse::<u16>().ok()?);
        (hours <= 24 && minutes < 60).then(|| hours.saturating_mul(60).saturating_add(minutes))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let first = words.next()?;
        let (days, times) = if first.starts_with(|c: char| c.is_ascii_digit()) {
            ([true; 7], first)
        } else {
            (Self::parse_days(first)?, words.next()?)
        };
        let (from, to) = times.split_once('-')?;
        let (from, to) = (Self::parse_time(from)?, Self::parse_time(to)?);
        let zone = match words.next() {
            Some(zone) => Some(zone.parse().ok()?),
            None => None,
        };
        // An empty window is a mistake, whatever it was meant to be.
        let whole = from < 1440 && (1..=1440).contains(&to) && from != to && words.next().is_none();
        whole.then_some(Self { days, from, to, zone })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != [true; 7] {
            let names = Self::DAYS.iter().zip(self.days).filter(|(_, on)| *on).map(|(name, _)| *name);
            write!(f, "{} ", names.collect::<Vec<_>>().join(","))?;
        }
        let time = |minutes: u16| (minutes / 60, minutes % 60);
        let ((fh, fm), (th, tm)) = (time(self.from), time(self.to));
        write!(f, "{fh:02}:{fm:02}-{th:02}:{tm:02}")?;
        match &self.zone {
            Some(zone) => write!(f, " {zone}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Window {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text).ok_or_else(|| Invalid::new(Self::EXPECTED))
    }
}
string_value!(
    Window,
    "mon-fri 22:00-04:00",
    "^([a-z,-]+ )?[0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}( [A-Za-z0-9_+/-]+)?$"
);

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

text_value! {
    /// A host name (RFC 1123): one or more labels, 64 characters at most (Linux `HOST_NAME_MAX`).
    Hostname,
    "a host name: letters, digits and hyphens, 1 to 63 characters a label, 64 in all",
    "kitchen-sensor",
    "^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
    |text| text.len() <= 64 && is_domain(text)
}

text_value! {
    /// A server: a host name or an IP address.
    Host,
    "a host name or an IP address",
    "pool.ntp.org",
    "^[A-Za-z0-9.:-]{1,253}$",
    |text| is_domain(text) || text.parse::<IpAddr>().is_ok()
}

text_value! {
    /// A time zone name of the tz database.
    Timezone,
    r#"a time zone name such as "UTC" or "Europe/Berlin""#,
    "Europe/Berlin",
    "^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$",
    |text| {
        text.len() <= 64
            && text.split('/').all(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-".contains(&b))
            })
    }
}

text_value! {
    /// A label of the device, which roll-outs can name.
    Label,
    r#"a label of 1 to 64 letters, digits, dots, hyphens and underscores, such as "canary""#,
    "canary",
    "^[A-Za-z0-9._-]{1,64}$",
    |text| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    }
}

text_value! {
    /// The name of a `[network.<name>]` section; becomes part of a file name.
    NetworkName,
    "a section name of 1 to 32 lower-case letters, digits, hyphens and underscores",
    "lan",
    "^[a-z0-9_-]{1,32}$",
    |text| {
        (1..=32).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
    }
}

text_value! {
    /// An interface or driver name pattern, with the wildcards of systemd.network(5).
    Pattern,
    r#"an interface or driver name, with * and ? as wildcards, such as "eth0" or "enp*""#,
    "eth*",
    "^[A-Za-z0-9_.*?@:-]{1,32}$",
    |text| {
        (1..=32).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.*?@:-".contains(&b))
    }
}

text_value! {
    /// A hardware address.
    Mac,
    r#"a hardware address such as "02:00:5e:10:00:01""#,
    "02:00:5e:10:00:01",
    "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$",
    |text| {
        text.split(':').count() == 6
            && text.split(':').all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
    }
}

text_value! {
    /// An address with its prefix length.
    Cidr,
    r#"an address with its prefix length, such as "192.168.1.10/24" or "fd00::10/64""#,
    "192.168.1.10/24",
    "^[0-9A-Fa-f.:]+/[0-9]{1,3}$",
    |text| {
        let Some((address, prefix)) = text.split_once('/') else { return false };
        let short = prefix.len() <= 3 && prefix.bytes().all(|b| b.is_ascii_digit());
        match (address.parse::<IpAddr>(), prefix.parse::<u8>()) {
            (Ok(IpAddr::V4(_)), Ok(bits)) => short && bits <= 32,
            (Ok(IpAddr::V6(_)), Ok(bits)) => short && bits <= 128,
            _ => false,
        }
    }
}

text_value! {
    /// An IP address.
    Ip,
    r#"an IP address such as "192.168.1.1" or "fd00::1""#,
    "192.168.1.1",
    "^[0-9A-Fa-f.:]+$",
    |text| text.parse::<IpAddr>().is_ok()
}

text_value! {
    /// A Wi-Fi network's name.
    Ssid,
    "a Wi-Fi name of 1 to 32 bytes without control characters",
    "workshop",
    "^.{1,32}$",
    |text| (1..=32).contains(&text.len()) && !text.chars().any(char::is_control)
}

text_value! {
    /// A two-letter country code (ISO 3166), which the radio's rules follow.
    Country,
    r#"a two-letter country code in capitals, such as "DE""#,
    "DE",
    "^[A-Z]{2}$",
    |text| text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase())
}

text_value! {
    /// A systemd unit name.
    Unit,
    r#"a unit name with its suffix, such as "ssh.service""#,
    "ssh.service",
    "^[A-Za-z0-9:_.@-]+\\.(service|socket|target|mount|timer|path)$",
    |text| {
        text.len() <= 255
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b":_.@-\\".contains(&b))
            && text.rsplit_once('.').is_some_and(|(stem, suffix)| {
                !stem.is_empty()
                    && ["service", "socket", "target", "mount", "timer", "path"].contains(&suffix)
            })
    }
}

text_value! {
    /// An `http://` or `https://` address.
    Url,
    r#"an http:// or https:// address such as "https://updates.example.com/stable""#,
    "https://updates.example.com/stable",
    "^https?://[^\\s\"\\\\]+$",
    |text| {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        text.len() <= 2048
            && rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
    }
}

text_value! {
    /// A registry of container images.
    Registry,
    r#"a registry without scheme and path, such as "registry.example.com" or "192.168.1.5:5000""#,
    "192.168.1.5:5000",
    "^[A-Za-z0-9.:\\[\\]-]{1,255}$",
    is_registry
}

text_value! {
    /// A registry and a mirror of it.
    Mirror,
    r#"a registry, "=" and the address of its mirror, such as "docker.io=https://mirror.example.com""#,
    "docker.io=https://mirror.example.com",
    "^[A-Za-z0-9.:\\[\\]-]+=https?://[^\\s\"\\\\@?#]+$",
    |text| {
        text.split_once('=').is_some_and(|(registry, url)| {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
            is_registry(registry)
                && url.parse::<Url>().is_ok()
                && is_registry(rest.split('/').next().unwrap_or_default())
                && !rest.contains(['@', '?', '#'])
        })
    }
}

impl Mirror {
    /// The registry and the mirror's address.
    pub fn parts(&self) -> (&str, &str) {
        self.0.split_once('=').unwrap_or_default()
    }

    /// The mirror's host, with its port if it has one.
    pub fn host(&self) -> &str {
        self.parts().1.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default()
    }
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn is_registry(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0) && !port.starts_with('+');
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    match text.split_once(':') {
        Some((host, port)) => is_domain(host) && is_port(port),
        None => is_domain(text),
    }
}

text_value! {
    /// A destination that goes around the proxy.
    NoProxy,
    r#"a host, ".domain", address or network without spaces, such as "localhost" or "10.0.0.0/8""#,
    ".example.com",
    "^[A-Za-z0-9.:/*_-]{1,253}$",
    |text| {
        (1..=253).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:/*_-".contains(&b))
    }
}

text_value! {
    /// One public key in the form of an `authorized_keys` line (options in front are not taken).
    SshKey,
    r#"a public key in one line, such as "ssh-ed25519 AAAA… name" (the content of a .pub file)"#,
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@desk",
    "^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh.com|sk-ecdsa-sha2-nistp256@openssh.com) [A-Za-z0-9+/]+={0,2}( .*)?$",
    is_ssh_key
}

/// The blob of a key starts with its own type as an SSH string (RFC 4253, 6.6): catches a key cut in the middle
/// of being pasted far more often than a look at the alphabet alone.
fn is_ssh_key(text: &str) -> bool {
    const TYPES: [&str; 7] = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let mut parts = text.splitn(3, ' ');
    let (Some(kind), Some(blob)) = (parts.next(), parts.next()) else { return false };
    if text.len() > 16_384 || text.chars().any(char::is_control) || !TYPES.contains(&kind) {
        return false;
    }
    let Some(blob) = base64(blob) else { return false };
    // A sequence of length-prefixed strings that ends exactly at the end, the first one the type.
    let mut rest = blob.as_slice();
    let mut fields = 0_usize;
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((field, tail)) = tail.split_at_checked(length) else { return false };
        if fields == 0 && field != kind.as_bytes() {
            return false;
        }
        fields = fields.saturating_add(1);
        rest = tail;
    }
    rest.is_empty() && fields >= 2
}

/// Strict base64 with padding (RFC 4648, 4). `None` when the text is anything else.
fn base64(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let body = text.trim_end_matches('=');
    if text.len().saturating_sub(body.len()) > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len());
    for group in body.as_bytes().chunks(4) {
        let mut bits: u32 = 0;
        for (place, byte) in group.iter().enumerate() {
            let value = match byte {
                b'A'..=b'Z' => byte.wrapping_sub(b'A'),
                b'a'..=b'z' => byte.wrapping_sub(b'a').wrapping_add(26),
                b'0'..=b'9' => byte.wrapping_sub(b'0').wrapping_add(52),
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits |= u32::from(value) << (18_usize.saturating_sub(place.saturating_mul(6)));
        }
        let [_, a, b, c] = bits.to_be_bytes();
        out.extend([a, b, c].into_iter().take(group.len().saturating_sub(1)));
    }
    Some(out)
}

text_value! {
    /// A file of this device.
    FilePath,
    r#"the full path of a file, such as "/config/hawkbit.token""#,
    "/config/hawkbit.token",
    "^/[^\\x00-\\x1f]{1,1023}$",
    |text| {
        text.starts_with('/')
            && (2..=1024).contains(&text.len())
            && !text.ends_with('/')
            && !text.chars().any(char::is_control)
            && !text.split('/').any(|part| part == "..")
    }
}

text_value! {
    /// A tenant of hawkBit.
    Tenant,
    r#"a tenant's name of 1 to 40 letters, digits, ".", "-" and "_", such as "DEFAULT""#,
    "DEFAULT",
    "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,39}$",
    |text| is_word(text, 40)
}

text_value! {
    /// A device's name at hawkBit.
    Controller,
    r#"a name of 1 to 256 letters, digits, ".", "-", "_" and ":", such as "kitchen-1""#,
    "kitchen-1",
    "^[A-Za-z0-9_-][A-Za-z0-9.:_-]{0,255}$",
    |text| is_word(&text.replace(':', "-"), 256) && !text.starts_with(':')
}

/// Safe as a part of a path, and not `.` or `..`.
fn is_word(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

text_value! {
    /// The name of an attribute. No dots: keys of settings are told apart by them.
    AttributeName,
    r#"an attribute's name of 1 to 64 letters, digits, "-" and "_", such as "site""#,
    "site",
    "^[A-Za-z0-9_-]{1,64}$",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

text_value! {
    /// The value of an attribute.
    AttributeText,
    "a text of 1 to 128 characters without control characters",
    "north",
    "^.{1,128}$",
    |text| (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// A Wi-Fi passphrase: 8 to 63 printable ASCII characters (IEEE 802.11, annex M.4). Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(String);

impl Passphrase {
    /// What a valid text looks like; completes "expected …".
    pub const EXPECTED: &'static str = "a passphrase of 8 to 63 printable ASCII characters";

    /// The secret itself, for the one file that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}
impl FromStr for Passphrase {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let printable = text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if (8..=63).contains(&text.len()) && printable {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(Self::EXPECTED))
        }
    }
}
impl fmt::Display for Passphrase {
    /// The secret: serde needs it to keep the last good value. Messages never print values of secret keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
string_value!(Passphrase, "correct horse battery", "^[ -~]{8,63}$");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("20s", 20_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("500ms", 500),
            ("0s", 0),
            ("366d", Duration::MAX_MS),
        ] {
            let parsed: Duration = text.parse().unwrap();
            assert_eq!(parsed.get().as_millis(), u128::from(ms), "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        for text in ["", "5", "m", "5 m", "-5s", "5w", "1.5h", "367d", "99999999999999999999s", "5s ", "٣s"]
        {
            assert!(text.parse::<Duration>().is_err(), "{text:?}");
        }
        assert_eq!(Duration::secs(u64::MAX).as_secs(), 366 * 86_400);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("512K", 512 << 10), ("64M", 64 << 20), ("2G", 2 << 30), ("7", 7), ("0", 0)] {
            let parsed: Size = text.parse().unwrap();
            assert_eq!(parsed.bytes(), bytes, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        for text in ["", "M", "1T", "-1", "1.5G", "99999999999999999999", "1048577G", "+5"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn texts() {
        fn good<T: FromStr>(all: &[&str]) {
            for text in all {
                assert!(text.parse::<T>().is_ok(), "{text:?} should be taken");
            }
        }
        fn bad<T: FromStr>(all: &[&str]) {
            for text in all {
                assert!(text.parse::<T>().is_err(), "{text:?} should be refused");
            }
        }
        good::<Hostname>(&["a", "rustiot-1", "a.b.example"]);
        bad::<Hostname>(&["", "-a", "a-", "a_b", "a b", "ä", "a..b", "a.", &"x".repeat(64)]);
        good::<Host>(&["pool.ntp.org", "10.0.0.1", "fd00::1"]);
        bad::<Host>(&["", "a b", "http://x", "-x"]);
        good::<Timezone>(&["UTC", "Europe/Berlin", "Etc/GMT+3", "America/Argentina/Ushuaia"]);
        bad::<Timezone>(&["", "/etc/passwd", "../x", "Europe/", "a b"]);
        good::<NetworkName>(&["lan", "wifi_1"]);
        bad::<NetworkName>(&["", "Lan", "a/b", "..", &"x".repeat(33)]);
        good::<Pattern>(&["eth0", "enp*", "wl?n0"]);
        bad::<Pattern>(&["", "a b", "a\nb", "a/b"]);
        good::<Mac>(&["02:00:5e:10:00:01", "AA:bb:CC:dd:EE:ff"]);
        bad::<Mac>(&["", "02-00-5e-10-00-01", "02:00:5e:10:00", "0g:00:5e:10:00:01"]);
        good::<Cidr>(&["192.168.1.10/24", "fd00::10/64", "10.0.0.1/32"]);
        bad::<Cidr>(&["192.168.1.10", "192.168.1.10/33", "fd00::/129", "1.2.3/8", "1.2.3.4/+8", "1.2.3.4/"]);
        good::<Unit>(&["ssh.service", "getty@tty1.service", "a.target"]);
        bad::<Unit>(&["ssh", ".service", "a b.service", "a.conf"]);
        good::<Url>(&["https://a.example/x", "http://10.0.2.2:8000"]);
        bad::<Url>(&["", "ftp://x", "https://", "http:///x", "http://a b", "http://a\"b", "file:///x"]);
        good::<FilePath>(&["/config/hawkbit.token", "/state/a b"]);
        bad::<FilePath>(&[
            "",
            "/",
            "x",
            "/a/",
            "/a\nb",
            "/config/../etc/shadow",
            &format!("/{}", "x".repeat(1024)),
        ]);
        good::<Tenant>(&["DEFAULT", "a.b"]);
        bad::<Tenant>(&["", ".", "..", "a/b", "a b", &"x".repeat(41)]);
        good::<Controller>(&["kitchen-1", "02:00:5e:10:00:01"]);
        bad::<Controller>(&["", "..", ":a", "a/b", "ä", &"x".repeat(257)]);
        good::<AttributeName>(&["site", "hw_revision"]);
        bad::<AttributeName>(&["", "a.b", "a/b", "a~b", &"x".repeat(65)]);
        good::<AttributeText>(&["north", "Halle 3, Süd"]);
        bad::<AttributeText>(&["", "a\nb", &"x".repeat(129)]);
        good::<Country>(&["DE"]);
        good::<Label>(&["canary", "site.7_a-b"]);
        bad::<Label>(&["", "a b", "ä", &"x".repeat(65)]);
        bad::<Country>(&["de", "DEU", ""]);
        good::<Ssid>(&["Café", "a b"]);
        bad::<Ssid>(&["", "a\nb", &"x".repeat(33)]);
        good::<Passphrase>(&["12345678", "with spaces!"]);
        bad::<Passphrase>(&["short", "ümlaut-pass", &"x".repeat(64), "line\nbreak"]);
    }

    #[test]
    fn windows_are_read_and_written() {
        for (text, written) in [
            ("02:00-05:00", "02:00-05:00"),
            ("mon-sun 00:00-24:00", "00:00-24:00"),
            ("mon-fri 22:00-04:00", "mon,tue,wed,thu,fri 22:00-04:00"),
            ("sat-mon,wed 22:00-04:30 Europe/Berlin", "mon,wed,sat,sun 22:00-04:30 Europe/Berlin"),
        ] {
            let window: Window = text.parse().unwrap();
            assert_eq!(window.to_string(), written);
            assert_eq!(written.parse::<Window>().unwrap(), window);
        }
        for text in [
            "",
            "mon",
            "02:00",
            "2:00-5:00",
            "02:00-02:00",
            "24:00-02:00",
            "02:00-25:00",
            "02:60-03:00",
            "00:00-00:00",
            "02:00-24:01",
            "Mon 02:00-03:00",
            "mon,, 02:00-03:00",
            "mo-fr 02:00-03:00",
            "mon  02:00-03:00",
            "02:00-03:00 Europe/Berlin x",
            "02:00-03:00 ../etc",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ssh_keys() {
        let good = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@desk";
        assert!(good.parse::<SshKey>().is_ok());
        let bad = [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            // cut in the middle
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhsc",
            // the blob is of another type
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "command=\"x\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
        ];
        for text in bad {
            assert!(text.parse::<SshKey>().is_err(), "{text:?}");
        }
        assert!(format!("{good}\nssh-rsa x").parse::<SshKey>().is_err(), "a second line is no part of a key");
    }

    #[test]
    fn a_passphrase_is_not_debug_printed() {
        let secret: Passphrase = "hunter2hunter2".parse().unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn duration_text_round_trips(ms in 0..=Duration::MAX_MS) {
            let value = Duration(std::time::Duration::from_millis(ms));
            prop_assert_eq!(value.to_string().parse::<Duration>(), Ok(value));
        }

        #[test]
        fn size_text_round_trips(bytes in 0..=Size::MAX) {
            prop_assert_eq!(Size(bytes).to_string().parse::<Size>(), Ok(Size(bytes)));
        }

        #[test]
        fn window_text_round_trips(text in "((mon|tue|wed|thu|fri|sat|sun)[-,]?){0,4} ?[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]( Europe/Rome)?") {
            if let Ok(window) = text.parse::<Window>() {
                prop_assert_eq!(window.to_string().parse::<Window>(), Ok(window));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = (text.parse::<Duration>(), text.parse::<Size>(), text.parse::<SshKey>());
            let _ = (text.parse::<Cidr>(), text.parse::<Mac>(), text.parse::<Host>(), text.parse::<Unit>());
            let _ = text.parse::<Window>();
        }
    }
}
