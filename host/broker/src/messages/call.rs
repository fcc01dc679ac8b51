//! A produce call: its messages, its key, and its result.

use std::collections::BTreeSet;

use millrace_model::{Message, Offset, PartitionId};

use crate::messages::delays::stored::{DelayedId, DueAt};

/// A message to produce.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// The partition; `None` leaves it to the topic's partitioner.
    pub partition: Option<PartitionId>,
    /// The message.
    pub message: Message,
    /// The time of delivery; `None`, or a time in the past, means at once.
    pub deliver_at: Option<DueAt>,
}

/// The position of a produced message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is in its partition.
    At {
        /// Its partition.
        partition: PartitionId,
        /// Its offset there.
        offset: Offset,
    },
    /// It is delayed.
    Delayed(DelayedId),
}

impl Placed {
    /// Its present or future partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        match self {
            Self::At { partition, .. } => *partition,
            Self::Delayed(id) => id.partition(),
        }
    }

    /// Its offset, unless it is delayed.
    #[must_use]
    pub fn offset(&self) -> Option<Offset> {
        match self {
            Self::At { offset, .. } => Some(*offset),
            Self::Delayed(_) => None,
        }
    }
}

/// Identifies a repeated call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallKey {
    /// A digest of the caller's key.
    pub key: [u8; 16],
    /// A digest of everything that the caller sent.
    pub fingerprint: [u8; 16],
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Produced {
    /// The position of each message, in order.
    pub placed: Vec<Placed>,
    /// Whether an earlier call with the same key took effect, and this one did nothing.
    pub repeated: bool,
    /// For a repeat: which messages, by index, can no longer be read at their positions, because retention, compaction or a trim
    /// removed them. The key outlives them, so they are not added again.
    pub gone: BTreeSet<usize>,
}
