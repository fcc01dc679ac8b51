//! Lists and cancels delayed messages for callers.

use std::time::Duration;

use millrace_engine::Transaction;
use millrace_engine::state::{StateEntry, StateQuery, StateTable};
use millrace_model::bounds::{DELAYED_LISTED_MAX, STATE_LISTED_BYTES_MAX};
use millrace_model::{Topic, TopicName, TopicPartition};

use crate::catalogue::deciding::decided;
use crate::catalogue::unknown::known_partition;
use crate::ground::verbs::Verb;
use crate::hosts::holding::Share;
use crate::messages::delays::delayed::{
    CANCEL_WAIT_MS_MAX, DelayedError, DelayedMessage, DelayedPage, DelayedQuery,
};
use crate::messages::delays::stored;
use crate::messages::delays::stored::{DelayedId, GROUP, exactly, read, removal};
use crate::messages::handle::Messages;

impl Messages {
    /// Waiting messages: by partition, then by time.
    ///
    /// # Errors
    /// [`DelayedError`].
    pub async fn delayed(
        &self,
        topic: &TopicName,
        query: &DelayedQuery,
    ) -> Result<DelayedPage, DelayedError> {
        self.caller.may(Verb::SeeDelayed, topic.as_str())?;
        let topic = self.inner.catalogue.known_topic(topic)?;
        if let Some(partition) = query.partition {
            known_partition(&topic, partition)?;
        }
        let engine = &self.inner.engine;
        let of_topic = |at: &TopicPartition| {
            at.topic == topic.id && query.partition.is_none_or(|wanted| at.partition == wanted)
        };
        let mut partitions = engine.state_partitions(&GROUP).await?;
        partitions.retain(of_topic);
        let mut page = DelayedPage::default();
        let (mut room, mut bytes) = (query.max.min(DELAYED_LISTED_MAX), STATE_LISTED_BYTES_MAX);
        for at in partitions {
            let table = engine.state(&GROUP, at).await?;
            page.total += table.size().entries;
            let after = query
                .after
                .as_ref()
                .filter(|id| id.partition >= at.partition);
            if after.is_some_and(|id| id.partition > at.partition) || page.has_more {
                continue;
            }
            let wanted = StateQuery {
                after: after.map(|id| id.key().to_vec()),
                entries_max: room,
                bytes_max: bytes,
                ..StateQuery::default()
            };
            let found = stored::page(&table, &wanted);
            room -= found.entries.len();
            let taken = found
                .entries
                .iter()
                .map(|entry| entry.value.as_bytes().len());
            bytes = bytes.saturating_sub(taken.sum());
            page.has_more = found.has_more;
            let read = found
                .entries
                .iter()
                .filter_map(|entry| read(entry, at.partition));
            let shown = read.map(|(id, message)| DelayedMessage { id, message });
            page.messages.extend(shown);
        }
        Ok(page)
    }

    /// Cancels a delayed message: it is never delivered. The cancellation has the durability of the topic.
    ///
    /// # Errors
    /// [`DelayedError::Unknown`] if it was already delivered; otherwise [`DelayedError`], and nothing was cancelled.
    pub async fn cancel_delayed(
        &self,
        topic: &TopicName,
        id: DelayedId,
    ) -> Result<(), DelayedError> {
        self.caller.may(Verb::CancelDelayed, topic.as_str())?;
        let topic = self.inner.catalogue.known_topic(topic)?;
        let partition = known_partition(&topic, id.partition)?;
        let topic = &topic;
        decided(&*self.inner.engine, || async {
            // The lease is this host's own if it delivers there; otherwise the claim ends any other host's delivery.
            let share = self.inner.delays.right_to(partition).await?;
            let cancelled = self.cancel_under(topic, id, partition, &share).await;
            share.leave().await;
            cancelled
        })
        .await
    }

    async fn cancel_under(
        &self,
        topic: &Topic,
        id: DelayedId,
        partition: TopicPartition,
        share: &Share,
    ) -> Result<(), DelayedError> {
        let table = self.inner.engine.state(&GROUP, partition).await?;
        let wait = Duration::from_millis(CANCEL_WAIT_MS_MAX);
        let turn = tokio::time::timeout(wait, table.turn()).await;
        let turn = turn.map_err(|_| DelayedError::Busy(id.partition))?;
        // Other hosts move them by their own clocks.
        let moved_here = self.inner.delays.moved_in.lock().contains(&partition);
        let may_be_moved = moved_here || self.inner.catalogue.had_other_hosts();
        let Some(entry) = kept(&table, id, may_be_moved) else {
            let topic = topic.spec.name.clone();
            return Err(DelayedError::Unknown { topic, id });
        };
        let transaction = Transaction {
            state: vec![removal(partition, share, std::iter::once(&entry.key))],
            turns: turn.held().into_iter().collect(),
            durability: Some(topic.spec.durability),
            ..Transaction::default()
        };
        share.commit(transaction).await?;
        self.inner.delays.show(partition, &topic.spec.name, &table);
        Ok(())
    }
}

/// The entry of a delayed message, if it still exists; under another time than its id says, if it moved with the clock.
fn kept(table: &StateTable, id: DelayedId, may_be_moved: bool) -> Option<StateEntry> {
    let entry = exactly(table, id);
    if entry.is_some() || !id.is_span() || !may_be_moved {
        return entry;
    }
    let mut moved = None;
    stored::each_key(table, |key| {
        let other = DelayedId::of_key(id.partition, key);
        moved = moved.or_else(|| other.filter(|other| other.is_same(&id)));
    });
    exactly(table, moved?)
}
