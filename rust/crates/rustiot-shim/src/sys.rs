//! The system calls of the shim: terminal size, descriptors over a socket, reaping, process groups.
//!
//! Called by `shim` and `init` alone.
#![allow(unsafe_code, reason = "ioctl, and what is done between fork and execve")]

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

nix::ioctl_write_ptr_bad!(set_window_size, nix::libc::TIOCSWINSZ, nix::libc::winsize);

/// The terminal's rows and columns.
pub fn resize(terminal: BorrowedFd<'_>, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = nix::libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request takes a pointer to a `winsize`, which lives across the call.
    unsafe { set_window_size(terminal.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Makes reads and writes return instead of waiting.
pub fn nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Keeps a descriptor from the programs that are started.
pub fn close_on_exec(fd: BorrowedFd<'_>, yes: bool) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(if yes { FdFlag::FD_CLOEXEC } else { FdFlag::empty() }))?;
    Ok(())
}

/// The one descriptor that libcontainer sends: the terminal's master.
pub fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<File>> {
    let mut byte = [0_u8; 64];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut found = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel just installed it for this process; nobody else owns it.
                found = Some(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    Ok(found)
}

/// The next child that ended: its process and its code, or 128 and the signal.
pub fn reap() -> Option<(i32, i32)> {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Some((pid.as_raw(), code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => return Some((pid.as_raw(), 128 + signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// The program gets no signals blocked, and a process group of its own, which is in front of the terminal, if its standard
/// input is one.
pub fn in_front(command: &mut Command) {
    // SAFETY: between `fork` and `execve` it makes plain system calls on values of its own, and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            // Who is not in front and takes the front is stopped, unless he blocks the signal for that.
            let mut stop = SigSet::empty();
            stop.add(Signal::SIGTTOU);
            stop.thread_block()?;
            // Not a terminal, or not ours: then there is no front.
            let _ = nix::unistd::tcsetpgrp(BorrowedFd::borrow_raw(0), nix::unistd::getpid());
            // What `init` blocks is for itself.
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
}

/// The number of the next of these signals, which are blocked; real-time ones too.
pub fn wait(signals: &SigSet) -> io::Result<i32> {
    let mut number = 0;
    // SAFETY: both pointers are to values that live across the call.
    match unsafe { nix::libc::sigwait(signals.as_ref(), &raw mut number) } {
        0 => Ok(number),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Sends a signal by number, real-time ones too.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    match Signal::try_from(signal) {
        Ok(signal) => nix::sys::signal::kill(Pid::from_raw(pid), signal)?,
        Err(_) => {
            // SAFETY: plain system call on numbers.
            Errno::result(unsafe { nix::libc::kill(pid, signal) })?;
        }
    }
    Ok(())
}
