//! Settings → the text of the files that other programs read: networkd, iwd, timesyncd, journald, sshd, proxies.
//!
//! Pure: returns paths below `/run`, modes and texts; `rustiot-provision` writes them. Every value that lands in
//! a text was checked by its type ([`crate::scalar`]): none can hold a line break, and none starts a section.

use crate::settings::{
    Ipv6, LogSettings, NetworkKind, NetworkSettings, ProxySettings, Settings, TimeSettings,
};
use std::fmt::Write;

/// A file to write below `/run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Path below `/run`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub text: String,
}

/// The directories below `/run` in which every file with our prefix (or every file at all, `true`) is ours: what
/// an earlier run left there and this one does not render is to be removed.
pub const OWNED: &[(&str, bool)] = &[
    ("systemd/network", false),
    ("systemd/timesyncd.conf.d", false),
    ("systemd/journald.conf.d", false),
    ("rustiot/iwd", true),
    ("rustiot/ssh", true),
];

/// How the names of our files start in directories that others use as well.
pub const PREFIX: &str = "50-rustiot";

const HEADER: &str = "# From rustiot.toml on the config partition; rewritten on every start.\n";

/// Everything. `default_hostname` is used when the owner names none.
pub fn all(settings: &Settings, default_hostname: &str) -> Vec<File> {
    let mut files = vec![
        File {
            path: "rustiot/hostname".into(),
            mode: 0o644,
            text: format!("{}\n", hostname(settings, default_hostname)),
        },
        File { path: "rustiot/ssh/authorized_keys".into(), mode: 0o644, text: authorized_keys(settings) },
        File {
            path: format!("systemd/timesyncd.conf.d/{PREFIX}.conf"),
            mode: 0o644,
            text: timesyncd(&settings.time),
        },
        File {
            path: format!("systemd/journald.conf.d/{PREFIX}.conf"),
            mode: 0o644,
            text: journald(&settings.log),
        },
        File { path: "rustiot/proxy.env".into(), mode: 0o644, text: proxy_environment(&settings.proxy) },
    ];
    for (name, network) in &settings.network {
        let path = format!("systemd/network/{PREFIX}-{name}.network");
        files.push(File { path, mode: 0o644, text: networkd(network) });
    }
    files.extend(iwd(settings));
    files
}

/// The host name in force.
pub fn hostname<'a>(settings: &'a Settings, default: &'a str) -> &'a str {
    settings.hostname.as_ref().map_or(default, |name| name.as_str())
}

/// `authorized_keys`, one key a line.
pub fn authorized_keys(settings: &Settings) -> String {
    settings.ssh.authorized_keys.iter().fold(HEADER.to_owned(), |mut text, key| {
        let _ = writeln!(text, "{key}");
        text
    })
}

/// systemd.network(5) for one connection.
pub fn networkd(network: &NetworkSettings) -> String {
    let mut text = format!("{HEADER}[Match]\n");
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{key}={value}");
    };
    match network.kind {
        NetworkKind::Wifi => line("Type", &"wlan"),
        NetworkKind::Ethernet => {
            line("Type", &"ether");
            // Bridges, veth pairs of containers and other virtual devices have a kind; real ports have none.
            line("Kind", &"!*");
        }
    }
    for (key, value) in [
        ("Name", network.name.as_ref().map(|v| v.as_str())),
        ("Driver", network.driver.as_ref().map(|v| v.as_str())),
    ] {
        if let Some(value) = value {
            line(key, &value);
        }
    }
    if let Some(mac) = &network.mac {
        line("PermanentMACAddress", mac);
    }
    let _ = writeln!(text, "\n[Network]\nDHCP={}", if network.dhcp { "ipv4" } else { "no" });
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{key}={value}");
    };
    let (link_local, accept) = match network.ipv6 {
        Ipv6::Auto => ("ipv6", "yes"),
        Ipv6::LinkLocal => ("ipv6", "no"),
        Ipv6::Off => ("no", "no"),
    };
    line("LinkLocalAddressing", &link_local);
    line("IPv6AcceptRA", &accept);
    for address in &network.addresses {
        line("Address", address);
    }
    for dns in &network.dns {
        line("DNS", dns);
    }
    for gateway in &network.gateway {
        let _ = write!(text, "\n[Route]\nGateway={gateway}\nMetric={}\n", network.metric);
    }
    if network.dhcp {
        // The name of a device is its owner's choice, never the DHCP server's; the same port gets the same address
        // even when the machine id was lost with `state`.
        let _ = write!(
            text,
            "\n[DHCPv4]\nUseHostname=no\nClientIdentifier=mac\nRouteMetric={}\n",
            network.metric
        );
    }
    if network.ipv6 == Ipv6::Auto {
        let _ = write!(text, "\n[IPv6AcceptRA]\nRouteMetric={}\n", network.metric);
    }
    text
}

