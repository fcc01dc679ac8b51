//! What this host appended last, in memory: workers that follow the end of a partition need not read it back from the database.

use std::collections::{BTreeMap, HashMap, VecDeque};
#[cfg(test)]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace_model::{Offset, RecordBatch, TopicPartition};
use parking_lot::Mutex;

/// Bytes of batches that stay in memory; the oldest go first.
const TAIL_BYTES_MAX: usize = 16 << 20;
/// No batch is given out of memory for longer than this: another host may have trimmed it meanwhile.
const TAIL_AGE_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Tail {
    held: Mutex<Held>,
    /// Reads that needed no database.
    #[cfg(test)]
    pub(crate) hits: AtomicUsize,
}

#[derive(Default)]
struct Held {
    partitions: HashMap<TopicPartition, BTreeMap<Offset, Appended>>,
    /// In the order in which they came.
    order: VecDeque<(TopicPartition, Offset)>,
    bytes: usize,
}

struct Appended {
    batch: RecordBatch,
    /// When it was committed, by the monotonic clock.
    at: Duration,
}

impl Tail {
    /// A batch that is committed at its base offset.
    pub(crate) fn note(&self, partition: TopicPartition, batch: RecordBatch, now: Duration) {
        let bytes = batch.byte_count();
        if bytes > TAIL_BYTES_MAX {
            return;
        }
        let mut held = self.held.lock();
        let base = batch.base_offset();
        let of_partition = held.partitions.entry(partition).or_default();
        let before = of_partition.insert(base, Appended { batch, at: now });
        held.bytes += bytes;
        match before {
            Some(before) => held.bytes -= before.batch.byte_count(),
            None => held.order.push_back((partition, base)),
        }
        while held.bytes > TAIL_BYTES_MAX {
            held.forget_oldest();
        }
    }

    pub(crate) fn clear(&self) {
        *self.held.lock() = Held::default();
    }

    /// Batches from the one that contains `from` on; `None` unless they reach `end` or the bound, as those of the database would. Batches at `end`
    /// and behind it belong to a commit that is not visible yet.
    pub(crate) fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        end: Offset,
        bytes_max: usize,
        now: Duration,
    ) -> Option<Vec<RecordBatch>> {
        let held = self.held.lock();
        let of_partition = held.partitions.get(&partition)?;
        let first = *of_partition.range(..=from).next_back()?.0;
        let (mut next, mut bytes) = (first, 0);
        let mut batches = Vec::new();
        for (base, appended) in of_partition.range(first..) {
            if *base >= end {
                break;
            }
            let batch = &appended.batch;
            let is_old = now.saturating_sub(appended.at) > TAIL_AGE_MAX;
            if is_old || *base != next || batch.end_offset() <= from {
                return None;
            }
            bytes += batch.byte_count();
            let is_over = bytes > bytes_max && !batches.is_empty();
            if !is_over {
                batches.push(batch.clone());
                next = batch.end_offset();
            }
            if is_over || bytes >= bytes_max {
                break;
            }
        }
        let is_enough = next >= end || bytes >= bytes_max;
        #[cfg(test)]
        self.hits
            .fetch_add(usize::from(is_enough), Ordering::Relaxed);
        is_enough.then_some(batches)
    }
}

impl Held {
    fn forget_oldest(&mut self) {
        let Some((partition, base)) = self.order.pop_front() else {
            return;
        };
        if let Some(of_partition) = self.partitions.get_mut(&partition) {
            if let Some(gone) = of_partition.remove(&base) {
                self.bytes -= gone.batch.byte_count();
            }
            if of_partition.is_empty() {
                self.partitions.remove(&partition);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::{BatchBuilder, Message, PartitionId, Stamp, TopicId};

    use super::*;

    #[test]
    fn what_is_not_visible_yet_is_not_read() {
        let partition = TopicPartition {
            topic: TopicId(1),
            partition: PartitionId(0),
        };
        let tail = Tail::default();
        for offset in 0..3 {
            let mut builder = BatchBuilder::with_capacity(0);
            builder.push(&Message::default());
            let batch = builder.finish().expect("it has a message");
            let batch = batch.placed(Offset(offset), Stamp::of(partition));
            tail.note(partition, batch, Duration::ZERO);
        }
        let read = |from, end| {
            let read = tail.read(
                partition,
                Offset(from),
                Offset(end),
                usize::MAX,
                Duration::ZERO,
            );
            read.map(|batches| batches.len())
        };
        assert_eq!(read(0, 2), Some(2));
        assert_eq!(read(2, 2), Some(0));
        assert_eq!(read(0, 3), Some(3));
        assert_eq!(read(0, 4), None, "the database has more");
    }
}
