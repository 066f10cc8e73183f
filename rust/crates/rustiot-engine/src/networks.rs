//! Containers in networks: namespaces, name files, published ports, what the API says of networks; over `rustiot-network`.
//!
//! Whatever is wrong with networks (no nf_tables in the kernel, a damaged record), the engine runs, with `host` and `none`;
//! the cause is told to who asks for more, and tried again. Called at start, end and by the API.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustiot_docker_api::types::{
    CreateNetwork, Created, EndpointSettings, EventKind, HostConfig, Ipam, IpamConfig, Network,
    NetworkContainer, NetworkSettings, PortBinding,
};
use rustiot_docker_api::{Error, lookup};
use rustiot_network::address::AllocateError;
use rustiot_network::{
    Config6, DEFAULT_NETWORK, Endpoint, HostPort, NetworkConfig, Protocol, Publish, Published, Wanted,
};

use crate::container::Container;
use crate::engine::Inner;
use crate::layout::Layout;
use crate::record::Record;

/// How often it is looked whether somebody else has changed what is ours.
const TEND: Duration = Duration::from_secs(5);
/// Services of the host that a network's containers may reach: `-o rustiot.host-ports=1883/tcp,123/udp`.
const HOST_PORTS: &str = "rustiot.host-ports";
/// Options of Docker's bridge that ask for what is the case anyway.
const AS_IT_IS: [(&str, &str); 5] = [
    ("com.docker.network.bridge.enable_icc", "true"),
    ("com.docker.network.bridge.enable_ip_masquerade", "true"),
    ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
    ("com.docker.network.bridge.gateway_mode_ipv4", "nat"),
    ("com.docker.network.bridge.gateway_mode_ipv6", "nat"),
];

/// What Docker writes into `hosts` of a container with IPv6 besides.
const HOSTS6: &str =
    "fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// What a start gets.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// `None` for the host's own; empty for a new one with nothing in it.
    pub namespace: Option<PathBuf>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The host, as the container sees it.
    pub gateway: Option<Ipv4Addr>,
    /// The server that knows names; none for the host's.
    pub server: Option<Ipv4Addr>,
    /// It knows names of containers, and asks the container's own servers for others.
    pub names: bool,
    /// Whose network it is in: its files are that one's.
    pub shared: Option<PathBuf>,
}

impl Attachment {
    /// `hosts`, `hostname` and `resolv.conf`.
    pub fn files(&self, record: &Record, hostname: &str) -> Vec<(&'static str, String)> {
        if let Some(other) = &self.shared {
            let of = |name| std::fs::read_to_string(other.join(name)).unwrap_or_default();
            return ["hosts", "hostname", "resolv.conf"].map(|name| (name, of(name))).into();
        }
        let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            hosts.push_str(HOSTS6);
        }
        if self.namespace.is_none() {
            hosts = std::fs::read_to_string("/etc/hosts").unwrap_or(hosts);
        }
        for entry in &record.host.extra_hosts {
            if let Some((name, address)) = entry.split_once([':', '=']) {
                let gateway = self.gateway.map_or_else(|| "127.0.0.1".to_owned(), |g| g.to_string());
                let address = match address {
                    "host-gateway" => &gateway,
                    other => other.trim_matches(['[', ']']),
                };
                hosts.push_str(&format!("{address}\t{name}\n"));
            }
        }
        for address in &self.addresses {
            hosts.push_str(&hosts_line(*address, record, hostname));
        }
        vec![
            ("hosts", hosts),
            ("hostname", format!("{hostname}\n")),
            ("resolv.conf", self.resolv_conf(record)),
        ]
    }

    fn resolv_conf(&self, record: &Record) -> String {
        let host = &record.host;
        // Where systemd-resolved serves 127.0.0.53, its upstream servers stand beside: a container cannot reach it.
        let own = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"]
            .iter()
            .find_map(|path| std::fs::read_to_string(path).ok())
            .unwrap_or_default();
        let mut text = String::new();
        match self.server {
            Some(server) if self.names || host.dns.is_empty() => {
                text.push_str(&format!("nameserver {server}\n"));
            }
            _ if host.dns.is_empty() => {
                text.extend(own.lines().filter(|l| l.starts_with("nameserver ")).map(|l| format!("{l}\n")));
            }
            _ => text.extend(host.dns.iter().map(|s| format!("nameserver {s}\n"))),
        }
        if host.dns_search.is_empty() {
            text.extend(own.lines().filter(|l| l.starts_with("search ")).map(|l| format!("{l}\n")));
        } else if host.dns_search != ["."] {
            text.push_str(&format!("search {}\n", host.dns_search.join(" ")));
        }
        let mut options = host.dns_options.clone();
        if self.names && !options.iter().any(|option| option.starts_with("ndots:")) {
            // A container's name is tried as it is before any domain is put behind it.
            options.push("ndots:0".to_owned());
        }
        if !options.is_empty() {
            text.push_str(&format!("options {}\n", options.join(" ")));
        }
        text
    }
}

fn hosts_line(address: IpAddr, record: &Record, hostname: &str) -> String {
    let domain = &record.config.domainname;
    if domain.is_empty() {
        format!("{address}\t{hostname}\n")
    } else {
        format!("{address}\t{hostname}.{domain} {hostname}\n")
    }
}

/// See the module.
pub struct Networks {
    namespaces: PathBuf,
    /// What makes them true in the kernel, or why there is nothing.
    bridges: Result<rustiot_network::Networks, String>,
    /// Why they are not usable yet.
    trouble: Mutex<Option<String>>,
}

impl Networks {
    /// Reads what is kept; changes nothing.
    pub fn open(layout: &Layout) -> Networks {
        let resolv_conf = Some(PathBuf::from("/etc/resolv.conf"));
        let bridges =
            rustiot_network::Networks::open(&layout.networks(), &layout.run.join("networks"), resolv_conf)
                .map_err(|error| chain(&error));
        let trouble = Some(bridges.as_ref().err().cloned().unwrap_or_else(|| "not begun".to_owned()));
        Networks { namespaces: layout.namespaces(), bridges, trouble: Mutex::new(trouble) }
    }

