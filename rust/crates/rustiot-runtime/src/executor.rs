//! The last step inside the container: filter, capabilities, signals, `execve`.
//!
//! libcontainer without its C library installs no system call filter, and once it has dropped capabilities nobody may
//! install one. So a container with a filter and without `no_new_privileges` arrives here with CAP_SYS_ADMIN and
//! CAP_SETPCAP on top of its own (`--capabilities` is its own set), and loses both here, before its program runs.
//! Runs in the container's process, between libcontainer and the payload. Never returns when it succeeds.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::RawFd;

use caps::{CapSet, Capability, CapsHashSet};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use crate::sys::{self, Filter};

/// How the payload is started.
#[derive(Clone)]
pub struct Payload {
    filter: Vec<Filter>,
    capabilities: Option<u64>,
    status: Option<RawFd>,
}

impl Payload {
    pub fn new(filter: Vec<Filter>, capabilities: Option<u64>, status: Option<RawFd>) -> Self {
        Self { filter, capabilities, status }
    }

    fn confine(&self) -> Result<(), String> {
        let own = self
            .capabilities
            .map(|mask| caps::all().into_iter().filter(|c| mask & c.bitmask() != 0).collect::<CapsHashSet>());
        if let Some(own) = &own {
            for extra in [Capability::CAP_SYS_ADMIN, Capability::CAP_SETPCAP] {
                if !own.contains(&extra) {
                    caps::drop(None, CapSet::Bounding, extra)
                        .map_err(|e| format!("cannot drop {extra} from the bounding set: {e}"))?;
                }
            }
        }
        if !self.filter.is_empty() {
            sys::install_filter(&self.filter)
                .map_err(|e| format!("cannot install the system call filter: {e}"))?;
        }
        if let Some(own) = &own {
            for set in [CapSet::Effective, CapSet::Permitted] {
                let now = caps::read(None, set).map_err(|e| format!("cannot read capabilities: {e}"))?;
                let left: CapsHashSet = now.intersection(own).copied().collect();
                caps::set(None, set, &left).map_err(|e| format!("cannot set capabilities: {e}"))?;
            }
        }
        Ok(())
    }

    fn report(&self, text: &str, errno: i32) {
        let line = format!("{}\n", serde_json::json!({ "error": text, "errno": errno }));
        if let Some(fd) = self.status {
            let _ = sys::write_all(fd, line.as_bytes());
        }
    }
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let arguments = spec.process().as_ref().and_then(|p| p.args().clone()).unwrap_or_default();
        let Some(program) = arguments.first().filter(|p| !p.is_empty()) else {
            self.report("no command is given", libc::ENOENT);
            std::process::exit(127);
        };
        // The shim sets the size as well, when the terminal's other end has reached it. That may be after a program that is
        // quick has asked for it, so it is right from the start.
        if let Some(process) = spec.process()
            && process.terminal() == Some(true)
            && let Some(size) = process.console_size()
        {
            let of = |n: u64| u16::try_from(n).unwrap_or(0);
            let _ = sys::terminal_size(of(size.height()), of(size.width()));
        }
        if let Err(text) = self.confine() {
            self.report(&text, libc::EPERM);
            std::process::exit(126);
        }
        sys::default_signals();
        let strings: Result<Vec<CString>, _> = arguments.iter().map(|a| CString::new(a.as_bytes())).collect();
        let Ok(strings) = strings else {
            self.report("an argument contains a zero byte", libc::EINVAL);
            std::process::exit(126);
        };
        let error = sys::execute(&strings);
        let errno = error.raw_os_error().unwrap_or(0);
        let text = match errno {
            libc::ENOENT if !program.contains('/') => {
                format!("exec: \"{program}\": executable file not found in $PATH")
            }
            libc::ENOENT => format!("exec: \"{program}\": stat {program}: no such file or directory"),
            libc::EACCES => format!("exec: \"{program}\": permission denied"),
            libc::ENOEXEC => format!("exec {program}: exec format error (built for another processor?)"),
            _ => format!("exec {program}: {error}"),
        };
        self.report(&text, errno);
        std::process::exit(if errno == libc::ENOENT { 127 } else { 126 });
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        sys::set_environment(&envs);
        Ok(())
    }
}
