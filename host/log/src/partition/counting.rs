//! How many messages stand between two offsets. Where nothing was ever compacted that is their distance; elsewhere each segment says it of
//! itself, and only one that a bound lies in is read.

use std::io;
use std::ops::Range;

use millrace_model::{Offset, RecordBatch};

use super::{Part, PartitionFiles, SealedSegment, SegmentReader};
use crate::segment::SegmentError;

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// Messages to be counted without holding up the writer.
pub struct Counting {
    range: Range<Offset>,
    /// Those that hold some of them.
    segments: Vec<SealedSegment>,
    /// From where on nothing was compacted.
    dense_from: Offset,
}

impl PartitionFiles {
    /// What has to be looked at to count the messages of these offsets. `is_compacted` says that the partition's topic is compacted
    /// now; that it was is seen by how far. What a first pass removed that was broken off before compaction was turned off again still counts.
    #[must_use]
    pub fn counting(&self, range: Range<Offset>, is_compacted: bool) -> Counting {
        let start = range.start.max(self.start);
        let range = start..range.end.max(start);
        // The active segment is never written anew.
        let dense_from = match is_compacted || self.clean > Offset(0) {
            true => self.active.base,
            false => Offset(0),
        };
        let mut segments = Vec::new();
        if range.start < dense_from {
            segments = self.sealed_segments();
            segments.retain(|held| held.end > range.start && held.base < range.end);
        }
        Counting {
            range,
            segments,
            dense_from,
        }
    }
}

impl Counting {
    /// Whether files have to be read for it.
    #[must_use]
    pub fn reads(&self) -> bool {
        !self.segments.is_empty()
    }

    /// How many there are. What cannot be read counts for nothing.
    ///
    /// # Errors
    /// The disk's.
    pub fn count(&self) -> io::Result<u64> {
        let Range { start, end } = self.range;
        let dense = end.0.saturating_sub(start.max(self.dense_from).0);
        let counts = self.segments.iter().map(|segment| {
            let within = start.max(segment.base)..end.min(segment.end);
            match segment.count(within) {
                // Trimmed meanwhile, or lost.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
                counted => counted,
            }
        });
        counts.sum::<io::Result<u64>>().map(|sealed| sealed + dense)
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

    /// All of its messages, as its index says, or as are found the first time.
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
        let Range { start, end } = within;
        let mut from = start;
        let mut counted = 0;
        while from < end {
            let reader = SegmentReader {
                place: self.place.clone(),
                part: Part::Sealed { base: self.base },
                from,
                end: self.end,
            };
            let batches = match reader.read(READ_BYTES) {
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
}
