//! Posts outcomes to the owner's URL: batched, over HTTPS, again and again until somebody takes them.
//!
//! The queue is a file of the state partition (`store`), written by the engine when a transaction has ended and never
//! before; a restart changes nothing. Decides nothing about updates. Started by the daemon as a task beside the engine.

use std::time::Duration;

use rustiot_http::{Backoff, Http, Url};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::store::Store;

/// How often the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Pauses after a failure.
const BACKOFF_BASE: Duration = Duration::from_secs(30);
const BACKOFF_CAP: Duration = Duration::from_secs(6 * 3600);

/// What is posted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Batch<'a> {
    /// Version of this form; keys are only ever added.
    pub format: u32,
    /// The device, by the SHA-256 of its public key (SPKI, PEM), hex.
    pub device: &'a str,
    /// Its host name.
    pub hostname: &'a str,
    /// Its board.
    pub compatible: &'a str,
    /// The release that runs now.
    pub running: &'a str,
    /// Ended transactions, oldest first, as in the history.
    pub outcomes: &'a [Value],
}

/// Who reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sender {
    /// See [`Batch`].
    pub device: String,
    /// See [`Batch`].
    pub hostname: String,
    /// See [`Batch`].
    pub compatible: String,
    /// See [`Batch`].
    pub running: String,
}

/// Why nothing was posted.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{failure}: {}", .failure.chain.join(": "))]
    Store { failure: Failure },
    #[error(transparent)]
    Post(#[from] rustiot_http::Error),
}

/// Posts what waits, for as long as the service runs. `target` says where to and with which client, each time.
pub(crate) async fn run(store: &Store, sender: &Sender, target: impl Fn() -> Option<(Url, Http)>) {
    let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
    loop {
        let pause = match post(store, sender, &target).await {
            Ok(()) => {
                backoff.reset();
                LOOK_EVERY
            }
            Err(error) => {
                let asked = match &error {
                    Error::Post(error) => error.retry_after(),
                    Error::Store { .. } => None,
                };
                let pause = backoff.after_answer(asked);
                eprintln!("outcomes are not posted: {error}; again in {} s", pause.as_secs());
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn post(
    store: &Store,
    sender: &Sender,
    target: &impl Fn() -> Option<(Url, Http)>,
) -> Result<(), Error> {
    let waiting = store.reports().map_err(|failure| Error::Store { failure })?;
    if waiting.is_empty() {
        return Ok(());
    }
    // No address any more: what waits stays, in case one comes back.
    let Some((url, http)) = target() else { return Ok(()) };
    let batch = Batch {
        format: 1,
        device: &sender.device,
        hostname: &sender.hostname,
        compatible: &sender.compatible,
        running: &sender.running,
        outcomes: &waiting,
    };
    http.post_json(&url, &batch).send().await?;
    if let Err(failure) = store.remove_reports(&waiting) {
        // They are posted once more then; the transaction's id tells the receiver.
        eprintln!("{failure}: {}", failure.chain.join(": "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each request with the next status, and returns the bodies.
    async fn server(statuses: &'static [u16]) -> (Url, tokio::task::JoinHandle<Vec<Value>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/report", listener.local_addr().unwrap()).parse().unwrap();
        let task = tokio::spawn(async move {
            let mut bodies = Vec::new();
            for status in statuses {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = Vec::new();
                loop {
                    let mut part = [0; 4096];
                    let count = stream.read(&mut part).await.unwrap();
                    bytes.extend_from_slice(&part[..count]);
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    if let Some((_, body)) = text.split_once("\r\n\r\n")
                        && let Ok(value) = serde_json::from_str(body)
                    {
                        bodies.push(value);
                        break;
                    }
                }
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            bodies
        });
        (url, task)
    }

    #[tokio::test]
    async fn what_waits_is_posted_together_and_forgotten_only_when_it_was_taken() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let http = Http::new(&rustiot_http::Settings::default()).unwrap();
        let sender = Sender { device: "d".into(), ..Sender::default() };
        let (url, task) = server(&[503, 200]).await;
        let target = || Some((url.clone(), http.clone()));
        assert!(post(&store, &sender, &target).await.is_ok(), "nothing waits, nobody is asked");
        store.add_report(serde_json::json!({"transaction": "1"})).unwrap();
        store.add_report(serde_json::json!({"transaction": "2"})).unwrap();
        assert!(post(&store, &sender, &|| None).await.is_ok());
        assert!(post(&store, &sender, &target).await.is_err());
        assert_eq!(store.reports().unwrap().len(), 2, "forgotten although nobody took it");
        post(&store, &sender, &target).await.unwrap();
        assert_eq!(store.reports().unwrap().len(), 0);
        std::fs::remove_file(dir.path().join("reports.jsonl")).unwrap();
        std::fs::create_dir(dir.path().join("reports.jsonl")).unwrap();
        let error = post(&store, &sender, &target).await.unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("reports.jsonl: "), "{error}");
        let bodies = task.await.unwrap();
        assert_eq!(bodies[0], bodies[1]);
        assert_eq!(bodies[1]["outcomes"][1]["transaction"], "2");
        assert_eq!((bodies[1]["device"].as_str(), bodies[1]["format"].as_u64()), (Some("d"), Some(1)));
    }
}
