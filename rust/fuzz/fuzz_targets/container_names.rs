//! Questions of a container at its network's gateway, and what the host's servers say to them. Nothing panics; an answer
//! has the question's number and a length that the asker takes; strangers get none, and from internal networks nothing
//! is asked of others.
//!
//! The first byte says who asks and how, the rest is the message.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use rustiot_network::{
    DEFAULT_NETWORK, Endpoint, Network, Network6, Reply, Subnet, Subnet6, View, accepted, reply,
};

const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn network(name: &str, subnet: &str, subnet6: Option<&str>, internal: bool) -> (String, Network) {
    let subnet: Subnet = subnet.parse().expect("a subnet");
    let network = Network {
        name: name.into(),
        id: String::new(),
        created: Default::default(),
        bridge: format!("rib-{name}"),
        subnet,
        gateway: subnet.first_host(),
        ipv6: subnet6.map(|subnet| {
            let subnet: Subnet6 = subnet.parse().expect("a subnet");
            Network6 { subnet, gateway: subnet.first_host() }
        }),
        internal,
        host_ports: BTreeSet::new(),
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
    };
    (name.into(), network)
}

fn endpoint(container: &str, network: &str, address: [u8; 4], six: bool, aliases: &[&str]) -> Endpoint {
    Endpoint {
        container: container.into(),
        id: String::new(),
        namespace: "/none".into(),
        network: network.into(),
        address: address.into(),
        address6: six.then(|| Ipv6Addr::new(0xfd00, 0x12, 0, 0, 0, 0, 0, address[3].into())),
        mac: [0; 6],
        link: String::new(),
        interface: "eth0".into(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        servers: Vec::new(),
        published: BTreeSet::new(),
    }
}

static VIEW: LazyLock<View> = LazyLock::new(|| View {
    networks: [
        network(DEFAULT_NETWORK, "172.17.0.0/16", None, false),
        network("n", "172.18.0.0/16", Some("fd00:12::/64"), false),
        network("i", "172.19.0.0/16", None, true),
    ]
    .into(),
    endpoints: vec![
        endpoint("1", DEFAULT_NETWORK, [172, 17, 0, 2], false, &["one"]),
        endpoint("2", "n", [172, 18, 0, 2], true, &["a", "web"]),
        endpoint("3", "n", [172, 18, 0, 3], true, &["b", "db"]),
        endpoint("4", "i", [172, 19, 0, 2], false, &["c"]),
    ],
});
const ASKERS: [(&str, IpAddr); 4] = [
    (DEFAULT_NETWORK, IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2))),
    ("n", IpAddr::V6(Ipv6Addr::new(0xfd00, 0x12, 0, 0, 0, 0, 0, 2))),
    ("i", IpAddr::V4(Ipv4Addr::new(172, 19, 0, 2))),
    ("n", STRANGER),
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [how, message @ ..] = bytes else { return };
    let (network, from) = ASKERS[usize::from(how & 3)];
    let stream = how & 4 != 0;
    match reply(&VIEW, network, from, message, stream) {
        Reply::Answer(answer) => {
            assert_ne!(from, STRANGER, "a stranger was answered");
            assert_eq!(answer.get(..2), message.get(..2));
            assert!(answer.get(2).is_some_and(|flags| flags & 0x80 != 0));
            assert!(stream || answer.len() <= 1232, "{} bytes", answer.len());
        }
        Reply::Forward(_) => {
            assert!(matches!(network, DEFAULT_NETWORK | "n"), "an internal network asks others");
            assert_ne!(from, STRANGER, "a stranger's question is passed on");
        }
        Reply::Nothing => {}
    }
    // The same bytes as a server's answer, to the question in their first half and to themselves.
    let (asked, _) = message.split_at(message.len() / 2);
    for asked in [asked, message] {
        if let Some(said) = accepted(message, asked, 0x1234) {
            assert_eq!(said.get(..2), Some(&[0x12, 0x34][..]));
            assert_eq!(said.get(2..), message.get(2..));
        }
    }
});
