//! Images made on the spot, and a registry that misbehaves on demand. Used by the tests of pulls.
#![allow(dead_code, reason = "each test uses its part")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "for tests only")]

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::{Arc, Mutex};

use rustiot_images::manifest::media;
use rustiot_images::{Digest, Limits, PullOptions, Registries, RegistryConfig, Store};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A layer's archive with these files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Blobs and manifests.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// What the referrers API answers, by the manifest's digest. Without any, it is not there.
    pub referrers: BTreeMap<String, Vec<u8>>,
}

/// A delta for one layer.
pub struct Made<'a> {
    pub target: &'a [u8],
    pub sources: &'a [&'a [u8]],
}

impl Made<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let names: Vec<String> = self.sources.iter().map(|source| Digest::of(source).hex()).collect();
        let sources: Vec<rustiot_delta::Source<'_>> = (names.iter().zip(self.sources))
            .map(|(name, bytes)| rustiot_delta::Source { name, bytes })
            .collect();
        let (mut out, options) = (Vec::new(), rustiot_delta::Options::default());
        rustiot_delta::encode(self.target, &sources, &options, &mut out, &|_| ()).unwrap();
        out
    }

    /// The layer of an artifact, with these bytes as its delta.
    pub fn layer(&self, content: &mut Content, bytes: Vec<u8>) -> Value {
        let sources: Vec<String> = self.sources.iter().map(|source| Digest::of(source).to_string()).collect();
        let mut layer = content.blob(bytes);
        layer["mediaType"] = json!("application/vnd.rustiot.rdelta.v2");
        layer["annotations"] = json!({
            "org.rustiot.delta.target": Digest::of(self.target).to_string(),
            "org.rustiot.delta.sources": sources.join(" "),
        });
        layer
    }
}

/// How a layer travels.
#[derive(Clone, Copy, Debug)]
pub enum Packed {
    Plain,
    Gzip,
    Zstd,
}

impl Content {
    pub fn blob(&mut self, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        self.blobs.insert(digest, bytes);
        json!({"digest": digest.to_string(), "size": size})
    }

    /// An image of these layers under a tag; gives the manifest's descriptor.
    pub fn image(
        &mut self,
        tag: &str,
        architecture: &str,
        layers: &[(Vec<u8>, Packed)],
        docker: bool,
    ) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| Digest::of(tar).to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/bin"], "Labels": {"kind": tag}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let mut config = self.blob(config.to_string().into_bytes());
        config["mediaType"] = json!(if docker { media::DOCKER_CONFIG } else { media::OCI_CONFIG });
        let layers: Vec<Value> = layers
            .iter()
            .map(|(tar, packed)| {
                let (bytes, kind) = match (packed, docker) {
                    (Packed::Gzip, false) => (gzip(tar), media::OCI_LAYER_GZIP),
                    (Packed::Gzip, true) => (gzip(tar), media::DOCKER_LAYER_GZIP),
                    (Packed::Zstd, _) => (zstd(tar), media::OCI_LAYER_ZSTD),
                    (Packed::Plain, _) => (tar.clone(), media::OCI_LAYER),
                };
                let mut layer = self.blob(bytes);
                layer["mediaType"] = json!(kind);
                layer
            })
            .collect();
        let kind = if docker { media::DOCKER_MANIFEST } else { media::OCI_MANIFEST };
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        self.manifest(tag, kind, &manifest)
    }

    /// The id of an image, by the descriptor of its manifest.
    pub fn id(&self, image: &Value) -> String {
        let manifest: Value =
            serde_json::from_slice(&self.manifests[image["digest"].as_str().unwrap()].1).unwrap();
        manifest["config"]["digest"].as_str().unwrap().to_owned()
    }

    /// An artifact with deltas from one image to another; gives its entry in a list of referrers.
    pub fn artifact(&mut self, from: &Value, to: &Value, layers: &[Value]) -> Value {
        let kind = "application/vnd.rustiot.image-delta.v1";
        let notes = json!({"org.rustiot.delta.from": self.id(from)});
        let mut config = self.blob(b"{}".to_vec());
        config["mediaType"] = json!("application/vnd.oci.empty.v1+json");
        let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": kind,
            "config": config, "layers": layers, "subject": to, "annotations": notes});
        let mut entry = self.manifest("unnamed", media::OCI_MANIFEST, &manifest);
        self.manifests.remove("unnamed");
        entry["artifactType"] = json!(kind);
        entry["annotations"] = notes;
        entry
    }

    /// Says what refers to an image: by the API, or under the tag that stands in for it.
    pub fn refer(&mut self, to: &Value, entries: &[Value], by_tag: bool) {
        let list = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
        let digest = to["digest"].as_str().unwrap().to_owned();
        if by_tag {
            self.manifest(&digest.replace(':', "-"), media::OCI_INDEX, &list);
        } else {
            self.referrers.insert(digest, list.to_string().into_bytes());
        }
    }

    pub fn manifest(&mut self, tag: &str, kind: &str, manifest: &Value) -> Value {
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(&bytes).to_string();
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        self.manifests.insert(digest, (kind.to_owned(), bytes.clone()));
        self.manifests.insert(tag.to_owned(), (kind.to_owned(), bytes));
        descriptor
    }
}