    /// Which network a container is in first.
    pub fn mode(record: &Record) -> &str {
        match record.host.network_mode.as_str() {
            "" | "default" => DEFAULT_NETWORK,
            mode => mode,
        }
    }

    /// Bridges, once they are usable.
    fn bridges(&self) -> Result<&rustiot_network::Networks, Error> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&self.bridges, &*trouble) {
            (Ok(bridges), None) => Ok(bridges),
            (_, Some(why)) | (Err(why), None) => Err(Error::Unavailable(format!(
                "networks other than host and none do not work on this device now: {why}"
            ))),
        }
    }

    /// The file of a container's network namespace.
    fn namespace(&self, id: &str) -> PathBuf {
        self.namespaces.join(id)
    }

    /// All networks, without their containers.
    pub async fn list(&self) -> Vec<Network> {
        let of = |name: &str| Network {
            name: name.to_owned(),
            id: format!("{name:0<64}"),
            scope: "local".to_owned(),
            driver: if name == "none" { "null" } else { name }.to_owned(),
            enable_ipv4: true,
            ..Network::default()
        };
        let mut all: Vec<Network> = ["host", "none"].map(of).into();
        if let Ok(bridges) = &self.bridges {
            all.extend(bridges.list().await.iter().map(shown));
        }
        all
    }

    /// The network that a client means.
    pub async fn find(&self, reference: &str) -> Result<Network, Error> {
        let all = self.list().await;
        let id = lookup::find(all.iter().map(|n| (n.id.as_str(), n.name.as_str())), reference)?;
        let id = id.map(str::to_owned);
        all.into_iter()
            .find(|n| id.as_ref() == Some(&n.id))
            .ok_or_else(|| Error::NoSuchNetwork(reference.to_owned()))
    }

    /// As `inspect` shows it: of now while it runs, else what it is to be in.
    pub fn settings(&self, container: &Container) -> NetworkSettings {
        if let Some(now) = container.live().network.clone() {
            return now;
        }
        NetworkSettings { networks: container.record().networks.clone(), ..NetworkSettings::default() }
    }
}

