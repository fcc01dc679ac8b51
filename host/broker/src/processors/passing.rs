//! Waits until a processor has settled certain messages, so that whoever sent them can read what became of them.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_model::{Offset, PartitionId, ProcessorName, TopicName};

use crate::ground::verbs::Verb;
use crate::messages::call::Placed;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;

/// How often committed progress is read while a caller waits: soon at first, because most messages are settled within milliseconds.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_LAST: Duration = Duration::from_millis(100);

impl Processors {
    /// Checks that a processor's current revision reads a topic.
    ///
    /// # Errors
    /// [`ProcessorError`] if there is no such processor, or it does not.
    pub fn check_reads(
        &self,
        name: &ProcessorName,
        topic: &TopicName,
    ) -> Result<(), ProcessorError> {
        self.caller.may(Verb::SeeProcessor, name.as_str())?;
        let processor = self.deployed_as(name);
        let processor = processor.ok_or_else(|| ProcessorError::Unknown(name.clone()))?;
        match processor.current() {
            Some(revision) if revision.spec.topics.contains(topic) => Ok(()),
            _ => Err(ProcessorError::DoesNotRead {
                name: name.clone(),
                topic: topic.clone(),
            }),
        }
    }

    /// Waits until the processor has settled all of these messages of a topic: it has processed them or given them up, and none of them
    /// is parked. Returns `false` if it has not within `patience`. Delayed messages have no place yet, and are not waited for.
    ///
    /// # Errors
    /// [`ProcessorError`] if the topic or the processor is gone, or its progress cannot be read.
    pub async fn settled(
        &self,
        name: &ProcessorName,
        topic: &TopicName,
        placed: &[Placed],
        patience: Duration,
    ) -> Result<bool, ProcessorError> {
        self.caller.may(Verb::SeeProcessor, name.as_str())?;
        let until = self.inner.clock.monotonic() + patience;
        let mut open: BTreeMap<PartitionId, Vec<Offset>> = BTreeMap::new();
        for place in placed {
            if let Placed::At { partition, offset } = place {
                open.entry(*partition).or_default().push(*offset);
            }
        }
        open.values_mut()
            .for_each(|offsets| offsets.sort_unstable());
        let mut pause = LOOK_FIRST;
        loop {
            self.check_reads(name, topic)?;
            while let Some((&partition, offsets)) = open.first_key_value() {
                if !self.has_settled(name, topic, partition, offsets).await? {
                    break;
                }
                open.pop_first();
            }
            let left = until.saturating_sub(self.inner.clock.monotonic());
            match (open.is_empty(), left.is_zero()) {
                (true, _) => return Ok(true),
                (false, true) => return Ok(false),
                (false, false) => tokio::time::sleep(pause.min(left)).await,
            }
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// Whether all of these offsets, ascending, are settled in a partition.
    async fn has_settled(
        &self,
        name: &ProcessorName,
        topic: &TopicName,
        partition: PartitionId,
        offsets: &[Offset],
    ) -> Result<bool, ProcessorError> {
        let topic = self.inner.catalogue.known_topic(topic)?;
        let mut partitions = topic.partitions();
        let Some(place) = partitions.find(|place| place.partition == partition) else {
            return Ok(false);
        };
        let progress = self.inner.engine.progress(&name.group(), place).await?;
        let Some(progress) = progress else {
            return Ok(false);
        };
        let is_parked = |offset: &Offset| offsets.binary_search(offset).is_ok();
        let is_past = offsets.last().is_none_or(|last| progress.next > *last);
        Ok(is_past
            && !progress
                .parked
                .iter()
                .any(|parked| is_parked(&parked.offset)))
    }
}
