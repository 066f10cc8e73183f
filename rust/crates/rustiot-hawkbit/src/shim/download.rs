//! Downloads an artifact into a file: resumed, bounded in speed from below and above, and compared with its checksums.
//!
//! Called by the shim's installer. The product has its own proxy for this.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustiot_http::{Body, Http, Response, Url};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::ddi::Hashes;

/// How often the speed is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why a download came to nothing. The texts are those that scripts around the original know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("Failed to open {} for download: {}", path.display(), reason(source))]
    Open { path: PathBuf, source: std::io::Error },
    #[error("Failed to write {}: {}", path.display(), reason(source))]
    Write { path: PathBuf, source: std::io::Error },
    #[error("HTTP request failed: {0}")]
    Status(u16),
    #[error("Timeout was reached")]
    Slow,
    #[error("Transferred a partial file")]
    Partial,
    #[error("{text}")]
    Connection { text: &'static str },
    #[error("{0} is not an address")]
    Address(String),
    #[error(transparent)]
    Other(rustiot_http::Error),
}

impl Error {
    /// Asking for the rest may work.
    pub(crate) fn resumable(&self) -> bool {
        matches!(self, Self::Slow | Self::Partial | Self::Connection { .. })
    }
}

impl From<rustiot_http::Error> for Error {
    fn from(error: rustiot_http::Error) -> Self {
        match error {
            rustiot_http::Error::Timeout { .. } => Self::Slow,
            rustiot_http::Error::Truncated { .. } | rustiot_http::Error::Broken { .. } => Self::Partial,
            rustiot_http::Error::Dns { .. } => Self::Connection { text: "Could not resolve hostname" },
            rustiot_http::Error::Connect { .. } => Self::Connection { text: "Could not connect to server" },
            rustiot_http::Error::Status { status, .. } => Self::Status(status.as_u16()),
            other => Self::Other(other),
        }
    }
}

/// The system's word for an error, without the number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// What is fetched, and how.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) http: Http,
    pub(crate) url: String,
    pub(crate) authorization: Option<String>,
    pub(crate) path: PathBuf,
    pub(crate) low_speed: (u64, Duration),
    pub(crate) speed_limit: u64,
}

impl Job {
    /// Fetches what the file at the path does not have yet; returns bytes per second. Never longer than `size`.
    pub(crate) async fn fetch(&self, from: u64, size: u64) -> Result<f64, Error> {
        let url = Url::parse(&self.url).map_err(|_| Error::Address(self.url.clone()))?;
        let open = |source| Error::Open { path: self.path.clone(), source };
        let mut options = tokio::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(from == 0).open(&self.path).await.map_err(open)?;
        let mut request = self.http.get(&url).header("accept", "application/octet-stream");
        if let Some(value) = &self.authorization {
            request = request.authorization(value);
        }
        if from > 0 {
            request = request.header("range", &format!("bytes={from}-"));
        }
        let response = self.patient(request.send_any()).await??;
        let write = |source| Error::Write { path: self.path.clone(), source };
        match response.status().as_u16() {
            200 | 206 if continues(&response, from) => {
                file.seek(std::io::SeekFrom::Start(from)).await.map_err(write)?;
            }
            // All from the start: the server does not serve ranges.
            200 => file.set_len(0).await.map_err(write)?,
            416 if from > 0 => return Ok(0.0),
            code => return Err(Error::Status(code)),
        }
        let rest = if continues(&response, from) { size.saturating_sub(from) } else { size };
        // One byte more shows that it is longer, and the checksum then says so.
        let body = response.into_body()?.limited(rest.saturating_add(1));
        let result = self.receive(body, &mut file).await;
        file.flush().await.map_err(write)?;
        result
    }

    /// Waits for the answer no longer than for the slowest body.
    async fn patient<T>(&self, answer: impl Future<Output = T>) -> Result<T, Error> {
        let (_, time) = self.low_speed;
        if time.is_zero() {
            return Ok(answer.await);
        }
        // A slow proxy may send the head slowly as well; only silence ends it.
        tokio::time::timeout(time.max(Duration::from_secs(60)), answer).await.map_err(|_| Error::Slow)
    }

    async fn receive(&self, mut body: Body, file: &mut tokio::fs::File) -> Result<f64, Error> {
        let (rate, time) = self.low_speed;
        let began = Instant::now();
        let mut total = 0_u64;
        let mut look = began;
        let mut since_look = 0_u64;
        let mut slow = Duration::ZERO;
        loop {
            let chunk = tokio::select! {
                chunk = body.chunk() => Some(chunk?),
                () = tokio::time::sleep_until(look.checked_add(LOOK).unwrap_or(look)), if !time.is_zero() => None,
            };
            match chunk {
                Some(None) => break,
                Some(Some(chunk)) => {
                    let write = |source| Error::Write { path: self.path.clone(), source };
                    file.write_all(&chunk).await.map_err(write)?;
                    let len = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                    total = total.saturating_add(len);
                    since_look = since_look.saturating_add(len);
                    self.brake(total, began).await;
                }
                None => {}
            }
            let passed = look.elapsed();
            if passed >= LOOK {
                let enough = u128::from(rate).saturating_mul(passed.as_millis()) / 1000;
                slow = if u128::from(since_look) < enough {
                    slow.saturating_add(passed)
                } else {
                    Duration::ZERO
                };
                if !time.is_zero() && slow >= time {
                    return Err(Error::Slow);
                }
                (look, since_look) = (Instant::now(), 0);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a speed for people")]
        let speed = total as f64 / began.elapsed().as_secs_f64().max(0.001);
        Ok(speed)
    }

    /// Waits until the average is within the limit.
    async fn brake(&self, total: u64, began: Instant) {
        if let Some(millis) = total.saturating_mul(1000).checked_div(self.speed_limit)
            && let Some(until) = began.checked_add(Duration::from_millis(millis))
        {
            tokio::time::sleep_until(until).await;
        }
    }
}

/// The body begins at `from`. Some servers say so with a `Content-Range` under code 200.
fn continues(response: &Response, from: u64) -> bool {
    let start = response.header("content-range").and_then(|value| {
        let value = value.strip_prefix("bytes ")?;
        value.split('-').next()?.parse::<u64>().ok()
    });
    start.map_or(from == 0 && response.status().as_u16() == 200, |start| start == from)
}

/// Compares a file with its checksums; the inner error is (is, should be).
pub(crate) fn verify(path: &Path, hashes: &Hashes) -> std::io::Result<Result<(), (String, String)>> {
    let mut file = std::fs::File::open(path)?;
    let (mut sha1, mut sha256) = (Sha1::new(), Sha256::new());
    let mut buffer = vec![0_u8; 1 << 16];
    loop {
        let count = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        sha1.update(bytes);
        sha256.update(bytes);
    }
    let is = [hex(&sha1.finalize()), hex(&sha256.finalize())];
    for (is, should) in is.into_iter().zip([&hashes.sha1, &hashes.sha256]) {
        if let Some(should) = should
            && *should != is
        {
            return Ok(Err((is, should.clone())));
        }
    }
    Ok(Ok(()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
