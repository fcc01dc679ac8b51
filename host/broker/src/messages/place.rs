//! The place of a message.

use std::fmt;
use std::str::FromStr;

use millrace_model::{Offset, PartitionId, TopicName};
use serde::Serialize;

/// The place of a message; as text `TOPIC/PARTITION/OFFSET`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessagePlace {
    /// The topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: PartitionId,
    /// The offset there.
    pub offset: Offset,
}

impl MessagePlace {
    /// The next place in its partition.
    pub(crate) fn after(mut self) -> Self {
        self.offset = self.offset.next();
        self
    }
}

impl fmt::Display for MessagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for MessagePlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [topic, partition, offset] = parts[..] else {
            return Err("write TOPIC/PARTITION/OFFSET".to_owned());
        };
        let partition = partition.parse().map_err(|_| "the partition is a number")?;
        let offset = offset.parse().map_err(|_| "the offset is a number")?;
        Ok(Self {
            topic: TopicName::parse(topic).map_err(|error| error.to_string())?,
            partition: PartitionId(partition),
            offset: Offset(offset),
        })
    }
}

impl Serialize for MessagePlace {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for MessagePlace {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        String::schema()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for MessagePlace {}
