//! UEFI: `BootOrder` holds the default, `BootNext` the one-shot. One boot entry a slot, each for the boot file on its
//! own partition, so the slots share nothing but these variables.
//!
//! Foreign entries stay, after ours. Our entries are made and repaired only by who knows the partitions
//! (`rustiot-init`). Never touches any other variable. Source: UEFI specification 2.10, sections 3.1 and 3.3.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::PathBuf,
};

use rustiot_boot::Slot;

use crate::{
    Error, Loader,
    firmware::{self, Firmware},
    load_option::{self, BootPartition, LoadOption},
    sys,
};

/// `EFI_GLOBAL_VARIABLE`, as efivarfs spells it in file names.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Non-volatile, and accessible at boot and at run time.
const ATTRIBUTES: u32 = 7;
/// Longest variable that is read, in bytes.
const VARIABLE_MAX: u64 = 64 << 10;

/// UEFI's selector.
#[derive(Clone, Debug)]
pub struct UefiLoader {
    efivars: PathBuf,
    partitions: Option<[BootPartition; 2]>,
}

/// The boot file's path on its partition: the one for removable media, which every firmware also finds by itself.
#[must_use]
pub fn boot_file() -> &'static str {
    if cfg!(target_arch = "aarch64") { "\\EFI\\BOOT\\BOOTAA64.EFI" } else { "\\EFI\\BOOT\\BOOTX64.EFI" }
}

/// The entry's name in the firmware's menus, by which we know it again.
fn label(slot: Slot) -> String {
    format!("RustIoT {}", slot.bootname())
}

/// The entries of both slots.
struct Ours {
    a: u16,
    b: u16,
    /// One had to be made or repaired.
    changed: bool,
    /// All entries that exist, foreign ones too.
    known: BTreeSet<u16>,
}

impl Ours {
    fn get(&self, slot: Slot) -> u16 {
        match slot {
            Slot::A => self.a,
            Slot::B => self.b,
        }
    }
}

impl UefiLoader {
    /// The selector in the efivarfs at `efivars`. With `partitions` (`boot-a`, `boot-b`), entries are made and repaired.
    #[must_use]
    pub fn new(efivars: PathBuf, partitions: Option<[BootPartition; 2]>) -> UefiLoader {
        UefiLoader { efivars, partitions }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.efivars.join(format!("{name}-{GLOBAL}"))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.read_of(name, GLOBAL)
    }

