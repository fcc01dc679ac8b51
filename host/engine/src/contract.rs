//! The seam: what every engine promises. [`memory`](crate::memory) shows it in its shortest form, and
//! [`conformance`](crate::conformance) asks it of everyone.
//!
//! 1. **Atomic.** A [`Transaction`] takes effect whole or not at all, for every reader, now and after any crash.
//! 2. **Ordered.** A partition's offsets only grow; no offset is given twice. Appends of one transaction to one partition
//!    stand in the order in which it lists them. Offsets may have gaps; readers must not count on their absence. A partition's
//!    start only grows, too: what is below it is gone for good.
//! 3. **Durable on return.** When `commit` returns, the transaction is as durable as its most demanding append (or, without
//!    appends, as [`Transaction::durability`] says). Readers see nothing that is less durable than its topic asks.
//! 4. **Fenced.** Progress is written only under the newest lease of its group and partition, and so is state that names a lease;
//!    a commit under an older one fails whole with [`CommitError::Fenced`].
//! 5. **Once.** A batch whose producer numbered it, and a transaction that carries a [`RequestMark`], take effect once, however
//!    often they are committed: a repeat gets the receipt of the first time, and is as durable as asked when it gets it.
//! 6. **Final failure.** After an error of the disk that leaves it unknown what is durable, the engine refuses everything
//!    with [`CommitError::Poisoned`] until it is opened again.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{
    Digest, Durability, Offset, PartitionId, ProducerId, Progress, RecordBatch, Timestamp, Topic,
    TopicId, TopicName, TopicPartition, TopicSettings, TopicSpec,
};
use tokio::sync::watch;

use crate::backup::{BackupError, BackupRequest, BackupStream};
use crate::damage::{DamageKind, DamageReport, DamagedRange};
use crate::room::RoomFull;
use crate::state::{StatePage, StateQuery, StateTable, StateWrite};

/// The only thing that an engine writes.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Batches to append; their base offsets are given by the engine.
    pub appends: Vec<Append>,
    /// Progress of one group, under its lease.
    pub progress: Option<ProgressWrite>,
    /// Changes of the catalogue, in order.
    pub entries: Vec<EntryWrite>,
    /// Changes of groups' state, in order; one table at most once.
    pub state: Vec<StateWrite>,
    /// At least this durable; each append's topic may ask for more.
    pub durability: Option<Durability>,
    /// Which request this is, so that it takes effect once.
    pub request: Option<RequestMark>,
}

/// By what a request is known again within its topic's window ([`millrace_model::bounds::REQUESTS_PER_TOPIC_MAX`] and those
/// after it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMark {
    /// Whose window.
    pub topic: TopicId,
    /// The key, by its digest.
    pub key: [u8; 16],
    /// What is asked for, by its digest: the same key with another one is refused.
    pub fingerprint: [u8; 16],
    /// What the caller needs beside the offsets to give the same answer again; opaque to the engine.
    pub note: Bytes,
}

/// A batch for a partition.
#[derive(Clone, Debug)]
pub struct Append {
    /// Where it goes.
    pub partition: TopicPartition,
    /// What is appended.
    pub batch: RecordBatch,
}

/// Where a group has come to, and by what right it says so.
#[derive(Clone, Debug)]
pub struct ProgressWrite {
    /// The right.
    pub lease: Lease,
    /// The new progress; replaces the old one. Shared, for it may be large.
    pub progress: Arc<Progress>,
}

/// The right to commit progress for one group in one partition, until somebody claims it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose progress; a processor's name.
    pub group: Arc<str>,
    /// Where.
    pub partition: TopicPartition,
    /// Counts the claims; only the highest may commit.
    pub epoch: u64,
}

/// A kind of catalogue entry. Topics are not entries: they have storage, so engines know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// What is known of an uploaded module, by its digest.
    Module,
    /// A processor and its revisions, by its name.
    Processor,
    /// Which dead letters were sent again, by DLQ topic and partition.
    Redriven,
    /// Messages that are known to be damaged, by partition and first offset. Written by the engine itself.
    Damage,
    /// A schedule and when it is due, by its name.
    Schedule,
}

