//! Batches for tests: the columns that a host would hand over. [`testing`](crate::testing) is where most tests hand them to.

use crate::columns::{Columns, NONE};

/// Builds a batch, message by message; what is said of a message is said after adding it.
///
/// ```
/// use millrace_guest::testing::Tester;
/// use millrace_guest::{Outcome, Sample};
///
/// let orders = Sample::new("orders").message("o-1", "a book").header("from", "shop").attempt(2);
/// let run = Tester::new(|message| {
///     assert_eq!(message.attempt(), 2);
///     Outcome::Emit(message.output())
/// })
/// .run(orders);
/// assert_eq!(run.output().header("from"), Some("shop"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Sample {
    columns: Columns,
}

impl Sample {
    /// No messages so far, of partition 0 of a topic.
    #[must_use]
    pub fn new(topic: &str) -> Self {
        Self {
            columns: Columns {
                topic: topic.to_owned(),
                ..Columns::default()
            },
        }
    }

    /// A message with key and value, its first attempt.
    #[must_use]
    pub fn message(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.nullable(Some(key.as_ref()), Some(value.as_ref()))
    }

    /// A message that may lack a key or a value.
    #[must_use]
    pub fn nullable(mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        let (key, value) = (self.place(key), self.place(value));
        let columns = &mut self.columns;
        columns.offsets.push(columns.offsets.len() as u64);
        columns.timestamps.push(1_700_000_000_000);
        columns.attempts.push(1);
        columns.keys.extend(key);
        columns.values.extend(value);
        columns.header_ends.push((columns.headers.len() / 4) as u32);
        self
    }

    /// One more header of the last message. Panics if there is none.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let header = [
            self.place(Some(name.as_bytes())),
            self.place(Some(value.as_ref())),
        ];
        self.columns.headers.extend(header.as_flattened());
        *self
            .columns
            .header_ends
            .last_mut()
            .expect("a message has been added") += 1;
        self
    }

    /// When the last message was made, in milliseconds since the Unix epoch; 1,700,000,000,000 without. Panics if there is none.
    #[must_use]
    pub fn timestamp(mut self, ms: u64) -> Self {
        *self
            .columns
            .timestamps
            .last_mut()
            .expect("a message has been added") = ms;
        self
    }

    /// The partition that the messages came in on; 0 without.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.columns.partition = partition;
        self
    }

    /// Which attempt the last message is at. Panics if there is none.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        *self
            .columns
            .attempts
            .last_mut()
            .expect("a message has been added") = attempt;
        self
    }

    /// The batch.
    #[must_use]
    pub fn columns(self) -> Columns {
        self.columns
    }

    fn place(&mut self, bytes: Option<&[u8]>) -> [u32; 2] {
        let start = self.columns.data.len() as u32;
        self.columns
            .data
            .extend_from_slice(bytes.unwrap_or_default());
        [start, bytes.map_or(NONE, |bytes| bytes.len() as u32)]
    }
}