    fn read_of(&self, name: &str, vendor: &str) -> Result<Option<Vec<u8>>, Error> {
        let fail = |source| Error::Io { action: "read", what: format!("UEFI variable {name}"), source };
        let file = match File::open(self.efivars.join(format!("{name}-{vendor}"))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let mut bytes = Vec::new();
        file.take(VARIABLE_MAX).read_to_end(&mut bytes).map_err(fail)?;
        // The attributes come first.
        Ok(bytes.split_first_chunk::<4>().map(|(_, data)| data.to_vec()))
    }

    /// Writes the variable, if it is not so already. The firmware replaces it as a whole.
    fn write(&self, name: &str, data: &[u8]) -> Result<bool, Error> {
        if self.read(name)?.as_deref() == Some(data) {
            return Ok(false);
        }
        let fail = |source| Error::Io { action: "write", what: format!("UEFI variable {name}"), source };
        let path = self.path(name);
        let bytes = [ATTRIBUTES.to_le_bytes().as_slice(), data].concat();
        // Not truncated: that is a change of its own, which efivarfs need not survive.
        let open = || OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let mut file = match open() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if let Ok(file) = File::open(&path) {
                    sys::clear_immutable(&file);
                }
                open()
            }
            opened => opened,
        }
        .map_err(fail)?;
        // One call: the kernel passes each write on to the firmware as a whole variable.
        if file.write(&bytes).map_err(fail)? != bytes.len() {
            return Err(fail(io::ErrorKind::WriteZero.into()));
        }
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        // Never so on efivarfs, where the variable has just been replaced; a plain directory keeps what was longer.
        if file.metadata().map_err(fail)?.len() > len {
            file.set_len(len).map_err(fail)?;
        }
        Ok(true)
    }

    fn remove(&self, name: &str) -> Result<bool, Error> {
        let path = self.path(name);
        let gone = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if let Ok(file) = File::open(&path) {
                    sys::clear_immutable(&file);
                }
                fs::remove_file(&path)
            }
            gone => gone,
        };
        match gone {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io { action: "remove", what: format!("UEFI variable {name}"), source }),
        }
    }

    /// All boot entries by number; what is not one is `None`.
    fn entries(&self) -> Result<BTreeMap<u16, Option<LoadOption>>, Error> {
        let what = || self.efivars.display().to_string();
        let fail = |source| Error::Io { action: "read", what: what(), source };
        let mut entries = BTreeMap::new();
        for file in fs::read_dir(&self.efivars).map_err(fail)? {
            let name = file.map_err(fail)?.file_name();
            let Some(number) = name.to_str().and_then(entry_number) else { continue };
            let option = self.read(&entry_name(number))?.as_deref().and_then(load_option::parse);
            entries.insert(number, option);
        }
        Ok(entries)
    }

    /// The entries of our slots, made or repaired if the partitions are known.
    fn ensure_entries(&self) -> Result<Ours, Error> {
        let mut entries = self.entries()?;
        let (a, changed_a) = self.ensure_entry(&mut entries, Slot::A)?;
        let (b, changed_b) = self.ensure_entry(&mut entries, Slot::B)?;
        Ok(Ours { a, b, changed: changed_a || changed_b, known: entries.into_keys().collect() })
    }

    fn ensure_entry(
        &self,
        entries: &mut BTreeMap<u16, Option<LoadOption>>,
        slot: Slot,
    ) -> Result<(u16, bool), Error> {
        let label = label(slot);
        let named: Vec<u16> = of_label(entries, &label).collect();
        let Some([a, b]) = &self.partitions else {
            return Ok((named.first().copied().ok_or(Error::NoEntry(label))?, false));
        };
        let partition = match slot {
            Slot::A => a,
            Slot::B => b,
        };
        let wanted = LoadOption {
            active: true,
            description: label.clone(),
            partition: Some(*partition),
            file: Some(boot_file().to_owned()),
        };
        let right = named.iter().find(|number| entries.get(*number) == Some(&Some(wanted.clone())));
        let (number, mut changed) = match (right, named.first()) {
            (Some(right), _) => (*right, false),
            (None, Some(wrong)) => (*wrong, true),
            (None, None) => {
                let free = (0..=u16::MAX).find(|number| !entries.contains_key(number)).ok_or(Error::Full)?;
                (free, true)
            }
        };
        if changed {
            self.write(&entry_name(number), &load_option::build(&label, partition, boot_file()))?;
            entries.insert(number, Some(wanted));
        }
        // Left behind by an earlier medium in the same machine.
        for stale in named.into_iter().filter(|named| *named != number) {
            self.remove(&entry_name(stale))?;
            entries.remove(&stale);
            changed = true;
        }
        Ok((number, changed))
    }

    fn order(&self) -> Result<Vec<u16>, Error> {
        let bytes = self.read("BootOrder")?.unwrap_or_default();
        Ok(bytes.as_chunks::<2>().0.iter().map(|number| u16::from_le_bytes(*number)).collect())
    }

    fn slot_of(&self, number: u16) -> Result<Option<Slot>, Error> {
        let option = self.read(&entry_name(number))?.as_deref().and_then(load_option::parse);
        let description = option.map(|option| option.description);
        Ok(Slot::ALL.into_iter().find(|slot| description.as_deref() == Some(&label(*slot))))
    }
}

fn of_label<'a>(
    entries: &'a BTreeMap<u16, Option<LoadOption>>,
    label: &'a str,
) -> impl Iterator<Item = u16> + 'a {
    entries.iter().filter_map(move |(number, option)| {
        option.as_ref().is_some_and(|option| option.description == label).then_some(*number)
    })
}

fn entry_name(number: u16) -> String {
    format!("Boot{number:04X}")
}

/// The number in a file name like `Boot000A-8be4df61-…`.
fn entry_number(file_name: &str) -> Option<u16> {
    let digits = file_name.strip_prefix("Boot")?.strip_suffix(GLOBAL)?.strip_suffix('-')?;
    let upper = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    (digits.len() == 4 && digits.bytes().all(upper)).then(|| u16::from_str_radix(digits, 16).ok())?
}

impl Loader for UefiLoader {
    /// The first entry of `BootOrder`, if it is ours.
    fn default_slot(&mut self) -> Result<Option<Slot>, Error> {
        match self.order()?.first() {
            Some(first) => self.slot_of(*first),
            None => Ok(None),
        }
    }

    /// Puts the entry of `slot` first and that of the other slot second: firmware that cannot start the one tries the
    /// other by itself.
    fn set_default(&mut self, slot: Slot) -> Result<bool, Error> {
        let ours = self.ensure_entries()?;
        let (first, second) = (ours.get(slot), ours.get(!slot));
        let foreign = self
            .order()?
            .into_iter()
            .filter(|number| *number != first && *number != second && ours.known.contains(number));
        let order: Vec<u8> = [first, second].into_iter().chain(foreign).flat_map(u16::to_le_bytes).collect();
        Ok(self.write("BootOrder", &order)? || ours.changed)
    }

