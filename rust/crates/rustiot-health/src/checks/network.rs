//! The network, relative to what it was: what worked in the last stable boot must work in a trial.
//!
//! Only what the device itself answers for counts, up to the first hop: interface, link, address, default route,
//! gateway's hardware address, name server known, ssh listening. Nothing beyond is asked, so a dead WAN, DNS or cloud
//! never makes a release unhealthy; a network that never worked is no reason for a fallback either. Interfaces are
//! told apart by hardware address, because their names may change with the release. Called by [`crate::service`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::check::Verdict;

/// Interfaces that are looked at, and facts that are remembered, at most.
const MAX_INTERFACES: usize = 32;

/// What works.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// For people and for comparison, such as `link on 52:54:00:12:34:56`.
    pub works: BTreeSet<String>,
}

/// What the kernel shows, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Physical interfaces: name → hardware address, carrier.
    pub interfaces: BTreeMap<String, (String, bool)>,
    /// Addresses with more than link scope: interface and `4` or `6`.
    pub addresses: BTreeSet<(String, char)>,
    /// `/proc/net/route`.
    pub route: String,
    /// `/proc/net/ipv6_route`.
    pub ipv6_route: String,
    /// `/proc/net/arp`.
    pub arp: String,
    /// The resolver's list of name servers.
    pub resolv_conf: String,
    /// `/proc/net/tcp` and `/proc/net/tcp6`.
    pub tcp: String,
}

/// Judges `now` against what worked `before`; `None` when no boot was stable yet.
#[must_use]
pub fn judge(before: Option<&Facts>, now: &Facts) -> Verdict {
    let Some(before) = before else { return Verdict::Pass };
    let lost: Vec<&str> = before.works.difference(&now.works).map(String::as_str).collect();
    if lost.is_empty() {
        Verdict::Pass
    } else {
        Verdict::Fail(format!("worked before and does not now: {}", lost.join(", ")))
    }
}

/// What works, out of what the kernel shows. Total: any text may come.
#[must_use]
pub fn facts(sources: &Sources) -> Facts {
    let mut works = BTreeSet::new();
    for (name, (mac, carrier)) in sources.interfaces.iter().take(MAX_INTERFACES) {
        works.insert(format!("interface {mac}"));
        if *carrier {
            works.insert(format!("link on {mac}"));
        }
        for (_, version) in sources.addresses.iter().filter(|(interface, _)| interface == name) {
            works.insert(format!("IPv{version} address on {mac}"));
        }
    }
    let gateways = gateways(&sources.route);
    if !gateways.is_empty() {
        works.insert("IPv4 default route".into());
    }
    if has_ipv6_default(&sources.ipv6_route) {
        works.insert("IPv6 default route".into());
    }
    if gateways.iter().any(|gateway| answers(&sources.arp, *gateway)) {
        works.insert("gateway answers".into());
    }
    if sources.resolv_conf.lines().any(|l| l.split_ascii_whitespace().next() == Some("nameserver")) {
        works.insert("name server known".into());
    }
    if listens_on_ssh(&sources.tcp) {
        works.insert("ssh listens".into());
    }
    Facts { works }
}

/// IPv4 gateways of `/proc/net/route`: addresses there are hexadecimal in host order.
#[must_use]
pub fn gateways(route: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    for line in route.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(destination), Some(gateway), Some(mask)) = (fields.get(1), fields.get(2), fields.get(7))
        else {
            continue;
        };
        let gateway = u32::from_str_radix(gateway, 16).unwrap_or(0);
        if *destination == "00000000" && *mask == "00000000" && gateway != 0 {
            found.push(Ipv4Addr::from(gateway.to_ne_bytes()));
        }
    }
    found
}

fn has_ipv6_default(route: &str) -> bool {
    // Destination, its length, source, its length, next hop, metric, use, flags, interface; the kernel's own
    // "unreachable" default is on lo.
    route.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let zero = |field: Option<&&str>| field.is_some_and(|f| f.bytes().all(|b| b == b'0'));
        fields.len() >= 10 && zero(fields.first()) && zero(fields.get(1)) && fields.last() != Some(&"lo")
    })
}

/// Whether `/proc/net/arp` holds a complete entry for `address` (flag `ATF_COM`, 2).
fn answers(arp: &str, address: Ipv4Addr) -> bool {
    arp.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let ip = fields.next().and_then(|f| f.parse::<Ipv4Addr>().ok());
        let flags = fields.nth(1).and_then(|f| u32::from_str_radix(f.trim_start_matches("0x"), 16).ok());
        ip == Some(address) && flags.is_some_and(|flags| flags & 2 != 0)
    })
}

/// State 0A is LISTEN; the port is hexadecimal after the last colon of the local address.
fn listens_on_ssh(tcp: &str) -> bool {
    tcp.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1).unwrap_or_default();
        local.ends_with(":0016") && fields.nth(1) == Some("0A")
    })
}

/// Reads everything, and says one word to each gateway so that the kernel learns whether it is there.
#[must_use]
pub fn read(root: &Path) -> Sources {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let route = text("proc/net/route");
    for gateway in gateways(&route) {
        // Port 9 (discard): nobody needs to answer, only the address is resolved.
        let _ = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|s| s.send_to(&[0], (gateway, 9)));
    }
    let resolved = text("run/systemd/resolve/resolv.conf");
    Sources {
        interfaces: interfaces(&root.join("sys/class/net")),
        addresses: addresses(),
        arp: text("proc/net/arp"),
        ipv6_route: text("proc/net/ipv6_route"),
        resolv_conf: if resolved.is_empty() { text("etc/resolv.conf") } else { resolved },
        tcp: text("proc/net/tcp") + &text("proc/net/tcp6"),
        route,
    }
}

