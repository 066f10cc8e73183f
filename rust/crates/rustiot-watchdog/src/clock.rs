//! Time as a process of normal priority sees it.
//!
//! A child that is silent because two hundred others want the processor is not hung. So silence is measured in
//! *soft* time: a canary thread of normal priority counts once a second, and soft time advances only as far as
//! the canary got. On an idle device soft and real time are the same; under load both the child and the canary
//! are late. Soft time never runs slower than an eighth of real time, so a real hang is found under any load.

use std::time::Duration;

use crate::tree::Now;

/// Slowest pace of soft time, as a divisor of real time.
pub const SLOWEST: u32 = 8;

/// Pure conversion from real time and canary counts to [`Now`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoftClock {
    real: Duration,
    soft: Duration,
    beats: u64,
    beat: Duration,
    /// Canary time that was counted but not used up: it beats up to one interval ahead of us.
    credit: Duration,
}

impl SoftClock {
    /// Starts at `real` with the canary at `beats`, which counts once every `beat`.
    #[must_use]
    pub fn new(real: Duration, beats: u64, beat: Duration) -> Self {
        Self { real, soft: real, beats, beat, credit: beat }
    }

    /// The time now, given the clock and the canary's count.
    pub fn now(&mut self, real: Duration, beats: u64) -> Now {
        let passed = real.saturating_sub(self.real);
        let counted = u32::try_from(beats.saturating_sub(self.beats)).unwrap_or(u32::MAX);
        // Two beats of credit at most: enough for jitter, too little to hide a stall.
        let earned = self.credit.saturating_add(self.beat.saturating_mul(counted));
        let advance = earned.min(passed).max(passed.checked_div(SLOWEST).unwrap_or_default());
        self.credit = earned.saturating_sub(advance).min(self.beat.saturating_mul(2));
        self.soft = self.soft.saturating_add(advance);
        self.real = self.real.max(real);
        self.beats = beats;
        Now { real: self.real, soft: self.soft }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn idle_device_soft_time_is_real_time() {
        let mut clock = SoftClock::new(S * 10, 0, S);
        for i in 1..=100 {
            let now = clock.now(S * (10 + 2 * i), u64::from(2 * i));
            assert_eq!(now.real - now.soft, Duration::ZERO, "after {i} steps");
        }
    }

    #[test]
    fn a_starved_canary_slows_soft_time_but_never_below_an_eighth() {
        let mut clock = SoftClock::new(Duration::ZERO, 0, S);
        let mut now = clock.now(Duration::ZERO, 0);
        for i in 1..=80_u32 {
            now = clock.now(S * i, 0);
        }
        assert!(now.soft >= S * 10 && now.soft <= S * 12, "{:?}", now.soft);
    }

    #[test]
    fn half_the_beats_are_half_the_time() {
        let mut clock = SoftClock::new(Duration::ZERO, 0, S);
        let mut now = clock.now(Duration::ZERO, 0);
        for i in 1..=100_u32 {
            now = clock.now(S * 2 * i, u64::from(i));
        }
        assert!(now.soft >= S * 100 && now.soft <= S * 103, "{:?}", now.soft);
    }

    proptest! {
        #[test]
        fn soft_time_is_monotonic_and_between_its_bounds(
            steps in prop::collection::vec((0_u64..20_000, 0_u64..40), 1..200)
        ) {
            let mut clock = SoftClock::new(Duration::ZERO, 0, S);
            let (mut real, mut beats, mut last) = (Duration::ZERO, 0, Duration::ZERO);
            for (ms, counted) in steps {
                real += Duration::from_millis(ms);
                beats += counted;
                let now = clock.now(real, beats);
                prop_assert!(now.soft >= last);
                prop_assert!(now.soft <= now.real);
                prop_assert!(now.soft + Duration::from_millis(1) >= real / SLOWEST / 2);
                last = now.soft;
            }
        }
    }
}