    fn next_slot(&mut self) -> Result<Option<Slot>, Error> {
        match self.read("BootNext")?.as_deref().and_then(|bytes| bytes.first_chunk::<2>().copied()) {
            Some(number) => self.slot_of(u16::from_le_bytes(number)),
            None => Ok(None),
        }
    }

    fn set_next(&mut self, slot: Slot) -> Result<bool, Error> {
        let ours = self.ensure_entries()?;
        Ok(self.write("BootNext", &ours.get(slot).to_le_bytes())? || ours.changed)
    }

    /// A one-shot for a foreign entry was set by a person and stays.
    fn clear_next(&mut self) -> Result<bool, Error> {
        match self.next_slot()? {
            Some(_) => self.remove("BootNext"),
            None => Ok(false),
        }
    }

    fn firmware(&mut self) -> Result<Option<Firmware>, Error> {
        let read = |name| self.read_of(name, firmware::NVIDIA);
        let (current, next, status) =
            (read(firmware::CURRENT)?, read(firmware::NEXT)?, read(firmware::STATUS)?);
        Ok(firmware::parse(current.as_deref(), next.as_deref(), status.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::load_option::Guid;

    fn partitions() -> [BootPartition; 2] {
        [10, 11].map(|last| BootPartition {
            number: u32::from(last - 8),
            start: 2048 * u64::from(last),
            blocks: 2048,
            guid: Guid([last; 16]),
        })
    }

    fn put(dir: &Path, name: &str, data: &[u8]) {
        let bytes = [7u32.to_le_bytes().as_slice(), data].concat();
        File::create(dir.join(format!("{name}-{GLOBAL}"))).unwrap().write_all(&bytes).unwrap();
    }

    fn get(dir: &Path, name: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(dir.join(format!("{name}-{GLOBAL}"))).ok()?;
        assert_eq!(bytes[..4], 7u32.to_le_bytes());
        Some(bytes[4..].to_vec())
    }

    fn order(dir: &Path) -> Vec<u16> {
        get(dir, "BootOrder").unwrap().chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    }

    /// As OVMF leaves it: an entry of its own, and numbers with gaps.
    fn firmware() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let foreign = load_option::build("UEFI Misc Device", &partitions()[0], "\\X");
        put(dir.path(), "Boot0001", &foreign);
        put(dir.path(), "Boot00FF", b"rubbish");
        put(dir.path(), "BootOrder", &[1, 0, 0xff, 0, 9, 0]);
        put(dir.path(), "BootOptionSupport", &[0; 4]);
        dir
    }

    #[test]
    fn makes_its_entries_and_keeps_foreign_ones_behind() {
        let dir = firmware();
        let mut loader = UefiLoader::new(dir.path().into(), Some(partitions()));
        assert_eq!(loader.default_slot().unwrap(), None);
        assert!(loader.set_default(Slot::B).unwrap());
        assert!(!loader.set_default(Slot::B).unwrap(), "nothing left to change");
        assert_eq!(loader.default_slot().unwrap(), Some(Slot::B));
        // 2 and 0 are ours; number 9 names no entry and is dropped.
        assert_eq!(order(dir.path()), [2, 0, 1, 0xff]);
        let entry = load_option::parse(&get(dir.path(), "Boot0000").unwrap()).unwrap();
        assert_eq!((entry.description.as_str(), entry.active), ("RustIoT A", true));
        assert_eq!(entry.partition, Some(partitions()[0]));
        assert!(loader.set_default(Slot::A).unwrap());
        assert_eq!(order(dir.path()), [0, 2, 1, 0xff]);
    }

    #[test]
    fn the_one_shot_comes_and_goes() {
        let dir = firmware();
        let mut loader = UefiLoader::new(dir.path().into(), Some(partitions()));
        assert!(!loader.clear_next().unwrap());
        assert!(loader.set_next(Slot::A).unwrap());
        assert!(!loader.set_next(Slot::A).unwrap());
        assert_eq!(loader.next_slot().unwrap(), Some(Slot::A));
        assert!(loader.clear_next().unwrap());
        assert_eq!(loader.next_slot().unwrap(), None);
        // A person's choice of a foreign entry is not ours to clear.
        put(dir.path(), "BootNext", &[1, 0]);
        assert!(!loader.clear_next().unwrap());
        assert_eq!(get(dir.path(), "BootNext"), Some(vec![1, 0]));
    }

    #[test]
    fn repairs_an_entry_that_names_another_medium_and_removes_doubles() {
        let dir = firmware();
        let old = BootPartition { guid: Guid([1; 16]), ..partitions()[0] };
        put(dir.path(), "Boot0003", &load_option::build("RustIoT A", &old, boot_file()));
        put(dir.path(), "Boot0004", &load_option::build("RustIoT A", &partitions()[0], boot_file()));
        put(dir.path(), "Boot0005", &load_option::build("RustIoT B", &old, boot_file()));
        put(dir.path(), "BootOrder", &[3, 0, 4, 0, 5, 0, 1, 0]);
        let mut loader = UefiLoader::new(dir.path().into(), Some(partitions()));
        assert!(loader.set_default(Slot::A).unwrap());
        assert_eq!(order(dir.path()), [4, 5, 1]);
        assert_eq!(get(dir.path(), "Boot0003"), None);
        let b = load_option::parse(&get(dir.path(), "Boot0005").unwrap()).unwrap();
        assert_eq!(b.partition, Some(partitions()[1]));
    }

    #[test]
    fn without_partitions_entries_are_found_but_never_made() {
        let dir = firmware();
        let mut loader = UefiLoader::new(dir.path().into(), None);
        assert_eq!(
            loader.set_next(Slot::B).unwrap_err().to_string(),
            "no UEFI boot entry `RustIoT A`; rustiot-init makes it at the next boot"
        );
        UefiLoader::new(dir.path().into(), Some(partitions())).set_default(Slot::A).unwrap();
        assert!(loader.set_next(Slot::B).unwrap());
        assert_eq!(loader.next_slot().unwrap(), Some(Slot::B));
    }

    /// The kernel makes variables that it does not know immutable; where the file system of the test has no such flag,
    /// or we may not set it, there is nothing to see.
    #[test]
    fn an_immutable_variable_is_written_and_removed_all_the_same() {
        let dir = firmware();
        let loader = UefiLoader::new(dir.path().into(), None);
        let path = loader.path("BootOrder");
        let chattr = |flag: &str| std::process::Command::new("chattr").arg(flag).arg(&path).output();
        if !chattr("+i").is_ok_and(|output| output.status.success()) {
            println!("skipped: chattr +i does not work here");
            return;
        }
        assert!(loader.write("BootOrder", &[1, 0]).unwrap());
        assert_eq!(order(dir.path()), [1]);
        assert!(chattr("+i").unwrap().status.success());
        assert!(loader.remove("BootOrder").unwrap());
    }

    /// A Jetson's firmware: its chain is shown, a slot's trial leaves its variables alone, and what is no chain is none.
    #[test]
    fn the_firmwares_own_chain_is_told_and_never_moved() {
        let dir = firmware();
        let mut loader = UefiLoader::new(dir.path().into(), Some(partitions()));
        assert_eq!(loader.firmware().unwrap(), None, "a PC has none");
        let file = |name: &str| dir.path().join(format!("{name}-{}", firmware::NVIDIA));
        let set = |name: &str, data: &[u8]| {
            File::create(file(name)).unwrap().write_all(&[&[6, 0, 0, 0], data].concat()).unwrap();
        };
        set(firmware::CURRENT, &[1, 0, 0, 0]);
        let told = |loader: &mut UefiLoader| loader.firmware().unwrap();
        assert_eq!(told(&mut loader), Some(Firmware { current: Slot::B, next: None, last_move: None }));
        set(firmware::NEXT, &[0, 0, 0, 0]);
        set(firmware::STATUS, &[14, 0, 0, 0]);
        loader.set_default(Slot::A).unwrap();
        loader.set_next(Slot::B).unwrap();
        loader.clear_next().unwrap();
        let shown = told(&mut loader).unwrap();
        assert_eq!((shown.current, shown.next), (Slot::B, Some(Slot::A)));
        assert_eq!(shown.last_move, Some("was refused: a slot's one-shot was pending"));
        for rubbish in [&[][..], &[1], &[2, 0, 0, 0], &[0; 8]] {
            set(firmware::CURRENT, rubbish);
            assert_eq!(told(&mut loader), None, "{rubbish:?}");
        }
    }

    #[test]
    fn a_missing_efivarfs_says_so() {
        let mut loader = UefiLoader::new("/nonexistent/efivars".into(), None);
        assert_eq!(loader.set_default(Slot::A).unwrap_err().to_string(), "cannot read /nonexistent/efivars");
    }

    /// Cut after any number of changed variables: doing it again ends in the same place.
    #[test]
    fn setting_the_default_can_be_repeated_from_any_point() {
        let done = firmware();
        UefiLoader::new(done.path().into(), Some(partitions())).set_default(Slot::B).unwrap();
        for kept in ["", "Boot0000", "Boot0000 Boot0002"] {
            let dir = firmware();
            for name in kept.split_whitespace() {
                put(dir.path(), name, &get(done.path(), name).unwrap());
            }
            assert!(UefiLoader::new(dir.path().into(), Some(partitions())).set_default(Slot::B).unwrap());
            assert_eq!(order(dir.path()), order(done.path()), "kept: {kept}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), fs::read_dir(done.path()).unwrap().count());
        }
    }
}