/// The engine's half of a network as the API has it.
fn shown(network: &rustiot_network::Network) -> Network {
    let of = |subnet: String, gateway: String| IpamConfig { subnet, gateway, ..IpamConfig::default() };
    let mut config = vec![of(network.subnet.to_string(), network.gateway.to_string())];
    config.extend(network.ipv6.map(|v6| of(v6.subnet.to_string(), v6.gateway.to_string())));
    Network {
        name: network.name.clone(),
        id: network.id.clone(),
        created: Some(network.created),
        scope: "local".to_owned(),
        driver: "bridge".to_owned(),
        enable_ipv4: true,
        enable_ipv6: network.ipv6.is_some(),
        ipam: Ipam { driver: "default".to_owned(), options: None, config },
        internal: network.internal,
        options: network.options.clone(),
        labels: network.labels.clone(),
        ..Network::default()
    }
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn parse_mac(text: &str) -> Result<Option<[u8; 6]>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes: Option<Vec<u8>> =
        text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    match bytes {
        // The lowest bit of the first byte is a group's.
        Some(bytes) if bytes[0] & 1 == 0 => Ok(Some(bytes)),
        _ => Err(Error::Invalid(format!("invalid MAC address: {text}"))),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// A refusal in Docker's words, where its clients show them.
fn refused(error: rustiot_network::Error) -> Error {
    use rustiot_network::Error as Refused;
    let own = error.to_string();
    match error {
        Refused::NoNetwork(name) => Error::NoSuchNetwork(name),
        Refused::Exists(name) => Error::Conflict(format!("network with name {name} already exists")),
        Refused::Name(_)
        | Refused::Gateway { .. }
        | Refused::PortZero
        | Refused::Loopback6
        | Refused::NoIpv6 { .. } => Error::Invalid(own),
        Refused::Default => {
            Error::Forbidden(format!("{DEFAULT_NETWORK} is a pre-defined network and cannot be removed"))
        }
        Refused::InUse { network, .. } => {
            Error::Forbidden(format!("error while removing network: network {network} has active endpoints"))
        }
        Refused::Overlap { .. } => Error::Forbidden(format!(
            "invalid pool request: Pool overlaps with other one on this address space: {own}"
        )),
        Refused::NoSubnet => Error::Failed {
            message: format!("all predefined address pools have been fully subnetted: {own}"),
            source: None,
        },
        Refused::Address { network, source } => match source {
            AllocateError::Exhausted(ref subnet) => {
                let kind = if subnet.contains(':') { "IPv6" } else { "IPv4" };
                let message = format!(
                    "no available {kind} addresses on the address pool of network {network}: {source}"
                );
                Error::Failed { message, source: None }
            }
            AllocateError::Taken(_) => Error::Forbidden(format!("Address already in use: {source}")),
            AllocateError::Unusable { address, .. } => Error::Invalid(format!(
                "invalid config for network {network}: no configured subnet contains IP address {address}"
            )),
        },
        Refused::Attached { container, network } => {
            Error::Forbidden(format!("endpoint with name {container} already exists in network {network}"))
        }
        Refused::NotAttached { container, network } => {
            Error::Forbidden(format!("container {container} is not connected to network {network}"))
        }
        Refused::Internal(_) => Error::Invalid(own),
        other => Error::failed("the container's network", other),
    }
}

/// Why a port cannot be published, as Docker tells it.
fn unpublishable(error: rustiot_network::Error, record: &Record) -> Error {
    use rustiot_network::Error as Refused;
    let why = match &error {
        Refused::Published { address, port, container } => {
            let at = host_end(*address, *port);
            format!("Bind for {at} failed: port is already allocated (by container {container:.12})")
        }
        Refused::HostPort { address, port, source } => {
            format!("failed to bind host port {}: {source}", host_end(*address, *port))
        }
        _ => return refused(error),
    };
    let message = format!(
        "failed to set up container networking: driver failed programming external connectivity on endpoint {} ({}): {why}",
        record.name, record.id
    );
    Error::Failed { message, source: None }
}

fn host_end(address: Option<IpAddr>, port: u16) -> SocketAddr {
    (address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port).into()
}

/// `80/tcp`.
fn port_of(text: &str) -> Result<(Protocol, u16), Error> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let bad = || Error::Invalid(format!("invalid port specification: {text:?}"));
    let number: u16 = number.parse().map_err(|_| bad())?;
    match (protocol.to_ascii_lowercase().as_str(), number) {
        (_, 0) => Err(bad()),
        ("tcp", _) => Ok((Protocol::Tcp, number)),
        ("udp", _) => Ok((Protocol::Udp, number)),
        (other, _) => Err(Error::Unsupported(format!(
            "ports of {other} cannot be published by this engine: use tcp or udp"
        ))),
    }
}

/// What is to be published.
///
/// # Errors
/// A port or an address that is none.
pub fn wishes(record: &Record) -> Result<Vec<Publish>, Error> {
    let host = &record.host;
    let mut all = Vec::new();
    for (port, bindings) in &host.port_bindings {
        let (protocol, container_port) = port_of(port)?;
        for binding in bindings.iter().flatten() {
            let bad = || Error::Invalid(format!("invalid port specification: {:?}", binding.host_port));
            let host_address = match binding.host_ip.as_str() {
                "" => None,
                text => match text.trim_matches(['[', ']']).parse::<IpAddr>() {
                    Ok(address) => Some(address.to_canonical()),
                    Err(_) => return Err(Error::Invalid(format!("invalid IP address: {text:?}"))),
                },
            };
            let (first, last) = match binding.host_port.as_str() {
                "" => ("0", "0"),
                text => text.split_once('-').unwrap_or((text, text)),
            };
            let host_ports: (u16, u16) =
                (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
            if host_ports.0 > host_ports.1 || (host_ports.0 == 0 && host_ports.1 != 0) {
                return Err(bad());
            }
            all.push(Publish { protocol, host_address, host_ports, container_port });
        }
    }
    if host.publish_all_ports {
        for port in record.config.exposed_ports.keys() {
            if host.port_bindings.get(port).is_none_or(|b| b.as_ref().is_none_or(Vec::is_empty)) {
                let (protocol, container_port) = port_of(port)?;
                all.push(Publish { protocol, host_address: None, host_ports: (0, 0), container_port });
            }
        }
    }
    Ok(all)
}

/// Whether the wishes for networks make sense together; what the person should know though they do.
///
/// # Errors
/// They do not.
pub fn check(record: &Record) -> Result<Vec<String>, Error> {
    let mode = Networks::mode(record);
    let publishes = !wishes(record)?.is_empty();
    let mut warnings = Vec::new();
    if mode.starts_with("container:") && publishes {
        return Err(Error::Invalid(
            "conflicting options: port publishing and the container type network mode".to_owned(),
        ));
    }
    if mode == "host" && publishes {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    for (name, settings) in &record.networks {
        parse_mac(&settings.mac_address)?;
        let address = wanted_address(settings)?;
        let alone = matches!(mode, "host" | "none") || mode.starts_with("container:");
        if alone && name != mode {
            return Err(shares(mode));
        }
        if name == DEFAULT_NETWORK {
            if address != (None, None) {
                return Err(Error::Invalid(
                    "user specified IP address is supported on user defined networks only".to_owned(),
                ));
            }
            if settings.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
                return Err(Error::Invalid(
                    "network-scoped aliases are only supported for user-defined networks".to_owned(),
                ));
            }
        }
        if settings.links.as_ref().is_some_and(|links| !links.is_empty()) {
            return Err(Error::Unsupported(
                "links are not supported by this engine: containers of one network know each other by name"
                    .to_owned(),
            ));
        }
    }
    for server in &record.host.dns {
        if server.parse::<IpAddr>().is_err() {
            return Err(Error::Invalid(format!("invalid IP address: {server:?}")));
        }
    }
    Ok(warnings)
}

fn shares(mode: &str) -> Error {
    Error::Invalid(match mode {
        "none" => "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        "host" => "container cannot be disconnected from host network or connected to host network",
        _ => "container sharing network namespace with another container or host cannot be connected to any other network",
    }.to_owned())
}

/// Fixed addresses.
fn wanted_address(settings: &EndpointSettings) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), Error> {
    fn of<A: FromStr>(kind: &str, text: &str) -> Result<Option<A>, Error> {
        match text {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Error::Invalid(format!("invalid {kind} address: {text:?}"))),
        }
    }
    let Some(ipam) = &settings.ipam_config else { return Ok((None, None)) };
    Ok((of("IPv4", &ipam.ipv4_address)?, of("IPv6", &ipam.ipv6_address)?))
}

