//! Finds the first message of a batch at or after a time.

use millrace_model::{Offset, RecordBatch, Timestamp};

/// The first message at or after `from` whose timestamp is `at` or later. If a batch cannot be read, its header decides: then it is the
/// batch's first message.
pub fn first_at(batch: &RecordBatch, from: Offset, at: Timestamp) -> Option<Offset> {
    if batch.is_control() || batch.max_timestamp() < at || batch.end_offset() <= from {
        return None;
    }
    let begins = || Some(batch.base_offset().max(from));
    let Ok(plain) = batch.inflated() else {
        return begins();
    };
    let Ok(records) = plain.records() else {
        return begins();
    };
    let mut sound = records.map_while(Result::ok);
    let found = sound.find(|record| record.offset >= from && record.timestamp >= at);
    found.map(|record| record.offset)
}
