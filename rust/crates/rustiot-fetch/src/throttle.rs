//! Bytes per second: over any second no more than a tenth too much and one piece.
//!
//! A token bucket that may go into debt by one piece, as it came from the socket: whoever took it waits until it is paid.
//! Called by the fetcher; the clock is tokio's, so that tests can hold it.

use std::time::Duration;

use tokio::time::Instant;

/// How much may come at once after a pause: a tenth of a second's worth.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket. Pure: it is told the time.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// When all that was taken is paid for.
    paid: Instant,
    rate: Option<u64>,
    /// Bytes that are not paid for, at `rate`, when `paid` was set; to reckon again at another rate.
    since: Instant,
}

impl Bucket {
    /// Full.
    #[must_use]
    pub fn new(now: Instant, rate: Option<u64>) -> Bucket {
        Bucket { paid: now, rate: rate.filter(|rate| *rate > 0), since: now }
    }

    /// Another rate from now on. What is owed is owed in bytes, so the wait changes with it.
    pub fn set_rate(&mut self, now: Instant, rate: Option<u64>) {
        let rate = rate.filter(|rate| *rate > 0);
        if rate == self.rate {
            return;
        }
        let owed = self.wait(now);
        let bytes = self.rate.map_or(0.0, |rate| owed.as_secs_f64() * to_f64(rate));
        self.rate = rate;
        self.since = now;
        self.paid = now;
        if let Some(rate) = rate {
            self.paid = now.checked_add(seconds(bytes / to_f64(rate))).unwrap_or(now);
        }
    }

    /// Takes `bytes` that came.
    pub fn take(&mut self, now: Instant, bytes: u64) {
        if let Some(rate) = self.rate {
            // Time that nobody used is worth a short burst and no more.
            let earliest = now.checked_sub(BURST).unwrap_or(now).max(self.since);
            let from = self.paid.max(earliest);
            self.paid = from.checked_add(seconds(to_f64(bytes) / to_f64(rate))).unwrap_or(from);
        }
    }

    /// How long until all that was taken is paid for.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Duration {
        if self.rate.is_none() { Duration::ZERO } else { self.paid.saturating_duration_since(now) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}

/// At most a day: a wait is looked at again anyway.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default().min(Duration::from_secs(86_400))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes `total` bytes in pieces, waiting as told; seconds of the held clock, and the most bytes of any second.
    async fn run(bucket: &mut Bucket, total: u64, piece: u64) -> (f64, u64) {
        let start = Instant::now();
        let mut left = total;
        let mut taken = std::collections::VecDeque::new();
        let (mut within, mut most) = (0, 0);
        while left > 0 {
            let (now, bytes) = (Instant::now(), piece.min(left));
            bucket.take(now, bytes);
            left -= bytes;
            taken.push_back((now, bytes));
            within += bytes;
            while let Some((at, bytes)) = taken.front().copied()
                && now - at >= Duration::from_secs(1)
            {
                within -= bytes;
                taken.pop_front();
            }
            most = most.max(within);
            tokio::time::sleep(bucket.wait(Instant::now())).await;
        }
        (start.elapsed().as_secs_f64(), most)
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_within_a_tenth_and_changes_while_running() {
        for (rate, piece) in [(10_000, 1_400), (100_000, 16_384), (1_000_000, 65_536), (50_000_000, 400_000)]
        {
            let mut bucket = Bucket::new(Instant::now(), Some(rate));
            let (took, most) = run(&mut bucket, rate * 20, piece).await;
            assert!((18.0..22.0).contains(&took), "{rate}: {took}");
            assert!(most <= rate / 10 * 11 + piece, "{rate}: {most} in a second");
            bucket.set_rate(Instant::now(), Some(rate / 2));
            let (took, most) = run(&mut bucket, rate * 10, piece).await;
            assert!((18.0..22.0).contains(&took), "{rate} halved: {took}");
            assert!(most <= rate / 20 * 11 + piece, "{rate} halved: {most} in a second");
            bucket.set_rate(Instant::now(), None);
            assert!(run(&mut bucket, rate * 100, piece).await.0 < 0.001);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_hour_is_worth_a_short_burst() {
        let mut bucket = Bucket::new(Instant::now(), Some(1_000));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let (took, most) = run(&mut bucket, 10_000, 100).await;
        assert!((9.0..10.1).contains(&took) && most <= 1_200, "{took}, {most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_debt_is_paid_at_the_new_rate() {
        let mut bucket = Bucket::new(Instant::now(), Some(1_000));
        bucket.take(Instant::now(), 100_000);
        assert!(bucket.wait(Instant::now()) >= Duration::from_secs(99));
        bucket.set_rate(Instant::now(), Some(100_000));
        assert!(bucket.wait(Instant::now()) <= Duration::from_secs(1));
        bucket.set_rate(Instant::now(), Some(0));
        assert_eq!(bucket.wait(Instant::now()), Duration::ZERO, "zero is no limit");
    }

    proptest! {
        #[test]
        fn total(rate: Option<u64>, other: Option<u64>, bytes: u64) {
            let now = Instant::now();
            let mut bucket = Bucket::new(now, rate);
            bucket.take(now, bytes);
            bucket.set_rate(now, other);
            bucket.take(now, bytes);
            prop_assert!(bucket.wait(now) <= Duration::from_secs(3 * 86_400));
        }
    }
}
