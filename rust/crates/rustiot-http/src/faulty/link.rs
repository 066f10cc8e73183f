//! A bad link between a client and a server, as TCP over it shows: every byte arrives and in order, but late, slowly and
//! in fits.
//!
//! It cannot lose a byte for good, since TCP would send it again; what loss costs is the wait for that, and everything
//! behind it waits as well. Called by tests.
#![expect(clippy::cast_precision_loss, reason = "times of a model")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::Url;

/// Bytes of a segment.
const SEGMENT: usize = 1400;
/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Bytes a second, each way; 0 is without a limit.
    pub rate: u64,
    /// One way.
    pub latency: Duration,
    /// Segments of a hundred that are lost.
    pub loss: u8,
    /// Time until a lost segment is sent again; twice as long each further time.
    pub again: Duration,
    /// Bytes that it holds at most: the window of a connection, and what lies in buffers on the way.
    pub buffer: usize,
}

impl Default for Quality {
    /// A good one, with a window of 64 KiB.
    fn default() -> Self {
        let (latency, again) = (Duration::ZERO, Duration::ZERO);
        Quality { rate: 0, latency, loss: 0, again, buffer: 64 << 10 }
    }
}

/// The link; it ends when this is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    arrived: Arc<AtomicU64>,
    stalls: Arc<AtomicU64>,
    up: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Link {
    /// A link to the server of `url`.
    pub async fn to(url: &Url, quality: Quality) -> Link {
        let server = SocketAddr::new(url.host_str().unwrap().parse().unwrap(), url.port().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrived, stalls) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (up, is_up) = watch::channel(true);
        let pump = Pump { quality, arrived: arrived.clone(), stalls: stalls.clone(), up: is_up };
        let task = tokio::spawn(pump.accept(listener, server));
        Link { address, arrived, stalls, up, task }
    }

    /// `url` at the near end.
    #[must_use]
    pub fn url(&self, url: &Url) -> Url {
        let mut near = url.clone();
        near.set_port(Some(self.address.port())).unwrap();
        near
    }

    /// Pulls the plug, or puts it back. Nobody is told: bytes wait on the way, and the far end goes on sending into the
    /// buffers.
    pub fn set_up(&self, up: bool) {
        self.up.send_replace(up);
    }

    /// Bytes that came to the client.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::SeqCst)
    }

    /// Segments that were lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.stalls.load(Ordering::SeqCst)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Pump {
    quality: Quality,
    arrived: Arc<AtomicU64>,
    stalls: Arc<AtomicU64>,
    up: watch::Receiver<bool>,
}

impl Pump {
    async fn accept(self, listener: TcpListener, server: SocketAddr) {
        let mut connections = JoinSet::new();
        let mut seed = 0u64;
        while let Ok((near, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            seed += 2;
            let this = self.clone();
            connections.spawn(async move {
                let Ok(far) = TcpStream::connect(server).await else { return };
                let (from_client, to_client) = near.into_split();
                let (from_server, to_server) = far.into_split();
                let up = this.pass(seed, from_client, to_server, None);
                let down = this.pass(seed + 1, from_server, to_client, Some(&this.arrived));
                tokio::join!(up, down);
            });
        }
    }

    async fn pass(
        &self,
        seed: u64,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        arrived: Option<&AtomicU64>,
    ) {
        let (send, mut under_way) =
            mpsc::channel::<(Instant, Vec<u8>)>((self.quality.buffer / SEGMENT).max(1));
        let mut up = self.up.clone();
        let take = async {
            let mut random = seed;
            let mut free = Instant::now();
            let mut buffer = vec![0; SEGMENT];
            while let Ok(count) = from.read(&mut buffer).await {
                if count == 0 {
                    break;
                }
                free = free.max(Instant::now());
                if self.quality.rate > 0 {
                    free += Duration::from_secs_f64(count as f64 / self.quality.rate as f64);
                }
                let mut wait = self.quality.again;
                while chance(&mut random) < self.quality.loss {
                    self.stalls.fetch_add(1, Ordering::SeqCst);
                    free += wait;
                    wait *= 2;
                }
                let segment = buffer.get(..count).unwrap_or_default().to_vec();
                if send.send((free + self.quality.latency, segment)).await.is_err() {
                    break;
                }
            }
            drop(send);
        };
        let give = async {
            while let Some((at, segment)) = under_way.recv().await {
                sleep_until(at).await;
                if up.wait_for(|up| *up).await.is_err() {
                    break;
                }
                if to.write_all(&segment).await.is_err() {
                    break;
                }
                if let Some(arrived) = arrived {
                    arrived.fetch_add(segment.len() as u64, Ordering::SeqCst);
                }
            }
            // The other end hears of it.
            drop(under_way);
            let _ = to.shutdown().await;
        };
        tokio::join!(take, give);
    }
}

/// 0 to 99.
fn chance(random: &mut u64) -> u8 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*random >> 33) % 100) as u8
}
