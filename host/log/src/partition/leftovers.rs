//! Finds messages that compaction should have removed but did not, from the files alone: messages
//! in the compacted part of a partition for which there is a later one there with the same key.
//!
//! They remain if a segment could not be read during compaction, and after versions that skipped
//! segments which would not have become shorter. If the later message was a tombstone that is
//! already removed, this cannot be detected: then the older one is the key's only message.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::path::{Path, PathBuf};

use millrace_model::{Offset, RecordBatch};

use super::compact::{COMPACTION_KEYS_MAX, messages};

/// Examines batches as they are read.
pub(super) struct Leftovers {
    clean: Offset,
    hashers: [RandomState; 2],
    /// The offset of each key's latest message, and the index of its segment.
    latest: HashMap<[u64; 2], (Offset, usize)>,
    segments: Vec<Segment>,
    keys_max: usize,
}

struct Segment {
    path: PathBuf,
    /// Number of superseded messages.
    count: u64,
    offsets: Option<Range<Offset>>,
}

impl Leftovers {
    pub(super) fn before(clean: Offset) -> Self {
        Self {
            clean,
            hashers: [RandomState::new(), RandomState::new()],
            latest: HashMap::new(),
            segments: Vec::new(),
            keys_max: COMPACTION_KEYS_MAX,
        }
    }

    pub(super) fn begin(&mut self, path: &Path) {
        self.segments.push(Segment {
            path: path.to_owned(),
            count: 0,
            offsets: None,
        });
    }

    /// Examines a batch. Unreadable batches, and keys beyond the number that can be remembered, are
    /// ignored.
    pub(super) fn note(&mut self, stored: &RecordBatch) {
        if stored.base_offset() >= self.clean {
            return;
        }
        let Ok(batch) = stored.inflated() else {
            return;
        };
        let here = self.segments.len().saturating_sub(1);
        for record in messages(&batch).filter(|record| record.offset < self.clean) {
            let Some(key) = record.key else {
                continue;
            };
            let hash = [0, 1].map(|at| self.hashers[at].hash_one(&batch.bytes()[key.clone()]));
            if self.latest.len() >= self.keys_max && !self.latest.contains_key(&hash) {
                continue;
            }
            let before = self.latest.insert(hash, (record.offset, here));
            if let Some((offset, segment)) = before {
                self.segments[segment].superseded(offset);
            }
        }
    }

    /// The segments with such messages: file, number, and offsets.
    pub(super) fn found(self) -> impl Iterator<Item = (PathBuf, u64, Range<Offset>)> {
        let segments = self.segments.into_iter();
        segments.filter_map(|segment| Some((segment.path, segment.count, segment.offsets?)))
    }
}

impl Segment {
    fn superseded(&mut self, offset: Offset) {
        self.count += 1;
        let next = offset.next();
        let known = self.offsets.take().unwrap_or(Range {
            start: offset,
            end: next,
        });
        self.offsets = Some(known.start.min(offset)..known.end.max(next));
    }
}