/// The names by which a network knows a container, its own first.
fn aliases(record: &Record, settings: &EndpointSettings) -> Vec<String> {
    let mut all = vec![record.name.clone()];
    let short = record.id.get(..12).unwrap_or(&record.id).to_owned();
    let more = settings.aliases.iter().flatten().cloned();
    for name in more.chain([short, record.config.hostname.clone()]) {
        if !name.is_empty() && !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

fn settings_of(
    wanted: &EndpointSettings,
    network: &rustiot_network::Network,
    endpoint: &Endpoint,
) -> EndpointSettings {
    let ipv6 = network.ipv6;
    EndpointSettings {
        mac_address: mac(endpoint.mac),
        network_id: network.id.clone(),
        endpoint_id: endpoint.id.clone(),
        gateway: if network.internal { String::new() } else { network.gateway.to_string() },
        ip_address: endpoint.address.to_string(),
        ip_prefix_len: network.subnet.prefix(),
        ipv6_gateway: ipv6.filter(|_| !network.internal).map(|v6| v6.gateway.to_string()).unwrap_or_default(),
        global_ipv6_address: endpoint.address6.map(|address| address.to_string()).unwrap_or_default(),
        global_ipv6_prefix_len: ipv6.map(|v6| v6.subnet.prefix()).unwrap_or_default(),
        dns_names: (network.name != DEFAULT_NETWORK).then(|| endpoint.aliases.clone()),
        ..wanted.clone()
    }
}

/// `80/tcp` → where it is published; what is only exposed has nothing behind it.
fn published_ports(
    record: &Record,
    places: &[(rustiot_network::Network, Endpoint)],
) -> BTreeMap<String, Option<Vec<PortBinding>>> {
    let mut ports: BTreeMap<String, Option<Vec<PortBinding>>> =
        record.config.exposed_ports.keys().map(|port| (port.clone(), None)).collect();
    for (_, endpoint) in places {
        for published in &endpoint.published {
            let protocol = match published.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            let addresses = match published.host_address {
                Some(address) => vec![address],
                None if endpoint.address6.is_some() => all.into(),
                None => all.into_iter().take(1).collect(),
            };
            let port = format!("{}/{protocol}", published.container_port);
            let bindings = ports.entry(port).or_default().get_or_insert_default();
            bindings.extend(addresses.into_iter().map(|address: IpAddr| PortBinding {
                host_ip: address.to_string(),
                host_port: published.host_port.to_string(),
            }));
        }
    }
    ports
}

/// Makes a network namespace that a file stands for.
fn make_namespace(path: &Path) -> io::Result<()> {
    remove_namespace(path);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    let path = path.to_owned();
    // A thread of its own: the namespace is the thread's, and goes with it but for the file.
    let made = std::thread::spawn(move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none = None::<&str>;
        mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)?;
        Ok(())
    });
    made.join().map_err(|_| io::Error::other("the thread that made it has ended"))?
}

fn remove_namespace(path: &Path) {
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    let _ = std::fs::remove_file(path);
}

/// Writes into a file that is mounted into a container: another file in its place would not be seen there.
fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())
}

impl Inner {
    /// Puts a container that is to start into its networks.
    ///
    /// # Errors
    /// A network does not exist or cannot be joined; a port cannot be published. What was done is undone by
    /// [`leave_networks`](Self::leave_networks).
    pub async fn join_networks(&self, container: &Arc<Container>) -> Result<Attachment, Error> {
        let record = container.record().clone();
        let mode = Networks::mode(&record).to_owned();
        let alone = |namespace| {
            let settings =
                NetworkSettings { networks: record.networks.clone(), ..NetworkSettings::default() };
            container.live().network = Some(settings);
            Ok(Attachment { namespace, ..Attachment::default() })
        };
        match mode.as_str() {
            "host" => return alone(None),
            "none" => return alone(Some(PathBuf::new())),
            _ => {}
        }
        if let Some(other) = mode.strip_prefix("container:") {
            let other = self.find(other)?;
            if !other.runs() {
                return Err(Error::Conflict(format!(
                    "cannot join network of a non running container: {}",
                    other.id
                )));
            }
            container.live().network = Some(NetworkSettings::default());
            let theirs = Networks::mode(&other.record()).to_owned();
            let pid = other.live().pid;
            let namespace = (theirs != "host").then(|| PathBuf::from(format!("/proc/{pid}/ns/net")));
            let shared = Some(self.layout.running(&other.id));
            return Ok(Attachment { namespace, shared, ..Attachment::default() });
        }
        let bridges = self.networks.bridges()?;
        let namespace = self.networks.namespace(&container.id);
        make_namespace(&namespace)
            .map_err(|e| Error::failed("cannot make a network namespace for the container", e))?;
        // Where its way out goes first: what is asked for, then the one that it was made for.
        let mut order: Vec<(&String, &EndpointSettings)> = record.networks.iter().collect();
        order.sort_by_key(|(name, settings)| (-settings.gw_priority, **name != mode, (*name).clone()));
        for (name, settings) in order {
            self.attach(bridges, container, &namespace, name, settings).await?;
        }
        self.publish(bridges, container).await?;
        self.refresh(bridges, container).await;
        let places = bridges.places(&container.id).await;
        Ok(self.attachment(bridges, &places, namespace).await)
    }

    async fn attachment(
        &self,
        bridges: &rustiot_network::Networks,
        places: &[(rustiot_network::Network, Endpoint)],
        namespace: PathBuf,
    ) -> Attachment {
        // The first that knows names, else the first.
        let user = places.iter().find(|(network, _)| network.name != DEFAULT_NETWORK);
        let asked = user.or_else(|| places.first());
        let mut server = None;
        if let Some((network, _)) = asked
            && bridges.answers_dns(&network.name).await
        {
            server = Some(network.gateway);
        }
        Attachment {
            namespace: Some(namespace),
            addresses: places
                .iter()
                .flat_map(|(_, e)| [Some(IpAddr::V4(e.address)), e.address6.map(IpAddr::V6)])
                .flatten()
                .collect(),
            gateway: places.first().map(|(network, _)| network.gateway),
            server,
            names: user.is_some(),
            shared: None,
        }
    }

