//! What crosses into a component and back: a batch of messages in columns, and the answer in columns.
//!
//! The same shape as `wit/types.wit`, field for field; there it is documented for guests. Byte strings are spans of one
//! blob: start and length, length [`NONE`] for Kafka's null. In an answer, a span may point into the batch's data (start
//! below its length) or into the answer's own data (start counted on from there): a filter copies no payload out.

/// The length of a span that stands for null, and the "not given" of the other `u32` columns.
pub const NONE: u32 = u32::MAX;

/// The "not given" of [`Answer::times`].
pub const NO_TIME: u64 = u64::MAX;

/// Messages handed to a component. Every column but the last three has one entry per message (spans have two).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnBatch {
    /// The topic that the messages came in on (for redriven ones: their original topic).
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// Keys, values and headers of all messages.
    pub data: Vec<u8>,
    /// Offsets in the partition.
    pub offsets: Vec<u64>,
    /// Milliseconds since the Unix epoch.
    pub timestamps: Vec<u64>,
    /// Which attempt this is, from 1. Those of earlier revisions count.
    pub attempts: Vec<u32>,
    /// Start, length of each key.
    pub keys: Vec<u32>,
    /// Start, length of each value.
    pub values: Vec<u32>,
    /// For each message, the number of headers up to and including its own.
    pub header_ends: Vec<u32>,
    /// Name start, name length, value start, value length of each header.
    pub headers: Vec<u32>,
}

impl ColumnBatch {
    /// How many messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// A message's key.
    #[must_use]
    pub fn key(&self, message: usize) -> Option<&[u8]> {
        span(&self.data, &self.keys, message)
    }

    /// A message's value.
    #[must_use]
    pub fn value(&self, message: usize) -> Option<&[u8]> {
        span(&self.data, &self.values, message)
    }

    /// Which entries of `headers` (counted in headers, four numbers each) are the message's.
    #[must_use]
    pub fn header_range(&self, message: usize) -> std::ops::Range<usize> {
        let start = message
            .checked_sub(1)
            .map_or(0, |before| self.header_ends[before] as usize);
        start..self.header_ends[message] as usize
    }

    /// A message's headers: names and values.
    pub fn headers(&self, message: usize) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
        self.header_range(message).map(|header| {
            let name = span(&self.data, &self.headers, header * 2).unwrap_or_default();
            (name, span(&self.data, &self.headers, header * 2 + 1))
        })
    }
}

/// The `index`th span of a column whose spans are known to be sound: the host built them.
fn span<'a>(data: &'a [u8], column: &[u32], index: usize) -> Option<&'a [u8]> {
    let (start, length) = (column[index * 2], column[index * 2 + 1]);
    (length != NONE).then(|| &data[start as usize..start as usize + length as usize])
}

/// What a component says of one message, as the numbers of [`Answer::outcomes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OutcomeCode {
    /// Done, nothing to send on.
    Ack = 0,
    /// Done; the outputs that name this message as their source are sent on.
    Emit = 1,
    /// Not now: try again.
    Retry = 2,
    /// Never: a dead letter.
    Reject = 3,
}

impl OutcomeCode {
    /// The outcome of a number, if there is one.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Ack,
            1 => Self::Emit,
            2 => Self::Retry,
            3 => Self::Reject,
            _ => return None,
        })
    }
}

/// Why a message is to be retried or rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Which message of the batch, from 0.
    pub message: u32,
    /// For a retry: wait this long; `None` leaves it to the processor's policy.
    pub after_ms: Option<u64>,
    /// A short word to group failures by.
    pub class: String,
    /// For people.
    pub reason: String,
}

/// What a component answers. Untrusted: every number in it is checked before it is used. Output columns have one entry per
/// output (spans have two); an empty column means the default for every output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// One [`OutcomeCode`] per message, in order.
    pub outcomes: Vec<u8>,
    /// For retry and reject: at most one per message, ascending.
    pub details: Vec<Detail>,
    /// Fresh bytes.
    pub data: Vec<u8>,
    /// For each output the message that it comes from, ascending.
    pub sources: Vec<u32>,
    /// Names that `topics` points to.
    pub topic_names: Vec<String>,
    /// For each output an index into `topic_names`, or [`NONE`] for the processor's default output topic.
    pub topics: Vec<u32>,
    /// For each output its partition, or [`NONE`] to leave it to the topic's partitioner.
    pub partitions: Vec<u32>,
    /// Start, length of each output's key. Empty: every output keeps its source's key.
    pub keys: Vec<u32>,
    /// Start, length of each output's value. Empty: every output keeps its source's value.
    pub values: Vec<u32>,
    /// For each output, the number of headers up to and including its own. Empty: every output keeps its source's headers.
    pub header_ends: Vec<u32>,
    /// Name start, name length, value start, value length of each header.
    pub headers: Vec<u32>,
    /// Timestamp and time of delivery of each output, or [`NO_TIME`]. Empty: every output keeps its source's, and goes at once.
    pub times: Vec<u64>,
}
