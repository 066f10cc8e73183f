//! The serial console: everything that it said, waiting for words on it, typing into it. Never
//! sleeps: it waits on the words themselves. QEMU keeps its own copy in a log file besides.

use crate::{Error, Result};
use regex::Regex;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of the console's end that a failed wait shows.
const TAIL: usize = 600;

#[derive(Default)]
struct Heard {
    text: String,
    closed: bool,
    tap: Option<Sender<Vec<u8>>>,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keyboard of a console.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Mutex<UnixStream>>);

impl Keys {
    /// Types bytes as they are.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(bytes)
            .map_err(Error::io("write to", "console socket"))
    }
}

/// A connected serial console.
pub struct Console {
    writer: Arc<Mutex<UnixStream>>,
    shared: Arc<Shared>,
    /// Where the next `expect` starts to look, bytes.
    cursor: Mutex<usize>,
}

impl Console {
    /// Connects to QEMU's serial chardev socket.
    pub fn connect(path: &Path) -> Result<Self> {
        Console::over(UnixStream::connect(path).map_err(Error::io("connect to", path))?)
    }

    fn over(stream: UnixStream) -> Result<Self> {
        let mut reader = stream.try_clone().map_err(Error::io("clone", "console socket"))?;
        let shared = Arc::new(Shared::default());
        let sink = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            let mut filter = Plain::default();
            while let Ok(n) = reader.read(&mut buffer) {
                let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
                let text = filter.feed(bytes);
                let mut heard = sink.lock();
                heard.text.push_str(&text);
                // Whoever no longer listens is forgotten.
                heard.tap = heard.tap.take().filter(|tap| tap.send(bytes.to_vec()).is_ok());
                drop(heard);
                sink.changed.notify_all();
            }
            let mut heard = sink.lock();
            heard.closed = true;
            heard.tap = None;
            drop(heard);
            sink.changed.notify_all();
        });
        Ok(Console { writer: Arc::new(Mutex::new(stream)), shared, cursor: Mutex::new(0) })
    }

    /// Waits for the regular expression `pattern` after the last match, and returns the match.
    pub fn expect(&self, pattern: &str, within: Duration) -> Result<String> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, end) = self.wait(pattern, *cursor, within)?;
        *cursor = end;
        Ok(found)
    }

    /// Waits for `pattern` anywhere after the byte `from` of what was heard (see
    /// [`Console::mark`]), without moving the place where `expect` looks.
    pub fn expect_after(&self, from: usize, pattern: &str, within: Duration) -> Result<String> {
        Ok(self.wait(pattern, from, within)?.0)
    }

    fn wait(&self, pattern: &str, from: usize, within: Duration) -> Result<(String, usize)> {
        let regex = Regex::new(pattern).map_err(Error::Pattern)?;
        let end = Instant::now().checked_add(within);
        let mut heard = self.shared.lock();
        loop {
            let fresh = heard.text.get(from..).unwrap_or_default();
            if let Some(found) = regex.find(fresh) {
                return Ok((found.as_str().to_string(), from.saturating_add(found.end())));
            }
            let left = end.map_or(Duration::ZERO, |e| e.saturating_duration_since(Instant::now()));
            let tail = || tail(fresh).to_string();
            let what = || format!("{pattern:?} on the console");
            if heard.closed {
                return Err(Error::Ended { what: format!("waiting for {}", what()), tail: tail() });
            }
            if left.is_zero() {
                return Err(Error::Timeout { what: what(), waited: within, tail: tail() });
            }
            heard = self
                .shared
                .changed
                .wait_timeout(heard, left)
                .map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
    }

    /// The keyboard alone, for a thread of its own.
    pub fn sender(&self) -> Keys {
        Keys(Arc::clone(&self.writer))
    }

    /// Types `text` (end a line with `\n`).
    pub fn send(&self, text: &str) -> Result<()> {
        self.send_bytes(text.as_bytes())
    }

    /// Types bytes as they are.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.sender().send_bytes(bytes)
    }

    /// Everything that comes from now on, byte for byte, for a terminal. Ends with the machine.
    pub fn tap(&self) -> Receiver<Vec<u8>> {
        let (tap, bytes) = channel();
        self.shared.lock().tap = Some(tap);
        bytes
    }

    /// How much was heard so far, bytes.
    pub fn mark(&self) -> usize {
        self.shared.lock().text.len()
    }

    /// Everything heard after `mark`, without terminal control sequences.
    pub fn text(&self, mark: usize) -> String {
        self.shared.lock().text.get(mark..).unwrap_or_default().to_string()
    }

    /// The newest words, for a message.
    pub fn tail(&self) -> String {
        tail(&self.shared.lock().text).to_string()
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TAIL);
    while !text.is_char_boundary(start) {
        start = start.saturating_add(1);
    }
    text.get(start..).unwrap_or_default().trim()
}

