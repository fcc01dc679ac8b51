//! A partition that a processor reads.

use std::ops::Range;

use millrace_model::{Offset, PartitionId, Timestamp, Topic, TopicName};

/// An input partition of a processor, and the topic of its dead letters.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The topic that is read.
    pub(crate) topic: Topic,
    pub(crate) partition: PartitionId,
    /// The topic that the messages originally came from; differs from `topic` if they are redriven.
    pub(crate) origin: TopicName,
    /// The dead-letter topic. A dead letter goes to the partition with the same number.
    pub(crate) dead_letters: Topic,
    /// The offsets to read, from the first to before the second; `None` reads everything that
    /// arrives.
    pub(crate) range: Option<(Offset, Offset)>,
    /// The offset to start at if no progress is committed; `None` starts at the oldest message.
    pub(crate) first: Option<Offset>,
    /// Only messages with these timestamps are read; `None` reads all.
    pub(crate) times: Option<Range<Timestamp>>,
}

impl Input {
    /// Whether its messages are redriven dead letters.
    pub(crate) fn is_redriven(&self) -> bool {
        self.topic.spec.name != self.origin
    }
}
