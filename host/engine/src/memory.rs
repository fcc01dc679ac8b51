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
    Clock, Digest, Offset, Progress, RecordBatch, Topic, TopicId, TopicName, TopicPartition,
    TopicSpec,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::contract::{
    Append, CommitError, Ends, Engine, EntryKind, EntryWrite, Lease, ProgressWrite, ReadError,
    Receipt, TopicError, Transaction, Watch,
};

/// An engine without a disk.
#[derive(Debug, Default)]
pub struct MemoryEngine(Mutex<State>);

impl MemoryEngine {
    /// An empty engine. It takes the clock as every engine does; nothing that it does depends on the time.
    #[must_use]
    pub fn new(_clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::default()
    }
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    topic_ids_given: u64,
    topics: BTreeMap<TopicName, Topic>,
    partitions: HashMap<TopicPartition, Partition>,
    entries: BTreeMap<(EntryKind, String), Bytes>,
    modules: HashMap<Digest, Bytes>,
}

/// Goes with its topic, and everything in it: messages, progress, whoever waits.
#[derive(Debug)]
struct Partition {
    /// Ascending by offset.
    batches: Vec<RecordBatch>,
    end: watch::Sender<Offset>,
    groups: HashMap<Arc<str>, Group>,
}

#[derive(Debug, Default)]
struct Group {
    /// The newest lease's.
    epoch: u64,
    progress: Option<Progress>,
}

impl Default for Partition {
    fn default() -> Self {
        Self {
            batches: Vec::new(),
            end: watch::Sender::new(Offset::default()),
            groups: HashMap::new(),
        }
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        let mut state = self.0.lock();
        state.check(&transaction)?;
        Ok(state.apply(transaction))
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        self.0.lock().partition(partition)?.read(from, bytes_max)
    }

    fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError> {
        let state = self.0.lock();
        Ok(Watch::new(state.partition(partition)?.end.subscribe()))
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        Ok(self.0.lock().partition(partition)?.ends())
    }

    async fn claim(&self, group: &str, partition: TopicPartition) -> Result<Lease, CommitError> {
        let mut state = self.0.lock();
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

    async fn progress(
        &self,
        group: &str,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        let state = self.0.lock();
        let group = state.partition(partition)?.groups.get(group);
        Ok(group.and_then(|group| group.progress.clone()))
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<Topic, TopicError> {
        self.0.lock().create_topic(spec)
    }

    async fn delete_topic(&self, name: &TopicName) -> Result<TopicId, TopicError> {
        let mut state = self.0.lock();
        state.check_open()?;
        let unknown = || TopicError::Unknown(name.clone());
        let topic = state.topics.remove(name).ok_or_else(unknown)?;
        for partition in topic.partitions() {
            state.partitions.remove(&partition);
        }
        Ok(topic.id)
    }

    fn topics(&self) -> Vec<Topic> {
        self.0.lock().topics.values().cloned().collect()
    }

    fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.0.lock().topics.get(name).cloned()
    }

    fn entries(&self, kind: EntryKind) -> Vec<(String, Bytes)> {
        let state = self.0.lock();
        let of_kind = state.entries.iter().filter(|((of, _), _)| *of == kind);
        of_kind
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }

    fn entry(&self, kind: EntryKind, key: &str) -> Option<Bytes> {
        let state = self.0.lock();
        state.entries.get(&(kind, key.to_owned())).cloned()
    }

    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError> {
        let mut state = self.0.lock();
        state.check_open()?;
        state.modules.insert(digest, bytes);
        Ok(())
    }

    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError> {
        Ok(self.0.lock().modules.get(&digest).cloned())
    }

    async fn delete_module(&self, digest: Digest) -> Result<(), CommitError> {
        let mut state = self.0.lock();
        state.check_open()?;
        state.modules.remove(&digest);
        Ok(())
    }

    async fn close(&self) {
        self.0.lock().closed = true;
    }
}

impl State {
    /// Whether the transaction may take effect. After this nothing may fail.
    fn check(&self, transaction: &Transaction) -> Result<(), CommitError> {
        self.check_open()?;
        for Append { partition, .. } in &transaction.appends {
            if !self.partitions.contains_key(partition) {
                return Err(CommitError::UnknownPartition(*partition));
            }
        }
        match &transaction.progress {
            Some(write) => self.check_lease(&write.lease),
            None => Ok(()),
        }
    }

    fn check_open(&self) -> Result<(), CommitError> {
        if self.closed {
            return Err(CommitError::Closed);
        }
        Ok(())
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

    fn apply(&mut self, transaction: Transaction) -> Receipt {
        let appends = transaction.appends.into_iter();
        let base_offsets = appends.map(|append| self.append(append)).collect();
        if let Some(write) = transaction.progress {
            self.set_progress(write);
        }
        for write in transaction.entries {
            self.set_entry(write);
        }
        Receipt { base_offsets }
    }

    fn append(&mut self, Append { partition, batch }: Append) -> Offset {
        let partition = self.partitions.get_mut(&partition).expect("was checked");
        let base = partition.ends().end;
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

    fn set_entry(&mut self, EntryWrite { kind, key, value }: EntryWrite) {
        match value {
            Some(value) => self.entries.insert((kind, key), value),
            None => self.entries.remove(&(kind, key)),
        };
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
        self.topic_ids_given += 1;
        let id = TopicId(self.topic_ids_given);
        let topic = Topic { id, spec };
        let empty = topic.partitions().map(|at| (at, Partition::default()));
        self.partitions.extend(empty);
        self.topics.insert(topic.spec.name.clone(), topic.clone());
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
            start: Offset::default(),
            end: *self.end.borrow(),
        }
    }

    fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<RecordBatch>, ReadError> {
        let end = self.ends().end;
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

    crate::conformance_tests!(open);
}
