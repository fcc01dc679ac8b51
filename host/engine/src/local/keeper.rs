//! Brings what is committed from memory into the partitions' files, and writes checkpoints of it. Used by recovery, and then by
//! the flusher: always by one thread.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use millrace_log::disk::{self, FileSystem};
use millrace_log::partition::Unsynced;
use millrace_model::{Offset, TopicId, TopicPartition};

use super::checkpoint::{self, CheckpointStore, Step};
use super::state::{Changes, Store};
use super::tail::Partition;

/// Bytes taken from memory at once on the way into a file.
const FLUSH_BYTES_MAX: usize = 4 << 20;
/// Partitions whose files are made durable one by one; of more, the whole file system is at once.
const SYNCED_SINGLY_MAX: usize = 24;

/// Why something is not in the files or not in the checkpoint.
#[derive(Debug)]
pub(super) enum KeepError {
    /// No room; it can be tried again.
    Full,
    /// The disk failed; nobody knows what is durable.
    Failed(String),
}

impl From<io::Error> for KeepError {
    fn from(error: io::Error) -> Self {
        if disk::is_full(&error) {
            return Self::Full;
        }
        Self::Failed(error.to_string())
    }
}

pub(super) struct Keeper {
    layout: Store,
    store: CheckpointStore,
    /// Partitions whose files went on since the last checkpoint.
    changed: HashMap<TopicPartition, Arc<Partition>>,
    /// Those of them whose files are not synced.
    unsynced: HashMap<TopicPartition, Arc<Partition>>,
    /// Those whose files are open to be written, and when they last were, counted.
    open: HashMap<TopicPartition, (u64, Arc<Partition>)>,
    open_max: usize,
    flushes: u64,
    /// Files were closed before they were synced.
    lost_sight: bool,
    file_system: Arc<dyn FileSystem>,
    /// Topics that the checkpoint knows to be removed, and whose files are still there.
    removed: Vec<TopicId>,
    swept: Vec<TopicId>,
}

impl Keeper {
    /// Before anything is written to the files.
    pub(super) fn new(
        layout: Store,
        store: CheckpointStore,
        removed: Vec<TopicId>,
    ) -> io::Result<Self> {
        Ok(Self {
            file_system: layout.disk.file_system(&layout.topics_dir)?,
            layout,
            store,
            changed: HashMap::new(),
            unsynced: HashMap::new(),
            open: HashMap::new(),
            open_max: disk::open_files_max(),
            flushes: 0,
            lost_sight: false,
            removed,
            swept: Vec::new(),
        })
    }

    /// Writes a partition's batches before `until` to its files: into the page cache, in large runs.
    pub(super) fn flush(
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
            let (written, flushed) = {
                let mut files = partition.files.write();
                (files.append(&batches), files.mark().end)
            };
            partition.set_flushed(flushed);
            written?;
        }
    }

    fn note(&mut self, partition: &Arc<Partition>) {
        let id = partition.id;
        self.changed.entry(id).or_insert_with(|| partition.clone());
        self.unsynced.entry(id).or_insert_with(|| partition.clone());
        self.flushes += 1;
        let opened = self.open.insert(id, (self.flushes, partition.clone()));
        if opened.is_none() && self.open.len() > self.open_max {
            self.close_idle();
        }
    }

    /// Closes the half of the open files that was not written for longest.
    fn close_idle(&mut self) {
        let mut written_at: Vec<u64> = self.open.values().map(|(at, _)| *at).collect();
        let (_, middle, _) = written_at.select_nth_unstable(self.open.len() / 2);
        let middle = *middle;
        let idle = self.open.extract_if(|_, (at, _)| *at < middle);
        for (_, (_, partition)) in idle {
            self.lost_sight |= partition.files.write().let_go();
        }
    }

    fn sync(&mut self) -> Result<(), KeepError> {
        let unsynced: Vec<Unsynced> = self
            .unsynced
            .drain()
            .map(|(_, partition)| partition.files.write().take_unsynced())
            .collect();
        if self.lost_sight || unsynced.len() > SYNCED_SINGLY_MAX {
            self.file_system.sync().map_err(disk::final_error)?;
            self.lost_sight = false;
            return Ok(());
        }
        for unsynced in unsynced {
            unsynced.sync(&*self.layout.disk)?;
        }
        Ok(())
    }

    /// Makes durable what was flushed, and then a checkpoint that says so. The flushed batches must be exactly those up to
    /// `sequence`.
    pub(super) fn checkpoint(
        &mut self,
        sequence: u64,
        journal_file: u64,
        changes: &Changes,
    ) -> Result<(), KeepError> {
        for removed in &changes.removed {
            let stays = |id: &TopicPartition| id.topic != removed.topic;
            self.changed.retain(|id, _| stays(id));
            self.unsynced.retain(|id, _| stays(id));
            self.open.retain(|id, _| stays(id));
        }
        self.sync()?;
        let changed = self.changed.iter();
        let marks: Vec<_> = changed
            .map(|(id, partition)| (*id, partition.files.read().mark()))
            .collect();
        let step = Step {
            sequence,
            journal_file,
            changes,
            marks: &marks,
            swept_topics: &self.swept,
        };
        match self.store.save(&step) {
            Ok(()) => {}
            Err(error) if checkpoint::is_full(&error) => return Err(KeepError::Full),
            Err(error) => return Err(KeepError::Failed(format!("the checkpoint: {error}"))),
        }
        self.changed.clear();
        self.swept.clear();
        self.removed
            .extend(changes.removed.iter().map(|removed| removed.topic));
        Ok(())
    }

    /// Removes the files of topics that the checkpoint no longer has; what fails stays for the next time.
    pub(super) fn sweep(&mut self) {
        for topic in std::mem::take(&mut self.removed) {
            let dir = self.layout.topic_dir(topic);
            self.layout.cache.forget_under(&dir);
            match self.layout.disk.remove_dir_all(&dir) {
                Ok(()) => self.swept.push(topic),
                Err(error) => {
                    tracing::warn!(%topic, %error, "files of a deleted topic could not be removed");
                    self.removed.push(topic);
                }
            }
        }
    }
}
