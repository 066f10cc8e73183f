//! The engine's view: networks and endpoints, kept on record and made true in the kernel.
//!
//! Every call holds one lock: calls are short and change shared tables. It works in the network namespace of the thread
//! that opens it, and it must be called from that namespace. It never starts or stops a container.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;

use crate::{
    address::{self, AllocateError, Subnet, Subnet6},
    firewall::{self, Facts, Firewall},
    flows,
    links::{self, Found, Links, Pair},
    names::Names,
    record::{
        self, BRIDGE_PREFIX, Config6, DEFAULT_NETWORK, Endpoint, Network, Network6, NetworkConfig, Protocol,
        Publish, Published, VETH_PREFIX,
    },
    resolver::{Resolver, Serving},
};

/// What a call can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No network of the name.
    #[error("network {0} does not exist")]
    NoNetwork(String),
    /// A network of the name.
    #[error("network {0} exists already")]
    Exists(String),
    /// A name that a network cannot have.
    #[error(
        "{0:?} cannot be a network's name: up to 64 letters, digits, '_', '.' and '-', the first a letter or digit, and \
         not host or none"
    )]
    Name(String),
    /// The default network stays.
    #[error("the network {DEFAULT_NETWORK} cannot be removed")]
    Default,
    /// Containers are attached.
    #[error("network {network} is in use by {}; detach or stop them first", containers.join(", "))]
    InUse {
        /// The network.
        network: String,
        /// By whom.
        containers: Vec<String>,
    },
    /// The subnet is another's.
    #[error("the subnet {subnet} overlaps {other}; choose another one")]
    Overlap {
        /// The subnet that was asked for.
        subnet: String,
        /// A network, or a route of the host.
        other: String,
    },
    /// No subnet is left.
    #[error("no subnet is left that overlaps no network and no route of the host; name one")]
    NoSubnet,
    /// A gateway outside its subnet.
    #[error("{gateway} cannot be the gateway in {subnet}")]
    Gateway {
        /// The gateway that was asked for.
        gateway: IpAddr,
        /// The network's subnet.
        subnet: String,
    },
    /// No address.
    #[error("no address for the container in network {network}")]
    Address {
        /// The network.
        network: String,
        /// Why.
        #[source]
        source: AllocateError,
    },
    /// Attached already.
    #[error("container {container} is attached to network {network} already")]
    Attached {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// Not attached.
    #[error("container {container} is not attached to network {network}")]
    NotAttached {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// The network has no IPv6.
    #[error(
        "network {network} has no IPv6, so {address} cannot be in it or lead to it; make the network with IPv6"
    )]
    NoIpv6 {
        /// The network.
        network: String,
        /// The address that was asked for.
        address: Ipv6Addr,
    },
    /// The port leads to another container.
    #[error("port {port} of the host is published by container {container} already")]
    Published {
        /// The host's address; none for all.
        address: Option<IpAddr>,
        /// The host's port.
        port: u16,
        /// By whom.
        container: String,
    },
    /// The port is a host service's, or the address is not the host's.
    #[error("port {port} of the host cannot be published; a service of the host may listen there")]
    HostPort {
        /// The host's address; none for all.
        address: Option<IpAddr>,
        /// The host's port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An internal network has no way in.
    #[error("network {0} is internal: ports of its containers cannot be published")]
    Internal(String),
    /// A packet from `::1` leaves the host at no other link.
    #[error("no port can be published at [::1], from where IPv6 leads nowhere else; publish it at 127.0.0.1")]
    Loopback6,
    /// A container's port is never 0.
    #[error("port 0 of a container cannot be published")]
    PortZero,
    /// No random numbers.
    #[error("cannot read /dev/urandom")]
    Random(#[source] io::Error),
    /// A record cannot be read.
    #[error("cannot read {}; if it is damaged, remove it: networks must then be made again", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record cannot be written.
    #[error("cannot record networks")]
    Write(#[source] rustiot_durable::Error),
    /// Links.
    #[error("cannot change the network's links")]
    Links(#[from] links::Error),
    /// The table.
    #[error("cannot change the network's rules")]
    Firewall(#[from] firewall::Error),
}

/// What a container wants of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// This address and no other.
    pub address: Option<Ipv4Addr>,
    /// This address if it is free, else another one.
    pub preferred: Option<Ipv4Addr>,
    /// This IPv6 address and no other.
    pub address6: Option<Ipv6Addr>,
    /// This IPv6 address if the network has IPv6 and it is free, else another one.
    pub preferred6: Option<Ipv6Addr>,
    /// This hardware address; without one, it follows from the address.
    pub mac: Option<[u8; 6]>,
    /// Names by which the network's other containers know it: first its own, then its service's and others.
    pub aliases: Vec<String>,
    /// Name servers to ask instead of the host's for what is no name of a container.
    pub servers: Vec<IpAddr>,
}

/// What a container got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its address and the length of its prefix.
    pub address: (Ipv4Addr, u8),
    /// The network's gateway; the default route leads there unless the network is internal or another one has it.
    pub gateway: Ipv4Addr,
    /// Its IPv6 address and the length of its prefix, in a network with IPv6.
    pub address6: Option<(Ipv6Addr, u8)>,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The interface inside.
    pub interface: String,
    /// The gateway answers DNS. If not, give the container the host's own servers.
    pub dns: bool,
    /// This stay's own identifier.
    pub id: String,
}

/// What [`Networks::reconcile`] found.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// Bridges that were made.
    pub made: Vec<String>,
    /// Links of ours that nothing on record needs: removed.
    pub removed: Vec<String>,
    /// Endpoints of containers that run no more: forgotten, their addresses free again.
    pub forgotten: Vec<Endpoint>,
    /// Endpoints of running containers whose link is gone: forgotten too, to be attached again.
    pub broken: Vec<Endpoint>,
    /// Networks whose gateway cannot answer DNS, and why.
    pub unserved: Vec<(String, io::Error)>,
}

/// What [`Networks::mend`] found.
#[derive(Debug, Default)]
pub struct Mended {
    /// Somebody changed rules: ours were made again.
    pub rules: bool,
    /// Somebody switched forwarding off: it is on again.
    pub forwarding: bool,
    /// Bridges that were gone or wrong.
    pub bridges: Vec<String>,
    /// Links of containers that were out of their bridge.
    pub links: Vec<String>,
    /// Endpoints whose link is gone: forgotten, to be attached again.
    pub broken: Vec<Endpoint>,
    /// Networks whose gateway answers DNS only now.
    pub served: Vec<String>,
}

/// The networks of an engine.
pub struct Networks {
    networks_file: PathBuf,
    endpoints_file: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    links: Links,
    firewall: Firewall,
    networks: record::Networks,
    endpoints: record::Endpoints,
    names: Arc<Names>,
    resolver: Option<Resolver>,
    /// By network.
    serving: BTreeMap<String, Serving>,
}

impl Networks {
    /// Opens the records: networks in `state` (durable), endpoints in `run` (gone with the next boot, as the links
    /// are). The kernel is left as it is until [`reconcile`](Self::reconcile), which comes before all else. With
    /// `resolv_conf`, each network's gateway answers DNS, and asks the servers of that file for what it does not know.
    ///
    /// # Errors
    /// [`Error::Read`] for records that cannot be read, [`Error::Links`] and [`Error::Firewall`] without netlink.
    pub fn open(state: &Path, run: &Path, resolv_conf: Option<PathBuf>) -> Result<Networks, Error> {
        for directory in [state, run] {
            std::fs::create_dir_all(directory)
                .map_err(|source| Error::Read { path: directory.into(), source })?;
        }
        let (networks_file, endpoints_file) = (state.join("networks.json"), run.join("endpoints.json"));
        let names = Arc::new(Names::default());
        let inner = Inner {
            links: Links::open()?,
            firewall: Firewall::open()?,
            networks: read(&networks_file)?,
            endpoints: read(&endpoints_file)?,
            resolver: resolv_conf.map(|file| Resolver::new(file, Arc::clone(&names))),
            names,
            serving: BTreeMap::new(),
        };
        Ok(Networks { networks_file, endpoints_file, inner: Mutex::new(inner) })
    }

    /// Brings kernel and records together: makes bridges that are missing (and the default network, the first time),
    /// removes links of ours that nothing needs, forgets endpoints of containers that are not `running`, replaces the
    /// table.
    ///
    /// # Errors
    /// What the kernel or the disk refused; calling again goes on from there.
    pub async fn reconcile(&self, running: &BTreeSet<String>) -> Result<Reconciled, Error> {
        let mut inner = self.inner.lock().await;
        let inner = &mut *inner;
        let mut done = Reconciled::default();
        if !inner.networks.networks.contains_key(DEFAULT_NETWORK) {
            let network = inner.plan(DEFAULT_NETWORK, NetworkConfig::default()).await?;
            inner.networks.networks.insert(network.name.clone(), network);
            write(&self.networks_file, &inner.networks, true)?;
        }
        let found = inner.links.ours().await?;
        let mut kept = Vec::new();
        for endpoint in std::mem::take(&mut inner.endpoints.endpoints) {
            if !running.contains(&endpoint.container)
                || !inner.networks.networks.contains_key(&endpoint.network)
            {
                done.forgotten.push(endpoint);
            } else if found.get(&endpoint.link).is_none_or(|link| link.is_bridge) {
                done.broken.push(endpoint);
            } else {
                kept.push(endpoint);
            }
        }
        inner.endpoints.endpoints = kept;
        // Rules first: nobody is open to the world because a link came back before its rules.
        // Whoever had forwarding off wanted no router: what is not ours stays closed then, and that is on record first.
        let forwards = links::forwards();
        inner.endpoints.forwarding_is_ours |= !forwards;
        let opens6 = inner.opens6();
        write(&self.endpoints_file, &inner.endpoints, false)?;
        inner.tell();
        inner.apply().await?;
        if !forwards {
            links::forward()?;
        }
        if opens6 {
            links::forward6()?;
        }
        for network in inner.networks.networks.values() {
            if inner.links.bridge(network).await? {
                done.made.push(network.bridge.clone());
            }
        }
        done.unserved = inner.serve().await?.1;
        for name in found.into_keys() {
            let needed = inner.networks.networks.values().any(|network| network.bridge == name)
                || inner.endpoints.endpoints.iter().any(|endpoint| endpoint.link == name);
            if !needed {
                inner.links.remove(&name).await?;
                done.removed.push(name);
            }
        }
        Ok(done)
    }

    /// Makes a network.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Exists`], [`Error::Overlap`], [`Error::NoSubnet`], [`Error::Gateway`], or what the
    /// kernel or the disk refused; then nothing of it stays.
    pub async fn create(&self, name: &str, config: NetworkConfig) -> Result<Network, Error> {
        let mut inner = self.inner.lock().await;
        let inner = &mut *inner;
        let network = inner.plan(name, config).await?;
        inner.networks.networks.insert(name.to_owned(), network.clone());
        let made = async {
            let opens6 = inner.opens6();
            if opens6 {
                write(&self.endpoints_file, &inner.endpoints, false)?;
            }
            inner.apply().await?;
            if opens6 {
                links::forward6()?;
            }
            inner.links.bridge(&network).await?;
            write(&self.networks_file, &inner.networks, true)?;
            // Where the gateway cannot answer DNS, `mend` tries again.
            inner.serve().await
        }
        .await;
        inner.tell();
        if let Err(error) = made {
            inner.networks.networks.remove(name);
            inner.serving.remove(name);
            inner.tell();
            // The first cause is told; reconcile finds what stays.
            let _ = inner.links.remove(&network.bridge).await;
            let _ = inner.apply().await;
            return Err(error);
        }
        Ok(network)
    }

    /// Removes a network that no container uses.
    ///
    /// # Errors
    /// [`Error::NoNetwork`], [`Error::Default`], [`Error::InUse`], or what the kernel or the disk refused.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let mut inner = self.inner.lock().await;
        let bridge = inner.network(name)?.bridge.clone();
        if name == DEFAULT_NETWORK {
            return Err(Error::Default);
        }
        let users = inner.endpoints.endpoints.iter().filter(|endpoint| endpoint.network == name);
        let containers: Vec<String> = users.map(|endpoint| endpoint.container.clone()).collect();
        if !containers.is_empty() {
            return Err(Error::InUse { network: name.into(), containers });
        }
        // Off the record first: a power cut later leaves a bridge, which reconcile removes.
        let mut networks = inner.networks.clone();
        networks.networks.remove(name);
        write(&self.networks_file, &networks, true)?;
        inner.networks = networks;
        inner.endpoints.last.remove(name);
        inner.endpoints.last6.remove(name);
        if let Some(serving) = inner.serving.remove(name) {
            serving.close().await;
        }
        inner.tell();
        inner.links.remove(&bridge).await?;
        inner.apply().await
    }

    /// All networks, by name.
    pub async fn list(&self) -> Vec<Network> {
        self.inner.lock().await.networks.networks.values().cloned().collect()
    }

    /// All networks and who is in them.
    pub async fn list_with_endpoints(&self) -> Vec<(Network, Vec<Endpoint>)> {
        let inner = self.inner.lock().await;
        let of = |network: &Network| {
            let its = inner.endpoints.endpoints.iter().filter(|endpoint| endpoint.network == network.name);
            (network.clone(), its.cloned().collect())
        };
        inner.networks.networks.values().map(of).collect()
    }

    /// A container's places, in the order in which it was attached.
    pub async fn places(&self, container: &str) -> Vec<(Network, Endpoint)> {
        let inner = self.inner.lock().await;
        let its = inner.endpoints.endpoints.iter().filter(|endpoint| endpoint.container == container);
        its.filter_map(|endpoint| {
            Some((inner.networks.networks.get(&endpoint.network)?.clone(), endpoint.clone()))
        })
        .collect()
    }

    /// Whether the network's gateway answers DNS.
    pub async fn answers_dns(&self, network: &str) -> bool {
        self.inner.lock().await.serving.contains_key(network)
    }

    /// A network and who is in it.
    ///
    /// # Errors
    /// [`Error::NoNetwork`].
    pub async fn inspect(&self, name: &str) -> Result<(Network, Vec<Endpoint>), Error> {
        let inner = self.inner.lock().await;
        let network = inner.network(name)?.clone();
        let endpoints = inner.endpoints.endpoints.iter().filter(|endpoint| endpoint.network == name);
        Ok((network, endpoints.cloned().collect()))
    }

    /// The addresses of the containers that a network knows by a name, without regard to case.
    ///
    /// # Errors
    /// [`Error::NoNetwork`].
    pub async fn lookup(&self, network: &str, name: &str) -> Result<Vec<IpAddr>, Error> {
        let inner = self.inner.lock().await;
        inner.network(network)?;
        let named = inner.endpoints.endpoints.iter().filter(|endpoint| {
            endpoint.network == network
                && endpoint.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
        });
        let of = |e: &Endpoint| [Some(IpAddr::V4(e.address)), e.address6.map(IpAddr::V6)];
        Ok(named.flat_map(of).flatten().collect())
    }

    /// Puts a container, whose network namespace is the file `namespace`, into a network.
    ///
    /// # Errors
    /// [`Error::NoNetwork`], [`Error::Attached`], [`Error::Address`], [`Error::NoIpv6`], or what the kernel or the disk refused; then
    /// nothing of it stays.
    pub async fn attach(
        &self,
        container: &str,
        namespace: &Path,
        network: &str,
        wanted: Wanted,
    ) -> Result<Attachment, Error> {
        let mut inner = self.inner.lock().await;
        let network = inner.network(network)?.clone();
        if inner.position(container, &network.name).is_ok() {
            return Err(Error::Attached { container: container.into(), network: network.name });
        }
        let mut taken = BTreeSet::from([network.gateway]);
        let others = inner.endpoints.endpoints.iter().filter(|endpoint| endpoint.network == network.name);
        taken.extend(others.map(|endpoint| endpoint.address));
        let last = inner.endpoints.last.get(&network.name).copied();
        let preferred =
            wanted.preferred.filter(|address| network.subnet.usable(*address) && !taken.contains(address));
        let given = wanted.address.or(preferred);
        let mac_of = |address| wanted.mac.unwrap_or_else(|| address::mac(address));
        let address = address::allocate(network.subnet, &taken, last, given)
            .map_err(|source| Error::Address { network: network.name.clone(), source })?;
        let address6 = inner.address6(&network, &wanted)?;
        let link = unused(VETH_PREFIX, (container, &network.name), |name| {
            inner.endpoints.endpoints.iter().any(|endpoint| endpoint.link == name)
        });
        let default_route = !network.internal && inner.way_out(container).is_none();
        let default_route6 = !network.internal && inner.way_out6(container).is_none();
        // A link of this name is a leftover: no endpoint has it.
        inner.links.remove(&link).await?;
        let id = random_id()?;
        let pair = Pair {
            link: &link,
            namespace,
            address,
            address6,
            mac: mac_of(address),
            default_route,
            default_route6,
        };
        let interface = inner.links.attach(&network, &pair).await?;
        let mut endpoints = inner.endpoints.clone();
        if given.is_none() {
            endpoints.last.insert(network.name.clone(), address);
        }
        if let Some(address6) = address6.filter(|a| ![wanted.address6, wanted.preferred6].contains(&Some(*a)))
        {
            endpoints.last6.insert(network.name.clone(), address6);
        }
        endpoints.endpoints.push(Endpoint {
            container: container.into(),
            id: id.clone(),
            namespace: namespace.into(),
            network: network.name.clone(),
            address,
            address6,
            mac: mac_of(address),
            link: link.clone(),
            interface: interface.clone(),
            aliases: wanted.aliases,
            servers: wanted.servers,
            published: BTreeSet::new(),
        });
        if let Err(error) = write(&self.endpoints_file, &endpoints, false) {
            let _ = inner.links.remove(&link).await;
            return Err(error);
        }
        inner.endpoints = endpoints;
        inner.tell();
        Ok(Attachment {
            address: (address, network.subnet.prefix()),
            gateway: network.gateway,
            address6: address6.zip(network.ipv6.map(|ipv6| ipv6.subnet.prefix())),
            mac: mac_of(address),
            interface,
            dns: inner.serving.contains_key(&network.name),
            id,
        })
    }

    /// Takes a running container out of a network, with its published ports. If its way out went there, it goes through
    /// the next of its networks that is not internal.
    ///
    /// # Errors
    /// [`Error::NotAttached`], or what the kernel or the disk refused.
    pub async fn detach(&self, container: &str, network: &str) -> Result<Endpoint, Error> {
        let mut inner = self.inner.lock().await;
        let name = |way: Option<(&Network, &Endpoint)>| way.map(|(network, _)| network.name.clone());
        let (before, before6) = (name(inner.way_out(container)), name(inner.way_out6(container)));
        let endpoint = inner.detach(&self.endpoints_file, container, network).await?;
        if before.as_deref() == Some(network)
            && let Some((next, its)) = inner.way_out(container)
        {
            inner.links.route_out(&its.namespace, next.gateway.into()).await?;
        }
        if before6.as_deref() == Some(network)
            && let Some((next, its)) = inner.way_out6(container)
            && let Some(ipv6) = next.ipv6
        {
            inner.links.route_out(&its.namespace, ipv6.gateway.into()).await?;
        }
        Ok(endpoint)
    }

    /// Changes the names by which a network knows a container.
    ///
    /// # Errors
    /// [`Error::NotAttached`], or what the disk refused.
    pub async fn rename(&self, container: &str, network: &str, aliases: Vec<String>) -> Result<(), Error> {
        let mut inner = self.inner.lock().await;
        let position = inner.position(container, network)?;
        if let Some(endpoint) = inner.endpoints.endpoints.get_mut(position) {
            endpoint.aliases = aliases;
        }
        inner.tell();
        write(&self.endpoints_file, &inner.endpoints, false)
    }

    /// Takes a container out of all its networks, when it has ended. It may be gone already, and its namespace with it.
    ///
    /// # Errors
    /// What the kernel or the disk refused.
    pub async fn detach_all(&self, container: &str) -> Result<(), Error> {
        let mut inner = self.inner.lock().await;
        let its = inner.endpoints.endpoints.iter().filter(|endpoint| endpoint.container == container);
        let networks: Vec<String> = its.map(|endpoint| endpoint.network.clone()).collect();
        for network in networks {
            inner.detach(&self.endpoints_file, container, &network).await?;
        }
        Ok(())
    }

    /// Lets ports of the host lead to a container: all of them or none. What was published is returned, in the order
    /// asked.
    ///
    /// # Errors
    /// [`Error::NotAttached`], [`Error::Internal`], [`Error::Published`], [`Error::HostPort`], [`Error::PortZero`],
    /// [`Error::NoIpv6`], [`Error::Loopback6`], or what the kernel or the disk refused; then nothing of it stays.
    pub async fn publish(
        &self,
        container: &str,
        network: &str,
        wanted: &[Publish],
    ) -> Result<Vec<Published>, Error> {
        let mut inner = self.inner.lock().await;
        let position = inner.position(container, network)?;
        if inner.network(network)?.internal {
            return Err(Error::Internal(network.into()));
        }
        let mut endpoints = inner.endpoints.clone();
        let ipv6 = inner.network(network)?.ipv6.is_some();
        let mut done = Vec::new();
        for publish in wanted {
            if publish.container_port == 0 {
                return Err(Error::PortZero);
            }
            if publish.host_address == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
                return Err(Error::Loopback6);
            }
            if let (Some(IpAddr::V6(address)), false) = (publish.host_address, ipv6) {
                return Err(Error::NoIpv6 { network: network.into(), address });
            }
            let published = free_port(&endpoints, publish, ipv6)?;
            if let Some(endpoint) = endpoints.endpoints.get_mut(position) {
                endpoint.published.insert(published);
            }
            done.push(published);
        }
        inner.replace(endpoints, &self.endpoints_file).await?;
        // Who sent before the port led anywhere would go on to nowhere.
        let udp = done.iter().filter(|published| published.protocol == Protocol::Udp);
        flows::forget_ports(udp.map(|published| published.host_port)).await;
        Ok(done)
    }

    /// Takes a published port back. Connections that stand go on.
    ///
    /// # Errors
    /// [`Error::NotAttached`], or what the kernel or the disk refused.
    pub async fn unpublish(
        &self,
        container: &str,
        network: &str,
        published: &Published,
    ) -> Result<(), Error> {
        let mut inner = self.inner.lock().await;
        let position = inner.position(container, network)?;
        let mut endpoints = inner.endpoints.clone();
        if let Some(endpoint) = endpoints.endpoints.get_mut(position) {
            endpoint.published.remove(published);
        }
        inner.replace(endpoints, &self.endpoints_file).await
    }

    /// Looks whether what should be in the kernel still is, and makes right what is not: rules that were flushed,
    /// forwarding that was switched off, bridges and links that were changed. To be called every few seconds.
    ///
    /// # Errors
    /// What the kernel or the disk refused; the next call tries again.
    pub async fn mend(&self) -> Result<Mended, Error> {
        let mut inner = self.inner.lock().await;
        let inner = &mut *inner;
        let mut done = Mended::default();
        if inner.firewall.is_changed().await? {
            inner.apply().await?;
            done.rules = true;
        }
        if !links::forwards() {
            links::forward()?;
            done.forwarding = true;
        }
        if inner.has_ipv6() && !links::forwards6() {
            links::forward6()?;
            done.forwarding = true;
        }
        let (found, addresses) = (inner.links.ours().await?, inner.links.addresses().await?);
        let mut bridges = BTreeMap::new();
        for network in inner.networks.networks.values() {
            let right = |link: &&Found| {
                link.is_bridge
                    && link.is_up
                    && addresses.contains(&(link.index, network.gateway.into()))
                    && network.ipv6.is_none_or(|v6| addresses.contains(&(link.index, v6.gateway.into())))
            };
            match found.get(&network.bridge).filter(right) {
                Some(link) => {
                    bridges.insert(&network.name, Some(link.index));
                }
                None => {
                    // Its sockets are bound to a link that may be gone.
                    if let Some(serving) = inner.serving.remove(&network.name) {
                        serving.close().await;
                    }
                    inner.links.bridge(network).await?;
                    done.bridges.push(network.name.clone());
                    bridges.insert(&network.name, None);
                }
            }
        }
        let mut kept = Vec::new();
        for endpoint in &inner.endpoints.endpoints {
            let Some(network) = inner.networks.networks.get(&endpoint.network) else { continue };
            match found.get(&endpoint.link).filter(|link| !link.is_bridge) {
                None => {
                    done.broken.push(endpoint.clone());
                    continue;
                }
                Some(link) => {
                    let bridge = bridges.get(&network.name).copied().flatten();
                    if bridge.is_none() || link.master != bridge || !link.is_up {
                        inner.links.join(&endpoint.link, &network.bridge).await?;
                        done.links.push(endpoint.link.clone());
                    }
                }
            }
            kept.push(endpoint.clone());
        }
        if !done.broken.is_empty() {
            let endpoints = record::Endpoints { endpoints: kept, ..inner.endpoints.clone() };
            inner.replace(endpoints, &self.endpoints_file).await?;
        }
        done.served = inner.serve().await?.0;
        Ok(done)
    }

    /// Takes everything of ours out of the kernel: the table and all links. The records stay; `reconcile` builds it
    /// again. Forwarding stays as it is.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn clear(&self) -> Result<(), Error> {
        let mut inner = self.inner.lock().await;
        inner.serving.clear();
        for name in inner.links.ours().await?.into_keys() {
            inner.links.remove(&name).await?;
        }
        inner.firewall.remove().await?;
        Ok(())
    }
}

