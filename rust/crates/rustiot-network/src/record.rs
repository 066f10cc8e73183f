//! What is recorded: networks (durable) and endpoints (until the next boot). Data only; `networks` reads and writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::address::{Subnet, Subnet6};

/// The network of containers that ask for none.
pub const DEFAULT_NETWORK: &str = "bridge";
/// How the names of our bridges begin.
pub(crate) const BRIDGE_PREFIX: &str = "rib-";
/// How the names of the host's ends of our veth pairs begin.
pub(crate) const VETH_PREFIX: &str = "riv-";

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// What a network is asked to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Its subnet; without one, a free one is chosen.
    #[serde(default)]
    pub subnet: Option<Subnet>,
    /// Its gateway; without one, the subnet's first address.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// IPv6 besides; without, the network has none.
    #[serde(default)]
    pub ipv6: Option<Config6>,
    /// No way out and none in: containers of the network reach each other only.
    #[serde(default)]
    pub internal: bool,
    /// Services of the host that its containers may reach, at the gateway's address. All others are closed to them.
    #[serde(default)]
    pub host_ports: BTreeSet<HostPort>,
    /// The owner's labels, carried along.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the engine was asked besides, carried along.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// What a network with IPv6 is asked to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config6 {
    /// Its subnet; without one, a free /64 of the device's own unique local /48 is chosen.
    #[serde(default)]
    pub subnet: Option<Subnet6>,
    /// Its gateway; without one, the subnet's first address.
    #[serde(default)]
    pub gateway: Option<Ipv6Addr>,
}

/// The IPv6 of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network6 {
    /// Its subnet.
    pub subnet: Subnet6,
    /// The host's address in it.
    pub gateway: Ipv6Addr,
}

/// A network, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its name, unique.
    pub name: String,
    /// 64 hexadecimal digits, its own for ever.
    pub id: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Its bridge.
    pub bridge: String,
    /// Its subnet.
    pub subnet: Subnet,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// Its IPv6, if it has any. Not written where there is none: who knows no IPv6 still reads such a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Network6>,
    /// See [`NetworkConfig::internal`].
    pub internal: bool,
    /// See [`NetworkConfig::host_ports`].
    pub host_ports: BTreeSet<HostPort>,
    /// See [`NetworkConfig::labels`].
    pub labels: BTreeMap<String, String>,
    /// See [`NetworkConfig::options`].
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Published {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address: `0.0.0.0` or `::` for all of a kind, none for all that the container's network has.
    pub host_address: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
}

/// A port of a container that is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address: `0.0.0.0` or `::` for all of a kind, none for all that the container's network has.
    pub host_address: Option<IpAddr>,
    /// The host's ports that will do, the first free one of them; `(0, 0)` for any.
    pub host_ports: (u16, u16),
    /// The container's port.
    pub container_port: u16,
}

impl Published {
    /// Whether it is one of the host's IPv4 addresses that leads to the container, and one of its IPv6 addresses;
    /// `ipv6`: whether the container has IPv6 there.
    #[must_use]
    pub fn families(&self, ipv6: bool) -> (bool, bool) {
        match self.host_address {
            None => (true, ipv6),
            Some(IpAddr::V4(_)) => (true, false),
            Some(IpAddr::V6(_)) => (false, ipv6),
        }
    }

    /// Whether both want the same port of the same address; each with whether its container has IPv6.
    pub(crate) fn clashes(&self, ipv6: bool, other: &Published, others_ipv6: bool) -> bool {
        let (mine, theirs) = (self.families(ipv6), other.families(others_ipv6));
        let specific = |published: &Published| published.host_address.filter(|a| !a.is_unspecified());
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && ((mine.0 && theirs.0) || (mine.1 && theirs.1))
            && match (specific(self), specific(other)) {
                (Some(mine), Some(theirs)) => mine == theirs,
                _ => true,
            }
    }
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The container's id.
    pub container: String,
    /// 64 hexadecimal digits, of this stay in the network.
    pub id: String,
    /// The file of its network namespace.
    pub namespace: PathBuf,
    /// The network's name.
    pub network: String,
    /// Its address there.
    pub address: Ipv4Addr,
    /// Its IPv6 address there, in a network that has IPv6.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The host's end of its veth pair.
    pub link: String,
    /// The interface inside.
    pub interface: String,
    /// The names by which the network's other containers know it, the first one its own.
    pub aliases: Vec<String>,
    /// Name servers that it wants asked instead of the host's.
    pub servers: Vec<IpAddr>,
    /// Ports of the host that lead to it.
    pub published: BTreeSet<Published>,
}

