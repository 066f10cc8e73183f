//! Containers and execs: everything but their long streams.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::header::HeaderName;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::body::Body;
use super::route::Call;
use super::system::merge;
use super::{decode, hijack};
use crate::filters::Filters;
use crate::types::{
    AttachOptions, Attached, ChangeKind, Channel, ContainerSummary, CreateContainer, ExecConfig, Output,
    PathStat, PutArchive, UpdateContainer, WaitCondition,
};
use crate::{Error, human, path, select};

pub async fn list(call: &Call) -> Answer {
    let filters = Filters::parse(call.query.get("filters"), select::CONTAINERS)?;
    let sizes = call.query.is("size");
    let mut ancestors = Vec::new();
    for name in filters.get("ancestor") {
        match call.engine.inspect_image(name).await {
            Ok(image) => ancestors.push(image.id),
            Err(Error::NoSuchImage(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let rows = call.engine.list_containers(sizes).await?;
    let rows =
        select::containers(rows, &filters, call.query.is("all"), call.query.number("limit")?, &ancestors)?;
    let now = Timestamp::now();
    let rows: Vec<Value> = rows.iter().map(|row| self::row(row, now)).collect();
    answer::ok(&rows)
}

/// One row of the list as Docker writes it.
pub fn row(row: &ContainerSummary, now: Timestamp) -> Value {
    let mut value = json!({
        "Id": row.id,
        "Names": [format!("/{}", row.name)],
        "Image": row.image,
        "ImageID": row.image_id,
        "Command": human::command(&row.command),
        "Created": row.created.as_second(),
        "Ports": row.ports,
        "Labels": row.labels,
        "State": row.state.status,
        "Status": human::status(&row.state, now),
        "HostConfig": { "NetworkMode": row.network_mode },
        "NetworkSettings": { "Networks": row.networks },
        "Mounts": row.mounts,
    });
    if let Some(size) = row.size_rw {
        merge(&mut value, json!({ "SizeRw": size }));
    }
    if let Some(size) = row.size_root_fs {
        merge(&mut value, json!({ "SizeRootFs": size }));
    }
    value
}

/// A name as Docker allows it, its leading slash dropped.
fn checked_name(name: &str) -> Result<String, Error> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut chars = bare.chars();
    let fits = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && bare.len() > 1
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if fits && bare.len() <= 255 {
        return Ok(bare.to_owned());
    }
    Err(Error::Invalid(format!(
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )))
}

pub async fn create(mut call: Call) -> Answer {
    let name = call.query.get("name").map(checked_name).transpose()?;
    let Some(value) = call.value().await? else {
        return Err(Error::Invalid("config cannot be empty in order to create a container".to_owned()));
    };
    if let Some(host) = value.get("HostConfig") {
        decode::refuse(host, "HostConfig", decode::HOST_CONFIG)?;
    }
    let mut request: CreateContainer = decode::from_value(value)?;
    if request.config.image.is_empty() {
        return Err(Error::Invalid("no image specified".to_owned()));
    }
    // Clients say "default"; there is one network that it means.
    if matches!(request.host_config.network_mode.as_str(), "" | "default") {
        request.host_config.network_mode = "bridge".to_owned();
    }
    if let Some(end) = request.networking_config.endpoints_config.remove("default") {
        request.networking_config.endpoints_config.entry("bridge".to_owned()).or_insert(end);
    }
    request.name = name;
    request.platform = call.query.get("platform").map(str::to_owned);
    let created = call.to_end(async |engine| engine.create_container(request).await).await?;
    answer::json(StatusCode::CREATED, &created)
}

pub async fn inspect(call: &Call, id: &str) -> Answer {
    answer::ok(&call.engine.inspect_container(id, call.query.is("size")).await?)
}

pub async fn start(call: &Call, id: &str) -> Answer {
    if call.query.get("checkpoint").is_some() {
        return Err(Error::Unsupported(
            "checkpoints are not supported by this engine: start without one".to_owned(),
        ));
    }
    let id = id.to_owned();
    call.to_end(async move |engine| engine.start_container(&id).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn stop(call: &Call, id: &str) -> Answer {
    let (id, signal, timeout) = stopping(call, id)?;
    call.to_end(async move |engine| engine.stop_container(&id, signal.as_deref(), timeout).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn restart(call: &Call, id: &str) -> Answer {
    let (id, signal, timeout) = stopping(call, id)?;
    call.to_end(async move |engine| engine.restart_container(&id, signal.as_deref(), timeout).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

type Stopping = (String, Option<String>, Option<i64>);

fn stopping(call: &Call, id: &str) -> Result<Stopping, Error> {
    Ok((id.to_owned(), call.query.get("signal").map(str::to_owned), call.query.number("t")?))
}

pub async fn kill(call: &Call, id: &str) -> Answer {
    let (id, signal) = (id.to_owned(), call.query.get("signal").map(str::to_owned));
    call.to_end(async move |engine| engine.kill_container(&id, signal.as_deref()).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn pause(call: &Call, id: &str) -> Answer {
    let id = id.to_owned();
    call.to_end(async move |engine| engine.pause_container(&id).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn unpause(call: &Call, id: &str) -> Answer {
    let id = id.to_owned();
    call.to_end(async move |engine| engine.unpause_container(&id).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn rename(call: &Call, id: &str) -> Answer {
    let Some(name) = call.query.get("name") else {
        return Err(Error::Invalid("Neither old nor new names may be empty".to_owned()));
    };
    let (id, name) = (id.to_owned(), checked_name(name)?);
    call.to_end(async move |engine| engine.rename_container(&id, &name).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn update(mut call: Call, id: &str) -> Answer {
    let value = call.value().await?.unwrap_or_default();
    decode::refuse(&value, "", decode::HOST_CONFIG)?;
    let (id, update): (_, UpdateContainer) = (id.to_owned(), decode::from_value(value)?);
    let warnings = call.to_end(async move |engine| engine.update_container(&id, update).await).await?;
    answer::ok(&json!({ "Warnings": warnings }))
}

pub async fn remove(call: &Call, id: &str) -> Answer {
    if call.query.is("link") {
        return Err(Error::Unsupported(
            "removing a link is not supported by this engine: there are no links".to_owned(),
        ));
    }
    let (id, force, volumes) = (id.to_owned(), call.query.is("force"), call.query.is("v"));
    call.to_end(async move |engine| engine.remove_container(&id, force, volumes).await).await?;
    answer::empty(StatusCode::NO_CONTENT)
}

pub async fn prune(call: &Call) -> Answer {
    let which = select::prune_containers(
        &Filters::parse(call.query.get("filters"), select::PRUNE)?,
        Timestamp::now(),
    )?;
    let pruned = call.to_end(async move |engine| engine.prune_containers(which).await).await?;
    answer::ok(&json!({ "ContainersDeleted": pruned.deleted, "SpaceReclaimed": pruned.space_reclaimed }))
}

pub async fn top(call: &Call, id: &str) -> Answer {
    answer::ok(&call.engine.top(id, call.query.get("ps_args").unwrap_or("-ef")).await?)
}

pub async fn changes(call: &Call, id: &str) -> Answer {
    let changes = call.engine.changes(id).await?;
    let changes: Vec<Value> = changes
        .iter()
        .map(|change| {
            let kind = match change.kind {
                ChangeKind::Modified => 0,
                ChangeKind::Added => 1,
                ChangeKind::Deleted => 2,
            };
            json!({ "Path": change.path, "Kind": kind })
        })
        .collect();
    answer::ok(&changes)
}

pub async fn export(call: &Call, id: &str) -> Answer {
    let tar = call.engine.export(id).await?;
    Ok(answer::typed(StatusCode::OK, "application/octet-stream", Body::reader(tar)))
}

pub async fn wait(call: &Call, id: &str) -> Answer {
    let condition = match call.query.get("condition") {
        None | Some("not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => return Err(Error::Invalid(format!("invalid condition: \"{other}\""))),
    };
    let waiting = call.engine.wait_container(id, condition).await?;
    // The client gets the header now and starts the container only then.
    let body = stream::once(async {
        let answer = match waiting.await {
            Ok(exited) => match exited.error {
                None => json!({ "StatusCode": exited.code }),
                Some(message) => json!({ "StatusCode": exited.code, "Error": { "Message": message } }),
            },
            Err(error) => json!({ "StatusCode": -1, "Error": { "Message": error.to_string() } }),
        };
        Ok(Bytes::from(format!("{answer}\n")))
    });
    Ok(answer::typed(StatusCode::OK, "application/json", Body::Stream(body.boxed())))
}

fn size(call: &Call) -> Result<(u16, u16), Error> {
    match (call.query.number("h")?, call.query.number("w")?) {
        (Some(rows), Some(columns)) => Ok((rows, columns)),
        _ => Err(Error::Invalid("invalid parameters: h and w are needed".to_owned())),
    }
}

pub async fn resize(call: &Call, id: &str) -> Answer {
    let (rows, columns) = size(call)?;
    call.engine.resize_container(id, rows, columns).await?;
    answer::empty(StatusCode::OK)
}

pub async fn attach(call: Call, id: &str) -> Answer {
    let keys = hijack::DetachKeys::parse(call.query.get("detachKeys"))?;
    let options = AttachOptions {
        logs: call.query.is("logs"),
        stream: call.query.is("stream"),
        stdin: call.query.is("stdin"),
        stdout: call.query.is("stdout"),
        stderr: call.query.is("stderr"),
    };
    hijack::possible(&call, options.stdin)?;
    let attached = call.engine.attach(id, options).await?;
    hijack::answer(call, attached, keys)
}

pub async fn create_exec(mut call: Call, id: &str) -> Answer {
    let config: ExecConfig = call.json().await?;
    if config.cmd.is_empty() {
        return Err(Error::Invalid("No exec command specified".to_owned()));
    }
    hijack::DetachKeys::parse(Some(config.detach_keys.as_str()).filter(|k| !k.is_empty()))?;
    let id = id.to_owned();
    let id = call.to_end(async move |engine| engine.create_exec(&id, config).await).await?;
    answer::json(StatusCode::CREATED, &json!({ "Id": id }))
}

pub async fn start_exec(mut call: Call, id: &str) -> Answer {
    #[derive(serde::Deserialize, Default)]
    #[serde(rename_all = "PascalCase", default)]
    struct Start {
        detach: bool,
        tty: bool,
        console_size: Option<[u32; 2]>,
    }
    let start: Start = call.json().await?;
    let id = id.to_owned();
    if start.detach {
        call.to_end(async move |engine| engine.start_exec_detached(&id).await).await?;
        return answer::empty(StatusCode::OK);
    }
    let exec = call.engine.inspect_exec(&id).await?;
    let keys = hijack::DetachKeys::parse(Some(exec.config.detach_keys.as_str()).filter(|k| !k.is_empty()))?;
    hijack::possible(&call, exec.config.attach_stdin)?;
    let size = match start.console_size {
        Some([rows, columns]) if rows > 0 && columns > 0 => {
            match (u16::try_from(rows), u16::try_from(columns)) {
                (Ok(rows), Ok(columns)) => Some((rows, columns)),
                _ => return Err(Error::Invalid("invalid ConsoleSize: no terminal is that large".to_owned())),
            }
        }
        _ => None,
    };
    let tty = start.tty || exec.config.tty;
    let attached = match call.to_end(async move |engine| engine.start_exec(&id, tty, size).await).await {
        // Docker has switched to the stream by then: the client prints the text and asks for the exit code.
        Err(Error::CannotRun(text)) => {
            let bytes = Bytes::from(format!("{text}\r\n"));
            let said = stream::once(async { Ok(Output { channel: Channel::Stdout, bytes }) });
            Attached { tty, output: said.boxed(), input: None }
        }
        other => other?,
    };
    hijack::answer(call, attached, keys)
}

pub async fn resize_exec(call: &Call, id: &str) -> Answer {
    let (rows, columns) = size(call)?;
    call.engine.resize_exec(id, rows, columns).await?;
    answer::empty(StatusCode::OK)
}

pub async fn inspect_exec(call: &Call, id: &str) -> Answer {
    let exec = call.engine.inspect_exec(id).await?;
    let config = &exec.config;
    answer::ok(&json!({
        "ID": exec.id,
        "Running": exec.running,
        "ExitCode": exec.exit_code,
        "ProcessConfig": {
            "tty": config.tty,
            "entrypoint": config.cmd.first(),
            "arguments": config.cmd.get(1..).unwrap_or_default(),
            "privileged": config.privileged,
            "user": config.user,
        },
        "OpenStdin": config.attach_stdin,
        "OpenStderr": config.attach_stderr,
        "OpenStdout": config.attach_stdout,
        "CanRemove": !exec.running && exec.exit_code.is_some(),
        "ContainerID": exec.container_id,
        "DetachKeys": config.detach_keys,
        "Pid": exec.pid,
    }))
}

fn archive_path(call: &Call) -> Result<String, Error> {
    path::clean(call.query.get("path").unwrap_or_default())
}

pub async fn get_archive(call: &Call, id: &str) -> Answer {
    let path = archive_path(call)?;
    let (stat, body) = if call.method == Method::HEAD {
        (call.engine.stat_path(id, &path).await?, Body::empty())
    } else {
        let (stat, tar) = call.engine.get_archive(id, &path).await?;
        (stat, Body::reader(tar))
    };
    let mut response = answer::typed(StatusCode::OK, "application/x-tar", body);
    answer::header(
        &mut response,
        HeaderName::from_static("x-docker-container-path-stat"),
        &stat_header(&stat),
    );
    Ok(response)
}

fn stat_header(stat: &PathStat) -> String {
    let stat = json!({
        "name": stat.name,
        "size": stat.size,
        "mode": path::go_mode(stat.mode),
        "mtime": stat.modified.to_string(),
        "linkTarget": stat.link_target,
    });
    BASE64_STANDARD.encode(stat.to_string())
}

pub async fn put_archive(mut call: Call, id: &str) -> Answer {
    let (id, path) = (id.to_owned(), archive_path(&call)?);
    let options = PutArchive {
        no_overwrite_dir_non_dir: call.query.is("noOverwriteDirNonDir"),
        copy_uid_gid: call.query.is("copyUIDGID"),
    };
    let tar = call.reader();
    call.to_end(async move |engine| engine.put_archive(&id, &path, options, tar).await).await?;
    answer::empty(StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        assert_eq!(checked_name("/web-1.a_b").unwrap(), "web-1.a_b");
        for bad in ["", "/", "a", "-a", "a/b", "a b", "ä1", "//ab", &"a".repeat(256)] {
            assert!(checked_name(bad).is_err(), "{bad}");
        }
    }
}
