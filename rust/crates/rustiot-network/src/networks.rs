//! The engine's view: networks and endpoints, kept on record and made true in the kernel.
//!
//! Every call holds one lock: calls are short and change shared tables. It works in the network namespace of the thread
//! that opens it, and it must be called from that namespace. It never starts or stops a container.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;

use crate::{
    address::{self, AllocateError, Subnet},
    firewall::{self, Firewall},
    links::{self, Links, Pair},
    record::{
        self, BRIDGE_PREFIX, DEFAULT_NETWORK, Endpoint, Network, NetworkConfig, Protocol, Published,
        VETH_PREFIX,
    },
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
        subnet: Subnet,
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
        gateway: Ipv4Addr,
        /// The network's subnet.
        subnet: Subnet,
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
    /// The port leads to another container.
    #[error("port {port} of the host is published by container {container} already")]
    Published {
        /// The host's port.
        port: u16,
        /// By whom.
        container: String,
    },
    /// The port is a host service's, or the address is not the host's.
    #[error("port {port} of the host cannot be published; a service of the host may listen there")]
    HostPort {
        /// The host's port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An internal network has no way in.
    #[error("network {0} is internal: ports of its containers cannot be published")]
    Internal(String),
    /// A container's port is never 0.
    #[error("port 0 of a container cannot be published")]
    PortZero,
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
    /// Names by which the network's other containers know it: its own and its service's.
    pub aliases: BTreeSet<String>,
}

/// What a container got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its address and the length of its prefix.
    pub address: (Ipv4Addr, u8),
    /// The network's gateway; the default route leads there unless the network is internal or another one has it.
    pub gateway: Ipv4Addr,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The interface inside.
    pub interface: String,
    /// Name servers to write into the container. Empty: there is no resolver yet; give it the host's own servers.
    pub dns: Vec<Ipv4Addr>,
}

/// What [`Networks::reconcile`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Bridges that were made.
    pub made: Vec<String>,
    /// Links of ours that nothing on record needs: removed.
    pub removed: Vec<String>,
    /// Endpoints of containers that run no more: forgotten, their addresses free again.
    pub forgotten: Vec<Endpoint>,
    /// Endpoints of running containers whose link is gone: the engine has to restart the container. Forgotten too.
    pub broken: Vec<Endpoint>,
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
}