    async fn attach(
        &self,
        bridges: &rustiot_network::Networks,
        container: &Container,
        namespace: &Path,
        name: &str,
        settings: &EndpointSettings,
    ) -> Result<(), Error> {
        let record = container.record().clone();
        let servers = record.host.dns.iter().filter_map(|server| server.parse().ok());
        let (address, address6) = wanted_address(settings)?;
        let before = container.live().addresses.get(name).copied();
        let wanted = Wanted {
            address,
            preferred: before.map(|(address, _)| address),
            address6,
            preferred6: before.and_then(|(_, address6)| address6),
            mac: parse_mac(&settings.mac_address)?,
            aliases: aliases(&record, settings),
            servers: if name == DEFAULT_NETWORK { Vec::new() } else { servers.collect() },
        };
        let attached = bridges.attach(&container.id, namespace, name, wanted).await.map_err(refused)?;
        let got = (attached.address.0, attached.address6.map(|(address, _)| address));
        container.live().addresses.insert(name.to_owned(), got);
        if let Ok((network, _)) = bridges.inspect(name).await {
            self.say_of_network(&network, "connect", Some(&container.id));
        }
        Ok(())
    }

    /// Publishes its ports in the network through which its way out goes, unless they are already.
    async fn publish(&self, bridges: &rustiot_network::Networks, container: &Container) -> Result<(), Error> {
        let record = container.record().clone();
        let wanted = wishes(&record)?;
        let places = bridges.places(&container.id).await;
        if wanted.is_empty() || places.iter().any(|(_, endpoint)| !endpoint.published.is_empty()) {
            return Ok(());
        }
        let Some((network, _)) = places.iter().find(|(network, _)| !network.internal) else { return Ok(()) };
        bridges
            .publish(&container.id, &network.name, &wanted)
            .await
            .map_err(|error| unpublishable(error, &record))?;
        Ok(())
    }

    /// Writes down what `inspect` is to show.
    async fn refresh(&self, bridges: &rustiot_network::Networks, container: &Container) {
        let places = bridges.places(&container.id).await;
        let record = container.record().clone();
        let mut settings = NetworkSettings {
            sandbox_id: container.id.clone(),
            sandbox_key: self.networks.namespace(&container.id).to_string_lossy().into_owned(),
            ports: published_ports(&record, &places),
            ..NetworkSettings::default()
        };
        for (network, endpoint) in &places {
            let wanted = record.networks.get(&network.name).cloned().unwrap_or_default();
            let of = settings_of(&wanted, network, endpoint);
            if network.name == DEFAULT_NETWORK {
                settings.endpoint_id.clone_from(&of.endpoint_id);
                settings.gateway.clone_from(&of.gateway);
                settings.ip_address.clone_from(&of.ip_address);
                settings.ip_prefix_len = of.ip_prefix_len;
                settings.ipv6_gateway.clone_from(&of.ipv6_gateway);
                settings.global_ipv6_address.clone_from(&of.global_ipv6_address);
                settings.global_ipv6_prefix_len = of.global_ipv6_prefix_len;
                settings.mac_address.clone_from(&of.mac_address);
            }
            settings.networks.insert(network.name.clone(), of);
        }
        let mut live = container.live();
        for (network, endpoint) in &places {
            live.addresses.insert(network.name.clone(), (endpoint.address, endpoint.address6));
        }
        live.network = Some(settings);
    }

    /// It has ended.
    pub async fn leave_networks(&self, container: &Container) {
        if let Ok(bridges) = &self.networks.bridges {
            for (network, _) in bridges.places(&container.id).await {
                self.say_of_network(&network, "disconnect", Some(&container.id));
            }
            if let Err(error) = bridges.detach_all(&container.id).await {
                eprintln!(
                    "rustiot-engine: {} may have left links behind: {}",
                    container.name(),
                    chain(&error)
                );
            }
        }
        remove_namespace(&self.networks.namespace(&container.id));
        container.live().network = None;
    }

