//! What a container is made of: the request over the image's own configuration, mounts and names resolved.
//!
//! Pure. Called when a container is created.

use std::collections::BTreeMap;

use rustiot_docker_api::Error;
use rustiot_docker_api::types::{ContainerConfig, CreateContainer, HealthConfig};
use rustiot_images::manifest::RunConfig;

use crate::record::{Mount, MountKind};

/// The environment that programs expect when nobody says otherwise.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The image's configuration as Docker shows it.
pub fn of_image(image: &RunConfig) -> ContainerConfig {
    ContainerConfig {
        user: image.user.clone(),
        env: image.env.clone(),
        entrypoint: image.entrypoint.clone(),
        cmd: image.cmd.clone(),
        working_dir: image.working_dir.clone(),
        exposed_ports: image.exposed_ports.keys().map(|k| (k.clone(), Default::default())).collect(),
        volumes: image.volumes.keys().map(|k| (k.clone(), Default::default())).collect(),
        labels: image.labels.clone(),
        stop_signal: image.stop_signal.clone().unwrap_or_default(),
        stop_timeout: image.stop_timeout,
        shell: image.shell.clone(),
        healthcheck: image.healthcheck.as_ref().map(|h| HealthConfig {
            test: h.test.clone(),
            interval: h.interval,
            timeout: h.timeout,
            start_period: h.start_period,
            start_interval: h.start_interval,
            retries: h.retries,
        }),
        ..ContainerConfig::default()
    }
}

/// The request's configuration over the image's.
pub fn merge(request: &ContainerConfig, image: &RunConfig) -> ContainerConfig {
    let base = of_image(image);
    let mut merged = request.clone();
    let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    if given(&merged.entrypoint) {
        // `--entrypoint ""` takes the image's away.
        if merged.entrypoint.as_ref().is_some_and(|e| e.iter().all(String::is_empty)) {
            merged.entrypoint = None;
        }
    } else {
        merged.entrypoint = base.entrypoint;
        if !given(&merged.cmd) {
            merged.cmd = base.cmd;
        }
    }
    merged.env = environment(&base.env, &request.env);
    if merged.user.is_empty() {
        merged.user = base.user;
    }
    if merged.working_dir.is_empty() {
        merged.working_dir = base.working_dir;
    }
    if merged.stop_signal.is_empty() {
        merged.stop_signal = base.stop_signal;
    }
    merged.stop_timeout = merged.stop_timeout.or(base.stop_timeout);
    merged.shell = merged.shell.or(base.shell);
    merged.labels = base.labels.into_iter().chain(request.labels.clone()).collect();
    merged.exposed_ports.extend(base.exposed_ports);
    merged.volumes.extend(base.volumes);
    merged.healthcheck = match (merged.healthcheck.take(), base.healthcheck) {
        (Some(mut own), Some(image)) => {
            if own.test.is_empty() {
                own.test = image.test;
            }
            for (own, image) in [
                (&mut own.interval, image.interval),
                (&mut own.timeout, image.timeout),
                (&mut own.start_period, image.start_period),
                (&mut own.start_interval, image.start_interval),
                (&mut own.retries, image.retries),
            ] {
                if *own == 0 {
                    *own = image;
                }
            }
            Some(own)
        }
        (own, image) => own.or(image),
    };
    merged
}

/// `NAME=value` over `NAME=value`; a bare `NAME` takes it away.
pub fn environment(base: &[String], over: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut out: Vec<String> = base.to_vec();
    for entry in over {
        out.retain(|e| name(e) != name(entry));
        if entry.contains('=') {
            out.push(entry.clone());
        }
    }
    out
}

/// Names for containers that get none.
pub fn name(random: &[u8]) -> String {
    const FIRST: [&str; 16] = [
        "amber", "brave", "calm", "clear", "eager", "fair", "gentle", "keen", "lucid", "merry", "noble",
        "plain", "quick", "quiet", "steady", "warm",
    ];
    const SECOND: [&str; 16] = [
        "alder", "birch", "brook", "cedar", "cliff", "dune", "fjord", "glade", "heath", "lark", "marsh",
        "otter", "pine", "ridge", "tern", "vale",
    ];
    let of = |list: [&'static str; 16], n: usize| {
        let index = random.get(n).map_or(0, |b| usize::from(b % 16));
        list.get(index).copied().unwrap_or("plain")
    };
    let number = random.get(2).copied().unwrap_or(0);
    format!("{}_{}_{number:02x}", of(FIRST, 0), of(SECOND, 1))
}

