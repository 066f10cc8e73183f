//! Reads a container's log files: the last lines, then what comes.
//!
//! Never holds a whole log in memory, never writes. Called for `logs` and attach.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustiot_docker_api::types::{Channel, LogLine, LogsOptions};
use rustiot_docker_api::{Bytes, Error, Timestamp};
use rustiot_shim::log::{Record, aged};
use tokio::sync::mpsc::Sender;

/// More files than this no container has.
const FILES: u32 = 100;
/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(150);
/// A record with its quoting: a line of 16 KiB where every byte became six.
const RECORD: usize = 128 * 1024;

/// The files, oldest first.
fn files(path: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = (0..FILES).map(|age| aged(path, age)).take_while(|p| p.exists()).collect();
    all.reverse();
    all
}

fn wanted(record: Record, options: &LogsOptions) -> Option<LogLine> {
    let channel = if record.stream == "stdout" { Channel::Stdout } else { Channel::Stderr };
    let time: Timestamp = record.time.parse().ok()?;
    let stream = match channel {
        Channel::Stdout => options.stdout,
        Channel::Stderr => options.stderr,
    };
    let fits = stream && options.since.is_none_or(|s| time >= s) && options.until.is_none_or(|u| time <= u);
    fits.then(|| LogLine { time, channel, bytes: Bytes::from(record.log) })
}

/// A file that is read as it grows.
struct Tail {
    reader: BufReader<File>,
    inode: u64,
    partial: Vec<u8>,
}

impl Tail {
    fn open(path: &Path) -> io::Result<Tail> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Tail { reader: BufReader::with_capacity(16 * 1024, file), inode, partial: Vec::new() })
    }

    /// The next whole record; `None` at the end of what is there. A record that a power cut tore is left out.
    fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            let n = self.reader.read_until(b'\n', &mut self.partial)?;
            if n == 0 || self.partial.last() != Some(&b'\n') {
                if self.partial.len() > RECORD {
                    self.partial.clear();
                }
                return Ok(None);
            }
            let record = serde_json::from_slice(&self.partial).ok();
            self.partial.clear();
            if let Some(record) = record {
                return Ok(Some(record));
            }
        }
    }
}

/// Sends what `options` ask for until `running` says that nothing more comes, or nobody listens.
pub async fn send(
    path: PathBuf,
    options: LogsOptions,
    running: impl Fn() -> bool,
    to: Sender<Result<LogLine, Error>>,
) {
    let failed = |error: io::Error| Error::failed("cannot read the container's log", error);
    let mut last: VecDeque<LogLine> = VecDeque::new();
    let mut newest = None;
    for file in files(&path) {
        let mut tail = match Tail::open(&file) {
            Ok(tail) => tail,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let _ = to.send(Err(failed(error))).await;
                return;
            }
        };
        loop {
            match tail.next() {
                Ok(Some(record)) => {
                    let Some(line) = wanted(record, &options) else { continue };
                    match options.tail {
                        None => {
                            if to.send(Ok(line)).await.is_err() {
                                return;
                            }
                        }
                        Some(count) => {
                            last.push_back(line);
                            while u64::try_from(last.len()).unwrap_or(u64::MAX) > count {
                                last.pop_front();
                            }
                        }
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let _ = to.send(Err(failed(error))).await;
                    return;
                }
            }
        }
        newest = Some(tail);
    }
    for line in last {
        if to.send(Ok(line)).await.is_err() {
            return;
        }
    }
    if !options.follow {
        return;
    }
    loop {
        // Asked before the file is read: what came before the end is not missed.
        let more = running();
        if newest.is_none() {
            newest = Tail::open(&path).ok();
        }
        if let Some(tail) = &mut newest {
            while let Ok(Some(record)) = tail.next() {
                if let Some(line) = wanted(record, &options)
                    && to.send(Ok(line)).await.is_err()
                {
                    return;
                }
            }
            // Rotated: this one is at its end, the next begins.
            if std::fs::metadata(&path).is_ok_and(|m| m.ino() != tail.inode) {
                newest = None;
                continue;
            }
            // Cut to nothing (one file only).
            let length = tail.reader.get_ref().metadata().map_or(0, |m| m.len());
            if tail.reader.stream_position().is_ok_and(|at| at > length) {
                let _ = tail.reader.seek(SeekFrom::Start(0));
            }
        }
        if !more || options.until.is_some_and(|u| Timestamp::now() > u) {
            return;
        }
        tokio::select! {
            () = to.closed() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustiot_shim::log::Writer;
    use rustiot_shim::protocol::Log;

    async fn read(path: &Path, options: LogsOptions) -> Vec<String> {
        let (to, mut from) = tokio::sync::mpsc::channel(4);
        tokio::spawn(send(path.to_owned(), options, || false, to));
        let mut lines = Vec::new();
        while let Some(line) = from.recv().await {
            lines.push(String::from_utf8(line.unwrap().bytes.to_vec()).unwrap());
        }
        lines
    }

    #[tokio::test]
    async fn lines_come_back_across_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("container.log");
        let log = Log::JsonFile { path: path.clone(), max_size: 4096, max_files: 4, rate: 0 };
        let mut writer = Writer::open(&log, "id").unwrap();
        for n in 0..100 {
            writer.write(n % 2, format!("{n}\n").as_bytes());
        }
        writer.finish();
        let both = LogsOptions { stdout: true, stderr: true, ..LogsOptions::default() };
        let all = read(&path, both).await;
        assert_eq!(all.last().unwrap(), "99\n");
        assert!(all.len() > 50 && files(&path).len() > 1);
        assert_eq!(read(&path, LogsOptions { tail: Some(2), ..both }).await, ["98\n", "99\n"]);
        assert_eq!(read(&path, LogsOptions { tail: Some(0), ..both }).await, [""; 0]);
        assert_eq!(read(&path, LogsOptions { tail: Some(2), stderr: false, ..both }).await, ["96\n", "98\n"]);
        assert!(read(&path, LogsOptions { since: Some(Timestamp::now()), ..both }).await.is_empty());
    }
}
