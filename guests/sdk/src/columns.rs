//! The data exchanged with the host, as it is passed: the batch and the answer in columns, field
//! for field as in `wit/types.wit`, which documents them. You need them only to write answers by
//! hand (`processor!(columns …)`) and to run a handler natively.

/// The length of a null span, and "not given" in the other `u32` columns.
pub const NONE: u32 = u32::MAX;

/// "Not given" in [`Answer::times`].
pub const NO_TIME: u64 = u64::MAX;

/// A batch of messages; use [`crate::Batch`] to read it. Its spans are valid: the host built them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The topic that the messages come from.
    pub topic: String,
    /// The partition that the messages were read from.
    pub partition: u32,
    /// Keys, values and headers of all messages.
    pub data: Vec<u8>,
    /// The offset of each message.
    pub offsets: Vec<u64>,
    /// The timestamp of each message, in milliseconds since the Unix epoch.
    pub timestamps: Vec<u64>,
    /// The number of this attempt, from 1, including attempts of earlier revisions.
    pub attempts: Vec<u32>,
    /// Start and length of each key.
    pub keys: Vec<u32>,
    /// Start and length of each value.
    pub values: Vec<u32>,
    /// For each message, the number of headers up to and including its own.
    pub header_ends: Vec<u32>,
    /// Name start, name length, value start, value length of each header.
    pub headers: Vec<u32>,
}

/// An answer; use [`crate::Outcomes`] to write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// One per message, in order: 0 ack, 1 emit, 2 retry, 3 reject.
    pub outcomes: Vec<u8>,
    /// For messages with retry or reject: at most one each, in ascending order.
    pub details: Vec<Detail>,
    /// Bytes that are not in the batch.
    pub data: Vec<u8>,
    /// For each output, the message that it comes from.
    pub sources: Vec<u32>,
    /// The names that `topics` refers to.
    pub topic_names: Vec<String>,
    /// For each output, an index into `topic_names`, or [`NONE`].
    pub topics: Vec<u32>,
    /// For each output, its partition, or [`NONE`].
    pub partitions: Vec<u32>,
    /// Start and length of each output's key.
    pub keys: Vec<u32>,
    /// Start and length of each output's value.
    pub values: Vec<u32>,
    /// For each output, the number of headers up to and including its own.
    pub header_ends: Vec<u32>,
    /// Name start, name length, value start, value length of each header.
    pub headers: Vec<u32>,
    /// Timestamp and time of delivery of each output, or [`NO_TIME`].
    pub times: Vec<u64>,
}

/// Why a message should be retried or rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// The message's index in the batch, from 0.
    pub message: u32,
    /// For a retry: the delay.
    pub after_ms: Option<u64>,
    /// A short word by which failures are grouped.
    pub class: String,
    /// An explanation for people.
    pub reason: String,
}

/// The bytes of a column's `index`th span; `None` for a null span.
pub(crate) fn span<'a>(data: &'a [u8], column: &[u32], index: usize) -> Option<&'a [u8]> {
    let (start, length) = (column[index * 2], column[index * 2 + 1]);
    (length != NONE).then(|| &data[start as usize..][..length as usize])
}
