//! What may be changed about a topic while it is used: how long its messages are kept, and how they are stored.

use serde::{Deserialize, Serialize};

use crate::compression::Compression;

/// How long a compacted topic keeps a tombstone unless it says otherwise, in milliseconds: one day.
pub const TOMBSTONE_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// A topic's settings. `None` means no bound, or the host's default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicSettings {
    /// Messages older than this many milliseconds go, a segment at a time; by the later of their timestamp's and the segment's age.
    pub retention_ms: Option<u64>,
    /// The oldest segments of a partition go while it holds more than this many bytes.
    pub retention_bytes: Option<u64>,
    /// Only the latest value of each key is kept; a message without a value (a tombstone) removes its key.
    pub compact: bool,
    /// How long a tombstone is kept in a compacted topic, in milliseconds, so that slow readers see it too.
    pub tombstone_ms: u64,
    /// Bytes of a segment before the next one begins.
    pub segment_bytes: Option<u64>,
    /// The age in milliseconds at which a segment ends though it is not full.
    pub segment_ms: Option<u64>,
    /// How the host compresses the batches that it builds itself; batches that arrive built are kept as they are.
    pub compression: Compression,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            retention_ms: None,
            retention_bytes: None,
            compact: false,
            tombstone_ms: TOMBSTONE_KEPT_MS,
            segment_bytes: None,
            segment_ms: None,
            compression: Compression::None,
        }
    }
}
