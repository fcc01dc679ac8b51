//! The committed state, and the decision how a transaction changes it. Plain code: no disk, no
//! waiting.
//!
//! The committer decides a group of transactions against the state and the group's earlier
//! decisions ([`Pending`]), makes it durable, and applies it. Recovery applies the same operations.
//! A group that could not be written leaves no trace.

mod adopting;
mod paging;
mod tables;
mod topics;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::contract::{
    Append, CommitError, Ends, EntryKind, EntryWrite, Expectation, Lease, Receipt, TrimError,
    Version,
};
use millrace_engine::entries::{self, Entries};
use millrace_engine::idempotence::producers::ProducerChanges;
use millrace_engine::idempotence::requests::{Request, WindowChange};
use millrace_engine::idempotence::{Idempotence, Judgement, Overlay};
use millrace_engine::room::{Growth, Room};
use millrace_engine::state::StateTable;
use millrace_engine::state::keeper::TableStep;
use millrace_log::partition::Location;
use millrace_log::partition::encryption::BatchCipher;
use millrace_log::{Cipher, Disk, PartitionFiles, SealedCache};
use millrace_model::{
    Durability, GroupName, Offset, ProducerId, Progress, Stamp, Timestamp, Topic, TopicId,
    TopicName, TopicPartition, TopicSpec,
};
use tokio::sync::watch;

pub(crate) use self::paging::Paging;
pub(crate) use self::tables::may_be_paged;

use crate::decide::codec::Operation;
use crate::decide::submission::Submission;
use crate::ground::tail::{Partition, weight};

/// A map by partition whose order depends only on its content: the disk then sees the same work in
/// the same order, which the crash tests rely on. The engine assigns the keys, so an attacker
/// cannot choose colliding ones.
pub(crate) type ByPartition<T> = HashMap<TopicPartition, T, BuildHasherDefault<DefaultHasher>>;

/// Identifies a table by its partition and group.
pub(crate) type TableKey = (TopicPartition, GroupName);

/// Everything committed except messages, which are in their [`Partition`].
pub(crate) struct State {
    pub(crate) room: Arc<Room>,
    store: Store,
    topics: BTreeMap<TopicName, Topic>,
    pub(crate) partitions: ByPartition<Arc<Partition>>,
    groups: HashMap<TopicPartition, HashMap<GroupName, Group>>,
    pub(crate) entries: Entries,
    /// Counts changes of topics and entries.
    catalogue: watch::Sender<u64>,
    pub(crate) idempotence: Idempotence,
    next_topic: TopicId,
    changed: Changed,
}

/// What partitions need to open their files.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) cache: Arc<SealedCache>,
    pub(crate) topics_dir: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) encryption: Option<Arc<Cipher>>,
    /// Bytes of memory that a table may cost before it is paged; `None` is a fraction of the memory
    /// for state.
    pub(crate) state_resident_bytes: Option<usize>,
}

impl Store {
    pub(crate) fn topic_dir(&self, topic: TopicId) -> PathBuf {
        self.topics_dir.join(topic.to_string())
    }

    /// The free bytes of the disk; unlimited if the disk does not say.
    fn free_bytes(&self) -> u64 {
        millrace_log::inspect::free_bytes(&self.topics_dir).unwrap_or(u64::MAX)
    }

    pub(crate) fn batch_cipher(&self, id: TopicPartition) -> Option<BatchCipher> {
        let cipher = self.encryption.clone()?;
        Some(BatchCipher::new(cipher, id))
    }

    fn fresh(&self, id: TopicPartition, spec: &TopicSpec) -> Partition {
        let files = PartitionFiles::fresh(
            Arc::clone(&self.disk),
            Arc::clone(&self.cache),
            Location::new(&self.topic_dir(id.topic), id.partition.0),
            Some(id),
            self.segment_bytes,
        );
        Partition::new(id, spec, files.encrypted_with(self.batch_cipher(id)))
    }
}

