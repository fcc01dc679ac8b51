//! Exponential backoff with jitter, for waiting until something outside the broker works again.

use std::time::Duration;

/// The first delay.
const DELAY_FIRST: Duration = Duration::from_millis(50);

/// The longest wait between two tries.
const DELAY_MAX: Duration = Duration::from_secs(10);

/// The delays of one worker or task. They spend no attempts.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next delay, from half of the present limit up to the limit: never less, so that an
    /// outage is not made worse by retries.
    pub(crate) fn next(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let bound = DELAY_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(0.5 + rng.f64() / 2.0)
    }

    /// The outage is over: the next delay is the first one again.
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
