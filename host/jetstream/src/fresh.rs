//! What this host has just written: a reader that keeps up finds it in memory. A worker's input mostly comes from the same host, so this
//! saves its servers a read for each batch, and the worker the wait for it.

use std::collections::{HashMap, VecDeque};

use millrace_model::{Offset, RecordBatch, TopicId, TopicPartition};

/// Approximate bytes of a batch besides its own.
const BATCH_OVERHEAD_BYTES: usize = 128;

#[derive(Default)]
pub(crate) struct Fresh {
    /// Beyond that the oldest go.
    bytes_max: usize,
    /// In order, with gaps where other hosts have written.
    partitions: HashMap<TopicPartition, VecDeque<(Offset, RecordBatch)>>,
    /// The partition of each batch, oldest first.
    order: VecDeque<TopicPartition>,
    bytes: usize,
}

fn size(batch: &RecordBatch) -> usize {
    batch.byte_count() + BATCH_OVERHEAD_BYTES
}

/// A batch that has its offset only here.
fn end(base: Offset, batch: &RecordBatch) -> Offset {
    base.plus(batch.end_offset().0 - batch.base_offset().0)
}

impl Fresh {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    /// A batch that was written with this offset, behind all others of its partition.
    pub(crate) fn push(&mut self, at: TopicPartition, base: Offset, batch: RecordBatch) {
        self.bytes += size(&batch);
        self.order.push_back(at);
        self.partitions
            .entry(at)
            .or_default()
            .push_back((base, batch));
        while self.bytes > self.bytes_max
            && let Some(at) = self.order.pop_front()
        {
            self.drop_oldest(at);
        }
    }

    fn drop_oldest(&mut self, at: TopicPartition) {
        let Some(batches) = self.partitions.get_mut(&at) else {
            return;
        };
        if let Some((_, batch)) = batches.pop_front() {
            self.bytes -= size(&batch);
        }
        if batches.is_empty() {
            self.partitions.remove(&at);
        }
    }

