//! The positions of a call's messages: stored with the call's key, so that a repeat gets the same answer.
//!
//! As bytes: the number of partitions, their numbers, then runs of messages in the same partition
//! (which one, how many). Each delayed message is a separate run in the partition after the last
//! one, with its id in place of a length. All numbers are variable-length integers, so a call to
//! one partition takes a few bytes.

use millrace_model::bounds::PRODUCE_CALL_MESSAGES_MAX;
use millrace_model::{Offset, PartitionId, Timestamp, varint};

use crate::messages::call::Placed;
use crate::messages::delays::stored::DelayedId;

/// The positions of a call's messages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The partition of each append.
    pub(crate) partitions: Vec<u32>,
    /// Of each message.
    pub(crate) places: Vec<Place>,
}

/// The position of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its append, and its index there.
    In(u32, u32),
    /// It is delayed.
    Delayed(DelayedId),
}

impl Placement {
    /// As bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        varint::put(&mut out, self.partitions.len() as i64);
        for partition in &self.partitions {
            varint::put(&mut out, i64::from(*partition));
        }
        let same =
            |a: &Place, b: &Place| matches!((a, b), (Place::In(a, _), Place::In(b, _)) if a == b);
        for run in self.places.chunk_by(same) {
            match run[0] {
                Place::In(append, _) => {
                    varint::put(&mut out, i64::from(append));
                    varint::put(&mut out, run.len() as i64);
                }
                Place::Delayed(id) => {
                    varint::put(&mut out, self.partitions.len() as i64);
                    put_id(&mut out, id);
                }
            }
        }
        out
    }

    /// From bytes; `None` if they are not a placement.
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
            let append = take(&mut at)?;
            let length = match append == count {
                true => 1,
                false => take(&mut at)?,
            };
            if length > PRODUCE_CALL_MESSAGES_MAX.saturating_sub(places.len()) {
                return None;
            }
            if append == count {
                places.push(Place::Delayed(take_id(bytes, &mut at)?));
                continue;
            }
            let first = next.get_mut(append)?;
            let run = (*first..).take(length);
            places.extend(run.map(|place| Place::In(append as u32, place)));
            *first += length as u32;
        }
        Some(Self { partitions, places })
    }

    /// The position of each message, given the offsets of the appends.
    pub(crate) fn at(&self, base_offsets: &[Offset]) -> Option<Vec<Placed>> {
        let place = |place: &Place| {
            let (append, place) = match *place {
                Place::In(append, place) => (append as usize, place),
                Place::Delayed(id) => return Some(Placed::Delayed(id)),
            };
            Some(Placed::At {
                partition: PartitionId(*self.partitions.get(append)?),
                offset: base_offsets.get(append)?.plus(u64::from(place)),
            })
        };
        self.places.iter().map(place).collect()
    }
}

fn put_id(out: &mut Vec<u8>, id: DelayedId) {
    varint::put(out, i64::from(id.partition.0));
    varint::put(out, id.due.0 as i64);
    varint::put(out, id.arrival as i64);
    varint::put(out, i64::from(id.salt));
}

fn take_id(bytes: &[u8], at: &mut usize) -> Option<DelayedId> {
    Some(DelayedId {
        partition: PartitionId(u32::try_from(varint::take(bytes, at)?).ok()?),
        due: Timestamp(varint::take(bytes, at)? as u64),
        arrival: varint::take(bytes, at)? as u64,
        salt: u32::try_from(varint::take(bytes, at)?).ok()?,
    })
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
            if append == 4 {
                counts[index] -= 1;
                return Place::Delayed(DelayedId {
                    partition: PartitionId(7),
                    due: Timestamp(u64::MAX),
                    arrival: counts[index].into(),
                    salt: u32::MAX,
                });
            }
            Place::In(index as u32, counts[index] - 1)
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
