//! Commands and files inside the machine, through the guest agent (qemu-ga) on a virtio serial
//! port: no network, no password, no key. Only development images carry the agent.

use crate::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long one try to wake the agent lasts before the next.
const KNOCK: Duration = Duration::from_secs(2);
/// A silence after which the agent is asked whether it is still the same. It answers every single command at once; a
/// guest that is starved of its processor may take longer, and only that.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });
/// Between two looks at a command that has not ended yet (the agent has no events).
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes a file is moved in: the agent's own limit is 48 MB, its JSON parser likes less.
const CHUNK: usize = 256 * 1024;
/// Marks a fresh start in the stream (`guest-sync-delimited` in the agent's reference).
const SENTINEL: u8 = 0xff;

/// What a command inside the machine left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 + signal if it was killed, as a shell says it.
    pub status: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with status 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

/// The connection to the agent. The agent itself may come and go with the guest.
#[derive(Debug)]
pub(crate) struct Agent {
    stream: Mutex<UnixStream>,
}

impl Agent {
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(Error::io("connect to", path))?;
        Ok(Agent { stream: Mutex::new(stream) })
    }

    /// Runs `script` with `/bin/sh` inside and waits for its end.
    pub fn run(&self, script: &str, within: Duration) -> Result<Output> {
        let mut talk = self.talk(within)?;
        let started = talk.command(
            "guest-exec",
            json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true}),
        )?;
        let pid = started.get("pid").cloned().unwrap_or(Value::Null);
        loop {
            let state = talk.command("guest-exec-status", json!({"pid": pid}))?;
            if state.get("exited").and_then(Value::as_bool).unwrap_or(false) {
                return Ok(output(&state));
            }
            talk.time_left()?;
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Starts `script` inside and leaves it: for what ends the machine.
    pub fn start(&self, script: &str, within: Duration) -> Result<()> {
        let arguments = json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": false});
        self.talk(within)?.command("guest-exec", arguments).map(|_| ())
    }

    /// Waits until the agent answers.
    pub fn ready(&self, within: Duration) -> Result<()> {
        self.talk(within).map(|_| ())
    }

    /// Sets the guest's clock to ours, but not its hardware clock: that one goes on by itself.
    pub fn set_time(&self, within: Duration) -> Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let output = self.run(&format!("date -s @{}", now.unwrap_or_default().as_secs()), within)?;
        let refused = || Error::Refused { command: "date -s".into(), message: output.stderr.clone() };
        output.ok().then_some(()).ok_or_else(refused)
    }

    /// Writes a file inside, whole, and waits until it is on the medium.
    pub fn put(&self, path: &str, content: &[u8], within: Duration) -> Result<()> {
        let mut talk = self.talk(within)?;
        let handle = talk.command("guest-file-open", json!({"path": path, "mode": "w"}))?;
        for chunk in content.chunks(CHUNK) {
            let chunk = BASE64.encode(chunk);
            talk.command("guest-file-write", json!({"handle": handle, "buf-b64": chunk}))?;
        }
        talk.command("guest-file-flush", json!({"handle": handle}))?;
        talk.command("guest-file-close", json!({"handle": handle}))?;
        Ok(())
    }

    /// Reads a file inside.
    pub fn get(&self, path: &str, within: Duration) -> Result<Vec<u8>> {
        let mut talk = self.talk(within)?;
        let handle = talk.command("guest-file-open", json!({"path": path, "mode": "r"}))?;
        let mut content = Vec::new();
        loop {
            let part = talk.command("guest-file-read", json!({"handle": handle, "count": CHUNK}))?;
            content.extend(decode(&part, "buf-b64"));
            if part.get("eof").and_then(Value::as_bool).unwrap_or(true) {
                break;
            }
        }
        talk.command("guest-file-close", json!({"handle": handle}))?;
        Ok(content)
    }

    /// A conversation that the agent has joined.
    fn talk(&self, within: Duration) -> Result<Talk<'_>> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut talk =
            Talk { stream, within, end: now.checked_add(within).unwrap_or(now), received: Vec::new() };
        loop {
            match talk.sync() {
                Err(error) if error.is_timeout() => {
                    talk.time_left()?;
                }
                other => return other.map(|()| talk),
            }
        }
    }
}

fn decode(value: &Value, key: &str) -> Vec<u8> {
    let text = value.get(key).and_then(Value::as_str).unwrap_or_default();
    BASE64.decode(text).unwrap_or_default()
}

fn output(state: &Value) -> Output {
    let number = |key: &str| state.get(key).and_then(Value::as_i64);
    let text = |key: &str| String::from_utf8_lossy(&decode(state, key)).into_owned();
    let status = number("exitcode").or_else(|| number("signal").map(|n| n.saturating_add(128)));
    Output {
        status: status.and_then(|n| i32::try_from(n).ok()).unwrap_or(-1),
        stdout: text("out-data"),
        stderr: text("err-data"),
    }
}