impl Inner {
    fn network(&self, name: &str) -> Result<&Network, Error> {
        self.networks.networks.get(name).ok_or_else(|| Error::NoNetwork(name.into()))
    }

    fn position(&self, container: &str, network: &str) -> Result<usize, Error> {
        let same = |endpoint: &Endpoint| endpoint.container == container && endpoint.network == network;
        let missing = || Error::NotAttached { container: container.into(), network: network.into() };
        self.endpoints.endpoints.iter().position(same).ok_or_else(missing)
    }

    /// The networks through which a container could go out, the first first.
    fn ways_out(&self, container: &str) -> impl Iterator<Item = (&Network, &Endpoint)> {
        let its = self.endpoints.endpoints.iter().filter(move |endpoint| endpoint.container == container);
        its.filter_map(|endpoint| Some((self.networks.networks.get(&endpoint.network)?, endpoint)))
            .filter(|(network, _)| !network.internal)
    }

    /// The network through which a container's way out goes.
    fn way_out(&self, container: &str) -> Option<(&Network, &Endpoint)> {
        self.ways_out(container).next()
    }

    /// The same for IPv6.
    fn way_out6(&self, container: &str) -> Option<(&Network, &Endpoint)> {
        self.ways_out(container).find(|(_, endpoint)| endpoint.address6.is_some())
    }

