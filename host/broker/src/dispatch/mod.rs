//! Dispatch: how messages reach processors and what becomes of them.
//!
//! In the order of a batch: [`source`] reads, [`batcher`] cuts, [`worker`] calls, [`answer`] checks, [`placing`] gives outputs
//! their partitions, [`delivery`] decides with [`retry`], [`dead_letter`] writes the evidence, and the worker commits all of it
//! in one transaction. [`supervisor`] keeps one worker per processor and input partition, and one [`gate`] per processor: the
//! [`breaker`] that pauses it when most messages fail alike, and the [`allowance`] of dead letters. [`sides`] shares messages out
//! between the current revision and a canary; a [`shadow`] is shown what was settled, and its answers go to a [`comparison`].
//! What all of them may have in memory is bounded: by [`at_hand`] for what is being processed, by [`remembered`] for what waits.

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

/// One revision of a processor, loaded: all that a worker needs to take its next batch.
pub(crate) struct Live {
    pub(crate) processor: ProcessorName,
    pub(crate) revision: u32,
    /// When the processor was made.
    pub(crate) made_at: Timestamp,
    /// The one to go back to from it.
    pub(crate) back: Option<Back>,
    /// Revisions that stood still, were taken back or withdrawn: what they made messages wait for counts no longer.
    pub(crate) voided: Vec<u32>,
    /// How it did, as far as it is written down.
    pub(crate) record: Record,
    /// Which run of revisions it belongs to that came one after the other without one of them being proven.
    pub(crate) unproven_run: u32,
    pub(crate) spec: ProcessorSpec,
    /// The module's digest, for the evidence.
    pub(crate) module: String,
    pub(crate) handler: Arc<dyn BatchHandler>,
    pub(crate) failures: Option<Arc<dyn FailureHandler>>,
    pub(crate) outputs: OutputTopics,
}

impl Live {
    /// Whose attempts at a message tell of what this one makes of it.
    pub(crate) fn whose(&self, now: Timestamp) -> Whose {
        Whose {
            revision: self.revision,
            back: self.back.as_ref().map(|back| back.revision),
            // If the clock was set back to before then, nothing can be told apart by it.
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
    /// Which of them takes outputs that name none.
    pub(crate) default: Option<u32>,
    /// Whether that one takes all outputs, whatever topic and partition they name.
    pub(crate) takes_all: bool,
}

/// One topic that a processor may write to.
pub(crate) struct OutputTopic {
    /// As it was when the revision was loaded; how many partitions it has now, its partitioner knows.
    pub(crate) topic: Topic,
    pub(crate) partitioner: Arc<Partitioner>,
}

impl OutputTopics {
    /// The topic of this name.
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

    /// How many partitions a topic has now: it may have been given more since the revision was loaded.
    pub(crate) fn partitions(&self, topic: u32) -> u32 {
        let topic = (topic != NONE).then(|| self.topics.get(topic as usize));
        topic
            .flatten()
            .map_or(0, |output| output.partitioner.partitions())
    }
}

/// What the workers of a processor are to do from their next batch on.
#[derive(Clone)]
pub(crate) struct Command {
    pub(crate) live: Arc<Live>,
    pub(crate) canary: Option<Arc<Canary>>,
    pub(crate) shadow: Option<Arc<Shadow>>,
    pub(crate) paused: bool,
    pub(crate) stopped: bool,
    /// Until when, by the monotonic clock, a call may go on that this command wants nothing of any more.
    pub(crate) patience: Duration,
}

impl Command {
    /// The canary, unless its breaker has opened.
    pub(crate) fn canary(&self) -> Option<&Arc<Canary>> {
        self.canary.as_ref().filter(|canary| !canary.gate.is_open())
    }

    /// The same, with the current revision alone.
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

    /// The revisions, and how messages are shared out between them.
    pub(crate) fn revisions(&self) -> (u32, Option<(u32, u32)>) {
        let canary = self.canary.as_ref();
        let canary = canary.map(|canary| (canary.live.revision, canary.percent));
        (self.live.revision, canary)
    }
}

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
