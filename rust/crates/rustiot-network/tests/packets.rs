//! Real packets through real rules, in network namespaces of the tests' own: the "host" is one, each container is one,
//! and so is a machine outside. The namespace of the machine that runs the tests is never changed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop at once")]

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    str::FromStr as _,
    thread,
    time::Duration,
};

use domain::{
    base::{
        Message, MessageBuilder, Name,
        iana::{Class, Rcode, Rtype},
    },
    rdata::{A, Aaaa},
};
use nix::sched::{CloneFlags, setns, unshare};
use nlink::{
    Connection, Nftables, Route,
    netlink::{
        addr::Ipv6Address,
        link::{BridgeLink, VethLink},
        nftables::Family,
        route::{Ipv4Route, Ipv6Route},
    },
};
use rustiot_network::{
    Attachment, Config6, DEFAULT_NETWORK, Error, HostPort, NetworkConfig, Networks, Protocol, Publish,
    Reconciled, Wanted,
};

const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing must come. What is refused by a drop can be told from slowness only by waiting.
const SILENCE: Duration = Duration::from_millis(700);

/// A network namespace.
struct Namespace(File);

fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

impl Namespace {
    fn new() -> Namespace {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            current().unwrap()
        });
        Namespace(made.join().unwrap())
    }

    /// The namespace of the calling thread.
    fn here() -> Namespace {
        Namespace(current().unwrap())
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = self.0.try_clone().unwrap();
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    fn route(&self) -> Connection<Route> {
        Connection::<Route>::new_in(self.0.as_fd()).unwrap()
    }

    /// Tells whoever asks at the port which address it comes from, to the end of the test program.
    fn serve(&self, protocol: Protocol, port: u16) {
        // Of both kinds, where the kernel has both.
        let address: SocketAddr = match std::path::Path::new("/proc/sys/net/ipv6").exists() {
            true => (Ipv6Addr::UNSPECIFIED, port).into(),
            false => (Ipv4Addr::UNSPECIFIED, port).into(),
        };
        match protocol {
            Protocol::Tcp => {
                let listener = self.run(move || TcpListener::bind(address).unwrap());
                thread::spawn(move || {
                    for stream in listener.incoming() {
                        let mut stream = stream.unwrap();
                        let peer = stream.peer_addr().unwrap().ip().to_canonical().to_string();
                        let _ = stream.write_all(peer.as_bytes());
                    }
                });
            }
            Protocol::Udp => {
                let socket = self.run(move || UdpSocket::bind(address).unwrap());
                thread::spawn(move || {
                    loop {
                        let (_, peer) = socket.recv_from(&mut [0; 16]).unwrap();
                        let _ = socket.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
                    }
                });
            }
        }
    }

    /// Which address the server there saw.
    fn ask_within(
        &self,
        protocol: Protocol,
        to: impl Into<IpAddr>,
        port: u16,
        patience: Duration,
    ) -> io::Result<IpAddr> {
        self.ask_at(protocol, (to.into(), port).into(), patience)
    }

    fn ask_at(&self, protocol: Protocol, to: SocketAddr, patience: Duration) -> io::Result<IpAddr> {
        let text = self.run(move || -> io::Result<String> {
            let mut text = String::new();
            match protocol {
                Protocol::Tcp => {
                    let mut stream = TcpStream::connect_timeout(&to, patience)?;
                    stream.set_read_timeout(Some(patience))?;
                    stream.read_to_string(&mut text)?;
                }
                Protocol::Udp => {
                    let any: IpAddr = match to {
                        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                    };
                    let socket = UdpSocket::bind((any, 0))?;
                    socket.set_read_timeout(Some(patience))?;
                    socket.connect(to)?;
                    socket.send(b"?")?;
                    let mut buffer = [0; 64];
                    let length = socket.recv(&mut buffer)?;
                    text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
                }
            }
            Ok(text)
        })?;
        text.parse().map_err(io::Error::other)
    }

    fn ask(&self, protocol: Protocol, to: impl Into<IpAddr>, port: u16) -> IpAddr {
        let to = to.into();
        self.ask_within(protocol, to, port, PATIENCE).unwrap_or_else(|error| panic!("{to}:{port}: {error}"))
    }

    fn refused(&self, protocol: Protocol, to: impl Into<IpAddr>, port: u16) {
        let to = to.into();
        if let Ok(seen) = self.ask_within(protocol, to, port, SILENCE) {
            panic!("{to}:{port} answered, to {seen}");
        }
    }
}

/// A host with a link to a machine outside, which has no route to anything behind it.
struct World {
    host: Namespace,
    outside: Namespace,
    networks: Networks,
    directory: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        let (host, outside) = (Namespace::here(), Namespace::new());
        uplink(&host, "uplink", HOST, &outside, OUTSIDE).await;
        let directory = tempfile::tempdir().unwrap();
        let networks = World::open(&directory);
        networks.reconcile(&BTreeSet::new()).await.unwrap();
        World { host, outside, networks, directory }
    }

    fn open(directory: &tempfile::TempDir) -> Networks {
        let resolv_conf = directory.path().join("resolv.conf");
        Networks::open(&directory.path().join("state"), &directory.path().join("run"), Some(resolv_conf))
            .unwrap()
    }

    /// A container in a network, that answers at TCP and UDP port 80.
    async fn container(&self, name: &str, network: &str) -> (Namespace, Ipv4Addr) {
        let (namespace, attachment) = self.attached(name, network).await;
        (namespace, attachment.address.0)
    }

    /// One in a network with IPv6.
    async fn container6(&self, name: &str, network: &str) -> (Namespace, Ipv6Addr) {
        let (namespace, attachment) = self.attached(name, network).await;
        (namespace, attachment.address6.unwrap().0)
    }

    async fn attached(&self, name: &str, network: &str) -> (Namespace, Attachment) {
        let namespace = Namespace::new();
        let wanted = Wanted { aliases: vec![name.to_owned()], ..Wanted::default() };
        let attachment = self.networks.attach(name, &namespace.path(), network, wanted).await.unwrap();
        namespace.serve(Protocol::Tcp, 80);
        namespace.serve(Protocol::Udp, 80);
        (namespace, attachment)
    }

    /// With IPv6 between the host and the machine outside.
    async fn new6() -> Option<World> {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            println!("skipped: this kernel has no IPv6");
            return None;
        }
        let world = World::new().await;
        for (of, link, address) in [(&world.host, "uplink", HOST6), (&world.outside, "eth0", OUTSIDE6)] {
            let address = Ipv6Address::new(link, address, 64).nodad();
            of.route().add_address(address).await.unwrap();
        }
        Some(world)
    }

    async fn network6(&self, name: &str, config: NetworkConfig) -> rustiot_network::Network {
        let config = NetworkConfig { ipv6: Some(Config6::default()), ..config };
        self.networks.create(name, config).await.unwrap()
    }
}