    fn has_ipv6(&self) -> bool {
        self.networks.networks.values().any(|network| network.ipv6.is_some())
    }

    /// Whether forwarding of IPv6 is to be switched on, and then it is noted that it was off: to be recorded, and closed
    /// by rules to all that is not ours, before it is.
    fn opens6(&mut self) -> bool {
        let opens = self.has_ipv6() && !links::forwards6();
        self.endpoints.forwarding6_is_ours |= opens;
        opens
    }

    /// A container's IPv6 address, in a network that has IPv6.
    fn address6(&self, network: &Network, wanted: &Wanted) -> Result<Option<Ipv6Addr>, Error> {
        let Some(Network6 { subnet, gateway }) = network.ipv6 else {
            return match wanted.address6 {
                Some(address) => Err(Error::NoIpv6 { network: network.name.clone(), address }),
                None => Ok(None),
            };
        };
        let mut taken = BTreeSet::from([gateway]);
        let others = self.endpoints.endpoints.iter().filter(|endpoint| endpoint.network == network.name);
        taken.extend(others.filter_map(|endpoint| endpoint.address6));
        let last = self.endpoints.last6.get(&network.name).copied();
        let preferred =
            wanted.preferred6.filter(|address| subnet.usable(*address) && !taken.contains(address));
        address::allocate6(subnet, &taken, last, wanted.address6.or(preferred))
            .map(Some)
            .map_err(|source| Error::Address { network: network.name.clone(), source })
    }

