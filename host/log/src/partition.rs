//! The files of one partition: sealed segments, and the active one that grows.
//!
//! One flusher writes them in large pieces; many readers read them. Only the part recorded by a
//! checkpoint ([`Mark`]) counts: after a crash there may be bytes after it, which have no meaning
//! and are written again from the journal.

pub mod compact;
pub mod counting;
pub mod encryption;
pub mod examine;
mod layout;
mod leftovers;
mod lifetime;
mod place;
pub mod rebuild;
pub mod stand;
pub mod upkeep;
pub mod verify;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_model::{Offset, RecordBatch, Stamp, Timestamp, TopicPartition};
use parking_lot::Mutex;

use self::encryption::BatchCipher;
use crate::cache::{Sealed, SealedCache};
use crate::cipher::DecryptError;
use crate::disk::{Disk, DiskFile, final_error, is_full};
use crate::index::{Footer, Index, Noted};
use crate::segment::{DamageKind, Patience, Segment, SegmentError, Source};

pub(crate) use self::layout::base_in_file_name;
pub use self::layout::{Files, Listing, Location};
pub use self::lifetime::{Below, SealedSegment, SegmentFacts};

/// Default size in bytes at which a segment ends.
pub const SEGMENT_BYTES: u64 = 1 << 30;
/// Approximate bytes written at once.
const RUN_BYTES_MAX: usize = 1 << 20;
/// Batches of at least this many bytes on average are written from where they are; smaller ones are
/// first copied together.
const PIECE_BYTES_MIN: usize = 1 << 10;
/// From this length on, a growing segment reserves twice the space that it needs; many small
/// segments cost less without.
const RESERVE_FROM_BYTES: u64 = 1 << 20;

/// The extent of a partition's files; enough to open them again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The first offset kept.
    pub start: Offset,
    /// The offset after the last one written.
    pub end: Offset,
    /// The base offset of the active segment.
    pub segment: Offset,
    /// Bytes of the active segment.
    pub bytes: u64,
    /// When the active segment began, by the host's clock; 0 if unknown.
    pub opened_at: Timestamp,
    /// Everything before this offset is compacted; 0 also means that every offset had a message when it was written.
    pub clean: Offset,
}

/// One partition's files.
pub struct PartitionFiles {
    place: Place,
    start: Offset,
    end: Offset,
    /// Base offsets of the sealed segments, ascending.
    sealed: Vec<Offset>,
    active: Active,
    unsynced: Unsynced,
    /// Known facts about sealed segments; filled on demand.
    footers: Footers,
    /// The host's clock at the last call of `configure`.
    now: Timestamp,
    /// The age in milliseconds at which a segment ends even if it is not full.
    segment_ms: Option<u64>,
    clean: Offset,
    /// The active segment of the last checkpoint: those before it are sealed permanently.
    marked: Offset,
    /// Bytes of batches written since the last call of [`PartitionFiles::take_written_bytes`].
    written_bytes: u64,
}

type Footers = Arc<Mutex<HashMap<Offset, Footer>>>;

#[derive(Clone)]
struct Place {
    disk: Arc<dyn Disk>,
    cache: Arc<SealedCache>,
    location: Location,
    segment_bytes: u64,
    cipher: Option<BatchCipher>,
    /// The stamp of its batches; `None` for files that tests write without one.
    stamp: Option<Stamp>,
}

struct Active {
    base: Offset,
    bytes: u64,
    opened_at: Timestamp,
    reserved_bytes: u64,
    index: Arc<Mutex<Index>>,
    /// Open from the first write until [`PartitionFiles::let_go`].
    file: Option<Arc<dyn DiskFile>>,
    is_unsynced: bool,
    /// Whether the file is known to belong to this partition.
    is_own: bool,
}

impl Active {
    fn new(base: Offset, bytes: u64) -> Self {
        Self {
            base,
            bytes,
            opened_at: Timestamp::default(),
            reserved_bytes: 0,
            index: Arc::default(),
            file: None,
            is_unsynced: false,
            is_own: bytes == 0,
        }
    }
}

/// Files and directories that a checkpoint must sync.
#[derive(Default)]
#[must_use]
pub struct Unsynced {
    files: Vec<Arc<dyn DiskFile>>,
    dirs: Vec<PathBuf>,
}

