//! The root file system: base packages, finished without maintainer scripts, plus everything that is ours; then one
//! erofs with its verity tree. Same inputs, same bytes.

use crate::accounts;
use crate::base::{Base, Package, read_json, write_json};
use crate::cache::{Key, remove, sorted, stage, write};
use crate::context::{Context, Progress};
use crate::date::BuildDate;
use crate::error::{At, Error, content};
use crate::image::Request;
use crate::initramfs::unpack;
use crate::modules::Index;
use crate::programs::Programs;
use crate::toolbox::Toolbox;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use rustiot_board::{Board, KernelModules, Size};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Bytes per block of data and of hashes.
const BLOCK: u64 = 4096;
/// The time of every file in every image: what changes between two releases shall be their content. When a release was
/// built is another thing ([`crate::BuildDate`]).
pub(crate) const EPOCH: u64 = 1_750_000_000;
/// The one file that bears the build's date: systemd sets a clock that is earlier to the time of this file, before
/// anything else starts (systemd(1)).
const CLOCK_EPOCH: &str = "usr/lib/clock-epoch";
/// Identity of every root: there is one in a slot, and nobody looks for it by this.
const ROOT_UUID: &str = "52757374-496f-5400-8000-000000000001";

/// How the root is checked, block by block; goes into the initramfs as `/rustiot/verity.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verity {
    /// Bytes per data block.
    pub data_block_size: u64,
    /// Bytes per hash block.
    pub hash_block_size: u64,
    /// Data blocks that the tree covers.
    pub data_blocks: u64,
    /// First block of the tree; there is no superblock.
    pub hash_start_block: u64,
    /// Hash algorithm.
    pub algorithm: String,
    /// Root hash in hex.
    pub root_hash: String,
    /// Salt in hex.
    pub salt: String,
}

/// `/usr/lib/rustiot/release.json`.
#[derive(Debug, Serialize)]
struct Release<'a> {
    version: &'a str,
    compatible: &'a str,
    floor: Option<&'a str>,
    build_epoch: u64,
}

impl<'a> Release<'a> {
    fn of(request: &'a Request, compatible: &'a str) -> Self {
        Release {
            version: &request.version,
            compatible,
            floor: request.floor.as_deref(),
            build_epoch: request.build_date.seconds(),
        }
    }
}

/// One line of `sizes.json`: what a package takes in the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageSize {
    /// Debian's name, or `rustiot` for what is ours, `kernel modules`, `generated`.
    pub name: String,
    /// Debian's version; empty for what is ours.
    pub version: String,
    /// Bytes of its files in the root.
    pub bytes: u64,
}

/// A finished root.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) image: PathBuf,
    pub(crate) verity: Verity,
    pub(crate) sizes: PathBuf,
}

/// What a root is made from.
pub(crate) struct Inputs<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) toolbox: &'a Toolbox,
    pub(crate) base: &'a Base,
    pub(crate) programs: &'a Programs,
    pub(crate) board: &'a Board,
    pub(crate) request: &'a Request,
}