fn target(path: &str) -> Result<String, Error> {
    let clean = path.trim_end_matches('/');
    if !path.starts_with('/') || clean.is_empty() || clean.split('/').any(|c| c == "..") {
        return Err(Error::Invalid(format!(
            "invalid mount config: '{path}' must be an absolute path in the container, and not its root"
        )));
    }
    Ok(clean.to_owned())
}

/// Docker's rule for names of volumes.
pub fn is_volume_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.len() > 1
        && name.len() <= 255
        && letters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// What a volume is to be made with, if it is made now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

/// All mounts of a container.
pub type Mounts = (Vec<Mount>, Vec<String>, BTreeMap<String, NewVolume>);

fn volume(name: &str, to: String) -> Result<Mount, Error> {
    if !name.is_empty() && !is_volume_name(name) {
        return Err(Error::Invalid(format!(
            "\"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        )));
    }
    Ok(Mount {
        kind: MountKind::Volume,
        name: name.to_owned(),
        source: String::new(),
        target: to,
        read_only: false,
        propagation: String::new(),
        anonymous: name.is_empty(),
        copy_up: true,
        options: String::new(),
        mode: String::new(),
    })
}

/// A path of the host.
pub fn bind(source: &str, to: String) -> Mount {
    Mount {
        kind: MountKind::Bind,
        name: String::new(),
        source: source.to_owned(),
        target: to,
        read_only: false,
        propagation: String::new(),
        anonymous: false,
        copy_up: false,
        options: String::new(),
        mode: String::new(),
    }
}

/// All mounts that a request asks for; with the paths of the host that are to be made when they are missing, and what
/// volumes are to be made with, by the places of their mounts.
///
/// # Errors
/// What makes no sense, and what this engine does not do.
pub fn mounts(request: &CreateContainer, config: &ContainerConfig) -> Result<Mounts, Error> {
    let mut all: BTreeMap<String, Mount> = BTreeMap::new();
    let mut make = Vec::new();
    let mut new = BTreeMap::new();
    let mut add = |mount: Mount| match all.insert(mount.target.clone(), mount) {
        Some(old) => Err(Error::Invalid(format!("Duplicate mount point: {}", old.target))),
        None => Ok(()),
    };
    for entry in &request.host_config.binds {
        let parts: Vec<&str> = entry.split(':').collect();
        let (source, to, mode) = match parts.as_slice() {
            [to] => ("", *to, ""),
            [source, to] => (*source, *to, ""),
            [source, to, mode] => (*source, *to, *mode),
            _ => return Err(Error::Invalid(format!("invalid volume specification: '{entry}'"))),
        };
        let to = target(to)?;
        let mut mount = if source.starts_with('/') {
            make.push(source.to_owned());
            bind(source, to)
        } else {
            volume(source, to)?
        };
        for option in mode.split(',').filter(|o| !o.is_empty()) {
            match option {
                "ro" => mount.read_only = true,
                "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
                "nocopy" => mount.copy_up = false,
                "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                    mount.propagation = option.to_owned()
                }
                _ => return Err(Error::Invalid(format!("invalid mode: {mode}"))),
            }
        }
        mount.mode = mode.to_owned();
        add(mount)?;
    }
    for wanted in &request.host_config.mounts {
        let to = target(&wanted.target)?;
        let mut mount = match wanted.kind.as_str() {
            "bind" => {
                let options = wanted.bind_options.clone().unwrap_or_default();
                if options.create_mountpoint {
                    make.push(wanted.source.clone());
                } else if !std::path::Path::new(&wanted.source).exists() {
                    return Err(Error::Invalid(format!(
                        "invalid mount config for type \"bind\": bind source path does not exist: {}",
                        wanted.source
                    )));
                }
                let mut mount = bind(&wanted.source, to);
                mount.propagation = options.propagation;
                mount
            }
            "volume" => {
                let options = wanted.volume_options.clone().unwrap_or_default();
                if !options.subpath.is_empty() {
                    return Err(Error::Unsupported(
                        "a part of a volume (volume-subpath) is not supported".to_owned(),
                    ));
                }
                let driver = options.driver_config.unwrap_or_default();
                if !["", "local"].contains(&driver.name.as_str()) {
                    return Err(Error::NotFound(format!(
                        "error looking up volume plugin {0}: plugin \"{0}\" not found",
                        driver.name
                    )));
                }
                new.insert(to.clone(), NewVolume { labels: options.labels, options: driver.options });
                let mut mount = volume(&wanted.source, to)?;
                mount.copy_up = !options.no_copy;
                mount
            }
            "tmpfs" => {
                let options = wanted.tmpfs_options.clone().unwrap_or_default();
                let mut mount = bind("", to);
                mount.kind = MountKind::Tmpfs;
                let mut list = Vec::new();
                if options.size_bytes > 0 {
                    list.push(format!("size={}", options.size_bytes));
                }
                if options.mode > 0 {
                    list.push(format!("mode={:o}", options.mode));
                }
                mount.options = list.join(",");
                mount
            }
            other => return Err(Error::Unsupported(format!("mounts of type {other:?} are not supported"))),
        };
        mount.read_only = wanted.read_only;
        add(mount)?;
    }
    for (path, options) in &request.host_config.tmpfs {
        let mut mount = bind("", target(path)?);
        mount.kind = MountKind::Tmpfs;
        mount.options = options.clone();
        mount.read_only = options.split(',').any(|o| o == "ro");
        add(mount)?;
    }
    for path in config.volumes.keys() {
        let to = target(path)?;
        if !all.contains_key(&to) {
            all.insert(to.clone(), volume("", to)?);
        }
    }
    Ok((all.into_values().collect(), make, new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|w| (*w).to_owned()).collect())
    }

    #[test]
    fn an_entry_point_takes_the_image_s_command_away() {
        let image = RunConfig { entrypoint: list(&["/in"]), cmd: list(&["serve"]), ..RunConfig::default() };
        let of = |entrypoint, cmd| {
            let merged = merge(&ContainerConfig { entrypoint, cmd, ..ContainerConfig::default() }, &image);
            (merged.entrypoint, merged.cmd)
        };
        assert_eq!(of(None, None), (list(&["/in"]), list(&["serve"])));
        assert_eq!(of(None, list(&["x"])), (list(&["/in"]), list(&["x"])));
        assert_eq!(of(list(&["/own"]), None), (list(&["/own"]), None));
        assert_eq!(of(list(&[""]), list(&["x"])), (None, list(&["x"])));
    }

    #[test]
    fn environments_are_merged_by_name() {
        let words = |w: &[&str]| list(w).unwrap();
        assert_eq!(
            environment(&words(&["A=1", "B=2"]), &words(&["B=3", "C=4", "A"])),
            words(&["B=3", "C=4"])
        );
    }

    #[test]
    fn binds_are_read_as_docker_reads_them() {
        let mut request = CreateContainer::default();
        request.host_config.binds = list(&["/host:/a:ro", "data:/b", "/c", "named:/d:nocopy,rw"]).unwrap();
        request.host_config.tmpfs = [("/tmp".to_owned(), "size=1m".to_owned())].into();
        let mut config = ContainerConfig::default();
        config.volumes.insert("/b".to_owned(), Default::default());
        config.volumes.insert("/e".to_owned(), Default::default());
        let (mounts, make, _) = mounts(&request, &config).unwrap();
        let short: Vec<_> = mounts
            .iter()
            .map(|m| (m.target.as_str(), m.kind, m.name.as_str(), m.read_only, m.copy_up))
            .collect();
        assert_eq!(
            short,
            [
                ("/a", MountKind::Bind, "", true, false),
                ("/b", MountKind::Volume, "data", false, true),
                ("/c", MountKind::Volume, "", false, true),
                ("/d", MountKind::Volume, "named", false, false),
                ("/e", MountKind::Volume, "", false, true),
                ("/tmp", MountKind::Tmpfs, "", false, false),
            ]
        );
        assert_eq!(make, ["/host"]);
        for bad in ["/h:/a:/b:/c", "x:relative", "/h:/", "/h:/a:nonsense", "?x:/a", "/h:/a/../.."] {
            request.host_config.binds = list(&[bad]).unwrap();
            assert!(super::mounts(&request, &config).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_names() {
        assert_eq!(name(&[0, 1, 255]), "amber_birch_ff");
        assert!(
            is_volume_name("data_1.x-y")
                && !is_volume_name("-x")
                && !is_volume_name("a/b")
                && !is_volume_name("")
        );
    }
}
