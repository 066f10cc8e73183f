//! The HTTP server on loopback, as far as RAUC's streaming client (libcurl) needs one: GET and HEAD with one range.
//!
//! Never answers with a failure that may heal: the request is held instead. 404 ends RAUC's attempts at once, so it is
//! the answer when there is nothing to wait for. Called by the proxy. Contract: `docs/contracts/proxy.md`.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustiot_http::Bytes;
use rustiot_http::range::parse_range;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use crate::error::Failure;
use crate::job::Job;

/// Most connections. RAUC opens one for each request of the kernel's that is under way, 128 at the most.
const CONNECTIONS: usize = 256;
/// Most bytes that are made at once for one request. The kernel asks for 1.25 MB at the most.
const STRETCH: u64 = 2 << 20;

/// Serves the bundle at `path` until this is dropped.
pub(crate) async fn serve(listener: TcpListener, path: Arc<str>, job: Arc<Job>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Too many open files, or the client was gone already.
            Err(_) => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (path, job) = (path.clone(), job.clone());
        connections.spawn(async move {
            let service = hyper::service::service_fn(|request: Request<Incoming>| {
                let (path, job) = (path.clone(), job.clone());
                async move { Ok::<_, Infallible>(answer(&request, &path, job).await) }
            });
            // A client that goes away takes its requests with it.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

async fn answer(request: &Request<Incoming>, path: &str, job: Arc<Job>) -> Response<Sent> {
    if request.uri().path() != path {
        return plain(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let held = job.hold();
    let Ok(total) = job.bundle_len().await else { return plain(StatusCode::NOT_FOUND) };
    let asked = request.headers().get(RANGE).and_then(|value| value.to_str().ok()).and_then(parse_range);
    let (status, range) = match asked {
        None => (StatusCode::OK, 0..total),
        Some(wanted) => match wanted.within(total) {
            Some(range) => (StatusCode::PARTIAL_CONTENT, range),
            None => {
                let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE);
                set(&mut response, CONTENT_RANGE, &format!("bytes */{total}"));
                return response;
            }
        },
    };
    let body = if request.method() == Method::HEAD || range.start >= range.end {
        Sent::empty()
    } else {
        match first(&job, range.clone()).await {
            Ok(body) => body,
            Err(_) => return plain(StatusCode::NOT_FOUND),
        }
    };
    drop(held);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    set(&mut response, CONTENT_LENGTH, &range.end.saturating_sub(range.start).to_string());
    set(&mut response, CONTENT_TYPE, "application/octet-stream");
    set(&mut response, ACCEPT_RANGES, "bytes");
    if status == StatusCode::PARTIAL_CONTENT {
        let last = range.end.saturating_sub(1);
        set(&mut response, CONTENT_RANGE, &format!("bytes {}-{last}/{total}", range.start));
    }
    response
}

fn plain(status: StatusCode) -> Response<Sent> {
    let mut response = Response::new(Sent::empty());
    *response.status_mut() = status;
    set(&mut response, CONTENT_LENGTH, "0");
    response
}

fn set(response: &mut Response<Sent>, name: hyper::header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Makes the first stretch before the head is sent: what fails until then can still be told. The rest follows as it is
/// made; if that fails, the connection ends short and RAUC asks again.
async fn first(job: &Arc<Job>, range: Range<u64>) -> Result<Sent, Failure> {
    let until = |at: u64| at.saturating_add(STRETCH).min(range.end);
    let stretch = range.start..until(range.start);
    let piece = job.make(stretch.clone()).await?;
    if stretch.end >= range.end {
        return Ok(Sent { first: Some(piece), rest: None });
    }
    let (send, rest) = mpsc::channel(1);
    let (job, end) = (job.clone(), range.end);
    let mut at = stretch.end;
    tokio::spawn(async move {
        while at < end {
            let next = at.saturating_add(STRETCH).min(end);
            let _held = job.hold();
            let made = tokio::select! {
                () = send.closed() => return,
                made = job.make(at..next) => made,
            };
            let failed = made.is_err();
            if send.send(made).await.is_err() || failed {
                return;
            }
            at = next;
        }
    });
    Ok(Sent { first: Some(piece), rest: Some(rest) })
}

/// The body of an answer.
pub(crate) struct Sent {
    first: Option<Bytes>,
    rest: Option<mpsc::Receiver<Result<Bytes, Failure>>>,
}

impl Sent {
    fn empty() -> Sent {
        Sent { first: None, rest: None }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        if let Some(piece) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
        rest.poll_recv(context).map(|next| next.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
