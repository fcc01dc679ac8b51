//! Reads messages: from the place where the index says that an offset is near, batch by batch.

use std::sync::Arc;

use bytes::BytesMut;
use millrace_engine::time::first_at;
use millrace_engine::{DamageKind, Ends, ReadError};
use millrace_model::{Offset, RecordBatch, Stamp, Timestamp, TopicPartition};

use crate::atomic::Note;
use crate::compacted::Compacted;
use crate::fetch::Message;
use crate::index::{Anchor, Block};
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
