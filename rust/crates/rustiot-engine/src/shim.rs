//! The engine's side of a shim's socket.
//!
//! Never starts a shim. Called by the container's lifecycle, attach and exec.

use std::io;
use std::path::Path;

use rustiot_shim::protocol::{Answer, HEADER, Kind, Request, json_frame, take_frame};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A connection.
pub struct Shim {
    pub stream: UnixStream,
    pub buffer: Vec<u8>,
}

/// The next frame out of what a stream brings; `None` at its end.
pub async fn next_frame(
    stream: &mut (impl AsyncReadExt + Unpin),
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(Kind, Vec<u8>)>> {
    loop {
        if let Some(frame) = take_frame(buffer).map_err(io::Error::other)? {
            return Ok(Some(frame));
        }
        buffer.reserve(HEADER + 4096);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

impl Shim {
    pub async fn connect(socket: &Path) -> io::Result<Shim> {
        Ok(Shim { stream: UnixStream::connect(socket).await?, buffer: Vec::new() })
    }

    pub async fn send(&mut self, request: &Request) -> io::Result<()> {
        self.stream.write_all(&json_frame(request)).await
    }

    pub async fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        next_frame(&mut self.stream, &mut self.buffer).await
    }

    /// The next JSON value, output in between left out.
    pub async fn value<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        loop {
            match self.next().await? {
                Some((Kind::Json, bytes)) => return serde_json::from_slice(&bytes).map_err(io::Error::other),
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    pub async fn call(&mut self, request: &Request) -> io::Result<Answer> {
        self.send(request).await?;
        self.value().await
    }
}

/// One request on a connection of its own.
pub async fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    Shim::connect(socket).await?.call(request).await
}
