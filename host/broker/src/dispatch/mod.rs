//! Dispatch: how messages reach processors, and what happens to them.
//!
//! In the order of a batch: [`source`] reads, [`batcher`] cuts, [`worker`] calls, [`answer`] checks, [`placing`] chooses the partitions
//! of outputs, [`delivery`] decides with [`retry`], [`dead_letter`] writes the evidence, and the worker commits everything in one
//! transaction. [`supervisor`] keeps one worker per processor and input partition, and one [`gate`] per processor: the [`breaker`] that
//! pauses it when most messages fail alike, and the [`allowance`] of dead letters. [`sides`] divides messages between the current
//! revision and a canary; a [`shadow`] is called with finished batches, and its answers go to a [`comparison`]. Memory is bounded by
//! [`at_hand`] for batches in work and by [`remembered`] for parked messages.

pub(crate) mod allowance;
pub(crate) mod answer;
pub(crate) mod at_hand;
#[cfg(test)]
mod bad_deploys;
pub(crate) mod batcher;
pub(crate) mod breaker;
pub(crate) mod classes;
pub(crate) mod comparison;
pub(crate) mod dead_letter;
pub(crate) mod delivery;
pub(crate) mod gate;
pub(crate) mod meters;
pub(crate) mod orders;
pub(crate) mod pace;
pub(crate) mod placing;
pub(crate) mod planted;
pub(crate) mod remembered;
pub(crate) mod retry;
pub(crate) mod shadow;
pub(crate) mod sides;
pub(crate) mod source;
pub(crate) mod standing;
pub(crate) mod supervisor;
pub(crate) mod worker;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::columns::NONE;
use millrace_model::{
    Offset, PartitionId, ProcessorName, ProcessorSpec, Record, Timestamp, Topic, TopicName,
};

use crate::handler::{BatchHandler, FailureHandler};
use crate::partitioner::Partitioner;

use breaker::{Back, Whose};
use shadow::Shadow;
use sides::Canary;

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

/// What the workers of a processor should do from their next batch on.
#[derive(Clone)]
pub(crate) struct Command {
    pub(crate) live: Arc<Live>,
    pub(crate) canary: Option<Arc<Canary>>,
    pub(crate) shadow: Option<Arc<Shadow>>,
    pub(crate) paused: bool,
    pub(crate) stopped: bool,
    /// Until when, by the monotonic clock, a call may go on whose result this command no longer needs.
    pub(crate) patience: Duration,
}

impl Command {
    /// The canary, unless its breaker has opened.
    pub(crate) fn canary(&self) -> Option<&Arc<Canary>> {
        self.canary.as_ref().filter(|canary| !canary.gate.is_open())
    }

    /// The same command with only the current revision.
    pub(crate) fn without_canary(&self) -> Self {
        Self {
            canary: None,
            ..self.clone()
        }
    }

    /// Whether the revision takes batches.
    pub(crate) fn runs(&self, revision: u32) -> bool {
        let canary = self.canary.as_ref().map(|canary| canary.live.revision);
        self.live.revision == revision || canary == Some(revision)
    }

    /// The revisions, and how messages are divided between them.
    pub(crate) fn revisions(&self) -> (u32, Option<(u32, u32)>) {
        let canary = self.canary.as_ref();
        let canary = canary.map(|canary| (canary.live.revision, canary.percent));
        (self.live.revision, canary)
    }
}

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
