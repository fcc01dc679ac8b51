//! The interface of storage: what every engine promises. [`memory`](crate::memory) is its shortest implementation, and
//! [`conformance`](crate::conformance) tests every engine against it.
//!
//! 1. **Atomic.** A [`Transaction`] takes effect whole or not at all, for every reader, now and after any crash.
//! 2. **Ordered.** A partition's offsets only grow; no offset is given twice. Appends of one transaction to one partition
//!    are in the order in which it lists them. Offsets may have gaps; readers must not expect consecutive ones. A partition's
//!    start only grows, too: what is below it is gone for good.
//!    A store beside the host may itself lose what it acknowledged, by a crash that its durability allows or when it is restored. Then starts and
//!    ends are what it has now, every lease is lost, and offsets that it lost are given again.
//! 3. **Durable on return.** When `commit` returns, the transaction is as durable as its most demanding append (or, without
//!    appends, as [`Transaction::durability`] says). Readers see nothing that is less durable than its topic asks.
//! 4. **Fenced.** Each lease that a transaction names, for progress, for state or as a fence, is the newest of its group and partition;
//!    a commit under an older one fails whole with [`CommitError::Fenced`].
//! 5. **On what was seen.** A transaction takes effect only if each of its [`Expectation`]s holds;
//!    otherwise it fails whole with [`CommitError::Conflict`]. So any number of callers can read,
//!    decide and write without a lock.
//! 6. **Once.** A batch whose producer numbered it, and a transaction that carries a [`RequestMark`], take effect once, however
//!    often they are committed: a repeat gets the receipt of the first time, and is as durable as asked when it gets it.
//! 7. **Failed is not done.** A failed commit had no effect, except [`CommitError::InDoubt`]: it may have taken effect, or may still do so, until its
//!    leases are taken again or its mark is repeated. Losing the store for a while is [`CommitError::Unavailable`], and ends nothing.
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
//! - [`Engine::ends`] and [`Engine::watch`] return the start and the visible end from memory, so
//!   that hot paths can use them without waiting. Both may be late, but they are never early and
//!   never go back. [`Engine::read`] asks the store, so it finds everything that any `ends` has
//!   reported.
//! - A commit through this handle is visible in it when `commit` returns; a commit of another host,
//!   within the engine's delay.
//! - Topics, entries and versions are mirrored in memory. This host's own changes are visible when
//!   they return, those of others within the engine's delay, or after [`Engine::hear`];
//!   [`Engine::watch_catalogue`] changes after they are visible. A decision based on something late fails with
//!   [`CommitError::Conflict`].
//! - Without a lease, [`Engine::progress`], [`Engine::state`], [`Engine::read_state`] and
//!   [`Engine::state_partitions`] may be late. After [`Engine::hold`] or [`Engine::claim`] they
//!   include everything that was committed under any earlier lease.

mod adopting;
pub(crate) mod catalogue;
pub(crate) mod errors;
mod holding;
pub(crate) mod lease;
mod outbox;
mod topics;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_model::{
    Digest, Durability, GroupName, Offset, PartitionId, ProducerId, Progress, ProgressChange,
    RecordBatch, Timestamp, Topic, TopicId, TopicName, TopicPartition, TopicSpec,
};
use tokio::sync::watch;

pub use self::adopting::{AdoptError, Adoption, end_after};
pub use self::catalogue::{Entry, EntryKind, EntryWrite, Expectation, Version};
pub use self::errors::{CommitError, ReadError, TopicError, TrimError};
pub use self::holding::{Hold, HostId, HostInfo};
pub use self::lease::Lease;
pub use self::outbox::OutboxMessage;
pub use self::topics::{TopicChange, changed, check_partitions};
use crate::backup::{BackupError, BackupRequest, BackupStream};
use crate::damage::{DamageReport, DamagedRange};
use crate::state::{HeldTurn, StatePage, StateQuery, StateTable, StateWrite};

/// The only thing that an engine writes.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Batches to append; the engine assigns their base offsets.
    pub appends: Vec<Append>,
    /// Progress of groups, each under its lease, in order.
    pub progress: Vec<ProgressWrite>,
    /// Leases that must be the newest, although nothing is written under them.
    pub fences: Vec<Lease>,
    /// Changes of the catalogue, in order.
    pub entries: Vec<EntryWrite>,
    /// Changes of groups' state, in order; each table at most once.
    pub state: Vec<StateWrite>,
    /// The turns under which the state was read and is written. They are held until the commit is applied or refused; if it is in
    /// doubt, until that is reported.
    pub turns: Vec<HeldTurn>,
    /// Minimum durability; each append's topic may require more.
    pub durability: Option<Durability>,
    /// Identifies the request, so that it takes effect once.
    pub request: Option<RequestMark>,
    /// A named producer that begins a new epoch with this transaction.
    pub producer: Option<NextEpoch>,
    /// What the decision was based on. Not checked for a repeated request.
    pub expects: Vec<Expectation>,
    /// Messages of the outbox that it appends, by their ids. If one of them is gone, somebody else took it, and nothing takes effect.
    pub outbox: Vec<u64>,
}

