//! What is recorded: networks (durable) and endpoints (until the next boot). Data only; `networks` reads and writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::address::Subnet;

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
    /// The host's address; none for all of them.
    pub host_address: Option<Ipv4Addr>,
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
    /// The host's address; none for all of them.
    pub host_address: Option<Ipv4Addr>,
    /// The host's ports that will do, the first free one of them; `(0, 0)` for any.
    pub host_ports: (u16, u16),
    /// The container's port.
    pub container_port: u16,
}

impl Published {
    /// Whether both want the same port of the same address.
    pub(crate) fn clashes(&self, other: &Published) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && (self.host_address == other.host_address
                || self.host_address.is_none()
                || other.host_address.is_none())
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
}

/// The file of endpoints, valid until the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoints {
    pub endpoints: Vec<Endpoint>,
    /// The address that was given last in each network.
    pub last: BTreeMap<String, Ipv4Addr>,
    /// Forwarding was off before us.
    #[serde(default)]
    pub forwarding_is_ours: bool,
}
