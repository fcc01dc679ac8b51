//! Batches as producers send them: what a partition does not accept, and the timestamps that the
//! host sets.

use super::*;

/// Set in a batch that belongs to a transaction.
const TRANSACTIONAL_FLAG: i16 = 0b1_0000;
/// Set if the broker's clock gave the batch its time: then all records have the header's latest timestamp.
pub(super) const APPEND_TIME_FLAG: i16 = 0b1000;

impl RecordBatch {
    /// Checks what only a batch from a producer must satisfy: it carries messages, outside a transaction, one for each of its offsets.
    ///
    /// # Errors
    /// [`BatchError::Malformed`].
    pub fn check_produced(&self) -> Result<(), BatchError> {
        let refused = |why| Err(BatchError::Malformed(why));
        if self.is_control() {
            return refused("a control batch comes from the broker, never from a producer");
        }
        if self.attributes() & TRANSACTIONAL_FLAG != 0 {
            return refused(
                "it belongs to a transaction, which this host does not support; send it without one",
            );
        }
        let span = self.end_offset().0 - self.base_offset().0;
        match self.message_count() as u64 == span {
            true => Ok(()),
            false => refused("the last offset delta and the record count differ"),
        }
    }

    /// Whether the producer set timestamps. Otherwise the host sets one, with [`RecordBatch::arrived`].
    #[must_use]
    pub fn is_timed(&self) -> bool {
        let base = i64::from_be_bytes(self.field(BASE_TIMESTAMP_AT));
        base >= 0 && self.attributes() & APPEND_TIME_FLAG == 0
    }

    /// The same batch, received at this time, which becomes the timestamp of all its records.
    #[must_use]
    pub fn arrived(&self, at: Timestamp) -> Self {
        let mut bytes = self.bytes.to_vec();
        // The field is signed: a larger time would be read back as none.
        let at = at.0.min(i64::MAX as u64);
        bytes[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&at.to_be_bytes());
        framed(bytes, self.attributes() | APPEND_TIME_FLAG)
    }

    /// The same batch with this latest timestamp in its header. Retention and searches by time rely on the header, and some clients
    /// write a wrong one.
    #[must_use]
    pub fn latest(self, latest: Timestamp) -> Self {
        if self.max_timestamp() == latest {
            return self;
        }
        let mut bytes = self.bytes.to_vec();
        bytes[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&latest.0.to_be_bytes());
        framed(bytes, self.attributes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(times: &[u64]) -> RecordBatch {
        let mut builder = BatchBuilder::with_capacity(64);
        for &time in times {
            builder.push(&Message {
                value: Some(Bytes::from_static(b"v")),
                timestamp: Timestamp(time),
                ..Message::default()
            });
        }
        builder.finish().expect("messages")
    }

    fn times(batch: &RecordBatch) -> Vec<u64> {
        let records = batch.records().expect("not compressed");
        records
            .map(|record| record.expect("sound").timestamp.0)
            .collect()
    }

    #[test]
    fn a_producers_batch_may_be_sent_and_others_may_not() {
        let sent = batch(&[1, 2]);
        assert_eq!(sent.check_produced(), Ok(()));
        assert!(
            RecordBatch::gap(Offset(0), Offset(3))
                .check_produced()
                .is_err()
        );
        assert!(sent.reaching(Offset(5)).check_produced().is_err());
        let transactional = framed(sent.bytes().to_vec(), TRANSACTIONAL_FLAG);
        assert!(transactional.check_produced().is_err());
    }

    #[test]
    fn a_batch_without_times_has_the_time_of_its_arrival_also_after_it_is_compressed_and_read_back()
    {
        let mut bytes = batch(&[0, 0]).bytes().to_vec();
        bytes[BASE_TIMESTAMP_AT..BASE_TIMESTAMP_AT + 8].copy_from_slice(&(-1i64).to_be_bytes());
        let untimed = framed(bytes, 0);
        assert!(!untimed.is_timed());
        for codec in [Compression::None, Compression::Zstd] {
            let arrived = untimed.arrived(Timestamp(77)).deflated(codec);
            let read = RecordBatch::decode(arrived.bytes()).and_then(|batch| batch.inflated());
            let read = read.expect("a valid batch");
            assert_eq!(
                (times(&read), read.max_timestamp()),
                (vec![77, 77], Timestamp(77))
            );
        }
    }

    #[test]
    fn a_wrong_latest_timestamp_is_put_right_and_a_right_one_costs_no_copy() {
        let sent = batch(&[5, 9, 7]);
        let same = sent.clone().latest(Timestamp(9));
        assert_eq!(same.bytes().as_ptr(), sent.bytes().as_ptr());
        let wrong = sent.latest(Timestamp(3));
        let right = wrong.latest(Timestamp(9));
        assert_eq!(RecordBatch::decode(right.bytes()), Ok(right.clone()));
        assert_eq!(
            (times(&right), right.max_timestamp()),
            (vec![5, 9, 7], Timestamp(9))
        );
    }
}
