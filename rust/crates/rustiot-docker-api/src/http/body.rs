//! Bodies: answers as bytes or streams, requests as bounded bytes or a reader that does not wait for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::Error;
use crate::types::ByteReader;

/// An answer's body.
pub enum Body {
    /// Known at once.
    Full(Bytes),
    /// Comes over time; an error breaks the connection, so that nobody takes a part for the whole.
    Stream(Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>),
}

impl Body {
    /// None.
    pub fn empty() -> Self {
        Self::Full(Bytes::new())
    }

    /// What a reader gives.
    pub fn reader(reader: ByteReader) -> Self {
        Self::Stream(
            stream::unfold(Some(reader), async |reader| {
                let mut reader = reader?;
                let mut buffer = BytesMut::with_capacity(64 * 1024);
                match reader.read_buf(&mut buffer).await {
                    Ok(0) => None,
                    Ok(_) => Some((Ok(buffer.freeze()), Some(reader))),
                    Err(error) => Some((Err(error), None)),
                }
            })
            .boxed(),
        )
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(stream) => {
                stream.as_mut().poll_next(cx).map(|item| item.map(|bytes| bytes.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// How long what nobody wants of a request's body is still read.
const LEFTOVER: Duration = Duration::from_secs(5);

/// A request's body. What is left of it when it is dropped is read in the background for [`LEFTOVER`] and thrown away:
/// a connection that is closed while its client still sends takes the answer with it.
pub struct RequestBody(Option<Incoming>);

impl RequestBody {
    /// Of a request.
    pub fn new(body: Incoming) -> Self {
        Self((!body.is_end_stream()).then_some(body))
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.0 = None;
        }
        polled
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let rest = async {
                while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
            };
            let _ = tokio::time::timeout(LEFTOVER, rest).await;
        });
    }
}

/// A request's body in memory, at most so many bytes, in at most so much time.
pub async fn collect(mut body: RequestBody, most: usize, within: Duration) -> Result<Bytes, Error> {
    let all = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| body.poll_frame(cx)).await {
            let frame =
                frame.map_err(|error| Error::Invalid(format!("the request's body ended early: {error}")))?;
            if let Ok(data) = frame.into_data() {
                if bytes.len().saturating_add(data.len()) > most {
                    return Err(Error::TooLarge(format!("request body is larger than {most} bytes")));
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(within, all).await.unwrap_or_else(|_| {
        Err(Error::Invalid(format!("the request's body did not arrive within {within:?}")))
    })
}

/// A request's body as a reader. Gives up when nothing arrives for `patience`.
pub struct BodyReader {
    body: RequestBody,
    rest: Bytes,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
}

impl BodyReader {
    /// Of a request.
    pub fn new(body: RequestBody, patience: Duration) -> Self {
        Self { body, rest: Bytes::new(), patience, silence: Box::pin(tokio::time::sleep(patience)) }
    }
}

impl AsyncRead for BodyReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.rest.is_empty() {
                let some = this.rest.split_to(this.rest.len().min(buffer.remaining()));
                buffer.put_slice(&some);
                return Poll::Ready(Ok(()));
            }
            match this.body.poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    // Measured from when the engine last got something: its own pauses do not count.
                    this.silence.as_mut().reset(Instant::now() + this.patience);
                    if let Ok(data) = frame.into_data() {
                        this.rest = data;
                    }
                }
                Poll::Pending => {
                    if this.silence.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the client stopped sending the request's body",
                        )));
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