/// A group in one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) epoch: u64,
    pub(crate) progress: Option<Arc<Progress>>,
    /// Created when it is first read or written.
    pub(crate) state: Option<Arc<StateTable>>,
    changed: bool,
    state_changed: bool,
}

impl Group {
    /// A group in the form for a checkpoint.
    pub(crate) fn stored(epoch: u64, progress: Option<Arc<Progress>>) -> Self {
        Self {
            epoch,
            progress,
            ..Self::default()
        }
    }
}

/// What the next checkpoint must write.
#[derive(Default)]
struct Changed {
    topics: Vec<TopicId>,
    removed: Vec<Removed>,
    groups: Vec<(TopicPartition, GroupName)>,
    tables: Vec<(TopicPartition, GroupName)>,
    entries: BTreeSet<(EntryKind, String)>,
    trimmed: BTreeSet<TopicPartition>,
}

/// A deleted topic whose files, and batches in memory, still exist.
pub(crate) struct Removed {
    pub(crate) topic: TopicId,
    pub(crate) partitions: Vec<Arc<Partition>>,
}

/// Everything that changed since the last snapshot, with its current values.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) next_topic: TopicId,
    /// All topics, if any changed.
    pub(crate) all_topics: Option<Vec<Topic>>,
    pub(crate) topics: Vec<Topic>,
    pub(crate) removed: Vec<Removed>,
    pub(crate) groups: Vec<(TopicPartition, GroupName, Group)>,
    pub(crate) tables: Vec<(TopicPartition, GroupName, TableStep)>,
    pub(crate) entries: Vec<(EntryKind, String, Option<Bytes>)>,
    pub(crate) moment: Timestamp,
    pub(crate) producers: ProducerChanges,
    pub(crate) requests: Vec<WindowChange>,
    /// Partitions whose start moved.
    pub(crate) trimmed: Vec<Arc<Partition>>,
}

/// The changes of the group of transactions that is being decided.
#[derive(Default)]
pub(crate) struct Pending {
    ends: HashMap<TopicPartition, Offset>,
    epochs: HashMap<(TopicPartition, GroupName), u64>,
    pub(crate) idempotence: Overlay,
    /// Whether the operations include the time.
    has_moment: bool,
    starts: HashMap<TopicPartition, Offset>,
    /// Written entries with their versions; `None` for removed ones.
    entries: HashMap<(EntryKind, String), Option<Version>>,
    /// The number of writes of entries, by kind.
    entry_writes: [u64; EntryKind::ALL.len()],
    /// How much more the host will hold: in memory at most, on the disk exactly.
    growth: Growth,
    /// What to write and then apply.
    pub(crate) operations: Vec<Operation>,
    /// Whether any of them must survive a power cut.
    pub(crate) durable: bool,
}

impl Pending {
    /// Starts over.
    pub(crate) fn clear(&mut self) {
        self.ends.clear();
        self.epochs.clear();
        self.idempotence.clear();
        self.has_moment = false;
        self.starts.clear();
        self.entries.clear();
        self.entry_writes = Default::default();
        self.growth = Growth::default();
        self.operations.clear();
        self.durable = false;
    }
}

/// Why a journal operation cannot be applied.
type Contradiction = &'static str;

impl State {
    pub(crate) fn new(store: Store, room: Arc<Room>, next_topic: TopicId) -> Self {
        Self {
            idempotence: Idempotence::default().within(room.bounds()),
            room,
            store,
            topics: BTreeMap::new(),
            partitions: ByPartition::default(),
            groups: HashMap::new(),
            entries: Entries::default(),
            catalogue: watch::Sender::new(0),
            next_topic,
            changed: Changed::default(),
        }
    }

