//! How each broker is spoken to: its protocol in bytes, with no client library between, so that the load costs about the same for all.

pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod redis;

use std::net::SocketAddr;

use anyhow::Result;

use crate::line::Line;

/// Messages that a reader asks for at a time.
pub(crate) const FETCH_MESSAGES: u64 = 10_000;
/// How long a reader's request waits at the server for the next message, in milliseconds.
pub(crate) const FETCH_WAIT_MS: u64 = 5_000;

/// What stands at the front of the bytes that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// No more than a part of something.
    Part,
    /// A whole answer to a produce request, of so many bytes.
    Answer(usize),
    /// Something that answers no request, of so many bytes.
    Aside(usize),
}

/// What a reader has read of the bytes that came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// These are done with.
    pub(crate) bytes: usize,
    /// Messages in them.
    pub(crate) messages: u64,
    /// Whether the reader has all that it asked for, and has to ask again.
    pub(crate) is_answered: bool,
}

/// A broker, as the load sees it. A topic is whatever the broker calls it, and has one partition.
pub(crate) trait Door: Send + Sync {
    fn address(&self) -> SocketAddr;

    /// Makes an empty topic, ready for messages.
    fn make(&self, topic: &str) -> Result<()>;

    /// Removes a topic with its messages.
    fn remove(&self, topic: &str) -> Result<()>;

    /// Opens a connection that is ready for requests.
    fn open(&self) -> Result<Line> {
        Line::open(self.address())
    }

    /// Whether many messages may be one request, with one answer; else each message has its own.
    fn has_batches(&self) -> bool;

    /// A produce request with these messages, or as many requests; [`Door::addressed`] before it is sent.
    fn produce(&self, topic: &str, values: &[&str]) -> Vec<u8>;

    /// Makes a produce request of this connection, where the protocol says in a request where its answer goes.
    fn addressed(&self, _line: &Line, request: Vec<u8>) -> Vec<u8> {
        request
    }

    /// What is at the front of what came after produce requests. A refusal is an error.
    fn front(&self, came: &[u8]) -> Result<Front>;

    /// Reads a topic from its first message on, by its own count: nothing is acknowledged. `line` is the one that it will be used with.
    fn reader(&self, topic: &str, line: &mut Line) -> Result<Box<dyn Reader>>;
}

/// Is handed each value that is read.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&[u8]);

/// Reads a topic in order.
pub(crate) trait Reader {
    /// The next request, which waits at the server if there is nothing yet.
    fn ask(&mut self) -> Vec<u8>;

    /// Reads as far as it goes, and hands each value to `each` where it is given.
    fn take(&mut self, came: &[u8], each: Option<Each<'_>>) -> Result<Taken>;
}

/// Reads a partition by its offsets.
pub(crate) trait PartitionReader: Reader {
    /// The offset that it reads next.
    fn position(&self) -> u64;
}

/// A broker in which functions run, or beside which they do.
pub(crate) trait Store: Door {
    /// Makes an empty topic with so many partitions.
    fn make_partitioned(&self, topic: &str, partitions: u32) -> Result<()>;

    /// Where the next message of each partition goes, in order of the partitions. Of transactions, only what is committed counts.
    fn ends(&self, line: &mut Line, topic: &str, partitions: u32) -> Result<Vec<u64>>;

    /// Reads a partition from an offset on; of transactions, only what is committed.
    fn reader_at(&self, topic: &str, partition: u32, from: u64) -> Box<dyn PartitionReader>;

    /// Requests that together give each key the value once, evenly over the partitions, and the messages of each.
    fn fill(&self, topic: &str, partitions: u32, keys: usize, value: &str) -> Vec<(Vec<u8>, u64)>;
}
