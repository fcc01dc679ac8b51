//! A loaded revision, and the topics that it may write to.

use std::sync::Arc;

use millrace_model::columns::NONE;
use millrace_model::{ProcessorName, ProcessorSpec, Record, Timestamp, Topic};

use crate::dispatch::breaker::{Back, Whose};
use crate::ground::partitioner::Partitioner;
use crate::handler::{BatchHandler, FailureHandler};

/// A loaded revision of a processor: everything that a worker needs for its next batch.
pub(crate) struct Live {
    pub(crate) processor: ProcessorName,
    pub(crate) revision: u32,
    /// When the processor was created.
    pub(crate) made_at: Timestamp,
    /// The revision to go back to from this one.
    pub(crate) back: Option<Back>,
    /// Revisions that were stopped, rolled back or withdrawn. Waits that they decided on no longer
    /// count.
    pub(crate) voided: Vec<u32>,
    /// The stored record.
    pub(crate) record: Record,
    /// The run of the revision: consecutive revisions of which none is proven.
    pub(crate) unproven_run: u32,
    pub(crate) spec: ProcessorSpec,
    /// The module's digest, for the evidence.
    pub(crate) module: String,
    pub(crate) handler: Arc<dyn BatchHandler>,
    pub(crate) failures: Option<Arc<dyn FailureHandler>>,
    pub(crate) outputs: OutputTopics,
}

impl Live {
    /// Which earlier attempts at a message count as known failures for this revision.
    pub(crate) fn whose(&self, now: Timestamp) -> Whose {
        Whose {
            revision: self.revision,
            back: self.back.as_ref().map(|back| back.revision),
            // A clock that was set back to before this time cannot tell the processor from a
            // deleted one.
            made_at: if now < self.made_at {
                Timestamp::default()
            } else {
                self.made_at
            },
        }
    }
}

/// The topics that a processor may write to.
#[derive(Default)]
pub(crate) struct OutputTopics {
    pub(crate) topics: Vec<OutputTopic>,
    /// The index of the topic for outputs that name none.
    pub(crate) default: Option<u32>,
    /// Whether the default topic takes all outputs, whatever topic and partition they name.
    pub(crate) takes_all: bool,
}

/// One topic that a processor may write to.
pub(crate) struct OutputTopic {
    /// The topic as it was when the revision was loaded. The partitioner knows the present number
    /// of partitions.
    pub(crate) topic: Topic,
    pub(crate) partitioner: Arc<Partitioner>,
}

impl OutputTopics {
    /// The index of the topic with this name.
    pub(crate) fn find(&self, name: &str) -> Option<u32> {
        if self.takes_all {
            return self.default;
        }
        let found = self
            .topics
            .iter()
            .position(|output| output.topic.spec.name.as_str() == name);
        found.map(|index| index as u32)
    }

    /// The present number of partitions of a topic. Some may have been added since the revision was
    /// loaded.
    pub(crate) fn partitions(&self, topic: u32) -> u32 {
        let topic = (topic != NONE).then(|| self.topics.get(topic as usize));
        topic
            .flatten()
            .map_or(0, |output| output.partitioner.partitions())
    }
}
