//! The living hosts, and which of them should work where. Each partition of a processor's input has one preferred host; all hosts agree
//! on it without communication, because all know the same seats and topics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_engine::{Engine, HostId, HostInfo};
use millrace_model::hash::fnv1a;
use millrace_model::{Clock, GroupName, Topic, TopicId, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::hosts::holding::Holdings;
use crate::hosts::spread::spread;

/// Default delay before work moves after hosts joined or left: a host that only restarts is back by
/// then.
pub(crate) const MOVES_AFTER: Duration = Duration::from_secs(5);
/// Extra delay before workers are notified, so that the delay is over by their clocks too.
const NUDGE_SLACK: Duration = Duration::from_millis(50);
/// Partitions whose preferred seats are kept; more are computed again.
const SPREAD_PARTITIONS_MAX: usize = 1 << 20;

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
    catalogue: watch::Receiver<u64>,
    counts: Mutex<Counts>,
    spreads: Mutex<Spreads>,
}

/// How many partitions each topic has, as of a version of the catalogue.
#[derive(Default)]
struct Counts {
    version: Option<u64>,
    by_topic: HashMap<TopicId, u32>,
}

/// The preferred seats of partitions, computed when they are first asked for.
#[derive(Default)]
struct Spreads {
    /// Among these hosts; for another list they do not count.
    among: Arc<[HostInfo]>,
    by_group: HashMap<GroupName, HashMap<TopicId, Arc<[u32]>>>,
    /// Partitions of all of them.
    partitions: usize,
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
            catalogue: engine.watch_catalogue(),
            engine,
            clock,
            moves_after,
            listed,
            known,
            had_others: AtomicBool::new(false),
            taken_up: AtomicU64::new(0),
            groups: Mutex::default(),
            counts: Mutex::default(),
            spreads: Mutex::default(),
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
        let found = self.wanted(&hosts, group, at)?;
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
        self.wanted(&self.now().0, group, at).map(HostInfo::name)
    }

    /// How many of these places this host is preferred for, or has taken up.
    pub(crate) fn wanted_here(&self, group: &GroupName, places: &[TopicPartition]) -> usize {
        let (hosts, _) = self.now();
        let holdings = self.groups.lock().get(group).and_then(Weak::upgrade);
        let is_taken_up = |at| holdings.as_ref().is_some_and(|held| held.is_taken_up(at));
        let is_here = |at: &&TopicPartition| {
            let wanted = self.wanted(&hosts, group, **at);
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

    /// The preferred host for a group in a partition.
    fn wanted<'a>(
        &self,
        hosts: &'a Arc<[HostInfo]>,
        group: &GroupName,
        at: TopicPartition,
    ) -> Option<&'a HostInfo> {
        let number = at.partition.0;
        // A host that has not heard of the partition yet may prefer another seat for a moment.
        let count = self.partitions_of(at.topic).max(number.saturating_add(1));
        let mut spreads = self.spreads.lock();
        if !Arc::ptr_eq(&spreads.among, hosts) || spreads.partitions > SPREAD_PARTITIONS_MAX {
            *spreads = Spreads {
                among: Arc::clone(hosts),
                ..Spreads::default()
            };
        }
        let known = spreads.by_group.get(group).and_then(|of| of.get(&at.topic));
        let seat = match known.filter(|known| known.len() == count as usize) {
            Some(known) => known.get(number as usize).copied(),
            None => {
                let made = seats_of(hosts, group, at.topic, count);
                let seat = made.get(number as usize).copied();
                spreads.partitions += made.len();
                let of = spreads.by_group.entry(group.clone()).or_default();
                of.insert(at.topic, made.into());
                seat
            }
        }?;
        hosts.iter().find(|host| host.seat == seat)
    }

    /// How many partitions a topic has, as far as this host has heard.
    fn partitions_of(&self, topic: TopicId) -> u32 {
        let version = *self.catalogue.borrow();
        let mut counts = self.counts.lock();
        if counts.version != Some(version) {
            let topics = self.engine.topics();
            let count = |topic: &Topic| (topic.id, topic.spec.partitions);
            *counts = Counts {
                version: Some(version),
                by_topic: topics.iter().map(count).collect(),
            };
        }
        counts.by_topic.get(&topic).copied().unwrap_or(0)
    }
}