impl Unsynced {
    /// Whether there is nothing to sync.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.dirs.is_empty()
    }

    /// Makes them durable.
    ///
    /// # Errors
    /// The disk's; it is final, as for [`crate::Journal::sync`].
    pub fn sync(self, disk: &dyn Disk) -> io::Result<()> {
        self.files
            .iter()
            .try_for_each(|file| file.sync_data())
            .and_then(|()| self.dirs.iter().try_for_each(|dir| disk.sync_dir(dir)))
            .map_err(final_error)
    }
}

impl PartitionFiles {
    /// A partition without files yet; nothing is created.
    #[must_use]
    pub fn fresh(
        disk: Arc<dyn Disk>,
        cache: Arc<SealedCache>,
        location: Location,
        partition: Option<TopicPartition>,
        segment_bytes: u64,
    ) -> Self {
        let place = Place {
            disk,
            cache,
            location,
            segment_bytes,
            cipher: None,
            stamp: partition.map(Stamp::of),
        };
        Self::at(place, Vec::new(), Mark::default())
    }

    fn at(place: Place, sealed: Vec<Offset>, mark: Mark) -> Self {
        Self {
            place,
            start: mark.start,
            end: mark.end,
            sealed,
            active: Active {
                opened_at: mark.opened_at,
                ..Active::new(mark.segment, mark.bytes)
            },
            unsynced: Unsynced::default(),
            footers: Footers::default(),
            now: Timestamp::default(),
            segment_ms: None,
            clean: mark.clean,
            marked: mark.segment,
            written_bytes: 0,
        }
    }

