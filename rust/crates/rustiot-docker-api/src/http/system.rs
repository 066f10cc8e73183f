//! The engine and its host: ping, version, info, disk usage, events, credentials.

use futures_util::StreamExt;
use hyper::header::{CACHE_CONTROL, HeaderName, PRAGMA};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::body::Body;
use super::route::Call;
use super::{containers, decode};
use crate::filters::Filters;
use crate::select;
use crate::types::{Event, EventKind, RegistryAuth};
use crate::{API_VERSION, Error, MIN_API_VERSION};

pub fn ping() -> Response<Body> {
    let mut response = answer::typed(StatusCode::OK, "text/plain; charset=utf-8", Body::Full("OK".into()));
    answer::header(&mut response, CACHE_CONTROL, "no-cache, no-store, must-revalidate");
    answer::header(&mut response, PRAGMA, "no-cache");
    answer::header(&mut response, HeaderName::from_static("swarm"), "inactive");
    answer::header(&mut response, HeaderName::from_static("builder-version"), "1");
    response
}

pub async fn version(call: &Call) -> Answer {
    let version = call.engine.version().await?;
    let details = json!({
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "Arch": version.arch,
        "BuildTime": version.build_time,
        "Experimental": "false",
        "GitCommit": version.git_commit,
        "KernelVersion": version.kernel_version,
        "Os": version.os,
    });
    let mut all = to_value(&version)?;
    merge(
        &mut all,
        json!({
            "Platform": { "Name": "RustIoT" },
            "Components": [{ "Name": "Engine", "Version": version.version, "Details": details }],
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "GoVersion": "none",
        }),
    );
    answer::ok(&all)
}

pub async fn info(call: &Call) -> Answer {
    let info = call.engine.info().await?;
    let mut all = to_value(&info)?;
    merge(
        &mut all,
        json!({
            "Debug": false,
            "NGoroutines": 0,
            "NEventsListener": 0,
            "ExperimentalBuild": false,
            "HttpProxy": "", "HttpsProxy": "", "NoProxy": "",
            "Swarm": { "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": null },
            "ContainerdCommit": { "ID": "" }, "RuncCommit": { "ID": "" }, "InitCommit": { "ID": "" },
            "BridgeNfIptables": false, "BridgeNfIp6tables": false,
            "Isolation": "",
            "GenericResources": null,
        }),
    );
    answer::ok(&all)
}

pub async fn disk_usage(call: &Call) -> Answer {
    let mut usage = call.engine.disk_usage().await?;
    let now = Timestamp::now();
    usage.containers.sort_by_key(|row| std::cmp::Reverse(row.created));
    let kinds = call.query.all("type");
    let wanted = |kind: &str| kinds.is_empty() || kinds.iter().any(|k| k == kind);
    let mut all = json!({ "BuilderSize": 0 });
    if wanted("image") {
        merge(&mut all, json!({ "LayersSize": usage.layers_size, "Images": usage.images }));
    }
    if wanted("container") {
        let rows: Vec<Value> = usage.containers.iter().map(|row| containers::row(row, now)).collect();
        merge(&mut all, json!({ "Containers": rows }));
    }
    if wanted("volume") {
        merge(&mut all, json!({ "Volumes": usage.volumes }));
    }
    if wanted("build-cache") {
        merge(&mut all, json!({ "BuildCache": [] }));
    }
    answer::ok(&all)
}

pub async fn auth(mut call: Call) -> Answer {
    let auth: RegistryAuth =
        call.value().await?.map_or_else(|| Ok(RegistryAuth::default()), decode::from_value)?;
    let (status, token) = call.engine.auth(auth).await?;
    answer::ok(&json!({ "Status": status, "IdentityToken": token.unwrap_or_default() }))
}

pub async fn events(call: &Call) -> Answer {
    let filters = select::Events::new(Filters::parse(call.query.get("filters"), select::EVENTS)?);
    let (since, until) = (call.query.time("since")?, call.query.time("until")?);
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(Error::Invalid("`since` time must be before `until` time".to_owned()));
    }
    // Only of the past and until a moment in it: without `since` nothing is replayed, so nothing can come.
    let events = call.engine.events(since).await?;
    let end = async move {
        match until {
            None => std::future::pending().await,
            Some(until) => {
                let left = Timestamp::now().duration_until(until);
                // Events of the past that are on their way already still get through.
                let left = std::time::Duration::try_from(left).unwrap_or_default();
                tokio::time::sleep(left.max(std::time::Duration::from_millis(50))).await;
            }
        }
    };
    let chosen = events
        .take_until(Box::pin(end))
        .take_while(move |item| {
            let past = matches!((item, until), (Ok(event), Some(until)) if event.time > until);
            std::future::ready(!past)
        })
        .filter(move |item| std::future::ready(item.as_ref().map_or(true, |event| filters.accept(event))));
    let lines = answer::lines(chosen, event_line);
    Ok(answer::typed(StatusCode::OK, "application/json", Body::Stream(lines.boxed())))
}

fn event_line(event: &Event) -> Value {
    let nanos = i64::try_from(event.time.as_nanosecond()).unwrap_or(i64::MAX);
    let mut line = json!({
        "Type": event.kind,
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": "local",
        "time": event.time.as_second(),
        "timeNano": nanos,
    });
    // Fields of old clients.
    match event.kind {
        EventKind::Container => merge(
            &mut line,
            json!({ "status": event.action, "id": event.id, "from": event.attributes.get("image").cloned().unwrap_or_default() }),
        ),
        EventKind::Image => merge(&mut line, json!({ "status": event.action, "id": event.id })),
        _ => {}
    }
    line
}

pub fn to_value(value: &impl serde::Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::failed("cannot write the answer", error))
}

pub fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}
