//! What compaction should have taken out and did not, told by the files alone: messages before the point up to which a partition is said to
//! be compacted, though a later one there has the same key.
//!
//! Such are left where a segment could not be read when its turn came, and by versions that forgot segments which would not have become
//! shorter. Where the later message was a tombstone that is gone by now, nothing tells: then the older one is the key's only message.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::path::{Path, PathBuf};

use millrace_model::{Offset, RecordBatch};

use super::compact::{COMPACTION_KEYS_MAX, messages};

/// Looks at batches as they come.
pub(super) struct Leftovers {
    clean: Offset,
    hashers: [RandomState; 2],
    /// Where each key's latest message stands, and in which of the segments.
    latest: HashMap<[u64; 2], (Offset, usize)>,
    segments: Vec<Segment>,
    keys_max: usize,
}

struct Segment {
    path: PathBuf,
    /// Messages that are superseded.
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

    /// What cannot be looked into says nothing; nor do keys that are too many to be remembered.
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

    /// The segments with such messages: which file, how many, and where they stand.
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
