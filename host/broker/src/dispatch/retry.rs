//! When to try again: exponential backoff with full jitter, for messages and for workers.

use std::time::Duration;

use millrace_model::processor::RetryPolicy;

/// A worker's first wait when something around it is down.
const WORKER_DELAY_FIRST: Duration = Duration::from_millis(50);
/// A worker's longest wait.
const WORKER_DELAY_MAX: Duration = Duration::from_secs(10);

/// How long a message waits after so many failed attempts: anything up to the exponential bound, so that messages that failed
/// together do not come back together.
pub(crate) fn message_delay(
    policy: &RetryPolicy,
    attempts: u32,
    rng: &mut fastrand::Rng,
) -> Duration {
    let doublings = attempts.saturating_sub(1).min(63);
    let bound = policy.delay_first_ms.saturating_mul(1 << doublings);
    Duration::from_millis(rng.u64(0..=bound.min(policy.delay_max_ms)))
}

/// A worker's own waiting, while nobody's attempt is spent.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: at least half of the bound, so that an outage is not hammered.
    pub(crate) fn next(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let bound = WORKER_DELAY_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(WORKER_DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(0.5 + rng.f64() / 2.0)
    }

    /// All is well again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_messages_delay_never_exceeds_its_bounds(
            delay_first_ms: u64, delay_max_ms: u64, attempts: u32, seed: u64,
        ) {
            let policy = RetryPolicy { attempts_max: 5, delay_first_ms, delay_max_ms };
            let delay = message_delay(&policy, attempts, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(delay <= Duration::from_millis(delay_max_ms));
            if attempts <= 1 {
                prop_assert!(delay <= Duration::from_millis(delay_first_ms));
            }
        }
    }

    #[test]
    fn delays_spread_over_the_whole_range_and_the_range_doubles() {
        let policy = RetryPolicy::default();
        let mut rng = fastrand::Rng::with_seed(7);
        for (attempts, bound_ms) in [(1, 100), (2, 200), (3, 400), (20, 30_000)] {
            let delays: Vec<u128> = (0..500)
                .map(|_| message_delay(&policy, attempts, &mut rng).as_millis())
                .collect();
            assert!(delays.iter().any(|&ms| ms < bound_ms / 10));
            assert!(delays.iter().any(|&ms| ms > bound_ms * 9 / 10));
            assert!(delays.iter().all(|&ms| ms <= bound_ms));
        }
    }

    #[test]
    fn a_worker_waits_longer_and_longer_up_to_its_bound_and_starts_anew_after_success() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut backoff = Backoff::default();
        assert!(backoff.next(&mut rng) <= WORKER_DELAY_FIRST);
        for _ in 0..100 {
            assert!(backoff.next(&mut rng) <= WORKER_DELAY_MAX);
        }
        assert!(backoff.next(&mut rng) >= WORKER_DELAY_MAX / 2);
        backoff.reset();
        assert!(backoff.next(&mut rng) <= WORKER_DELAY_FIRST);
    }
}
