//! The log of a container: JSON lines as Docker's `json-file` writes them, in files of bounded size and number, or the
//! journal; with a bound on bytes in a second, so that one that floods wears out no flash.
//!
//! Waits for a medium only in [`Writer::sync`] and never fails the container: a line that cannot be written is counted and told. Called by
//! the shim's loop.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::protocol::Log;

/// The longest line in one record; longer ones come in parts, of which the last ends with a new line.
pub const LINE_MAX: usize = 16 * 1024;
/// What may come at once above the rate, in seconds of it.
const BURST: u64 = 8;

/// One record of the file.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Record {
    /// The text with its new line.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// When it was read, in RFC 3339.
    pub time: String,
}

enum Sink {
    Nowhere,
    File { file: Option<File>, path: PathBuf, written: u64, max_size: u64, max_files: u32 },
    Journal { socket: UnixDatagram, name: String, id: String },
}

/// Bytes in a second, with a burst.
struct Rate {
    rate: u64,
    left: u64,
    last: Instant,
    dropped: u64,
}

impl Rate {
    fn new(rate: u64, now: Instant) -> Rate {
        Rate { rate, left: rate.saturating_mul(BURST), last: now, dropped: 0 }
    }

    fn takes(&mut self, bytes: u64, now: Instant) -> bool {
        if self.rate == 0 {
            return true;
        }
        let millis = u64::try_from(now.saturating_duration_since(self.last).as_millis()).unwrap_or(u64::MAX);
        let gained = self.rate.saturating_mul(millis) / 1000;
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(self.rate.saturating_mul(BURST));
            self.last = now;
        }
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.dropped = self.dropped.saturating_add(1);
                false
            }
        }
    }
}

/// See the module.
pub struct Writer {
    sink: Sink,
    rate: Rate,
    partial: [Vec<u8>; 2],
    failed: u64,
}

const STREAMS: [&str; 2] = ["stdout", "stderr"];

impl Writer {
    /// Opens the sink.
    ///
    /// # Errors
    /// The file or the journal cannot be opened.
    pub fn open(log: &Log, id: &str) -> io::Result<Writer> {
        let (sink, rate) = match log {
            Log::None => (Sink::Nowhere, 0),
            Log::JsonFile { path, max_size, max_files, rate } => {
                let file = append(path)?;
                let written = file.metadata()?.len();
                let (max_size, max_files) = ((*max_size).max(4096), (*max_files).max(1));
                (Sink::File { file: Some(file), path: path.clone(), written, max_size, max_files }, *rate)
            }
            Log::Journald { name, rate } => {
                let socket = UnixDatagram::unbound()?;
                socket.connect("/run/systemd/journal/socket")?;
                socket.set_nonblocking(true)?;
                (Sink::Journal { socket, name: name.clone(), id: id.to_owned() }, *rate)
            }
        };
        let rate = Rate::new(rate, Instant::now());
        Ok(Writer { sink, rate, partial: [Vec::new(), Vec::new()], failed: 0 })
    }