/// iwd's `main.conf` and one file per Wi-Fi network (iwd.network(5)); nothing when there is no Wi-Fi.
pub fn iwd(settings: &Settings) -> Vec<File> {
    let networks: Vec<&NetworkSettings> =
        settings.network.values().filter(|network| network.kind == NetworkKind::Wifi).collect();
    if networks.is_empty() {
        return Vec::new();
    }
    let mut main = format!("{HEADER}[General]\nEnableNetworkConfiguration=false\n");
    if let Some(country) = networks.iter().find_map(|network| network.country.as_ref()) {
        let _ = writeln!(main, "Country={country}");
    }
    let mut files = vec![File { path: "rustiot/iwd/main.conf".into(), mode: 0o644, text: main }];
    for network in networks {
        let Some(ssid) = &network.ssid else { continue };
        let mut text = format!("{HEADER}[Settings]\nAutoConnect=true\n");
        if network.hidden {
            text.push_str("Hidden=true\n");
        }
        let suffix = match &network.psk {
            Some(psk) => {
                let _ = write!(text, "\n[Security]\nPassphrase={}\n", ell_escape(psk.reveal()));
                "psk"
            }
            None => "open",
        };
        let path = format!("rustiot/iwd/{}.{suffix}", iwd_file_stem(ssid.as_str()));
        files.push(File { path, mode: 0o600, text });
    }
    files
}

