//! Which host works where. Each partition that a processor reads has one host that is wanted there; whoever works holds it, so that no other
//! host does. What is sent again to a partition is worked at by the same host, under the same hold.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use millrace_engine::{CommitError, Engine, Hold, HostId, HostInfo, Lease, Receipt, Transaction};
use millrace_model::{Clock, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::broker::Inner;
use crate::dispatch::retry::Backoff;

/// After hosts came or went, what a host holds moves so much later if nobody says otherwise: a host that is only started again is back by
/// then.
pub(crate) const MOVES_AFTER: Duration = Duration::from_secs(5);
/// Work that nobody does is taken up after so many times what it takes to move.
const TAKEN_UP_AFTER_MOVES: u32 = 12;
/// Places that are kept in mind before any is looked at again.
const PLACES_MIN: usize = 64;
/// Claims that are made side by side.
const CLAIMS_AT_ONCE_MAX: usize = 64;
/// Workers are told so much later still, so that the time is over by their clock.
const NUDGE_SLACK: Duration = Duration::from_millis(50);

/// The living hosts, as this one sees them.
pub(crate) struct Hosts {
    engine: Arc<dyn Engine>,
    me: HostId,
    clock: Arc<dyn Clock>,
    /// What is held moves so long after hosts came or went.
    moves_after: Duration,
    listed: watch::Receiver<Arc<[HostInfo]>>,
    /// What was listed last, and since when.
    known: Mutex<(Arc<[HostInfo]>, Duration)>,
    /// Whether no other one was ever listed.
    alone: AtomicBool,
    /// What is held here, by whose work it is.
    groups: Mutex<HashMap<Arc<str>, Weak<Holdings>>>,
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
            alone: AtomicBool::new(true),
            groups: Mutex::default(),
        })
    }

    /// What this host holds of a group's work: one for all who ask.
    pub(crate) fn holdings(self: &Arc<Self>, group: &str) -> Arc<Holdings> {
        let mut groups = self.groups.lock();
        if let Some(holdings) = groups.get(group).and_then(Weak::upgrade) {
            return holdings;
        }
        groups.retain(|_, holdings| holdings.strong_count() > 0);
        let group: Arc<str> = group.into();
        let holdings = Arc::new(Holdings {
            hosts: Arc::clone(self),
            group: Arc::clone(&group),
            places: Mutex::default(),
            taken_up: Mutex::default(),
        });
        groups.insert(group, Arc::downgrade(&holdings));
        holdings
    }

    /// Looks who is there: what changed counts from now on.
    pub(crate) fn notice(&self) {
        self.now();
    }

    /// Whether no other host was seen since this one began.
    pub(crate) fn are_one(&self) -> bool {
        self.notice();
        self.alone.load(Ordering::Relaxed)
    }

    /// The hosts, and for how long it has been those.
    fn now(&self) -> (Arc<[HostInfo]>, Duration) {
        let listed = self.listed.borrow().clone();
        let now = self.clock.monotonic();
        let mut known = self.known.lock();
        if known.0 != listed {
            *known = (listed, now);
        }
        if known.0.len() > 1 {
            self.alone.store(false, Ordering::Relaxed);
        }
        (known.0.clone(), now.saturating_sub(known.1))
    }

    /// Another host that is wanted there, if it is not this one.
    fn wanted_elsewhere(&self, group: &str, at: TopicPartition) -> Option<HostInfo> {
        if self.is_alone() {
            return None;
        }
        let (hosts, _) = self.now();
        // One that is taken for dead is wanted nowhere, and does not know it.
        let found = wanted(&hosts, group, at)?;
        (found.id != self.me).then(|| found.clone())
    }

    /// Whether this host is the only one now. Asked at each step of each worker.
    fn is_alone(&self) -> bool {
        let listed = self.listed.borrow();
        matches!(&**listed, [host] if host.id == self.me)
    }

    /// How long after hosts came or went what is held moves.
    pub(crate) fn moves_after(&self) -> Duration {
        self.moves_after
    }

    /// Wakes when hosts come or go.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.listed.clone()
    }
}

/// The host that is wanted for a group in a partition: the one with the highest weight, which is made of all three. So each host has about as many
/// as any other, and of what the others have nothing moves when one goes (D. Thaler and C. Ravishankar, *Using name-based mappings to
/// increase hit rates*, IEEE/ACM Transactions on Networking 6, 1998).
fn wanted<'a>(hosts: &'a [HostInfo], group: &str, at: TopicPartition) -> Option<&'a HostInfo> {
    hosts
        .iter()
        .max_by_key(|host| (weight(host.id, group, at), host.id))
}

