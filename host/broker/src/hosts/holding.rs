//! What this host holds: a worker holds its partition so that no other host works on it. The same
//! host processes the partition's redriven messages, under the same hold. An operator's write uses
//! the hold, or claims it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use millrace_engine::{CommitError, Engine, Hold, HostInfo, Lease, Receipt, Transaction};
use millrace_model::{GroupName, Offset, Timestamp, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::ground::backoff::Backoff;
use crate::hosts::living::Hosts;

/// Work that its preferred host leaves undone is taken over after this many times the moving delay.
const TAKEN_UP_AFTER_MOVES: u32 = 12;
/// Below this number of places, entries without a hold are not looked for.
const PLACES_MIN: usize = 64;
/// How often to check whether another host has released its hold.
const REST_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Claims that are made concurrently.
const CLAIMS_AT_ONCE_MAX: usize = 64;

/// What this host holds of a group's work.
pub(crate) struct Holdings {
    this: Weak<Self>,
    hosts: Arc<Hosts>,
    group: GroupName,
    places: Mutex<Places>,
    /// Work that its preferred host left undone: it stays here until hosts join or leave.
    taken_up: Mutex<TakenUp>,
}

/// The partitions, and the set of hosts for which they were taken up; for another set this no
/// longer counts.
#[derive(Default)]
struct TakenUp {
    among: Arc<[HostInfo]>,
    partitions: HashSet<TopicPartition>,
}

/// Partitions where something is held, or is being taken.
#[derive(Default)]
struct Places {
    by_partition: HashMap<TopicPartition, Arc<Place>>,
    /// Above this size, entries without a hold are removed: topics and processors come and go.
    prune_at: usize,
}

/// This host's hold of a partition. Each has its own lock: taking one is a commit, and many are taken concurrently.
#[derive(Default)]
struct Place {
    share: tokio::sync::Mutex<Weak<Share>>,
    /// Whether the previous worker's host ended, and nothing was committed here since the last
    /// worker learnt that. If so, the next worker learns it too.
    is_left: AtomicBool,
    /// Whether it is being found out if this host has taken the hold.
    is_settling: AtomicBool,
    /// Marks that this host was committing, by the worker's partition, as long as it is unknown
    /// whether they were committed. A mark precedes a call. Because this host has not ended, such a
    /// mark is no evidence against its message, wherever it is found.
    doubtful_marks: Mutex<HashMap<TopicPartition, Mark>>,
}

/// A message that is called alone, and when the mark was made.
type Mark = (Offset, Timestamp);

/// A share of a hold, which is released with its last share.
pub(crate) struct Share {
    /// `None` once it is released.
    hold: Option<Hold>,
    /// Whether it is for the work; otherwise it is a claim for one action.
    works: bool,
    /// Whether a commit under it is in doubt: only a new lease reveals its result.
    is_doubtful: AtomicBool,
    /// Running component calls by the partition's worker and for its redriven messages.
    calls: AtomicUsize,
    place: Arc<Place>,
    engine: Arc<dyn Engine>,
}

impl Holdings {
    pub(crate) fn new(hosts: Arc<Hosts>, group: GroupName) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            hosts,
            group,
            places: Mutex::default(),
            taken_up: Mutex::default(),
        })
    }

    /// The preferred host of the partition, if that is another one.
    pub(crate) fn elsewhere(&self, at: TopicPartition) -> Option<HostInfo> {
        let wanted = self.hosts.wanted_elsewhere(&self.group, at);
        wanted.filter(|_| !self.is_taken_up(at))
    }

    pub(crate) fn is_taken_up(&self, at: TopicPartition) -> bool {
        let taken_up = self.taken_up.lock();
        taken_up.partitions.contains(&at) && taken_up.among == self.hosts.now().0
    }

    /// After this time, work that its preferred host does not do is taken over.
    pub(crate) fn taken_up_after(&self) -> Duration {
        TAKEN_UP_AFTER_MOVES * self.hosts.moves_after()
    }

    /// Takes work that another host should do, unless that host or any other holds it: it may be unable to do it. The work then stays
    /// here until hosts join or leave.
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
            self.hosts.taken_up(1);
        }
        Ok(share)
    }

    /// Whether this host's work here should move to another host by now.
    pub(crate) fn moves(&self, at: TopicPartition) -> bool {
        if self.hosts.is_alone() {
            return false;
        }
        let (_, since) = self.hosts.now();
        since >= self.hosts.moves_after() && self.elsewhere(at).is_some()
    }

    /// Takes a hold for work; `None` while another host has it.
    pub(crate) async fn take(&self, at: TopicPartition) -> Result<Option<Arc<Share>>, CommitError> {
        let place = self.place(at);
        let mut held = place.share.lock().await;
        if let Some(share) = live(&held) {
            // Only a hold for work reports what was left.
            return Ok(share.works.then_some(share));
        }
        let hold = self.hosts.engine().hold(&self.group, at).await;
        let hold = hold.inspect_err(|error| self.settle(at, &place, error))?;
        Ok(hold.map(|hold| {
            place.is_left.fetch_or(hold.left, Ordering::SeqCst);
            let share = self.share(&place, hold, true);
            *held = Arc::downgrade(&share);
            share
        }))
    }

    /// A lease to write there, whoever works: this host's if it has the hold, otherwise a claim.
    pub(crate) async fn claim(&self, at: TopicPartition) -> Result<Arc<Share>, CommitError> {
        let place = self.place(at);
        let mut held = place.share.lock().await;
        if let Some(share) = live(&held) {
            return Ok(share);
        }
        let hold = self.hosts.engine().claim(&self.group, at).await;
        let hold = hold.inspect_err(|error| self.settle(at, &place, error))?;
        let share = self.share(&place, hold, false);
        *held = Arc::downgrade(&share);
        Ok(share)
    }

    /// A hold that could not be taken may have been taken all the same. No other host takes it as long as this one lives, and this host may not
    /// want it when the store is back. So it is taken again until the store answers, and given back unless somebody here uses it by then.
    fn settle(&self, at: TopicPartition, place: &Place, error: &CommitError) {
        if !is_passing(error) || place.is_settling.swap(true, Ordering::SeqCst) {
            return;
        }
        let this = Weak::clone(&self.this);
        tokio::spawn(async move {
            let (mut backoff, mut rng) = (Backoff::default(), fastrand::Rng::new());
            loop {
                tokio::time::sleep(backoff.next(&mut rng)).await;
                let Some(holdings) = this.upgrade() else {
                    return;
                };
                let taken = holdings.take(at).await;
                if let Ok(Some(share)) = taken {
                    share.leave().await;
                } else if taken.is_err_and(|error| is_passing(&error)) {
                    continue;
                }
                let place = holdings.place(at);
                place.is_settling.store(false, Ordering::SeqCst);
                return;
            }
        });
    }

    /// Like [`Holdings::claim`], for several, in the same order.
    pub(crate) async fn claim_all(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<Vec<Arc<Share>>, CommitError> {
        let claims = partitions.into_iter().map(|at| self.claim(at));
        let claims = stream::iter(claims).buffered(CLAIMS_AT_ONCE_MAX);
        claims.try_collect().await
    }

    /// Waits until no other living host works on any of these partitions. To find out, it briefly
    /// takes a hold of each one.
    pub(crate) async fn rest(self: &Arc<Self>, partitions: Vec<TopicPartition>) {
        let rests = |at| async move {
            while !self.rests(at).await {
                tokio::time::sleep(REST_LOOK_INTERVAL).await;
            }
        };
        let all = stream::iter(partitions);
        all.for_each_concurrent(CLAIMS_AT_ONCE_MAX, rests).await;
    }

    /// Whether no other living host works there.
    async fn rests(self: &Arc<Self>, at: TopicPartition) -> bool {
        if self.hosts.is_alone() {
            return true;
        }
        let holdings = Arc::clone(self);
        // A task of its own runs to its end even if the caller goes away, so that a hold it took is
        // released.
        let asked = tokio::spawn(async move {
            match holdings.take(at).await {
                Ok(Some(share)) => {
                    share.leave().await;
                    true
                }
                Err(CommitError::UnknownPartition(_)) => true,
                Ok(None) | Err(_) => false,
            }
        });
        asked.await.unwrap_or(false)
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
            engine: Arc::clone(self.hosts.engine()),
        })
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.hosts.changes()
    }

    /// See [`Hosts::notice`].
    pub(crate) fn notice(&self) {
        self.hosts.notice();
    }

    /// See [`Hosts::moved_after`].
    pub(crate) fn moved_after(&self) -> Duration {
        self.hosts.moved_after()
    }
}

