//! How to talk to each broker: its protocol in bytes, without a client library, so that the load
//! costs about the same for all.

pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod redis;

use std::net::SocketAddr;

use anyhow::Result;

use crate::line::Line;

/// Messages that a reader requests at once.
pub(crate) const FETCH_MESSAGES: u64 = 10_000;
/// How long a reader's request waits at the server for the next message, in milliseconds.
pub(crate) const FETCH_WAIT_MS: u64 = 5_000;

/// What is at the beginning of the received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// Only a part of something.
    Part,
    /// A complete answer to a produce request, of this many bytes.
    Answer(usize),
    /// Something that does not answer a request, of this many bytes.
    Aside(usize),
}

/// What a reader has taken from the received bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes that are processed.
    pub(crate) bytes: usize,
    /// The messages in them.
    pub(crate) messages: u64,
    /// Whether the request is answered completely, so that the reader has to send another.
    pub(crate) is_answered: bool,
}

/// A broker, as the load sees it. A topic, whatever the broker calls it, has one partition.
pub(crate) trait Door: Send + Sync {
    fn address(&self) -> SocketAddr;

    /// Creates an empty topic that is ready for messages.
    fn make(&self, topic: &str) -> Result<()>;

    /// Removes a topic and its messages.
    fn remove(&self, topic: &str) -> Result<()>;

    /// Opens a connection that is ready for requests.
    fn open(&self) -> Result<Line> {
        Line::open(self.address())
    }

    /// Whether one request, with one answer, can have many messages; otherwise each message has its
    /// own.
    fn has_batches(&self) -> bool;

    /// A produce request with these messages, or one request for each; pass it to
    /// [`Door::addressed`] before sending.
    fn produce(&self, topic: &str, values: &[&str]) -> Vec<u8>;

    /// Adapts a produce request to this connection, if the protocol names the destination of
    /// answers in requests.
    fn addressed(&self, _line: &Line, request: Vec<u8>) -> Vec<u8> {
        request
    }

    /// What is at the beginning of the bytes received after produce requests. A refusal is an
    /// error.
    fn front(&self, came: &[u8]) -> Result<Front>;

    /// Reads a topic from its first message, with a position of its own: nothing is acknowledged.
    /// The reader must be used with `line`.
    fn reader(&self, topic: &str, line: &mut Line) -> Result<Box<dyn Reader>>;
}

/// Called with each value that is read.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&[u8]);

/// Reads a topic in order.
pub(crate) trait Reader {
    /// The next request, which waits at the server if there is nothing yet.
    fn ask(&mut self) -> Vec<u8>;

    /// Takes as much as is complete, and passes each value to `each`, if given.
    fn take(&mut self, came: &[u8], each: Option<Each<'_>>) -> Result<Taken>;
}

/// Reads one partition by its offsets.
pub(crate) trait PartitionReader: Reader {
    /// The offset to read next.
    fn position(&self) -> u64;
}

/// A broker in which, or beside which, functions run.
pub(crate) trait Store: Door {
    /// Creates an empty topic with this many partitions.
    fn make_partitioned(&self, topic: &str, partitions: u32) -> Result<()>;

    /// The offset of the next message of each partition, in the order of the partitions. Of
    /// transactions, only committed messages count.
    fn ends(&self, line: &mut Line, topic: &str, partitions: u32) -> Result<Vec<u64>>;

    /// Reads a partition from an offset on; of transactions, only committed messages.
    fn reader_at(&self, topic: &str, partition: u32, from: u64) -> Box<dyn PartitionReader>;

    /// Requests that together give each key the value once, evenly over the partitions, with the
    /// number of messages in each.
    fn fill(&self, topic: &str, partitions: u32, keys: usize, value: &str) -> Vec<(Vec<u8>, u64)>;
}
