//! Between written and shown: transactions whose frame is in the journal wait here for the sync that they need, while the
//! committer goes on. One sync covers every frame written before it began; several run at a time, each on its own thread.
//!
//! A transaction needs the sync of its own frame if it must be durable. Otherwise it needs what the transactions before it
//! in the same partitions need, for those stand before it. What needs nothing is shown and answered at once.

use std::io;
use std::sync::Arc;

use millrace_engine::contract::CommitError;
use millrace_log::Journal;
use millrace_log::journal::{JournalSync, Preparation, SYNCS_AT_ONCE_MAX};
use millrace_model::Offset;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;

use super::committer::Decided;
use super::shared::{PoisonOnPanic, Shared};
use super::tail::Partition;

/// By which handles of the journal the committer syncs, and the flusher; the syncers have the others.
pub(super) const COMMITTER: usize = 0;
pub(super) const FLUSHER: usize = 1;
pub(super) const SYNCERS: std::ops::Range<usize> = 2..SYNCS_AT_ONCE_MAX;

/// Syncs under way at the same time, at most: each is the slower for the others, and the fewer transactions wait for one the less it
/// is worth.
const SYNCS_UNDER_WAY_MAX: usize = 2;

/// A transaction that is written.
pub(super) struct Written {
    /// The sequence that must be durable before anybody may see it.
    pub(super) needs: u64,
    /// How far it moves the ends of its partitions.
    pub(super) moved: Vec<(Arc<Partition>, Offset)>,
    pub(super) answer: Decided,
}

impl Written {
    /// To be called for all that are shown at once under the state's lock, so that readers see all or none of it.
    pub(super) fn show(&self) {
        for (partition, end) in &self.moved {
            partition.show(*end);
        }
    }

    /// Wakes readers and answers.
    pub(super) fn tell(self) {
        self.moved.iter().for_each(|(p, _)| p.announce());
        self.answer.give();
    }
}

pub(super) struct Pipeline {
    line: Mutex<Line>,
    work: Condvar,
    synced: watch::Sender<u64>,
}

/// What waits. Bounded by the room that its transactions hold in the committer's queue.
#[derive(Default)]
pub(super) struct Line {
    waiting: Vec<Written>,
    /// The highest sequence that somebody needs.
    needed: u64,
    /// The highest one that a sync under way covers.
    begun: u64,
    synced: u64,
    syncs_under_way: usize,
    /// Transactions that wait for a sync that began, and for one that did not.
    covered: usize,
    uncovered: usize,
    preparation: Option<Preparation>,
    is_preparing: bool,
    is_stopping: bool,
    has_failed: bool,
    /// For tests: nobody syncs but they.
    only_syncers: bool,
}

impl Line {
    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    /// The sequence that must be durable for everything written so far to be shown.
    pub(super) fn needed(&self) -> u64 {
        self.needed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn wait(&mut self, written: Written) {
        self.needed = self.needed.max(written.needs);
        self.waiting.push(written);
        self.uncovered += 1;
    }

    /// Whether it is time for a sync: beside another one only for as many as wait for that, or those who will be answered soon and come
    /// again would find the disk busy with a few.
    fn needs_sync(&self) -> bool {
        let is_time = match self.syncs_under_way {
            0 => true,
            SYNCS_UNDER_WAY_MAX.. => false,
            _ => self.is_stopping || self.uncovered >= self.covered,
        };
        is_time && self.needed > self.begun
    }

    fn begin(&mut self) {
        self.begun = self.needed;
        self.syncs_under_way += 1;
        self.covered += std::mem::take(&mut self.uncovered);
    }

    /// Somebody may wait for a sync that is under way, and for this nobody yet, unless it has been put off for long.
    fn may_prepare(&self) -> bool {
        let preparation = self.preparation.as_ref();
        preparation.is_some_and(|p| p.is_urgent || self.syncs_under_way == 0)
    }

    fn take_preparation(&mut self) -> Option<Preparation> {
        match self.may_prepare() {
            true => self.preparation.take(),
            false => None,
        }
    }

    fn take_ready(&mut self) -> Vec<Written> {
        let synced = self.synced;
        let ready = self.waiting.extract_if(.., |w| w.needs <= synced);
        let ready: Vec<Written> = ready.collect();
        // Those written after a sync was decided and before it began are covered, too.
        self.covered = self
            .waiting
            .iter()
            .filter(|w| w.needs <= self.begun)
            .count();
        self.uncovered = self.waiting.len() - self.covered;
        ready
    }
}

enum Work {
    Sync,
    Prepare(Preparation),
}

impl Pipeline {
    pub(super) fn new(synced: u64) -> Self {
        let line = Line {
            synced,
            begun: synced,
            needed: synced,
            ..Line::default()
        };
        Self {
            line: Mutex::new(line),
            work: Condvar::new(),
            synced: watch::Sender::new(synced),
        }
    }

    /// To be locked after the journal and the state.
    pub(super) fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock()
    }

