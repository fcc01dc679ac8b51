//! The data passed to and from a component: a batch of messages in columns, and the answer in columns.
//!
//! The same structure as `wit/types.wit`, field for field, which documents it for guests. Byte strings are spans of one blob: start and
//! length, with the length [`NONE`] for Kafka's null. In an answer, a start below the length of the batch's data points into that data;
//! a larger one points into the answer's own data, which begins at that length. So a filter copies no payload.

/// The length of a null span, and "not given" in the other `u32` columns.
pub const NONE: u32 = u32::MAX;

/// "Not given" in [`Answer::times`].
pub const NO_TIME: u64 = u64::MAX;

/// Messages for a component. Every column except the last three has one entry per message (spans have two).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnBatch {
    /// The messages' topic (for redriven ones: their original topic).
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// Keys, values and headers of all messages.
    pub data: Vec<u8>,
    /// Offsets in the partition.
    pub offsets: Vec<u64>,
    /// Milliseconds since the Unix epoch.
    pub timestamps: Vec<u64>,
    /// The number of this attempt, from 1. Attempts of earlier revisions count.
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

impl ColumnBatch {
    /// The number of messages.
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

    /// Which entries of `headers` (counted in headers of four numbers each) belong to the message.
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

/// The `index`th span of a column with valid spans: the host built them.
fn span<'a>(data: &'a [u8], column: &[u32], index: usize) -> Option<&'a [u8]> {
    let (start, length) = (column[index * 2], column[index * 2 + 1]);
    (length != NONE).then(|| &data[start as usize..start as usize + length as usize])
}

/// A component's outcome for one message, as the numbers of [`Answer::outcomes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OutcomeCode {
    /// Done, without outputs.
    Ack = 0,
    /// Done; the outputs that name this message as their source are sent.
    Emit = 1,
    /// Try again later.
    Retry = 2,
    /// Never: make it a dead letter.
    Reject = 3,
}

impl OutcomeCode {
    /// The outcome with this number, if there is one.
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

/// Why a message should be retried or rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// The message's index in the batch, from 0.
    pub message: u32,
    /// For a retry: the delay; `None` leaves it to the processor's policy.
    pub after_ms: Option<u64>,
    /// A short word for grouping failures.
    pub class: String,
    /// An explanation for people.
    pub reason: String,
}

/// A component's answer. Untrusted: every number in it is checked before use. Output columns have one entry per output (spans have
/// two); an empty column means the default for every output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// One [`OutcomeCode`] per message, in order.
    pub outcomes: Vec<u8>,
    /// For retry and reject: at most one per message, ascending.
    pub details: Vec<Detail>,
    /// The answer's own bytes.
    pub data: Vec<u8>,
    /// The source message of each output, ascending.
    pub sources: Vec<u32>,
    /// Names that `topics` points to.
    pub topic_names: Vec<String>,
    /// An index into `topic_names` for each output, or [`NONE`] for the processor's default output topic.
    pub topics: Vec<u32>,
    /// The partition of each output, or [`NONE`] to leave it to the topic's partitioner.
    pub partitions: Vec<u32>,
    /// Start and length of each output's key. Empty: every output keeps its source's key.
    pub keys: Vec<u32>,
    /// Start and length of each output's value. Empty: every output keeps its source's value.
    pub values: Vec<u32>,
    /// For each output, the number of headers up to and including its own. Empty: every output keeps its source's headers.
    pub header_ends: Vec<u32>,
    /// Name start, name length, value start, value length of each header.
    pub headers: Vec<u32>,
    /// Timestamp and time of delivery of each output, or [`NO_TIME`]. Empty: every output keeps its source's timestamp and is sent at
    /// once.
    pub times: Vec<u64>,
}
