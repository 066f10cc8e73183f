//! The machine's medium: an image that stays untouched with this machine's changes beside it, or a
//! raw copy whose every write is logged. Finds partitions by name; never interprets what is in one.

use crate::{Error, Result, Tools};
use std::path::{Path, PathBuf};

/// What the machine has for a disk. Paths must be visible to the tools at the same place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Disk {
    /// Changes to `base` in the qcow2 file `path`; `base` itself is never written.
    Overlay {
        /// The changes.
        path: PathBuf,
    },
    /// A raw image, every write to which goes to a log too (see [`crate::writelog`]).
    Logged {
        /// The image; it is written.
        image: PathBuf,
        /// The log; made empty at each power-on.
        log: PathBuf,
    },
}

impl Disk {
    /// A fresh overlay at `path` over `base` (raw or qcow2), as large as `base` or `bytes`.
    pub fn overlay(tools: &Tools, base: &Path, path: &Path, bytes: Option<u64>) -> Result<Self> {
        let format = if is_qcow2(base)? { "qcow2" } else { "raw" };
        let (base, target) = (base.to_string_lossy(), path.to_string_lossy());
        let mut args = vec!["create", "-q", "-f", "qcow2", "-F", format, "-b", &*base, &*target];
        let bytes = bytes.map(|bytes| bytes.to_string());
        args.extend(bytes.as_deref());
        tools.run("qemu-img", &args)?;
        Ok(Disk::Overlay { path: path.to_path_buf() })
    }

    /// A raw copy of `base` at `image` whose writes will be logged to `log`.
    pub fn logged(tools: &Tools, base: &Path, image: &Path, log: &Path) -> Result<Self> {
        flatten(tools, base, image)?;
        Ok(Disk::Logged { image: image.to_path_buf(), log: log.to_path_buf() })
    }

    /// The file with the machine's own state of the disk.
    pub fn path(&self) -> &Path {
        match self {
            Disk::Overlay { path } => path,
            Disk::Logged { image, .. } => image,
        }
    }

    /// QEMU's `-blockdev` value for it, with the node name `disk`.
    ///
    /// The host's own flushes are left out: what we simulate is the guest's power cut, not ours,
    /// and the kernel keeps what a killed QEMU wrote.
    pub(crate) fn blockdev(&self) -> String {
        let file = |path: &Path| serde_json::json!({"driver": "file", "filename": path.to_string_lossy()});
        let node = match self {
            Disk::Overlay { path } => serde_json::json!({
                "node-name": "disk", "driver": "qcow2", "discard": "unmap",
                "cache": {"no-flush": true}, "file": file(path),
            }),
            // The logging node itself must see the flushes, so only its children leave them out.
            Disk::Logged { image, log } => serde_json::json!({
                "node-name": "disk", "driver": "blklogwrites",
                "file": {"driver": "raw", "cache": {"no-flush": true}, "file": file(image)},
                "log": {"driver": "raw", "cache": {"no-flush": true}, "file": file(log)},
            }),
        };
        node.to_string()
    }

    /// Makes ready what a power-on needs.
    pub(crate) fn prepare(&self) -> Result<()> {
        if let Disk::Logged { log, .. } = self {
            std::fs::File::create(log).map_err(Error::io("create", log))?;
        }
        Ok(())
    }
}

/// Copies a disk image (raw or qcow2 with all that it is based on) to a raw one with holes.
pub(crate) fn flatten(tools: &Tools, from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    tools.run("qemu-img", &["convert", "-O", "raw", &from, &to]).map(|_| ())
}

fn is_qcow2(path: &Path) -> Result<bool> {
    let mut magic = [0u8; 4];
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    // An image shorter than four bytes is no qcow2 either.
    let n = std::os::unix::fs::FileExt::read_at(&file, &mut magic, 0);
    Ok(n.is_ok_and(|n| n == 4) && &magic == b"QFI\xfb")
}

/// The first byte of the GPT partition `name` of a raw image.
pub fn partition_start(image: &Path, name: &str) -> Result<u64> {
    partition(image, name).map(|(start, _)| start)
}

/// The size of the GPT partition `name` of a raw image, bytes.
pub fn partition_bytes(image: &Path, name: &str) -> Result<u64> {
    partition(image, name).map(|(_, bytes)| bytes)
}

fn partition(image: &Path, name: &str) -> Result<(u64, u64)> {
    let table = gpt::GptConfig::new().writable(false).open(image);
    let missing = || Error::NoPartition { disk: image.into(), name: name.into() };
    let table = table.map_err(|_| missing())?;
    let found = table.partitions().values().find(|partition| partition.name == name);
    let found = found.ok_or_else(missing)?;
    let block = u64::from(*table.logical_block_size());
    let sectors = found.last_lba.saturating_sub(found.first_lba).saturating_add(1);
    Ok((found.first_lba.saturating_mul(block), sectors.saturating_mul(block)))
}

/// One byte of a disk image, by qemu-io's dump of its sector.
pub(crate) fn read_byte(tools: &Tools, target: &[&str], offset: u64) -> Result<u8> {
    let command = format!("read -v {offset} 1");
    let mut args = target.to_vec();
    args.extend(["-c", &command]);
    let text = String::from_utf8_lossy(&tools.run("qemu-io", &args)?).into_owned();
    parse_dump(&text).ok_or(Error::Protocol { from: "qemu-io", text })
}

/// The byte in `00000040:  5a  Z`.
fn parse_dump(text: &str) -> Option<u8> {
    let (_, bytes) = text.lines().find_map(|line| line.split_once(":  "))?;
    u8::from_str_radix(bytes.get(..2)?, 16).ok()
}

/// Sets one byte of a disk image.
pub(crate) fn write_byte(tools: &Tools, target: &[&str], offset: u64, value: u8) -> Result<()> {
    let command = format!("write -P {value} {offset} 1");
    let mut args = target.to_vec();
    args.extend(["-c", &command]);
    tools.run("qemu-io", &args).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_dump_is_read_to_its_byte() {
        let text = "00000040:  5a  Z\nread 1/1 bytes at offset 64\n1 bytes, 1 ops";
        assert_eq!(parse_dump(text), Some(0x5a));
    }

    #[test]
    fn partitions_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let mut table = gpt::GptConfig::new().writable(true).create(&image).unwrap();
        table.add_partition("root-a", 1 << 20, gpt::partition_types::LINUX_FS, 0, None).unwrap();
        table.add_partition("state", 2 << 20, gpt::partition_types::LINUX_FS, 0, None).unwrap();
        table.write().unwrap();
        let start = partition_start(&image, "root-a").unwrap();
        assert_eq!(partition_bytes(&image, "state").unwrap(), 2 << 20);
        assert!(partition_start(&image, "state").unwrap() >= start + (1 << 20));
        let error = partition_start(&image, "data").unwrap_err();
        assert!(error.to_string().ends_with("has no partition data"), "{error}");
    }

    #[test]
    fn an_image_without_a_table_has_no_partition() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        std::fs::write(&image, vec![0u8; 4096]).unwrap();
        assert!(matches!(partition_start(&image, "x"), Err(Error::NoPartition { .. })));
    }

    proptest! {
        #[test]
        fn any_dump_is_parsed_or_refused(text in ".*(:  )?.*") {
            let _ = parse_dump(&text);
        }
    }
}
