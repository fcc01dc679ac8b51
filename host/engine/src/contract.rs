//! The seam: what every engine promises. [`memory`](crate::memory) shows it in its shortest form, and
//! [`conformance`](crate::conformance) asks it of everyone.
//!
//! 1. **Atomic.** A [`Transaction`] takes effect whole or not at all, for every reader, now and after any crash.
//! 2. **Ordered.** A partition's offsets only grow; no offset is given twice. Appends of one transaction to one partition
//!    stand in the order in which it lists them. Offsets may have gaps; readers must not count on their absence. A partition's
//!    start only grows, too: what is below it is gone for good.
//! 3. **Durable on return.** When `commit` returns, the transaction is as durable as its most demanding append (or, without
//!    appends, as [`Transaction::durability`] says). Readers see nothing that is less durable than its topic asks.
//! 4. **Fenced.** Each lease that a transaction names, for progress, for state or as a fence, is the newest of its group and partition;
//!    a commit under an older one fails whole with [`CommitError::Fenced`].
//! 5. **On what was seen.** A transaction takes effect only while each of its [`Expectation`]s holds; otherwise it fails whole with
//!    [`CommitError::Conflict`]. Who reads, decides and writes needs no lock, however many do.
//! 6. **Once.** A batch whose producer numbered it, and a transaction that carries a [`RequestMark`], take effect once, however
//!    often they are committed: a repeat gets the receipt of the first time, and is as durable as asked when it gets it.
//! 7. **Failed is not done.** A commit that fails did nothing, but for [`CommitError::InDoubt`]: it may have taken effect, or may still do so, until its
//!    leases are taken anew or its mark is asked about. Losing the store for a while is [`CommitError::Unavailable`], and ends nothing.
//! 8. **Final failure.** After an error of the disk that leaves it unknown what is durable, the engine refuses everything
//!    with [`CommitError::Poisoned`] until it is opened again.
//!
//! # How late a read may be
//!
//! ```text
//!             start                       shown end                 end
//!   gone        │   found by every read       │   committed, and not      │   not there yet
//!   for good    │                             │   yet durable enough      │
//! ```
//!
//! - [`Engine::ends`] and [`Engine::watch`] tell the start and the shown end, from memory, so that hot paths ask them without waiting. Either
//!   may be late, neither is early or goes back. [`Engine::read`] decides at the store: it finds all that any `ends` has told.
//! - What was committed through this handle shows in it when `commit` returns; what others committed, within the engine's delay.
//! - Topics, entries and versions are a mirror. Own changes show when they return, those of others within the engine's delay, and
//!   [`Engine::watch_catalogue`] changes after they show. What is decided on something late fails with [`CommitError::Conflict`].
//! - [`Engine::progress`], [`Engine::state`], [`Engine::read_state`] and [`Engine::state_partitions`] are late for whoever has no lease. What they
//!   tell after [`Engine::hold`] or [`Engine::claim`] has all that was committed under any earlier one.

pub(crate) mod catalogue;
pub(crate) mod errors;
mod holding;
pub(crate) mod lease;
mod topics;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_model::{
    Digest, Durability, GroupName, Offset, PartitionId, ProducerId, Progress, ProgressChange,
    RecordBatch, Timestamp, Topic, TopicId, TopicName, TopicPartition, TopicSpec,
};
use tokio::sync::watch;

pub use self::catalogue::{Entry, EntryKind, EntryWrite, Expectation, Version};
pub use self::errors::{CommitError, ReadError, TopicError, TrimError};
pub use self::holding::{Hold, HostId, HostInfo};
pub use self::lease::Lease;
pub use self::topics::{TopicChange, changed, check_partitions};
use crate::backup::{BackupError, BackupRequest, BackupStream};
use crate::damage::{DamageReport, DamagedRange};
use crate::state::{HeldTurn, StatePage, StateQuery, StateTable, StateWrite};