    /// Opens the partition's files as `mark` says. Segments that began after it are removed,
    /// because the journal has their content, and so are remains of segments below the start and of
    /// a compaction. A segment with another partition's stamp is kept under another name instead.
    /// Batches written from now on are stamped, and a read batch with another stamp is damage.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(
        disk: Arc<dyn Disk>,
        cache: Arc<SealedCache>,
        files: Files,
        partition: Option<TopicPartition>,
        segment_bytes: u64,
        mark: Mark,
    ) -> io::Result<Self> {
        let mut sealed = files.segments();
        let place = Place {
            disk,
            cache,
            location: files.location,
            segment_bytes,
            cipher: None,
            stamp: partition.map(Stamp::of),
        };
        lifetime::sweep(&place, &files.names, &mut sealed, mark)?;
        let active = sealed.partition_point(|&base| base < mark.segment);
        for base in sealed.split_off(active) {
            if base > mark.segment || mark.bytes == 0 {
                place.remove(base)?;
            } else {
                place.disk.remove(&place.location.index(base))?;
            }
        }
        Ok(Self::at(place, sealed, mark))
    }

    /// From now on, written batches are encrypted, and encrypted batches can be read.
    #[must_use]
    pub fn encrypted_with(mut self, cipher: Option<BatchCipher>) -> Self {
        self.place.cipher = cipher;
        self
    }

    /// Writes consecutive batches that follow the existing ones, in large pieces, to the page
    /// cache.
    ///
    /// # Errors
    /// The disk's. Batches written before the error count, and are in [`PartitionFiles::mark`].
    ///
    /// # Panics
    /// If a batch does not begin where the previous one ended.
    pub fn append(&mut self, batches: &[RecordBatch]) -> io::Result<()> {
        let Place { cipher, stamp, .. } = &self.place;
        let is_stamped = |batch: &RecordBatch| stamp.is_none() || batch.stamp() == *stamp;
        if cipher.is_none() && batches.iter().all(is_stamped) {
            return self.append_stored(batches);
        }
        let stored: Vec<RecordBatch> = batches.iter().map(|b| self.place.stored(b)).collect();
        self.append_stored(&stored)
    }

    fn append_stored(&mut self, batches: &[RecordBatch]) -> io::Result<()> {
        self.leave_misplaced()?;
        self.note_gaps(batches);
        let mut rest = batches;
        while let Some(first) = rest.first() {
            assert!(
                first.base_offset() == self.end,
                "batches follow each other in a partition"
            );
            if self.active.bytes > 0 && (!self.fits(self.active.bytes, first) || self.is_aged()) {
                self.seal()?;
            }
            let count = self.run_length(rest);
            let (run, after) = rest.split_at(count);
            self.write_run(run)?;
            rest = after;
        }
        Ok(())
    }

    fn fits(&self, bytes: u64, batch: &RecordBatch) -> bool {
        bytes + batch.byte_count() as u64 <= self.place.segment_bytes
    }

    /// How many of the batches are written to the active segment at once; at least one.
    fn run_length(&self, batches: &[RecordBatch]) -> usize {
        let mut run_bytes = 0;
        let fitting = batches.iter().take_while(|batch| {
            let fits =
                run_bytes < RUN_BYTES_MAX && self.fits(self.active.bytes + run_bytes as u64, batch);
            run_bytes += batch.byte_count();
            fits
        });
        fitting.count().max(1)
    }

    fn write_run(&mut self, run: &[RecordBatch]) -> io::Result<()> {
        let byte_count: usize = run.iter().map(RecordBatch::byte_count).sum();
        let position = self.active.bytes;
        let file = self.active_file(position + byte_count as u64)?;
        if byte_count / run.len() >= PIECE_BYTES_MIN {
            let pieces: Vec<&[u8]> = run.iter().map(|batch| &batch.bytes()[..]).collect();
            file.write_pieces_at(&pieces, position)?;
        } else {
            let mut bytes = Vec::with_capacity(byte_count);
            run.iter()
                .for_each(|batch| bytes.extend_from_slice(batch.bytes()));
            file.write_all_at(&bytes, position)?;
        }
        self.note(run, position);
        if position == 0 {
            self.active.opened_at = self.now;
        }
        self.active.bytes += byte_count as u64;
        self.written_bytes += byte_count as u64;
        self.end = run.last().map_or(self.end, RecordBatch::end_offset);
        Ok(())
    }

    /// Adds batches to the index. If a reader is extending it at this moment, the reader will find
    /// these batches itself.
    fn note(&self, run: &[RecordBatch], mut position: u64) {
        let Some(mut index) = self.active.index.try_lock() else {
            return;
        };
        for batch in run {
            let end_position = position + batch.byte_count() as u64;
            index.note(Noted::of(batch), position, end_position);
            position = end_position;
        }
    }

    /// The active segment's file, open for writing up to `length`.
    fn active_file(&mut self, length: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = match &self.active.file {
            Some(file) => Arc::clone(file),
            None => self.open_active()?,
        };
        self.active.file = Some(Arc::clone(&file));
        self.active.is_unsynced = true;
        if length >= RESERVE_FROM_BYTES && self.active.reserved_bytes < length {
            let most = self.place.segment_bytes.max(length);
            let reserved_bytes = (length * 2).min(most);
            self.active.reserved_bytes = match file.preallocate(reserved_bytes, false) {
                Err(error) if is_full(&error) => {
                    // The existing space may be enough. The space that the attempt took is freed
                    // first.
                    file.set_len(self.active.bytes)?;
                    length
                }
                reserved => reserved.map(|()| reserved_bytes)?,
            };
        }
        Ok(file)
    }

    fn open_active(&mut self) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.place.location.segment(self.active.base);
        if self.active.bytes > 0 {
            match self.place.disk.open(&path) {
                // The file was removed by someone else: its content is lost and will read as
                // damaged; new batches are kept.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
        }
        let file = match self.place.disk.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.place.disk.create_dir_all(self.place.location.dir())?;
                self.place.disk.create(&path)?
            }
            created => created?,
        };
        // The file's directory, and the one or two above it that may also be new.
        for dir in self.place.location.dir().ancestors().take(3) {
            if !self.unsynced.dirs.iter().any(|known| known == dir) {
                self.unsynced.dirs.push(dir.to_owned());
            }
        }
        Ok(file)
    }

    /// Ends the active segment: it never changes again and may be mapped.
    fn seal(&mut self) -> io::Result<()> {
        self.leave_misplaced()?;
        if self.active.bytes == 0 {
            return Ok(());
        }
        let file = self.active_file(self.active.bytes)?;
        file.set_len(self.active.bytes)?;
        self.write_index(&file)?;
        self.unsynced.files.push(file);
        self.sealed.push(self.active.base);
        self.active = Active::new(self.end, 0);
        Ok(())
    }

    /// Not synced: an index that a crash tears is rebuilt.
    fn write_index(&self, file: &Arc<dyn DiskFile>) -> io::Result<()> {
        let mut index = self.active.index.lock();
        let segment = Segment {
            source: Source::File(Arc::clone(file)),
            base: self.active.base,
            end: self.end,
            bytes: self.active.bytes,
            patience: Patience::Waits,
            stamp: self.place.stamp,
        };
        segment.extend(&mut index)?;
        index.seal(self.now);
        let base = self.active.base;
        self.footers.lock().insert(base, index.footer());
        let path = self.place.location.index(base);
        let written = self.place.disk.create(&path)?;
        written.write_all_at(&index.encode(), 0)
    }

    /// Takes the files that must be synced so that everything up to the current
    /// [`PartitionFiles::mark`] is durable. They are taken out, so that the sync blocks nothing.
    pub fn take_unsynced(&mut self) -> Unsynced {
        let mut unsynced = std::mem::take(&mut self.unsynced);
        if std::mem::take(&mut self.active.is_unsynced) {
            unsynced.files.extend(self.active.file.clone());
        }
        unsynced
    }

    /// Closes open files. Returns whether any of them was not synced: then only
    /// [`crate::disk::FileSystem::sync`] makes it durable.
    pub fn let_go(&mut self) -> bool {
        let unsynced = std::mem::take(&mut self.unsynced);
        self.active.file = None;
        let is_unsynced = std::mem::take(&mut self.active.is_unsynced);
        is_unsynced || !unsynced.is_empty()
    }

    /// Bytes of batches written to files since the last call.
    pub fn take_written_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.written_bytes)
    }

    /// The extent of the files.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            start: self.start,
            end: self.end,
            segment: self.active.base,
            bytes: self.active.bytes,
            opened_at: self.active.opened_at,
            clean: self.clean,
        }
    }

    /// A reader of the segment that contains `from`, which does not block the writer; `None` past
    /// the end.
    #[must_use]
    pub fn reader(&self, from: Offset) -> Option<SegmentReader> {
        if from >= self.end {
            return None;
        }
        let after = self.sealed.partition_point(|&base| base <= from);
        let next = self.sealed.get(after).copied().unwrap_or(self.active.base);
        let part = if from >= self.active.base {
            Part::Active {
                base: self.active.base,
                bytes: self.active.bytes,
                index: Arc::clone(&self.active.index),
                file: self.active.file.clone(),
            }
        } else {
            match after.checked_sub(1) {
                Some(held) => Part::Sealed {
                    base: self.sealed[held],
                },
                None => Part::Missing,
            }
        };
        let end = if from >= self.active.base {
            self.end
        } else {
            next
        };
        Some(SegmentReader {
            place: self.place.clone(),
            part,
            from,
            end,
        })
    }
}

