//! Moves committed batches from memory to the partitions' files, and knows which files a checkpoint
//! must make durable. Used by recovery and then by the flusher, always by one thread.

use std::sync::Arc;

use millrace_log::partition::Unsynced;
use millrace_log::{Mark, PartitionFiles, disk};
use millrace_model::{Clock, Offset, TopicPartition};

use crate::decide::state::{ByPartition, Changes};
use crate::ground::keep_error::KeepError;
use crate::ground::tail::Partition;

/// Bytes taken from memory at once and written to a file.
const FLUSH_BYTES_MAX: usize = 4 << 20;

/// The content of the files for a checkpoint, taken when it was decided.
pub(crate) struct Flushed {
    pub(crate) marks: Vec<(TopicPartition, Mark)>,
    pub(crate) unsynced: Vec<Unsynced>,
    /// Some files were closed before they were synced.
    pub(crate) lost_sight: bool,
}

pub(crate) struct Keeper {
    clock: Arc<dyn Clock>,
    /// Segment size of topics without a setting of their own.
    segment_bytes: u64,
    /// Partitions whose files changed since the last checkpoint was decided.
    changed: ByPartition<Arc<Partition>>,
    /// Partitions with files open for writing, and a counter value of the last write.
    open: ByPartition<(u64, Arc<Partition>)>,
    open_max: usize,
    flushes: u64,
    /// Whether files were closed before they were synced.
    lost_sight: bool,
}

impl Keeper {
    pub(crate) fn new(clock: Arc<dyn Clock>, segment_bytes: u64) -> Self {
        Self {
            clock,
            segment_bytes,
            changed: ByPartition::default(),
            open: ByPartition::default(),
            open_max: disk::open_files_max(),
            flushes: 0,
            lost_sight: false,
        }
    }

    /// Writes a partition's batches before `until` to its files: into the page cache, in large runs.
    pub(crate) fn flush(
        &mut self,
        partition: &Arc<Partition>,
        until: Offset,
    ) -> Result<(), KeepError> {
        loop {
            let batches = partition.unflushed(until, FLUSH_BYTES_MAX);
            if batches.is_empty() {
                return Ok(());
            }
            self.note(partition);
            let (written, flushed, bytes) = {
                let mut files = partition.files.write();
                self.configure(partition, &mut files);
                let written = files.append(&batches);
                (written, files.mark().end, files.take_written_bytes())
            };
            metrics::counter!("millrace_segment_bytes_total").increment(bytes);
            partition.set_flushed(flushed);
            written?;
        }
    }

    /// Makes the next checkpoint record how far the partition is compacted.
    pub(crate) fn note_compacted(&mut self, partition: Arc<Partition>) {
        self.changed.entry(partition.id).or_insert(partition);
    }

    fn configure(&self, partition: &Partition, files: &mut PartitionFiles) {
        let settings = partition.settings();
        let segment_bytes = settings.segment_bytes.unwrap_or(self.segment_bytes);
        // Messages that should be removed at an age must not be kept by a segment that never ends.
        let ages = [settings.segment_ms, settings.retention_ms];
        let segment_ms = ages.into_iter().flatten().min();
        files.configure(self.clock.wall(), segment_bytes, segment_ms);
    }

    /// Ends the partition's active segment if it has reached its age or must end for its
    /// tombstones; true if it did.
    pub(crate) fn roll_aged(&mut self, partition: &Arc<Partition>) -> Result<bool, KeepError> {
        {
            let mut files = partition.files.write();
            self.configure(partition, &mut files);
            let mark = files.mark();
            let is_wanted = mark.bytes > 0 && partition.ends_segment(mark.segment);
            if !files.is_aged() && !is_wanted {
                return Ok(false);
            }
        }
        self.note(partition);
        partition.files.write().roll()?;
        Ok(true)
    }

    fn note(&mut self, partition: &Arc<Partition>) {
        let id = partition.id;
        self.changed.entry(id).or_insert_with(|| partition.clone());
        self.flushes += 1;
        let opened = self.open.insert(id, (self.flushes, partition.clone()));
        if opened.is_none() && self.open.len() > self.open_max {
            self.close_idle();
        }
    }

    /// Closes the half of the open files that were written longest ago.
    fn close_idle(&mut self) {
        let mut written_at: Vec<u64> = self.open.values().map(|(at, _)| *at).collect();
        let (_, middle, _) = written_at.select_nth_unstable(self.open.len() / 2);
        let middle = *middle;
        let idle = self.open.extract_if(|_, (at, _)| *at < middle);
        for (_, (_, partition)) in idle {
            self.lost_sight |= partition.files.write().let_go();
        }
    }

    /// Moves partitions' starts as the changes say, and ends active segments that are entirely
    /// below.
    pub(crate) fn trim(&mut self, changes: &Changes) -> Result<(), KeepError> {
        for partition in &changes.trimmed {
            self.note(partition);
            let mut files = partition.files.write();
            self.configure(partition, &mut files);
            files.advance_start(partition.start())?;
        }
        Ok(())
    }

    /// The content of the files, for a checkpoint that makes it durable. Later flushes belong to
    /// the next one.
    pub(crate) fn take_flushed(&mut self, changes: &Changes) -> Flushed {
        for removed in &changes.removed {
            let stays = |id: &TopicPartition| id.topic != removed.topic;
            self.changed.retain(|id, _| stays(id));
            self.open.retain(|id, _| stays(id));
        }
        let mut flushed = Flushed {
            marks: Vec::with_capacity(self.changed.len()),
            unsynced: Vec::with_capacity(self.changed.len()),
            lost_sight: std::mem::take(&mut self.lost_sight),
        };
        for (id, partition) in self.changed.drain() {
            let mut files = partition.files.write();
            flushed.marks.push((id, files.mark()));
            flushed.unsynced.push(files.take_unsynced());
        }
        flushed
    }

    /// The partitions that the next checkpoint includes.
    pub(crate) fn changed(&self) -> Vec<Arc<Partition>> {
        self.changed.values().cloned().collect()
    }

    /// Returns partitions that a checkpoint could not record for lack of space; the next one must.
    pub(crate) fn take_back<'a>(&mut self, partitions: impl Iterator<Item = &'a Arc<Partition>>) {
        let again = partitions.map(|partition| (partition.id, Arc::clone(partition)));
        self.changed.extend(again);
    }

    /// Removes segments below the partitions' starts, now that a checkpoint has these marks. If a
    /// removal fails, the next start repeats it.
    pub(crate) fn note_saved(partitions: &[Arc<Partition>], marks: &[(TopicPartition, Mark)]) {
        let marks: ByPartition<Mark> = marks.iter().copied().collect();
        for partition in partitions {
            let Some(mark) = marks.get(&partition.id) else {
                continue;
            };
            let below = {
                let mut files = partition.files.write();
                files.set_marked(*mark);
                files.take_below_start()
            };
            match below.remove() {
                Ok(0) => {}
                Ok(bytes) => {
                    metrics::counter!("millrace_retention_removed_bytes_total").increment(bytes);
                }
                Err(error) => {
                    tracing::warn!(partition = %partition.id, %error, "segments below a partition's start could not be removed");
                }
            }
        }
    }
}