impl Networks {
    /// Opens the records: networks in `state` (durable), endpoints in `run` (gone with the next boot, as the links
    /// are). The kernel is left as it is until [`reconcile`](Self::reconcile), which comes before all else.
    ///
    /// # Errors
    /// [`Error::Read`] for records that cannot be read, [`Error::Links`] and [`Error::Firewall`] without netlink.
    pub fn open(state: &Path, run: &Path) -> Result<Networks, Error> {
        for directory in [state, run] {
            std::fs::create_dir_all(directory)
                .map_err(|source| Error::Read { path: directory.into(), source })?;
        }
        let (networks_file, endpoints_file) = (state.join("networks.json"), run.join("endpoints.json"));
        let inner = Inner {
            links: Links::open()?,
            firewall: Firewall::open()?,
            networks: read(&networks_file)?,
            endpoints: read(&endpoints_file)?,
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
            } else if found.get(&endpoint.link) != Some(&false) {
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
        write(&self.endpoints_file, &inner.endpoints, false)?;
        inner.apply().await?;
        if !forwards {
            links::forward()?;
        }
        for network in inner.networks.networks.values() {
            if inner.links.bridge(network).await? {
                done.made.push(network.bridge.clone());
            }
        }
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
        let network = inner.plan(name, config).await?;
        inner.networks.networks.insert(name.to_owned(), network.clone());
        let made = async {
            inner.apply().await?;
            inner.links.bridge(&network).await?;
            write(&self.networks_file, &inner.networks, true)
        }
        .await;
        if let Err(error) = made {
            inner.networks.networks.remove(name);
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
        inner.links.remove(&bridge).await?;
        inner.apply().await
    }

    /// All networks, by name.
    pub async fn list(&self) -> Vec<Network> {
        self.inner.lock().await.networks.networks.values().cloned().collect()
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
    pub async fn lookup(&self, network: &str, name: &str) -> Result<Vec<Ipv4Addr>, Error> {
        let inner = self.inner.lock().await;
        inner.network(network)?;
        let named = inner.endpoints.endpoints.iter().filter(|endpoint| {
            endpoint.network == network
                && endpoint.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
        });
        Ok(named.map(|endpoint| endpoint.address).collect())
    }

    /// Puts a container, whose network namespace is the file `namespace`, into a network.
    ///
    /// # Errors
    /// [`Error::NoNetwork`], [`Error::Attached`], [`Error::Address`], or what the kernel or the disk refused; then
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
        let address = address::allocate(network.subnet, &taken, last, wanted.address)
            .map_err(|source| Error::Address { network: network.name.clone(), source })?;
        let link = unused(VETH_PREFIX, (container, &network.name), |name| {
            inner.endpoints.endpoints.iter().any(|endpoint| endpoint.link == name)
        });
        let routed = |endpoint: &Endpoint| {
            endpoint.container == container
                && inner.networks.networks.get(&endpoint.network).is_some_and(|network| !network.internal)
        };
        let default_route = !network.internal && !inner.endpoints.endpoints.iter().any(routed);
        // A link of this name is a leftover: no endpoint has it.
        inner.links.remove(&link).await?;
        let pair = Pair { link: &link, namespace, address, default_route };
        let interface = inner.links.attach(&network, &pair).await?;
        let mut endpoints = inner.endpoints.clone();
        if wanted.address.is_none() {
            endpoints.last.insert(network.name.clone(), address);
        }
        endpoints.endpoints.push(Endpoint {
            container: container.into(),
            network: network.name,
            address,
            link: link.clone(),
            interface: interface.clone(),
            aliases: wanted.aliases,
            published: BTreeSet::new(),
        });
        if let Err(error) = write(&self.endpoints_file, &endpoints, false) {
            let _ = inner.links.remove(&link).await;
            return Err(error);
        }
        inner.endpoints = endpoints;
        Ok(Attachment {
            address: (address, network.subnet.prefix()),
            gateway: network.gateway,
            mac: address::mac(address),
            interface,
            dns: Vec::new(),
        })
    }

    /// Takes a container out of a network, with its published ports. It may be gone already, and its namespace with it.
    ///
    /// # Errors
    /// [`Error::NotAttached`], or what the kernel or the disk refused.
    pub async fn detach(&self, container: &str, network: &str) -> Result<(), Error> {
        let mut inner = self.inner.lock().await;
        let position = inner.position(container, network)?;
        let endpoint = inner.endpoints.endpoints.remove(position);
        inner.links.remove(&endpoint.link).await?;
        if !endpoint.published.is_empty() {
            inner.apply().await?;
        }
        write(&self.endpoints_file, &inner.endpoints, false)
    }

    /// Takes a container out of all its networks, when it has ended.
    ///
    /// # Errors
    /// What the kernel or the disk refused.
    pub async fn detach_all(&self, container: &str) -> Result<(), Error> {
        let networks: Vec<String> = {
            let inner = self.inner.lock().await;
            let its = inner.endpoints.endpoints.iter().filter(|endpoint| endpoint.container == container);
            its.map(|endpoint| endpoint.network.clone()).collect()
        };
        for network in networks {
            self.detach(container, &network).await?;
        }
        Ok(())
    }

    /// Lets a port of the host lead to a container. With host port 0, a free one is chosen; what was published is
    /// returned.
    ///
    /// # Errors
    /// [`Error::NotAttached`], [`Error::Internal`], [`Error::Published`], [`Error::HostPort`], [`Error::PortZero`], or
    /// what the kernel or the disk refused; then nothing of it stays.
    pub async fn publish(
        &self,
        container: &str,
        network: &str,
        published: Published,
    ) -> Result<Published, Error> {
        let mut inner = self.inner.lock().await;
        let position = inner.position(container, network)?;
        if inner.network(network)?.internal {
            return Err(Error::Internal(network.into()));
        }
        if published.container_port == 0 {
            return Err(Error::PortZero);
        }
        let published = inner.free_port(published)?;
        let mut endpoints = inner.endpoints.clone();
        if let Some(endpoint) = endpoints.endpoints.get_mut(position) {
            endpoint.published.insert(published);
        }
        inner.replace(endpoints, &self.endpoints_file).await?;
        Ok(published)
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

    /// Takes everything of ours out of the kernel: the table and all links. The records stay; `reconcile` builds it
    /// again. Forwarding stays as it is.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn clear(&self) -> Result<(), Error> {
        let inner = self.inner.lock().await;
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

    async fn apply(&self) -> Result<(), Error> {
        self.firewall.apply(&self.networks, &self.endpoints, self.endpoints.forwarding_is_ours).await?;
        Ok(())
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
        done
    }

    /// Checks a wish for a network and fills in what it leaves open.
    async fn plan(&self, name: &str, config: NetworkConfig) -> Result<Network, Error> {
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
        let overlap = |subnet: &Subnet| {
            let network = self.networks.networks.values().find(|network| network.subnet.overlaps(subnet));
            let network = network.map(|network| format!("network {} ({})", network.name, network.subnet));
            let route = || routes.iter().find(|(to, prefix)| subnet.overlaps_route(*to, *prefix));
            network.or_else(|| route().map(|(to, prefix)| format!("the host's route to {to}/{prefix}")))
        };
        let subnet = match config.subnet {
            Some(subnet) => match overlap(&subnet) {
                Some(other) => return Err(Error::Overlap { subnet, other }),
                None => subnet,
            },
            None => address::choose(|subnet| overlap(subnet).is_none()).ok_or(Error::NoSubnet)?,
        };
        let gateway = config.gateway.unwrap_or(subnet.first_host());
        if !subnet.usable(gateway) {
            return Err(Error::Gateway { gateway, subnet });
        }
        let bridge = unused(BRIDGE_PREFIX, name, |bridge| {
            self.networks.networks.values().any(|network| network.bridge == bridge)
        });
        Ok(Network {
            name: name.into(),
            bridge,
            subnet,
            gateway,
            internal: config.internal,
            host_ports: config.host_ports,
            labels: config.labels,
        })
    }

    /// Sees to it that the port is nobody's, or finds one for port 0.
    fn free_port(&self, wanted: Published) -> Result<Published, Error> {
        let clash = |published: &Published| {
            let clashes =
                |endpoint: &&Endpoint| endpoint.published.iter().any(|other| other.clashes(published));
            self.endpoints.endpoints.iter().find(clashes)
        };
        // A port that the kernel finds free may still be published: nothing listens there.
        let mut last = wanted.host_port;
        for _ in 0..100 {
            if wanted.host_port != 0
                && let Some(endpoint) = clash(&wanted)
            {
                return Err(Error::Published {
                    port: wanted.host_port,
                    container: endpoint.container.clone(),
                });
            }
            let port = bind(&wanted).map_err(|source| Error::HostPort { port: wanted.host_port, source })?;
            let found = Published { host_port: port, ..wanted };
            match clash(&found) {
                None => return Ok(found),
                Some(_) => last = port,
            }
        }
        Err(Error::HostPort { port: last, source: io::ErrorKind::AddrInUse.into() })
    }
}

/// Whether the host could listen there now; the port at which it could.
fn bind(published: &Published) -> io::Result<u16> {
    let address = (published.host_address.unwrap_or(Ipv4Addr::UNSPECIFIED), published.host_port);
    let bound = match published.protocol {
        Protocol::Tcp => TcpListener::bind(address)?.local_addr()?,
        Protocol::Udp => UdpSocket::bind(address)?.local_addr()?,
    };
    Ok(bound.port())
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