/// A missing key is not damage: with the key the segment can be read.
fn missing(error: DecryptError) -> SegmentError {
    io::Error::new(io::ErrorKind::PermissionDenied, error).into()
}

/// One segment as it was when it was requested.
pub struct SegmentReader {
    place: Place,
    part: Part,
    from: Offset,
    end: Offset,
}

#[derive(Clone)]
enum Part {
    Sealed {
        base: Offset,
    },
    Active {
        base: Offset,
        bytes: u64,
        index: Arc<Mutex<Index>>,
        /// Present if the file is open for writing.
        file: Option<Arc<dyn DiskFile>>,
    },
    /// No file holds these offsets, though they were written.
    Missing,
}

impl SegmentReader {
    /// Batches from the one that contains the requested offset on, until `bytes_max` is reached or
    /// the segment ends; at least one.
    ///
    /// # Errors
    /// [`SegmentError::Damaged`] names the unreadable offsets; reading can continue after them.
    pub fn read(&self, bytes_max: usize) -> Result<Vec<RecordBatch>, SegmentError> {
        let read = match &self.part {
            Part::Missing => Err(io::Error::from(io::ErrorKind::NotFound).into()),
            Part::Sealed { base } => self.read_sealed(*base, bytes_max),
            Part::Active {
                base,
                bytes,
                index,
                file,
            } => self
                .open_active(*base, file)
                .map_err(SegmentError::from)
                .and_then(|file| self.read_active(file, *base, *bytes, index, bytes_max)),
        };
        match read.and_then(|batches| self.plain(batches)) {
            // The file is missing, so all its messages are.
            Err(SegmentError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                Err(SegmentError::Damaged {
                    from: self.from,
                    to: self.end,
                    kind: DamageKind::Changed,
                })
            }
            read => read,
        }
    }

