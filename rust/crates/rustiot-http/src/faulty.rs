//! A server that misbehaves on demand, one TCP connection at a time (feature `faulty`, tests only).
//!
//! It serves one file by ranges and counts what it sends. Faults can be changed while it runs; each is something that
//! real servers, proxies and links do. Called by the tests of everything that talks to servers.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, reason = "for tests only")]

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub use link::{Link, Quality};

use crate::range::parse_range;
use crate::{Bytes, Url};

mod link;

/// What the server does wrong.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Resets the connection after so many bytes of each body.
    ResetAfter(u64),
    /// Closes the connection orderly after so many bytes of each body.
    CloseAfter(u64),
    /// Sends so many bytes of each body and then nothing more.
    SilentAfter(u64),
    /// Says nothing at all.
    Silent,
    /// Sends each body so many bytes at a time, with such a pause after each.
    Drip(usize, Duration),
    /// Sends the head a byte at a time, with such a pause after each.
    DripHead(Duration),
    /// Sends another range than asked for, and says so.
    WrongRange,
    /// Content-Range says one length more than the file has.
    WrongTotal,
    /// Content-Length does not fit the range.
    WrongLength,
    /// Ignores Range.
    NoRanges,
    /// Flips a bit in every body.
    Corrupt,
    /// This code, with this Retry-After.
    Status(u16, Option<u64>),
    /// A page, with code 200.
    Page,
    /// Redirects to itself.
    RedirectLoop,
    /// Redirects there.
    RedirectTo(String),
    /// Says that the body is compressed.
    Compressed,
    /// Closes the connection without an answer.
    HangUp,
    /// Refuses requests with bodies longer than this, as proxies do.
    TooLarge(u64),
}

/// What is wrong with the server's certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsFault {
    /// Nothing.
    None,
    /// It ended years ago.
    Expired,
    /// It begins in many years.
    NotYetValid,
    /// It is for another name.
    WrongName,
}

#[derive(Debug)]
struct State {
    file: Bytes,
    etag: Option<String>,
    fault: Fault,
    requests: Vec<String>,
    bodies: Vec<Vec<u8>>,
    pace: Option<Duration>,
}

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    state: Arc<Mutex<State>>,
    sent: Arc<AtomicU64>,
    address: SocketAddr,
    scheme: &'static str,
    task: JoinHandle<()>,
    /// Its authority's certificate in PEM, if it speaks TLS.
    pub authority: Option<String>,
}

impl Server {
    /// Serves `file` by plain HTTP.
    pub async fn start(file: Vec<u8>) -> Server {
        Server::with(file, None).await
    }

    /// Serves `file` by HTTPS, as `localhost` and 127.0.0.1.
    pub async fn start_tls(file: Vec<u8>, fault: TlsFault) -> Server {
        Server::with(file, Some(fault)).await
    }

