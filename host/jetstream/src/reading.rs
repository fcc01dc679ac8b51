//! Reads messages: from the place where the index says that an offset is near, batch by batch.

use std::sync::Arc;

use bytes::BytesMut;
use millrace_engine::time::first_at;
use millrace_engine::{DamageKind, Ends, ReadError};
use millrace_model::{Offset, RecordBatch, Stamp, Timestamp, TopicPartition};

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use futures_util::StreamExt as _;

use crate::atomic::Note;
use crate::compacted::Compacted;
use crate::fetch::{ANSWER_DURATION_MAX, Message, number};
use crate::index::{Anchor, Block, Index, Piece};
use crate::store::Store;
use crate::trouble::Trouble;

/// Bytes that are read at once when something is looked for.
const LOOK_BYTES: usize = 128 << 10;
/// Bytes that are read at once at least, so that the way to an offset is short.
const READ_BYTES_MIN: usize = 64 << 10;

/// The word of a batch's note that says whether a cell refers to it.
const REFERRED_PLACE: usize = 5;
/// How often something is looked for in a partition that is trimmed meanwhile.
const TRIES_MAX: u32 = 5;

/// A batch in the stream.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) batch: Result<RecordBatch, DamageKind>,
    pub(crate) base: Offset,
    pub(crate) end: Offset,
    /// When it was committed.
    pub(crate) at: Timestamp,
    pub(crate) seq: u64,
    /// The sequence of its last part.
    pub(crate) last_seq: u64,
    /// Whether a request or a producer may ask for its offset by its sequence.
    pub(crate) is_referred: bool,
}

/// Messages of a partition whose places are known: what was compacted, or the partition's own.
struct Region {
    compacted: Option<Arc<Compacted>>,
    blocks: Vec<Block>,
    end: Offset,
}

impl Region {
    /// The blocks, each with its end.
    fn blocks(&self) -> impl Iterator<Item = (&Block, Offset)> {
        let ends = self.blocks.iter().skip(1).map(|next| next.base);
        self.blocks.iter().zip(ends.chain([self.end]))
    }
}

