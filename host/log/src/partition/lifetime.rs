//! The lifetime of a partition's messages: its start, its sealed segments and their ages, and when
//! the active segment ends.
//!
//! The start moves first and becomes durable in a checkpoint; only then are files removed. If the
//! host crashes in between, [`sweep`] removes the files when the partition is opened.

use std::io;
use std::path::PathBuf;

use millrace_model::{Offset, RecordBatch, Timestamp};

use super::layout::{INDEX_SUFFIX, base_in};
use super::{Footers, Mark, Part, PartitionFiles, Place, SegmentReader};
use crate::index::{FOOTER_BYTES, Footer, Index, Tombstones};
use crate::segment::{Patience, Segment, SegmentError, Source};

/// A recorded time that is further ahead of the host's clock than this came from a wrong clock:
/// ages then count from now instead. Smaller steps happen every day.
const AHEAD_MS_MAX: u64 = 60_000;

/// Removes segments entirely below the start, and files that a crash left unfinished.
pub(super) fn sweep(
    place: &Place,
    names: &[String],
    sealed: &mut Vec<Offset>,
    mark: Mark,
) -> io::Result<()> {
    for name in names {
        let base = base_in(name, INDEX_SUFFIX);
        let alone = base.is_some_and(|base| base < mark.start && !sealed.contains(&base));
        if alone || name.ends_with(UNFINISHED_SUFFIX) {
            place.disk.remove(&place.location.file(name))?;
        }
    }
    let known = sealed.partition_point(|&base| base < mark.segment);
    let ends = sealed[..known].iter().skip(1).copied();
    let ends = ends.chain([mark.segment]).take(known);
    let below = ends.take_while(|&end| end <= mark.start).count();
    for base in sealed.drain(..below) {
        place.remove(base)?;
    }
    Ok(())
}

/// Suffix of a file that is being written and will replace another one.
pub(super) const UNFINISHED_SUFFIX: &str = ".unfinished";

impl PartitionFiles {
    /// Sets the current time, and the size and age at which segments end from now on.
    pub fn configure(&mut self, now: Timestamp, segment_bytes: u64, segment_ms: Option<u64>) {
        self.now = now;
        self.place.segment_bytes = segment_bytes;
        self.segment_ms = segment_ms;
        let opened_at = self.active.opened_at;
        if self.active.bytes > 0 && (opened_at == Timestamp::default() || is_ahead(opened_at, now))
        {
            // A version did not record the time, or the clock was ahead: the age counts from now.
            self.active.opened_at = now;
        }
    }

    /// Whether the active segment has reached the age at which it ends.
    #[must_use]
    pub fn is_aged(&self) -> bool {
        let age_ms = self.now.0.saturating_sub(self.active.opened_at.0);
        self.active.bytes > 0 && self.segment_ms.is_some_and(|max_ms| age_ms >= max_ms)
    }

    /// Ends the active segment if it is not empty.
    ///
    /// # Errors
    /// The disk's.
    pub fn roll(&mut self) -> io::Result<()> {
        if self.active.bytes > 0 {
            self.seal()?;
        }
        Ok(())
    }

    /// Moves the partition's start to `start`, or to its end if that is earlier. An active segment
    /// entirely below it ends.
    ///
    /// # Errors
    /// The disk's; the start has moved nevertheless.
    pub fn advance_start(&mut self, start: Offset) -> io::Result<()> {
        self.start = self.start.max(start.min(self.end));
        if self.start == self.end {
            self.roll()?;
        }
        Ok(())
    }

    /// Takes the sealed segments entirely below the start. Call it when a checkpoint has the start.
    pub fn take_below_start(&mut self) -> Below {
        let ends = self.sealed.iter().skip(1).copied();
        let ends = ends.chain([self.active.base]);
        let below = ends.take_while(|&end| end <= self.start).count();
        let below = below.min(self.sealed.len());
        let bases: Vec<Offset> = self.sealed.drain(..below).collect();
        let mut footers = self.footers.lock();
        for base in &bases {
            footers.remove(base);
        }
        Below {
            bases,
            place: self.place.clone(),
        }
    }

