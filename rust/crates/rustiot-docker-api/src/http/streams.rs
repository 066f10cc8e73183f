//! Logs and statistics.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::body::Body;
use super::hijack;
use super::route::Call;
use crate::types::{Channel, LogsOptions, Sample, ZERO_TIME};
use crate::{Error, human};

pub async fn logs(call: &Call, id: &str) -> Answer {
    let query = &call.query;
    let options = LogsOptions {
        follow: query.is("follow"),
        stdout: query.is("stdout"),
        stderr: query.is("stderr"),
        since: query.time("since")?,
        until: query.time("until")?,
        // Docker takes anything that is no number for all.
        tail: query.get("tail").and_then(|t| t.parse().ok()),
    };
    if !options.stdout && !options.stderr {
        return Err(Error::Invalid("Bad parameters: you must choose at least one stream".to_owned()));
    }
    let timestamps = query.is("timestamps");
    let logs = call.engine.logs(id, options).await?;
    let tty = logs.tty;
    let until = options.until;
    let end = async move {
        match until.filter(|_| options.follow) {
            None => std::future::pending().await,
            Some(until) => {
                let left = Duration::try_from(Timestamp::now().duration_until(until)).unwrap_or_default();
                tokio::time::sleep(left.max(Duration::from_millis(50))).await;
            }
        }
    };
    // Whether the next piece of a channel begins a line.
    let mut begins = [true; 2];
    let body = logs
        .lines
        .take_until(Box::pin(end))
        .take_while(move |item| {
            let late = matches!((item, until), (Ok(line), Some(until)) if line.time > until);
            std::future::ready(!late)
        })
        .map(move |item| {
            let line = item.map_err(std::io::Error::other)?;
            let [stdout, stderr] = &mut begins;
            let begin = match line.channel {
                Channel::Stdout => stdout,
                Channel::Stderr => stderr,
            };
            let time =
                if timestamps && *begin { format!("{} ", human::log_time(line.time)) } else { String::new() };
            *begin = line.bytes.ends_with(b"\n");
            Ok(if !tty {
                hijack::frame(line.channel, &[time.as_bytes(), &line.bytes])
            } else if time.is_empty() {
                line.bytes
            } else {
                Bytes::from([time.as_bytes(), &line.bytes].concat())
            })
        });
    Ok(answer::typed(StatusCode::OK, hijack::media(tty, call.minor), Body::Stream(body.boxed())))
}

pub async fn stats(call: &Call, id: &str) -> Answer {
    let (stream, one_shot) = (call.query.is_or("stream", true), call.query.is("one-shot"));
    if stream && one_shot {
        return Err(Error::Invalid("cannot have stream=true and one-shot=true".to_owned()));
    }
    let (full, name, first) = call.engine.sample(id).await?;
    if !stream {
        let (before, now) = match first {
            Some(first) if !one_shot => {
                // A rate needs two readings.
                tokio::time::sleep(Duration::from_secs(1)).await;
                (Some(first), call.engine.sample(&full).await?.2)
            }
            first => (None, first),
        };
        return answer::ok(&pair(&full, &name, before.as_ref(), now.as_ref()));
    }
    let state = (
        std::sync::Arc::clone(&call.engine),
        full,
        name,
        None::<Sample>,
        Some(first),
        tokio::time::Instant::now(),
    );
    let body = stream::unfold(state, async |(engine, id, mut name, before, first, at)| {
        let now = match first {
            Some(first) => first,
            None => {
                tokio::time::sleep_until(at).await;
                match engine.sample(&id).await {
                    Ok((_, current, now)) => {
                        name = current;
                        now
                    }
                    // Removed: the stream ends, as Docker's does.
                    Err(_) => return None,
                }
            }
        };
        let mut line = pair(&id, &name, before.as_ref(), now.as_ref()).to_string();
        line.push('\n');
        // A client that is slow gets fewer readings, not older ones.
        let next = (at + Duration::from_secs(1)).max(tokio::time::Instant::now());
        Some((Ok(Bytes::from(line)), (engine, id, name, now, None, next)))
    });
    Ok(answer::typed(StatusCode::OK, "application/json", Body::Stream(body.boxed())))
}

/// Docker's statistics: a reading and the one before it.
fn pair(id: &str, name: &str, before: Option<&Sample>, now: Option<&Sample>) -> Value {
    let time = |sample: Option<&Sample>| sample.map_or_else(|| ZERO_TIME.to_owned(), |s| s.read.to_string());
    let mut value = json!({
        "name": format!("/{name}"),
        "id": id,
        "read": time(now),
        "preread": time(before),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu(now),
        "precpu_stats": cpu(before),
        "memory_stats": {},
        "pids_stats": {},
        "blkio_stats": {},
    });
    let Some(now) = now else { return value };
    let mut operations = Vec::new();
    let mut bytes = Vec::new();
    for device in &now.block {
        for (into, op, n) in [
            (0, "read", device.read_bytes),
            (0, "write", device.write_bytes),
            (1, "read", device.reads),
            (1, "write", device.writes),
        ] {
            let entry = json!({ "major": device.major, "minor": device.minor, "op": op, "value": n });
            if into == 0 { bytes.push(entry) } else { operations.push(entry) }
        }
    }
    let mut pids = json!({ "current": now.pids });
    if now.pids_limit > 0 {
        super::system::merge(&mut pids, json!({ "limit": now.pids_limit }));
    }
    super::system::merge(
        &mut value,
        json!({
            "memory_stats": {
                "usage": now.memory_usage,
                "limit": now.memory_limit,
                "stats": now.memory_stats,
                "failcnt": now.memory_failcnt,
            },
            "pids_stats": pids,
            "blkio_stats": { "io_service_bytes_recursive": bytes, "io_serviced_recursive": operations },
        }),
    );
    if !now.interfaces.is_empty() {
        super::system::merge(&mut value, json!({ "networks": now.interfaces }));
    }
    value
}

fn cpu(sample: Option<&Sample>) -> Value {
    let Some(s) = sample else {
        return json!({ "cpu_usage": { "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0 }, "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 } });
    };
    json!({
        "cpu_usage": { "total_usage": s.cpu_total, "usage_in_kernelmode": s.cpu_system, "usage_in_usermode": s.cpu_user },
        "system_cpu_usage": s.system_total,
        "online_cpus": s.online_cpus,
        "throttling_data": { "periods": s.throttling_periods, "throttled_periods": s.throttled_periods, "throttled_time": s.throttled_time },
    })
}