/// The file of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Networks {
    pub networks: BTreeMap<String, Network>,
    /// The device's own unique local /48 (RFC 4193): drawn at random when the first network needs it, then for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_local: Option<Subnet6>,
}

/// The file of endpoints, valid until the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoints {
    pub endpoints: Vec<Endpoint>,
    /// The address that was given last in each network.
    pub last: BTreeMap<String, Ipv4Addr>,
    /// The IPv6 address that was given last in each network.
    #[serde(default)]
    pub last6: BTreeMap<String, Ipv6Addr>,
    /// Forwarding was off before us.
    #[serde(default)]
    pub forwarding_is_ours: bool,
    /// Forwarding of IPv6 was off before us.
    #[serde(default)]
    pub forwarding6_is_ours: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_before_ipv6_are_read_and_one_without_ipv6_is_written_as_then() {
        let network = r#"{"networks":{"n":{"name":"n","id":"1","created":"2026-11-27T00:00:00Z","bridge":"rib-n",
            "subnet":"172.18.0.0/16","gateway":"172.18.0.1","internal":false,"host_ports":[],"labels":{},
            "options":{}}}}"#;
        let read: Networks = serde_json::from_str(network).unwrap();
        assert_eq!((read.networks["n"].ipv6, read.unique_local), (None, None));
        let written: serde_json::Value = serde_json::to_value(&read).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(network).unwrap());
        let endpoints = r#"{"endpoints":[{"container":"c","id":"1","namespace":"/n","network":"n",
            "address":"172.18.0.2","mac":[2,66,172,18,0,2],"link":"riv-c","interface":"eth0","aliases":[],"servers":[],
            "published":[{"protocol":"tcp","host_address":null,"host_port":80,"container_port":80},
            {"protocol":"udp","host_address":"127.0.0.1","host_port":53,"container_port":53}]}],
            "last":{"n":"172.18.0.2"}}"#;
        let read: Endpoints = serde_json::from_str(endpoints).unwrap();
        let [endpoint] = read.endpoints.as_slice() else { panic!("{read:?}") };
        assert_eq!((endpoint.address6, endpoint.published.len()), (None, 2));
        assert!(read.last6.is_empty() && !read.forwarding6_is_ours);
    }

    #[test]
    fn ports_clash_where_an_address_would_lead_to_two() {
        let at = |address: &str| Published {
            protocol: Protocol::Tcp,
            host_address: (!address.is_empty()).then(|| address.parse().unwrap()),
            host_port: 80,
            container_port: 80,
        };
        let clash = |a: (&str, bool), b: (&str, bool)| {
            let both = at(a.0).clashes(a.1, &at(b.0), b.1);
            assert_eq!(both, at(b.0).clashes(b.1, &at(a.0), a.1), "{a:?} {b:?}");
            both
        };
        for (a, b) in [
            (("", true), ("", false)),
            (("", true), ("::", true)),
            (("", true), ("2001:db8::1", true)),
            (("", false), ("127.0.0.1", false)),
            (("::", true), ("::1", true)),
            (("0.0.0.0", true), ("127.0.0.1", true)),
            (("::1", true), ("::1", true)),
        ] {
            assert!(clash(a, b), "{a:?} {b:?}");
        }
        for (a, b) in [
            (("", false), ("::", true)),
            (("0.0.0.0", true), ("::", true)),
            (("127.0.0.1", true), ("::1", true)),
            (("127.0.0.1", true), ("127.0.0.2", true)),
            (("::1", true), ("2001:db8::1", true)),
        ] {
            assert!(!clash(a, b), "{a:?} {b:?}");
        }
    }
}
