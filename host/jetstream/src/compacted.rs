//! What compaction has left of a partition's older messages: batches under a subject of their own, which say their offsets themselves. It is
//! written once, before the partition's beginning names it, and removed when another pass has replaced it.

use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::ReadError;
use millrace_model::{Offset, Timestamp, TopicPartition};
use parking_lot::Mutex;

use crate::atomic::{Note, Put};
use crate::encoding::{Reader, Writer};
use crate::fetch::Message;
use crate::heard::Beginning;
use crate::index::{Anchor, Block, Index, Piece};
use crate::reading::{Found, found, part_of};
use crate::store::Store;
use crate::trouble::Trouble;

/// Words of a note before those of a beginning that say what was compacted.
const NOTE_WORDS: usize = 3;

/// What a pass has left.
#[derive(Debug, Default)]
pub(crate) struct Compacted {
    /// Random, and part of the subject.
    pub(crate) pass: u64,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    /// When the oldest tombstone in it was committed, if it has one.
    pub(crate) tombstones_at: Option<Timestamp>,
    /// The sequence of the first message with what is referred to; zero if nothing is.
    pub(crate) referred_seq: u64,
    /// Where its messages are, once somebody has asked.
    blocks: Mutex<Option<Arc<Vec<Block>>>>,
    /// What is referred to, once somebody has asked.
    referred: Mutex<Option<Arc<Vec<Referred>>>>,
}

/// A batch that was there before a pass, for requests that are repeated: they know it by its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Referred {
    pub(crate) seq: u64,
    pub(crate) base: Offset,
    /// When it was committed.
    pub(crate) at: Timestamp,
}

/// In order, as differences.
pub(crate) fn encode_referred(all: &[Referred]) -> Vec<u8> {
    let mut out = Writer::default();
    let (mut seq, mut base) = (0, 0);
    for one in all {
        out.number(one.seq - seq).number(one.base.0 - base);
        out.number(one.at.0);
        (seq, base) = (one.seq, one.base.0);
    }
    out.done()
}

/// Adds what a message has to what others before it had.
fn decode_referred(bytes: &[u8], all: &mut Vec<Referred>) -> Option<()> {
    let mut read = Reader(bytes);
    let (mut seq, mut base) = (0u64, 0u64);
    while !read.0.is_empty() {
        seq = seq.checked_add(read.number()?)?;
        base = base.checked_add(read.number()?)?;
        all.push(Referred {
            seq,
            base: Offset(base),
            at: Timestamp(read.number()?),
        });
    }
    Some(())
}

impl Compacted {
    pub(crate) fn new(
        pass: u64,
        (first_seq, last_seq): (u64, u64),
        tombstones_at: Option<Timestamp>,
        referred_seq: u64,
    ) -> Self {
        Self {
            pass,
            first_seq,
            last_seq,
            tombstones_at,
            referred_seq,
            ..Self::default()
        }
    }

    /// As the note of a partition's beginning says.
    pub(crate) fn of(note: &Note) -> Option<Self> {
        let number = |place| note.number(NOTE_WORDS + place);
        let seqs = (number(1)?, number(2)?);
        let at = number(3).filter(|at| *at > 0).map(Timestamp);
        let referred_seq = number(4).unwrap_or_default();
        Some(Self::new(number(0)?, seqs, at, referred_seq))
    }

    fn note(&self) -> String {
        let at = self.tombstones_at.unwrap_or_default();
        let (pass, first, last) = (self.pass, self.first_seq, self.last_seq);
        format!(" {pass} {first} {last} {} {}", at.0, self.referred_seq)
    }
}

/// The offset of a batch that says its own, and when it was committed first.
fn placed(note: Option<&Note>) -> Option<(Offset, Timestamp)> {
    let note = note?;
    Some((Offset(note.number(5)?), Timestamp(note.number(6)?)))
}

impl Store {
    /// The cell that says where a partition begins.
    pub(crate) fn start_put(&self, partition: TopicPartition, beginning: Beginning) -> Put {
        let Beginning {
            start,
            anchor,
            compacted,
            seq,
        } = beginning;
        let compacted = compacted.map_or_else(String::new, |compacted| compacted.note());
        let note = format!("{} {} {}{compacted}", start.0, anchor.offset.0, anchor.seq);
        Put::cell(self.subjects.start(partition), Some(seq), Bytes::new()).noted(note)
    }

    /// What is compacted before the partition's own messages; `None` if the offset is not in it.
    pub(crate) fn compacted_at(
        &self,
        partition: TopicPartition,
        offset: Offset,
    ) -> Result<Option<Arc<Compacted>>, ReadError> {
        let heard = self.mirror.heard.read();
        let known = heard.partition(partition)?;
        let compacted = known.compacted.clone();
        Ok(compacted.filter(|_| offset < known.anchor.offset))
    }