    async fn with(file: Vec<u8>, tls: Option<TlsFault>) -> Server {
        let socket = TcpSocket::new_v4().unwrap();
        // What lies in buffers when a client is killed counts as sent: keep it small.
        socket.set_send_buffer_size(32 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (acceptor, authority) = tls.map(certificate).unzip();
        let state = State {
            file: file.into(),
            etag: Some("\"1\"".into()),
            fault: Fault::None,
            requests: Vec::new(),
            bodies: Vec::new(),
            pace: None,
        };
        let (state, sent) = (Arc::new(Mutex::new(state)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(accept(listener, state.clone(), sent.clone(), acceptor));
        let scheme = if tls.is_some() { "https" } else { "http" };
        Server { state, sent, address, scheme, task, authority }
    }

    /// Where the file is.
    #[must_use]
    pub fn url(&self) -> Url {
        Url::parse(&format!("{}://{}/file", self.scheme, self.address)).unwrap()
    }

    /// Misbehaves from the next request on.
    pub fn set(&self, fault: Fault) {
        self.state.lock().unwrap().fault = fault;
    }

    /// Waits so long after each 16 KiB, as a slow link does.
    pub fn pace(&self, each: Duration) {
        self.state.lock().unwrap().pace = Some(each);
    }

    /// Another file, or the same by another name.
    pub fn replace(&self, file: Vec<u8>, etag: Option<&str>) {
        let mut state = self.state.lock().unwrap();
        state.file = file.into();
        state.etag = etag.map(str::to_owned);
    }

    /// Bytes of bodies so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Heads of all requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Bodies of all requests so far, also of those without one.
    #[must_use]
    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.state.lock().unwrap().bodies.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An address where nobody listens.
pub async fn nobody() -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Url::parse(&format!("http://{}/file", listener.local_addr().unwrap())).unwrap()
}

fn certificate(fault: TlsFault) -> (TlsAcceptor, String) {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let authority = ca.self_signed(&ca_key).unwrap().pem();
    let names: &[&str] =
        if fault == TlsFault::WrongName { &["example.org"] } else { &["localhost", "127.0.0.1"] };
    let mut leaf =
        CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    match fault {
        TlsFault::Expired => {
            leaf.not_before = date_time_ymd(2001, 1, 1);
            leaf.not_after = date_time_ymd(2002, 1, 1);
        }
        TlsFault::NotYetValid => leaf.not_before = date_time_ymd(4000, 1, 1),
        TlsFault::None | TlsFault::WrongName => {}
    }
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .expect("a certificate with its key");
    (TlsAcceptor::from(Arc::new(config)), authority)
}

async fn accept(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    sent: Arc<AtomicU64>,
    acceptor: Option<TlsAcceptor>,
) {
    // Connections end with the server.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (state, sent, acceptor) = (state.clone(), sent.clone(), acceptor.clone());
        connections.spawn(async move {
            let _ = match acceptor {
                None => connection(stream, &state, &sent, |stream: &TcpStream| reset(stream)).await,
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => connection(stream, &state, &sent, |stream| reset(stream.get_ref().0)).await,
                    Err(error) => Err(error),
                },
            };
        });
    }
}

/// Closing it is a reset from now on.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    state: &Mutex<State>,
    sent: &AtomicU64,
    reset: impl Fn(&S),
) -> io::Result<()> {
    loop {
        let Some((head, carried)) = head(&mut stream).await? else { return Ok(()) };
        let carries = carried.len() as u64;
        let (fault, file, etag, pace) = {
            let mut state = state.lock().unwrap();
            state.requests.push(head.clone());
            state.bodies.push(carried);
            (state.fault.clone(), state.file.clone(), state.etag.clone(), state.pace)
        };
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let total = file.len() as u64;
        let fits = header("if-range").is_none_or(|wanted| Some(wanted) == etag);
        let range = header("range").filter(|_| fits && fault != Fault::NoRanges);
        let range = range.and_then(|range| parse_range(&range)).map(|wanted| wanted.within(total));
        let mut headers = String::new();
        if let Some(etag) = &etag {
            headers.push_str(&format!("ETag: {etag}\r\n"));
        }
        let page = Bytes::from_static(b"<html>Please log in</html>");
        let (status, mut body) = match (&fault, range) {
            (Fault::Silent, _) => std::future::pending().await,
            (Fault::HangUp, _) => return Ok(()),
            (Fault::Status(code, after), _) => {
                if let Some(after) = after {
                    headers.push_str(&format!("Retry-After: {after}\r\n"));
                }
                (format!("{code} No"), Bytes::new())
            }
            (Fault::TooLarge(most), _) if carries > *most => ("413 No".into(), Bytes::new()),
            (Fault::Page, _) => {
                headers = "Content-Type: text/html; charset=utf-8\r\n".into();
                ("200 OK".into(), page)
            }
            (Fault::RedirectLoop, _) => {
                headers.push_str("Location: /file\r\n");
                ("302 Found".into(), Bytes::new())
            }
            (Fault::RedirectTo(url), _) => {
                headers.push_str(&format!("Location: {url}\r\n"));
                ("302 Found".into(), Bytes::new())
            }
            _ if header("if-none-match").is_some_and(|have| Some(have) == etag) => {
                ("304 Not Modified".into(), Bytes::new())
            }
            (_, None) => ("200 OK".into(), file),
            (_, Some(None)) => {
                headers.push_str(&format!("Content-Range: bytes */{total}\r\n"));
                ("416 No".into(), Bytes::new())
            }
            (_, Some(Some(range))) => {
                let shift = u64::from(fault == Fault::WrongRange);
                let more = u64::from(fault == Fault::WrongTotal);
                let (first, last) = (range.start + shift, range.end - 1 + shift);
                headers
                    .push_str(&format!("Content-Range: bytes {first}-{last}/{}\r\n", total + more + shift));
                let body = file.slice(range.start as usize..range.end as usize);
                ("206 Partial Content".into(), body)
            }
        };
        match fault {
            Fault::Corrupt => {
                let mut bad = body.to_vec();
                let middle = bad.len() / 2;
                bad.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
                body = bad.into();
            }
            Fault::Compressed => headers.push_str("Content-Encoding: gzip\r\n"),
            _ => {}
        }
        let length = body.len() + usize::from(fault == Fault::WrongLength);
        let head_only = head.starts_with("HEAD ");
        let answer = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n");
        if let Fault::DripHead(pause) = fault {
            for byte in answer.as_bytes() {
                stream.write_all(&[*byte]).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        } else {
            stream.write_all(answer.as_bytes()).await?;
        }
        let limit = match fault {
            Fault::ResetAfter(limit) | Fault::CloseAfter(limit) | Fault::SilentAfter(limit) => limit as usize,
            _ => usize::MAX,
        };
        let cut = body.len() > limit;
        body.truncate(if head_only { 0 } else { limit });
        let (size, pace) = match fault {
            Fault::Drip(size, pause) => (size.max(1), Some(pause)),
            _ => (16 << 10, pace),
        };
        for piece in body.chunks(size) {
            stream.write_all(piece).await?;
            sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
            if let Some(pace) = pace {
                stream.flush().await?;
                tokio::time::sleep(pace).await;
            }
        }
        stream.flush().await?;
        match fault {
            Fault::SilentAfter(_) if cut => std::future::pending().await,
            Fault::ResetAfter(_) if cut => {
                // Let it arrive first: a reset throws away what is on its way.
                let _ = tokio::time::timeout(Duration::from_millis(5), stream.read_u8()).await;
                reset(&stream);
                return Ok(());
            }
            Fault::CloseAfter(_) | Fault::WrongLength if cut || fault == Fault::WrongLength => {
                stream.shutdown().await?;
                return Ok(());
            }
            _ => {}
        }
    }
}

/// The head of a request, and its body; `None` when the client is done.
async fn head<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && head.is_empty() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>().ok())?
    });
    let mut body = Vec::new();
    stream.take(length.unwrap_or_default()).read_to_end(&mut body).await?;
    Ok(Some((head, body)))
}