    /// Sees to it that what waits is synced: by the caller, if that is told, or by a syncer. A caller with nothing else to do
    /// saves the way to another thread.
    #[must_use]
    pub(super) fn sync_soon(&self, caller_is_idle: bool) -> bool {
        let mut line = self.line.lock();
        if !line.needs_sync() {
            return false;
        }
        let by_caller = caller_is_idle && line.syncs_under_way == 0 && !line.only_syncers;
        if by_caller {
            line.begin();
        } else {
            self.work.notify_one();
        }
        by_caller
    }

    pub(super) fn prepare_soon(&self, preparation: Preparation) {
        self.line.lock().preparation = Some(preparation);
        self.work.notify_one();
    }

    /// Waits until everything before `sequence` is shown, or never will be.
    pub(super) async fn shown(&self, sequence: u64) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as this.
        let _ = synced.wait_for(|&synced| synced >= sequence).await;
    }

    /// The syncers end when nothing waits any more.
    pub(super) fn stop(&self) {
        self.line.lock().is_stopping = true;
        self.work.notify_all();
    }

    /// Nobody will be shown or told anything any more but this.
    pub(super) fn fail(&self, error: &CommitError) {
        let waiting = {
            let mut line = self.line.lock();
            line.has_failed = true;
            std::mem::take(&mut line.waiting)
        };
        for written in waiting {
            written.answer.refuse(error.clone());
        }
        self.synced.send_replace(u64::MAX);
        self.work.notify_all();
    }

    fn end_sync(&self) {
        let mut line = self.line.lock();
        line.syncs_under_way -= 1;
        if line.needs_sync() || line.may_prepare() {
            self.work.notify_one();
        }
    }

    /// Whether everything written is shown, and nothing will be done before more is.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        let line = self.line.lock();
        let works = line.is_preparing || line.preparation.is_some() || line.syncs_under_way > 0;
        !works && line.is_empty()
    }

    fn note_begun(&self, sequence: u64) {
        let mut line = self.line.lock();
        if line.begun < sequence {
            line.begun = sequence;
            line.covered += std::mem::take(&mut line.uncovered);
        }
    }

    fn next_work(&self) -> Option<Work> {
        let mut line = self.line.lock();
        loop {
            if line.has_failed {
                return None;
            }
            if line.needs_sync() {
                line.begin();
                return Some(Work::Sync);
            }
            if line.is_stopping {
                return None;
            }
            if let Some(preparation) = line.take_preparation() {
                line.is_preparing = true;
                return Some(Work::Prepare(preparation));
            }
            self.work.wait(&mut line);
        }
    }
}

impl Shared {
    /// So that a sync that hangs does not keep the committer.
    #[cfg(test)]
    pub(super) fn keep_syncs_from_the_committer(&self) {
        self.pipeline.line().only_syncers = true;
    }

    /// A syncer's thread.
    pub(super) fn sync_until_stopped(&self, who: usize) {
        let _poison = PoisonOnPanic(self);
        while let Some(work) = self.pipeline.next_work() {
            match work {
                Work::Sync => {
                    let sync = self.journal.lock().begin_sync(who);
                    self.pipeline.note_begun(sync.sequence());
                    // Whoever is refused has been told.
                    let _ = self.finish_sync(sync);
                }
                Work::Prepare(preparation) => {
                    // On a full disk all room is for the checkpoint.
                    if !self.reserve.is_full()
                        && let Err(error) = preparation.run()
                    {
                        self.poison(&error.to_string());
                    }
                    self.pipeline.line().is_preparing = false;
                }
            }
        }
    }

    /// Runs a sync that [`Pipeline::sync_soon`] gave to the caller, and shows and answers what it covers.
    pub(super) fn finish_sync(&self, sync: JournalSync) -> Result<(), CommitError> {
        let ran = self.run_sync(sync);
        self.pipeline.end_sync();
        ran
    }

    /// Makes everything written durable and shows it, with the journal locked: nothing waits afterwards.
    pub(super) fn settle(&self, journal: &mut Journal, who: usize) -> Result<(), CommitError> {
        let sync = journal.begin_sync(who);
        self.pipeline.note_begun(sync.sequence());
        self.run_sync(sync)
    }

    fn run_sync(&self, sync: JournalSync) -> Result<(), CommitError> {
        let began_at = self.clock.monotonic();
        let sequence = sync.run().map_err(|error| self.refuse(&error))?;
        let took = self.clock.monotonic().saturating_sub(began_at);
        metrics::histogram!("millrace_journal_sync_seconds").record(took.as_secs_f64());
        self.show_synced(sequence)
    }

    fn refuse(&self, error: &io::Error) -> CommitError {
        self.poison(&error.to_string());
        self.poisoned().unwrap_or(CommitError::Closed)
    }

    fn show_synced(&self, sequence: u64) -> Result<(), CommitError> {
        let ready = {
            let _whole = self.state.write();
            let mut line = self.pipeline.line();
            if line.has_failed {
                return Err(self.poisoned().unwrap_or(CommitError::Closed));
            }
            line.synced = line.synced.max(sequence);
            let ready = line.take_ready();
            ready.iter().for_each(Written::show);
            ready
        };
        ready.into_iter().for_each(Written::tell);
        self.pipeline.synced.send_if_modified(|synced| {
            let moved = *synced < sequence;
            *synced = sequence.max(*synced);
            moved
        });
        Ok(())
    }
}
