//! A small DHCPv4 client for the rescue network: the packets, and the client as a value with its own clock.
//!
//! Pure; parsing is total. Asks for address, mask and router only. Never resolves names, never runs a script.
//! Called by [`crate::rescue`]. Sources: RFC 2131, RFC 2132.

use std::net::Ipv4Addr;

const SERVER_TO_CLIENT: u8 = 2;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Fixed part of a packet, up to the magic.
const FIXED: usize = 236;
const BROADCAST: u16 = 0x8000;

const MASK: u8 = 1;
const ROUTER: u8 = 3;
const REQUESTED: u8 = 50;
const LEASE_TIME: u8 = 51;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const PARAMETERS: u8 = 55;
const END: u8 = 255;

/// Message types (option 53) that this client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    kind: Kind,
    server: Option<Ipv4Addr>,
    lease: Lease,
}

/// An address for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Mask of the network.
    pub netmask: Ipv4Addr,
    /// Default router.
    pub router: Option<Ipv4Addr>,
    /// How long it is ours, in seconds.
    pub seconds: u32,
}

/// The client on one interface. Times are milliseconds of any one clock.
#[derive(Clone, Debug)]
pub struct Client {
    mac: [u8; 6],
    xid: u32,
    state: State,
    send_at: u64,
    tries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Discovering,
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    Bound { lease: Lease, expires_at: u64 },
}

impl Client {
    /// A client that has said nothing yet. `xid` should be random.
    #[must_use]
    pub fn new(mac: [u8; 6], xid: u32) -> Client {
        Client { mac, xid, state: State::Discovering, send_at: 0, tries: 0 }
    }

    /// The packet that is due, to be broadcast to port 67, or nothing.
    pub fn due(&mut self, now: u64) -> Option<Vec<u8>> {
        if let State::Bound { expires_at, .. } = self.state
            && now >= expires_at
        {
            self.restart(now);
        }
        if now < self.send_at {
            return None;
        }
        // an offer that its server does not confirm is given up after four tries
        if matches!(self.state, State::Requesting { .. }) && self.tries >= 4 {
            self.restart(now);
        }
        let packet = match self.state {
            State::Discovering => self.packet(Kind::Discover, None, None, None),
            State::Requesting { address, server } => {
                self.packet(Kind::Request, None, Some(address), Some(server))
            }
            // renewal is broadcast to any server, as a rebinding client does (RFC 2131 4.3.2)
            State::Bound { lease, .. } => self.packet(Kind::Request, Some(lease.address), None, None),
        };
        // 4, 8, 16, 32, 64 s (RFC 2131 4.1)
        self.send_at = now.saturating_add(4000u64 << self.tries.min(4));
        self.tries = self.tries.saturating_add(1);
        Some(packet)
    }

    /// Takes a packet from port 68. A new or renewed lease is returned, to be applied.
    pub fn receive(&mut self, now: u64, packet: &[u8]) -> Option<Lease> {
        let reply = parse(packet, self.xid, self.mac)?;
        match (self.state, reply.kind) {
            (State::Discovering, Kind::Offer) => {
                self.state = State::Requesting { address: reply.lease.address, server: reply.server? };
                self.tries = 0;
                self.send_at = now;
                None
            }
            (State::Requesting { .. } | State::Bound { .. }, Kind::Ack) => {
                let ms = u64::from(reply.lease.seconds.max(60)).saturating_mul(1000);
                self.state = State::Bound { lease: reply.lease, expires_at: now.saturating_add(ms) };
                self.tries = 0;
                self.send_at = now.saturating_add(ms / 2);
                Some(reply.lease)
            }
            (State::Requesting { .. } | State::Bound { .. }, Kind::Nak) => {
                self.restart(now);
                None
            }
            _ => None,
        }
    }

    /// Our address, while the lease holds.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.state {
            State::Bound { lease, .. } => Some(lease.address),
            _ => None,
        }
    }

    fn restart(&mut self, now: u64) {
        self.state = State::Discovering;
        self.tries = 0;
        self.send_at = now;
    }

    fn packet(
        &self,
        kind: Kind,
        current: Option<Ipv4Addr>,
        requested: Option<Ipv4Addr>,
        server: Option<Ipv4Addr>,
    ) -> Vec<u8> {
        let mut out = vec![1, 1, 6, 0]; // BOOTREQUEST, ethernet, six bytes of address, no hops
        out.extend(self.xid.to_be_bytes());
        out.extend(0u16.to_be_bytes());
        // answers must be broadcast: the interface has no address that unicast could reach
        out.extend(BROADCAST.to_be_bytes());
        out.extend(current.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        out.extend([0; 12]); // yiaddr, siaddr, giaddr
        out.extend(self.mac);
        out.resize(FIXED, 0);
        out.extend(MAGIC);
        out.extend([KIND, 1, kind as u8]);
        for (option, address) in [(REQUESTED, requested), (SERVER, server)] {
            if let Some(address) = address {
                out.extend([option, 4]);
                out.extend(address.octets());
            }
        }
        out.extend([PARAMETERS, 3, MASK, ROUTER, LEASE_TIME, END]);
        // some relays drop packets below the BOOTP size
        out.resize(out.len().max(300), 0);
        out
    }
}

