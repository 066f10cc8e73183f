//! The one place with `unsafe`: a child that dies with its parent.

#![expect(unsafe_code, reason = "pre_exec runs code between fork and exec; std has no safe form of it")]

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the kernel kill the child when the *thread* that spawns it ends (prctl(2),
/// `PR_SET_PDEATHSIG`); kept over `exec`.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent: Pid = getpid();
    let hook = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: the hook only makes the system calls prctl and getppid, which are
    // async-signal-safe, and touches no memory that another thread could hold locked.
    unsafe { command.pre_exec(hook) };
}
