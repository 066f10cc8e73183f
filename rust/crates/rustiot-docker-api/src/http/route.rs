//! From a request to the one handler that answers it: version prefix, path, what is not there.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName};
use hyper::{HeaderMap, Method, Request, Response};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use super::answer::{self, Answer};
use super::body::{Body, BodyReader, RequestBody};
use super::{body, containers, decode, images, networks, streams, system, volumes};
use crate::query::Query;
use crate::server::Settings;
use crate::types::ByteReader;
use crate::{API_VERSION, Engine, Error, MIN_API_VERSION};

/// One request, taken apart.
pub struct Call {
    pub engine: Arc<dyn Engine>,
    pub settings: Settings,
    pub method: Method,
    pub query: Query,
    pub headers: HeaderMap,
    pub body: Option<RequestBody>,
    /// Minor version of the API that the client speaks.
    pub minor: u32,
    pub upgrade: hyper::upgrade::OnUpgrade,
}

impl Call {
    /// The body as JSON; `None` when there is none.
    pub async fn value(&mut self) -> Result<Option<serde_json::Value>, Error> {
        let bytes = self.bytes().await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let media = self.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let plain = media.split(';').next().unwrap_or_default().trim();
        if !plain.eq_ignore_ascii_case("application/json") {
            return Err(Error::Invalid(format!(
                "unsupported Content-Type header ({media}): must be 'application/json'"
            )));
        }
        decode::value(&bytes).map(Some)
    }

    /// The body as one type.
    pub async fn json<T: DeserializeOwned + Default>(&mut self) -> Result<T, Error> {
        self.value().await?.map_or_else(|| Ok(T::default()), decode::from_value)
    }

    async fn bytes(&mut self) -> Result<Bytes, Error> {
        match self.body.take() {
            Some(body) if !body.is_empty() => {
                body::collect(body, self.settings.most_json, self.settings.patience).await
            }
            _ => Ok(Bytes::new()),
        }
    }

    /// The body as a stream; at its end at once if it was taken already.
    pub fn reader(&mut self) -> ByteReader {
        match self.body.take() {
            Some(body) => Box::pin(BodyReader::new(body, self.settings.patience)),
            None => Box::pin(tokio::io::empty()),
        }
    }

    /// Runs a change to its end, even if the client goes meanwhile.
    pub async fn to_end<T, F>(&self, change: impl FnOnce(Arc<dyn Engine>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        tokio::spawn(change(Arc::clone(&self.engine)))
            .await
            .unwrap_or_else(|error| Err(Error::failed("the call ended before its answer", error)))
    }
}

/// Answers one request.
pub async fn answer(
    engine: Arc<dyn Engine>,
    settings: Settings,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let mut response = match version_and_path(parts.uri.path()) {
        Ok((_, path)) if settings.closed.is_some() && path != "/_ping" => {
            answer::error(&Error::Unavailable(settings.closed.unwrap_or_default().to_owned()))
        }
        Ok((minor, path)) => {
            let call = Call {
                engine,
                settings,
                method: parts.method,
                query: Query::parse(parts.uri.query().unwrap_or_default()),
                headers: parts.headers,
                body: Some(RequestBody::new(body)),
                minor,
                upgrade,
            };
            dispatch(call, &path).await.unwrap_or_else(|error| answer::error(&error))
        }
        Err(error) => answer::error(&error),
    };
    if head {
        // What is known of the body stays in the headers.
        *response.body_mut() = Body::empty();
    }
    for (name, value) in [
        ("server", concat!("RustIoT/", env!("CARGO_PKG_VERSION"), " (linux)")),
        ("api-version", API_VERSION),
        ("ostype", "linux"),
        ("docker-experimental", "false"),
    ] {
        answer::header(&mut response, HeaderName::from_static(name), value);
    }
    response
}

/// `/v1.41/x` is version 41 and `/x`; without a version it is the newest.
fn version_and_path(path: &str) -> Result<(u32, String), Error> {
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| Error::Invalid("the request's path is not UTF-8".to_owned()))?
        .into_owned();
    let newest = minor_of(API_VERSION).unwrap_or(u32::MAX);
    let Some((version, rest)) = decoded.strip_prefix("/v").and_then(|p| p.split_once('/')) else {
        return Ok((newest, decoded));
    };
    if !version.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok((newest, decoded));
    }
    let oldest = minor_of(MIN_API_VERSION).unwrap_or(0);
    match minor_of(version) {
        None => Err(Error::Invalid(format!("client version {version} is not an API version"))),
        Some(minor) if minor < oldest => Err(Error::Invalid(format!(
            "client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade your client to a newer version"
        ))),
        Some(minor) if minor > newest => Err(Error::Invalid(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        ))),
        Some(minor) => Ok((minor, format!("/{rest}"))),
    }
}

