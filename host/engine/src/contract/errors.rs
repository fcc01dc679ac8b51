//! Why an engine refused a request.

use std::sync::Arc;

use millrace_model::{Advice, Advised, Code, Digest, GroupName, Offset, TopicName, TopicPartition};

use super::catalogue::Expectation;
use crate::damage::DamageKind;
use crate::room::RoomFull;
use crate::state::StateError;

/// Why nothing was committed (for `Poisoned` and `InDoubt`, why that is unknown).
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The partition does not exist, or no longer.
    #[error("partition {0} does not exist; its topic may have been deleted")]
    UnknownPartition(TopicPartition),
    /// A newer lease exists. Stop: the work belongs to its holder.
    #[error("group {group} in partition {partition}: the lease was taken over by a newer claim")]
    Fenced {
        /// The group.
        group: GroupName,
        /// The partition.
        partition: TopicPartition,
    },
    /// An expectation no longer holds. Nothing was written: read again, and decide again.
    #[error("{0} was changed by someone else meanwhile; nothing was done")]
    Conflict(Arc<Expectation>),
    /// A batch is missing, or this one is older than the remembered ones. Nothing was written.
    #[error(
        "producer {producer} in partition {partition}: got sequence {found}, expected {expected}; a lower one was written long \
         ago; with a higher one, batches are missing: send those first, or start a new epoch and number from 0"
    )]
    OutOfOrderSequence {
        /// The partition.
        partition: TopicPartition,
        /// The producer's id.
        producer: i64,
        /// The sequence that is next.
        expected: i32,
        /// The sequence received.
        found: i32,
    },
    /// The producer was restarted. Stop: it was replaced.
    #[error("producer {producer} now has epoch {newest}; the one with epoch {epoch} must stop")]
    ProducerFenced {
        /// The producer's id.
        producer: i64,
        /// The epoch received.
        epoch: i16,
        /// The newest epoch.
        newest: i16,
    },
    /// The id was never issued, or the partition has forgotten what it sent.
    #[error(
        "producer {0} is unknown, or was idle for so long that it was forgotten; request a new id and number from 0"
    )]
    UnknownProducer(i64),
    /// A transaction is repeated as a whole: either all appends repeat earlier ones, or none does.
    #[error(
        "{repeated} of {appends} appends were written earlier and the others were not; repeat the transaction unchanged, or send only new batches"
    )]
    PartlyRepeated {
        /// Appends that were written earlier.
        repeated: usize,
        /// All appends.
        appends: usize,
    },
    /// Not a valid name for a producer.
    #[error("a producer's name has 1 to {max} bytes, not {bytes}")]
    ProducerName {
        /// Its size.
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
    /// The store does not say that it writes to the disk before it answers, so nothing durable is promised. Nothing was written.
    #[error(
        "`durable` cannot be promised, because the servers may answer before they write to the disk"
    )]
    NotDurable,
    /// The host's memory bounds are reached. Nothing was written; try again when there is less.
    #[error(transparent)]
    RoomFull(#[from] RoomFull),
    /// The stored state could not be read, or the writes do not match it. Nothing was written.
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
    /// The store was lost during the commit: it may have taken effect, and still may. A caller with a mark repeats the request with it;
    /// a caller with a lease takes a new one, and checks.
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
    /// Whether the same transaction may succeed later without any change.
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

impl Advised for CommitError {
    fn advice(&self) -> Advice {
        let code = match self {
            Self::UnknownPartition(_) => return partition_gone(),
            Self::RoomFull(full) => return full.advice(),
            Self::Fenced { .. } => Code::Fenced,
            Self::Conflict(_) => Code::ChangedMeanwhile,
            Self::OutOfOrderSequence { .. } => Code::OutOfOrderSequence,
            Self::ProducerFenced { .. } => Code::ProducerFenced,
            Self::UnknownProducer(_) => Code::UnknownProducer,
            Self::PartlyRepeated { .. } => Code::PartlyRepeated,
            Self::ProducerName { .. } => Code::BadProducerName,
            Self::RequestReused => Code::IdempotencyKeyReused,
            Self::TooLarge { .. } => Code::TooLarge,
            Self::NotDurable => {
                return Code::NotDurable.hint(
                    "run the servers with sync_interval: always, and start the host with --jetstream-synced (engine.jetstream.synced); or \
                     create the topic with another durability",
                );
            }
            Self::State(_) => Code::StateBusy,
            Self::DiskFull => Code::DiskFull,
            Self::Unavailable(_) => Code::StoreUnavailable,
            Self::InDoubt(_) => Code::InDoubt,
            Self::Poisoned(_) => Code::EnginePoisoned,
            Self::Closed => Code::Stopping,
        };
        code.advice()
    }
}

/// A partition that was there goes with its topic.
fn partition_gone() -> Advice {
    Code::UnknownPartition.hint(Code::UnknownTopic.remedy())
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
        /// The requested offset.
        requested: Offset,
        /// The first offset kept.
        start: Offset,
    },
    /// After the committed end.
    #[error("offset {requested} is past the end; the next message will be {end}")]
    PastEnd {
        /// The requested offset.
        requested: Offset,
        /// The end.
        end: Offset,
    },
    /// Stored bytes are not those that were written. The rest of the partition stays readable.
    #[error(
        "messages {from} to {to} (exclusive) of partition {partition} {kind}; continue at {to}"
    )]
    Damaged {
        /// The partition.
        partition: TopicPartition,
        /// First offset of the damage.
        from: Offset,
        /// First offset after it.
        to: Offset,
        /// What is there instead.
        kind: DamageKind,
    },
    /// A module's bytes differ from those that were stored. Storing them again repairs it.
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

