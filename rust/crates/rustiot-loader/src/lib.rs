//! What a boot loader offers, on every board: a default slot, and a slot that boots next, once.
//!
//! Adapters for UEFI variables, for U-Boot's environment and for the Raspberry Pi's `tryboot`; another loader is one
//! more [`Loader`]. Never decides which slot: `rustiot-slots` does, by the policy. Linked into the static
//! `rustiot-init`, so it has next to no dependencies. Contract: `docs/contracts/loader.md`.

use std::path::PathBuf;

use rustiot_boot::Slot;

pub mod autoboot;
pub mod env;
pub mod firmware;
pub mod load_option;
#[allow(unsafe_code, reason = "the one module with system calls that nix does not wrap")]
mod sys;
mod tryboot;
mod uboot;
mod uefi;

pub use firmware::Firmware;
pub use load_option::{BootPartition, Guid, NotAGuid};
pub use tryboot::{Mailbox, RebootFlag, TrybootLoader};
pub use uboot::{EnvLayout, UbootLoader};
pub use uefi::{UefiLoader, boot_file};

/// The loader's selector could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on the selector's medium failed.
    #[error("cannot {action} {what}")]
    Io {
        /// `read`, `write` or `remove`.
        action: &'static str,
        /// The variable or the device.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// UEFI knows no boot entry for the slot, and where its partition is was not said either.
    #[error("no UEFI boot entry `{0}`; rustiot-init makes it at the next boot")]
    NoEntry(String),
    /// All 65536 numbers of UEFI boot entries are taken.
    #[error("no free number for a UEFI boot entry")]
    Full,
    /// Neither copy of U-Boot's environment is valid, so there is no default to keep.
    #[error("no valid copy of U-Boot's environment")]
    NoEnv,
    /// U-Boot's environment has no room for the selector.
    #[error("{0} bytes of variables do not fit into U-Boot's environment")]
    EnvFull(usize),
    /// The Raspberry Pi's `autoboot.txt` cannot be found where it must be; the image build makes it.
    #[error("no selector on {device}")]
    Autoboot {
        /// The partition.
        device: String,
        /// Why.
        #[source]
        source: autoboot::FatError,
    },
    /// `autoboot.txt` names none of our slots, so there is no default to keep.
    #[error("autoboot.txt selects no slot")]
    NoDefault,
}

/// A boot loader's selector. Every change is durable when the call returns; what is there already is not written
/// again, so each call may be repeated after a power cut.
pub trait Loader {
    /// The slot that boots by default; `None` if the selector was lost or never set.
    ///
    /// # Errors
    /// [`Error`], when the selector cannot be read.
    fn default_slot(&mut self) -> Result<Option<Slot>, Error>;

    /// Makes `slot` the default. Tells whether anything had to be changed.
    ///
    /// # Errors
    /// [`Error`]; the old selector is still in force.
    fn set_default(&mut self, slot: Slot) -> Result<bool, Error>;

    /// The slot that boots next, once.
    ///
    /// # Errors
    /// [`Error`], when the selector cannot be read.
    fn next_slot(&mut self) -> Result<Option<Slot>, Error>;

    /// Makes `slot` boot next, once. Tells whether anything had to be changed.
    ///
    /// # Errors
    /// [`Error`]; the old selector is still in force.
    fn set_next(&mut self, slot: Slot) -> Result<bool, Error>;

    /// Forgets the one-shot. Tells whether there was one.
    ///
    /// # Errors
    /// [`Error`]; the old selector is still in force.
    fn clear_next(&mut self) -> Result<bool, Error>;

    /// The firmware's own two copies, on boards that have them and say so.
    ///
    /// # Errors
    /// [`Error`], when the firmware cannot be asked.
    fn firmware(&mut self) -> Result<Option<Firmware>, Error> {
        Ok(None)
    }
}

/// Which loader a board has: `[boot] loader` in its board file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoaderKind {
    /// UEFI firmware.
    Uefi,
    /// U-Boot with our boot script.
    Uboot,
    /// The Raspberry Pi's firmware with `tryboot_a_b`.
    Tryboot,
}

/// Not the name of a loader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a loader: expected `uefi`, `uboot` or `tryboot`")]
pub struct NotALoader(
    /// What was given.
    pub String,
);

impl std::str::FromStr for LoaderKind {
    type Err = NotALoader;

    fn from_str(text: &str) -> Result<LoaderKind, NotALoader> {
        match text {
            "uefi" => Ok(LoaderKind::Uefi),
            "uboot" => Ok(LoaderKind::Uboot),
            "tryboot" => Ok(LoaderKind::Tryboot),
            _ => Err(NotALoader(text.to_owned())),
        }
    }
}

/// The Raspberry Pi firmware's mailbox on a running device.
pub const MAILBOX: &str = "/dev/vcio";

/// Where a loader keeps its selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoaderConfig {
    /// UEFI variables.
    Uefi {
        /// The mounted efivarfs.
        efivars: PathBuf,
        /// The partitions `boot-a` and `boot-b`. Only who names them (`rustiot-init`) makes or repairs boot entries.
        partitions: Option<[BootPartition; 2]>,
    },
    /// U-Boot's environment.
    Uboot {
        /// The partition `uboot-env`.
        device: PathBuf,
        /// Where its copies lie.
        layout: EnvLayout,
    },
    /// The Raspberry Pi's firmware.
    Tryboot {
        /// The partition `autoboot`.
        device: PathBuf,
        /// The firmware's mailbox.
        mailbox: PathBuf,
    },
}

impl LoaderConfig {
    /// The usual places on a running device.
    #[must_use]
    pub fn on_device(kind: LoaderKind) -> LoaderConfig {
        match kind {
            LoaderKind::Uefi => {
                LoaderConfig::Uefi { efivars: "/sys/firmware/efi/efivars".into(), partitions: None }
            }
            LoaderKind::Uboot => LoaderConfig::Uboot {
                device: "/dev/disk/by-partlabel/uboot-env".into(),
                layout: EnvLayout::default(),
            },
            LoaderKind::Tryboot => LoaderConfig::Tryboot {
                device: "/dev/disk/by-partlabel/autoboot".into(),
                mailbox: MAILBOX.into(),
            },
        }
    }

    /// The adapter. Does no IO.
    #[must_use]
    pub fn open(self) -> Box<dyn Loader> {
        match self {
            LoaderConfig::Uefi { efivars, partitions } => Box::new(UefiLoader::new(efivars, partitions)),
            LoaderConfig::Uboot { device, layout } => Box::new(UbootLoader::new(device, layout)),
            LoaderConfig::Tryboot { device, mailbox } => {
                Box::new(TrybootLoader::new(device, Mailbox(mailbox)))
            }
        }
    }
}
