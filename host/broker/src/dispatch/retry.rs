//! When to try again: exponential backoff with full jitter, for messages and for workers.

use std::time::Duration;

use millrace_model::bounds::{RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN};
use millrace_model::processor::RetryPolicy;
use millrace_model::{Parked, Timestamp};

/// The delay, limited to [`RETRY_DELAY_MS_MIN`] and [`RETRY_DELAY_MS_MAX`], also if a component
/// asked for it.
pub(crate) fn bounded(delay: Duration) -> Duration {
    delay.clamp(
        Duration::from_millis(RETRY_DELAY_MS_MIN),
        Duration::from_millis(RETRY_DELAY_MS_MAX),
    )
}

/// Adjusts retries that the previous worker committed. No message waits longer than was asked for
/// when it failed, even if the clock has been set back since.
pub(crate) fn brought_near(parked: &mut [Parked], now: Timestamp) {
    for parked in parked {
        parked.held_since = parked.held_since.map(|since| since.min(now));
        let Some(due) = parked.due.filter(|due| *due > now) else {
            continue;
        };
        // An entry without a failure has no delay.
        let asked = parked
            .log
            .last()
            .map_or(Duration::ZERO, |last| last.at.until(due));
        let asked = asked.min(Duration::from_millis(RETRY_DELAY_MS_MAX));
        parked.due = Some(due.min(now.after(asked)));
    }
}

/// The delay after this many failed attempts: random up to an exponential limit, so that messages
/// that failed together are not retried together.
pub(crate) fn message_delay(
    policy: &RetryPolicy,
    attempts: u32,
    rng: &mut fastrand::Rng,
) -> Duration {
    let doublings = attempts.saturating_sub(1).min(63);
    let bound = policy.delay_first_ms.saturating_mul(1 << doublings);
    Duration::from_millis(rng.u64(0..=bound.min(policy.delay_max_ms)))
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
    fn no_delay_is_too_short_or_too_long_whoever_asked_for_it() {
        let bounded = |ms| bounded(Duration::from_millis(ms)).as_millis() as u64;
        assert_eq!(bounded(0), RETRY_DELAY_MS_MIN);
        assert_eq!(bounded(3_000), 3_000);
        assert_eq!(bounded(u64::MAX), RETRY_DELAY_MS_MAX);
    }

    #[test]
    fn a_retry_waits_no_longer_after_a_start_than_it_was_to_wait_when_it_failed() {
        const HOUR: u64 = 3_600_000;
        let parked = |at: Option<u64>, due: u64| Parked {
            offset: millrace_model::Offset(1),
            ordering: None,
            due: Some(Timestamp(due)),
            attempts: 1,
            first_failed_at: Timestamp(0),
            log: at
                .map(|at| millrace_model::Attempt {
                    at: Timestamp(at),
                    revision: 1,
                    class: "busy".to_owned(),
                    reason: String::new(),
                })
                .into_iter()
                .collect(),
            ..Parked::default()
        };
        let near = |parked: Parked, now| {
            let mut one = [parked];
            brought_near(&mut one, Timestamp(now));
            one[0].due.unwrap().0
        };
        // Failed at ten o'clock, to wait for three seconds; at the start it is nine, ten, or
        // eleven.
        let (ten, due) = (10 * HOUR, 10 * HOUR + 3_000);
        assert_eq!(near(parked(Some(ten), due), 9 * HOUR), 9 * HOUR + 3_000);
        assert_eq!(near(parked(Some(ten), due), ten + 1_000), due);
        assert_eq!(near(parked(Some(ten), due), 11 * HOUR), due);
        // No delay was asked for, or more than the maximum.
        assert_eq!(near(parked(None, due), 9 * HOUR), 9 * HOUR);
        let longest = ten + RETRY_DELAY_MS_MAX;
        assert_eq!(near(parked(Some(ten), u64::MAX), ten), longest);
    }

    #[test]
    fn delays_spread_over_the_whole_range_and_the_range_doubles() {
        let policy = RetryPolicy {
            delay_first_ms: 1_000,
            delay_max_ms: 30_000,
            ..RetryPolicy::default()
        };
        let mut rng = fastrand::Rng::with_seed(7);
        for (attempts, bound_ms) in [(1, 1_000), (2, 2_000), (3, 4_000), (20, 30_000)] {
            let delays: Vec<u128> = (0..500)
                .map(|_| message_delay(&policy, attempts, &mut rng).as_millis())
                .collect();
            assert!(delays.iter().any(|&ms| ms < bound_ms / 10));
            assert!(delays.iter().any(|&ms| ms > bound_ms * 9 / 10));
            assert!(delays.iter().all(|&ms| ms <= bound_ms));
        }
    }
}