impl Share {
    /// Releases the hold with its last share, so that another host need not wait.
    pub(crate) async fn leave(self: Arc<Self>) {
        if let Some(mut share) = Arc::into_inner(self)
            && let Some(mut hold) = share.hold.take()
        {
            let place = Arc::clone(&share.place);
            // Otherwise the next taker here would take it from this host, and the report of what was left would be lost.
            let held = place.share.lock().await;
            hold.left = held.strong_count() == 0 && share.is_left();
            let tells = hold.left;
            if give_back(Arc::clone(&share.engine), hold).await && tells {
                place.is_left.store(false, Ordering::SeqCst);
            }
        }
    }

    /// The lease to commit with. After a release, one that is not valid.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.hold.as_ref().map(|hold| &hold.lease)
    }

    /// Whether the previous worker ended without releasing the hold, and nothing was committed since.
    pub(crate) fn is_left(&self) -> bool {
        self.place.is_left.load(Ordering::SeqCst)
    }

    /// A component is about to be called. If the worker ends before it has
    /// [answered](Self::answered), the next worker is told the same as if the host had ended.
    pub(crate) fn calls(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
    }

    /// A call is over, whatever its result.
    pub(crate) fn answered(&self) {
        self.calls.fetch_sub(1, Ordering::SeqCst);
    }

    /// A mark is going to be committed for a worker at this partition.
    pub(crate) fn marks(&self, at: TopicPartition, mark: Mark) {
        self.place.doubtful_marks.lock().insert(at, mark);
    }

    /// It is committed: from now on it counts if this host ends.
    pub(crate) fn marked(&self, at: TopicPartition) {
        self.place.doubtful_marks.lock().remove(&at);
    }

    /// The last mark for a worker at this partition, if it is not known to be committed. No call followed it.
    pub(crate) fn doubtful_mark(&self, at: TopicPartition) -> Option<Mark> {
        self.place.doubtful_marks.lock().get(&at).copied()
    }

    pub(crate) fn is_lost(&self) -> bool {
        let is_doubtful = self.is_doubtful.load(Ordering::SeqCst);
        is_doubtful || self.hold.as_ref().is_none_or(Hold::is_lost)
    }

    /// Commits under the leases of all these shares, as [`Share::commit`] does under one.
    pub(crate) async fn commit_together(
        shares: &[Arc<Self>],
        engine: &dyn Engine,
        transaction: Transaction,
    ) -> Result<Receipt, CommitError> {
        for share in shares {
            share.check_kept()?;
        }
        let committed = engine.commit(transaction).await;
        if let Err(CommitError::InDoubt(_)) = &committed {
            for share in shares {
                share.is_doubtful.store(true, Ordering::SeqCst);
            }
        }
        committed
    }

    fn check_kept(&self) -> Result<(), CommitError> {
        match self.lease().filter(|_| self.is_lost()) {
            None => Ok(()),
            Some(lease) => Err(CommitError::Fenced {
                group: lease.group.clone(),
                partition: lease.partition,
            }),
        }
    }

    /// Commits under the lease. Once a commit is in doubt, nothing more is committed under it: this host's view of progress and state
    /// may be outdated.
    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        self.check_kept()?;
        // An operator's write does not settle what was left.
        let is_work = self.works && !transaction.progress.is_empty();
        let committed = self.engine.commit(transaction).await;
        match &committed {
            Ok(_) if is_work => self.place.is_left.store(false, Ordering::SeqCst),
            Err(CommitError::InDoubt(_)) => self.is_doubtful.store(true, Ordering::SeqCst),
            _ => {}
        }
        committed
    }
}

