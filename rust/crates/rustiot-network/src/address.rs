//! Subnets and the choice of addresses in them: pure, no clock, no kernel. Called by `networks`.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// An IPv4 subnet with room for at least a gateway and one container: prefix 8 to 30, no bits beside the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

/// Text that is no usable subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no usable subnet: {problem}")]
pub struct SubnetError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Subnet {
    /// The subnet `network/prefix`.
    ///
    /// # Errors
    /// [`SubnetError`] for a prefix outside 8..=30, bits beside the prefix, or an address that no network may have.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Subnet, SubnetError> {
        let fail = |problem| Err(SubnetError { text: format!("{network}/{prefix}"), problem });
        if !(8..=30).contains(&prefix) {
            return fail("the prefix must be from 8 to 30");
        }
        if u32::from(network) & !mask(prefix) != 0 {
            return fail("it has bits beside its prefix; give the first address of the subnet");
        }
        let subnet = Subnet { network: u32::from(network), prefix };
        for (reserved, bits) in
            [([0, 0, 0, 0], 8), ([127, 0, 0, 0], 8), ([169, 254, 0, 0], 16), ([224, 0, 0, 0], 3)]
        {
            if subnet.overlaps_range(u32::from_be_bytes(reserved), bits) {
                return fail("it is reserved (0/8, 127/8, 169.254/16 or 224/3)");
            }
        }
        Ok(subnet)
    }

    /// The first address, which names the subnet.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        self.network.into()
    }

    /// The length of the prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The last address.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        (self.network | !mask(self.prefix)).into()
    }

    /// The gateway when none is asked for: the first usable address.
    #[must_use]
    pub fn first_host(&self) -> Ipv4Addr {
        (self.network | 1).into()
    }

    /// Whether the address lies in the subnet.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    /// Whether a host may have the address: in the subnet, neither its first nor its last.
    #[must_use]
    pub fn usable(&self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network() && address != self.broadcast()
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.overlaps_range(other.network, other.prefix)
    }

    /// Whether it shares an address with `network/prefix`, which may be any (a route of the host). A prefix of 0 never
    /// counts: that is the default route.
    #[must_use]
    pub fn overlaps_route(&self, network: Ipv4Addr, prefix: u8) -> bool {
        prefix != 0 && prefix <= 32 && self.overlaps_range(network.into(), prefix)
    }

    fn overlaps_range(&self, network: u32, prefix: u8) -> bool {
        let shorter = mask(self.prefix.min(prefix));
        self.network & shorter == network & shorter
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<Subnet, SubnetError> {
        let fail = |problem| SubnetError { text: text.to_owned(), problem };
        let (network, prefix) = text.split_once('/').ok_or_else(|| fail("expected ADDRESS/PREFIX"))?;
        let network: Ipv4Addr =
            network.parse().map_err(|_| fail("the part before the slash is no IPv4 address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| fail("the part after the slash is no number"))?;
        Subnet::new(network, prefix)
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<Subnet, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

/// An IPv6 subnet with room for at least a gateway and one container: prefix 8 to 126, no bits beside the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet6 {
    network: u128,
    prefix: u8,
}

impl Subnet6 {
    /// The subnet `network/prefix`.
    ///
    /// # Errors
    /// [`SubnetError`] for a prefix outside 8..=126, bits beside the prefix, or an address that no network may have.
    pub fn new(network: Ipv6Addr, prefix: u8) -> Result<Subnet6, SubnetError> {
        let fail = |problem| Err(SubnetError { text: format!("{network}/{prefix}"), problem });
        if !(8..=126).contains(&prefix) {
            return fail("the prefix must be from 8 to 126");
        }
        if u128::from(network) & !mask6(prefix) != 0 {
            return fail("it has bits beside its prefix; give the first address of the subnet");
        }
        let subnet = Subnet6 { network: network.into(), prefix };
        // Loopback, mapped and translated IPv4; link-local and site-local; multicast.
        for (reserved, bits) in [(0u16, 8), (0xfe80, 9), (0xff00, 8)] {
            if subnet.overlaps_range(u128::from(reserved) << 112, bits) {
                return fail("it is reserved (::/8, fe80::/9 or ff00::/8)");
            }
        }
        Ok(subnet)
    }

    /// A device's own /48 (RFC 4193): `fd`, and 40 bits that were drawn at random.
    #[must_use]
    pub fn unique_local(global_id: [u8; 5]) -> Subnet6 {
        let [a, b, c, d, e] = global_id;
        let bytes = [0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Subnet6 { network: u128::from_be_bytes(bytes), prefix: 48 }
    }

    /// The first address, which names the subnet (and is any router's: no host has it).
    #[must_use]
    pub fn network(&self) -> Ipv6Addr {
        self.network.into()
    }

    /// The length of the prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The gateway when none is asked for: the first usable address.
    #[must_use]
    pub fn first_host(&self) -> Ipv6Addr {
        (self.network | 1).into()
    }

    fn last(&self) -> u128 {
        self.network | !mask6(self.prefix)
    }

    /// Whether the address lies in the subnet.
    #[must_use]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        u128::from(address) & mask6(self.prefix) == self.network
    }

    /// Whether a host may have the address: in the subnet, and not its first.
    #[must_use]
    pub fn usable(&self, address: Ipv6Addr) -> bool {
        self.contains(address) && address != self.network()
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Subnet6) -> bool {
        self.overlaps_range(other.network, other.prefix)
    }

    /// Whether it shares an address with `network/prefix`, which may be any (a route of the host). A prefix of 0 never
    /// counts: that is the default route.
    #[must_use]
    pub fn overlaps_route(&self, network: Ipv6Addr, prefix: u8) -> bool {
        prefix != 0 && prefix <= 128 && self.overlaps_range(network.into(), prefix)
    }

    fn overlaps_range(&self, network: u128, prefix: u8) -> bool {
        let shorter = mask6(self.prefix.min(prefix));
        self.network & shorter == network & shorter
    }
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0)
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Subnet6 {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<Subnet6, SubnetError> {
        let fail = |problem| SubnetError { text: text.to_owned(), problem };
        let (network, prefix) = text.split_once('/').ok_or_else(|| fail("expected ADDRESS/PREFIX"))?;
        let network: Ipv6Addr =
            network.parse().map_err(|_| fail("the part before the slash is no IPv6 address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| fail("the part after the slash is no number"))?;
        Subnet6::new(network, prefix)
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<Subnet6, SubnetError> {
        text.parse()
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> String {
        subnet.to_string()
    }
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// All are taken.
    #[error("no address is left in {0}; remove containers from the network or make one with a larger subnet")]
    Exhausted(String),
    /// The wanted one cannot be a container's.
    #[error("{address} cannot be a container's address in {subnet}")]
    Unusable {
        /// The wanted address.
        address: IpAddr,
        /// The network's subnet.
        subnet: String,
    },
    /// The wanted one is another's.
    #[error("{0} is in use by another container or the gateway")]
    Taken(IpAddr),
}

/// Picks an address for a container. Without a wish it is the next free one after `last`, around the end, so that an
/// address that was just given back is not at once another container's. `taken` holds the gateway too.
///
/// # Errors
/// [`AllocateError`].
pub fn allocate(
    subnet: Subnet,
    taken: &BTreeSet<Ipv4Addr>,
    last: Option<Ipv4Addr>,
    wanted: Option<Ipv4Addr>,
) -> Result<Ipv4Addr, AllocateError> {
    let (first, end) = (subnet.network | 1, u32::from(subnet.broadcast()));
    let start = last.map_or(first, u32::from).saturating_add(1).clamp(first, end);
    let candidates = (start..end).chain(first..start).map(Ipv4Addr::from);
    pick(&subnet, candidates, taken, wanted.map(|address| (address, subnet.usable(address))))
}

/// As [`allocate`], in an IPv6 subnet, of which all addresses but the first are a host's.
///
/// # Errors
/// [`AllocateError`].
pub fn allocate6(
    subnet: Subnet6,
    taken: &BTreeSet<Ipv6Addr>,
    last: Option<Ipv6Addr>,
    wanted: Option<Ipv6Addr>,
) -> Result<Ipv6Addr, AllocateError> {
    let (first, last_of_all) = (subnet.network | 1, subnet.last());
    let start = last.map_or(first, u128::from);
    // After the last one of all comes the first.
    let start = if start >= last_of_all { first } else { start.saturating_add(1).max(first) };
    let candidates = (start..=last_of_all).chain(first..start).map(Ipv6Addr::from);
    pick(&subnet, candidates, taken, wanted.map(|address| (address, subnet.usable(address))))
}

/// The wanted one, if it is usable, or the first candidate that is free: at most `taken.len()` steps are in vain.
fn pick<A: Copy + Ord + Into<IpAddr>>(
    subnet: &impl fmt::Display,
    mut candidates: impl Iterator<Item = A>,
    taken: &BTreeSet<A>,
    wanted: Option<(A, bool)>,
) -> Result<A, AllocateError> {
    match wanted {
        Some((address, false)) => {
            Err(AllocateError::Unusable { address: address.into(), subnet: subnet.to_string() })
        }
        Some((address, true)) if taken.contains(&address) => Err(AllocateError::Taken(address.into())),
        Some((address, true)) => Ok(address),
        None => candidates
            .find(|address| !taken.contains(address))
            .ok_or_else(|| AllocateError::Exhausted(subnet.to_string())),
    }
}

/// Picks a subnet for a network that names none: the first of 172.17.0.0/16 to 172.31.0.0/16 and of the 16 networks
/// 192.168.0.0/20 to 192.168.240.0/20 (what people know from Docker) that `free` accepts.
pub fn choose(free: impl Fn(&Subnet) -> bool) -> Option<Subnet> {
    let large = (17..=31u8).map(|second| Subnet::new(Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16u8).map(|third| Subnet::new(Ipv4Addr::new(192, 168, third << 4, 0), 20));
    large.chain(small).filter_map(Result::ok).find(free)
}

/// Picks an IPv6 subnet for a network that names none: the first /64 of the device's own /48 that `free` accepts.
pub fn choose6(own: Subnet6, free: impl Fn(&Subnet6) -> bool) -> Option<Subnet6> {
    let of = |number: u16| Subnet6 { network: own.network | u128::from(number) << 64, prefix: 64 };
    (0..=u16::MAX).map(of).find(free)
}

/// The hardware address that goes with an address: locally administered, and the same again for the same address, so
/// that neighbours' tables stay right.
#[must_use]
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_is_no_subnet() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "10.0.0.1/24",
            "10.0.0.0/7",
            "10.0.0.0/31",
            "127.0.0.0/8",
            "127.1.0.0/16",
            "224.0.0.0/8",
            "169.254.3.0/24",
            "0.0.0.0/8",
            "fd00::/64",
            "10.0.0.0/-1",
            "10.0.0.0/24/24",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_free_subnet_is_chosen() {
        let used: Subnet = "172.16.0.0/14".parse().unwrap();
        assert_eq!(choose(|subnet| !subnet.overlaps(&used)).unwrap().to_string(), "172.20.0.0/16");
        assert_eq!(choose(|subnet| subnet.prefix() == 20).unwrap().to_string(), "192.168.0.0/20");
        assert_eq!(choose(|_| false), None);
    }

    #[test]
    fn the_default_route_overlaps_nothing() {
        let subnet: Subnet = "172.17.0.0/16".parse().unwrap();
        assert!(!subnet.overlaps_route(Ipv4Addr::UNSPECIFIED, 0));
        assert!(subnet.overlaps_route(Ipv4Addr::new(172, 17, 3, 4), 32));
        assert!(subnet.overlaps_route(Ipv4Addr::new(172, 16, 0, 0), 12));
        assert!(!subnet.overlaps_route(Ipv4Addr::new(172, 18, 0, 0), 16));
    }

    #[test]
    fn refuses_what_is_no_ipv6_subnet() {
        for text in [
            "",
            "fd00::",
            "fd00::/",
            "/64",
            "fd00::/129",
            "fd00::1/64",
            "f000::/4",
            "fd00::/127",
            "fd00::/128",
            "::/8",
            "::1/126",
            "::ffff:0:0/96",
            "64:ff9b::/96",
            "fe80::/64",
            "fe80::/10",
            "fec0::/64",
            "ff02::/64",
            "ff00::/8",
            "fd00::/-1",
            "fd00::/64/64",
            "172.18.0.0/16",
            "fe80::%eth0/64",
        ] {
            assert!(text.parse::<Subnet6>().is_err(), "{text}");
        }
        let subnet: Subnet6 = "fd00:0:0:1::/64".parse().unwrap();
        assert!(!subnet.overlaps_route(Ipv6Addr::UNSPECIFIED, 0));
        assert!(subnet.overlaps_route("fc00::".parse().unwrap(), 7));
        assert!(subnet.overlaps_route("fd00:0:0:1::5".parse().unwrap(), 128));
        assert!(!subnet.overlaps_route("fd00:0:0:2::".parse().unwrap(), 64));
    }

    fn subnet6() -> impl Strategy<Value = Subnet6> {
        (any::<u128>(), 8u8..=126).prop_filter_map("reserved", |(address, prefix)| {
            Subnet6::new((address & mask6(prefix)).into(), prefix).ok()
        })
    }

    fn subnet() -> impl Strategy<Value = Subnet> {
        (any::<u32>(), 8u8..=30).prop_filter_map("reserved", |(address, prefix)| {
            Subnet::new((address & mask(prefix)).into(), prefix).ok()
        })
    }

    proptest! {
        #[test]
        fn text_and_back(subnet in subnet()) {
            prop_assert_eq!(subnet.to_string().parse::<Subnet>(), Ok(subnet));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = text.parse::<Subnet>();
        }

        #[test]
        fn overlap_is_sharing_an_end(a in subnet(), b in subnet()) {
            let shares = a.contains(b.network()) || b.contains(a.network());
            prop_assert_eq!(a.overlaps(&b), shares);
            prop_assert_eq!(b.overlaps(&a), shares);
        }

        #[test]
        fn addresses_are_usable_and_never_given_twice(
            subnet in subnet(), releases in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let mut taken = BTreeSet::from([subnet.first_host()]);
            let mut last = None;
            for release in releases {
                match allocate(subnet, &taken, last, None) {
                    Ok(address) => {
                        prop_assert!(subnet.usable(address));
                        prop_assert!(taken.insert(address));
                        last = Some(address);
                    }
                    Err(AllocateError::Exhausted(_)) => {
                        prop_assert_eq!(taken.len() as u64, (1u64 << (32 - subnet.prefix())) - 2);
                        let address = *taken.iter().nth(release.index(taken.len())).unwrap();
                        taken.remove(&address);
                    }
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
        }

        #[test]
        fn every_address_of_a_small_subnet_is_given(prefix in 24u8..=30, last in any::<Option<u32>>()) {
            let subnet = Subnet::new(Ipv4Addr::new(10, 1, 2, 0), prefix).unwrap();
            let mut taken = BTreeSet::new();
            let mut last = last.map(Ipv4Addr::from);
            for _ in 0..(1u32 << (32 - prefix)) - 2 {
                let address = allocate(subnet, &taken, last, None).unwrap();
                prop_assert!(subnet.usable(address) && taken.insert(address));
                last = Some(address);
            }
            prop_assert_eq!(allocate(subnet, &taken, last, None), Err(AllocateError::Exhausted(subnet.to_string())));
        }

        #[test]
        fn a_wish_is_kept_or_refused(subnet in subnet(), wanted in any::<u32>()) {
            let wanted = Ipv4Addr::from(wanted);
            let taken = BTreeSet::from([subnet.first_host()]);
            match allocate(subnet, &taken, None, Some(wanted)) {
                Ok(address) => prop_assert!(address == wanted && subnet.usable(wanted)),
                Err(AllocateError::Taken(address)) => prop_assert_eq!(address, subnet.first_host()),
                Err(_) => prop_assert!(!subnet.usable(wanted)),
            }
        }

        #[test]
        fn text_and_back_6(subnet in subnet6()) {
            prop_assert_eq!(subnet.to_string().parse::<Subnet6>(), Ok(subnet));
            prop_assert!(subnet.usable(subnet.first_host()) && !subnet.usable(subnet.network()));
        }

        #[test]
        fn no_text_panics_6(text in "[0-9a-f:./]{0,24}") {
            let _ = text.parse::<Subnet6>();
        }

        #[test]
        fn overlap_is_sharing_an_end_6(a in subnet6(), b in subnet6()) {
            let shares = a.contains(b.network()) || b.contains(a.network());
            prop_assert_eq!(a.overlaps(&b), shares);
            prop_assert_eq!(b.overlaps(&a), shares);
            prop_assert_eq!(a.overlaps_route(b.network(), b.prefix()), shares);
        }

        #[test]
        fn addresses_are_usable_and_never_given_twice_6(
            subnet in subnet6(), releases in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let mut taken = BTreeSet::from([subnet.first_host()]);
            let mut last = None;
            for release in releases {
                match allocate6(subnet, &taken, last, None) {
                    Ok(address) => {
                        prop_assert!(subnet.usable(address));
                        prop_assert!(taken.insert(address));
                        last = Some(address);
                    }
                    Err(AllocateError::Exhausted(_)) => {
                        prop_assert_eq!(taken.len() as u128, (1u128 << (128 - subnet.prefix())) - 1);
                        let address = *taken.iter().nth(release.index(taken.len())).unwrap();
                        taken.remove(&address);
                    }
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
        }

        #[test]
        fn every_address_of_a_small_subnet_is_given_6(prefix in 121u8..=126, last in any::<Option<u128>>()) {
            let subnet = Subnet6::new("fd12:3456:789a:1::".parse().unwrap(), prefix).unwrap();
            let mut taken = BTreeSet::new();
            let mut last = last.map(Ipv6Addr::from);
            for _ in 0..(1u32 << (128 - prefix)) - 1 {
                let address = allocate6(subnet, &taken, last, None).unwrap();
                prop_assert!(subnet.usable(address) && taken.insert(address));
                last = Some(address);
            }
            let none = allocate6(subnet, &taken, last, None);
            prop_assert_eq!(none, Err(AllocateError::Exhausted(subnet.to_string())));
        }

        #[test]
        fn a_wish_is_kept_or_refused_6(subnet in subnet6(), wanted in any::<u128>(), inside: bool) {
            let wanted = if inside { subnet.network | wanted & !mask6(subnet.prefix) } else { wanted };
            let wanted = Ipv6Addr::from(wanted);
            let taken = BTreeSet::from([subnet.first_host()]);
            match allocate6(subnet, &taken, None, Some(wanted)) {
                Ok(address) => prop_assert!(address == wanted && subnet.usable(wanted)),
                Err(AllocateError::Taken(address)) => prop_assert_eq!(address, subnet.first_host()),
                Err(_) => prop_assert!(!subnet.usable(wanted)),
            }
        }

        #[test]
        fn a_chosen_subnet_is_of_the_device_and_free(id: [u8; 5], used in 0u16..=40) {
            let own = Subnet6::unique_local(id);
            let taken: BTreeSet<Subnet6> = (0..used).filter_map(|n| {
                choose6(own, |subnet| subnet.network == own.network | u128::from(n) << 64)
            }).collect();
            let chosen = choose6(own, |subnet| !taken.contains(subnet)).unwrap();
            prop_assert_eq!((chosen.prefix(), own.contains(chosen.network())), (64, true));
            prop_assert_eq!(chosen.network, own.network | u128::from(used) << 64);
            prop_assert_eq!(chosen.to_string().parse::<Subnet6>(), Ok(chosen));
        }
    }
}
