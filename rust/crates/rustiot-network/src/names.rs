//! What a container's question for a name is answered: pure, no clock, no sockets. The wire format is the crate
//! `domain`'s.
//!
//! A container sees the names of its own user networks and of no other. The default network has no names, as with
//! Docker. Never answers who is not in the network. Called by `resolver`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, PoisonError, RwLock},
};

use domain::{
    base::{
        Message, MessageBuilder, Name, ToName,
        iana::{Class, Opcode, Rcode, Rtype},
        message_builder::AnswerBuilder,
        name::ToLabelIter,
    },
    rdata::{A, Aaaa, Ptr},
};

use crate::record::{self, DEFAULT_NETWORK, Endpoint, Network};

/// Short: a container that is started again may have another address.
const TTL: u32 = 5;
/// What any asker takes over UDP.
const UDP: usize = 512;
/// The most that is sent in one piece to who says that it takes more.
const UDP_MAX: usize = 1232;

/// Networks and who is in them, at one moment.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// By name.
    pub networks: BTreeMap<String, Network>,
    /// All of them.
    pub endpoints: Vec<Endpoint>,
}

/// The view of now, for all who answer.
#[derive(Debug, Default)]
pub(crate) struct Names {
    view: RwLock<Arc<View>>,
}

impl Names {
    pub(crate) fn set(&self, networks: &record::Networks, endpoints: &record::Endpoints) {
        let view = View { networks: networks.networks.clone(), endpoints: endpoints.endpoints.clone() };
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    pub(crate) fn now(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What to do with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: it is none, or it comes from nobody of ours.
    Nothing,
    /// Send this.
    Answer(Vec<u8>),
    /// Ask these servers, or the host's where there are none.
    Forward(Vec<IpAddr>),
}

/// Whom a question is about.
enum Subject {
    /// A name, without regard to case and without its last dot.
    Name(String),
    /// The owner of an address.
    Address(IpAddr),
}

impl View {
    /// Who asks from an address in a network.
    pub(crate) fn asker(&self, network: &str, from: IpAddr) -> Option<&Endpoint> {
        self.endpoints.iter().find(|e| e.network == network && has(e, from))
    }
}

fn has(endpoint: &Endpoint, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => endpoint.address == address,
        IpAddr::V6(address) => endpoint.address6 == Some(address),
    }
}

/// What `query`, which came from an address in a network, is answered. `stream`: over TCP, where any length is taken.
#[must_use]
pub fn reply(view: &View, network: &str, from: IpAddr, query: &[u8], stream: bool) -> Reply {
    let Some(asker) = view.asker(network, from) else { return Reply::Nothing };
    let Ok(query) = Message::from_octets(query) else { return Reply::Nothing };
    if query.header().qr() {
        return Reply::Nothing;
    }
    let answer = Answering { query: &query, stream };
    if query.header().opcode() != Opcode::QUERY {
        return answer.refuse(Rcode::NOTIMP);
    }
    let Ok(question) = query.sole_question() else { return answer.refuse(Rcode::FORMERR) };
    let own: Vec<&Endpoint> = view.endpoints.iter().filter(|e| e.container == asker.container).collect();
    let (name, single) = text(question.qname());
    if question.qclass() == Class::IN {
        let subject = match (question.qtype(), reversed(&name)) {
            (Rtype::PTR, Some(address)) => Subject::Address(address),
            _ => Subject::Name(name),
        };
        let (named, ours) = known(view, &own, &subject);
        match subject {
            Subject::Address(_) if ours => return answer.pointer(&named),
            Subject::Name(_) if ours => return answer.addresses(question.qtype(), &named),
            Subject::Name(_) if single && matches!(question.qtype(), Rtype::A | Rtype::AAAA) => {
                // No server on the Internet knows a name without a dot; one of the local network is asked for by its
                // domain, which is in the search list.
                return answer.refuse(Rcode::NXDOMAIN);
            }
            Subject::Address(_) | Subject::Name(_) => {}
        }
    }
    let way_out = own.iter().any(|e| view.networks.get(&e.network).is_some_and(|n| !n.internal));
    if !way_out {
        return answer.refuse(Rcode::REFUSED);
    }
    Reply::Forward(asker.servers.clone())
}

/// A question that nobody could answer.
#[must_use]
pub(crate) fn failed(query: &[u8], rcode: Rcode) -> Option<Vec<u8>> {
    let query = Message::from_octets(query).ok()?;
    match (Answering { query: &query, stream: false }).refuse(rcode) {
        Reply::Answer(bytes) => Some(bytes),
        Reply::Nothing | Reply::Forward(_) => None,
    }
}

/// What a server said, if it is an answer to the question that it was asked, with the number that the container gave it.
#[must_use]
pub fn accepted(answer: &[u8], asked: &[u8], number: u16) -> Option<Vec<u8>> {
    let asked = Message::from_octets(asked).ok()?;
    let mut answer = Message::from_octets(answer.to_vec()).ok()?;
    // A server that refuses may leave the question out.
    let empty = answer.header_counts().qdcount() == 0
        && answer.header().qr()
        && answer.header().id() == asked.header().id()
        && answer.header().rcode() != Rcode::NOERROR;
    if !empty && !answer.is_answer(&asked) {
        return None;
    }
    answer.header_mut().set_id(number);
    Some(answer.into_octets())
}

/// A name in lower case, and whether it has a single label.
fn text(name: &impl ToLabelIter) -> (String, bool) {
    let mut out = String::new();
    let mut labels = 0_usize;
    for label in name.iter_labels().filter(|label| !label.is_root()) {
        if labels > 0 {
            out.push('.');
        }
        out.push_str(&String::from_utf8_lossy(label.as_slice()).to_ascii_lowercase());
        labels += 1;
    }
    (out, labels == 1)
}

/// The address whose owner is asked for by `4.3.2.1.in-addr.arpa`, or by 32 digits before `.ip6.arpa`.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".ip6.arpa") {
        let mut address = 0_u128;
        let mut count = 0_u32;
        for label in digits.rsplit('.') {
            let mut one = label.chars();
            let (Some(digit), None) = (one.next().and_then(|c| c.to_digit(16)), one.next()) else {
                return None;
            };
            address = address << 4 | u128::from(digit);
            count = count.saturating_add(1);
        }
        return (count == 32).then(|| Ipv6Addr::from(address).into());
    }
    let address: Ipv4Addr = name.strip_suffix(".in-addr.arpa")?.parse().ok()?;
    let [a, b, c, d] = address.octets();
    Some(Ipv4Addr::new(d, c, b, a).into())
}

