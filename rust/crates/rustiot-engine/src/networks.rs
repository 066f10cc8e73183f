//! What a container sees of the network: a namespace, its name files, its place in networks.
//!
//! `host` and `none` are here; bridges are `rustiot-network`'s. Called at start, end and by the API.

use std::path::PathBuf;
use std::sync::Arc;

use rustiot_docker_api::Error;
use rustiot_docker_api::types::{CreateNetwork, Created, EndpointSettings, Network, NetworkSettings};

use crate::container::Container;
use crate::layout::Layout;
use crate::record::Record;

/// What a start gets.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// `None` for the host's own; empty for a new one with nothing in it.
    pub namespace: Option<PathBuf>,
    /// Lines of `/etc/hosts` besides its own.
    pub hosts: Vec<(String, String)>,
    /// Its own addresses.
    pub addresses: Vec<String>,
    /// Servers that know names; empty for the host's.
    pub servers: Vec<String>,
}

impl Attachment {
    /// `hosts`, `hostname` and `resolv.conf`.
    pub fn files(&self, record: &Record, hostname: &str) -> Vec<(&'static str, String)> {
        let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        if self.namespace.is_none() {
            hosts = std::fs::read_to_string("/etc/hosts").unwrap_or(hosts);
        }
        for entry in &record.host.extra_hosts {
            if let Some((name, address)) = entry.split_once([':', '=']) {
                let address = if address == "host-gateway" {
                    self.servers.first().map_or("127.0.0.1", String::as_str)
                } else {
                    address.trim_matches(['[', ']'])
                };
                hosts.push_str(&format!("{address}\t{name}\n"));
            }
        }
        for (address, name) in &self.hosts {
            hosts.push_str(&format!("{address}\t{name}\n"));
        }
        for address in &self.addresses {
            hosts.push_str(&format!("{address}\t{hostname}\n"));
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
        let servers = if host.dns.is_empty() { &self.servers } else { &host.dns };
        if servers.is_empty() {
            text.extend(own.lines().filter(|l| l.starts_with("nameserver ")).map(|l| format!("{l}\n")));
        } else {
            text.extend(servers.iter().map(|s| format!("nameserver {s}\n")));
        }
        if host.dns_search.is_empty() {
            text.extend(own.lines().filter(|l| l.starts_with("search ")).map(|l| format!("{l}\n")));
        } else if host.dns_search != ["."] {
            text.push_str(&format!("search {}\n", host.dns_search.join(" ")));
        }
        if !host.dns_options.is_empty() {
            text.push_str(&format!("options {}\n", host.dns_options.join(" ")));
        }
        text
    }
}

/// See the module.
pub struct Networks {}

impl Networks {
    /// # Errors
    /// The kept networks cannot be read.
    pub fn open(_layout: &Layout) -> std::io::Result<Networks> {
        Ok(Networks {})
    }

    /// Which network a container is in first.
    pub fn mode(record: &Record) -> &str {
        match record.host.network_mode.as_str() {
            "" | "default" => "bridge",
            mode => mode,
        }
    }

    /// # Errors
    /// The network does not exist or cannot be joined.
    pub async fn attach(&self, container: &Arc<Container>) -> Result<Attachment, Error> {
        let mode = Self::mode(&container.record()).to_owned();
        match mode.as_str() {
            "host" => Ok(Attachment::default()),
            "none" => Ok(Attachment { namespace: Some(PathBuf::new()), ..Attachment::default() }),
            other => Err(Error::Unsupported(format!(
                "the network {other:?} is not supported yet: use --network host or --network none"
            ))),
        }
    }

    /// It has ended.
    pub async fn detach(&self, _container: &Container) {}

    /// It runs since before this engine.
    pub async fn adopt(&self, _container: &Arc<Container>) {}

    /// As `inspect` shows it.
    pub fn settings(&self, container: &Container) -> NetworkSettings {
        NetworkSettings { networks: container.record().networks.clone(), ..NetworkSettings::default() }
    }

    pub fn list(&self) -> Vec<Network> {
        let of = |name: &str| Network {
            name: name.to_owned(),
            id: format!("{name:0<64}"),
            scope: "local".to_owned(),
            driver: if name == "none" { "null" } else { name }.to_owned(),
            enable_ipv4: true,
            ..Network::default()
        };
        ["host", "none"].map(of).into()
    }

    /// # Errors
    /// It cannot be made.
    pub async fn create(&self, _request: CreateNetwork) -> Result<Created, Error> {
        Err(Error::Unsupported("networks of one's own are not supported yet".to_owned()))
    }

    /// # Errors
    /// It is in use.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        if self.list().iter().any(|n| n.name == id || n.id == id) {
            return Err(Error::Forbidden(format!("{id} is a pre-defined network and cannot be removed")));
        }
        Err(Error::NoSuchNetwork(id.to_owned()))
    }

    /// # Errors
    /// It cannot be joined.
    pub async fn connect(
        &self,
        _id: &str,
        _container: &Arc<Container>,
        _endpoint: EndpointSettings,
    ) -> Result<(), Error> {
        Err(Error::Unsupported("joining a network is not supported yet".to_owned()))
    }

    /// # Errors
    /// It is not in it.
    pub async fn disconnect(&self, _id: &str, _container: &Arc<Container>) -> Result<(), Error> {
        Err(Error::Unsupported("leaving a network is not supported yet".to_owned()))
    }
}
