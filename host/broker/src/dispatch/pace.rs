//! Limits the batches of a slow guest so that a call takes a quarter of its time limit. It decides
//! only; the worker measures. A guest that is fast enough for the policy's batches is not limited.

use std::time::Duration;

/// A call should take 1/SHARE of its limit. After a timeout the next batch is SHARE times smaller.
const SHARE: u32 = 4;

/// What one worker has measured of its guest.
#[derive(Debug)]
pub(crate) struct Pace {
    messages_max: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            messages_max: usize::MAX,
        }
    }
}

impl Pace {
    /// Maximum size of the next batch, in messages.
    pub(crate) fn messages_max(&self) -> usize {
        self.messages_max
    }

    /// Records that a call of this many messages was answered after `took`; its limit is
    /// `time_max`.
    pub(crate) fn answered(&mut self, messages: usize, took: Duration, time_max: Duration) {
        let aim = time_max / SHARE;
        let per_message = took.max(Duration::from_nanos(1)).as_secs_f64() / messages.max(1) as f64;
        let fitting = ((aim.as_secs_f64() / per_message) as usize).max(1);
        if took > aim {
            self.messages_max = fitting.min(messages);
        } else if messages >= self.messages_max {
            // The batch was limited, so the next one grows gradually: a few messages may have been
            // unusually quick.
            self.messages_max = fitting.min(self.messages_max.saturating_mul(2));
        }
    }

    /// Records that a call of this many messages timed out.
    pub(crate) fn timed_out(&mut self, messages: usize) {
        self.messages_max = (messages / SHARE as usize).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL_TIME: Duration = Duration::from_secs(1);
    const POLICY: usize = 1_000;

    /// Makes calls of the largest allowed size; returns how many timed out, and the size of the
    /// last one.
    fn calls(pace: &mut Pace, count: usize, per_message: Duration) -> (usize, usize) {
        let (mut late, mut last) = (0, 0);
        for _ in 0..count {
            last = pace.messages_max().min(POLICY);
            let took = per_message * last as u32;
            match took >= CALL_TIME {
                true => {
                    late += 1;
                    pace.timed_out(last);
                }
                false => pace.answered(last, took, CALL_TIME),
            }
        }
        (late, last)
    }

    #[test]
    fn a_fast_guest_is_given_what_the_policy_allows() {
        let mut pace = Pace::default();
        assert_eq!(
            calls(&mut pace, 100, Duration::from_micros(100)),
            (0, POLICY)
        );
    }

    #[test]
    fn a_slow_guest_runs_out_of_time_a_few_times_and_then_never_again() {
        for (per_message_ms, late, messages) in [(5, 2, 50), (20, 3, 12), (240, 4, 1), (900, 5, 1)]
        {
            let mut pace = Pace::default();
            let per_message = Duration::from_millis(per_message_ms);
            assert_eq!(calls(&mut pace, 100, per_message), (late, messages));
        }
    }

    #[test]
    fn a_guest_that_becomes_fast_again_is_given_more_and_more() {
        let mut pace = Pace::default();
        calls(&mut pace, 10, Duration::from_millis(20));
        assert_eq!(calls(&mut pace, 1, Duration::from_micros(10)), (0, 12));
        assert_eq!(calls(&mut pace, 10, Duration::from_micros(10)), (0, POLICY));
    }

    #[test]
    fn few_messages_say_nothing_of_many() {
        let mut pace = Pace::default();
        pace.timed_out(400);
        pace.answered(3, Duration::from_millis(1), CALL_TIME);
        assert_eq!(pace.messages_max(), 100);
    }
}