    /// At the engine's start: what is kept becomes true, what an engine that is gone has left behind goes, and containers
    /// that run since then are known again.
    pub async fn begin_networks(self: &Arc<Self>) {
        self.reconcile_networks().await;
        for entry in std::fs::read_dir(&self.networks.namespaces).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let runs = self.containers().get(&id).is_some_and(|container| container.runs());
            if !runs {
                remove_namespace(&entry.path());
            }
        }
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TEND).await;
                let Some(this) = this.upgrade() else { return };
                this.tend_networks().await;
            }
        });
    }

    async fn reconcile_networks(&self) {
        let Ok(bridges) = &self.networks.bridges else {
            self.trouble(self.networks.bridges.as_ref().err().cloned());
            return;
        };
        let all: Vec<Arc<Container>> = self.containers().values().cloned().collect();
        let running: BTreeSet<String> =
            all.iter().filter(|c| c.runs()).map(|container| container.id.clone()).collect();
        match bridges.reconcile(&running).await {
            Ok(done) => {
                self.trouble(None);
                for (network, error) in done.unserved {
                    eprintln!("rustiot-engine: network {network} has no name server for now: {error}");
                }
                for endpoint in done.broken {
                    self.attach_again(bridges, &endpoint).await;
                }
                for container in all.iter().filter(|container| container.runs()) {
                    let mode = Networks::mode(&container.record()).to_owned();
                    if !matches!(mode.as_str(), "host" | "none") && !mode.starts_with("container:") {
                        self.refresh(bridges, container).await;
                    }
                }
            }
            Err(error) => self.trouble(Some(chain(&error))),
        }
    }

    /// Says what is wrong, once.
    fn trouble(&self, why: Option<String>) {
        let mut trouble = self.networks.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &why
            && trouble.as_ref() != Some(why)
        {
            eprintln!("rustiot-engine: networks other than host and none do not work: {why}");
        }
        *trouble = why;
    }

    async fn tend_networks(&self) {
        let Ok(bridges) = self.networks.bridges() else {
            if self.networks.bridges.is_ok() {
                self.reconcile_networks().await;
            }
            return;
        };
        let done = match bridges.mend().await {
            Ok(done) => done,
            Err(error) => {
                eprintln!("rustiot-engine: cannot see to the networks: {}", chain(&error));
                return;
            }
        };
        let mut what = Vec::new();
        if done.forwarding {
            what.push("forwarding was off".to_owned());
        }
        what.extend(done.bridges.iter().map(|network| format!("the bridge of {network} was changed")));
        what.extend(done.links.iter().map(|link| format!("{link} was out of its bridge")));
        what.extend(done.broken.iter().map(|e| format!("a link of container {:.12} was gone", e.container)));
        if !what.is_empty() {
            eprintln!("rustiot-engine: made the networks right again: {}", what.join(", "));
        }
        for endpoint in done.broken {
            self.attach_again(bridges, &endpoint).await;
        }
    }

    /// A running container whose link was taken away gets one like it.
    async fn attach_again(&self, bridges: &rustiot_network::Networks, endpoint: &Endpoint) {
        let Ok(container) = self.find(&endpoint.container) else { return };
        let _guard = container.change.lock().await;
        if !container.runs() {
            return;
        }
        let namespace = PathBuf::from(format!("/proc/{}/ns/net", container.live().pid));
        let wanted = Wanted {
            address: Some(endpoint.address),
            preferred: None,
            address6: endpoint.address6,
            preferred6: None,
            mac: Some(endpoint.mac),
            aliases: endpoint.aliases.clone(),
            servers: endpoint.servers.clone(),
        };
        let again = |p: &Published| Publish {
            protocol: p.protocol,
            host_address: p.host_address,
            host_ports: (p.host_port, p.host_port),
            container_port: p.container_port,
        };
        let ports: Vec<Publish> = endpoint.published.iter().map(again).collect();
        let done = async {
            bridges.attach(&endpoint.container, &namespace, &endpoint.network, wanted).await?;
            if !ports.is_empty() {
                bridges.publish(&endpoint.container, &endpoint.network, &ports).await?;
            }
            Ok::<(), rustiot_network::Error>(())
        };
        if let Err(error) = done.await {
            eprintln!(
                "rustiot-engine: {} has lost its place in network {}, restart it: {}",
                container.name(),
                endpoint.network,
                chain(&error)
            );
        }
        self.refresh(bridges, &container).await;
    }

    fn say_of_network(&self, network: &rustiot_network::Network, action: &str, container: Option<&str>) {
        let mut attributes: BTreeMap<String, String> =
            [("name".to_owned(), network.name.clone()), ("type".to_owned(), "bridge".to_owned())].into();
        attributes.extend(container.map(|id| ("container".to_owned(), id.to_owned())));
        self.events.say(EventKind::Network, action, &network.id, attributes);
    }

    /// The networks of a container that is to be made, by their names, with the one of its mode.
    pub async fn resolve_networks(
        &self,
        host: &HostConfig,
        wanted: BTreeMap<String, EndpointSettings>,
    ) -> Result<BTreeMap<String, EndpointSettings>, Error> {
        let mut networks = BTreeMap::new();
        let mode = host.network_mode.clone();
        if mode.starts_with("container:") {
            return match wanted.is_empty() {
                true => Ok(networks),
                false => Err(shares(&mode)),
            };
        }
        for (reference, mut settings) in wanted.into_iter().chain([(mode, EndpointSettings::default())]) {
            // One that does not exist is told at the start, as Docker does it.
            let name = match self.networks.find(&reference).await {
                Ok(network) => {
                    settings.network_id = network.id;
                    network.name
                }
                Err(_) => reference,
            };
            networks.entry(name).or_insert(settings);
        }
        Ok(networks)
    }

    /// A network and who is in it.
    pub async fn show_network(&self, reference: &str) -> Result<Network, Error> {
        let mut network = self.networks.find(reference).await?;
        if let Ok(bridges) = &self.networks.bridges
            && let Ok((of, endpoints)) = bridges.inspect(&network.name).await
        {
            for endpoint in endpoints {
                let name = self.containers().get(&endpoint.container).map(|c| c.name()).unwrap_or_default();
                let container = NetworkContainer {
                    name,
                    endpoint_id: endpoint.id,
                    mac_address: mac(endpoint.mac),
                    ipv4_address: format!("{}/{}", endpoint.address, of.subnet.prefix()),
                    ipv6_address: endpoint
                        .address6
                        .zip(of.ipv6)
                        .map(|(address, v6)| format!("{address}/{}", v6.subnet.prefix()))
                        .unwrap_or_default(),
                };
                network.containers.insert(endpoint.container, container);
            }
        }
        Ok(network)
    }

    /// # Errors
    /// It cannot be made as it is wanted.
    pub async fn make_network(&self, request: CreateNetwork) -> Result<Created, Error> {
        let bridges = self.networks.bridges()?;
        let (config, warnings) = config_of(&request)?;
        let network = bridges.create(&request.name, config).await.map_err(refused)?;
        self.say_of_network(&network, "create", None);
        Ok(Created { id: network.id, warnings })
    }

    /// # Errors
    /// It is in use, or always there.
    pub async fn drop_network(&self, reference: &str) -> Result<(), Error> {
        let network = self.networks.find(reference).await?;
        if matches!(network.name.as_str(), "host" | "none" | DEFAULT_NETWORK) {
            return Err(Error::Forbidden(format!(
                "{} is a pre-defined network and cannot be removed",
                network.name
            )));
        }
        let bridges = self.networks.bridges()?;
        let (of, _) = bridges.inspect(&network.name).await.map_err(refused)?;
        bridges.remove(&network.name).await.map_err(refused)?;
        self.say_of_network(&of, "destroy", None);
        Ok(())
    }

    /// Puts a container into one more network, at once if it runs. With `change` held.
    ///
    /// # Errors
    /// It is in it, shares a network with somebody, or the network cannot be joined.
    pub async fn connect(
        &self,
        reference: &str,
        container: &Arc<Container>,
        mut settings: EndpointSettings,
    ) -> Result<(), Error> {
        let network = self.networks.find(reference).await?;
        let mut record = container.record().clone();
        let mode = Networks::mode(&record).to_owned();
        for alone in [mode.as_str(), network.name.as_str()] {
            if matches!(alone, "host" | "none") || alone.starts_with("container:") {
                return Err(shares(alone));
            }
        }
        if record.networks.contains_key(&network.name) {
            return Err(Error::Forbidden(format!(
                "endpoint with name {} already exists in network {}",
                record.name, network.name
            )));
        }
        settings.network_id = network.id;
        record.networks.insert(network.name.clone(), settings.clone());
        check(&record)?;
        if container.runs() {
            let bridges = self.networks.bridges()?;
            let namespace = PathBuf::from(format!("/proc/{}/ns/net", container.live().pid));
            self.attach(bridges, container, &namespace, &network.name, &settings).await?;
            let published = self.publish(bridges, container).await;
            if published.is_err() {
                let _ = bridges.detach(&container.id, &network.name).await;
                return published;
            }
        }
        self.keep_networks(container, record).await
    }

    /// Takes a container out of a network. With `change` held.
    ///
    /// # Errors
    /// It is not in it.
    pub async fn disconnect(&self, reference: &str, container: &Arc<Container>) -> Result<(), Error> {
        let network = self.networks.find(reference).await?;
        let mut record = container.record().clone();
        if network.name == "host" && Networks::mode(&record) == "host" {
            return Err(shares("host"));
        }
        if record.networks.remove(&network.name).is_none() {
            return Err(Error::Forbidden(format!(
                "container {} is not connected to network {}",
                container.id, network.name
            )));
        }
        if container.runs()
            && let Ok(bridges) = self.networks.bridges()
        {
            match bridges.detach(&container.id, &network.name).await {
                Ok(_) | Err(rustiot_network::Error::NotAttached { .. }) => {}
                Err(error) => return Err(refused(error)),
            }
            if let Ok((of, _)) = bridges.inspect(&network.name).await {
                self.say_of_network(&of, "disconnect", Some(&container.id));
            }
            self.publish(bridges, container).await?;
        }
        self.keep_networks(container, record).await
    }

    /// Keeps a container's new networks, and shows them to it.
    async fn keep_networks(&self, container: &Arc<Container>, record: Record) -> Result<(), Error> {
        let networks = record.networks.clone();
        let what = "cannot keep the container's networks";
        self.keep(container, what, |kept| kept.networks.clone_from(&networks)).await?;
        let Ok(bridges) = &self.networks.bridges else { return Ok(()) };
        if !container.runs() {
            return Ok(());
        }
        let old: Vec<String> = {
            let live = container.live();
            let all = live.network.iter().flat_map(|settings| settings.networks.values());
            all.flat_map(|s| [s.ip_address.clone(), s.global_ipv6_address.clone()]).collect()
        };
        self.refresh(bridges, container).await;
        let places = bridges.places(&container.id).await;
        let attachment = self.attachment(bridges, &places, self.networks.namespace(&container.id)).await;
        let directory = self.layout.running(&container.id);
        let hostname = crate::lifecycle::hostname(&record);
        // The container may have written into it: only lines of its own addresses change.
        let hosts = directory.join("hosts");
        let mut text: String = std::fs::read_to_string(&hosts)
            .unwrap_or_default()
            .lines()
            .filter(|line| !old.iter().any(|a| line.split_ascii_whitespace().next() == Some(a.as_str())))
            .map(|line| format!("{line}\n"))
            .collect();
        for address in &attachment.addresses {
            text.push_str(&hosts_line(*address, &record, &hostname));
        }
        let files = attachment.files(&record, &hostname);
        let resolv_conf = files.into_iter().find(|(name, _)| *name == "resolv.conf").map(|(_, text)| text);
        let written = write_in_place(&hosts, &text).and_then(|()| {
            write_in_place(&directory.join("resolv.conf"), resolv_conf.as_deref().unwrap_or_default())
        });
        written.map_err(|e| Error::failed("cannot write the container's files", e))
    }

    /// A running container has another name: so it has in its networks.
    pub async fn rename_in_networks(&self, container: &Container) {
        let Ok(bridges) = self.networks.bridges() else { return };
        let record = container.record().clone();
        for (network, _) in bridges.places(&container.id).await {
            let settings = record.networks.get(&network.name).cloned().unwrap_or_default();
            let names = aliases(&record, &settings);
            if let Err(error) = bridges.rename(&container.id, &network.name, names).await {
                eprintln!(
                    "rustiot-engine: {} keeps its old name in {}: {}",
                    record.name,
                    network.name,
                    chain(&error)
                );
            }
        }
        self.refresh(bridges, container).await;
    }
}

