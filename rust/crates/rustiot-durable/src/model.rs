//! A disk in memory that loses power after a number of operations and comes back in every way a file system may.
//!
//! For tests only. Stricter than ext4: a name is durable only after `sync_dir`, contents only after `sync`, and what
//! was not synced comes back old, new, or torn. Used by the tests of this crate and of `rustiot-slots`.

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

use crate::storage::Storage;

/// How the disk comes back after the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remount {
    /// All that was not synced is lost.
    Lost,
    /// All that was not synced is there.
    Kept,
    /// Of what was not synced, some is there, some is lost and some is torn, as the seed says.
    Torn(u64),
}

impl Remount {
    /// Lost, kept, and `torn` seeds.
    pub fn some(torn: u64) -> impl Iterator<Item = Remount> {
        [Remount::Lost, Remount::Kept].into_iter().chain((0..torn).map(Remount::Torn))
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug, Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    operations: usize,
    cut_at: Option<usize>,
}

/// The disk. A clone is the same disk.
#[derive(Clone, Debug, Default)]
pub struct ModelDisk(Rc<RefCell<Disk>>);

impl ModelDisk {
    /// Changing operations so far.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.0.borrow().operations
    }

    /// The power goes during the operation after the next `operations`.
    pub fn cut_after(&self, operations: usize) {
        let mut disk = self.0.borrow_mut();
        disk.cut_at = Some(disk.operations + operations);
    }

    /// The names of the files, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.borrow().names.keys().cloned().collect()
    }

    /// Replaces a file at once and durably, as firmware replaces a variable. One operation; the power goes before it.
    ///
    /// # Errors
    /// The power is off.
    pub fn set(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.change(
            |disk| {
                let inode = disk.inodes.len();
                disk.inodes.push(Inode { now: bytes.to_vec(), durable: bytes.to_vec() });
                disk.names.insert(name.to_owned(), inode);
                disk.durable_names.insert(name.to_owned(), inode);
                Ok(())
            },
            false,
        )
    }

    /// The power is back.
    pub fn remount(&self, how: Remount) {
        let disk = &mut *self.0.borrow_mut();
        disk.cut_at = None;
        let mut random = Random(match how {
            Remount::Torn(seed) => seed,
            Remount::Lost | Remount::Kept => 0,
        });
        let names: Vec<String> = disk.names.keys().chain(disk.durable_names.keys()).cloned().collect();
        for name in names {
            let (now, durable) = (disk.names.get(&name).copied(), disk.durable_names.get(&name).copied());
            let keep = match how {
                Remount::Lost => false,
                Remount::Kept => true,
                Remount::Torn(_) => random.below(2) == 0,
            };
            match if keep { now } else { durable } {
                Some(inode) => disk.names.insert(name, inode),
                None => disk.names.remove(&name),
            };
        }
        disk.durable_names = disk.names.clone();
        for inode in &mut disk.inodes {
            match how {
                Remount::Lost => inode.now = inode.durable.clone(),
                Remount::Kept => {}
                Remount::Torn(_) if inode.now == inode.durable => {}
                Remount::Torn(_) => inode.now = torn(inode, &mut random),
            }
            inode.durable = inode.now.clone();
        }
    }

    /// Counts the operation and applies it; the one in which the power goes may or may not have reached the medium.
    fn change(&self, apply: impl FnOnce(&mut Disk) -> io::Result<()>, when_cut: bool) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let off = || io::Error::other("the power is off");
        match disk.cut_at {
            Some(at) if disk.operations > at => Err(off()),
            Some(at) if disk.operations == at => {
                disk.operations += 1;
                if when_cut {
                    // What it would have reported no longer matters.
                    let _ = apply(&mut disk);
                }
                Err(off())
            }
            _ => {
                disk.operations += 1;
                apply(&mut disk)
            }
        }
    }
}

/// Old, new, a part of the new, or the new length with old, new or zero bytes block by block.
fn torn(inode: &Inode, random: &mut Random) -> Vec<u8> {
    const BLOCK: usize = 4;
    match random.below(4) {
        0 => inode.durable.clone(),
        1 => inode.now.clone(),
        2 => inode.now.iter().take(random.below(inode.now.len() + 1)).copied().collect(),
        _ => {
            let mut bytes = Vec::new();
            for (index, block) in inode.now.chunks(BLOCK).enumerate() {
                let from = random.below(3);
                bytes.extend(block.iter().enumerate().map(|(offset, new)| match from {
                    0 => *new,
                    1 => inode.durable.get(index * BLOCK + offset).copied().unwrap_or(0),
                    _ => 0,
                }));
            }
            bytes
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough randomness for a test, the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % limit
    }
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Storage for ModelDisk {
    fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let disk = self.0.borrow();
        let inode = disk.names.get(name).and_then(|inode| disk.inodes.get(*inode));
        Ok(inode.map(|inode| inode.now.iter().take(max).copied().collect()))
    }

    fn write(&self, name: &str, bytes: &[u8], _mode: u32) -> io::Result<()> {
        self.change(
            |disk| {
                let fresh = disk.inodes.len();
                let inode = *disk.names.entry(name.to_owned()).or_insert(fresh);
                if inode == fresh {
                    disk.inodes.push(Inode::default());
                }
                disk.inodes.get_mut(inode).ok_or_else(missing)?.now = bytes.to_vec();
                Ok(())
            },
            true,
        )
    }

    fn overwrite(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.change(
            |disk| {
                let inode = *disk.names.get(name).ok_or_else(missing)?;
                let now = &mut disk.inodes.get_mut(inode).ok_or_else(missing)?.now;
                let tail = now.split_off(now.len().min(bytes.len()));
                *now = [bytes, &tail].concat();
                Ok(())
            },
            true,
        )
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.change(
            |disk| {
                let inode = *disk.names.get(name).ok_or_else(missing)?;
                let inode = disk.inodes.get_mut(inode).ok_or_else(missing)?;
                inode.durable = inode.now.clone();
                Ok(())
            },
            false,
        )
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(
            |disk| {
                let inode = disk.names.remove(from).ok_or_else(missing)?;
                disk.names.insert(to.to_owned(), inode);
                Ok(())
            },
            true,
        )
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(
            |disk| {
                disk.names.remove(name);
                Ok(())
            },
            true,
        )
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.change(
            |disk| {
                disk.durable_names = disk.names.clone();
                Ok(())
            },
            false,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The model must be able to show a mistake: without the syncs, something is lost.
    #[test]
    fn catches_a_write_that_is_not_synced() {
        let broken = |disk: &ModelDisk| {
            disk.write("tmp", b"new", 0)?;
            disk.rename("tmp", "file")?;
            disk.sync_dir()
        };
        let lost = Remount::some(16).any(|remount| {
            let disk = ModelDisk::default();
            crate::replace(&disk, "file", b"old", 0, true).unwrap();
            broken(&disk).unwrap();
            disk.remount(remount);
            !matches!(disk.read("file", 9).unwrap().as_deref(), Some(b"old" | b"new"))
        });
        assert!(lost);
    }

    #[test]
    fn nothing_works_after_the_cut() {
        let disk = ModelDisk::default();
        disk.cut_after(1);
        disk.write("a", b"1", 0).unwrap();
        assert!(disk.write("a", b"2", 0).is_err());
        assert!(disk.sync("a").is_err());
        disk.remount(Remount::Lost);
        assert_eq!(disk.read("a", 9).unwrap(), None);
    }
}
