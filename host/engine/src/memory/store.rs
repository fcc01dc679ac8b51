//! The store, shared by all hosts: checks first, changes afterwards, under one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{
    Digest, GroupName, Offset, ProducerId, Progress, RecordBatch, Topic, TopicId, TopicName,
    TopicPartition, TopicSpec,
};
use tokio::sync::watch;

use crate::contract::{
    AdoptError, Adoption, Append, CommitError, Ends, EntryWrite, Expectation, HostId, Lease,
    ProgressWrite, ReadError, Receipt, RequestMark, TopicError, Transaction, TrimError, Version,
    check_partitions, end_after,
};
use crate::entries::{self, Entries};
use crate::idempotence::Idempotence;
use crate::idempotence::requests::Request;
use crate::room::{Growth, Kept, Room};
use crate::state::keeper::KeepTable as _;
use crate::state::{StateTable, StateWrite};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) room: Arc<Room>,
    pub(super) topic_ids_given: u64,
    pub(super) topics: BTreeMap<TopicName, Topic>,
    pub(super) partitions: HashMap<TopicPartition, Partition>,
    pub(super) entries: Entries,
    /// How often the catalogue was changed.
    pub(super) catalogue: watch::Sender<u64>,
    pub(super) modules: HashMap<Digest, Bytes>,
    /// Offsets left out after each batch.
    pub(super) gap: u64,
    pub(super) idempotence: Idempotence,
    /// How often state of a group was written.
    pub(super) state_writes: HashMap<GroupName, watch::Sender<u64>>,
}

/// Deleted with its topic, with everything in it: messages, progress, waiting readers.
#[derive(Debug)]
pub(super) struct Partition {
    /// Ascending by offset.
    pub(super) batches: Vec<RecordBatch>,
    pub(super) start: Offset,
    pub(super) end: watch::Sender<Offset>,
    pub(super) groups: HashMap<GroupName, Group>,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    /// The newest lease's.
    pub(super) epoch: u64,
    pub(super) progress: Option<Arc<Progress>>,
    /// Created when it is first read or written.
    pub(super) state: Option<Arc<StateTable>>,
    /// The holder, if there is one.
    pub(super) holder: Option<Holder>,
    /// Whether a host that worked ended without releasing it, and this was not reported yet.
    pub(super) left: bool,
    /// Tells the previous holder that it lost the hold.
    pub(super) lost: watch::Sender<bool>,
}

/// The holder of a group's work in a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) host: HostId,
    /// Whether it is for work; otherwise it is an operator's claim.
    pub(super) works: bool,
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

impl State {
    /// Whether every partition that the transaction appends to exists.
    pub(super) fn check_appends(&self, transaction: &Transaction) -> Result<(), CommitError> {
        let appended = transaction.appends.iter().map(|append| append.partition);
        let marked = transaction.request.iter().map(RequestMark::first_partition);
        let mut all = appended.chain(marked);
        all.try_for_each(|partition| self.check_partition(partition))
    }

    pub(super) fn check_partition(&self, partition: TopicPartition) -> Result<(), CommitError> {
        match self.partitions.contains_key(&partition) {
            true => Ok(()),
            false => Err(CommitError::UnknownPartition(partition)),
        }
    }

    pub(super) fn check_expectations(&self, expects: &[Expectation]) -> Result<(), CommitError> {
        let entry = |kind, key: &str| self.entries.get(kind, key).map(|entry| entry.version);
        let newest = |kind| self.entries.version(kind);
        let topic = |name: &_| self.topics.get(name);
        entries::check(expects, entry, newest, topic, |module| {
            let mut topics = self.topics.values();
            topics.any(|topic| topic.spec.partitioner == Some(module))
        })
    }

    pub(super) fn catalogue_changed(&self) {
        self.catalogue.send_modify(|count| *count += 1);
    }

