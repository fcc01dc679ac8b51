//! Changes of topics, and checks of whether they are possible.

use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{Durability, Topic, TopicName, TopicSettings};

use super::errors::TopicError;
use crate::room::Room;

/// The changes to a topic; `None` leaves a setting as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicChange {
    /// The new number of partitions: the same as before, or more. Existing ones stay as they are; new ones are empty.
    pub partitions: Option<u32>,
    /// When appends are acknowledged.
    pub durability: Option<Durability>,
    /// All settings that can be changed; replaces the current ones.
    pub settings: Option<TopicSettings>,
}

impl TopicChange {
    /// The changed topic.
    #[must_use]
    pub fn of(self, topic: &Topic) -> Topic {
        let mut changed = topic.clone();
        changed.spec.partitions = self.partitions.unwrap_or(topic.spec.partitions);
        changed.spec.durability = self.durability.unwrap_or(topic.spec.durability);
        if let Some(settings) = self.settings {
            changed.spec.settings = settings;
        }
        changed
    }

    /// How many partitions are added.
    fn more(&self, topic: &Topic) -> Result<u32, TopicError> {
        let have = topic.spec.partitions;
        let asked = self.partitions.unwrap_or(have);
        if asked > TOPIC_PARTITIONS_MAX {
            let max = TOPIC_PARTITIONS_MAX;
            return Err(TopicError::Partitions { asked, max });
        }
        asked
            .checked_sub(have)
            .ok_or_else(|| TopicError::FewerPartitions {
                topic: topic.spec.name.clone(),
                have,
                asked,
            })
    }
}

/// The topics after these changes, in the given order, and the number of added partitions; or why
/// none of the changes is possible.
pub fn changed(
    changes: Vec<(TopicName, TopicChange)>,
    find: impl Fn(&TopicName) -> Option<Topic>,
) -> Result<(Vec<Topic>, u32), TopicError> {
    let mut topics: Vec<Topic> = Vec::with_capacity(changes.len());
    let mut more = 0u32;
    for (name, change) in changes {
        let before = topics.iter().rfind(|topic| topic.spec.name == name);
        let before = before.cloned().or_else(|| find(&name));
        let before = before.ok_or(TopicError::Unknown(name))?;
        more = more.saturating_add(change.more(&before)?);
        topics.push(change.of(&before));
    }
    Ok((topics, more))
}

/// Checks whether a host with `have` partitions may have `asked` more.
///
/// # Errors
/// [`TopicError::HostPartitions`].
pub fn check_partitions(room: &Room, have: usize, asked: u32) -> Result<(), TopicError> {
    let max = room.bounds().partitions;
    if have.saturating_add(asked as usize) > max {
        return Err(TopicError::HostPartitions { have, asked, max });
    }
    Ok(())
}
