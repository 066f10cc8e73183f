//! Bridges, veth pairs, addresses and routes, over rtnetlink. It changes only links whose names it is given; called by
//! `networks`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use nlink::{
    Connection, Route,
    netlink::{
        addr::Ipv6Address,
        link::{BridgeLink, BridgePortConfig, VethLink},
        route::{Ipv4Route, Ipv6Route},
    },
};

use crate::{
    address,
    record::{BRIDGE_PREFIX, Network, VETH_PREFIX},
};

/// Something that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request over rtnetlink.
    #[error("cannot {action} {what}")]
    Request {
        /// What was asked.
        action: &'static str,
        /// Of what.
        what: String,
        /// The kernel's answer.
        #[source]
        source: Box<nlink::Error>,
    },
    /// The namespace's file.
    #[error("cannot open the network namespace {}; the container must exist before it is attached", path.display())]
    Namespace {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A link that must be there.
    #[error("the link {0} is not there; something else has removed it")]
    Missing(String),
    /// A link of the name, but not of ours.
    #[error("{0} exists and is no bridge; remove or rename it")]
    NoBridge(String),
    /// A kernel setting.
    #[error("cannot write {value} to {}", path.display())]
    Setting {
        /// The setting's file.
        path: PathBuf,
        /// What should be written.
        value: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No IPv6 in the kernel.
    #[error("this kernel has no IPv6; make the network without it, or start the kernel without ipv6.disable")]
    NoIpv6,
    /// More interfaces than any container has.
    #[error("no interface name from eth0 to eth63 is free in the container")]
    Interfaces,
}

trait Context<T> {
    fn context(self, action: &'static str, what: &str) -> Result<T, Error>;
}

impl<T> Context<T> for nlink::Result<T> {
    fn context(self, action: &'static str, what: &str) -> Result<T, Error> {
        self.map_err(|source| Error::Request { action, what: what.to_owned(), source: Box::new(source) })
    }
}

/// Links of the namespace in which it was opened.
pub(crate) struct Links {
    route: Connection<Route>,
}

/// One of our links.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub is_bridge: bool,
    pub index: u32,
    pub master: Option<u32>,
    pub is_up: bool,
}

/// What a container's end is to be.
pub(crate) struct Pair<'a> {
    pub link: &'a str,
    pub namespace: &'a Path,
    pub address: Ipv4Addr,
    /// In a network with IPv6.
    pub address6: Option<Ipv6Addr>,
    pub mac: [u8; 6],
    /// Whether the way out goes through this network.
    pub default_route: bool,
    /// Whether the IPv6 way out does.
    pub default_route6: bool,
}

impl Links {
    pub(crate) fn open() -> Result<Links, Error> {
        Ok(Links { route: Connection::<Route>::new().context("open", "a netlink socket")? })
    }

    /// Networks that the host reaches other than by its default route.
    pub(crate) async fn host_routes(&self) -> Result<Vec<(IpAddr, u8)>, Error> {
        let routes = self.route.get_routes().await.context("list", "the host's routes")?;
        Ok(routes
            .iter()
            .filter_map(|route| route.destination().map(|destination| (*destination, route.dst_len())))
            .collect())
    }

    /// Our links that there are, by name.
    pub(crate) async fn ours(&self) -> Result<BTreeMap<String, Found>, Error> {
        let links = self.route.get_links().await.context("list", "links")?;
        let mut ours = BTreeMap::new();
        for link in &links {
            let name = link.name_or("");
            let is_bridge = match link.kind() {
                Some("bridge") if name.starts_with(BRIDGE_PREFIX) => true,
                Some("veth") if name.starts_with(VETH_PREFIX) => false,
                _ => continue,
            };
            let found =
                Found { is_bridge, index: link.ifindex(), master: link.master(), is_up: link.is_up() };
            ours.insert(name.to_owned(), found);
        }
        Ok(ours)
    }

    /// The host's addresses: link and address.
    pub(crate) async fn addresses(&self) -> Result<BTreeSet<(u32, IpAddr)>, Error> {
        let all = self.route.get_addresses().await.context("list", "the host's addresses")?;
        Ok(all.iter().filter_map(|of| of.address().map(|address| (of.ifindex(), *address))).collect())
    }