impl Advised for ReadError {
    fn advice(&self) -> Advice {
        match self {
            Self::UnknownPartition(_) => partition_gone(),
            Self::BelowStart { start, .. } => Code::OffsetNotKept.advice().next(*start),
            Self::PastEnd { .. } => Code::OffsetPastEnd.advice(),
            Self::Damaged { to, .. } => {
                let hint = format!(
                    "continue at offset {to}; the rest of the partition is sound. GET /v1/damage or `millrace damage list` shows all damage"
                );
                Code::Damaged.hint(hint).next(*to)
            }
            Self::ModuleDamaged(_) => Code::ModuleDamaged.advice(),
            Self::Unavailable(_) => Code::StoreUnavailable.advice(),
            Self::Io(_) => Code::Internal.advice(),
        }
    }
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
        /// The requested number.
        asked: u32,
        /// The bound.
        max: u32,
    },
    /// The existing messages would not fit.
    #[error(
        "topic {topic} has {have} partitions and cannot have fewer: the messages, progress and state of all of them would not fit into {asked}"
    )]
    FewerPartitions {
        /// The topic's name.
        topic: TopicName,
        /// Its number of partitions.
        have: u32,
        /// The requested number.
        asked: u32,
    },
    /// All topics together would exceed the host's maximum.
    #[error(
        "the host has {have} partitions, and with {asked} more would exceed the maximum of {max} (partitions_max): ask for fewer, or delete \
         topics that are not needed"
    )]
    HostPartitions {
        /// The present number.
        have: usize,
        /// The number requested in addition.
        asked: u32,
        /// The bound.
        max: usize,
    },
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Advised for TopicError {
    fn advice(&self) -> Advice {
        match self {
            Self::Exists(_) => Code::TopicExists.advice(),
            Self::Unknown(_) => Code::UnknownTopic.advice(),
            Self::Partitions { .. } => Code::BadPartitions.advice(),
            Self::FewerPartitions { .. } => Code::FewerPartitions.advice(),
            Self::HostPartitions { .. } => Code::PartitionsFull.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}

/// Why a partition's start did not move.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrimError {
    /// The offset is past the end.
    #[error("nothing before offset {requested} can be removed: the partition ends at {end}")]
    PastEnd {
        /// The requested offset.
        requested: Offset,
        /// The end.
        end: Offset,
    },
    /// The partition is unknown, or the change could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Advised for TrimError {
    fn advice(&self) -> Advice {
        match self {
            Self::PastEnd { .. } => Code::PositionPastEnd.hint("use \"end\" to remove everything"),
            Self::Commit(error) => error.advice(),
        }
    }
}

impl From<StateError> for ReadError {
    fn from(error: StateError) -> Self {
        Self::Io(error.to_string().into())
    }
}

impl From<ReadError> for CommitError {
    /// Something that the commit depends on could not be read, so nothing was committed.
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