async fn uplink(host: &Namespace, name: &str, here: Ipv4Addr, outside: &Namespace, there: Ipv4Addr) {
    let route = host.route();
    route.add_link(VethLink::new(name, "eth0").peer_netns_fd(&outside.0)).await.unwrap();
    for (route, link, address) in [(&route, name, here), (&outside.route(), "eth0", there)] {
        route.add_address_by_name(link, address.into(), 24).await.unwrap();
        route.set_link_up(link).await.unwrap();
        route.set_link_up("lo").await.unwrap();
    }
}

/// Runs a test in a network namespace of its own.
fn world<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped: no network namespace of our own: {error}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let nftables = Connection::<Nftables>::new().unwrap();
            if let Err(error) = nftables.list_tables_in(Family::Inet).await {
                println!("skipped: no nf_tables: {error}");
                return;
            }
            test().await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn port(protocol: Protocol, host_port: u16) -> Publish {
    Publish { protocol, host_address: None, host_ports: (host_port, host_port), container_port: 80 }
}

use Protocol::{Tcp, Udp};

#[test]
fn containers_reach_each_other_in_one_network_and_never_across() {
    world(|| async {
        let world = World::new().await;
        world.networks.create("other", NetworkConfig::default()).await.unwrap();
        let (a, a_address) = world.container("a", DEFAULT_NETWORK).await;
        let (b, b_address) = world.container("b", DEFAULT_NETWORK).await;
        let (c, c_address) = world.container("c", "other").await;
        for protocol in [Tcp, Udp] {
            assert_eq!(a.ask(protocol, b_address, 80), a_address);
            assert_eq!(b.ask(protocol, a_address, 80), b_address);
            a.refused(protocol, c_address, 80);
            c.refused(protocol, a_address, 80);
            // The host itself reaches all of them: what refused was the rule.
            world.host.ask(protocol, c_address, 80);
        }
        assert_eq!(world.networks.lookup(DEFAULT_NETWORK, "B").await.unwrap(), [IpAddr::from(b_address)]);
        assert!(world.networks.lookup(DEFAULT_NETWORK, "c").await.unwrap().is_empty());
        // In both networks it reaches both, and each by that network's address.
        let both = world.networks.attach("c", &c.path(), DEFAULT_NETWORK, Wanted::default()).await.unwrap();
        assert_eq!((both.interface.as_str(), c.ask(Tcp, a_address, 80)), ("eth1", both.address.0.into()));
        world.networks.detach("c", DEFAULT_NETWORK).await.unwrap();
        c.refused(Tcp, a_address, 80);
    });
}

#[test]
fn the_way_out_has_the_hosts_address_and_internal_networks_have_none() {
    world(|| async {
        let world = World::new().await;
        let config = NetworkConfig { internal: true, ..NetworkConfig::default() };
        world.networks.create("inner", config).await.unwrap();
        world.outside.serve(Tcp, 7000);
        world.outside.serve(Udp, 7000);
        let (a, _) = world.container("a", DEFAULT_NETWORK).await;
        let (b, b_address) = world.container("b", "inner").await;
        let (c, c_address) = world.container("c", "inner").await;
        for protocol in [Tcp, Udp] {
            assert_eq!(a.ask(protocol, OUTSIDE, 7000), HOST);
            b.refused(protocol, OUTSIDE, 7000);
            assert_eq!(b.ask(protocol, c_address, 80), b_address);
        }
        // Not even with a route of its own making.
        let (network, _) = world.networks.inspect("inner").await.unwrap();
        c.route().add_route(Ipv4Route::default_route().gateway(network.gateway)).await.unwrap();
        c.refused(Tcp, OUTSIDE, 7000);
        let refused = world.networks.publish("b", "inner", &[port(Tcp, 8080)]).await;
        assert!(matches!(refused, Err(Error::Internal(_))), "{refused:?}");
    });
}

/// Whether rules see what is only bridged (br_netfilter), as after Docker or Kubernetes on the same machine.
const BRIDGED: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

#[test]
fn a_published_port_is_reached_from_everywhere_and_shows_who_asks() {
    world(|| async {
        let _ = File::options().write(true).open(BRIDGED).and_then(|mut file| file.write_all(b"0"));
        reached_from_everywhere().await;
    });
}

#[test]
fn a_published_port_is_reached_from_everywhere_with_br_netfilter_too() {
    world(|| async {
        match File::options().write(true).open(BRIDGED).and_then(|mut file| file.write_all(b"1")) {
            Ok(()) => reached_from_everywhere().await,
            Err(error) => println!("skipped: no br_netfilter: {error}"),
        }
    });
}

async fn reached_from_everywhere() {
    let world = World::new().await;
    world.networks.create("other", NetworkConfig::default()).await.unwrap();
    let (a, _) = world.container("a", DEFAULT_NETWORK).await;
    let (b, _) = world.container("b", DEFAULT_NETWORK).await;
    let (c, _) = world.container("c", "other").await;
    let (network, _) = world.networks.inspect(DEFAULT_NETWORK).await.unwrap();
    world.outside.refused(Tcp, HOST, 8080);
    for protocol in [Tcp, Udp] {
        world.networks.publish("a", DEFAULT_NETWORK, &[port(protocol, 8080)]).await.unwrap();
    }
    for protocol in [Tcp, Udp] {
        assert_eq!(world.outside.ask(protocol, HOST, 8080), OUTSIDE);
        assert_eq!(world.host.ask(protocol, HOST, 8080), HOST);
        // No container can answer 127.0.0.1.
        assert_eq!(world.host.ask(protocol, LOOPBACK, 8080), network.gateway);
        // Itself, a neighbour, a stranger.
        for container in [&a, &b, &c] {
            container.ask(protocol, HOST, 8080);
        }
    }
    let taken = world.networks.publish("b", DEFAULT_NETWORK, &[port(Tcp, 8080)]).await;
    assert!(matches!(taken, Err(Error::Published { port: 8080, .. })), "{taken:?}");
    world.host.serve(Tcp, 2222);
    let taken = world.networks.publish("b", DEFAULT_NETWORK, &[port(Tcp, 2222)]).await;
    assert!(matches!(taken, Err(Error::HostPort { port: 2222, .. })), "{taken:?}");
    // One address of the host only, and a port of our choice.
    let local = Publish { host_address: Some(LOOPBACK.into()), ..port(Tcp, 0) };
    let chosen = world.networks.publish("b", DEFAULT_NETWORK, &[local]).await.unwrap()[0];
    assert_ne!(chosen.host_port, 0);
    world.host.ask(Tcp, LOOPBACK, chosen.host_port);
    world.outside.refused(Tcp, HOST, chosen.host_port);
    // A range: the first that is nobody's; and all or none.
    let range = |protocol| Publish { host_ports: (8080, 8082), ..port(protocol, 0) };
    let two = world.networks.publish("b", DEFAULT_NETWORK, &[range(Tcp), range(Tcp)]).await.unwrap();
    assert_eq!((two[0].host_port, two[1].host_port), (8081, 8082));
    world.outside.ask(Tcp, HOST, 8082);
    let none = world.networks.publish("b", DEFAULT_NETWORK, &[port(Tcp, 9000), range(Tcp)]).await;
    assert!(matches!(none, Err(Error::Published { .. })), "{none:?}");
    world.outside.refused(Tcp, HOST, 9000);
    let at_8080 = |endpoint: &rustiot_network::Endpoint| {
        *endpoint.published.iter().find(|p| p.protocol == Tcp && p.host_port == 8080).unwrap()
    };
    let (_, endpoints) = world.networks.inspect(DEFAULT_NETWORK).await.unwrap();
    let its = endpoints.iter().find(|endpoint| endpoint.container == "a").map(at_8080).unwrap();
    world.networks.unpublish("a", DEFAULT_NETWORK, &its).await.unwrap();
    world.outside.refused(Tcp, HOST, 8080);
    world.networks.detach_all("a").await.unwrap();
    world.outside.refused(Udp, HOST, 8080);
}