    /// Puts the host's end of a pair into its bridge again.
    pub(crate) async fn join(&self, link: &str, bridge: &str) -> Result<(), Error> {
        self.route.set_link_master(link, bridge).await.context("put into its bridge", link)?;
        // With br_netfilter, a container's question to a port of its own, published by the host, turns on the bridge.
        let hairpin = BridgePortConfig::new().hairpin(true);
        self.route.set_bridge_port(link, hairpin).await.context("set the port options of", link)?;
        self.route.set_link_up(link).await.context("bring up", link)
    }

    /// Sets the way out of a container.
    pub(crate) async fn route_out(&self, namespace: &Path, gateway: IpAddr) -> Result<(), Error> {
        let inside = inside(namespace)?.1;
        let set = match gateway {
            IpAddr::V4(gateway) => inside.replace_route(Ipv4Route::default_route().gateway(gateway)).await,
            IpAddr::V6(gateway) => inside.replace_route(Ipv6Route::default_route().gateway(gateway)).await,
        };
        set.context("set the default route in", "the container")
    }

    /// Makes the network's bridge, or makes right what is there. Says whether it was missing.
    pub(crate) async fn bridge(&self, network: &Network) -> Result<bool, Error> {
        let name = network.bridge.as_str();
        let find = || async { self.route.get_link_by_name(name).await.context("look up", name) };
        let found = find().await?;
        let made = found.is_none();
        let index = match found {
            Some(link) if link.kind() == Some("bridge") => link.ifindex(),
            Some(_) => return Err(Error::NoBridge(name.to_owned())),
            None => {
                let bridge = BridgeLink::new(name).address(address::mac(network.gateway)).stp(false);
                self.route.add_link(bridge).await.context("create the bridge", name)?;
                find().await?.ok_or_else(|| Error::Missing(name.to_owned()))?.ifindex()
            }
        };
        // Where the network has no IPv6, there is no second way to the host either.
        settings6(name, network.ipv6.is_some())?;
        // The host's own 127.0.0.1:PORT leads to a container; what comes from one for 127/8 is dropped by the table.
        setting(&format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1")?;
        self.route
            .replace_address_by_index(index, network.gateway.into(), network.subnet.prefix())
            .await
            .context("give an address to", name)?;
        if let Some(ipv6) = network.ipv6 {
            // A bridge without containers is not running: only without a search for duplicates is the address there.
            let address = Ipv6Address::with_index(index, ipv6.gateway, ipv6.subnet.prefix()).nodad();
            self.route.replace_address(address).await.context("give an IPv6 address to", name)?;
        }
        self.route.set_link_up_by_index(index).await.context("bring up", name)?;
        Ok(made)
    }

    /// Removes a link; one that is not there is as good.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), Error> {
        self.route.del_link_if_exists(name).await.context("remove", name).map(drop)
    }

    /// Makes a veth pair between the network's bridge and the container. Returns the name of the interface inside. On
    /// an error nothing of it stays.
    pub(crate) async fn attach(&self, network: &Network, pair: &Pair<'_>) -> Result<String, Error> {
        let (namespace, inside) = inside(pair.namespace)?;
        let interface = free_interface(&inside).await?;
        let veth =
            VethLink::new(pair.link, interface.as_str()).peer_address(pair.mac).peer_netns_fd(&namespace);
        self.route.add_link(veth).await.context("create the veth pair", pair.link)?;
        match self.connect(network, pair, &inside, &interface).await {
            Ok(()) => Ok(interface),
            Err(error) => {
                // The first cause is told; what stays is found by reconcile.
                let _ = self.remove(pair.link).await;
                Err(error)
            }
        }
    }

