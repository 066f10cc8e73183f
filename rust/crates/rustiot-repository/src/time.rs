//! What time is it, for a device whose clock may be wrong? Judges whether signed metadata is stale.
//!
//! Pure. TUF says "expired" by comparing with the time, and a device may have none (1970), a wrong one (a dead battery,
//! years ahead), or one that an attacker on the network has set (NTP is not signed). Three rules:
//!
//! 1. Time never runs before the *floor*: the build time of the running image, and the time at which the newest
//!    metadata that was ever accepted was signed. A device at 1970 judges by the floor, so what expired before its own
//!    image was built is refused without any clock.
//! 2. A *synchronised* clock is believed. If the signed time is ahead of it by more than a day, the publisher's clock was
//!    wrong once; it does not shut the device out for ever, so only the build time counts then.
//! 3. A clock that is *not synchronised* may be ahead of the truth. It may say "expired" of metadata that the device
//!    already has (the repository may be frozen), but it may not refuse *newer* metadata than was ever accepted: what
//!    was signed later than anything seen is evidence of a later time, and a wrong clock is the likelier reason. Such
//!    metadata is judged by the time it was signed at.
//!
//! What remains: a device that has no clock can be shown metadata that expired after its floor, as long as its version
//! is not older than what it has seen. Nothing can be done about that without a time source; each accepted check
//! raises the floor.

/// How far a publisher's clock may be ahead of a synchronised one, seconds.
pub const TOLERANCE: u64 = 24 * 3600;

/// The device's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// What it says, Unix seconds.
    pub now: u64,
    /// Whether it has been set by a time source in this boot.
    pub synchronised: bool,
}

/// Times that are known to have passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// When the running image was built, Unix seconds.
    pub built: u64,
    /// When the newest metadata that was accepted was signed; 0 if none was.
    pub signed: u64,
}

/// What is to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// When it was signed, by the publisher's clock; 0 if it does not say.
    pub signed: u64,
    /// When the first of its roles expires.
    pub expires: u64,
    /// Whether it is newer than all that was accepted before.
    pub newer: bool,
}

/// It is not stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// The time that was believed, Unix seconds: for waves.
    pub now: u64,
    /// The clock was not believed, and why.
    pub doubt: Option<Doubt>,
}

/// Why the clock was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// It is behind a time that has passed.
    #[error("the clock is behind: {seconds} s before a time that is known to have passed")]
    Behind {
        /// By how much at least.
        seconds: u64,
    },
    /// It is not synchronised, and ahead of newer metadata.
    #[error("the clock is not synchronised and seems to be ahead: newer metadata has expired by it")]
    Ahead,
    /// The publisher's clock was ahead once.
    #[error(
        "metadata was signed {seconds} s in the future of the synchronised clock: the publisher's clock was wrong"
    )]
    Publisher {
        /// By how much.
        seconds: u64,
    },
}

/// It is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it expired at {expires}, it is {now} (Unix seconds{})", if *.certain { "" } else { ", by a clock that is not synchronised" })]
pub struct Stale {
    /// When it expired.
    pub expires: u64,
    /// The time that was believed.
    pub now: u64,
    /// Whether that time is certain: a synchronised clock, or a time that is known to have passed.
    pub certain: bool,
}

/// Judges whether metadata is stale.
///
/// # Errors
/// [`Stale`].
pub fn judge(clock: Clock, floor: Floor, metadata: Metadata) -> Result<Fresh, Stale> {
    let (low, publisher) = lower(clock, floor);
    let now = clock.now.max(low);
    let behind =
        low.checked_sub(clock.now).filter(|seconds| *seconds > 0).map(|seconds| Doubt::Behind { seconds });
    let doubt = publisher.or(behind);
    if now < metadata.expires {
        return Ok(Fresh { now, doubt });
    }
    // Only a clock that is ahead of the floor can be wrong in this direction.
    if !clock.synchronised && clock.now > low && metadata.newer {
        let signed = metadata.signed.max(low);
        if signed < metadata.expires {
            return Ok(Fresh { now: signed, doubt: Some(Doubt::Ahead) });
        }
    }
    Err(Stale { expires: metadata.expires, now, certain: clock.synchronised || now == low })
}

/// The time below which it cannot be, and whether the signed time is not believed.
fn lower(clock: Clock, floor: Floor) -> (u64, Option<Doubt>) {
    if clock.synchronised && floor.signed > clock.now.saturating_add(TOLERANCE) {
        let seconds = floor.signed - clock.now;
        return (floor.built, Some(Doubt::Publisher { seconds }));
    }
    (floor.built.max(floor.signed), None)
}

