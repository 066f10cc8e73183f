//! The port on a real Linux: sysfs, mounts, devices, programs.
//!
//! Decides nothing. Its parsers of kernel text are tested here; the calls themselves on loop devices
//! (`tests/loop.rs`) and on whole machines in QEMU.

use crate::gpt;
use crate::os::{Disk, Mount, Os, Partition, Ran};
use crate::sys;
use nix::mount::{MntFlags, MsFlags};
use rustiot_durable::Dir;
use rustiot_slots::{Effect, LoaderConfig, Paths, SlotShell};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// The running system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Linux;

/// Longest text that is taken from sysfs and procfs.
const MAX_TEXT: u64 = 1 << 20;
/// How often a busy mount is tried again, and the pause before.
const UNMOUNT_TRIES: u32 = 10;
const UNMOUNT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
/// How much of a program's complaints is kept.
const MAX_STDERR: usize = 2000;

fn text(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

fn not_found(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, what.to_owned())
}

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): device number, target, type, source.
fn mountinfo_line(line: &str) -> Option<(&str, String, &str, String)> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (device, target) = (front.next()?, front.nth(1)?);
    let mut back = back.split(' ');
    Some((device, unescape(target), back.next()?, unescape(back.next()?)))
}

/// The kernel writes space, tab, line feed and backslash as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = after.get(3..).unwrap_or("");
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

fn value<'a>(uevent: &'a str, key: &str) -> Option<&'a str> {
    uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// The partition that carries the root: below the verity device where there is one.
fn root_partition(sysfs: &Path, device: &str) -> io::Result<std::path::PathBuf> {
    let node = fs::canonicalize(sysfs.join("dev/block").join(device))?;
    let below = fs::read_dir(node.join("slaves")).ok().into_iter().flatten().flatten().next();
    match below {
        Some(below) => fs::canonicalize(below.path()),
        None => Ok(node),
    }
}

/// The disk of a partition, with all its partitions, from sysfs.
fn disk_of(sysfs: &Path, partition: &Path) -> io::Result<Disk> {
    let node = partition.parent().ok_or_else(|| not_found("the disk of the root partition"))?;
    let number = |path: &Path| text(path)?.trim().parse::<u64>().map_err(io::Error::other);
    // sysfs counts in 512 bytes, whatever the medium's sectors are (Documentation/ABI/stable/sysfs-block).
    let bytes = |node: &Path| Ok::<u64, io::Error>(number(&node.join("size"))?.saturating_mul(512));
    let device = |node: &Path| -> io::Result<String> {
        let name = text(node.join("uevent"))?;
        let name = value(&name, "DEVNAME").ok_or_else(|| not_found("DEVNAME in sysfs"))?;
        Ok(format!("/dev/{name}"))
    };
    let mut partitions = Vec::new();
    for entry in fs::read_dir(node)?.flatten() {
        let path = entry.path();
        let Ok(uevent) = text(path.join("uevent")) else { continue };
        let (Some(label), Some(number)) = (value(&uevent, "PARTNAME"), value(&uevent, "PARTN")) else {
            continue;
        };
        let Ok(number) = number.parse() else { continue };
        partitions.push(Partition {
            label: label.into(),
            device: device(&path)?,
            number,
            bytes: bytes(&path)?,
        });
    }
    partitions.sort_by_key(|partition| partition.number);
    if partitions.is_empty() {
        return Err(not_found(&format!("named partitions on {}", sysfs.join(node).display())));
    }
    Ok(Disk {
        device: device(node)?,
        bytes: bytes(node)?,
        sector: number(&node.join("queue/logical_block_size"))?,
        partitions,
    })
}

impl Os for Linux {
    fn disk(&self) -> io::Result<Disk> {
        let mounts = text("/proc/self/mountinfo")?;
        // The last one mounted is the one that is seen.
        let root = mounts.lines().rev().filter_map(mountinfo_line).find(|(_, target, ..)| target == "/");
        let (device, ..) = root.ok_or_else(|| not_found("the root in the list of mounts"))?;
        let sysfs = Path::new("/sys");
        disk_of(sysfs, &root_partition(sysfs, device)?)
    }

    fn mounted(&self, target: &str) -> io::Result<Option<(String, String)>> {
        let mounts = text("/proc/self/mountinfo")?;
        let found = mounts.lines().rev().filter_map(mountinfo_line).find(|(_, at, ..)| at == target);
        Ok(found.map(|(_, _, kind, source)| (kind.to_owned(), source)))
    }