/// What is wanted of a network, checked, and what the person should know.
fn config_of(request: &CreateNetwork) -> Result<(NetworkConfig, Vec<String>), Error> {
    if !["", "bridge"].contains(&request.driver.as_str()) {
        return Err(Error::Unsupported(format!(
            "the network driver {:?} is not supported by this engine: use bridge",
            request.driver
        )));
    }
    if request.enable_ipv4 == Some(false) {
        return Err(Error::Unsupported(
            "networks of this engine always have IPv4: make it without --ipv4=false".to_owned(),
        ));
    }
    let ipam = &request.ipam;
    if !["", "default"].contains(&ipam.driver.as_str()) {
        return Err(Error::Unsupported(format!(
            "the address management {:?} is not supported by this engine: use default",
            ipam.driver
        )));
    }
    let mut config = NetworkConfig {
        internal: request.internal,
        labels: request.labels.clone(),
        options: request.options.clone(),
        ..NetworkConfig::default()
    };
    let mut warnings = Vec::new();
    let mut config6 = Config6::default();
    for one in &ipam.config {
        if !one.ip_range.is_empty() || !one.auxiliary_addresses.is_empty() {
            return Err(Error::Unsupported(
                "address ranges and reserved addresses of a network are not supported by this engine: give a subnet"
                    .to_owned(),
            ));
        }
        if one.subnet.is_empty() {
            if !one.gateway.is_empty() {
                return Err(Error::Invalid("a gateway needs a subnet".to_owned()));
            }
            continue;
        }
        let twice = if one.subnet.contains(':') {
            if request.enable_ipv6 != Some(true) {
                // As with Docker, but said.
                warnings
                    .push(format!("the network is made without IPv6: its subnet {} is not used", one.subnet));
                continue;
            }
            config6.gateway = address_of(&one.gateway)?;
            config6.subnet.replace(subnet_of(&one.subnet)?).is_some()
        } else {
            config.gateway = address_of(&one.gateway)?;
            config.subnet.replace(subnet_of(&one.subnet)?).is_some()
        };
        if twice {
            return Err(Error::Unsupported(
                "a network of this engine has one IPv4 subnet and, with --ipv6, one IPv6 subnet".to_owned(),
            ));
        }
    }
    config.ipv6 = (request.enable_ipv6 == Some(true)).then_some(config6);
    for (name, value) in &request.options {
        if name == HOST_PORTS {
            for port in value.split(',').map(str::trim).filter(|port| !port.is_empty()) {
                let (protocol, port) = port_of(port)?;
                config.host_ports.insert(HostPort { protocol, port });
            }
        } else if !AS_IT_IS.contains(&(name.as_str(), value.as_str())) {
            return Err(Error::Unsupported(format!(
                "the network option {name}={value} is not supported by this engine"
            )));
        }
    }
    Ok((config, warnings))
}

