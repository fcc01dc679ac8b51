//! Reading one segment: record batches one after the other, each checked, damage named by its offsets.
//!
//! A segment is nothing but batches. Their checksums cover all but the base offset, and that is known: every batch begins where
//! the one before it ended. So a batch that decodes and stands at the expected offset is the one that was written there. Compaction
//! keeps to that: the batch before a gap reaches over it, and where there is none a batch without messages stands for it (see
//! [`millrace_model::RecordBatch::gap`]). Whatever breaks the chain is damage. So is a batch that is stamped for another partition: its
//! file was swapped or restored to the wrong place, or a write went astray.

pub mod examine;

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millrace_model::batch::HEADER_BYTES;
pub use millrace_model::damage::DamageKind;
use millrace_model::{BatchError, Offset, RecordBatch, Stamp};

use crate::disk::DiskFile;
use crate::index::{Index, Noted};
use crate::mapping;

/// Bytes read from a file at once, unless less is asked for.
const WINDOW_BYTES: u64 = 256 << 10;
/// The least that is read from a file at once.
const WINDOW_BYTES_MIN: u64 = 4 << 10;

/// Why a segment gave no batch.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Stored bytes are not those that were written.
    #[error("messages {from} to {to} (exclusive) {kind}")]
    Damaged {
        /// First offset of the damage.
        from: Offset,
        /// First offset after it.
        to: Offset,
        /// What stands there instead.
        kind: DamageKind,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where a segment's bytes come from.
pub(crate) enum Source {
    Mapped(Bytes),
    File(Arc<dyn DiskFile>),
}

/// Bytes read at once on a thread that must not wait, where the system has them in memory: checking so many takes less than a fifth of a
/// millisecond. What is larger, if only by one batch, is read by another thread.
pub const READ_NOW_BYTES_MAX: usize = 1 << 20;

/// Whether a read may wait for the disk. One that may not ends with [`ErrorKind::WouldBlock`] where it would have to, and where
/// anything is not as it should be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Waits,
    Never,
}

impl Source {
    /// The bytes of a range, and of a mapped file all that follows in it if that may be waited for.
    fn window(&self, range: Range<u64>, patience: Patience) -> io::Result<Bytes> {
        let length = range.end.saturating_sub(range.start) as usize;
        if patience == Patience::Never && length > READ_NOW_BYTES_MAX {
            return Err(would_wait());
        }
        match (self, patience) {
            (Self::Mapped(bytes), Patience::Waits) => {
                Ok(bytes.slice((range.start as usize).min(bytes.len())..))
            }
            (Self::Mapped(bytes), Patience::Never) => {
                let end = bytes.len().min(range.end as usize);
                let window = bytes.slice((range.start as usize).min(end)..end);
                let resident = mapping::is_resident(&window);
                resident.then_some(window).ok_or_else(would_wait)
            }
            (Self::File(file), Patience::Waits) => {
                let mut buffer = vec![0; length];
                let count = file.read_at(&mut buffer, range.start)?;
                buffer.truncate(count);
                Ok(buffer.into())
            }
            (Self::File(file), Patience::Never) => {
                let mut buffer = vec![0; length];
                let count = file.read_cached_at(&mut buffer, range.start)?;
                count.ok_or_else(would_wait).map(|_| buffer.into())
            }
        }
    }
}

fn would_wait() -> io::Error {
    ErrorKind::WouldBlock.into()
}

/// One segment as far as it is written: offsets `base..end` in `bytes` bytes.
pub(crate) struct Segment {
    pub(crate) source: Source,
    pub(crate) base: Offset,
    pub(crate) end: Offset,
    pub(crate) bytes: u64,
    pub(crate) patience: Patience,
    /// Where its batches have to belong, where that is known.
    pub(crate) stamp: Option<Stamp>,
}

