//! Dead letters: listed, shown, sent again. They are messages of ordinary topics (`<topic>.<processor>.dlq`) whose headers
//! carry the evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use millrace_engine::{Append, CommitError, Ends, EntryKind, ReadError, Transaction};
use millrace_model::bounds::{DEAD_LETTERS_LISTED_BYTES_MAX, DEAD_LETTERS_LISTED_MAX};
use millrace_model::{
    BatchBuilder, Message, Offset, PartitionId, ProcessorName, Timestamp, Topic, TopicName,
    TopicPartition,
};
use serde::{Deserialize, Serialize};

use crate::broker::{Broker, Deployed, entry};
use crate::dispatch::dead_letter::{self, Evidence};
use crate::fetch::{FetchError, Fetched, Room};
use crate::handler::CallUse;
use crate::topics::{DEAD_LETTERS_SUFFIX, REDRIVE_SUFFIX};

/// Dead letters that one transaction sends again.
const REDRIVE_MESSAGES: usize = 1_000;
/// Bytes of them, about.
const REDRIVE_BYTES: usize = 4 << 20;

/// A dead letter with its evidence, read from its headers.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// The dead-letter topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: PartitionId,
    /// The letter's offset there.
    pub offset: Offset,
    /// Where the message came from.
    pub origin_topic: TopicName,
    /// Its partition there.
    pub origin_partition: PartitionId,
    /// Its offset there.
    pub origin_offset: Offset,
    /// The revision that failed last.
    pub revision: u32,
    /// The digest of that revision's module.
    pub module: String,
    /// Attempts made.
    pub attempts: u32,
    /// How the last one failed: `retry`, `reject`, `trap`, `timeout`, `memory` or `bad-answer`.
    pub cause: String,
    /// A short word to group by.
    pub class: String,
    /// For people.
    pub reason: String,
    /// When the first attempt failed.
    pub first_failed_at: Timestamp,
    /// When it was given up.
    pub died_at: Timestamp,
    /// The latest attempts: `at`, `revision`, `class`, `reason` of each.
    pub attempt_log: serde_json::Value,
    /// Function names of the guest, innermost first, if it trapped.
    pub backtrace: Option<String>,
    /// What the call used that it died of, and the last lines that the guest wrote in it; where that is known.
    pub call: Option<CallUse>,
    /// Whether it was sent again.
    pub redriven: bool,
    /// The message, evidence included.
    #[serde(skip)]
    pub message: Message,
}

/// Which dead letters to list.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    /// Of this class only.
    pub class: Option<String>,
    /// Those sent again too.
    pub include_redriven: bool,
    /// At most so many; 0 is the default bound.
    pub messages_max: usize,
}

/// What a redrive did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Redriven {
    /// Sent again.
    pub sent: usize,
    /// Had been sent again before.
    pub already: usize,
}

impl AddAssign for Redriven {
    fn add_assign(&mut self, more: Self) {
        self.sent += more.sent;
        self.already += more.already;
    }
}