impl EntryKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Module,
        Self::Processor,
        Self::Redriven,
        Self::Damage,
        Self::Schedule,
    ];

    /// The kind's word, as stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Processor => "processor",
            Self::Redriven => "redriven",
            Self::Damage => "damage",
            Self::Schedule => "schedule",
        }
    }

    /// The kind of a stored word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// One change of the catalogue: a value set, or (`None`) removed.
#[derive(Clone, Debug)]
pub struct EntryWrite {
    /// What kind of entry.
    pub kind: EntryKind,
    /// Its key, unique within the kind.
    pub key: String,
    /// Its new value, opaque to the engine.
    pub value: Option<Bytes>,
}

/// What a commit gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// For each append, in order, the offset of its first message.
    pub base_offsets: Vec<Offset>,
    /// Whether all of it took effect earlier. Nothing of it was written now, and the offsets are those given then.
    pub repeated: bool,
    /// Of a repeated request, the note that it carried the first time.
    pub note: Bytes,
}

/// Why nothing was committed (or, for `Poisoned`, why it is not known).
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The partition does not exist, or no longer.
    #[error("partition {0} does not exist; its topic may have been deleted")]
    UnknownPartition(TopicPartition),
    /// Somebody holds a newer lease. Stop: the work belongs to them.
    #[error("group {group} in partition {partition}: the lease was taken over by a newer claim")]
    Fenced {
        /// Whose lease.
        group: Arc<str>,
        /// Where.
        partition: TopicPartition,
    },
    /// A batch is missing, or this one was sent before those that are remembered. Nothing was written.
    #[error(
        "producer {producer} in partition {partition}: sequence {found} came where {expected} is next; below it, it was written long \
         ago; above it, batches are missing: send those first, or start a new epoch and number from 0"
    )]
    OutOfOrderSequence {
        /// Where.
        partition: TopicPartition,
        /// Whose id.
        producer: i64,
        /// The sequence that is next.
        expected: i32,
        /// The one that came.
        found: i32,
    },
    /// The producer was started anew. Stop: its place is taken.
    #[error("producer {producer} has epoch {newest} now; the one with epoch {epoch} must stop")]
    ProducerFenced {
        /// Whose id.
        producer: i64,
        /// The epoch that came.
        epoch: i16,
        /// The newest.
        newest: i16,
    },
    /// The id was never given, or the partition has forgotten what it sent.
    #[error(
        "producer {0} is not known here, or was idle for so long that it was forgotten; ask for a new id and number from 0"
    )]
    UnknownProducer(i64),
    /// A transaction is whole: each append repeats one that was written, or none does.
    #[error(
        "{repeated} of {appends} appends were written earlier and the others not; repeat a transaction as it was, or send what is new"
    )]
    PartlyRepeated {
        /// Appends that were written earlier.
        repeated: usize,
        /// All appends.
        appends: usize,
    },
    /// No name for a producer.
    #[error("a producer's name has 1 to {max} bytes, not {bytes}")]
    ProducerName {
        /// Its bytes.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The key of a request was used for another one.
    #[error(
        "this key was used for another request; take a new key for each request, and the same only to repeat it"
    )]
    RequestReused,
    /// Larger than the engine's journal takes at once. Send less.
    #[error("the transaction has {bytes} bytes, at most {max} fit; send less at once")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// As much is kept in memory as the host may. Nothing was written; try again when there is less.
    #[error(transparent)]
    RoomFull(#[from] RoomFull),
    /// No room on the disk. Nothing was written; try again when there is space.
    #[error(
        "the disk is full, or the process may not write longer files or open more (`ulimit -f`, `ulimit -n`): free some space or shorten \
         retention; reading still works"
    )]
    DiskFull,
    /// The disk failed; nothing more is acknowledged until the host is started again.
    #[error(
        "the engine stopped after a disk error ({0}); restart the host, recovery decides what was kept"
    )]
    Poisoned(Arc<str>),
    /// The engine is closing.
    #[error("the engine is shutting down; try again when the host is up")]
    Closed,
}

