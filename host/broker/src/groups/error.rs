//! Why a consumer could not be created, read or moved.

use millrace_engine::{CommitError, ReadError};
use millrace_model::bounds::{
    CONSUMERS_MAX, GROUP_COMMIT_POSITIONS_MAX, GROUP_NAME_BYTES_MAX, POSITION_NOTE_BYTES_MAX,
};
use millrace_model::calendar::utc;
use millrace_model::{
    Advice, Advised, Code, ConsumerName, Offset, PartitionId, Timestamp, Topic, TopicName,
};

use crate::catalogue::deciding::decision_errors;
use crate::catalogue::unknown::{UnknownPartition, UnknownTopic};
use crate::ground::caller::UNKNOWN;
use crate::ground::standing::Forbidden;

/// Why a consumer could not be created, read or moved.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such topic.
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    /// The topic has fewer partitions.
    #[error(transparent)]
    UnknownPartition(#[from] UnknownPartition),
    /// No such consumer.
    #[error("topic {topic} has no consumer {name}")]
    Unknown {
        /// The topic's name.
        topic: TopicName,
        /// The requested consumer.
        name: ConsumerName,
    },
    /// The topic has the maximum number of consumers.
    #[error("topic {0} already has {CONSUMERS_MAX} consumers, the maximum")]
    TooMany(TopicName),
    /// Another reader has the lease.
    #[error(
        "consumer {name} of topic {topic} is being read by {}, whose lease lasts until {} and is renewed while that reader is active",
        somebody(.by),
        utc(*.until)
    )]
    Busy {
        /// The topic's name.
        topic: TopicName,
        /// The requested consumer.
        name: ConsumerName,
        /// The current reader, as it named itself.
        by: String,
        /// Until when the lease lasts, unless the reader renews it.
        until: Timestamp,
        /// The remaining time in milliseconds.
        left_ms: u64,
    },
    /// The lease is not the newest one, or was released.
    #[error("this lease of consumer {name} of topic {topic} is no longer valid: {why}")]
    Lost {
        /// The topic's name.
        topic: TopicName,
        /// The requested consumer.
        name: ConsumerName,
        /// What happened to the lease.
        why: String,
    },
    /// A commit cannot move backwards.
    #[error(
        "partition {partition} is committed up to offset {committed}; a commit cannot move back to {position}"
    )]
    Backwards {
        /// The partition.
        partition: PartitionId,
        /// The position to commit.
        position: Offset,
        /// The committed position.
        committed: Offset,
    },
    /// The position is past the end, so it cannot have been read.
    #[error("partition {partition} ends at offset {end}; {position} cannot be committed")]
    PastEnd {
        /// The partition.
        partition: PartitionId,
        /// The position to commit.
        position: Offset,
        /// The end.
        end: Offset,
    },
    /// A name that no consumer group can have.
    #[error("a consumer group's name has at most {} bytes", GROUP_NAME_BYTES_MAX - 1)]
    GroupName,
    /// More positions than one commit may carry.
    #[error(
        "{count} positions are too many for one commit; the maximum is {GROUP_COMMIT_POSITIONS_MAX}: commit them in several calls"
    )]
    TooManyPositions {
        /// How many.
        count: usize,
    },
    /// The text of a position is too long.
    #[error("the text of a position has {bytes} bytes; the maximum is {POSITION_NOTE_BYTES_MAX}")]
    NoteTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The stored entry has another version.
    #[error(
        "the stored entry of consumer {name} of topic {topic} cannot be read; delete the consumer and create it again"
    )]
    Unreadable {
        /// The topic's name.
        topic: TopicName,
        /// The requested consumer.
        name: ConsumerName,
    },
    /// The start position could not be looked up.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    ConsumerError: ConsumerError::Commit;
}

const SEE_POSITIONS: &str =
    "GET /v1/topics/{topic}/consumers/{name} or `millrace consumer show` shows its positions";

impl Advised for ConsumerError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::UnknownTopic(error) => error.advice(),
            Self::UnknownPartition(error) => error.advice().hint(SEE_POSITIONS),
            Self::Unknown { .. } => Code::UnknownConsumer.advice(),
            Self::TooMany(_) => Code::TooManyConsumers.advice(),
            Self::Busy { left_ms, .. } => {
                let seconds = u32::try_from(left_ms.div_ceil(1_000)).unwrap_or(u32::MAX);
                Code::ConsumerBusy.advice().after_s(seconds)
            }
            Self::Lost { .. } => Code::LeaseLost.advice(),
            Self::Backwards { .. } => Code::PositionBehind.advice(),
            Self::PastEnd { .. } => Code::PositionPastEnd.hint(SEE_POSITIONS),
            Self::GroupName => Code::BadName.hint("choose a shorter name"),
            Self::TooManyPositions { .. } | Self::NoteTooLarge { .. } => Code::TooLarge.advice(),
            Self::Unreadable { .. } => Code::Internal.advice(),
            Self::Read(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}

/// Names the reader in a sentence, even if it did not name itself.
pub(super) fn somebody(by: &str) -> &str {
    match by {
        UNKNOWN => "somebody",
        by => by,
    }
}

pub(super) fn unknown(topic: &Topic, name: &ConsumerName) -> ConsumerError {
    ConsumerError::Unknown {
        topic: topic.spec.name.clone(),
        name: name.clone(),
    }
}

pub(super) fn lost(topic: &Topic, name: &ConsumerName, why: String) -> ConsumerError {
    ConsumerError::Lost {
        topic: topic.spec.name.clone(),
        name: name.clone(),
        why,
    }
}
