//! A machine in memory: a medium with a partition table, file systems with files, mounts, programs, and a power
//! supply that fails after so many operations.

use crate::gpt::{self, sample};
use crate::os::{Disk, Mount, Os, Partition, Ran};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

#[derive(Debug, Clone, PartialEq)]
pub enum Fs {
    Blank,
    Other,
    Unreadable,
    /// An ext4 that neither mounts nor can be repaired.
    Hopeless {
        unfinished: bool,
    },
    Fat(Files),
    Ext4 {
        files: Files,
        mountable: bool,
        errors: bool,
        unfinished: bool,
        size: u64,
    },
}

impl Fs {
    pub fn files(&self) -> Files {
        match self {
            Fs::Ext4 { files, .. } | Fs::Fat(files) => files.clone(),
            _ => Files::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    On,
    Off,
}

#[derive(Clone)]
pub struct Machine {
    // What outlives a power cut.
    medium: RefCell<Vec<u8>>,
    fs: RefCell<BTreeMap<String, Fs>>,
    // What does not.
    mounts: RefCell<Vec<(String, String, String)>>,
    memory: RefCell<Files>,
    hostname: RefCell<String>,
    partitions: RefCell<Vec<Partition>>,
    // The supply, and what is counted.
    budget: Cell<Option<usize>>,
    operations: Cell<usize>,
    durable: Cell<usize>,
    programs: RefCell<Vec<String>>,
    random: Cell<u8>,
    broken_programs: Cell<bool>,
    lost_disk: Cell<bool>,
}

const MIB: u64 = 1 << 20;

fn fail(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

impl Machine {
    /// As it comes from the card writer: a table for a smaller medium, blank file systems, the owner's file.
    pub fn new(config: &str) -> Self {
        let parts = [("config", MIB, MIB), ("state", 2 * MIB, MIB), ("data", 3 * MIB, MIB)];
        let fs = [("config", Fs::Other), ("state", Fs::Blank), ("data", Fs::Blank)];
        let machine = Self {
            medium: RefCell::new(sample::disk(8 * MIB, 5 * MIB, &parts)),
            fs: RefCell::new(fs.into_iter().map(|(label, fs)| (label.to_owned(), fs)).collect()),
            mounts: RefCell::default(),
            memory: RefCell::default(),
            hostname: RefCell::default(),
            partitions: RefCell::default(),
            budget: Cell::new(None),
            operations: Cell::new(0),
            durable: Cell::new(0),
            programs: RefCell::default(),
            random: Cell::new(1),
            broken_programs: Cell::new(false),
            lost_disk: Cell::new(false),
        };
        machine.set_config(config);
        machine
    }

    pub fn set_config(&self, text: &str) {
        let file = (text.as_bytes().to_vec(), 0o600);
        self.set_fs("config", Fs::Fat([(PathBuf::from("rustiot.toml"), file)].into()));
    }

    pub fn set_fs(&self, label: &str, fs: Fs) {
        self.fs.borrow_mut().insert(label.into(), fs);
    }

    pub fn fs(&self, label: &str) -> Fs {
        self.fs.borrow()[label].clone()
    }

    pub fn unmountable(&self, label: &str) {
        if let Some(Fs::Ext4 { mountable, .. }) = self.fs.borrow_mut().get_mut(label) {
            *mountable = false;
        }
    }

    pub fn with_errors(&self, label: &str) {
        if let Some(Fs::Ext4 { errors, .. }) = self.fs.borrow_mut().get_mut(label) {
            *errors = true;
        }
    }

    pub fn filled(&self, label: &str) -> u64 {
        match self.fs(label) {
            Fs::Ext4 { size, .. } => size,
            _ => 0,
        }
    }

    pub fn resize_medium(&self, bytes: u64) {
        self.medium.borrow_mut().resize(bytes as usize, 0);
    }

    pub fn medium(&self) -> Vec<u8> {
        self.medium.borrow().clone()
    }

    pub fn seed(&self, seed: u8) {
        self.random.set(seed);
    }

    pub fn break_programs(&self) {
        self.broken_programs.set(true);
    }

    pub fn lose_disk(&self) {
        self.lost_disk.set(true);
    }

    /// A start: kernel and rustiot-init, up to the point where provisioning is called.
    pub fn boot(&self) {
        self.mounts.borrow_mut().clear();
        self.memory.borrow_mut().clear();
        self.hostname.borrow_mut().clear();
        self.programs.borrow_mut().clear();
        let view =
            sample::kernel_view(&self.medium()).expect("the kernel finds its partitions at every start");
        let size = self.medium.borrow().len() as u64;
        *self.partitions.borrow_mut() = (1..)
            .zip(view)
            .map(|(number, (label, start, length))| Partition {
                device: format!("/dev/vda{number}"),
                label,
                number,
                bytes: length.min(size - start),
            })
            .collect();
        let budget = self.budget.replace(None);
        for label in ["state", "data"] {
            if matches!(self.fs(label), Fs::Ext4 { mountable: true, .. }) {
                self.mounts.borrow_mut().push((format!("/{label}"), "ext4".into(), label.into()));
            }
        }
        let kept = self.files("/state").get(Path::new("identity/machine-id")).map(|file| file.0.clone());
        self.random.set(self.random.get().wrapping_add(16));
        let kept = kept.filter(|id| id.len() == 33);
        let fresh = format!("{:02x}", self.random.get()).repeat(16).into_bytes();
        let mut memory = self.memory.borrow_mut();
        memory.insert("/run/rustiot/machine-id".into(), (kept.unwrap_or(fresh), 0o444));
        memory.insert("/usr/share/zoneinfo/UTC".into(), (b"TZif".to_vec(), 0o644));
        let journald = rustiot_config::render::journald(&Default::default());
        memory.insert(
            "/usr/lib/systemd/journald.conf.d/50-rustiot.conf".into(),
            (journald.into_bytes(), 0o644),
        );
        drop(memory);
        self.budget.set(budget);
    }

    /// The power goes after so many operations from now.
    pub fn cut_after(&self, operations: usize) {
        self.budget.set(Some(operations));
    }

    /// The power is back; what it destroyed stays destroyed.
    pub fn mend(&self) {
        self.budget.set(None);
    }

    pub fn power(&self) -> Power {
        if self.budget.get() == Some(0) { Power::Off } else { Power::On }
    }

    /// Operations that change something, so far.
    pub fn operations(&self) -> usize {
        self.operations.get()
    }

    /// Writes to the medium, so far.
    pub fn durable_writes(&self) -> usize {
        self.durable.get()
    }

    /// Programs that were run since this was last asked.
    pub fn programs(&self) -> Vec<String> {
        self.programs.take()
    }

    pub fn hostname(&self) -> String {
        self.hostname.borrow().clone()
    }

    /// The files of the file system mounted at `target`.
    pub fn files(&self, target: &str) -> Files {
        match self.mounted(target).unwrap_or(None) {
            Some((kind, source)) if kind == "ext4" => self.fs(&source).files(),
            _ => Files::new(),
        }
    }

    pub fn text(&self, path: &str) -> String {
        let bytes = Os::read(self, Path::new(path), u64::MAX).unwrap().unwrap_or_else(|| panic!("no {path}"));
        String::from_utf8(bytes).unwrap()
    }

    pub fn has(&self, path: &str) -> bool {
        Os::read(self, Path::new(path), u64::MAX).unwrap().is_some()
    }

    pub fn put(&self, path: &str, text: &str) {
        Os::write(self, Path::new(path), text.as_bytes(), 0o600, false).unwrap();
    }

    fn alive(&self) -> io::Result<()> {
        if self.power() == Power::Off { Err(fail("no power")) } else { Ok(()) }
    }

    /// Something changes: this is where the power goes.
    fn spend(&self) -> io::Result<()> {
        self.alive()?;
        self.operations.set(self.operations.get() + 1);
        if let Some(left) = self.budget.get() {
            self.budget.set(Some(left - 1));
            // The operation that uses up the supply does not happen.
            return self.alive();
        }
        Ok(())
    }

    fn label(&self, device: &str) -> String {
        let partitions = self.partitions.borrow();
        partitions.iter().find(|p| p.device == device).map(|p| p.label.clone()).unwrap_or_default()
    }

    fn bytes(&self, device: &str) -> u64 {
        self.partitions.borrow().iter().find(|p| p.device == device).map_or(0, |p| p.bytes)
    }

    /// Calls with the files that a path lies in, and the path below them.
    fn with<T>(&self, path: &Path, call: impl FnOnce(&mut Files, PathBuf) -> T) -> io::Result<T> {
        let mounts = self.mounts.borrow().clone();
        let at = mounts.iter().rev().find(|(target, ..)| path.starts_with(target));
        match at {
            Some((target, kind, source)) if kind == "bind" => {
                self.with(&Path::new(source).join(path.strip_prefix(target).unwrap()), call)
            }
            Some((target, kind, label)) if kind != "tmpfs" => {
                let below = path.strip_prefix(target).unwrap().to_owned();
                match self.fs.borrow_mut().get_mut(label) {
                    Some(Fs::Ext4 { files, .. } | Fs::Fat(files)) => Ok(call(files, below)),
                    _ => Err(fail("I/O error")),
                }
            }
            _ => Ok(call(&mut self.memory.borrow_mut(), path.to_owned())),
        }
    }
}

impl Os for Machine {
    fn disk(&self) -> io::Result<Disk> {
        self.alive()?;
        if self.lost_disk.get() {
            return Err(fail("no such disk"));
        }
        let bytes = self.medium.borrow().len() as u64;
        Ok(Disk {
            device: "/dev/vda".into(),
            bytes,
            sector: 512,
            partitions: self.partitions.borrow().clone(),
        })
    }

    fn mounted(&self, target: &str) -> io::Result<Option<(String, String)>> {
        self.alive()?;
        let mounts = self.mounts.borrow();
        Ok(mounts
            .iter()
            .rev()
            .find(|(at, ..)| at == target)
            .map(|(_, kind, source)| (kind.clone(), source.clone())))
    }

    fn mount(&self, what: Mount<'_>, target: &str) -> io::Result<()> {
        self.spend()?;
        let (kind, source) = match what {
            Mount::Ext4(device) => match self.fs(&self.label(device)) {
                Fs::Ext4 { mountable: true, .. } => ("ext4", self.label(device)),
                _ => return Err(fail("wrong fs type, bad option, bad superblock")),
            },
            Mount::Fat(device) => match self.fs(&self.label(device)) {
                Fs::Fat(_) => ("vfat", self.label(device)),
                _ => return Err(fail("wrong fs type, bad option, bad superblock")),
            },
            Mount::Memory => ("tmpfs", String::new()),
            Mount::Bind(source) => ("bind", source.to_owned()),
        };
        self.mounts.borrow_mut().push((target.into(), kind.into(), source));
        Ok(())
    }

    fn unmount(&self, target: &str) -> io::Result<()> {
        self.spend()?;
        let mut mounts = self.mounts.borrow_mut();
        let at = mounts.iter().rposition(|(at, ..)| at == target).ok_or_else(|| fail("not mounted"))?;
        mounts.remove(at);
        Ok(())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<Ran> {
        self.alive()?;
        self.programs.borrow_mut().push(format!("{program} {}", arguments.join(" ")));
        let last = arguments.last().copied().unwrap_or_default();
        let ended = |code: i32| Ok(Ran { code: Some(code), stderr: String::new() });
        if self.broken_programs.get() {
            return ended(127);
        }
        match program {
            "mkfs.ext4" => {
                let label = self.label(last);
                if self.fs(&label) == Fs::Unreadable {
                    return ended(1);
                }
                // Cut off in the middle there is something that looks like ext4 and is none.
                self.spend()?;
                self.set_fs(&label, Fs::Hopeless { unfinished: true });
                self.spend()?;
                let mut files = Files::new();
                if label == "data" {
                    files.insert("kept".into(), (b"apps".to_vec(), 0o644));
                }
                let size = self.bytes(last);
                self.set_fs(
                    &label,
                    Fs::Ext4 { files, mountable: true, errors: false, unfinished: true, size },
                );
                ended(0)
            }
            "e2fsck" => {
                assert!(
                    self.mounts.borrow().iter().all(|(_, _, label)| *label != self.label(last)),
                    "mounted"
                );
                self.spend()?;
                match self.fs.borrow_mut().get_mut(&self.label(last)) {
                    Some(Fs::Ext4 { mountable, errors, .. }) => {
                        (*mountable, *errors) = (true, false);
                        ended(1)
                    }
                    _ => ended(8),
                }
            }
            "tune2fs" => {
                self.spend()?;
                match self.fs.borrow_mut().get_mut(&self.label(last)) {
                    Some(Fs::Ext4 { unfinished, .. }) => *unfinished = false,
                    other => panic!("{other:?} cannot be labelled"),
                }
                ended(0)
            }
            "resize2fs" => {
                self.spend()?;
                let bytes = self.bytes(last);
                if let Some(Fs::Ext4 { size, .. }) = self.fs.borrow_mut().get_mut(&self.label(last)) {
                    *size = bytes;
                }
                ended(0)
            }
            "ssh-keygen" => {
                let random = self.random()?;
                let key = format!(
                    "-----BEGIN OPENSSH PRIVATE KEY-----\n{random:?}\n-----END OPENSSH PRIVATE KEY-----\n"
                );
                self.write(Path::new(last), key.as_bytes(), 0o600, false)?;
                self.write(
                    Path::new(&format!("{last}.pub")),
                    format!("ssh-ed25519 {random:?}\n").as_bytes(),
                    0o644,
                    false,
                )?;
                ended(0)
            }
            _ => ended(0),
        }
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
        self.alive()?;
        let found = self.with(path, |files, below| files.get(&below).map(|(bytes, _)| bytes.clone()))?;
        match found {
            Some(bytes) if bytes.len() as u64 > max => Err(io::ErrorKind::FileTooLarge.into()),
            found => Ok(found),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.alive()?;
        self.with(path, |files, below| {
            let names = files.keys().filter(|file| file.parent() == Some(&below));
            names.filter_map(|file| Some(file.file_name()?.to_str()?.to_owned())).collect()
        })
    }

    fn write(&self, path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
        self.spend()?;
        assert!(!path.starts_with("/config"), "nothing writes to the owner's partition");
        if path.starts_with("/state") && durable {
            self.durable.set(self.durable.get() + 1);
        }
        self.with(path, |files, below| drop(files.insert(below, (bytes.to_vec(), mode))))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.spend()?;
        self.with(path, |files, below| drop(files.remove(&below)))
    }

    fn make_dir(&self, _: &Path, _: u32) -> io::Result<()> {
        self.alive()
    }

    fn link(&self, target: &str, path: &Path) -> io::Result<()> {
        self.write(path, format!("-> {target}").as_bytes(), 0o777, false)
    }

    fn length(&self, path: &Path) -> Option<u64> {
        Os::read(self, path, u64::MAX).ok().flatten().map(|bytes| bytes.len() as u64)
    }

    fn read_device(&self, device: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.alive()?;
        if device == "/dev/vda" {
            return gpt::Read::read(&*self.medium.borrow(), offset, length).ok_or_else(|| fail("I/O error"));
        }
        let mut bytes = vec![0; length];
        match self.fs(&self.label(device)) {
            Fs::Unreadable => return Err(fail("I/O error")),
            Fs::Blank => {}
            Fs::Other | Fs::Fat(_) => bytes.fill(b'x'),
            Fs::Hopeless { unfinished } | Fs::Ext4 { unfinished, .. } => {
                let errors = matches!(self.fs(&self.label(device)), Fs::Ext4 { errors: true, .. });
                bytes[1080..1083].copy_from_slice(&[0x53, 0xef, if errors { 3 } else { 1 }]);
                let label = format!("{}{}", self.label(device), if unfinished { "-new" } else { "" });
                bytes[1144..1144 + label.len()].copy_from_slice(label.as_bytes());
            }
        }
        Ok(bytes)
    }

    fn write_device(&self, device: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(device, "/dev/vda", "only the partition table is written directly");
        for (n, sector) in bytes.chunks(512).enumerate() {
            self.spend()?;
            self.durable.set(self.durable.get() + 1);
            sample::apply(&mut self.medium.borrow_mut(), &(offset + n as u64 * 512, sector.to_vec()));
        }
        Ok(())
    }

    fn resize_partition(&self, disk: &str, partition: gpt::Partition) -> io::Result<()> {
        self.spend()?;
        assert_eq!(disk, "/dev/vda");
        let mut partitions = self.partitions.borrow_mut();
        let known = partitions.iter_mut().find(|known| known.number == partition.number);
        known.ok_or_else(|| fail("no such partition"))?.bytes = partition.length;
        Ok(())
    }

    fn random(&self) -> io::Result<[u8; 32]> {
        self.random.set(self.random.get().wrapping_add(2));
        Ok([self.random.get(); 32])
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        self.spend()?;
        name.clone_into(&mut self.hostname.borrow_mut());
        Ok(())
    }

    fn ensure_ledger(&self) -> Result<Option<String>, String> {
        self.alive().map_err(|error| error.to_string())?;
        Ok(None)
    }
}