impl CommitError {
    /// Whether the same transaction may succeed later without anybody changing it.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::DiskFull | Self::RoomFull(_) | Self::Closed)
    }
}

/// Why nothing could be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The partition does not exist, or no longer.
    #[error("partition {0} does not exist; its topic may have been deleted")]
    UnknownPartition(TopicPartition),
    /// Before the first message kept.
    #[error("offset {requested} is no longer kept; the first one is {start}")]
    BelowStart {
        /// What was asked for.
        requested: Offset,
        /// The first offset kept.
        start: Offset,
    },
    /// After the committed end.
    #[error("offset {requested} is past the end; the next message will be {end}")]
    PastEnd {
        /// What was asked for.
        requested: Offset,
        /// The end.
        end: Offset,
    },
    /// Stored bytes are not those that were written. The rest of the partition stays readable.
    #[error(
        "messages {from} to {to} (exclusive) of partition {partition} {kind}; read on from {to}"
    )]
    Damaged {
        /// Where.
        partition: TopicPartition,
        /// First offset of the damage.
        from: Offset,
        /// First offset after it.
        to: Offset,
        /// What stands there instead.
        kind: DamageKind,
    },
    /// A module's bytes are not those that were put. Putting them again mends it.
    #[error(
        "module {0} is damaged on disk: its bytes are not those that were uploaded; upload the same component again"
    )]
    ModuleDamaged(Digest),
    /// The disk failed.
    #[error("reading failed: {0}")]
    Io(Arc<str>),
}

/// Why the catalogue did not change.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TopicError {
    /// The name is taken.
    #[error("topic {0} exists already")]
    Exists(TopicName),
    /// No such topic.
    #[error("topic {0} does not exist")]
    Unknown(TopicName),
    /// Zero, or more than the bound.
    #[error("a topic has 1 to {max} partitions, not {asked}")]
    Partitions {
        /// What was asked for.
        asked: u32,
        /// The bound.
        max: u32,
    },
    /// Messages would have nowhere to be.
    #[error(
        "topic {topic} has {have} partitions, and stays at no fewer: {asked} cannot hold the messages, progress and state of all of them"
    )]
    FewerPartitions {
        /// Which topic.
        topic: TopicName,
        /// How many it has.
        have: u32,
        /// What was asked for.
        asked: u32,
    },
    /// All topics together would have more than the host may.
    #[error(
        "the host has {have} partitions and would have {asked} more, at most {max} are kept (partitions_max): ask for fewer, or delete \
         topics that nobody needs"
    )]
    HostPartitions {
        /// How many there are.
        have: usize,
        /// What was asked for.
        asked: u32,
        /// The bound.
        max: usize,
    },
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Why a partition begins where it began.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrimError {
    /// What is not there yet cannot be removed.
    #[error("nothing before offset {requested} can be removed: the partition ends at {end}")]
    PastEnd {
        /// What was asked for.
        requested: Offset,
        /// The end.
        end: Offset,
    },
    /// The partition is unknown, or the change could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What is to be different about a topic from now on; `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicChange {
    /// How many partitions it has: as many as before, or more. Those that are there stay as they are; new ones are empty.
    pub partitions: Option<u32>,
    /// When its appends are acknowledged.
    pub durability: Option<Durability>,
    /// All that may be changed about it; replaces what there is.
    pub settings: Option<TopicSettings>,
}

impl TopicChange {
    /// The topic as it is then.
    #[must_use]
    pub fn of(self, topic: &Topic) -> Topic {
        let mut changed = topic.clone();
        changed.spec.partitions = self.partitions.unwrap_or(topic.spec.partitions);
        changed.spec.durability = self.durability.unwrap_or(topic.spec.durability);
        if let Some(settings) = self.settings {
            changed.spec.settings = settings;
        }
        changed
    }

