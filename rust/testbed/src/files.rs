//! A web server for bundles on 127.0.0.1 (the guest reaches it at 10.0.2.2): range requests, a
//! count of every byte that went out, and faults on demand. Never serves outside its directory.

use crate::{Error, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use tower_http::services::ServeDir;

/// What the server does wrong on purpose. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every request is answered with this status.
    pub status: Option<u16>,
    /// Each answer's connection is reset after this many bytes.
    pub reset_after: Option<u64>,
    /// The speed of each answer, bytes a second.
    pub bytes_per_second: Option<u64>,
    /// Ranges are ignored: the whole file comes back, as from a server that does not know them.
    pub no_ranges: bool,
}

#[derive(Default)]
struct Shared {
    faults: Mutex<Faults>,
    bytes: AtomicU64,
    requests: AtomicU64,
}

/// A running server. It ends with this value.
pub struct FileServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FileServer {
    /// Serves `dir` on a free port of 127.0.0.1.
    pub fn start(dir: &Path) -> Result<Self> {
        FileServer::bind(dir, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Serves `dir` at `address`.
    pub fn bind(dir: &Path, address: SocketAddr) -> Result<Self> {
        let failed = Error::io("listen at", address.to_string());
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        let failed = || Error::io("set up", address.to_string());
        listener.set_nonblocking(true).map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed())?;
        let shared = Arc::new(Shared::default());
        let router = Router::new()
            .fallback_service(ServeDir::new(dir))
            .layer(from_fn_with_state(Arc::clone(&shared), meddle));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                let serve = axum::serve(listener, router);
                tokio::select! {
                    _ = serve.into_future() => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(FileServer { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens on this machine.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a file as the guest of a machine of ours sees it.
    pub fn guest_url(&self, file: &str) -> String {
        format!("http://10.0.2.2:{}/{file}", self.address.port())
    }

    /// Bytes of files that went out so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Requests that came in so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Does wrong what `faults` says from the next request on.
    pub fn set_faults(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for FileServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileServer({})", self.address)
    }
}

async fn meddle(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let faults = shared.faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(status) = faults.status {
        return StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY).into_response();
    }
    if faults.no_ranges {
        request.headers_mut().remove(header::RANGE);
    }
    let mut response = next.run(request).await;
    if faults.no_ranges {
        response.headers_mut().remove(header::ACCEPT_RANGES);
    }
    response.map(|body| {
        let mut sent = 0u64;
        Body::from_stream(body.into_data_stream().then(move |chunk| {
            let n = chunk.as_ref().map_or(0, |chunk| u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            sent = sent.saturating_add(n);
            let reset = faults.reset_after.is_some_and(|limit| sent > limit);
            if !reset {
                shared.bytes.fetch_add(n, Ordering::Relaxed);
            }
            let pause = faults
                .bytes_per_second
                .and_then(|rate| n.saturating_mul(1_000_000).checked_div(rate).map(Duration::from_micros));
            async move {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                if reset { Err(axum::Error::new(std::io::Error::other("reset"))) } else { chunk }
            }
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn served() -> (tempfile::TempDir, FileServer) {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(dir.path().join("a.raucb"), content).unwrap();
        let server = FileServer::start(dir.path()).unwrap();
        (dir, server)
    }

    fn get(server: &FileServer, path: &str, extra: &str) -> Vec<u8> {
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A connection that is reset ends the answer, too.
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    fn status(answer: &[u8]) -> String {
        String::from_utf8_lossy(answer.get(9..12).unwrap()).into_owned()
    }

    #[test]
    fn ranges_are_served_and_counted() {
        let (_dir, server) = served();
        let answer = get(&server, "/a.raucb", "Range: bytes=4-7\r\n");
        assert_eq!(status(&answer), "206");
        assert!(answer.ends_with(&[1, 0, 0, 0]));
        assert_eq!((server.bytes(), server.requests()), (4, 1));
    }

    #[test]
    fn nothing_outside_the_directory_is_served() {
        let (_dir, server) = served();
        assert_eq!(status(&get(&server, "/../../../etc/passwd", "")), "404");
        assert_eq!(status(&get(&server, "/%2e%2e/%2e%2e/etc/passwd", "")), "404");
    }

    #[test]
    fn faults_are_done_as_asked() {
        let (_dir, server) = served();
        server.set_faults(Faults { status: Some(503), ..Faults::default() });
        assert_eq!(status(&get(&server, "/a.raucb", "")), "503");
        server.set_faults(Faults { no_ranges: true, ..Faults::default() });
        assert_eq!(status(&get(&server, "/a.raucb", "Range: bytes=4-7\r\n")), "200");
        server.set_faults(Faults { reset_after: Some(100_000), ..Faults::default() });
        let before = server.bytes();
        assert!(get(&server, "/a.raucb", "").len() < 200_000);
        assert!(server.bytes() - before <= 100_000);
        server.set_faults(Faults::default());
        assert!(get(&server, "/a.raucb", "").len() > 400_000);
    }
}
