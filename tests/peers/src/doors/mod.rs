//! Clients of the brokers: each speaks its protocol in bytes, without a client library, so that the
//! load costs about the same for all.

pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod redis;

use std::net::SocketAddr;

use anyhow::Result;

use crate::line::Line;

/// Messages that a reader requests at a time.
pub(crate) const FETCH_MESSAGES: u64 = 10_000;
/// How long a reader's request waits at the server for the next message, in milliseconds.
pub(crate) const FETCH_WAIT_MS: u64 = 5_000;

/// What is at the front of the received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// Only a part of an answer.
    Part,
    /// A complete answer to a produce request, of this many bytes.
    Answer(usize),
    /// Something that answers no request, of this many bytes.
    Aside(usize),
}

/// What a reader has read of the received bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes that have been read.
    pub(crate) bytes: usize,
    /// The messages in them.
    pub(crate) messages: u64,
    /// Whether the reader has everything that it requested, and must send another request.
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

    /// Whether one request can hold many messages and get one answer; otherwise each message has
    /// its own request.
    fn has_batches(&self) -> bool;

    /// A produce request with these messages, or a request for each; pass it through
    /// [`Door::addressed`] before sending it.
    fn produce(&self, topic: &str, values: &[&str]) -> Vec<u8>;

    /// Adapts a produce request to this connection, for protocols whose requests name the
    /// destination of the answer.
    fn addressed(&self, _line: &Line, request: Vec<u8>) -> Vec<u8> {
        request
    }

    /// What is at the front of the bytes received after produce requests. A refusal is an error.
    fn front(&self, came: &[u8]) -> Result<Front>;

    /// A reader of a topic from its first message on, which keeps its own position and acknowledges
    /// nothing. It must be used with the same `line`.
    fn reader(&self, topic: &str, line: &mut Line) -> Result<Box<dyn Reader>>;
}

/// Receives each value that is read.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&[u8]);

/// Reads a topic in order.
pub(crate) trait Reader {
    /// The next request, which waits at the server if there are no messages yet.
    fn ask(&mut self) -> Vec<u8>;

    /// Reads as much as has arrived, and passes each value to `each`, if given.
    fn take(&mut self, came: &[u8], each: Option<Each<'_>>) -> Result<Taken>;
}

/// Reads one partition by its offsets.
pub(crate) trait PartitionReader: Reader {
    /// The offset to read next.
    fn position(&self) -> u64;
}

/// A broker with functions that run in it or next to it.
pub(crate) trait Store: Door {
    /// Makes an empty topic with this many partitions.
    fn make_partitioned(&self, topic: &str, partitions: u32) -> Result<()>;

    /// The offset of the next message of each partition, in order of the partitions. Uncommitted
    /// transactions do not count.
    fn ends(&self, line: &mut Line, topic: &str, partitions: u32) -> Result<Vec<u64>>;

    /// A reader of a partition from an offset on, which sees only committed transactions.
    fn reader_at(&self, topic: &str, partition: u32, from: u64) -> Box<dyn PartitionReader>;

    /// Requests, each with its number of messages, that together produce the value once for each
    /// key, evenly over the partitions.
    fn fill(&self, topic: &str, partitions: u32, keys: usize, value: &str) -> Vec<(Vec<u8>, u64)>;
}
