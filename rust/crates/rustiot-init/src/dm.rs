//! dm-verity over the device-mapper ioctl interface: the messages as bytes, and the target line.
//!
//! Pure except for [`open_root`], which sends the messages through the port. Never reads the disk. Called by
//! [`crate::boot`]. Sources: Linux `include/uapi/linux/dm-ioctl.h`,
//! Documentation/admin-guide/device-mapper/verity.rst.

use nix::errno::Errno;

use crate::{config::Verity, disk::Partition, sys::Sys};

/// Name of the mapped device.
pub const NAME: &str = "rustiot-root";

const HEADER: usize = 312;
const TARGET: usize = 40;
const READONLY: u32 = 1;

/// A device-mapper ioctl command number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// `DM_DEV_CREATE`: a device without a table.
    Create = 3,
    /// `DM_DEV_REMOVE`.
    Remove = 4,
    /// `DM_DEV_SUSPEND` without the suspend flag: resume, which makes the loaded table live.
    Resume = 6,
    /// `DM_TABLE_LOAD`.
    Load = 9,
}

/// What the kernel does when a block does not match its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCorruption {
    /// Panic: the reboot, with the record in pstore, brings the other slot.
    Panic,
    /// The read fails with EIO; what still reads may still help (rescue).
    Fail,
}

/// The root cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// The sizes in the initramfs do not fit the partition: not the root that belongs to this kernel.
    #[error("{what} needs {needs} bytes, partition {label} has {has}")]
    Bounds {
        /// Data or hash tree.
        what: &'static str,
        /// Bytes from the start of the partition.
        needs: u128,
        /// Name of the partition.
        label: String,
        /// Its size in bytes.
        has: u64,
    },
    /// The hash tree begins inside the data.
    #[error("hash tree at byte {hash} overlaps the data, which end at {data}")]
    Overlap {
        /// Start of the tree in bytes.
        hash: u128,
        /// End of the data in bytes.
        data: u128,
    },
    /// The kernel refused.
    #[error("device mapper: {command:?} failed")]
    Ioctl {
        /// What was asked.
        command: Command,
        /// Why not.
        #[source]
        source: Errno,
    },
}

/// A verity target: its size and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Arguments for the kernel.
    pub line: String,
}

/// Checks the figures against the partition and writes the target line.
///
/// # Errors
/// [`DmError::Bounds`], [`DmError::Overlap`].
pub fn target(verity: &Verity, partition: &Partition, mode: OnCorruption) -> Result<Target, DmError> {
    let data = u128::from(verity.data_blocks).saturating_mul(verity.data_block_size.into());
    let hash = u128::from(verity.hash_start_block).saturating_mul(verity.hash_block_size.into());
    let end = tree_blocks(verity).saturating_mul(verity.hash_block_size.into()).saturating_add(hash);
    let fits = |what, needs: u128| {
        if needs <= partition.bytes.into() {
            Ok(())
        } else {
            Err(DmError::Bounds { what, needs, label: partition.label.clone(), has: partition.bytes })
        }
    };
    fits("root file system", data)?;
    fits("hash tree", end)?;
    if hash < data {
        return Err(DmError::Overlap { hash, data });
    }
    let Verity {
        data_block_size,
        hash_block_size,
        data_blocks,
        hash_start_block,
        algorithm,
        root_hash,
        salt,
    } = verity;
    let salt = if salt.is_empty() { "-" } else { salt };
    let device = &partition.devno;
    let options = match mode {
        OnCorruption::Panic => " 1 panic_on_corruption",
        OnCorruption::Fail => "",
    };
    Ok(Target {
        // `data` fits the partition, which is counted in sectors
        sectors: u64::try_from(data / 512).unwrap_or(u64::MAX),
        line: format!(
            "1 {device} {device} {data_block_size} {hash_block_size} {data_blocks} {hash_start_block} \
             {algorithm} {root_hash} {salt}{options}"
        ),
    })
}

