//! QEMU's control socket (QMP): commands with replies, and the events in between with their
//! times. Never interprets an event; `Machine` does. Own code because the protocol is one JSON
//! object a line, while the crate `qapi` compiles QEMU's whole schema to types.

use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long QEMU may take to answer a command, on a loaded machine that emulates.
const REPLY_WITHIN: Duration = Duration::from_secs(120);

/// Something that QEMU told by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// As in the QMP reference: `RESET`, `WATCHDOG`, `SHUTDOWN` ….
    pub name: String,
    /// Its `data`, or null.
    pub data: Value,
    /// Host time since the epoch when QEMU emitted it.
    pub at: Duration,
}

/// One line of the protocol.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Event(Event),
    Reply { id: u64, result: std::result::Result<Value, String> },
}

fn parse(line: &str) -> Result<Message> {
    let bad = || Error::Protocol { from: "QEMU", text: line.chars().take(200).collect() };
    let value: Value = serde_json::from_str(line).map_err(|_| bad())?;
    if value.get("QMP").is_some() {
        return Ok(Message::Greeting);
    }
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        let part =
            |key: &str| value.get("timestamp").and_then(|t| t.get(key)).and_then(Value::as_u64).unwrap_or(0);
        let at =
            Duration::from_secs(part("seconds")).saturating_add(Duration::from_micros(part("microseconds")));
        let data = value.get("data").cloned().unwrap_or(Value::Null);
        return Ok(Message::Event(Event { name: name.to_string(), data, at }));
    }
    let id = value.get("id").and_then(Value::as_u64).ok_or_else(bad)?;
    if let Some(result) = value.get("return") {
        return Ok(Message::Reply { id, result: Ok(result.clone()) });
    }
    let message = value.get("error").and_then(|e| e.get("desc")).and_then(Value::as_str);
    Ok(Message::Reply { id, result: Err(message.ok_or_else(bad)?.to_string()) })
}

