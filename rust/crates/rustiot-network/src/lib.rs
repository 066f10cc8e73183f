//! Networks of containers: bridges, addresses, published ports, isolation.
//!
//! Called by the engine only. It changes links whose names begin with `rib-` and `riv-`, one nftables table of its own
//! and the forwarding switch; it never touches another link, another table or a container's processes. IPv4 only.

pub mod address;
mod firewall;
mod flows;
mod links;
mod names;
mod networks;
mod record;
mod resolver;

pub use address::Subnet;
pub use names::{Reply, View, reply};
pub use networks::{Attachment, Error, Mended, Networks, Reconciled, Wanted};
pub use record::{DEFAULT_NETWORK, Endpoint, HostPort, Network, NetworkConfig, Protocol, Publish, Published};