    async fn connect(
        &self,
        network: &Network,
        pair: &Pair<'_>,
        inside: &Connection<Route>,
        interface: &str,
    ) -> Result<(), Error> {
        let link = pair.link;
        setting(&format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1")?;
        self.join(link, &network.bridge).await?;
        inside.set_link_up("lo").await.context("bring up in the container", "lo")?;
        let index =
            match inside.get_link_by_name(interface).await.context("look up in the container", interface)? {
                Some(found) => found.ifindex(),
                None => return Err(Error::Missing(interface.to_owned())),
            };
        // Before it comes up: no address that nobody gave, no search for duplicates, no advice from neighbours.
        let (to, ipv6) = (interface.to_owned(), pair.address6.is_some());
        in_namespace(pair.namespace, move || settings6(&to, ipv6))?;
        let prefix = network.subnet.prefix();
        inside
            .add_address_by_index(index, pair.address.into(), prefix)
            .await
            .context("give an address in the container to", interface)?;
        inside.set_link_up_by_index(index).await.context("bring up in the container", interface)?;
        if pair.default_route {
            let route = Ipv4Route::default_route().gateway(network.gateway);
            inside.add_route(route).await.context("set the default route in the container by", interface)?;
        }
        if let (Some(address), Some(ipv6)) = (pair.address6, network.ipv6) {
            let address = Ipv6Address::with_index(index, address, ipv6.subnet.prefix()).nodad();
            inside
                .add_address(address)
                .await
                .context("give an IPv6 address in the container to", interface)?;
            if pair.default_route6 {
                let route = Ipv6Route::default_route().gateway(ipv6.gateway);
                inside
                    .add_route(route)
                    .await
                    .context("set the IPv6 default route in the container by", interface)?;
            }
        }
        Ok(())
    }
}

/// Works in the network namespace of a file, on a thread that ends with it.
fn in_namespace(
    namespace: &Path,
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let fail = |source| Error::Namespace { path: namespace.to_owned(), source };
    let file = File::open(namespace).map_err(fail)?;
    let thread = std::thread::Builder::new().name("namespace".to_owned());
    let done = thread.spawn(move || -> std::io::Result<Result<(), Error>> {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    });
    let ended = || std::io::Error::other("the thread that entered it has ended");
    done.and_then(|thread| thread.join().map_err(|_| ended())?).map_err(fail)?
}

/// IPv6 of a link of ours, before it comes up: off, or on with the addresses that it is given and no others. Nobody's
/// advertisements are believed, and nothing is waited for.
fn settings6(link: &str, on: bool) -> Result<(), Error> {
    let at = |name: &str| format!("{CONF6}/{link}/{name}");
    if on {
        if !Path::new(CONF6).exists() {
            return Err(Error::NoIpv6);
        }
        for name in ["accept_ra", "autoconf", "accept_dad", "accept_redirects"] {
            setting(&at(name), "0")?;
        }
    }
    setting(&at("disable_ipv6"), if on { "0" } else { "1" })
}

fn inside(namespace: &Path) -> Result<(File, Connection<Route>), Error> {
    let file =
        File::open(namespace).map_err(|source| Error::Namespace { path: namespace.to_owned(), source })?;
    let inside =
        Connection::<Route>::new_in(file.as_fd()).context("open a netlink socket in", "the namespace")?;
    Ok((file, inside))
}

async fn free_interface(inside: &Connection<Route>) -> Result<String, Error> {
    for number in 0..64 {
        let name = format!("eth{number}");
        if inside.get_link_by_name(name.as_str()).await.context("look up in the container", &name)?.is_none()
        {
            return Ok(name);
        }
    }
    Err(Error::Interfaces)
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const CONF6: &str = "/proc/sys/net/ipv6/conf";

/// Whether the kernel forwards between links.
pub(crate) fn forwards() -> bool {
    std::fs::read(FORWARDING).is_ok_and(|value| value.starts_with(b"1"))
}

/// Lets the kernel forward between links.
pub(crate) fn forward() -> Result<(), Error> {
    setting(FORWARDING, "1")
}

/// Whether the kernel forwards IPv6 between links.
pub(crate) fn forwards6() -> bool {
    std::fs::read(format!("{CONF6}/all/forwarding")).is_ok_and(|value| value.starts_with(b"1"))
}

/// Lets the kernel forward IPv6 between links. A kernel that forwards no longer listens to routers and forgets what they
/// said, unless told otherwise: every link that listened is, and those that come later.
pub(crate) fn forward6() -> Result<(), Error> {
    let links = std::fs::read_dir(CONF6).into_iter().flatten().flatten();
    for link in links.filter(|link| link.file_name() != "all") {
        let path = link.path().join("accept_ra");
        if std::fs::read(&path).is_ok_and(|value| value.starts_with(b"1")) {
            match setting(&path.to_string_lossy(), "2") {
                // A link that has gone meanwhile.
                Err(Error::Setting { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
    }
    setting(&format!("{CONF6}/all/forwarding"), "1")
}

/// Writes a kernel setting of the calling thread's network namespace. A kernel without the protocol has no such file.
fn setting(path: &str, value: &'static str) -> Result<(), Error> {
    let result =
        OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.contains("/ipv6/") => Ok(()),
        other => other.map_err(|source| Error::Setting { path: path.into(), value, source }),
    }
}
