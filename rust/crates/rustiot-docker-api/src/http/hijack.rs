//! Connections that stop being HTTP: attach and exec. Output goes out raw (a terminal) or in Docker's frames, input
//! comes in as it is.

use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Chain, Interest, ReadHalf};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use super::answer::{self, Answer};
use super::body::Body;
use super::route::Call;
use crate::Error;
use crate::types::{Attached, ByteWriter, Channel, Items, Output};

const RAW: &str = "application/vnd.docker.raw-stream";
const FRAMES: &str = "application/vnd.docker.multiplexed-stream";

/// Docker's media type of a stream of output.
pub fn media(tty: bool, minor: u32) -> &'static str {
    if tty || minor < 42 { RAW } else { FRAMES }
}

/// Output with Docker's 8-byte header: channel, three zeros, length.
pub fn frame(channel: Channel, parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut frame = BytesMut::with_capacity(length.saturating_add(8));
    frame.put_u8(match channel {
        Channel::Stdout => 1,
        Channel::Stderr => 2,
    });
    frame.put_bytes(0, 3);
    // Pieces are kilobytes; a piece of 4 GiB does not exist.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    for part in parts {
        frame.put_slice(part);
    }
    frame.freeze()
}

/// Whether this client's connection can carry what it asks for.
pub fn possible(call: &Call, input: bool) -> Result<(), Error> {
    if input && !upgrades(call) {
        return Err(Error::Unsupported(
            "standard input without \"Upgrade: tcp\" is not supported by this engine: send that header, as Docker's clients do".to_owned(),
        ));
    }
    Ok(())
}

fn upgrades(call: &Call) -> bool {
    call.headers.get(UPGRADE).and_then(|v| v.to_str().ok()).is_some_and(|v| v.eq_ignore_ascii_case("tcp"))
}

/// Answers 101 and carries the connection on, or, without an upgrade, streams the output as a body.
pub fn answer(call: Call, attached: Attached, keys: DetachKeys) -> Answer {
    let media = media(attached.tty, call.minor);
    if !upgrades(&call) {
        let tty = attached.tty;
        let body = attached.output.map(move |item| {
            item.map(|output| if tty { output.bytes } else { frame(output.channel, &[&output.bytes]) })
                .map_err(io::Error::other)
        });
        return Ok(answer::typed(StatusCode::OK, media, Body::Stream(body.boxed())));
    }
    let upgrade = call.upgrade;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            match upgraded.downcast::<TokioIo<UnixStream>>() {
                Ok(parts) => {
                    let (read, write) = parts.io.into_inner().into_split();
                    let read = AsyncReadExt::chain(io::Cursor::new(parts.read_buf), read);
                    carry(read, write, attached, keys).await;
                }
                Err(upgraded) => {
                    let (read, write) = tokio::io::split(TokioIo::new(upgraded));
                    carry(read, write, attached, keys).await;
                }
            }
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("tcp"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    Ok(response)
}

/// The client's half of a connection.
trait Input: AsyncRead + Unpin + Send {
    /// Returns when the client has closed its whole end. After a half-close (it has no more input) that is not an end
    /// of file any more, and a container that says nothing would keep the connection for ever.
    fn gone(&mut self) -> impl Future<Output = ()> + Send;
}

/// On a unix socket: what hyper had read already, then the socket.
impl Input for Chain<io::Cursor<Bytes>, OwnedReadHalf> {
    async fn gone(&mut self) {
        let (_, read) = self.get_ref();
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if read.ready(Interest::WRITABLE).await.is_ok_and(|ready| ready.is_write_closed()) {
                return;
            }
        }
    }
}

/// On anything else it is seen when the next output cannot be sent.
impl Input for ReadHalf<TokioIo<Upgraded>> {
    async fn gone(&mut self) {
        std::future::pending().await
    }
}

async fn carry<R: Input, W: AsyncWrite + Unpin + Send>(
    mut read: R,
    mut write: W,
    attached: Attached,
    keys: DetachKeys,
) {
    let Attached { tty, mut output, input } = attached;
    let keys = if tty { keys } else { DetachKeys(Vec::new()) };
    let ended = {
        let incoming = async {
            if copy_in(&mut read, input, keys, tty).await {
                read.gone().await;
            }
        };
        let outgoing = copy_out(&mut write, &mut output, tty);
        tokio::select! {
            () = incoming => false,
            () = outgoing => true,
        }
    };
    drop(output);
    // A socket that is closed with unread bytes resets the other end, and the client would take a good end for an
    // error: let it see the end of the output, and close when it does.
    let _ = write.shutdown().await;
    if ended {
        let drain = async { while matches!(read.read(&mut [0; 4096]).await, Ok(n) if n > 0) {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), drain).await;
    }
}