/// A valid share.
fn live(held: &Weak<Share>) -> Option<Arc<Share>> {
    held.upgrade().filter(|share| !share.is_lost())
}

impl Drop for Share {
    /// Not released by the worker, which panicked or was cut off.
    fn drop(&mut self) {
        if self.calls.load(Ordering::SeqCst) > 0 {
            self.place.is_left.store(true, Ordering::SeqCst);
        }
        if let Some(mut hold) = self.hold.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            hold.left = self.is_left();
            runtime.spawn(give_back(Arc::clone(&self.engine), hold));
        }
    }
}

/// While this host lives no other takes the hold, so the release is retried until the store is back. Waits for one try only; returns
/// whether that was enough.
async fn give_back(engine: Arc<dyn Engine>, hold: Hold) -> bool {
    if is_given_back(&*engine, &hold).await {
        return true;
    }
    tokio::spawn(async move {
        let (mut backoff, mut rng) = (Backoff::default(), fastrand::Rng::new());
        while !is_given_back(&*engine, &hold).await {
            tokio::time::sleep(backoff.next(&mut rng)).await;
        }
    });
    false
}

/// Whether the release is settled: the store says that this host has it no more. That this host considers it lost is not enough: as long as it
/// lives, no other takes what the store says it has.
async fn is_given_back(engine: &dyn Engine, hold: &Hold) -> bool {
    let given = engine.release(hold.clone()).await;
    !given.is_err_and(|error| is_passing(&error))
}

