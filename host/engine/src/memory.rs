//! The contract in its shortest form: everything in memory, behind one lock, gone with the process.
//!
//! For tests, and for reading: where another engine leaves doubt about what [`contract`](crate::contract) means, this one says
//! it. A transaction checks everything first and changes something afterwards, all under the lock, so it is atomic; durability
//! is what it can be without a disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{
    Clock, Digest, Offset, ProducerId, Progress, RecordBatch, Timestamp, Topic, TopicId, TopicName,
    TopicPartition, TopicSpec,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::contract::{
    Append, CommitError, Ends, Engine, Entry, EntryKind, EntryWrite, Expectation, Lease,
    ProgressWrite, ReadError, Receipt, RequestMark, TopicChange, TopicError, Transaction,
    TrimError, Version, Watch, changed,
};
use crate::entries::{self, Entries};
use crate::idempotence::requests::Request;
use crate::idempotence::{Idempotence, Judgement, Overlay};
use crate::room::{Growth, HostBounds, Kept, Room};
use crate::state::{StatePage, StateQuery, StateTable, StateWrite};
use crate::time::first_at;

/// An engine without a disk.
pub struct MemoryEngine {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
}

impl MemoryEngine {
    /// An empty engine.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::bounded(clock, HostBounds::default())
    }

    /// An empty engine that keeps no more than these.
    #[must_use]
    pub fn bounded(clock: Arc<dyn Clock>, bounds: HostBounds) -> Arc<Self> {
        let state = Mutex::new(State {
            room: Room::new(bounds),
            idempotence: Idempotence::default().within(&bounds),
            ..State::default()
        });
        Arc::new(Self { state, clock })
    }

    /// The state, which knows what time it is.
    fn now(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.idempotence.apply_moment(self.clock.wall());
        state
    }
}

#[derive(Debug, Default)]
struct State {
    room: Arc<Room>,
    closed: bool,
    topic_ids_given: u64,
    topics: BTreeMap<TopicName, Topic>,
    partitions: HashMap<TopicPartition, Partition>,
    entries: Entries,
    /// How often the catalogue was changed.
    catalogue: watch::Sender<u64>,
    modules: HashMap<Digest, Bytes>,
    idempotence: Idempotence,
}

/// Goes with its topic, and everything in it: messages, progress, whoever waits.
#[derive(Debug)]
struct Partition {
    /// Ascending by offset.
    batches: Vec<RecordBatch>,
    start: Offset,
    end: watch::Sender<Offset>,
    groups: HashMap<Arc<str>, Group>,
}

#[derive(Debug, Default)]
struct Group {
    /// The newest lease's.
    epoch: u64,
    progress: Option<Arc<Progress>>,
    /// Made when it is first asked for or written.
    state: Option<Arc<StateTable>>,
}

impl Default for Partition {
    fn default() -> Self {
        Self {
            batches: Vec::new(),
            start: Offset::default(),
            end: watch::Sender::new(Offset::default()),
            groups: HashMap::new(),
        }
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        let mut state = self.now();
        state.check_appends(&transaction)?;
        let overlay = Overlay::default();
        let mark = transaction.request.as_ref();
        let judged = state
            .idempotence
            .judge(&overlay, &transaction.appends, mark)?;
        if let Judgement::Repeat(receipt) = judged {
            return Ok(receipt);
        }
        if let Some(write) = &transaction.progress {
            state.check_lease(&write.lease)?;
        }
        state.check_state(&transaction.state)?;
        state.check_expectations(&transaction.expects)?;
        state.check_room(&transaction.state)?;
        Ok(state.apply(transaction))
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        self.state
            .lock()
            .partition(partition)?
            .read(from, bytes_max)
    }

    fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError> {
        let state = self.state.lock();
        Ok(Watch::new(state.partition(partition)?.end.subscribe()))
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        Ok(self.state.lock().partition(partition)?.ends())
    }

    async fn claim(&self, group: &str, partition: TopicPartition) -> Result<Lease, CommitError> {
        let mut state = self.state.lock();
        state.check_open()?;
        let unknown = CommitError::UnknownPartition(partition);
        let groups = &mut state.partitions.get_mut(&partition).ok_or(unknown)?.groups;
        let group: Arc<str> = group.into();
        let claimed = groups.entry(group.clone()).or_default();
        claimed.epoch += 1;
        Ok(Lease {
            group,
            partition,
            epoch: claimed.epoch,
        })
    }