/// The preferred seats of a group in all partitions of a topic.
fn seats_of(hosts: &[HostInfo], group: &GroupName, topic: TopicId, partitions: u32) -> Vec<u32> {
    let name = group.as_str().bytes();
    let seed = fnv1a(name.chain(topic.0.to_le_bytes()));
    let mut seats: Vec<u32> = hosts.iter().map(|host| host.seat).collect();
    seats.sort_unstable();
    spread(seed, partitions, &seats)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use millrace_engine::{MemoryEngine, TopicChange};
    use millrace_model::{
        Durability, PartitionId, ProcessorName, SystemClock, Timestamp, TopicName, TopicSettings,
        TopicSpec,
    };

    use super::*;

    fn group(name: &str) -> GroupName {
        ProcessorName::parse(name).unwrap().group()
    }

    fn hosts(engine: &Arc<MemoryEngine>) -> Arc<Hosts> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        Hosts::new(Arc::clone(engine) as Arc<dyn Engine>, clock, MOVES_AFTER)
    }

    async fn topic(engine: &dyn Engine, partitions: u32) -> Topic {
        let spec = TopicSpec {
            name: TopicName::parse("in").unwrap(),
            partitions,
            durability: Durability::Os,
            partitioner: None,
            owner: None,
            created_at: Timestamp(0),
            settings: TopicSettings::default(),
        };
        engine.create_topic(spec, Vec::new()).await.unwrap()
    }

    /// The preferred hosts of all partitions, as this host sees it.
    fn places(hosts: &Hosts, topic: &Topic) -> Vec<String> {
        let wanted = |at| hosts.wanted_at(&group("p"), at).unwrap();
        topic.partitions().map(wanted).collect()
    }

    fn moved(before: &[String], after: &[String]) -> HashSet<usize> {
        let pairs = before.iter().zip(after).enumerate();
        let moved = pairs.filter(|(_, (before, after))| before != after);
        moved.map(|(number, _)| number).collect()
    }

    #[tokio::test]
    async fn a_third_host_takes_a_third_and_one_that_restarts_what_it_had() {
        let one = MemoryEngine::new(Arc::new(SystemClock::new()));
        let topic = topic(&*one, 64).await;
        let other = one.second_host();
        let seen = hosts(&one);
        let of_two = places(&seen, &topic);
        let third = one.second_host();
        let of_three = places(&seen, &topic);
        let joined = moved(&of_two, &of_three);
        assert!((21..=22).contains(&joined.len()), "{}", joined.len());
        let name = |engine: &MemoryEngine| format!("memory-{}", engine.host());
        assert!(
            joined
                .iter()
                .all(|&number| of_three[number] == name(&third))
        );

        other.die();
        let meanwhile = places(&seen, &topic);
        let of_the_dead = |number: &usize| of_three[*number] == name(&other);
        assert!(moved(&of_three, &meanwhile).iter().all(of_the_dead));
        let again = one.second_host();
        let back = places(&seen, &topic);
        let moved = moved(&of_three, &back);
        assert!(moved.iter().all(of_the_dead), "{moved:?}");
        assert!(moved.iter().all(|&number| back[number] == name(&again)));
    }

    #[tokio::test]
    async fn all_hosts_agree_also_when_the_topic_grows() {
        let one = MemoryEngine::new(Arc::new(SystemClock::new()));
        let engines = [Arc::clone(&one), one.second_host(), one.second_host()];
        let all = engines.each_ref().map(hosts);
        let mut topic = topic(&*one, 6).await;
        for partitions in [6, 16] {
            if partitions > topic.spec.partitions {
                let grown = TopicChange {
                    partitions: Some(partitions),
                    ..TopicChange::default()
                };
                topic = one.change_topic(&topic.spec.name, grown).await.unwrap();
            }
            for engine in &engines {
                engine.hear().await.unwrap();
            }
            let [first, rest @ ..] = all.each_ref().map(|hosts| places(hosts, &topic));
            assert!(rest.iter().all(|places| *places == first));
            let distinct: HashSet<&String> = first.iter().collect();
            assert_eq!(distinct.len(), 3, "{first:?}");
        }
    }

    #[tokio::test]
    async fn processors_of_the_same_topic_are_spread_as_well() {
        let one = MemoryEngine::new(Arc::new(SystemClock::new()));
        let topic = topic(&*one, 1).await;
        let _other = one.second_host();
        let seen = hosts(&one);
        let at = topic.partition(PartitionId(0)).unwrap();
        let wanted = (0..40).map(|n| seen.wanted_elsewhere(&group(&format!("p{n}")), at));
        let elsewhere = wanted.flatten().count();
        assert!((10..=30).contains(&elsewhere), "{elsewhere} of 40");
    }
}
