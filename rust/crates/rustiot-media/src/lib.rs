//! Mounts a USB medium that was plugged in, tells the update service of the repository on it, and unmounts it when
//! nothing on it is needed any more.
//!
//! Never reads a file of the medium beyond asking whether there is a repository, never decides what is installed, never
//! mounts the disk that the system runs from. This process mounts and trusts nothing; the update service reads and
//! cannot mount. Run as `rustiot-media NAME` by `rustiot-media@NAME.service`, which udev asks for
//! (`70-rustiot-media.rules`) and systemd ends when the medium is gone. Contract: `docs/contracts/media.md`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustiot_config::Settings;
use rustiot_update::{Check, Kind, Update1Proxy};
use zbus::proxy::CacheProperties;

/// Where media are mounted. The update service takes no others.
const MEDIA: &str = "/run/rustiot/media";
/// The repository's directory at the root of a medium.
const REPOSITORY: &str = "rustiot-repository";
/// What says that there is one.
const TIMESTAMP: &str = "metadata/timestamp.json";
/// What media come formatted with, and nothing whose driver was not made for media of strangers.
const FILE_SYSTEMS: [&str; 2] = ["vfat", "exfat"];
/// What the system itself lies on.
const OWN: [&str; 2] = ["/state", "/data"];
/// How often it is asked whether the medium is still needed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a look is asked for while the service has something else to do, or is away.
const ASK_AGAIN: Duration = Duration::from_secs(20);