#[test]
fn the_hosts_services_are_closed_unless_allowed() {
    world(|| async {
        let world = World::new().await;
        let host_ports =
            BTreeSet::from([HostPort { protocol: Tcp, port: 5300 }, HostPort { protocol: Udp, port: 5300 }]);
        let config = NetworkConfig { host_ports, ..NetworkConfig::default() };
        let open = world.networks.create("open", config).await.unwrap();
        for protocol in [Tcp, Udp] {
            world.host.serve(protocol, 2222);
            world.host.serve(protocol, 5300);
        }
        let (a, _) = world.container("a", DEFAULT_NETWORK).await;
        let (b, b_address) = world.container("b", "open").await;
        let (closed, _) = world.networks.inspect(DEFAULT_NETWORK).await.unwrap();
        for protocol in [Tcp, Udp] {
            assert_eq!(world.outside.ask(protocol, HOST, 2222), OUTSIDE);
            for port in [2222, 5300] {
                a.refused(protocol, closed.gateway, port);
                a.refused(protocol, open.gateway, port);
                a.refused(protocol, HOST, port);
            }
            b.refused(protocol, open.gateway, 2222);
            b.refused(protocol, HOST, 5300);
            assert_eq!(b.ask(protocol, open.gateway, 5300), b_address);
        }
        // A container that routes the host's loopback to the gateway.
        let inside = b.route();
        inside.set_link_down("lo").await.unwrap();
        let route = Ipv4Route::new(Ipv4Addr::new(127, 0, 0, 0), 8).gateway(open.gateway);
        if inside.add_route(route).await.is_ok() {
            b.refused(Udp, LOOPBACK, 5300);
        }
    });
}

#[test]
fn nobody_outside_reaches_a_container_by_its_own_address() {
    world(|| async {
        // A router: nothing else closes the way.
        File::options().write(true).open("/proc/sys/net/ipv4/ip_forward").unwrap().write_all(b"1").unwrap();
        let world = World::new().await;
        let (_a, address) = world.container("a", DEFAULT_NETWORK).await;
        let route = Ipv4Route::new(address, 32).gateway(HOST);
        world.outside.route().add_route(route).await.unwrap();
        for protocol in [Tcp, Udp] {
            world.outside.refused(protocol, address, 80);
            world.networks.publish("a", DEFAULT_NETWORK, &[port(protocol, 8080)]).await.unwrap();
            world.outside.refused(protocol, address, 80);
            world.outside.ask(protocol, HOST, 8080);
        }
    });
}

/// Whether a machine outside reaches another one through the host.
async fn is_a_router(world: &World) -> bool {
    let (far, here, there) =
        (Namespace::new(), Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2));
    uplink(&world.host, "second", here, &far, there).await;
    far.serve(Tcp, 7000);
    far.route().add_route(Ipv4Route::default_route().gateway(here)).await.unwrap();
    world.outside.route().add_route(Ipv4Route::default_route().gateway(HOST)).await.unwrap();
    world.outside.ask_within(Tcp, there, 7000, SILENCE).is_ok()
}

#[test]
fn a_host_that_was_no_router_does_not_become_one() {
    world(|| async {
        let world = World::new().await;
        // The engine starts again and finds forwarding on: its own doing.
        let again = World::open(&world.directory);
        again.reconcile(&BTreeSet::new()).await.unwrap();
        assert!(!is_a_router(&world).await);
    });
}

#[test]
fn a_host_that_was_a_router_stays_one() {
    world(|| async {
        File::options().write(true).open("/proc/sys/net/ipv4/ip_forward").unwrap().write_all(b"1").unwrap();
        assert!(is_a_router(&World::new().await).await);
    });
}

#[test]
fn a_restart_of_the_engine_leaves_containers_and_removes_leftovers() {
    world(|| async {
        let world = World::new().await;
        let other = world.networks.create("other", NetworkConfig::default()).await.unwrap();
        let (a, a_address) = world.container("a", DEFAULT_NETWORK).await;
        let (b, b_address) = world.container("b", DEFAULT_NETWORK).await;
        let (_c, _) = world.container("c", DEFAULT_NETWORK).await;
        world.networks.publish("a", DEFAULT_NETWORK, &[port(Tcp, 8080)]).await.unwrap();
        let (_, endpoints) = world.networks.inspect(DEFAULT_NETWORK).await.unwrap();
        let link_of =
            |name: &str| endpoints.iter().find(|endpoint| endpoint.container == name).unwrap().link.clone();
        // While the engine is away: a bridge vanishes, c's link too, b ends, leftovers stand about; and what is not ours.
        let route = world.host.route();
        route.del_link(other.bridge.as_str()).await.unwrap();
        route.del_link(link_of("c").as_str()).await.unwrap();
        route.add_link(BridgeLink::new("rib-leftover")).await.unwrap();
        route.add_link(VethLink::new("riv-leftover", "peer")).await.unwrap();
        route.add_link(VethLink::new("rib-foreign", "foreign")).await.unwrap();
        let nftables = Connection::<Nftables>::new().unwrap();
        nftables.add_table("foreign", Family::Inet).await.unwrap();
        nftables.del_table("rustiot-networks", Family::Inet).await.unwrap();
        world.outside.refused(Tcp, HOST, 8080);

        drop(world.networks);
        // What it had open is closed by its tasks' ends.
        tokio::task::yield_now().await;
        let networks = World::open(&world.directory);
        let done = networks.reconcile(&["a".to_owned(), "c".to_owned()].into()).await.unwrap();
        let Reconciled { made, mut removed, forgotten, broken, unserved } = done;
        assert!(unserved.is_empty(), "{unserved:?}");
        removed.sort();
        let mut leftovers = ["rib-leftover".to_owned(), "riv-leftover".to_owned(), link_of("b")];
        leftovers.sort();
        assert_eq!((made.as_slice(), removed.as_slice()), (&[other.bridge][..], &leftovers[..]));
        assert_eq!((forgotten[0].container.as_str(), forgotten.len()), ("b", 1));
        assert_eq!((broken[0].container.as_str(), broken.len()), ("c", 1));
        assert!(route.get_link_by_name("rib-foreign").await.unwrap().is_some());
        assert!(
            nftables.list_tables_in(Family::Inet).await.unwrap().iter().any(|table| table.name == "foreign")
        );
        assert_eq!(world.outside.ask(Tcp, HOST, 8080), OUTSIDE);
        b.refused(Tcp, a_address, 80);
        // An address that was just given back is not the next one's.
        let attachment = networks.attach("d", &b.path(), DEFAULT_NETWORK, Wanted::default()).await.unwrap();
        assert!(attachment.address.0 > b_address);
        assert_eq!(b.ask(Tcp, a_address, 80), attachment.address.0);
        let again = networks.reconcile(&["a".to_owned(), "d".to_owned()].into()).await.unwrap();
        assert_eq!(format!("{again:?}"), format!("{:?}", Reconciled::default()));
        drop(a);
    });
}