/// The only thing that an engine writes.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Batches to append; their base offsets are given by the engine.
    pub appends: Vec<Append>,
    /// Progress of groups, each under its lease, in order.
    pub progress: Vec<ProgressWrite>,
    /// Leases that must be the newest, although nothing is written under them.
    pub fences: Vec<Lease>,
    /// Changes of the catalogue, in order.
    pub entries: Vec<EntryWrite>,
    /// Changes of groups' state, in order; one table at most once.
    pub state: Vec<StateWrite>,
    /// The turns that the state was read and is written under. They are held until it is applied or refused; of a commit in doubt, until that
    /// is said.
    pub turns: Vec<HeldTurn>,
    /// At least this durable; each append's topic may ask for more.
    pub durability: Option<Durability>,
    /// Which request this is, so that it takes effect once.
    pub request: Option<RequestMark>,
    /// A named producer that begins a new epoch with this.
    pub producer: Option<NextEpoch>,
    /// What it was decided on. Of a request that took effect before nothing is expected any more.
    pub expects: Vec<Expectation>,
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

/// That a named producer begins its next epoch: what it sends under this one afterwards is refused. In the transaction itself this one
/// still counts; a repeat of the transaction is known by its [`RequestMark`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextEpoch {
    /// Its name, as given to [`Engine::init_producer`].
    pub name: Arc<str>,
    /// Who it is until then. If it is somebody else by now the transaction fails whole, with [`CommitError::ProducerFenced`] or
    /// [`CommitError::UnknownProducer`].
    pub producer: ProducerId,
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
    /// The right, which may be that to another partition.
    pub lease: Lease,
    /// Where.
    pub partition: TopicPartition,
    /// What becomes of it, since the newest commit under the lease or any earlier one.
    pub progress: ProgressChange,
}

/// What a commit gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// For each append, in order, the offset of its first message.
    pub base_offsets: Vec<Offset>,
    /// For each write of an entry, in order, its version; none of a repeated request.
    pub versions: Vec<Version>,
    /// Who the named producer is from now on, if the transaction began an epoch of it; of a repeat, who it is by now.
    pub producer: Option<ProducerId>,
    /// Whether all of it took effect earlier. Nothing of it was written now, and the offsets are those given then.
    pub repeated: bool,
    /// Of a repeated request, the note that it carried the first time.
    pub note: Bytes,
}

/// Where a partition begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The first offset kept.
    pub start: Offset,
    /// The offset that the next message will have.
    pub end: Offset,
}

/// How much an engine takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one transaction, as [`Transaction::byte_count`] counts those of its batches, and about those of all else in it. More is
    /// refused with [`CommitError::TooLarge`].
    pub transaction_bytes_max: usize,
}

impl Limits {
    /// Whether so many bytes fit one transaction.
    ///
    /// # Errors
    /// [`CommitError::TooLarge`].
    pub fn check(self, bytes: usize) -> Result<(), CommitError> {
        let max = self.transaction_bytes_max;
        match bytes <= max {
            true => Ok(()),
            false => Err(CommitError::TooLarge { bytes, max }),
        }
    }
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

    /// Where the partition begins and ends, from memory.
    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError>;

    /// How many messages a reader finds from `from` on and before `to`; what lies outside `ends` counts for none. Offsets have gaps, so their
    /// distance says nothing. What is damaged may count or not.
    async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError>;

    /// How much it takes at once. The same for as long as it is open.
    fn limits(&self) -> Limits;

    /// Takes the work of the group in the partition from whoever has it, who is fenced, and told; for an operator, who must not wait. A claim does not
    /// count as leaving: what was left before is told to the next [`Engine::hold`]. Durable on return.
    async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError>;

    /// Takes the work of the group in the partition for as long as this host lives: `None` while another living host has it. A host that
    /// holds it already takes it from itself. Durable on return.
    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError>;

    /// Gives a hold back, with nothing at hand; nothing happens if it is lost already. What was left before and is so still ([`Hold::left`]) is
    /// told to the next [`Engine::hold`].
    async fn release(&self, hold: Hold) -> Result<(), CommitError>;