    async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, CommitError> {
        let mut state = self.now();
        state.check_open()?;
        let given = state.idempotence.producers.decide(name)?;
        state.idempotence.give(given, name.map(Arc::from));
        Ok(given)
    }

    async fn progress(
        &self,
        group: &str,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        let state = self.state.lock();
        let group = state.partition(partition)?.groups.get(group);
        let progress = group.and_then(|group| group.progress.as_deref());
        Ok(progress.cloned())
    }

    fn groups(&self, partition: TopicPartition) -> Result<Vec<Arc<str>>, ReadError> {
        let state = self.state.lock();
        let groups = state.partition(partition)?.groups.iter();
        let with_progress = groups.filter(|(_, group)| group.progress.is_some());
        let mut names: Vec<_> = with_progress.map(|(name, _)| Arc::clone(name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn progress_partitions(&self, group: &str) -> Vec<TopicPartition> {
        let state = self.state.lock();
        let has_progress = |partition: &Partition| {
            let group = partition.groups.get(group);
            group.is_some_and(|group| group.progress.is_some())
        };
        let found = state.partitions.iter().filter(|(_, p)| has_progress(p));
        let mut found: Vec<_> = found.map(|(partition, _)| *partition).collect();
        found.sort_unstable();
        found
    }

    fn state(&self, group: &str, partition: TopicPartition) -> Result<Arc<StateTable>, ReadError> {
        let mut state = self.state.lock();
        state.partition(partition)?;
        Ok(state.table(group, partition))
    }

    async fn read_state(
        &self,
        group: &str,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        let state = self.state.lock();
        let Some(group) = state.partition(partition)?.groups.get(group) else {
            return Ok(StatePage::default());
        };
        let progress = group.progress.as_ref();
        let page = group.state.as_ref().map(|table| table.page(query));
        Ok(StatePage {
            as_of: progress.map(|p| p.next).unwrap_or_default(),
            ..page.unwrap_or_default()
        })
    }

    fn state_partitions(&self, group: &str) -> Vec<TopicPartition> {
        let state = self.state.lock();
        let has_entries = |partition: &Partition| {
            let group = partition.groups.get(group);
            let table = group.and_then(|group| group.state.as_ref());
            table.is_some_and(|table| table.size().entries > 0)
        };
        let found = state.partitions.iter().filter(|(_, p)| has_entries(p));
        let mut found: Vec<_> = found.map(|(partition, _)| *partition).collect();
        found.sort_unstable();
        found
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<Topic, TopicError> {
        self.state.lock().create_topic(spec)
    }

    async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError> {
        let mut state = self.state.lock();
        state.check_open()?;
        state.check_expectations(&expects)?;
        let (topics, more) = changed(changes, |name| state.topics.get(name).cloned())?;
        if more > 0 {
            let partitions = state.partitions.len();
            state.room.check_partitions(partitions, more)?;
        }
        for topic in &topics {
            for partition in topic.partitions() {
                state.partitions.entry(partition).or_default();
            }
            state.topics.insert(topic.spec.name.clone(), topic.clone());
        }
        state.catalogue_changed();
        Ok(topics)
    }

    async fn trim(&self, partition: TopicPartition, before: Offset) -> Result<Offset, TrimError> {
        let mut state = self.state.lock();
        state.check_open()?;
        let unknown = CommitError::UnknownPartition(partition);
        state
            .partitions
            .get_mut(&partition)
            .ok_or(unknown)?
            .trim(before)
    }

    async fn offset_at(
        &self,
        partition: TopicPartition,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        let state = self.state.lock();
        let partition = state.partition(partition)?;
        let mut batches = partition.batches.iter();
        Ok(batches.find_map(|batch| first_at(batch, partition.start, at)))
    }

    async fn delete_topic(
        &self,
        name: &TopicName,
        expects: Vec<Expectation>,
    ) -> Result<TopicId, TopicError> {
        let mut state = self.state.lock();
        state.check_open()?;
        state.check_expectations(&expects)?;
        let unknown = || TopicError::Unknown(name.clone());
        let topic = state.topics.remove(name).ok_or_else(unknown)?;
        for partition in topic.partitions() {
            state.partitions.remove(&partition);
        }
        state.idempotence.forget_topic(topic.id, topic.partitions());
        state.catalogue_changed();
        Ok(topic.id)
    }

    fn topics(&self) -> Vec<Topic> {
        self.state.lock().topics.values().cloned().collect()
    }

    fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.state.lock().topics.get(name).cloned()
    }

    fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)> {
        let state = self.state.lock();
        let entries = state.entries.of(kind).iter();
        entries.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry> {
        self.state.lock().entries.get(kind, key).cloned()
    }

    fn version(&self, kind: EntryKind) -> Version {
        self.state.lock().entries.version(kind)
    }

    fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.state.lock().catalogue.subscribe()
    }

    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError> {
        let mut state = self.state.lock();
        state.check_open()?;
        state.modules.insert(digest, bytes);
        Ok(())
    }

    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError> {
        Ok(self.state.lock().modules.get(&digest).cloned())
    }

    async fn delete_module(&self, digest: Digest) -> Result<(), CommitError> {
        let mut state = self.state.lock();
        state.check_open()?;
        state.modules.remove(&digest);
        Ok(())
    }

    async fn close(&self) {
        self.state.lock().closed = true;
    }
}

impl State {
    /// Whether everything that the transaction appends to is there.
    fn check_appends(&self, transaction: &Transaction) -> Result<(), CommitError> {
        self.check_open()?;
        let appended = transaction.appends.iter().map(|append| append.partition);
        let marked = transaction.request.iter().map(RequestMark::first_partition);
        for partition in appended.chain(marked) {
            if !self.partitions.contains_key(&partition) {
                return Err(CommitError::UnknownPartition(partition));
            }
        }
        Ok(())
    }

    fn check_open(&self) -> Result<(), CommitError> {
        if self.closed {
            return Err(CommitError::Closed);
        }
        Ok(())
    }

    fn check_expectations(&self, expects: &[Expectation]) -> Result<(), CommitError> {
        let entry = |kind, key: &str| self.entries.get(kind, key).map(|entry| entry.version);
        let newest = |kind| self.entries.version(kind);
        entries::check(expects, entry, newest, |name| self.topics.get(name))
    }

    fn catalogue_changed(&self) {
        self.catalogue.send_modify(|count| *count += 1);
    }

    fn check_lease(&self, lease: &Lease) -> Result<(), CommitError> {
        let unknown = CommitError::UnknownPartition(lease.partition);
        let partition = self.partitions.get(&lease.partition).ok_or(unknown)?;
        let newest = partition.groups.get(&lease.group).map(|group| group.epoch);
        if newest != Some(lease.epoch) {
            return Err(CommitError::Fenced {
                group: lease.group.clone(),
                partition: lease.partition,
            });
        }
        Ok(())
    }

    fn check_state(&self, writes: &[StateWrite]) -> Result<(), CommitError> {
        for write in writes {
            if !self.partitions.contains_key(&write.partition) {
                return Err(CommitError::UnknownPartition(write.partition));
            }
            write
                .lease
                .iter()
                .try_for_each(|lease| self.check_lease(lease))?;
        }
        Ok(())
    }

    /// Whether the host has room for what is written.
    fn check_room(&mut self, writes: &[StateWrite]) -> Result<(), CommitError> {
        let mut growth = Growth::default();
        for write in writes.iter().filter(|write| write.writes.keep_values()) {
            let table = self.table(&write.group, write.partition);
            growth.add(Kept::of_group(&write.group), table.growth(&write.writes));
        }
        Ok(self.room.check(&growth)?)
    }

    /// The table of a group in a partition that is there.
    fn table(&mut self, group: &str, partition: TopicPartition) -> Arc<StateTable> {
        let partition = self.partitions.get_mut(&partition).expect("was checked");
        let kept = partition.groups.entry(group.into()).or_default();
        let made = || Arc::new(StateTable::in_room(&self.room, group));
        Arc::clone(kept.state.get_or_insert_with(made))
    }

    fn apply(&mut self, transaction: Transaction) -> Receipt {
        let appends = transaction.appends.into_iter();
        let base_offsets: Vec<Offset> = appends.map(|append| self.append(append)).collect();
        if let Some(mark) = transaction.request {
            let (topic, at) = (mark.topic, self.idempotence.written_moment());
            let request = Request::new(mark, at, base_offsets.clone());
            self.idempotence.apply_request(topic, Arc::new(request));
        }
        if let Some(write) = transaction.progress {
            self.set_progress(write);
        }
        let entries = transaction.entries.into_iter();
        let set = |EntryWrite { kind, key, value }| self.entries.set(kind, key, value);
        let versions: Vec<Version> = entries.map(set).collect();
        if !versions.is_empty() {
            self.catalogue_changed();
        }
        for write in transaction.state {
            let table = self.table(&write.group, write.partition);
            table.apply(&write.writes);
            // There is no checkpoint to write it.
            table.take_changes();
        }
        Receipt {
            base_offsets,
            versions,
            ..Receipt::default()
        }
    }

    fn append(&mut self, append: Append) -> Offset {
        let Append {
            partition: id,
            batch,
        } = append;
        let partition = self.partitions.get_mut(&id).expect("was checked");
        let base = partition.ends().end;
        if let Some(numbering) = batch.numbering() {
            self.idempotence.apply_append(id, numbering, base);
        }
        let batch = batch.at_offset(base);
        let end = batch.end_offset();
        partition.batches.push(batch);
        partition.end.send_replace(end);
        base
    }

    fn set_progress(&mut self, ProgressWrite { lease, progress }: ProgressWrite) {
        let partition = self.partitions.get_mut(&lease.partition);
        let groups = &mut partition.expect("was checked").groups;
        groups.get_mut(&lease.group).expect("was checked").progress = Some(progress);
    }

    fn create_topic(&mut self, spec: TopicSpec) -> Result<Topic, TopicError> {
        self.check_open()?;
        if spec.partitions == 0 || spec.partitions > TOPIC_PARTITIONS_MAX {
            let (asked, max) = (spec.partitions, TOPIC_PARTITIONS_MAX);
            return Err(TopicError::Partitions { asked, max });
        }
        if self.topics.contains_key(&spec.name) {
            return Err(TopicError::Exists(spec.name));
        }
        let partitions = self.partitions.len();
        self.room.check_partitions(partitions, spec.partitions)?;
        self.topic_ids_given += 1;
        let id = TopicId(self.topic_ids_given);
        let topic = Topic { id, spec };
        let empty = topic.partitions().map(|at| (at, Partition::default()));
        self.partitions.extend(empty);
        self.topics.insert(topic.spec.name.clone(), topic.clone());
        self.catalogue_changed();
        Ok(topic)
    }

    fn partition(&self, partition: TopicPartition) -> Result<&Partition, ReadError> {
        let unknown = ReadError::UnknownPartition(partition);
        self.partitions.get(&partition).ok_or(unknown)
    }
}

impl Partition {
    fn ends(&self) -> Ends {
        Ends {
            start: self.start,
            end: *self.end.borrow(),
        }
    }

    fn trim(&mut self, before: Offset) -> Result<Offset, TrimError> {
        let Ends { start, end } = self.ends();
        if before > end {
            let requested = before;
            return Err(TrimError::PastEnd { requested, end });
        }
        self.start = start.max(before);
        let start = self.start;
        self.batches.retain(|batch| batch.end_offset() > start);
        Ok(start)
    }

    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<RecordBatch>, ReadError> {
        let Ends { start, end } = self.ends();
        if from < start {
            let requested = from;
            return Err(ReadError::BelowStart { requested, start });
        }
        if from > end {
            return Err(ReadError::PastEnd {
                requested: from,
                end,
            });
        }
        let first = self
            .batches
            .partition_point(|batch| batch.end_offset() <= from);
        let mut bytes = 0;
        let fits = |batch: &&RecordBatch| {
            let is_first = bytes == 0;
            bytes += batch.byte_count();
            is_first || bytes <= bytes_max
        };
        Ok(self.batches[first..]
            .iter()
            .take_while(fits)
            .cloned()
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use millrace_model::SystemClock;

    use super::*;

    async fn open(_directory: PathBuf) -> Arc<dyn Engine> {
        MemoryEngine::new(Arc::new(SystemClock::new()))
    }

    async fn open_bounded(_directory: PathBuf) -> Arc<dyn Engine> {
        let clock = Arc::new(SystemClock::new());
        MemoryEngine::bounded(clock, crate::conformance::bounds::BOUNDS)
    }

    crate::conformance_tests!(open);
    crate::bounds_tests!(open_bounded);
}
