//! Where a new processor starts: by default at the oldest message, otherwise where its first deployment says. The positions are looked
//! up once, when the processor is created, and stored in the same commit; after its first commit in a partition, progress counts.
//! Consumers start in the same way.

use millrace_engine::ReadError;
use millrace_model::{Offset, ProcessorName, ProcessorSpec, Timestamp, TopicPartition, TopicStart};

use crate::broker::Broker;
use crate::loading::invalid;
use crate::processors::ProcessorError;

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeginAt {
    /// At the oldest message.
    Earliest,
    /// After the existing messages.
    Latest,
    /// At this offset in each partition, or the nearest one that exists.
    Offset(Offset),
    /// At the first message with this time or a later one; if there is none, after the existing messages.
    Time(Timestamp),
}

impl Broker {
    /// The offsets to start at, in the topics as they are now.
    pub(crate) async fn start_of(
        &self,
        name: &ProcessorName,
        spec: &ProcessorSpec,
        begin_at: Option<BeginAt>,
    ) -> Result<Vec<TopicStart>, ProcessorError> {
        let Some(begin_at) = begin_at else {
            return Ok(Vec::new());
        };
        let mut starts = Vec::new();
        for topic in spec.topics.iter().filter_map(|topic| self.topic(topic)) {
            let mut offsets = Vec::new();
            for place in topic.partitions() {
                let progress = self.inner.engine.progress(&name.group(), place).await?;
                if progress.is_some() {
                    return invalid(format!(
                        "{name} was deleted earlier and will continue where it was in {}; omit the start position, or choose another name",
                        topic.spec.name
                    ));
                }
                offsets.push(self.first_of(place, begin_at).await?);
            }
            starts.push(TopicStart {
                topic: topic.spec.name,
                id: topic.id,
                offsets,
            });
        }
        match begin_at {
            // Starts no lower than what is kept: a removed message must not be asked for.
            BeginAt::Earliest => Ok(Vec::new()),
            _ => Ok(starts),
        }
    }

    pub(crate) async fn first_of(
        &self,
        place: TopicPartition,
        begin_at: BeginAt,
    ) -> Result<Offset, ReadError> {
        let engine = &self.inner.engine;
        let ends = engine.ends(place)?;
        Ok(match begin_at {
            BeginAt::Earliest => ends.start,
            BeginAt::Latest => ends.end,
            BeginAt::Offset(offset) => offset.clamp(ends.start, ends.end),
            BeginAt::Time(time) => {
                let found = engine.offset_at(place, time).await?;
                found.unwrap_or(ends.end)
            }
        })
    }
}
