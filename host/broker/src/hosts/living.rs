//! The living hosts, and which of them should work where. Each partition of a processor's input has one preferred host; all hosts agree
//! on it without communication.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_engine::{Engine, HostId, HostInfo};
use millrace_model::hash::fnv1a;
use millrace_model::{Clock, GroupName, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::hosts::holding::Holdings;

/// Default delay before work moves after hosts joined or left: a host that only restarts is back by
/// then.
pub(crate) const MOVES_AFTER: Duration = Duration::from_secs(5);
/// Extra delay before workers are notified, so that the delay is over by their clocks too.
const NUDGE_SLACK: Duration = Duration::from_millis(50);

/// The living hosts, as this one sees them.
pub(crate) struct Hosts {
    engine: Arc<dyn Engine>,
    me: HostId,
    clock: Arc<dyn Clock>,
    /// Delay before work moves after hosts joined or left.
    moves_after: Duration,
    listed: watch::Receiver<Arc<[HostInfo]>>,
    /// The latest list, and since when.
    known: Mutex<(Arc<[HostInfo]>, Duration)>,
    /// Whether another host was ever listed.
    had_others: AtomicBool,
    /// How often this host took up work that its preferred host left undone.
    taken_up: AtomicU64,
    /// What is held here, by group.
    groups: Mutex<HashMap<GroupName, Weak<Holdings>>>,
}

impl Hosts {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        clock: Arc<dyn Clock>,
        moves_after: Duration,
    ) -> Arc<Self> {
        let listed = engine.hosts();
        let known = Mutex::new((listed.borrow().clone(), clock.monotonic()));
        Arc::new(Self {
            me: engine.host(),
            engine,
            clock,
            moves_after,
            listed,
            known,
            had_others: AtomicBool::new(false),
            taken_up: AtomicU64::new(0),
            groups: Mutex::default(),
        })
    }

    /// What this host holds of a group's work, shared by all users.
    pub(crate) fn holdings(self: &Arc<Self>, group: &GroupName) -> Arc<Holdings> {
        let mut groups = self.groups.lock();
        if let Some(holdings) = groups.get(group).and_then(Weak::upgrade) {
            return holdings;
        }
        groups.retain(|_, holdings| holdings.strong_count() > 0);
        let group = group.clone();
        let holdings = Holdings::new(Arc::clone(self), group.clone());
        groups.insert(group, Arc::downgrade(&holdings));
        holdings
    }

    /// Reads the list of hosts: changes count from now on.
    pub(crate) fn notice(&self) {
        self.now();
    }

    /// Whether another host was seen since this one started: it may have left work behind.
    pub(crate) fn had_others(&self) -> bool {
        self.notice();
        self.had_others.load(Ordering::Relaxed)
    }

    /// The living hosts, and how long the list has been unchanged.
    pub(crate) fn now(&self) -> (Arc<[HostInfo]>, Duration) {
        let listed = self.listed.borrow().clone();
        let now = self.clock.monotonic();
        let mut known = self.known.lock();
        if known.0 != listed {
            *known = (listed, now);
        }
        if known.0.len() > 1 {
            self.had_others.store(true, Ordering::Relaxed);
        }
        (known.0.clone(), now.saturating_sub(known.1))
    }

    /// The preferred host for this, if it is another one.
    pub(crate) fn wanted_elsewhere(
        &self,
        group: &GroupName,
        at: TopicPartition,
    ) -> Option<HostInfo> {
        if self.is_alone() {
            return None;
        }
        let (hosts, _) = self.now();
        // A host that is considered dead is not in the list, but may not know that yet.
        let found = wanted(&hosts, group, at)?;
        (found.id != self.me).then(|| found.clone())
    }

    /// The name of this host, if there are others.
    pub(crate) fn this_among_others(&self) -> Option<String> {
        if self.is_alone() {
            return None;
        }
        let (hosts, _) = self.now();
        let this = hosts.iter().find(|host| host.id == self.me);
        Some(this.map_or_else(|| self.me.to_string(), HostInfo::name))
    }

    /// The name of the preferred host for this, if there are several.
    pub(crate) fn wanted_at(&self, group: &GroupName, at: TopicPartition) -> Option<String> {
        if self.is_alone() {
            return None;
        }
        wanted(&self.now().0, group, at).map(HostInfo::name)
    }

    /// How many of these places this host is preferred for, or has taken up.
    pub(crate) fn wanted_here(&self, group: &GroupName, places: &[TopicPartition]) -> usize {
        let (hosts, _) = self.now();
        let holdings = self.groups.lock().get(group).and_then(Weak::upgrade);
        let is_taken_up = |at| holdings.as_ref().is_some_and(|held| held.is_taken_up(at));
        let is_here = |at: &&TopicPartition| {
            let wanted = wanted(&hosts, group, **at);
            wanted.is_none_or(|host| host.id == self.me) || is_taken_up(**at)
        };
        places.iter().filter(is_here).count()
    }

    /// Counts what is taken up. Returns the count, so that who has asked [`wanted_here`](Self::wanted_here) knows when to ask again.
    pub(crate) fn taken_up(&self, more: u64) -> u64 {
        self.taken_up.fetch_add(more, Ordering::Relaxed) + more
    }

    /// Whether this host is the only one now. Called at every step of every worker, so it must be
    /// cheap.
    pub(crate) fn is_alone(&self) -> bool {
        let listed = self.listed.borrow();
        matches!(&**listed, [host] if host.id == self.me)
    }

    /// Delay before work moves after hosts joined or left.
    pub(crate) fn moves_after(&self) -> Duration {
        self.moves_after
    }

    /// After this time the delay is over by every host's clock.
    pub(crate) fn moved_after(&self) -> Duration {
        self.moves_after + NUDGE_SLACK
    }

    /// The engine that lists hosts.
    pub(crate) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Wakes when hosts join or leave.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.listed.clone()
    }
}

