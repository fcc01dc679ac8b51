//! The contract in its shortest form: everything in memory, behind one lock, lost with the process.
//!
//! For tests, and for reading: it settles questions about what [`contract`](crate::contract) means. A transaction checks everything
//! first and then changes everything, under the lock, so it is atomic; durability is whatever is possible without a disk.
//! [`MemoryEngine::second_host`] returns another host on the same store, which learns of changes late.

mod hosts;
mod link;
mod store;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use millrace_model::{
    Clock, Digest, GroupName, Offset, ProducerId, Progress, RecordBatch, Timestamp, Topic, TopicId,
    TopicName, TopicPartition, TopicSpec,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use self::hosts::{Mirror, Seen, Store};
pub use self::link::Doubt;
use self::link::{CUT, Link};
use self::store::{Holder, Partition, State};
use crate::contract::{
    AdoptError, Adoption, CommitError, Ends, Engine, Entry, EntryKind, Expectation, GroupProgress,
    Hold, HostId, HostInfo, Lease, Limits, ReadError, Receipt, TopicChange, TopicError,
    Transaction, TrimError, Version, Watch, changed, check_partitions,
};
use crate::idempotence::{Idempotence, Judgement, Overlay};
use crate::room::{HostBounds, Room};
use crate::state::{StatePage, StateQuery, StateTable};
use crate::time::first_at;

/// A host on an engine without a disk.
pub struct MemoryEngine {
    store: Arc<Store>,
    host: HostId,
    closed: AtomicBool,
    /// What this host has heard; `None` if it sees the current state.
    mirror: Option<Mutex<Mirror>>,
    /// How it reaches the store.
    link: Link,
    /// The host that last replaced this one, if it was ever restarted.
    place: Arc<Mutex<Weak<MemoryEngine>>>,
}

impl MemoryEngine {
    /// The one host on an empty store.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::bounded(clock, HostBounds::default())
    }

    /// Like [`MemoryEngine::new`], with these bounds.
    #[must_use]
    pub fn bounded(clock: Arc<dyn Clock>, bounds: HostBounds) -> Arc<Self> {
        Self::on(clock, bounds, 0)
    }

    /// Like [`MemoryEngine::new`], but skips this many offsets after each batch, as engines may.
    #[must_use]
    pub fn with_gaps(clock: Arc<dyn Clock>, gap: u64) -> Arc<Self> {
        Self::on(clock, HostBounds::default(), gap)
    }

    fn on(clock: Arc<dyn Clock>, bounds: HostBounds, gap: u64) -> Arc<Self> {
        let state = State {
            room: Room::new(bounds),
            idempotence: Idempotence::default().within(&bounds),
            gap,
            ..State::default()
        };
        let store = Store::new(state, clock);
        Arc::new(Self {
            host: store.join(),
            store,
            closed: AtomicBool::new(false),
            mirror: None,
            link: Link::default(),
            place: Arc::default(),
        })
    }

    /// The state for a change.
    fn open(&self) -> Result<MutexGuard<'_, State>, CommitError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(CommitError::Closed);
        }
        self.link.check()?;
        Ok(self.store.state.lock())
    }

    /// The state for a read.
    fn look(&self) -> Result<MutexGuard<'_, State>, ReadError> {
        let reached = self.link.check();
        reached.map_err(|_| ReadError::Unavailable(CUT.into()))?;
        Ok(self.store.state.lock())
    }

    /// The state, with the current time.
    fn now(&self) -> Result<MutexGuard<'_, State>, CommitError> {
        let mut state = self.open()?;
        state.idempotence.apply_moment(self.store.clock.wall());
        Ok(state)
    }

    /// The catalogue as this host sees it.
    fn seen<T>(&self, look: impl FnOnce(Seen<'_>) -> T) -> T {
        match &self.mirror {
            Some(mirror) => look(mirror.lock().seen()),
            None => look(Seen::of(&self.store.state.lock())),
        }
    }

    /// This host's own changes are visible when they return.
    fn hear(&self, state: &State) {
        if let Some(mirror) = &self.mirror {
            let is_deaf = self.link.is_deaf.load(Ordering::SeqCst);
            mirror.lock().hear(state, is_deaf);
        }
    }
}

