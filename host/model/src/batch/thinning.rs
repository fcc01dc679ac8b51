//! Batches with gaps: what compaction leaves of a batch, and the placeholders for offsets without any messages left.
//!
//! Offsets never change. A thinned batch keeps its base offset and its end; removed records leave gaps between the others. A batch may
//! also end later than its last record, to cover the offsets of whole batches removed after it. If there is no batch before, a *gap*
//! covers them: a control batch, which has no messages and is skipped by everyone, including Kafka's clients. So every batch still
//! begins where the previous one ended, and every offset is covered by a checksum: a hole in that chain is damage, never compaction.

use super::produced::APPEND_TIME_FLAG;
use super::{
    BatchBuilder, BatchError, CONTROL_FLAG, CRC_COVERS_FROM, CRC_START, HEADER_BYTES, LENGTH_END,
    RecordBatch, RecordView, Records,
};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::offset::Offset;

/// Maximum offsets that one batch may span: its last offset delta is a signed 32-bit number.
const BATCH_OFFSETS_MAX: u64 = 1 << 31;
/// The key of a gap's only record: version 0 of a control record, with a type of our own.
const GAP_KEY: [u8; 4] = [0, 0, b'M', b'G'];

/// What is left of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thinned {
    /// All of it.
    Whole,
    /// Some records, over the same offsets.
    Part(RecordBatch),
    /// Nothing.
    Nothing,
}

impl RecordBatch {
    /// The result of keeping only the records for which `keep` is true.
    ///
    /// # Errors
    /// [`BatchError`] if the records cannot be read; then nothing may be removed.
    pub fn thinned(
        &self,
        mut keep: impl FnMut(&RecordView) -> bool,
    ) -> Result<Thinned, BatchError> {
        let mut records = self.records()?;
        let mut bytes = self.bytes[..HEADER_BYTES].to_vec();
        let (mut count, mut latest) = (0u32, Timestamp::default());
        while let Some((view, raw)) = records.next_raw() {
            let view = view?;
            if keep(&view) {
                bytes.extend_from_slice(&self.bytes[raw]);
                latest = latest.max(view.timestamp);
                count += 1;
            }
        }
        if count as usize == self.message_count() {
            return Ok(Thinned::Whole);
        }
        if count == 0 {
            return Ok(Thinned::Nothing);
        }
        let length = (bytes.len() - LENGTH_END) as u32;
        bytes[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
        if i16::from_be_bytes(self.field(21)) & APPEND_TIME_FLAG == 0 {
            bytes[35..43].copy_from_slice(&latest.0.to_be_bytes());
        }
        bytes[57..HEADER_BYTES].copy_from_slice(&count.to_be_bytes());
        Ok(Thinned::Part(sealed(bytes)))
    }

    /// The same batch, extended to `end`, or as far as one batch may span.
    #[must_use]
    pub fn reaching(&self, end: Offset) -> Self {
        if end <= self.end_offset() {
            return self.clone();
        }
        let mut bytes = self.bytes.to_vec();
        put_span(&mut bytes, end.0 - self.base_offset().0);
        sealed(bytes)
    }

    /// A placeholder for the offsets from `from` to `end`, or as many as one batch may span.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn gap(from: Offset, end: Offset) -> Self {
        assert!(from < end, "a gap stands for at least one offset");
        let mut builder = BatchBuilder::with_capacity(16);
        builder.push(&Message {
            key: Some(bytes::Bytes::from_static(&GAP_KEY)),
            ..Message::default()
        });
        let batch = builder
            .finish()
            .unwrap_or_else(|| unreachable!("one record"));
        let mut bytes = batch.bytes.to_vec();
        bytes[21..23].copy_from_slice(&CONTROL_FLAG.to_be_bytes());
        put_span(&mut bytes, end.0 - from.0);
        sealed(bytes).at_offset(from)
    }

    /// The number of its messages from `from` on and before `to`. An upper bound for a batch with gaps whose records cannot be read.
    #[must_use]
    pub fn messages_within(&self, from: Offset, to: Offset) -> u64 {
        if self.is_control() {
            return 0;
        }
        let (base, end) = (self.base_offset(), self.end_offset());
        let count = self.message_count() as u64;
        let (from, to) = (from.max(base), to.min(end));
        let span = to.0.saturating_sub(from.0);
        if span == end.0 - base.0 || count == end.0 - base.0 {
            return span.min(count);
        }
        let Ok(records) = self.records() else {
            return span.min(count);
        };
        let offsets = records.map_while(Result::ok).map(|view| view.offset);
        offsets.filter(|offset| (from..to).contains(offset)).count() as u64
    }

