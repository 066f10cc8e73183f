//! `rustiot container`: what one does with containers on a device that has no `docker` client, over the engine's own
//! socket and API (`docs/contracts/engine.md`). Keeps nothing, decides nothing: the engine does.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustiot_update::{Failure, Kind};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::args::{Container, Run};
use crate::commands::Answer;
use crate::files::Files;
use crate::show;

/// Longest answer that is kept in memory.
const ANSWER_MAX: usize = 16 << 20;
/// Longest line of a stream of progress.
const LINE_MAX: usize = 1 << 20;
/// What stays as it is in a path or a query; image names have slashes, which the API takes as they are.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@');

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Runs one command.
pub async fn run(order: Container, files: &Files, as_json: bool) -> Result<Answer, Failure> {
    let mut engine = Engine::connect(&files.engine()).await?;
    match order {
        Container::List { all } => {
            let list = engine.get(&format!("/containers/json?all={all}")).await?;
            Ok(Answer::new(table(&list, &CONTAINERS), list))
        }
        Container::Images => {
            let list = engine.get("/images/json").await?;
            Ok(Answer::new(images(&list), list))
        }
        Container::Load { file } => engine.load(&file).await,
        Container::Pull { image } => {
            let (name, tag) = split(&image);
            let path = format!(
                "/images/create?fromImage={}&tag={}",
                encoded(name),
                encoded(tag.unwrap_or("latest"))
            );
            engine.progress(Method::POST, &path, empty()).await?;
            Ok(done(&format!("{image} is there")))
        }
        Container::Run(order) => engine.run(order).await,
        Container::Start { name } => engine.order(&name, "start", "started").await,
        Container::Stop { name } => engine.order(&name, "stop", "stopped").await,
        Container::Restart { name } => engine.order(&name, "restart", "restarted").await,
        Container::Remove { name, force } => {
            engine
                .call(Method::DELETE, &format!("/containers/{}?force={force}", encoded(&name)), empty())
                .await?;
            Ok(done(&format!("{name} is removed")))
        }
        Container::RemoveImage { image } => {
            engine.call(Method::DELETE, &format!("/images/{}", encoded(&image)), empty()).await?;
            Ok(done(&format!("{image} is removed")))
        }
        Container::Logs { name, follow, tail } => engine.logs(&name, follow, tail, as_json).await,
        Container::Inspect { name } => {
            let found = engine.get(&format!("/containers/{}/json", encoded(&name))).await?;
            Ok(Answer::new(format!("{found:#}\n"), found))
        }
    }
}

fn done(what: &str) -> Answer {
    Answer::new(format!("{what}\n"), json!({ "done": true }))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

/// An image's name without its tag, and the tag or digest. A colon before the last slash is a port.
fn split(image: &str) -> (&str, Option<&str>) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, Some(digest));
    }
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    }
}

/// A connection to the engine.
struct Engine {
    sender: SendRequest<Body>,
}

