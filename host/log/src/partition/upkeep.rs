//! Work that a compacted partition needs even without writes, because tombstones grow old.
//!
//! None of this is stored. A start looks again, which costs one read of the parts that indexes do
//! not describe.

use std::io::ErrorKind;
use std::time::Duration;

use millrace_model::{Offset, Timestamp};

use super::compact::{CompactionError, Passed, holds_tombstone};
use super::{Mark, SealedSegment, SegmentFacts, SegmentReader};
use crate::index::Tombstones;
use crate::segment::SegmentError;

/// Bytes of the active segment searched at once.
const SEARCH_BYTES: usize = 1 << 20;
/// Minimum age in milliseconds at which an active segment with continuing writes ends because of
/// its tombstones; one without writes ends as soon as they are old.
const BUSY_SEGMENT_MS_MIN: u64 = 60 * 60 * 1000;
/// After a pass, no other pass is made only for old tombstones for this many times its duration.
const REST_FACTOR: u32 = 9;
/// How long an unreadable part is assumed to stay unreadable.
const HELD_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// What is remembered about a partition between two checks.
#[derive(Debug, Default)]
pub struct Upkeep {
    active: Searched,
    /// The offset from which on the last pass kept tombstones, and until when this is assumed.
    held: Option<(Offset, Duration)>,
    rests_until: Duration,
}

/// How far the active segment was searched for tombstones.
#[derive(Debug, Default)]
struct Searched {
    base: Offset,
    to: Offset,
    holds: bool,
    /// Its size at the last check.
    bytes: u64,
}

impl SegmentFacts {
    /// Whether tombstones in it are old enough, counted from the end of the segment: by then
    /// readers could see them all.
    #[must_use]
    pub fn tombstones_are_old(&self, tombstone_ms: u64, now: Timestamp) -> bool {
        now.0.saturating_sub(self.sealed_at.0) > tombstone_ms
    }
}

impl Upkeep {
    /// Whether the active segment should end so that its tombstones can grow old.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub fn ends_active(
        &mut self,
        mark: &Mark,
        tombstone_ms: u64,
        now: Timestamp,
        pace: &mut dyn FnMut(u64) -> bool,
        reader: &dyn Fn(Offset) -> Option<SegmentReader>,
    ) -> Result<bool, CompactionError> {
        if self.active.base != mark.segment || mark.bytes < self.active.bytes {
            self.active = Searched {
                base: mark.segment,
                to: mark.segment,
                ..Searched::default()
            };
        }
        let is_idle = std::mem::replace(&mut self.active.bytes, mark.bytes) == mark.bytes;
        let age_ms = now.0.saturating_sub(mark.opened_at.0);
        let is_old = age_ms >= tombstone_ms && (is_idle || age_ms >= BUSY_SEGMENT_MS_MIN);
        if mark.bytes == 0 || mark.opened_at == Timestamp::default() || !is_old {
            return Ok(false);
        }
        while !self.active.holds && self.active.to < mark.end {
            let Some(reader) = reader(self.active.to) else {
                break;
            };
            match reader.read(SEARCH_BYTES) {
                Ok(batches) => {
                    let bytes: usize = batches.iter().map(|batch| batch.byte_count()).sum();
                    if batches.is_empty() || !pace(bytes as u64) {
                        return Err(CompactionError::Stopped);
                    }
                    self.active.holds = batches.iter().any(holds_tombstone);
                    self.active.to = batches.last().map_or(mark.end, |last| last.end_offset());
                }
                Err(SegmentError::Damaged { to, .. }) => self.active.to = to,
                // Its encryption key is missing; a start with the key looks again.
                Err(SegmentError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
                    self.active.to = mark.end;
                }
                Err(SegmentError::Io(error)) => return Err(error.into()),
            }
        }
        Ok(self.active.holds)
    }

    /// Whether a pass over these segments would remove old tombstones; `elapsed` is a monotonic
    /// clock.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub fn wants_pass(
        &mut self,
        segments: &[SealedSegment],
        start: Offset,
        tombstone_ms: u64,
        (now, elapsed): (Timestamp, Duration),
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, CompactionError> {
        if elapsed < self.rests_until {
            return Ok(false);
        }
        let holds = |&(from, until): &(Offset, Duration)| from >= start && elapsed < until;
        let held_from = self.held.filter(holds).map(|(from, _)| from);
        let free = |segment: &&SealedSegment| held_from.is_none_or(|from| segment.base < from);
        for segment in segments.iter().take_while(free) {
            let facts = match segment.facts(now) {
                Ok(facts) => facts,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            if !facts.tombstones_are_old(tombstone_ms, now) {
                continue;
            }
            let holds = match facts.tombstones {
                Tombstones::Unknown => segment.search_tombstones(&facts, pace)?,
                known => known == Tombstones::Some,
            };
            if holds {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Records the result of a pass that ended at `elapsed` and took `took`.
    pub fn note_pass(&mut self, passed: &Passed, took: Duration, elapsed: Duration) {
        self.rests_until = elapsed.saturating_add(took.saturating_mul(REST_FACTOR));
        let until = elapsed.saturating_add(HELD_FOR);
        self.held = passed.held_from.map(|from| (from, until));
    }
}
