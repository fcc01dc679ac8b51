//! Compaction of sealed segments: of all messages with one key only the latest is kept.
//!
//! A pass reads everything since the last pass and remembers the position of each key's latest
//! message, for as many keys as memory allows. Then it rewrites every segment, oldest first,
//! without superseded messages. Offsets never change: removed messages leave gaps, in a form
//! explained at [`millrace_model::batch::Thinned`], so that damage can still be distinguished from
//! compaction. A damaged segment is left as it is.
//!
//! A segment's new file is written beside the old one, made durable, and renamed over it; only then
//! does the next segment follow. After a crash, one of the two files is complete, and so is every
//! message that supersedes a removed one.
//!
//! **A tombstone** (a message without a value) is removed last: when it is old enough, and when the
//! same pass has seen that no earlier segment has an older message with its key. Nothing is assumed
//! from earlier passes, because messages that they could not remove or read are still there. A
//! segment that is damaged, missing, or encrypted with an unknown key keeps all tombstones after
//! it. A tombstone's age counts from the end of its segment by the host's clock: by then every
//! reader could see it, and its producer cannot influence it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use millrace_model::batch::{RecordView, Thinned};
use millrace_model::{Compression, Offset, RecordBatch, Timestamp};

use super::lifetime::UNFINISHED_SUFFIX;
use super::{PartitionFiles, SealedSegment, SegmentFacts};
use crate::disk::{DiskFile, final_error};
use crate::index::{Footer, Index, Noted, Tombstones};
use crate::segment::examine::{Found, walk, whole};

/// Keys whose latest message one pass remembers, about 64 MiB. More are left for the next pass.
pub const COMPACTION_KEYS_MAX: usize = 1 << 20;
/// Bytes written at once.
const RUN_BYTES_MAX: usize = 1 << 20;

/// One pass over a partition's sealed segments.
pub struct Compaction<'a> {
    /// The segments to compact, oldest first: all before the active one.
    pub segments: &'a [SealedSegment],
    /// The start of the partition's files; if the first segment begins later, one is missing.
    pub start: Offset,
    /// Earlier passes compacted everything before this offset.
    pub clean: Offset,
    /// The host's clock.
    pub now: Timestamp,
    /// The age at which tombstones are removed, in milliseconds since the end of their segment.
    pub tombstone_ms: u64,
    /// Maximum number of keys in memory.
    pub keys_max: usize,
    /// Called with the bytes read or written since the last call; false ends the pass.
    pub pace: &'a mut dyn FnMut(u64) -> bool,
    /// Replaces an old file with the new one; see [`PartitionFiles::replace`].
    pub replace: &'a mut dyn FnMut(Rewritten) -> io::Result<()>,
}

/// The result of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Everything before this offset is compacted now.
    pub clean: Offset,
    /// Tombstones from this offset on were kept whatever their age, because something here cannot
    /// be read and may contain messages that they deleted.
    pub held_from: Option<Offset>,
}

/// Why a pass ended early. Its work so far counts; the next one continues.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// It was told to end.
    #[error("it was asked to stop")]
    Stopped,
    /// The disk failed, or is full.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The positions of keys' latest messages. The hash has a random key, so that an attacker cannot
/// choose colliding keys.
struct Latest {
    hashers: [RandomState; 2],
    offsets: HashMap<[u64; 2], Offset>,
}

impl Latest {
    fn hash(&self, key: &[u8]) -> [u64; 2] {
        [0, 1].map(|at| self.hashers[at].hash_one(key))
    }
}