impl Engine {
    async fn connect(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).await.map_err(|error| {
            let (kind, hint) = if error.kind() == std::io::ErrorKind::PermissionDenied {
                (Kind::Denied, "only root and the group docker may use it")
            } else {
                (Kind::NotNow, "`systemctl status rustiot-engine.socket rustiot-engine.service`")
            };
            let what = format!("the container engine does not answer at {}", socket.display());
            Failure::from_error(kind, what, &error).hint(hint)
        })?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        tokio::spawn(connection);
        Ok(Engine { sender })
    }

    /// Sends a request; an answer that is an error becomes one.
    async fn call(&mut self, method: Method, path: &str, body: Body) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder().method(method).uri(path).header(HOST, "rustiot");
        let request = request.header(CONTENT_TYPE, "application/json").body(body).map_err(lost)?;
        let answer = self.sender.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(answer);
        }
        let text = collect(answer.into_body()).await?;
        let told: Value = serde_json::from_slice(&text).unwrap_or_default();
        let message = told.get("message").and_then(Value::as_str).map_or_else(
            || format!("the container engine answered {status}"),
            |message| message.trim().to_owned(),
        );
        Err(Failure::new(kind(status), message))
    }

    async fn get(&mut self, path: &str) -> Result<Value, Failure> {
        let answer = self.call(Method::GET, path, empty()).await?;
        serde_json::from_slice(&collect(answer.into_body()).await?).map_err(lost)
    }

    async fn order(&mut self, name: &str, order: &str, said: &str) -> Result<Answer, Failure> {
        self.call(Method::POST, &format!("/containers/{}/{order}", encoded(name)), empty()).await?;
        Ok(done(&format!("{name} is {said}")))
    }

    async fn run(&mut self, order: Run) -> Result<Answer, Failure> {
        let (ports, exposed) = ports(&order.publish)?;
        let mut host = json!({
            "Binds": order.volume,
            "PortBindings": ports,
            "RestartPolicy": { "Name": order.restart },
        });
        if let (Some(network), Some(host)) = (&order.network, host.as_object_mut()) {
            host.insert("NetworkMode".to_owned(), network.as_str().into());
        }
        let mut wanted =
            json!({ "Image": order.image, "Env": order.env, "ExposedPorts": exposed, "HostConfig": host });
        if let (false, Some(wanted)) = (order.arguments.is_empty(), wanted.as_object_mut()) {
            wanted.insert("Cmd".to_owned(), order.arguments.into());
        }
        let name = order.name.as_deref().map_or_else(String::new, |name| format!("?name={}", encoded(name)));
        let body = Full::new(Bytes::from(wanted.to_string())).map_err(|never| match never {}).boxed_unsync();
        let made = self.call(Method::POST, &format!("/containers/create{name}"), body).await?;
        let made: Value = serde_json::from_slice(&collect(made.into_body()).await?).map_err(lost)?;
        let id = made.get("Id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Err(failure) = self.order(&id, "start", "started").await {
            // What was made for this command and does not start is of no use to anybody.
            let path = format!("/containers/{}?force=true", encoded(&id));
            let _ = self.call(Method::DELETE, &path, empty()).await;
            return Err(failure);
        }
        let shown = order.name.unwrap_or_else(|| id.get(..12).unwrap_or(&id).to_owned());
        Ok(Answer::new(format!("{shown} runs\n"), json!({ "id": id })))
    }

    async fn load(&mut self, file: &Path) -> Result<Answer, Failure> {
        let archive = tokio::fs::File::open(file).await.map_err(|error| {
            Failure::from_error(Kind::NotFound, format!("cannot open {}", file.display()), &error)
        })?;
        let pieces = futures_util::stream::unfold(archive, |mut archive| async move {
            let mut piece = BytesMut::with_capacity(64 << 10);
            match archive.read_buf(&mut piece).await {
                Ok(0) => None,
                Ok(_) => Some((Ok(Frame::data(piece.freeze())), archive)),
                Err(error) => Some((Err(error), archive)),
            }
        });
        let told = self
            .progress(Method::POST, "/images/load?quiet=1", StreamBody::new(pieces).boxed_unsync())
            .await?;
        let names: Vec<String> = told
            .iter()
            .filter_map(|line| line.get("stream")?.as_str())
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        let text: String = names.iter().map(|line| format!("{line}\n")).collect();
        Ok(Answer::new(text, json!({ "done": true, "said": names })))
    }

    /// Follows a stream of JSON lines to its end; one with an error is the failure. Returns the others.
    async fn progress(&mut self, method: Method, path: &str, body: Body) -> Result<Vec<Value>, Failure> {
        let mut stream = self.call(method, path, body).await?.into_body();
        let (mut rest, mut told) = (BytesMut::new(), Vec::new());
        loop {
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end.saturating_add(1));
                let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
                if let Some(message) = line.get("error").and_then(Value::as_str) {
                    return Err(Failure::new(Kind::State, message));
                }
                if line.get("progressDetail").is_none() {
                    told.push(line);
                }
            }
            let Some(frame) = stream.frame().await else { return Ok(told) };
            if let Ok(data) = frame.map_err(lost)?.into_data() {
                rest.extend_from_slice(&data);
            }
            if rest.len() > LINE_MAX {
                return Err(Failure::new(
                    Kind::State,
                    "the container engine's answer has a line without an end",
                ));
            }
        }
    }

    async fn logs(
        &mut self,
        name: &str,
        follow: bool,
        tail: Option<u32>,
        as_json: bool,
    ) -> Result<Answer, Failure> {
        let tail = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let info = self.get(&format!("/containers/{}/json", encoded(name))).await?;
        let terminal = info.pointer("/Config/Tty").and_then(Value::as_bool).unwrap_or(false);
        let path =
            format!("/containers/{}/logs?stdout=1&stderr=1&follow={follow}&tail={tail}", encoded(name));
        let mut stream = self.call(Method::GET, &path, empty()).await?.into_body();
        let (mut rest, mut kept) = (BytesMut::new(), Vec::new());
        while let Some(frame) = stream.frame().await {
            let Ok(data) = frame.map_err(lost)?.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some((error, bytes)) = take(&mut rest, terminal)? {
                // As JSON it is one value at the end, else it goes on as it comes.
                let written = match (as_json, error) {
                    (true, _) => {
                        kept.extend_from_slice(&bytes);
                        if kept.len() > ANSWER_MAX {
                            return Err(Failure::new(Kind::State, "the log is too long for one JSON value")
                                .hint("ask for its end: --tail LINES"));
                        }
                        Ok(())
                    }
                    (false, true) => std::io::stderr().write_all(&bytes),
                    (false, false) => std::io::stdout().write_all(&bytes),
                };
                // A reader that goes away ends the command quietly.
                if written.is_err() {
                    return Ok(Answer::new("", Value::Null));
                }
            }
        }
        let _ = std::io::stdout().flush();
        Ok(Answer::new("", json!({ "log": String::from_utf8_lossy(&kept) })))
    }
}