    fn mount(&self, what: Mount<'_>, target: &str) -> io::Result<()> {
        // The image has the directories; elsewhere (tests) it is made, and a failure shows in the mount.
        let _ = fs::create_dir_all(target);
        let none: Option<&str> = None;
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let (source, kind, flags, data) = match what {
            // The flags are those of rustiot-init.
            Mount::Ext4(device) => {
                (Some(device), Some("ext4"), quiet | MsFlags::MS_NOATIME, Some("data=ordered"))
            }
            Mount::Fat(device) => {
                let flags = quiet | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
                // Only root may read a Wi-Fi passphrase; names in UTF-8.
                (Some(device), Some("vfat"), flags, Some("umask=0077,utf8=1"))
            }
            Mount::Memory => (Some("tmpfs"), Some("tmpfs"), quiet, Some("mode=0755,size=25%")),
            Mount::Bind(directory) => (Some(directory), none, MsFlags::MS_BIND, none),
        };
        Ok(nix::mount::mount(source, target, kind, flags, data)?)
    }

    fn unmount(&self, target: &str) -> io::Result<()> {
        // The watchdog's look at the disk holds a file open for a moment now and then.
        for _ in 0..UNMOUNT_TRIES {
            match nix::mount::umount2(target, MntFlags::empty()) {
                Err(nix::errno::Errno::EBUSY) => std::thread::sleep(UNMOUNT_PAUSE),
                other => return Ok(other?),
            }
        }
        Ok(nix::mount::umount2(target, MntFlags::empty())?)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<Ran> {
        let output = Command::new(program)
            .args(arguments)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stderr = stderr.trim();
        let skip = stderr.char_indices().rev().nth(MAX_STDERR).map_or(0, |(at, _)| at);
        Ok(Ran { code: output.status.code(), stderr: stderr.get(skip..).unwrap_or("").replace('\n', "; ") })
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > max) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Some(bytes))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn write(&self, path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
        let name = path.file_name().and_then(|name| name.to_str());
        let (Some(name), Some(parent)) = (name, path.parent()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        rustiot_durable::replace(&Dir::new(parent), name, bytes, mode, durable).map_err(|(step, source)| {
            io::Error::new(source.kind(), format!("cannot {step} {}: {source}", path.display()))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)
    }

    fn link(&self, target: &str, path: &Path) -> io::Result<()> {
        if fs::read_link(path).is_ok_and(|known| known == Path::new(target)) {
            return Ok(());
        }
        self.remove(path)?;
        std::os::unix::fs::symlink(target, path)
    }

    fn length(&self, path: &Path) -> Option<u64> {
        fs::metadata(path).ok().map(|meta| meta.len())
    }

    fn read_device(&self, device: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        File::open(device)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write_device(&self, device: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let device = OpenOptions::new().write(true).open(device)?;
        device.write_all_at(bytes, offset)?;
        device.sync_data()
    }

    fn resize_partition(&self, disk: &str, partition: gpt::Partition) -> io::Result<()> {
        sys::resize_partition(&OpenOptions::new().read(true).write(true).open(disk)?, partition)
    }

    fn random(&self) -> io::Result<[u8; 32]> {
        let mut bytes = [0; 32];
        // Blocks until the generator is seeded, so that no two devices draw the same key (random(4)).
        File::open("/dev/random")?.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        if text("/proc/sys/kernel/hostname").is_ok_and(|known| known.trim_end() == name) {
            return Ok(());
        }
        Ok(nix::unistd::sethostname(name)?)
    }

    fn ensure_ledger(&self) -> Result<Option<String>, String> {
        let chain = |error: &dyn std::error::Error| {
            let mut text = error.to_string();
            let mut next = error.source();
            while let Some(error) = next {
                text = format!("{text}: {error}");
                next = error.source();
            }
            text
        };
        // Before udev there are no links by partition name. Only boards with that loader have its partition.
        let disk = self.disk().map_err(|error| chain(&error))?;
        let device = |name| disk.partition(name).map(|partition| partition.device.clone().into());
        let loader = match (device("uboot-env"), device("autoboot")) {
            (Some(device), _) => LoaderConfig::Uboot { device, layout: Default::default() },
            (None, Some(device)) => LoaderConfig::Tryboot { device, mailbox: rustiot_slots::MAILBOX.into() },
            (None, None) => LoaderConfig::on_device(rustiot_slots::LoaderKind::Uefi),
        };
        let mut shell = SlotShell::open(Paths::default(), loader.open()).map_err(|error| chain(&error))?;
        let had_memory = shell.memory() == rustiot_slots::Memory::Durable;
        let effects = shell.ensure_ledger().map_err(|error| chain(&error))?;
        let reboot = effects.iter().find_map(|effect| match effect {
            Effect::Reboot { reason } => Some(reason),
            _ => None,
        });
        if let Some(reason) = reboot {
            let ran = self.run("systemctl", &["--no-block", "reboot"]).map_err(|error| chain(&error))?;
            return match ran.code {
                Some(0) => Ok(Some(format!("the policy asks for a reboot: {reason}"))),
                _ => Err(format!("the policy asks for a reboot ({reason}), which fails: {}", ran.stderr)),
            };
        }
        Ok((!had_memory).then(|| "made".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo() {
        let line = r"36 35 254:0 / / ro,relatime shared:1 - erofs /dev/mapper/root ro";
        assert_eq!(mountinfo_line(line), Some(("254:0", "/".into(), "erofs", "/dev/mapper/root".into())));
        let line = r"36 35 98:0 /a /mnt\040x\134y rw,noatime - ext4 /dev/vda8 rw,errors=continue";
        assert_eq!(mountinfo_line(line), Some(("98:0", r"/mnt x\y".into(), "ext4", "/dev/vda8".into())));
        for line in ["", "36 35", "36 35 98:0 /", "a b c d e - ", " - ", r"1 2 3 4 \0 - a b"] {
            let _ = mountinfo_line(line);
        }
        assert_eq!(unescape(r"a\b\0é\777"), r"a\b\0é\777");
    }

    #[test]
    fn the_disk_below_a_verity_root() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, content: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            io::Write::write_all(&mut File::create(path).unwrap(), content.as_bytes()).unwrap();
        };
        put("devices/vda/uevent", "MAJOR=254\nMINOR=0\nDEVNAME=vda\nDEVTYPE=disk\n");
        put("devices/vda/size", "8192\n");
        put("devices/vda/queue/logical_block_size", "512\n");
        for (n, label) in [(1, "config"), (7, "data")] {
            let at = format!("devices/vda/vda{n}");
            put(
                &format!("{at}/uevent"),
                &format!("DEVNAME=vda{n}\nDEVTYPE=partition\nPARTN={n}\nPARTNAME={label}\n"),
            );
            put(&format!("{at}/size"), "2048\n");
        }
        put("devices/virtual/dm-0/uevent", "DEVNAME=dm-0\n");
        fs::create_dir_all(root.path().join("devices/virtual/dm-0/slaves")).unwrap();
        fs::create_dir_all(root.path().join("dev/block")).unwrap();
        let link = |target: &str, path: &str| {
            std::os::unix::fs::symlink(root.path().join(target), root.path().join(path)).unwrap();
        };
        link("devices/vda/vda1", "devices/virtual/dm-0/slaves/vda1");
        link("devices/virtual/dm-0", "dev/block/252:0");
        link("devices/vda/vda1", "dev/block/254:1");
        for device in ["252:0", "254:1"] {
            let partition = root_partition(root.path(), device).unwrap();
            let disk = disk_of(root.path(), &partition).unwrap();
            assert_eq!((disk.device.as_str(), disk.bytes, disk.sector), ("/dev/vda", 4 << 20, 512));
            assert_eq!(disk.partition("data").unwrap().device, "/dev/vda7");
            assert_eq!(disk.partition("data").unwrap().bytes, 1 << 20);
        }
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/file");
        Linux.make_dir(path.parent().unwrap(), 0o755).unwrap();
        assert_eq!(Linux.read(&path, 10).unwrap(), None);
        Linux.write(&path, b"12345", 0o600, true).unwrap();
        assert_eq!(Linux.read(&path, 5).unwrap().unwrap(), b"12345");
        assert_eq!(Linux.read(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(Linux.list(path.parent().unwrap()).unwrap(), ["file"]);
        assert_eq!(Linux.length(&path), Some(5));
        let link = dir.path().join("link");
        for target in ["x", "y", "y"] {
            Linux.link(target, &link).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        Linux.remove(&path).unwrap();
        Linux.remove(&path).unwrap();
        assert_eq!(Linux.list(&dir.path().join("none")).unwrap(), [""; 0]);
    }

    #[test]
    fn programs() {
        let ran = Linux.run("sh", &["-c", "echo a >&2; echo b >&2; exit 3"]).unwrap();
        assert_eq!(ran, Ran { code: Some(3), stderr: "a; b".into() });
        assert!(Linux.run("/nonexistent", &[]).is_err());
    }
}
