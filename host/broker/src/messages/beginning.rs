//! Where a new processor begins: by default at the oldest message, or where its first deployment says. That is looked up once, when the
//! processor is made, and kept with it in the same commit; from its first commit in a partition on, progress counts. Consumers begin by the
//! same words.

use millrace_engine::ReadError;
use millrace_model::{Offset, ProcessorName, ProcessorSpec, Timestamp, TopicPartition, TopicStart};

use crate::messages::handle::Messages;
use crate::processors::error::ProcessorError;
use crate::processors::error::invalid;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeginAt {
    /// At the oldest message.
    Earliest,
    /// After what is there now.
    Latest,
    /// At this offset of each partition, or the nearest that there is.
    Offset(Offset),
    /// At the first message of this time or later; after what is there now, if there is none.
    Time(Timestamp),
}

impl Messages {
    /// The offsets to begin at, in the topics as they are now.
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
        for topic in spec
            .topics
            .iter()
            .filter_map(|topic| self.inner.catalogue.topic(topic))
        {
            let mut offsets = Vec::new();
            for place in topic.partitions() {
                let progress = self.inner.engine.progress(&name.group(), place).await?;
                if progress.is_some() {
                    return invalid(format!(
                        "{name} was deployed before and deleted, and goes on where it was in {}; say nothing of where to begin, or choose another name",
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
            // What is kept no longer tomorrow is not to be asked for.
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