impl MemoryEngine {
    fn commit_now(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        let mut state = self.now()?;
        state.check_appends(&transaction)?;
        let overlay = Overlay::default();
        let mark = transaction.request.as_ref();
        let judged = state
            .idempotence
            .judge(&overlay, &transaction.appends, mark)?;
        let producers = &state.idempotence.producers;
        if let Judgement::Repeat(mut receipt) = judged {
            receipt.producer = transaction
                .producer
                .and_then(|of| producers.named(&of.name));
            return Ok(receipt);
        }
        let next = transaction.producer.as_ref();
        let next = next.map(|next| producers.decide_next(next)).transpose()?;
        for write in &transaction.progress {
            state.check_lease(&write.lease)?;
            state.check_partition(write.partition)?;
        }
        for fence in &transaction.fences {
            state.check_lease(fence)?;
        }
        state.check_state(&transaction.state)?;
        state.check_expectations(&transaction.expects)?;
        state.check_room(&transaction.state)?;
        let receipt = state.apply(transaction, next);
        self.hear(&state);
        Ok(receipt)
    }
}

impl MemoryEngine {
    /// Simulates that the host lost its connection to the store (or got it back): it can read, commit and hear nothing.
    pub fn cut_off(&self, is_cut: bool) {
        self.link.is_cut.store(is_cut, Ordering::SeqCst);
    }

    /// Simulates that no catalogue changes arrive, while everything else works.
    pub fn deafen(&self, is_deaf: bool) {
        self.link.is_deaf.store(is_deaf, Ordering::SeqCst);
    }

    /// The answer to the next commit is lost. For a host that is not a [second](Self::second_host) one, a late commit stays late
    /// forever.
    pub fn doubt(&self, doubt: Doubt) {
        self.link.doubts.lock().push(doubt);
    }
}

impl Drop for MemoryEngine {
    /// A process that ended is considered dead.
    fn drop(&mut self) {
        self.store.leave(self.host);
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn commit(&self, mut transaction: Transaction) -> Result<Receipt, CommitError> {
        let committed = match self.link.doubt() {
            None => return self.commit_now(transaction),
            Some(Doubt::Done) => self.commit_now(transaction).map(drop),
            Some(Doubt::Late) => {
                // Turns end with the answer; after that only a newer lease keeps others out.
                transaction.turns.clear();
                self.link.late.lock().push(transaction);
                Ok(())
            }
            Some(Doubt::Lost) => Ok(()),
        };
        committed?;
        Err(CommitError::InDoubt(CUT.into()))
    }

    async fn health(&self) -> Result<(), CommitError> {
        self.open().map(drop)
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        self.look()?.partition(partition)?.read(from, bytes_max)
    }

    fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError> {
        match &self.mirror {
            Some(mirror) => mirror.lock().watch(partition),
            None => {
                let state = self.store.state.lock();
                Ok(Watch::new(state.partition(partition)?.end.subscribe()))
            }
        }
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        match &self.mirror {
            Some(mirror) => mirror.lock().ends(partition),
            None => Ok(self.store.state.lock().partition(partition)?.ends()),
        }
    }

    async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError> {
        let state = self.look()?;
        let partition = state.partition(partition)?;
        let from = from.max(partition.start);
        let messages = |batch: &RecordBatch| batch.messages_within(from, to);
        Ok(partition.batches.iter().map(messages).sum())
    }

    fn limits(&self) -> Limits {
        Limits {
            transaction_bytes_max: usize::MAX,
        }
    }

    async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError> {
        let mut state = self.open()?;
        let group = group.clone();
        let claimed = state.group(&group, partition)?;
        claimed.leave_if(|holder| !self.store.lives(holder));
        claimed.holder = Some(Holder {
            host: self.host,
            works: false,
        });
        Ok(claimed.take(&group, partition, false))
    }

    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError> {
        let mut state = self.open()?;
        let group = group.clone();
        let held = state.group(&group, partition)?;
        held.leave_if(|holder| !self.store.lives(holder));
        if held.holder.is_some_and(|holder| holder.host != self.host) {
            return Ok(None);
        }
        held.holder = Some(Holder {
            host: self.host,
            works: true,
        });
        let left = std::mem::take(&mut held.left);
        Ok(Some(held.take(&group, partition, left)))
    }

    async fn release(&self, hold: Hold) -> Result<(), CommitError> {
        let mut state = self.open()?;
        let Lease {
            group,
            partition,
            epoch,
        } = hold.lease;
        let held = state.group(&group, partition)?;
        if held.epoch == epoch {
            held.holder = None;
            held.left |= hold.left;
        }
        Ok(())
    }

    fn host(&self) -> HostId {
        self.host
    }

    fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.store.hosts.subscribe()
    }

