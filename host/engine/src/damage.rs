//! What an engine knows to be damaged, and how far the search for more of it is. Damage is found, named and kept; never removed.

use std::fmt;
use std::ops::Range;

use millrace_model::{Digest, GroupName, Offset, Timestamp, TopicPartition};
use serde::{Deserialize, Serialize};

/// What is known to be damaged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DamageReport {
    /// Messages that cannot be read, by partition and offset.
    pub ranges: Vec<DamagedRange>,
    /// Modules whose bytes are not those that were uploaded.
    pub modules: Vec<Digest>,
    /// Files of state that are not as they were written, by file; as far as the background search came since the host started.
    pub state: Vec<DamagedState>,
    /// The background search, where the engine has one.
    pub scrub: Option<ScrubStatus>,
}

/// Messages that are not there as they were written. Those around them are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedRange {
    /// Where.
    pub partition: TopicPartition,
    /// The first of them.
    pub from: Offset,
    /// The offset after the last of them: where to read on.
    pub to: Offset,
    /// The file, as seen from the data directory.
    pub file: String,
    /// Where in the file; `None` until the file was read through.
    pub bytes: Option<Range<u64>>,
    /// What stands there instead.
    #[serde(default)]
    pub kind: DamageKind,
    /// When it was met first.
    pub found_at: Timestamp,
    /// Who met it.
    pub found_by: FoundBy,
    /// When somebody said that processors go on without them.
    pub accepted_at: Option<Timestamp>,
}

impl DamagedRange {
    /// How many offsets.
    #[must_use]
    pub fn message_count(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// Whether the ranges have an offset in common.
    #[must_use]
    pub fn meets(&self, from: Offset, to: Offset) -> bool {
        self.from < to && from < self.to
    }
}

/// A file of a group's state in which something cannot be read. What stands elsewhere in it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedState {
    /// Whose state; a processor's name.
    pub group: GroupName,
    /// Which partition's.
    pub partition: TopicPartition,
    /// The file, as seen from the data directory.
    pub file: String,
    /// What is wrong with it, first of all.
    pub reason: String,
    /// When it was met first.
    pub found_at: Timestamp,
}

/// What stands where messages were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DamageKind {
    /// Something else, or nothing.
    #[default]
    Changed,
    /// Messages of another topic or partition: files were swapped, restored to the wrong place, or a write went astray.
    Misplaced,
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changed => "are damaged on disk",
            Self::Misplaced => {
                "are not where they belong: what stands in their place was written for another topic or partition"
            }
        })
    }
}

/// Who met a damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// Somebody who wanted to read the messages.
    Read,
    /// The background search.
    Scrub,
}

/// How far the background search is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ScrubStatus {
    /// Bytes that it reads in a second at the most; 0 is off.
    pub bytes_per_second: u64,
    /// Bytes read since the host started.
    pub bytes: u64,
    /// When the present round began; `None` between rounds.
    pub round_began_at: Option<Timestamp>,
    /// The share of the partitions that the present round is done with.
    pub round_done: f64,
    /// When the last full round ended.
    pub round_finished_at: Option<Timestamp>,
}
