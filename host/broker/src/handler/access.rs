//! What the component of a route may do besides answering: send messages, wait until a processor has settled them, read processors'
//! state. Names come from the component as it wrote them.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_engine::state::{StatePage, StateQuery, StateValue};
use millrace_model::{Message, Offset, PartitionId, Timestamp};

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its partition; `None` leaves it to the topic's partitioner.
    pub partition: Option<PartitionId>,
    /// The message; the timestamp 0 means now.
    pub message: Message,
    /// When it is delivered; `None` means at once.
    pub deliver_at: Option<Timestamp>,
}

/// Where a sent message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentPlace {
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset; `None` if it is delivered later.
    pub offset: Option<Offset>,
}

/// Sent messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Their places, in order.
    pub places: Vec<SentPlace>,
    /// Whether an earlier call with the same key sent them, and this one did nothing.
    pub repeated: bool,
}

/// Whose state is read, and for which topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The processor.
    pub processor: String,
    /// The input topic; `None` if the processor reads only one.
    pub topic: Option<String>,
}

/// Why a component of a route did not get what it asked for. The texts are for its author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The route's grants do not include it.
    #[error("{0}")]
    NotGranted(String),
    /// To repeat the call does not help.
    #[error("{0}")]
    Refused(String),
    /// The key was used for other messages.
    #[error("{0}")]
    KeyReused(String),
    /// A later call may succeed.
    #[error("{0}")]
    Unavailable(String),
}

/// The broker as one route's component may use it.
#[async_trait]
pub trait RouteAccess: fmt::Debug + Send + Sync + 'static {
    /// Sends messages to a topic in one commit; with a key, once. A call that nobody waits for any more still takes effect.
    async fn send(
        &self,
        topic: &str,
        messages: Vec<Outgoing>,
        key: Option<String>,
    ) -> Result<Sent, AccessError>;

    /// Waits until a processor has settled messages; `false` if it has not within `patience`.
    async fn settled(
        &self,
        processor: &str,
        topic: &str,
        places: Vec<SentPlace>,
        patience: Duration,
    ) -> Result<bool, AccessError>;

    /// The number of partitions that a view has.
    async fn partitions(&self, view: &View) -> Result<u32, AccessError>;

    /// The values of keys, in order. Without a partition, each key is read where messages with this key go.
    async fn values(
        &self,
        view: &View,
        partition: Option<PartitionId>,
        keys: Vec<Bytes>,
    ) -> Result<Vec<Option<StateValue>>, AccessError>;

    /// Entries of one partition; of the query, the time and the maximum of bytes are the broker's.
    async fn entries(
        &self,
        view: &View,
        partition: PartitionId,
        query: StateQuery,
    ) -> Result<StatePage, AccessError>;
}