    async fn apply(&mut self) -> Result<(), Error> {
        let served = self.serving.keys().cloned().collect();
        let facts = Facts {
            networks: &self.networks,
            endpoints: &self.endpoints,
            served: &served,
            closed: self.endpoints.forwarding_is_ours,
            closed6: self.endpoints.forwarding6_is_ours,
        };
        self.firewall.apply(&facts).await?;
        Ok(())
    }

    /// Lets the resolver know what is.
    fn tell(&self) {
        self.names.set(&self.networks, &self.endpoints);
    }

    /// Lets gateways answer DNS that do not yet: those that do now, and those that cannot.
    async fn serve(&mut self) -> Result<(Vec<String>, Vec<(String, io::Error)>), Error> {
        let (mut served, mut unserved) = (Vec::new(), Vec::new());
        let Some(resolver) = &self.resolver else { return Ok((served, unserved)) };
        for network in self.networks.networks.values() {
            if self.serving.contains_key(&network.name) {
                continue;
            }
            match resolver.serve(network) {
                Ok(serving) => {
                    self.serving.insert(network.name.clone(), serving);
                    served.push(network.name.clone());
                }
                Err(error) => unserved.push((network.name.clone(), error)),
            }
        }
        if !served.is_empty() {
            self.apply().await?;
        }
        Ok((served, unserved))
    }

