//! Copies messages, partition by partition, as the batches that they are in. What is read is written while the next is read.

use millrace_engine::{Adoption, ReadError};
use millrace_model::{Offset, RecordBatch, Topic, TopicPartition};

use super::{Copy, CopyError, READ_BYTES, shown};

/// A transaction of the target has room for this besides its batches.
const TRANSACTION_MARGIN_BYTES: usize = 64 << 10;
/// Batches that are written at once: an engine on NATS has at most 1,000 messages in a step, and some of them are for producers.
const BATCHES_MAX: usize = 400;
/// Approximate bytes of a batch besides its own.
const BATCH_OVERHEAD_BYTES: usize = 128;

/// What was read of a partition.
struct Read {
    batches: Vec<RecordBatch>,
    /// The offset to read next.
    to: Offset,
    /// Whether what is between is damaged.
    is_damaged: bool,
}

impl Copy<'_> {
    /// Returns what the source itself cannot read.
    pub(super) async fn copy_messages(&self, topics: &[Topic]) -> Result<Vec<String>, CopyError> {
        self.watcher.begins("copying", self.offsets(topics));
        let copied = self.in_partitions(topics, |partition| self.copy_partition(partition, topics));
        Ok(copied.await?.into_iter().flatten().collect())
    }

    async fn copy_partition(
        &self,
        partition: TopicPartition,
        topics: &[Topic],
    ) -> Result<Vec<String>, CopyError> {
        let ends = self.source.ends(partition).map_err(CopyError::Source)?;
        let known = self.target.ends(partition).map_err(CopyError::Target)?;
        if known.end > ends.end {
            // The source is an earlier one, or somebody else has written to the target.
            let what = shown(topics, partition);
            return Err(CopyError::Other { what });
        }
        let mut damaged = Vec::new();
        let mut at = known.end;
        let mut from = at.max(ends.start);
        self.watcher.advances(from.0 - ends.start.0);
        let mut next = None;
        while from < ends.end || at < ends.end {
            let read = match next.take() {
                Some(read) => read,
                None => self.read(partition, from, ends.end).await?,
            };
            if read.is_damaged {
                let (place, to) = (shown(topics, partition), read.to);
                damaged.push(format!("{place}, offsets {from} to {to} (exclusive)"));
            }
            let done = read.to;
            let writes = self.write(partition, at, read);
            // While it is written, what follows is read.
            let reads = async {
                match done < ends.end {
                    true => self.read(partition, done, ends.end).await.map(Some),
                    false => Ok(None),
                }
            };
            let (written, follows) = tokio::join!(writes, reads);
            at = written?;
            next = follows?;
            self.watcher.advances(done.0 - from.0);
            from = done;
        }
        if known.start < ends.start {
            self.target.trim(partition, ends.start).await?;
        }
        Ok(damaged)
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        end: Offset,
    ) -> Result<Read, CopyError> {
        if from >= end {
            // The partition ends with offsets that have no messages.
            let batches = Vec::new();
            let (to, is_damaged) = (end, false);
            return Ok(Read {
                batches,
                to,
                is_damaged,
            });
        }
        match self.source.read(partition, from, READ_BYTES).await {
            Ok(batches) => Ok(Read {
                to: batches.last().map_or(end, RecordBatch::end_offset),
                batches,
                is_damaged: false,
            }),
            Err(ReadError::Damaged { to, .. }) if to > from => Ok(Read {
                batches: Vec::new(),
                to: to.min(end),
                is_damaged: true,
            }),
            Err(error) => Err(CopyError::Source(error)),
        }
    }

    /// Writes what was read at its offsets, and gaps where there is nothing; returns where the target now ends.
    async fn write(
        &self,
        partition: TopicPartition,
        mut at: Offset,
        read: Read,
    ) -> Result<Offset, CopyError> {
        let bytes_max = self.target.limits().transaction_bytes_max;
        let bytes_max = bytes_max.saturating_sub(TRANSACTION_MARGIN_BYTES);
        let bytes_max = bytes_max.clamp(1, READ_BYTES);
        let mut chunk = Vec::new();
        let mut bytes = 0;
        let mut whole = filled(at, read.batches, read.to).peekable();
        while let Some(batch) = whole.next() {
            bytes += batch.byte_count() + BATCH_OVERHEAD_BYTES;
            at = batch.end_offset();
            chunk.push(batch);
            let next = whole.peek().map(RecordBatch::byte_count);
            let goes_on = next.is_some_and(|next| bytes + next + BATCH_OVERHEAD_BYTES <= bytes_max);
            if !goes_on || chunk.len() >= BATCHES_MAX {
                let batches = std::mem::take(&mut chunk);
                bytes = 0;
                let adoption = Adoption::Messages { partition, batches };
                self.target.adopt(adoption).await?;
            }
        }
        Ok(at)
    }
}

/// The batches, with gaps where they do not follow each other, from `at` to `to`. Those of the source are made anew: they may reach
/// further than what is copied.
fn filled(
    mut at: Offset,
    batches: Vec<RecordBatch>,
    to: Offset,
) -> impl Iterator<Item = RecordBatch> {
    let mut batches = batches
        .into_iter()
        .filter(|batch| !batch.is_control())
        .peekable();
    std::iter::from_fn(move || {
        while batches.next_if(|batch| batch.end_offset() <= at).is_some() {}
        let next = batches.peek().map_or(to, RecordBatch::base_offset);
        if next > at {
            let gap = RecordBatch::gap(at, next);
            at = gap.end_offset();
            return Some(gap);
        }
        let batch = batches.next()?;
        at = batch.end_offset();
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use millrace_model::{BatchBuilder, Message};

    use super::*;

    fn batch(base: u64, messages: usize) -> RecordBatch {
        let mut builder = BatchBuilder::with_capacity(0);
        (0..messages).for_each(|_| builder.push(&Message::default()));
        let batch = builder.finish().expect("at least one message");
        batch.at_offset(Offset(base))
    }

    fn spans(at: u64, batches: Vec<RecordBatch>, to: u64) -> Vec<(u64, u64, bool)> {
        let span = |batch: RecordBatch| {
            let (from, to) = (batch.base_offset(), batch.end_offset());
            (from.0, to.0, batch.is_gap())
        };
        filled(Offset(at), batches, Offset(to)).map(span).collect()
    }

    #[test]
    fn every_offset_has_a_batch_or_a_gap() {
        let gap = |from, to| RecordBatch::gap(Offset(from), Offset(to));
        assert_eq!(spans(0, vec![batch(0, 2)], 2), [(0, 2, false)]);
        assert_eq!(spans(0, vec![], 7), [(0, 7, true)]);
        assert_eq!(spans(7, vec![], 7), []);
        let batches = vec![batch(3, 2), gap(5, 8), batch(9, 1), gap(10, 12)];
        let expected = [
            (0, 3, true),
            (3, 5, false),
            (5, 9, true),
            (9, 10, false),
            (10, 12, true),
        ];
        assert_eq!(spans(0, batches, 12), expected);
        // What is there already comes again if a read begins within it.
        assert_eq!(spans(5, vec![batch(3, 2), batch(5, 1)], 6), [(5, 6, false)]);
        let long = 1 << 31;
        let expected = [(0, long, true), (long, long + 5, true)];
        assert_eq!(spans(0, vec![], long + 5), expected);
    }
}