/// Whether the store may answer later.
fn is_passing(error: &CommitError) -> bool {
    matches!(error, CommitError::Unavailable(_) | CommitError::InDoubt(_))
}

#[cfg(test)]
mod tests {
    use millrace_engine::hooked::{Hooked, Hooks};
    use millrace_engine::{MemoryEngine, ProgressWrite};
    use millrace_model::{
        Clock, Durability, PartitionId, ProcessorName, Progress, SystemClock, Timestamp, TopicName,
        TopicSettings, TopicSpec,
    };

    use super::*;
    use crate::hosts::living::MOVES_AFTER;

    async fn partition(engine: &dyn Engine) -> TopicPartition {
        let spec = TopicSpec {
            name: TopicName::parse("in").unwrap(),
            partitions: 1,
            durability: Durability::Os,
            partitioner: None,
            owner: None,
            created_at: Timestamp(0),
            settings: TopicSettings::default(),
        };
        let topic = engine.create_topic(spec, Vec::new()).await.unwrap();
        topic.partition(PartitionId(0)).unwrap()
    }

    fn holdings(engine: Arc<impl Engine + 'static>) -> Arc<Holdings> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let hosts = Hosts::new(engine, clock, MOVES_AFTER);
        hosts.holdings(&ProcessorName::parse("p").unwrap().group())
    }

    /// As a pause does, which briefly holds partitions that other hosts should work at.
    #[tokio::test]
    async fn what_was_left_is_told_on_by_whoever_did_nothing_with_it() {
        let dead = MemoryEngine::new(Arc::new(SystemClock::new()));
        let at = partition(&*dead).await;
        let [one, other] = [dead.second_host(), dead.second_host()].map(holdings);
        let share = holdings(Arc::clone(&dead)).take(at).await.unwrap();
        let share = share.expect("nobody has it");
        assert!(one.take(at).await.unwrap().is_none());
        dead.die();
        for _ in 0..3 {
            for holdings in [&one, &other] {
                let taken = holdings.take(at).await.unwrap().expect("its host is dead");
                assert!(taken.is_left());
                taken.leave().await;
            }
        }
        let taken = one.take(at).await.unwrap().unwrap();
        let progress = ProgressWrite {
            lease: taken.lease().unwrap().clone(),
            partition: at,
            progress: Progress::default().into(),
        };
        let transaction = Transaction {
            progress: vec![progress],
            ..Transaction::default()
        };
        taken.commit(transaction).await.unwrap();
        taken.leave().await;
        for holdings in [&other, &one] {
            let taken = holdings.take(at).await.unwrap().expect("given back");
            assert!(!taken.is_left(), "something was done since");
            taken.leave().await;
        }
        drop(share);
    }

