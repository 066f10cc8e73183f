//! Debian packages, downloaded and unpacked for the device's architecture. No maintainer script runs: a foreign
//! architecture needs no emulation, and nothing random or of the build machine gets in. What those scripts would have
//! done is in [`crate::root`] and `conf/lab/rootfs`.

use crate::cache::{Key, sorted, stage, write};
use crate::context::{Context, Progress};
use crate::error::{At, Error, content};
use crate::packages::Packages;
use crate::toolbox::{Toolbox, output, watched};
use rustiot_board::Arch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Unpacked packages.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    dir: PathBuf,
}

/// One package, as the list beside an image names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Debian's name.
    pub name: String,
    /// Debian's version.
    pub version: String,
}

impl Base {
    /// The packages for `arch`. Versions are those of the day on which the cache entry was made.
    pub(crate) fn ensure(
        ctx: &Context,
        toolbox: &Toolbox,
        arch: Arch,
        dev: bool,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let list = ctx.conf("lab/packages.toml");
        let packages = Packages::load(&list)?;
        let key = Key::new("base 1").file(&list)?.text(arch.debian()).text(if dev { "dev" } else { "" });
        let title = format!("base packages ({})", arch.debian());
        let dir = stage(ctx, progress, ("base", &title, 1 << 30), &key.finish(), |work| {
            create(ctx, toolbox, &packages, arch, dev, work, progress)
        })?;
        Ok(Base { dir })
    }

    /// The unpacked tree without modules and kernel.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// All modules of the kernel with their index, compressed as Debian ships them: `<release>/kernel/…`.
    pub(crate) fn modules(&self) -> Result<PathBuf, Error> {
        let dir = self.dir.join("modules/lib/modules");
        match sorted(&dir)?.into_iter().next() {
            Some((_, path)) => Ok(path),
            None => Err(content(dir, "no kernel modules")),
        }
    }

    /// The packages by name.
    pub(crate) fn packages(&self) -> Result<Vec<Package>, Error> {
        read_json(&self.dir.join("packages.json"))
    }

    /// Which package each file came from.
    pub(crate) fn owners(&self) -> Result<BTreeMap<String, String>, Error> {
        read_json(&self.dir.join("files.json"))
    }

    /// What stands for these packages in the key of a later step.
    pub(crate) fn key(&self) -> Result<Vec<u8>, Error> {
        let path = self.dir.join("packages.json");
        let mut key = std::fs::read(&path).at("read", &path)?;
        // The directory's name is the hash of the list that the packages were stripped by.
        key.extend_from_slice(
            self.dir.as_os_str().as_encoded_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default(),
        );
        Ok(key)
    }
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = std::fs::read(path).at("read", path)?;
    serde_json::from_slice(&bytes).map_err(|e| content(path, e.to_string()))
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| content(path, e.to_string()))?;
    bytes.push(b'\n');
    write(path, bytes)
}

fn create(
    ctx: &Context,
    toolbox: &Toolbox,
    packages: &Packages,
    arch: Arch,
    dev: bool,
    work: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    // Downloads outlive the entry: a changed list fetches what is new only.
    let apt = ctx.cache().join("apt").join(arch.debian());
    let archives = download(toolbox, packages, arch, dev, &apt, work, progress)?;
    let root = work.join("root");
    std::fs::create_dir(&root).at("create", &root)?;
    let (versions, owners) = unpack(toolbox, &packages.target.without, archives, &root)?;
    split_kernel(toolbox, &root, work)?;
    strip(toolbox, &root, &packages.strip.paths)?;
    write_json(&work.join("packages.json"), &versions)?;
    write_json(&work.join("files.json"), &owners)
}

/// Unpacks what is not left out: its name and version, and then each file that it wrote, on a line.
const UNPACK: &str = r#"root=$1; shift
for deb; do
  dpkg-deb --show --showformat='package ${Package} ${Version}\n' "$deb"
  dpkg-deb --fsys-tarfile "$deb" | tar --extract --verbose --keep-directory-symlink -p --numeric-owner -C "$root"
done"#;

/// Unpacks `archives` but for those of the packages in `without`. Returns packages by name, and each file's package.
fn unpack(
    toolbox: &Toolbox,
    without: &[String],
    archives: Vec<PathBuf>,
    root: &Path,
) -> Result<(Vec<Package>, BTreeMap<String, String>), Error> {
    let wanted = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split('_').next());
        name.is_none_or(|n| !without.iter().any(|w| w == n))
    };
    let mut command = toolbox.command("bash");
    command.args(["-e", "-o", "pipefail", "-c", UNPACK, "bash"]).arg(root);
    command.args(order(archives).into_iter().filter(wanted));
    let mut packages = Vec::new();
    let mut owners = BTreeMap::new();
    for line in output("dpkg-deb", &mut command)?.lines() {
        if let Some((name, version)) = line.strip_prefix("package ").and_then(|l| l.split_once(' ')) {
            packages.push(Package { name: name.into(), version: version.into() });
        } else if let Some(package) = packages.last() {
            owners
                .insert(line.trim_start_matches("./").trim_end_matches('/').to_owned(), package.name.clone());
        }
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((packages, owners))
}