/// The same on every host, whatever its version: FNV-1a (G. Fowler, L. C. Noll and K.-P. Vo) over all of it, then the finalizer of splitmix64 (G. Steele, D. Lea and C. Flood,
/// 2014), for FNV spreads its last bytes badly.
fn weight(host: HostId, group: &str, at: TopicPartition) -> u64 {
    let place = [at.topic.0, u64::from(at.partition.0), host.0].map(u64::to_le_bytes);
    let bytes = group.bytes().chain(place.into_iter().flatten());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What this host holds of a group's work.
pub(crate) struct Holdings {
    hosts: Arc<Hosts>,
    group: Arc<str>,
    places: Mutex<Places>,
    /// Work that the host that was wanted for it left lying: it stays here until hosts come or go.
    taken_up: Mutex<TakenUp>,
}

/// Among these hosts, these partitions.
#[derive(Default)]
struct TakenUp {
    among: Arc<[HostInfo]>,
    partitions: HashSet<TopicPartition>,
}

/// Where something is held, or is being taken.
#[derive(Default)]
struct Places {
    by_partition: HashMap<TopicPartition, Arc<Place>>,
    /// At so many, those where nothing is held are let go: topics and processors come and go.
    prune_at: usize,
}

/// What this host holds in a partition. Each has a lock of its own: taking one is a commit, and many are taken side by side.
#[derive(Default)]
struct Place {
    share: tokio::sync::Mutex<Weak<Share>>,
    /// Whether the work was left, and nothing has been committed since that was told: it is told again to whoever takes it next.
    is_left: AtomicBool,
}

/// A share of a hold: given back when the last one goes.
pub(crate) struct Share {
    /// `None` once it is given back.
    hold: Option<Hold>,
    /// Whether to do the work; else it was claimed, for as long as something takes.
    works: bool,
    /// Whether something that was committed under it is in doubt: only a new lease says what became of it.
    is_doubtful: AtomicBool,
    /// Calls of components that are under way: of the worker of the partition, and of what is sent again to it.
    calls: AtomicUsize,
    place: Arc<Place>,
    engine: Arc<dyn Engine>,
}

impl Holdings {
    /// The host that is to work there, if it is another one.
    pub(crate) fn elsewhere(&self, at: TopicPartition) -> Option<HostInfo> {
        let wanted = self.hosts.wanted_elsewhere(&self.group, at);
        wanted.filter(|_| !self.is_taken_up(at))
    }

    fn is_taken_up(&self, at: TopicPartition) -> bool {
        let taken_up = self.taken_up.lock();
        taken_up.partitions.contains(&at) && taken_up.among == self.hosts.now().0
    }

    /// After so long, work that another host is wanted for and does not do is taken up.
    pub(crate) fn taken_up_after(&self) -> Duration {
        TAKEN_UP_AFTER_MOVES * self.hosts.moves_after
    }

    /// Takes what another host is wanted for and does not hold, be it that it cannot; whether it did not.
    pub(crate) async fn take_up(
        &self,
        at: TopicPartition,
    ) -> Result<Option<Arc<Share>>, CommitError> {
        let share = self.take(at).await?;
        if share.is_some() {
            let mut taken_up = self.taken_up.lock();
            let (among, _) = self.hosts.now();
            if taken_up.among != among {
                taken_up.partitions.clear();
                taken_up.among = among;
            }
            taken_up.partitions.insert(at);
        }
        Ok(share)
    }

    /// Whether what is held here is to go to another host by now.
    pub(crate) fn moves(&self, at: TopicPartition) -> bool {
        if self.hosts.is_alone() {
            return false;
        }
        let (_, since) = self.hosts.now();
        since >= self.hosts.moves_after && self.elsewhere(at).is_some()
    }

    /// Takes what is to be worked at; `None` while somebody else has it.
    pub(crate) async fn take(&self, at: TopicPartition) -> Result<Option<Arc<Share>>, CommitError> {
        let place = self.place(at);
        let mut held = place.share.lock().await;
        if let Some(share) = live(&held) {
            // Only a hold to work says what was left.
            return Ok(share.works.then_some(share));
        }
        let hold = self.hosts.engine.hold(&self.group, at).await?;
        Ok(hold.map(|hold| {
            place.is_left.fetch_or(hold.left, Ordering::SeqCst);
            let share = self.share(&place, hold, true);
            *held = Arc::downgrade(&share);
            share
        }))
    }

    /// The right to write there, whoever works: this host's, if it has it, or claimed.
    pub(crate) async fn claim(&self, at: TopicPartition) -> Result<Arc<Share>, CommitError> {
        let place = self.place(at);
        let mut held = place.share.lock().await;
        if let Some(share) = live(&held) {
            return Ok(share);
        }
        let hold = self.hosts.engine.claim(&self.group, at).await?;
        let share = self.share(&place, hold, false);
        *held = Arc::downgrade(&share);
        Ok(share)
    }

    /// As [`Holdings::claim`], of several, in the same order.
    pub(crate) async fn claim_all(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<Vec<Arc<Share>>, CommitError> {
        let claims = partitions.into_iter().map(|at| self.claim(at));
        let claims = stream::iter(claims).buffered(CLAIMS_AT_ONCE_MAX);
        claims.try_collect().await
    }

    fn place(&self, at: TopicPartition) -> Arc<Place> {
        let mut places = self.places.lock();
        if let Some(place) = places.by_partition.get(&at) {
            return Arc::clone(place);
        }
        if places.by_partition.len() >= places.prune_at {
            let is_used = |place: &Arc<Place>| {
                let held = place.share.try_lock();
                let is_held = held.is_ok_and(|share| share.strong_count() > 0);
                Arc::strong_count(place) > 1 || is_held || place.is_left.load(Ordering::SeqCst)
            };
            places.by_partition.retain(|_, place| is_used(place));
            places.prune_at = PLACES_MIN.max(2 * places.by_partition.len());
        }
        let place = Arc::default();
        places.by_partition.insert(at, Arc::clone(&place));
        place
    }

    fn share(&self, place: &Arc<Place>, hold: Hold, works: bool) -> Arc<Share> {
        Arc::new(Share {
            hold: Some(hold),
            works,
            is_doubtful: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            place: Arc::clone(place),
            engine: Arc::clone(&self.hosts.engine),
        })
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.hosts.changes()
    }

    /// As [`Hosts::notice`].
    pub(crate) fn notice(&self) {
        self.hosts.notice();
    }

    /// How long after a change it is sure that what is to move is to move.
    pub(crate) fn moves_after(&self) -> Duration {
        self.hosts.moves_after + NUDGE_SLACK
    }
}

impl Share {
    /// Gives it back if this was the last one, so that another host need not wait.
    pub(crate) async fn leave(self: Arc<Self>) {
        if let Some(mut share) = Arc::into_inner(self)
            && let Some(hold) = share.hold.take()
        {
            give_back(Arc::clone(&share.engine), hold).await;
        }
    }

    pub(crate) fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// The right to commit. Of what was given back, none that counts.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.hold.as_ref().map(|hold| &hold.lease)
    }

    /// Whether whoever worked before ended without giving it back, and nothing was committed since.
    pub(crate) fn is_left(&self) -> bool {
        self.place.is_left.load(Ordering::SeqCst)
    }

    /// A component is going to be called. A worker that ends before it has [answered](Self::answered) is taken for one whose host ended.
    pub(crate) fn calls(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
    }

    /// A call is over, whatever came of it.
    pub(crate) fn answered(&self) {
        self.calls.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn is_lost(&self) -> bool {
        let is_doubtful = self.is_doubtful.load(Ordering::SeqCst);
        is_doubtful || self.hold.as_ref().is_none_or(Hold::is_lost)
    }

    /// Commits what names its lease. Once something of that is in doubt nothing more is committed under it: what this host knows of progress and
    /// state may be what was before.
    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        if let Some(lease) = self.lease().filter(|_| self.is_lost()) {
            return Err(CommitError::Fenced {
                group: Arc::clone(&lease.group),
                partition: lease.partition,
            });
        }
        // An operator's write says nothing of what was left.
        let is_work = self.works && transaction.progress.is_some();
        let committed = self.engine.commit(transaction).await;
        match &committed {
            Ok(_) if is_work => self.place.is_left.store(false, Ordering::SeqCst),
            Err(CommitError::InDoubt(_)) => self.is_doubtful.store(true, Ordering::SeqCst),
            _ => {}
        }
        committed
    }
}

/// A share that counts.
fn live(held: &Weak<Share>) -> Option<Arc<Share>> {
    held.upgrade().filter(|share| !share.is_lost())
}

impl Drop for Share {
    /// Of a worker that panicked or was cut off.
    fn drop(&mut self) {
        if self.calls.load(Ordering::SeqCst) > 0 {
            self.place.is_left.store(true, Ordering::SeqCst);
        }
        if let Some(hold) = self.hold.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(give_back(Arc::clone(&self.engine), hold));
        }
    }
}