    async fn detach(&mut self, file: &Path, container: &str, network: &str) -> Result<Endpoint, Error> {
        let position = self.position(container, network)?;
        let endpoint = self.endpoints.endpoints.remove(position);
        self.tell();
        self.links.remove(&endpoint.link).await?;
        if !endpoint.published.is_empty() {
            self.apply().await?;
        }
        // Its flows would go on to an address that may be another's next.
        flows::forget_container(endpoint.address.into()).await;
        if let Some(address) = endpoint.address6 {
            flows::forget_container(address.into()).await;
        }
        write(file, &self.endpoints, false)?;
        Ok(endpoint)
    }

    /// Takes over other endpoints, in the kernel and on record, or leaves all as it was.
    async fn replace(&mut self, endpoints: record::Endpoints, file: &Path) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.endpoints, endpoints);
        let mut done = self.apply().await;
        if done.is_ok() {
            done = write(file, &self.endpoints, false);
        }
        if done.is_err() {
            self.endpoints = before;
            let _ = self.apply().await;
        }
        self.tell();
        done
    }

    /// Checks a wish for a network and fills in what it leaves open.
    async fn plan(&mut self, name: &str, config: NetworkConfig) -> Result<Network, Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let valid = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(plain)
            && !matches!(name, "host" | "none");
        if !valid {
            return Err(Error::Name(name.into()));
        }
        if self.networks.networks.contains_key(name) {
            return Err(Error::Exists(name.into()));
        }
        let routes = self.links.host_routes().await?;
        let others = || self.networks.networks.values();
        let by_route =
            |found: Option<&(IpAddr, u8)>| found.map(|(to, n)| format!("the host's route to {to}/{n}"));
        let overlap = |subnet: &Subnet| {
            let network = others().find(|network| network.subnet.overlaps(subnet));
            let network = network.map(|network| format!("network {} ({})", network.name, network.subnet));
            let hit = |(to, prefix): &&(IpAddr, u8)| match to {
                IpAddr::V4(to) => subnet.overlaps_route(*to, *prefix),
                IpAddr::V6(_) => false,
            };
            network.or_else(|| by_route(routes.iter().find(hit)))
        };
        let overlap6 = |subnet: &Subnet6| {
            let its = |network: &&Network| network.ipv6.is_some_and(|ipv6| ipv6.subnet.overlaps(subnet));
            let network = others().find(its).map(|network| format!("network {}", network.name));
            let hit = |(to, prefix): &&(IpAddr, u8)| match to {
                IpAddr::V4(_) => false,
                IpAddr::V6(to) => subnet.overlaps_route(*to, *prefix),
            };
            network.or_else(|| by_route(routes.iter().find(hit)))
        };
        let taken = |subnet: String, other| Error::Overlap { subnet, other };
        let subnet = match config.subnet {
            Some(subnet) => match overlap(&subnet) {
                Some(other) => return Err(taken(subnet.to_string(), other)),
                None => subnet,
            },
            None => address::choose(|subnet| overlap(subnet).is_none()).ok_or(Error::NoSubnet)?,
        };
        let gateway = config.gateway.unwrap_or(subnet.first_host());
        if !subnet.usable(gateway) {
            return Err(Error::Gateway { gateway: gateway.into(), subnet: subnet.to_string() });
        }
        let mut own = self.networks.unique_local;
        let ipv6 = match config.ipv6 {
            None => None,
            Some(Config6 { subnet, gateway }) => {
                let subnet = match subnet {
                    Some(subnet) => match overlap6(&subnet) {
                        Some(other) => return Err(taken(subnet.to_string(), other)),
                        None => subnet,
                    },
                    None => {
                        let of = match own {
                            Some(of) => of,
                            None => *own.insert(Subnet6::unique_local(random()?)),
                        };
                        address::choose6(of, |subnet| overlap6(subnet).is_none()).ok_or(Error::NoSubnet)?
                    }
                };
                let gateway = gateway.unwrap_or(subnet.first_host());
                if !subnet.usable(gateway) {
                    return Err(Error::Gateway { gateway: gateway.into(), subnet: subnet.to_string() });
                }
                Some(Network6 { subnet, gateway })
            }
        };
        // Written with the network.
        self.networks.unique_local = own;
        let bridge = unused(BRIDGE_PREFIX, name, |bridge| {
            self.networks.networks.values().any(|network| network.bridge == bridge)
        });
        Ok(Network {
            name: name.into(),
            id: random_id()?,
            created: jiff::Timestamp::now(),
            bridge,
            subnet,
            gateway,
            ipv6,
            internal: config.internal,
            host_ports: config.host_ports,
            labels: config.labels,
            options: config.options,
        })
    }
}