/// Hash blocks in all levels of the tree (verity.rst: a block holds as many hashes as fit, each padded to a power
/// of two; the root hash itself is not stored).
fn tree_blocks(verity: &Verity) -> u128 {
    let digest = (verity.root_hash.len() / 2).next_power_of_two().max(1) as u128;
    let fanout = (u128::from(verity.hash_block_size) / digest).max(2);
    let (mut level, mut total) = (u128::from(verity.data_blocks), 0u128);
    while level > 1 {
        level = level.div_ceil(fanout);
        total = total.saturating_add(level);
    }
    // one data block still has one hash block above it
    total.max(1)
}

/// A message for the kernel: `struct dm_ioctl`, and for a table one `struct dm_target_spec` with its line.
#[must_use]
pub fn message(name: &str, flags: u32, target: Option<&Target>) -> Vec<u8> {
    let mut body = Vec::new();
    if let Some(target) = target {
        body.extend(0u64.to_ne_bytes()); // sector_start
        body.extend(target.sectors.to_ne_bytes());
        body.extend(0i32.to_ne_bytes()); // status
        body.extend(0u32.to_ne_bytes()); // next: only one target
        body.extend(padded(b"verity", 16));
        let line = target.line.as_bytes();
        body.extend(padded(line, line.len().saturating_add(1).next_multiple_of(8)));
    }
    let size = u32::try_from(HEADER.saturating_add(body.len())).unwrap_or(u32::MAX);
    let mut out = Vec::new();
    for field in [4u32, 0, 0, size, HEADER as u32, u32::from(target.is_some()), 0, flags, 0, 0] {
        out.extend(field.to_ne_bytes()); // version[3] data_size data_start target_count open_count flags event_nr padding
    }
    out.extend(0u64.to_ne_bytes()); // dev
    out.extend(padded(name.as_bytes(), 128));
    out.extend(padded(b"", HEADER.saturating_sub(out.len()))); // uuid, data
    out.extend(body);
    out
}

fn padded(bytes: &[u8], length: usize) -> impl Iterator<Item = u8> {
    bytes.iter().copied().chain(std::iter::repeat(0)).take(length)
}

/// The minor number in the kernel's reply to [`Command::Create`] (`huge_encode_dev`: bits 0–7 and 20–31).
#[must_use]
pub fn minor(reply: &[u8]) -> Option<u32> {
    let dev = u64::from_ne_bytes(*reply.get(TARGET..)?.first_chunk()?);
    u32::try_from((dev & 0xff) | ((dev >> 12) & 0xf_ff00)).ok()
}

