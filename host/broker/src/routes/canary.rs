//! A canary at work: which requests it answers, and whether it fails. Plain code; [`super::serving`] tells it of each request.

use std::collections::VecDeque;

use millrace_model::RouteBreaker;
use serde::Serialize;

/// Requests among which a canary gets exactly its share.
const HUNDRED: u64 = 100;

/// The distance between the places of two requests in a row. It has no factor in common with [`HUNDRED`], so all places are taken, and
/// it is nearly the golden section, so every share is spread evenly.
const STRIDE: u64 = 61;

/// Which of two revisions answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Current,
    Canary,
}

/// The side of a request, by its number: of each hundred in a row, exactly `percent` are the canary's. Where they lie differs from one
/// hundred to the next and from one `seed` to another, so that no caller who asks regularly always meets the same side.
pub(super) fn side_of(request: u64, seed: u64, percent: u32) -> Side {
    let turn = mixed(seed ^ (request / HUNDRED)) % HUNDRED;
    let place = (request % HUNDRED * STRIDE + turn) % HUNDRED;
    match place < percent.into() {
        true => Side::Canary,
        false => Side::Current,
    }
}

/// The last step of SplitMix64: neighbouring numbers become unlike ones.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The requests of one side, since the canary began on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RouteSideStatus {
    /// Requests whose call has ended.
    pub requests: u64,
    /// Those of them whose component failed or was late.
    pub failed: u64,
}

/// Watches both sides, and says when the canary fails.
#[derive(Debug)]
pub(super) struct Watch {
    breaker: RouteBreaker,
    canary: Latest,
    current: Latest,
    trouble: Option<String>,
}

impl Watch {
    pub(super) fn new(breaker: RouteBreaker) -> Self {
        Self {
            breaker,
            canary: Latest::default(),
            current: Latest::default(),
            trouble: None,
        }
    }

    /// Counts a request whose call has ended: `failure` says how it failed. Returns whether the canary has to be withdrawn, once.
    pub(super) fn ended(&mut self, side: Side, failure: Option<&str>) -> bool {
        let window = self.breaker.window_requests;
        let latest = match side {
            Side::Current => &mut self.current,
            Side::Canary => &mut self.canary,
        };
        latest.add(failure.is_some(), window);
        let (Side::Canary, Some(failure), None) = (side, failure, &self.trouble) else {
            return false;
        };
        self.trouble = self.judged(failure);
        self.trouble.is_some()
    }

    /// Why the canary has to be withdrawn, after it failed.
    fn judged(&self, failure: &str) -> Option<String> {
        let breaker = &self.breaker;
        // What the current revision suffers as well is no fault of the canary.
        if !breaker.enabled || self.current.is_failing(breaker) || !self.canary.is_failing(breaker)
        {
            return None;
        }
        let Latest {
            in_a_row, outcomes, ..
        } = &self.canary;
        let how = match *in_a_row >= breaker.failures_min {
            true => format!("{in_a_row} requests in a row failed"),
            false => format!(
                "{} of the last {} requests failed",
                self.canary.failed_lately(),
                outcomes.len()
            ),
        };
        Some(format!("{how}, the last one because {failure}"))
    }

    /// Why the canary is about to be withdrawn; it gets no more requests then.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// How the canary and the current revision did.
    pub(super) fn sides(&self) -> [RouteSideStatus; 2] {
        [&self.canary, &self.current].map(|latest| latest.all)
    }
}

/// The requests of one side.
#[derive(Debug, Default)]
struct Latest {
    all: RouteSideStatus,
    /// Whether each of the latest failed; at most `breaker.window_requests`.
    outcomes: VecDeque<bool>,
    /// Failures since the last success.
    in_a_row: u32,
}

impl Latest {
    fn add(&mut self, failed: bool, window: u32) {
        self.all.requests += 1;
        self.all.failed += u64::from(failed);
        self.in_a_row = match failed {
            true => self.in_a_row.saturating_add(1),
            false => 0,
        };
        self.outcomes.push_back(failed);
        while self.outcomes.len() > window as usize {
            self.outcomes.pop_front();
        }
    }