    /// A store that does what it is asked, and says so late.
    struct Late {
        engine: Arc<MemoryEngine>,
        late: AtomicUsize,
    }

    impl Late {
        fn answer<T>(&self, done: Result<T, CommitError>) -> Result<T, CommitError> {
            let late = self
                .late
                .try_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            match late {
                Ok(_) => Err(CommitError::InDoubt("no answer".into())),
                Err(_) => done,
            }
        }
    }

    #[async_trait::async_trait]
    impl Hooks for Late {
        fn engine(&self) -> &dyn Engine {
            &*self.engine
        }

        async fn hold(
            &self,
            group: &GroupName,
            at: TopicPartition,
        ) -> Result<Option<Hold>, CommitError> {
            self.answer(self.engine.hold(group, at).await)
        }

        async fn claim(&self, group: &GroupName, at: TopicPartition) -> Result<Hold, CommitError> {
            self.answer(self.engine.claim(group, at).await)
        }
    }

    #[tokio::test]
    async fn what_was_taken_without_an_answer_is_given_back() {
        let engine = MemoryEngine::new(Arc::new(SystemClock::new()));
        let at = partition(&*engine).await;
        let other = holdings(engine.second_host());
        let late = Arc::new(Late {
            engine,
            late: AtomicUsize::new(0),
        });
        let one = holdings(Arc::new(Hooked(Arc::clone(&late))));
        for claims in [false, true] {
            late.late.store(2, Ordering::SeqCst);
            let refused = match claims {
                true => one.claim(at).await.map(|_| ()),
                false => one.take(at).await.map(|_| ()),
            };
            assert!(matches!(refused, Err(CommitError::InDoubt(_))));
            assert!(other.take(at).await.unwrap().is_none());
            let taken = loop {
                if let Some(taken) = other.take(at).await.unwrap() {
                    break taken;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            taken.leave().await;
            // What somebody here has by then stays.
            late.late.store(1, Ordering::SeqCst);
            assert!(one.take(at).await.is_err());
            let used = one.take(at).await.unwrap().expect("it is this host's");
            while one.place(at).is_settling.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(!used.is_lost());
            assert!(other.take(at).await.unwrap().is_none());
            used.leave().await;
        }
    }

    /// The share of dead letters that a host may make follows from this.
    #[tokio::test]
    async fn work_that_is_taken_up_counts_as_this_hosts() {
        let engine = MemoryEngine::new(Arc::new(SystemClock::new()));
        let at = partition(&*engine).await;
        let all = [Arc::clone(&engine), engine.second_host()].map(holdings);
        let wanted = |held: &Arc<Holdings>| held.hosts.wanted_here(&held.group, &[at]);
        let other = all.iter().find(|held| held.elsewhere(at).is_some());
        let other = other.expect("one of them is preferred");
        let count = other.hosts.taken_up(0);
        assert_eq!(wanted(other), 0);
        let share = other.take_up(at).await.unwrap().expect("nobody has it");
        assert_eq!(wanted(other), 1);
        assert_ne!(other.hosts.taken_up(0), count);
        share.leave().await;
    }

    /// The worker of a partition and the worker of its redriven messages share a hold.
    #[tokio::test]
    async fn a_worker_that_ends_in_a_call_leaves_it_to_the_next() {
        let engine = MemoryEngine::new(Arc::new(SystemClock::new()));
        let at = partition(&*engine).await;
        let holdings = holdings(engine);
        let take = async || holdings.take(at).await.unwrap().unwrap();

        let (one, other) = (take().await, take().await);
        one.calls();
        other.calls();
        one.answered();
        one.leave().await;
        // It ends without releasing anything, like one that panicked.
        drop(other);
        let next = take().await;
        assert!(next.is_left());
        next.leave().await;
        assert!(take().await.is_left(), "until something is committed");

        let share = take().await;
        let progress = ProgressWrite {
            lease: share.lease().unwrap().clone(),
            partition: at,
            progress: Progress::default().into(),
        };
        let transaction = Transaction {
            progress: vec![progress],
            ..Transaction::default()
        };
        share.commit(transaction).await.unwrap();
        assert!(!share.is_left());
    }
}
