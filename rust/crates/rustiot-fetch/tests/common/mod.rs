//! An imitated RAUC, and what tests of the proxy have in common.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rustiot_fetch::{Handle, Limits, Progress, Proxy, Way};
use rustiot_http::{Http, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub fn http() -> Http {
    Http::new(&Settings { idle_timeout: Duration::from_millis(200), ..Settings::default() }).unwrap()
}

pub fn limits(cache: u64) -> Limits {
    Limits {
        rate: None,
        cache,
        backoff_base: Duration::from_millis(1),
        backoff_cap: Duration::from_millis(5),
    }
}

pub fn file(len: usize) -> Vec<u8> {
    let mut random = 1u64;
    (0..len)
        .map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        })
        .collect()
}

pub const BIG: u64 = 1 << 30;

/// One that waits long, where the machine may be slow and no silence is tested.
pub fn patient() -> Http {
    Http::new(&Settings::default()).unwrap()
}

pub async fn start(way: Way, limits: Limits, dir: &Path) -> Handle {
    Proxy::start(way, limits, dir, http()).await.unwrap()
}

pub async fn until(handle: &Handle, what: impl Fn(&Progress) -> bool) -> Progress {
    handle.progress().wait_for(|progress| what(progress)).await.unwrap().clone()
}

/// What RAUC's streaming client does, as libcurl puts it on the wire.
pub struct Rauc {
    stream: TcpStream,
    path: String,
    host: String,
}

impl Rauc {
    pub async fn connect(handle: &Handle) -> Rauc {
        let url = handle.url();
        let host = format!("127.0.0.1:{}", url.port().unwrap());
        let stream = TcpStream::connect(&host).await.unwrap();
        Rauc { stream, path: url.path().to_owned(), host }
    }

    pub async fn send(&mut self, range: &str, agent: &str) {
        let (path, host) = (&self.path, &self.host);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={range}\r\n{agent}Accept: */*\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
    }

    /// Code, headers by lower-case name, body.
    pub async fn answer(&mut self) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 "), "{head}");
        let code = head[9..12].parse().unwrap();
        let headers: Vec<(String, String)> = head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length").unwrap().1.parse().unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.unwrap();
        (code, headers, body)
    }

    /// The first request: it has to be answered 206 with exactly this Content-Range.
    pub async fn configure(&mut self) -> u64 {
        self.send("0-3", "User-Agent: rauc/1.15\r\n").await;
        let (code, headers, body) = self.answer().await;
        assert_eq!((code, body.len()), (206, 4));
        let range = &headers.iter().find(|(name, _)| name == "content-range").unwrap().1;
        let (unit, rest) = range.split_once(' ').unwrap();
        let (range, total) = rest.split_once('/').unwrap();
        assert_eq!((unit, range), ("bytes", "0-3"));
        total.parse().unwrap()
    }

    pub async fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>, u16> {
        self.send(&format!("{}-{}", range.start, range.end - 1), "").await;
        match self.answer().await {
            (206, _, body) => Ok(body),
            (code, ..) => Err(code),
        }
    }
}

/// All of the bundle, in the kernel's pieces, over several connections at once as curl's multi interface has them.
pub async fn install(handle: &Handle, total: u64) -> Vec<u8> {
    assert_eq!(Rauc::connect(handle).await.configure().await, total);
    let mut tasks = Vec::new();
    for lane in 0..4u64 {
        let mut rauc = Rauc::connect(handle).await;
        tasks.push(tokio::spawn(async move {
            let mut pieces = Vec::new();
            let mut at = lane * 128_000;
            while at < total {
                let end = (at + 128_000).min(total);
                pieces.push((at, rauc.read(at..end).await.unwrap()));
                at += 4 * 128_000;
            }
            pieces
        }));
    }
    let mut all = vec![0; total as usize];
    for task in tasks {
        for (at, piece) in task.await.unwrap() {
            all[at as usize..at as usize + piece.len()].copy_from_slice(&piece);
        }
    }
    all
}