impl Segment {
    /// Batches from the one that holds `from` on, until `bytes_max` is reached or the segment ends; at least one. Begins to
    /// look at `entry`, the index's for `from`.
    pub(crate) fn read(
        &self,
        entry: Option<(Offset, u64)>,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, SegmentError> {
        let mut batches = Vec::new();
        let mut byte_count = 0;
        let mut cursor = self.cursor_at(entry);
        cursor.window_bytes = WINDOW_BYTES.min(bytes_max as u64).max(WINDOW_BYTES_MIN);
        loop {
            let step = match cursor.step() {
                Err(error) if error.kind() == ErrorKind::WouldBlock && !batches.is_empty() => {
                    return Ok(batches);
                }
                step => step?,
            };
            match step {
                Step::Batch { batch, .. } if batch.end_offset() <= from => {}
                Step::Batch { batch, .. } => {
                    byte_count += batch.byte_count();
                    batches.push(batch);
                    if !cursor.next_fits(bytes_max.saturating_sub(byte_count)) {
                        return Ok(batches);
                    }
                }
                // Nobody asked for what is damaged.
                Step::Damage { to, .. } if to <= from => {}
                Step::Damage { .. } | Step::End if !batches.is_empty() => return Ok(batches),
                Step::Damage { from, to, kind } => {
                    return Err(SegmentError::Damaged { from, to, kind });
                }
                Step::End => return Ok(batches),
            }
        }
    }

    /// What `look` first finds in a batch, from the place `entry` on. Goes over what is damaged.
    pub(crate) fn find<T>(
        &self,
        entry: Option<(Offset, u64)>,
        look: &mut dyn FnMut(&RecordBatch) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut cursor = self.cursor_at(entry);
        loop {
            match cursor.step()? {
                Step::Batch { batch, .. } => {
                    if let Some(found) = look(&batch) {
                        return Ok(Some(found));
                    }
                }
                Step::Damage { .. } => {}
                Step::End => return Ok(None),
            }
        }
    }

    /// Notes in the index what it does not cover yet.
    pub(crate) fn extend(&self, index: &mut Index) -> io::Result<()> {
        if index.covered_bytes() >= self.bytes {
            return Ok(());
        }
        let mut cursor = self.cursor_at(index.before(Offset::MAX));
        loop {
            match cursor.step()? {
                Step::Batch { batch, position } => {
                    index.note(Noted::of(&batch), position, cursor.position);
                }
                Step::Damage { .. } => index.skip_to(cursor.position),
                Step::End => return Ok(()),
            }
        }
    }

    fn cursor_at(&self, entry: Option<(Offset, u64)>) -> Cursor<'_> {
        let (expected, position) = entry.unwrap_or((self.base, 0));
        Cursor {
            segment: self,
            window: Bytes::new(),
            window_at: position,
            window_bytes: WINDOW_BYTES,
            position,
            expected,
        }
    }
}

/// What stands at the cursor.
enum Step {
    Batch {
        batch: RecordBatch,
        position: u64,
    },
    Damage {
        from: Offset,
        to: Offset,
        kind: DamageKind,
    },
    End,
}

/// What stands at a position.
enum Stands {
    /// A sound batch of this partition, within the segment's offsets.
    Own(RecordBatch),
    /// A sound batch of another partition, with so many bytes.
    Misplaced(u64),
    /// Nothing that was ever written as a batch, or not to stand in this segment.
    Nothing,
}

struct Cursor<'a> {
    segment: &'a Segment,
    window: Bytes,
    window_at: u64,
    /// Bytes read from a file at once.
    window_bytes: u64,
    position: u64,
    expected: Offset,
}

