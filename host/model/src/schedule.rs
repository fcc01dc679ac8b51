//! A schedule: a message for a topic, created by the clock.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::cron::Cron;
use crate::name::{ScheduleName, TopicName};
use crate::offset::PartitionId;

/// A schedule's definition. Its message is text, because people write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSpec {
    /// The topic for its messages.
    pub topic: TopicName,
    /// When, in UTC.
    pub cron: Cron,
    /// The key of every message.
    #[serde(default)]
    pub key: Option<String>,
    /// The value of every message.
    #[serde(default)]
    pub value: Option<String>,
    /// The headers of every message, names and values, in order; names may repeat.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The partition; `None` leaves it to the topic's partitioner.
    #[serde(default)]
    pub partition: Option<PartitionId>,
}

/// A schedule and its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its name.
    pub name: ScheduleName,
    /// Its definition.
    pub spec: ScheduleSpec,
    /// Whether it is paused.
    #[serde(default)]
    pub paused: bool,
    /// The time of the next message.
    pub next: Timestamp,
    /// When the last one was due.
    #[serde(default)]
    pub last: Option<Timestamp>,
    /// How many it has created.
    #[serde(default)]
    pub made: u64,
    /// When it was last run by hand, and by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<ScheduleRun>,
}

/// A message created by hand, between the scheduled times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRun {
    /// When.
    pub at: Timestamp,
    /// Who asked for it, as claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}
