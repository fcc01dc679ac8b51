//! When leases of consumers end. Only the newest lease is stored, which is what separates two
//! readers. Its end is known to this process alone: after a restart each lease lasts for its full
//! length again, so that no reader loses it because the host was away.

use std::collections::HashMap;
use std::time::Duration;

use millrace_model::{LeaseId, ReadLease, TopicId};
use parking_lot::Mutex;

use crate::groups::shapes::Key;

pub(super) struct Leases {
    /// When the process started to track leases, by the monotonic clock.
    started: Duration,
    /// The same, by topic, where other hosts may have renewed leases.
    anew: Mutex<HashMap<TopicId, Duration>>,
    /// The ends of leases that were given or renewed since then, by the monotonic clock.
    ends: Mutex<HashMap<Key, (LeaseId, Duration)>>,
}

impl Leases {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            started: now,
            anew: Mutex::default(),
            ends: Mutex::default(),
        }
    }

    /// How long a consumer's newest lease still keeps others out.
    pub(super) fn left(&self, key: &Key, lease: Option<&ReadLease>, now: Duration) -> Duration {
        let Some(lease) = lease.filter(|lease| lease.length_ms > 0) else {
            return Duration::ZERO;
        };
        let length = Duration::from_millis(u64::from(lease.length_ms));
        let known = self.ends.lock().get(key).copied();
        let end = known.filter(|(id, _)| *id == lease.id);
        let began = self.anew.lock().get(&key.0).copied();
        let end = match (end, began) {
            (Some((_, end)), Some(began)) => end.max(began + length),
            (Some((_, end)), None) => end,
            (None, began) => began.unwrap_or(self.started) + length,
        };
        end.saturating_sub(now)
    }

    /// Another host may have renewed the topic's leases until now: each lasts for its full length from here.
    pub(super) fn begin_anew(&self, topic: TopicId, now: Duration) {
        self.anew.lock().insert(topic, now);
    }

    /// Extends the lease to this time, or keeps its present end if that is later: its reader may send two requests at once.
    pub(super) fn give(&self, key: &Key, lease: LeaseId, end: Duration) {
        let mut ends = self.ends.lock();
        let (id, until) = ends.entry(key.clone()).or_insert((lease, end));
        *until = if *id == lease { end.max(*until) } else { end };
        *id = lease;
    }

    /// Extends the lease to this time if it is unchanged; returns whether it was.
    pub(super) fn renew(&self, key: &Key, lease: LeaseId, end: Duration) -> bool {
        match self.ends.lock().get_mut(key) {
            Some((id, until)) if *id == lease && !until.is_zero() => {
                *until = end;
                true
            }
            _ => false,
        }
    }

    /// The lease no longer keeps anyone out.
    pub(super) fn end(&self, key: &Key, lease: LeaseId) {
        if let Some((id, until)) = self.ends.lock().get_mut(key)
            && *id == lease
        {
            *until = Duration::ZERO;
        }
    }

    pub(super) fn forget(&self, key: &Key) {
        self.ends.lock().remove(key);
    }

    pub(super) fn forget_topic(&self, topic: TopicId) {
        self.anew.lock().remove(&topic);
        self.ends.lock().retain(|(of, _), _| *of != topic);
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::ConsumerName;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key() -> Key {
        (TopicId(1), ConsumerName::parse("c").expect("a name"))
    }

    fn lease(id: u64) -> ReadLease {
        ReadLease {
            id: LeaseId(id),
            length_ms: 10_000,
            by: "ada".to_owned(),
        }
    }

    #[test]
    fn a_lease_of_an_earlier_run_holds_for_its_length_from_the_start_on() {
        let leases = Leases::new(5 * SECOND);
        let left = |now| leases.left(&key(), Some(&lease(7)), now);
        assert_eq!(left(5 * SECOND), 10 * SECOND);
        assert_eq!(left(15 * SECOND), Duration::ZERO);
        assert_eq!(leases.left(&key(), None, 5 * SECOND), Duration::ZERO);
    }

    #[test]
    fn it_is_renewed_until_it_is_given_back() {
        let leases = Leases::new(Duration::ZERO);
        let left = || leases.left(&key(), Some(&lease(7)), 12 * SECOND);
        leases.give(&key(), LeaseId(7), 20 * SECOND);
        assert_eq!(left(), 8 * SECOND);
        assert!(leases.renew(&key(), LeaseId(7), 30 * SECOND));
        assert_eq!(left(), 18 * SECOND);
        assert!(!leases.renew(&key(), LeaseId(6), 40 * SECOND));
        assert_eq!(left(), 18 * SECOND, "an older one changes nothing");
        leases.end(&key(), LeaseId(6));
        assert_eq!(left(), 18 * SECOND);
        leases.end(&key(), LeaseId(7));
        assert!(!leases.renew(&key(), LeaseId(7), 40 * SECOND));
        assert_eq!(
            left(),
            Duration::ZERO,
            "a request that ends later does not take it back"
        );
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone() {
        let leases = Leases::new(Duration::ZERO);
        leases.give(&key(), LeaseId(7), SECOND);
        leases.forget_topic(TopicId(2));
        assert_eq!(leases.ends.lock().len(), 1);
        leases.forget_topic(TopicId(1));
        assert_eq!(leases.ends.lock().len(), 0);
    }
}
