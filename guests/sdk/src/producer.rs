//! Messages that the component of a route sends while it answers a request. Each call is one commit: when it returns, all of its
//! messages are stored, or none is. Without WASM they go to the test that calls the handler
//! ([`RouteTester`](crate::testing::RouteTester)); elsewhere every call fails.
//!
//! A route's component exports `wasi:http/incoming-handler`: with [`http!`](crate::http), or with
//! `wasip2::http::proxy::export!`.

use std::fmt;
use std::time::Duration;

#[cfg(any(target_arch = "wasm32", test))]
use crate::columns::NONE;

/// A message to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
    pub(crate) partition: Option<u32>,
    pub(crate) timestamp: u64,
    pub(crate) deliver_at: u64,
}

impl<'a> Outgoing<'a> {
    /// A message with this value, without a key.
    #[must_use]
    pub fn new<V: AsRef<[u8]> + ?Sized>(value: &'a V) -> Self {
        Self {
            value: Some(value.as_ref()),
            ..Self::default()
        }
    }

    /// A message without a value: in a compacted topic it removes its key.
    #[must_use]
    pub fn tombstone<K: AsRef<[u8]> + ?Sized>(key: &'a K) -> Self {
        Self::default().key(key)
    }

    /// Sets the key, which decides the partition and the order.
    #[must_use]
    pub fn key<K: AsRef<[u8]> + ?Sized>(mut self, key: &'a K) -> Self {
        self.key = Some(key.as_ref());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header<V: AsRef<[u8]> + ?Sized>(mut self, name: &'a str, value: &'a V) -> Self {
        self.headers.push((name.as_bytes(), Some(value.as_ref())));
        self
    }

    /// Sets the partition, instead of leaving it to the topic's partitioner.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Sets the timestamp, in milliseconds since the Unix epoch, instead of now.
    #[must_use]
    pub fn timestamp(mut self, ms: u64) -> Self {
        self.timestamp = ms;
        self
    }

    /// Sets the time of delivery, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn deliver_at(mut self, ms: u64) -> Self {
        self.deliver_at = ms;
        self
    }
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its partition.
    pub partition: u32,
    /// Its offset there; none if it is delivered later.
    pub offset: Option<u64>,
}

/// Sent messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Their places, in order.
    pub places: Vec<Place>,
    /// Whether an earlier call with the same key sent them, and this one did nothing.
    pub repeated: bool,
}

/// Why messages were not sent. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The route is not granted this topic.
    NotGranted(String),
    /// The topic does not take these messages; to repeat the call does not help.
    Refused(String),
    /// The key was used before, for other messages.
    KeyReused(String),
    /// The host cannot store messages now; a later call may succeed.
    Unavailable(String),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(why)
            | Self::Refused(why)
            | Self::KeyReused(why)
            | Self::Unavailable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for SendError {}

