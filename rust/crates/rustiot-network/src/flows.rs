//! Flows that the kernel remembers: UDP that goes on keeps its old way for as long as it goes on, so what no longer
//! holds is taken out of that memory.
//!
//! Best effort: a kernel without ctnetlink keeps its flows until they are silent for a while, and nothing else is wrong
//! then. Called by `networks`.

use std::net::IpAddr;

use nlink::{
    Connection,
    netlink::{
        Netfilter,
        netfilter::{ConntrackFilter, IpProtocol},
    },
};

/// Forgets flows that lead to a container's address or come from it.
pub(crate) async fn forget_container(address: IpAddr) {
    for filter in [ConntrackFilter::new().reply_src(address), ConntrackFilter::new().orig_src(address)] {
        forget(&filter).await;
    }
}

/// Forgets UDP flows to ports of the host.
pub(crate) async fn forget_ports(ports: impl Iterator<Item = u16>) {
    for port in ports {
        forget(&ConntrackFilter::new().proto(IpProtocol::Udp).orig_dst_port(port)).await;
    }
}

async fn forget(filter: &ConntrackFilter) {
    let Ok(connection) = Connection::<Netfilter>::new() else { return };
    let _ = connection.flush_conntrack_matching(filter).await;
}
