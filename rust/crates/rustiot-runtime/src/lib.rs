//! The OCI runtime of the container engine: `run` and `exec`, each a process that lives for milliseconds, over
//! libcontainer (which wants a caller with one thread).
//!
//! Adds what libcontainer leaves to C libraries: the system call filter ([`seccomp`], compiled here) and the device
//! rules of cgroup v2 ([`devices`]). Never keeps state of its own, never decides what a container may do: that is in
//! the bundle. Started by `rustiot-shim`. Contract: `docs/contracts/containers.md`.

mod devices;
mod executor;
pub mod seccomp;
mod sys;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;

use executor::Payload;

/// What went wrong, for the shim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file of the bundle cannot be used.
    #[error("cannot {action} {path}")]
    File {
        /// read, make, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bundle's specification is not valid.
    #[error("the container's specification is not valid")]
    Spec(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system call filter cannot be made.
    #[error("the system call filter cannot be made")]
    Seccomp(#[from] seccomp::Error),
    /// The device rules cannot be put in force.
    #[error("the device rules of {cgroup} cannot be put in force")]
    Devices {
        /// The control group.
        cgroup: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// libcontainer failed.
    #[error("cannot {action} the container")]
    Container {
        /// create, start, …
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[derive(Default)]
struct Options {
    root: PathBuf,
    bundle: Option<PathBuf>,
    process: Option<PathBuf>,
    console: Option<PathBuf>,
    capabilities: Option<u64>,
    unfiltered: bool,
    status: Option<i32>,
    positional: Vec<String>,
}

fn options(arguments: &[String]) -> Result<Options, Error> {
    let mut options = Options { root: PathBuf::from("/run/rustiot/runtime"), ..Options::default() };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value =
            || rest.next().cloned().ok_or_else(|| Error::Usage(format!("{argument} needs a value")));
        match argument.as_str() {
            "--root" => options.root = value()?.into(),
            "--bundle" => options.bundle = Some(value()?.into()),
            "--process" => options.process = Some(value()?.into()),
            "--console-socket" => options.console = Some(value()?.into()),
            "--capabilities" => {
                let text = value()?;
                let mask = u64::from_str_radix(text.trim_start_matches("0x"), 16)
                    .map_err(|_| Error::Usage(format!("{text} is no set of capabilities in base 16")))?;
                options.capabilities = Some(mask);
            }
            "--unfiltered" => options.unfiltered = true,
            // The descriptor on which the shim hears of a start: one JSON line with `pid`, then the end of the file when
            // the payload runs, or a line with `error`.
            "--status" => {
                let text = value()?;
                let fd = text.parse().map_err(|_| Error::Usage(format!("{text} is no descriptor")))?;
                options.status = Some(fd);
            }
            other if other.starts_with('-') => return Err(Error::Usage(format!("unknown option {other}"))),
            other => options.positional.push(other.to_owned()),
        }
    }
    Ok(options)
}

const USAGE: &str = "usage: rustiot-runtime run|exec [--root DIR] [--bundle DIR] [--process FILE] \
[--console-socket PATH] [--capabilities MASK] [--unfiltered] [--status FD] ID";

/// Runs one command and returns the exit code: 0 done, 1 failed, 2 wrong usage.
pub fn main(arguments: &[String]) -> u8 {
    let Some((command, rest)) = arguments.split_first() else {
        eprintln!("{USAGE}");
        return 2;
    };
    let options = match options(rest) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("rustiot-runtime: {error}\n{USAGE}");
            return 2;
        }
    };
    let status = options.status.and_then(sys::status_file);
    match run(command, &options) {
        Ok(pid) => {
            if let (Some(mut status), Some(pid)) = (status, pid) {
                let _ = tell(&mut status, &serde_json::json!({ "pid": pid }));
            }
            0
        }
        Err(error) => {
            let text = chain(&error);
            match status {
                Some(mut status) => {
                    let _ = tell(&mut status, &serde_json::json!({ "error": text }));
                }
                None => eprintln!("rustiot-runtime: {text}"),
            }
            if matches!(error, Error::Usage(_)) { 2 } else { 1 }
        }
    }
}

/// A line for the shim, in one write: the container's process writes into the same pipe at the same time, and only
/// what is written at once stays whole (pipe(7), PIPE_BUF).
fn tell(status: &mut impl Write, line: &serde_json::Value) -> std::io::Result<()> {
    status.write_all(format!("{line}\n").as_bytes())
}

/// The error and its causes, once each.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}

fn failed<E: std::error::Error + Send + Sync + 'static>(action: &'static str) -> impl Fn(E) -> Error {
    move |source| Error::Container { action, source: Box::new(source) }
}

fn run(command: &str, options: &Options) -> Result<Option<i32>, Error> {
    let id = options.positional.first().ok_or_else(|| Error::Usage("which container?".to_owned()))?;
    match command {
        "run" => {
            let mut container = create(id, options)?;
            let pid = container.pid().map(|pid| pid.as_raw());
            container.start().map_err(failed("start"))?;
            Ok(pid)
        }
        "exec" => exec(id, options).map(Some),
        other => Err(Error::Usage(format!("unknown command {other}"))),
    }
}

fn load(id: &str, options: &Options) -> Result<Container, Error> {
    Container::load(options.root.join(id)).map_err(failed("find"))
}

fn builder(id: &str, options: &Options, payload: Payload) -> Result<ContainerBuilder, Error> {
    std::fs::create_dir_all(&options.root).map_err(|source| Error::File {
        action: "make",
        path: options.root.clone(),
        source,
    })?;
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(&options.root)
        .map_err(failed("place"))?
        .with_console_socket(options.console.as_ref())
        .with_executor(payload)
        .validate_id()
        .map_err(failed("name"))?;
    if options.console.is_none() {
        (builder.stdin, builder.stdout, builder.stderr) = inherited().map_err(|source| Error::File {
            action: "duplicate",
            path: "standard streams".into(),
            source,
        })?;
    }
    Ok(builder)
}

fn spec(bundle: &Path) -> Result<Spec, Error> {
    Spec::load(bundle.join("config.json")).map_err(|error| Error::Spec(Box::new(error)))
}

fn payload(spec: &Spec, options: &Options) -> Result<Payload, Error> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = match profile {
        Some(profile) if !options.unfiltered => seccomp::compile(profile)?,
        _ => Vec::new(),
    };
    Ok(Payload::new(filter, options.capabilities, options.status))
}

