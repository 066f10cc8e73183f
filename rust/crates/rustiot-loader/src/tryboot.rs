//! Raspberry Pi: the selector is `autoboot.txt` on the partition `autoboot`, the one-shot a flag that the firmware keeps
//! over a reset and spends before it starts anything.
//!
//! The file is never made, moved or grown: its bytes are changed where they lie, one selector a byte, so no directory
//! and no allocation table is ever half written. The flag is the one behind `reboot "0 tryboot"`, set at once through
//! the firmware's mailbox, so that it holds for every way in which the board restarts; a power cut forgets it, which
//! the policy counts as an attempt that never started. Never mounts anything. Contract: `docs/contracts/loader.md`.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use rustiot_boot::Slot;

use crate::{
    Error, Loader,
    autoboot::{self, Place, Selection},
    sys,
};

/// The flag that makes the next start a trial.
pub trait RebootFlag {
    /// Whether it is set.
    ///
    /// # Errors
    /// The firmware cannot be asked.
    fn get(&self) -> io::Result<bool>;

    /// Sets or clears it.
    ///
    /// # Errors
    /// The firmware cannot be told; nothing changed.
    fn set(&self, to: bool) -> io::Result<()>;

    /// What it is, for people.
    fn name(&self) -> String;
}

/// The firmware's property mailbox (`/dev/vcio`).
#[derive(Clone, Debug)]
pub struct Mailbox(pub PathBuf);

/// Tags of the mailbox (Linux: include/soc/bcm2835/raspberrypi-firmware.h).
const GET_REBOOT_FLAGS: u32 = 0x0003_0064;
const SET_REBOOT_FLAGS: u32 = 0x0003_8064;
/// Bit of those flags.
const TRYBOOT: u32 = 1;
/// The firmware's answer to a request that it understood.
const SUCCESS: u32 = 0x8000_0000;

impl Mailbox {
    fn property(&self, tag: u32, value: u32) -> io::Result<u32> {
        let file = OpenOptions::new().read(true).write(true).open(&self.0)?;
        // Length in bytes, request, tag, room for the value, its request, value, end.
        let mut message = [28, 0, tag, 4, 0, value, 0];
        sys::mailbox(&file, &mut message)?;
        match message {
            [_, SUCCESS, _, _, _, value, _] => Ok(value),
            _ => Err(io::Error::other(format!("the firmware does not know property {tag:#x}"))),
        }
    }
}

impl RebootFlag for Mailbox {
    fn get(&self) -> io::Result<bool> {
        Ok(self.property(GET_REBOOT_FLAGS, 0)? & TRYBOOT != 0)
    }

