//! How consumers are stored: each is an entry in the state of a reserved group, in the first partition of its topic, by name.

use std::sync::Arc;

use millrace_engine::room::CONSUMERS_GROUP;
use millrace_engine::state::{NEVER, StateChange, StateQuery, StateValue, StateWrite, StateWrites};
use millrace_engine::{CommitError, ReadError, Transaction};
use millrace_model::bounds::CONSUMERS_MAX;
use millrace_model::{
    Consumer, ConsumerName, Durability, Offset, PartitionId, Topic, TopicPartition,
};

use crate::catalogue::unknown::UnknownTopic;
use crate::groups::error::{ConsumerError, unknown};
use crate::groups::handle::Groups;
use crate::hosts::holding::Share;
use crate::messages::beginning::BeginAt;

impl Groups {
    /// Under the lease to change it: creates one if it is missing.
    pub(super) async fn make_stored(
        &self,
        topic: &Topic,
        name: &ConsumerName,
        begin_at: Option<BeginAt>,
        share: &Share,
        first: impl FnOnce(&mut Consumer),
    ) -> Result<Consumer, ConsumerError> {
        let _making = self.inner.consumers.making.lock().await;
        if self.stored_consumers(topic).await?.len() >= CONSUMERS_MAX {
            return Err(ConsumerError::TooMany(topic.spec.name.clone()));
        }
        let mut consumer = Consumer {
            created_at: self.inner.clock.wall(),
            ..Consumer::default()
        };
        for place in topic.partitions() {
            let begin_at = begin_at.unwrap_or(BeginAt::Earliest);
            let offset = self.inner.messages.first_of(place, begin_at).await?;
            consumer.move_to(place.partition, offset);
        }
        first(&mut consumer);
        self.store_consumer(topic, name, share, Some(&mut consumer))
            .await?;
        Ok(consumer)
    }

    pub(super) async fn known_consumer(
        &self,
        topic: &Topic,
        name: &ConsumerName,
    ) -> Result<Consumer, ConsumerError> {
        let stored = self.stored_consumer(topic, name).await?;
        stored.ok_or_else(|| unknown(topic, name))
    }

    pub(super) async fn stored_consumer(
        &self,
        topic: &Topic,
        name: &ConsumerName,
    ) -> Result<Option<Consumer>, ConsumerError> {
        let query = StateQuery {
            prefix: name.as_str().into(),
            entries_max: 1,
            ..all_entries()
        };
        // The shortest key with this prefix comes first.
        let found = self
            .consumer_entries(topic, &query)
            .await?
            .into_iter()
            .next();
        let found = found.filter(|(key, _)| **key == *name.as_str().as_bytes());
        let Some((_, value)) = found else {
            return Ok(None);
        };
        let consumer = Consumer::decode(value.as_bytes());
        consumer.map(Some).ok_or_else(|| ConsumerError::Unreadable {
            topic: topic.spec.name.clone(),
            name: name.clone(),
        })
    }

    pub(super) async fn stored_consumers(
        &self,
        topic: &Topic,
    ) -> Result<Vec<(ConsumerName, StateValue)>, ConsumerError> {
        let entries = self
            .consumer_entries(topic, &all_entries())
            .await?
            .into_iter();
        let read = |(key, value): (Arc<[u8]>, StateValue)| {
            let name = str::from_utf8(&key).ok()?;
            let name = ConsumerName::parse(name).ok()?;
            Some((name, value))
        };
        Ok(entries.filter_map(read).collect())
    }

    async fn consumer_entries(
        &self,
        topic: &Topic,
        query: &StateQuery,
    ) -> Result<Vec<(Arc<[u8]>, StateValue)>, ConsumerError> {
        let engine = &self.inner.engine;
        let page = engine
            .read_state(&CONSUMERS_GROUP, home(topic), query)
            .await;
        let page = page.map_err(|error| unread(error, topic))?;
        let entries = page.entries.into_iter();
        Ok(entries.map(|entry| (entry.key, entry.value)).collect())
    }

    /// Under the lease to change it: writes or removes the entry.
    pub(super) async fn store_consumer(
        &self,
        topic: &Topic,
        name: &ConsumerName,
        share: &Share,
        consumer: Option<&mut Consumer>,
    ) -> Result<(), ConsumerError> {
        let value = consumer.map(|consumer| {
            // With a position for every partition, so that a later entry is not longer.
            let partitions = topic.spec.partitions as usize;
            let length = consumer.positions.len().max(partitions);
            consumer.positions.resize(length, Offset::default());
            StateValue::new(&consumer.encode())
        });
        let change = StateChange {
            key: name.as_str().as_bytes().into(),
            value,
            ends_at: NEVER,
        };
        let write = StateWrite {
            group: CONSUMERS_GROUP.clone(),
            partition: home(topic),
            lease: share.lease().cloned(),
            writes: Arc::new(StateWrites {
                resets: false,
                changes: vec![change],
                adds: None,
            }),
        };
        let transaction = Transaction {
            state: vec![write],
            durability: Some(Durability::Durable),
            ..Transaction::default()
        };
        let committed = share.commit(transaction).await;
        committed.map(drop).map_err(|error| explained(error, topic))
    }
}

fn gone(topic: &Topic) -> ConsumerError {
    UnknownTopic(topic.spec.name.clone()).into()
}

/// The topic may be deleted meanwhile.
pub(super) fn explained(error: CommitError, topic: &Topic) -> ConsumerError {
    match error {
        CommitError::UnknownPartition(_) => gone(topic),
        error => error.into(),
    }
}

/// The topic may be deleted meanwhile.
pub(super) fn unread(error: ReadError, topic: &Topic) -> ConsumerError {
    match error {
        ReadError::UnknownPartition(_) => gone(topic),
        error => error.into(),
    }
}

/// A stored consumer. One that cannot be read still exists, but its content is unknown.
pub(super) fn decoded(value: &StateValue) -> Consumer {
    Consumer::decode(value.as_bytes()).unwrap_or_default()
}

/// Where a topic's consumers are stored: in the partition that every topic has.
pub(super) fn home(topic: &Topic) -> TopicPartition {
    TopicPartition {
        topic: topic.id,
        partition: PartitionId(0),
    }
}

/// More than the maximum; entries do not expire.
fn all_entries() -> StateQuery {
    StateQuery {
        entries_max: CONSUMERS_MAX,
        bytes_max: usize::MAX,
        ..StateQuery::default()
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::ProcessorName;

    use super::*;

    #[test]
    fn the_group_is_no_processors() {
        assert!(ProcessorName::parse(CONSUMERS_GROUP.as_str()).is_err());
    }
}
