//! A network with nothing in it but one client and a TLS server in front of a plain one, where the kernel counts the
//! packets. Needs root. Called by `bench herd`.

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Names in the server's certificate: with them the chain has the 3 kB that an authority's usually has.
const NAMES: usize = 55;

type Work = Box<dyn FnOnce(&Runtime) -> Result<()> + Send>;

/// The network. Its threads end with the process.
pub struct Tls {
    address: SocketAddr,
    work: mpsc::Sender<Work>,
    counted: mpsc::Receiver<Result<u64>>,
    /// Bytes of the certificates that the server shows.
    pub chain: usize,
}

impl Tls {
    /// In front of `server`; its authority's certificate is written to `authority`.
    ///
    /// # Errors
    /// No network of one's own can be had.
    pub fn new(server: SocketAddr, authority: &Path) -> Result<Tls> {
        let (acceptor, chain) = acceptor(authority)?;
        let (work, works) = mpsc::channel::<Work>();
        let (count, counted) = mpsc::channel();
        let (ready, listener) = mpsc::channel();
        std::thread::spawn(move || {
            let made = network();
            let fine = made.is_ok();
            if ready.send(made).is_err() || !fine {
                return;
            }
            while let Ok(work) = works.recv() {
                if count.send(packets_of(work)).is_err() {
                    return;
                }
            }
        });
        let listener = listener.recv().context("the network is gone")??;
        let address = listener.local_addr().context("no address")?;
        // The plain server is outside: this thread is, too, and only its listener is inside.
        let (ready, running) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(anyhow!(error)))),
            };
            runtime.block_on(async {
                let listener = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return drop(ready.send(Err(anyhow!(error)))),
                };
                drop(ready.send(Ok(())));
                while let Ok((stream, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let (Ok(mut inside), Ok(mut outside)) =
                            (acceptor.accept(stream).await, TcpStream::connect(server).await)
                        else {
                            return;
                        };
                        let _ = copy_bidirectional(&mut inside, &mut outside).await;
                    });
                }
            });
        });
        running.recv().context("the TLS server is gone")??;
        Ok(Tls { address, work, counted, chain })
    }

    /// Its address inside.
    pub fn url(&self) -> String {
        format!("https://{}/", self.address)
    }

    /// Bytes of all packets, IP and TCP heads included, that `work` inside caused.
    ///
    /// # Errors
    /// `work`'s own.
    pub fn packets_of(&self, work: impl FnOnce(&Runtime) -> Result<()> + Send + 'static) -> Result<u64> {
        self.work.send(Box::new(work)).map_err(|_| anyhow!("the network is gone"))?;
        self.counted.recv().context("the network is gone")?
    }
}

/// A network for this thread, with packets as on Ethernet.
fn network() -> Result<TcpListener> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot have a network of my own: root is needed")?;
    // Without the last two the kernel passes on several packets as one.
    let words =
        ["link", "set", "dev", "lo", "mtu", "1500", "gso_max_size", "1500", "gso_max_segs", "1", "up"];
    let output = Command::new("ip").args(words).output().context("cannot run ip")?;
    if !output.status.success() {
        return Err(anyhow!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()));
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen")?;
    listener.set_nonblocking(true).context("cannot listen")?;
    Ok(listener)
}

fn packets_of(work: Work) -> Result<u64> {
    let before = received()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    work(&runtime)?;
    // Connections end with the runtime, and their last packets come at once.
    drop(runtime);
    Ok(received()?.saturating_sub(before))
}

/// What this thread's `lo` has received, bytes.
fn received() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").context("no count of packets")?;
    of_lo(&text).context("no count of lo's packets")
}

/// The first number of `lo` in `/proc/net/dev`: received bytes.
fn of_lo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A server's TLS with a chain of a usual length: authority, intermediate, server.
fn acceptor(authority: &Path) -> Result<(TlsAcceptor, usize)> {
    let ca = |name: &str| -> Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Ok(params)
    };
    let (root, root_key) = (ca("An authority of the bench")?, KeyPair::generate()?);
    let pem = root.self_signed(&root_key)?.pem();
    std::fs::write(authority, pem).with_context(|| format!("cannot write {}", authority.display()))?;
    let root = Issuer::new(root, root_key);
    let (middle, middle_key) = (ca("An intermediate authority of the bench")?, KeyPair::generate()?);
    let middle_certificate = middle.signed_by(&middle_key, &root)?;
    let middle = Issuer::new(middle, middle_key);
    let names = (0..NAMES).map(|number| format!("updates-{number:04}.devices.example.com"));
    let leaf = CertificateParams::new(names.chain(["127.0.0.1".to_owned()]).collect::<Vec<_>>())?;
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &middle)?;
    let chain = vec![leaf.der().clone(), middle_certificate.der().clone()];
    let bytes = chain.iter().map(|certificate| certificate.len()).sum();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), bytes))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let text = "Inter-|   Receive\n face |bytes    packets\n    lo:  3710      30    0\n  eth0: 9 9\n";
        assert_eq!(of_lo(text), Some(3710));
        assert_eq!(of_lo("lo: x"), None);
    }

    #[test]
    fn the_chain_has_a_usual_length() {
        let dir = tempfile::tempdir().unwrap();
        let (_, chain) = acceptor(&dir.path().join("ca.pem")).unwrap();
        assert!((2500..3500).contains(&chain), "{chain}");
    }
}
