//! Where dead letters stand: the partitions of a processor's dead-letter topics, and what of them was sent again.

use millrace_engine::{Ends, EntryKind, Expectation, ReadError};
use millrace_model::{Offset, PartitionId, ProcessorName, Topic, TopicName, TopicPartition};
use serde::{Deserialize, Serialize};

use super::{DeadLetter, DeadLetterError, DeadLetterPlace, LETTERS_BYTES, LETTERS_MAX};
use crate::broker::Broker;
use crate::dispatch::dead_letter::Evidence;
use crate::fetch::{FetchError, Fetched, Room};
use crate::topics::DEAD_LETTERS_SUFFIX;

/// One partition of a dead-letter topic.
#[derive(Clone)]
pub(super) struct Shelf {
    pub(super) topic: Topic,
    pub(super) partition: TopicPartition,
}

impl Shelf {
    /// Under which the catalogue keeps what was sent again. By identity: a topic made again under its name is another one.
    pub(super) fn key(&self) -> String {
        self.partition.to_string()
    }

    /// A place on it.
    pub(super) fn place(&self, offset: Offset) -> DeadLetterPlace {
        DeadLetterPlace {
            topic: self.topic.spec.name.clone(),
            partition: self.partition.partition,
            offset,
        }
    }

    /// The topic that its messages came from, by name.
    pub(super) fn origin(&self) -> &str {
        let name = self.topic.spec.name.as_str();
        let owner = self.topic.spec.owner.as_ref();
        let suffix = owner.map_or_else(String::new, |owner| {
            format!(".{owner}{DEAD_LETTERS_SUFFIX}")
        });
        name.strip_suffix(suffix.as_str()).unwrap_or(name)
    }

    fn letter(&self, fetched: Fetched, sent: &Sent) -> Option<DeadLetter> {
        let evidence = Evidence::of(&fetched.message)?;
        Some(DeadLetter {
            topic: self.topic.spec.name.clone(),
            partition: self.partition.partition,
            offset: fetched.offset,
            origin_topic: evidence.origin_topic,
            origin_partition: evidence.origin_partition,
            origin_offset: evidence.origin_offset,
            revision: evidence.revision,
            module: evidence.module,
            attempts: evidence.attempts,
            cause: evidence.cause,
            class: evidence.class,
            reason: evidence.reason,
            first_failed_at: evidence.first_failed_at,
            died_at: evidence.died_at,
            attempt_log: evidence.attempt_log,
            backtrace: evidence.backtrace,
            call: evidence.call,
            redrives: evidence.redrives,
            redriven: sent.contains(fetched.offset),
            message: fetched.message,
        })
    }
}

impl Broker {
    /// All partitions of the processor's dead-letter topics, by name and number.
    pub(super) fn shelves(&self, name: &ProcessorName) -> Result<Vec<Shelf>, DeadLetterError> {
        if !self.inner.processors.read().contains_key(name) {
            return Err(DeadLetterError::UnknownProcessor(name.clone()));
        }
        Ok(self.own_shelves(name, DEAD_LETTERS_SUFFIX))
    }

    /// The partitions of the topics of this ending that a processor keeps for itself.
    pub(super) fn own_shelves(&self, name: &ProcessorName, suffix: &str) -> Vec<Shelf> {
        let own = |topic: &Topic| {
            topic.spec.owner.as_ref() == Some(name) && topic.spec.name.as_str().ends_with(suffix)
        };
        let mut topics: Vec<Topic> = self.topics().into_iter().filter(own).collect();
        topics.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        let shelves = topics.into_iter().flat_map(|topic| {
            let partitions: Vec<TopicPartition> = topic.partitions().collect();
            partitions.into_iter().map(move |partition| Shelf {
                topic: topic.clone(),
                partition,
            })
        });
        shelves.collect()
    }

