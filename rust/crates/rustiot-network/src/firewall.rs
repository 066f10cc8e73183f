//! The one nftables table, `inet rustiot-networks`: computed whole from what is recorded, replaced in one transaction.
//!
//! It never reads or changes another table. What it decides on is what comes from or goes to our bridges; other packets
//! pass, except that forwarding which the engine had to switch on stays closed to them. Called by `networks`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nlink::{
    Connection, Nftables,
    netlink::{
        nftables::{
            BaseChain, Chain, CtState, CtStatus, Family, FibFlags, Field, FilterHook, Match, NatHook,
            NatStatement, Policy, Priority, Rule, Transaction,
        },
        types::route::RouteType,
    },
};

use crate::record::{BRIDGE_PREFIX, Endpoint, Endpoints, HostPort, Network, Networks, Protocol, Published};

/// The table's name.
pub(crate) const TABLE: &str = "rustiot-networks";
const FAMILY: Family = Family::Inet;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;
/// Neighbour solicitation and advertisement.
const ICMPV6_NEIGHBOURS: [u8; 2] = [135, 136];
/// Where the resolver listens.
pub(crate) const DNS: u16 = 53;

/// The table could not be replaced. The one before is still in force.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the nftables table inet {TABLE}; is nf_tables with NAT in the kernel?")]
pub struct Error {
    action: &'static str,
    #[source]
    source: Box<nlink::Error>,
}

fn because(action: &'static str) -> impl Fn(nlink::Error) -> Error {
    move |source| Error { action, source: Box::new(source) }
}

/// A connection to nf_tables.
pub(crate) struct Firewall {
    connection: Connection<Nftables>,
    /// The kernel's count of changes after ours; none before the first, and after one that failed.
    generation: Option<u32>,
}

/// What the rules follow from.
pub(crate) struct Facts<'a> {
    pub networks: &'a Networks,
    pub endpoints: &'a Endpoints,
    /// Networks whose gateway answers DNS.
    pub served: &'a BTreeSet<String>,
    /// IPv4 that is not of our networks is not forwarded.
    pub closed: bool,
    /// Nor is IPv6.
    pub closed6: bool,
}

impl Firewall {
    pub(crate) fn open() -> Result<Firewall, Error> {
        let connection = Connection::<Nftables>::new().map_err(because("reach"))?;
        Ok(Firewall { connection, generation: None })
    }

    /// Whether somebody, not necessarily at our table, has changed rules since [`apply`](Self::apply).
    pub(crate) async fn is_changed(&self) -> Result<bool, Error> {
        let now = self.connection.generation().await.map_err(because("look for"))?;
        Ok(self.generation != Some(now))
    }

    /// Replaces the table by what the records say.
    pub(crate) async fn apply(&mut self, facts: &Facts<'_>) -> Result<(), Error> {
        // One change is one step of the count. If another one comes between, ours is simply made again.
        let before = self.connection.generation().await.map_err(because("look for"))?;
        self.generation = None;
        let mut batch = self.without().await?.add_table(TABLE, FAMILY);
        for chain in chains().map_err(because("describe"))? {
            batch = batch.add_chain(chain);
        }
        for rule in rules(facts) {
            batch = batch.add_rule(rule);
        }
        batch.commit(&self.connection).await.map_err(because("replace"))?;
        self.generation = Some(before.wrapping_add(1).max(1));
        Ok(())
    }

    /// Removes the table.
    pub(crate) async fn remove(&mut self) -> Result<(), Error> {
        self.generation = None;
        self.connection.del_table_if_exists(TABLE, FAMILY).await.map_err(because("remove")).map(drop)
    }

    /// A transaction that begins by removing the table, if there is one.
    async fn without(&self) -> Result<Transaction, Error> {
        let tables = self.connection.list_tables_in(FAMILY).await.map_err(because("look for"))?;
        let batch = self.connection.transaction();
        Ok(if tables.iter().any(|table| table.name == TABLE) {
            batch.del_table(TABLE, FAMILY)
        } else {
            batch
        })
    }
}

const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";
const FORWARD: &str = "forward";
const INPUT: &str = "input";

fn chains() -> nlink::Result<Vec<Chain>> {
    let base = |name, base: BaseChain| -> nlink::Result<Chain> {
        Ok(Chain::new(TABLE, name)?.family(FAMILY).base(base.policy(Policy::Accept)))
    };
    Ok(vec![
        base(PREROUTING, BaseChain::nat(NatHook::Prerouting, Priority::DstNat))?,
        base(OUTPUT, BaseChain::nat(NatHook::Output, Priority::DstNat))?,
        base(POSTROUTING, BaseChain::nat(NatHook::Postrouting, Priority::SrcNat))?,
        base(FORWARD, BaseChain::filter(FilterHook::Forward, Priority::Filter))?,
        base(INPUT, BaseChain::filter(FilterHook::Input, Priority::Filter))?,
    ])
}