/// As long as this host lives nobody else takes it: it is tried until the store is there again. Not waited for longer than a try.
async fn give_back(engine: Arc<dyn Engine>, hold: Hold) {
    if is_given_back(&*engine, &hold).await {
        return;
    }
    tokio::spawn(async move {
        let (mut backoff, mut rng) = (Backoff::default(), fastrand::Rng::new());
        while !is_given_back(&*engine, &hold).await {
            tokio::time::sleep(backoff.next(&mut rng)).await;
        }
    });
}

/// Or lost, or left for whoever comes after this host.
async fn is_given_back(engine: &dyn Engine, hold: &Hold) -> bool {
    let given = engine.release(hold.clone()).await;
    let is_passing = matches!(
        given,
        Err(CommitError::Unavailable(_) | CommitError::InDoubt(_))
    );
    !is_passing || hold.is_lost()
}

/// Tells the workers when hosts come or go, and again when work is to move.
pub(crate) async fn follow(
    broker: Weak<Inner>,
    moves_after: Duration,
    mut hosts: watch::Receiver<Arc<[HostInfo]>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut wait = None;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            // No engine, no hosts.
            changed = hosts.changed() => match changed {
                Ok(()) => wait = Some(moves_after + NUDGE_SLACK),
                Err(_) => return,
            },
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => wait = None,
        }
        match broker.upgrade() {
            Some(inner) => {
                inner.hosts.notice();
                inner.supervisor.nudge_all();
            }
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use millrace_engine::{MemoryEngine, ProgressWrite};
    use millrace_model::{
        Durability, PartitionId, SystemClock, Timestamp, TopicId, TopicName, TopicSettings,
        TopicSpec,
    };

    use super::*;

    fn hosts(ids: impl IntoIterator<Item = u64>) -> Vec<HostInfo> {
        let host = |id| HostInfo {
            id: HostId(id),
            address: "".into(),
        };
        ids.into_iter().map(host).collect()
    }

    /// The worker of a partition and the one of what is sent again to it share what they hold.
    #[tokio::test]
    async fn a_worker_that_ends_in_a_call_leaves_it_to_the_next() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let engine = MemoryEngine::new(Arc::clone(&clock));
        let spec = TopicSpec {
            name: TopicName::parse("in").unwrap(),
            partitions: 1,
            durability: Durability::Os,
            partitioner: None,
            owner: None,
            created_at: Timestamp(0),
            settings: TopicSettings::default(),
        };
        let topic = engine.create_topic(spec).await.unwrap();
        let at = topic.partition(PartitionId(0)).unwrap();
        let holdings = Hosts::new(engine, clock, MOVES_AFTER).holdings("p");
        let take = async || holdings.take(at).await.unwrap().unwrap();

        let (one, other) = (take().await, take().await);
        one.calls();
        other.calls();
        one.answered();
        one.leave().await;
        // It ends without a word, as one that panicked.
        drop(other);
        let next = take().await;
        assert!(next.is_left());
        next.leave().await;
        assert!(take().await.is_left(), "until something is committed");

        let share = take().await;
        let progress = ProgressWrite {
            lease: share.lease().unwrap().clone(),
            partition: at,
            progress: Arc::default(),
        };
        let transaction = Transaction {
            progress: Some(progress),
            ..Transaction::default()
        };
        share.commit(transaction).await.unwrap();
        assert!(!share.is_left());
    }

    fn all() -> impl Iterator<Item = TopicPartition> {
        (0..300).map(|number| TopicPartition {
            topic: TopicId(number / 30 + 1),
            partition: PartitionId((number % 30) as u32),
        })
    }

    fn places(hosts: &[HostInfo]) -> Vec<HostId> {
        let place = |at| wanted(hosts, "p", at).unwrap().id;
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
        assert!(wanted(&[], "p", all().next().unwrap()).is_none());
    }

    #[test]
    fn processors_of_the_same_topic_are_spread_as_well() {
        let two = hosts([1, 2]);
        let at = all().next().unwrap();
        let names: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
        let wanted = names.iter().map(|name| wanted(&two, name, at).unwrap().id);
        let first = wanted.filter(|id| id.0 == 1).count();
        assert!((10..=30).contains(&first), "{first} of 40");
    }
}
