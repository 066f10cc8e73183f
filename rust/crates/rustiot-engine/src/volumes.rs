//! Volumes with options of Docker's `local` driver: a directory of the host's (`type=none,o=bind`), or memory
//! (`type=tmpfs`) that the containers share that run with it.
//!
//! Memory is mounted for the first container that starts and goes with the last one. Never mounts what needs the network
//! or a device: that is a mount unit's business, and a bind mount then. Called at creation, start and end of containers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustiot_docker_api::Error;

/// Where what is in a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// In the volume's own directory.
    Own,
    /// In a directory of the host.
    Bind { device: PathBuf, read_only: bool },
    /// In memory.
    Memory { flags: MsFlags, data: String },
}

/// What the options mean.
///
/// # Errors
/// Options that make no sense, with Docker's texts, and what this engine does not mount.
pub fn backing(options: &BTreeMap<String, String>) -> Result<Backing, Error> {
    if options.is_empty() {
        return Ok(Backing::Own);
    }
    if let Some(odd) = options.keys().find(|key| !["type", "device", "o"].contains(&key.as_str())) {
        return Err(match odd.as_str() {
            "size" => Error::Unsupported("volumes have no quota (option \"size\")".to_owned()),
            _ => Error::Invalid(format!("invalid option: {odd:?}")),
        });
    }
    let of = |key: &str| options.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let needed = |key| of(key).ok_or_else(|| Error::Invalid(format!("missing required option: {key:?}")));
    let (kind, device) = (needed("type")?, needed("device")?);
    let words = of("o").unwrap_or_default().split(',').filter(|word| !word.is_empty());
    match kind {
        "tmpfs" => memory(words),
        "none" | "bind" => bind(device, words),
        _ => Err(Error::Unsupported(format!(
            "volumes of type {kind:?} are not supported: mount it on the host, and use type none with o=bind"
        ))),
    }
}

fn bind<'a>(device: &str, words: impl Iterator<Item = &'a str>) -> Result<Backing, Error> {
    let (mut is_bind, mut read_only) = (false, false);
    for word in words {
        match word {
            "bind" | "rbind" => is_bind = true,
            "ro" => read_only = true,
            "rw" => read_only = false,
            _ => return Err(Error::Unsupported(format!("the option {word:?} of a bind is not supported"))),
        }
    }
    if !is_bind {
        return Err(Error::Invalid("a volume of type none needs o=bind".to_owned()));
    }
    let clean = !device.split('/').any(|part| part == "..");
    if !device.starts_with('/') || !clean {
        return Err(Error::Invalid(format!("device={device} must be an absolute path of the host")));
    }
    Ok(Backing::Bind { device: device.into(), read_only })
}

fn memory<'a>(words: impl Iterator<Item = &'a str>) -> Result<Backing, Error> {
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for word in words {
        let (flag, on) = match word {
            "ro" => (MsFlags::MS_RDONLY, true),
            "rw" => (MsFlags::MS_RDONLY, false),
            "noexec" => (MsFlags::MS_NOEXEC, true),
            "exec" => (MsFlags::MS_NOEXEC, false),
            "nosuid" => (MsFlags::MS_NOSUID, true),
            "suid" => (MsFlags::MS_NOSUID, false),
            "nodev" => (MsFlags::MS_NODEV, true),
            "dev" => (MsFlags::MS_NODEV, false),
            "noatime" => (MsFlags::MS_NOATIME, true),
            _ => {
                let known = ["size", "nr_inodes", "mode", "uid", "gid"];
                if word.split_once('=').is_none_or(|(key, _)| !known.contains(&key)) {
                    return Err(Error::Invalid(format!("invalid option {word:?} of a tmpfs")));
                }
                data.push(word);
                continue;
            }
        };
        flags.set(flag, on);
    }
    Ok(Backing::Memory { flags, data: data.join(",") })
}

/// Which containers run with which volume in memory.
#[derive(Default)]
pub struct InMemory(Mutex<BTreeMap<PathBuf, BTreeSet<String>>>);

impl InMemory {
    /// A container is about to run with it, or runs with it: it is mounted if it is not.
    ///
    /// # Errors
    /// The system's.
    pub fn enter(&self, data: &Path, flags: MsFlags, options: &str, container: &str) -> io::Result<()> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_mounted(data)? {
            mount(Some("tmpfs"), data, Some("tmpfs"), flags, Some(options))?;
        }
        all.entry(data.to_owned()).or_default().insert(container.to_owned());
        Ok(())
    }

    /// A container runs no more: what it was the last one to have goes.
    pub fn leave(&self, container: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|data, users| {
            if users.remove(container) && users.is_empty() {
                let _ = umount2(data, MntFlags::MNT_DETACH);
            }
            !users.is_empty()
        });
    }
}

/// Whether something is mounted there: then it is on another device than the directory it is in.
fn is_mounted(data: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let above = data.parent().unwrap_or(data);
    Ok(std::fs::metadata(data)?.dev() != std::fs::metadata(above)?.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[(&str, &str)]) -> Result<Backing, Error> {
        backing(&options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn options_mean_what_they_mean_to_docker() {
        assert_eq!(of(&[]).unwrap(), Backing::Own);
        assert_eq!(
            of(&[("type", "none"), ("o", "bind,ro"), ("device", "/srv")]).unwrap(),
            Backing::Bind { device: "/srv".into(), read_only: true }
        );
        assert_eq!(
            of(&[("type", "tmpfs"), ("o", "size=8m,uid=1000,noexec"), ("device", "tmpfs")]).unwrap(),
            Backing::Memory { flags: MsFlags::MS_NOEXEC, data: "size=8m,uid=1000".to_owned() }
        );
        for (odd, text) in [
            (&[("type", "tmpfs")][..], "missing required option: \"device\""),
            (&[("device", "/x")], "missing required option: \"type\""),
            (&[("o", "bind")], "missing required option"),
            (&[("nonsense", "1")], "invalid option: \"nonsense\""),
            (&[("type", "none"), ("device", "/x")], "needs o=bind"),
            (&[("type", "none"), ("o", "bind"), ("device", "x")], "absolute path"),
            (&[("type", "none"), ("o", "bind"), ("device", "/x/../y")], "absolute path"),
            (&[("type", "none"), ("o", "bind,odd"), ("device", "/x")], "not supported"),
            (&[("type", "tmpfs"), ("o", "size"), ("device", "tmpfs")], "invalid option \"size\""),
            (&[("type", "nfs"), ("o", "addr=h"), ("device", ":/x")], "not supported: mount it on the host"),
            (&[("size", "1g")], "no quota"),
        ] {
            let error = of(odd).unwrap_err().to_string();
            assert!(error.contains(text), "{odd:?}: {error}");
        }
    }
}