/// The next piece of output and whether it is of standard error: what there is on a terminal, else a frame of eight
/// bytes of head (stream, three of zero, length) and the bytes.
fn take(rest: &mut BytesMut, terminal: bool) -> Result<Option<(bool, Bytes)>, Failure> {
    if terminal {
        let all = rest.split().freeze();
        return Ok((!all.is_empty()).then_some((false, all)));
    }
    let Some((head, _)) = rest.split_first_chunk::<8>() else { return Ok(None) };
    let [stream, _, _, _, a, b, c, d] = *head;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > ANSWER_MAX {
        return Err(Failure::new(Kind::State, "the container engine's log is not in Docker's frames"));
    }
    if rest.len() < length.saturating_add(8) {
        return Ok(None);
    }
    rest.advance(8);
    Ok(Some((stream == 2, rest.split_to(length).freeze())))
}

/// `[ADDRESS:]PORT:PORT[/PROTOCOL]` as the API wants it: bindings by port, and the ports.
fn ports(publish: &[String]) -> Result<(Value, Value), Failure> {
    let (mut bindings, mut exposed) = (BTreeMap::<String, Vec<Value>>::new(), BTreeMap::new());
    for text in publish {
        let wrong =
            || Failure::new(Kind::Usage, format!("--publish {text}: not [ADDRESS:]PORT:PORT[/tcp|udp]"));
        let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (outside, inside) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (address, outside) = outside.rsplit_once(':').unwrap_or(("", outside));
        for port in [outside, inside] {
            port.parse::<u16>().map_err(|_| wrong())?;
        }
        let port = format!("{inside}/{protocol}");
        bindings.entry(port.clone()).or_default().push(json!({ "HostIp": address, "HostPort": outside }));
        exposed.insert(port, json!({}));
    }
    Ok((json!(bindings), json!(exposed)))
}

async fn collect(mut body: Incoming) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(lost)?.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > ANSWER_MAX {
            return Err(Failure::new(Kind::State, "the container engine's answer is too long"));
        }
    }
    Ok(all)
}

fn lost(error: impl std::error::Error) -> Failure {
    Failure::from_error(Kind::State, "the container engine's answer cannot be used", &error)
}

fn kind(status: StatusCode) -> Kind {
    match status.as_u16() {
        400 => Kind::Usage,
        401 | 403 => Kind::Unauthorized,
        404 => Kind::NotFound,
        409 | 501 => Kind::NotNow,
        503 => Kind::Busy,
        507 => Kind::NoSpace,
        _ => Kind::State,
    }
}

