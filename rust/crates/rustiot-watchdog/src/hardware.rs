//! The hardware watchdog behind a narrow port, and what stands in when there is none.
//!
//! Never writes the magic character: once fed, the device is never disarmed, whoever closes it. Called by
//! [`crate::service`].

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys;

/// What feeds on us.
pub trait Hardware {
    /// Puts the reset off by one timeout.
    ///
    /// # Errors
    /// The device's.
    fn feed(&mut self) -> io::Result<()>;
    /// Asks for a timeout; returns the one in force (hardware rounds and clamps).
    ///
    /// # Errors
    /// The device's.
    fn set_timeout(&mut self, timeout: Duration) -> io::Result<Duration>;
    /// What it is.
    fn about(&self) -> About;
}

/// What the device says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The driver's name for it.
    pub identity: String,
    /// It reset the machine before this boot.
    pub reset_before: bool,
    /// It goes on running when it is closed. Where this is false, a crash of the watchdog service disarms it until
    /// the service is back.
    pub survives_close: bool,
}

/// A Linux watchdog device.
#[derive(Debug)]
pub struct Device {
    file: File,
    about: About,
}

impl Device {
    /// Opens the device, which starts it.
    ///
    /// # Errors
    /// There is none, or somebody else holds it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(path)?;
        let info = sys::support(&file).unwrap_or_default();
        let name: Vec<u8> = info.identity.iter().copied().take_while(|b| *b != 0).collect();
        let about = About {
            identity: String::from_utf8_lossy(&name).into_owned(),
            reset_before: sys::boot_status(&file).is_ok_and(|s| s & sys::WDIOF_CARDRESET != 0),
            survives_close: info.options & sys::WDIOF_MAGICCLOSE != 0,
        };
        Ok(Self { file, about })
    }
}

impl Hardware for Device {
    fn feed(&mut self) -> io::Result<()> {
        sys::keep_alive(&self.file)
    }

    fn set_timeout(&mut self, timeout: Duration) -> io::Result<Duration> {
        let seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
        match sys::set_timeout(&self.file, seconds) {
            Ok(set) => Ok(Duration::from_secs(u64::try_from(set).unwrap_or_default())),
            // Some devices have one fixed timeout.
            Err(_) => {
                sys::timeout(&self.file).map(|s| Duration::from_secs(u64::try_from(s).unwrap_or_default()))
            }
        }
    }

    fn about(&self) -> About {
        self.about.clone()
    }
}