/// iwd names a network's file after its SSID; any character but letters, digits, `-`, `_` and space makes it
/// `=` and the SSID in hex (iwd.network(5), "FILE FORMAT").
fn iwd_file_stem(ssid: &str) -> String {
    if ssid.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_ ".contains(&b)) {
        return ssid.to_owned();
    }
    ssid.bytes().fold("=".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// iwd's settings files escape a backslash, and a leading space as `\s` (iwd.network(5)).
fn ell_escape(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\");
    match escaped.strip_prefix(' ') {
        Some(rest) => format!("\\s{rest}"),
        None => escaped,
    }
}

/// timesyncd.conf(5).
pub fn timesyncd(time: &TimeSettings) -> String {
    let servers: Vec<&str> = time.servers.iter().map(|server| server.as_str()).collect();
    // An empty assignment first: it drops the servers that the image's own configuration names.
    format!("{HEADER}[Time]\nNTP=\nNTP={}\nFallbackNTP=\n", servers.join(" "))
}

/// journald.conf(5).
pub fn journald(log: &LogSettings) -> String {
    format!(
        "{HEADER}[Journal]\nStorage={}\nSystemMaxUse={}\nRuntimeMaxUse={}\nMaxRetentionSec={}\n\
         RateLimitIntervalSec=30s\nRateLimitBurst={}\n",
        if log.persistent { "persistent" } else { "volatile" },
        log.max_size.bytes(),
        log.max_memory.bytes(),
        log.max_age.as_secs(),
        log.rate,
    )
}

/// An environment file (systemd.exec(5), `EnvironmentFile=`), in the spellings that programs look for.
pub fn proxy_environment(proxy: &ProxySettings) -> String {
    let mut text = HEADER.to_owned();
    let none: Vec<&str> = proxy.no_proxy.iter().map(|entry| entry.as_str()).collect();
    let mut both = |name: &str, value: &str| {
        let _ = writeln!(text, "{name}=\"{value}\"\n{}=\"{value}\"", name.to_uppercase());
    };
    for (name, url) in [("http_proxy", &proxy.http), ("https_proxy", &proxy.https)] {
        if let Some(url) = url {
            both(name, url.as_str());
        }
    }
    if proxy.http.is_some() || proxy.https.is_some() {
        both("no_proxy", &none.join(","));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        let content = crate::Content::Bytes(text.as_bytes().to_vec());
        let fragment = crate::Fragment { file: "f".into(), content };
        let outcome = crate::resolve(None, &[fragment], &crate::LastGood::default());
        assert_eq!(outcome.messages, []);
        outcome.settings
    }

    fn rendered(text: &str, path: &str) -> String {
        let files = all(&settings(text), "rustiot-0badcafe");
        files.into_iter().find(|file| file.path == path).unwrap().text
    }

    #[test]
    fn an_unconfigured_device() {
        let files = all(&Settings::default(), "rustiot-0badcafe");
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "rustiot/hostname",
                "rustiot/ssh/authorized_keys",
                "systemd/timesyncd.conf.d/50-rustiot.conf",
                "systemd/journald.conf.d/50-rustiot.conf",
                "rustiot/proxy.env"
            ]
        );
        assert_eq!(files[0].text, "rustiot-0badcafe\n");
        assert_eq!(files[1].text, HEADER);
        assert_eq!(files[4].text, HEADER);
    }

    #[test]
    fn a_static_address() {
        let text = rendered(
            "[network.lan]\nname = 'eth0'\ndhcp = false\naddresses = ['192.168.1.10/24', 'fd00::10/64']\n\
             gateway = ['192.168.1.1']\ndns = ['192.168.1.1', '9.9.9.9']\nipv6 = 'link-local'\nmetric = 100\n",
            "systemd/network/50-rustiot-lan.network",
        );
        assert_eq!(
            text,
            format!(
                "{HEADER}[Match]\nType=ether\nKind=!*\nName=eth0\n\n[Network]\nDHCP=no\nLinkLocalAddressing=ipv6\n\
                 IPv6AcceptRA=no\nAddress=192.168.1.10/24\nAddress=fd00::10/64\nDNS=192.168.1.1\nDNS=9.9.9.9\n\
                 \n[Route]\nGateway=192.168.1.1\nMetric=100\n"
            )
        );
    }

    #[test]
    fn dhcp_by_hardware_address_without_ipv6() {
        let text = rendered(
            "[network.lan]\nmac = '02:00:5e:10:00:01'\nipv6 = 'off'\n",
            "systemd/network/50-rustiot-lan.network",
        );
        assert_eq!(
            text,
            format!(
                "{HEADER}[Match]\nType=ether\nKind=!*\nPermanentMACAddress=02:00:5e:10:00:01\n\n[Network]\nDHCP=ipv4\n\
                 LinkLocalAddressing=no\nIPv6AcceptRA=no\n\n[DHCPv4]\nUseHostname=no\nClientIdentifier=mac\nRouteMetric=1024\n"
            )
        );
    }

    #[test]
    fn wifi() {
        let files = iwd(&settings(
            "[network.a]\ntype = 'wifi'\nssid = 'work shop'\npsk = ' back\\slash'\ncountry = 'DE'\n\
             [network.b]\ntype = 'wifi'\nssid = 'Café'\nhidden = true\n",
        ));
        assert_eq!(
            files[0].text,
            format!("{HEADER}[General]\nEnableNetworkConfiguration=false\nCountry=DE\n")
        );
        assert_eq!((files[1].path.as_str(), files[1].mode), ("rustiot/iwd/work shop.psk", 0o600));
        assert!(files[1].text.ends_with("\n[Security]\nPassphrase=\\sback\\\\slash\n"), "{}", files[1].text);
        assert_eq!(files[2].path, "rustiot/iwd/=436166c3a9.open");
        assert!(files[2].text.contains("Hidden=true\n") && !files[2].text.contains("Security"));
    }

    #[test]
    fn the_rest() {
        let text = "hostname = 'x'\n[time]\nservers = ['a.example', '10.0.0.1']\n[log]\nmax_size = '8M'\n\
                    persistent = false\n[proxy]\nhttps = 'http://proxy:3128'\n";
        assert_eq!(rendered(text, "rustiot/hostname"), "x\n");
        assert_eq!(
            rendered(text, "systemd/timesyncd.conf.d/50-rustiot.conf"),
            format!("{HEADER}[Time]\nNTP=\nNTP=a.example 10.0.0.1\nFallbackNTP=\n")
        );
        let journald = rendered(text, "systemd/journald.conf.d/50-rustiot.conf");
        assert!(journald.contains("Storage=volatile\nSystemMaxUse=8388608\n"), "{journald}");
        let proxy = rendered(text, "rustiot/proxy.env");
        assert!(proxy.contains("https_proxy=\"http://proxy:3128\"\nHTTPS_PROXY="), "{proxy}");
        assert!(
            proxy.contains("no_proxy=\"localhost,127.0.0.1,::1\"\n") && !proxy.contains("http_proxy=\"\"")
        );
    }

    #[test]
    fn all_paths_are_in_directories_that_are_cleaned() {
        let text = "[network.a]\ntype = 'wifi'\nssid = 's'\n";
        for file in all(&settings(text), "h") {
            let (dir, name) = file.path.rsplit_once('/').unwrap();
            let owned =
                OWNED.iter().any(|(owned, whole)| *owned == dir && (*whole || name.starts_with(PREFIX)));
            assert!(owned || dir == "rustiot", "{}", file.path);
        }
    }
}
