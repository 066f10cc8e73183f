//! When a device looks for updates: at its own instant of each interval, so that a fleet spreads over all of it.
//!
//! Pure. The instant is a hash of the identity, and the same after a restart: ten thousand devices that a power cut
//! starts together look one after the other, and a device that restarts often does not look more often. Called by
//! `rustiot-update`'s timer.

use crate::rollout::scaled;
use std::time::Duration;

/// What a device does when nobody told it: four times a day.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// The shortest interval; shorter ones are taken as this.
pub const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// The device's instant within each interval: uniform over all of it, milliseconds.
#[must_use]
pub fn offset(identity: &str, interval: Duration) -> Duration {
    offset_millis(identity, millis(interval))
}

fn offset_millis(identity: &str, interval: u64) -> Duration {
    Duration::from_millis(scaled("rustiot poll", &[identity.as_bytes()], interval))
}

/// How long to wait from `now` until the device's next instant: more than nothing, at most one interval.
///
/// `now` is the time since the Unix epoch, or since the start of the machine when the clock is not known: both spread
/// a fleet alike.
#[must_use]
pub fn wait(identity: &str, interval: Duration, now: Duration) -> Duration {
    let interval = millis(interval);
    let offset = u64::try_from(offset_millis(identity, interval).as_millis()).unwrap_or(0);
    let phase = u64::try_from(now.as_millis() % u128::from(interval)).unwrap_or(0);
    let wait = if offset > phase { offset - phase } else { offset + interval - phase };
    Duration::from_millis(wait)
}

/// At least a minute, at most what fits.
fn millis(interval: Duration) -> u64 {
    u64::try_from(interval.max(MIN_INTERVAL).as_millis()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_fleet_spreads_over_all_of_the_interval() {
        let mut minutes = vec![0u32; 360];
        for device in 0..36_000u32 {
            let offset = offset(&format!("device-{device}"), DEFAULT_INTERVAL);
            minutes[(offset.as_secs() / 60) as usize] += 1;
        }
        // 100 a minute expected, standard deviation 10.
        let (least, most) = (minutes.iter().min().unwrap(), minutes.iter().max().unwrap());
        assert!(*least > 55 && *most < 150, "{least} to {most} a minute");
    }

    #[test]
    fn a_restart_does_not_make_it_look_more_often() {
        let first = wait("a", DEFAULT_INTERVAL, DAY);
        let minute = Duration::from_secs(60);
        let restarted = wait("a", DEFAULT_INTERVAL, DAY + minute);
        assert_eq!(minute + restarted, first);
    }

    proptest! {
        #[test]
        fn it_looks_once_in_each_interval(identity in ".{0,40}", seconds in 60u64..100_000, now in 0u64..4_000_000_000) {
            let (interval, now) = (Duration::from_secs(seconds), Duration::from_secs(now));
            let first = wait(&identity, interval, now);
            prop_assert!(first > Duration::ZERO && first <= interval);
            prop_assert_eq!(wait(&identity, interval, now + first), interval);
        }

        #[test]
        fn no_interval_panics(interval: u64, now: u64) {
            let wait = wait("x", Duration::from_secs(interval), Duration::from_secs(now));
            prop_assert!(wait > Duration::ZERO);
        }
    }
}
