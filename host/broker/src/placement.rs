//! Where the messages of a call go: remembered with the call's key, so that it is answered the same when it is made again.
//!
//! As bytes: how many partitions, their numbers, then runs of messages that go to the same one (which, how many). All are
//! variable-length integers, so a call to one partition takes a few bytes.

use millrace_model::bounds::PRODUCE_CALL_MESSAGES_MAX;
use millrace_model::{Offset, PartitionId, varint};

use crate::produce::Placed;

/// Where each message of a call goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The partition of each append.
    pub(crate) partitions: Vec<u32>,
    /// For each message, which append it is in and where.
    pub(crate) places: Vec<(u32, u32)>,
}

impl Placement {
    /// As bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        varint::put(&mut out, self.partitions.len() as i64);
        for partition in &self.partitions {
            varint::put(&mut out, i64::from(*partition));
        }
        for run in self.places.chunk_by(|a, b| a.0 == b.0) {
            varint::put(&mut out, i64::from(run[0].0));
            varint::put(&mut out, run.len() as i64);
        }
        out
    }

    /// From bytes; `None` if they are no placement.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = 0;
        let take = |at: &mut usize| usize::try_from(varint::take(bytes, at)?).ok();
        let count = take(&mut at).filter(|&count| count <= PRODUCE_CALL_MESSAGES_MAX)?;
        let mut partitions = Vec::with_capacity(count);
        for _ in 0..count {
            partitions.push(u32::try_from(take(&mut at)?).ok()?);
        }
        let mut next = vec![0; count];
        let mut places = Vec::new();
        while at < bytes.len() {
            let (append, length) = (take(&mut at)?, take(&mut at)?);
            let first = next.get_mut(append)?;
            if places.len() + length > PRODUCE_CALL_MESSAGES_MAX {
                return None;
            }
            places.extend((*first..).take(length).map(|place| (append as u32, place)));
            *first += length as u32;
        }
        Some(Self { partitions, places })
    }

    /// Where each message is, if the appends stand at these offsets.
    pub(crate) fn at(&self, base_offsets: &[Offset]) -> Option<Vec<Placed>> {
        let place = |&(append, place): &(u32, u32)| {
            Some(Placed {
                partition: PartitionId(*self.partitions.get(append as usize)?),
                offset: base_offsets.get(append as usize)?.plus(u64::from(place)),
            })
        };
        self.places.iter().map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn placement(appends: &[usize]) -> Placement {
        let mut partitions: Vec<u32> = appends.iter().map(|&a| a as u32 * 7).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let mut counts = vec![0; partitions.len()];
        let place = |&append: &usize| {
            let index = partitions.iter().position(|&p| p == append as u32 * 7);
            let index = index.expect("listed");
            counts[index] += 1;
            (index as u32, counts[index] - 1)
        };
        let places = appends.iter().map(place).collect();
        Placement { partitions, places }
    }

    proptest! {
        #[test]
        fn a_placement_reads_back_as_written(appends in proptest::collection::vec(0_usize..5, 0..60)) {
            let written = placement(&appends);
            prop_assert_eq!(Placement::decode(&written.encode()), Some(written));
        }

        #[test]
        fn anything_else_is_refused_or_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(read) = Placement::decode(&bytes) {
                prop_assert!(read.places.len() <= PRODUCE_CALL_MESSAGES_MAX);
                let _ = read.at(&[Offset(1)]);
            }
        }
    }

    #[test]
    fn a_call_to_one_partition_takes_a_few_bytes() {
        let one = placement(&vec![3; PRODUCE_CALL_MESSAGES_MAX]);
        assert!(one.encode().len() < 12);
    }
}
