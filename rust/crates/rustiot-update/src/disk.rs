//! Size of a slot's partitions and how many bytes have been written to them, from the kernel's block statistics.
//!
//! Only reads `/dev/disk/by-partlabel` and `/sys/class/block`. What cannot be read is unknown, never an error: the
//! figures are for people, and RAUC checks sizes again. Called by the engine.

use std::path::{Path, PathBuf};

use crate::ports::Disk;

/// The kernel counts in sectors of 512 bytes whatever the device's own are
/// (`Documentation/block/stat.rst`, `Documentation/ABI/stable/sysfs-block`).
const SECTOR: u64 = 512;

/// The running machine's partitions, below a root directory (`/`, or a test's).
#[derive(Debug)]
pub(crate) struct Partitions {
    labels: PathBuf,
    block: PathBuf,
}

impl Partitions {
    /// Partitions as udev and the kernel show them below `root`.
    pub(crate) fn below(root: &Path) -> Self {
        Self { labels: root.join("dev/disk/by-partlabel"), block: root.join("sys/class/block") }
    }

    fn attribute(&self, label: &str, name: &str) -> Option<String> {
        let target = std::fs::read_link(self.labels.join(label)).ok()?;
        std::fs::read_to_string(self.block.join(target.file_name()?).join(name)).ok()
    }
}

impl Disk for Partitions {
    fn capacity(&self, label: &str) -> Option<u64> {
        self.attribute(label, "size")?.trim().parse::<u64>().ok()?.checked_mul(SECTOR)
    }

    fn written(&self, label: &str) -> Option<u64> {
        // Seventh field: sectors written.
        self.attribute(label, "stat")?.split_whitespace().nth(6)?.parse::<u64>().ok()?.checked_mul(SECTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counters_are_read_as_the_kernel_writes_them() {
        let root = tempfile::tempdir().unwrap();
        let labels = root.path().join("dev/disk/by-partlabel");
        let block = root.path().join("sys/class/block/vda5");
        std::fs::create_dir_all(&labels).unwrap();
        std::fs::create_dir_all(&block).unwrap();
        std::os::unix::fs::symlink("../../vda5", labels.join("root-b")).unwrap();
        let disk = Partitions::below(root.path());
        let files = |size: &str, stat: &str| {
            rustiot_durable::atomic_write(&block.join("size"), size.as_bytes()).unwrap();
            rustiot_durable::atomic_write(&block.join("stat"), stat.as_bytes()).unwrap();
            (disk.capacity("root-b"), disk.written("root-b"))
        };
        let stat = "     120        0     8192       43       10        0     2048       77        0        0        0\n";
        assert_eq!(files("2048\n", stat), (Some(1_048_576), Some(1_048_576)));
        assert_eq!(files("many", "1 2 3"), (None, None));
        assert_eq!(files(&u64::MAX.to_string(), ""), (None, None));
        assert_eq!((disk.capacity("root-c"), disk.written("root-c")), (None, None));
    }
}