/// The first of the wanted ports that is nobody's. `ipv6`: whether the container has IPv6.
fn free_port(endpoints: &record::Endpoints, wanted: &Publish, ipv6: bool) -> Result<Published, Error> {
    let (first, last) = wanted.host_ports;
    let address = wanted.host_address;
    let at = |host_port| Published {
        protocol: wanted.protocol,
        host_address: address,
        host_port,
        container_port: wanted.container_port,
    };
    let clash = |published: &Published| {
        endpoints.endpoints.iter().find(|endpoint| {
            let theirs = endpoint.address6.is_some();
            endpoint.published.iter().any(|other| other.clashes(theirs, published, ipv6))
        })
    };
    if first == 0 {
        // A port that the kernel finds free may still be published: nothing listens there.
        let mut tried = (0, io::Error::from(io::ErrorKind::AddrInUse));
        for _ in 0..100 {
            let port = bind(&at(0), false).map_err(|source| Error::HostPort { address, port: 0, source })?;
            match bind(&at(port), ipv6) {
                Ok(_) if clash(&at(port)).is_none() => return Ok(at(port)),
                Ok(_) => tried.0 = port,
                Err(source) => tried = (port, source),
            }
        }
        return Err(Error::HostPort { address, port: tried.0, source: tried.1 });
    }
    let mut refused = Error::HostPort { address, port: first, source: io::ErrorKind::InvalidInput.into() };
    for port in first..=last {
        refused = match clash(&at(port)) {
            Some(endpoint) => Error::Published { address, port, container: endpoint.container.clone() },
            None => match bind(&at(port), ipv6) {
                Ok(_) => return Ok(at(port)),
                Err(source) => Error::HostPort { address, port, source },
            },
        };
    }
    Err(refused)
}