fn parse(packet: &[u8], xid: u32, mac: [u8; 6]) -> Option<Reply> {
    let address = |bytes: &[u8]| bytes.first_chunk::<4>().map(|b| Ipv4Addr::from(*b));
    let ours = packet.first() == Some(&SERVER_TO_CLIENT)
        && packet.get(4..8) == Some(&xid.to_be_bytes())
        && packet.get(28..34) == Some(&mac)
        && packet.get(FIXED..FIXED + 4) == Some(&MAGIC);
    if !ours {
        return None;
    }
    let mut kind = None;
    let mut server = None;
    let mut lease = Lease {
        address: address(packet.get(16..20)?)?,
        netmask: Ipv4Addr::new(255, 255, 255, 0),
        router: None,
        seconds: 3600,
    };
    let mut rest = packet.get(FIXED + 4..)?;
    while let [option, tail @ ..] = rest {
        match *option {
            END => break,
            0 => rest = tail,
            option => {
                let [length, tail @ ..] = tail else { break };
                let Some((value, tail)) = tail.split_at_checked(usize::from(*length)) else { break };
                rest = tail;
                match option {
                    KIND => {
                        kind = match value {
                            [2] => Some(Kind::Offer),
                            [5] => Some(Kind::Ack),
                            [6] => Some(Kind::Nak),
                            _ => None,
                        }
                    }
                    MASK => lease.netmask = address(value)?,
                    ROUTER => lease.router = address(value),
                    LEASE_TIME => lease.seconds = u32::from_be_bytes(*value.first_chunk()?),
                    SERVER => server = address(value),
                    _ => {}
                }
            }
        }
    }
    let kind = kind?;
    let host = kind == Kind::Nak
        || !(lease.address.is_unspecified()
            || lease.address.is_broadcast()
            || lease.address.is_multicast()
            || lease.address.is_loopback());
    host.then_some(Reply { kind, server, lease })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SERVER_IP: [u8; 4] = [10, 0, 2, 2];

    fn reply(kind: u8, xid: u32) -> Vec<u8> {
        let mut out = vec![0; FIXED];
        out[0] = SERVER_TO_CLIENT;
        out[4..8].copy_from_slice(&xid.to_be_bytes());
        out[16..20].copy_from_slice(&[10, 0, 2, 15]);
        out[28..34].copy_from_slice(&MAC);
        out.extend(MAGIC);
        out.extend([0, KIND, 1, kind, SERVER, 4]);
        out.extend(SERVER_IP);
        out.extend([MASK, 4, 255, 255, 0, 0, ROUTER, 4, 10, 0, 2, 2, LEASE_TIME, 4, 0, 0, 0, 100, END]);
        out
    }

    fn kind_of(packet: &[u8]) -> u8 {
        packet[FIXED + 4 + 2]
    }

    #[test]
    fn gets_a_lease_renews_it_and_starts_over_when_it_is_refused() {
        let mut client = Client::new(MAC, 7);
        assert_eq!(kind_of(&client.due(0).unwrap()), Kind::Discover as u8);
        assert_eq!(client.due(10), None, "waits before it repeats");
        assert_eq!(client.receive(20, &reply(2, 7)), None);
        let request = client.due(20).unwrap();
        assert_eq!(kind_of(&request), Kind::Request as u8);
        assert!(request.windows(6).any(|w| w == [REQUESTED, 4, 10, 0, 2, 15]));
        let lease = client.receive(30, &reply(5, 7)).unwrap();
        assert_eq!(lease.netmask, Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!(client.address(), Some(Ipv4Addr::new(10, 0, 2, 15)));

        assert_eq!(client.due(49_000), None);
        let renewal = client.due(50_030).unwrap();
        assert_eq!(renewal[12..16], [10, 0, 2, 15], "ciaddr");
        assert_eq!(client.receive(50_040, &reply(6, 7)), None);
        assert_eq!(client.address(), None);
        assert_eq!(kind_of(&client.due(50_040).unwrap()), Kind::Discover as u8);
    }

    #[test]
    fn loses_an_address_whose_lease_ran_out() {
        let mut client = Client::new(MAC, 7);
        client.due(0);
        client.receive(0, &reply(2, 7));
        client.due(0);
        client.receive(0, &reply(5, 7)).unwrap();
        assert_eq!(kind_of(&client.due(100_000).unwrap()), Kind::Discover as u8);
        assert_eq!(client.address(), None);
    }

    #[test]
    fn backs_off_and_gives_up_a_silent_server() {
        let mut client = Client::new(MAC, 7);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..6 {
            assert!(client.due(now).is_some());
            waits.push(client.send_at - now);
            now = client.send_at;
        }
        assert_eq!(waits, [4000, 8000, 16000, 32000, 64000, 64000]);
        client.receive(now, &reply(2, 7));
        let kinds: Vec<u8> = (0..5)
            .map(|_| {
                now = now.max(client.send_at);
                kind_of(&client.due(now).unwrap())
            })
            .collect();
        assert_eq!(kinds, [3, 3, 3, 3, 1]);
    }

    #[test]
    fn ignores_what_is_not_for_us() {
        let mut client = Client::new(MAC, 7);
        client.due(0);
        client.receive(1, &reply(2, 8));
        client.receive(1, &reply(5, 7));
        let mut other = reply(2, 7);
        other[33] = 9;
        client.receive(1, &other);
        let mut multicast = reply(2, 7);
        multicast[16] = 224;
        client.receive(1, &multicast);
        assert_eq!(client.state, State::Discovering);
    }

    proptest! {
        #[test]
        fn replies_are_total(tail in proptest::collection::vec(any::<u8>(), 0..80), cut in 0usize..400, random: Vec<u8>) {
            let mut client = Client::new(MAC, 7);
            client.due(0);
            let _ = client.receive(1, &random);
            let mut packet = reply(2, 7);
            packet.truncate(FIXED + 4);
            packet.extend(tail);
            packet.truncate(cut);
            let _ = client.receive(1, &packet);
            let _ = client.due(5000);
        }
    }
}
