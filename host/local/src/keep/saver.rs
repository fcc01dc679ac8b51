//! Makes a decided checkpoint durable: first the files that it names, then the database. This takes
//! long but blocks nothing: flushing continues meanwhile.

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

/// Up to this many partitions, files are synced one by one; for more, the whole file system is
/// synced at once.
const SYNCED_SINGLY_MAX: usize = 24;

/// Works for one checkpoint at a time.
pub(crate) struct Saver {
    layout: Store,
    store: CheckpointStore,
    reserve: Arc<Reserve>,
    runs: RunFiles,
    file_system: Arc<dyn FileSystem>,
    /// Topics that are deleted in the checkpoint but still have files.
    removed: Vec<TopicId>,
    swept: Vec<TopicId>,
}

impl Saver {
    /// Must be created before anything is written to the files.
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

    /// Makes the flushed batches durable, and then a checkpoint that counts them. They must be
    /// exactly those up to `sequence`.
    pub(crate) fn save(
        &mut self,
        sequence: u64,
        journal_file: u64,
        changes: &Changes,
        flushed: Flushed,
    ) -> Result<(), KeepError> {
        self.sync(flushed.unsynced, flushed.lost_sight)?;
        // Everything that the checkpoint names must be durable before the checkpoint is.
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
            // It is unknown whether the checkpoint was made, so its files stay.
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

    /// Writes the copy of the topics. It is needed only if the checkpoint is lost, so a failure to
    /// write it is not an error.
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

    /// The number of runs that the last checkpoint names.
    #[cfg(test)]
    pub(crate) fn named_runs(&self) -> usize {
        self.runs.named().count()
    }

    /// Whether a merge of files of state is not in the checkpoint yet.
    pub(crate) fn has_merged(&self) -> bool {
        self.runs.has_merged()
    }

    /// The files of paged tables.
    pub(crate) fn runs(&mut self) -> &mut RunFiles {
        &mut self.runs
    }

    /// Whether the checkpoint still has topics whose files are removed.
    pub(crate) fn has_swept(&self) -> bool {
        !self.swept.is_empty()
    }

    /// Returns some free pages of the checkpoint to the file system, and says whether there are
    /// more.
    pub(crate) fn give_back(&mut self) -> Result<bool, KeepError> {
        match self.store.give_back() {
            // Freeing much needs a little space. It is not urgent.
            Err(error) if self.store.is_full(&error) => Ok(false),
            given => given.map_err(|error| KeepError::Failed(format!("the checkpoint: {error}"))),
        }
    }

    /// Carries out the order of a backup for the checkpoint that was just made.
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

    /// Removes the files of topics that the checkpoint no longer has; failures are retried next
    /// time.
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
        // The next checkpoint drops these topics. Files that a power cut brings back after that
        // would stay forever, so the removals must be durable first.
        match self.layout.disk.sync_dir(&self.layout.topics_dir) {
            Ok(()) => self.swept.extend(gone),
            Err(error) => {
                tracing::warn!(%error, "the removal of deleted topics' files could not be made durable");
                self.removed.extend(gone);
            }
        }
    }
}