#[test]
fn what_fails_and_what_is_removed_leaves_nothing() {
    world(|| async {
        let world = World::new().await;
        let networks = &world.networks;
        let route = world.host.route();
        let ours = || async {
            let links = route.get_links().await.unwrap();
            let names = links.iter().filter_map(|link| link.name().map(str::to_owned));
            names.filter(|name| name.starts_with("ri")).collect::<Vec<_>>()
        };
        let before = ours().await;
        assert_eq!(before.len(), 1);
        let config = |subnet: &str| NetworkConfig {
            subnet: Some(subnet.parse().unwrap()),
            ..NetworkConfig::default()
        };
        for (name, subnet) in [("lan", "203.0.113.0/25"), ("again", "172.17.128.0/17")] {
            let refused = networks.create(name, config(subnet)).await;
            assert!(matches!(refused, Err(Error::Overlap { .. })), "{refused:?}");
        }
        for name in ["", "host", "none", "a b", "-a", "ä", "../a", &"a".repeat(65)] {
            let refused = networks.create(name, NetworkConfig::default()).await;
            assert!(matches!(refused, Err(Error::Name(_))), "{name}: {refused:?}");
        }
        let container = Namespace::new();
        let missing = networks.attach("a", "/nonexistent".as_ref(), DEFAULT_NETWORK, Wanted::default()).await;
        assert!(matches!(missing, Err(Error::Links(_))), "{missing:?}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let no_namespace = networks.attach("a", file.path(), DEFAULT_NETWORK, Wanted::default()).await;
        assert!(matches!(no_namespace, Err(Error::Links(_))), "{no_namespace:?}");
        let (network, _) = networks.inspect(DEFAULT_NETWORK).await.unwrap();
        let wanted = |address| Wanted { address: Some(address), ..Wanted::default() };
        for address in [network.gateway, network.subnet.network(), network.subnet.broadcast(), OUTSIDE] {
            let refused = networks.attach("a", &container.path(), DEFAULT_NETWORK, wanted(address)).await;
            assert!(matches!(refused, Err(Error::Address { .. })), "{refused:?}");
        }
        // A default route that is there already: the last step of attaching fails.
        let lo = container.route();
        lo.set_link_up("lo").await.unwrap();
        lo.add_address_by_name("lo", Ipv4Addr::new(192, 0, 2, 1).into(), 24).await.unwrap();
        lo.add_route(Ipv4Route::default_route().gateway(Ipv4Addr::new(192, 0, 2, 1)).dev("lo")).await.ok();
        lo.add_route(Ipv4Route::default_route().dev("lo")).await.ok();
        let late = networks.attach("a", &container.path(), DEFAULT_NETWORK, Wanted::default()).await;
        assert!(matches!(late, Err(Error::Links(_))), "{late:?}");
        assert_eq!(ours().await, before);

        let network = networks.create("net", config("10.9.8.0/30")).await.unwrap();
        let container = Namespace::new();
        networks.attach("a", &container.path(), "net", Wanted::default()).await.unwrap();
        let full = networks.attach("b", &Namespace::new().path(), "net", Wanted::default()).await;
        assert!(matches!(full, Err(Error::Address { .. })), "{full:?}");
        let twice = networks.attach("a", &container.path(), "net", Wanted::default()).await;
        assert!(matches!(twice, Err(Error::Attached { .. })), "{twice:?}");
        let used = networks.remove("net").await;
        assert!(matches!(used, Err(Error::InUse { .. })), "{used:?}");
        assert!(matches!(networks.remove(DEFAULT_NETWORK).await, Err(Error::Default)));
        networks.detach("a", "net").await.unwrap();
        networks.remove("net").await.unwrap();
        assert!(matches!(networks.remove(&network.name).await, Err(Error::NoNetwork(_))));
        assert_eq!(ours().await, before);
        let links = container.route().get_links().await.unwrap();
        assert!(links.iter().all(|link| link.kind() != Some("veth")));

        networks.clear().await.unwrap();
        assert!(ours().await.is_empty());
        let nftables = Connection::<Nftables>::new().unwrap();
        assert!(nftables.list_tables_in(Family::Inet).await.unwrap().is_empty());
    });
}

/// A question for addresses, as a program in the container asks it.
fn question(name: &str) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec().question();
    builder.header_mut().set_id(4711);
    builder.header_mut().set_rd(true);
    builder.push((name.parse::<Name<Vec<u8>>>().unwrap(), Rtype::A)).unwrap();
    builder.finish()
}

fn addresses(answer: Vec<u8>) -> (Rcode, Vec<Ipv4Addr>) {
    let message = Message::from_octets(answer).unwrap();
    assert!(message.header().qr() && message.header().id() == 4711);
    let records = message.answer().unwrap().limit_to::<A>();
    (message.header().rcode(), records.map(|record| record.unwrap().data().addr()).collect())
}

impl Namespace {
    fn look_up_within(
        &self,
        server: Ipv4Addr,
        name: &str,
        patience: Duration,
    ) -> io::Result<(Rcode, Vec<Ipv4Addr>)> {
        let query = question(name);
        let answer = self.run(move || -> io::Result<Vec<u8>> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(patience))?;
            socket.connect((server, 53))?;
            socket.send(&query)?;
            let mut buffer = vec![0; 4096];
            let length = socket.recv(&mut buffer)?;
            buffer.truncate(length);
            Ok(buffer)
        })?;
        Ok(addresses(answer))
    }

    async fn look_up(&self, server: Ipv4Addr, name: &str) -> (Rcode, Vec<Ipv4Addr>) {
        // The resolver's tasks are of this thread: they run while another one waits.
        let (file, name) = (self.0.try_clone().unwrap(), name.to_owned());
        let asked =
            tokio::task::spawn_blocking(move || Namespace(file).look_up_within(server, &name, PATIENCE));
        asked.await.unwrap().unwrap()
    }

    async fn look_up_by_stream(&self, server: Ipv4Addr, names: [&str; 2]) -> Vec<(Rcode, Vec<Ipv4Addr>)> {
        let file = self.0.try_clone().unwrap();
        let queries = names.map(question);
        let asked = tokio::task::spawn_blocking(move || {
            Namespace(file).run(move || {
                let to = SocketAddr::from((server, 53));
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                queries.map(|query| {
                    stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
                    stream.write_all(&query).unwrap();
                    let mut length = [0; 2];
                    stream.read_exact(&mut length).unwrap();
                    let mut answer = vec![0; u16::from_be_bytes(length).into()];
                    stream.read_exact(&mut answer).unwrap();
                    answer
                })
            })
        });
        asked.await.unwrap().map(addresses).into()
    }

    /// A server that knows one address for all names, over UDP and TCP.
    fn serve_names(&self, address: Ipv4Addr) {
        let answer = move |query: &[u8]| {
            let query = Message::from_octets(query).unwrap();
            let name = query.sole_question().unwrap().into_qname();
            let mut builder = MessageBuilder::new_vec().start_answer(&query, Rcode::NOERROR).unwrap();
            builder.push((name, Class::IN, 60, A::new(address))).unwrap();
            builder.finish()
        };
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 512];
            loop {
                let (length, peer) = socket.recv_from(&mut buffer).unwrap();
                // Somebody who guesses is not listened to.
                let mut forged = answer(&buffer[..length]);
                forged[0] ^= 0x55;
                let _ = socket.send_to(&forged, peer);
                let _ = socket.send_to(&answer(&buffer[..length]), peer);
            }
        });
        let listener = self.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query).unwrap();
                let answer = answer(&query);
                stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
    }
}

