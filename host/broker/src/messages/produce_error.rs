//! Why messages or record batches were not produced.

use millrace_engine::CommitError;
use millrace_model::unit::OtherUnit;
use millrace_model::{Advice, Advised, BatchError, Code, ProcessorName, TopicName};

use crate::catalogue::deciding::decision_errors;
use crate::catalogue::unknown::{CREATE_TOPIC, UnknownPartition, UnknownTopic};
use crate::ground::meters::OverQuota;
use crate::ground::standing::Forbidden;
use crate::handler::CallError;
use crate::messages::delays::delayed::DelaysFull;

/// Why nothing was produced. `index` counts the messages of the call from 0.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The caller sends too much.
    #[error(transparent)]
    OverQuota(#[from] OverQuota),
    /// No such topic.
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    /// No topic can have this name.
    #[error("{0}")]
    TopicName(String),
    /// The topic has fewer partitions.
    #[error("message {index}: {unknown}")]
    UnknownPartition {
        /// The message's index.
        index: usize,
        /// Its partition.
        unknown: UnknownPartition,
    },
    /// The topic belongs to a processor.
    #[error(
        "topic {topic} belongs to processor {owner}, and only that processor writes to it; produce to the processor's input, or redrive its dead letters"
    )]
    Owned {
        /// The topic's name.
        topic: TopicName,
        /// The processor.
        owner: ProcessorName,
    },
    /// A message without a key, which a compacted topic could never remove.
    #[error(
        "message {index} has no key, but topic {topic} is compacted: it keeps the latest value of each key"
    )]
    KeyMissing {
        /// The message's index.
        index: usize,
        /// The topic's name.
        topic: TopicName,
    },
    /// A message over [`MESSAGE_BYTES_MAX`](millrace_model::bounds::MESSAGE_BYTES_MAX).
    #[error(
        "message {index} has {bytes} bytes; the maximum is {max}: store large payloads elsewhere and send a reference"
    )]
    TooLarge {
        /// The message's index.
        index: usize,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A message over [`MESSAGE_HEADERS_MAX`](millrace_model::bounds::MESSAGE_HEADERS_MAX).
    #[error("message {index} has {headers} headers; the maximum is {max}")]
    TooManyHeaders {
        /// The message's index.
        index: usize,
        /// The number of its headers.
        headers: usize,
        /// The bound.
        max: usize,
    },
    /// A header that only the host writes.
    #[error(
        "message {index}: header {name:?} is reserved for the host; choose a name that does not begin with `millrace-`"
    )]
    ReservedHeader {
        /// The message's index.
        index: usize,
        /// The header's name.
        name: String,
    },
    /// A message to delay over [`DELAYED_MESSAGE_BYTES_MAX`](millrace_model::bounds::DELAYED_MESSAGE_BYTES_MAX).
    #[error(
        "message {index} has {bytes} bytes; the maximum for a delayed message is {max}: store the payload elsewhere and send a reference"
    )]
    DelayedTooLarge {
        /// The message's index.
        index: usize,
        /// Its size, counting ten bytes for each header.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A time of delivery beyond [`DELAY_MS_MAX`](millrace_model::bounds::DELAY_MS_MAX).
    #[error(
        "message {index} has the time of delivery {deliver_at}, more than {max_ms} ms from now; use milliseconds since the Unix epoch"
    )]
    TooFar {
        /// The message's index.
        index: usize,
        /// The requested time.
        deliver_at: u64,
        /// The bound.
        max_ms: u64,
    },
    /// A timestamp beyond [`TIMESTAMP_AHEAD_MS_MAX`](millrace_model::bounds::TIMESTAMP_AHEAD_MS_MAX).
    #[error(
        "message {index} has the timestamp {timestamp}, more than {max_ms} ms ahead; use milliseconds since the Unix epoch, or omit it"
    )]
    Ahead {
        /// The message's index.
        index: usize,
        /// Its timestamp.
        timestamp: u64,
        /// The bound.
        max_ms: u64,
    },
    /// A time in another unit than milliseconds.
    #[error("message {index}: {field} {unit}")]
    OtherUnit {
        /// The message's index.
        index: usize,
        /// Which of its times.
        field: &'static str,
        /// The unit that it seems to have.
        unit: OtherUnit,
    },
    /// No room for more delayed messages.
    #[error(transparent)]
    DelaysFull(#[from] DelaysFull),
    /// All messages of the call together are over the bound.
    #[error(
        "the messages of this call have {bytes} bytes; the maximum is {max}: send them in several calls"
    )]
    CallTooLarge {
        /// Their size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// More messages than one call may carry.
    #[error("this call has {messages} messages; the maximum is {max}: send them in several calls")]
    TooMany {
        /// The number of messages.
        messages: usize,
        /// The bound.
        max: usize,
    },
    /// A call without messages.
    #[error("there is nothing to send; include at least one message")]
    NothingToSend,
    /// The bound of bytes on their way to the engine is reached.
    #[error("{max} bytes, the maximum, are already being written; try again in a moment")]
    Busy {
        /// The bound.
        max: usize,
    },
    /// A record batch that producers may not send, or that cannot be read.
    #[error("batch {index}: {error}")]
    Batch {
        /// The batch's index in the call.
        index: usize,
        /// What is wrong with it.
        error: BatchError,
    },
    /// The partitioner could not be loaded.
    #[error(
        "the topic's partitioner cannot be loaded: {0}; name the partition, or see the host's log"
    )]
    PartitionerGone(String),
    /// The partitioner failed.
    #[error("the topic's partitioner failed: {0}")]
    Partitioner(CallError),
    /// The positions of the messages exceed what may be stored with a key.
    #[error(
        "with a key the positions of all messages are stored, which takes {bytes} bytes here; the maximum is {max}: send fewer \
         messages at once, or name their partitions in runs"
    )]
    Scattered {
        /// Their size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The call took effect earlier, but the positions of its messages are lost.
    #[error(
        "the call took effect earlier, but the positions of its messages can no longer be read"
    )]
    PlacesLost,
    /// The engine refused the commit.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    ProduceError: ProduceError::Commit;
}

