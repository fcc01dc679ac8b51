//! What crosses the border, as it crosses: the batch and the answer in columns, field for field as in `wit/types.wit`,
//! where they are documented. Authors need them only to answer by hand (`processor!(columns …)`) and to run a handler natively.

/// The length of a span that stands for none, and the "not given" of the other `u32` columns.
pub const NONE: u32 = u32::MAX;

/// The "not given" of [`Answer::times`].
pub const NO_TIME: u64 = u64::MAX;

/// A batch of messages; [`crate::Batch`] is the way to read it. Its spans are sound: the host built them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The topic that the messages came in on.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// Keys, values and headers of all messages.
    pub data: Vec<u8>,
    /// One per message.
    pub offsets: Vec<u64>,
    /// Milliseconds since the Unix epoch.
    pub timestamps: Vec<u64>,
    /// Which attempt this is, from 1. Those of earlier revisions count.
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

/// An answer; [`crate::Outcomes`] is the way to write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// One per message, in order: 0 ack, 1 emit, 2 retry, 3 reject.
    pub outcomes: Vec<u8>,
    /// For retry and reject: at most one per message, ascending.
    pub details: Vec<Detail>,
    /// Fresh bytes.
    pub data: Vec<u8>,
    /// For each output the message that it comes from.
    pub sources: Vec<u32>,
    /// Names that `topics` points to.
    pub topic_names: Vec<String>,
    /// For each output an index into `topic_names`, or [`NONE`].
    pub topics: Vec<u32>,
    /// For each output its partition, or [`NONE`].
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

/// Why a message is to be retried or rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Which message of the batch, from 0.
    pub message: u32,
    /// For a retry: wait this long.
    pub after_ms: Option<u64>,
    /// A short word to group failures by.
    pub class: String,
    /// For people.
    pub reason: String,
}

/// The range of bytes that a column's `index`th span stands for; none for null.
pub(crate) fn span<'a>(data: &'a [u8], column: &[u32], index: usize) -> Option<&'a [u8]> {
    let (start, length) = (column[index * 2], column[index * 2 + 1]);
    (length != NONE).then(|| &data[start as usize..][..length as usize])
}
