//! Finds messages of an earlier call that no longer exist. A repeated call gets their old positions
//! as its answer, and the client should know which of these are empty.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use millrace_engine::ReadError;
use millrace_model::{Offset, PartitionId, RecordBatch, Topic, TopicPartition};

use crate::ground::packing;
use crate::messages::call::Placed;
use crate::messages::handle::Messages;

/// Bytes per read from the engine.
const LOOK_BYTES: usize = 1 << 20;

/// A message's offset, and its index in the call.
type At = (Offset, usize);

impl Messages {
    /// The messages, by index, that can no longer be read. A position that cannot be checked counts as readable.
    pub(crate) async fn gone(&self, topic: &Topic, placed: &[Placed]) -> BTreeSet<usize> {
        let mut by_partition = BTreeMap::<PartitionId, Vec<At>>::new();
        for (index, place) in placed.iter().enumerate() {
            if let Placed::At { partition, offset } = *place {
                by_partition
                    .entry(partition)
                    .or_default()
                    .push((offset, index));
            }
        }
        let mut gone = BTreeSet::new();
        for (partition, mut wanted) in by_partition {
            wanted.sort_unstable();
            if let Some(partition) = topic.partition(partition) {
                self.look_for(partition, &wanted, &mut gone).await;
            }
        }
        gone
    }

    /// Looks for messages of one partition, by ascending offsets.
    async fn look_for(
        &self,
        partition: TopicPartition,
        mut wanted: &[At],
        gone: &mut BTreeSet<usize>,
    ) {
        while let Some(&(first, _)) = wanted.first() {
            let left = wanted.len();
            match self.inner.engine.read(partition, first, LOOK_BYTES).await {
                Ok(batches) if batches.is_empty() => lose(&mut wanted, Offset::MAX, gone),
                Ok(batches) => {
                    for batch in &batches {
                        lose(&mut wanted, batch.base_offset(), gone);
                        look_in(batch, &mut wanted, gone).await;
                    }
                }
                Err(ReadError::BelowStart { start, .. }) => lose(&mut wanted, start, gone),
                Err(_) => return,
            }
            if wanted.len() == left {
                return;
            }
        }
    }
}

/// Messages before this offset are gone.
fn lose(wanted: &mut &[At], before: Offset, gone: &mut BTreeSet<usize>) {
    let count = wanted.partition_point(|&(offset, _)| offset < before);
    gone.extend(wanted[..count].iter().map(|&(_, index)| index));
    *wanted = &wanted[count..];
}

/// Passes over the messages that are in the batch; those in gaps left by compaction are gone.
async fn look_in(batch: &RecordBatch, wanted: &mut &[At], gone: &mut BTreeSet<usize>) {
    let end = batch.end_offset();
    let count = wanted.partition_point(|&(offset, _)| offset < end);
    let (here, after) = wanted.split_at(count);
    *wanted = after;
    let is_whole = end.0 - batch.base_offset().0 == batch.message_count() as u64;
    if is_whole || here.is_empty() {
        return;
    }
    let Ok(plain) = packing::readable(batch).await else {
        return;
    };
    let Ok(records) = plain.records() else { return };
    let kept: HashSet<Offset> = records
        .map_while(Result::ok)
        .map(|view| view.offset)
        .collect();
    let lost = here.iter().filter(|(offset, _)| !kept.contains(offset));
    gone.extend(lost.map(|&(_, index)| index));
}
