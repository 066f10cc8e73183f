//! A link between devices and a web server or registry: it counts every byte both ways, is as slow as it is told, and can
//! be cut. Never changes what goes through. Called by `bench herd`, `bench resume` and `bench delta --rauc`, and by the
//! lab's registry.

use crate::{Error, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};

/// What goes through at once.
const PIECE: usize = 4 << 10;
/// Buffers of the kernel on the device's side, bytes: what lies in them when a link dies has been counted.
const BUFFER: u32 = 32 << 10;

/// What the link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    Up,
    /// Connections are reset, new ones at once.
    Reset,
    /// Nothing passes, and nobody says so. Connections of that time stay dead.
    Silent,
}

/// The link. It ends with the runtime that it was made in.
#[derive(Clone, Debug)]
pub struct Relay {
    address: SocketAddr,
    counted: Arc<AtomicU64>,
    state: watch::Sender<State>,
}

impl Relay {
    /// Passes connections on to `server`; what comes from there not faster than `rate` bytes a second.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn new(server: SocketAddr, rate: Option<u64>) -> Result<Relay> {
        let failed = || Error::io("listen for", server.to_string());
        let socket = TcpSocket::new_v4().map_err(failed())?;
        socket.set_send_buffer_size(BUFFER).map_err(failed())?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).map_err(failed())?;
        let listener = socket.listen(1024).map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let relay = Relay { address, counted: Arc::default(), state: watch::Sender::new(State::Up) };
        tokio::spawn(accept(listener, server, rate, relay.clone()));
        Ok(relay)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that went through, both ways.
    pub fn bytes(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Cuts the link, or mends it.
    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

/// The link, in a thread of its own, for those that have no runtime.
#[derive(Debug)]
pub struct Link {
    relay: Relay,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// As [`Relay::new`].
    ///
    /// # Errors
    /// It cannot listen.
    pub fn new(server: SocketAddr, rate: Option<u64>) -> Result<Link> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("set up a link to", server.to_string()))?;
        let relay = runtime.block_on(Relay::new(server, rate))?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || drop(runtime.block_on(stopped)));
        Ok(Link { relay, stop: Some(stop), thread: Some(thread) })
    }

    /// What it does.
    pub fn relay(&self) -> &Relay {
        &self.relay
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, rate: Option<u64>, relay: Relay) {
    while let Ok((client, _)) = listener.accept().await {
        let relay = relay.clone();
        tokio::spawn(async move {
            let mut state = relay.state.subscribe();
            let began = *state.borrow_and_update();
            if began == State::Up
                && let Ok(mut server) = TcpStream::connect(server).await
            {
                let mut client = client;
                let ended = {
                    let (from_client, to_client) = client.split();
                    let (from_server, to_server) = server.split();
                    let both = async {
                        tokio::join!(
                            pass(from_client, to_server, &relay.counted, None),
                            pass(from_server, to_client, &relay.counted, rate)
                        );
                    };
                    tokio::select! {
                        biased;
                        cut = state.wait_for(|now| *now != State::Up) => cut.map_or(State::Reset, |now| *now),
                        () = both => State::Up,
                    }
                };
                return end(client, ended).await;
            }
            end(client, if began == State::Up { State::Reset } else { began }).await;
        });
    }
}

/// How a connection ends, with the link in this state.
async fn end(client: TcpStream, state: State) {
    match state {
        State::Up => {}
        State::Reset => drop(client.set_zero_linger()),
        // The other end finds out by itself.
        State::Silent => std::future::pending().await,
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    counted: &AtomicU64,
    rate: Option<u64>,
) {
    let mut buffer = [0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..read) else { break };
        if to.write_all(bytes).await.is_err() {
            break;
        }
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        counted.fetch_add(read, Ordering::Relaxed);
        if let Some(pause) = rate.and_then(|rate| read.saturating_mul(1_000_000).checked_div(rate)) {
            tokio::time::sleep(Duration::from_micros(pause)).await;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod unit {
    use super::*;

    async fn pair() -> (Relay, TcpListener) {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        (Relay::new(server.local_addr().unwrap(), None).await.unwrap(), server)
    }

    #[tokio::test]
    async fn it_counts_both_ways_and_ends_with_either_end() {
        let (relay, server) = pair().await;
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let (mut end, _) = server.accept().await.unwrap();
        let mut got = [0; 5];
        end.read_exact(&mut got).await.unwrap();
        end.write_all(b"hi").await.unwrap();
        drop(end);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!((rest.as_slice(), relay.bytes()), (&b"hi"[..], 7));
    }

    #[tokio::test]
    async fn a_cut_resets_what_is_there_and_what_comes_until_it_is_mended() {
        let (relay, server) = pair().await;
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        let (_end, _) = server.accept().await.unwrap();
        relay.set(State::Reset);
        assert!(client.read_u8().await.is_err());
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        assert!(client.read_u8().await.is_err());
        relay.set(State::Up);
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        let (mut end, _) = server.accept().await.unwrap();
        end.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        // A silent death is none: nothing comes, not even an end.
        relay.set(State::Silent);
        end.write_all(b"y").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), client.read_u8()).await.is_err());
    }
}