impl Store {
    pub(crate) async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        self.check_counts()?;
        let mut ends = self.mirror.ends(partition)?;
        if from < ends.start {
            let (requested, start) = (from, ends.start);
            return Err(ReadError::BelowStart { requested, start });
        }
        if from >= ends.end {
            // Another host may have more.
            self.sync().await?;
            ends = self.mirror.ends(partition)?;
        }
        if from > ends.end {
            let (requested, end) = (from, ends.end);
            return Err(ReadError::PastEnd { requested, end });
        }
        if let Some(fresh) = self.mirror.fresh(partition, from, bytes_max) {
            let placed = |(base, batch): (Offset, RecordBatch)| batch.at_offset(base);
            return Ok(fresh.into_iter().map(placed).collect());
        }
        let asked = bytes_max.saturating_add(READ_BYTES_MIN);
        for _ in 0..TRIES_MAX {
            let mut batches: Vec<RecordBatch> = Vec::new();
            let mut bytes = 0;
            let mut damage = None;
            let see = &mut |found: Found| {
                if found.end <= from {
                    return true;
                }
                match found.batch {
                    Ok(batch) => {
                        bytes += batch.byte_count();
                        if bytes > bytes_max && !batches.is_empty() {
                            return false;
                        }
                        batches.push(batch);
                        bytes < bytes_max
                    }
                    Err(kind) => {
                        damage = Some(ReadError::Damaged {
                            partition,
                            from: found.base,
                            to: found.end,
                            kind,
                        });
                        false
                    }
                }
            };
            let is_certain = match self.compacted_at(partition, from)? {
                Some(compacted) => {
                    self.walk_compacted(partition, &compacted, from, asked, see)
                        .await?
                }
                None => {
                    let place = self.place_of(partition, from).await?;
                    self.walk(partition, place, asked, see).await?
                }
            };
            let start = self.mirror.ends(partition)?.start;
            if from < start {
                let requested = from;
                return Err(ReadError::BelowStart { requested, start });
            }
            if !is_certain {
                self.sync().await?;
                continue;
            }
            return match damage {
                // What is before the damage is read first.
                Some(damage) if batches.is_empty() => Err(damage),
                _ if batches.is_empty() && from < ends.end => {
                    Err(Trouble::unavailable("messages that are known are not found").into())
                }
                _ => Ok(batches),
            };
        }
        Err(trimmed_meanwhile().into())
    }

    /// Passes batches in order, from this place on, until `see` has seen enough or there are no more. So many bytes are read at once.
    ///
    /// Returns whether what was seen is where it was said to be. It may not be if the partition was trimmed meanwhile: what was removed is
    /// missing, and what follows seems to be in its place.
    pub(crate) async fn walk(
        &self,
        partition: TopicPartition,
        start: Anchor,
        bytes: usize,
        see: &mut (dyn FnMut(Found) -> bool + Send),
    ) -> Result<bool, ReadError> {
        let subject = self.subjects.piece(partition);
        let (beginnings, end) = {
            let heard = self.mirror.heard.read();
            (heard.beginnings, heard.partition(partition)?.ends().end)
        };
        let mut misplaced = None;
        let (mut before, mut cursor) = (start, start);
        let mut parts: Vec<Message> = Vec::new();
        let mut next_seq = start.seq + 1;
        'all: while cursor.offset < end {
            let mut messages = self.some(&subject, next_seq, bytes).await?;
            if messages.is_empty() {
                // Whoever answered may be late; the leader is not.
                messages.extend(self.next(&subject, next_seq).await?);
            }
            if messages.is_empty() {
                break;
            }
            for message in messages {
                next_seq = message.seq + 1;
                let place = message.note.as_ref().and_then(part_of);
                let Some((part, count, span)) = place else {
                    // Somebody else has put it there, and nobody counts it.
                    continue;
                };
                if part != parts.len() as u64 {
                    misplaced = Some("a part of a batch is missing");
                    break 'all;
                }
                parts.push(message);
                if part + 1 < count {
                    continue;
                }
                let last_seq = next_seq - 1;
                let found = found(partition, cursor.offset, span, &parts, last_seq);
                parts.clear();
                let place = {
                    let heard = self.mirror.heard.read();
                    heard.partition(partition)?.index.begins_at(found.seq)
                };
                if place.is_some_and(|base| base != found.base) {
                    misplaced = Some("a batch is not at the offset that it was counted at");
                    break 'all;
                }
                before = cursor;
                cursor = Anchor {
                    offset: found.end,
                    seq: last_seq,
                };
                if !see(found) || cursor.offset >= end {
                    break 'all;
                }
            }
        }
        if !self.is_kept(partition, start, beginnings).await? {
            return Ok(false);
        }
        if let Some(what) = misplaced {
            self.stop_serving(what);
            let why = "what was read is not what was counted; it is counted anew";
            return Err(Trouble::unavailable(why).into());
        }
        let mut heard = self.mirror.heard.write();
        if heard.beginnings == beginnings
            && let Some(known) = heard.partitions.get_mut(&partition)
        {
            known.index.note(before);
            known.index.note(cursor);
        }
        Ok(true)
    }

    /// Whether everything after a place is still kept, and the place itself is as it was counted.
    pub(crate) async fn is_kept(
        &self,
        partition: TopicPartition,
        place: Anchor,
        beginnings: u64,
    ) -> Result<bool, ReadError> {
        self.check_counts()?;
        let look = || -> Result<(bool, bool), ReadError> {
            let heard = self.mirror.heard.read();
            let anchor = heard.partition(partition)?.anchor;
            let is_kept = anchor.offset <= place.offset && heard.beginnings == beginnings;
            Ok((is_kept, heard.agreement.newest_as_of() > place.seq))
        };
        let (is_kept, may_be_removed) = look()?;
        let is_late = self.mirror.age(self.clock.monotonic()) > self.options.counted_after / 2;
        if !is_kept || !(may_be_removed || is_late) {
            return Ok(is_kept);
        }
        // Before anything is removed, the start moves: whoever hears all that is there hears of that.
        self.sync().await?;
        self.check_counts()?;
        Ok(look()?.0)
    }

    /// Where to begin to look for an offset.
    pub(crate) async fn place_of(
        &self,
        partition: TopicPartition,
        offset: Offset,
    ) -> Result<Anchor, ReadError> {
        let find = || -> Result<Option<Anchor>, ReadError> {
            let heard = self.mirror.heard.read();
            Ok(heard.partition(partition)?.index.find(offset))
        };
        for _ in 0..TRIES_MAX {
            if let Some(found) = find()? {
                return Ok(found);
            }
            self.fill_index(partition).await?;
            let start = self.mirror.ends(partition)?.start;
            if offset < start {
                let requested = offset;
                return Err(ReadError::BelowStart { requested, start });
            }
        }
        Err(Trouble::unavailable("the place of an offset is not known").into())
    }

    /// Reads the headers of the messages that were there before this host began to follow the stream.
    pub(crate) async fn fill_index(&self, partition: TopicPartition) -> Result<(), ReadError> {
        let (beginnings, anchor, from) = {
            let heard = self.mirror.heard.read();
            let known = heard.partition(partition)?;
            (heard.beginnings, known.anchor, known.index.from)
        };
        if from.offset <= anchor.offset {
            return Ok(());
        }
        let (index, end) = self.headers(partition, anchor, from).await?;
        if end != from.offset {
            // It may have been trimmed meanwhile.
            self.sync().await?;
        }
        let mut heard = self.mirror.heard.write();
        let is_same = heard.beginnings == beginnings;
        let known = heard.partitions.get_mut(&partition);
        let known = known.ok_or(ReadError::UnknownPartition(partition))?;
        if !is_same || known.index.from != from || known.anchor != anchor {
            // Somebody else was faster, or it was trimmed meanwhile; whoever needs it looks again.
            return Ok(());
        }
        if end != from.offset {
            tracing::error!(
                %partition, counted = end.0, expected = from.offset.0,
                "the messages in the stream are not those that were counted: some are lost or were removed by somebody else"
            );
            let lost = "the messages in the stream are not those that were counted";
            return Err(ReadError::Unavailable(lost.into()));
        }
        known.index.prepend(anchor, index.into_blocks());
        Ok(())
    }

    /// An index of the messages between two places, and their end: less than the second place only if some of them are gone.
    async fn headers(
        &self,
        partition: TopicPartition,
        anchor: Anchor,
        to: Anchor,
    ) -> Result<(Index, Offset), Trouble> {
        let mut older = Older::new(anchor, to);
        if !older.is_done {
            let pieces = self.subjects.piece(partition);
            let see = &mut |seq, note: Option<&Note>, size| {
                older.see(seq, note, size);
                !older.is_done
            };
            self.each_header(pieces, anchor.seq + 1, see).await?;
        }
        Ok((older.index, older.next))
    }

    /// Passes the headers of a subject's messages from a sequence on, with the sizes of their bodies, until `see` has seen enough. They may
    /// come more than once.
    pub(crate) async fn each_header(
        &self,
        subject: String,
        from: u64,
        see: &mut (dyn FnMut(u64, Option<&Note>, u64) -> bool + Send),
    ) -> Result<(), Trouble> {
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subject: subject,
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: from,
            },
            headers_only: true,
            ..push::OrderedConfig::default()
        };
        let older = self.stream.create_consumer(config).await;
        let older = older.map_err(Trouble::unavailable)?;
        let mut messages = older.messages().await.map_err(Trouble::unavailable)?;
        // A server that was away has the last of them when it has caught up.
        loop {
            let message = tokio::time::timeout(ANSWER_DURATION_MAX, messages.next()).await;
            let late = |_| Trouble::unavailable("what is older is not delivered in time");
            let message = message.map_err(late)?;
            let ended = || Trouble::unavailable("what is older cannot be read to its end");
            let message = message.ok_or_else(ended)?.map_err(Trouble::unavailable)?;
            let seq = message
                .info()
                .map_err(Trouble::unavailable)?
                .stream_sequence;
            let headers = message.headers.as_ref();
            let size = headers.and_then(|headers| number(headers, "Nats-Msg-Size"));
            let note = headers.and_then(Note::of);
            if !see(seq, note.as_ref(), size.unwrap_or_default()) {
                return Ok(());
            }
        }
    }

    /// The offset of the batch with a sequence; where the partition starts, if it is no longer kept. `None` if the partition is gone.
    pub(crate) async fn offset_of(
        &self,
        partition: TopicPartition,
        seq: u64,
    ) -> Result<Option<Offset>, ReadError> {
        self.check_counts()?;
        for _ in 0..TRIES_MAX {
            let (anchor, start, compacted) = {
                let heard = self.mirror.heard.read();
                let Some(known) = heard.partitions.get(&partition) else {
                    return Ok(None);
                };
                (known.anchor, known.start, known.compacted.clone())
            };
            if seq <= anchor.seq {
                return match compacted {
                    Some(compacted) => self.referred(partition, &compacted, seq, start).await,
                    None => Ok(Some(start)),
                };
            }
            let place = {
                let heard = self.mirror.heard.read();
                heard.partition(partition)?.index.find_seq(seq)
            };
            let Some(place) = place else {
                self.fill_index(partition).await?;
                continue;
            };
            let mut offset = None;
            let see = &mut |found: Found| {
                if found.seq == seq {
                    offset = Some(found.base);
                }
                found.seq < seq
            };
            if self.walk(partition, place, LOOK_BYTES, see).await? {
                return Ok(Some(offset.unwrap_or(start)));
            }
        }
        Err(Trouble::unavailable("the place of a batch is not known").into())
    }

    /// The place before the batch that has the offset; at the end, behind the last one.
    pub(crate) async fn anchor_at(
        &self,
        partition: TopicPartition,
        offset: Offset,
    ) -> Result<Anchor, ReadError> {
        for _ in 0..TRIES_MAX {
            let place = self.place_of(partition, offset).await?;
            let mut anchor = place;
            let see = &mut |found: Found| {
                if found.end > offset {
                    return false;
                }
                anchor = Anchor {
                    offset: found.end,
                    seq: found.last_seq,
                };
                true
            };
            if self.walk(partition, place, LOOK_BYTES, see).await? {
                return Ok(anchor);
            }
        }
        Err(trimmed_meanwhile().into())
    }

    pub(crate) async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError> {
        self.check_counts()?;
        for _ in 0..TRIES_MAX {
            if let Some(counted) = self.try_count(partition, from, to).await? {
                return Ok(counted);
            }
            self.sync().await?;
        }
        Err(trimmed_meanwhile().into())
    }

    /// `None` if the partition was trimmed meanwhile.
    async fn try_count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<Option<u64>, ReadError> {
        let (regions, ends) = self.regions(partition).await?;
        let (from, to) = (from.max(ends.start), to.min(ends.end));
        let mut counted = 0;
        for region in &regions {
            for (block, end) in region.blocks() {
                if end <= from || block.base >= to {
                    continue;
                }
                match block.messages {
                    Some(messages) if block.base >= from && end <= to => counted += messages,
                    // Those at the edges are looked into.
                    _ => {
                        let see = &mut |found: Found| {
                            // Damaged messages may count or not.
                            if found.base < end
                                && let Ok(batch) = &found.batch
                            {
                                counted += batch.messages_within(from, to);
                            }
                            found.end < end
                        };
                        if !self.walk_block(partition, region, block, see).await? {
                            return Ok(None);
                        }
                    }
                }
            }
        }
        Ok(Some(counted))
    }

    /// What was compacted, if there is something, and what comes after it.
    async fn regions(&self, partition: TopicPartition) -> Result<(Vec<Region>, Ends), ReadError> {
        self.fill_index(partition).await?;
        let (own, beginning, ends) = {
            let heard = self.mirror.heard.read();
            let known = heard.partition(partition)?;
            let blocks: Vec<Block> = known.index.blocks().iter().cloned().collect();
            (blocks, known.beginning(), known.ends())
        };
        let mut regions = Vec::new();
        if let Some(compacted) = beginning.compacted {
            let blocks = self.compacted_blocks(partition, &compacted).await?;
            regions.push(Region {
                compacted: Some(compacted),
                blocks: Vec::clone(&blocks),
                end: beginning.anchor.offset,
            });
        }
        regions.push(Region {
            compacted: None,
            blocks: own,
            end: ends.end,
        });
        Ok((regions, ends))
    }

    /// Blocks and their ends, oldest first.
    pub(crate) async fn blocks(
        &self,
        partition: TopicPartition,
    ) -> Result<Vec<(Block, Offset)>, ReadError> {
        let (regions, _) = self.regions(partition).await?;
        let blocks = regions.iter().flat_map(Region::blocks);
        Ok(blocks.map(|(block, end)| (block.clone(), end)).collect())
    }

    /// Passes messages from the beginning of a block on.
    async fn walk_block(
        &self,
        partition: TopicPartition,
        region: &Region,
        block: &Block,
        see: &mut (dyn FnMut(Found) -> bool + Send),
    ) -> Result<bool, ReadError> {
        if let Some(compacted) = &region.compacted {
            return self
                .walk_compacted(partition, compacted, block.base, LOOK_BYTES, see)
                .await;
        }
        let place = Anchor {
            offset: block.base,
            seq: block.seq - 1,
        };
        self.walk(partition, place, LOOK_BYTES, see).await
    }

    pub(crate) async fn offset_at(
        &self,
        partition: TopicPartition,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        self.check_counts()?;
        'tries: for _ in 0..TRIES_MAX {
            let (regions, ends) = self.regions(partition).await?;
            for region in &regions {
                for (block, end) in region.blocks() {
                    if block.latest < at || end <= ends.start {
                        continue;
                    }
                    let mut first = None;
                    let see = &mut |found: Found| {
                        // What is damaged has no time.
                        if let Ok(batch) = &found.batch {
                            first = first_at(batch, ends.start, at);
                        }
                        first.is_none() && found.end < end
                    };
                    if !self.walk_block(partition, region, block, see).await? {
                        self.sync().await?;
                        continue 'tries;
                    }
                    if first.is_some() {
                        return Ok(first);
                    }
                }
            }
            return Ok(None);
        }
        Err(trimmed_meanwhile().into())
    }
}