fn create(id: &str, options: &Options) -> Result<Container, Error> {
    let bundle = options.bundle.clone().ok_or_else(|| Error::Usage("--bundle is needed".to_owned()))?;
    let spec = spec(&bundle)?;
    let payload = payload(&spec, options)?;
    if let Some(linux) = spec.linux()
        && let Some(path) = linux.cgroups_path()
        && let Some(rules) = linux.resources().as_ref().and_then(|r| r.devices().as_ref())
        && !rules.is_empty()
    {
        let cgroup = Path::new("/sys/fs/cgroup").join(path.strip_prefix("/").unwrap_or(path));
        std::fs::create_dir_all(&cgroup)
            .and_then(|()| devices::attach(&cgroup, rules))
            .map_err(|source| Error::Devices { cgroup, source })?;
    }
    builder(id, options, payload)?
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(failed("create"))
}

fn exec(id: &str, options: &Options) -> Result<i32, Error> {
    let process = options.process.clone().ok_or_else(|| Error::Usage("--process is needed".to_owned()))?;
    let container = load(id, options)?;
    let payload = payload(&spec(container.bundle())?, options)?;
    builder(id, options, payload)?
        .as_tenant()
        .with_process(Some(process))
        .with_detach(true)
        .build()
        .map(|pid| pid.as_raw())
        .map_err(failed("enter"))
}

type Streams = (Option<OwnedFd>, Option<OwnedFd>, Option<OwnedFd>);

/// Our own standard streams, for the payload.
fn inherited() -> std::io::Result<Streams> {
    let one = |fd: i32| sys::duplicate(fd).map(Some);
    Ok((one(0)?, one(1)?, one(2)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_the_shim_is_written_at_once() {
        struct Writes(Vec<Vec<u8>>);
        impl Write for Writes {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.push(bytes.to_vec());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut writes = Writes(Vec::new());
        tell(&mut writes, &serde_json::json!({ "pid": 17 })).unwrap();
        assert_eq!(writes.0, [b"{\"pid\":17}\n".to_vec()]);
    }
}