struct Talk<'a> {
    stream: std::sync::MutexGuard<'a, UnixStream>,
    within: Duration,
    end: Instant,
    received: Vec<u8>,
}

impl Talk<'_> {
    fn time_left(&self) -> Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.timeout()) } else { Ok(left) }
    }

    fn timeout(&self) -> Error {
        Error::Timeout {
            what: "the guest agent".into(),
            waited: self.within,
            tail: String::from_utf8_lossy(self.received.get(..200).unwrap_or(&self.received)).into(),
        }
    }

    /// Throws away what an earlier conversation left in the stream.
    fn sync(&mut self) -> Result<()> {
        let id = nonce();
        let request = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        // A guest that does not listen leaves the line full: that is a wait, too.
        self.stream.set_write_timeout(Some(KNOCK)).map_err(Error::io("set", "agent socket"))?;
        let mut line = vec![SENTINEL];
        line.extend(format!("{request}\n").into_bytes());
        if let Err(source) = self.stream.write_all(&line) {
            return Err(match source.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => self.timeout(),
                _ => Error::io("write to", "agent socket")(source),
            });
        }
        let now = Instant::now();
        let until = now.checked_add(KNOCK).unwrap_or(now).min(self.end);
        loop {
            let line = self.line(until)?;
            let start = line.iter().rposition(|byte| *byte == SENTINEL);
            let text = line.get(start.map_or(0, |at| at.saturating_add(1))..).unwrap_or_default();
            let reply: Value = serde_json::from_slice(text).unwrap_or(Value::Null);
            if reply.get("return").and_then(Value::as_u64) == Some(id) {
                return Ok(());
            }
        }
    }

    fn command(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.write(&json!({"execute": command, "arguments": arguments}))?;
        // Commands are answered in their order. An agent that answers a later question but not this one was started
        // again in between, with the guest, and never will.
        let mut asked = Vec::new();
        let reply = loop {
            let now = Instant::now();
            match self.line(now.checked_add(PATIENCE).unwrap_or(now).min(self.end)) {
                Ok(line) => {
                    let reply = reply(&line)?;
                    if is_one_of(&asked, &reply) {
                        return Err(Error::Restarted { command: command.into() });
                    }
                    break reply;
                }
                Err(error) if error.is_timeout() => {
                    self.time_left()?;
                    let id = nonce();
                    self.write(&json!({"execute": "guest-sync", "arguments": {"id": id}}))?;
                    asked.push(id);
                }
                Err(error) => return Err(error),
            }
        };
        // It was only slow: what it owes is not to be taken for the next answer.
        for _ in 0..asked.len() {
            self.line(self.end)?;
        }
        if let Some(value) = reply.get("return") {
            return Ok(value.clone());
        }
        let message = reply.get("error").and_then(|e| e.get("desc")).and_then(Value::as_str);
        let message = message.ok_or_else(|| not_understood(reply.to_string().as_bytes()))?.to_string();
        Err(Error::Refused { command: command.into(), message })
    }

    fn write(&mut self, request: &Value) -> Result<()> {
        self.stream
            .write_all(format!("{request}\n").as_bytes())
            .map_err(Error::io("write to", "agent socket"))
    }

    /// The next line, without its end.
    fn line(&mut self, until: Instant) -> Result<Vec<u8>> {
        let mut buffer = [0u8; 16 * 1024];
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(end.saturating_add(1));
                let mut line = std::mem::replace(&mut self.received, rest);
                line.truncate(end);
                return Ok(line);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timeout());
            }
            self.stream.set_read_timeout(Some(left)).map_err(Error::io("set", "agent socket"))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    let what = "talking to the guest agent".into();
                    return Err(Error::Ended { what, tail: String::new() });
                }
                Ok(n) => self.received.extend(buffer.get(..n).unwrap_or_default()),
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::WouldBlock
                            | std::io::ErrorKind::TimedOut
                            | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(Error::io("read from", "agent socket")(e)),
            }
        }
    }
}

fn reply(line: &[u8]) -> Result<Value> {
    serde_json::from_slice(line).map_err(|_| not_understood(line))
}

fn not_understood(line: &[u8]) -> Error {
    let text = String::from_utf8_lossy(line.get(..200).unwrap_or(line)).into();
    Error::Protocol { from: "the guest agent", text }
}

/// Whether `reply` answers a `guest-sync` with one of these numbers.
fn is_one_of(asked: &[u64], reply: &Value) -> bool {
    reply.get("return").and_then(Value::as_u64).is_some_and(|id| asked.contains(&id))
}