    fn set(&self, to: bool) -> io::Result<()> {
        let flags = self.property(GET_REBOOT_FLAGS, 0)?;
        self.property(SET_REBOOT_FLAGS, if to { flags | TRYBOOT } else { flags & !TRYBOOT })?;
        // Firmware that takes the flag and does not keep it would make every trial start the default.
        if self.get()? == to { Ok(()) } else { Err(io::Error::other("the firmware did not keep the flag")) }
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

/// The Raspberry Pi's selector.
#[derive(Clone, Debug)]
pub struct TrybootLoader<F> {
    device: PathBuf,
    flag: F,
}

impl<F: RebootFlag> TrybootLoader<F> {
    /// The selector on the partition `device`, with the one-shot `flag`.
    #[must_use]
    pub fn new(device: PathBuf, flag: F) -> TrybootLoader<F> {
        TrybootLoader { device, flag }
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> Error {
        let what = self.device.display().to_string();
        move |source| Error::Io { action, what: what.clone(), source }
    }

    fn flag_io(&self, action: &'static str) -> impl Fn(io::Error) -> Error {
        let what = self.flag.name();
        move |source| Error::Io { action, what: what.clone(), source }
    }

    /// Where the file lies, and what it selects.
    fn read(&self) -> Result<(Place, Option<Selection>), Error> {
        let file = File::open(&self.device).map_err(self.io("read"))?;
        let mut read = |offset, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        };
        let place = autoboot::find(&mut read)
            .map_err(|source| Error::Autoboot { device: self.device.display().to_string(), source })?;
        let length = usize::try_from(place.length).unwrap_or(0);
        let text = read(place.offset, length).map_err(self.io("read"))?;
        Ok((place, Selection::parse(&text)))
    }

    /// Replaces the text where it lies. What is longer than ours is filled with empty lines.
    fn write(&self, place: Place, selection: Selection) -> Result<(), Error> {
        let mut text = selection.text().into_bytes();
        let length = usize::try_from(place.length).unwrap_or(0);
        if text.len() > length {
            return Err(Error::Autoboot {
                device: self.device.display().to_string(),
                source: autoboot::FatError::Unusable("it is shorter than 64 bytes"),
            });
        }
        text.resize(length, b'\n');
        let file = OpenOptions::new().write(true).open(&self.device).map_err(self.io("write"))?;
        file.write_all_at(&text, place.offset).map_err(self.io("write"))?;
        file.sync_all().map_err(self.io("write"))
    }
}

impl<F: RebootFlag> Loader for TrybootLoader<F> {
    fn default_slot(&mut self) -> Result<Option<Slot>, Error> {
        Ok(self.read()?.1.map(|selection| selection.default))
    }

    fn set_default(&mut self, slot: Slot) -> Result<bool, Error> {
        let (place, selection) = self.read()?;
        if selection.is_some_and(|selection| selection.default == slot) {
            return Ok(false);
        }
        let tryboot = selection.map_or(!slot, |selection| selection.tryboot);
        self.write(place, Selection { default: slot, tryboot })?;
        Ok(true)
    }

    fn next_slot(&mut self) -> Result<Option<Slot>, Error> {
        if !self.flag.get().map_err(self.flag_io("read"))? {
            return Ok(None);
        }
        Ok(self.read()?.1.map(|selection| selection.tryboot))
    }

    fn set_next(&mut self, slot: Slot) -> Result<bool, Error> {
        let (place, selection) = self.read()?;
        let selection = selection.ok_or(Error::NoDefault)?;
        let mut changed = false;
        // The file first: a flag that is set already must not be followed to where nobody wants it any more.
        if selection.tryboot != slot {
            self.write(place, Selection { tryboot: slot, ..selection })?;
            changed = true;
        }
        if !self.flag.get().map_err(self.flag_io("read"))? {
            self.flag.set(true).map_err(self.flag_io("write"))?;
            changed = true;
        }
        Ok(changed)
    }

    fn clear_next(&mut self) -> Result<bool, Error> {
        if !self.flag.get().map_err(self.flag_io("read"))? {
            return Ok(false);
        }
        self.flag.set(false).map_err(self.flag_io("write"))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use proptest::prelude::*;

    use super::*;
    use crate::autoboot::sample;

    /// The flag of a firmware that may be out of reach.
    #[derive(Clone, Debug, Default)]
    struct Fake {
        set: Rc<Cell<bool>>,
        broken: Rc<Cell<bool>>,
    }

    impl RebootFlag for Fake {
        fn get(&self) -> io::Result<bool> {
            if self.broken.get() { Err(io::Error::other("no answer")) } else { Ok(self.set.get()) }
        }
        fn set(&self, to: bool) -> io::Result<()> {
            self.get()?;
            self.set.set(to);
            Ok(())
        }
        fn name(&self) -> String {
            "flag".into()
        }
    }

    fn loader(text: &[u8]) -> (tempfile::NamedTempFile, Fake, TrybootLoader<Fake>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&sample::fat16(text), 0).unwrap();
        let flag = Fake::default();
        let loader = TrybootLoader::new(file.path().to_owned(), flag.clone());
        (file, flag, loader)
    }

    fn first() -> String {
        Selection { default: Slot::A, tryboot: Slot::B }.text()
    }

    fn state(loader: &mut TrybootLoader<Fake>) -> (Option<Slot>, Option<Slot>) {
        (loader.default_slot().unwrap(), loader.next_slot().unwrap())
    }

    /// What the firmware starts: the flag is spent, then the text is read.
    fn firmware(file: &std::fs::File, flag: &Fake) -> Option<Slot> {
        let mut text = [0; 64];
        file.read_exact_at(&mut text, sample::OFFSET).unwrap();
        let selection = Selection::parse(&text)?;
        Some(if flag.set.replace(false) { selection.tryboot } else { selection.default })
    }

    #[test]
    fn default_and_one_shot_come_and_go() {
        let (file, flag, mut loader) = loader(first().as_bytes());
        assert_eq!(state(&mut loader), (Some(Slot::A), None));
        assert!(!loader.set_default(Slot::A).unwrap());
        assert!(!loader.clear_next().unwrap());
        assert!(loader.set_next(Slot::B).unwrap());
        assert!(!loader.set_next(Slot::B).unwrap());
        assert_eq!(state(&mut loader), (Some(Slot::A), Some(Slot::B)));
        assert_eq!(firmware(file.as_file(), &flag), Some(Slot::B), "the trial");
        assert_eq!(firmware(file.as_file(), &flag), Some(Slot::A), "whatever ended it");
        assert!(loader.set_default(Slot::B).unwrap());
        assert_eq!(firmware(file.as_file(), &flag), Some(Slot::B), "committed");
        assert!(loader.set_next(Slot::A).unwrap());
        assert!(loader.clear_next().unwrap());
        assert_eq!(state(&mut loader), (Some(Slot::B), None));
    }

    #[test]
    fn nothing_but_the_text_changes() {
        let (file, _, mut loader) = loader(first().as_bytes());
        let before = std::fs::read(file.path()).unwrap();
        loader.set_default(Slot::B).unwrap();
        let after = std::fs::read(file.path()).unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
        assert_eq!(changed, [sample::OFFSET as usize + 35]);
    }

    #[test]
    fn a_write_torn_at_any_byte_leaves_the_old_selector_or_the_new_one() {
        for (default, next) in [(Slot::B, None), (Slot::A, Some(Slot::A))] {
            let (file, _, mut loader) = loader(first().as_bytes());
            let before = std::fs::read(file.path()).unwrap();
            match next {
                None => loader.set_default(default).unwrap(),
                Some(slot) => loader.set_next(slot).unwrap(),
            };
            let after = std::fs::read(file.path()).unwrap();
            let old = Selection { default: Slot::A, tryboot: Slot::B };
            let new = Selection { default, tryboot: next.unwrap_or(Slot::B) };
            for cut in 0..=64 {
                let at = sample::OFFSET as usize + cut;
                let torn = [&after[..at], &before[at..]].concat();
                file.as_file().write_all_at(&torn, 0).unwrap();
                let found = loader.read().unwrap().1.unwrap();
                assert!(found == old || found == new, "cut {cut}: {found:?}");
            }
        }
    }

    #[test]
    fn a_lost_selector_is_made_anew_and_a_lost_file_is_not() {
        let (file, _, mut broken) = loader(&[b'#'; 200]);
        assert_eq!(broken.default_slot().unwrap(), None);
        assert!(matches!(broken.set_next(Slot::A), Err(Error::NoDefault)));
        assert!(broken.set_default(Slot::B).unwrap());
        assert_eq!(state(&mut broken), (Some(Slot::B), None));
        let text = std::fs::read(file.path()).unwrap();
        let rest = &text[sample::OFFSET as usize + 64..sample::OFFSET as usize + 200];
        assert!(rest.iter().all(|byte| *byte == b'\n'));

        let (_file, _, mut short) = loader(b"[all]\n");
        assert_eq!(
            chain(&short.set_default(Slot::B).unwrap_err()),
            format!(
                "no selector on {}: has an autoboot.txt that cannot be used: it is shorter than 64 bytes",
                short.device.display()
            )
        );
        let empty = tempfile::NamedTempFile::new().unwrap();
        empty.as_file().set_len(1 << 20).unwrap();
        let mut none = TrybootLoader::new(empty.path().to_owned(), Fake::default());
        assert!(
            chain(&none.default_slot().unwrap_err()).ends_with("is no FAT: the signature 55 aa is missing")
        );
        let mut missing = TrybootLoader::new("/nonexistent/autoboot".into(), Fake::default());
        assert_eq!(missing.default_slot().unwrap_err().to_string(), "cannot read /nonexistent/autoboot");
    }

    fn chain(error: &dyn std::error::Error) -> String {
        match error.source() {
            Some(source) => format!("{error}: {}", chain(source)),
            None => error.to_string(),
        }
    }

    /// Where the firmware cannot be asked, the default is known and kept all the same.
    #[test]
    fn without_the_mailbox_there_is_no_one_shot_but_a_default() {
        let (_file, flag, mut loader) = loader(first().as_bytes());
        flag.broken.set(true);
        assert_eq!(loader.default_slot().unwrap(), Some(Slot::A));
        assert!(loader.set_default(Slot::B).unwrap());
        for error in [
            loader.next_slot().unwrap_err(),
            loader.set_next(Slot::A).unwrap_err(),
            loader.clear_next().unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "cannot read flag");
        }
        let mailbox = Mailbox("/dev/null".into());
        assert_eq!(mailbox.get().unwrap_err().raw_os_error(), Some(nix::errno::Errno::ENOTTY as i32));
    }

    proptest! {
        /// Any order of calls, resets and power cuts: the firmware starts what was last asked for.
        #[test]
        fn what_is_asked_for_is_what_starts(steps in proptest::collection::vec((0..5u8, any::<bool>()), 0..30)) {
            let (file, flag, mut loader) = loader(first().as_bytes());
            let (mut default, mut next) = (Slot::A, None);
            for (step, b) in steps {
                let slot = if b { Slot::B } else { Slot::A };
                match step {
                    0 => { let _ = loader.set_default(slot).unwrap(); default = slot; }
                    1 => { let _ = loader.set_next(slot).unwrap(); next = Some(slot); }
                    2 => prop_assert_eq!(loader.clear_next().unwrap(), next.take().is_some()),
                    3 => prop_assert_eq!(firmware(file.as_file(), &flag), Some(next.take().unwrap_or(default))),
                    _ => { flag.set.set(false); next = None; }
                }
                prop_assert_eq!(state(&mut loader), (Some(default), next));
            }
        }
    }
}