    /// How many partitions more the topic has then.
    fn more(&self, topic: &Topic) -> Result<u32, TopicError> {
        let have = topic.spec.partitions;
        let asked = self.partitions.unwrap_or(have);
        if asked > TOPIC_PARTITIONS_MAX {
            let max = TOPIC_PARTITIONS_MAX;
            return Err(TopicError::Partitions { asked, max });
        }
        asked
            .checked_sub(have)
            .ok_or_else(|| TopicError::FewerPartitions {
                topic: topic.spec.name.clone(),
                have,
                asked,
            })
    }
}

/// What topics are after changes that happen in one step, in the order given, and how many partitions more there are then; or why
/// none of it happens.
pub(crate) fn changed(
    changes: Vec<(TopicName, TopicChange)>,
    find: impl Fn(&TopicName) -> Option<Topic>,
) -> Result<(Vec<Topic>, u32), TopicError> {
    let mut topics: Vec<Topic> = Vec::with_capacity(changes.len());
    let mut more = 0u32;
    for (name, change) in changes {
        let before = topics.iter().rfind(|topic| topic.spec.name == name);
        let before = before.cloned().or_else(|| find(&name));
        let before = before.ok_or(TopicError::Unknown(name))?;
        more = more.saturating_add(change.more(&before)?);
        topics.push(change.of(&before));
    }
    Ok((topics, more))
}

/// Where a partition begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The first offset kept.
    pub start: Offset,
    /// The offset that the next message will have.
    pub end: Offset,
}

/// Wakes when a partition's committed end moves. Cheap; may be held for ever.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<Offset>);

impl Watch {
    /// Wraps the receiving end of an engine's notifier, whose value is the committed end.
    #[must_use]
    pub fn new(receiver: watch::Receiver<Offset>) -> Self {
        Self(receiver)
    }

    /// The committed end, now.
    #[must_use]
    pub fn end(&self) -> Offset {
        *self.0.borrow()
    }

    /// Waits until the committed end is past `offset`; returns the end. `None` if the partition is gone.
    pub async fn past(&mut self, offset: Offset) -> Option<Offset> {
        self.0
            .wait_for(|&end| end > offset)
            .await
            .ok()
            .map(|end| *end)
    }
}

