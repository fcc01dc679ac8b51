//! Times given as numbers. Here they are milliseconds since the Unix epoch, but many other programs
//! use seconds, micro- or nanoseconds. A number that is a plausible current time only in another
//! unit is detected and refused, so that it does not become a time in 1970 or in the year 58,000.

use std::fmt;

use crate::bounds::DELAY_MS_MAX;
use crate::clock::Timestamp;

/// Plausible times begin here: 3 March 1973. So small numbers are never mistaken for another unit.
const NEAR_FROM_MS: u64 = 100_000_000_000;

/// A number that looks like a time in another unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct OtherUnit {
    given: u64,
    unit: Unit,
    ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Seconds,
    Microseconds,
    Nanoseconds,
}

impl fmt::Display for OtherUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { given, unit, ms } = self;
        let unit = match unit {
            Unit::Seconds => "seconds",
            Unit::Microseconds => "microseconds",
            Unit::Nanoseconds => "nanoseconds",
        };
        write!(
            f,
            "{given} looks like {unit}; times are milliseconds: write {ms}"
        )
    }
}

/// Checks that a number is not a plausible time in a unit other than milliseconds.
///
/// # Errors
/// [`OtherUnit`], which says what to write.
pub fn check_ms(given: u64, now: Timestamp) -> Result<u64, OtherUnit> {
    let is_near = |ms: u64| (NEAR_FROM_MS..=now.0.saturating_add(DELAY_MS_MAX)).contains(&ms);
    let units = [
        (Unit::Seconds, given.saturating_mul(1_000)),
        (Unit::Microseconds, given / 1_000),
        (Unit::Nanoseconds, given / 1_000_000),
    ];
    let meant = units.into_iter().find(|&(_, ms)| is_near(ms));
    match meant.filter(|_| !is_near(given)) {
        Some((unit, ms)) => Err(OtherUnit { given, unit, ms }),
        None => Ok(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_our_time_is_known_in_every_unit() {
        let now = Timestamp(1_795_255_200_123);
        for (given, unit, ms) in [
            (1_795_255_200, "seconds", 1_795_255_200_000_u64),
            (1_795_258_800, "seconds", 1_795_258_800_000),
            (946_684_800, "seconds", 946_684_800_000),
            (1_795_255_200_123_456, "microseconds", 1_795_255_200_123),
            (1_795_255_200_123_456_789, "nanoseconds", 1_795_255_200_123),
        ] {
            let told = check_ms(given, now).unwrap_err().to_string();
            assert!(
                told.contains(unit) && told.ends_with(&format!("write {ms}")),
                "{told}"
            );
        }
    }

    #[test]
    fn milliseconds_small_numbers_and_nonsense_are_what_they_are() {
        let now = Timestamp(1_795_255_200_123);
        for given in [
            0,
            5,
            1_000_000,
            now.0,
            946_684_800_000,
            now.0 + DELAY_MS_MAX,
            i64::MAX as u64,
            u64::MAX,
        ] {
            assert_eq!(check_ms(given, now), Ok(given));
        }
    }
}