    /// Decides a transaction; a refused one changes nothing.
    pub(crate) fn decide(
        &self,
        pending: &mut Pending,
        submission: Submission,
    ) -> Result<Receipt, CommitError> {
        let durability = self.demanded(&submission)?;
        let mark = submission.request.as_ref();
        let judged = self
            .idempotence
            .judge(&pending.idempotence, &submission.appends, mark)?;
        let producers = &self.idempotence.producers;
        if let Judgement::Repeat(mut receipt) = judged {
            let of = submission.producer.as_ref();
            receipt.producer = of.and_then(|of| producers.named(&of.name));
            // An operation is written so that the answer waits in order: behind the first request,
            // and for a sync if it needs one.
            pending.durable |= durability == Durability::Durable;
            self.write_moment(pending);
            return Ok(receipt);
        }
        // It is alone in its group, so the group has assigned no epoch before.
        let next = submission.producer.as_ref();
        let next = next.map(|next| producers.decide_next(next)).transpose()?;
        self.check_lease(pending, &submission)?;
        self.check_expectations(pending, &submission.expects)?;
        self.check_state(&submission.state)?;
        pending.growth = self.check_room(pending.growth, &submission.state)?;
        pending.durable |= durability == Durability::Durable || next.is_some();
        if judged == Judgement::New || next.is_some() {
            self.write_moment(pending);
        }
        let mut receipt = Receipt {
            producer: next,
            ..Receipt::default()
        };
        for Append { partition, batch } in submission.appends {
            let base = self.next_offset(pending, partition);
            if let Some(numbering) = batch.numbering() {
                let overlay = &mut pending.idempotence;
                overlay.accept(&self.idempotence, partition, numbering, base);
            }
            let batch = batch.placed(base, Stamp::of(partition));
            pending.ends.insert(partition, batch.end_offset());
            receipt.base_offsets.push(base);
            let append = Operation::Append { partition, batch };
            pending.operations.push(append);
        }
        let progress = submission.progress.into_iter();
        pending
            .operations
            .extend(progress.map(|write| Operation::Progress {
                partition: write.partition,
                group: write.lease.group,
                change: write.progress,
            }));
        if let (Some(producer), Some(of)) = (next, submission.producer) {
            let name = Some(of.name);
            let give = Operation::Producer { producer, name };
            pending.operations.push(give);
        }
        let state = submission.state.into_iter();
        pending
            .operations
            .extend(state.map(|write| Operation::State {
                partition: write.partition,
                group: write.group,
                writes: write.writes,
            }));
        if let Some(mark) = submission.request {
            let at = self.idempotence.moment(&pending.idempotence);
            let topic = mark.topic;
            let request = Arc::new(Request::new(mark, at, receipt.base_offsets.clone()));
            pending.idempotence.remember(topic, Arc::clone(&request));
            pending
                .operations
                .push(Operation::Request { topic, request });
        }
        for EntryWrite { kind, key, value } in submission.entries {
            pending.entry_writes[kind as usize] += 1;
            let version = self.newest(pending, kind);
            receipt.versions.push(version);
            let version = value.is_some().then_some(version);
            pending.entries.insert((kind, key.clone()), version);
            let write = Operation::Entry { kind, key, value };
            pending.operations.push(write);
        }
        Ok(receipt)
    }

    /// The durability that the transaction needs; the partitions that it appends to must exist.
    fn demanded(&self, submission: &Submission) -> Result<Durability, CommitError> {
        let mut durability = submission.durability;
        for append in &submission.appends {
            let partition = self.existing(append.partition)?;
            durability = durability.max(Some(partition.durability()));
        }
        if let Some(mark) = &submission.request {
            self.existing(mark.first_partition())?;
        }
        Ok(durability.unwrap_or_default())
    }

    /// Checks that the transaction holds the newest leases for its progress, its state, and
    /// everything else that it names.
    fn check_lease(&self, pending: &Pending, submission: &Submission) -> Result<(), CommitError> {
        for write in &submission.state {
            self.existing(write.partition)?;
        }
        let of_state = submission.state.iter().filter_map(|w| w.lease.as_ref());
        for write in &submission.progress {
            self.existing(write.partition)?;
        }
        let of_progress = submission.progress.iter().map(|write| &write.lease);
        let leases = of_progress.chain(of_state).chain(&submission.fences);
        for lease in leases {
            self.existing(lease.partition)?;
            if self.epoch(pending, lease.partition, &lease.group) != lease.epoch {
                return Err(CommitError::Fenced {
                    group: lease.group.clone(),
                    partition: lease.partition,
                });
            }
        }
        Ok(())
    }