#[test]
fn names_of_a_network_are_known_in_it_and_all_others_are_asked_for_outside() {
    world(|| async {
        let world = World::new().await;
        let shop = world.networks.create("shop", NetworkConfig::default()).await.unwrap();
        let config = NetworkConfig { internal: true, ..NetworkConfig::default() };
        let inner = world.networks.create("inner", config).await.unwrap();
        let (default, _) = world.networks.inspect(DEFAULT_NETWORK).await.unwrap();
        let (a, a_address) = world.container("a", "shop").await;
        let (b, b_address) = world.container("b", "shop").await;
        let (c, _) = world.container("c", "inner").await;
        let (d, _) = world.container("d", DEFAULT_NETWORK).await;
        let answer = Ipv4Addr::new(192, 0, 2, 77);
        world.outside.serve_names(answer);
        let nobody = (Rcode::NXDOMAIN, vec![]);

        assert_eq!(a.look_up(shop.gateway, "B").await, (Rcode::NOERROR, vec![b_address]));
        assert_eq!(b.look_up(shop.gateway, "a.shop").await, (Rcode::NOERROR, vec![a_address]));
        assert_eq!(a.look_up(shop.gateway, "c").await, nobody);
        assert_eq!(d.look_up(default.gateway, "a").await, nobody);
        // There is no resolv.conf yet: no server could be asked.
        assert_eq!(a.look_up(shop.gateway, "example.org").await, (Rcode::SERVFAIL, vec![]));
        let mut file = File::create(world.directory.path().join("resolv.conf")).unwrap();
        writeln!(file, "nameserver {OUTSIDE}").unwrap();
        for (container, gateway) in [(&a, shop.gateway), (&d, default.gateway)] {
            assert_eq!(container.look_up(gateway, "example.org").await, (Rcode::NOERROR, vec![answer]));
        }
        assert_eq!(c.look_up(inner.gateway, "example.org").await, (Rcode::REFUSED, vec![]));
        let both = a.look_up_by_stream(shop.gateway, ["example.org", "b"]).await;
        assert_eq!(both, [(Rcode::NOERROR, vec![answer]), (Rcode::NOERROR, vec![b_address])]);

        // Only its own gateway answers it, and nobody outside is answered.
        let route = Ipv4Route::new(shop.gateway, 32).gateway(HOST);
        world.outside.route().add_route(route).await.unwrap();
        for (who, server) in [(&a, default.gateway), (&world.outside, shop.gateway)] {
            let (file, patience) = (who.0.try_clone().unwrap(), SILENCE);
            let asked =
                tokio::task::spawn_blocking(move || Namespace(file).look_up_within(server, "b", patience));
            let asked = asked.await.unwrap();
            assert!(asked.is_err(), "{asked:?}");
        }

        world.networks.rename("b", "shop", vec!["renamed".to_owned()]).await.unwrap();
        assert_eq!(a.look_up(shop.gateway, "b").await, nobody);
        assert_eq!(a.look_up(shop.gateway, "renamed").await, (Rcode::NOERROR, vec![b_address]));
        world.networks.detach("b", "shop").await.unwrap();
        assert_eq!(a.look_up(shop.gateway, "renamed").await, nobody);
    });
}

#[test]
fn what_somebody_else_broke_is_mended() {
    world(|| async {
        let world = World::new().await;
        let networks = &world.networks;
        networks.create("other", NetworkConfig::default()).await.unwrap();
        let (a, a_address) = world.container("a", DEFAULT_NETWORK).await;
        let (b, b_address) = world.container("b", DEFAULT_NETWORK).await;
        let (c, _) = world.container("c", "other").await;
        networks.publish("a", DEFAULT_NETWORK, &[port(Tcp, 8080)]).await.unwrap();
        let nothing = |mended: &rustiot_network::Mended| {
            !mended.rules
                && !mended.forwarding
                && mended.bridges.is_empty()
                && mended.links.is_empty()
                && mended.broken.is_empty()
        };
        for _ in 0..3 {
            let mended = networks.mend().await.unwrap();
            assert!(nothing(&mended), "{mended:?}");
        }
        // As `nft flush ruleset` does it, and `sysctl`.
        let nftables = Connection::<Nftables>::new().unwrap();
        nftables.del_table("rustiot-networks", Family::Inet).await.unwrap();
        c.ask(Tcp, a_address, 80);
        world.outside.refused(Tcp, HOST, 8080);
        File::options().write(true).open("/proc/sys/net/ipv4/ip_forward").unwrap().write_all(b"0").unwrap();
        let mended = networks.mend().await.unwrap();
        assert!(mended.rules && mended.forwarding, "{mended:?}");
        c.refused(Tcp, a_address, 80);
        assert_eq!(world.outside.ask(Tcp, HOST, 8080), OUTSIDE);

        // As a network manager does it that takes our links for its own.
        let route = world.host.route();
        let (network, endpoints) = networks.inspect(DEFAULT_NETWORK).await.unwrap();
        route.del_link(network.bridge.as_str()).await.unwrap();
        let mended = networks.mend().await.unwrap();
        assert_eq!((mended.bridges.as_slice(), mended.links.len()), (&[DEFAULT_NETWORK.to_owned()][..], 2));
        assert_eq!(a.ask(Tcp, b_address, 80), a_address);
        assert_eq!(world.outside.ask(Tcp, HOST, 8080), OUTSIDE);
        assert_eq!(b.look_up(network.gateway, "a").await.0, Rcode::NXDOMAIN);
        route.del_address(network.bridge.as_str(), network.gateway.into(), 16).await.unwrap();
        assert_eq!(networks.mend().await.unwrap().bridges, [DEFAULT_NETWORK]);
        assert_eq!(world.outside.ask(Tcp, HOST, 8080), OUTSIDE);
        let its = endpoints.iter().find(|endpoint| endpoint.container == "b").unwrap();
        route.del_link(its.link.as_str()).await.unwrap();
        let mended = networks.mend().await.unwrap();
        assert_eq!((mended.broken.len(), mended.broken[0].container.as_str()), (1, "b"));
        let wanted = Wanted { address: Some(b_address), ..Wanted::default() };
        networks.attach("b", &b.path(), DEFAULT_NETWORK, wanted).await.unwrap();
        assert_eq!(a.ask(Udp, b_address, 80), a_address);
        let mended = networks.mend().await.unwrap();
        assert!(nothing(&mended), "{mended:?}");
    });
}