    /// What is before the offset is not read here any more.
    pub(crate) fn trim(&mut self, at: TopicPartition, before: Offset) {
        let of_it = |batches: &VecDeque<(Offset, RecordBatch)>| {
            batches.partition_point(|(base, batch)| end(*base, batch) <= before)
        };
        let mut gone = self.partitions.get(&at).map_or(0, of_it);
        for _ in 0..gone {
            self.drop_oldest(at);
        }
        self.order.retain(|of| {
            let goes = *of == at && gone > 0;
            gone -= usize::from(goes);
            !goes
        });
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    pub(crate) fn forget(&mut self, topic: TopicId) {
        let gone = self.order.iter().filter(|at| at.topic == topic);
        let gone: Vec<TopicPartition> = gone.copied().collect();
        self.order.retain(|at| at.topic != topic);
        gone.into_iter().for_each(|at| self.drop_oldest(at));
    }

    /// The batches from an offset on, with their offsets, as [`Engine::read`](millrace_engine::Engine::read) returns them for a partition
    /// that ends here. `None` if any of them is not among these.
    pub(crate) fn read(
        &self,
        at: TopicPartition,
        from: Offset,
        ends: Offset,
        bytes_max: usize,
    ) -> Option<Vec<(Offset, RecordBatch)>> {
        let batches = self.partitions.get(&at)?;
        let first = batches.partition_point(|(base, batch)| end(*base, batch) <= from);
        let mut next = batches.get(first)?.0;
        if next > from {
            return None;
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        for (base, batch) in batches.range(first..) {
            bytes += batch.byte_count();
            let is_enough = bytes > bytes_max && !found.is_empty();
            if *base != next || is_enough {
                return is_enough.then_some(found);
            }
            next = end(*base, batch);
            found.push((*base, batch.clone()));
            if bytes >= bytes_max {
                return Some(found);
            }
        }
        (next == ends).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::{BatchBuilder, Message, PartitionId, Timestamp};

    use super::*;

    const ROOM_BYTES: usize = 1 << 20;

    fn at(topic: u64) -> TopicPartition {
        TopicPartition {
            topic: TopicId(topic),
            partition: PartitionId(0),
        }
    }

    fn batch(messages: usize, bytes: usize) -> RecordBatch {
        let mut builder = BatchBuilder::with_capacity(bytes);
        for _ in 0..messages {
            builder.push(&Message {
                timestamp: Timestamp(1),
                key: None,
                value: Some(vec![7; bytes].into()),
                headers: Vec::new(),
            });
        }
        builder.finish().expect("it has messages")
    }

    fn bases(read: Option<Vec<(Offset, RecordBatch)>>) -> Option<Vec<u64>> {
        read.map(|found| found.iter().map(|(base, _)| base.0).collect())
    }

    /// Batches of two messages at 0, 2 and 6; another host has written between.
    fn with_gap() -> Fresh {
        let mut fresh = Fresh::new(ROOM_BYTES);
        for base in [0, 2, 6] {
            fresh.push(at(1), Offset(base), batch(2, 10));
        }
        fresh
    }

    #[test]
    fn a_read_is_answered_whole_or_not_at_all() {
        let fresh = with_gap();
        let one = batch(2, 10).byte_count();
        let read = |from, bytes| bases(fresh.read(at(1), Offset(from), Offset(8), bytes));
        // As many bytes as are asked for, at least one batch, from the one that has the offset on.
        assert_eq!(read(0, 1), Some(vec![0]));
        assert_eq!(read(1, 2 * one), Some(vec![0, 2]));
        assert_eq!(read(6, usize::MAX), Some(vec![6]));
        assert_eq!(read(7, usize::MAX), Some(vec![6]));
        // What others have written is missing.
        assert_eq!(read(0, usize::MAX), None);
        assert_eq!(read(2, 2 * one), None);
        assert_eq!(read(4, usize::MAX), None);
        assert_eq!(read(8, usize::MAX), None);
        // So is what is behind all of these.
        assert_eq!(
            bases(fresh.read(at(1), Offset(6), Offset(9), usize::MAX)),
            None
        );
        assert_eq!(
            bases(fresh.read(at(2), Offset(0), Offset(8), usize::MAX)),
            None
        );
    }

    #[test]
    fn what_was_trimmed_is_gone_and_what_comes_after_it_is_there() {
        let mut fresh = with_gap();
        fresh.push(at(2), Offset(0), batch(1, 10));
        fresh.trim(at(1), Offset(3));
        assert_eq!(fresh.order, [at(1), at(1), at(2)]);
        assert_eq!(bases(fresh.read(at(1), Offset(0), Offset(8), 1)), None);
        assert_eq!(
            bases(fresh.read(at(1), Offset(2), Offset(8), 1)),
            Some(vec![2])
        );
        fresh.trim(at(1), Offset(8));
        fresh.trim(at(2), Offset(1));
        assert_eq!((fresh.bytes, fresh.order.len()), (0, 0));
    }

    #[test]
    fn the_oldest_go_first_and_deleted_topics_leave_nothing() {
        let mut fresh = with_gap();
        fresh.push(at(2), Offset(0), batch(1, 10));
        fresh.forget(TopicId(1));
        assert_eq!(bases(fresh.read(at(1), Offset(6), Offset(8), 1)), None);
        let large = batch(1, ROOM_BYTES / 3);
        for base in 0..5 {
            fresh.push(at(3), Offset(base), large.clone());
            assert!(fresh.bytes <= ROOM_BYTES);
        }
        assert_eq!(bases(fresh.read(at(2), Offset(0), Offset(1), 1)), None);
        assert_eq!(bases(fresh.read(at(3), Offset(0), Offset(5), 1)), None);
        assert_eq!(
            bases(fresh.read(at(3), Offset(4), Offset(5), 1)),
            Some(vec![4])
        );
        fresh.forget(TopicId(3));
        assert_eq!((fresh.bytes, fresh.order.len()), (0, 0));
    }
}