/// A medium cannot be used.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("usage: rustiot-media NAME, where NAME is a block device such as sda1")]
    Usage,
    #[error("there is no block device {name}")]
    NoDevice {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{name} is on the disk that this system runs from")]
    Own { name: String },
    #[error("cannot make {}", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount {name} read-only as any of {FILE_SYSTEMS:?}")]
    Mount {
        name: String,
        #[source]
        source: Errno,
    },
    #[error("cannot start")]
    Start(#[source] io::Error),
    #[error("the system bus does not answer")]
    Bus(#[source] zbus::Error),
    #[error("{0}")]
    Refused(String),
}

/// Shows one medium until it is not needed, or gone. The exit code.
#[must_use]
pub fn main(arguments: &[String]) -> u8 {
    match run(arguments) {
        Ok(said) => {
            println!("{said}");
            0
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut next = std::error::Error::source(&error);
            while let Some(cause) = next {
                text = format!("{text}: {cause}");
                next = cause.source();
            }
            eprintln!("rustiot-media: {text}");
            match error {
                Error::Usage => 2,
                Error::Own { .. } | Error::Refused(_) => 3,
                _ => 1,
            }
        }
    }
}

fn run(arguments: &[String]) -> Result<String, Error> {
    let [name] = arguments else { return Err(Error::Usage) };
    if !is_name(name) {
        return Err(Error::Usage);
    }
    if !Settings::load_effective().unwrap_or_default().update.media {
        return Ok("media are not looked at (update.media is false)".into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    runtime.block_on(serve(name))
}

/// A kernel's name of a block device, and nothing that leads elsewhere.
fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

async fn serve(name: &str) -> Result<String, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let disk = disk_of(Path::new("/sys/class/block").join(name).as_path())
        .map_err(|source| Error::NoDevice { name: name.to_owned(), source })?;
    if OWN.iter().any(|dir| disk_below(Path::new(dir)).is_some_and(|own| own == disk)) {
        return Err(Error::Own { name: name.to_owned() });
    }
    let mounted = Mounted::new(name)?;
    let dir = mounted.0.join(REPOSITORY);
    if !dir.join(TIMESTAMP).is_file() {
        return Ok(format!("{name} holds no {REPOSITORY}/{TIMESTAMP}"));
    }
    let dir = dir.display().to_string();
    println!("{dir} is there");
    let service = service().await?;
    tokio::select! {
        said = show(&service, &dir) => said,
        _ = terminate.recv() => {
            // Out of sight first, so that whoever reads meets its end and not half of it.
            drop(mounted);
            let told = service.medium(&dir, false).await;
            Ok(told.map_or_else(|error| error.into_failure().to_string(), |_| format!("{name} is gone")))
        }
    }
}

async fn service() -> Result<Update1Proxy<'static>, Error> {
    let connect = async {
        let connection = rustiot_update::system_bus()?.build().await?;
        Update1Proxy::builder(&connection).cache_properties(CacheProperties::No).build().await
    };
    connect.await.map_err(Error::Bus)
}

/// What becomes of an answer of the update service.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// A person may name it: it stays until it is pulled out.
    Stay,
    /// It stays for as long as the service needs it.
    WhileNeeded,
    /// Nobody needs it.
    Done(String),
}

fn next(check: &str) -> Next {
    match serde_json::from_str::<Check>(check) {
        Ok(check) => match check.result.as_str() {
            "manual" => Next::Stay,
            "available" => Next::WhileNeeded,
            _ => Next::Done(check.message),
        },
        Err(error) => Next::Done(format!("the update service's answer cannot be read: {error}")),
    }
}

/// Has the service look, until the medium is not needed.
async fn show(service: &Update1Proxy<'_>, dir: &str) -> Result<String, Error> {
    loop {
        match service.medium(dir, true).await {
            Ok(check) => match next(&check) {
                Next::Stay => std::future::pending().await,
                Next::Done(said) => return Ok(said),
                // When the service is started anew it must be told again: then it goes round once more.
                Next::WhileNeeded => loop {
                    match service.needs_medium().await {
                        Ok(needed) if needed == dir => tokio::time::sleep(LOOK_EVERY).await,
                        Ok(_) => return Ok(format!("{dir} is not needed any more")),
                        Err(_) => break,
                    }
                },
            },
            Err(error) => {
                let failure = error.into_failure();
                if !matches!(failure.kind, Kind::Busy | Kind::Unreachable) {
                    return Err(Error::Refused(failure.to_string()));
                }
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// The whole disk that a block device of sysfs is on, or is.
fn disk_of(device: &Path) -> io::Result<PathBuf> {
    let path = device.canonicalize()?;
    let whole = if path.join("partition").exists() { path.parent().unwrap_or(&path) } else { &path };
    Ok(whole.to_owned())
}

/// The disk that `dir` lies on; none where its file system has no device.
fn disk_below(dir: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let dev = dir.metadata().ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    disk_of(Path::new(&format!("/sys/dev/block/{major}:{minor}"))).ok()
}

/// A mounted medium; unmounted when it is dropped.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Mounted {
    fn new(name: &str) -> Result<Self, Error> {
        let dir = Path::new(MEDIA).join(name);
        // What a process before this one left.
        unmount(&dir);
        fs::create_dir_all(&dir).map_err(|source| Error::Make { path: dir.clone(), source })?;
        let device = Path::new("/dev").join(name);
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mut last = Errno::ENODEV;
        for kind in FILE_SYSTEMS {
            match mount(Some(&device), &dir, Some(kind), flags, Some("fmask=0133,dmask=0022")) {
                Ok(()) => return Ok(Self(dir)),
                // A kernel without this driver says nothing about the medium.
                Err(Errno::ENODEV) => {}
                Err(error) => last = error,
            }
        }
        let _ = fs::remove_dir(&dir);
        Err(Error::Mount { name: name.to_owned(), source: last })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// Takes away whatever is mounted at `dir`, now: what still reads from it keeps its open files. And the directory.
fn unmount(dir: &Path) {
    while umount2(dir, MntFlags::MNT_DETACH).is_ok() {}
    // Only an empty one goes.
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernels_name_is_taken() {
        for name in ["sda1", "mmcblk1p2", "nvme0n1p1"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "../sda1", "sda/1", "SDA", "sda 1", &"a".repeat(33)] {
            assert!(!is_name(name), "{name}");
        }
        assert_eq!(main(&[]), 2);
        assert_eq!(main(&["../etc".to_owned()]), 2);
    }

    #[test]
    fn a_partition_is_on_its_disk_and_a_disk_on_itself() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (disk, part) = (root.join("sda"), root.join("sda/sda1"));
        fs::create_dir_all(part.join("partition")).unwrap();
        assert_eq!(disk_of(&part).unwrap(), disk);
        assert_eq!(disk_of(&disk).unwrap(), disk);
        std::os::unix::fs::symlink(&part, root.join("link")).unwrap();
        assert_eq!(disk_of(&root.join("link")).unwrap(), disk);
        assert!(disk_of(&root.join("sdb")).is_err());
        // What has no device lies on no disk.
        assert_eq!(disk_below(Path::new("/proc")), None);
    }

    #[test]
    fn a_medium_stays_for_as_long_as_the_answer_says() {
        let answer = |result: &str| {
            next(&format!(
                r#"{{"at":1,"source":"/x","result":"{result}","version":null,"message":"m","bytes":0}}"#
            ))
        };
        assert_eq!(answer("manual"), Next::Stay);
        assert_eq!(answer("available"), Next::WhileNeeded);
        for over in ["up-to-date", "halted", "known-bad", "anything"] {
            assert_eq!(answer(over), Next::Done("m".into()));
        }
        assert!(matches!(next("{"), Next::Done(text) if text.contains("cannot be read")));
    }
}