    /// Where its messages are.
    pub(crate) async fn compacted_blocks(
        &self,
        partition: TopicPartition,
        compacted: &Compacted,
    ) -> Result<Arc<Vec<Block>>, Trouble> {
        if let Some(known) = compacted.blocks.lock().clone() {
            return Ok(known);
        }
        let subject = self.subjects.compacted(partition, compacted.pass);
        let mut index = Index::beginning(Anchor::default());
        let mut seen = 0;
        let see = &mut |seq, note: Option<&Note>, size: u64| {
            if seq > seen
                && let Some(piece) = note.and_then(|note| Piece::of(seq, note, size))
                && let Some((base, _)) = placed(note)
            {
                index.push(base, piece);
            }
            seen = seq.max(seen);
            seq < compacted.last_seq
        };
        self.each_header(subject, compacted.first_seq, see).await?;
        let blocks = Arc::new(index.into_blocks());
        *compacted.blocks.lock() = Some(Arc::clone(&blocks));
        Ok(blocks)
    }

    /// What of that which was there before is referred to.
    pub(crate) async fn all_referred(
        &self,
        partition: TopicPartition,
        compacted: &Compacted,
    ) -> Result<Arc<Vec<Referred>>, Trouble> {
        if let Some(known) = compacted.referred.lock().clone() {
            return Ok(known);
        }
        let mut all = Vec::new();
        if compacted.referred_seq > 0 {
            let subject = self.subjects.compacted(partition, compacted.pass);
            let (mut next, last) = (compacted.referred_seq, compacted.last_seq);
            self.all(&subject, next, last, |message| {
                next = message.seq + 1;
                let decoded = decode_referred(&message.body, &mut all);
                decoded.ok_or_else(|| Trouble::malformed("what is referred to"))
            })
            .await?;
            if next <= last {
                return Err(Trouble::Moved);
            }
        }
        let all = Arc::new(all);
        *compacted.referred.lock() = Some(Arc::clone(&all));
        Ok(all)
    }

    /// The offset that a batch had; where the partition starts, if nobody was thought to ask.
    pub(crate) async fn referred(
        &self,
        partition: TopicPartition,
        compacted: &Compacted,
        seq: u64,
        start: Offset,
    ) -> Result<Option<Offset>, ReadError> {
        let all = self.all_referred(partition, compacted).await?;
        let found = all.binary_search_by_key(&seq, |one| one.seq).ok();
        let base = found.and_then(|at| all.get(at)).map(|one| one.base);
        Ok(Some(base.unwrap_or(start)))
    }

    /// Passes what is left, from the block with an offset on, until `see` has seen enough or there is no more. Returns whether everything was
    /// there: if not, another pass has replaced it.
    pub(crate) async fn walk_compacted(
        &self,
        partition: TopicPartition,
        compacted: &Compacted,
        from: Offset,
        bytes: usize,
        see: &mut (dyn FnMut(Found) -> bool + Send),
    ) -> Result<bool, ReadError> {
        let blocks = self.compacted_blocks(partition, compacted).await?;
        let after = blocks.partition_point(|block| block.base <= from);
        let block = after.checked_sub(1).and_then(|at| blocks.get(at));
        let mut next_seq = block.map_or(compacted.first_seq, |block| block.seq);
        let subject = self.subjects.compacted(partition, compacted.pass);
        let mut parts: Vec<Message> = Vec::new();
        while next_seq <= compacted.last_seq {
            let mut messages = self.some(&subject, next_seq, bytes).await?;
            if messages.is_empty() {
                // Whoever answered may be late; the leader is not.
                messages.extend(self.next(&subject, next_seq).await?);
            }
            if messages.is_empty() {
                return Ok(false);
            }
            for message in messages {
                if message.seq > compacted.last_seq {
                    return Ok(true);
                }
                next_seq = message.seq + 1;
                let place = message.note.as_ref().and_then(part_of);
                let at = placed(message.note.as_ref());
                let (Some((part, count, span)), Some((base, at))) = (place, at) else {
                    continue;
                };
                if part != parts.len() as u64 {
                    return Ok(false);
                }
                parts.push(message);
                if part + 1 < count {
                    continue;
                }
                let mut found = found(partition, base, span, &parts, next_seq - 1);
                (found.at, found.is_referred) = (at, false);
                parts.clear();
                if !see(found) {
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Removes what another pass has replaced. What cannot be removed now, the next pass removes.
    pub(crate) async fn purge_compacted(&self, partition: TopicPartition, compacted: &Compacted) {
        let subject = self.subjects.compacted(partition, compacted.pass);
        if let Err(error) = self.stream.purge().filter(subject).await {
            tracing::debug!(%error, %partition, "what was compacted anew is not removed yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_referred_to_is_read_as_it_was_written(steps: Vec<(u32, u32, u64)>) {
            let (mut seq, mut base) = (0, 0);
            let all: Vec<Referred> = steps.into_iter().map(|(more, offsets, at)| {
                seq += u64::from(more) + 1;
                base += u64::from(offsets);
                Referred { seq, base: Offset(base), at: Timestamp(at) }
            }).collect();
            let mut read = Vec::new();
            for some in all.chunks(10) {
                prop_assert!(decode_referred(&encode_referred(some), &mut read).is_some());
            }
            prop_assert_eq!(read, all);
        }

        #[test]
        fn nothing_that_is_read_panics(bytes: Vec<u8>) {
            let _ = decode_referred(&bytes, &mut Vec::new());
        }
    }
}
