//! Health checks: a program entered into the container now and then.
//!
//! Never restarts anything. Started with the container's watch.

use std::sync::Arc;
use std::time::Duration;

use rustiot_docker_api::Timestamp;
use rustiot_docker_api::types::{ExecConfig, HealthResult, HealthStatus, Status};
use rustiot_shim::protocol::{Event, Kind, Request};
use tokio::task::AbortHandle;

use crate::container::Container;
use crate::engine::Inner;
use crate::lifecycle::starting;
use crate::shim::ask;

/// Output that is kept of a check.
const OUTPUT: usize = 4096;
/// Checks that are kept.
const KEPT: usize = 5;

fn time(nanos: i64, default: u64) -> Duration {
    match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
        _ => Duration::from_secs(default),
    }
}

/// Begins to check, if there is anything to check.
pub fn begin(engine: &Arc<Inner>, container: &Arc<Container>) -> Option<AbortHandle> {
    let check = container.record().config.healthcheck.clone()?;
    let (kind, rest) = check.test.split_first()?;
    let command = match kind.as_str() {
        "CMD" => rest.to_vec(),
        "CMD-SHELL" => {
            let shell = container.record().config.shell.clone();
            let mut shell = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
            shell.extend(rest.first().cloned());
            shell
        }
        _ => return None,
    };
    container.live().health = Some(starting());
    let engine = Arc::clone(engine);
    let container = Arc::clone(container);
    let (interval, timeout) = (time(check.interval, 30), time(check.timeout, 30));
    let retries = u32::try_from(check.retries).unwrap_or(0).max(u32::from(check.retries <= 0) * 3);
    let grace = Duration::from_nanos(u64::try_from(check.start_period).unwrap_or(0));
    let early = time(check.start_interval, 5);
    let task = tokio::spawn(async move {
        let began = tokio::time::Instant::now();
        loop {
            let young = began.elapsed() < grace
                && container.live().health.as_ref().is_some_and(|h| h.status == HealthStatus::Starting);
            tokio::time::sleep(if young { early.min(interval) } else { interval }).await;
            if container.live().status != Status::Running {
                continue;
            }
            let start = Timestamp::now();
            let id = crate::engine::random_id();
            let (code, output) =
                match tokio::time::timeout(timeout, once(&engine, &container, &id, &command)).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(text)) => (-1, text),
                    Err(_) => {
                        let request = Request::Kill { exec: Some(id), signal: nix::libc::SIGKILL };
                        let _ = ask(&engine.layout.socket_of(&container.id), &request).await;
                        (-1, format!("Health check exceeded timeout ({timeout:?})"))
                    }
                };
            let result = HealthResult { start, end: Some(Timestamp::now()), exit_code: code, output };
            let changed = {
                let mut live = container.live();
                let Some(health) = live.health.as_mut() else { return };
                let before = health.status;
                health.log.push(result);
                if health.log.len() > KEPT {
                    health.log.remove(0);
                }
                if code == 0 {
                    health.failing_streak = 0;
                    health.status = HealthStatus::Healthy;
                } else if began.elapsed() >= grace || before == HealthStatus::Healthy {
                    health.failing_streak += 1;
                    if health.failing_streak >= retries {
                        health.status = HealthStatus::Unhealthy;
                    }
                }
                (health.status != before).then_some(health.status)
            };
            if let Some(status) = changed {
                engine.say(&container, &format!("health_status: {}", status.as_str()), &[]);
            }
        }
    });
    Some(task.abort_handle())
}

async fn once(
    engine: &Arc<Inner>,
    container: &Arc<Container>,
    id: &str,
    command: &[String],
) -> Result<(i32, String), String> {
    let config = ExecConfig { cmd: command.to_vec(), ..ExecConfig::default() };
    let mut shim = engine.enter(container, id, &config, None).await.map_err(|e| e.to_string())?;
    let mut output = Vec::new();
    loop {
        match shim.next().await.map_err(|e| e.to_string())? {
            Some((Kind::Stdout | Kind::Stderr, bytes)) => {
                let room = OUTPUT.saturating_sub(output.len());
                output.extend(bytes.into_iter().take(room));
            }
            Some((Kind::Json, bytes)) => {
                if let Ok(Event::Exited { code, .. }) = serde_json::from_slice(&bytes) {
                    return Ok((code, String::from_utf8_lossy(&output).into_owned()));
                }
            }
            Some(_) => {}
            None => return Err("the check ended without a word".to_owned()),
        }
    }
}