fn trimmed_meanwhile() -> Trouble {
    Trouble::unavailable("the partition is trimmed again and again meanwhile; try again")
}

/// An index of the messages between two places, while their headers arrive. They may arrive more than once, and begin too early: a
/// subscription that is lost at its beginning is made again from the beginning of the stream.
struct Older {
    index: Index,
    /// The offset of the next one.
    next: Offset,
    /// Everything up to this sequence was seen.
    seen: u64,
    to: Anchor,
    is_done: bool,
}

impl Older {
    fn new(from: Anchor, to: Anchor) -> Self {
        Self {
            index: Index::beginning(from),
            next: from.offset,
            seen: from.seq,
            to,
            is_done: from.offset >= to.offset,
        }
    }

    fn see(&mut self, seq: u64, note: Option<&Note>, size: u64) {
        if self.is_done || seq <= self.seen {
            return;
        }
        self.seen = seq;
        if seq > self.to.seq {
            self.is_done = true;
            return;
        }
        let Some((0, count, span)) = note.and_then(part_of) else {
            return;
        };
        let number_of = |place| note.and_then(|note| note.number(place));
        let piece = Piece {
            seq,
            span,
            messages: number_of(3).unwrap_or_default(),
            latest: Timestamp(number_of(4).unwrap_or_default()),
            bytes: size.saturating_mul(count),
        };
        self.index.push(self.next, piece);
        self.next = self.next.plus(span);
        self.is_done = self.next >= self.to.offset;
    }
}

