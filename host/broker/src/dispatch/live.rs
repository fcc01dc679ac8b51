//! A revision that is loaded, and the topics that it may write to.

use std::sync::Arc;

use millrace_model::columns::NONE;
use millrace_model::{ProcessorName, ProcessorSpec, Record, Timestamp, Topic};

use crate::dispatch::breaker::{Back, Whose};
use crate::ground::partitioner::Partitioner;
use crate::handler::{BatchHandler, FailureHandler};

/// One loaded revision of a processor: everything a worker needs to take its next batch.
pub(crate) struct Live {
    pub(crate) processor: ProcessorName,
    pub(crate) revision: u32,
    /// When the processor was created.
    pub(crate) made_at: Timestamp,
    /// The revision to go back to from it.
    pub(crate) back: Option<Back>,
    /// Revisions that were stopped, rolled back or withdrawn: what they made messages wait for no longer counts.
    pub(crate) voided: Vec<u32>,
    /// Its stored record.
    pub(crate) record: Record,
    /// Its run: consecutive revisions without a proven one among them.
    pub(crate) unproven_run: u32,
    pub(crate) spec: ProcessorSpec,
    /// The module's digest, for the evidence.
    pub(crate) module: String,
    pub(crate) handler: Arc<dyn BatchHandler>,
    pub(crate) failures: Option<Arc<dyn FailureHandler>>,
    pub(crate) outputs: OutputTopics,
}

impl Live {
    /// Which earlier attempts at a message count as known for this one.
    pub(crate) fn whose(&self, now: Timestamp) -> Whose {
        Whose {
            revision: self.revision,
            back: self.back.as_ref().map(|back| back.revision),
            // If the clock was set back to before that time, it cannot tell processors apart.
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
    /// The one for outputs that name none.
    pub(crate) default: Option<u32>,
    /// Whether that one takes all outputs, whatever topic and partition they name.
    pub(crate) takes_all: bool,
}

/// One topic that a processor may write to.
pub(crate) struct OutputTopic {
    /// As it was when the revision was loaded; the partitioner knows the present number of partitions.
    pub(crate) topic: Topic,
    pub(crate) partitioner: Arc<Partitioner>,
}

impl OutputTopics {
    /// The topic with this name.
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

    /// The present number of partitions of a topic: some may have been added since the revision was loaded.
    pub(crate) fn partitions(&self, topic: u32) -> u32 {
        let topic = (topic != NONE).then(|| self.topics.get(topic as usize));
        topic
            .flatten()
            .map_or(0, |output| output.partitioner.partitions())
    }
}
