//! Errors for what does not exist: one for each condition, so that every operation reports it in
//! the same words.

use millrace_model::{Advice, Advised, Code, PartitionId, Topic, TopicName, TopicPartition};

use crate::catalogue::deciding::hear;
use crate::catalogue::handle::Catalogue;

/// Advice for a producer to a topic that does not exist.
pub(crate) const CREATE_TOPIC: &str = "POST /v1/topics or `millrace topic create` creates it";

/// No such topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("topic {0} does not exist")]
pub struct UnknownTopic(pub TopicName);

/// The topic has fewer partitions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic} has partitions 0 to {}, not {partition}", .partitions.saturating_sub(1))]
pub struct UnknownPartition {
    /// The topic's name.
    pub topic: TopicName,
    /// The requested partition.
    pub partition: PartitionId,
    /// The number of partitions.
    pub partitions: u32,
}

impl Advised for UnknownTopic {
    fn advice(&self) -> Advice {
        Code::UnknownTopic.advice()
    }
}

impl Advised for UnknownPartition {
    fn advice(&self) -> Advice {
        Code::UnknownPartition.advice()
    }
}

impl Catalogue {
    /// A topic that must exist.
    ///
    /// # Errors
    /// [`UnknownTopic`].
    pub fn known_topic(&self, name: &TopicName) -> Result<Topic, UnknownTopic> {
        let topic = self.topic(name);
        topic.ok_or_else(|| UnknownTopic(name.clone()))
    }

    /// As [`Catalogue::known_topic`], after asking whether another host has just created it.
    ///
    /// # Errors
    /// [`UnknownTopic`].
    pub async fn heard_topic(&self, name: &TopicName) -> Result<Topic, UnknownTopic> {
        if self.topic(name).is_none() {
            hear(&*self.inner.engine).await;
        }
        self.known_topic(name)
    }
}

/// A partition that the topic must have.
///
/// # Errors
/// [`UnknownPartition`].
pub fn known_partition(
    topic: &Topic,
    partition: PartitionId,
) -> Result<TopicPartition, UnknownPartition> {
    let known = topic.partition(partition);
    known.ok_or_else(|| UnknownPartition {
        topic: topic.spec.name.clone(),
        partition,
        partitions: topic.spec.partitions,
    })
}