    /// Takes what a process wrote on stream 0 (output) or 1 (errors).
    pub fn write(&mut self, stream: usize, bytes: &[u8]) {
        if matches!(self.sink, Sink::Nowhere) {
            return;
        }
        let Some(mut buffer) = self.partial.get_mut(stream).map(std::mem::take) else { return };
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let mut piece = piece;
            loop {
                let room = LINE_MAX.saturating_sub(buffer.len());
                let (now, later) = piece.split_at_checked(room).unwrap_or((piece, &[]));
                buffer.extend(now);
                if later.is_empty() {
                    break;
                }
                self.record(stream, &buffer);
                buffer.clear();
                piece = later;
            }
            if buffer.last() == Some(&b'\n') {
                self.record(stream, &buffer);
                buffer.clear();
            }
        }
        if let Some(place) = self.partial.get_mut(stream) {
            *place = buffer;
        }
    }

    /// Writes what has no new line yet.
    pub fn finish(&mut self) {
        for stream in 0..2 {
            let rest = self.partial.get_mut(stream).map(std::mem::take).unwrap_or_default();
            if !rest.is_empty() {
                self.record(stream, &rest);
            }
        }
        self.tell_dropped(true);
    }

    /// Waits until the medium has it.
    pub fn sync(&self) {
        if let Sink::File { file: Some(file), .. } = &self.sink {
            let _ = file.sync_data();
        }
    }

    fn record(&mut self, stream: usize, line: &[u8]) {
        let bytes = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if !self.rate.takes(bytes, Instant::now()) {
            return;
        }
        self.tell_dropped(false);
        self.put(stream, &String::from_utf8_lossy(line));
    }

    fn tell_dropped(&mut self, end: bool) {
        let dropped = std::mem::take(&mut self.rate.dropped);
        let failed = if end { std::mem::take(&mut self.failed) } else { 0 };
        if dropped > 0 {
            self.put(
                1,
                &format!(
                    "[rustiot] {dropped} lines dropped: more than {} bytes in a second\n",
                    self.rate.rate
                ),
            );
        }
        if failed > 0 {
            self.put(1, &format!("[rustiot] {failed} lines could not be written\n"));
        }
    }

    fn put(&mut self, stream: usize, text: &str) {
        let name = STREAMS.get(stream).copied().unwrap_or("stderr");
        let result = match &mut self.sink {
            Sink::Nowhere => Ok(()),
            Sink::File { file, path, written, max_size, max_files } => {
                let record = Record { log: text.to_owned(), stream: name.to_owned(), time: clock::now() };
                let mut line = serde_json::to_vec(&record).unwrap_or_default();
                line.push(b'\n');
                let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
                if *written > 0 && written.saturating_add(length) > *max_size {
                    *file = rotate(path, *max_files).ok();
                    *written = 0;
                }
                *written = written.saturating_add(length);
                match file {
                    Some(file) => file.write_all(&line),
                    None => append(path).map(|opened| *file = Some(opened)),
                }
            }
            Sink::Journal { socket, name: container, id } => {
                let priority = if stream == 0 { "6" } else { "3" };
                let text = text.trim_end_matches('\n');
                let mut datagram = Vec::new();
                for (field, value) in [
                    ("PRIORITY", priority),
                    ("SYSLOG_IDENTIFIER", container.as_str()),
                    ("CONTAINER_NAME", container.as_str()),
                    ("CONTAINER_ID_FULL", id.as_str()),
                    ("MESSAGE", text),
                ] {
                    datagram.extend(field.as_bytes());
                    datagram.push(b'\n');
                    datagram.extend(u64::try_from(value.len()).unwrap_or_default().to_le_bytes());
                    datagram.extend(value.as_bytes());
                    datagram.push(b'\n');
                }
                socket.send(&datagram).map(|_| ())
            }
        };
        if result.is_err() {
            self.failed = self.failed.saturating_add(1);
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// The file of age `age`.
pub fn aged(path: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    name.into()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a log line that a power cut takes is no state; a rename loses none that is old"
)]
fn rotate(path: &Path, max_files: u32) -> io::Result<File> {
    for age in (1..max_files).rev() {
        match std::fs::rename(aged(path, age - 1), aged(path, age)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    if max_files == 1 {
        return File::options().create(true).write(true).truncate(true).open(path);
    }
    append(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, max_size: u64, max_files: u32, rate: u64) -> (Writer, PathBuf) {
        let path = dir.join("container.log");
        let log = Log::JsonFile { path: path.clone(), max_size, max_files, rate };
        (Writer::open(&log, "id").unwrap(), path)
    }

    fn records(path: &Path) -> Vec<Record> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_are_whole_whatever_way_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = open(dir.path(), 1 << 20, 2, 0);
        log.write(0, b"one\ntw");
        log.write(1, b"error \xff\n");
        log.write(0, b"o\n\nlast");
        log.finish();
        let got: Vec<_> = records(&path).into_iter().map(|r| (r.stream, r.log)).collect();
        let expected = [
            ("stdout", "one\n"),
            ("stderr", "error \u{fffd}\n"),
            ("stdout", "two\n"),
            ("stdout", "\n"),
            ("stdout", "last"),
        ];
        assert_eq!(got, expected.map(|(s, l)| (s.to_owned(), l.to_owned())));
    }

    #[test]
    fn a_line_without_end_comes_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = open(dir.path(), 1 << 20, 2, 0);
        log.write(0, &vec![b'x'; LINE_MAX * 2 + 5]);
        log.write(0, b"\n");
        let lengths: Vec<_> = records(&path).iter().map(|r| r.log.len()).collect();
        assert_eq!(lengths, [LINE_MAX, LINE_MAX, 6]);
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = open(dir.path(), 4096, 3, 0);
        for n in 0..1000 {
            log.write(0, format!("line {n}\n").as_bytes());
        }
        log.finish();
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap()).collect();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|f| f.metadata().unwrap().len() <= 4096));
        assert_eq!(records(&path).last().unwrap().log, "line 999\n");
        let (old, new) = (records(&aged(&path, 1)), records(&path));
        let number = |r: &Record| r.log.trim().trim_start_matches("line ").parse::<u32>().unwrap();
        assert_eq!(
            number(old.last().unwrap()) + 1,
            number(new.first().unwrap()),
            "no line is lost between files"
        );
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = open(dir.path(), 1 << 20, 2, 100);
        for _ in 0..10_000 {
            log.write(0, b"0123456789\n");
        }
        log.finish();
        let records = records(&path);
        assert!(records.len() < 200, "{}", records.len());
        let dropped = |r: &Record| r.log.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
        let told: usize = records.iter().filter(|r| r.log.contains("lines dropped")).map(dropped).sum();
        let kept = records.iter().filter(|r| r.log.starts_with('0')).count();
        assert_eq!(kept + told, 10_000);
    }
}
