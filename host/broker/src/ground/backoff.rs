//! Waiting longer and longer while something around is down: exponential backoff with jitter.

use std::time::Duration;

/// The first wait when something around it is down.
const DELAY_FIRST: Duration = Duration::from_millis(50);

/// The longest wait between two tries.
const DELAY_MAX: Duration = Duration::from_secs(10);

/// A worker's own delays, which spend no attempts.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next delay: at least half of the limit, so that an outage is not hammered.
    pub(crate) fn next(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let bound = DELAY_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(0.5 + rng.f64() / 2.0)
    }

    /// The outage is over.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_tries_again_waits_longer_and_longer_up_to_its_bound_and_starts_anew_after_success() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut backoff = Backoff::default();
        assert!(backoff.next(&mut rng) <= DELAY_FIRST);
        for _ in 0..100 {
            assert!(backoff.next(&mut rng) <= DELAY_MAX);
        }
        assert!(backoff.next(&mut rng) >= DELAY_MAX / 2);
        backoff.reset();
        assert!(backoff.next(&mut rng) <= DELAY_FIRST);
    }
}