/// Maps the root and returns its device node. A device left from an earlier try is removed first.
///
/// # Errors
/// [`DmError`]; a half-made device is removed again.
pub fn open_root(
    sys: &mut dyn Sys,
    verity: &Verity,
    partition: &Partition,
    mode: OnCorruption,
) -> Result<String, DmError> {
    let target = target(verity, partition, mode)?;
    let mut send = |command: Command, flags: u32, target: Option<&Target>| {
        let mut buffer = message(NAME, flags, target);
        sys.device_mapper(command, &mut buffer)
            .map(|()| buffer)
            .map_err(|source| DmError::Ioctl { command, source })
    };
    let reply = match send(Command::Create, 0, None) {
        Err(DmError::Ioctl { source: Errno::EBUSY, .. }) => {
            send(Command::Remove, 0, None)?;
            send(Command::Create, 0, None)?
        }
        other => other?,
    };
    let live = send(Command::Load, READONLY, Some(&target)).and_then(|_| send(Command::Resume, 0, None));
    match (live, minor(&reply)) {
        (Ok(_), Some(minor)) => Ok(format!("/dev/dm-{minor}")),
        (result, _) => {
            // the first cause counts; a device that stays behind is removed by the next try
            let _ = send(Command::Remove, 0, None);
            Err(result.err().unwrap_or(DmError::Ioctl { command: Command::Create, source: Errno::EPROTO }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fake::FakeSys;
    use proptest::prelude::*;

    const LOAD: &str = "dm Load panic_on_corruption";

    fn verity() -> Verity {
        Verity {
            data_block_size: 4096,
            hash_block_size: 4096,
            data_blocks: 1000,
            hash_start_block: 1000,
            algorithm: "sha256".into(),
            root_hash: "ab".repeat(32),
            salt: "cd".into(),
        }
    }

    fn partition(blocks: u64) -> Partition {
        Partition {
            device: "vda4".into(),
            devno: "254:4".into(),
            number: 4,
            label: "root-a".into(),
            bytes: blocks * 4096,
        }
    }

    #[test]
    fn writes_the_line_that_the_kernel_documents() {
        let hash = "ab".repeat(32);
        let t = target(&verity(), &partition(1009), OnCorruption::Panic).unwrap();
        assert_eq!(t.sectors, 8000);
        assert_eq!(
            t.line,
            format!("1 254:4 254:4 4096 4096 1000 1000 sha256 {hash} cd 1 panic_on_corruption")
        );
        let without = Verity { salt: String::new(), ..verity() };
        let t = target(&without, &partition(1009), OnCorruption::Fail).unwrap();
        assert!(t.line.ends_with(&format!("{hash} -")), "{}", t.line);
    }

    #[test]
    fn names_what_does_not_fit_the_partition() {
        // 1000 blocks: 8 blocks of 128 hashes, and one above
        let text =
            |blocks| target(&verity(), &partition(blocks), OnCorruption::Panic).unwrap_err().to_string();
        assert_eq!(text(999), "root file system needs 4096000 bytes, partition root-a has 4091904");
        assert_eq!(text(1008), "hash tree needs 4132864 bytes, partition root-a has 4128768");
        let inside = Verity { hash_start_block: 999, ..verity() };
        assert!(matches!(
            target(&inside, &partition(1009), OnCorruption::Panic),
            Err(DmError::Overlap { .. })
        ));
    }

    #[test]
    fn messages_have_the_kernels_layout() {
        let create = message("x", 0, None);
        assert_eq!(create.len(), 312);
        assert_eq!(&create[48..50], b"x\0");
        let target = Target { sectors: 7, line: "abcdefgh".into() };
        let load = message("x", READONLY, Some(&target));
        assert_eq!(load.len(), 312 + 40 + 16, "the line with its NUL, padded to 8");
        assert_eq!(load[12..16], 368u32.to_ne_bytes());
        assert_eq!(load[20..24], 1u32.to_ne_bytes(), "target_count");
        assert_eq!(load[28..32], READONLY.to_ne_bytes());
        assert_eq!(load[320..328], 7u64.to_ne_bytes());
        assert_eq!(&load[336..343], b"verity\0");
        assert_eq!(&load[352..361], b"abcdefgh\0");
    }

    #[test]
    fn opens_and_cleans_up_its_own_leftovers() {
        let mut sys = FakeSys::new();
        assert_eq!(
            open_root(&mut sys, &verity(), &partition(1009), OnCorruption::Panic).unwrap(),
            "/dev/dm-0"
        );
        assert_eq!(sys.take(), ["dm Create", LOAD, "dm Resume"]);

        sys.fail("dm Create", Errno::EBUSY);
        open_root(&mut sys, &verity(), &partition(1009), OnCorruption::Panic).unwrap();
        assert_eq!(sys.take(), ["dm Create", "dm Remove", "dm Create", LOAD, "dm Resume"]);

        sys.fail("dm Load", Errno::EINVAL);
        let error = open_root(&mut sys, &verity(), &partition(1009), OnCorruption::Panic).unwrap_err();
        assert!(matches!(error, DmError::Ioctl { command: Command::Load, source: Errno::EINVAL }));
        assert_eq!(sys.take(), ["dm Create", LOAD, "dm Remove"]);
    }

    proptest! {
        #[test]
        fn targets_are_total(data_blocks: u64, hash_start_block: u64, bytes: u64, hex in 0usize..200) {
            let verity = Verity { data_blocks, hash_start_block, root_hash: "a".repeat(hex), ..verity() };
            let partition = Partition { bytes, ..partition(1) };
            if let Ok(target) = target(&verity, &partition, OnCorruption::Panic) {
                prop_assert!(target.sectors <= bytes / 512);
            }
        }
    }
}