/// Identifies a request within its topic's window ([`millrace_model::bounds::REQUESTS_PER_TOPIC_MAX`] and the bounds after it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMark {
    /// The topic.
    pub topic: TopicId,
    /// A digest of the key.
    pub key: [u8; 16],
    /// A digest of the request: the same key with another request is refused.
    pub fingerprint: [u8; 16],
    /// What the caller needs besides the offsets to repeat its answer; opaque to the engine.
    pub note: Bytes,
}

/// A named producer begins its next epoch: what it sends under this one afterwards is refused. The transaction itself still counts
/// under this one; only its [`RequestMark`] identifies a repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextEpoch {
    /// Its name, as given to [`Engine::init_producer`].
    pub name: Arc<str>,
    /// Its identity until then. If it is outdated, the transaction fails whole, with [`CommitError::ProducerFenced`] or
    /// [`CommitError::UnknownProducer`].
    pub producer: ProducerId,
}

/// A batch for a partition.
#[derive(Clone, Debug)]
pub struct Append {
    /// The partition.
    pub partition: TopicPartition,
    /// The batch.
    pub batch: RecordBatch,
}

/// A group's progress, and the lease under which it is written.
#[derive(Clone, Debug)]
pub struct ProgressWrite {
    /// The lease, which may belong to another partition.
    pub lease: Lease,
    /// The partition.
    pub partition: TopicPartition,
    /// The change since the newest commit under this lease or an earlier one.
    pub progress: ProgressChange,
}

/// The result of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// For each append, in order, the offset of its first message.
    pub base_offsets: Vec<Offset>,
    /// For each write of an entry, in order, its version; none of a repeated request.
    pub versions: Vec<Version>,
    /// The named producer's new identity, if the transaction began an epoch; for a repeat, its present identity.
    pub producer: Option<ProducerId>,
    /// Whether all of it took effect earlier. Nothing was written now, and the offsets are the original ones.
    pub repeated: bool,
    /// For a repeated request, the note from the first time.
    pub note: Bytes,
}

/// The start and end of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The first offset kept.
    pub start: Offset,
    /// The offset that the next message will have.
    pub end: Offset,
}

/// How much an engine accepts at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one transaction: those of its batches as counted by [`Transaction::byte_count`], and approximately those of everything
    /// else in it. More is refused with [`CommitError::TooLarge`].
    pub transaction_bytes_max: usize,
}

impl Limits {
    /// Whether this many bytes fit into one transaction.
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

/// Wakes when a partition's committed end moves. Cheap; may be held forever.
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

/// The progress of a group in a partition.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupProgress {
    /// The group.
    pub group: GroupName,
    /// The partition.
    pub partition: TopicPartition,
    /// How far it is.
    pub progress: Progress,
}