    fn failed_lately(&self) -> usize {
        self.outcomes.iter().filter(|&&failed| failed).count()
    }

    fn is_failing(&self, breaker: &RouteBreaker) -> bool {
        let (failed, window) = (self.failed_lately(), breaker.window_requests as usize);
        let is_window_full = self.outcomes.len() >= window;
        let is_share_over = failed * 100 >= window * breaker.failed_percent as usize;
        self.in_a_row >= breaker.failures_min
            || (is_window_full && is_share_over && failed >= breaker.failures_min as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_canary(requests: std::ops::Range<u64>, seed: u64, percent: u32) -> Vec<u64> {
        let is_canary = |request: &u64| side_of(*request, seed, percent) == Side::Canary;
        requests.filter(is_canary).collect()
    }

    #[test]
    fn a_canary_gets_exactly_its_share_of_each_hundred_requests() {
        for percent in [1, 10, 33, 50, 99] {
            for hundred in 0..50 {
                let requests = hundred * 100..(hundred + 1) * 100;
                let got = to_canary(requests, 7, percent).len();
                assert_eq!(got, percent as usize, "{percent} % of hundred {hundred}");
            }
        }
    }

    #[test]
    fn callers_who_ask_in_turn_each_meet_both_sides() {
        for callers in [2, 3, 4, 5, 7, 10] {
            for caller in 0..callers {
                let theirs = |request: &&u64| **request % callers == caller;
                let all = to_canary(0..10_000, 3, 10);
                let met = all.iter().filter(theirs).count() as u64;
                let expected = 1_000 / callers;
                assert!(
                    met > expected / 2 && met < expected * 2,
                    "{caller} of {callers}: {met}"
                );
            }
        }
        assert_ne!(to_canary(0..100, 1, 10), to_canary(0..100, 2, 10));
    }

    fn watch() -> Watch {
        Watch::new(RouteBreaker::default())
    }

    #[test]
    fn a_canary_that_fails_several_times_in_a_row_is_withdrawn_once() {
        let mut watch = watch();
        watch.ended(Side::Canary, None);
        for _ in 0..4 {
            assert!(!watch.ended(Side::Canary, Some("it trapped")));
        }
        assert!(watch.ended(Side::Canary, Some("it trapped")));
        assert!(!watch.ended(Side::Canary, Some("it trapped")));
        let why = watch.trouble().unwrap();
        assert_eq!(
            why,
            "5 requests in a row failed, the last one because it trapped"
        );
    }

    #[test]
    fn a_canary_that_fails_half_of_the_time_is_withdrawn_and_one_that_fails_less_is_not() {
        let mut half = watch();
        let withdrawn = |watch: &mut Watch, fails: &dyn Fn(u32) -> bool| {
            (0..200).any(|n| watch.ended(Side::Canary, fails(n).then_some("it is late")))
        };
        assert!(withdrawn(&mut half, &|n| n % 2 == 0));
        assert!(half.trouble().unwrap().starts_with("10 of the last 20"));
        assert!(!withdrawn(&mut watch(), &|n| n % 3 == 0));
    }

    #[test]
    fn what_the_current_revision_suffers_as_well_withdraws_no_canary() {
        let mut watch = watch();
        for _ in 0..30 {
            watch.ended(Side::Current, Some("it trapped"));
            assert!(!watch.ended(Side::Canary, Some("it trapped")));
        }
        // The outage is over for the current revision alone.
        for _ in 0..20 {
            watch.ended(Side::Current, None);
        }
        assert!(watch.ended(Side::Canary, Some("it trapped")));
        let [canary, current] = watch.sides();
        assert_eq!((canary.requests, canary.failed), (31, 31));
        assert_eq!((current.requests, current.failed), (50, 30));
    }

    #[test]
    fn a_breaker_that_is_off_withdraws_nothing() {
        let mut watch = Watch::new(RouteBreaker {
            enabled: false,
            ..RouteBreaker::default()
        });
        assert!((0..100).all(|_| !watch.ended(Side::Canary, Some("it trapped"))));
    }
}