/// What the registry does wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    Status(u16, Option<u64>),
    /// Ends the connection after so many bytes of the body.
    Cut(usize),
    Flip,
    /// Says so many bytes more than there are.
    LongerBy(usize),
    /// Other bytes of another length, orderly.
    Instead(Vec<u8>),
    /// To another server, same path.
    Redirect(String),
    NoRanges,
    None,
}

#[derive(Debug, Default)]
struct State {
    content: Content,
    /// The next requests for blobs and for manifests.
    blobs: VecDeque<Fault>,
    manifests: VecDeque<Fault>,
    referrers: VecDeque<Fault>,
    /// Every request for a blob.
    always: Option<Fault>,
    /// `user:password`; a token is needed then.
    password: Option<String>,
    requests: Vec<String>,
    sent: u64,
}

/// The registry; it ends when this is dropped.
#[derive(Debug)]
pub struct Registry {
    state: Arc<Mutex<State>>,
    pub address: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub async fn start(content: Content) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State { content, ..State::default() }));
        let (shared, own) = (state.clone(), address.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, own) = (shared.clone(), own.clone());
                connections.spawn(async move {
                    let _ = connection(stream, &shared, &own).await;
                });
            }
        });
        Registry { state, address, task }
    }

    pub fn blobs(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().blobs = faults.into_iter().collect();
    }

    pub fn manifests(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().manifests = faults.into_iter().collect();
    }

    pub fn referrers(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().referrers = faults.into_iter().collect();
    }

    pub fn always(&self, fault: Option<Fault>) {
        self.state.lock().unwrap().always = fault;
    }

    pub fn password(&self, password: &str) {
        self.state.lock().unwrap().password = Some(password.to_owned());
    }

    pub fn change(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.state.lock().unwrap().content);
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    pub fn sent(&self) -> u64 {
        self.state.lock().unwrap().sent
    }

    pub fn client(&self) -> Registries {
        Registries::new(RegistryConfig { insecure: vec![self.address.clone()], ..RegistryConfig::default() })
    }

    pub fn name(&self, rest: &str) -> rustiot_images::Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

pub fn limits() -> Limits {
    Limits { reserve_bytes: 0, reserve_inodes: 0, ..Limits::default() }
}

pub fn store(dir: &std::path::Path) -> Store {
    Store::open(dir, limits()).unwrap().0
}

/// Opens it again after a pull that was cancelled or failed: its threads let go of it a moment later.
pub async fn reopen(dir: &std::path::Path) -> Store {
    for _ in 0..500 {
        match Store::open(dir, limits()) {
            Err(rustiot_images::Error::Locked { .. }) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            opened => return opened.unwrap().0,
        }
    }
    store(dir)
}

/// Short waits.
pub fn options() -> PullOptions {
    let millisecond = std::time::Duration::from_millis(1);
    PullOptions {
        platform: "linux/amd64".parse().unwrap(),
        backoff: (millisecond, 5 * millisecond),
        ..PullOptions::default()
    }
}

