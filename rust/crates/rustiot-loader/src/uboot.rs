//! U-Boot: the selector in two copies of an environment on the raw partition `uboot-env`.
//!
//! Variables: `slot_default` (`a`, `b`), `slot_next` (`a`, `b` or not set), `slot_gen` (decimal; the newest valid copy
//! counts). A change goes to the other copy, so the newest is never touched. Never writes outside the two copies.
//! The boot script reads the same bytes: `docs/contracts/loader.md`.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use rustiot_boot::Slot;

use crate::{
    Error, Loader,
    env::{self, Env},
};

/// Where the copies lie on the partition, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvLayout {
    /// Length of one copy.
    pub size: usize,
    /// First byte of each.
    pub offsets: [u64; 2],
}

impl Default for EnvLayout {
    /// 16 KiB each, at 0 and 64 KiB: in different erase blocks of any eMMC or card.
    fn default() -> EnvLayout {
        EnvLayout { size: 16 << 10, offsets: [0, 64 << 10] }
    }
}

/// U-Boot's selector.
#[derive(Clone, Debug)]
pub struct UbootLoader {
    device: PathBuf,
    layout: EnvLayout,
}

/// The newest valid copy.
struct Newest {
    env: Env,
    generation: u64,
    /// Where the next write goes.
    other: u64,
}

impl UbootLoader {
    /// The selector on `device`.
    #[must_use]
    pub fn new(device: PathBuf, layout: EnvLayout) -> UbootLoader {
        UbootLoader { device, layout }
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> Error {
        let what = self.device.display().to_string();
        move |source| Error::Io { action, what: what.clone(), source }
    }

    fn newest(&self) -> Result<Option<Newest>, Error> {
        let file = File::open(&self.device).map_err(self.io("read"))?;
        let [first, second] = self.layout.offsets;
        let mut newest: Option<Newest> = None;
        for (offset, other) in [(first, second), (second, first)] {
            let mut bytes = vec![0; self.layout.size];
            // A copy that cannot be read is as good as a damaged one: the other may do.
            let Some((env, generation)) =
                file.read_exact_at(&mut bytes, offset).ok().and_then(|()| copy(&bytes))
            else {
                continue;
            };
            if newest.as_ref().is_none_or(|newest| generation > newest.generation) {
                newest = Some(Newest { env, generation, other });
            }
        }
        Ok(newest)
    }

    fn write(&self, mut env: Env, generation: u64, offset: u64) -> Result<(), Error> {
        env.set("slot_gen", &generation.to_string());
        let bytes = env.to_bytes(self.layout.size).map_err(Error::EnvFull)?;
        let file = OpenOptions::new().write(true).open(&self.device).map_err(self.io("write"))?;
        file.write_all_at(&bytes, offset).map_err(self.io("write"))?;
        file.sync_all().map_err(self.io("write"))
    }

    fn variable(&self, name: &str) -> Result<Option<Slot>, Error> {
        Ok(self.newest()?.and_then(|newest| slot(&newest.env, name)))
    }

    /// Sets or unsets one variable, if it is not so already.
    fn change(&self, newest: Newest, name: &str, value: Option<Slot>) -> Result<bool, Error> {
        let Newest { mut env, generation, other } = newest;
        if env.get(name) == value.map(Slot::letter) {
            return Ok(false);
        }
        match value {
            Some(slot) => env.set(name, slot.letter()),
            None => env.unset(name),
        }
        self.write(env, generation.saturating_add(1), other)?;
        Ok(true)
    }
}

fn slot(env: &Env, name: &str) -> Option<Slot> {
    match env.get(name) {
        Some("a") => Some(Slot::A),
        Some("b") => Some(Slot::B),
        _ => None,
    }
}

/// A copy counts if its checksum holds and it names a default and a generation, as in the boot script.
fn copy(bytes: &[u8]) -> Option<(Env, u64)> {
    let env = env::parse(bytes).ok()?;
    slot(&env, "slot_default")?;
    let generation = env.get("slot_gen")?.parse().ok()?;
    Some((env, generation))
}

impl Loader for UbootLoader {
    fn default_slot(&mut self) -> Result<Option<Slot>, Error> {
        self.variable("slot_default")
    }

    fn set_default(&mut self, slot: Slot) -> Result<bool, Error> {
        match self.newest()? {
            Some(newest) => self.change(newest, "slot_default", Some(slot)),
            None => {
                let mut env = Env::default();
                env.set("slot_default", slot.letter());
                self.write(env, 1, self.layout.offsets[0])?;
                Ok(true)
            }
        }
    }

