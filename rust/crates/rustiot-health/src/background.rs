//! A check that may take long, or for ever, run beside the loop: the loop sees its last result, and how long it has
//! been waiting for the next.
//!
//! Called by [`crate::looks`].

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;

/// One such check.
#[derive(Debug)]
pub struct Background<T> {
    every: Duration,
    running: Option<(Duration, JoinHandle<T>)>,
    last: Option<(Duration, T)>,
}

impl<T: Send + 'static> Background<T> {
    /// Runs every `every` at most; never twice at a time.
    pub fn new(every: Duration) -> Self {
        Self { every, running: None, last: None }
    }

    /// Takes a finished result in and starts the next run when it is due. `now` is the age of the boot.
    pub async fn drive<F>(&mut self, now: Duration, run: impl FnOnce() -> F)
    where
        F: Future<Output = T> + Send + 'static,
    {
        if self.running.as_ref().is_some_and(|(_, task)| task.is_finished())
            && let Some((_, task)) = self.running.take()
            && let Ok(result) = task.await
        {
            self.last = Some((now, result));
        }
        let due = self.last.as_ref().is_none_or(|(at, _)| now.saturating_sub(*at) >= self.every);
        if self.running.is_none() && due {
            self.running = Some((now, tokio::spawn(run())));
        }
    }

    /// The last result, if there is one.
    pub fn last(&self) -> Option<&T> {
        self.last.as_ref().map(|(_, result)| result)
    }

    /// How long the present run has taken.
    pub fn waiting(&self, now: Duration) -> Option<Duration> {
        self.running.as_ref().map(|(since, _)| now.saturating_sub(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn runs_one_at_a_time_and_keeps_the_last_result() {
        let mut check = Background::new(S * 30);
        check.drive(S, || async { 1 }).await;
        assert_eq!((check.last(), check.waiting(S * 4)), (None, Some(S * 3)));
        while !check.running.as_ref().is_some_and(|(_, t)| t.is_finished()) {
            tokio::task::yield_now().await;
        }
        check.drive(S * 5, || async { 2 }).await;
        assert_eq!((check.last(), check.waiting(S * 5)), (Some(&1), None), "not due again yet");
        check.drive(S * 35, std::future::pending).await;
        check.drive(S * 99, || async { 3 }).await;
        assert_eq!(
            (check.last(), check.waiting(S * 99)),
            (Some(&1), Some(S * 64)),
            "the old one still hangs"
        );
    }
}
