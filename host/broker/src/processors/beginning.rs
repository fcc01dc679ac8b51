//! Finds where a new processor begins. The offsets are looked up once, when the processor is
//! created, and stored with it in the same commit. After its first commit in a partition, its
//! progress counts.

use millrace_model::{ProcessorName, ProcessorSpec, TopicStart};

use crate::messages::beginning::BeginAt;
use crate::processors::error::{ProcessorError, invalid};
use crate::processors::handle::Processors;

impl Processors {
    /// The offset to start at in each partition, as the topics are now.
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
                        "{name} was deleted earlier and will continue where it was in {}; omit the start position, or choose another name",
                        topic.spec.name
                    ));
                }
                offsets.push(self.inner.messages.first_of(place, begin_at).await?);
            }
            starts.push(TopicStart {
                topic: topic.spec.name,
                id: topic.id,
                offsets,
            });
        }
        match begin_at {
            // Without a stored offset, the oldest retained message comes first. A removed one
            // cannot be read.
            BeginAt::Earliest => Ok(Vec::new()),
            _ => Ok(starts),
        }
    }
}
