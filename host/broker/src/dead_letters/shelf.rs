//! Where dead letters are: the partitions of a processor's dead-letter topics.

use millrace_engine::{Ends, ReadError};
use millrace_model::{Offset, PartitionId, ProcessorName, Topic, TopicName, TopicPartition};

use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::letters::{DeadLetter, DeadLetterError, LETTERS_BYTES, LETTERS_MAX};
use crate::dead_letters::record::Record;
use crate::dispatch::dead_letter::Evidence;
use crate::ground::own_topics::DEAD_LETTERS_SUFFIX;
use crate::messages::fetch::{FetchError, Fetched, Room};
use crate::messages::place::MessagePlace;

/// One partition of a dead-letter topic.
#[derive(Clone)]
pub(super) struct Shelf {
    pub(super) topic: Topic,
    pub(super) partition: TopicPartition,
}

impl Shelf {
    /// The place of an offset in this partition.
    pub(super) fn place(&self, offset: Offset) -> MessagePlace {
        MessagePlace {
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

    fn letter(&self, fetched: Fetched, record: &Record) -> Option<DeadLetter> {
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
            redriven: record.contains(fetched.offset),
            message: fetched.message,
        })
    }
}

impl DeadLetters {
    /// All partitions of the processor's dead-letter topics, by name and number.
    pub(super) fn shelves(&self, name: &ProcessorName) -> Result<Vec<Shelf>, DeadLetterError> {
        if !self.inner.catalogue.processors().contains_key(name) {
            return Err(DeadLetterError::UnknownProcessor(name.clone()));
        }
        Ok(self.own_shelves(name, DEAD_LETTERS_SUFFIX))
    }

    /// The partitions of the processor's own topics with this suffix.
    pub(super) fn own_shelves(&self, name: &ProcessorName, suffix: &str) -> Vec<Shelf> {
        let own = |topic: &Topic| {
            topic.spec.owner.as_ref() == Some(name) && topic.spec.name.as_str().ends_with(suffix)
        };
        let mut topics: Vec<Topic> = self
            .inner
            .catalogue
            .topics()
            .into_iter()
            .filter(own)
            .collect();
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

    /// Dead letters from an offset on, and where to continue.
    pub(super) async fn letters(
        &self,
        shelf: &Shelf,
        from: Offset,
    ) -> Result<(Vec<DeadLetter>, Offset), DeadLetterError> {
        let (messages, next) = self.on_shelf(shelf, from).await?;
        let (Some(first), Some(last)) = (messages.first(), messages.last()) else {
            return Ok((Vec::new(), next));
        };
        let record = self.sent_of(shelf, first.offset..=last.offset)?;
        let letters = messages
            .into_iter()
            .filter_map(|fetched| shelf.letter(fetched, &record));
        Ok((letters.collect(), next))
    }

    /// Messages from an offset on, and where to continue.
    pub(super) async fn on_shelf(
        &self,
        shelf: &Shelf,
        from: Offset,
    ) -> Result<(Vec<Fetched>, Offset), DeadLetterError> {
        let room = Room {
            messages: LETTERS_MAX,
            bytes: LETTERS_BYTES,
        };
        match self
            .inner
            .messages
            .messages_from(shelf.partition, from, room)
            .await
        {
            // An unreadable range must not hide what comes after it.
            Err(
                FetchError::Read(ReadError::Damaged { to: next, .. })
                | FetchError::Malformed { next, .. },
            ) if next > from => {
                tracing::error!(topic = %shelf.topic.spec.name, partition = %shelf.partition.partition, %from, to = %next, "messages cannot be read; continuing after them");
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
        let (messages, _) = self
            .inner
            .messages
            .messages_from(shelf.partition, offset, room)
            .await?;
        let fetched = messages
            .into_iter()
            .find(|fetched| fetched.offset == offset);
        let record = self.sent_of(shelf, offset..=offset)?;
        let letter = fetched.and_then(|fetched| shelf.letter(fetched, &record));
        letter.ok_or_else(missing)
    }

    pub(super) fn ends_of(&self, shelf: &Shelf) -> Result<Ends, DeadLetterError> {
        let ends = self.inner.engine.ends(shelf.partition);
        Ok(ends.map_err(FetchError::Read)?)
    }
}