fn rule(chain: &str) -> Rule {
    Rule::new(TABLE, chain).family(FAMILY)
}

fn port(rule: Rule, protocol: Protocol, port: u16) -> Rule {
    match protocol {
        Protocol::Tcp => rule.match_tcp_dport(port),
        Protocol::Udp => rule.match_udp_dport(port),
    }
}

fn known(chain: &str) -> Rule {
    rule(chain).match_ct_state(CtState::ESTABLISHED | CtState::RELATED)
}

/// All rules, in order. Pure.
fn rules(facts: &Facts<'_>) -> Vec<Rule> {
    let Facts { networks, endpoints, served, closed, closed6 } = *facts;
    let mut rules = Vec::new();
    let published = || {
        endpoints
            .endpoints
            .iter()
            .filter_map(|endpoint| networks.networks.get(&endpoint.network).map(|n| (n, endpoint)))
    };

    // The kernel lets nothing from ::1 out at another link: what asks there hears at once that nobody listens.
    if networks.networks.values().any(|network| network.ipv6.is_some()) {
        rules.push(rule(OUTPUT).match_daddr_v6(Ipv6Addr::LOCALHOST, 128).accept());
    }
    for (_, endpoint) in published() {
        for port in &endpoint.published {
            for chain in [PREROUTING, OUTPUT] {
                rules.extend(ends(endpoint, port).map(|to| translate(chain, to, port)));
            }
        }
    }

    for network in networks.networks.values() {
        rules.extend(sources(network));
    }

    // Forward. Answers and what belongs to a connection; what was published; the network itself; then nothing between
    // networks, out for all but internal networks, and nothing in.
    rules.push(known(FORWARD).accept());
    for (network, endpoint) in published() {
        for published in &endpoint.published {
            for to in ends(endpoint, published) {
                let inward =
                    daddr(rule(FORWARD).match_oif(&network.bridge).match_ct_status(CtStatus::DST_NAT), to);
                rules.push(port(inward, published.protocol, published.container_port).accept());
            }
        }
    }
    for network in networks.networks.values() {
        rules.push(rule(FORWARD).match_iif(&network.bridge).match_oif(&network.bridge).accept());
    }
    rules.push(rule(FORWARD).match_iif_prefix(BRIDGE_PREFIX).match_oif_prefix(BRIDGE_PREFIX).drop());
    for network in networks.networks.values().filter(|network| !network.internal) {
        let outward = rule(FORWARD).match_iif(&network.bridge);
        rules.push(outward.match_saddr_v4(network.subnet.network(), network.subnet.prefix()).accept());
        if let Some(ipv6) = network.ipv6 {
            let outward = rule(FORWARD).match_iif(&network.bridge);
            rules.push(outward.match_saddr_v6(ipv6.subnet.network(), ipv6.subnet.prefix()).accept());
        }
    }
    rules.push(rule(FORWARD).match_iif_prefix(BRIDGE_PREFIX).drop());
    rules.push(rule(FORWARD).match_oif_prefix(BRIDGE_PREFIX).drop());
    if closed {
        rules.push(rule(FORWARD).then(Match::eq(Field::NfProto, NFPROTO_IPV4)).drop());
    }
    if closed6 {
        rules.push(rule(FORWARD).then(Match::eq(Field::NfProto, NFPROTO_IPV6)).drop());
    }

    // The host itself: answers, ping of the gateway, what the network allows; nothing else.
    rules.push(known(INPUT).match_iif_prefix(BRIDGE_PREFIX).accept());
    for network in networks.networks.values() {
        let to_gateway = || {
            rule(INPUT)
                .match_iif(&network.bridge)
                .match_saddr_v4(network.subnet.network(), network.subnet.prefix())
                .match_daddr_v4(network.gateway, 32)
        };
        // At its link-local address the host is closed, but for the neighbours' questions where it is.
        let to_gateway6 = || {
            network.ipv6.map(|ipv6| {
                rule(INPUT)
                    .match_iif(&network.bridge)
                    .match_saddr_v6(ipv6.subnet.network(), ipv6.subnet.prefix())
                    .match_daddr_v6(ipv6.gateway, 128)
            })
        };
        rules.push(to_gateway().match_icmp_type(ICMP_ECHO_REQUEST).accept());
        if let Some(to_gateway) = to_gateway6() {
            let neighbours = |kind| rule(INPUT).match_iif(&network.bridge).match_icmpv6_type(kind).accept();
            rules.extend(ICMPV6_NEIGHBOURS.map(neighbours));
            rules.push(to_gateway.match_icmpv6_type(ICMPV6_ECHO_REQUEST).accept());
        }
        let mut open = network.host_ports.clone();
        if served.contains(&network.name) {
            open.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| HostPort { protocol, port: DNS }));
        }
        for HostPort { protocol, port: number } in open {
            for to in std::iter::once(to_gateway()).chain(to_gateway6()) {
                rules.push(port(to, protocol, number).accept());
            }
        }
    }
    // What claims to come from or go to the loopback gets no answer.
    rules.push(
        rule(INPUT).match_iif_prefix(BRIDGE_PREFIX).match_daddr_v4(Ipv4Addr::new(127, 0, 0, 0), 8).drop(),
    );
    rules.push(
        rule(INPUT).match_iif_prefix(BRIDGE_PREFIX).match_saddr_v4(Ipv4Addr::new(127, 0, 0, 0), 8).drop(),
    );
    rules.push(rule(INPUT).match_iif_prefix(BRIDGE_PREFIX).reject());
    rules
}

