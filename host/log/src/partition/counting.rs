//! Counts messages between two offsets. Where every offset has a message, this is their distance.
//! Elsewhere, because of compaction or because the messages were taken over from another store, each
//! segment's index has its count, and only segments that contain one of the two offsets are read.

use std::io;
use std::ops::Range;

use millrace_model::{Offset, RecordBatch};

use super::{Part, PartitionFiles, SealedSegment, SegmentReader};
use crate::segment::SegmentError;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// A count that can be made without blocking the writer.
pub struct Counting {
    range: Range<Offset>,
    /// The sealed segments that contain some of the messages.
    segments: Vec<SealedSegment>,
    /// The active segment, if some of its offsets may have no messages.
    active: Option<SegmentReader>,
    /// From this offset on, every offset has a message.
    dense_from: Offset,
}

impl PartitionFiles {
    /// Collects what is needed to count the messages in this range, as far as they are in files.
    /// `is_compacted` says whether the topic is compacted now; earlier compaction shows in the offset
    /// up to which the partition is compacted. If compaction was turned off during its first pass,
    /// messages that this pass removed are still counted.
    #[must_use]
    pub fn counting(&self, range: Range<Offset>, is_compacted: bool) -> Counting {
        let start = range.start.max(self.start);
        let range = start..range.end.min(self.end).max(start);
        let has_gaps = is_compacted || self.clean > Offset(0);
        let dense_from = match has_gaps {
            true => self.end,
            false => Offset(0),
        };
        let mut segments = Vec::new();
        let mut active = None;
        if has_gaps && !range.is_empty() {
            segments = self.sealed_segments();
            segments.retain(|held| held.end > range.start && held.base < range.end);
            let within = range.start.max(self.active.base);
            active = (within < range.end).then(|| self.reader(within)).flatten();
        }
        Counting {
            range,
            segments,
            active,
            dense_from,
        }
    }

    /// Notes that not every offset of these batches has a message; the next mark includes it.
    pub(super) fn note_gaps(&mut self, batches: &[RecordBatch]) {
        if self.clean == Offset(0) && batches.iter().any(RecordBatch::has_gaps) {
            // What a compaction would say that has looked at the first offset.
            self.clean = Offset(1);
        }
    }
}

impl Counting {
    /// Whether files must be read for it.
    #[must_use]
    pub fn reads(&self) -> bool {
        !self.segments.is_empty() || self.active.is_some()
    }

    /// The number of messages. Unreadable ones do not count.
    ///
    /// # Errors
    /// The disk's.
    pub fn count(&self) -> io::Result<u64> {
        let Range { start, end } = self.range;
        let dense = end.0.saturating_sub(start.max(self.dense_from).0);
        let counts = self.segments.iter().map(|segment| {
            let within = start.max(segment.base)..end.min(segment.end);
            none_if_missing(segment.count(within))
        });
        let sealed = counts.sum::<io::Result<u64>>()?;
        let active = match &self.active {
            Some(active) => none_if_missing(active.count(start.max(active.from)..end))?,
            None => 0,
        };
        Ok(sealed + active + dense)
    }
}

/// What was trimmed meanwhile, or is lost, has no messages.
fn none_if_missing(counted: io::Result<u64>) -> io::Result<u64> {
    match counted {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        counted => counted,
    }
}

impl SegmentReader {
    /// The messages of the active segment in this range. Most have one for each offset, and its index knows.
    fn count(&self, within: Range<Offset>) -> io::Result<u64> {
        let is_dense = match &self.part {
            Part::Active {
                base, bytes, index, ..
            } => {
                let index = index.lock();
                let covers_all = index.covered_bytes() == *bytes;
                covers_all && index.footer().messages == Some(self.end.0 - base.0)
            }
            Part::Sealed { .. } | Part::Missing => false,
        };
        if is_dense {
            return Ok(within.end.0 - within.start.0);
        }
        walk(within, |from| SegmentReader {
            place: self.place.clone(),
            part: self.part.clone(),
            from,
            end: self.end,
        })
    }
}

impl SealedSegment {
    fn count(&self, within: Range<Offset>) -> io::Result<u64> {
        let span = within.end.0 - within.start.0;
        let whole = self.messages()?;
        let offsets = self.end.0 - self.base.0;
        if span == offsets || whole == offsets {
            return Ok(whole.min(span));
        }
        self.walk(within)
    }

    /// The number of all its messages, from its index, or by reading it the first time.
    fn messages(&self) -> io::Result<u64> {
        let known = self.footers.lock().get(&self.base).copied();
        if let Some(messages) = known.and_then(|footer| footer.messages) {
            return Ok(messages);
        }
        let file = self.place.disk.open(&self.path())?;
        let stored = self.stored_footer(file.length()?);
        if let Some(messages) = stored.and_then(|footer| footer.messages) {
            return Ok(messages);
        }
        let mut index = (*self.reader().sealed(self.base)?.index).clone();
        let messages = match index.footer().messages {
            Some(messages) => messages,
            None => self.walk(self.base..self.end)?,
        };
        index.set_messages(messages);
        self.keep_index(&index);
        self.footers.lock().insert(self.base, index.footer());
        Ok(messages)
    }

    fn walk(&self, within: Range<Offset>) -> io::Result<u64> {
        walk(within, |from| SegmentReader {
            place: self.place.clone(),
            part: Part::Sealed { base: self.base },
            from,
            end: self.end,
        })
    }
}

/// Counts by reading.
fn walk(within: Range<Offset>, reader: impl Fn(Offset) -> SegmentReader) -> io::Result<u64> {
    let Range { start, end } = within;
    let mut from = start;
    let mut counted = 0;
    while from < end {
        let batches = match reader(from).read(READ_BYTES) {
            Ok(batches) => batches,
            Err(SegmentError::Damaged { to, .. }) if to > from => {
                from = to;
                continue;
            }
            Err(SegmentError::Damaged { .. }) => return Ok(counted),
            Err(SegmentError::Io(error)) => return Err(error),
        };
        let Some(last) = batches.last().map(RecordBatch::end_offset) else {
            return Ok(counted);
        };
        let messages = batches
            .iter()
            .map(|batch| batch.messages_within(start, end));
        counted += messages.sum::<u64>();
        from = last;
    }
    Ok(counted)
}