    /// Notes that a checkpoint has this mark.
    pub fn set_marked(&mut self, mark: Mark) {
        self.marked = mark.segment;
    }

    /// The sealed segments, oldest first.
    #[must_use]
    pub fn sealed_segments(&self) -> Vec<SealedSegment> {
        let ends = self.sealed.iter().skip(1).copied();
        let ends = ends.chain([self.active.base]);
        let segment = |(&base, end)| SealedSegment {
            place: self.place.clone(),
            footers: Footers::clone(&self.footers),
            base,
            end,
        };
        self.sealed.iter().zip(ends).map(segment).collect()
    }

    /// Bytes of the active segment.
    #[must_use]
    pub fn active_bytes(&self) -> u64 {
        self.active.bytes
    }

    /// The current active segment, if it is not empty.
    #[must_use]
    pub fn active_reader(&self) -> Option<SegmentReader> {
        let from = self.active.base;
        (self.active.bytes > 0).then(|| self.reader(from))?
    }
}

/// Sealed segments that are no longer part of their partition.
#[must_use]
pub struct Below {
    place: Place,
    bases: Vec<Offset>,
}

impl Below {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }

    /// Removes their files, oldest first; returns their bytes.
    ///
    /// # Errors
    /// The disk's. Remaining files are removed when the partition is opened again.
    pub fn remove(self) -> io::Result<u64> {
        let mut bytes = 0;
        for base in self.bases {
            let file = self.place.disk.open(&self.place.location.segment(base));
            bytes += file.and_then(|file| file.length()).unwrap_or(0);
            self.place.remove(base)?;
        }
        Ok(bytes)
    }
}

/// A sealed segment, which can be used without blocking the writer.
#[derive(Clone)]
pub struct SealedSegment {
    pub(super) place: Place,
    pub(super) footers: Footers,
    /// Its first offset.
    pub base: Offset,
    /// The first offset of the next one.
    pub end: Offset,
}

/// Facts for retention and compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Its first offset.
    pub base: Offset,
    /// The first offset of the next one.
    pub end: Offset,
    /// Bytes of its file.
    pub bytes: u64,
    /// The largest timestamp in it.
    pub max_timestamp: Timestamp,
    /// When it ended, by the host's clock; 0 if unknown.
    pub sealed_at: Timestamp,
    /// Whether it contains tombstones.
    pub tombstones: Tombstones,
}

fn is_ahead(noted: Timestamp, now: Timestamp) -> bool {
    noted.0 > now.0.saturating_add(AHEAD_MS_MAX)
}

impl SealedSegment {
    /// Its facts, read from its index the first time, or from the segment if the index lacks them.
    /// If the time of its end is unknown, or came from a clock that was far ahead, `now` is used
    /// and recorded.
    ///
    /// # Errors
    /// The disk's.
    pub fn facts(&self, now: Timestamp) -> io::Result<SegmentFacts> {
        let known = self.footers.lock().get(&self.base).copied();
        let footer = match known.filter(|footer| !is_ahead(footer.sealed_at, now)) {
            Some(footer) => footer,
            None => self.footer(now)?,
        };
        self.footers.lock().insert(self.base, footer);
        Ok(SegmentFacts {
            base: self.base,
            end: self.end,
            bytes: footer.covered_bytes,
            max_timestamp: footer.max_timestamp,
            sealed_at: footer.sealed_at,
            tombstones: footer.tombstones,
        })
    }