/// Takes terminal control sequences (ECMA-48 CSI and two-byte escapes), carriage returns and
/// bytes that are not text out of a stream, however it was cut into reads.
#[derive(Default)]
struct Plain {
    state: Escape,
    pending: Vec<u8>,
}

#[derive(Default, Clone, Copy)]
enum Escape {
    #[default]
    Text,
    Started,
    Csi,
    String,
}

impl Plain {
    fn feed(&mut self, bytes: &[u8]) -> String {
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (Escape::Text | Escape::String, 0x1b) => Escape::Started,
                (Escape::Text, b'\n' | b'\t' | 0x20..=0x7e | 0x80..) => {
                    self.pending.push(byte);
                    Escape::Text
                }
                (Escape::Text, _) => Escape::Text,
                (Escape::Started, b'[') => Escape::Csi,
                (Escape::Started, b']' | b'P' | b'_' | b'^') => Escape::String,
                (Escape::Started, 0x20..=0x2f) => Escape::Started,
                (Escape::Started, _) => Escape::Text,
                (Escape::Csi, 0x40..=0x7e) => Escape::Text,
                (Escape::Csi, _) => Escape::Csi,
                (Escape::String, 0x07) => Escape::Text,
                (Escape::String, _) => Escape::String,
            };
        }
        // A character may be cut in two by the read: keep its start for the next one.
        let whole = match std::str::from_utf8(&self.pending) {
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            _ => self.pending.len(),
        };
        let rest = self.pending.split_off(whole);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: Duration = Duration::from_secs(60);

    fn pair() -> (Console, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Console::over(ours).unwrap(), theirs)
    }

    #[test]
    fn expect_goes_forward_only() {
        let (console, mut guest) = pair();
        guest.write_all(b"login: one\nlogin: two\n").unwrap();
        assert_eq!(console.expect("login: (one|two)", LONG).unwrap(), "login: one");
        assert_eq!(console.expect("login: (one|two)", LONG).unwrap(), "login: two");
        assert_eq!(console.expect_after(0, "login: ...", LONG).unwrap(), "login: one");
    }

    #[test]
    fn words_that_come_later_are_waited_for() {
        let (console, mut guest) = pair();
        let waiter = std::thread::spawn(move || console.expect("healthy", LONG));
        guest.write_all(b"heal").unwrap();
        guest.write_all(b"thy\n").unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), "healthy");
    }

    #[test]
    fn the_end_of_the_machine_ends_the_wait_and_shows_its_last_words() {
        let (console, mut guest) = pair();
        guest.write_all(b"Kernel panic - not syncing\n").unwrap();
        drop(guest);
        let error = console.expect("login:", LONG).unwrap_err();
        assert!(matches!(&error, Error::Ended { tail, .. } if tail.contains("Kernel panic")));
    }

    #[test]
    fn a_tap_gets_every_byte_and_ends_with_the_machine() {
        let (console, mut guest) = pair();
        let tap = console.tap();
        guest.write_all(b"\x1b[1mhi\r\n").unwrap();
        drop(guest);
        assert_eq!(tap.iter().flatten().collect::<Vec<u8>>(), b"\x1b[1mhi\r\n");
    }

    #[test]
    fn what_is_sent_arrives() {
        let (console, mut guest) = pair();
        console.send("reboot\n").unwrap();
        let mut line = [0u8; 7];
        guest.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"reboot\n");
    }

    #[test]
    fn colours_and_cursor_moves_are_taken_out() {
        let text = b"\x1b[0;32m  OK  \x1b[0m] Started\r\n\x1b]0;title\x07\x1b(B$ ";
        assert_eq!(Plain::default().feed(text), "  OK  ] Started\n$ ");
    }

    proptest! {
        #[test]
        fn the_same_text_comes_out_however_it_is_cut(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(0usize..300, 0..6),
        ) {
            let whole = { let mut p = Plain::default(); let t = p.feed(&bytes); (t, p.pending) };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut plain = Plain::default();
            let mut text = String::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                text.push_str(&plain.feed(bytes.get(from..cut).unwrap()));
                from = cut;
            }
            prop_assert_eq!(text.len(), text.chars().map(char::len_utf8).sum::<usize>());
            prop_assert!(!text.contains(['\x1b', '\r']));
            if std::str::from_utf8(&bytes).is_ok() {
                prop_assert_eq!((text, plain.pending), whole);
            }
        }
    }
}