/// Why dead letters could not be listed or sent again.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// No such processor.
    #[error("processor {0} does not exist")]
    UnknownProcessor(ProcessorName),
    /// No dead letter of this processor stands there.
    #[error("there is no dead letter of this processor at {topic}/{partition}/{offset}")]
    NoSuchDeadLetter {
        /// The topic asked for.
        topic: TopicName,
        /// The partition asked for.
        partition: PartitionId,
        /// The offset asked for.
        offset: Offset,
    },
    /// An entry of the catalogue is not one of ours.
    #[error("{0}; the data directory may be of a newer version of this host")]
    Catalogue(String),
    /// The processor does not read the topic that they came from.
    #[error("processor {processor} does not read topic {topic}; deploy it with that input first")]
    NotAnInput {
        /// Whose letters.
        processor: ProcessorName,
        /// The topic that they came from.
        topic: String,
    },
    /// They could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The engine did not take the messages.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Broker {
    /// Dead letters of a processor, oldest first within each partition.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn dead_letters(
        &self,
        name: &ProcessorName,
        filter: DeadLetterFilter,
    ) -> Result<Vec<DeadLetter>, DeadLetterError> {
        let max = match filter.messages_max {
            0 => DEAD_LETTERS_LISTED_MAX,
            max => max.min(DEAD_LETTERS_LISTED_MAX),
        };
        let wanted = |letter: &DeadLetter| {
            let class = filter.class.as_ref();
            class.is_none_or(|class| *class == letter.class)
                && (filter.include_redriven || !letter.redriven)
        };
        let (mut letters, mut bytes) = (Vec::new(), 0);
        for shelf in self.shelves(name)? {
            let mut next = self.ends_of(&shelf)?.start;
            while letters.len() < max && bytes < DEAD_LETTERS_LISTED_BYTES_MAX {
                let (found, after) = self.letters(&shelf, next).await?;
                if after == next {
                    break;
                }
                next = after;
                for letter in found.into_iter().filter(wanted) {
                    bytes += letter.message.byte_count();
                    letters.push(letter);
                }
            }
        }
        letters.truncate(max);
        Ok(letters)
    }

    /// One dead letter.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn dead_letter(
        &self,
        name: &ProcessorName,
        topic: &TopicName,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<DeadLetter, DeadLetterError> {
        let shelf = self.shelf(name, topic, partition, offset)?;
        self.letter(&shelf, offset).await
    }

    /// Sends dead letters again, to this processor only; `None` is all that were not sent yet.
    ///
    /// # Errors
    /// [`DeadLetterError`]; letters sent before the error stay sent and are marked so.
    pub async fn redrive(
        &self,
        name: &ProcessorName,
        which: Option<Vec<(TopicName, PartitionId, Offset)>>,
    ) -> Result<Redriven, DeadLetterError> {
        let _redrive = self.inner.redrives.lock().await;
        match which {
            None => self.redrive_all(name).await,
            Some(which) => self.redrive_some(name, which).await,
        }
    }

    async fn redrive_all(&self, name: &ProcessorName) -> Result<Redriven, DeadLetterError> {
        let mut total = Redriven::default();
        for shelf in self.shelves(name)? {
            let Ok(target) = self.target_of(name, &shelf) else {
                continue; // letters of a topic that the processor no longer reads stay where they are
            };
            let ends = self.ends_of(&shelf)?;
            let mut next = ends.start;
            // What dies again meanwhile is for the next redrive.
            while next < ends.end {
                let (letters, after) = self.letters(&shelf, next).await?;
                if after == next {
                    break;
                }
                next = after;
                total += self.send_again(&shelf, target, letters).await?;
            }
        }
        Ok(total)
    }

    async fn redrive_some(
        &self,
        name: &ProcessorName,
        which: Vec<(TopicName, PartitionId, Offset)>,
    ) -> Result<Redriven, DeadLetterError> {
        let mut by_shelf: BTreeMap<_, BTreeSet<Offset>> = BTreeMap::new();
        for (topic, partition, offset) in which {
            by_shelf
                .entry((topic, partition))
                .or_default()
                .insert(offset);
        }
        let mut total = Redriven::default();
        for ((topic, partition), offsets) in by_shelf {
            let first = offsets.first().copied().unwrap_or_default();
            let shelf = self.shelf(name, &topic, partition, first)?;
            let target = self.target_of(name, &shelf)?;
            let (mut letters, mut bytes) = (Vec::new(), 0);
            for offset in offsets {
                let letter = self.letter(&shelf, offset).await?;
                bytes += letter.message.byte_count();
                letters.push(letter);
                if letters.len() >= REDRIVE_MESSAGES || bytes >= REDRIVE_BYTES {
                    bytes = 0;
                    let full = std::mem::take(&mut letters);
                    total += self.send_again(&shelf, target, full).await?;
                }
            }
            total += self.send_again(&shelf, target, letters).await?;
        }
        Ok(total)
    }

    /// Appends the letters to the redrive topic and marks them, in one transaction.
    async fn send_again(
        &self,
        shelf: &Shelf,
        target: TopicPartition,
        letters: Vec<DeadLetter>,
    ) -> Result<Redriven, DeadLetterError> {
        let mut sent = self.sent(shelf)?;
        let mut builder = BatchBuilder::with_capacity(0);
        let mut redriven = Redriven::default();
        for letter in letters {
            if !sent.insert(letter.offset) {
                redriven.already += 1;
                continue;
            }
            let message = dead_letter::revive(letter.message, letter.origin_offset);
            builder.push(&message);
            redriven.sent += 1;
        }
        if let Some(batch) = builder.finish() {
            let append = Append {
                partition: target,
                batch,
            };
            let transaction = Transaction {
                appends: vec![append],
                entries: vec![entry(EntryKind::Redriven, shelf.key(), Some(&sent))],
                ..Transaction::default()
            };
            self.inner.engine.commit(transaction).await?;
        }
        Ok(redriven)
    }

    /// Where letters of this shelf are sent again.
    fn target_of(
        &self,
        name: &ProcessorName,
        shelf: &Shelf,
    ) -> Result<TopicPartition, DeadLetterError> {
        let origin = shelf.origin();
        let reads = |deployed: &Deployed| {
            let current = deployed.processor.current();
            current
                .is_some_and(|revision| revision.spec.topics.iter().any(|t| t.as_str() == origin))
        };
        let reads = self.inner.processors.read().get(name).is_some_and(reads);
        let topic = TopicName::parse(&format!("{origin}.{name}{REDRIVE_SUFFIX}")).ok();
        let topic = topic.filter(|_| reads).and_then(|topic| self.topic(&topic));
        let target = topic.and_then(|topic| topic.partition(shelf.partition.partition));
        target.ok_or_else(|| DeadLetterError::NotAnInput {
            processor: name.clone(),
            topic: origin.to_owned(),
        })
    }

    /// All partitions of the processor's dead-letter topics.
    fn shelves(&self, name: &ProcessorName) -> Result<Vec<Shelf>, DeadLetterError> {
        if !self.inner.processors.read().contains_key(name) {
            return Err(DeadLetterError::UnknownProcessor(name.clone()));
        }
        let own = |topic: &Topic| {
            topic.spec.owner.as_ref() == Some(name)
                && topic.spec.name.as_str().ends_with(DEAD_LETTERS_SUFFIX)
        };
        let topics = self.topics().into_iter().filter(own);
        let shelves = topics.flat_map(|topic| {
            topic.partitions().map(move |partition| Shelf {
                topic: topic.clone(),
                partition,
            })
        });
        Ok(shelves.collect())
    }

    fn shelf(
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
    async fn letters(
        &self,
        shelf: &Shelf,
        from: Offset,
    ) -> Result<(Vec<DeadLetter>, Offset), DeadLetterError> {
        let room = Room {
            messages: REDRIVE_MESSAGES,
            bytes: REDRIVE_BYTES,
        };
        let (messages, next) = match self.read(shelf.partition, from, room).await {
            // What cannot be read must not hide what comes after it.
            Err(
                FetchError::Read(ReadError::Damaged { to: next, .. })
                | FetchError::Malformed { next, .. },
            ) if next > from => {
                tracing::error!(topic = %shelf.topic.spec.name, partition = %shelf.partition.partition, %from, to = %next, "dead letters cannot be read; going on after them");
                (Vec::new(), next)
            }
            read => read?,
        };
        let sent = self.sent(shelf)?;
        let letters = messages
            .into_iter()
            .filter_map(|fetched| shelf.letter(fetched, &sent));
        Ok((letters.collect(), next))
    }

    async fn letter(&self, shelf: &Shelf, offset: Offset) -> Result<DeadLetter, DeadLetterError> {
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
        let sent = self.sent(shelf)?;
        let letter = fetched.and_then(|fetched| shelf.letter(fetched, &sent));
        letter.ok_or_else(missing)
    }

    fn ends_of(&self, shelf: &Shelf) -> Result<Ends, DeadLetterError> {
        let ends = self.inner.engine.ends(shelf.partition);
        Ok(ends.map_err(FetchError::Read)?)
    }

    /// What was sent again. An entry that cannot be read is no empty one: all of its letters would be sent twice.
    fn sent(&self, shelf: &Shelf) -> Result<Sent, DeadLetterError> {
        let key = shelf.key();
        let entry = self.inner.engine.entry(EntryKind::Redriven, &key);
        let sent = entry
            .map(|value| serde_json::from_slice(&value))
            .transpose();
        let unreadable =
            |error| format!("the catalogue's entry of what was redriven from {key}: {error}");
        let sent = sent.map_err(|error| DeadLetterError::Catalogue(unreadable(error)))?;
        Ok(sent.unwrap_or_default())
    }
}

/// One partition of a dead-letter topic.
struct Shelf {
    topic: Topic,
    partition: TopicPartition,
}

impl Shelf {
    /// Under which the catalogue keeps what was sent again. By identity: a topic made again under its name is another one.
    fn key(&self) -> String {
        self.partition.to_string()
    }

    /// The topic that its messages came from, by name.
    fn origin(&self) -> &str {
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
            redriven: sent.contains(fetched.offset),
            message: fetched.message,
        })
    }
}

/// Offsets of letters that were sent again: ranges, the end exclusive, ascending and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Sent(Vec<(Offset, Offset)>);

impl Sent {
    fn contains(&self, offset: Offset) -> bool {
        let after = self.0.partition_point(|&(start, _)| start <= offset);
        after.checked_sub(1).is_some_and(|at| offset < self.0[at].1)
    }

    /// Adds an offset; false if it was there.
    fn insert(&mut self, offset: Offset) -> bool {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn offsets_sent_are_remembered_each_and_kept_as_few_ranges(offsets: Vec<u8>) {
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
        }
    }
}
