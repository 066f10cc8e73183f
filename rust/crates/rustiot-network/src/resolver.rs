//! The resolver's sockets: each network's gateway answers DNS over UDP and TCP, by `names`, and asks the host's servers
//! for what is no container's name.
//!
//! A question goes out as it came in but for its number, over a socket of its own, and only an answer to that question
//! comes back. No cache: what caches is the host's server, and the container. Memory has bounds: so many questions and
//! connections at a time, for a container and for all. It never answers who is not in the network. Used by `networks`.

use std::{
    collections::HashMap,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use domain::base::{Message, iana::Rcode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    firewall::DNS,
    names::{Names, Reply, accepted, failed, reply},
    record::Network,
};

/// The longest question.
const QUERY: usize = 4096;
/// The longest answer over UDP; more is cut and asked for again over TCP.
const ANSWER: usize = 4096;
/// Questions under way, of all containers.
const QUESTIONS: usize = 256;
/// Of one container.
const QUESTIONS_EACH: usize = 32;
/// Connections of one container. Each is one of its questions under way, too.
const CONNECTIONS_EACH: usize = 4;
/// How long one server may think.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// As many servers as resolvers usually ask.
const SERVERS: usize = 3;
/// The most of `resolv.conf` that is read.
const RESOLV_CONF: u64 = 64 << 10;

/// Makes gateways answer.
pub(crate) struct Resolver {
    shared: Arc<Shared>,
}

/// A gateway that answers, until this is dropped.
pub(crate) struct Serving {
    tasks: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Ends it, and returns when its sockets are closed.
    pub(crate) async fn close(mut self) {
        for task in &mut self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Shared {
    resolv_conf: PathBuf,
    names: Arc<Names>,
    questions: AtomicUsize,
    /// By the IPv4 address, which each container has: by whichever of its addresses it asks.
    each: Mutex<HashMap<Ipv4Addr, (usize, usize)>>,
}

/// A place among the questions under way; given back when dropped.
struct Place {
    shared: Arc<Shared>,
    from: Ipv4Addr,
    stream: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.questions.fetch_sub(1, Ordering::Relaxed);
        let mut each = self.shared.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((datagrams, streams)) = each.get_mut(&self.from) {
            match self.stream {
                true => *streams = streams.saturating_sub(1),
                false => *datagrams = datagrams.saturating_sub(1),
            }
            if (*datagrams, *streams) == (0, 0) {
                each.remove(&self.from);
            }
        }
    }
}

impl Resolver {
    pub(crate) fn new(resolv_conf: PathBuf, names: Arc<Names>) -> Resolver {
        let shared =
            Shared { resolv_conf, names, questions: AtomicUsize::new(0), each: Mutex::new(HashMap::new()) };
        Resolver { shared: Arc::new(shared) }
    }

    /// Listens at a network's gateway, for what comes over its bridge only.
    pub(crate) fn serve(&self, network: &Network) -> io::Result<Serving> {
        // What is bound before an error ends with this.
        let mut serving = Serving { tasks: self.listen(network, network.gateway.into())?.into() };
        if let Some(ipv6) = network.ipv6 {
            serving.tasks.extend(self.listen(network, ipv6.gateway.into())?);
        }
        Ok(serving)
    }

    fn listen(&self, network: &Network, gateway: IpAddr) -> io::Result<[JoinHandle<()>; 2]> {
        let at = SocketAddr::from((gateway, DNS));
        let datagrams = std::net::UdpSocket::bind(at)?;
        datagrams.set_nonblocking(true)?;
        let datagrams = UdpSocket::from_std(datagrams)?;
        datagrams.bind_device(Some(network.bridge.as_bytes()))?;
        let streams = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        streams.set_reuseaddr(true)?;
        streams.bind_device(Some(network.bridge.as_bytes()))?;
        streams.bind(at)?;
        let streams = streams.listen(64)?;
        let answer_datagrams = answer_datagrams(Arc::clone(&self.shared), network.name.clone(), datagrams);
        let answer_streams = answer_streams(Arc::clone(&self.shared), network.name.clone(), streams);
        Ok([tokio::spawn(answer_datagrams), tokio::spawn(answer_streams)])
    }
}

impl Shared {
    fn place(self: &Arc<Self>, from: Ipv4Addr, stream: bool) -> Option<Place> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if self.questions.load(Ordering::Relaxed) >= QUESTIONS {
            return None;
        }
        let (datagrams, streams) = each.get(&from).copied().unwrap_or_default();
        let after = match stream {
            true if streams < CONNECTIONS_EACH => (datagrams, streams.saturating_add(1)),
            false if datagrams < QUESTIONS_EACH => (datagrams.saturating_add(1), streams),
            true | false => return None,
        };
        each.insert(from, after);
        self.questions.fetch_add(1, Ordering::Relaxed);
        Some(Place { shared: Arc::clone(self), from, stream })
    }

    /// The host's servers as they are now: a device comes into other networks.
    fn servers(&self) -> Vec<IpAddr> {
        let mut text = Vec::new();
        let read = std::fs::File::open(&self.resolv_conf)
            .and_then(|file| file.take(RESOLV_CONF).read_to_end(&mut text));
        if read.is_err() {
            return Vec::new();
        }
        servers_in(&String::from_utf8_lossy(&text))
    }

    /// Not ourselves: that would go round for ever.
    fn ask_whom(&self, wanted: Vec<IpAddr>) -> Vec<IpAddr> {
        let view = self.names.now();
        let gateways = || {
            let of =
                |network: &Network| [Some(network.gateway.into()), network.ipv6.map(|v6| v6.gateway.into())];
            view.networks.values().flat_map(of).flatten()
        };
        let ourselves = |server: &IpAddr| gateways().any(|gateway: IpAddr| gateway == *server);
        let mut servers = if wanted.is_empty() { self.servers() } else { wanted };
        servers.retain(|server| !ourselves(server));
        servers.truncate(SERVERS);
        servers
    }
}

/// The servers of a `resolv.conf`. A scope of a link-local address is not kept: such a server cannot be asked.
fn servers_in(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
        })
        .collect()
}

