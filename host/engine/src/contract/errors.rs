//! Why an engine did not do what it was asked.

use std::sync::Arc;

use millrace_model::{Digest, GroupName, Offset, TopicName, TopicPartition};

use super::catalogue::Expectation;
use crate::damage::DamageKind;
use crate::room::RoomFull;
use crate::state::StateError;

/// Why nothing was committed (or, for `Poisoned` and `InDoubt`, why it is not known).
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The partition does not exist, or no longer.
    #[error("partition {0} does not exist; its topic may have been deleted")]
    UnknownPartition(TopicPartition),
    /// Somebody holds a newer lease. Stop: the work belongs to them.
    #[error("group {group} in partition {partition}: the lease was taken over by a newer claim")]
    Fenced {
        /// Whose lease.
        group: GroupName,
        /// Where.
        partition: TopicPartition,
    },
    /// What the decision was made on is no longer so. Nothing was written: look again, and decide again.
    #[error("{0} was changed by someone else meanwhile; nothing was done")]
    Conflict(Arc<Expectation>),
    /// A batch is missing, or this one was sent before those that are remembered. Nothing was written.
    #[error(
        "producer {producer} in partition {partition}: got sequence {found}, expected {expected}; a lower one was written long \
         ago; with a higher one, batches are missing: send those first, or start a new epoch and number from 0"
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
    #[error("producer {producer} now has epoch {newest}; the one with epoch {epoch} must stop")]
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
        "producer {0} is unknown, or was idle for so long that it was forgotten; request a new id and number from 0"
    )]
    UnknownProducer(i64),
    /// A transaction is whole: each append repeats one that was written, or none does.
    #[error(
        "{repeated} of {appends} appends were written earlier and the others were not; repeat the transaction unchanged, or send only new batches"
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
        "this key was used for another request; use a new key for each request, and the same key only to repeat one"
    )]
    RequestReused,
    /// Larger than the engine's journal takes at once. Send less.
    #[error("the transaction has {bytes} bytes; the maximum is {max}: send less at once")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// As much is kept in memory as the host may. Nothing was written; try again when there is less.
    #[error(transparent)]
    RoomFull(#[from] RoomFull),
    /// What the state holds that is written to could not be read, or the writes do not go with it. Nothing was written.
    #[error("the state cannot be written to: {0}")]
    State(Arc<str>),
    /// No room on the disk. Nothing was written; try again when there is space.
    #[error(
        "the disk is full, or a limit on the size or number of files is reached (`ulimit -f`, `ulimit -n`): free some space or shorten \
         retention; reading still works"
    )]
    DiskFull,
    /// The store cannot be reached. Nothing was written; try again.
    #[error("the store cannot be reached ({0}); nothing was written: try again")]
    Unavailable(Arc<str>),
    /// The store was lost while it committed: it may have taken effect, and it may yet. Whoever carries a mark asks again with it; whoever
    /// has a lease takes a new one, and looks.
    #[error(
        "the store was lost while it committed ({0}), so it is unknown whether that took effect: repeat the request with the same key, or check"
    )]
    InDoubt(Arc<str>),
    /// The disk failed; nothing more is acknowledged until the host is started again.
    #[error(
        "the engine stopped after a disk error ({0}); restart the host; recovery determines what was stored"
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
        matches!(
            self,
            Self::DiskFull
                | Self::RoomFull(_)
                | Self::Unavailable(_)
                | Self::State(_)
                | Self::Closed
        )
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
        "messages {from} to {to} (exclusive) of partition {partition} {kind}; continue at {to}"
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
        "module {0} is damaged on disk: its bytes differ from those that were uploaded; upload the same component again"
    )]
    ModuleDamaged(Digest),
    /// The store cannot be reached.
    #[error("the store cannot be reached ({0}): try again")]
    Unavailable(Arc<str>),
    /// The disk failed.
    #[error("reading failed: {0}")]
    Io(Arc<str>),
}

/// Why the catalogue did not change.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TopicError {
    /// The name is taken.
    #[error("topic {0} already exists")]
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
        "topic {topic} has {have} partitions and cannot have fewer: the messages, progress and state of all of them would not fit into {asked}"
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
        "the host has {have} partitions, and with {asked} more would exceed the maximum of {max} (partitions_max): ask for fewer, or delete \
         topics that are not needed"
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

impl From<StateError> for ReadError {
    fn from(error: StateError) -> Self {
        Self::Io(error.to_string().into())
    }
}

impl From<ReadError> for CommitError {
    /// What a commit rests on could not be read, so nothing was committed.
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::UnknownPartition(partition) => Self::UnknownPartition(partition),
            ReadError::Unavailable(reason) => Self::Unavailable(reason),
            other => Self::Unavailable(other.to_string().into()),
        }
    }
}

impl From<StateError> for CommitError {
    fn from(error: StateError) -> Self {
        Self::State(error.to_string().into())
    }
}