    /// Checks the transaction's expectations, including the group's earlier decisions.
    pub(crate) fn check_expectations(
        &self,
        pending: &Pending,
        expects: &[Expectation],
    ) -> Result<(), CommitError> {
        let entry = |kind, key: &str| {
            let written = match pending.entries.is_empty() {
                true => None,
                false => pending.entries.get(&(kind, key.to_owned())),
            };
            let stored = || self.entries.get(kind, key).map(|entry| entry.version);
            written.copied().unwrap_or_else(stored)
        };
        let newest = |kind| self.newest(pending, kind);
        // Topics are created and deleted alone in their groups, so the group cannot have added any.
        let topic = |name: &_| self.topics.get(name);
        entries::check(expects, entry, newest, topic, |module| {
            self.is_partitioner(module)
        })
    }

    /// The version of the newest write of a kind, including the group's own writes.
    fn newest(&self, pending: &Pending, kind: EntryKind) -> Version {
        let written = self.entries.version(kind);
        Version(written.0 + pending.entry_writes[kind as usize])
    }

    fn write_moment(&self, pending: &mut Pending) {
        if !std::mem::replace(&mut pending.has_moment, true) {
            let moment = self.idempotence.moment(&pending.idempotence);
            pending.operations.push(Operation::Moment(moment));
        }
    }

    fn existing(&self, id: TopicPartition) -> Result<&Arc<Partition>, CommitError> {
        let found = self.partitions.get(&id);
        found.ok_or(CommitError::UnknownPartition(id))
    }

    fn next_offset(&self, pending: &Pending, id: TopicPartition) -> Offset {
        let published = || self.partitions.get(&id).map(|partition| partition.end());
        let given = pending.ends.get(&id).copied();
        given.or_else(published).unwrap_or_default()
    }

    fn epoch(&self, pending: &Pending, partition: TopicPartition, group: &GroupName) -> u64 {
        let claimed = if pending.epochs.is_empty() {
            None
        } else {
            pending.epochs.get(&(partition, group.clone()))
        };
        claimed.copied().unwrap_or_else(|| {
            let group = self.group(partition, group);
            group.map_or(0, |group| group.epoch)
        })
    }

    /// Gives the group a new epoch.
    pub(crate) fn decide_claim(
        &self,
        pending: &mut Pending,
        partition: TopicPartition,
        group: GroupName,
    ) -> Result<Lease, CommitError> {
        self.existing(partition)?;
        let epoch = self.epoch(pending, partition, &group) + 1;
        pending.epochs.insert((partition, group.clone()), epoch);
        pending.durable = true;
        pending.operations.push(Operation::Claim {
            partition,
            group: group.clone(),
            epoch,
        });
        Ok(Lease {
            group,
            partition,
            epoch,
        })
    }

    /// Assigns an identity to a producer. Must be alone in its group, like the creation of a topic.
    pub(crate) fn decide_producer(
        &self,
        pending: &mut Pending,
        name: Option<Arc<str>>,
    ) -> Result<ProducerId, CommitError> {
        let producer = self.idempotence.producers.decide(name.as_deref())?;
        pending.durable = true;
        self.write_moment(pending);
        let give = Operation::Producer { producer, name };
        pending.operations.push(give);
        Ok(producer)
    }

    /// Decides a trim; returns the partition's new start.
    pub(crate) fn decide_trim(
        &self,
        pending: &mut Pending,
        id: TopicPartition,
        before: Offset,
    ) -> Result<Offset, TrimError> {
        let Ends { start, .. } = self.existing(id)?.ends();
        let end = self.next_offset(pending, id);
        if before > end {
            let requested = before;
            return Err(TrimError::PastEnd { requested, end });
        }
        let start = pending.starts.get(&id).copied().unwrap_or(start);
        if before > start {
            pending.durable = true;
            pending.starts.insert(id, before);
            pending.operations.push(Operation::Trim {
                partition: id,
                start: before,
            });
        }
        Ok(start.max(before))
    }

