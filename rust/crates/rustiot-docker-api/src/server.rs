//! Accepts connections and serves HTTP/1.1 on them, bounded in number, header size and patience.
//!
//! Never opens a socket itself: who may connect is decided by the mode of the socket that it is handed. Called by
//! `rustiot-engine`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::Engine;
use crate::http;

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Connections at the same time; one more is answered 503. Attached terminals and streams count.
    pub most_connections: usize,
    /// Bytes of a JSON body.
    pub most_json: usize,
    /// How long a JSON body may take, a tar stream may be silent, and a connection may idle.
    pub patience: Duration,
    /// Every call but `/_ping` is answered 503 with this text: containers are not wanted here.
    pub closed: Option<&'static str>,
    /// Called when no client has been there for [`QUIET`], once each time. Everybody waits for it: it must be quick.
    pub quiet: Option<fn()>,
}

/// How long nobody must have asked for anything.
pub const QUIET: Duration = Duration::from_secs(3);

impl Default for Settings {
    fn default() -> Self {
        Self {
            most_connections: 256,
            most_json: 1024 * 1024,
            patience: Duration::from_secs(300),
            closed: None,
            quiet: None,
        }
    }
}

/// Serves until `stop` is ready; open connections are dropped then, changes that have begun run to their end as long as
/// the runtime lives.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: UnixListener,
    engine: Arc<dyn Engine>,
    settings: Settings,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(settings.most_connections));
    let mut connections = tokio::task::JoinSet::new();
    tokio::pin!(stop);
    let soon = || settings.quiet.map(|tell| (tokio::time::Instant::now() + QUIET, tell));
    let mut quiet = soon();
    loop {
        let due = quiet.filter(|_| connections.is_empty());
        let told = async {
            match due {
                Some((at, tell)) => {
                    tokio::time::sleep_until(at).await;
                    tell();
                }
                None => std::future::pending().await,
            }
        };
        let accepted = tokio::select! {
            () = &mut stop => return Ok(()),
            () = told => {
                quiet = None;
                continue;
            }
            Some(_) = connections.join_next() => {
                quiet = soon();
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((mut stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let engine = Arc::clone(&engine);
                    connections.spawn(async move {
                        connection(stream, engine, settings).await;
                        drop(place);
                    });
                }
                Err(_) => {
                    // Best effort, without a task that could pile up.
                    let busy = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 63\r\n\r\n{\"message\":\"too many connections: close some, then try again\"}\n";
                    let _ = tokio::time::timeout(Duration::from_millis(50), stream.write_all(busy)).await;
                }
            },
            // Out of descriptors: those that are open must get the chance to close.
            Err(error) if matches!(error.raw_os_error(), Some(23 | 24 | 12 | 105)) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Serves one connection to its end, hijacked streams excepted: those live on in a task of their own.
pub async fn connection<IO>(io: IO, engine: Arc<dyn Engine>, settings: Settings)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let engine = Arc::clone(&engine);
        async move { Ok::<_, std::convert::Infallible>(http::answer(engine, settings, request).await) }
    });
    // A connection that breaks is the client's affair: whatever it asked for has been answered or dropped.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.patience)
        .max_buf_size(64 * 1024)
        .max_headers(64)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
}
