//! Exponential backoff with jitter, for waiting until something outside the broker works again.

use std::time::Duration;

use millrace_model::{Advised, Kind};

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

/// How long to wait after the first failed load of a component; it doubles with each further one.
const LOAD_AGAIN_FIRST: Duration = Duration::from_millis(250);
/// The longest such wait.
pub(crate) const LOAD_AGAIN_MAX: Duration = Duration::from_secs(30);

/// Whether the host is at fault for a failed load, rather than the component or its definition, so that it may pass by itself.
pub(crate) fn may_pass(error: &impl Advised) -> bool {
    let kind = error.advice().kind();
    kind.is_passing() || kind == Kind::Internal
}

/// The wait after this many failed loads.
pub(crate) fn load_again_after(failures: u32) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1));
    let wait = doubled.map_or(LOAD_AGAIN_MAX, |times| {
        LOAD_AGAIN_FIRST.saturating_mul(times)
    });
    wait.min(LOAD_AGAIN_MAX)
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