async fn connection(mut stream: TcpStream, state: &Mutex<State>, own: &str) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
            // A TLS hello, as the client tries that first.
            if head.first() == Some(&0x16) {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut answer, cut) = {
            let mut state = state.lock().unwrap();
            state.requests.push(head.clone());
            answer(&mut state, &path, header("range"), header("authorization"), own)
        };
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        if let Some(cut) = cut {
            answer.truncate(end + cut);
        }
        stream.write_all(&answer).await?;
        state.lock().unwrap().sent += (answer.len() - end) as u64;
        if cut.is_some() {
            stream.shutdown().await?;
            return Ok(());
        }
    }
}

fn answer(
    state: &mut State,
    path: &str,
    range: Option<String>,
    authorization: Option<String>,
    own: &str,
) -> (Vec<u8>, Option<usize>) {
    let plain = |status: &str, headers: &str, body: &[u8]| {
        let mut all =
            format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
        all.extend(body);
        all
    };
    if let Some(password) = &state.password {
        use base64::Engine;
        let basic = base64::engine::general_purpose::STANDARD.encode(password);
        let basic = format!("Basic {basic}");
        if path.starts_with("/token") {
            let good = authorization.as_deref() == Some(&basic) && path.contains("scope=repository%3A");
            return match good {
                true => (plain("200 OK", "", br#"{"token":"let-me-in","expires_in":300}"#), None),
                false => (plain("401 No", "", br#"{"details":"incorrect username or password"}"#), None),
            };
        }
        if authorization.as_deref() != Some("Bearer let-me-in") {
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"test\",scope=\"repository:app:pull\"\r\n"
            );
            let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            return (plain("401 Unauthorized", &challenge, body), None);
        }
    }
    if path == "/v2/" {
        return (plain("200 OK", "", b"{}"), None);
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let name = name.split('?').next().unwrap_or_default().to_owned();
    let (blob, referrers) = (path.contains("/blobs/"), path.contains("/referrers/"));
    let fault = match blob {
        true => state.blobs.pop_front().or(state.always.clone()),
        false if referrers => state.referrers.pop_front(),
        false => state.manifests.pop_front(),
    }
    .unwrap_or(Fault::None);
    let found = match blob {
        true => name
            .parse()
            .ok()
            .and_then(|digest| state.content.blobs.get(&digest))
            .map(|b| (String::new(), b.clone())),
        false if referrers => {
            let list = state.content.referrers.get(&name).cloned();
            // A server that knows the API answers an empty list.
            let none = (!state.content.referrers.is_empty()).then(|| br#"{"manifests": []}"#.to_vec());
            list.or(none).map(|list| (media::OCI_INDEX.to_owned(), list))
        }
        false => state.content.manifests.get(&name).cloned(),
    };
    let (status, body) = match &fault {
        Fault::Status(code, after) => {
            let after = after.map(|after| format!("Retry-After: {after}\r\n")).unwrap_or_default();
            return (plain(&format!("{code} No"), &after, b""), None);
        }
        Fault::Redirect(to) => return (plain("307 There", &format!("Location: {to}{path}\r\n"), b""), None),
        Fault::Instead(other) => return (plain("200 OK", "", other), None),
        _ => match found {
            None => {
                let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
                return (plain("404 Not Found", "", body), None);
            }
            Some(found) => found,
        },
    };
    let mut body = body;
    let digest = Digest::of(&body);
    if matches!(fault, Fault::Flip) {
        let middle = body.len() / 2;
        body[middle] ^= 1;
    }
    let total = body.len();
    let from = range
        .filter(|_| !matches!(fault, Fault::NoRanges))
        .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok());
    let mut headers = if status.is_empty() {
        String::new()
    } else {
        format!("Content-Type: {status}\r\nDocker-Content-Digest: {digest}\r\n")
    };
    let code = match from {
        Some(from) => {
            body.drain(..from);
            headers.push_str(&format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1));
            "206 Partial Content"
        }
        None => "200 OK",
    };
    let more = if let Fault::LongerBy(more) = fault { more } else { 0 };
    let mut all =
        format!("HTTP/1.1 {code}\r\n{headers}Content-Length: {}\r\n\r\n", body.len() + more).into_bytes();
    let length = body.len();
    all.extend(body);
    match fault {
        Fault::Cut(at) => (all, Some(at.min(length))),
        Fault::LongerBy(_) => (all, Some(length)),
        _ => (all, None),
    }
}