async fn copy_out<W: AsyncWrite + Unpin>(write: &mut W, output: &mut Items<Output>, tty: bool) {
    while let Some(Ok(piece)) = output.next().await {
        let bytes = if tty { piece.bytes } else { frame(piece.channel, &[&piece.bytes]) };
        if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
}

/// Carries the client's input to its end: true. False when it detached or the connection broke.
async fn copy_in<R: AsyncRead + Unpin>(
    read: &mut R,
    mut input: Option<ByteWriter>,
    keys: DetachKeys,
    tty: bool,
) -> bool {
    let mut detach = Detach { keys: keys.0, held: 0 };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(n) = read.read(&mut buffer).await else { return false };
        let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
            // A terminal's input has no end: a client that goes has detached.
            if let Some(mut input) = input.take().filter(|_| !tty) {
                let _ = input.shutdown().await;
            }
            return true;
        };
        let (pass, detached) = detach.feed(bytes);
        if let Some(writer) = &mut input
            && (writer.write_all(&pass).await.is_err() || writer.flush().await.is_err())
        {
            // The process closed its input. What it still says is wanted.
            input = None;
        }
        if detached {
            return false;
        }
    }
}

/// Keys that detach a terminal without ending its process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// `ctrl-p,ctrl-q` and the like; the default is that.
    pub fn parse(text: Option<&str>) -> Result<Self, Error> {
        let Some(text) = text else { return Ok(Self(vec![0x10, 0x11])) };
        let mut keys = Vec::new();
        for key in text.split(',') {
            let byte = match key.as_bytes() {
                [one] => Some(*one),
                [b'c' | b'C', b't' | b'T', b'r' | b'R', b'l' | b'L', b'-', one] => {
                    match one.to_ascii_lowercase() {
                        letter @ b'a'..=b'z' => Some(letter & 0x1f),
                        b'@' => Some(0),
                        sign @ b'['..=b'_' => Some(sign & 0x1f),
                        _ => None,
                    }
                }
                _ => None,
            };
            match byte {
                Some(byte) => keys.push(byte),
                None => return Err(Error::Invalid(format!("Invalid detach keys ({text}) provided"))),
            }
        }
        Ok(Self(keys))
    }
}

/// Finds the keys in the input. What may be their beginning is held back until it is known.
struct Detach {
    keys: Vec<u8>,
    held: usize,
}

impl Detach {
    /// What goes on to the process, and whether the keys were pressed.
    fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.keys.get(self.held) == Some(&byte) {
                self.held = self.held.saturating_add(1);
                if self.held == self.keys.len() {
                    self.held = 0;
                    return (pass, true);
                }
                continue;
            }
            pass.extend_from_slice(self.keys.get(..self.held).unwrap_or_default());
            self.held = 0;
            if self.keys.first() == Some(&byte) {
                self.held = 1;
            } else {
                pass.push(byte);
            }
        }
        (pass, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_are_dockers() {
        assert_eq!(&frame(Channel::Stdout, &[b"hi", b"!"])[..], b"\x01\0\0\0\0\0\0\x03hi!");
        assert_eq!(&frame(Channel::Stderr, &[])[..], b"\x02\0\0\0\0\0\0\0");
    }

    #[test]
    fn detach_keys_are_found_across_reads_and_their_beginnings_go_on() {
        let keys = DetachKeys::parse(None).unwrap();
        assert_eq!(keys, DetachKeys::parse(Some("ctrl-p,Ctrl-Q")).unwrap());
        let mut detach = Detach { keys: keys.0, held: 0 };
        assert_eq!(detach.feed(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(detach.feed(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(detach.feed(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(detach.feed(b"\x11rest"), (Vec::new(), true));
        for bad in ["", "ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-pp"] {
            assert!(DetachKeys::parse(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(DetachKeys::parse(Some("a,ctrl-@,ctrl-[")).unwrap(), DetachKeys(vec![b'a', 0, 0x1b]));
    }

    proptest! {
        #[test]
        fn without_keys_everything_passes(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..10)) {
            let mut detach = Detach { keys: Vec::new(), held: 0 };
            let mut out = Vec::new();
            for chunk in &chunks {
                let (pass, detached) = detach.feed(chunk);
                prop_assert!(!detached);
                out.extend(pass);
            }
            prop_assert_eq!(out, chunks.concat());
        }
    }
}