/// Whether the host could listen there now, at IPv6 addresses too if a port of all leads there; the port at which it could.
fn bind(published: &Published, ipv6: bool) -> io::Result<u16> {
    let Published { protocol, host_address, host_port, .. } = *published;
    let v4 = |address: Ipv4Addr| match protocol {
        Protocol::Tcp => TcpListener::bind((address, host_port))?.local_addr().map(|at| at.port()),
        Protocol::Udp => UdpSocket::bind((address, host_port))?.local_addr().map(|at| at.port()),
    };
    match host_address {
        None if ipv6 => bind6(protocol, Ipv6Addr::UNSPECIFIED, v4(Ipv4Addr::UNSPECIFIED)?),
        None => v4(Ipv4Addr::UNSPECIFIED),
        Some(IpAddr::V4(address)) => v4(address),
        Some(IpAddr::V6(address)) => bind6(protocol, address, host_port),
    }
}

/// By IPv6 only: who listens at all IPv4 addresses does not matter.
fn bind6(protocol: Protocol, address: Ipv6Addr, port: u16) -> io::Result<u16> {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
    };
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let socket = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    if protocol == Protocol::Tcp {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(address, port, 0, 0)))?;
    Ok(match protocol {
        Protocol::Tcp => {
            listen(&socket, Backlog::new(1)?)?;
            TcpListener::from(socket).local_addr()?.port()
        }
        Protocol::Udp => UdpSocket::from(socket).local_addr()?.port(),
    })
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0_u8; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::Random)?;
    Ok(bytes)
}

/// 64 hexadecimal digits.
fn random_id() -> Result<String, Error> {
    let bytes: [u8; 32] = random()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A link's name, at most 15 bytes as the kernel has it: the prefix and 11 digits of a hash. It is recorded, so another
/// hash in another release does no harm.
fn unused(prefix: &str, of: impl std::hash::Hash, used: impl Fn(&str) -> bool) -> String {
    let mut salt = 0u64;
    loop {
        let mut hasher = DefaultHasher::new();
        (&of, salt).hash(&mut hasher);
        let name = format!("{prefix}{:011x}", hasher.finish() >> 20);
        if !used(&name) {
            return name;
        }
        salt = salt.wrapping_add(1);
    }
}

fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, Error> {
    let fail = |source| Error::Read { path: path.into(), source };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| fail(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(fail(error)),
    }
}

fn write<T: Serialize>(path: &Path, record: &T, durable: bool) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(record)
        .map_err(|error| Error::Read { path: path.into(), source: error.into() })?;
    let written = match durable {
        true => rustiot_durable::atomic_write(path, &bytes),
        false => rustiot_durable::atomic_write_volatile(path, &bytes),
    };
    written.map_err(Error::Write)
}