/// Which part of how many, and how many offsets the batch has.
pub(crate) fn part_of(note: &Note) -> Option<(u64, u64, u64)> {
    Some((note.number(0)?, note.number(1)?, note.number(2)?))
}

pub(crate) fn found(
    partition: TopicPartition,
    base: Offset,
    span: u64,
    parts: &[Message],
    last_seq: u64,
) -> Found {
    let note_of_first = parts.first().and_then(|part| part.note.as_ref());
    let bytes = match parts {
        [whole] => whole.body.clone(),
        parts => {
            let mut all = BytesMut::new();
            parts
                .iter()
                .for_each(|part| all.extend_from_slice(&part.body));
            all.freeze()
        }
    };
    let end = base.plus(span);
    let batch = match RecordBatch::decode(&bytes) {
        Ok(batch) if !batch.belongs_to(Stamp::of(partition)) => Err(DamageKind::Misplaced),
        Ok(batch) => {
            let batch = batch.at_offset(base);
            match batch.end_offset() == end {
                true => Ok(batch),
                false => Err(DamageKind::Changed),
            }
        }
        Err(_) => Err(DamageKind::Changed),
    };
    Found {
        batch,
        base,
        end,
        at: parts.first().map(|part| part.at).unwrap_or_default(),
        seq: parts.first().map_or(last_seq, |part| part.seq),
        last_seq,
        is_referred: note_of_first.is_some_and(|note| note.number(REFERRED_PLACE) == Some(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of two offsets, in so many parts each.
    fn see(older: &mut Older, seqs: impl IntoIterator<Item = u64>, parts: u64) {
        for seq in seqs {
            let words = [seq % parts, parts, 2, 2, 1000 + seq].map(|word| word.to_string());
            let note = Note {
                commit: 1,
                index: 0,
                count: 1,
                words: words.into(),
            };
            older.see(seq, Some(&note), 100);
        }
    }

    fn anchor(offset: u64, seq: u64) -> Anchor {
        Anchor {
            offset: Offset(offset),
            seq,
        }
    }

    #[test]
    fn what_arrives_twice_or_is_before_the_start_is_not_counted() {
        let mut older = Older::new(anchor(6, 13), anchor(14, 17));
        see(&mut older, 10..16, 1);
        assert_eq!((older.next, older.is_done), (Offset(10), false));
        // The subscription is made again.
        see(&mut older, 1..18, 1);
        assert_eq!((older.next, older.is_done), (Offset(14), true));
        assert_eq!(older.index.blocks()[0].seq, 14);
        assert_eq!(older.index.blocks()[0].messages, Some(8));
        see(&mut older, 18..30, 1);
        assert_eq!(older.next, Offset(14));
    }

    #[test]
    fn a_batch_in_parts_counts_once() {
        let mut older = Older::new(anchor(0, 0), anchor(4, 9));
        see(&mut older, 3..9, 3);
        assert_eq!((older.next, older.is_done), (Offset(4), true));
        assert_eq!(older.index.blocks()[0].bytes, 600);
    }

    #[test]
    fn what_is_gone_is_missing_at_the_end() {
        let mut older = Older::new(anchor(0, 0), anchor(8, 4));
        see(&mut older, [1, 2, 4], 1);
        assert!(!older.is_done, "the last one may still arrive");
        see(&mut older, [5], 1);
        assert_eq!((older.next, older.is_done), (Offset(6), true));
        let older = Older::new(anchor(3, 8), anchor(3, 8));
        assert!(older.is_done);
    }

    #[test]
    fn what_others_have_written_has_no_offsets() {
        let mut older = Older::new(anchor(0, 0), anchor(2, 4));
        older.see(1, None, 100);
        see(&mut older, [2], 1);
        assert_eq!((older.next, older.is_done), (Offset(2), true));
    }
}
