//! Whether PID 1 still turns its main loop.
//!
//! Sends `BARRIER=1` with one end of a pipe to systemd's notification socket: systemd closes it when it gets there
//! (sd_notify(3), `sd_notify_barrier`). A public interface, no D-Bus, no parser, nothing that could block, and what it
//! proves is what matters: that the loop which starts and supervises everything turns. Called by [`crate::service`].

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use nix::unistd::pipe2;

/// The way to PID 1.
#[derive(Debug)]
pub struct Pid1 {
    socket: OwnedFd,
    address: UnixAddr,
    waiting: Option<OwnedFd>,
}

impl Pid1 {
    /// `notify` is the value of `$NOTIFY_SOCKET`.
    ///
    /// # Errors
    /// Not an address, or no socket to be had.
    pub fn new(notify: &str) -> io::Result<Self> {
        let address = match notify.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
            None => UnixAddr::new(notify)?,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        Ok(Self { socket, address, waiting: None })
    }

    /// Sends a notification such as `READY=1`.
    ///
    /// # Errors
    /// The socket's; it never waits.
    pub fn notify(&self, text: &str) -> io::Result<()> {
        self.send(text, &[])
    }

    /// Asks, unless an answer is outstanding.
    ///
    /// # Errors
    /// The socket's; a queue that is full because nobody reads it is one.
    pub fn ask(&mut self) -> io::Result<()> {
        if self.waiting.is_some() {
            return Ok(());
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        self.send("BARRIER=1", &[write.as_raw_fd()])?;
        self.waiting = Some(read);
        Ok(())
    }

    /// What to poll for while an answer is outstanding.
    #[must_use]
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.waiting.as_ref().map(AsFd::as_fd)
    }

    /// Whether the answer has come; then another may be asked for.
    pub fn answered(&mut self) -> bool {
        let Some(pipe) = &self.waiting else { return false };
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
        let closed = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0);
        if closed {
            self.waiting = None;
        }
        closed
    }

    fn send(&self, text: &str, fds: &[i32]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let data = [IoSlice::new(text.as_bytes())];
        sendmsg(self.socket.as_raw_fd(), &data, control, flags, Some(&self.address))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixDatagram;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    /// A PID 1 that takes one message from its queue; returns the text and the pipes that came with it.
    fn take(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let mut bytes = [0; 64];
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut data = [io::IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::empty()).unwrap();
        let mut fds = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just given us these descriptors; nobody else owns them.
                #[expect(unsafe_code, reason = "descriptors from a message have no owner yet")]
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let n = message.bytes;
        (String::from_utf8_lossy(&bytes[..n]).into_owned(), fds)
    }

    #[test]
    fn is_alive_when_it_closes_the_pipe_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let mut pid1 = Pid1::new(path.to_str().unwrap()).unwrap();
        pid1.notify("READY=1").unwrap();
        assert_eq!(take(&systemd).0, "READY=1");

        assert!(!pid1.answered(), "nothing was asked");
        pid1.ask().unwrap();
        pid1.ask().unwrap();
        assert!(!pid1.answered(), "it hangs");
        let (text, pipe) = take(&systemd);
        assert_eq!((text.as_str(), pipe.len()), ("BARRIER=1", 1));
        assert!(!pid1.answered(), "it has read the message but not got to it");
        drop(pipe);
        assert!(pid1.answered() && pid1.waiting().is_none());
        assert!(!pid1.answered(), "one answer a question");
    }

    #[test]
    fn a_queue_that_nobody_reads_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _systemd = UnixDatagram::bind(&path).unwrap();
        let pid1 = Pid1::new(path.to_str().unwrap()).unwrap();
        assert!((0..10_000).any(|_| pid1.notify("X=1").is_err()));
    }
}
