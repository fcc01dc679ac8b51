//! A partition that a processor reads.

use millrace_model::Offset;
use millrace_model::PartitionId;
use millrace_model::Timestamp;
use millrace_model::Topic;
use millrace_model::TopicName;
use std::ops::Range;

/// One partition that a processor reads, and where what it gives up goes.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The topic that is read.
    pub(crate) topic: Topic,
    pub(crate) partition: PartitionId,
    /// The topic that the messages first stood in: another one than `topic` if they are redriven.
    pub(crate) origin: TopicName,
    /// Takes the dead letters, in the partition of the same number.
    pub(crate) dead_letters: Topic,
    /// The messages to read, from the first one to before the end; `None`: all that come.
    pub(crate) range: Option<(Offset, Offset)>,
    /// The message to begin with, as long as nothing is committed; `None`: the oldest.
    pub(crate) first: Option<Offset>,
    /// Of these, only those of these times; `None`: all.
    pub(crate) times: Option<Range<Timestamp>>,
}

impl Input {
    /// Whether its messages are redriven dead letters.
    pub(crate) fn is_redriven(&self) -> bool {
        self.topic.spec.name != self.origin
    }
}