    /// Whether some of its offsets have no messages.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        let offsets = self.end_offset().0 - self.base_offset().0;
        self.is_control() || self.message_count() as u64 != offsets
    }

    /// Whether it is only a placeholder.
    #[must_use]
    pub fn is_gap(&self) -> bool {
        let key = |view: RecordView| view.key.map(|key| &self.bytes[key] == GAP_KEY.as_slice());
        let first = || self.records().ok()?.next()?.ok();
        self.is_control() && first().and_then(key) == Some(true)
    }
}

fn put_span(bytes: &mut [u8], offsets: u64) {
    let last_delta = offsets.min(BATCH_OFFSETS_MAX) - 1;
    bytes[23..27].copy_from_slice(&(last_delta as u32).to_be_bytes());
}

/// The batch of these bytes, with their checksum.
fn sealed(mut bytes: Vec<u8>) -> RecordBatch {
    let crc = crc32c::crc32c(&bytes[CRC_COVERS_FROM..]);
    bytes[CRC_START..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
    RecordBatch {
        bytes: bytes.into(),
    }
}

impl Records<'_> {
    /// The next record, and its size including its length field.
    fn next_raw(&mut self) -> Option<(Result<RecordView, BatchError>, std::ops::Range<usize>)> {
        let start = self.at;
        let view = self.next()?;
        Some((view, start..self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbered(base: u64, count: u64) -> RecordBatch {
        let mut builder = BatchBuilder::with_capacity(64);
        for number in 0..count {
            builder.push(&Message {
                key: Some(number.to_string().into()),
                value: Some(vec![number as u8; number as usize].into()),
                headers: Vec::new(),
                timestamp: Timestamp(1_000 + number * 7 % 5),
            });
        }
        builder.finish().expect("records").at_offset(Offset(base))
    }

    fn contents(batch: &RecordBatch) -> Vec<(Offset, Message)> {
        let records = batch.records().expect("plain");
        let message = |view: RecordView| (view.offset, view.to_message(batch.bytes()).unwrap());
        records.map(|view| message(view.unwrap())).collect()
    }

    proptest! {
        #[test]
        fn what_stays_of_a_batch_is_as_it_was_and_where_it_was(
            kept in proptest::collection::vec(any::<bool>(), 1..40),
            base in 0u64..1 << 40,
            more in 0u64..1 << 33,
        ) {
            let batch = numbered(base, kept.len() as u64);
            let mut kept_of = kept.iter();
            let thinned = batch.thinned(|_| *kept_of.next().unwrap()).unwrap();
            let mut expected = contents(&batch);
            let mut keep = kept.iter();
            expected.retain(|_| *keep.next().unwrap());
            let left = match thinned {
                Thinned::Whole => batch.clone(),
                Thinned::Nothing => {
                    prop_assert!(expected.is_empty());
                    return Ok(());
                }
                Thinned::Part(left) => left,
            };
            let left = RecordBatch::decode(left.bytes()).unwrap();
            prop_assert_eq!((left.base_offset(), left.end_offset()), (batch.base_offset(), batch.end_offset()));
            let latest = expected.iter().map(|(_, message)| message.timestamp).max();
            prop_assert_eq!(Some(left.max_timestamp()), latest);
            let longer = left.reaching(left.end_offset().plus(more));
            let longer = RecordBatch::decode(longer.bytes()).unwrap();
            prop_assert_eq!(longer.end_offset().0 - base, (kept.len() as u64 + more).min(1 << 31));
            prop_assert_eq!(contents(&longer), expected);
        }

        #[test]
        fn messages_are_counted_between_offsets_and_gaps_are_not(
            kept in proptest::collection::vec(any::<bool>(), 1..40),
            base in 0u64..1 << 40,
            bounds in (0u64..50, 0u64..50),
        ) {
            let batch = numbered(base, kept.len() as u64);
            let (from, to) = (Offset(base.saturating_sub(5) + bounds.0), Offset(base.saturating_sub(5) + bounds.1));
            let mut kept_of = kept.iter();
            let left = match batch.thinned(|_| *kept_of.next().unwrap()).unwrap() {
                Thinned::Whole => batch,
                Thinned::Part(left) => left,
                Thinned::Nothing => RecordBatch::gap(batch.base_offset(), batch.end_offset()),
            };
            let messages = contents(&left);
            let within = messages.iter().filter(|(offset, _)| (from..to).contains(offset));
            let within = if left.is_gap() { 0 } else { within.count() as u64 };
            prop_assert_eq!(left.messages_within(from, to), within);
        }

        #[test]
        fn a_gap_stands_for_its_offsets_and_holds_no_message(from in 0u64..1 << 40, count in 1u64..1 << 33) {
            let gap = RecordBatch::gap(Offset(from), Offset(from + count));
            let gap = RecordBatch::decode(gap.bytes()).unwrap();
            prop_assert!(gap.is_gap() && gap.is_control());
            prop_assert_eq!(gap.base_offset(), Offset(from));
            prop_assert_eq!(gap.end_offset().0 - from, count.min(1 << 31));
            prop_assert!(!numbered(from, 3).is_gap());
        }
    }
}