impl Advised for ProduceError {
    fn advice(&self) -> Advice {
        let code = match self {
            Self::Forbidden(error) => return error.advice(),
            Self::OverQuota(error) => return error.advice(),
            Self::UnknownTopic(error) => return error.advice().hint(CREATE_TOPIC),
            Self::UnknownPartition { unknown, .. } => {
                let hint = "omit the partition to let the topic's partitioner choose";
                return unknown.advice().hint(hint);
            }
            Self::DelaysFull(error) => return error.advice(),
            Self::NothingToSend => return Code::Malformed.hint("send at least one message"),
            Self::Batch { .. } => {
                let hint = "send complete record batches in Kafka's format, magic 2";
                return Code::Malformed.hint(hint);
            }
            Self::Commit(error) => return error.advice(),
            Self::TopicName(_) => Code::BadName,
            Self::Owned { .. } => Code::OwnedTopic,
            Self::KeyMissing { .. } => Code::KeyMissing,
            Self::TooLarge { .. }
            | Self::TooManyHeaders { .. }
            | Self::DelayedTooLarge { .. }
            | Self::TooMany { .. }
            | Self::CallTooLarge { .. }
            | Self::Scattered { .. } => Code::TooLarge,
            Self::ReservedHeader { .. } => Code::ReservedHeader,
            Self::TooFar { .. } => Code::TooFarAway,
            Self::Ahead { .. } => Code::TimestampAhead,
            Self::OtherUnit { .. } => Code::OtherUnit,
            Self::Busy { .. } => Code::Busy,
            Self::Partitioner(CallError::Interrupted) => Code::Stopping,
            Self::PartitionerGone(_) | Self::Partitioner(_) => Code::PartitionerFailed,
            Self::PlacesLost => Code::Internal,
        };
        code.advice()
    }
}
