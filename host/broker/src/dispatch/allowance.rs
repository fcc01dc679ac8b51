//! Limits how many dead letters a processor may create per period. At the limit the partition
//! waits; nothing is dropped. If several hosts work on the processor, each has a share.

use std::collections::VecDeque;
use std::time::Duration;

use millrace_model::processor::DeadLetterPolicy;

/// The period is divided into this many buckets.
const PARTS: u32 = 64;

/// Dead letters created recently, and those that an operator accepted in advance.
#[derive(Debug)]
pub(crate) struct Allowance {
    policy: DeadLetterPolicy,
    /// Time and count of each bucket, oldest first; at most [`PARTS`] plus one.
    made: VecDeque<(Duration, u32)>,
    sum: u32,
    accepted: u64,
    /// Of how many of the processor's partitions this host takes care, and how many there are.
    share: (usize, usize),
}

/// The answer to a request for dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) count: u32,
    /// How many granted ones use up what an operator accepted.
    accepted: u32,
    /// How long until more are allowed.
    pub(crate) more_in: Duration,
}

impl Allowance {
    /// Nothing created yet.
    pub(crate) fn new(policy: DeadLetterPolicy) -> Self {
        Self {
            policy,
            made: VecDeque::new(),
            sum: 0,
            accepted: 0,
            share: (1, 1),
        }
    }

    /// Applies this policy from now on.
    pub(crate) fn set(&mut self, policy: DeadLetterPolicy) {
        self.policy = policy;
    }

    /// From now on this host takes care of `here` of the processor's `all` partitions, and has this
    /// share of what is allowed.
    pub(crate) fn share(&mut self, here: usize, all: usize) {
        self.share = match all {
            0 => (1, 1),
            all => (here.min(all), all),
        };
    }

    /// Lets `count` more through regardless of the policy; `None` revokes that.
    pub(crate) fn accept(&mut self, count: Option<u64>) {
        self.accepted = count.map_or(0, |count| self.accepted.saturating_add(count));
    }

    /// How many accepted ones are unused.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// How many may be created now.
    pub(crate) fn left(&mut self, now: Duration) -> u32 {
        self.expire(now);
        self.max().saturating_sub(self.sum)
    }

    /// This host's share of the policy's maximum: at least one, because a host works on partitions
    /// that it is to give away until it has done so.
    fn max(&self) -> u32 {
        let (here, all) = (self.share.0 as u64, self.share.1 as u64);
        let own = (u64::from(self.policy.max) * here / all) as u32;
        own.max(1).min(self.policy.max)
    }

    /// Takes as many of the wanted ones as are allowed now.
    pub(crate) fn take(&mut self, wanted: u32, now: Duration) -> Granted {
        let accepted = wanted.min(self.accepted.try_into().unwrap_or(u32::MAX));
        let count = (wanted - accepted).min(self.left(now));
        self.accepted -= u64::from(accepted);
        self.count(count, now);
        let period = Duration::from_millis(self.policy.per_ms);
        let frees = self.made.front().map_or(now, |(at, _)| *at + period);
        Granted {
            count: count + accepted,
            accepted,
            more_in: frees.saturating_sub(now),
        }
    }

    /// Returns granted dead letters that were not created.
    pub(crate) fn give_back(&mut self, granted: Granted) {
        self.accepted += u64::from(granted.accepted);
        let mut rest = granted.count - granted.accepted;
        while rest > 0
            && let Some((_, count)) = self.made.back_mut()
        {
            let back = rest.min(*count);
            *count -= back;
            self.sum -= back;
            rest -= back;
            if *count == 0 {
                self.made.pop_back();
            }
        }
    }

    fn count(&mut self, count: u32, now: Duration) {
        if count == 0 {
            return;
        }
        self.sum += count;
        let part = Duration::from_millis(self.policy.per_ms) / PARTS;
        match self.made.back_mut() {
            Some((at, before)) if now < *at + part => *before += count,
            _ => self.made.push_back((now, count)),
        }
    }

    fn expire(&mut self, now: Duration) {
        let period = Duration::from_millis(self.policy.per_ms);
        while let Some(&(at, count)) = self.made.front()
            && at + period <= now
        {
            self.sum -= count;
            self.made.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn allowance(max: u32) -> Allowance {
        Allowance::new(DeadLetterPolicy {
            max,
            per_ms: 60_000,
            ..DeadLetterPolicy::default()
        })
    }

    #[test]
    fn at_the_bound_there_are_no_more_until_the_oldest_are_old_enough() {
        let mut allowance = allowance(3);
        let start = Duration::from_secs(5);
        assert_eq!(allowance.take(2, start).count, 2);
        let second = allowance.take(5, start + MINUTE / 2);
        assert_eq!((second.count, second.more_in), (1, MINUTE / 2));
        assert_eq!(allowance.take(1, start + MINUTE / 2).count, 0);
        assert_eq!(allowance.take(9, start + MINUTE).count, 2);
    }

    #[test]
    fn what_was_not_made_is_given_back_and_what_was_accepted_does_not_count() {
        let mut allowance = allowance(3);
        let granted = allowance.take(3, MINUTE);
        allowance.give_back(granted);
        assert_eq!(allowance.left(MINUTE), 3);
        allowance.accept(Some(10));
        let granted = allowance.take(12, MINUTE);
        assert_eq!((granted.count, allowance.accepted()), (12, 0));
        assert_eq!(allowance.left(MINUTE), 1);
        allowance.give_back(granted);
        assert_eq!((allowance.left(MINUTE), allowance.accepted()), (3, 10));
    }

    #[test]
    fn hosts_that_share_the_partitions_share_what_is_allowed() {
        let mut shares: Vec<Allowance> = [5, 2, 1]
            .map(|here| (here, allowance(100)))
            .map(|(here, mut allowance)| {
                allowance.share(here, 8);
                allowance
            })
            .into();
        let left: Vec<u32> = shares.iter_mut().map(|one| one.left(MINUTE)).collect();
        assert_eq!(left, [62, 25, 12]);
        // One that is left with none may still have a batch in hand.
        shares[2].share(0, 8);
        assert_eq!(shares[2].left(MINUTE), 1);
        let mut none = allowance(0);
        none.share(1, 2);
        assert_eq!(none.left(MINUTE), 0);
    }

    proptest! {
        #[test]
        fn in_no_span_of_the_period_are_there_more_than_the_bound(
            max in 1..50u32, steps in proptest::collection::vec((0..20_000u64, 1..30u32), 1..100),
        ) {
            let mut allowance = allowance(max);
            let mut now = Duration::ZERO;
            let mut made = Vec::new();
            for (after_ms, wanted) in steps {
                now += Duration::from_millis(after_ms);
                made.push((now, allowance.take(wanted, now).count));
            }
            for &(end, _) in &made {
                let within = made.iter().filter(|(at, _)| *at <= end && *at + MINUTE - MINUTE / PARTS > end);
                prop_assert!(within.map(|(_, count)| count).sum::<u32>() <= max);
            }
        }
    }
}
