//! Batches for tests: the columns that a host would pass. Most tests pass them to
//! [`testing`](crate::testing).

use crate::columns::{Columns, NONE};

/// Builds a batch, message by message. Methods that describe a message apply to the last one added.
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
    /// An empty batch of partition 0 of a topic.
    #[must_use]
    pub fn new(topic: &str) -> Self {
        Self {
            columns: Columns {
                topic: topic.to_owned(),
                ..Columns::default()
            },
        }
    }

    /// Adds a message with key and value, at its first attempt.
    #[must_use]
    pub fn message(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.nullable(Some(key.as_ref()), Some(value.as_ref()))
    }

    /// Adds a message that may have no key or no value.
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

    /// Adds a header to the last message. Panics if there is no message.
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

    /// Sets the timestamp of the last message, in milliseconds since the Unix epoch; the default is
    /// 1,700,000,000,000. Panics if there is no message.
    #[must_use]
    pub fn timestamp(mut self, ms: u64) -> Self {
        *self
            .columns
            .timestamps
            .last_mut()
            .expect("a message has been added") = ms;
        self
    }

    /// Sets the partition that the messages come from; the default is 0.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.columns.partition = partition;
        self
    }

    /// Sets the number of the attempt at the last message. Panics if there is no message.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        *self
            .columns
            .attempts
            .last_mut()
            .expect("a message has been added") = attempt;
        self
    }

    /// The batch in columns.
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
