//! A consumer as callers see it: its status, its places, and the requests about it.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_model::{
    ConsumerName, LeaseId, Noted, Offset, PartitionId, Timestamp, TopicId, TopicName,
};

use crate::messages::beginning::BeginAt;

/// A consumer and its topic.
pub(super) type Key = (TopicId, ConsumerName);

/// A consumer and its status.
#[derive(Clone, Debug)]
pub struct ConsumerStatus {
    /// Its topic.
    pub topic: TopicName,
    /// Its name.
    pub name: ConsumerName,
    /// When it was created.
    pub created_at: Timestamp,
    /// The current reader.
    pub reader: Option<ReaderStatus>,
    /// The last commit.
    pub committed: Option<Noted>,
    /// The last reset of its positions.
    pub reset: Option<Noted>,
    /// Offsets still to read, over all partitions.
    pub lag: u64,
    /// Each partition, in order; empty in lists of consumers.
    pub partitions: Vec<ConsumerPlace>,
}

/// The reader that has a consumer's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderStatus {
    /// The name that the reader claims.
    pub by: String,
    /// Until when the lease lasts, unless renewed.
    pub until: Timestamp,
}

/// A consumer's position in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerPlace {
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to read, as committed. If it is below `start`, messages were removed before the consumer reached them.
    pub position: Offset,
    /// The first offset kept.
    pub start: Offset,
    /// The offset that the next message will have.
    pub end: Offset,
    /// Messages still to read.
    pub lag: u64,
}

/// Asks for the lease of a consumer.
#[derive(Clone, Copy, Debug)]
pub struct HoldRequest {
    /// The reader's lease; without one, it takes a new one.
    pub lease: Option<LeaseId>,
    /// How long a new lease lasts after the reader's last request, at most [`CONSUMER_LEASE_MS_MAX`].
    pub lease_ms: u64,
    /// Extra time for this request, because the reader is going to wait for messages.
    pub wait: Duration,
    /// Whether to create a missing consumer. Never with a lease: a reader must not recreate a consumer that was deleted.
    pub makes: bool,
    /// Where a new consumer starts; `None` is the oldest message.
    pub begin_at: Option<BeginAt>,
}

/// The positions that a reader commits.
#[derive(Clone, Debug)]
pub struct ConsumerCommit {
    /// Its lease.
    pub lease: LeaseId,
    /// The next offset to read for each partition that it has read; empty only renews the lease.
    pub positions: BTreeMap<PartitionId, Offset>,
    /// Whether to release the lease, so that the next reader need not wait.
    pub release: bool,
}