/// The preferred host for a group in a partition: the one with the highest weight, a hash of all
/// three. So each host gets about the same number of partitions, and when one leaves, only its own
/// move (D. Thaler and C. Ravishankar, *Using name-based mappings to increase hit rates*, IEEE/ACM
/// Transactions on Networking 6, 1998).
fn wanted<'a>(
    hosts: &'a [HostInfo],
    group: &GroupName,
    at: TopicPartition,
) -> Option<&'a HostInfo> {
    hosts
        .iter()
        .max_by_key(|host| (weight(host.id, group, at), host.id))
}

/// The same on every host, whatever its version: FNV-1a over everything, then the finalizer of
/// splitmix64 (G. Steele, D. Lea and C. Flood, 2014), because FNV spreads its last bytes badly.
fn weight(host: HostId, group: &GroupName, at: TopicPartition) -> u64 {
    let place = [at.topic.0, u64::from(at.partition.0), host.0].map(u64::to_le_bytes);
    let bytes = group.as_str().bytes().chain(place.into_iter().flatten());
    let hash = fnv1a(bytes);
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use millrace_model::{PartitionId, ProcessorName, TopicId};

    use super::*;

    fn hosts(ids: impl IntoIterator<Item = u64>) -> Vec<HostInfo> {
        let host = |id| HostInfo {
            id: HostId(id),
            address: "".into(),
        };
        ids.into_iter().map(host).collect()
    }

    fn all() -> impl Iterator<Item = TopicPartition> {
        (0..300).map(|number| TopicPartition {
            topic: TopicId(number / 30 + 1),
            partition: PartitionId((number % 30) as u32),
        })
    }

    fn group(name: &str) -> GroupName {
        ProcessorName::parse(name).unwrap().group()
    }

    fn places(hosts: &[HostInfo]) -> Vec<HostId> {
        let place = |at| wanted(hosts, &group("p"), at).unwrap().id;
        all().map(place).collect()
    }

    #[test]
    fn each_host_is_wanted_for_about_as_much_as_any_other() {
        for ids in [vec![1, 2, 3], vec![u64::MAX, 0, 1 << 40], vec![7, 8, 9]] {
            let places = places(&hosts(ids.clone()));
            for id in ids {
                let count = places.iter().filter(|place| place.0 == id).count();
                assert!((70..=130).contains(&count), "{id}: {count} of 300");
            }
        }
    }

    #[test]
    fn what_moves_when_a_host_goes_is_what_it_had() {
        let (before, after) = (places(&hosts([1, 2, 3])), places(&hosts([1, 3])));
        let moved: HashSet<HostId> = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after)
            .map(|(before, _)| *before)
            .collect();
        assert_eq!(moved, HashSet::from([HostId(2)]));
        assert!(wanted(&[], &group("p"), all().next().unwrap()).is_none());
    }

    #[test]
    fn processors_of_the_same_topic_are_spread_as_well() {
        let two = hosts([1, 2]);
        let at = all().next().unwrap();
        let names: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
        let wanted = names
            .iter()
            .map(|name| wanted(&two, &group(name), at).unwrap().id);
        let first = wanted.filter(|id| id.0 == 1).count();
        assert!((10..=30).contains(&first), "{first} of 40");
    }
}
