//! A topic: its specification, and an identity that is independent of its name.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::name::{ProcessorName, TopicName};
use crate::offset::PartitionId;
use crate::settings::TopicSettings;

/// A topic's identity: assigned once and never reused, so a topic that is deleted and created again
/// under its name is a different one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct TopicId(pub u64);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One partition of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition within it.
    pub partition: PartitionId,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// When an append is acknowledged.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Once it is ordered in memory; a crash of the process may lose it.
    None,
    /// Once it is in the page cache: survives the end of the process, but not a power cut.
    Os,
    /// After `fdatasync`: survives a power cut.
    #[default]
    Durable,
}

/// The specification of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicSpec {
    /// Its name.
    pub name: TopicName,
    /// The number of partitions, at least one.
    pub partitions: u32,
    /// When appends are acknowledged.
    pub durability: Durability,
    /// The partitioner component; `None` is the built-in one (murmur2 of the key, sticky without a key).
    pub partitioner: Option<Digest>,
    /// The processor that this topic belongs to (for its dead letters, its redrives); `None` for
    /// topics created by people.
    pub owner: Option<ProcessorName>,
    /// When it was created.
    pub created_at: Timestamp,
    /// The settings that can be changed later.
    #[serde(default)]
    pub settings: TopicSettings,
}

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Its identity.
    pub id: TopicId,
    /// Its specification.
    pub spec: TopicSpec,
}

impl Topic {
    /// One of its partitions; `None` if it has fewer.
    #[must_use]
    pub fn partition(&self, partition: PartitionId) -> Option<TopicPartition> {
        (partition.0 < self.spec.partitions).then_some(TopicPartition {
            topic: self.id,
            partition,
        })
    }

    /// All its partitions, in order.
    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> + use<> {
        let topic = self.id;
        (0..self.spec.partitions).map(move |number| TopicPartition {
            topic,
            partition: PartitionId(number),
        })
    }
}