async fn answer_datagrams(shared: Arc<Shared>, network: String, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0_u8; QUERY];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(_) => {
                // An error of an earlier answer ("port unreachable"), or a bridge that is gone: `mend` makes it anew.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(query) = buffer.get(..length) else { continue };
        let view = shared.names.now();
        let Some(from) = view.asker(&network, peer.ip()).map(|asker| asker.address) else { continue };
        match reply(&view, &network, peer.ip(), query, false) {
            Reply::Nothing => {}
            Reply::Answer(answer) => {
                let _ = socket.send_to(&answer, peer).await;
            }
            Reply::Forward(wanted) => {
                let Some(place) = shared.place(from, false) else { continue };
                let (query, socket, shared) = (query.to_vec(), Arc::clone(&socket), Arc::clone(&shared));
                tokio::spawn(async move {
                    if let Some(answer) = forward(&shared, wanted, &query, false).await {
                        let _ = socket.send_to(&answer, peer).await;
                    }
                    drop(place);
                });
            }
        }
    }
}

async fn answer_streams(shared: Arc<Shared>, network: String, listener: TcpListener) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let from = shared.names.now().asker(&network, peer.ip()).map(|asker| asker.address);
        let Some(place) = from.and_then(|from| shared.place(from, true)) else { continue };
        let (shared, network) = (Arc::clone(&shared), network.clone());
        tokio::spawn(async move {
            let _ = converse(&shared, &network, peer.ip(), stream).await;
            drop(place);
        });
    }
}

/// Question after question, until the other side has no more.
async fn converse(
    shared: &Arc<Shared>,
    network: &str,
    from: IpAddr,
    mut stream: TcpStream,
) -> io::Result<()> {
    loop {
        let query = timeout(SILENCE, receive(&mut stream, QUERY)).await??;
        let answer = match reply(&shared.names.now(), network, from, &query, true) {
            Reply::Nothing => return Ok(()),
            Reply::Answer(answer) => Some(answer),
            Reply::Forward(wanted) => forward(shared, wanted, &query, true).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        timeout(SILENCE, send(&mut stream, &answer)).await??;
    }
}

async fn receive(stream: &mut TcpStream, most: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// Asks one server after the other. What none answers is a failure of the server, which the asker may try again.
async fn forward(shared: &Arc<Shared>, wanted: Vec<IpAddr>, query: &[u8], stream: bool) -> Option<Vec<u8>> {
    for server in shared.ask_whom(wanted) {
        let to = SocketAddr::from((server, DNS));
        let asked = async {
            match stream {
                true => ask_stream(to, query).await,
                false => ask_datagram(to, query).await,
            }
        };
        if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await {
            return Some(answer);
        }
    }
    failed(query, Rcode::SERVFAIL)
}

/// The question with a number that nobody can guess.
fn renumbered(query: &[u8]) -> io::Result<(Message<Vec<u8>>, u16)> {
    let mut number = [0_u8; 2];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut number)?;
    let mut message = Message::from_octets(query.to_vec()).map_err(io::Error::other)?;
    let before = message.header().id();
    message.header_mut().set_id(u16::from_be_bytes(number));
    Ok((message, before))
}

async fn ask_datagram(to: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let (asked, number) = renumbered(query)?;
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(asked.as_slice()).await?;
    let mut buffer = vec![0_u8; ANSWER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Some(answer) = accepted(buffer.get(..length).unwrap_or_default(), asked.as_slice(), number)
        else {
            continue;
        };
        if length < ANSWER {
            return Ok(answer);
        }
        // It may have been longer: the asker comes again over TCP.
        let mut cut = Message::from_octets(failed(query, Rcode::NOERROR).ok_or(io::ErrorKind::InvalidData)?)
            .map_err(io::Error::other)?;
        cut.header_mut().set_tc(true);
        return Ok(cut.into_octets());
    }
}

async fn ask_stream(to: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let (asked, number) = renumbered(query)?;
    let mut stream = TcpStream::connect(to).await?;
    send(&mut stream, asked.as_slice()).await?;
    let answer = receive(&mut stream, usize::from(u16::MAX)).await?;
    accepted(&answer, asked.as_slice(), number).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_resolvers_read_them() {
        let text = "# nameserver 192.0.2.9\nsearch lan\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # second\n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 192.0.2.8\noptions edns0\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(servers_in(text), expected);
    }

    #[test]
    fn a_container_has_no_more_than_its_share() {
        let shared = Resolver::new("/none".into(), Arc::default()).shared;
        let (one, two) = (Ipv4Addr::new(172, 18, 0, 2), Ipv4Addr::new(172, 18, 0, 3));
        let held: Vec<Place> = (0..QUESTIONS_EACH).filter_map(|_| shared.place(one, false)).collect();
        assert_eq!(held.len(), QUESTIONS_EACH);
        assert!(shared.place(one, false).is_none());
        assert!(shared.place(one, true).is_some() && shared.place(two, false).is_some());
        drop(held);
        assert!(shared.place(one, false).is_some());
        assert!(shared.each.lock().unwrap().is_empty() && shared.questions.load(Ordering::Relaxed) == 0);
        let many: Vec<Place> = (0..=255)
            .flat_map(|n| [Ipv4Addr::new(10, 0, 0, n); 2])
            .filter_map(|from| shared.place(from, false))
            .collect();
        assert_eq!(many.len(), QUESTIONS);
    }
}