/// The container's addresses to which a published port leads.
fn ends(endpoint: &Endpoint, published: &Published) -> impl Iterator<Item = IpAddr> {
    let (ipv4, ipv6) = published.families(endpoint.address6.is_some());
    let v4 = ipv4.then_some(IpAddr::V4(endpoint.address));
    v4.into_iter().chain(endpoint.address6.filter(|_| ipv6).map(IpAddr::V6))
}

fn daddr(rule: Rule, address: IpAddr) -> Rule {
    match address {
        IpAddr::V4(address) => rule.match_daddr_v4(address, 32),
        IpAddr::V6(address) => rule.match_daddr_v6(address, 128),
    }
}

/// A published port: to the container, whoever asks for one of the host's own addresses. The source stays.
fn translate(chain: &str, to: IpAddr, published: &Published) -> Rule {
    let family = if to.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
    let matching = rule(chain).match_fib_type(FibFlags::DADDR, RouteType::Local);
    let matching = match published.host_address.filter(|address| !address.is_unspecified()) {
        Some(address) => daddr(matching, address),
        None => matching.then(Match::eq(Field::NfProto, family)),
    };
    port(matching, published.protocol, published.host_port)
        .nat(NatStatement::dnat(to).port(published.container_port))
}

/// Where a source address is replaced by the host's, because no answer could come back otherwise.
fn sources(network: &Network) -> Vec<Rule> {
    let (subnet, prefix) = (network.subnet.network(), network.subnet.prefix());
    let from = || rule(POSTROUTING).match_saddr_v4(subnet, prefix);
    let from6 =
        || network.ipv6.map(|v6| rule(POSTROUTING).match_saddr_v6(v6.subnet.network(), v6.subnet.prefix()));
    let to_own = || rule(POSTROUTING).match_oif(&network.bridge);
    let mut rules = vec![
        // A container that asks for a published port of its own network.
        from()
            .match_oif(&network.bridge)
            .match_ct_status(CtStatus::DST_NAT)
            .match_daddr_v4(subnet, prefix)
            .masquerade(),
        // The host's own 127.0.0.1:PORT.
        to_own().match_saddr_v4(Ipv4Addr::new(127, 0, 0, 0), 8).masquerade(),
    ];
    if let (Some(from), Some(ipv6)) = (from6(), network.ipv6) {
        rules.push(
            from.match_oif(&network.bridge)
                .match_ct_status(CtStatus::DST_NAT)
                .match_daddr_v6(ipv6.subnet.network(), ipv6.subnet.prefix())
                .masquerade(),
        );
    }
    if !network.internal {
        let out = std::iter::once(from()).chain(from6());
        rules.extend(out.map(|from| from.match_oif_not(&network.bridge).masquerade()));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_reads_as_it_is_meant() {
        let network = |name: &str, subnet: &str, ipv6: Option<&str>, internal| Network {
            name: name.into(),
            id: String::new(),
            created: Default::default(),
            bridge: format!("rib-{name}"),
            subnet: subnet.parse().unwrap(),
            gateway: subnet.parse::<crate::Subnet>().unwrap().first_host(),
            ipv6: ipv6.map(|subnet| {
                let subnet: crate::Subnet6 = subnet.parse().unwrap();
                crate::Network6 { subnet, gateway: subnet.first_host() }
            }),
            internal,
            host_ports: BTreeSet::from([HostPort { protocol: Protocol::Udp, port: 123 }]),
            labels: Default::default(),
            options: Default::default(),
        };
        let networks = Networks {
            networks: [
                network("a", "172.17.0.0/16", None, false),
                network("b", "172.18.0.0/16", None, true),
                network("c", "172.19.0.0/16", Some("fd00:1::/64"), false),
                network("d", "172.20.0.0/16", Some("fd00:2::/64"), true),
            ]
            .map(|network| (network.name.clone(), network))
            .into(),
            unique_local: None,
        };
        let endpoint = Endpoint {
            container: "c".into(),
            id: String::new(),
            namespace: "/none".into(),
            network: "a".into(),
            address: Ipv4Addr::new(172, 17, 0, 2),
            address6: None,
            mac: [2, 0, 0, 0, 0, 1],
            link: "riv-c".into(),
            interface: "eth0".into(),
            aliases: Vec::new(),
            servers: Vec::new(),
            published: BTreeSet::from([Published {
                protocol: Protocol::Tcp,
                host_address: None,
                host_port: 8080,
                container_port: 80,
            }]),
        };
        let port = |host_address: Option<&str>, host_port| Published {
            protocol: Protocol::Udp,
            host_address: host_address.map(|address| address.parse().unwrap()),
            host_port,
            container_port: 9,
        };
        let dual = Endpoint {
            network: "c".into(),
            address: Ipv4Addr::new(172, 19, 0, 2),
            address6: Some("fd00:1::2".parse().unwrap()),
            published: BTreeSet::from([
                port(None, 1),
                port(Some("0.0.0.0"), 2),
                port(Some("::"), 3),
                port(Some("2001:db8::5"), 4),
            ]),
            ..endpoint.clone()
        };
        let endpoints = Endpoints { endpoints: vec![endpoint, dual], ..Default::default() };
        let served = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
        let facts = Facts {
            networks: &networks,
            endpoints: &endpoints,
            served: &served,
            closed: true,
            closed6: true,
        };
        let text: Vec<String> = rules(&facts).iter().map(|rule| rule.nft_syntax().unwrap()).collect();
        let expected = r#"ip6 daddr ::1 accept
fib daddr type local meta nfproto ipv4 tcp dport 8080 dnat ip to 172.17.0.2:80
fib daddr type local meta nfproto ipv4 tcp dport 8080 dnat ip to 172.17.0.2:80
fib daddr type local meta nfproto ipv4 udp dport 1 dnat ip to 172.19.0.2:9
fib daddr type local meta nfproto ipv6 udp dport 1 dnat ip6 to [fd00:1::2]:9
fib daddr type local meta nfproto ipv4 udp dport 1 dnat ip to 172.19.0.2:9
fib daddr type local meta nfproto ipv6 udp dport 1 dnat ip6 to [fd00:1::2]:9
fib daddr type local meta nfproto ipv4 udp dport 2 dnat ip to 172.19.0.2:9
fib daddr type local meta nfproto ipv4 udp dport 2 dnat ip to 172.19.0.2:9
fib daddr type local meta nfproto ipv6 udp dport 3 dnat ip6 to [fd00:1::2]:9
fib daddr type local meta nfproto ipv6 udp dport 3 dnat ip6 to [fd00:1::2]:9
fib daddr type local ip6 daddr 2001:db8::5 udp dport 4 dnat ip6 to [fd00:1::2]:9
fib daddr type local ip6 daddr 2001:db8::5 udp dport 4 dnat ip6 to [fd00:1::2]:9
ip saddr 172.17.0.0/16 oifname "rib-a" ct status dnat ip daddr 172.17.0.0/16 masquerade
oifname "rib-a" ip saddr 127.0.0.0/8 masquerade
ip saddr 172.17.0.0/16 oifname != "rib-a" masquerade
ip saddr 172.18.0.0/16 oifname "rib-b" ct status dnat ip daddr 172.18.0.0/16 masquerade
oifname "rib-b" ip saddr 127.0.0.0/8 masquerade
ip saddr 172.19.0.0/16 oifname "rib-c" ct status dnat ip daddr 172.19.0.0/16 masquerade
oifname "rib-c" ip saddr 127.0.0.0/8 masquerade
ip6 saddr fd00:1::/64 oifname "rib-c" ct status dnat ip6 daddr fd00:1::/64 masquerade
ip saddr 172.19.0.0/16 oifname != "rib-c" masquerade
ip6 saddr fd00:1::/64 oifname != "rib-c" masquerade
ip saddr 172.20.0.0/16 oifname "rib-d" ct status dnat ip daddr 172.20.0.0/16 masquerade
oifname "rib-d" ip saddr 127.0.0.0/8 masquerade
ip6 saddr fd00:2::/64 oifname "rib-d" ct status dnat ip6 daddr fd00:2::/64 masquerade
ct state established,related accept
oifname "rib-a" ct status dnat ip daddr 172.17.0.2 tcp dport 80 accept
oifname "rib-c" ct status dnat ip daddr 172.19.0.2 udp dport 9 accept
oifname "rib-c" ct status dnat ip6 daddr fd00:1::2 udp dport 9 accept
oifname "rib-c" ct status dnat ip daddr 172.19.0.2 udp dport 9 accept
oifname "rib-c" ct status dnat ip6 daddr fd00:1::2 udp dport 9 accept
oifname "rib-c" ct status dnat ip6 daddr fd00:1::2 udp dport 9 accept
iifname "rib-a" oifname "rib-a" accept
iifname "rib-b" oifname "rib-b" accept
iifname "rib-c" oifname "rib-c" accept
iifname "rib-d" oifname "rib-d" accept
iifname "rib-*" oifname "rib-*" drop
iifname "rib-a" ip saddr 172.17.0.0/16 accept
iifname "rib-c" ip saddr 172.19.0.0/16 accept
iifname "rib-c" ip6 saddr fd00:1::/64 accept
iifname "rib-*" drop
oifname "rib-*" drop
meta nfproto ipv4 drop
meta nfproto ipv6 drop
ct state established,related iifname "rib-*" accept
iifname "rib-a" ip saddr 172.17.0.0/16 ip daddr 172.17.0.1 icmp type echo-request accept
iifname "rib-a" ip saddr 172.17.0.0/16 ip daddr 172.17.0.1 tcp dport 53 accept
iifname "rib-a" ip saddr 172.17.0.0/16 ip daddr 172.17.0.1 udp dport 53 accept
iifname "rib-a" ip saddr 172.17.0.0/16 ip daddr 172.17.0.1 udp dport 123 accept
iifname "rib-b" ip saddr 172.18.0.0/16 ip daddr 172.18.0.1 icmp type echo-request accept
iifname "rib-b" ip saddr 172.18.0.0/16 ip daddr 172.18.0.1 udp dport 123 accept
iifname "rib-c" ip saddr 172.19.0.0/16 ip daddr 172.19.0.1 icmp type echo-request accept
iifname "rib-c" icmpv6 type nd-neighbor-solicit accept
iifname "rib-c" icmpv6 type nd-neighbor-advert accept
iifname "rib-c" ip6 saddr fd00:1::/64 ip6 daddr fd00:1::1 icmpv6 type echo-request accept
iifname "rib-c" ip saddr 172.19.0.0/16 ip daddr 172.19.0.1 tcp dport 53 accept
iifname "rib-c" ip6 saddr fd00:1::/64 ip6 daddr fd00:1::1 tcp dport 53 accept
iifname "rib-c" ip saddr 172.19.0.0/16 ip daddr 172.19.0.1 udp dport 53 accept
iifname "rib-c" ip6 saddr fd00:1::/64 ip6 daddr fd00:1::1 udp dport 53 accept
iifname "rib-c" ip saddr 172.19.0.0/16 ip daddr 172.19.0.1 udp dport 123 accept
iifname "rib-c" ip6 saddr fd00:1::/64 ip6 daddr fd00:1::1 udp dport 123 accept
iifname "rib-d" ip saddr 172.20.0.0/16 ip daddr 172.20.0.1 icmp type echo-request accept
iifname "rib-d" icmpv6 type nd-neighbor-solicit accept
iifname "rib-d" icmpv6 type nd-neighbor-advert accept
iifname "rib-d" ip6 saddr fd00:2::/64 ip6 daddr fd00:2::1 icmpv6 type echo-request accept
iifname "rib-d" ip saddr 172.20.0.0/16 ip daddr 172.20.0.1 udp dport 123 accept
iifname "rib-d" ip6 saddr fd00:2::/64 ip6 daddr fd00:2::1 udp dport 123 accept
iifname "rib-*" ip daddr 127.0.0.0/8 drop
iifname "rib-*" ip saddr 127.0.0.0/8 drop
iifname "rib-*" reject"#;
        assert_eq!(text.join("\n"), expected);
    }
}