    fn next_slot(&mut self) -> Result<Option<Slot>, Error> {
        self.variable("slot_next")
    }

    fn set_next(&mut self, slot: Slot) -> Result<bool, Error> {
        let newest = self.newest()?.ok_or(Error::NoEnv)?;
        self.change(newest, "slot_next", Some(slot))
    }

    fn clear_next(&mut self) -> Result<bool, Error> {
        match self.newest()? {
            Some(newest) => self.change(newest, "slot_next", None),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: EnvLayout = EnvLayout { size: 128, offsets: [0, 512] };

    fn loader(bytes: &[u8]) -> (tempfile::NamedTempFile, UbootLoader) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(bytes, 0).unwrap();
        let loader = UbootLoader::new(file.path().to_owned(), LAYOUT);
        (file, loader)
    }

    fn state(loader: &mut UbootLoader) -> (Option<Slot>, Option<Slot>) {
        (loader.default_slot().unwrap(), loader.next_slot().unwrap())
    }

    #[test]
    fn a_lost_selector_is_made_anew() {
        let (_file, mut loader) = loader(&[0xff; 1024]);
        assert_eq!(state(&mut loader), (None, None));
        assert!(matches!(loader.set_next(Slot::A), Err(Error::NoEnv)));
        assert!(!loader.clear_next().unwrap());
        assert!(loader.set_default(Slot::B).unwrap());
        assert!(!loader.set_default(Slot::B).unwrap());
        assert!(loader.set_next(Slot::A).unwrap());
        assert!(!loader.set_next(Slot::A).unwrap());
        assert_eq!(state(&mut loader), (Some(Slot::B), Some(Slot::A)));
        assert!(loader.clear_next().unwrap());
        assert!(!loader.clear_next().unwrap());
        assert_eq!(state(&mut loader), (Some(Slot::B), None));
    }

    #[test]
    fn a_copy_without_a_generation_does_not_count() {
        let (file, mut loader) = loader(&[0; 1024]);
        for generation in ["x", "-1", "1 "] {
            let mut env = Env::default();
            env.set("slot_default", "b");
            env.set("slot_gen", generation);
            file.as_file().write_all_at(&env.to_bytes(LAYOUT.size).unwrap(), 0).unwrap();
            assert_eq!(state(&mut loader), (None, None), "{generation}");
        }
    }

    #[test]
    fn foreign_variables_stay() {
        let mut env = Env::default();
        env.set("slot_default", "a");
        env.set("slot_gen", "9");
        env.set("ethaddr", "02:00:00:00:00:01");
        let (file, mut loader) = loader(&[0; 1024]);
        file.as_file().write_all_at(&env.to_bytes(LAYOUT.size).unwrap(), 512).unwrap();
        for slot in [Slot::B, Slot::A, Slot::B] {
            assert!(loader.set_default(slot).unwrap());
        }
        let newest = loader.newest().unwrap().unwrap();
        assert_eq!((newest.generation, newest.env.get("ethaddr")), (12, Some("02:00:00:00:00:01")));
    }

    #[test]
    fn a_write_torn_at_any_byte_leaves_the_old_selector() {
        let (file, mut loader) = loader(&[0; 1024]);
        loader.set_default(Slot::A).unwrap();
        loader.set_default(Slot::B).unwrap();
        let mut before = vec![0; 1024];
        file.as_file().read_exact_at(&mut before, 0).unwrap();
        loader.set_next(Slot::A).unwrap();
        let mut after = vec![0; 1024];
        file.as_file().read_exact_at(&mut after, 0).unwrap();
        for cut in 0..=before.len() {
            let torn = [&after[..cut], &before[cut..]].concat();
            file.as_file().write_all_at(&torn, 0).unwrap();
            let next = if torn == after { Some(Slot::A) } else { None };
            assert_eq!(state(&mut loader), (Some(Slot::B), next), "cut {cut}");
        }
    }

    #[test]
    fn a_missing_or_short_device_says_so() {
        let mut missing = UbootLoader::new("/nonexistent/uboot-env".into(), LAYOUT);
        assert_eq!(missing.default_slot().unwrap_err().to_string(), "cannot read /nonexistent/uboot-env");
        let (_file, mut short) = loader(&[0; 10]);
        assert_eq!(state(&mut short), (None, None));
    }
}