/// Where data is kept.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Commits a transaction, whole or not at all.
    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError>;

    /// Batches from the one that contains `from` (or the next one) on, until `bytes_max` is reached; at least one batch if there is
    /// one. The first batch may begin before `from`: the caller skips. Empty at the end.
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

    /// The partition's start and end, from memory.
    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError>;

    /// How many messages a reader finds from `from` on and before `to`; offsets outside `ends` do not count. Offsets have gaps, so
    /// their difference says nothing. Damaged messages may count or not.
    async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError>;

    /// How much it accepts at once. Constant while it is open.
    fn limits(&self) -> Limits;

    /// Takes a group's work in the partition from its holder, which is fenced and told; for operators, who must not wait. A claim does
    /// not count as leaving: what was left before is reported to the next [`Engine::hold`]. Durable on return.
    async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError>;

    /// Takes a group's work in the partition for as long as this host lives: `None` while another living host has it. A host that
    /// already holds it takes it from itself. Durable on return.
    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError>;

    /// Releases a hold with no work unfinished; does nothing if it is already lost. If [`Hold::left`] is still set, that is reported to
    /// the next [`Engine::hold`].
    async fn release(&self, hold: Hold) -> Result<(), CommitError>;

    /// This host's id.
    fn host(&self) -> HostId;

    /// The living hosts, by id. A host that stopped without notice is listed until its time has run out; one that is not listed loses
    /// what it held as soon as another host takes it.
    fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>>;

    /// Issues a producer's identity: a new id, or for a name its previous id with the next epoch; earlier epochs are fenced. Durable on
    /// return.
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

    /// All progress of these groups, read in one step; `None` if the engine has no quicker way than to ask for one after the other.
    async fn progress_at_once(
        &self,
        _groups: &[GroupName],
    ) -> Result<Option<Vec<GroupProgress>>, ReadError> {
        Ok(None)
    }

    /// The groups with progress in the partition, by name, including unknown ones.
    async fn groups(&self, partition: TopicPartition) -> Result<Vec<GroupName>, ReadError>;

    /// The partitions in which the group has progress, in order.
    async fn progress_partitions(
        &self,
        group: &GroupName,
    ) -> Result<Vec<TopicPartition>, ReadError>;

    /// The group's state in the partition, for reading. It includes everything committed under leases older than this host's newest
    /// one, and commits through this handle by the time they return; other commits within the engine's delay. It is deleted with its
    /// topic.
    async fn state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<StateTable>, ReadError>;

    /// Changes after other hosts have written state of the group. Cheap; may be held forever.
    fn watch_state(&self, group: &GroupName) -> watch::Receiver<u64>;

    /// Entries of the group's state in the partition, and the progress that they belong to.
    async fn read_state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError>;

    /// The partitions in which the group has any state, in order, including unknown groups.
    async fn state_partitions(&self, group: &GroupName) -> Result<Vec<TopicPartition>, ReadError>;

    /// Creates a topic. Durable on return.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] if an expectation does not hold.
    async fn create_topic(
        &self,
        spec: TopicSpec,
        expects: Vec<Expectation>,
    ) -> Result<Topic, TopicError>;

    /// Changes the settings of topics in one step, all or none; returns the changed topics in the same order. Durable on return;
    /// earlier commits are then at least as durable as the change. Added partitions exist, and are empty, when the new count is first
    /// seen.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] if an expectation does not hold.
    async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError>;

    /// Like [`Engine::change_topics`], for one topic, without expectations.
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

    /// Removes the messages before an offset: the partition starts there. Returns where it now starts, which is later than requested if
    /// it already started later. Durable on return; groups keep their progress, and continue at the start.
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
    /// [`CommitError::Conflict`] if an expectation does not hold.
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

    /// The version of the newest write of a kind. Entries read after it are at least as new.
    fn version(&self, kind: EntryKind) -> Version;

    /// Changes after each change of topics and entries, once it is visible. Cheap; may be held forever.
    fn watch_catalogue(&self) -> watch::Receiver<u64>;

    /// Brings topics, entries and versions up to everything that was committed, by any host, before this call. A decision on what is
    /// late is refused by its commit; this is for decisions that end without one, because something seems not to exist.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]; what is known may be late.
    async fn hear(&self) -> Result<(), ReadError> {
        Ok(())
    }

    /// Stores a module's bytes under their digest. Durable on return; storing them twice is the same as once.
    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError>;

    /// A module's bytes, as stored.
    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError>;

    /// Deletes a module's bytes, in one step with the check of the expectations: no commit comes between.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] if an expectation does not hold; the bytes are unchanged.
    async fn delete_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError>;

    /// Takes over something of another store, with the numbers that it has there.
    ///
    /// # Errors
    /// [`AdoptError::Unsupported`] for an engine that cannot do it.
    async fn adopt(&self, _adoption: Adoption) -> Result<(), AdoptError> {
        Err(AdoptError::Unsupported)
    }

    /// Whether the store has an outbox. Constant while it is open.
    fn has_outbox(&self) -> bool {
        false
    }

    /// Messages of the outbox, oldest first, up to this many. They stay until a transaction [takes](Transaction::outbox) them.
    async fn outbox(&self, _max: usize) -> Result<Vec<OutboxMessage>, ReadError> {
        Ok(Vec::new())
    }

    /// Says why a message of the outbox cannot be sent. It is not lost, and is returned again after a while.
    async fn refuse_outbox(&self, _id: u64, _why: &str) -> Result<(), CommitError> {
        Ok(())
    }

    /// Whether commits are accepted now.
    ///
    /// # Errors
    /// What a commit would fail with.
    async fn health(&self) -> Result<(), CommitError>;

    /// The known damage.
    fn damage(&self) -> DamageReport {
        DamageReport::default()
    }

    /// Accepts the loss of the damaged messages within these offsets: processors continue after them. Durable on return; returns the
    /// accepted ranges. What is on disk is not changed.
    async fn accept_damage(
        &self,
        _partition: TopicPartition,
        _from: Offset,
        _to: Offset,
    ) -> Result<Vec<DamagedRange>, CommitError> {
        Ok(Vec::new())
    }

    /// Copies everything as of one instant after this call; commits continue meanwhile.
    ///
    /// # Errors
    /// [`BackupError::Unsupported`] for an engine that cannot do it.
    async fn backup(&self, _request: BackupRequest) -> Result<BackupStream, BackupError> {
        Err(BackupError::Unsupported)
    }

    /// Writes everything that is only in memory and stops. Further commits fail with [`CommitError::Closed`].
    async fn close(&self);
}

impl RequestMark {
    /// A partition that exists if its topic does.
    #[must_use]
    pub fn first_partition(&self) -> TopicPartition {
        TopicPartition {
            topic: self.topic,
            partition: PartitionId(0),
        }
    }
}

impl Transaction {
    /// A plain produce: only appends.
    #[must_use]
    pub fn produce(appends: Vec<Append>) -> Self {
        Self {
            appends,
            ..Self::default()
        }
    }

    /// Bytes of all batches.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.appends
            .iter()
            .map(|append| append.batch.byte_count())
            .sum()
    }
}