/// The signed time to remember after metadata was accepted: never lower than before, unless a synchronised clock shows
/// that the old one was in the future.
#[must_use]
pub fn remember(clock: Clock, floor: Floor, metadata: Metadata) -> u64 {
    let limit = if clock.synchronised { clock.now.saturating_add(TOLERANCE) } else { u64::MAX };
    let believed = |signed: u64| if signed > limit { 0 } else { signed };
    // Nothing can have been signed after it expired.
    let signed = if metadata.signed < metadata.expires { believed(metadata.signed) } else { 0 };
    believed(floor.signed).max(signed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 24 * 3600;
    const BUILT: u64 = 1_700_000_000;
    /// The truth in these tests: a hundred days after the build.
    const TRUTH: u64 = BUILT + 100 * DAY;

    fn clock(now: u64, synchronised: bool) -> Clock {
        Clock { now, synchronised }
    }

    fn metadata(signed: u64, newer: bool) -> Metadata {
        Metadata { signed, expires: signed + 7 * DAY, newer }
    }

    fn floor(signed: u64) -> Floor {
        Floor { built: BUILT, signed }
    }

    #[test]
    fn a_right_clock_takes_what_is_fresh_and_refuses_what_is_stale() {
        let fresh = judge(clock(TRUTH, true), floor(TRUTH - DAY), metadata(TRUTH - DAY, false)).unwrap();
        assert_eq!(fresh, Fresh { now: TRUTH, doubt: None });
        let stale = judge(clock(TRUTH, true), floor(0), metadata(TRUTH - 8 * DAY, true)).unwrap_err();
        assert_eq!(stale, Stale { expires: TRUTH - DAY, now: TRUTH, certain: true });
    }

    #[test]
    fn at_1970_what_is_fresh_is_taken_and_what_expired_before_the_floor_is_refused() {
        let epoch = clock(5, false);
        let fresh = judge(epoch, floor(0), metadata(TRUTH, true)).unwrap();
        assert_eq!(fresh.now, BUILT);
        assert!(matches!(fresh.doubt, Some(Doubt::Behind { .. })));
        let older_than_the_image = judge(epoch, floor(0), metadata(BUILT - 8 * DAY, true)).unwrap_err();
        assert!(older_than_the_image.certain);
        let older_than_what_was_seen =
            judge(epoch, floor(TRUTH), metadata(TRUTH - 8 * DAY, true)).unwrap_err();
        assert_eq!(older_than_what_was_seen.now, TRUTH);
    }

    #[test]
    fn a_clock_far_ahead_does_not_shut_the_device_out() {
        let ahead = clock(TRUTH + 70 * 365 * DAY, false);
        let fresh = judge(ahead, floor(TRUTH - DAY), metadata(TRUTH, true)).unwrap();
        assert_eq!(fresh, Fresh { now: TRUTH, doubt: Some(Doubt::Ahead) });
        // Nor does it take what is stale by all that is known.
        assert!(judge(ahead, floor(TRUTH), metadata(TRUTH - 8 * DAY, true)).is_err());
        // Nothing new: it says so, and that it is not sure.
        let frozen = judge(ahead, floor(TRUTH), metadata(TRUTH, false)).unwrap_err();
        assert!(!frozen.certain);
        assert!(frozen.to_string().contains("not synchronised"));
    }

    #[test]
    fn a_synchronised_clock_far_ahead_is_the_time() {
        assert!(judge(clock(TRUTH + 8 * DAY, true), floor(0), metadata(TRUTH, true)).is_err());
    }

    #[test]
    fn a_publisher_whose_clock_was_wrong_once_shuts_nobody_out() {
        let wrong = metadata(TRUTH + 70 * 365 * DAY, true);
        // A device without time source believes it at first …
        let signed = remember(clock(5, false), floor(0), wrong);
        assert_eq!(signed, wrong.signed);
        // … and no longer once its clock is set.
        let right = judge(clock(TRUTH, true), floor(signed), metadata(TRUTH, true)).unwrap();
        assert!(matches!(right.doubt, Some(Doubt::Publisher { .. })));
        assert_eq!(remember(clock(TRUTH, true), floor(signed), metadata(TRUTH, true)), TRUTH);
        // One with a set clock never does.
        assert_eq!(remember(clock(TRUTH, true), floor(0), wrong), 0);
    }

    #[test]
    fn metadata_that_does_not_say_when_it_was_signed_is_judged_by_the_floor() {
        let silent = Metadata { signed: 0, expires: TRUTH + 7 * DAY, newer: true };
        let fresh = judge(clock(TRUTH + 70 * 365 * DAY, false), floor(TRUTH), silent).unwrap();
        assert_eq!(fresh.now, TRUTH);
    }

    proptest! {
        #[test]
        fn what_expired_before_the_image_was_built_is_never_taken(
            now: u64, synchronised: bool, built in 0u64..1 << 40, seen in 0u64..1 << 40, signed: u64, age in 0u64..1 << 40, newer: bool,
        ) {
            let floor = Floor { built, signed: seen };
            let metadata = Metadata { signed, expires: built.saturating_sub(age), newer };
            prop_assert!(judge(clock(now, synchronised), floor, metadata).is_err());
        }

        #[test]
        fn newer_metadata_that_is_fresh_is_taken_whatever_an_unsynchronised_clock_says(
            now: u64, truth in BUILT..1 << 36, seen in 0u64..1 << 36, life in 1u64..1 << 30,
        ) {
            let floor = floor(seen.min(truth));
            let metadata = Metadata { signed: truth, expires: truth + life, newer: true };
            prop_assert!(judge(clock(now, false), floor, metadata).is_ok());
        }

        #[test]
        fn the_believed_time_is_before_the_expiry_and_not_before_the_build(
            now: u64, synchronised: bool, built: u64, seen: u64, signed: u64, expires: u64, newer: bool,
        ) {
            let floor = Floor { built, signed: seen };
            if let Ok(fresh) = judge(clock(now, synchronised), floor, Metadata { signed, expires, newer }) {
                prop_assert!(fresh.now < expires && fresh.now >= built);
            }
        }

        #[test]
        fn the_memory_of_an_unsynchronised_device_never_falls(now: u64, seen: u64, signed: u64, expires: u64) {
            let metadata = Metadata { signed, expires, newer: true };
            prop_assert!(remember(clock(now, false), floor(seen), metadata) >= seen);
        }
    }
}