/// Sends messages to a topic.
///
/// # Errors
/// [`SendError`].
pub fn send(topic: &str, messages: &[Outgoing<'_>]) -> Result<Sent, SendError> {
    host::send(topic, messages, None)
}

/// Like [`send`], once: a repeat with the same key, by any request to this route, returns the first
/// places. A provider's message id makes a repeated webhook one message.
///
/// # Errors
/// [`SendError`].
pub fn send_once(topic: &str, key: &str, messages: &[Outgoing<'_>]) -> Result<Sent, SendError> {
    host::send(topic, messages, Some(key))
}

/// Waits until a processor has settled messages of a topic; `false` if it has not within
/// `patience`, which is also part of the request's own time.
///
/// # Errors
/// [`SendError`].
pub fn settled(
    processor: &str,
    topic: &str,
    sent: &Sent,
    patience: Duration,
) -> Result<bool, SendError> {
    let ms = patience.as_millis().try_into().unwrap_or(u64::MAX);
    host::settled(processor, topic, sent, ms)
}

/// `producer.outgoing`.
#[cfg(any(target_arch = "wasm32", test))]
#[derive(Debug, Default, PartialEq, Eq)]
struct Columns {
    data: Vec<u8>,
    keys: Vec<u32>,
    values: Vec<u32>,
    header_ends: Vec<u32>,
    headers: Vec<u32>,
    partitions: Vec<u32>,
    times: Vec<u64>,
}

#[cfg(any(target_arch = "wasm32", test))]
fn columns(messages: &[Outgoing<'_>]) -> Columns {
    let mut columns = Columns::default();
    for message in messages {
        put(&mut columns.data, &mut columns.keys, message.key);
        put(&mut columns.data, &mut columns.values, message.value);
        for (name, value) in &message.headers {
            put(&mut columns.data, &mut columns.headers, Some(name));
            put(&mut columns.data, &mut columns.headers, *value);
        }
        let headers = columns.headers.len() / 4;
        columns.header_ends.push(headers as u32);
        columns.partitions.push(message.partition.unwrap_or(NONE));
        columns
            .times
            .extend([message.timestamp, message.deliver_at]);
    }
    columns
}

/// Appends the bytes and their span; `None` gets the span of a missing value.
#[cfg(any(target_arch = "wasm32", test))]
fn put(data: &mut Vec<u8>, spans: &mut Vec<u32>, bytes: Option<&[u8]>) {
    match bytes {
        None => spans.extend([0, NONE]),
        Some(bytes) => {
            spans.extend([data.len() as u32, bytes.len() as u32]);
            data.extend_from_slice(bytes);
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod host {
    use super::{Outgoing, Place, SendError, Sent, columns};
    use crate::bindings::producer;

    /// The offset of a message that is delivered later.
    const LATER: u64 = u64::MAX;

    pub(super) fn send(
        topic: &str,
        messages: &[Outgoing<'_>],
        key: Option<&str>,
    ) -> Result<Sent, SendError> {
        let columns = columns(messages);
        let messages = producer::Outgoing {
            data: columns.data,
            keys: columns.keys,
            values: columns.values,
            header_ends: columns.header_ends,
            headers: columns.headers,
            partitions: columns.partitions,
            times: columns.times,
        };
        let sent = producer::send(topic, &messages, key)?;
        let places = sent.partitions.iter().zip(&sent.offsets);
        let place = |(&partition, &offset)| Place {
            partition,
            offset: Some(offset).filter(|offset| *offset != LATER),
        };
        Ok(Sent {
            places: places.map(place).collect(),
            repeated: sent.repeated,
        })
    }

    pub(super) fn settled(
        processor: &str,
        topic: &str,
        sent: &Sent,
        ms: u64,
    ) -> Result<bool, SendError> {
        let places = sent.places.iter();
        let offset = |place: &Place| place.offset.unwrap_or(LATER);
        let sent = producer::Sent {
            partitions: places.clone().map(|place| place.partition).collect(),
            offsets: places.map(offset).collect(),
            repeated: sent.repeated,
        };
        Ok(producer::settled(processor, topic, &sent, ms)?)
    }

    impl From<producer::SendError> for SendError {
        fn from(error: producer::SendError) -> Self {
            match error {
                producer::SendError::NotGranted(why) => Self::NotGranted(why),
                producer::SendError::Refused(why) => Self::Refused(why),
                producer::SendError::KeyReused(why) => Self::KeyReused(why),
                producer::SendError::Unavailable(why) => Self::Unavailable(why),
            }
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod host {
    use super::{Outgoing, SendError, Sent};
    use crate::testing::route;

    pub(super) fn send(
        topic: &str,
        messages: &[Outgoing<'_>],
        key: Option<&str>,
    ) -> Result<Sent, SendError> {
        route::send(topic, messages, key).unwrap_or_else(no_host)
    }

    pub(super) fn settled(_: &str, _: &str, _: &Sent, _: u64) -> Result<bool, SendError> {
        match route::is_calling() {
            true => Ok(true),
            false => no_host(),
        }
    }

    fn no_host<T>() -> Result<T, SendError> {
        let why = "without WASM there is no host that takes messages";
        Err(SendError::Unavailable(why.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_columns_of_one_blob() {
        let sent = [
            Outgoing::new("one").key("k").header("h", "v"),
            Outgoing::tombstone("gone")
                .partition(3)
                .timestamp(7)
                .deliver_at(9),
        ];
        let expected = Columns {
            data: b"konehvgone".to_vec(),
            keys: vec![0, 1, 6, 4],
            values: vec![1, 3, 0, NONE],
            header_ends: vec![1, 1],
            headers: vec![4, 1, 5, 1],
            partitions: vec![NONE, 3],
            times: vec![0, 0, 7, 9],
        };
        assert_eq!(columns(&sent), expected);
    }
}