    pub(super) fn check_lease(&self, lease: &Lease) -> Result<(), CommitError> {
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

    pub(super) fn check_state(&self, writes: &[StateWrite]) -> Result<(), CommitError> {
        for write in writes {
            self.check_partition(write.partition)?;
            write
                .lease
                .iter()
                .try_for_each(|lease| self.check_lease(lease))?;
        }
        Ok(())
    }

    /// Whether the host has room for the writes.
    pub(super) fn check_room(&mut self, writes: &[StateWrite]) -> Result<(), CommitError> {
        let mut growth = Growth::default();
        for write in writes.iter().filter(|write| write.writes.keep_values()) {
            let table = self.table(&write.group, write.partition);
            growth.add(Kept::of_group(&write.group), table.growth(&write.writes));
        }
        Ok(self.room.check(&growth)?)
    }

    /// The table of a group in an existing partition.
    pub(super) fn table(
        &mut self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Arc<StateTable> {
        let partition = self.partitions.get_mut(&partition).expect("was checked");
        let kept = partition.groups.entry(group.clone()).or_default();
        let made = || Arc::new(StateTable::in_room(&self.room, group));
        Arc::clone(kept.state.get_or_insert_with(made))
    }

    pub(super) fn writes_of(&mut self, group: &GroupName) -> &watch::Sender<u64> {
        self.state_writes.entry(group.clone()).or_default()
    }

    pub(super) fn apply(&mut self, transaction: Transaction, next: Option<ProducerId>) -> Receipt {
        let appends = transaction.appends.into_iter();
        let base_offsets: Vec<Offset> = appends.map(|append| self.append(append)).collect();
        if let Some(mark) = transaction.request {
            let (topic, at) = (mark.topic, self.idempotence.written_moment());
            let request = Request::new(mark, at, base_offsets.clone());
            self.idempotence.apply_request(topic, Arc::new(request));
        }
        transaction
            .progress
            .into_iter()
            .for_each(|write| self.set_progress(write));
        if let (Some(next), Some(of)) = (next, transaction.producer) {
            self.idempotence.give(next, Some(of.name));
        }
        let entries = transaction.entries.into_iter();
        let set = |EntryWrite { kind, key, value }| self.entries.set(kind, key, value);
        let versions: Vec<Version> = entries.map(set).collect();
        if !versions.is_empty() {
            self.catalogue_changed();
        }
        for write in transaction.state {
            let table = self.table(&write.group, write.partition);
            let applied = table.apply(&write.writes);
            debug_assert_eq!(applied, Ok(()), "its tables are in memory");
            // There is no checkpoint to write it.
            table.take_changes();
            let writes = self.writes_of(&write.group);
            writes.send_modify(|count| *count += 1);
        }
        Receipt {
            base_offsets,
            versions,
            producer: next,
            ..Receipt::default()
        }
    }

    fn append(&mut self, append: Append) -> Offset {
        let Append {
            partition: id,
            batch,
        } = append;
        let partition = self.partitions.get_mut(&id).expect("was checked");
        let base = partition.next_offset(self.gap);
        if let Some(numbering) = batch.numbering() {
            self.idempotence.apply_append(id, numbering, base);
        }
        let batch = batch.at_offset(base);
        let end = batch.end_offset();
        partition.batches.push(batch);
        partition.end.send_replace(end);
        base
    }

    fn set_progress(&mut self, write: ProgressWrite) {
        let partition = self.partitions.get_mut(&write.partition);
        let groups = &mut partition.expect("was checked").groups;
        let group = groups.entry(write.lease.group).or_default();
        let progress = group.progress.get_or_insert_default();
        Arc::make_mut(progress).change(write.progress);
    }

    pub(super) fn create_topic(&mut self, spec: TopicSpec) -> Result<Topic, TopicError> {
        let id = TopicId(self.topic_ids_given + 1);
        self.make_topic(Topic { id, spec })
    }

    fn make_topic(&mut self, topic: Topic) -> Result<Topic, TopicError> {
        let Topic { id, spec } = &topic;
        if spec.partitions == 0 || spec.partitions > TOPIC_PARTITIONS_MAX {
            let (asked, max) = (spec.partitions, TOPIC_PARTITIONS_MAX);
            return Err(TopicError::Partitions { asked, max });
        }
        if self.topics.contains_key(&spec.name) {
            return Err(TopicError::Exists(spec.name.clone()));
        }
        let partitions = self.partitions.len();
        check_partitions(&self.room, partitions, spec.partitions)?;
        self.topic_ids_given = id.0;
        let empty = topic.partitions().map(|at| (at, Partition::default()));
        self.partitions.extend(empty);
        self.topics.insert(spec.name.clone(), topic.clone());
        self.catalogue_changed();
        Ok(topic)
    }

    pub(super) fn adopt(&mut self, adoption: Adoption) -> Result<(), AdoptError> {
        match adoption {
            Adoption::Topic(topic) => {
                let (id, next) = (topic.id, TopicId(self.topic_ids_given + 1));
                if id < next {
                    return Err(AdoptError::Id { id, next });
                }
                self.make_topic(topic)?;
            }
            Adoption::Messages { partition, batches } => {
                let known = self.partitions.get_mut(&partition);
                let known = known.ok_or(CommitError::UnknownPartition(partition))?;
                let end = end_after(partition, known.ends().end, &batches)?;
                for batch in &batches {
                    if let Some(numbering) = batch.numbering() {
                        let base = batch.base_offset();
                        self.idempotence.apply_append(partition, numbering, base);
                    }
                }
                known.batches.extend(batches);
                known.end.send_replace(end);
            }
            Adoption::ProducerIds { next } => {
                let last = ProducerId {
                    id: next.saturating_sub(1),
                    epoch: 0,
                };
                self.idempotence.give(last, None);
            }
        }
        Ok(())
    }

    pub(super) fn partition(&self, partition: TopicPartition) -> Result<&Partition, ReadError> {
        let unknown = ReadError::UnknownPartition(partition);
        self.partitions.get(&partition).ok_or(unknown)
    }
}

impl Partition {
    pub(super) fn ends(&self) -> Ends {
        Ends {
            start: self.start,
            end: *self.end.borrow(),
        }
    }

    /// The offset of the next batch. The visible end is that of the last one, so nothing is in between.
    fn next_offset(&self, gap: u64) -> Offset {
        let end = *self.end.borrow();
        match self.batches.is_empty() && end == self.start {
            true => end,
            false => Offset(end.0 + gap),
        }
    }

    pub(super) fn trim(&mut self, before: Offset) -> Result<Offset, TrimError> {
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

    pub(super) fn read(
        &self,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
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
