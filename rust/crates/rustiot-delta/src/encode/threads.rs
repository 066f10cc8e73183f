//! One job for each number, on all processors. Called by the parts of the encoder that take long.

use super::EncodeError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What `job` makes of each number below `count`, in order, whatever the number of processors.
///
/// # Errors
/// [`EncodeError::Thread`]: a job panicked, or no thread can be begun.
pub(super) fn each<T: Send>(count: usize, job: impl Fn(usize) -> T + Sync) -> Result<Vec<T>, EncodeError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return done;
            }
            done.push((number, job(number)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let parts: Vec<_> = std::thread::scope(|scope| {
        let begin = |_| std::thread::Builder::new().spawn_scoped(scope, work);
        let workers: Vec<_> = (0..threads).map(begin).collect();
        // All of them are waited for, also behind one that failed: the scope would panic for the others.
        workers.into_iter().map(|worker| worker.ok()?.join().ok()).collect()
    });
    let mut done = Vec::with_capacity(count);
    for part in parts {
        done.extend(part.ok_or(EncodeError::Thread)?);
    }
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, made)| made).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_each_once() {
        for count in [0, 1, 2, 1000] {
            assert_eq!(
                each(count, |number| number * 3).unwrap(),
                (0..count).map(|n| n * 3).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_job_that_panics_is_an_error_and_not_a_gap() {
        for fails in [[0, 0], [7, 7], [3, 96], [99, 99]] {
            let done = each(100, |number| {
                // Several threads at once.
                std::thread::sleep(std::time::Duration::from_micros(50));
                assert!(!fails.contains(&number), "on purpose");
            });
            assert!(matches!(done, Err(EncodeError::Thread)), "{fails:?}");
        }
    }
}