#[derive(Default)]
struct Inbox {
    replies: BTreeMap<u64, std::result::Result<Value, String>>,
    events: Vec<Event>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` finds something; the newest state is looked at first.
    fn wait<T>(&self, within: Duration, mut found: impl FnMut(&mut Inbox) -> Option<T>) -> Option<T> {
        let end = Instant::now().checked_add(within)?;
        let mut inbox = self.lock();
        loop {
            if let Some(value) = found(&mut inbox) {
                return Some(value);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || inbox.closed {
                return None;
            }
            inbox =
                self.changed.wait_timeout(inbox, left).map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
    }
}

/// A connected control socket.
pub struct Qmp {
    writer: Mutex<UnixStream>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

impl Qmp {
    /// Connects to QEMU's `-qmp unix:…,server=on` socket.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(Error::io("connect to", path))?;
        Qmp::over(stream)
    }

    fn over(stream: UnixStream) -> Result<Self> {
        let reader = stream.try_clone().map_err(Error::io("clone", "QMP socket"))?;
        let shared = Arc::new(Shared::default());
        let sink = Arc::clone(&shared);
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines() {
                let Ok(line) = line else { break };
                // A line that cannot be understood is answered by the command's own time limit.
                let Ok(message) = parse(&line) else { continue };
                let mut inbox = sink.lock();
                match message {
                    Message::Greeting => {}
                    Message::Event(event) => inbox.events.push(event),
                    Message::Reply { id, result } => {
                        inbox.replies.insert(id, result);
                    }
                }
                drop(inbox);
                sink.changed.notify_all();
            }
            sink.lock().closed = true;
            sink.changed.notify_all();
        });
        let qmp = Qmp { writer: Mutex::new(stream), shared, next_id: AtomicU64::new(1) };
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its reply.
    pub fn run(&self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments, "id": id}));
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(line.as_bytes())
            .map_err(Error::io("write to", "QMP socket"))?;
        let reply = self.shared.wait(REPLY_WITHIN, |inbox| inbox.replies.remove(&id));
        match reply {
            Some(Ok(value)) => Ok(value),
            Some(Err(message)) => Err(Error::Refused { command: command.into(), message }),
            None if self.closed() => {
                Err(Error::Ended { what: format!("asking it to {command}"), tail: String::new() })
            }
            None => Err(Error::Timeout {
                what: format!("the reply to {command}"),
                waited: REPLY_WITHIN,
                tail: String::new(),
            }),
        }
    }

    /// Runs a command of the human monitor: for the few things QMP itself has not.
    pub fn human(&self, line: &str) -> Result<String> {
        let reply = self.run("human-monitor-command", json!({"command-line": line}))?;
        Ok(reply.as_str().unwrap_or_default().to_string())
    }

    /// How many events there have been: a mark for [`Qmp::wait`] and [`Qmp::events`].
    pub fn mark(&self) -> usize {
        self.shared.lock().events.len()
    }

    /// The events after `mark`.
    pub fn events(&self, mark: usize) -> Vec<Event> {
        self.shared.lock().events.get(mark..).unwrap_or_default().to_vec()
    }

    /// Waits for the first event named `name` after `mark`.
    pub fn wait(&self, name: &str, mark: usize, within: Duration) -> Result<Event> {
        let found = self
            .shared
            .wait(within, |inbox| inbox.events.iter().skip(mark).find(|event| event.name == name).cloned());
        found.ok_or_else(|| {
            let seen: Vec<_> = self.events(mark).into_iter().map(|event| event.name).collect();
            let (what, tail) = (format!("the event {name}"), format!("events {seen:?}"));
            if self.closed() {
                Error::Ended { what: format!("waiting for {what}"), tail }
            } else {
                Error::Timeout { what, waited: within, tail }
            }
        })
    }

    /// Whether QEMU has closed the socket, which is to say has ended.
    pub fn closed(&self) -> bool {
        self.shared.lock().closed
    }

    /// Waits until QEMU has ended.
    pub fn wait_closed(&self, within: Duration) -> Result<()> {
        self.shared.wait(within, |inbox| inbox.closed.then_some(())).ok_or(Error::Timeout {
            what: "the machine's end".into(),
            waited: within,
            tail: String::new(),
        })
    }
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Qmp")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A QEMU that answers every command by `answer(name, id)`.
    fn fake(answer: impl Fn(&str, u64) -> Vec<String> + Send + 'static) -> Qmp {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut out = theirs.try_clone().unwrap();
            out.write_all(b"{\"QMP\": {\"version\": {}}}\n").unwrap();
            for line in BufReader::new(theirs).lines() {
                let Ok(line) = line else { return };
                let value: Value = serde_json::from_str(&line).unwrap();
                let name = value["execute"].as_str().unwrap();
                for line in answer(name, value["id"].as_u64().unwrap()) {
                    if out.write_all(format!("{line}\n").as_bytes()).is_err() {
                        return;
                    }
                }
                if name == "quit" {
                    return;
                }
            }
        });
        Qmp::over(ours).unwrap()
    }

    fn plain(name: &str, id: u64) -> Vec<String> {
        let event = json!({"event": "RESET", "data": {"guest": true},
            "timestamp": {"seconds": 5, "microseconds": 250_000}});
        match name {
            "boom" => vec![json!({"error": {"class": "x", "desc": "no"}, "id": id}).to_string()],
            "quit" => vec![],
            "noise" => vec!["}{".into(), json!({"return": 7, "id": id}).to_string()],
            _ => vec![event.to_string(), json!({"return": {}, "id": id}).to_string()],
        }
    }

    #[test]
    fn replies_find_their_command_and_events_are_kept() {
        let qmp = fake(plain);
        let mark = qmp.mark();
        qmp.run("stop", json!({})).unwrap();
        let event = qmp.wait("RESET", mark, Duration::from_secs(60)).unwrap();
        assert_eq!(event.at, Duration::from_millis(5250));
        assert_eq!(qmp.events(0).len(), 2, "one with the handshake, one with stop");
    }

    #[test]
    fn a_refusal_carries_the_message() {
        let error = fake(plain).run("boom", json!({})).unwrap_err();
        assert_eq!(error.to_string(), "boom was refused: no");
    }

    #[test]
    fn noise_between_the_lines_is_passed_over() {
        assert_eq!(fake(plain).run("noise", json!({})).unwrap(), json!(7));
    }

    #[test]
    fn an_end_while_waiting_is_told_at_once() {
        let qmp = fake(plain);
        let error = qmp.run("quit", json!({})).unwrap_err();
        assert!(matches!(error, Error::Ended { .. }), "{error}");
        qmp.wait_closed(Duration::from_secs(60)).unwrap();
        assert!(matches!(qmp.wait("X", 0, Duration::from_secs(60)).unwrap_err(), Error::Ended { .. }));
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_or_refused(line in ".*") {
            let _ = parse(&line);
        }

        #[test]
        fn any_object_is_parsed_or_refused(
            key in "event|id|return|error|QMP|timestamp",
            value in prop_oneof![Just("1"), Just("-1"), Just("{}"), Just("[]"), Just("\"x\""),
                Just("1e99"), Just("{\"seconds\": 18446744073709551615}")],
        ) {
            let _ = parse(&format!("{{\"{key}\": {value}, \"event\": \"E\"}}"));
            let _ = parse(&format!("{{\"{key}\": {value}}}"));
        }
    }
}