#[test]
fn the_way_out_moves_when_its_network_is_left() {
    world(|| async {
        let world = World::new().await;
        world.networks.create("other", NetworkConfig::default()).await.unwrap();
        world.outside.serve(Tcp, 7000);
        let (a, _) = world.container("a", DEFAULT_NETWORK).await;
        world.networks.attach("a", &a.path(), "other", Wanted::default()).await.unwrap();
        assert_eq!(a.ask(Tcp, OUTSIDE, 7000), HOST);
        world.networks.detach("a", DEFAULT_NETWORK).await.unwrap();
        assert_eq!(a.ask(Tcp, OUTSIDE, 7000), HOST);
        // And stays, when another one is left.
        world.networks.attach("a", &a.path(), DEFAULT_NETWORK, Wanted::default()).await.unwrap();
        world.networks.detach("a", DEFAULT_NETWORK).await.unwrap();
        assert_eq!(a.ask(Tcp, OUTSIDE, 7000), HOST);
    });
}

#[test]
fn a_flow_that_goes_on_finds_the_new_container() {
    world(|| async {
        let world = World::new().await;
        let socket = world.outside.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket.connect((HOST, 8080)).unwrap();
        let answers = || {
            let sent = socket.send(b"?");
            let mut buffer = [0; 64];
            // "Port unreachable" of before may be told now.
            sent.and_then(|_| socket.recv(&mut buffer))
                .or_else(|_| socket.send(b"?").and_then(|_| socket.recv(&mut buffer)))
        };
        assert!(answers().is_err());
        let (_a, _) = world.container("a", DEFAULT_NETWORK).await;
        world.networks.publish("a", DEFAULT_NETWORK, &[port(Udp, 8080)]).await.unwrap();
        answers().unwrap();
        world.networks.detach_all("a").await.unwrap();
        assert!(answers().is_err());
        let (_b, _) = world.container("b", DEFAULT_NETWORK).await;
        world.networks.publish("b", DEFAULT_NETWORK, &[port(Udp, 8080)]).await.unwrap();
        answers().unwrap();
    });
}

/// A setting of a network namespace's IPv6.
fn setting6(of: &Namespace, name: &str) -> String {
    let path = format!("/proc/sys/net/ipv6/conf/{name}");
    of.run(move || std::fs::read_to_string(path).unwrap()).trim().to_owned()
}

#[test]
fn ipv6_works_within_a_network_and_outwards_and_never_across() {
    world(|| async {
        let Some(world) = World::new6().await else { return };
        let one = world.network6("one", NetworkConfig::default()).await;
        let two = world.network6("two", NetworkConfig::default()).await;
        let inner =
            world.network6("inner", NetworkConfig { internal: true, ..NetworkConfig::default() }).await;
        let subnets: Vec<_> = [&one, &two, &inner].iter().map(|n| n.ipv6.unwrap().subnet).collect();
        let own = |of: usize| subnets[of].network().octets()[..6].to_vec();
        assert!(own(0) == own(1) && own(1) == own(2) && own(0)[0] == 0xfd, "{subnets:?}");
        assert!(!subnets[0].overlaps(&subnets[1]) && !subnets[1].overlaps(&subnets[2]));
        world.outside.serve(Tcp, 7000);
        world.outside.serve(Udp, 7000);
        let (a, a6) = world.container6("a", "one").await;
        // At once: nothing is waited for.
        world.host.ask_within(Tcp, a6, 80, SILENCE).unwrap();
        let (b, b6) = world.container6("b", "one").await;
        let (c, c6) = world.container6("c", "two").await;
        let (d, d6) = world.container6("d", "inner").await;
        let (e, e6) = world.container6("e", "inner").await;
        for protocol in [Tcp, Udp] {
            assert_eq!(a.ask(protocol, b6, 80), a6);
            assert_eq!(b.ask(protocol, a6, 80), b6);
            assert_eq!(d.ask(protocol, e6, 80), d6);
            a.refused(protocol, c6, 80);
            c.refused(protocol, a6, 80);
            a.refused(protocol, d6, 80);
            d.refused(protocol, a6, 80);
            assert_eq!(a.ask(protocol, OUTSIDE6, 7000), HOST6);
            assert_eq!(a.ask(protocol, OUTSIDE, 7000), HOST);
            d.refused(protocol, OUTSIDE6, 7000);
        }
        // Not even with a route of its own making, nor with an address that is not the network's.
        e.route().add_route(Ipv6Route::default_route().gateway(inner.ipv6.unwrap().gateway)).await.unwrap();
        e.refused(Tcp, OUTSIDE6, 7000);
        let forged = Ipv6Address::new("eth0", "2001:db8:9::5".parse().unwrap(), 64).nodad();
        a.route().add_address(forged).await.unwrap();
        let back = Ipv6Route::new("2001:db8:9::".parse().unwrap(), 64).gateway(HOST6);
        world.outside.route().add_route(back).await.unwrap();
        let from: SocketAddr = "[2001:db8:9::5]:0".parse().unwrap();
        let heard = a.run(move || {
            let socket = UdpSocket::bind(from).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket.connect((OUTSIDE6, 7000)).unwrap();
            socket.send(b"?").and_then(|_| socket.recv(&mut [0; 64]))
        });
        assert!(heard.is_err(), "{heard:?}");
        // Nobody listens to advertisements of neighbours, and where there is no IPv6 there is none.
        assert_eq!(
            (setting6(&a, "eth0/accept_ra").as_str(), setting6(&a, "eth0/autoconf").as_str()),
            ("0", "0")
        );
        let bridge = |name: &str| format!("{}/{name}", one.bridge);
        assert_eq!(setting6(&world.host, &bridge("accept_ra")), "0");
        let (f, _) = world.container("f", DEFAULT_NETWORK).await;
        assert_eq!(setting6(&f, "eth0/disable_ipv6"), "1");
        let wish = Wanted { address6: Some(b6), ..Wanted::default() };
        let refused =
            world.networks.attach("g", &Namespace::new().path(), DEFAULT_NETWORK, wish.clone()).await;
        assert!(matches!(refused, Err(Error::NoIpv6 { .. })), "{refused:?}");
        let refused = world.networks.attach("g", &Namespace::new().path(), "one", wish).await;
        assert!(matches!(refused, Err(Error::Address { .. })), "{refused:?}");
        // In a second network with IPv6 while the first has none: the way out leads through the second.
        f.refused(Tcp, OUTSIDE6, 7000);
        let wish = Wanted {
            address6: Some(Ipv6Addr::from(u128::from(subnets[0].network()) | 0x77)),
            ..Wanted::default()
        };
        let got = world.networks.attach("f", &f.path(), "one", wish).await.unwrap();
        assert_eq!(got.address6.unwrap().0.segments()[7], 0x77);
        assert_eq!(f.ask(Tcp, OUTSIDE6, 7000), HOST6);
        world.networks.attach("f", &f.path(), "two", Wanted::default()).await.unwrap();
        world.networks.detach("f", "one").await.unwrap();
        assert_eq!(f.ask(Tcp, OUTSIDE6, 7000), HOST6);
    });
}

