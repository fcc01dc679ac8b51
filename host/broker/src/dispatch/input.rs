//! A partition that a processor reads.

use std::ops::Range;

use millrace_model::{Offset, PartitionId, Timestamp, Topic, TopicName};

/// One input partition of a processor, and where its dead letters go.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The topic that is read.
    pub(crate) topic: Topic,
    pub(crate) partition: PartitionId,
    /// The topic that the messages came from originally: not `topic` if they are redriven.
    pub(crate) origin: TopicName,
    /// The dead-letter topic; a dead letter goes to the partition of the same number.
    pub(crate) dead_letters: Topic,
    /// The messages to read, from the first to before the end; `None` means all that arrive.
    pub(crate) range: Option<(Offset, Offset)>,
    /// The message to start with if nothing is committed; `None` means the oldest.
    pub(crate) first: Option<Offset>,
    /// Of these, only those with these timestamps; `None` means all.
    pub(crate) times: Option<Range<Timestamp>>,
}

impl Input {
    /// Whether its messages are redriven dead letters.
    pub(crate) fn is_redriven(&self) -> bool {
        self.topic.spec.name != self.origin
    }
}
