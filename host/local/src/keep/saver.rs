//! Makes a checkpoint that is decided durable: first the files that it speaks of, then the database. Takes long, and holds up
//! nobody meanwhile: flushing goes on beside it.

use std::io;
use std::sync::Arc;

use millrace_log::disk::{self, FileSystem};
use millrace_log::partition::Unsynced;
use millrace_model::{Topic, TopicId};

use crate::decide::state::{Changes, Store};
use crate::ground::keep_error::KeepError;
use crate::keep::backup::desk::Errand;
use crate::keep::checkpoint::{CheckpointStore, Step};
use crate::keep::keeper::Flushed;
use crate::keep::names::Names;
use crate::keep::runs::RunFiles;
use crate::write::reserve::Reserve;

/// Partitions whose files are made durable one by one; of more, the whole file system is at once.
const SYNCED_SINGLY_MAX: usize = 24;

/// Works for one checkpoint at a time.
pub(crate) struct Saver {
    layout: Store,
    store: CheckpointStore,
    reserve: Arc<Reserve>,
    runs: RunFiles,
    file_system: Arc<dyn FileSystem>,
    /// Topics that the checkpoint knows to be removed, and whose files are still there.
    removed: Vec<TopicId>,
    swept: Vec<TopicId>,
}

impl Saver {
    /// Before anything is written to the files.
    pub(crate) fn new(
        layout: Store,
        store: CheckpointStore,
        reserve: Arc<Reserve>,
        runs: RunFiles,
        removed: Vec<TopicId>,
    ) -> io::Result<Self> {
        Ok(Self {
            file_system: layout.disk.file_system(&layout.topics_dir)?,
            layout,
            store,
            reserve,
            runs,
            removed,
            swept: Vec::new(),
        })
    }

    /// Makes durable what was flushed, and then a checkpoint that says so. The flushed batches must be exactly those up to
    /// `sequence`.
    pub(crate) fn save(
        &mut self,
        sequence: u64,
        journal_file: u64,
        changes: &Changes,
        flushed: Flushed,
    ) -> Result<(), KeepError> {
        self.sync(flushed.unsynced, flushed.lost_sight)?;
        // What the checkpoint names is durable before it is.
        let (runs, reserve) = (&mut self.runs, &self.reserve);
        let plan = reserve.spend(|| runs.write(changes))?;
        let step = Step {
            sequence,
            journal_file,
            changes,
            marks: &flushed.marks,
            swept_topics: &self.swept,
            runs: &plan.step,
        };
        self.layout.disk.moment("checkpoint begins")?;
        let store = &mut self.store;
        let saved = self.reserve.spend(|| {
            store.save(&step).map_err(|error| match error {
                error if store.is_full(&error) => KeepError::Full,
                error => KeepError::Failed(format!("the checkpoint: {error}")),
            })
        });
        self.layout.disk.moment("checkpoint is made")?;
        match saved {
            Ok(()) => self.runs.commit(plan),
            Err(KeepError::Full) => {
                self.runs.abandon(plan);
                return Err(KeepError::Full);
            }
            // Nobody knows whether it was made: its files stay.
            Err(failed) => return Err(failed),
        }
        metrics::gauge!("millrace_state_runs").set(self.runs.count() as f64);
        self.reserve.fit(self.store.byte_count(), self.runs.any());
        if let Some(topics) = &changes.all_topics {
            self.copy_names(sequence, changes.next_topic, topics);
        }
        self.swept.clear();
        self.removed
            .extend(changes.removed.iter().map(|removed| removed.topic));
        Ok(())
    }

    /// The copy is for the day on which the checkpoint is lost; until then nobody misses it.
    fn copy_names(&self, sequence: u64, next_topic: TopicId, topics: &[Topic]) {
        let names = Names {
            sequence,
            next_topic,
            topics: topics.to_vec(),
        };
        let Some(dir) = self.layout.topics_dir.parent() else {
            return;
        };
        if let Err(error) = names.write(&*self.layout.disk, dir) {
            tracing::warn!(%error, "the copy of the topics' names could not be written");
        }
    }

    /// How many runs the last checkpoint names.
    #[cfg(test)]
    pub(crate) fn named_runs(&self) -> usize {
        self.runs.named().count()
    }

    /// Whether files of state became one that the checkpoint does not know of.
    pub(crate) fn has_merged(&self) -> bool {
        self.runs.has_merged()
    }

    /// The files that paged tables stand in.
    pub(crate) fn runs(&mut self) -> &mut RunFiles {
        &mut self.runs
    }

    /// Whether files are gone that the checkpoint still knows of.
    pub(crate) fn has_swept(&self) -> bool {
        !self.swept.is_empty()
    }

    /// Gives some of what the checkpoint holds for nothing back to the file system; whether there is more of it.
    pub(crate) fn give_back(&mut self) -> Result<bool, KeepError> {
        match self.store.give_back() {
            // It takes a little room to free much. It is not urgent.
            Err(error) if self.store.is_full(&error) => Ok(false),
            given => given.map_err(|error| KeepError::Failed(format!("the checkpoint: {error}"))),
        }
    }

    /// Does what is ordered of the checkpoint that was just made.
    pub(crate) fn run(&self, errand: Errand, sequence: u64) {
        let disk = &*self.layout.disk;
        errand.run(disk, self.store.path(), self.runs.files(), sequence);
    }

    fn sync(&self, unsynced: Vec<Unsynced>, lost_sight: bool) -> Result<(), KeepError> {
        if lost_sight || unsynced.len() > SYNCED_SINGLY_MAX {
            return Ok(self.file_system.sync().map_err(disk::final_error)?);
        }
        for unsynced in unsynced {
            unsynced.sync(&*self.layout.disk)?;
        }
        Ok(())
    }

    /// Removes the files of topics that the checkpoint no longer has; what fails stays for the next time.
    pub(crate) fn sweep(&mut self) {
        let removed = std::mem::take(&mut self.removed);
        if removed.is_empty() {
            return;
        }
        let (mut gone, mut failed) = (Vec::new(), Vec::new());
        for topic in removed {
            let dir = self.layout.topic_dir(topic);
            self.layout.cache.forget_under(&dir);
            match self.layout.disk.remove_dir_all(&dir) {
                Ok(()) => gone.push(topic),
                Err(error) => {
                    tracing::warn!(%topic, %error, "files of a deleted topic could not be removed");
                    failed.push(topic);
                }
            }
        }
        self.removed = failed;
        // The checkpoint forgets these topics next: files that a power cut brought back would then stay for ever.
        match self.layout.disk.sync_dir(&self.layout.topics_dir) {
            Ok(()) => self.swept.extend(gone),
            Err(error) => {
                tracing::warn!(%error, "the removal of deleted topics' files could not be made durable");
                self.removed.extend(gone);
            }
        }
    }
}