    async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, CommitError> {
        let mut state = self.now()?;
        let given = state.idempotence.producers.decide(name)?;
        state.idempotence.give(given, name.map(Arc::from));
        Ok(given)
    }

    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        let state = self.look()?;
        let group = state.partition(partition)?.groups.get(group);
        let progress = group.and_then(|group| group.progress.as_deref());
        Ok(progress.cloned())
    }

    async fn progress_at_once(
        &self,
        groups: &[GroupName],
    ) -> Result<Option<Vec<GroupProgress>>, ReadError> {
        let state = self.look()?;
        let mut all = Vec::new();
        for (&partition, kept) in &state.partitions {
            for group in groups {
                let known = kept.groups.get(group);
                if let Some(progress) = known.and_then(|known| known.progress.as_deref()) {
                    all.push(GroupProgress {
                        group: group.clone(),
                        partition,
                        progress: progress.clone(),
                    });
                }
            }
        }
        Ok(Some(all))
    }

    async fn groups(&self, partition: TopicPartition) -> Result<Vec<GroupName>, ReadError> {
        let state = self.look()?;
        let groups = state.partition(partition)?.groups.iter();
        let with_progress = groups.filter(|(_, group)| group.progress.is_some());
        let mut names: Vec<_> = with_progress.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn progress_partitions(
        &self,
        group: &GroupName,
    ) -> Result<Vec<TopicPartition>, ReadError> {
        let state = self.look()?;
        let has_progress = |partition: &Partition| {
            let group = partition.groups.get(group);
            group.is_some_and(|group| group.progress.is_some())
        };
        let found = state.partitions.iter().filter(|(_, p)| has_progress(p));
        let mut found: Vec<_> = found.map(|(partition, _)| *partition).collect();
        found.sort_unstable();
        Ok(found)
    }

    async fn state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<StateTable>, ReadError> {
        let mut state = self.look()?;
        state.partition(partition)?;
        let table = state.table(group, partition);
        Ok(match &self.mirror {
            Some(mirror) => mirror.lock().table(group, partition, &table),
            None => table,
        })
    }

    fn watch_state(&self, group: &GroupName) -> watch::Receiver<u64> {
        self.store.state.lock().writes_of(group).subscribe()
    }

    async fn read_state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        let state = self.look()?;
        let Some(group) = state.partition(partition)?.groups.get(group) else {
            return Ok(StatePage::default());
        };
        let progress = group.progress.as_ref();
        let page = group.state.as_ref().map(|table| table.page(query));
        let page = page.transpose()?;
        Ok(StatePage {
            as_of: progress.map(|p| p.next).unwrap_or_default(),
            ..page.unwrap_or_default()
        })
    }

    async fn state_partitions(&self, group: &GroupName) -> Result<Vec<TopicPartition>, ReadError> {
        let state = self.look()?;
        let has_entries = |partition: &Partition| {
            let group = partition.groups.get(group);
            let table = group.and_then(|group| group.state.as_ref());
            table.is_some_and(|table| table.size().entries > 0)
        };
        let found = state.partitions.iter().filter(|(_, p)| has_entries(p));
        let mut found: Vec<_> = found.map(|(partition, _)| *partition).collect();
        found.sort_unstable();
        Ok(found)
    }

    async fn create_topic(
        &self,
        spec: TopicSpec,
        expects: Vec<Expectation>,
    ) -> Result<Topic, TopicError> {
        let mut state = self.open()?;
        state.check_expectations(&expects)?;
        let made = state.create_topic(spec)?;
        self.hear(&state);
        Ok(made)
    }

    async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError> {
        let mut state = self.open()?;
        state.check_expectations(&expects)?;
        let (topics, more) = changed(changes, |name| state.topics.get(name).cloned())?;
        if more > 0 {
            let partitions = state.partitions.len();
            check_partitions(&state.room, partitions, more)?;
        }
        for topic in &topics {
            for partition in topic.partitions() {
                state.partitions.entry(partition).or_default();
            }
            state.topics.insert(topic.spec.name.clone(), topic.clone());
        }
        state.catalogue_changed();
        self.hear(&state);
        Ok(topics)
    }

    async fn trim(&self, partition: TopicPartition, before: Offset) -> Result<Offset, TrimError> {
        let mut state = self.open()?;
        let unknown = CommitError::UnknownPartition(partition);
        let found = state.partitions.get_mut(&partition);
        let start = found.ok_or(unknown)?.trim(before)?;
        self.hear(&state);
        Ok(start)
    }

    async fn offset_at(
        &self,
        partition: TopicPartition,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        let state = self.look()?;
        let partition = state.partition(partition)?;
        let mut batches = partition.batches.iter();
        Ok(batches.find_map(|batch| first_at(batch, partition.start, at)))
    }

    async fn delete_topic(
        &self,
        name: &TopicName,
        expects: Vec<Expectation>,
    ) -> Result<TopicId, TopicError> {
        let mut state = self.open()?;
        state.check_expectations(&expects)?;
        let unknown = || TopicError::Unknown(name.clone());
        let topic = state.topics.remove(name).ok_or_else(unknown)?;
        for partition in topic.partitions() {
            state.partitions.remove(&partition);
        }
        state.idempotence.forget_topic(topic.id, topic.partitions());
        state.catalogue_changed();
        self.hear(&state);
        Ok(topic.id)
    }

    fn topics(&self) -> Vec<Topic> {
        self.seen(|seen| seen.topics.values().cloned().collect())
    }

    fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.seen(|seen| seen.topics.get(name).cloned())
    }

    fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)> {
        let owned = |(key, entry): (&String, &Entry)| (key.clone(), entry.clone());
        self.seen(|seen| seen.entries.of(kind).iter().map(owned).collect())
    }

    fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry> {
        self.seen(|seen| seen.entries.get(kind, key).cloned())
    }

    fn version(&self, kind: EntryKind) -> Version {
        self.seen(|seen| seen.entries.version(kind))
    }

    fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.seen(|seen| seen.catalogue.subscribe())
    }

    async fn hear(&self) -> Result<(), ReadError> {
        let cut = |_| ReadError::Unavailable(CUT.into());
        self.link.check().map_err(cut)?;
        self.hear(&self.store.state.lock());
        Ok(())
    }

    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError> {
        let mut state = self.open()?;
        state.modules.insert(digest, bytes);
        Ok(())
    }

    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError> {
        Ok(self.store.state.lock().modules.get(&digest).cloned())
    }

    async fn delete_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        let mut state = self.open()?;
        state.check_expectations(&expects)?;
        state.modules.remove(&digest);
        Ok(())
    }

    async fn adopt(&self, adoption: Adoption) -> Result<(), AdoptError> {
        let mut state = self.now()?;
        state.adopt(adoption)?;
        self.hear(&state);
        Ok(())
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.store.leave(self.host);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use millrace_model::SystemClock;

    use super::*;
    use crate::conformance::hosts::{Fate, TwoHosts};

    async fn open(_directory: PathBuf) -> Arc<dyn Engine> {
        MemoryEngine::new(Arc::new(SystemClock::new()))
    }

    async fn open_bounded(_directory: PathBuf) -> Arc<dyn Engine> {
        let clock = Arc::new(SystemClock::new());
        MemoryEngine::bounded(clock, crate::conformance::bounds::BOUNDS)
    }

    crate::conformance_tests!(open);
    crate::adopting_tests!(open);
    crate::bounds_tests!(open_bounded);
    crate::two_hosts_tests!(open_two);

    fn clock() -> Arc<SystemClock> {
        Arc::new(SystemClock::new())
    }

    async fn open_two(_directory: PathBuf) -> [TwoHosts; 2] {
        [false, true].map(|second| {
            let one = MemoryEngine::with_gaps(clock(), 3);
            let other = one.second_host();
            let (one, other) = match second {
                false => (one, other),
                true => (other, one),
            };
            TwoHosts {
                fate: one.clone(),
                one,
                other,
            }
        })
    }

    impl Fate for MemoryEngine {
        fn die(&self) {
            self.die();
        }
        fn stall(&self) {
            self.stall();
        }
        fn come_back(&self) {
            self.come_back();
        }
    }

    /// A host that hears of changes late must pass the same suite.
    mod second_host {
        use super::*;

        async fn open(_directory: PathBuf) -> Arc<dyn Engine> {
            MemoryEngine::new(clock()).second_host()
        }

        crate::conformance_tests!(open);
        crate::adopting_tests!(open);
    }

    /// So must an engine whose offsets have gaps.
    mod gaps {
        use super::*;

        async fn open(_directory: PathBuf) -> Arc<dyn Engine> {
            MemoryEngine::with_gaps(clock(), 3)
        }

        crate::conformance_tests!(open);
    }
}