    /// Which host this is.
    fn host(&self) -> HostId;

    /// The hosts that live, by id. A host that stopped without a word is listed until its time has run out, and one that is not listed has
    /// lost what it held as soon as somebody else holds it.
    fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>>;

    /// Gives a producer its identity: a new id, or with a name the one that the name had before, with the next epoch; earlier
    /// epochs of it are fenced. Durable on return.
    ///
    /// # Errors
    /// [`CommitError::ProducerName`], or why it could not be made durable.
    async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, CommitError>;

    /// The group's progress in the partition; `None` before its first commit.
    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError>;

    /// The groups of which there is progress in the partition, by name, whatever else is known of them.
    async fn groups(&self, partition: TopicPartition) -> Result<Vec<GroupName>, ReadError>;

    /// The partitions in which the group has progress, in order.
    async fn progress_partitions(
        &self,
        group: &GroupName,
    ) -> Result<Vec<TopicPartition>, ReadError>;

    /// The group's state in the partition, to read from. It has all that was committed under leases older than the newest one that this host
    /// has, and what is committed through this handle shows in it when that returns, or sooner; what others commit, within the engine's delay.
    /// It goes with its topic.
    async fn state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<StateTable>, ReadError>;

    /// Changes after other hosts have written state of the group. Cheap; may be held for ever.
    fn watch_state(&self, group: &GroupName) -> watch::Receiver<u64>;

    /// Entries of the group's state in the partition, and of what progress they are.
    async fn read_state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError>;

    /// The partitions in which the group has any state, in order, whatever else is known of the group.
    async fn state_partitions(&self, group: &GroupName) -> Result<Vec<TopicPartition>, ReadError>;

    /// Makes a topic. Durable on return.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] if something is not as `expects` says.
    async fn create_topic(
        &self,
        spec: TopicSpec,
        expects: Vec<Expectation>,
    ) -> Result<Topic, TopicError>;

    /// Changes what may be changed about topics, at once: all of them or none, in one step, and the topics as they are then in the same
    /// order. Durable on return; what was committed before is then at least as durable as the change. Further partitions of a topic are
    /// there, and empty, when its new count is first seen.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] if something is not as `expects` says.
    async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError>;

    /// As [`Engine::change_topics`], of one topic, whatever it is like.
    async fn change_topic(
        &self,
        name: &TopicName,
        change: TopicChange,
    ) -> Result<Topic, TopicError> {
        let changes = vec![(name.clone(), change)];
        let changed = self.change_topics(changes, Vec::new()).await?;
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
    ///
    /// # Errors
    /// [`CommitError::Conflict`] if something is not as `expects` says.
    async fn delete_topic(
        &self,
        name: &TopicName,
        expects: Vec<Expectation>,
    ) -> Result<TopicId, TopicError>;

    /// All topics, by name.
    fn topics(&self) -> Vec<Topic>;

    /// One topic.
    fn topic(&self, name: &TopicName) -> Option<Topic>;

    /// All entries of a kind, by key.
    fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)>;

    /// One entry.
    fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry>;

    /// The version of the newest write of a kind. Entries that are read after it are as new, or newer.
    fn version(&self, kind: EntryKind) -> Version;

    /// Changes after each change of topics and entries, when that shows. Cheap; may be held for ever.
    fn watch_catalogue(&self) -> watch::Receiver<u64>;

    /// Keeps a module's bytes under their digest. Durable on return; keeping them twice is keeping them once.
    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError>;

    /// A module's bytes, as put.
    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError>;

    /// Forgets a module's bytes, in one step with what is expected: no commit comes between.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] if something is not as `expects` says; the bytes are as they were.
    async fn delete_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError>;

    /// Whether commits are taken now.
    ///
    /// # Errors
    /// What a commit would fail with.
    async fn health(&self) -> Result<(), CommitError>;

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
    #[must_use]
    pub fn first_partition(&self) -> TopicPartition {
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
