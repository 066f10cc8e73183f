//! The real calls on a real kernel: a disk image on a loop device is grown, formatted, broken and repaired.
//!
//! Needs root, loop devices with partitions and e2fsprogs; says what is missing and skips. The tables are made and
//! read back by another implementation (the `gpt` crate). The whole start on whole machines is tested in QEMU.

use rustiot_provision::gpt as ours;
use rustiot_provision::linux::Linux;
use rustiot_provision::os::{Mount, Os};
use std::fs::File;
use std::process::Command;

const MIB: u64 = 1 << 20;

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        for number in ["1", "2"] {
            let _ = run("delpart", &[&self.0, number]);
        }
        let _ = run("losetup", &["-d", &self.0]);
    }
}

/// A loop device with the partitions of its table; a kernel that knows no GPT is told them one by one.
fn attach(image: &str) -> Result<Loop, String> {
    let device = Loop(run("losetup", &["-P", "-f", "--show", image])?);
    if !std::path::Path::new(&format!("{}p2", device.0)).exists() {
        let table = gpt::GptConfig::new().open(image).map_err(|error| error.to_string())?;
        for (number, partition) in table.partitions() {
            let (start, length) = (partition.first_lba, partition.last_lba - partition.first_lba + 1);
            run("addpart", &[&device.0, &number.to_string(), &start.to_string(), &length.to_string()])?;
        }
    }
    Ok(device)
}

struct Device<'a>(&'a str);

impl ours::Read for Device<'_> {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        Linux.read_device(self.0, offset, length).ok()
    }
}

/// An image of 64 MiB with a table for 32, on a loop device.
fn disk(image: &str) -> Result<Loop, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut file =
        File::options().create_new(true).read(true).write(true).open(image).map_err(|e| text(&e))?;
    file.set_len(32 * MIB).map_err(|e| text(&e))?;
    gpt::mbr::ProtectiveMBR::with_lb_size(u32::MAX).overwrite_lba0(&mut file).map_err(|e| text(&e))?;
    let mut table =
        gpt::GptConfig::new().writable(true).create_from_device(file, None).map_err(|e| text(&e))?;
    for (name, size) in [("state", 8 * MIB), ("data", 16 * MIB)] {
        let align = Some(MIB / 512);
        table.add_partition(name, size, gpt::partition_types::LINUX_FS, 0, align).map_err(|e| text(&e))?;
    }
    let file = table.write().map_err(|e| text(&e))?;
    file.set_len(64 * MIB).map_err(|e| text(&e))?;
    attach(image)
}

fn sectors(device: &str) -> u64 {
    let name = device.trim_start_matches("/dev/");
    let text = std::fs::read_to_string(format!("/sys/class/block/{name}/size")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[test]
fn a_mounted_partition_grows_with_its_file_system_and_a_new_start_finds_it_so() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img").display().to_string();
    let (device, data, target) = match disk(&image) {
        Ok(device) => {
            let data = format!("{}p2", device.0);
            (device, data, dir.path().join("data").display().to_string())
        }
        Err(why) => {
            eprintln!("skipped: {why}");
            return;
        }
    };
    let made = Linux.run("mkfs.ext4", &["-q", "-F", "-b", "4096", &data]).unwrap();
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    if let Err(why) = Linux.mount(Mount::Ext4(&data), &target) {
        eprintln!("skipped: cannot mount: {why}");
        return;
    }
    struct Mounted<'a>(&'a str);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = Linux.unmount(self.0);
        }
    }
    let mounted = Mounted(&target);
    assert_eq!(Linux.mounted(&target).unwrap(), Some(("ext4".into(), data.clone())));
    let file = dir.path().join("data/kept");
    Linux.write(&file, b"apps", 0o644, true).unwrap();

    let plan = ours::grow(&Device(&device.0), 64 * MIB, 512, "data").unwrap();
    for (offset, bytes) in &plan.writes {
        Linux.write_device(&device.0, *offset, bytes).unwrap();
    }
    assert_eq!(sectors(&data), 16 * MIB / 512, "the kernel does not know yet");
    Linux.resize_partition(&device.0, plan.partition).unwrap();
    assert_eq!(sectors(&data) * 512, plan.partition.length);
    assert!(plan.partition.length >= 50 * MIB);
    let resized = Linux.run("resize2fs", &[&data]).unwrap();
    if resized.stderr.contains("Permission denied") {
        eprintln!("skipped: growing a mounted file system needs CAP_SYS_RESOURCE; it is grown unmounted");
        Linux.unmount(&target).unwrap();
        assert_eq!(Linux.run("e2fsck", &["-f", "-y", &data]).unwrap().code, Some(0));
        assert_eq!(Linux.run("resize2fs", &[&data]).unwrap().code, Some(0));
        Linux.mount(Mount::Ext4(&data), &target).unwrap();
    } else {
        assert_eq!(resized.code, Some(0), "{}", resized.stderr);
    }
    assert_eq!(Linux.read(&file, 10).unwrap().unwrap(), b"apps");
    assert!(ours::grow(&Device(&device.0), 64 * MIB, 512, "data").unwrap().writes.is_empty());

    // Taken away and plugged in again: the kernel reads the same from the table, and another implementation agrees.
    drop(mounted);
    drop(device);
    let device = attach(&image).unwrap();
    let data = format!("{}p2", device.0);
    assert_eq!(sectors(&data) * 512, plan.partition.length);
    let table = gpt::GptConfig::new().only_valid_headers(true).open(&image).unwrap();
    assert_eq!(table.primary_header().unwrap().backup_lba, 64 * MIB / 512 - 1);
    assert_eq!(table.backup_header().unwrap().first_usable, table.primary_header().unwrap().first_usable);
    let partition = &table.partitions()[&2];
    assert_eq!(partition.bytes_len(gpt::disk::LogicalBlockSize::Lb512).unwrap(), plan.partition.length);
    assert_eq!(partition.name, "data");
    let checked = Linux.run("e2fsck", &["-f", "-n", &data]).unwrap();
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
}