    /// Applies a committed operation; returns its weight in memory. A journal operation can
    /// contradict the state only if a faulty version wrote it.
    pub(crate) fn apply(&mut self, operation: Operation) -> Result<usize, Contradiction> {
        match operation {
            Operation::Append {
                partition: id,
                batch,
            } => {
                let partition = self.partitions.get(&id);
                let partition = partition.ok_or("it appends to an unknown partition")?;
                let base = batch.base_offset();
                if partition.end() != base {
                    return Err("its offsets do not follow those before");
                }
                let (weight, numbering) = (weight(&batch), batch.numbering());
                partition.push(batch);
                if let Some(numbering) = numbering {
                    self.idempotence.apply_append(id, numbering, base);
                }
                return Ok(weight);
            }
            Operation::Progress {
                partition,
                group,
                change,
            } => self.change_group(partition, group, |group| {
                let progress = group.progress.get_or_insert_default();
                Arc::make_mut(progress).change(change);
            }),
            Operation::Claim {
                partition,
                group,
                epoch,
            } => self.change_group(partition, group, |group| group.epoch = epoch),
            Operation::Entry { kind, key, value } => {
                self.apply_entry(kind, key, value);
                self.catalogue_changed();
            }
            Operation::CreateTopic(topic) => {
                self.apply_create(topic);
                self.catalogue_changed();
            }
            Operation::DeleteTopic(id) => {
                self.apply_delete(id);
                self.catalogue_changed();
            }
            Operation::Moment(moment) => self.idempotence.apply_moment(moment),
            Operation::Producer { producer, name } => self.idempotence.give(producer, name),
            Operation::Request { topic, request } => {
                self.idempotence.apply_request(topic, request);
            }
            Operation::ChangeTopic(topic) => {
                self.apply_change(topic)?;
                self.catalogue_changed();
            }
            Operation::Trim { partition, start } => self.apply_trim(partition, start)?,
            Operation::State {
                partition,
                group,
                writes,
            } => self.apply_state(partition, group, &writes)?,
        }
        Ok(0)
    }

    /// Woken readers still wait until the whole group is applied.
    fn catalogue_changed(&self) {
        self.catalogue.send_modify(|count| *count += 1);
    }

