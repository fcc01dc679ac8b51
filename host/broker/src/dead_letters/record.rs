//! Which dead letters were redriven, as the catalogue stores it: one entry per block of offsets, so that a redrive writes only the
//! blocks of its dead letters, however many were redriven before.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use millrace_engine::{EntryKind, EntryWrite, Expectation, Transaction};
use millrace_model::{Offset, TopicId};
use serde::{Deserialize, Serialize};

use crate::catalogue::entries::entry;
use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::letters::DeadLetterError;
use crate::dead_letters::shelf::Shelf;

/// Offsets in a block. If every other one was redriven, its ranges take about 40 KB.
const BLOCK_OFFSETS: u64 = 4_096;
/// Blocks that one transaction removes.
const FORGOTTEN_AT_ONCE: usize = 200;

/// Offsets of redriven dead letters: ranges, the end exclusive, ascending and disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sent(Vec<(Offset, Offset)>);

impl Sent {
    pub(super) fn contains(&self, offset: Offset) -> bool {
        let after = self.0.partition_point(|&(start, _)| start <= offset);
        after.checked_sub(1).is_some_and(|at| offset < self.0[at].1)
    }

    /// Adds an offset; returns false if it was already there.
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

    /// Number of offsets from `start` on.
    fn count_from(&self, start: Offset) -> u64 {
        let kept = |&(from, to): &(Offset, Offset)| to.0.saturating_sub(from.0.max(start.0));
        self.0.iter().map(kept).sum()
    }
}

/// The record for some dead letters of a shelf, to read and extend.
#[derive(Debug)]
pub(super) struct Record {
    /// Written before there were blocks; nothing is added to it.
    whole: Sent,
    blocks: BTreeMap<u64, Block>,
}

#[derive(Debug)]
struct Block {
    sent: Sent,
    /// Expects that nobody else changes the record before the commit.
    unchanged: Expectation,
    is_changed: bool,
}

impl Record {
    pub(super) fn contains(&self, offset: Offset) -> bool {
        let block = self.blocks.get(&block_of(offset));
        self.whole.contains(offset) || block.is_some_and(|block| block.sent.contains(offset))
    }

    /// Adds an offset; returns false if it was already there. It must be among those that the record was read for.
    pub(super) fn insert(&mut self, offset: Offset) -> bool {
        let Some(block) = self.blocks.get_mut(&block_of(offset)) else {
            return false;
        };
        let is_new = !self.whole.contains(offset) && block.sent.insert(offset);
        block.is_changed |= is_new;
        is_new
    }

    /// Adds the writes of this record to the transaction.
    pub(super) fn write(self, shelf: &Shelf, transaction: &mut Transaction) {
        for (number, block) in self.blocks {
            if block.is_changed {
                let key = key(shelf, number);
                let write = entry(EntryKind::Redriven, key, Some(&block.sent));
                transaction.entries.push(write);
                transaction.expects.push(block.unchanged);
            }
        }
    }
}

fn removal(key: String) -> EntryWrite {
    entry::<Sent>(EntryKind::Redriven, key, None)
}

fn block_of(offset: Offset) -> u64 {
    offset.0 / BLOCK_OFFSETS
}

/// By topic id, because a topic created again under the same name is a different one.
fn key(shelf: &Shelf, block: u64) -> String {
    format!("{}#{block}", shelf.partition)
}

/// The partition (`topic/partition`) and the block that an entry is about; no block if it covers all of them.
fn about(key: &str) -> (&str, Option<u64>) {
    match key.split_once('#') {
        Some((partition, block)) => (partition, block.parse().ok()),
        None => (key, None),
    }
}

impl DeadLetters {
    /// The record for the dead letters from the first of these offsets to the last. An entry that cannot be read is an error, not
    /// empty: otherwise all its dead letters would be sent twice.
    pub(super) fn sent_of(
        &self,
        shelf: &Shelf,
        offsets: RangeInclusive<Offset>,
    ) -> Result<Record, DeadLetterError> {
        let blocks = block_of(*offsets.start())..=block_of(*offsets.end());
        let block = |number| {
            let key = key(shelf, number);
            let (sent, unchanged) = self.sent(key)?;
            let block = Block {
                sent,
                unchanged,
                is_changed: false,
            };
            Ok((number, block))
        };
        Ok(Record {
            whole: self.sent(shelf.partition.to_string())?.0,
            blocks: blocks.map(block).collect::<Result<_, DeadLetterError>>()?,
        })
    }

    /// How many dead letters of the shelf from `start` on were redriven.
    pub(super) fn count_sent(&self, shelf: &Shelf, start: Offset) -> Result<u64, DeadLetterError> {
        let mut count = self.sent(shelf.partition.to_string())?.0.count_from(start);
        for key in self.entries_about(&shelf.partition.to_string()) {
            if let (_, Some(_)) = about(&key) {
                count += self.sent(key)?.0.count_from(start);
            }
        }
        Ok(count)
    }

    fn sent(&self, key: String) -> Result<(Sent, Expectation), DeadLetterError> {
        let kind = EntryKind::Redriven;
        let entry = self.inner.engine.entry(kind, &key);
        let unchanged = Expectation::entry(kind, key.as_str(), entry.as_ref());
        let sent = entry
            .map(|entry| serde_json::from_slice(&entry.value))
            .transpose();
        let unreadable = |error| format!("the catalogue's record of redrives from {key}: {error}");
        let sent = sent.map_err(|error| DeadLetterError::Catalogue(unreadable(error)))?;
        Ok((sent.unwrap_or_default(), unchanged))
    }

    /// The keys of entries about a partition, or about all of a topic if this is its number and a slash.
    fn entries_about(&self, partition: &str) -> Vec<String> {
        let all = self.inner.engine.entries(EntryKind::Redriven).into_iter();
        let is_about = |key: &String| match partition.ends_with('/') {
            true => key.starts_with(partition),
            false => about(key).0 == partition,
        };
        all.map(|(key, _)| key).filter(is_about).collect()
    }

    /// Removes the record of dead letters before `start`.
    pub(super) fn forgotten(&self, shelf: &Shelf, start: Offset) -> Vec<EntryWrite> {
        let mut keys = self.entries_about(&shelf.partition.to_string());
        keys.retain(|key| about(key).1.is_some_and(|block| block < block_of(start)));
        // The next redrive continues.
        keys.truncate(FORGOTTEN_AT_ONCE);
        keys.into_iter().map(removal).collect()
    }

    /// Removes the record of a deleted topic.
    pub(crate) fn forgotten_with(&self, topic: TopicId) -> Vec<EntryWrite> {
        let keys = self.entries_about(&format!("{topic}/")).into_iter();
        keys.map(removal).collect()
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
            for pair in sent.0.windows(2) {
                prop_assert!(pair[0].1 < pair[1].0, "ranges are apart: {:?}", sent);
            }
            let start = Offset(start.into());
            let kept = expected.range(start..).count() as u64;
            prop_assert_eq!(sent.count_from(start), kept);
        }
    }
}