    /// Like [`SegmentReader::read`], but only from memory; `None` if it would have to wait for the
    /// disk or for other threads, if it would take much computing, or if anything is wrong.
    #[must_use]
    pub fn read_now(&self, bytes_max: usize) -> Option<Vec<RecordBatch>> {
        let (segment, entry) = match &self.part {
            Part::Missing => return None,
            Part::Sealed { base } => {
                let sealed = self
                    .place
                    .cache
                    .touch(&self.place.location.segment(*base))?;
                let entry = sealed.index.before(self.from);
                (self.segment(&sealed.bytes, *base), entry)
            }
            Part::Active {
                base,
                bytes,
                index,
                file,
            } => {
                let index = index.try_lock()?;
                let entry = (index.covered_bytes() >= *bytes).then(|| index.before(self.from))?;
                let segment = Segment {
                    source: Source::File(file.clone()?),
                    base: *base,
                    end: self.end,
                    bytes: *bytes,
                    patience: Patience::Never,
                    stamp: self.place.stamp,
                };
                (segment, entry)
            }
        };
        let segment = Segment {
            patience: Patience::Never,
            ..segment
        };
        let batches = segment.read(entry, self.from, bytes_max).ok()?;
        let is_plain = !batches.iter().any(RecordBatch::is_encrypted);
        (is_plain && !batches.is_empty()).then_some(batches)
    }

    /// The batches as they were produced, up to the first that cannot be decrypted.
    fn plain(&self, stored: Vec<RecordBatch>) -> Result<Vec<RecordBatch>, SegmentError> {
        if !stored.iter().any(RecordBatch::is_encrypted) {
            return Ok(stored);
        }
        let mut plain = Vec::with_capacity(stored.len());
        for batch in &stored {
            match self.decrypt(batch) {
                Ok(batch) => plain.push(batch),
                Err(_) if !plain.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(plain)
    }

    fn decrypt(&self, stored: &RecordBatch) -> Result<RecordBatch, SegmentError> {
        if !stored.is_encrypted() {
            return Ok(stored.clone());
        }
        let key = encryption::key_id(stored).unwrap_or_default();
        let Some(cipher) = &self.place.cipher else {
            return Err(missing(DecryptError::MissingKey { id: key }));
        };
        cipher.decrypt(stored).map_err(|error| match error {
            DecryptError::MissingKey { .. } => missing(error),
            DecryptError::Changed { .. } | DecryptError::Short => SegmentError::Damaged {
                from: stored.base_offset(),
                to: stored.end_offset(),
                kind: DamageKind::Changed,
            },
        })
    }

    fn read_sealed(
        &self,
        base: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, SegmentError> {
        let sealed = self.sealed(base)?;
        self.segment(&sealed.bytes, base)
            .read(sealed.index.before(self.from), self.from, bytes_max)
    }

    fn load(&self, path: &Path, base: Offset) -> io::Result<Sealed> {
        let bytes = self.place.disk.open(path)?.map_sealed()?;
        let stored = self.stored_index(base, bytes.len() as u64);
        let stored = stored.filter(|index| index.describes(&bytes, base));
        let mut index = stored.unwrap_or_default();
        self.segment(&bytes, base).extend(&mut index)?;
        Ok(Sealed {
            bytes,
            index: Arc::new(index),
        })
    }

    fn stored_index(&self, base: Offset, segment_bytes: u64) -> Option<Index> {
        let path = self.place.location.index(base);
        let bytes = self.place.disk.open(&path).ok()?.map_sealed().ok()?;
        Index::decode(&bytes, segment_bytes)
    }

    fn segment(&self, bytes: &bytes::Bytes, base: Offset) -> Segment {
        Segment {
            bytes: bytes.len() as u64,
            source: Source::Mapped(bytes.clone()),
            base,
            end: self.end,
            patience: Patience::Waits,
            stamp: self.place.stamp,
        }
    }

    fn open_active(
        &self,
        base: Offset,
        file: &Option<Arc<dyn DiskFile>>,
    ) -> io::Result<Arc<dyn DiskFile>> {
        match file {
            Some(file) => Ok(Arc::clone(file)),
            None => self.place.disk.open(&self.place.location.segment(base)),
        }
    }

    fn read_active(
        &self,
        file: Arc<dyn DiskFile>,
        base: Offset,
        bytes: u64,
        index: &Mutex<Index>,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, SegmentError> {
        let segment = Segment {
            source: Source::File(file),
            base,
            end: self.end,
            bytes,
            patience: Patience::Waits,
            stamp: self.place.stamp,
        };
        let entry = {
            let mut index = index.lock();
            segment.extend(&mut index)?;
            index.before(self.from)
        };
        segment.read(entry, self.from, bytes_max)
    }
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;