/// Downloads the packages and what they depend on into `apt`; returns the archives that belong to this list.
fn download(
    toolbox: &Toolbox,
    packages: &Packages,
    arch: Arch,
    dev: bool,
    apt: &Path,
    work: &Path,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>, Error> {
    for dir in ["lists/partial", "archives/partial"] {
        let dir = apt.join(dir);
        std::fs::create_dir_all(&dir).at("create", &dir)?;
    }
    let status = work.join("status");
    write(&status, "")?;
    let config = work.join("apt.conf");
    write(
        &config,
        format!(
            "Dir::State::Lists \"{apt}/lists\";\nDir::State::Status \"{status}\";\nDir::Cache \"{apt}\";\n\
             Dir::Cache::Archives \"{apt}/archives\";\nDir::State::extended_states \"{apt}/extended_states\";\n\
             APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\nAPT::Install-Recommends \"false\";\n\
             APT::Sandbox::User \"root\";\nAPT::Keep-Downloaded-Packages \"true\";\nBinary::apt-get::APT::Keep-Downloaded-Packages \"true\";\n",
            apt = apt.display(),
            status = status.display(),
            arch = arch.debian(),
        ),
    )?;
    let variable = format!("APT_CONFIG={}", config.display());
    let command = |args: &[&str]| {
        let mut command = toolbox.command("env");
        command.arg(&variable).args(["apt-get", "-q"]).args(args);
        command
    };
    watched("apt-get update", &mut command(&["update"]), progress)?;
    let mut wanted = packages.target.packages.clone();
    let kernel = packages.target.kernel.of(arch);
    let missing = || content("conf/lab/packages.toml", format!("names no kernel for {}", arch.debian()));
    wanted.push(kernel.ok_or_else(missing)?.to_owned());
    if dev {
        wanted.extend(packages.target.dev.iter().cloned());
    }
    let install = |mode: &str| {
        let mut command = command(&["install", "--yes", mode]);
        command.args(&wanted);
        command
    };
    watched("apt-get install", &mut install("--download-only"), progress)?;
    let uris = archives_of(&output("apt-get install", &mut install("--simulate"))?);
    let mut found = Vec::new();
    for (_, path) in sorted(&apt.join("archives"))? {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if uris.iter().any(|wanted| name.starts_with(wanted.as_str())) {
            found.push(path);
        }
    }
    if found.len() != uris.len() {
        return Err(content(apt, format!("{} packages are needed, {} are here", uris.len(), found.len())));
    }
    std::fs::remove_file(&status).at("remove", &status)?;
    std::fs::remove_file(&config).at("remove", &config)?;
    Ok(found)
}

/// The beginnings of the archives' file names, from lines such as `Inst kmod (34.2-2 Debian:13.2/stable [amd64])`.
fn archives_of(simulation: &str) -> Vec<String> {
    let archive = |line: &str| {
        let mut words = line.strip_prefix("Inst ")?.split_whitespace();
        let name = words.next()?;
        let version = words.find_map(|w| w.strip_prefix('('))?;
        // apt writes a colon in a version as %3a in a file name.
        Some(format!("{}_{}_", name.split(':').next()?, version.replace(':', "%3a")))
    };
    simulation.lines().filter_map(archive).collect()
}

/// `base-files` first: its links decide where /bin and /lib lead.
fn order(mut archives: Vec<PathBuf>) -> Vec<PathBuf> {
    let is_base =
        |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("base-files_"));
    archives.sort_by_key(|p| (!is_base(p), p.clone()));
    archives
}

/// Takes kernel and modules out of the tree and indexes the modules.
fn split_kernel(toolbox: &Toolbox, root: &Path, work: &Path) -> Result<(), Error> {
    let boot = root.join("boot");
    let kernel = sorted(&boot)?
        .into_iter()
        .map(|(_, path)| path)
        .find(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("vmlinuz-")))
        .ok_or_else(|| content(&boot, "the kernel package holds no vmlinuz"))?;
    std::fs::copy(&kernel, work.join("vmlinuz")).at("copy", &kernel)?;
    let modules = work.join("modules/lib");
    std::fs::create_dir_all(&modules).at("create", &modules)?;
    toolbox.run("mv", [root.join("usr/lib/modules").as_os_str(), modules.as_os_str()])?;
    for (release, _) in sorted(&modules.join("modules"))? {
        toolbox.run("depmod", ["-b".as_ref(), work.join("modules").as_os_str(), release.as_os_str()])?;
    }
    Ok(())
}

/// Removes what matches the patterns (shell patterns, relative to the root).
fn strip(toolbox: &Toolbox, root: &Path, patterns: &[String]) -> Result<(), Error> {
    let script = "cd \"$1\" && shift && for pattern; do rm -rf -- ./$pattern; done";
    toolbox
        .run("sh", [&["-c", script, "sh"], &[&*root.to_string_lossy()][..], &refs(patterns)[..]].concat())?;
    Ok(())
}

fn refs(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_named_as_apt_names_them() {
        let text = "Reading lists\nInst login:arm64 [1] (1:4.16.0-2+really2.41.5 Debian:13.2/stable [arm64]) [x]\n\
                    Inst kmod (34.2-2 Debian:13.2/stable [amd64])\nConf kmod (34.2-2 x)\n";
        assert_eq!(archives_of(text), ["login_1%3a4.16.0-2+really2.41.5_", "kmod_34.2-2_"]);
    }

    #[test]
    fn base_files_comes_first() {
        let sorted = order(vec!["/a/bash_1.deb".into(), "/a/base-files_1.deb".into(), "/a/acl_1.deb".into()]);
        assert_eq!(
            sorted,
            [PathBuf::from("/a/base-files_1.deb"), "/a/acl_1.deb".into(), "/a/bash_1.deb".into()]
        );
    }
}
