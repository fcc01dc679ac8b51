//! Reads one segment: record batches one after the other, each checked; damage is reported with its
//! offsets.
//!
//! A segment consists only of batches. Their checksums cover everything but the base offset, which
//! is known: every batch begins where the previous one ended. So a valid batch at the expected
//! offset is the one that was written there. Compaction preserves this: the batch before a gap is
//! extended over it, or, if there is none, a batch without messages fills it (see
//! [`millrace_model::RecordBatch::gap`]). Anything that breaks the chain is damage. So is a batch
//! with another partition's stamp: its file was swapped or restored to the wrong place, or a write
//! was misdirected.

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

/// Bytes read from a file at once, unless fewer are requested.
const WINDOW_BYTES: u64 = 256 << 10;
/// Minimum bytes read from a file at once.
const WINDOW_BYTES_MIN: u64 = 4 << 10;

/// Why a segment returned no batch.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Stored bytes differ from what was written.
    #[error("messages {from} to {to} (exclusive) {kind}")]
    Damaged {
        /// First offset of the damage.
        from: Offset,
        /// First offset after it.
        to: Offset,
        /// What is there instead.
        kind: DamageKind,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The source of a segment's bytes.
pub(crate) enum Source {
    Mapped(Bytes),
    File(Arc<dyn DiskFile>),
}

/// Bytes read at once from the page cache on a thread that must not wait: checking this many takes
/// less than a fifth of a millisecond. Larger reads, even by one batch, run on another thread.
pub const READ_NOW_BYTES_MAX: usize = 1 << 20;

/// Whether a read may wait for the disk. If it may not, it ends with [`ErrorKind::WouldBlock`] when
/// it would have to wait, or when anything is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Waits,
    Never,
}

impl Source {
    /// The bytes of a range; for a mapped file also everything after it, if waiting is allowed.
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

/// The written part of one segment: offsets `base..end` in `bytes` bytes.
pub(crate) struct Segment {
    pub(crate) source: Source,
    pub(crate) base: Offset,
    pub(crate) end: Offset,
    pub(crate) bytes: u64,
    pub(crate) patience: Patience,
    /// The expected stamp of its batches, if it is known.
    pub(crate) stamp: Option<Stamp>,
}

impl Segment {
    /// Batches from the one that contains `from` on, until `bytes_max` is reached or the segment
    /// ends; at least one. The search begins at `entry`, the index's entry for `from`.
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
                // The damage is before the requested offset.
                Step::Damage { to, .. } if to <= from => {}
                Step::Damage { .. } | Step::End if !batches.is_empty() => return Ok(batches),
                Step::Damage { from, to, kind } => {
                    return Err(SegmentError::Damaged { from, to, kind });
                }
                Step::End => return Ok(batches),
            }
        }
    }

    /// The first result of `look` in a batch, from `entry` on. Damage is skipped.
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

    /// Extends the index over the part that it does not cover yet.
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

/// What is at the cursor.
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

/// What is at a position.
enum Stands {
    /// A valid batch of this partition, within the segment's offsets.
    Own(RecordBatch),
    /// A valid batch of another partition, and its length in bytes.
    Misplaced(u64),
    /// No valid batch, or one that does not belong in this segment.
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

    /// Whether the next batch has at most this many bytes, according to its header; without a
    /// readable header the answer is yes, and the next step finds out.
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

    /// Continues at the next valid batch that belongs here, at `at` or later, or at the segment's
    /// end.
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

    /// Makes the window contain `length` bytes from `at` on, as far as the segment has them.
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

/// Whether a batch with an offset after `from` may begin here. This is checked at every byte after
/// damage, so before any checksum.
fn looks_like_batch(bytes: &[u8], from: Offset, end: Offset) -> bool {
    let base = bytes
        .first_chunk::<8>()
        .map_or(0, |base| u64::from_be_bytes(*base));
    bytes.get(16) == Some(&2) && base > from.0 && base < end.0
}
