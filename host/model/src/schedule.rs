//! A schedule: a message for a topic, again and again.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::cron::Cron;
use crate::name::{ScheduleName, TopicName};
use crate::offset::PartitionId;

/// What a schedule is made with. What it says is text: it is written by people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSpec {
    /// Where its messages go.
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

/// A schedule and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its name.
    pub name: ScheduleName,
    /// What it is made with.
    pub spec: ScheduleSpec,
    /// Whether it makes no messages for now.
    #[serde(default)]
    pub paused: bool,
    /// When it makes the next message.
    pub next: Timestamp,
    /// When the last one was due.
    #[serde(default)]
    pub last: Option<Timestamp>,
    /// How many it has made.
    #[serde(default)]
    pub made: u64,
    /// When it was last run by hand, and by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<ScheduleRun>,
}

/// A message that somebody had a schedule make, between its times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRun {
    /// When.
    pub at: Timestamp,
    /// Who asked for it, as far as they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}