    pub(super) fn shelf(
        &self,
        name: &ProcessorName,
        topic: &TopicName,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<Shelf, DeadLetterError> {
        let mut shelves = self.shelves(name)?.into_iter();
        let found = shelves.find(|shelf| {
            shelf.topic.spec.name == *topic && shelf.partition.partition == partition
        });
        found.ok_or_else(|| DeadLetterError::NoSuchDeadLetter {
            topic: topic.clone(),
            partition,
            offset,
        })
    }

    /// Letters from an offset on, and where to go on.
    pub(super) async fn letters(
        &self,
        shelf: &Shelf,
        from: Offset,
    ) -> Result<(Vec<DeadLetter>, Offset), DeadLetterError> {
        let (messages, next) = self.on_shelf(shelf, from).await?;
        let (sent, _) = self.sent(shelf)?;
        let letters = messages
            .into_iter()
            .filter_map(|fetched| shelf.letter(fetched, &sent));
        Ok((letters.collect(), next))
    }

    /// Messages from an offset on, and where to go on.
    pub(super) async fn on_shelf(
        &self,
        shelf: &Shelf,
        from: Offset,
    ) -> Result<(Vec<Fetched>, Offset), DeadLetterError> {
        let room = Room {
            messages: LETTERS_MAX,
            bytes: LETTERS_BYTES,
        };
        match self.read(shelf.partition, from, room).await {
            // What cannot be read must not hide what comes after it.
            Err(
                FetchError::Read(ReadError::Damaged { to: next, .. })
                | FetchError::Malformed { next, .. },
            ) if next > from => {
                tracing::error!(topic = %shelf.topic.spec.name, partition = %shelf.partition.partition, %from, to = %next, "messages cannot be read; going on after them");
                Ok((Vec::new(), next))
            }
            read => Ok(read?),
        }
    }

    pub(super) async fn letter(
        &self,
        shelf: &Shelf,
        offset: Offset,
    ) -> Result<DeadLetter, DeadLetterError> {
        let missing = || DeadLetterError::NoSuchDeadLetter {
            topic: shelf.topic.spec.name.clone(),
            partition: shelf.partition.partition,
            offset,
        };
        let ends = self.ends_of(shelf)?;
        if offset < ends.start || offset >= ends.end {
            return Err(missing());
        }
        let room = Room {
            messages: 1,
            bytes: usize::MAX,
        };
        let (messages, _) = self.read(shelf.partition, offset, room).await?;
        let fetched = messages
            .into_iter()
            .find(|fetched| fetched.offset == offset);
        let (sent, _) = self.sent(shelf)?;
        let letter = fetched.and_then(|fetched| shelf.letter(fetched, &sent));
        letter.ok_or_else(missing)
    }

    pub(super) fn ends_of(&self, shelf: &Shelf) -> Result<Ends, DeadLetterError> {
        let ends = self.inner.engine.ends(shelf.partition);
        Ok(ends.map_err(FetchError::Read)?)
    }

    /// What was sent again, and the expectation that it is still so. An entry that cannot be read is no empty one: all of its letters would be sent twice.
    pub(super) fn sent(&self, shelf: &Shelf) -> Result<(Sent, Expectation), DeadLetterError> {
        let (kind, key) = (EntryKind::Redriven, shelf.key());
        let entry = self.inner.engine.entry(kind, &key);
        let unchanged = Expectation::entry(kind, key.as_str(), entry.as_ref());
        let sent = entry
            .map(|entry| serde_json::from_slice(&entry.value))
            .transpose();
        let unreadable =
            |error| format!("the catalogue's entry of what was redriven from {key}: {error}");
        let sent = sent.map_err(|error| DeadLetterError::Catalogue(unreadable(error)))?;
        Ok((sent.unwrap_or_default(), unchanged))
    }
}

/// Offsets of letters that were sent again: ranges, the end exclusive, ascending and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sent(Vec<(Offset, Offset)>);

impl Sent {
    pub(super) fn contains(&self, offset: Offset) -> bool {
        let after = self.0.partition_point(|&(start, _)| start <= offset);
        after.checked_sub(1).is_some_and(|at| offset < self.0[at].1)
    }

    /// Adds an offset; false if it was there.
    pub(super) fn insert(&mut self, offset: Offset) -> bool {
        if self.contains(offset) {
            return false;
        }
        let at = self.0.partition_point(|&(start, _)| start <= offset);
        self.0.insert(at, (offset, offset.next()));
        if self
            .0
            .get(at + 1)
            .is_some_and(|next| next.0 == offset.next())
        {
            self.0[at].1 = self.0.remove(at + 1).1;
        }
        if at > 0 && self.0[at - 1].1 == offset {
            self.0[at - 1].1 = self.0.remove(at).1;
        }
        true
    }

    /// Forgets what is no longer kept.
    pub(super) fn forget_before(&mut self, start: Offset) {
        self.0.retain(|&(_, end)| end > start);
    }

    /// How many there are from `start` on.
    pub(super) fn count_from(&self, start: Offset) -> u64 {
        let kept = |&(from, to): &(Offset, Offset)| to.0.saturating_sub(from.0.max(start.0));
        self.0.iter().map(kept).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn offsets_sent_are_remembered_each_and_kept_as_few_ranges(offsets: Vec<u8>, start: u8) {
            let mut sent = Sent::default();
            let mut expected = BTreeSet::new();
            for &offset in &offsets {
                let offset = Offset(offset.into());
                prop_assert_eq!(sent.insert(offset), expected.insert(offset));
            }
            for offset in 0..300 {
                prop_assert_eq!(sent.contains(Offset(offset)), expected.contains(&Offset(offset)));
            }
            let apart = sent.0.windows(2).all(|pair| pair[0].1 < pair[1].0);
            prop_assert!(apart, "{:?}", sent);
            let start = Offset(start.into());
            let kept = expected.range(start..).count() as u64;
            prop_assert_eq!(sent.count_from(start), kept);
            sent.forget_before(start);
            prop_assert_eq!(sent.count_from(start), kept);
            prop_assert!(expected.range(start..).all(|&offset| sent.contains(offset)));
        }
    }
}