#[test]
fn a_published_port_is_reached_by_ipv6_and_shows_who_asks() {
    world(|| async {
        let Some(world) = World::new6().await else { return };
        let dual = world.network6("dual", NetworkConfig::default()).await;
        world.network6("other", NetworkConfig::default()).await;
        assert!(dual.ipv6.is_some());
        let (a, _) = world.container6("a", "dual").await;
        let (b, _) = world.container6("b", "dual").await;
        let (c, _) = world.container6("c", "other").await;
        let (d, _) = world.container("d", DEFAULT_NETWORK).await;
        for protocol in [Tcp, Udp] {
            world.outside.refused(protocol, HOST6, 8080);
            world.networks.publish("a", "dual", &[port(protocol, 8080)]).await.unwrap();
        }
        for protocol in [Tcp, Udp] {
            assert_eq!(world.outside.ask(protocol, HOST6, 8080), OUTSIDE6);
            assert_eq!(world.outside.ask(protocol, HOST, 8080), OUTSIDE);
            assert_eq!(world.host.ask(protocol, HOST6, 8080), HOST6);
            for container in [&a, &b, &c] {
                container.ask(protocol, HOST6, 8080);
            }
        }
        let at = |address: &str, host_port| Publish {
            host_address: Some(address.parse().unwrap()),
            ..port(Tcp, host_port)
        };
        let publish =
            async |who: &str, network: &str, wish| world.networks.publish(who, network, &[wish]).await;
        // Of one kind, and of one address.
        publish("b", "dual", at("::", 8081)).await.unwrap();
        publish("c", "other", at("0.0.0.0", 8081)).await.unwrap();
        publish("b", "dual", at("2001:db8::1", 8082)).await.unwrap();
        // Nothing from ::1 leaves the host: such a port would answer nobody. What is published for all answers elsewhere.
        let loopback = publish("b", "dual", at("::1", 8083)).await;
        assert!(matches!(loopback, Err(Error::Loopback6)), "{loopback:?}");
        world.host.refused(Tcp, Ipv6Addr::LOCALHOST, 8080);
        assert_eq!(world.host.ask(Tcp, LOOPBACK, 8080), dual.gateway);
        let chosen = publish("b", "dual", at("::", 0)).await.unwrap()[0].host_port;
        for port in [8081, 8082, chosen] {
            assert_eq!(world.outside.ask(Tcp, HOST6, port), OUTSIDE6);
        }
        world.outside.refused(Tcp, HOST, 8082);
        world.outside.refused(Tcp, HOST, chosen);
        for (who, network, wish) in [
            ("c", "other", at("2001:db8::1", 8080)),
            ("c", "other", at("::", 8081)),
            ("c", "other", port(Tcp, 8082)),
        ] {
            let taken = publish(who, network, wish).await;
            assert!(matches!(taken, Err(Error::Published { .. })), "{taken:?}");
        }
        // The host listens at IPv6 only: a port of all addresses is not free, one of IPv4 is.
        let address: SocketAddr = "[2001:db8::1]:8090".parse().unwrap();
        let _service = world.host.run(move || TcpListener::bind(address).unwrap());
        let taken = publish("b", "dual", port(Tcp, 8090)).await;
        assert!(matches!(taken, Err(Error::HostPort { port: 8090, .. })), "{taken:?}");
        publish("b", "dual", at("0.0.0.0", 8090)).await.unwrap();
        // A container without IPv6 has no such port, and a port of all addresses is one of IPv4.
        let refused = publish("d", DEFAULT_NETWORK, at("::", 8099)).await;
        assert!(matches!(refused, Err(Error::NoIpv6 { .. })), "{refused:?}");
        publish("d", DEFAULT_NETWORK, port(Tcp, 8099)).await.unwrap();
        world.outside.ask(Tcp, HOST, 8099);
        world.outside.refused(Tcp, HOST6, 8099);
        drop(d);
        world.networks.detach_all("a").await.unwrap();
        world.outside.refused(Udp, HOST6, 8080);
    });
}

#[test]
fn the_host_is_closed_by_ipv6_and_strangers_do_not_come_in() {
    world(|| async {
        let Some(world) = World::new6().await else { return };
        let host_ports = BTreeSet::from([HostPort { protocol: Tcp, port: 5300 }]);
        let open = world.network6("open", NetworkConfig { host_ports, ..NetworkConfig::default() }).await;
        let closed = world.network6("closed", NetworkConfig::default()).await;
        for port in [2222, 5300] {
            world.host.serve(Tcp, port);
            world.host.serve(Udp, port);
        }
        let (a, a6) = world.container6("a", "closed").await;
        let (b, b6) = world.container6("b", "open").await;
        let gateway = |of: &rustiot_network::Network| of.ipv6.unwrap().gateway;
        assert_eq!(world.outside.ask(Tcp, HOST6, 2222), OUTSIDE6);
        for protocol in [Tcp, Udp] {
            for port in [2222, 5300] {
                for to in [gateway(&closed), gateway(&open), HOST6] {
                    a.refused(protocol, to, port);
                }
            }
        }
        b.refused(Tcp, gateway(&open), 2222);
        b.refused(Udp, gateway(&open), 5300);
        b.refused(Tcp, HOST6, 5300);
        assert_eq!(b.ask(Tcp, gateway(&open), 5300), b6);
        // By the bridge's link-local address, which is no secret.
        let addresses = world.host.route().get_addresses().await.unwrap();
        let link =
            world.host.route().get_link_by_name(open.bridge.as_str()).await.unwrap().unwrap().ifindex();
        let local = addresses.iter().filter(|a| a.ifindex() == link).find_map(|a| match a.address() {
            Some(IpAddr::V6(v6)) if v6.is_unicast_link_local() => Some(*v6),
            _ => None,
        });
        let (local, inside) = (local.unwrap(), b.route().get_link_by_name("eth0").await.unwrap().unwrap());
        for port in [2222, 5300, 53] {
            let to = std::net::SocketAddrV6::new(local, port, 0, inside.ifindex()).into();
            let heard = b.ask_at(Tcp, to, SILENCE);
            assert!(heard.is_err(), "{heard:?} at {to}");
        }
        // Who has a route to a container does not reach it, and the host has not become a router.
        world.outside.route().add_route(Ipv6Route::new(a6, 128).gateway(HOST6)).await.unwrap();
        world.outside.refused(Tcp, a6, 80);
        let far = Namespace::new();
        uplink(&world.host, "second", Ipv4Addr::new(198, 51, 100, 1), &far, Ipv4Addr::new(198, 51, 100, 2))
            .await;
        let (here, there): (Ipv6Addr, Ipv6Addr) =
            ("2001:db8:2::1".parse().unwrap(), "2001:db8:2::2".parse().unwrap());
        for (of, link, address) in [(&world.host, "second", here), (&far, "eth0", there)] {
            of.route().add_address(Ipv6Address::new(link, address, 64).nodad()).await.unwrap();
        }
        far.serve(Tcp, 7000);
        far.route().add_route(Ipv6Route::default_route().gateway(here)).await.unwrap();
        world.outside.route().add_route(Ipv6Route::new(there, 128).gateway(HOST6)).await.unwrap();
        world.host.ask(Tcp, there, 7000);
        world.outside.refused(Tcp, there, 7000);
    });
}