impl Inputs<'_> {
    /// Builds the root, or finds it in the cache.
    pub(crate) fn ensure(&self, progress: &dyn Progress) -> Result<Root, Error> {
        let conf = |name: &str| self.ctx.conf(name);
        let mut key = Key::new("root 3")
            .bytes(&self.base.key()?)
            .file(&self.programs.device)?
            .tree(&conf("rootfs"))?
            .tree(&conf("lab"))?
            .file(&conf("layout.toml"))?
            .file(&conf("kernel-modules.toml"))?
            .file(&conf("rauc/system.conf.in"))?
            .file(&self.board_file())?
            .file(&self.request.keyring)?
            .text(&self.request.version)
            .text(self.request.floor.as_deref().unwrap_or_default())
            .text(&self.request.build_date.seconds().to_string())
            .text(if self.request.dev { "dev" } else { "" });
        if let Some(root) = &self.request.repository_root {
            key = key.text("repository root").file(root)?;
        }
        if let Some(overlay) = &self.request.overlay {
            key = key.tree(overlay)?;
        }
        let title = format!("root {} ({})", self.request.version, self.board.name);
        let dir =
            stage(self.ctx, progress, ("root", &title, 500 << 20), &key.finish(), |work| self.create(work))?;
        Ok(Root {
            image: dir.join("root.img"),
            verity: read_json(&dir.join("verity.json"))?,
            sizes: dir.join("sizes.json"),
        })
    }

    fn board_file(&self) -> PathBuf {
        self.ctx.conf("boards").join(format!("{}.toml", self.board.name))
    }

    /// Builds the root in `work`: `root.img`, `verity.json`, `sizes.json`.
    pub(crate) fn create(&self, work: &Path) -> Result<(), Error> {
        let tree = work.join("root");
        copy_tree(&self.base.root(), &tree)?;
        self.modules(&tree)?;
        for name in ["lab/rootfs", "rootfs"] {
            copy_over(&self.ctx.conf(name), &tree)?;
        }
        if self.request.dev {
            copy_over(&self.ctx.conf("lab/rootfs-dev"), &tree)?;
        }
        self.directories(&tree)?;
        self.certificates(&tree)?;
        accounts::create(self.toolbox, &self.ctx.conf("lab/sysusers.conf"), &tree)?;
        self.own_files(&tree)?;
        if let Some(overlay) = &self.request.overlay {
            copy_over(overlay, &tree)?;
        }
        self.presets(&tree)?;
        self.libraries(&tree)?;
        normalise(&tree)?;
        file_times(&tree, self.request.build_date)?;
        write_json(&work.join("sizes.json"), &self.sizes(&tree)?)?;
        let verity = self.image(&tree, &work.join("root.img"))?;
        write_json(&work.join("verity.json"), &verity)?;
        remove(&tree)
    }

    /// The modules that the device may need, uncompressed, with their index.
    fn modules(&self, tree: &Path) -> Result<(), Error> {
        let index = Index::load(&self.base.modules()?)?;
        let file = self.ctx.conf("kernel-modules.toml");
        let common = KernelModules::load(&file)?.modules;
        let board = self.board;
        let mut names = index.closure(common.iter().map(String::as_str), "conf/kernel-modules.toml")?;
        let own = board
            .initramfs_modules()
            .chain(board.modules.rescue.iter().chain(&board.modules.root).map(String::as_str));
        names.extend(index.closure(own, &format!("conf/boards/{}.toml", board.name))?);
        names.sort();
        names.dedup();
        let release = index.release();
        let target = tree.join("usr/lib/modules").join(&release);
        unpack(self.toolbox, &index, &names, &target)?;
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            let from = index.dir().join(name);
            fs::copy(&from, target.join(name)).at("copy", from)?;
        }
        self.toolbox.run("depmod", ["-b".as_ref(), tree.as_os_str(), release.as_ref()])?;
        // libkmod reads the binary index; the text that it was made from is for people with a shell and time.
        for (name, path) in sorted(&target)? {
            let name = name.to_string_lossy();
            let read_by_kmod =
                name.ends_with(".bin") || name == "modules.softdep" || name == "modules.devname";
            if !path.is_dir() && !read_by_kmod {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Mount points and what a maintainer script would have linked.
    fn directories(&self, tree: &Path) -> Result<(), Error> {
        for dir in [
            "dev",
            "proc",
            "sys",
            "run",
            "tmp",
            "var",
            "var/log",
            "var/lib",
            "var/tmp",
            "root",
            "home",
            "mnt",
            "boot",
            "opt",
            "srv",
            "state",
            "data",
            "config",
            "etc/ssh",
            "etc/rauc",
            "etc/systemd/network",
            "usr/lib/rustiot",
        ] {
            let dir = tree.join(dir);
            fs::create_dir_all(&dir).at("create", &dir)?;
        }
        for (name, mode) in [("tmp", 0o1777), ("root", 0o700), ("var/tmp", 0o1777)] {
            let path = tree.join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).at("set the mode of", path)?;
        }
        for (link, to) in [
            ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
            ("etc/mtab", "../proc/self/mounts"),
            ("etc/os-release", "../usr/lib/os-release"),
            ("usr/bin/awk", "mawk"),
            ("usr/bin/pager", "less"),
            // Debian's alternatives, decided.
            ("usr/lib/firmware/regulatory.db", "regulatory.db-debian"),
            ("usr/lib/firmware/regulatory.db.p7s", "regulatory.db.p7s-debian"),
        ] {
            relink(&tree.join(link), to)?;
        }
        // There, so that init can bind the device's own over it; empty, so that two devices never share one.
        write(&tree.join("etc/machine-id"), "")?;
        Ok(())
    }

    /// One bundle of certificates from Debian's list; their hashed links are for programs that are not here.
    fn certificates(&self, tree: &Path) -> Result<(), Error> {
        let store = tree.join("usr/share/ca-certificates");
        let mut bundle = Vec::new();
        for (_, path) in sorted(&store.join("mozilla"))? {
            bundle.extend(fs::read(&path).at("read", path)?);
        }
        let certs = tree.join("etc/ssl/certs");
        fs::create_dir_all(&certs).at("create", &certs)?;
        write(&certs.join("ca-certificates.crt"), bundle)?;
        relink(&tree.join("usr/lib/ssl/cert.pem"), "/etc/ssl/certs/ca-certificates.crt")?;
        remove(&store)
    }

    /// Programs, board, layout, release, keyring, RAUC's configuration.
    fn own_files(&self, tree: &Path) -> Result<(), Error> {
        let lib = tree.join("usr/lib/rustiot");
        let copy = |from: &Path, to: &Path, mode| {
            fs::copy(from, to).at("copy", from)?;
            fs::set_permissions(to, fs::Permissions::from_mode(mode)).at("set the mode of", to)
        };
        copy(&self.programs.device, &tree.join("usr/bin/rustiot"), 0o755)?;
        copy(&self.programs.shim, &lib.join("rustiot-shim"), 0o755)?;
        for name in [
            "rustiot-provision",
            "rustiot-watchdog",
            "rustiot-health",
            "rustiot-update",
            "rustiot-media",
            "rustiot-engine",
            "rustiot-runtime",
            "rauc-backend",
        ] {
            relink(&lib.join(name), "../../bin/rustiot")?;
        }
        copy(&self.board_file(), &lib.join("board.toml"), 0o644)?;
        copy(&self.ctx.conf("layout.toml"), &lib.join("layout.toml"), 0o644)?;
        copy(&self.request.keyring, &lib.join("keyring.pem"), 0o644)?;
        if let Some(root) = &self.request.repository_root {
            copy(root, &lib.join("repository-root.json"), 0o644)?;
        }
        write_json(&lib.join("release.json"), &Release::of(self.request, &self.board.compatible))?;
        write(&tree.join(CLOCK_EPOCH), "")?;
        let template = self.ctx.conf("rauc/system.conf.in");
        let rauc = fs::read_to_string(&template).at("read", template)?;
        let keyring = &self.request.keyring;
        let keyring = fs::read(keyring).at("read", keyring)?;
        write(&tree.join("etc/rauc/system.conf"), rauc_conf(&rauc, &self.board.compatible, &keyring))?;
        write(
            &tree.join("usr/lib/os-release"),
            format!(
                "NAME=\"RustIoT OS\"\nID=rustiot\nID_LIKE=debian\nPRETTY_NAME=\"RustIoT OS {v} (lab image)\"\n\
                 VERSION_ID={v}\nVARIANT_ID=lab\nCPE_NAME=\"cpe:/o:rustiot:rustiot:{v}\"\n",
                v = self.request.version
            ),
        )?;
        // A PAM or polkit rule that a package brought stays; units are chosen by presets alone.
        for dir in sorted(&tree.join("etc/systemd/system"))? {
            let (_, path) = dir;
            if path.to_string_lossy().ends_with(".wants") {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Every library that a program or library names is there: packages are left out by hand, and a forgotten one would
    /// otherwise be found on the device.
    fn libraries(&self, tree: &Path) -> Result<(), Error> {
        let mut there = BTreeSet::new();
        let mut elf = Vec::new();
        for_each(tree, &mut |path, meta| {
            if let Some(name) = path.file_name() {
                there.insert(name.to_string_lossy().into_owned());
            }
            let module = path.extension().is_some_and(|e| e == "ko");
            if meta.is_file() && !module && is_elf(path)? {
                elf.push(path.to_owned());
            }
            Ok(())
        })?;
        let said =
            self.toolbox.run("readelf", [&["--dynamic".into(), "--wide".into()][..], &elf].concat())?;
        match missing_library(&said, &there) {
            None => Ok(()),
            Some((file, library)) => Err(content(
                file.strip_prefix(&*tree.to_string_lossy()).unwrap_or(&file),
                format!(
                    "needs {library}, which is not in the root; keep its package or leave out this file (conf/lab/packages.toml)"
                ),
            )),
        }
    }

    /// Enables the units that the presets name.
    fn presets(&self, tree: &Path) -> Result<(), Error> {
        let root = format!("--root={}", tree.display());
        self.toolbox.run("systemctl", [root.as_str(), "preset-all", "--preset-mode=full"])?;
        Ok(())
    }

    /// erofs, then its verity tree behind it.
    fn image(&self, tree: &Path, image: &Path) -> Result<Verity, Error> {
        let (epoch, uuid) = (format!("-T{EPOCH}"), format!("-U{ROOT_UUID}"));
        // `--mkfs-time`: files keep the time that they have in the tree (`file_times`). No SOURCE_DATE_EPOCH: with it none
        // could be later.
        self.toolbox.run(
            "mkfs.erofs",
            [
                epoch.as_ref(),
                "--mkfs-time".as_ref(),
                uuid.as_ref(),
                "--all-root".as_ref(),
                "-x-1".as_ref(),
                "--quiet".as_ref(),
                image.as_os_str(),
                tree.as_os_str(),
            ],
        )?;
        let bytes = fs::metadata(image).at("read", image)?.len();
        if !bytes.is_multiple_of(BLOCK) {
            return Err(content(image, format!("{bytes} bytes are no whole number of blocks")));
        }
        let data_blocks = bytes / BLOCK;
        // The salt makes precomputed trees useless; from the version, so that the same release has the same hash.
        let salt = hex(&Sha256::digest(format!("{} {}", self.board.compatible, self.request.version)));
        let said = self.toolbox.run(
            "veritysetup",
            [
                "format",
                "--no-superblock",
                &format!("--data-block-size={BLOCK}"),
                &format!("--hash-block-size={BLOCK}"),
                &format!("--data-blocks={data_blocks}"),
                &format!("--hash-offset={bytes}"),
                "--hash=sha256",
                &format!("--salt={salt}"),
                &image.to_string_lossy(),
                &image.to_string_lossy(),
            ],
        )?;
        let root_hash = said
            .lines()
            .find_map(|l| l.strip_prefix("Root hash:"))
            .map(|h| h.trim().to_owned())
            .ok_or_else(|| content(image, "veritysetup named no root hash"))?;
        Ok(Verity {
            data_block_size: BLOCK,
            hash_block_size: BLOCK,
            data_blocks,
            hash_start_block: data_blocks,
            algorithm: "sha256".into(),
            root_hash,
            salt,
        })
    }

    /// What each package takes, largest first.
    fn sizes(&self, tree: &Path) -> Result<Vec<PackageSize>, Error> {
        let owners = self.base.owners()?;
        let versions: BTreeMap<String, String> =
            self.base.packages()?.into_iter().map(|Package { name, version }| (name, version)).collect();
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for_each(tree, &mut |path, meta| {
            if meta.is_file() {
                let inside = path.strip_prefix(tree).unwrap_or(path).to_string_lossy();
                let name = match owners.get(&*inside) {
                    Some(name) => name.clone(),
                    None if inside.starts_with("usr/lib/modules/") => "kernel modules".into(),
                    None if inside.contains("rustiot") => "rustiot".into(),
                    None => "generated".into(),
                };
                let sum = sums.entry(name).or_default();
                *sum = sum.saturating_add(meta.len().next_multiple_of(BLOCK));
            }
            Ok(())
        })?;
        let line = |(name, bytes): (String, u64)| {
            let version = versions.get(&name).cloned().unwrap_or_default();
            PackageSize { name, version, bytes }
        };
        let mut list: Vec<PackageSize> = sums.into_iter().map(line).collect();
        list.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        Ok(list)
    }
}

/// Refuses a root over its budget, naming the largest packages.
pub(crate) fn check_size(root: &Root, limit: Size, board: &str) -> Result<u64, Error> {
    let bytes = fs::metadata(&root.image).at("read", &root.image)?.len();
    if bytes <= limit.bytes() {
        return Ok(bytes);
    }
    let sizes: Vec<PackageSize> = read_json(&root.sizes)?;
    let largest: Vec<String> =
        sizes.iter().take(5).map(|p| format!("{} {}", p.name, Size::from_bytes(p.bytes))).collect();
    Err(Error::TooLarge {
        what: "root image".into(),
        size: Size::from_bytes(bytes),
        limit_name: "its budget".into(),
        limit,
        remedy: format!(
            "raise sizes.root in conf/boards/{board}.toml or shrink it; the largest are {}",
            largest.join(", ")
        ),
    })
}

pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<(), Error> {
    crate::toolbox::output(
        "cp",
        std::process::Command::new("cp").args(["-a", "--reflink=auto", "--"]).arg(from).arg(to),
    )?;
    Ok(())
}

/// Lays the files below `from` over `tree`: links of the merged /usr are followed, owners are root, a file replaces
/// what is there, links included.
pub(crate) fn copy_over(from: &Path, tree: &Path) -> Result<(), Error> {
    if !from.is_dir() {
        return Ok(());
    }
    for (name, path) in sorted(from)? {
        let to = tree.join(&name);
        let meta = fs::symlink_metadata(&path).at("read", &path)?;
        if meta.is_dir() {
            let exists = fs::symlink_metadata(&to);
            let link_in_tree = exists.as_ref().is_ok_and(fs::Metadata::is_symlink);
            let below = if link_in_tree {
                let target = fs::read_link(&to).at("read", &to)?;
                // `bin -> usr/bin`: relative to the tree, whatever the link looks like.
                tree.join(target.strip_prefix("/").unwrap_or(&target))
            } else {
                if exists.is_err() {
                    fs::create_dir(&to).at("create", &to)?;
                }
                to
            };
            copy_over(&path, &below)?;
        } else {
            remove(&to)?;
            if meta.is_symlink() {
                let target = fs::read_link(&path).at("read", &path)?;
                symlink(target, &to).at("link", &to)?;
            } else {
                fs::copy(&path, &to).at("copy", &path)?;
            }
        }
    }
    Ok(())
}

fn relink(link: &Path, to: &str) -> Result<(), Error> {
    remove(link)?;
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    symlink(to, link).at("link", link)
}

fn is_elf(path: &Path) -> Result<bool, Error> {
    let mut magic = Vec::new();
    fs::File::open(path).and_then(|f| f.take(4).read_to_end(&mut magic)).at("read", path)?;
    Ok(magic == *b"\x7fELF")
}

/// The first (file, library) of `readelf -d` over many files where the library is none of `there`.
fn missing_library(said: &str, there: &BTreeSet<String>) -> Option<(String, String)> {
    let mut file = "";
    for line in said.lines() {
        if let Some(name) = line.strip_prefix("File: ") {
            file = name;
        } else if line.contains("(NEEDED)")
            && let Some((_, rest)) = line.split_once('[')
            && let Some((library, _)) = rest.split_once(']')
            && !there.contains(library)
        {
            return Some((file.to_owned(), library.to_owned()));
        }
    }
    None
}

/// Permissions that do not depend on the umask of whoever cloned the repository.
fn normalise(tree: &Path) -> Result<(), Error> {
    for_each(tree, &mut |path, meta| {
        let mode = meta.permissions().mode();
        if meta.is_symlink() {
            return Ok(());
        }
        // What a package made private or set-id stays so; else: everyone reads, only root writes.
        let private = mode & 0o044 == 0;
        let plain = if meta.is_dir() || mode & 0o100 != 0 { 0o755 } else { 0o644 };
        let wanted = if private { mode & 0o700 } else { plain } | (mode & 0o7000);
        let wanted = if mode & 0o1000 != 0 { mode & 0o7777 } else { wanted };
        if wanted != mode & 0o7777 {
            fs::set_permissions(path, fs::Permissions::from_mode(wanted)).at("set the mode of", path)?;
        }
        Ok(())
    })
}

/// Every file has the same time, but the one whose time is the build's.
fn file_times(tree: &Path, date: BuildDate) -> Result<(), Error> {
    let set = |path: &Path, seconds: u64| {
        let time = TimeSpec::new(i64::try_from(seconds).unwrap_or(i64::MAX), 0);
        utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(std::io::Error::from)
            .at("set the time of", path)
    };
    set(tree, EPOCH)?;
    for_each(tree, &mut |path, _| set(path, EPOCH))?;
    set(&tree.join(CLOCK_EPOCH), date.seconds())
}

fn for_each(
    dir: &Path,
    visit: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<(), Error>,
) -> Result<(), Error> {
    for (_, path) in sorted(dir)? {
        let meta = fs::symlink_metadata(&path).at("read", &path)?;
        visit(&path, &meta)?;
        if meta.is_dir() {
            for_each(&path, visit)?;
        }
    }
    Ok(())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// RAUC's configuration of an image. Whoever puts a revocation list into the keyring wants it to count; without one,
/// RAUC would refuse everything.
fn rauc_conf(template: &str, compatible: &str, keyring: &[u8]) -> String {
    let conf = template.replace("@COMPATIBLE@", compatible);
    let list = b"-----BEGIN X509 CRL-----";
    if !keyring.windows(list.len()).any(|part| part == list) {
        return conf;
    }
    conf.replace("[keyring]\n", "[keyring]\ncheck-crl=true\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_revocation_list_in_the_keyring_counts_and_none_is_not_asked_for() {
        let template = include_str!("../../../../conf/rauc/system.conf.in");
        let certificate = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n";
        let with = format!("{certificate}-----BEGIN X509 CRL-----\nx\n-----END X509 CRL-----\n");
        let conf = |keyring: &str| rauc_conf(template, "rustiot-x", keyring.as_bytes());
        assert!(!conf(certificate).contains("check-crl"));
        assert!(conf(&with).contains("[keyring]\ncheck-crl=true\npath=/usr/lib/rustiot/keyring.pem"));
        assert!(conf(&with).contains("compatible=rustiot-x\n"));
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let said = "\nFile: /t/bin/a\n 0x01 (NEEDED)  Shared library: [libc.so.6]\n\nFile: /t/bin/b\n\
                    0x01 (NEEDED)  Shared library: [libdb-5.3.so]\n 0x0e (SONAME) Library soname: [x]\n";
        let both = BTreeSet::from(["libc.so.6".to_owned(), "libdb-5.3.so".to_owned()]);
        assert_eq!(missing_library(said, &both), None);
        let one = BTreeSet::from(["libc.so.6".to_owned()]);
        assert_eq!(missing_library(said, &one), Some(("/t/bin/b".into(), "libdb-5.3.so".into())));
    }

    #[test]
    fn an_overlay_follows_the_merged_usr_and_replaces_links() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, over) = (dir.path().join("tree"), dir.path().join("over"));
        fs::create_dir_all(tree.join("usr/bin")).unwrap();
        symlink("usr/bin", tree.join("bin")).unwrap();
        symlink("/etc/passwd", tree.join("usr/bin/x")).unwrap();
        fs::create_dir_all(over.join("bin")).unwrap();
        write(&over.join("bin/x"), "new").unwrap();
        copy_over(&over, &tree).unwrap();
        assert!(fs::symlink_metadata(tree.join("bin")).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(tree.join("usr/bin/x")).unwrap(), "new");
    }

    #[test]
    fn another_date_is_another_floor_and_leaves_the_times_of_files_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir_all(tree.join("usr/lib")).unwrap();
        symlink("nowhere", tree.join("usr/link")).unwrap();
        for name in ["usr/file", CLOCK_EPOCH] {
            write(&tree.join(name), "").unwrap();
        }
        let other = BuildDate::read("2026-11-27", "x", u64::MAX - 86_400).unwrap();
        for date in [BuildDate::FIXED, other] {
            file_times(tree, date).unwrap();
            let time = |name| fs::symlink_metadata(tree.join(name)).unwrap().mtime().cast_unsigned();
            for name in ["", "usr", "usr/lib", "usr/file", "usr/link"] {
                assert_eq!(time(name), EPOCH, "{name:?}");
            }
            assert_eq!(time(CLOCK_EPOCH), date.seconds());
            let mut request = Request::new("x", "1.0.0", "k");
            request.build_date = date;
            let release = serde_json::to_value(Release::of(&request, "rustiot-x")).unwrap();
            assert_eq!(release["build_epoch"], date.seconds());
        }
    }

    #[test]
    fn permissions_do_not_depend_on_a_clone() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = dir.path().join(name);
            write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let cases = [(0o664, 0o644), (0o775, 0o755), (0o600, 0o600), (0o4755, 0o4755), (0o700, 0o700)];
        let files: Vec<_> = cases.iter().map(|(before, _)| file(&format!("{before:o}"), *before)).collect();
        normalise(dir.path()).unwrap();
        for (path, (_, after)) in files.iter().zip(cases) {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, after, "{path:?}");
        }
    }
}
