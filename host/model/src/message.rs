//! A message as people see it: key, value, headers, timestamp.

use bytes::Bytes;

use crate::clock::Timestamp;

/// One header: a name and, optionally, a value. Names may repeat, as in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The name, as bytes: Kafka does not promise UTF-8.
    pub name: Bytes,
    /// The value; `None` is Kafka's null.
    pub value: Option<Bytes>,
}

/// A message. Its offset is not part of it: the partition that stores it assigns one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Decides the partition and the order; `None` means that neither matters.
    pub key: Option<Bytes>,
    /// The payload; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// In the order given.
    pub headers: Vec<Header>,
    /// When it happened, or when it was received.
    pub timestamp: Timestamp,
}

impl Message {
    /// Bytes of key, value and headers together: what [`crate::bounds::MESSAGE_BYTES_MAX`] bounds.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        let of = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self
            .headers
            .iter()
            .map(|h| h.name.len() + of(&h.value))
            .sum();
        of(&self.key) + of(&self.value) + headers
    }
}