impl Cursor<'_> {
    fn step(&mut self) -> io::Result<Step> {
        if self.position >= self.segment.bytes && self.expected >= self.segment.end {
            return Ok(Step::End);
        }
        match self.batch_at(self.position)? {
            Stands::Own(batch) if batch.base_offset() == self.expected => {
                let position = self.position;
                self.position += batch.byte_count() as u64;
                self.expected = batch.end_offset();
                Ok(Step::Batch { batch, position })
            }
            _ if self.segment.patience == Patience::Never => Err(would_wait()),
            Stands::Misplaced(byte_count) => {
                self.step_over_damage(self.position + byte_count, DamageKind::Misplaced)
            }
            _ => self.step_over_damage(self.position + 1, DamageKind::Changed),
        }
    }

    /// Whether the next batch has at most so many bytes, by what it says of itself; what says nothing is left to be stepped to.
    fn next_fits(&mut self, bytes_max: usize) -> bool {
        if bytes_max < HEADER_BYTES {
            return false;
        }
        if self.fill(self.position, HEADER_BYTES as u64).is_err() {
            return true;
        }
        let begins = self.window.get((self.position - self.window_at) as usize..);
        let claimed = begins.and_then(|bytes| RecordBatch::framed_length(bytes).ok());
        claimed.is_none_or(|claimed| claimed <= bytes_max)
    }

    /// Goes on at the next batch that is sound and belongs here, at `at` or later, or at the segment's end.
    fn step_over_damage(&mut self, mut at: u64, kind: DamageKind) -> io::Result<Step> {
        let from = self.expected;
        'search: while at < self.segment.bytes {
            self.fill(at, HEADER_BYTES as u64)?;
            let window = self.window.slice((at - self.window_at) as usize..);
            let Some(last) = window.len().checked_sub(HEADER_BYTES) else {
                break;
            };
            for skip in 0..=last {
                if !looks_like_batch(&window[skip..], from, self.segment.end) {
                    continue;
                }
                let found_at = at + skip as u64;
                match self.batch_at(found_at)? {
                    Stands::Own(batch) => {
                        self.position = found_at;
                        self.expected = batch.base_offset();
                        let to = self.expected;
                        return Ok(Step::Damage { from, to, kind });
                    }
                    Stands::Misplaced(byte_count) => {
                        at = found_at + byte_count;
                        continue 'search;
                    }
                    Stands::Nothing => {}
                }
            }
            at += last as u64 + 1;
        }
        self.position = self.segment.bytes;
        self.expected = self.segment.end;
        Ok(Step::Damage {
            from,
            to: self.segment.end,
            kind,
        })
    }

    fn batch_at(&mut self, at: u64) -> io::Result<Stands> {
        self.fill(at, HEADER_BYTES as u64)?;
        let mut decoded = self.decode_at(at);
        if let Err(BatchError::Incomplete { needed, .. }) = decoded {
            self.fill(at, needed as u64)?;
            decoded = self.decode_at(at);
        }
        let of_another = |batch: &RecordBatch| {
            let stamp = self.segment.stamp;
            stamp.is_some_and(|stamp| !batch.belongs_to(stamp))
        };
        Ok(match decoded {
            Ok(batch) if of_another(&batch) => Stands::Misplaced(batch.byte_count() as u64),
            Ok(batch) if batch.end_offset() <= self.segment.end => Stands::Own(batch),
            _ => Stands::Nothing,
        })
    }

    fn decode_at(&self, at: u64) -> Result<RecordBatch, BatchError> {
        let skip = (at - self.window_at) as usize;
        RecordBatch::decode_stored(&self.window.slice(skip.min(self.window.len())..))
    }

    /// Makes the window hold `length` bytes from `at` on, where the segment has them.
    fn fill(&mut self, at: u64, length: u64) -> io::Result<()> {
        let held = self.window_at..self.window_at + self.window.len() as u64;
        let wanted_end = (at + length).min(self.segment.bytes);
        if held.contains(&at) && wanted_end <= held.end {
            return Ok(());
        }
        let end = (at + length.max(self.window_bytes)).min(self.segment.bytes);
        self.window = self.segment.source.window(at..end, self.segment.patience)?;
        self.window_at = at;
        Ok(())
    }
}

/// Whether a batch may begin here that stands after `from`: asked of every byte after damage, so before any checksum.
fn looks_like_batch(bytes: &[u8], from: Offset, end: Offset) -> bool {
    let base = bytes
        .first_chunk::<8>()
        .map_or(0, |base| u64::from_be_bytes(*base));
    bytes.get(16) == Some(&2) && base > from.0 && base < end.0
}
