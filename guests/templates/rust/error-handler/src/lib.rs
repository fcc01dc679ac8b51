//! Is patient with busy services, drops tests, and gives up what can never succeed.

use std::time::Duration;

use millrace_guest::{Cause, Decision, Failure, error_handler};

error_handler!(decide);

const DELAY_FIRST: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(60);

fn decide(failure: &Failure) -> Decision {
    match (failure.class(), failure.cause()) {
        ("test", _) => Decision::Drop(format!("only a test: {}", failure.reason())),
        ("busy", _) => Decision::RetryAfter(delay(failure.attempt())),
        (_, Cause::Reject) => Decision::DeadLetter,
        _ => Decision::Policy,
    }
}

/// The delay after an attempt: doubles with each attempt, up to a maximum.
fn delay(attempt: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
    DELAY_FIRST.saturating_mul(doubled).min(DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_maximum() {
        assert_eq!([1, 2, 3].map(delay), [1, 2, 4].map(Duration::from_secs));
        assert_eq!(delay(u32::MAX), DELAY_MAX);
    }
}
