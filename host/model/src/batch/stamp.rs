//! A stored batch's stamp: a number of its topic and partition, in the header's leader epoch field.
//!
//! Files can be swapped and writes can go astray, and apart from its offset a valid batch does not say where it belongs. The leader
//! epoch is outside the checksum, so an engine stamps a batch together with its base offset, in bytes that it writes anyway. Kafka's
//! clients interpret this field: code that sends a stored batch to one must overwrite these four bytes with -1
//! ([`RecordBatch::unstamped`], which may copy). The values -1 and 0, which producers and version 0.1 write, are not stamps; such a
//! batch counts as belonging to whichever partition it is in.

use super::*;
use crate::topic::TopicPartition;

/// What clients write into the field.
const NONE: u32 = u32::MAX;

/// A number of one partition of one topic. Any two below 65,536 topics and partitions are different; of others, two in four billion are
/// equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u32);

impl Stamp {
    /// The partition's.
    #[must_use]
    pub fn of(partition: TopicPartition) -> Self {
        // The low bytes side by side: a CRC distinguishes everything that differs within 32 bits.
        let mut place = [0; 12];
        place[..8].copy_from_slice(&partition.topic.0.to_be_bytes());
        place[8..].copy_from_slice(&partition.partition.0.to_le_bytes());
        Self(match crc32c::crc32c(&place) {
            0 => 1,
            NONE => NONE - 1,
            number => number,
        })
    }

    /// The stamp in a header's first bytes; `None` if there is none, or too few bytes.
    #[must_use]
    pub fn in_header(bytes: &[u8]) -> Option<Self> {
        let field = bytes.get(STAMP_AT..)?.first_chunk::<4>()?;
        let number = u32::from_be_bytes(*field);
        (number != NONE && number != 0).then_some(Self(number))
    }
}

impl RecordBatch {
    /// The stamp; `None` if the batch was never stored, or by a version without stamps.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        Stamp::in_header(&self.bytes)
    }

    /// Whether it may be in the partition of this stamp.
    #[must_use]
    pub fn belongs_to(&self, stamp: Stamp) -> bool {
        self.stamp().is_none_or(|own| own == stamp)
    }

    /// The same batch at `base` in the partition of this stamp; changed in place if its bytes are not shared.
    #[must_use]
    pub fn placed(self, base: Offset, stamp: Stamp) -> Self {
        self.with_place(base, Some(stamp))
    }

    /// The same batch, stamped for this partition.
    #[must_use]
    pub fn stamped(self, stamp: Stamp) -> Self {
        let base = self.base_offset();
        self.with_place(base, Some(stamp))
    }

    /// The same batch in the form for clients.
    #[must_use]
    pub fn unstamped(self) -> Self {
        let base = self.base_offset();
        self.with_place(base, None)
    }

    pub(super) fn with_place(self, base: Offset, stamp: Option<Stamp>) -> Self {
        if self.base_offset() == base && self.stamp() == stamp {
            return self;
        }
        let mut bytes = match self.bytes.try_into_mut() {
            Ok(unshared) => unshared,
            Err(shared) => shared.as_ref().into(),
        };
        let number = stamp.map_or(NONE, |stamp| stamp.0);
        bytes[..LENGTH_AT].copy_from_slice(&base.0.to_be_bytes());
        bytes[STAMP_AT..STAMP_END].copy_from_slice(&number.to_be_bytes());
        Self {
            bytes: bytes.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::offset::PartitionId;
    use crate::topic::TopicId;

    fn stamp(topic: u64, partition: u32) -> Stamp {
        Stamp::of(TopicPartition {
            topic: TopicId(topic),
            partition: PartitionId(partition),
        })
    }

    fn batch() -> RecordBatch {
        let mut builder = BatchBuilder::with_capacity(64);
        for number in 0..5u8 {
            builder.push(&Message {
                value: Some(vec![number; 40].into()),
                ..Message::default()
            });
        }
        builder.finish().expect("records")
    }

    #[test]
    fn partitions_have_stamps_of_their_own() {
        let mut seen = HashSet::new();
        for topic in 0..300 {
            assert!((0..300).all(|partition| seen.insert(stamp(topic, partition).0)));
        }
        // As large as the promise goes.
        for far in [0xff00, 0xfffe, 0xffff] {
            for near in 0..300 {
                assert!(seen.insert(stamp(u64::from(far), near).0));
                assert!(seen.insert(stamp(near.into(), far).0));
            }
        }
        assert!(!seen.contains(&0) && !seen.contains(&NONE));
    }

    proptest! {
        #[test]
        fn a_stamped_batch_belongs_to_its_partition_alone_and_is_the_batch_that_it_was(
            own in (any::<u64>(), any::<u32>()),
            other in (any::<u64>(), any::<u32>()),
            base in 0u64..1 << 60,
        ) {
            let (mine, others) = (stamp(own.0, own.1), stamp(other.0, other.1));
            let produced = batch();
            prop_assert_eq!(produced.stamp(), None);
            prop_assert!(produced.belongs_to(mine) && produced.belongs_to(others));
            let placed = produced.clone().placed(Offset(base), mine);
            let again = RecordBatch::decode(placed.bytes()).expect("sound");
            prop_assert_eq!(again.stamp(), Some(mine));
            prop_assert!(again.belongs_to(mine));
            prop_assert_eq!(again.belongs_to(others), mine == others);
            prop_assert_eq!(&again, &produced.at_offset(Offset(base)));
            prop_assert_eq!(again.at_offset(Offset(7)).stamp(), Some(mine));
            let sent = again.unstamped();
            let moved = produced.at_offset(Offset(base));
            prop_assert_eq!(sent.bytes(), moved.bytes());
        }
    }

    #[test]
    fn what_nobody_shares_is_placed_without_a_copy_and_what_is_shared_stays_as_it_was() {
        let produced = batch();
        let at = produced.bytes().as_ptr();
        let placed = produced.placed(Offset(9), stamp(1, 2));
        assert_eq!(placed.bytes().as_ptr(), at);
        let moved = placed.clone().placed(Offset(10), stamp(1, 3));
        assert_eq!(
            (placed.base_offset(), placed.stamp()),
            (Offset(9), Some(stamp(1, 2)))
        );
        assert_eq!(
            (moved.base_offset(), moved.stamp()),
            (Offset(10), Some(stamp(1, 3)))
        );
    }
}
