//! Networks of containers: bridges, addresses, published ports, isolation.
//!
//! Called by the engine only. It changes links whose names begin with `rib-` and `riv-`, one nftables table of its own
//! and the forwarding switches; it never touches another table or a container's processes, nor another link, but for
//! one setting: with IPv6 forwarded, a link that accepted router advertisements is told to go on doing so.

pub mod address;
mod firewall;
mod flows;
mod links;
mod names;
mod networks;
mod record;
mod resolver;

pub use address::{Subnet, Subnet6};
pub use names::{Reply, View, accepted, reply};
pub use networks::{Attachment, Error, Mended, Networks, Reconciled, Wanted};
pub use record::{
    Config6, DEFAULT_NETWORK, Endpoint, HostPort, Network, Network6, NetworkConfig, Protocol, Publish,
    Published,
};
