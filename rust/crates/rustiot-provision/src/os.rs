//! The narrow port between the steps of provisioning and the operating system.
//!
//! Paths are those of the device. The steps call nothing else, so that tests can run them against a machine in
//! memory that loses power at any point. Implemented by [`crate::linux`] and by the tests' fake.

use std::io;
use std::path::Path;

/// A partition of the disk that the system runs from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its name in the table.
    pub label: String,
    /// Its device.
    pub device: String,
    /// Its number in the table, from 1.
    pub number: u32,
    /// Length in bytes, as the kernel has it.
    pub bytes: u64,
}

/// The disk that the system runs from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its device.
    pub device: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Bytes in a sector.
    pub sector: u64,
    /// Its partitions.
    pub partitions: Vec<Partition>,
}

impl Disk {
    /// The partition of that name.
    pub fn partition(&self, label: &str) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.label == label)
    }
}

/// Something to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mount<'a> {
    /// ext4 from a device, read and write.
    Ext4(&'a str),
    /// FAT from a device, read only, for root alone.
    Fat(&'a str),
    /// Memory: what is there is gone after a restart.
    Memory,
    /// A directory in a second place.
    Bind(&'a str),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The end of what it wrote to standard error.
    pub stderr: String,
}

/// What the steps need.
pub trait Os {
    /// The disk that the system runs from.
    ///
    /// # Errors
    /// It cannot be found.
    fn disk(&self) -> io::Result<Disk>;

    /// What is mounted at a directory: the file system's type and its device.
    ///
    /// # Errors
    /// The list of mounts cannot be read.
    fn mounted(&self, target: &str) -> io::Result<Option<(String, String)>>;

    /// Mounts, making the directory first where that is possible.
    ///
    /// # Errors
    /// The kernel's.
    fn mount(&self, what: Mount<'_>, target: &str) -> io::Result<()>;

    /// Unmounts.
    ///
    /// # Errors
    /// The kernel's; busy when something uses it.
    fn unmount(&self, target: &str) -> io::Result<()>;

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It cannot be started.
    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<Ran>;

    /// A whole file of at most `max` bytes; `None` when there is none.
    ///
    /// # Errors
    /// The file system's; a longer file is an error as well.
    fn read(&self, path: &Path, max: u64) -> io::Result<Option<Vec<u8>>>;

    /// Names in a directory, sorted; none when there is no such directory.
    ///
    /// # Errors
    /// The file system's.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Replaces a file as a whole; `durable`: it is on the medium afterwards.
    ///
    /// # Errors
    /// The file system's; the old content stays.
    fn write(&self, path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()>;

    /// Removes a file; it is fine when there is none.
    ///
    /// # Errors
    /// The file system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory and those above it; it is fine when it is there. The mode is that of the last one.
    ///
    /// # Errors
    /// The file system's.
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Points a symbolic link somewhere, whatever was there before.
    ///
    /// # Errors
    /// The file system's.
    fn link(&self, target: &str, path: &Path) -> io::Result<()>;

    /// Length of a file in bytes; `None` when there is none.
    fn length(&self, path: &Path) -> Option<u64>;

    /// Bytes of a device.
    ///
    /// # Errors
    /// The medium's.
    fn read_device(&self, device: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Writes bytes to a device; they are on the medium afterwards.
    ///
    /// # Errors
    /// The medium's.
    fn write_device(&self, device: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Tells the kernel that a partition has another length now, though it is in use.
    ///
    /// # Errors
    /// The kernel's.
    fn resize_partition(&self, disk: &str, partition: crate::gpt::Partition) -> io::Result<()>;

    /// Bytes that nobody can guess.
    ///
    /// # Errors
    /// There are none.
    fn random(&self) -> io::Result<[u8; 32]>;

    /// Sets the kernel's host name.
    ///
    /// # Errors
    /// The kernel's.
    fn set_hostname(&self, name: &str) -> io::Result<()>;

    /// Makes sure that there is a boot ledger (in state); says what it did, if anything.
    ///
    /// # Errors
    /// Why there is none.
    fn ensure_ledger(&self) -> Result<Option<String>, String>;
}