fn subnet_of<S: FromStr<Err = rustiot_network::address::SubnetError>>(text: &str) -> Result<S, Error> {
    text.parse().map_err(|e| Error::Invalid(format!("invalid subnet {text}: {e}")))
}

fn address_of<A: FromStr>(text: &str) -> Result<Option<A>, Error> {
    match text {
        "" => Ok(None),
        text => {
            text.parse().map(Some).map_err(|_| Error::Invalid(format!("invalid gateway address: {text:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_checked() {
        assert_eq!(parse_mac("").unwrap(), None);
        assert_eq!(parse_mac("02:42:ac:11:00:02").unwrap(), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        for bad in ["02:42:ac:11:00", "02:42:ac:11:00:02:03", "x", "03:42:ac:11:00:02", "02:42:ac:11:00:1ff"]
        {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_are_made_as_they_are_wanted_or_refused() {
        let ipam = |config: IpamConfig| Ipam { config: vec![config], ..Ipam::default() };
        let fine = CreateNetwork {
            name: "n".into(),
            ipam: ipam(IpamConfig {
                subnet: "10.1.0.0/24".into(),
                gateway: "10.1.0.9".into(),
                ..IpamConfig::default()
            }),
            options: [(HOST_PORTS.to_owned(), "1883/tcp, 123/udp".to_owned())].into(),
            ..CreateNetwork::default()
        };
        let config = config_of(&fine).unwrap().0;
        assert_eq!(config.gateway, Some(Ipv4Addr::new(10, 1, 0, 9)));
        assert_eq!(config.host_ports.len(), 2);
        let with = |change: fn(&mut CreateNetwork)| {
            let mut request = fine.clone();
            change(&mut request);
            config_of(&request).unwrap_err().status()
        };
        assert_eq!(with(|r| r.driver = "macvlan".into()), 501);
        assert_eq!(with(|r| r.enable_ipv4 = Some(false)), 501);
        assert_eq!(with(|r| r.ipam.driver = "dhcp".into()), 501);
        assert_eq!(with(|r| r.ipam.config[0].subnet = "10.1.0.1/24".into()), 400);
        assert_eq!(with(|r| r.ipam.config[0].subnet.clear()), 400);
        assert_eq!(with(|r| r.ipam.config[0].ip_range = "10.1.0.0/25".into()), 501);
        assert_eq!(with(|r| r.ipam.config.push(r.ipam.config[0].clone())), 501);
        assert_eq!(config.ipv6, None);

        // With IPv6: the engine's choice, its own subnet, one that is not wanted, and what is none.
        let mut dual = fine.clone();
        dual.enable_ipv6 = Some(true);
        assert_eq!(config_of(&dual).unwrap().0.ipv6, Some(Config6::default()));
        dual.ipam.config.push(IpamConfig {
            subnet: "fd00:5::/64".into(),
            gateway: "fd00:5::9".into(),
            ..IpamConfig::default()
        });
        let (config, warnings) = config_of(&dual).unwrap();
        assert_eq!(config.ipv6.unwrap().gateway, Some("fd00:5::9".parse().unwrap()));
        assert!(config.ipv6.unwrap().subnet.is_some() && config.subnet.is_some() && warnings.is_empty());
        dual.enable_ipv6 = None;
        let (config, warnings) = config_of(&dual).unwrap();
        assert!(config.ipv6.is_none() && warnings.len() == 1);
        for (subnet, gateway) in [("fd00:5::1/64", ""), ("fe80::/64", ""), ("fd00:5::/64", "10.1.0.9")] {
            let mut request = dual.clone();
            request.enable_ipv6 = Some(true);
            request.ipam.config[1].subnet = subnet.into();
            request.ipam.config[1].gateway = gateway.into();
            assert_eq!(config_of(&request).unwrap_err().status(), 400, "{subnet} {gateway}");
        }
        assert_eq!(with(|r| drop(r.options.insert("mtu".into(), "1400".into()))), 501);
        assert_eq!(with(|r| drop(r.options.insert(HOST_PORTS.into(), "0/tcp".into()))), 400);
    }

    #[test]
    fn ports_are_read_as_clients_write_them() {
        assert_eq!(port_of("80").unwrap(), (Protocol::Tcp, 80));
        assert_eq!(port_of("53/UDP").unwrap(), (Protocol::Udp, 53));
        for bad in ["", "/tcp", "0/tcp", "65536/tcp", "80-90/tcp", "-1"] {
            assert_eq!(port_of(bad).unwrap_err().status(), 400, "{bad}");
        }
        assert_eq!(port_of("80/sctp").unwrap_err().status(), 501);
    }
}