impl Compaction<'_> {
    /// Makes the pass.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub fn run(mut self) -> Result<Passed, CompactionError> {
        let (latest, clean) = self.latest()?;
        // Once something cannot be removed, the tombstones of keys that it might bring back must
        // stay.
        let mut held_from = None;
        let mut expected = self.start;
        let segments = self.segments;
        for segment in segments.iter().take_while(|segment| segment.base < clean) {
            if segment.base > expected {
                held_from.get_or_insert(expected);
            }
            if !self.compact(segment, &latest, clean, held_from.is_some())? {
                held_from.get_or_insert(segment.base);
            }
            expected = segment.end;
        }
        Ok(Passed { clean, held_from })
    }

    /// The positions of each key's latest message after `clean`, and the offset up to which they
    /// are known; and before `clean`, the positions of old tombstones.
    fn latest(&mut self) -> Result<(Latest, Offset), CompactionError> {
        let mut latest = Latest {
            hashers: [RandomState::new(), RandomState::new()],
            offsets: HashMap::new(),
        };
        self.note_old_tombstones(&mut latest)?;
        let (segments, clean, keys_max) = (self.segments, self.clean, self.keys_max);
        let mut known = clean;
        let mut is_first = true;
        for segment in segments.iter().filter(|segment| segment.end > clean) {
            let mut full_at = None;
            let Some(file) = open(segment)? else {
                continue;
            };
            walk_paced(segment, &file, self.pace, |found| {
                let Found::Batch { batch, .. } = found else {
                    return true;
                };
                let Some(batch) = readable(segment, &batch) else {
                    return true;
                };
                // Requires room for a whole batch, so that the pass ends between batches, but
                // always allows one.
                if !is_first && latest.offsets.len() + batch.message_count() > keys_max {
                    full_at = Some(batch.base_offset());
                    return false;
                }
                for record in messages(&batch).filter(|record| record.offset >= clean) {
                    if let Some(key) = &record.key {
                        let hash = latest.hash(&batch.bytes()[key.clone()]);
                        latest.offsets.insert(hash, record.offset);
                        is_first = false;
                    }
                }
                true
            })?;
            if let Some(full_at) = full_at {
                return Ok((latest, full_at));
            }
            known = segment.end;
        }
        Ok((latest, known))
    }

    /// Uses at most half of the memory, for the oldest ones; others are left for the next pass.
    fn note_old_tombstones(&mut self, latest: &mut Latest) -> Result<(), CompactionError> {
        let keys_max = (self.keys_max / 2).max(1);
        let (segments, clean) = (self.segments, self.clean);
        for segment in segments.iter().take_while(|segment| segment.base < clean) {
            let Some(facts) = self.facts(segment)? else {
                continue;
            };
            let is_old = facts.tombstones_are_old(self.tombstone_ms, self.now);
            if !is_old || facts.tombstones == Tombstones::None {
                continue;
            }
            let Some(file) = open(segment)? else {
                continue;
            };
            walk_paced(segment, &file, self.pace, |found| {
                for (hash, offset) in tombstones(segment, &found, latest) {
                    if latest.offsets.len() >= keys_max {
                        return false;
                    }
                    if offset < clean {
                        latest.offsets.insert(hash, offset);
                    }
                }
                true
            })?;
            if latest.offsets.len() >= keys_max {
                break;
            }
        }
        Ok(())
    }

    /// `None` if the file does not exist.
    fn facts(&self, segment: &SealedSegment) -> io::Result<Option<SegmentFacts>> {
        match segment.facts(self.now) {
            Ok(facts) => Ok(Some(facts)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Compacts one segment; false if it cannot be ruled out that it still contains superseded
    /// messages.
    fn compact(
        &mut self,
        segment: &SealedSegment,
        latest: &Latest,
        known_to: Offset,
        keeps_tombstones: bool,
    ) -> Result<bool, CompactionError> {
        // It was trimmed meanwhile, and then the next pass finds everything in order; or it is
        // lost, and may be restored.
        let (Some(file), Some(facts)) = (open(segment)?, self.facts(segment)?) else {
            return Ok(false);
        };
        let keeps_tombstones =
            keeps_tombstones || !facts.tombstones_are_old(self.tombstone_ms, self.now);
        let keep = |batch: &RecordBatch, record: &RecordView| {
            let Some(key) = record.key.as_ref().filter(|_| record.offset < known_to) else {
                return true;
            };
            let hash = latest.hash(&batch.bytes()[key.clone()]);
            match latest.offsets.get(&hash) {
                Some(&newest) if record.offset < newest => false,
                // The walk has visited everything before it and left nothing with its key.
                Some(&newest) if record.offset == newest => {
                    keeps_tombstones || record.value.is_some()
                }
                _ => true,
            }
        };
        let mut survey = Survey::default();
        walk_paced(segment, &file, self.pace, |found| {
            survey.note(segment, &found, &keep);
            true
        })?;
        if survey.is_damaged || survey.is_opaque {
            return Ok(false);
        }
        let tombstones = match survey.keeps_tombstones {
            true => Tombstones::Some,
            false => Tombstones::None,
        };
        if !survey.changes {
            segment.note_tombstones(&facts, tombstones)?;
            return Ok(true);
        }
        let mut writer = Writer::new(segment)?;
        let mut written = Ok(());
        walk_paced(segment, &file, self.pace, |found| {
            if let Found::Batch { batch, .. } = found {
                written = writer.take(&batch, &keep);
            }
            written.is_ok()
        })?;
        let unfinished = writer.unfinished.clone();
        writer.index.set_tombstones(tombstones);
        let rewritten = written.and_then(|()| writer.finish(facts.sealed_at));
        if rewritten.is_err() {
            // The unfinished file takes space; the next start would also remove it.
            let _ = segment.place.disk.remove(&unfinished);
        }
        // Even if the file is no shorter: superseded messages must no longer be readable.
        let rewritten = rewritten?;
        // The old index is removed first, because it must never be beside the new file. A missing
        // index is rebuilt.
        let place = &segment.place;
        place.disk.remove(&segment.index_path())?;
        sync_names(segment)?;
        (self.replace)(rewritten)?;
        // Durable before the next segment; otherwise a tombstone could be permanently removed
        // before the messages that it deleted.
        sync_names(segment)?;
        Ok(true)
    }
}

/// Makes names durable. A missing directory means that its topic was deleted meanwhile, which is
/// not a failure.
fn sync_names(segment: &SealedSegment) -> io::Result<()> {
    let place = &segment.place;
    match place.disk.sync_dir(place.location.dir()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        synced => synced.map_err(final_error),
    }
}

/// Reads a segment until `visit` or `pace` ends it.
fn walk_paced(
    segment: &SealedSegment,
    file: &Arc<dyn DiskFile>,
    pace: &mut dyn FnMut(u64) -> bool,
    mut visit: impl FnMut(Found) -> bool,
) -> Result<(), CompactionError> {
    let bytes = file.length()?;
    let offsets = segment.base..segment.end;
    let source = whole(Arc::clone(file), segment.place.stamp, offsets, bytes);
    walk::<CompactionError>(&source, |found| {
        let bytes = match &found {
            Found::Batch { batch, .. } => batch.byte_count() as u64,
            Found::Damage { bytes, .. } => bytes.end - bytes.start,
        };
        if !pace(bytes) {
            return Err(CompactionError::Stopped);
        }
        Ok(match visit(found) {
            true => std::ops::ControlFlow::Continue(()),
            false => std::ops::ControlFlow::Break(()),
        })
    })
}

/// The tombstones of a batch, by their keys.
fn tombstones(segment: &SealedSegment, found: &Found, latest: &Latest) -> Vec<([u64; 2], Offset)> {
    let Found::Batch { batch, .. } = found else {
        return Vec::new();
    };
    let Some(batch) = readable(segment, batch) else {
        return Vec::new();
    };
    let hashed = |record: RecordView| {
        let key = record.key.filter(|_| record.value.is_none())?;
        Some((latest.hash(&batch.bytes()[key]), record.offset))
    };
    messages(&batch).filter_map(hashed).collect()
}

/// Whether a batch contains a tombstone, as far as its records can be read.
pub(super) fn holds_tombstone(plain: &RecordBatch) -> bool {
    let is_tombstone = |record: RecordView| record.key.is_some() && record.value.is_none();
    let inflated = plain.inflated();
    inflated.is_ok_and(|batch| messages(&batch).any(is_tombstone))
}

impl SealedSegment {
    /// Reads it up to the first tombstone; records whether there is one.
    pub(super) fn search_tombstones(
        &self,
        facts: &SegmentFacts,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, CompactionError> {
        let Some(file) = open(self)? else {
            return Ok(false);
        };
        let (mut holds, mut is_whole) = (false, true);
        walk_paced(self, &file, pace, |found| {
            match found {
                Found::Damage { .. } => is_whole = false,
                Found::Batch { batch, .. } => match produced(self, &batch) {
                    Some(plain) => holds |= holds_tombstone(&plain),
                    None => is_whole = false,
                },
            }
            !holds
        })?;
        match (holds, is_whole) {
            (true, _) => self.note_tombstones(facts, Tombstones::Some)?,
            (false, true) => self.note_tombstones(facts, Tombstones::None)?,
            // An unreadable part may be readable another time.
            (false, false) => {}
        }
        Ok(holds)
    }
}

/// The segment's file; `None` if it was trimmed meanwhile, or is lost.
fn open(segment: &SealedSegment) -> io::Result<Option<Arc<dyn DiskFile>>> {
    match segment.place.disk.open(&segment.path()) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A stored batch as it was produced; `None` if its encryption key is missing.
fn produced(segment: &SealedSegment, stored: &RecordBatch) -> Option<RecordBatch> {
    match &segment.place.cipher {
        Some(cipher) => cipher.decrypt(stored).ok(),
        None => (!stored.is_encrypted()).then(|| stored.clone()),
    }
}

/// A stored batch with readable records; `None` if they cannot be read.
fn readable(segment: &SealedSegment, stored: &RecordBatch) -> Option<RecordBatch> {
    produced(segment, stored)?.inflated().ok()
}

/// The records of a batch with messages, as far as they can be read.
pub(super) fn messages(batch: &RecordBatch) -> impl Iterator<Item = RecordView> {
    let records = batch.records().ok().filter(|_| !batch.is_control());
    records.into_iter().flatten().map_while(Result::ok)
}

/// What compaction would do to a segment.
#[derive(Default)]
struct Survey {
    changes: bool,
    /// Whether tombstones remain.
    keeps_tombstones: bool,
    is_damaged: bool,
    /// Whether there are unreadable batches.
    is_opaque: bool,
}

impl Survey {
    fn note(
        &mut self,
        segment: &SealedSegment,
        found: &Found,
        keep: &impl Fn(&RecordBatch, &RecordView) -> bool,
    ) {
        match found {
            Found::Damage { .. } => self.is_damaged = true,
            Found::Batch { batch, .. } if batch.is_control() => {}
            Found::Batch { batch, .. } => {
                let plain = readable(segment, batch);
                let mut keep = |batch: &RecordBatch, record: &RecordView| {
                    let stays = keep(batch, record);
                    let is_tombstone = record.key.is_some() && record.value.is_none();
                    self.keeps_tombstones |= stays && is_tombstone;
                    stays
                };
                let thinned = plain.map(|plain| plain.thinned(|record| keep(&plain, record)));
                match thinned {
                    Some(Ok(Thinned::Whole)) => {}
                    Some(Ok(_)) => self.changes = true,
                    Some(Err(_)) | None => self.is_opaque = true,
                }
            }
        }
    }
}

/// Writes a segment's new file.
struct Writer {
    segment: SealedSegment,
    unfinished: PathBuf,
    file: Arc<dyn DiskFile>,
    index: Index,
    /// The last kept batch: it is extended over the gap after it.
    last: Option<RecordBatch>,
    /// The offset up to which batches were processed.
    reached: Offset,
    buffer: Vec<u8>,
    position: u64,
}

impl Writer {
    fn new(segment: &SealedSegment) -> io::Result<Self> {
        let name = format!("{:020}{UNFINISHED_SUFFIX}", segment.base.0);
        let unfinished = segment.place.location.file(&name);
        Ok(Self {
            file: segment.place.disk.create(&unfinished)?,
            segment: segment.clone(),
            unfinished,
            index: Index::default(),
            last: None,
            reached: segment.base,
            buffer: Vec::new(),
            position: 0,
        })
    }

    fn take(
        &mut self,
        batch: &RecordBatch,
        keep: &impl Fn(&RecordBatch, &RecordView) -> bool,
    ) -> io::Result<()> {
        let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
        let batch = produced(&self.segment, batch).ok_or_else(unreadable)?;
        if batch.is_gap() {
            return Ok(());
        }
        if batch.is_control() {
            return self.keep(batch);
        }
        let plain = readable(&self.segment, &batch).ok_or_else(unreadable)?;
        let thinned = plain.thinned(|record| keep(&plain, record));
        match thinned.map_err(|_| unreadable())? {
            Thinned::Nothing => Ok(()),
            Thinned::Whole => self.keep(batch),
            Thinned::Part(left) => {
                let codec = Compression::from_code(batch.codec()).unwrap_or_default();
                self.keep(left.deflated(codec))
            }
        }
    }

    fn keep(&mut self, batch: RecordBatch) -> io::Result<()> {
        self.fill_to(batch.base_offset())?;
        self.last = Some(batch);
        Ok(())
    }

    /// Writes the last kept batch, extended so that everything before `offset` is accounted for.
    fn fill_to(&mut self, offset: Offset) -> io::Result<()> {
        if let Some(last) = self.last.take() {
            self.write(&last.reaching(offset))?;
        }
        while self.reached < offset {
            self.write(&RecordBatch::gap(self.reached, offset))?;
        }
        Ok(())
    }

    fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let stored = self.segment.place.stored(batch);
        let at = self.position + self.buffer.len() as u64;
        let end = at + stored.byte_count() as u64;
        self.index.note(Noted::of(batch), at, end);
        self.buffer.extend_from_slice(stored.bytes());
        self.reached = batch.end_offset();
        match self.buffer.len() >= RUN_BYTES_MAX {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.position)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn write_again(&mut self) -> io::Result<()> {
        let mut at = 0;
        while at < self.position {
            let count = (self.position - at).min(RUN_BYTES_MAX as u64);
            self.buffer.resize(count as usize, 0);
            let read = self.file.read_at(&mut self.buffer, at)?;
            if read < self.buffer.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.file.write_all_at(&self.buffer, at)?;
            at += count;
        }
        Ok(())
    }

    fn finish(mut self, sealed_at: Timestamp) -> io::Result<Rewritten> {
        self.fill_to(self.segment.end)?;
        self.flush()?;
        self.file.sync_data().map_err(final_error)?;
        // No other file has this content, and for a growing file ext4 may falsely report a
        // successful sync just after it failed, or lose a block that it should record as written
        // (see docs/reliability.md). So everything is written again, over existing blocks.
        self.write_again()?;
        self.file.sync_data().map_err(final_error)?;
        self.index.seal(sealed_at);
        Ok(Rewritten {
            footer: self.index.footer(),
            segment: self.segment,
            unfinished: self.unfinished,
            index: self.index,
        })
    }
}

/// A segment's new file, durable but not yet in its place.
pub struct Rewritten {
    segment: SealedSegment,
    unfinished: PathBuf,
    index: Index,
    footer: Footer,
}

impl Rewritten {
    /// The first offset after it.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.segment.end
    }
}

impl PartitionFiles {
    /// The segments that are sealed in the checkpoint. Only these may be rewritten: after a crash,
    /// any other one could be taken for the active segment, with its earlier length.
    #[must_use]
    pub fn compactable_segments(&self) -> Vec<SealedSegment> {
        let mut segments = self.sealed_segments();
        segments.retain(|segment| segment.end <= self.marked);
        segments
    }

    /// The offset up to which earlier passes compacted.
    #[must_use]
    pub fn clean(&self) -> Offset {
        self.clean
    }

    /// Records that everything before `clean` is compacted; the next mark includes it.
    pub fn set_clean(&mut self, clean: Offset) {
        self.clean = clean;
    }

    /// Replaces a segment's file with the new one; current readers of the old file continue. If the
    /// segment no longer exists, removes the new file.
    ///
    /// # Errors
    /// The disk's; the old file is still in place then.
    pub fn replace(&mut self, rewritten: Rewritten) -> io::Result<()> {
        let Rewritten {
            segment,
            unfinished,
            index,
            footer,
        } = rewritten;
        let disk = Arc::clone(&self.place.disk);
        if self.sealed.binary_search(&segment.base).is_err() {
            return disk.remove(&unfinished);
        }
        disk.rename(&unfinished, &segment.path())?;
        self.place.cache.forget(&segment.path());
        self.footers.lock().insert(segment.base, footer);
        let written = disk.create(&segment.index_path());
        // Only saves rebuilding it later, so a failure does not matter.
        let _ = written.and_then(|file| file.write_all_at(&index.encode(), 0));
        Ok(())
    }
}

#[cfg(test)]
#[path = "compact_tests.rs"]
mod tests;
