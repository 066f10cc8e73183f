//! The hardware watchdog during the boot: opened as soon as its driver is there, fed only while init makes
//! progress, and never after the deadline.
//!
//! Each step of the boot feeds once. A step that may honestly take long (journal replay of a large file system) asks
//! for leave, and a thread feeds during it; any other step that hangs is ended by the hardware after one timeout.
//! Never writes the magic `V`: the watchdog keeps running over `exec`. Called by [`crate::boot`] and
//! [`crate::rescue`].

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::errno::Errno;

use crate::{
    config::WatchdogConfig,
    sys::{OpenWatchdog, Sys},
};

/// A running watchdog, or none.
#[derive(Debug, Default)]
pub struct Watchdog {
    open: Option<Arc<Feeder>>,
    card_reset: bool,
    timeout_s: u32,
}

#[derive(Debug)]
struct Feeder {
    file: File,
    /// `CLOCK_BOOTTIME` in ms; the boot is not fed from here on.
    deadline_ms: u64,
    /// The thread feeds until then.
    leave_until_ms: AtomicU64,
}

impl Feeder {
    fn feed(&self) {
        // a failure shows as a reset, which is the honest outcome
        let _ = (&self.file).write_all(b"k");
    }

    fn feed_on_leave(&self, now_ms: u64) {
        if now_ms < self.leave_until_ms.load(Ordering::Relaxed) && now_ms < self.deadline_ms {
            self.feed();
        }
    }
}

impl Watchdog {
    /// Opens the device with its timeout. `exec_ms` is when init started.
    ///
    /// # Errors
    /// The kernel's; ENOENT while the driver is not loaded.
    pub fn open(
        sys: &mut dyn Sys,
        root: &Path,
        config: &WatchdogConfig,
        exec_ms: u64,
    ) -> Result<Watchdog, Errno> {
        let path = root.join(config.device.trim_start_matches('/'));
        let OpenWatchdog { file, timeout_s, card_reset } = sys.open_watchdog(&path, config.timeout_s)?;
        let feeder = Feeder {
            file,
            deadline_ms: exec_ms.saturating_add(u64::from(config.deadline_s).saturating_mul(1000)),
            leave_until_ms: AtomicU64::new(0),
        };
        Ok(Watchdog { open: Some(Arc::new(feeder)), card_reset, timeout_s })
    }

    /// Starts the thread that feeds during a leave.
    ///
    /// # Errors
    /// No thread can be made; leaves do not hold then.
    pub fn start(&self, sys: &mut dyn Sys) -> Result<(), Errno> {
        let Some(feeder) = self.open.clone() else { return Ok(()) };
        sys.every((self.timeout_s / 4).max(1), Box::new(move |now_ms| feeder.feed_on_leave(now_ms)))
    }

    /// A step begins: feeds once, unless the deadline has passed, and asks for `leave_ms` more.
    pub fn step(&self, now_ms: u64, leave_ms: u64) {
        let Some(feeder) = &self.open else { return };
        feeder.leave_until_ms.store(now_ms.saturating_add(leave_ms), Ordering::Relaxed);
        if now_ms < feeder.deadline_ms {
            feeder.feed();
        }
    }

    /// Feeds in rescue, where the boot's deadline has no meaning: the loop that calls this is what is watched.
    pub fn feed_in_rescue(&self) {
        if let Some(feeder) = &self.open {
            feeder.feed();
        }
    }

    /// Whether there is a watchdog.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The timeout in force, in seconds.
    #[must_use]
    pub fn timeout_s(&self) -> u32 {
        self.timeout_s
    }

    /// The last reset was the watchdog's.
    #[must_use]
    pub fn card_reset(&self) -> bool {
        self.card_reset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fake::FakeSys;

    fn open(sys: &mut FakeSys) -> Watchdog {
        let config = WatchdogConfig { device: "/dev/watchdog".into(), timeout_s: 60, deadline_s: 180 };
        Watchdog::open(sys, Path::new("/"), &config, 1_000).unwrap()
    }

    fn fed(watchdog: &Watchdog) -> u64 {
        watchdog.open.as_ref().unwrap().file.metadata().unwrap().len()
    }

    #[test]
    fn is_fed_by_steps_and_on_leave_and_never_after_the_deadline() {
        let watchdog = open(&mut FakeSys::new());
        let feeder = watchdog.open.clone().unwrap();
        watchdog.step(2_000, 0);
        assert_eq!(fed(&watchdog), 1);
        feeder.feed_on_leave(2_000);
        assert_eq!(fed(&watchdog), 1, "no leave: a hang is ended by the hardware");
        watchdog.step(3_000, 500_000);
        feeder.feed_on_leave(180_999);
        assert_eq!(fed(&watchdog), 3);
        feeder.feed_on_leave(181_000);
        watchdog.step(181_000, 500_000);
        feeder.feed_on_leave(181_001);
        assert_eq!(fed(&watchdog), 3);
        watchdog.feed_in_rescue();
        assert_eq!(fed(&watchdog), 4);
    }

    #[test]
    fn never_writes_the_magic_close() {
        use std::io::{Read, Seek};
        let watchdog = open(&mut FakeSys::new());
        watchdog.step(2_000, 0);
        let mut file = &watchdog.open.as_ref().unwrap().file;
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(!text.contains('V'));
    }

    #[test]
    fn a_board_without_one_boots_too() {
        let none = Watchdog::default();
        none.step(1, 1);
        none.feed_in_rescue();
        assert!(!none.is_open() && !none.card_reset());
        let mut sys = FakeSys::new();
        sys.fail("watchdog", Errno::ENOENT);
        let config = WatchdogConfig { device: "/dev/watchdog".into(), timeout_s: 1, deadline_s: 1 };
        assert_eq!(Watchdog::open(&mut sys, Path::new("/"), &config, 0).unwrap_err(), Errno::ENOENT);
    }
}
