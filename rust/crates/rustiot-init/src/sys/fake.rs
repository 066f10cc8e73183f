//! A kernel that records what it is asked and fails where a test says so.

use std::{collections::VecDeque, path::Path};

use nix::errno::Errno;

use super::{Mount, OpenWatchdog, Sys};
use crate::dm::Command;

/// See the module.
pub struct FakeSys {
    /// Calls in order, with their main arguments.
    calls: Vec<String>,
    /// Console lines.
    pub said: Vec<String>,
    failures: VecDeque<(String, Errno)>,
    now: u64,
    /// The watchdog reports that it reset the machine.
    pub card_reset: bool,
    /// Paths are recorded relative to this.
    pub root: std::path::PathBuf,
    /// Runs at each pause with the number of pauses so far.
    pub on_pause: Box<dyn FnMut(u64)>,
    pauses: u64,
}

impl FakeSys {
    /// A kernel where everything works.
    pub fn new() -> FakeSys {
        FakeSys {
            calls: Vec::new(),
            said: Vec::new(),
            failures: VecDeque::new(),
            now: 1000,
            card_reset: false,
            root: "/".into(),
            on_pause: Box::new(|_| ()),
            pauses: 0,
        }
    }

    /// The next call that starts with `call` fails with `errno`; once per entry.
    pub fn fail(&mut self, call: &str, errno: Errno) {
        self.failures.push_back((call.to_string(), errno));
    }

    /// The calls so far; forgets them.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.calls)
    }

    fn call(&mut self, call: String) -> Result<(), Errno> {
        let failure = self.failures.iter().position(|(prefix, _)| call.starts_with(prefix.as_str()));
        self.calls.push(call);
        match failure.and_then(|at| self.failures.remove(at)) {
            Some((_, errno)) => Err(errno),
            None => Ok(()),
        }
    }

    fn short(&self, path: &Path) -> String {
        match path.strip_prefix(&self.root) {
            Ok(rest) => format!("/{}", rest.display()),
            Err(_) => path.display().to_string(),
        }
    }
}

impl Sys for FakeSys {
    fn now_ms(&mut self) -> u64 {
        self.now
    }

    fn say(&mut self, line: &str) {
        self.said.push(line.to_string());
    }

    fn mount(&mut self, mount: &Mount) -> Result<(), Errno> {
        let (source, target) = (self.short(mount.source), self.short(mount.target));
        self.call(match mount.fstype {
            "" if mount.flags.contains(nix::mount::MsFlags::MS_MOVE) => format!("move {source} {target}"),
            "" => format!("bind {source} {target}"),
            fstype => format!("mount {fstype} {source} {target} {}", mount.data),
        })
    }

    fn load_module(&mut self, path: &Path, params: &str) -> Result<(), Errno> {
        let path = self.short(path);
        self.call(format!("module {path} {params}").trim_end().to_string())
    }

    fn open_watchdog(&mut self, path: &Path, timeout_s: u32) -> Result<OpenWatchdog, Errno> {
        let path = self.short(path);
        self.call(format!("watchdog {path} {timeout_s}"))?;
        let file = tempfile::tempfile().unwrap();
        Ok(OpenWatchdog { file, timeout_s, card_reset: self.card_reset })
    }

    fn device_mapper(&mut self, command: Command, message: &mut [u8]) -> Result<(), Errno> {
        let panics = message.windows(19).any(|part| part == b"panic_on_corruption");
        self.call(format!("dm {command:?}{}", if panics { " panic_on_corruption" } else { "" }))
    }

    fn every(&mut self, interval_s: u32, _tick: Box<dyn FnMut(u64) + Send>) -> Result<(), Errno> {
        self.call(format!("every {interval_s}"))
    }

    fn pause(&mut self, ms: u64) {
        self.now += ms;
        self.pauses += 1;
        (self.on_pause)(self.pauses);
    }
}