#[test]
fn a_host_that_listens_to_routers_goes_on_when_it_forwards() {
    world(|| async {
        let Some(world) = World::new6().await else { return };
        // Links are as the kernel makes them; one is not to listen.
        let never = "/proc/sys/net/ipv6/conf/lo/accept_ra";
        File::options().write(true).open(never).unwrap().write_all(b"0").unwrap();
        world.networks.create("plain", NetworkConfig::default()).await.unwrap();
        assert_eq!(setting6(&world.host, "all/forwarding"), "0");
        assert_eq!(setting6(&world.host, "uplink/accept_ra"), "1");
        world.network6("dual", NetworkConfig::default()).await;
        assert_eq!(setting6(&world.host, "all/forwarding"), "1");
        assert_eq!(setting6(&world.host, "uplink/accept_ra"), "2");
        assert_eq!(setting6(&world.host, "lo/accept_ra"), "0");
        // So does one that comes later.
        let far = Namespace::new();
        uplink(&world.host, "second", Ipv4Addr::new(198, 51, 100, 1), &far, Ipv4Addr::new(198, 51, 100, 2))
            .await;
        assert_eq!(setting6(&world.host, "second/accept_ra"), "2");
    });
}

#[test]
fn ipv6_comes_back_after_a_restart_a_flush_and_a_lost_address() {
    world(|| async {
        let Some(world) = World::new6().await else { return };
        let dual = world.network6("dual", NetworkConfig::default()).await;
        let ipv6 = dual.ipv6.unwrap();
        world.outside.serve(Tcp, 7000);
        let (a, a6) = world.container6("a", "dual").await;
        world.networks.publish("a", "dual", &[port(Tcp, 8080)]).await.unwrap();
        let well = async || {
            world.outside.ask_within(Tcp, HOST6, 8080, PATIENCE).unwrap() == OUTSIDE6
                && a.ask_within(Tcp, OUTSIDE6, 7000, PATIENCE).unwrap() == HOST6
        };
        assert!(well().await);
        let nftables = Connection::<Nftables>::new().unwrap();
        nftables.del_table("rustiot-networks", Family::Inet).await.unwrap();
        let forwarding = "/proc/sys/net/ipv6/conf/all/forwarding";
        File::options().write(true).open(forwarding).unwrap().write_all(b"0").unwrap();
        world.outside.refused(Tcp, HOST6, 8080);
        let mended = world.networks.mend().await.unwrap();
        assert!(mended.rules && mended.forwarding, "{mended:?}");
        assert!(well().await);
        let route = world.host.route();
        route.del_address(dual.bridge.as_str(), ipv6.gateway.into(), 64).await.unwrap();
        assert_eq!(world.networks.mend().await.unwrap().bridges, ["dual"]);
        assert!(well().await);
        // As a network manager does it that switches IPv6 off where it was not told to leave it.
        let off = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", dual.bridge);
        File::options().write(true).open(off).unwrap().write_all(b"1").unwrap();
        assert_eq!(world.networks.mend().await.unwrap().bridges, ["dual"]);
        assert!(well().await);
        route.del_link(dual.bridge.as_str()).await.unwrap();
        let again = World::open(&world.directory);
        let done = again.reconcile(&["a".to_owned()].into()).await.unwrap();
        assert_eq!(done.made.as_slice(), std::slice::from_ref(&dual.bridge));
        again.mend().await.unwrap();
        assert!(well().await);
        let (network, endpoints) = again.inspect("dual").await.unwrap();
        assert_eq!((network.ipv6, endpoints[0].address6), (Some(ipv6), Some(a6)));
        // The device's own prefix stays, also when no network has IPv6 for a while.
        again.detach_all("a").await.unwrap();
        again.remove("dual").await.unwrap();
        let again = World::open(&world.directory);
        again.reconcile(&BTreeSet::new()).await.unwrap();
        let config = NetworkConfig { ipv6: Some(Config6::default()), ..NetworkConfig::default() };
        assert_eq!(again.create("next", config).await.unwrap().ipv6, Some(ipv6));
        // What is another network's or has a route of the host's is refused.
        for subnet in [ipv6.subnet.to_string(), "2001:db8::/64".to_owned(), "2001:db8::/32".to_owned()] {
            let ipv6 = Config6 { subnet: Some(subnet.parse().unwrap()), gateway: None };
            let config = NetworkConfig { ipv6: Some(ipv6), ..NetworkConfig::default() };
            let refused = again.create("third", config).await;
            assert!(matches!(refused, Err(Error::Overlap { .. })), "{subnet}: {refused:?}");
        }
    });
}

#[test]
fn names_have_ipv6_addresses_and_both_gateways_answer() {
    world(|| async {
        let Some(world) = World::new6().await else { return };
        let shop = world.network6("shop", NetworkConfig::default()).await;
        let gateway = shop.ipv6.unwrap().gateway;
        let (a, _) = world.container6("a", "shop").await;
        let (_b, b6) = world.container6("b", "shop").await;
        for server in [IpAddr::from(shop.gateway), gateway.into()] {
            let mut builder = MessageBuilder::new_vec().question();
            builder.push((Name::<Vec<u8>>::from_str("b.shop").unwrap(), Rtype::AAAA)).unwrap();
            let query = builder.finish();
            let file = a.0.try_clone().unwrap();
            let answer = tokio::task::spawn_blocking(move || {
                Namespace(file).run(move || {
                    let any: IpAddr = match server {
                        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                    };
                    let socket = UdpSocket::bind((any, 0)).unwrap();
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    socket.connect((server, 53)).unwrap();
                    socket.send(&query).unwrap();
                    let mut buffer = vec![0; 512];
                    let length = socket.recv(&mut buffer).unwrap();
                    buffer.truncate(length);
                    // And over TCP.
                    let mut stream = TcpStream::connect_timeout(&(server, 53).into(), PATIENCE).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
                    stream.write_all(&query).unwrap();
                    let mut length = [0; 2];
                    stream.read_exact(&mut length).unwrap();
                    let mut same = vec![0; u16::from_be_bytes(length).into()];
                    stream.read_exact(&mut same).unwrap();
                    assert_eq!(same, buffer);
                    buffer
                })
            });
            let message = Message::from_octets(answer.await.unwrap()).unwrap();
            let records = message.answer().unwrap().limit_to::<Aaaa>();
            let told: Vec<Ipv6Addr> = records.map(|record| record.unwrap().data().addr()).collect();
            assert_eq!(told, [b6], "{server}");
        }
    });
}