/// The endpoints that a subject means, and whether it is ours to say. Of each of the asker's user networks.
fn known<'a>(view: &'a View, own: &[&Endpoint], subject: &Subject) -> (Vec<&'a Endpoint>, bool) {
    let mut named = Vec::new();
    let mut ours = false;
    for mine in own.iter().filter(|mine| mine.network != DEFAULT_NETWORK) {
        let Some(network) = view.networks.get(&mine.network) else { continue };
        let suffix = network.name.to_ascii_lowercase();
        let in_it = view.endpoints.iter().filter(|e| e.network == mine.network);
        match subject {
            Subject::Address(address) => {
                ours |= match address {
                    IpAddr::V4(address) => network.subnet.contains(*address),
                    IpAddr::V6(address) => network.ipv6.is_some_and(|ipv6| ipv6.subnet.contains(*address)),
                };
                named.extend(in_it.filter(|e| has(e, *address)));
            }
            Subject::Name(name) => {
                let bare = name.strip_suffix(&suffix).and_then(|bare| bare.strip_suffix('.'));
                let is = |alias: &String| {
                    alias.eq_ignore_ascii_case(name)
                        || bare.is_some_and(|bare| alias.eq_ignore_ascii_case(bare))
                };
                named.extend(in_it.filter(|e| e.aliases.iter().any(is)));
                ours |= !named.is_empty();
            }
        }
    }
    (named, ours)
}

struct Answering<'a> {
    query: &'a Message<&'a [u8]>,
    stream: bool,
}

