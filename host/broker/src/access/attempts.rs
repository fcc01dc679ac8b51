//! Failed attempts to prove who one is, by where they come from: the more, the longer each refusal takes. Who proves it never waits, but
//! for the first time with a password from where many failed: its check costs the host so much that it comes after the wait.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use millrace_model::bounds::{ATTEMPTS_SOURCES_MAX, REFUSAL_DELAY_MS_MAX};

/// Failures that cost nothing: people mistype, and programs start with an old token.
const FREE: u64 = 10;
/// The delay of the first failure beyond these; it doubles with each further one.
const DELAY_MS: u64 = 10;
/// One failure is forgotten in this time.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);

/// The failures of one source.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    count: u64,
    /// Up to when failures were forgotten.
    at: Duration,
}

/// Failed attempts by source. An IPv6 source is a network of 64 bits: whoever has one address there has all.
#[derive(Debug, Default)]
pub struct Attempts {
    sources: HashMap<Option<IpAddr>, Failures>,
    /// Of all sources for which there is no room.
    others: Failures,
}

impl Attempts {
    /// Counts a failure, and returns how long to hold back its refusal. `now` is monotonic.
    pub fn failed(&mut self, source: Option<IpAddr>, now: Duration) -> Duration {
        let source = source.map(network);
        if self.sources.len() >= ATTEMPTS_SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, failures| {
                failures.forget(now);
                failures.count > 0
            });
        }
        let failures = match self.sources.len() >= ATTEMPTS_SOURCES_MAX
            && !self.sources.contains_key(&source)
        {
            true => &mut self.others,
            false => self
                .sources
                .entry(source)
                .or_insert(Failures { count: 0, at: now }),
        };
        failures.forget(now);
        failures.count = failures.count.saturating_add(1);
        failures.delay()
    }

    /// How long a further failure from there is held back. `now` is monotonic.
    #[must_use]
    pub fn next_delay(&self, source: Option<IpAddr>, now: Duration) -> Duration {
        let known = self.sources.get(&source.map(network));
        let mut failures = match known {
            Some(known) => *known,
            None if self.sources.len() >= ATTEMPTS_SOURCES_MAX => self.others,
            None => return Duration::ZERO,
        };
        failures.forget(now);
        failures.count = failures.count.saturating_add(1);
        failures.delay()
    }
}

impl Failures {
    fn forget(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        let forgotten = passed.as_nanos() / FORGOTTEN_AFTER.as_nanos();
        let forgotten = u64::try_from(forgotten).unwrap_or(u64::MAX);
        self.count = self.count.saturating_sub(forgotten);
        // What has begun to be forgotten stays begun.
        let whole = Duration::from_secs(forgotten.saturating_mul(FORGOTTEN_AFTER.as_secs()));
        self.at = self.at.saturating_add(whole).min(now);
        // A flood is forgotten in minutes, not days.
        self.count = self.count.min(10 * FREE);
    }

    fn delay(&self) -> Duration {
        let beyond = self.count.saturating_sub(FREE);
        if beyond == 0 {
            return Duration::ZERO;
        }
        let doubled = u32::try_from(beyond - 1).unwrap_or(u32::MAX);
        let delay = 2_u64
            .checked_pow(doubled)
            .and_then(|n| n.checked_mul(DELAY_MS));
        let delay = delay.unwrap_or(u64::MAX).min(REFUSAL_DELAY_MS_MAX);
        Duration::from_millis(delay)
    }
}

/// The network that counts as one source.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => IpAddr::V4(mapped),
            None => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn a_few_failures_cost_nothing_and_many_a_second_each() {
        let mut attempts = Attempts::default();
        let delays: Vec<u128> = (0..20)
            .map(|_| attempts.failed(source(1), Duration::ZERO).as_millis())
            .collect();
        assert_eq!(delays[..10], [0; 10]);
        assert_eq!(delays[10..17], [10, 20, 40, 80, 160, 320, 640]);
        assert_eq!(delays[17..], [1000; 3]);
        assert_eq!(attempts.failed(source(2), Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn failures_are_forgotten() {
        let mut attempts = Attempts::default();
        for _ in 0..1000 {
            attempts.failed(source(1), Duration::ZERO);
        }
        let soon = attempts.failed(source(1), Duration::from_secs(5));
        assert_eq!(soon, Duration::from_secs(1));
        let later = attempts.failed(source(1), Duration::from_secs(200));
        assert_eq!(later, Duration::ZERO);
    }

    #[test]
    fn the_delay_that_is_foretold_is_the_one_that_comes() {
        let mut attempts = Attempts::default();
        assert_eq!(
            attempts.next_delay(source(1), Duration::ZERO),
            Duration::ZERO
        );
        for _ in 0..30 {
            let next = attempts.next_delay(source(1), Duration::ZERO);
            assert_eq!(attempts.failed(source(1), Duration::ZERO), next);
        }
        let soon = attempts.next_delay(source(1), Duration::from_secs(10));
        let late = attempts.next_delay(source(1), Duration::from_secs(100));
        let other = attempts.next_delay(source(2), Duration::ZERO);
        assert!(soon > Duration::ZERO);
        assert_eq!((late, other), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn one_network_of_version_6_is_one_source() {
        let mut attempts = Attempts::default();
        let address = |last: u16| Some(IpAddr::from([0x2001, 0xdb8, 0, 1, last, 2, 3, last]));
        for last in 0..11 {
            attempts.failed(address(last), Duration::ZERO);
        }
        assert!(attempts.failed(address(99), Duration::ZERO) > Duration::ZERO);
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_no_delay_exceeds_the_bound(
            failures in prop::collection::vec((0..u32::MAX, 0..1000u64), 0..200),
        ) {
            let mut attempts = Attempts::default();
            let mut now = Duration::ZERO;
            for at in 0..ATTEMPTS_SOURCES_MAX {
                attempts.failed(Some(IpAddr::from([10, 0, (at / 256) as u8, (at % 256) as u8])), now);
            }
            for (address, passed) in failures {
                now += Duration::from_millis(passed);
                let delay = attempts.failed(Some(IpAddr::from(address.to_be_bytes())), now);
                prop_assert!(delay <= Duration::from_millis(REFUSAL_DELAY_MS_MAX));
                prop_assert!(attempts.sources.len() <= ATTEMPTS_SOURCES_MAX);
            }
        }
    }
}