/// A column: its title and what it shows of a row.
type Column = (&'static str, fn(&Value) -> String);

const CONTAINERS: [Column; 4] = [
    ("NAME", |row| {
        let name = row.pointer("/Names/0").and_then(Value::as_str).unwrap_or_default();
        name.trim_start_matches('/').to_owned()
    }),
    ("IMAGE", |row| text(row, "Image")),
    ("STATUS", |row| text(row, "Status")),
    ("ID", |row| text(row, "Id").chars().take(12).collect()),
];

fn text(row: &Value, key: &str) -> String {
    row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// One row for each name.
fn images(list: &Value) -> String {
    let mut rows = Vec::new();
    for image in list.as_array().into_iter().flatten() {
        let id: String = text(image, "Id").trim_start_matches("sha256:").chars().take(12).collect();
        let size = image.get("Size").and_then(Value::as_u64).unwrap_or(0);
        let names: Vec<&str> = image
            .get("RepoTags")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for name in if names.is_empty() { vec!["-"] } else { names } {
            rows.push(json!({ "name": name, "id": id, "size": show::bytes(size) }));
        }
    }
    let columns: [Column; 3] =
        [("NAME", |row| text(row, "name")), ("SIZE", |row| text(row, "size")), ("ID", |row| text(row, "id"))];
    table(&Value::Array(rows), &columns)
}

/// Rows below each other, columns as wide as they must be.
fn table(rows: &Value, columns: &[Column]) -> String {
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|(title, _)| (*title).to_owned()).collect()];
    for row in rows.as_array().into_iter().flatten() {
        lines.push(columns.iter().map(|(_, of)| printable(&of(row))).collect());
    }
    let widths: Vec<usize> = (0..columns.len())
        .map(|n| {
            lines.iter().filter_map(|line| line.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// Without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_follows_the_last_colon_behind_the_last_slash() {
        assert_eq!(split("app"), ("app", None));
        assert_eq!(split("app:2"), ("app", Some("2")));
        assert_eq!(split("host:5000/app"), ("host:5000/app", None));
        assert_eq!(split("host:5000/app:2"), ("host:5000/app", Some("2")));
        assert_eq!(split("app@sha256:00"), ("app", Some("sha256:00")));
    }

    #[test]
    fn published_ports_are_what_the_api_wants() {
        let (bindings, exposed) = ports(&["8080:80".into(), "127.0.0.1:53:53/udp".into()]).unwrap();
        assert_eq!(bindings["80/tcp"], json!([{ "HostIp": "", "HostPort": "8080" }]));
        assert_eq!(bindings["53/udp"], json!([{ "HostIp": "127.0.0.1", "HostPort": "53" }]));
        assert_eq!(exposed, json!({ "53/udp": {}, "80/tcp": {} }));
        for wrong in ["80", "a:80", "80:", "80:70000", ":80"] {
            assert!(ports(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn frames_of_a_log_are_told_apart_however_they_arrive() {
        let mut rest = BytesMut::new();
        let mut found = Vec::new();
        for byte in *b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x03err" {
            rest.extend_from_slice(&[byte]);
            while let Some(piece) = take(&mut rest, false).unwrap() {
                found.push(piece);
            }
        }
        assert_eq!(found, [(false, Bytes::from("out")), (true, Bytes::from("err"))]);
        let mut long = BytesMut::from(&b"\x01\0\0\0\xff\xff\xff\xff"[..]);
        assert!(take(&mut long, false).is_err());
        let mut raw = BytesMut::from(&b"as it is"[..]);
        assert_eq!(take(&mut raw, true).unwrap(), Some((false, Bytes::from("as it is"))));
        assert_eq!(take(&mut raw, true).unwrap(), None);
    }

    #[test]
    fn a_name_from_outside_does_not_reach_the_terminal_as_it_is() {
        let rows = json!([
            { "Names": ["/a\u{1b}[2J"], "Image": "app:1", "Status": "Up 3 minutes", "Id": "0123456789abcdef" },
            { "Names": [], "Id": 3 },
        ]);
        assert_eq!(
            table(&rows, &CONTAINERS),
            "NAME   IMAGE  STATUS        ID\na?[2J  app:1  Up 3 minutes  0123456789ab\n\n"
        );
    }

    #[test]
    fn images_without_a_name_are_shown_too() {
        let list = json!([{ "Id": "sha256:0123456789abcdef", "RepoTags": ["a:1", "b:1"], "Size": 2048 }, { "Id": "sha256:ff" }]);
        let shown = images(&list);
        assert_eq!(shown.lines().count(), 4, "{shown}");
        assert!(
            shown.contains("b:1") && shown.lines().last().is_some_and(|line| line.starts_with('-')),
            "{shown}"
        );
    }
}
