//! Durations that a step of the wall clock does not change. Code that stores future times as wall
//! times, because they outlive the process, reads them by a [`SteadyClock`]. It runs evenly, and
//! follows a step of the machine's clock only when told to. All times kept by it are then moved by
//! the same step, so that the rest of each duration stays the same.

use std::time::Duration;

use crate::clock::{Clock, Timestamp};

/// Smaller steps are ignored: clocks are corrected by a little all the time, and it does not
/// matter.
const STEP_MS_MIN: u64 = 500;

/// A wall clock that follows steps of the machine's clock only on request.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    wall: Timestamp,
    monotonic: Duration,
}

impl SteadyClock {
    /// A clock set to the machine's time.
    #[must_use]
    pub fn begin(clock: &dyn Clock) -> Self {
        Self {
            wall: clock.wall(),
            monotonic: clock.monotonic(),
        }
    }

    /// The current time: that of the machine's clock as long as it made no step.
    #[must_use]
    pub fn now(&self, clock: &dyn Clock) -> Timestamp {
        let (here, there) = self.read(clock);
        match here.0.abs_diff(there.0) < STEP_MS_MIN {
            true => there,
            false => here,
        }
    }

    /// Follows a step of the machine's clock, if there was one.
    pub fn follow(&mut self, clock: &dyn Clock) -> Option<Step> {
        let (here, there) = self.read(clock);
        *self = Self::begin(clock);
        let is_step = here.0.abs_diff(there.0) >= STEP_MS_MIN;
        is_step.then_some(Step { here, there })
    }

    /// The time that it would be without any step, and the machine's time.
    fn read(&self, clock: &dyn Clock) -> (Timestamp, Timestamp) {
        let passed = clock.monotonic().saturating_sub(self.monotonic);
        (self.wall.after(passed), clock.wall())
    }
}

/// A step of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    here: Timestamp,
    there: Timestamp,
}

impl Step {
    /// The same moment after the step.
    #[must_use]
    pub fn moved(self, moment: Timestamp) -> Timestamp {
        match self.there >= self.here {
            true => Timestamp(moment.0.saturating_add(self.there.0 - self.here.0)),
            false => Timestamp(moment.0.saturating_sub(self.here.0 - self.there.0)),
        }
    }

    /// The step in milliseconds; negative for a step back.
    #[must_use]
    pub fn ms(self) -> i64 {
        let by = i64::try_from(self.here.0.abs_diff(self.there.0)).unwrap_or(i64::MAX);
        match self.there >= self.here {
            true => by,
            false => -by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn what_is_left_of_a_span_is_the_same_after_steps_in_both_directions() {
        const HOUR_MS: i64 = 3_600_000;
        let clock = ManualClock::at(Timestamp(1_000_000_000));
        let mut steady = SteadyClock::begin(&clock);
        let mut due = steady.now(&clock).after(Duration::from_secs(3));
        for (left_ms, step_ms) in [(2_000, -HOUR_MS), (1_000, HOUR_MS), (0, 24 * HOUR_MS)] {
            clock.advance(Duration::from_secs(1));
            clock.step(step_ms);
            // Nothing changes until the step is followed, and then only the numbers do.
            let left = |at: Timestamp, due| at.until(due).as_millis();
            assert_eq!(left(steady.now(&clock), due), left_ms);
            let step = steady.follow(&clock).unwrap();
            assert_eq!(step.ms(), step_ms);
            due = step.moved(due);
            assert_eq!(steady.now(&clock), clock.wall());
            assert_eq!(left(steady.now(&clock), due), left_ms);
            assert_eq!(steady.follow(&clock), None);
        }
    }

    #[test]
    fn small_corrections_are_no_steps() {
        let clock = ManualClock::at(Timestamp(1_000_000));
        let mut steady = SteadyClock::begin(&clock);
        for _ in 0..20 {
            clock.step(-100);
            assert_eq!(steady.now(&clock), clock.wall());
            assert_eq!(steady.follow(&clock), None);
        }
        clock.step(-500);
        assert_eq!(steady.follow(&clock).map(Step::ms), Some(-500));
    }

    #[test]
    fn steps_beyond_the_ends_of_time_stay_within() {
        let step = |here, there| Step {
            here: Timestamp(here),
            there: Timestamp(there),
        };
        assert_eq!(step(1, u64::MAX).moved(Timestamp(5)).0, u64::MAX);
        assert_eq!(step(u64::MAX, 1).moved(Timestamp(5)).0, 0);
        assert_eq!(step(u64::MAX, 1).ms(), -i64::MAX);
    }
}
