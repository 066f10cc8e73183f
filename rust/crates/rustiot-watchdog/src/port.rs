//! [`Port`] on a device. Whatever may block (programs, the disk) runs in a thread of its own with a time limit, so
//! that nothing here ever keeps the hardware from being fed, or from not being fed.
//!
//! Decides nothing. Called by [`crate::run`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use rustiot_liveness::UnitName;

use crate::budget::Budget;
use crate::hardware::{About, Device, Hardware};
use crate::service::Port;

/// The budget below the state directory.
pub const BUDGET: &str = "watchdog/budget.json";
/// Enters the reason into the boot ledger.
const RECORDER: &str = "/usr/lib/rustiot/rustiot-health";
const RECORD_LIMIT: Duration = Duration::from_secs(12);
const SAVE_LIMIT: Duration = Duration::from_secs(5);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// The device's hands.
pub struct Machine {
    device: PathBuf,
    state: PathBuf,
    hardware: Option<Device>,
    timeout: Duration,
    kmsg: Option<File>,
}

impl Machine {
    /// `device` is opened by [`Machine::acquire`]; `state` is the state directory.
    #[must_use]
    pub fn new(device: &Path, state: &Path) -> Self {
        // The kernel's log never blocks, reaches console (level 3 shows under "quiet") and pstore, and needs no journal.
        let kmsg = OpenOptions::new().write(true).open("/dev/kmsg").ok();
        Self { device: device.into(), state: state.into(), hardware: None, timeout: Duration::ZERO, kmsg }
    }

    /// Opens the hardware if that has not been done, and asks for `timeout`.
    ///
    /// # Errors
    /// There is none, or somebody else holds it.
    pub fn acquire(&mut self, timeout: Duration) -> io::Result<()> {
        if self.hardware.is_none() {
            self.hardware = Some(Device::open(&self.device)?);
        }
        if let Some(hardware) = &mut self.hardware {
            self.timeout = hardware.set_timeout(timeout)?;
        }
        Ok(())
    }

    /// The hardware and its timeout, if there is one.
    #[must_use]
    pub fn hardware(&self) -> (Option<About>, Duration) {
        (self.hardware.as_ref().map(Hardware::about), self.timeout)
    }
}

impl Port for Machine {
    fn feed(&mut self) -> io::Result<()> {
        self.hardware.as_mut().map_or(Ok(()), Hardware::feed)
    }

    fn restart(&mut self, units: Vec<UnitName>) {
        spawn("restart", move || {
            let mut command = Command::new("systemctl");
            command.args(["restart", "--no-block", "--"]).args(units.iter().map(UnitName::as_str));
            run(command, COMMAND_LIMIT);
        });
    }

    fn reboot(&mut self, reason: &str, forced: bool, budget: Budget) {
        let (reason, state) = (reason.to_owned(), self.state.clone());
        spawn("reboot", move || {
            let mut record = Command::new(RECORDER);
            record.args(["record-failure", &reason]);
            run(record, RECORD_LIMIT);
            within(SAVE_LIMIT, move || store(&state, &budget));
            let mut orderly = Command::new("systemctl");
            orderly.arg("reboot");
            if forced || !run(orderly, COMMAND_LIMIT) {
                reset();
            }
        });
    }

    fn starve(&mut self, _reason: &str) {
        // With hardware, its reset is the answer. Without, the kernel is all there is.
        if self.hardware.is_none() {
            spawn("reset", reset);
        }
    }

    fn save(&mut self, budget: Budget) {
        let state = self.state.clone();
        spawn("save", move || store(&state, &budget));
    }

    fn say(&mut self, text: &str) {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(800).collect();
        // One write is one record there, so it must not be written in parts.
        let record = format!("<3>rustiot-watchdog: {line}\n");
        let told = self.kmsg.as_mut().is_some_and(|k| k.write_all(record.as_bytes()).is_ok());
        if !told {
            eprintln!("rustiot-watchdog: {line}");
        }
    }
}

/// The kernel reboots at once, after a moment for what is still in memory; a stalled disk is not waited for.
fn reset() {
    within(Duration::from_secs(3), nix::unistd::sync);
    let _ = reboot(RebootMode::RB_AUTOBOOT);
}

fn store(state: &Path, budget: &Budget) {
    let path = state.join(BUDGET);
    if let Some(parent) = path.parent().filter(|p| !p.exists()) {
        let _ = fs::create_dir_all(parent);
    }
    if let Ok(bytes) = serde_json::to_vec(budget) {
        let _ = rustiot_durable::atomic_write(&path, &bytes);
    }
}

/// What an earlier boot left; a missing or broken file is an empty budget.
#[must_use]
pub fn load(state: &Path) -> Budget {
    fs::read(state.join(BUDGET)).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    thread::Builder::new().name(name.to_owned()).spawn(work).is_ok()
}

/// Runs `work`, but waits no longer than `limit` for it.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = mpsc::channel();
    let started = spawn("limited", move || {
        work();
        let _ = done.send(());
    });
    started && wait.recv_timeout(limit).is_ok()
}

/// Runs a program and waits no longer than `limit`; then it is killed. Returns whether it succeeded.
fn run(mut command: Command, limit: Duration) -> bool {
    let Ok(mut child) = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    else {
        return false;
    };
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
    let (done, wait) = mpsc::channel();
    let started = spawn("wait", move || {
        let _ = done.send(child.wait().is_ok_and(|status| status.success()));
    });
    match wait.recv_timeout(limit) {
        Ok(success) => success,
        Err(_) => {
            // Not reaped yet (the thread still waits), so the number is still its own.
            if started && pid.as_raw() > 0 {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_survives_and_a_broken_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), Budget::default());
        let budget = Budget::default().spend("disk gave no sign of life");
        store(dir.path(), &budget);
        assert_eq!(load(dir.path()), budget);
        fs::remove_file(dir.path().join(BUDGET)).unwrap();
        File::create(dir.path().join(BUDGET)).unwrap().write_all(b"{\"level\":").unwrap();
        assert_eq!(load(dir.path()), Budget::default());
    }

    #[test]
    fn programs_are_limited() {
        assert!(run(Command::new("true"), Duration::from_secs(600)));
        assert!(!run(Command::new("false"), Duration::from_secs(600)));
        assert!(!run(Command::new("/nonexistent"), Duration::from_secs(600)));
        let mut endless = Command::new("sleep");
        endless.arg("600");
        assert!(!run(endless, Duration::ZERO));
        assert!(within(Duration::from_secs(600), || {}) && !within(Duration::ZERO, thread::park));
    }

    #[test]
    fn what_it_says_is_one_record() {
        let dir = tempfile::tempdir().unwrap();
        let (read, write) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut machine = Machine::new(&dir.path().join("watchdog"), dir.path());
        machine.kmsg = Some(File::from(std::os::fd::OwnedFd::from(write)));
        machine.say("disk:\nhangs");
        let mut bytes = [0; 100];
        let n = read.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"<3>rustiot-watchdog: disk: hangs\n");
    }

    #[test]
    fn no_device_is_an_error_and_not_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = Machine::new(&dir.path().join("watchdog"), dir.path());
        assert!(machine.acquire(Duration::from_secs(60)).is_err());
        assert!(machine.feed().is_ok());
        assert_eq!(machine.hardware(), (None, Duration::ZERO));
    }
}