/// Interfaces with a device behind them: not loopback, bridges, tunnels or what containers use.
fn interfaces(directory: &Path) -> BTreeMap<String, (String, bool)> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("device").exists())
        .map(|entry| {
            let read = |file: &str| {
                fs::read_to_string(entry.path().join(file)).unwrap_or_default().trim().to_owned()
            };
            (entry.file_name().to_string_lossy().into_owned(), (read("address"), read("carrier") == "1"))
        })
        .collect()
}

/// Addresses of more than link scope.
fn addresses() -> BTreeSet<(String, char)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return BTreeSet::new() };
    all.filter_map(|entry| {
        let address = entry.address?;
        if let Some(v4) = address.as_sockaddr_in() {
            return (!v4.ip().is_link_local()).then_some((entry.interface_name, '4'));
        }
        let v6: Ipv6Addr = address.as_sockaddr_in6()?.ip();
        (!v6.is_unicast_link_local()).then_some((entry.interface_name, '6'))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUTE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0202000A\t0003\t0\t0\t1024\t00000000\t0\t0\t0\n\
        eth0\t0002000A\t00000000\t0001\t0\t0\t1024\t00FFFFFF\t0\t0\t0\n";
    const ARP: &str = "IP address       HW type     Flags       HW address            Mask     Device\n\
        10.0.2.2         0x1         0x2         52:55:0a:00:02:02     *        eth0\n";
    const TCP: &str = "  sl  local_address rem_address   st tx_queue\n\
           0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n";
    const DEFAULT6: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
        fe800000000000000000000000000002 00000400 00000001 00000000 00000003 eth0\n";

    fn working() -> Sources {
        Sources {
            interfaces: BTreeMap::from([("eth0".into(), ("52:54:00:12:34:56".into(), true))]),
            addresses: BTreeSet::from([("eth0".into(), '4'), ("docker0".into(), '4')]),
            route: ROUTE.into(),
            ipv6_route: String::new(),
            arp: ARP.into(),
            resolv_conf: "# x\nnameserver 10.0.2.3\n".into(),
            tcp: TCP.into(),
        }
    }

    #[test]
    fn facts_are_what_the_device_itself_answers_for() {
        let facts: Vec<String> = facts(&working()).works.into_iter().collect();
        assert_eq!(
            facts,
            [
                "IPv4 address on 52:54:00:12:34:56",
                "IPv4 default route",
                "gateway answers",
                "interface 52:54:00:12:34:56",
                "link on 52:54:00:12:34:56",
                "name server known",
                "ssh listens",
            ]
        );
    }

    #[test]
    fn each_thing_that_worked_and_is_lost_fails_and_is_named() {
        let before = facts(&working());
        type Change = fn(&mut Sources);
        let cases: [(&str, Change); 7] = [
            ("IPv4 address", |s| s.addresses.clear()),
            ("default route", |s| s.route.clear()),
            ("gateway answers", |s| s.arp = ARP.replace("0x2 ", "0x0 ")),
            ("interface 52", |s| s.interfaces.clear()),
            ("link on", |s| {
                s.interfaces = BTreeMap::from([("eth0".into(), ("52:54:00:12:34:56".into(), false))])
            }),
            ("name server", |s| s.resolv_conf.clear()),
            ("ssh listens", |s| s.tcp = TCP.replace(" 0A ", " 01 ")),
        ];
        for (lost, change) in cases {
            let mut sources = working();
            change(&mut sources);
            match judge(Some(&before), &facts(&sources)) {
                Verdict::Fail(why) => assert!(why.contains(lost), "{lost}: {why}"),
                other => panic!("{lost}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_never_worked_is_no_failure_and_more_than_before_is_fine() {
        let nothing = facts(&Sources::default());
        assert_eq!(judge(None, &nothing), Verdict::Pass, "no boot was stable yet");
        assert_eq!(judge(Some(&nothing), &nothing), Verdict::Pass, "it had no network before either");
        assert_eq!(judge(Some(&nothing), &facts(&working())), Verdict::Pass);
        let mut renamed = working();
        renamed.interfaces = BTreeMap::from([("enp0s2".into(), ("52:54:00:12:34:56".into(), true))]);
        renamed.addresses = BTreeSet::from([("enp0s2".into(), '4')]);
        assert_eq!(
            judge(Some(&facts(&working())), &facts(&renamed)),
            Verdict::Pass,
            "another name is not a loss"
        );
    }

    #[test]
    fn reads_ipv6_defaults_but_not_the_kernel_s_own() {
        assert!(has_ipv6_default(DEFAULT6));
        assert!(!has_ipv6_default(&DEFAULT6.replace("eth0", "lo")));
        assert_eq!(gateways(ROUTE), [Ipv4Addr::new(10, 0, 2, 2)]);
    }

    #[test]
    fn reads_this_machine() {
        let sources = read(Path::new("/"));
        assert!(!sources.tcp.is_empty() && sources.addresses.contains(&("lo".to_owned(), '4')));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(?s).{0,300}", line in "([0-9A-Fa-fx:.]{0,12}[ \t\n]){0,40}") {
            for text in [text, line] {
                let sources = Sources {
                    route: text.clone(),
                    ipv6_route: text.clone(),
                    arp: text.clone(),
                    resolv_conf: text.clone(),
                    tcp: text.clone(),
                    ..Sources::default()
                };
                let _ = facts(&sources);
            }
        }
    }
}