/// Where data is kept.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Commits a transaction, whole or not at all.
    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError>;

    /// Batches from the one that holds `from` (or the next one after it) on, until `bytes_max` is reached; at least one batch
    /// if there is one. The first batch may begin before `from`: the caller skips. Empty at the end.
    ///
    /// # Errors
    /// [`ReadError::BelowStart`] and [`ReadError::PastEnd`] for offsets outside `ends`.
    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError>;

    /// Wakes when the partition's committed end moves.
    fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError>;

    /// Where the partition begins and ends.
    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError>;

    /// Takes the right to commit the group's progress in the partition; whoever had it is fenced. Durable on return.
    async fn claim(&self, group: &str, partition: TopicPartition) -> Result<Lease, CommitError>;

    /// Gives a producer its identity: a new id, or with a name the one that the name had before, with the next epoch; earlier
    /// epochs of it are fenced. Durable on return.
    ///
    /// # Errors
    /// [`CommitError::ProducerName`], or why it could not be made durable.
    async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, CommitError>;

    /// The group's progress in the partition; `None` before its first commit.
    async fn progress(
        &self,
        group: &str,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError>;

    /// The groups of which there is progress in the partition, by name, whatever else is known of them.
    fn groups(&self, partition: TopicPartition) -> Result<Vec<Arc<str>>, ReadError>;

    /// The partitions in which the group has progress, in order.
    fn progress_partitions(&self, group: &str) -> Vec<TopicPartition>;

    /// The group's state in the partition, to read from: each commit shows in it when it returns, or sooner. It goes with its topic.
    fn state(&self, group: &str, partition: TopicPartition) -> Result<Arc<StateTable>, ReadError>;

    /// Entries of the group's state in the partition, and of what progress they are.
    async fn read_state(
        &self,
        group: &str,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError>;

    /// The partitions in which the group has any state, in order, whatever else is known of the group.
    fn state_partitions(&self, group: &str) -> Vec<TopicPartition>;

    /// Makes a topic. Durable on return.
    async fn create_topic(&self, spec: TopicSpec) -> Result<Topic, TopicError>;

    /// Changes what may be changed about topics, at once: all of them or none, in one step, and the topics as they are then in the same
    /// order. Durable on return; what was committed before is then at least as durable as the change. Further partitions of a topic are
    /// there, and empty, when its new count is first seen.
    async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
    ) -> Result<Vec<Topic>, TopicError>;

    /// As [`Engine::change_topics`], of one topic.
    async fn change_topic(
        &self,
        name: &TopicName,
        change: TopicChange,
    ) -> Result<Topic, TopicError> {
        let changed = self.change_topics(vec![(name.clone(), change)]).await?;
        let changed = changed.into_iter().next();
        changed.ok_or_else(|| TopicError::Unknown(name.clone()))
    }

    /// Removes the messages before an offset: the partition begins there. Returns where it begins now, which is later than asked
    /// where it had begun later already. Durable on return; groups keep their progress, and read on from the start.
    async fn trim(&self, partition: TopicPartition, before: Offset) -> Result<Offset, TrimError>;

    /// The first message kept whose timestamp is `at` or later; `None` if there is none. Timestamps need not ascend.
    async fn offset_at(
        &self,
        partition: TopicPartition,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError>;

    /// Deletes a topic, its messages and all groups' progress and state in it. Durable on return.
    async fn delete_topic(&self, name: &TopicName) -> Result<TopicId, TopicError>;

    /// All topics, by name.
    fn topics(&self) -> Vec<Topic>;

    /// One topic.
    fn topic(&self, name: &TopicName) -> Option<Topic>;

    /// All entries of a kind, by key.
    fn entries(&self, kind: EntryKind) -> Vec<(String, Bytes)>;

    /// One entry.
    fn entry(&self, kind: EntryKind, key: &str) -> Option<Bytes>;

    /// Keeps a module's bytes under their digest. Durable on return; keeping them twice is keeping them once.
    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError>;

    /// A module's bytes, as put.
    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError>;

    /// Forgets a module's bytes.
    async fn delete_module(&self, digest: Digest) -> Result<(), CommitError>;

    /// What is known to be damaged.
    fn damage(&self) -> DamageReport {
        DamageReport::default()
    }

    /// Notes that the damaged messages within these offsets are given up: processors go on without them. Durable on return;
    /// gives the ranges that it is now true for. What is on disk is left as it is.
    async fn accept_damage(
        &self,
        _partition: TopicPartition,
        _from: Offset,
        _to: Offset,
    ) -> Result<Vec<DamagedRange>, CommitError> {
        Ok(Vec::new())
    }

    /// Copies everything as of one instant that comes after this call; commits go on meanwhile.
    ///
    /// # Errors
    /// [`BackupError::Unsupported`] of an engine that cannot.
    async fn backup(&self, _request: BackupRequest) -> Result<BackupStream, BackupError> {
        Err(BackupError::Unsupported)
    }

    /// Writes down what is only in memory and stops. Further commits fail with [`CommitError::Closed`].
    async fn close(&self);
}

impl RequestMark {
    /// A partition that is there if the topic is.
    pub(crate) fn first_partition(&self) -> TopicPartition {
        TopicPartition {
            topic: self.topic,
            partition: PartitionId(0),
        }
    }
}

impl Transaction {
    /// A plain produce: appends and nothing else.
    #[must_use]
    pub fn produce(appends: Vec<Append>) -> Self {
        Self {
            appends,
            ..Self::default()
        }
    }

    /// Bytes of all batches in it.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.appends
            .iter()
            .map(|append| append.batch.byte_count())
            .sum()
    }
}