/// The minor number, major 1; older majors count as 0, newer as the largest.
fn minor_of(version: &str) -> Option<u32> {
    let (major, minor) = version.split_once('.')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    Some(match major {
        0 => 0,
        1 => minor,
        _ => u32::MAX,
    })
}

async fn dispatch(call: Call, path: &str) -> Answer {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let method = call.method.clone();
    match (method.as_str(), parts.as_slice()) {
        ("GET" | "HEAD", ["_ping"]) => Ok(system::ping()),
        ("GET", ["version"]) => system::version(&call).await,
        ("GET", ["info"]) => system::info(&call).await,
        ("GET", ["system", "df"]) => system::disk_usage(&call).await,
        ("GET", ["events"]) => system::events(&call).await,
        ("POST", ["auth"]) => system::auth(call).await,
        // There is no build cache, so pruning it does nothing; `docker system prune` asks for it.
        ("POST", ["build", "prune"]) => {
            answer::ok(&serde_json::json!({ "CachesDeleted": [], "SpaceReclaimed": 0 }))
        }

        ("GET", ["containers", "json"]) => containers::list(&call).await,
        ("POST", ["containers", "create"]) => containers::create(call).await,
        ("POST", ["containers", "prune"]) => containers::prune(&call).await,
        ("DELETE", ["containers", id]) => containers::remove(&call, id).await,
        ("GET", ["containers", id, "json"]) => containers::inspect(&call, id).await,
        ("GET", ["containers", id, "top"]) => containers::top(&call, id).await,
        ("GET", ["containers", id, "logs"]) => streams::logs(&call, id).await,
        ("GET", ["containers", id, "stats"]) => streams::stats(&call, id).await,
        ("GET", ["containers", id, "changes"]) => containers::changes(&call, id).await,
        ("GET", ["containers", id, "export"]) => containers::export(&call, id).await,
        ("GET" | "HEAD", ["containers", id, "archive"]) => containers::get_archive(&call, id).await,
        ("PUT", ["containers", id, "archive"]) => containers::put_archive(call, id).await,
        ("POST", ["containers", id, "start"]) => containers::start(&call, id).await,
        ("POST", ["containers", id, "stop"]) => containers::stop(&call, id).await,
        ("POST", ["containers", id, "restart"]) => containers::restart(&call, id).await,
        ("POST", ["containers", id, "kill"]) => containers::kill(&call, id).await,
        ("POST", ["containers", id, "pause"]) => containers::pause(&call, id).await,
        ("POST", ["containers", id, "unpause"]) => containers::unpause(&call, id).await,
        ("POST", ["containers", id, "rename"]) => containers::rename(&call, id).await,
        ("POST", ["containers", id, "update"]) => containers::update(call, id).await,
        ("POST", ["containers", id, "wait"]) => containers::wait(&call, id).await,
        ("POST", ["containers", id, "resize"]) => containers::resize(&call, id).await,
        ("POST", ["containers", id, "attach"]) => containers::attach(call, id).await,
        ("POST", ["containers", id, "exec"]) => containers::create_exec(call, id).await,
        ("POST", ["exec", id, "start"]) => containers::start_exec(call, id).await,
        ("POST", ["exec", id, "resize"]) => containers::resize_exec(&call, id).await,
        ("GET", ["exec", id, "json"]) => containers::inspect_exec(&call, id).await,

        ("GET", ["images", "json"]) => images::list(&call).await,
        ("POST", ["images", "create"]) => images::pull(&call).await,
        ("POST", ["images", "load"]) => images::load(call).await,
        ("POST", ["images", "prune"]) => images::prune(&call).await,
        ("GET", ["images", "get"]) => images::save(&call, call.query.all("names")).await,
        ("GET", ["images", "search"]) => absent("searching a registry", "search on the workstation"),
        ("GET", ["images", name @ .., "json"]) if !name.is_empty() => {
            images::inspect(&call, &name.join("/")).await
        }
        ("GET", ["images", name @ .., "history"]) if !name.is_empty() => {
            images::history(&call, &name.join("/")).await
        }
        ("GET", ["images", name @ .., "get"]) if !name.is_empty() => {
            images::save(&call, vec![name.join("/")]).await
        }
        ("POST", ["images", name @ .., "tag"]) if !name.is_empty() => {
            images::tag(&call, &name.join("/")).await
        }
        ("POST", ["images", .., "push"]) => absent("pushing images", "push from the machine that built them"),
        ("DELETE", ["images", name @ ..]) if !name.is_empty() => images::remove(&call, &name.join("/")).await,

        ("GET", ["networks"]) => networks::list(&call).await,
        ("POST", ["networks", "create"]) => networks::create(call).await,
        ("POST", ["networks", "prune"]) => networks::prune(&call).await,
        ("GET", ["networks", id]) => networks::inspect(&call, id).await,
        ("DELETE", ["networks", id]) => networks::remove(&call, id).await,
        ("POST", ["networks", id, "connect"]) => networks::connect(call, id).await,
        ("POST", ["networks", id, "disconnect"]) => networks::disconnect(call, id).await,

        ("GET", ["volumes"]) => volumes::list(&call).await,
        ("POST", ["volumes", "create"]) => volumes::create(call).await,
        ("POST", ["volumes", "prune"]) => volumes::prune(&call).await,
        ("GET", ["volumes", name]) => volumes::inspect(&call, name).await,
        ("DELETE", ["volumes", name]) => volumes::remove(&call, name).await,

        (_, ["build", ..] | ["session"] | ["grpc"]) => absent(
            "building images",
            "build on the workstation and bring the image with docker save and docker load, or through a registry",
        ),
        (_, ["commit"]) => absent("making an image of a container", "build it on the workstation"),
        (_, ["containers", _, "attach", "ws"]) => {
            absent("attaching through a WebSocket", "use POST …/attach")
        }
        (_, ["containers", _, "checkpoint" | "checkpoints", ..]) => {
            absent("checkpoints", "stop and start the container")
        }
        (_, ["distribution", ..]) => absent("asking a registry about an image", "pull it"),
        (_, ["plugins", ..]) => absent("plugins", "use what the engine has built in"),
        (_, ["swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs", ..]) => {
            absent("Swarm", "run the containers on each device")
        }
        (_, ["volumes", _]) => absent("changing a volume (a cluster volume's)", "make a new one"),
        _ => Err(Error::NotFound("page not found".to_owned())),
    }
}

fn absent(what: &str, instead: &str) -> Answer {
    Err(Error::Unsupported(format!("{what} is not supported by this engine: {instead}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_taken_off_and_bounded() {
        let of = |path: &str| version_and_path(path).map_err(|e| e.to_string());
        assert_eq!(of("/v1.41/images/a%2Fb/json"), Ok((41, "/images/a/b/json".to_owned())));
        assert_eq!(of("/volumes/v1"), Ok((47, "/volumes/v1".to_owned())));
        assert_eq!(of("/_ping"), Ok((47, "/_ping".to_owned())));
        assert!(
            of("/v1.23/info")
                .unwrap_err()
                .starts_with("client version 1.23 is too old. Minimum supported API version is 1.24")
        );
        assert_eq!(
            of("/v1.48/info"),
            Err("client version 1.48 is too new. Maximum supported API version is 1.47".to_owned())
        );
        assert!(of("/v2.0/info").is_err() && of("/v1.x/info").is_err() && of("/%ff").is_err());
        assert!(of("/v1.99999999999/info").is_err());
    }
}
