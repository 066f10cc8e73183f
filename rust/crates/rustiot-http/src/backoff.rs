//! How long to wait before the next attempt: decorrelated jitter, without a limit on attempts.
//!
//! Pure: it never sleeps and never looks at a clock. Called by whoever retries.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The longest wait that a server may ask for by Retry-After.
const ASKED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Delays between attempts. Each is drawn between the base and three times the one before, and never exceeds the cap:
/// devices that failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    previous: Duration,
    attempts: u64,
    random: u64,
}

impl Backoff {
    /// Delays from `base` up to `cap`, different on each device and each start.
    #[must_use]
    pub fn new(base: Duration, cap: Duration) -> Backoff {
        Backoff::seeded(base, cap, RandomState::new().hash_one(0u8))
    }

    /// The same delays each time for the same seed.
    #[must_use]
    pub fn seeded(base: Duration, cap: Duration, seed: u64) -> Backoff {
        let base = base.min(cap);
        Backoff { base, cap, previous: base, attempts: 0, random: seed }
    }

    /// How long to wait now, after another failure.
    pub fn after_failure(&mut self) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        let high = self.previous.saturating_mul(3).min(self.cap).max(self.base);
        self.previous = self.base.saturating_add(self.fraction_of(high.saturating_sub(self.base)));
        self.previous
    }

    /// The same, where the server may have asked for a delay: never less than that (a day at the most), plus jitter.
    pub fn after_answer(&mut self, asked: Option<Duration>) -> Duration {
        let own = self.after_failure();
        match asked {
            None => own,
            Some(asked) => {
                let asked = asked.min(ASKED_MAX);
                let jitter = self.fraction_of((asked / 10).max(self.base));
                own.max(asked.saturating_add(jitter))
            }
        }
    }

    /// Something worked: the next failure starts from the base again.
    pub fn reset(&mut self) {
        self.previous = self.base;
        self.attempts = 0;
    }

    /// Failures since the last success.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts
    }

    /// A random part of `whole`.
    fn fraction_of(&mut self, whole: Duration) -> Duration {
        // splitmix64 (Steele, Lea, Flood 2014): small, and good enough to spread devices.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let nanoseconds = whole.as_nanos().saturating_mul(u128::from(z)) >> 64;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_stay_between_base_and_cap(seed: u64, base in 0u64..100_000, cap in 0u64..10_000_000, count in 1usize..200) {
            let (base, cap) = (Duration::from_millis(base), Duration::from_millis(cap));
            let mut backoff = Backoff::seeded(base, cap, seed);
            let mut again = backoff.clone();
            let mut previous = base.min(cap);
            for _ in 0..count {
                let delay = backoff.after_failure();
                prop_assert!(delay <= cap);
                prop_assert!(delay >= base.min(cap));
                prop_assert!(delay <= (previous * 3).max(base));
                prop_assert_eq!(delay, again.after_failure());
                previous = delay;
            }
            prop_assert_eq!(backoff.attempts(), count as u64);
        }

        #[test]
        fn what_the_server_asks_for_is_kept_up_to_a_day(seed: u64, asked in 0u64..1_000_000) {
            let mut backoff = Backoff::seeded(Duration::from_secs(1), Duration::from_secs(300), seed);
            let delay = backoff.after_answer(Some(Duration::from_secs(asked)));
            prop_assert!(delay >= Duration::from_secs(asked).min(ASKED_MAX));
            prop_assert!(delay <= ASKED_MAX * 2);
        }
    }

    #[test]
    fn grows_spreads_and_starts_over() {
        let new = |seed| Backoff::seeded(Duration::from_secs(1), Duration::from_secs(300), seed);
        let late = |seed| {
            let mut backoff = new(seed);
            (0..50).map(|_| backoff.after_failure()).skip(20).sum::<Duration>() / 30
        };
        let mean = (0..100).map(late).sum::<Duration>() / 100;
        assert!(mean > Duration::from_secs(60), "{mean:?}");
        let mut one = new(1);
        let mut other = new(2);
        assert_ne!(one.after_failure(), other.after_failure());
        for _ in 0..30 {
            one.after_failure();
        }
        one.reset();
        assert!(one.after_failure() <= Duration::from_secs(3));
        assert_eq!(one.attempts(), 1);
    }
}