    /// Records whether it contains tombstones, also in its index, so that it is not searched again.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn note_tombstones(
        &self,
        facts: &SegmentFacts,
        tombstones: Tombstones,
    ) -> io::Result<()> {
        if facts.tombstones == tombstones {
            return Ok(());
        }
        let mut index = (*self.reader().sealed(self.base)?.index).clone();
        index.seal(facts.sealed_at);
        index.set_tombstones(tombstones);
        self.keep_index(&index);
        self.footers.lock().insert(self.base, index.footer());
        Ok(())
    }

    /// Stores the index. Only for next time: if it cannot be written, it will be rebuilt.
    pub(super) fn keep_index(&self, index: &Index) {
        // Damage may be repaired later; a stored index that skips it would then be trusted.
        if !index.has_gaps() {
            let written = self.place.disk.create(&self.index_path());
            let _ = written.and_then(|file| file.write_all_at(&index.encode(), 0));
        }
    }

    /// The largest timestamp in it.
    ///
    /// # Errors
    /// The disk's.
    pub fn max_timestamp(&self) -> io::Result<Timestamp> {
        if let Some(footer) = self.footers.lock().get(&self.base) {
            return Ok(footer.max_timestamp);
        }
        let length = self.place.disk.open(&self.path())?.length()?;
        match self.stored_footer(length) {
            Some(footer) => Ok(footer.max_timestamp),
            None => Ok(self
                .reader()
                .sealed(self.base)?
                .index
                .footer()
                .max_timestamp),
        }
    }

    fn footer(&self, now: Timestamp) -> io::Result<Footer> {
        let file = self.place.disk.open(&self.path())?;
        if let Some(footer) = self.stored_footer(file.length()?)
            && footer.sealed_at > Timestamp::default()
            && !is_ahead(footer.sealed_at, now)
        {
            return Ok(footer);
        }
        let mut index = (*self.reader().sealed(self.base)?.index).clone();
        index.seal(now);
        self.keep_index(&index);
        Ok(index.footer())
    }

    pub(super) fn stored_footer(&self, segment_bytes: u64) -> Option<Footer> {
        let file = self.place.disk.open(&self.index_path()).ok()?;
        let at = file.length().ok()?.saturating_sub(FOOTER_BYTES as u64);
        let mut footer = [0; FOOTER_BYTES];
        let count = file.read_at(&mut footer, at).ok()?;
        Footer::decode(&footer[..count], segment_bytes)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.place.location.segment(self.base)
    }

    pub(super) fn index_path(&self) -> PathBuf {
        self.place.location.index(self.base)
    }

    /// A reader of its messages.
    #[must_use]
    pub fn reader(&self) -> SegmentReader {
        SegmentReader {
            place: self.place.clone(),
            part: Part::Sealed { base: self.base },
            from: self.base,
            end: self.end,
        }
    }
}

impl SegmentReader {
    /// The first result of `look` in a batch that may have messages at or after `at`. Damaged
    /// parts, and parts removed meanwhile, are skipped.
    ///
    /// # Errors
    /// The disk's.
    pub fn find_at<T>(
        &self,
        at: Timestamp,
        look: &mut dyn FnMut(&RecordBatch) -> Option<T>,
    ) -> Result<Option<T>, SegmentError> {
        match self.try_find_at(at, look) {
            Err(SegmentError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found,
        }
    }

    fn try_find_at<T>(
        &self,
        at: Timestamp,
        look: &mut dyn FnMut(&RecordBatch) -> Option<T>,
    ) -> Result<Option<T>, SegmentError> {
        let look = &mut |stored: &RecordBatch| {
            let may_hold = stored.max_timestamp() >= at;
            let plain = may_hold.then(|| self.decrypt(stored).ok())??;
            look(&plain)
        };
        match &self.part {
            Part::Missing => Ok(None),
            Part::Sealed { base } => {
                let sealed = self.sealed(*base)?;
                let segment = self.segment(&sealed.bytes, *base);
                Ok(segment.find(sealed.index.before_time(at), look)?)
            }
            Part::Active {
                base,
                bytes,
                index,
                file,
            } => {
                let segment = Segment {
                    source: Source::File(self.open_active(*base, file)?),
                    base: *base,
                    end: self.end,
                    bytes: *bytes,
                    patience: Patience::Waits,
                    stamp: self.place.stamp,
                };
                let entry = {
                    let mut index = index.lock();
                    segment.extend(&mut index)?;
                    index.before_time(at)
                };
                Ok(segment.find(entry, look)?)
            }
        }
    }

    /// The whole sealed segment with its index.
    pub(super) fn sealed(&self, base: Offset) -> io::Result<crate::cache::Sealed> {
        let path = self.place.location.segment(base);
        self.place
            .cache
            .get_or_load(&path, || self.load(&path, base))
    }
}
