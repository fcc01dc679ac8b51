//! Why a consumer was not made, read or moved, in sentences.

use millrace_engine::{CommitError, ReadError};
use millrace_model::bounds::CONSUMERS_MAX;
use millrace_model::calendar::utc;
use millrace_model::{ConsumerName, Offset, PartitionId, Timestamp, Topic, TopicName};

use crate::catalogue::deciding::decision_errors;
use crate::ground::caller::UNKNOWN;

/// Why a consumer was not made, read or moved.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// No such topic.
    #[error("topic {0} does not exist")]
    UnknownTopic(TopicName),
    /// The topic has fewer partitions.
    #[error("topic {topic} has partitions 0 to {}, not {partition}", .partitions - 1)]
    UnknownPartition {
        /// Which topic.
        topic: TopicName,
        /// What was asked for.
        partition: PartitionId,
        /// How many there are.
        partitions: u32,
    },
    /// No such consumer.
    #[error("topic {topic} has no consumer {name}")]
    Unknown {
        /// Of which topic.
        topic: TopicName,
        /// Which one.
        name: ConsumerName,
    },
    /// As many as there may be.
    #[error("topic {0} has {CONSUMERS_MAX} consumers already")]
    TooMany(TopicName),
    /// Somebody else reads.
    #[error(
        "consumer {name} of topic {topic} is read by {}, whose lease holds until {} and is renewed as long as that reader is there",
        somebody(.by),
        utc(*.until)
    )]
    Busy {
        /// Of which topic.
        topic: TopicName,
        /// Which one.
        name: ConsumerName,
        /// Who reads, as far as they said.
        by: String,
        /// Until when nobody else may, unless the reader is heard of.
        until: Timestamp,
        /// How long that is, in milliseconds.
        left_ms: u64,
    },
    /// The lease is not the newest, or was given back.
    #[error("this lease of consumer {name} of topic {topic} is no longer valid: {why}")]
    Lost {
        /// Of which topic.
        topic: TopicName,
        /// Which one.
        name: ConsumerName,
        /// What became of it.
        why: String,
    },
    /// A commit goes forward.
    #[error(
        "partition {partition} is committed up to offset {committed}; a commit does not go back to {position}"
    )]
    Backwards {
        /// Where.
        partition: PartitionId,
        /// What was to be committed.
        position: Offset,
        /// What is.
        committed: Offset,
    },
    /// What is not there yet was not read.
    #[error("partition {partition} ends at offset {end}; {position} cannot be committed")]
    PastEnd {
        /// Where.
        partition: PartitionId,
        /// What was to be committed.
        position: Offset,
        /// The end.
        end: Offset,
    },
    /// What is stored is none of this version.
    #[error(
        "what is stored of consumer {name} of topic {topic} cannot be read; delete it and make it anew"
    )]
    Unreadable {
        /// Of which topic.
        topic: TopicName,
        /// Which one.
        name: ConsumerName,
    },
    /// Where it begins cannot be looked for.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    ConsumerError: ConsumerError::Commit;
}

/// Who it is, in a sentence: not everybody says.
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
