//! The side of the watched service. Never blocks and never fails loudly: a service works without a watchdog, too.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::protocol::{Message, Name};

/// Where `rustiot-watchdog` listens.
pub const SOCKET: &str = "/run/rustiot/watchdog.sock";

/// A service under watch. Call [`Client::alive`] at least three times per timeout from the loop whose progress
/// matters, not from a timer of its own. Says `BYE` when it is dropped.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    name: Name,
    timeout: Duration,
    socket: Option<UnixDatagram>,
}

impl Client {
    /// Registers under `name`; more than `timeout` of silence counts as hung. A watchdog that is not there yet, or
    /// restarts later, is found at the next [`Client::alive`].
    #[must_use]
    pub fn new(name: Name, timeout: Duration) -> Self {
        Self::at(Path::new(SOCKET), name, timeout)
    }

    /// As [`Client::new`] with the socket elsewhere.
    #[must_use]
    pub fn at(path: &Path, name: Name, timeout: Duration) -> Self {
        let mut client = Self { path: path.to_owned(), name, timeout, socket: None };
        client.connect();
        client
    }

    /// Makes progress known. Returns whether the watchdog heard it.
    pub fn alive(&mut self) -> bool {
        self.say(&Message::Alive(self.name.clone()))
    }

    /// Makes progress known, and that the device is unfit: asks for a reboot when that is allowed. Repeat it while
    /// it holds; [`Client::alive`] withdraws it.
    pub fn fail(&mut self, reason: &str) -> bool {
        self.say(&Message::Fail { name: self.name.clone(), reason: reason.to_owned() })
    }

    /// A watchdog that restarted has a new socket: the old connection is refused and the hello is said again.
    fn say(&mut self, message: &Message) -> bool {
        if self.send(message) {
            return true;
        }
        self.connect() && self.send(message)
    }

    fn connect(&mut self) -> bool {
        self.socket = connect(&self.path).ok();
        self.send(&Message::Hello { name: self.name.clone(), timeout: self.timeout, unit: None })
    }

    fn send(&self, message: &Message) -> bool {
        match &self.socket {
            None => false,
            Some(socket) => match socket.send(message.to_string().as_bytes()) {
                Ok(_) => true,
                // Its queue is full: it is alive, but slow. A new connection would not help.
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            },
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.send(&Message::Bye(self.name.clone()));
    }
}

/// Tells the watchdog that the system shuts down in order, so that silence is no alarm.
///
/// # Errors
/// The watchdog is not there.
pub fn stopping(socket: &Path) -> io::Result<()> {
    connect(socket)?.send(Message::Stopping.to_string().as_bytes()).map(|_| ())
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut out = Vec::new();
        let mut bytes = [0; 512];
        while let Ok(n) = socket.recv(&mut bytes) {
            out.push(String::from_utf8_lossy(&bytes[..n]).into_owned());
        }
        out
    }

    #[test]
    fn says_hello_again_to_a_watchdog_that_came_late_or_restarted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let mut client = Client::at(&path, Name::new("engine").unwrap(), Duration::from_secs(30));
        assert!(!client.alive(), "nobody listens yet");

        let first = UnixDatagram::bind(&path).unwrap();
        assert!(client.alive() && client.fail("disk\nfull"));
        assert_eq!(heard(&first), ["HELLO engine 30", "ALIVE engine", "FAIL engine disk full"]);

        drop(first);
        std::fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        assert!(client.alive());
        drop(client);
        stopping(&path).unwrap();
        assert_eq!(heard(&second), ["HELLO engine 30", "ALIVE engine", "BYE engine", "STOPPING"]);
    }

    #[test]
    fn a_full_queue_neither_blocks_nor_registers_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let server = UnixDatagram::bind(&path).unwrap();
        let mut client = Client::at(&path, Name::new("x").unwrap(), Duration::from_secs(30));
        for _ in 0..10_000 {
            assert!(client.alive());
        }
        let said = heard(&server);
        assert_eq!(said.iter().filter(|m| m.starts_with("HELLO")).count(), 1);
    }
}