    pub(crate) fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.catalogue.subscribe()
    }

    fn change_group(
        &mut self,
        partition: TopicPartition,
        name: GroupName,
        change: impl FnOnce(&mut Group),
    ) {
        let groups = self.groups.entry(partition).or_default();
        let group = groups.entry(name.clone()).or_default();
        change(group);
        if !std::mem::replace(&mut group.changed, true) {
            self.changed.groups.push((partition, name));
        }
    }

    fn apply_entry(&mut self, kind: EntryKind, key: String, value: Option<Bytes>) {
        self.changed.entries.insert((kind, key.clone()));
        self.entries.set(kind, key, value);
    }

    fn apply_trim(&mut self, id: TopicPartition, start: Offset) -> Result<(), Contradiction> {
        let partition = self.partitions.get(&id);
        let partition = partition.ok_or("it trims an unknown partition")?;
        if start > partition.end() {
            return Err("it trims beyond the partition's end");
        }
        partition.advance_start(start);
        self.changed.trimmed.insert(id);
        Ok(())
    }

    /// Adds a topic, from the checkpoint or a new one, without its partitions.
    pub(crate) fn insert_topic(&mut self, topic: Topic) {
        self.next_topic = self.next_topic.max(TopicId(topic.id.0 + 1));
        self.topics.insert(topic.spec.name.clone(), topic);
    }

    pub(crate) fn insert_partition(&mut self, partition: Partition) {
        self.partitions.insert(partition.id, Arc::new(partition));
    }

    pub(crate) fn insert_group(
        &mut self,
        partition: TopicPartition,
        name: GroupName,
        group: Group,
    ) {
        let groups = self.groups.entry(partition).or_default();
        groups.insert(name, group);
    }

    pub(crate) fn insert_entry(&mut self, kind: EntryKind, key: String, value: Bytes) {
        self.entries.set(kind, key, Some(value));
    }

    pub(crate) fn group(&self, partition: TopicPartition, name: &GroupName) -> Option<&Group> {
        self.groups.get(&partition)?.get(name)
    }

    /// The names of groups with progress in the partition.
    pub(crate) fn groups_with_progress(&self, partition: TopicPartition) -> Vec<GroupName> {
        let groups = self.groups.get(&partition).into_iter().flatten();
        let with_progress = groups.filter(|(_, group)| group.progress.is_some());
        let mut names: Vec<_> = with_progress.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// The partitions in which the group has progress, in order.
    pub(crate) fn progress_of(&self, group: &GroupName) -> Vec<TopicPartition> {
        let has_progress = |groups: &HashMap<GroupName, Group>| {
            let group = groups.get(group);
            group.is_some_and(|group| group.progress.is_some())
        };
        let found = self
            .groups
            .iter()
            .filter(|(_, groups)| has_progress(groups));
        let mut found: Vec<_> = found.map(|(partition, _)| *partition).collect();
        found.sort_unstable();
        found
    }

    pub(crate) fn topics(&self) -> Vec<Topic> {
        self.topics.values().cloned().collect()
    }

    pub(crate) fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.topics.get(name).cloned()
    }

    /// Whether topics wait for their files to be removed.
    pub(crate) fn has_removed_topics(&self) -> bool {
        !self.changed.removed.is_empty()
    }

    /// Everything that changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let changed = std::mem::take(&mut self.changed);
        let others = !changed.topics.is_empty() || !changed.removed.is_empty();
        let all_topics = others.then(|| self.topics());
        let tables = self.take_tables(changed.tables);
        let topics = self.topics.values();
        let topics = topics.filter(|topic| changed.topics.contains(&topic.id));
        let mut groups = Vec::new();
        for (partition, name) in changed.groups {
            let found = self.groups.get_mut(&partition);
            if let Some(group) = found.and_then(|groups| groups.get_mut(&name)) {
                group.changed = false;
                // Without its table, whose memory would otherwise count for the host until the
                // checkpoint is made.
                let stored = Group::stored(group.epoch, group.progress.clone());
                groups.push((partition, name, stored));
            }
        }
        let entries = changed.entries.into_iter().map(|(kind, key)| {
            let value = self.entries.get(kind, &key);
            let value = value.map(|entry| entry.value.clone());
            (kind, key, value)
        });
        let trimmed = changed.trimmed.iter();
        let trimmed = trimmed.filter_map(|id| self.partitions.get(id).cloned());
        Changes {
            trimmed: trimmed.collect(),
            next_topic: self.next_topic,
            all_topics,
            topics: topics.cloned().collect(),
            removed: changed.removed,
            groups,
            tables,
            entries: entries.collect(),
            moment: self.idempotence.written_moment(),
            producers: self.idempotence.producers.take_changes(),
            requests: self.idempotence.requests.take_changes(),
        }
    }
}

impl Changes {
    /// Adds later changes.
    pub(crate) fn merge(&mut self, later: Self) {
        self.next_topic = later.next_topic;
        self.all_topics = later.all_topics.or_else(|| self.all_topics.take());
        self.topics.extend(later.topics);
        self.removed.extend(later.removed);
        self.groups.extend(later.groups);
        self.merge_tables(later.tables);
        self.entries.extend(later.entries);
        self.moment = later.moment;
        self.producers.merge(later.producers);
        self.requests.extend(later.requests);
        self.trimmed.extend(later.trimmed);
    }
}
