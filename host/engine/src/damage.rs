//! The damage that an engine knows of, and the progress of the search for more. Damaged data is
//! reported and kept, never removed.

use std::ops::Range;

pub use millrace_model::damage::DamageKind;
use millrace_model::{Digest, GroupName, Offset, Timestamp, TopicPartition};
use serde::{Deserialize, Serialize};

/// The known damage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DamageReport {
    /// Messages that cannot be read, by partition and offset.
    pub ranges: Vec<DamagedRange>,
    /// Modules whose bytes differ from those that were uploaded.
    pub modules: Vec<Digest>,
    /// Files of state that differ from what was written, by file; as far as the background search has come since the host started.
    pub state: Vec<DamagedState>,
    /// The background search, if the engine has one.
    pub scrub: Option<ScrubStatus>,
}

/// Damaged messages. The messages around them are intact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedRange {
    /// The partition.
    pub partition: TopicPartition,
    /// The first of them.
    pub from: Offset,
    /// The offset after the last of them, where reading can continue.
    pub to: Offset,
    /// The file, relative to the data directory.
    pub file: String,
    /// The position in the file; `None` until the file has been scanned.
    pub bytes: Option<Range<u64>>,
    /// What is there instead.
    #[serde(default)]
    pub kind: DamageKind,
    /// When it was first found.
    pub found_at: Timestamp,
    /// What found it.
    pub found_by: FoundBy,
    /// When its loss was accepted.
    pub accepted_at: Option<Timestamp>,
}

impl DamagedRange {
    /// The number of offsets.
    #[must_use]
    pub fn message_count(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// Whether the ranges overlap.
    #[must_use]
    pub fn meets(&self, from: Offset, to: Offset) -> bool {
        self.from < to && from < self.to
    }
}

/// A file of a group's state with unreadable parts. The rest can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedState {
    /// The group.
    pub group: GroupName,
    /// The partition.
    pub partition: TopicPartition,
    /// The file, relative to the data directory.
    pub file: String,
    /// The first problem found in it.
    pub reason: String,
    /// When it was first found.
    pub found_at: Timestamp,
}

/// What found the damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// A reader of the messages.
    Read,
    /// The background search.
    Scrub,
}

/// The progress of the background search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ScrubStatus {
    /// Maximum bytes per second; 0 is off.
    pub bytes_per_second: u64,
    /// Bytes read since the host started.
    pub bytes: u64,
    /// When the current round began; `None` between rounds.
    pub round_began_at: Option<Timestamp>,
    /// The share of the partitions that the current round has finished.
    pub round_done: f64,
    /// When the last complete round ended.
    pub round_finished_at: Option<Timestamp>,
}