/// A number that this process has not used before, to tell answers from stale ones.
fn nonce() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = time.unwrap_or_default().as_secs() & 0xff_ffff;
    (seconds << 20) | (NEXT.fetch_add(1, Ordering::Relaxed) & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    const LONG: Duration = Duration::from_secs(60);

    /// An agent that says `stale` first and then does what `answer` says.
    fn fake(stale: &'static [u8], answer: fn(&Value) -> Value) -> Agent {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let lines = BufReader::new(theirs.try_clone().unwrap());
        std::thread::spawn(move || {
            theirs.write_all(stale).unwrap();
            for line in lines.split(b'\n') {
                let Ok(line) = line else { return };
                let text: Vec<u8> = line.into_iter().filter(|byte| *byte != SENTINEL).collect();
                let request: Value = serde_json::from_slice(&text).unwrap();
                let mut reply = Vec::new();
                if request["execute"] == "guest-sync-delimited" {
                    reply.push(SENTINEL);
                    reply.extend(json!({"return": request["arguments"]["id"]}).to_string().bytes());
                } else {
                    reply.extend(answer(&request).to_string().bytes());
                }
                reply.push(b'\n');
                if theirs.write_all(&reply).is_err() {
                    return;
                }
            }
        });
        Agent { stream: Mutex::new(ours) }
    }

    fn shell(request: &Value) -> Value {
        match request["execute"].as_str().unwrap() {
            "guest-exec" => json!({"return": {"pid": 7}}),
            "guest-exec-status" => json!({"return": {"exited": true, "exitcode": 3,
                "out-data": BASE64.encode("out"), "err-data": BASE64.encode("err")}}),
            "guest-file-open" => json!({"return": 1}),
            "guest-file-read" => json!({"return": {"count": 2, "buf-b64": "aGk=", "eof": true}}),
            "guest-file-close" => json!({"return": {}}),
            _ => json!({"error": {"class": "CommandNotFound", "desc": "no such command"}}),
        }
    }

    #[test]
    fn a_command_returns_status_and_both_streams() {
        let output = fake(b"", shell).run("x", LONG).unwrap();
        assert_eq!((output.status, &*output.stdout, &*output.stderr), (3, "out", "err"));
        assert!(!output.ok());
    }

    #[test]
    fn what_an_earlier_conversation_left_is_passed_over() {
        let agent = fake(b"{\"return\": {\"pid\": 1}}\n{\"ret\xff{\"return\": 4}\n", shell);
        assert_eq!(agent.get("/etc/hostname", LONG).unwrap(), b"hi");
    }

    #[test]
    fn a_refusal_carries_the_agents_words() {
        let error = fake(b"", shell).put("/x", b"data", LONG).unwrap_err();
        assert_eq!(error.to_string(), "guest-file-write was refused: no such command");
    }

    /// An agent that is deaf to everything until the first `guest-sync`; then it is `slow` and answers all, or a new
    /// one that has never heard of what came before.
    fn deaf_until_asked(slow: bool) -> Agent {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let lines = BufReader::new(theirs.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut owed = Vec::new();
            for line in lines.split(b'\n') {
                let request: Value = serde_json::from_slice(&line.unwrap()).unwrap();
                match request["execute"].as_str().unwrap() {
                    "guest-sync" => {
                        if slow {
                            theirs.write_all(&owed).unwrap();
                        }
                        owed.clear();
                        writeln!(theirs, "{}", json!({"return": request["arguments"]["id"]})).unwrap();
                    }
                    "guest-second" => writeln!(theirs, "{}", json!({"return": "second"})).unwrap(),
                    _ => owed.extend(format!("{}\n", json!({"return": "first"})).bytes()),
                }
            }
        });
        Agent { stream: Mutex::new(ours) }
    }

    fn talk(agent: &Agent) -> Talk<'_> {
        let end = Instant::now() + LONG;
        Talk { stream: agent.stream.lock().unwrap(), within: LONG, end, received: Vec::new() }
    }

    #[test]
    fn an_agent_that_restarts_before_it_answers_is_not_waited_for() {
        let agent = deaf_until_asked(false);
        let error = talk(&agent).command("guest-first", json!({})).unwrap_err();
        assert_eq!(error.to_string(), "the guest agent was started again before it answered guest-first");
    }

    #[test]
    fn an_agent_that_is_slow_is_waited_for_and_what_it_owes_is_passed_over() {
        let agent = deaf_until_asked(true);
        let mut talk = talk(&agent);
        assert_eq!(talk.command("guest-first", json!({})).unwrap(), "first");
        assert_eq!(talk.command("guest-second", json!({})).unwrap(), "second");
    }

    #[test]
    fn nobody_listening_is_a_timeout() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let agent = Agent { stream: Mutex::new(ours) };
        assert!(agent.ready(Duration::from_millis(1)).unwrap_err().is_timeout());
    }

    #[test]
    fn a_closed_line_is_the_machines_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let agent = Agent { stream: Mutex::new(ours) };
        let error = agent.ready(LONG).unwrap_err();
        assert!(!error.is_timeout(), "{error}");
    }
}
