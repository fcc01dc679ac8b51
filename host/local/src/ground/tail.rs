//! One partition as its readers see it: the newest batches in memory, the older ones in files, and
//! its end.
//!
//! A batch leaves memory only when it is in the files, and at once if compaction changed it there,
//! so that one position never has two answers. Memory is bounded for all partitions together: the
//! committer waits, and the flusher evicts.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millrace_engine::contract::{Ends, ReadError, Watch};
use millrace_engine::time::first_at;
use millrace_log::partition::counting::Counting;
use millrace_log::partition::upkeep::Upkeep;
use millrace_log::{PartitionFiles, SegmentError, SegmentReader};
use millrace_model::{
    Durability, Offset, RecordBatch, Timestamp, TopicPartition, TopicSettings, TopicSpec,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

/// Approximate memory of a batch besides its bytes.
const BATCH_OVERHEAD_BYTES: usize = 128;

/// One partition.
pub(crate) struct Partition {
    pub(crate) id: TopicPartition,
    configured: Mutex<(Durability, Arc<TopicSettings>)>,
    start: AtomicU64,
    tail: Mutex<Tail>,
    pub(crate) files: RwLock<PartitionFiles>,
    /// Used by the cleaner.
    pub(crate) upkeep: Mutex<Upkeep>,
    /// The active segment must end if it is the one that begins at this offset.
    ends_segment: AtomicU64,
    /// `None` once the topic is deleted, which ends the watches, although the flusher may still
    /// hold the partition.
    ends: Mutex<Option<watch::Sender<Offset>>>,
}

/// The newest batches; those before `flushed` are in the files as well.
struct Tail {
    batches: VecDeque<RecordBatch>,
    /// Where the next append goes.
    end: Offset,
    /// The end for readers; batches after it are written but wait for a sync.
    shown: Offset,
    flushed: Offset,
    unflushed_bytes: usize,
    /// Whether a batch without a message for each offset was ever added.
    has_gaps: bool,
}

/// The weight of a batch in the bound on memory.
pub(crate) fn weight(batch: &RecordBatch) -> usize {
    batch.byte_count() + BATCH_OVERHEAD_BYTES
}

impl Partition {
    /// A partition with the content of its files.
    pub(crate) fn new(id: TopicPartition, spec: &TopicSpec, files: PartitionFiles) -> Self {
        let mark = files.mark();
        Self {
            id,
            configured: Mutex::new(configuration(spec)),
            start: AtomicU64::new(mark.start.0),
            tail: Mutex::new(Tail {
                batches: VecDeque::new(),
                end: mark.end,
                shown: mark.end,
                flushed: mark.end,
                unflushed_bytes: 0,
                has_gaps: false,
            }),
            files: RwLock::new(files),
            upkeep: Mutex::default(),
            ends_segment: AtomicU64::new(u64::MAX),
            ends: Mutex::new(Some(watch::Sender::new(mark.end))),
        }
    }

    /// Adopts the topic's new description.
    pub(crate) fn configure(&self, spec: &TopicSpec) {
        *self.configured.lock() = configuration(spec);
    }

    /// When appends are acknowledged.
    pub(crate) fn durability(&self) -> Durability {
        self.configured.lock().0
    }

    /// Its topic's settings.
    pub(crate) fn settings(&self) -> Arc<TopicSettings> {
        Arc::clone(&self.configured.lock().1)
    }

    /// The first offset kept.
    pub(crate) fn start(&self) -> Offset {
        Offset(self.start.load(Ordering::Acquire))
    }

    /// Moves the start: nothing before it is read any more, and its segments are removed with the
    /// next checkpoint.
    pub(crate) fn advance_start(&self, start: Offset) {
        self.start.fetch_max(start.0, Ordering::AcqRel);
    }

    /// Requests the end of the active segment if it begins at `base`.
    pub(crate) fn end_segment(&self, base: Offset) {
        self.ends_segment.store(base.0, Ordering::Release);
    }

    /// Whether the end of the active segment that begins at `base` was requested.
    pub(crate) fn ends_segment(&self, base: Offset) -> bool {
        self.ends_segment.load(Ordering::Acquire) == base.0
    }

    /// Adds a written batch; [`Partition::show`] makes it visible.
    pub(crate) fn push(&self, batch: RecordBatch) {
        let mut tail = self.tail.lock();
        assert!(
            batch.base_offset() == tail.end,
            "offsets follow each other in a partition"
        );
        tail.end = batch.end_offset();
        tail.unflushed_bytes += batch.byte_count();
        tail.has_gaps |= batch.has_gaps();
        tail.batches.push_back(batch);
    }

    /// Makes everything before `end` visible; [`Partition::announce`] wakes waiting readers.
    pub(crate) fn show(&self, end: Offset) {
        let mut tail = self.tail.lock();
        tail.shown = tail.shown.max(end);
    }

    /// Wakes readers that wait for the end to move.
    pub(crate) fn announce(&self) {
        if let Some(ends) = &*self.ends.lock() {
            ends.send_if_modified(|end| {
                let shown = self.tail.lock().shown;
                std::mem::replace(end, shown) < shown
            });
        }
    }

    /// Ends all watches.
    pub(crate) fn end_watches(&self) {
        self.ends.lock().take();
    }

    pub(crate) fn watch(&self) -> Option<Watch> {
        let ends = self.ends.lock();
        ends.as_ref().map(|ends| Watch::new(ends.subscribe()))
    }

    /// Where the next append goes; may be after the end for readers.
    pub(crate) fn end(&self) -> Offset {
        self.tail.lock().end
    }

    /// Start and end for readers.
    pub(crate) fn ends(&self) -> Ends {
        Ends {
            start: self.start(),
            end: self.tail.lock().shown,
        }
    }

    /// The visible messages in this range: how to count those in files, and the number of those that are only in memory.
    pub(crate) fn counting(&self, range: Range<Offset>) -> (Counting, u64) {
        let Ends { start, end } = self.ends();
        let range = range.start.max(start)..range.end.min(end);
        let is_compacted = self.settings().compact;
        // While these are locked, nothing moves from memory to them.
        let files = self.files.read();
        let in_memory = range.start.max(files.mark().end)..range.end;
        let in_memory = self.tail.lock().count(in_memory);
        (files.counting(range, is_compacted), in_memory)
    }

    /// Whether any batches are only in memory and the journal.
    pub(crate) fn is_unflushed(&self) -> bool {
        let tail = self.tail.lock();
        tail.flushed < tail.shown
    }

    /// Approximate bytes of batches that are only in memory and the journal, including batches that
    /// readers do not see yet.
    pub(crate) fn unflushed_bytes(&self) -> usize {
        self.tail.lock().unflushed_bytes
    }

    /// The next batches to write to files: about `bytes_max`, only before `until`, and only visible
    /// ones.
    pub(crate) fn unflushed(&self, until: Offset, bytes_max: usize) -> Vec<RecordBatch> {
        let tail = self.tail.lock();
        let until = until.min(tail.shown);
        let mut byte_count = 0;
        let first = tail.position(tail.flushed);
        let next = tail.batches.range(first..).take_while(|batch| {
            let taken = byte_count < bytes_max && batch.base_offset() < until;
            byte_count += batch.byte_count();
            taken
        });
        next.cloned().collect()
    }

    /// Notes that everything before `flushed` is in the files.
    pub(crate) fn set_flushed(&self, flushed: Offset) {
        let tail = &mut *self.tail.lock();
        let written = tail.position(tail.flushed)..tail.position(flushed);
        let written = tail.batches.range(written).map(RecordBatch::byte_count);
        tail.unflushed_bytes -= written.sum::<usize>();
        tail.flushed = flushed;
    }

    /// Removes the oldest flushed batches from memory until `wanted` is reached; returns the
    /// removed weight.
    pub(crate) fn evict(&self, wanted: usize) -> usize {
        let mut tail = self.tail.lock();
        let mut evicted = 0;
        while evicted < wanted {
            let flushed = tail.flushed;
            match tail.batches.front() {
                Some(batch) if batch.end_offset() <= flushed => evicted += weight(batch),
                _ => break,
            }
            tail.batches.pop_front();
        }
        if tail.batches.is_empty() {
            tail.batches.shrink_to(0);
        }
        evicted
    }

    /// Removes batches before `end` from memory, because compaction changed them in the files;
    /// returns the removed weight.
    pub(crate) fn evict_before(&self, end: Offset) -> usize {
        let mut tail = self.tail.lock();
        let end = end.min(tail.flushed);
        let mut evicted = 0;
        while let Some(batch) = tail.batches.front()
            && batch.end_offset() <= end
        {
            evicted += weight(batch);
            tail.batches.pop_front();
        }
        evicted
    }

    /// Removes everything from memory, for a deleted topic; returns the removed weight.
    pub(crate) fn clear(&self) -> usize {
        let mut tail = self.tail.lock();
        tail.unflushed_bytes = 0;
        let batches = std::mem::take(&mut tail.batches);
        batches.iter().map(weight).sum()
    }

    /// Batches in memory from `from` on; `None` if memory begins later.
    pub(crate) fn read_tail(&self, from: Offset, bytes_max: usize) -> Option<Vec<RecordBatch>> {
        let tail = self.tail.lock();
        if from >= tail.shown {
            return Some(Vec::new());
        }
        let first = tail.batches.front()?;
        if first.base_offset() > from {
            return None;
        }
        let mut byte_count = 0;
        let wanted = tail.batches.range(tail.position(from)..);
        let read = wanted.take_while(|batch| {
            let first = byte_count == 0;
            byte_count += batch.byte_count();
            batch.base_offset() < tail.shown && (first || byte_count <= bytes_max)
        });
        Some(read.cloned().collect())
    }

    /// Like [`Partition::read_files`], but only from the page cache; `None` if it would have to
    /// wait, or if anything is wrong. There may be more than it returns.
    pub(crate) fn read_now(&self, from: Offset, bytes_max: usize) -> Option<Vec<RecordBatch>> {
        let reader = self.files.try_read()?.reader(from)?;
        // If compaction left nothing here, the reader must continue with what follows.
        let holds_messages = |read: &Vec<RecordBatch>| !read.iter().all(RecordBatch::is_control);
        reader.read_now(bytes_max).filter(holds_messages)
    }

    /// Batches from `from` on, from the files and then from memory. Blocks on the disk.
    pub(crate) fn read_files(
        &self,
        mut from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        let mut read: Vec<RecordBatch> = Vec::new();
        let mut byte_count = 0;
        let mut holds_messages = false;
        loop {
            let left = bytes_max.saturating_sub(byte_count);
            let next = match self.read_on(from, left) {
                Ok(next) => next,
                // The batches before the error are good; the next read starts with the error.
                Err(_) if !read.is_empty() => return Ok(read),
                Err(error) => return Err(error),
            };
            let Some(last) = next.last() else {
                return Ok(read);
            };
            from = last.end_offset();
            for batch in next {
                byte_count += batch.byte_count();
                // An empty result of compaction is no answer for a reader of messages.
                if byte_count > bytes_max && holds_messages {
                    return Ok(read);
                }
                holds_messages |= !batch.is_control();
                read.push(batch);
            }
        }
    }

    /// The first message whose timestamp is `at` or later. Blocks on the disk.
    pub(crate) fn offset_at(&self, at: Timestamp) -> Result<Option<Offset>, ReadError> {
        let mut sought_to = Offset::default();
        loop {
            let (readers, active, files_end) = self.readers_at(at, sought_to)?;
            let from = self.start();
            let mut look = |batch: &RecordBatch| first_at(batch, from, at);
            for reader in readers.into_iter().chain(active) {
                match reader.find_at(at, &mut look) {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    Err(error) => return Err(self.read_error(from, error)),
                }
            }
            // Batches may have moved from memory to the files meanwhile.
            if let Some(found) = self.tail.lock().offset_at(files_end, &mut look) {
                return Ok(found);
            }
            sought_to = files_end;
        }
    }

    /// The segments from `from` on that may have messages at or after `at`, the active one, and the
    /// end of the files.
    fn readers_at(
        &self,
        at: Timestamp,
        from: Offset,
    ) -> Result<(Vec<SegmentReader>, Option<SegmentReader>, Offset), ReadError> {
        let (segments, active, end) = {
            let files = self.files.read();
            (
                files.sealed_segments(),
                files.active_reader(),
                files.mark().end,
            )
        };
        let mut readers = Vec::new();
        let from = from.max(self.start());
        for segment in segments.into_iter().filter(|segment| segment.end > from) {
            match segment.max_timestamp() {
                Ok(latest) if latest < at => {}
                Ok(_) => readers.push(segment.reader()),
                // The segment is gone, removed or lost: nothing in it can be found.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(ReadError::Io(error.to_string().into())),
            }
        }
        Ok((readers, active, end))
    }

    fn read_on(&self, from: Offset, bytes_max: usize) -> Result<Vec<RecordBatch>, ReadError> {
        if let Some(read) = self.read_tail(from, bytes_max) {
            return Ok(read);
        }
        let Some(reader) = self.files.read().reader(from) else {
            return Ok(Vec::new());
        };
        let read = reader.read(bytes_max);
        read.map_err(|error| self.read_error(from, error))
    }

    fn read_error(&self, from: Offset, error: SegmentError) -> ReadError {
        match error {
            // The file was removed during the read.
            SegmentError::Damaged { .. } if from < self.start() => ReadError::BelowStart {
                requested: from,
                start: self.start(),
            },
            SegmentError::Damaged { from, to, kind } => ReadError::Damaged {
                partition: self.id,
                from,
                to,
                kind,
            },
            SegmentError::Io(error) => ReadError::Io(Arc::from(error.to_string())),
        }
    }
}

fn configuration(spec: &TopicSpec) -> (Durability, Arc<TopicSettings>) {
    (spec.durability, Arc::new(spec.settings.clone()))
}

impl Tail {
    /// The messages in this range, all of which is in memory.
    fn count(&self, range: Range<Offset>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        if !self.has_gaps {
            return range.end.0 - range.start.0;
        }
        let batches = self.batches.range(self.position(range.start)..);
        let within = batches.take_while(|batch| batch.base_offset() < range.end);
        within
            .map(|batch| batch.messages_within(range.start, range.end))
            .sum()
    }

    /// The first result of `look` in a batch at or after `from`; `None` if memory begins later.
    fn offset_at(
        &self,
        from: Offset,
        look: &mut dyn FnMut(&RecordBatch) -> Option<Offset>,
    ) -> Option<Option<Offset>> {
        if from >= self.shown {
            return Some(None);
        }
        if self.batches.front()?.base_offset() > from {
            return None;
        }
        let batches = self.batches.range(self.position(from)..);
        let mut shown = batches.take_while(|batch| batch.base_offset() < self.shown);
        Some(shown.find_map(look))
    }

    /// The index of the batch that contains `offset`, or of the next one.
    fn position(&self, offset: Offset) -> usize {
        self.batches.partition_point(|b| b.end_offset() <= offset)
    }
}