impl Answering<'_> {
    fn start(&self, rcode: Rcode) -> AnswerBuilder<Vec<u8>> {
        let mut builder = MessageBuilder::new_vec().start_error(self.query, rcode);
        builder.header_mut().set_ra(true);
        builder
    }

    fn refuse(&self, rcode: Rcode) -> Reply {
        if self.query.sole_question().is_ok() {
            return Reply::Answer(self.start(rcode).finish());
        }
        // Several questions are not repeated: their names are written out in full, which is longer than what was asked.
        let asked = self.query.header();
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(asked.id());
        header.set_qr(true);
        header.set_opcode(asked.opcode());
        header.set_rd(asked.rd());
        header.set_ra(true);
        header.set_rcode(rcode);
        Reply::Answer(builder.finish())
    }

    fn addresses(&self, kind: Rtype, named: &[&Endpoint]) -> Reply {
        let mut builder = self.start(Rcode::NOERROR);
        let Ok(question) = self.query.sole_question() else { return self.refuse(Rcode::FORMERR) };
        // A name of ours has addresses and nothing else: that is an answer without records, and no error.
        if matches!(kind, Rtype::A | Rtype::AAAA | Rtype::ANY) {
            let told = self.query.opt().map_or(0, |opt| usize::from(opt.udp_payload_size()));
            if !self.stream {
                builder.set_push_limit(told.clamp(UDP, UDP_MAX));
            }
            // Who asks for one of several gets them in turn.
            let first = usize::from(self.query.header().id()).checked_rem(named.len()).unwrap_or(0);
            for endpoint in named.iter().cycle().skip(first).take(named.len()) {
                let ipv4 = (kind != Rtype::AAAA).then_some(endpoint.address);
                let ipv6 = endpoint.address6.filter(|_| kind != Rtype::A);
                let name = question.qname();
                let fits = ipv4.is_none_or(|a| builder.push((name, Class::IN, TTL, A::new(a))).is_ok())
                    && ipv6.is_none_or(|a| builder.push((name, Class::IN, TTL, Aaaa::new(a))).is_ok());
                if !fits {
                    builder.header_mut().set_tc(true);
                    break;
                }
            }
        }
        Reply::Answer(builder.finish())
    }

    fn pointer(&self, named: &[&Endpoint]) -> Reply {
        let name = named.iter().find_map(|endpoint| {
            let own = endpoint.aliases.first()?;
            format!("{own}.{}.", endpoint.network).parse::<Name<Vec<u8>>>().ok()
        });
        let (Some(name), Ok(question)) = (name, self.query.sole_question()) else {
            return self.refuse(Rcode::NXDOMAIN);
        };
        let mut builder = self.start(Rcode::NOERROR);
        if builder.push((question.qname().to_vec(), Class::IN, TTL, Ptr::new(name))).is_err() {
            return self.refuse(Rcode::SERVFAIL);
        }
        Reply::Answer(builder.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn network(name: &str, subnet: &str, ipv6: Option<&str>, internal: bool) -> (String, Network) {
        let subnet: crate::Subnet = subnet.parse().unwrap();
        let ipv6 = ipv6.map(|subnet| {
            let subnet: crate::Subnet6 = subnet.parse().unwrap();
            crate::Network6 { subnet, gateway: subnet.first_host() }
        });
        let network = Network {
            name: name.into(),
            id: String::new(),
            created: Default::default(),
            bridge: format!("rib-{name}"),
            subnet,
            gateway: subnet.first_host(),
            ipv6,
            internal,
            host_ports: BTreeSet::new(),
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
        };
        (name.into(), network)
    }

    fn endpoint(container: &str, network: &str, address: [u8; 4], aliases: &[&str]) -> Endpoint {
        Endpoint {
            container: container.into(),
            id: String::new(),
            namespace: "/none".into(),
            network: network.into(),
            address: address.into(),
            // As in the network of IPv6 below; by the last byte.
            address6: (network == "shop").then(|| [0xfd00, 0, 0, 1, 0, 0, 0, u16::from(address[3])].into()),
            mac: [0; 6],
            link: String::new(),
            interface: "eth0".into(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            servers: Vec::new(),
            published: BTreeSet::new(),
        }
    }

    fn view() -> View {
        View {
            networks: [
                network(DEFAULT_NETWORK, "172.17.0.0/16", None, false),
                network("shop", "172.18.0.0/16", Some("fd00:0:0:1::/64"), false),
                network("inner", "172.19.0.0/16", None, true),
            ]
            .into(),
            endpoints: vec![
                endpoint("1", DEFAULT_NETWORK, [172, 17, 0, 2], &["one"]),
                endpoint("2", DEFAULT_NETWORK, [172, 17, 0, 3], &["two"]),
                endpoint("3", "shop", [172, 18, 0, 2], &["shop-web-1", "web"]),
                endpoint("4", "shop", [172, 18, 0, 3], &["shop-db-1", "db"]),
                endpoint("5", "shop", [172, 18, 0, 4], &["shop-db-2", "DB"]),
                endpoint("4", "inner", [172, 19, 0, 2], &["shop-db-1", "store"]),
                endpoint("6", "inner", [172, 19, 0, 3], &["alone"]),
            ],
        }
    }

    fn query(name: &str, kind: Rtype) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_id(8);
        builder.header_mut().set_rd(true);
        builder.push((name.parse::<Name<Vec<u8>>>().unwrap(), kind)).unwrap();
        builder.finish()
    }

    #[test]
    fn several_questions_at_once_are_refused_in_few_bytes() {
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_id(8);
        let long = format!("{}.example", vec!["a".repeat(60); 3].join("."));
        for _ in 0..20 {
            builder.push((long.parse::<Name<Vec<u8>>>().unwrap(), Rtype::A)).unwrap();
        }
        let asked = builder.finish();
        let from = IpAddr::from([172, 17, 0, 2]);
        let Reply::Answer(answer) = reply(&view(), DEFAULT_NETWORK, from, &asked, false) else {
            panic!("no answer")
        };
        assert_eq!(answer.len(), 12, "the header alone");
        let header = Message::from_octets(answer).unwrap().header();
        assert!(header.qr() && header.id() == 8 && header.rcode() == Rcode::FORMERR, "{header:?}");
    }

    /// What is answered: the code and the addresses, or where the question goes.
    fn ask(
        network: &str,
        from: impl Into<IpAddr>,
        name: &str,
        kind: Rtype,
    ) -> Result<(Rcode, Vec<String>), Reply> {
        match reply(&view(), network, from.into(), &query(name, kind), false) {
            Reply::Answer(bytes) => {
                let message = Message::from_octets(bytes).unwrap();
                assert!(message.header().qr() && message.header().rd() && message.header().id() == 8);
                let records = message.answer().unwrap().limit_to::<domain::rdata::AllRecordData<_, _>>();
                Ok((message.header().rcode(), records.map(|r| r.unwrap().data().to_string()).collect()))
            }
            other => Err(other),
        }
    }

    #[test]
    fn a_container_sees_the_names_of_its_own_networks() {
        let ok = |addresses: &[&str]| {
            Ok((Rcode::NOERROR, addresses.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()))
        };
        let web = |name, kind| ask("shop", [172, 18, 0, 2], name, kind);
        assert_eq!(web("shop-db-1", Rtype::A), ok(&["172.18.0.3"]));
        assert_eq!(web("db", Rtype::A), ok(&["172.18.0.3", "172.18.0.4"]));
        assert_eq!(web("Db.SHOP", Rtype::A), ok(&["172.18.0.3", "172.18.0.4"]));
        assert_eq!(web("db", Rtype::AAAA), ok(&["fd00:0:0:1::3", "fd00:0:0:1::4"]));
        assert_eq!(web("web", Rtype::ANY), ok(&["172.18.0.2", "fd00:0:0:1::2"]));
        assert_eq!(ask("shop", [172, 18, 0, 3], "store", Rtype::AAAA), ok(&[]));
        // It may ask from its IPv6 address too.
        let from6: Ipv6Addr = "fd00:0:0:1::2".parse().unwrap();
        assert_eq!(ask("shop", from6, "web.shop", Rtype::AAAA), ok(&["fd00:0:0:1::2"]));
        let reverse = |last: char| {
            format!("{last}.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa")
        };
        assert_eq!(ask("shop", [172, 18, 0, 2], &reverse('3'), Rtype::PTR), ok(&["shop-db-1.shop."]));
        assert_eq!(ask("shop", [172, 18, 0, 2], &reverse('9'), Rtype::PTR), Ok((Rcode::NXDOMAIN, vec![])));
        assert_eq!(web("db", Rtype::MX), ok(&[]));
        assert_eq!(web("web", Rtype::A), ok(&["172.18.0.2"]));
        // Of a network that it is not in, and of the default one.
        for name in ["store", "alone", "one", "no-such"] {
            assert_eq!(web(name, Rtype::A), Ok((Rcode::NXDOMAIN, vec![])), "{name}");
        }
        assert_eq!(ask("shop", [172, 18, 0, 3], "store", Rtype::A), ok(&["172.19.0.2"]));
        assert_eq!(ask(DEFAULT_NETWORK, [172, 17, 0, 2], "two", Rtype::A), Ok((Rcode::NXDOMAIN, vec![])));
        assert_eq!(web("3.0.18.172.in-addr.arpa", Rtype::PTR), ok(&["shop-db-1.shop."]));
        assert_eq!(web("9.0.18.172.in-addr.arpa", Rtype::PTR), Ok((Rcode::NXDOMAIN, vec![])));
    }

    #[test]
    fn the_rest_is_asked_of_others_unless_there_is_no_way_out() {
        let forward = Err(Reply::Forward(vec![]));
        assert_eq!(ask("shop", [172, 18, 0, 2], "db.example.org", Rtype::A), forward);
        assert_eq!(ask("shop", [172, 18, 0, 2], ".", Rtype::NS), forward);
        assert_eq!(ask("shop", [172, 18, 0, 2], "org", Rtype::DS), forward);
        assert_eq!(ask("shop", [172, 18, 0, 2], "8.8.8.8.in-addr.arpa", Rtype::PTR), forward);
        for name in ["8.ip6.arpa", "ip6.arpa", "8.b.d.0.1.0.0.2.ip6.arpa", "00.1.0.0.0.0.0.0.0.d.f.ip6.arpa"]
        {
            assert_eq!(ask("shop", [172, 18, 0, 2], name, Rtype::PTR), forward, "{name}");
        }
        assert_eq!(ask(DEFAULT_NETWORK, [172, 17, 0, 2], "example.org", Rtype::A), forward);
        // In two networks, of which one leads out.
        assert_eq!(ask("inner", [172, 19, 0, 2], "example.org", Rtype::A), forward);
        let refused = Ok((Rcode::REFUSED, vec![]));
        assert_eq!(ask("inner", [172, 19, 0, 3], "example.org", Rtype::A), refused);
    }

    #[test]
    fn nobody_else_is_answered() {
        assert_eq!(ask("shop", [172, 18, 0, 9], "db", Rtype::A), Err(Reply::Nothing));
        for stranger in ["fd00:0:0:1::9", "fe80::2", "::"] {
            let stranger: Ipv6Addr = stranger.parse().unwrap();
            assert_eq!(ask("shop", stranger, "db", Rtype::A), Err(Reply::Nothing));
        }
        assert_eq!(ask("inner", [172, 18, 0, 2], "db", Rtype::A), Err(Reply::Nothing));
        let answer = reply(&view(), "shop", [172, 18, 0, 2].into(), &query("db", Rtype::A), false);
        let Reply::Answer(answer) = answer else { panic!("{answer:?}") };
        let echoed = reply(&view(), "shop", [172, 18, 0, 2].into(), &answer, false);
        assert_eq!(echoed, Reply::Nothing);
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_cut() {
        let mut view = view();
        for n in 0..100 {
            view.endpoints.push(endpoint(&format!("x{n}"), "shop", [172, 18, 1, n], &["many"]));
        }
        let of = |stream| match reply(&view, "shop", [172, 18, 0, 2].into(), &query("many", Rtype::A), stream)
        {
            Reply::Answer(bytes) => {
                let message = Message::from_octets(bytes.clone()).unwrap();
                (message.header().tc(), message.header_counts().ancount(), bytes.len())
            }
            other => panic!("{other:?}"),
        };
        let (cut, count, length) = of(false);
        assert!(cut && count > 10 && length <= UDP, "{count} in {length}");
        assert_eq!((of(true).0, of(true).1), (false, 100));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), stream: bool) {
            let _ = reply(&view(), "shop", [172, 18, 0, 2].into(), &bytes, stream);
            let _ = failed(&bytes, Rcode::SERVFAIL);
        }

        #[test]
        fn no_change_of_a_query_panics(at in 0usize..40, to: u8, name in "[a-z]{1,9}(\\.[a-z]{1,9}){0,2}") {
            let mut bytes = query(&name, Rtype::A);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = reply(&view(), "shop", [172, 18, 0, 2].into(), &bytes, false);
        }
    }
}
